#include "composition.h"

namespace blsgan {
namespace {

using cpu::kTile;
using cpu::Tiles;

template <typename T, typename Law>
BLSGAN_HD void forward(const ComposeLayers& a, const Law& law, int64_t begin, int64_t end) {
  cpu::CompositionTile<T, Law> tile(law, a.soft_tissue, a.shape.layers, false);
  Tiles<T> scratch(2);
  for (int64_t item = begin; item < end; ++item) {
    const cpu::Span span = cpu::span_of(a.shape, item);
    for (int64_t p = span.begin; p < span.end; p += kTile) {
      const int count = span.tile(p);
      if (!tile.load(a.layers, a.masks, span.batch, p, count)) {
        cpu::store_zeros(a.composed, span.batch, 0, p, count);
        continue;
      }
      T* target = cpu::output_tile(a.composed, span.batch, 0, p, scratch[0]);
      tile.compose(count, target, scratch[1]);
      cpu::finish_tile<T>(a.composed, span.batch, 0, p, count, target, scratch[0]);
    }
  }
}

template <typename T, typename Law>
BLSGAN_HD void backward(const ComposeLayersBackward& a, const Law& law, int64_t begin,
                        int64_t end) {
  cpu::CompositionTile<T, Law> tile(law, a.soft_tissue, a.shape.layers, true);
  cpu::SoftGradient<T> grad_soft(a.grad_soft_tissue);
  Tiles<T> scratch(1);
  for (int64_t item = begin; item < end; ++item) {
    const cpu::Span span = cpu::span_of(a.shape, item);
    for (int64_t p = span.begin; p < span.end; p += kTile) {
      const int count = span.tile(p);
      if (!tile.load(a.layers, a.masks, span.batch, p, count)) {
        for (int64_t i = 0; i < a.shape.layers; ++i) {
          cpu::store_zeros(a.grad_layers, span.batch, i, p, count);
        }
        grad_soft.finish_zeros(span.batch, p, count);
        continue;
      }
      const T* grad = cpu::load_tile(a.grad_composed, span.batch, 0, p, count, scratch[0]);
      tile.backward(grad, span.batch, p, count, a.grad_layers, grad_soft);
    }
    a.partials[item] = grad_soft.take_sum();
  }
}

template <typename T>
BLSGAN_HD void by_law(const ComposeLayers& a, int64_t begin, int64_t end) {
  if (a.law == 0.0) return forward<T>(a, TransmissionLaw<T>(), begin, end);
  forward<T>(a, ExponentialLaw<T>(a.law), begin, end);
}
template <typename T>
BLSGAN_HD void by_law(const ComposeLayersBackward& a, int64_t begin, int64_t end) {
  if (a.law == 0.0) return backward<T>(a, TransmissionLaw<T>(), begin, end);
  backward<T>(a, ExponentialLaw<T>(a.law), begin, end);
}

BLSGAN_CLONES void forward_narrow(const ComposeLayers& a, int64_t begin, int64_t end) {
  by_law<float>(a, begin, end);
}
BLSGAN_CLONES void forward_wide(const ComposeLayers& a, int64_t begin, int64_t end) {
  by_law<double>(a, begin, end);
}
BLSGAN_CLONES void backward_narrow(const ComposeLayersBackward& a, int64_t begin, int64_t end) {
  by_law<float>(a, begin, end);
}
BLSGAN_CLONES void backward_wide(const ComposeLayersBackward& a, int64_t begin, int64_t end) {
  by_law<double>(a, begin, end);
}

}  // namespace

void run_cpu(const ComposeLayers& args, const CpuContext& context) {
  cpu::advise_large_pages(args.composed, args.shape.batch * args.shape.pixels());
  cpu::for_items(item_count(args.shape), context, args, forward_narrow, forward_wide);
}

void run_cpu(const ComposeLayersBackward& args, const CpuContext& context) {
  cpu::advise_large_pages(args.grad_layers,
                          args.shape.batch * args.shape.layers * args.shape.pixels());
  cpu::for_items(item_count(args.shape), context, args, backward_narrow, backward_wide);
  cpu::finish_soft_tissue_gradient(args.shape, args.partials, args.grad_soft_tissue);
}

}  // namespace blsgan
