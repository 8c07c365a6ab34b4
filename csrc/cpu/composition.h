// One tile of all layers, composed and differentiated: shared by compose_layers and
// reconstruction_loss.

#pragma once

#include "tile.h"

namespace blsgan::cpu {

template <typename T>
class CompositionTile {
 public:
  // `differentiate` keeps what backward needs: for each layer its mask, its transmission where
  // covered and the product of the transmissions before it.
  CompositionTile(int64_t layers, bool differentiate)
      : scratch_(6 + (differentiate ? 3 * layers + 2 : 0)),
        layers_(layers),
        differentiate_(differentiate) {}

  T* coverage() { return scratch_[0]; }

  BLSGAN_HD void compose(const View& layers, const View& masks, int64_t batch, int64_t p,
                         int count, T inverse_soft) {
    T* __restrict coverage = scratch_[0];
    T* __restrict transmission = scratch_[1];
    T* __restrict correction = scratch_[2];
    T* __restrict single = scratch_[3];
    for (int t = 0; t < count; ++t) {
      coverage[t] = T(0);
      transmission[t] = T(1);
      correction[t] = T(1);
      single[t] = T(0);
    }
    for (int64_t i = 0; i < layers_; ++i) {
      T* __restrict mask = differentiate_ ? kept(i, 0) : scratch_[4];
      // A layer's tile that its mask does not touch is not read.
      const bool any = load_mask(masks, batch, i, p, count, mask) != 0;
      if (!any && !differentiate_) continue;
      T* buffer = scratch_[5];
      const T* __restrict layer = any ? load_tile(layers, batch, i, p, count, buffer) : mask;
      if (differentiate_) {
        T* __restrict own = kept(i, 1);
        T* __restrict before = kept(i, 2);
#pragma omp simd
        for (int t = 0; t < count; ++t) {
          own[t] = mask[t] != T(0) ? T(1) - layer[t] : T(1);
          before[t] = transmission[t];
        }
      }
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
  }

  BLSGAN_HD T value(int t) {
    return Composition<T>{scratch_[1][t], scratch_[2][t], scratch_[3][t], scratch_[0][t]}.value();
  }

  // Writes the layers' gradients for `grad` = d loss / d composed and returns this tile's part of
  // the gradient of soft tissue.
  BLSGAN_HD T backward(const T* __restrict grad, int64_t batch, int64_t p, int count,
                       T inverse_soft, const MutableView& grad_layers) {
    const T* __restrict coverage = scratch_[0];
    const T* __restrict transmission = scratch_[1];
    const T* __restrict correction = scratch_[2];
    T* __restrict after = kept(layers_, 0);
    T* result = kept(layers_, 1);
    for (int t = 0; t < count; ++t) after[t] = T(1);
    for (int64_t i = layers_ - 1; i >= 0; --i) {
      const T *mask = kept(i, 0), *own = kept(i, 1), *before = kept(i, 2);
      T* __restrict target = output_tile(grad_layers, batch, i, p, result);
#pragma omp simd
      for (int t = 0; t < count; ++t) {
        const T slope = compose_layer_gradient(mask[t], before[t] * after[t], correction[t]);
        target[t] = mask[t] != T(0) ? grad[t] * slope : T(0);
        after[t] *= own[t];
      }
      finish_tile<T>(grad_layers, batch, i, p, count, target, result);
    }
    T sum = T(0);
#pragma omp simd reduction(+ : sum)
    for (int t = 0; t < count; ++t) {
      const Composition<T> pixel{transmission[t], correction[t], T(0), coverage[t]};
      sum += coverage[t] > T(1) ? grad[t] * pixel.soft_tissue_gradient(inverse_soft) : T(0);
    }
    return sum;
  }

 private:
  T* kept(int64_t layer, int64_t which) { return scratch_[6 + 3 * layer + which]; }

  Tiles<T> scratch_;
  int64_t layers_;
  bool differentiate_;
};

template <typename T>
BLSGAN_HD T inverse_soft_transmission(const View& soft_tissue, int64_t batch) {
  return T(1) / (T(1) - clamp_soft_tissue(load_scalar<T>(soft_tissue, batch)));
}

}  // namespace blsgan::cpu
