// One thread's pixels of all layers, composed and differentiated: shared by compose_layers and
// reconstruction_loss.

#pragma once

#include "common.cuh"

namespace blsgan::cuda {

// N layers in registers.
template <typename T, int N>
struct LayerTile {
  T values[N][kLanes];
  uint32_t masks[N];
  Pixels at;

  __device__ __forceinline__ void load(const View& layers, const View& mask_view,
                                       const Pixels& where, int64_t) {
    at = where;
#pragma unroll
    for (int i = 0; i < N; ++i) masks[i] = load_mask(mask_view, at, i);
#pragma unroll
    for (int i = 0; i < N; ++i) cuda::load(layers, at, i, values[i]);
  }

  template <typename Law>
  __device__ __forceinline__ void compose(const Law& law, const T (&k)[kLanes],
                                          Composition<T> (&pixel)[kLanes]) const {
#pragma unroll
    for (int t = 0; t < kLanes; ++t) {
      const T soft = law.soft_factor(k[t]).value;
      pixel[t] = law.start();
#pragma unroll
      for (int i = 0; i < N; ++i) {
        law.add(pixel[t], values[i][t], is_set(masks[i], t) ? T(1) : T(0), soft);
      }
    }
  }

  // Writes the layers' gradients.
  template <typename Law>
  __device__ __forceinline__ void differentiate(const Law& law,
                                                const Composition<T> (&pixel)[kLanes],
                                                const T (&grad)[kLanes],
                                                const MutableView& grad_layers) const {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      T result[kLanes];
#pragma unroll
      for (int t = 0; t < kLanes; ++t) {
        T others = T(1);
#pragma unroll
        for (int j = 0; j < N; ++j) {
          if (j != i && is_set(masks[j], t)) others *= law.term(values[j][t]);
        }
        const T slope = law.layer_slope(pixel[t], law.term(values[i][t]), others);
        result[t] = is_set(masks[i], t) ? grad[t] * slope : T(0);
      }
      store(grad_layers, at, i, result);
    }
  }
};

// Any number of layers: read where needed; the second reading comes from the cache.
template <typename T>
struct LayerTile<T, 0> {
  const View* layers;
  const View* masks;
  int64_t count;
  Pixels at;

  __device__ __forceinline__ void load(const View& layer_view, const View& mask_view,
                                       const Pixels& where, int64_t layer_count) {
    layers = &layer_view;
    masks = &mask_view;
    count = layer_count;
    at = where;
  }

  template <typename Law>
  __device__ __forceinline__ void compose(const Law& law, const T (&k)[kLanes],
                                          Composition<T> (&pixel)[kLanes]) const {
#pragma unroll
    for (int t = 0; t < kLanes; ++t) pixel[t] = law.start();
    for (int64_t i = 0; i < count; ++i) {
      T values[kLanes];
      cuda::load(*layers, at, i, values);
      const uint32_t mask = load_mask(*masks, at, i);
#pragma unroll
      for (int t = 0; t < kLanes; ++t) {
        law.add(pixel[t], values[t], is_set(mask, t) ? T(1) : T(0), law.soft_factor(k[t]).value);
      }
    }
  }

  template <typename Law>
  __device__ __forceinline__ void differentiate(const Law& law,
                                                const Composition<T> (&pixel)[kLanes],
                                                const T (&grad)[kLanes],
                                                const MutableView& grad_layers) const {
    for (int64_t i = 0; i < count; ++i) {
      T others[kLanes];
#pragma unroll
      for (int t = 0; t < kLanes; ++t) others[t] = T(1);
      for (int64_t j = 0; j < (Law::kNeedsOthers ? count : 0); ++j) {
        if (j == i) continue;
        T values[kLanes];
        cuda::load(*layers, at, j, values);
        const uint32_t mask = load_mask(*masks, at, j);
#pragma unroll
        for (int t = 0; t < kLanes; ++t) {
          if (is_set(mask, t)) others[t] *= law.term(values[t]);
        }
      }
      T result[kLanes];
      cuda::load(*layers, at, i, result);
      const uint32_t mask = load_mask(*masks, at, i);
#pragma unroll
      for (int t = 0; t < kLanes; ++t) {
        const T slope = law.layer_slope(pixel[t], law.term(result[t]), others[t]);
        result[t] = is_set(mask, t) ? grad[t] * slope : T(0);
      }
      store(grad_layers, at, i, result);
    }
  }
};

// Writes the gradients of the layers and, where it is a map, of soft tissue for `grad` = d loss / d
// composed, which it uses up; returns the thread's part of soft tissue's gradient.
template <typename T, int N, typename Law>
__device__ __forceinline__ T differentiate(const Law& law, const LayerTile<T, N>& tile,
                                           const Composition<T> (&pixel)[kLanes],
                                           const T (&k)[kLanes], T (&grad)[kLanes],
                                           const MutableView& grad_layers,
                                           const MutableView& grad_soft_tissue) {
  tile.differentiate(law, pixel, grad, grad_layers);
#pragma unroll
  for (int t = 0; t < kLanes; ++t) {
    const bool shared = t < tile.at.count && pixel[t].coverage > T(1);
    const T slope = law.soft_slope(pixel[t], law.soft_factor(k[t]).slope);
    grad[t] = shared ? grad[t] * slope : T(0);
  }
  return store_soft_gradient(grad_soft_tissue, tile.at, grad);
}

}  // namespace blsgan::cuda
