#include "composition.h"

namespace blsgan {
namespace {

using cpu::kTile;
using cpu::Tiles;

template <typename T>
BLSGAN_HD void forward(const ComposeLayers& a, int64_t begin, int64_t end) {
  cpu::CompositionTile<T> tile(a.shape.layers, false);
  Tiles<T> scratch(2);
  for (int64_t item = begin; item < end; ++item) {
    const cpu::Span span = cpu::span_of(a.shape, item);
    const T inverse_soft = cpu::inverse_soft_transmission<T>(a.soft_tissue, span.batch);
    for (int64_t p = span.begin; p < span.end; p += kTile) {
      const int count = span.tile(p);
      if (!tile.load(a.layers, a.masks, span.batch, p, count, inverse_soft)) {
        cpu::store_zeros(a.composed, span.batch, 0, p, count);
        continue;
      }
      T* target = cpu::output_tile(a.composed, span.batch, 0, p, scratch[0]);
      tile.compose(count, target, scratch[1]);
      cpu::finish_tile<T>(a.composed, span.batch, 0, p, count, target, scratch[0]);
    }
  }
}

template <typename T>
BLSGAN_HD void backward(const ComposeLayersBackward& a, int64_t begin, int64_t end) {
  cpu::CompositionTile<T> tile(a.shape.layers, true);
  Tiles<T> scratch(1);
  for (int64_t item = begin; item < end; ++item) {
    const cpu::Span span = cpu::span_of(a.shape, item);
    const T inverse_soft = cpu::inverse_soft_transmission<T>(a.soft_tissue, span.batch);
    double soft_sum = 0.0;
    for (int64_t p = span.begin; p < span.end; p += kTile) {
      const int count = span.tile(p);
      if (!tile.load(a.layers, a.masks, span.batch, p, count, inverse_soft)) {
        for (int64_t i = 0; i < a.shape.layers; ++i) {
          cpu::store_zeros(a.grad_layers, span.batch, i, p, count);
        }
        continue;
      }
      const T* grad = cpu::load_tile(a.grad_composed, span.batch, 0, p, count, scratch[0]);
      soft_sum += static_cast<double>(
          tile.backward(grad, span.batch, p, count, a.grad_layers));
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
