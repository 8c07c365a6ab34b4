#include "composition.h"

namespace blsgan {
namespace {

using cpu::kTile;
using cpu::Tiles;

template <typename T, typename Law>
BLSGAN_HD void forward(const ReconstructionLoss& a, const Law& law, int64_t begin, int64_t end) {
  cpu::CompositionTile<T, Law> tile(law, a.soft_tissue, a.shape.layers, false);
  Tiles<T> scratch(3);
  T *value = scratch[1], *cover = scratch[2];
  for (int64_t item = begin; item < end; ++item) {
    const cpu::Span span = cpu::span_of(a.shape, item);
    double square_sum = 0.0, count_sum = 0.0;
    for (int64_t p = span.begin; p < span.end; p += kTile) {
      const int count = span.tile(p);
      if (!tile.load(a.layers, a.masks, span.batch, p, count)) continue;
      const T* image = cpu::load_tile(a.image, span.batch, 0, p, count, scratch[0]);
      tile.compose(count, value, cover);
      T squares = T(0), covered = T(0);
#pragma omp simd reduction(+ : squares, covered)
      for (int t = 0; t < count; ++t) {
        const T difference = value[t] - image[t];
        squares += cover[t] > T(0) ? difference * difference : T(0);
        covered += cover[t] > T(0) ? T(1) : T(0);
      }
      square_sum += static_cast<double>(squares);
      count_sum += static_cast<double>(covered);
    }
    a.partials[item * kRmseSums] = square_sum;
    a.partials[item * kRmseSums + 1] = count_sum;
  }
}

template <typename T, typename Law>
BLSGAN_HD void backward(const ReconstructionLossBackward& a, const Law& law, int64_t begin,
                        int64_t end) {
  cpu::CompositionTile<T, Law> tile(law, a.soft_tissue, a.shape.layers, true);
  cpu::SoftGradient<T> grad_soft(a.grad_soft_tissue);
  Tiles<T> scratch(4);
  T *grad = scratch[0], *cover = scratch[3];
  const T slope =
      static_cast<T>(cpu::load_scalar<double>(a.grad_loss, 0) *
                     root_mean_square_slope(a.statistics[0], a.statistics[1]));
  for (int64_t item = begin; item < end; ++item) {
    const cpu::Span span = cpu::span_of(a.shape, item);
    for (int64_t p = span.begin; p < span.end; p += kTile) {
      const int count = span.tile(p);
      if (!tile.load(a.layers, a.masks, span.batch, p, count)) {
        for (int64_t i = 0; i < a.shape.layers; ++i) {
          cpu::store_zeros(a.grad_layers, span.batch, i, p, count);
        }
        grad_soft.finish_zeros(span.batch, p, count);
        if (a.grad_image.data != nullptr) {
          cpu::store_zeros(a.grad_image, span.batch, 0, p, count);
        }
        continue;
      }
      const T* image = cpu::load_tile(a.image, span.batch, 0, p, count, scratch[1]);
      tile.compose(count, grad, cover);
BLSGAN_INDEPENDENT
      for (int t = 0; t < count; ++t) {
        const T value = slope * (grad[t] - image[t]);
        grad[t] = cover[t] > T(0) ? value : T(0);
      }
      tile.backward(grad, span.batch, p, count, a.grad_layers, grad_soft);
      if (a.grad_image.data != nullptr) {
        T* target = cpu::output_tile(a.grad_image, span.batch, 0, p, scratch[2]);
BLSGAN_INDEPENDENT
        for (int t = 0; t < count; ++t) target[t] = -grad[t];
        cpu::finish_tile<T>(a.grad_image, span.batch, 0, p, count, target, scratch[2]);
      }
    }
    a.partials[item] = grad_soft.take_sum();
  }
}

template <typename T>
BLSGAN_HD void by_law(const ReconstructionLoss& a, int64_t begin, int64_t end) {
  if (a.law == 0.0) return forward<T>(a, TransmissionLaw<T>(), begin, end);
  forward<T>(a, ExponentialLaw<T>(a.law), begin, end);
}
template <typename T>
BLSGAN_HD void by_law(const ReconstructionLossBackward& a, int64_t begin, int64_t end) {
  if (a.law == 0.0) return backward<T>(a, TransmissionLaw<T>(), begin, end);
  backward<T>(a, ExponentialLaw<T>(a.law), begin, end);
}

BLSGAN_CLONES void forward_narrow(const ReconstructionLoss& a, int64_t begin, int64_t end) {
  by_law<float>(a, begin, end);
}
BLSGAN_CLONES void forward_wide(const ReconstructionLoss& a, int64_t begin, int64_t end) {
  by_law<double>(a, begin, end);
}
BLSGAN_CLONES void backward_narrow(const ReconstructionLossBackward& a, int64_t begin,
                                   int64_t end) {
  by_law<float>(a, begin, end);
}
BLSGAN_CLONES void backward_wide(const ReconstructionLossBackward& a, int64_t begin, int64_t end) {
  by_law<double>(a, begin, end);
}

}  // namespace

void run_cpu(const ReconstructionLoss& args, const CpuContext& context) {
  cpu::for_items(item_count(args.shape), context, args, forward_narrow, forward_wide);
  cpu::finish_rmse(item_count(args.shape), args.partials, args.loss, args.statistics);
}

void run_cpu(const ReconstructionLossBackward& args, const CpuContext& context) {
  cpu::advise_large_pages(args.grad_layers,
                          args.shape.batch * args.shape.layers * args.shape.pixels());
  cpu::advise_large_pages(args.grad_image, args.shape.batch * args.shape.pixels());
  cpu::for_items(item_count(args.shape), context, args, backward_narrow, backward_wide);
  cpu::finish_soft_tissue_gradient(args.shape, args.partials, args.grad_soft_tissue);
}

}  // namespace blsgan
