// One tile of all layers, composed and differentiated: shared by compose_layers and
// reconstruction_loss.

#pragma once

#include "tile.h"

namespace blsgan::cpu {

// Two layers, the common case, are composed from their inputs wherever a value is needed: that is
// less work than keeping it. More layers leave their running products in scratch tiles.
template <typename T>
class CompositionTile {
 public:
  // `differentiate` keeps what backward needs of more than two layers: for each its mask, its
  // transmission where covered and the product of the transmissions before it.
  CompositionTile(int64_t layers, bool differentiate)
      : scratch_(8 + (layers > 2 && differentiate ? 3 * layers + 1 : 0)),
        layers_(layers),
        differentiate_(differentiate) {}

  // Reads one tile; returns whether any bone covers any of it. A layer's tile that its mask does
  // not touch is not read.
  BLSGAN_HD bool load(const View& layers, const View& masks, int64_t batch, int64_t p, int count,
                      T inverse_soft) {
    inverse_soft_ = inverse_soft;
    if (layers_ == 2) {
      bool some = false;
      for (int64_t i = 0; i < 2; ++i) {
        mask_[i] = mask_tile(masks, batch, i, p, count, mask_buffers_[i]);
        const bool any = any_set(mask_[i], count);
        layer_[i] = any ? load_tile(layers, batch, i, p, count, scratch_[2 + i]) : scratch_[i];
        some = some || any;
      }
      return some;
    }
    return accumulate(layers, masks, batch, p, count);
  }

  // The composed pixels of the tile, and how many bones cover each.
  BLSGAN_HD void compose(int count, T* __restrict value, T* __restrict cover) {
    if (layers_ == 2) {
      const T inverse_soft = inverse_soft_;
      const uint8_t *__restrict m0 = mask_[0], *__restrict m1 = mask_[1];
      const T *__restrict l0 = layer_[0], *__restrict l1 = layer_[1];
BLSGAN_INDEPENDENT
      for (int t = 0; t < count; ++t) {
        Composition<T> pixel = Composition<T>::empty();
        const bool c0 = m0[t] != 0, c1 = m1[t] != 0;
        pixel.add(l0[t], c0 ? T(1) : T(0), inverse_soft);
        pixel.add(l1[t], c1 ? T(1) : T(0), inverse_soft);
        value[t] = pixel.value();
        cover[t] = pixel.coverage;
      }
      return;
    }
    const T *__restrict coverage = scratch_[0], *__restrict transmission = scratch_[1],
            *__restrict correction = scratch_[2], *__restrict single = scratch_[3];
BLSGAN_INDEPENDENT
    for (int t = 0; t < count; ++t) {
      value[t] =
          Composition<T>{transmission[t], correction[t], single[t], coverage[t]}.value();
      cover[t] = coverage[t];
    }
  }

  // Writes the layers' gradients for `grad` = d loss / d composed and returns this tile's part of
  // the gradient of soft tissue.
  BLSGAN_HD T backward(const T* __restrict grad, int64_t batch, int64_t p, int count,
                       const MutableView& grad_layers) {
    const T inverse_soft = inverse_soft_;
    T* __restrict soft = scratch_[6];
    if (layers_ == 2) {
      T* __restrict first = output_tile(grad_layers, batch, 0, p, scratch_[4]);
      T* __restrict second = output_tile(grad_layers, batch, 1, p, scratch_[5]);
      const uint8_t *__restrict m0 = mask_[0], *__restrict m1 = mask_[1];
      const T *__restrict l0 = layer_[0], *__restrict l1 = layer_[1];
BLSGAN_INDEPENDENT
      for (int t = 0; t < count; ++t) {
        Composition<T> pixel = Composition<T>::empty();
        const bool c0 = m0[t] != 0, c1 = m1[t] != 0;
        pixel.add(l0[t], c0 ? T(1) : T(0), inverse_soft);
        pixel.add(l1[t], c1 ? T(1) : T(0), inverse_soft);
        const T own = T(1) - keep_if(c0, l0[t]);
        const T other = T(1) - keep_if(c1, l1[t]);
        first[t] = keep_if(c0, grad[t] * (other * pixel.correction));
        second[t] = keep_if(c1, grad[t] * (own * pixel.correction));
        soft[t] =
            keep_if(pixel.coverage > T(1), grad[t] * pixel.soft_tissue_gradient(inverse_soft));
      }
      finish_tile<T>(grad_layers, batch, 0, p, count, first, scratch_[4]);
      finish_tile<T>(grad_layers, batch, 1, p, count, second, scratch_[5]);
    } else {
      differentiate_layers(grad, batch, p, count, grad_layers);
      const T *__restrict coverage = scratch_[0], *__restrict transmission = scratch_[1],
              *__restrict correction = scratch_[2];
BLSGAN_INDEPENDENT
      for (int t = 0; t < count; ++t) {
        const Composition<T> pixel{transmission[t], correction[t], T(0), coverage[t]};
        soft[t] =
            keep_if(coverage[t] > T(1), grad[t] * pixel.soft_tissue_gradient(inverse_soft));
      }
    }
    T sum = T(0);
#pragma omp simd reduction(+ : sum)
    for (int t = 0; t < count; ++t) sum += soft[t];
    return sum;
  }

 private:
  T* kept(int64_t layer, int64_t which) { return scratch_[8 + 3 * layer + which]; }

  BLSGAN_HD bool accumulate(const View& layers, const View& masks, int64_t batch, int64_t p,
                            int count) {
    T *coverage = scratch_[0], *transmission = scratch_[1], *correction = scratch_[2],
      *single = scratch_[3];
    const T inverse_soft = inverse_soft_;
    for (int t = 0; t < count; ++t) {
      coverage[t] = T(0);
      transmission[t] = T(1);
      correction[t] = T(1);
      single[t] = T(0);
    }
    bool some = false;
    for (int64_t i = 0; i < layers_; ++i) {
      T* mask = differentiate_ ? kept(i, 0) : scratch_[4];
      const bool any = load_mask(masks, batch, i, p, count, mask) != 0;
      some = some || any;
      if (!any && !differentiate_) continue;
      T* buffer = scratch_[5];
      const T* layer = any ? load_tile(layers, batch, i, p, count, buffer) : mask;
      if (differentiate_) {
        T *own = kept(i, 1), *before = kept(i, 2);
BLSGAN_INDEPENDENT
        for (int t = 0; t < count; ++t) {
          own[t] = T(1) - keep_if(mask[t] != T(0), layer[t]);
          before[t] = transmission[t];
        }
      }
BLSGAN_INDEPENDENT
      for (int t = 0; t < count; ++t) {
        Composition<T> pixel{transmission[t], correction[t], single[t], coverage[t]};
        pixel.add(layer[t], mask[t], inverse_soft);
        transmission[t] = pixel.transmission;
        correction[t] = pixel.correction;
        single[t] = pixel.single;
        coverage[t] = pixel.coverage;
      }
    }
    return some;
  }

  BLSGAN_HD void differentiate_layers(const T* grad, int64_t batch, int64_t p, int count,
                                      const MutableView& grad_layers) {
    const T* correction = scratch_[2];
    T *after = kept(layers_, 0), *result = scratch_[5];
    for (int t = 0; t < count; ++t) after[t] = T(1);
    for (int64_t i = layers_ - 1; i >= 0; --i) {
      const T *mask = kept(i, 0), *own = kept(i, 1), *before = kept(i, 2);
      T* target = output_tile(grad_layers, batch, i, p, result);
BLSGAN_INDEPENDENT
      for (int t = 0; t < count; ++t) {
        const T slope = compose_layer_gradient(mask[t], before[t] * after[t], correction[t]);
        target[t] = keep_if(mask[t] != T(0), grad[t] * slope);
        after[t] *= own[t];
      }
      finish_tile<T>(grad_layers, batch, i, p, count, target, result);
    }
  }

  Tiles<T> scratch_;
  int64_t layers_;
  bool differentiate_;
  T inverse_soft_ = T(1);
  const uint8_t* mask_[2] = {};
  const T* layer_[2] = {};
  uint8_t mask_buffers_[2][kTile];
};

template <typename T>
BLSGAN_HD T inverse_soft_transmission(const View& soft_tissue, int64_t batch) {
  return T(1) / (T(1) - clamp_soft_tissue(load_scalar<T>(soft_tissue, batch)));
}

}  // namespace blsgan::cpu
