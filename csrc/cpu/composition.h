// One tile of all layers, composed and differentiated: shared by compose_layers and
// reconstruction_loss.

#pragma once

#include "tile.h"

namespace blsgan::cpu {

// Two layers, the common case, are composed from their inputs wherever a value is needed: that is
// less work than keeping it. More layers leave their running products or sums in scratch tiles.
template <typename T, typename Law>
class CompositionTile {
 public:
  // `differentiate` keeps what backward needs of more than two layers: for each its mask, its
  // term where covered and the product of the terms before it.
  CompositionTile(const Law& law, const View& soft_tissue, int64_t layers, bool differentiate)
      : law_(law),
        soft_(soft_tissue),
        scratch_(6 + (layers > 2 && differentiate ? 3 * layers + 1 : 0)),
        layers_(layers),
        differentiate_(differentiate) {}

  // Reads one tile; returns whether any bone covers any of it. A layer's tile that its mask does
  // not touch is not read, and soft tissue only where bones overlap.
  BLSGAN_HD bool load(const View& layers, const View& masks, int64_t batch, int64_t p, int count) {
    if (layers_ == 2) {
      for (int64_t i = 0; i < 2; ++i) {
        mask_[i] = mask_tile(masks, batch, i, p, count, mask_buffers_[i]);
      }
      const PairCover cover(mask_[0], mask_[1], count);
      layer_[0] = cover.first ? load_tile(layers, batch, 0, p, count, scratch_[0]) : scratch_[0];
      layer_[1] = cover.second ? load_tile(layers, batch, 1, p, count, scratch_[1]) : scratch_[1];
      shared_ = cover.shared;
      if (shared_) load_soft_tissue(batch, p, count);
      return cover.any();
    }
    // Its tiles are added up with the soft tissue at hand.
    load_soft_tissue(batch, p, count);
    return accumulate(layers, masks, batch, p, count);
  }

  // The composed pixels of the tile, and how many bones cover each.
  BLSGAN_HD void compose(int count, T* __restrict value, T* __restrict cover) {
    const Law law = law_;
    if (layers_ == 2) {
      const uint8_t *__restrict m0 = mask_[0], *__restrict m1 = mask_[1];
      const T *__restrict l0 = layer_[0], *__restrict l1 = layer_[1],
              *__restrict soft = soft_.value();
      if (!shared_) {
BLSGAN_INDEPENDENT
        for (int t = 0; t < count; ++t) {
          value[t] = keep_if(m0[t] != 0, l0[t]) + keep_if(m1[t] != 0, l1[t]);
          cover[t] = (m0[t] | m1[t]) != 0 ? T(1) : T(0);
        }
        return;
      }
BLSGAN_INDEPENDENT
      for (int t = 0; t < count; ++t) {
        const bool c0 = m0[t] != 0, c1 = m1[t] != 0;
        Composition<T> pixel = law.start();
        law.add(pixel, l0[t], c0 ? T(1) : T(0), soft[t]);
        law.add(pixel, l1[t], c1 ? T(1) : T(0), soft[t]);
        value[t] = law.value(pixel);
        cover[t] = pixel.coverage;
      }
      return;
    }
    const T *__restrict bones = scratch_[0], *__restrict soft = scratch_[1],
            *__restrict single = scratch_[2], *__restrict coverage = scratch_[3];
BLSGAN_INDEPENDENT
    for (int t = 0; t < count; ++t) {
      value[t] = law.value({bones[t], soft[t], single[t], coverage[t]});
      cover[t] = coverage[t];
    }
  }

  // Writes the layers' gradients and soft tissue's for `grad` = d loss / d composed.
  BLSGAN_HD void backward(const T* __restrict grad, int64_t batch, int64_t p, int count,
                          const MutableView& grad_layers, SoftGradient<T>& grad_soft) {
    const Law law = law_;
    const T* __restrict factor_slope = soft_.slope();
    if (layers_ == 2) {
      T* __restrict first = output_tile(grad_layers, batch, 0, p, scratch_[2]);
      T* __restrict second = output_tile(grad_layers, batch, 1, p, scratch_[3]);
      const uint8_t *__restrict m0 = mask_[0], *__restrict m1 = mask_[1];
      const T *__restrict l0 = layer_[0], *__restrict l1 = layer_[1],
              *__restrict factor = soft_.value();
      if (shared_) {
        T* __restrict soft = grad_soft.tile(batch, p);
BLSGAN_INDEPENDENT
        for (int t = 0; t < count; ++t) {
          const bool c0 = m0[t] != 0, c1 = m1[t] != 0;
          Composition<T> pixel = law.start();
          law.add(pixel, l0[t], c0 ? T(1) : T(0), factor[t]);
          law.add(pixel, l1[t], c1 ? T(1) : T(0), factor[t]);
          const T own = law.term(keep_if(c0, l0[t])), other = law.term(keep_if(c1, l1[t]));
          first[t] = keep_if(c0, grad[t] * law.layer_slope(pixel, own, other));
          second[t] = keep_if(c1, grad[t] * law.layer_slope(pixel, other, own));
          soft[t] = keep_if(c0 & c1, grad[t] * law.soft_slope(pixel, factor_slope[t]));
        }
        grad_soft.finish(batch, p, count, soft);
      } else {
BLSGAN_INDEPENDENT
        for (int t = 0; t < count; ++t) {
          first[t] = keep_if(m0[t] != 0, grad[t]);
          second[t] = keep_if(m1[t] != 0, grad[t]);
        }
        grad_soft.finish_zeros(batch, p, count);
      }
      finish_tile<T>(grad_layers, batch, 0, p, count, first, scratch_[2]);
      finish_tile<T>(grad_layers, batch, 1, p, count, second, scratch_[3]);
      return;
    }
    differentiate_layers(grad, batch, p, count, grad_layers);
    const T *__restrict bones = scratch_[0], *__restrict excess = scratch_[1],
            *__restrict coverage = scratch_[3];
    T* __restrict soft = grad_soft.tile(batch, p);
BLSGAN_INDEPENDENT
    for (int t = 0; t < count; ++t) {
      const Composition<T> pixel{bones[t], excess[t], T(0), coverage[t]};
      soft[t] = keep_if(coverage[t] > T(1), grad[t] * law.soft_slope(pixel, factor_slope[t]));
    }
    grad_soft.finish(batch, p, count, soft);
  }

 private:
  T* kept(int64_t layer, int64_t which) { return scratch_[6 + 3 * layer + which]; }

  BLSGAN_HD void load_soft_tissue(int64_t batch, int64_t p, int count) {
    const Law law = law_;
    soft_.load(batch, p, count,
               [&](T k) __attribute__((always_inline)) { return law.soft_factor(k); });
  }

  BLSGAN_HD bool accumulate(const View& layers, const View& masks, int64_t batch, int64_t p,
                            int count) {
    const Law law = law_;
    T *bones = scratch_[0], *soft = scratch_[1], *single = scratch_[2], *coverage = scratch_[3];
    const T* factor = soft_.value();
    const Composition<T> start = law.start();
    for (int t = 0; t < count; ++t) {
      bones[t] = start.bones;
      soft[t] = start.soft;
      single[t] = start.single;
      coverage[t] = start.coverage;
    }
    bool some = false;
    for (int64_t i = 0; i < layers_; ++i) {
      T* mask = differentiate_ ? kept(i, 0) : scratch_[4];
      const bool any = load_mask(masks, batch, i, p, count, mask) != 0;
      some = some || any;
      if (!any && !differentiate_) continue;
      const T* layer = any ? load_tile(layers, batch, i, p, count, scratch_[5]) : mask;
      if (differentiate_) {
        T *own = kept(i, 1), *before = kept(i, 2);
BLSGAN_INDEPENDENT
        for (int t = 0; t < count; ++t) {
          own[t] = law.term(keep_if(mask[t] != T(0), layer[t]));
          before[t] = bones[t];
        }
      }
BLSGAN_INDEPENDENT
      for (int t = 0; t < count; ++t) {
        Composition<T> pixel{bones[t], soft[t], single[t], coverage[t]};
        law.add(pixel, layer[t], mask[t], factor[t]);
        bones[t] = pixel.bones;
        soft[t] = pixel.soft;
        single[t] = pixel.single;
        coverage[t] = pixel.coverage;
      }
    }
    return some;
  }

  BLSGAN_HD void differentiate_layers(const T* grad, int64_t batch, int64_t p, int count,
                                      const MutableView& grad_layers) {
    const Law law = law_;
    const T *bones = scratch_[0], *soft = scratch_[1], *coverage = scratch_[3];
    T *after = kept(layers_, 0), *result = scratch_[5];
    for (int t = 0; t < count; ++t) after[t] = T(1);
    for (int64_t i = layers_ - 1; i >= 0; --i) {
      const T *mask = kept(i, 0), *own = kept(i, 1), *before = kept(i, 2);
      T* target = output_tile(grad_layers, batch, i, p, result);
BLSGAN_INDEPENDENT
      for (int t = 0; t < count; ++t) {
        const Composition<T> pixel{bones[t], soft[t], T(0), coverage[t]};
        const T slope = law.layer_slope(pixel, own[t], before[t] * after[t]);
        target[t] = keep_if(mask[t] != T(0), grad[t] * slope);
        after[t] *= own[t];
      }
      finish_tile<T>(grad_layers, batch, i, p, count, target, result);
    }
  }

  Law law_;
  SoftTiles<T> soft_;
  Tiles<T> scratch_;
  int64_t layers_;
  bool differentiate_, shared_ = false;
  const uint8_t* mask_[2] = {};
  const T* layer_[2] = {};
  uint8_t mask_buffers_[2][kTile];
};

}  // namespace blsgan::cpu
