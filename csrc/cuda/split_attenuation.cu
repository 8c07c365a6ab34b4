#include <cmath>

#include "composition.cuh"

namespace blsgan {
namespace {

using namespace cuda;
constexpr const char* kOp = "split_attenuation";

// Loops over N = 2 layers are unrolled, so that registers can hold them; others are not.
template <int N>
constexpr int kUnroll = N > 0 ? N : 1;

// Blocks that must fit a multiprocessor, which is a limit on registers: two where that does not
// spill (benchmarks/cuda_resources.py).
template <typename T, int N>
constexpr int kBlocks = sizeof(T) == 8 || N != 2 ? 1 : 2;

// The bones over a thread's pixels.
struct Cover {
  uint32_t any = 0, shared = 0;
  int count[kLanes] = {};

  __device__ __forceinline__ void add(uint32_t mask) {
    shared |= any & mask;
    any |= mask;
#pragma unroll
    for (int t = 0; t < kLanes; ++t) count[t] += is_set(mask, t) ? 1 : 0;
  }
};

// The softmax over the covering bones. For N = 2 the shares themselves, where both bones cover.
template <typename T, int N>
struct Softmax {
  static_assert(N == 2);
  T first[kLanes], second[kLanes];

  template <typename Inputs>
  __device__ __forceinline__ void prepare(const Inputs& inputs) {
    T logits0[kLanes], logits1[kLanes];
    inputs.logits_of(0, logits0);
    inputs.logits_of(1, logits1);
#pragma unroll
    for (int t = 0; t < kLanes; ++t) {
      const PairShares<T> pair(logits0[t], logits1[t]);
      first[t] = pair.first;
      second[t] = pair.second;
    }
  }

  __device__ __forceinline__ T share(int layer, T, int t) const {
    return layer == 0 ? first[t] : second[t];
  }
};

// For any number of layers its shift and its inverse sum.
template <typename T>
struct Softmax<T, 0> {
  T largest[kLanes], inverse_sum[kLanes];

  template <typename Inputs>
  __device__ __forceinline__ void prepare(const Inputs& inputs) {
#pragma unroll
    for (int t = 0; t < kLanes; ++t) {
      largest[t] = -static_cast<T>(INFINITY);
      inverse_sum[t] = T(0);
    }
#pragma unroll 1
    for (int i = 0; i < inputs.layers(); ++i) {
      T logits[kLanes];
      inputs.logits_of(i, logits);
      const uint32_t mask = inputs.mask(i);
#pragma unroll
      for (int t = 0; t < kLanes; ++t) {
        if (is_set(mask, t) && logits[t] > largest[t]) largest[t] = logits[t];
      }
    }
#pragma unroll 1
    for (int i = 0; i < inputs.layers(); ++i) {
      T logits[kLanes];
      inputs.logits_of(i, logits);
      const uint32_t mask = inputs.mask(i);
#pragma unroll
      for (int t = 0; t < kLanes; ++t) {
        if (is_set(mask, t)) inverse_sum[t] += exp_nonpositive(logits[t] - largest[t]);
      }
    }
#pragma unroll
    for (int t = 0; t < kLanes; ++t) inverse_sum[t] = T(1) / inverse_sum[t];
  }

  __device__ __forceinline__ T share(int, T logit, int t) const {
    return exp_nonpositive(logit - largest[t]) * inverse_sum[t];
  }
};

// Reads masks and logits: into registers for N = 2, again whenever asked for otherwise.
template <typename T, int N>
struct Inputs {
  T logits[N][kLanes];
  uint32_t masks[N];
  const View* logits_view;
  Pixels at;

  __device__ __forceinline__ Cover load_masks(const View& view, const View& share_logits,
                                              const Pixels& where, int64_t) {
    at = where;
    logits_view = &share_logits;
    Cover cover;
#pragma unroll
    for (int i = 0; i < N; ++i) masks[i] = load_mask(view, at, i);
#pragma unroll
    for (int i = 0; i < N; ++i) cover.add(masks[i]);
    return cover;
  }
  __device__ __forceinline__ void load_logits() {
#pragma unroll
    for (int i = 0; i < N; ++i) load(*logits_view, at, i, logits[i]);
  }
  __device__ __forceinline__ int layers() const { return N; }
  __device__ __forceinline__ uint32_t mask(int i) const { return masks[i]; }
  __device__ __forceinline__ void logits_of(int i, T (&values)[kLanes]) const {
#pragma unroll
    for (int t = 0; t < kLanes; ++t) values[t] = logits[i][t];
  }
};

template <typename T>
struct Inputs<T, 0> {
  const View* masks_view;
  const View* logits_view;
  int count;
  Pixels at;

  __device__ __forceinline__ Cover load_masks(const View& view, const View& share_logits,
                                              const Pixels& where, int64_t layer_count) {
    at = where;
    masks_view = &view;
    logits_view = &share_logits;
    count = static_cast<int>(layer_count);
    Cover cover;
    for (int i = 0; i < count; ++i) cover.add(mask(i));
    return cover;
  }
  __device__ __forceinline__ void load_logits() {}
  __device__ __forceinline__ int layers() const { return count; }
  __device__ __forceinline__ uint32_t mask(int i) const { return load_mask(*masks_view, at, i); }
  __device__ __forceinline__ void logits_of(int i, T (&values)[kLanes]) const {
    load(*logits_view, at, i, values);
  }
};

template <typename T>
__device__ __forceinline__ T soft_attenuation_of(const View& soft_tissue, int64_t batch) {
  return -log_positive(T(1) - clamp_soft_tissue(load_scalar<T>(soft_tissue, batch)));
}

template <typename T, int N>
__global__ void __launch_bounds__(kThreads, kBlocks<T, N>) forward(SplitAttenuation a) {
  const int64_t items = item_count(a.shape);
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Pixels at = pixels_of(a.shape, item);
    if (at.count == 0) continue;
    Inputs<T, N> inputs;
    const Cover cover = inputs.load_masks(a.masks, a.share_logits, at, a.shape.layers);
    T image[kLanes] = {};
    if (cover.any) load(a.image, at, 0, image);
    Softmax<T, N> softmax;
    T total[kLanes];
    if (cover.shared) {  // most pixels of a radiograph need neither logits nor logarithms
      inputs.load_logits();
      softmax.prepare(inputs);
      const T soft = soft_attenuation_of<T>(a.soft_tissue, at.batch);
#pragma unroll
      for (int t = 0; t < kLanes; ++t) {
        total[t] = total_attenuation(clamp_transmission(image[t]),
                                     static_cast<T>(cover.count[t]), soft);
      }
    }
#pragma unroll kUnroll<N>
    for (int i = 0; i < inputs.layers(); ++i) {
      const uint32_t mask = inputs.mask(i);
      T layer[kLanes];
      if (mask & cover.shared) {
        T logits[kLanes];
        inputs.logits_of(i, logits);
#pragma unroll
        for (int t = 0; t < kLanes; ++t) {
          const T inside = T(1) - split_transmission(softmax.share(i, logits[t], t), total[t]);
          const T value = is_set(cover.shared, t) ? inside : image[t];
          layer[t] = is_set(mask, t) ? value : T(0);
        }
      } else {
#pragma unroll
        for (int t = 0; t < kLanes; ++t) layer[t] = is_set(mask, t) ? image[t] : T(0);
      }
      store(a.layers, at, i, layer);
    }
  }
}

template <typename T, int N>
__global__ void __launch_bounds__(kThreads, kBlocks<T, N>) backward(SplitAttenuationBackward a) {
  const int64_t items = item_count(a.shape);
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Pixels at = pixels_of(a.shape, item);
    T sums[1] = {T(0)};
    if (at.count > 0) {
      const T k = clamp_soft_tissue(load_scalar<T>(a.soft_tissue, at.batch));
      Inputs<T, N> inputs;
      const Cover cover = inputs.load_masks(a.masks, a.share_logits, at, a.shape.layers);
      // Where bones overlap the gradient of the total attenuation, elsewhere that of the image.
      T gathered[kLanes] = {};
      Softmax<T, N> softmax;
      T total[kLanes];
      if (cover.shared) {
        T image[kLanes];
        load(a.image, at, 0, image);
        inputs.load_logits();
        softmax.prepare(inputs);
        const T soft = -log_positive(T(1) - k);
#pragma unroll
        for (int t = 0; t < kLanes; ++t) {
          total[t] = total_attenuation(clamp_transmission(image[t]),
                                       static_cast<T>(cover.count[t]), soft);
        }
      }
      if (cover.shared || a.grad_image.data != nullptr) {
#pragma unroll kUnroll<N>
        for (int i = 0; i < inputs.layers(); ++i) {
          const uint32_t mask = inputs.mask(i);
          if (mask == 0) continue;
          T grad[kLanes], logits[kLanes] = {};
          load(a.grad_layers, at, i, grad);
          if (cover.shared) inputs.logits_of(i, logits);
#pragma unroll
          for (int t = 0; t < kLanes; ++t) {
            if (!is_set(mask, t)) continue;
            if (is_set(cover.shared, t)) {
              const T share = softmax.share(i, logits[t], t);
              gathered[t] += grad[t] * split_transmission(share, total[t]) * share;
            } else {
              gathered[t] += grad[t];
            }
          }
        }
      }
#pragma unroll kUnroll<N>
      for (int i = 0; i < inputs.layers(); ++i) {
        const uint32_t mask = inputs.mask(i);
        T result[kLanes] = {};
        if (mask & cover.shared) {
          T grad[kLanes], logits[kLanes];
          load(a.grad_layers, at, i, grad);
          inputs.logits_of(i, logits);
#pragma unroll
          for (int t = 0; t < kLanes; ++t) {
            if (!is_set(mask & cover.shared, t)) continue;
            const T share = softmax.share(i, logits[t], t);
            const T slope = grad[t] * split_transmission(share, total[t]);
            result[t] = total[t] * share * (slope - gathered[t]);
          }
        }
        store(a.grad_share_logits, at, i, result);
      }
#pragma unroll
      for (int t = 0; t < kLanes; ++t) {
        if (is_set(cover.shared, t)) {
          sums[0] += gathered[t] * static_cast<T>(cover.count[t] - 1);
        }
      }
      sums[0] /= T(1) - k;  // d a_soft / d k
      if (a.grad_image.data != nullptr) {
        // Read again, from the cache, rather than kept in registers through both loops.
        T image[kLanes] = {};
        if (cover.shared) load(a.image, at, 0, image);
        T result[kLanes];
#pragma unroll
        for (int t = 0; t < kLanes; ++t) {
          const T inside = image_has_gradient(image[t])
                               ? gathered[t] / clamp_transmission(image[t])
                               : T(0);
          result[t] = is_set(cover.shared, t) ? inside : gathered[t];
        }
        store(a.grad_image, at, 0, result);
      }
    }
    store_partials<1>(a.partials, item, sums);
  }
}

}  // namespace

void run_cuda(const SplitAttenuation& args, const CudaContext& context) {
  launch(BLSGAN_CHOOSE(forward, context.wide, args.shape.layers), args, item_count(args.shape),
         context, kOp);
}

void run_cuda(const SplitAttenuationBackward& args, const CudaContext& context) {
  launch(BLSGAN_CHOOSE(backward, context.wide, args.shape.layers), args, item_count(args.shape),
         context, kOp);
  launch_finish(
      finish_soft_tissue,
      FinishSoftTissue{args.shape, args.soft_tissue, args.partials, args.grad_soft_tissue},
      args.shape.batch, context, kOp);
}

}  // namespace blsgan
