#include <cmath>

#include "composition.cuh"

namespace blsgan {
namespace {

using namespace cuda;
constexpr const char* kOp = "split_attenuation";

// Blocks that must fit a multiprocessor, which is a limit on registers: two where that does not
// spill (benchmarks/cuda_resources.py).
template <typename T, int N>
constexpr int kBlocks = sizeof(T) == 8 || N != 2 ? 1 : 2;

// Two layers in registers. Most pixels of a radiograph are not shared and need neither logits nor
// logarithms.
template <typename T, typename Law>
__device__ __forceinline__ void split_pair(const SplitAttenuation& a, const Law& law,
                                           const Pixels& at) {
  const uint32_t mask0 = load_mask(a.masks, at, 0), mask1 = load_mask(a.masks, at, 1);
  const uint32_t shared = mask0 & mask1;
  T image[kLanes] = {}, layer0[kLanes] = {}, layer1[kLanes] = {};
  if (mask0 | mask1) load(a.image, at, 0, image);
  if (shared) {
    T k[kLanes];
    load_soft_tissue(a.soft_tissue, at, k);
    load(a.share_logits, at, 0, layer0);
    load(a.share_logits, at, 1, layer1);
#pragma unroll
    for (int t = 0; t < kLanes; ++t) {
      if (!is_set(shared, t)) continue;
      const PairShares<T> share(layer0[t], layer1[t]);
      const T soft = soft_attenuation(law, k[t]).value;
      const T bone = law.attenuation(image[t]) - soft;
      layer0[t] = law.display(layer_attenuation(share.first, bone, soft));
      layer1[t] = law.display(layer_attenuation(share.second, bone, soft));
    }
  }
#pragma unroll
  for (int t = 0; t < kLanes; ++t) {
    if (is_set(shared, t)) continue;
    layer0[t] = is_set(mask0, t) ? image[t] : T(0);
    layer1[t] = is_set(mask1, t) ? image[t] : T(0);
  }
  store(a.layers, at, 0, layer0);
  store(a.layers, at, 1, layer1);
}

// Returns the thread's part of soft tissue's gradient.
template <typename T, typename Law>
__device__ __forceinline__ T differentiate_pair(const SplitAttenuationBackward& a, const Law& law,
                                                const Pixels& at) {
  const uint32_t mask0 = load_mask(a.masks, at, 0), mask1 = load_mask(a.masks, at, 1);
  const uint32_t shared = mask0 & mask1;
  T on_logits[kLanes] = {}, on_soft[kLanes] = {}, on_image[kLanes] = {};
  if (shared || a.grad_image.data != nullptr) {
    T grad0[kLanes] = {}, grad1[kLanes] = {};
    if (mask0) load(a.grad_layers, at, 0, grad0);
    if (mask1) load(a.grad_layers, at, 1, grad1);
#pragma unroll
    for (int t = 0; t < kLanes; ++t) {
      on_image[t] = (is_set(mask0, t) ? grad0[t] : T(0)) + (is_set(mask1, t) ? grad1[t] : T(0));
    }
    if (shared) {
      T image[kLanes], k[kLanes], logits0[kLanes], logits1[kLanes];
      load(a.image, at, 0, image);
      load_soft_tissue(a.soft_tissue, at, k);
      load(a.share_logits, at, 0, logits0);
      load(a.share_logits, at, 1, logits1);
#pragma unroll
      for (int t = 0; t < kLanes; ++t) {
        if (!is_set(shared, t)) continue;
        const PairShares<T> share(logits0[t], logits1[t]);
        const T attenuation = law.attenuation(image[t]);
        const Sloped<T> soft = soft_attenuation(law, k[t]);
        const T bone = attenuation - soft.value;
        // d layer_i / d A_i times the incoming gradient
        const T slope0 =
            grad0[t] * law.display_slope(layer_attenuation(share.first, bone, soft.value));
        const T slope1 =
            grad1[t] * law.display_slope(layer_attenuation(share.second, bone, soft.value));
        on_logits[t] = bone * share.first * share.second * (slope0 - slope1);
        const T grad_soft = slope0 * share.second + slope1 * share.first;
        on_soft[t] = soft.slope != T(0) ? grad_soft * soft.slope : T(0);
        const T slope = law.attenuation_slope(image[t], attenuation);
        const T grad_bone = slope0 * share.first + slope1 * share.second;
        on_image[t] = slope != T(0) ? grad_bone * slope : T(0);
      }
    }
  }
  store(a.grad_share_logits, at, 0, on_logits);
#pragma unroll
  for (int t = 0; t < kLanes; ++t) on_logits[t] = -on_logits[t];
  store(a.grad_share_logits, at, 1, on_logits);
  if (a.grad_image.data != nullptr) store(a.grad_image, at, 0, on_image);
  return store_soft_gradient(a.grad_soft_tissue, at, on_soft);
}

// The bones over a thread's pixels.
struct Cover {
  uint32_t any = 0, shared = 0;

  __device__ __forceinline__ Cover(const View& masks, const Pixels& at, int64_t layers) {
    for (int64_t i = 0; i < layers; ++i) {
      const uint32_t mask = load_mask(masks, at, i);
      shared |= any & mask;
      any |= mask;
    }
  }
};

// The softmax over any number of covering bones: its shift and its inverse sum. Masks and logits
// are read again whenever they are needed; that comes from the cache.
template <typename T>
struct Softmax {
  T largest[kLanes], inverse_sum[kLanes];

  __device__ __forceinline__ void prepare(const View& share_logits, const View& masks,
                                          const Pixels& at, int64_t layers) {
#pragma unroll
    for (int t = 0; t < kLanes; ++t) {
      largest[t] = -static_cast<T>(INFINITY);
      inverse_sum[t] = T(0);
    }
#pragma unroll 1
    for (int64_t i = 0; i < layers; ++i) {
      T logits[kLanes];
      load(share_logits, at, i, logits);
      const uint32_t mask = load_mask(masks, at, i);
#pragma unroll
      for (int t = 0; t < kLanes; ++t) {
        if (is_set(mask, t) && logits[t] > largest[t]) largest[t] = logits[t];
      }
    }
#pragma unroll 1
    for (int64_t i = 0; i < layers; ++i) {
      T logits[kLanes];
      load(share_logits, at, i, logits);
      const uint32_t mask = load_mask(masks, at, i);
#pragma unroll
      for (int t = 0; t < kLanes; ++t) {
        if (is_set(mask, t)) inverse_sum[t] += exp_bounded(logits[t] - largest[t]);
      }
    }
#pragma unroll
    for (int t = 0; t < kLanes; ++t) inverse_sum[t] = T(1) / inverse_sum[t];
  }

  __device__ __forceinline__ T share(T logit, int t) const {
    return exp_bounded(logit - largest[t]) * inverse_sum[t];
  }
};

template <typename T, typename Law>
__device__ __forceinline__ void split_any(const SplitAttenuation& a, const Law& law,
                                          const Pixels& at) {
  const int64_t layers = a.shape.layers;
  const Cover cover(a.masks, at, layers);
  T image[kLanes] = {}, bone[kLanes] = {}, soft[kLanes] = {};
  if (cover.any) load(a.image, at, 0, image);
  Softmax<T> softmax;
  if (cover.shared) {
    softmax.prepare(a.share_logits, a.masks, at, layers);
    load_soft_tissue(a.soft_tissue, at, soft);
#pragma unroll
    for (int t = 0; t < kLanes; ++t) {
      soft[t] = soft_attenuation(law, soft[t]).value;
      bone[t] = law.attenuation(image[t]) - soft[t];
    }
  }
#pragma unroll 1
  for (int64_t i = 0; i < layers; ++i) {
    const uint32_t mask = load_mask(a.masks, at, i);
    T layer[kLanes] = {};
    if (mask & cover.shared) load(a.share_logits, at, i, layer);
#pragma unroll
    for (int t = 0; t < kLanes; ++t) {
      if (!is_set(mask, t)) {
        layer[t] = T(0);
      } else if (is_set(cover.shared, t)) {
        layer[t] = law.display(layer_attenuation(softmax.share(layer[t], t), bone[t], soft[t]));
      } else {
        layer[t] = image[t];
      }
    }
    store(a.layers, at, i, layer);
  }
}

// d layer_i / d A_i times the incoming gradient, and the share, of a thread's pixels that layer i
// shares; both 0 elsewhere.
template <typename T, typename Law>
__device__ __forceinline__ void slopes_of(const SplitAttenuationBackward& a, const Law& law,
                                          const Softmax<T>& softmax, const T (&bone)[kLanes],
                                          const T (&soft)[kLanes], const Pixels& at,
                                          int64_t layer, uint32_t where, T (&slope)[kLanes],
                                          T (&share)[kLanes]) {
  load(a.grad_layers, at, layer, slope);
  load(a.share_logits, at, layer, share);
#pragma unroll
  for (int t = 0; t < kLanes; ++t) {
    const bool inside = is_set(where, t);
    share[t] = inside ? softmax.share(share[t], t) : T(0);
    const T slope_here = law.display_slope(layer_attenuation(share[t], bone[t], soft[t]));
    slope[t] = inside ? slope[t] * slope_here : T(0);
  }
}

template <typename T, typename Law>
__device__ __forceinline__ T differentiate_any(const SplitAttenuationBackward& a, const Law& law,
                                               const Pixels& at) {
  const int64_t layers = a.shape.layers;
  const Cover cover(a.masks, at, layers);
  T on_soft[kLanes] = {}, on_bone[kLanes] = {}, others[kLanes] = {};
  T bone[kLanes] = {}, soft[kLanes] = {};
  Softmax<T> softmax;
  if (cover.shared) {
    T image[kLanes];
    load(a.image, at, 0, image);
    softmax.prepare(a.share_logits, a.masks, at, layers);
    load_soft_tissue(a.soft_tissue, at, soft);
#pragma unroll
    for (int t = 0; t < kLanes; ++t) {
      soft[t] = soft_attenuation(law, soft[t]).value;
      bone[t] = law.attenuation(image[t]) - soft[t];
    }
#pragma unroll 1
    for (int64_t i = 0; i < layers; ++i) {
      const uint32_t where = load_mask(a.masks, at, i) & cover.shared;
      if (where == 0) continue;
      T slope[kLanes], share[kLanes];
      slopes_of(a, law, softmax, bone, soft, at, i, where, slope, share);
#pragma unroll
      for (int t = 0; t < kLanes; ++t) {
        if (!is_set(where, t)) continue;
        on_bone[t] += slope[t] * share[t];
        on_soft[t] += slope[t] * (T(1) - share[t]);
      }
    }
#pragma unroll 1
    for (int64_t i = 0; i < layers; ++i) {
      const uint32_t where = load_mask(a.masks, at, i) & cover.shared;
      if (where == 0) continue;
      T slope[kLanes], share[kLanes];
      slopes_of(a, law, softmax, bone, soft, at, i, where, slope, share);
#pragma unroll
      for (int t = 0; t < kLanes; ++t) {
        if (is_set(where, t)) others[t] += other_logit_gradient(share[t], slope[t], on_bone[t]);
      }
    }
  }
#pragma unroll 1
  for (int64_t i = 0; i < layers; ++i) {
    const uint32_t where = load_mask(a.masks, at, i) & cover.shared;
    T slope[kLanes] = {}, share[kLanes];
    if (where != 0) {
      slopes_of(a, law, softmax, bone, soft, at, i, where, slope, share);
#pragma unroll
      for (int t = 0; t < kLanes; ++t) {
        slope[t] = is_set(where, t) ? bone[t] * logit_gradient(share[t], slope[t], on_bone[t],
                                                                 others[t])
                                    : T(0);
      }
    }
    store(a.grad_share_logits, at, i, slope);
  }
  if (cover.shared) {
    T k[kLanes];
    load_soft_tissue(a.soft_tissue, at, k);
#pragma unroll
    for (int t = 0; t < kLanes; ++t) {
      const T slope = soft_attenuation(law, k[t]).slope;
      const bool counts = is_set(cover.shared, t) && slope != T(0);
      on_soft[t] = counts ? on_soft[t] * slope : T(0);
    }
  }
  if (a.grad_image.data != nullptr) {
    T image[kLanes] = {};
    if (cover.shared) load(a.image, at, 0, image);
#pragma unroll
    for (int t = 0; t < kLanes; ++t) {
      const T slope = law.attenuation_slope(image[t], law.attenuation(image[t]));
      const bool counts = is_set(cover.shared, t) && slope != T(0);
      on_bone[t] = counts ? on_bone[t] * slope : T(0);
    }
#pragma unroll 1
    for (int64_t i = 0; i < layers; ++i) {
      const uint32_t alone = load_mask(a.masks, at, i) & ~cover.shared;
      if (alone == 0) continue;
      T grad[kLanes];
      load(a.grad_layers, at, i, grad);
#pragma unroll
      for (int t = 0; t < kLanes; ++t) on_bone[t] += is_set(alone, t) ? grad[t] : T(0);
    }
    store(a.grad_image, at, 0, on_bone);
  }
  return store_soft_gradient(a.grad_soft_tissue, at, on_soft);
}

template <typename T, int N, template <typename> class Law>
__global__ void __launch_bounds__(kThreads, kBlocks<T, N>) forward(SplitAttenuation a) {
  const int64_t items = item_count(a.shape);
  const Law<T> law(a.law);
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Pixels at = pixels_of(a.shape, item);
    if (at.count == 0) continue;
    if constexpr (N == 2) {
      split_pair<T>(a, law, at);
    } else {
      split_any<T>(a, law, at);
    }
  }
}

template <typename T, int N, template <typename> class Law>
__global__ void __launch_bounds__(kThreads, kBlocks<T, N>) backward(SplitAttenuationBackward a) {
  const int64_t items = item_count(a.shape);
  const Law<T> law(a.law);
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Pixels at = pixels_of(a.shape, item);
    T sums[1] = {T(0)};
    if (at.count > 0) {
      if constexpr (N == 2) {
        sums[0] = differentiate_pair<T>(a, law, at);
      } else {
        sums[0] = differentiate_any<T>(a, law, at);
      }
    }
    store_partials<1>(a.partials, item, sums);
  }
}

}  // namespace

void run_cuda(const SplitAttenuation& args, const CudaContext& context) {
  launch(BLSGAN_CHOOSE_BY_LAW(forward, args, context.wide), args, item_count(args.shape), context,
         kOp);
}

void run_cuda(const SplitAttenuationBackward& args, const CudaContext& context) {
  launch(BLSGAN_CHOOSE_BY_LAW(backward, args, context.wide), args, item_count(args.shape), context,
         kOp);
  launch_finish_soft_tissue(args, context, kOp);
}

}  // namespace blsgan
