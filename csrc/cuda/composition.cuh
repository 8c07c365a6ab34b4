// One thread's pixels of all layers, composed and differentiated: shared by compose_layers and
// reconstruction_loss.

#pragma once

#include "common.cuh"

namespace blsgan::cuda {

template <typename T>
__device__ __forceinline__ T inverse_soft_transmission(const View& soft_tissue, int64_t batch) {
  return T(1) / (T(1) - clamp_soft_tissue(load_scalar<T>(soft_tissue, batch)));
}

__device__ __forceinline__ bool is_set(uint32_t bits, int lane) { return (bits >> lane) & 1u; }

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

  __device__ __forceinline__ void compose(Composition<T> (&pixel)[kLanes], T inverse_soft) const {
#pragma unroll
    for (int t = 0; t < kLanes; ++t) {
      pixel[t] = Composition<T>::empty();
#pragma unroll
      for (int i = 0; i < N; ++i) {
        pixel[t].add(values[i][t], is_set(masks[i], t) ? T(1) : T(0), inverse_soft);
      }
    }
  }

  // Writes the layers' gradients; returns this thread's part of the gradient of soft tissue.
  __device__ __forceinline__ T backward(const Composition<T> (&pixel)[kLanes],
                                        const T (&grad)[kLanes], T inverse_soft,
                                        const MutableView& grad_layers) const {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      T result[kLanes];
#pragma unroll
      for (int t = 0; t < kLanes; ++t) {
        T others = T(1);
#pragma unroll
        for (int j = 0; j < N; ++j) {
          if (j != i && is_set(masks[j], t)) others *= T(1) - values[j][t];
        }
        const bool covered = is_set(masks[i], t);
        const T slope =
            compose_layer_gradient(covered ? T(1) : T(0), others, pixel[t].correction);
        result[t] = covered ? grad[t] * slope : T(0);
      }
      store(grad_layers, at, i, result);
    }
    T sum = T(0);
#pragma unroll
    for (int t = 0; t < kLanes; ++t) {
      if (t < at.count && pixel[t].coverage > T(1)) {
        sum += grad[t] * pixel[t].soft_tissue_gradient(inverse_soft);
      }
    }
    return sum;
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

  __device__ __forceinline__ void compose(Composition<T> (&pixel)[kLanes], T inverse_soft) const {
#pragma unroll
    for (int t = 0; t < kLanes; ++t) pixel[t] = Composition<T>::empty();
    for (int64_t i = 0; i < count; ++i) {
      T values[kLanes];
      cuda::load(*layers, at, i, values);
      const uint32_t mask = load_mask(*masks, at, i);
#pragma unroll
      for (int t = 0; t < kLanes; ++t) {
        pixel[t].add(values[t], is_set(mask, t) ? T(1) : T(0), inverse_soft);
      }
    }
  }

  __device__ __forceinline__ T backward(const Composition<T> (&pixel)[kLanes],
                                        const T (&grad)[kLanes], T inverse_soft,
                                        const MutableView& grad_layers) const {
    for (int64_t i = 0; i < count; ++i) {
      T others[kLanes];
#pragma unroll
      for (int t = 0; t < kLanes; ++t) others[t] = T(1);
      for (int64_t j = 0; j < count; ++j) {
        if (j == i) continue;
        T values[kLanes];
        cuda::load(*layers, at, j, values);
        const uint32_t mask = load_mask(*masks, at, j);
#pragma unroll
        for (int t = 0; t < kLanes; ++t) {
          if (is_set(mask, t)) others[t] *= T(1) - values[t];
        }
      }
      const uint32_t mask = load_mask(*masks, at, i);
      T result[kLanes];
#pragma unroll
      for (int t = 0; t < kLanes; ++t) {
        const bool covered = is_set(mask, t);
        const T slope =
            compose_layer_gradient(covered ? T(1) : T(0), others[t], pixel[t].correction);
        result[t] = covered ? grad[t] * slope : T(0);
      }
      store(grad_layers, at, i, result);
    }
    T sum = T(0);
#pragma unroll
    for (int t = 0; t < kLanes; ++t) {
      if (t < at.count && pixel[t].coverage > T(1)) {
        sum += grad[t] * pixel[t].soft_tissue_gradient(inverse_soft);
      }
    }
    return sum;
  }
};

}  // namespace blsgan::cuda
