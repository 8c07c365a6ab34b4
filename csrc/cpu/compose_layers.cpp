#include "tile.h"

namespace blsgan {
namespace {

using cpu::kTile;
using cpu::Tiles;

template <typename T>
BLSGAN_HD void forward(const ComposeLayers& a, int64_t begin, int64_t end) {
  Tiles<T> scratch(7);
  T *transmission = scratch[0], *correction = scratch[1], *single = scratch[2],
    *coverage = scratch[3], *mask = scratch[4], *layer_buffer = scratch[5], *result = scratch[6];
  for (int64_t item = begin; item < end; ++item) {
    const cpu::Span span = cpu::span_of(a.shape, item);
    const T k = clamp_soft_tissue(cpu::load_scalar<T>(a.soft_tissue, span.batch));
    const T inverse_soft = T(1) / (T(1) - k);
    for (int64_t p = span.begin; p < span.end; p += kTile) {
      const int count = static_cast<int>(span.end - p < kTile ? span.end - p : kTile);
      for (int t = 0; t < count; ++t) {
        transmission[t] = T(1);
        correction[t] = T(1);
        single[t] = T(0);
        coverage[t] = T(0);
      }
      for (int64_t i = 0; i < a.shape.layers; ++i) {
        if (cpu::load_mask(a.masks, span.batch, i, p, count, mask) == 0) continue;
        const T* layer = cpu::load_tile(a.layers, span.batch, i, p, count, layer_buffer);
#pragma omp simd
        for (int t = 0; t < count; ++t) {
          Composition<T> pixel{transmission[t], correction[t], single[t], coverage[t]};
          pixel.add(layer[t], mask[t], inverse_soft);
          transmission[t] = pixel.transmission;
          correction[t] = pixel.correction;
          single[t] = pixel.single;
          coverage[t] = pixel.coverage;
        }
      }
      T* target = cpu::output_tile(a.composed, span.batch, 0, p, result);
#pragma omp simd
      for (int t = 0; t < count; ++t) {
        target[t] =
            Composition<T>{transmission[t], correction[t], single[t], coverage[t]}.value();
      }
      cpu::finish_tile(a.composed, span.batch, 0, p, count, target, result);
    }
  }
}

template <typename T>
BLSGAN_HD void backward(const ComposeLayersBackward& a, int64_t begin, int64_t end) {
  const int64_t layers = a.shape.layers;
  Tiles<T> scratch(7 + 3 * layers);
  T *transmission = scratch[0], *correction = scratch[1], *coverage = scratch[2],
    *suffix = scratch[3], *grad_buffer = scratch[4], *result = scratch[5];
  T* single = scratch[6];
  // For each layer: its mask, its transmission where covered, the product of those before it.
  const auto mask = [&](int64_t i) { return scratch[7 + 3 * i]; };
  const auto own = [&](int64_t i) { return scratch[8 + 3 * i]; };
  const auto before = [&](int64_t i) { return scratch[9 + 3 * i]; };
  for (int64_t item = begin; item < end; ++item) {
    const cpu::Span span = cpu::span_of(a.shape, item);
    const T k = clamp_soft_tissue(cpu::load_scalar<T>(a.soft_tissue, span.batch));
    const T inverse_soft = T(1) / (T(1) - k);
    double soft_sum = 0.0;
    for (int64_t p = span.begin; p < span.end; p += kTile) {
      const int count = static_cast<int>(span.end - p < kTile ? span.end - p : kTile);
      for (int t = 0; t < count; ++t) {
        transmission[t] = T(1);
        correction[t] = T(1);
        single[t] = T(0);
        coverage[t] = T(0);
        suffix[t] = T(1);
      }
      const T* grad = cpu::load_tile(a.grad_composed, span.batch, 0, p, count, grad_buffer);
      for (int64_t i = 0; i < layers; ++i) {
        T *m = mask(i), *o = own(i), *b = before(i);
        const bool any = cpu::load_mask(a.masks, span.batch, i, p, count, m) != 0;
        // An uncovered tile of a layer is not read at all.
        const T* layer = any ? cpu::load_tile(a.layers, span.batch, i, p, count, o) : m;
#pragma omp simd
        for (int t = 0; t < count; ++t) {
          Composition<T> pixel{transmission[t], correction[t], single[t], coverage[t]};
          b[t] = pixel.transmission;
          pixel.add(layer[t], m[t], inverse_soft);
          o[t] = m[t] != T(0) ? T(1) - layer[t] : T(1);
          transmission[t] = pixel.transmission;
          correction[t] = pixel.correction;
          coverage[t] = pixel.coverage;
        }
      }
      for (int64_t i = layers - 1; i >= 0; --i) {
        const T *m = mask(i), *o = own(i), *b = before(i);
        T* target = cpu::output_tile(a.grad_layers, span.batch, i, p, result);
#pragma omp simd
        for (int t = 0; t < count; ++t) {
          const T slope = compose_layer_gradient(m[t], b[t] * suffix[t], correction[t]);
          target[t] = m[t] != T(0) ? grad[t] * slope : T(0);
          suffix[t] *= o[t];
        }
        cpu::finish_tile(a.grad_layers, span.batch, i, p, count, target, result);
      }
      T sum = T(0);
#pragma omp simd reduction(+ : sum)
      for (int t = 0; t < count; ++t) {
        const Composition<T> pixel{transmission[t], correction[t], T(0), coverage[t]};
        sum += coverage[t] > T(1) ? grad[t] * pixel.soft_tissue_gradient(inverse_soft) : T(0);
      }
      soft_sum += static_cast<double>(sum);
    }
    a.partials[item] = soft_sum;
  }
}

BLSGAN_CLONES void forward_narrow(const ComposeLayers& a, int64_t begin, int64_t end) {
  forward<float>(a, begin, end);
}
BLSGAN_CLONES void forward_wide(const ComposeLayers& a, int64_t begin, int64_t end) {
  forward<double>(a, begin, end);
}
BLSGAN_CLONES void backward_narrow(const ComposeLayersBackward& a, int64_t begin, int64_t end) {
  backward<float>(a, begin, end);
}
BLSGAN_CLONES void backward_wide(const ComposeLayersBackward& a, int64_t begin, int64_t end) {
  backward<double>(a, begin, end);
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
  cpu::finish_soft_tissue_gradient(args.shape, args.soft_tissue, args.partials,
                                   args.grad_soft_tissue);
}

}  // namespace blsgan
