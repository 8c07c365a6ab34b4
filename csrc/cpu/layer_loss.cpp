#include "tile.h"

namespace blsgan {
namespace {

using cpu::kTile;
using cpu::Tiles;

template <typename T>
BLSGAN_HD void forward(const LayerLoss& a, int64_t begin, int64_t end) {
  Tiles<T> scratch(2);
  uint8_t mask_buffer[kTile];
  for (int64_t item = begin; item < end; ++item) {
    const cpu::Span span = cpu::span_of(a.shape, item);
    double square_sum = 0.0, count_sum = 0.0;
    for (int64_t p = span.begin; p < span.end; p += kTile) {
      const int count = span.tile(p);
      for (int64_t i = 0; i < a.shape.layers; ++i) {
        const uint8_t* __restrict mask =
            cpu::mask_tile(a.masks, span.batch, i, p, count, mask_buffer);
        const int covered = cpu::count_set(mask, count);
        if (covered == 0) continue;
        const T* __restrict layer =
            cpu::load_tile(a.layers, span.batch, i, p, count, scratch[0]);
        const T* __restrict truth =
            cpu::load_tile(a.true_layers, span.batch, i, p, count, scratch[1]);
        T squares = T(0);
#pragma omp simd reduction(+ : squares)
        for (int t = 0; t < count; ++t) {
          const T difference = layer[t] - truth[t];
          squares += keep_if(mask[t] != 0, difference * difference);
        }
        square_sum += static_cast<double>(squares);
        count_sum += covered;
      }
    }
    a.partials[item * kRmseSums] = square_sum;
    a.partials[item * kRmseSums + 1] = count_sum;
  }
}

template <typename T>
BLSGAN_HD void backward(const LayerLossBackward& a, int64_t begin, int64_t end) {
  Tiles<T> scratch(4);
  uint8_t mask_buffer[kTile];
  const T slope =
      static_cast<T>(cpu::load_scalar<double>(a.grad_loss, 0) *
                     root_mean_square_slope(a.statistics[0], a.statistics[1]));
  for (int64_t item = begin; item < end; ++item) {
    const cpu::Span span = cpu::span_of(a.shape, item);
    for (int64_t p = span.begin; p < span.end; p += kTile) {
      const int count = span.tile(p);
      for (int64_t i = 0; i < a.shape.layers; ++i) {
        const uint8_t* __restrict mask =
            cpu::mask_tile(a.masks, span.batch, i, p, count, mask_buffer);
        if (!cpu::any_set(mask, count)) {
          cpu::store_zeros(a.grad_layers, span.batch, i, p, count);
          if (a.grad_true_layers.data != nullptr) {
            cpu::store_zeros(a.grad_true_layers, span.batch, i, p, count);
          }
          continue;
        }
        const T* __restrict layer =
            cpu::load_tile(a.layers, span.batch, i, p, count, scratch[0]);
        const T* __restrict truth =
            cpu::load_tile(a.true_layers, span.batch, i, p, count, scratch[1]);
        T* __restrict target = cpu::output_tile(a.grad_layers, span.batch, i, p, scratch[2]);
BLSGAN_INDEPENDENT
        for (int t = 0; t < count; ++t) {
          const T value = slope * (layer[t] - truth[t]);
          target[t] = keep_if(mask[t] != 0, value);
        }
        if (a.grad_true_layers.data != nullptr) {
          T* __restrict opposite =
              cpu::output_tile(a.grad_true_layers, span.batch, i, p, scratch[3]);
BLSGAN_INDEPENDENT
          for (int t = 0; t < count; ++t) opposite[t] = -target[t];
          cpu::finish_tile<T>(a.grad_true_layers, span.batch, i, p, count, opposite, scratch[3]);
        }
        cpu::finish_tile<T>(a.grad_layers, span.batch, i, p, count, target, scratch[2]);
      }
    }
  }
}

BLSGAN_CLONES void forward_narrow(const LayerLoss& a, int64_t begin, int64_t end) {
  forward<float>(a, begin, end);
}
BLSGAN_CLONES void forward_wide(const LayerLoss& a, int64_t begin, int64_t end) {
  forward<double>(a, begin, end);
}
BLSGAN_CLONES void backward_narrow(const LayerLossBackward& a, int64_t begin, int64_t end) {
  backward<float>(a, begin, end);
}
BLSGAN_CLONES void backward_wide(const LayerLossBackward& a, int64_t begin, int64_t end) {
  backward<double>(a, begin, end);
}

}  // namespace

void run_cpu(const LayerLoss& args, const CpuContext& context) {
  cpu::for_items(item_count(args.shape), context, args, forward_narrow, forward_wide);
  cpu::finish_rmse(item_count(args.shape), args.partials, args.loss, args.statistics);
}

void run_cpu(const LayerLossBackward& args, const CpuContext& context) {
  const int64_t elements = args.shape.batch * args.shape.layers * args.shape.pixels();
  cpu::advise_large_pages(args.grad_layers, elements);
  cpu::advise_large_pages(args.grad_true_layers, elements);
  cpu::for_items(item_count(args.shape), context, args, backward_narrow, backward_wide);
}

}  // namespace blsgan
