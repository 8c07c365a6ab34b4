// What every CUDA kernel shares: vector loads and stores of any element type, work items, block
// reductions, the launch.
//
// A block of kThreads threads takes one work item (kChunkPixels pixels of one image) at a time and
// a thread kLanes neighbouring pixels of it, which is one 16-byte load of float16 and two of
// float32 for each tensor; the loads of all layers are in flight together. Element types are
// looked up at run time: the branch is uniform over the grid and costs less than a kernel for each
// of the combinations would.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "../beer_lambert.h"
#include "../ops.h"

namespace blsgan::cuda {

constexpr int kLanes = 8;
constexpr int kThreads = static_cast<int>(kChunkPixels) / kLanes;
static_assert(kThreads % 32 == 0 && kThreads <= 1024);

// Blocks that must fit a multiprocessor; 0 leaves that to the compiler, which in float64 would
// rather spill than lose a block (benchmarks/cuda_resources.py).
template <typename T>
constexpr int kMinBlocks = sizeof(T) == 8 ? 1 : 0;

// One thread's pixels of a work item; count is 0 for threads past the image's end.
struct Pixels {
  int64_t item, batch, begin;
  int count;
};

__device__ __forceinline__ Pixels pixels_of(const Shape& shape, int64_t item) {
  const int64_t per_image = chunks_per_image(shape);
  const int64_t begin = item % per_image * kChunkPixels + threadIdx.x * kLanes;
  const int64_t left = shape.pixels() - begin;
  return {item, item / per_image, begin,
          static_cast<int>(left < 0 ? 0 : (left < kLanes ? left : kLanes))};
}

template <typename Pointer>
__device__ __forceinline__ auto address(const BasicView<Pointer>& view, const Pixels& at,
                                        int64_t channel) {
  const int64_t offset = at.batch * view.stride_batch + channel * view.stride_channel +
                         at.begin * view.stride_pixel;
  return reinterpret_cast<uintptr_t>(view.data) + offset * size_of(view.dtype);
}

// Whether all lanes are there, next to each other and aligned for 16-byte (for uint8: 8-byte)
// accesses.
template <typename Pointer>
__device__ __forceinline__ bool is_vector(const BasicView<Pointer>& view, const Pixels& at,
                                          uintptr_t where) {
  const uintptr_t align = view.dtype == DType::kUInt8 ? 8 : 16;
  return at.count == kLanes && view.stride_pixel == 1 && where % align == 0;
}

// kLanes values of a channel as T; lanes past the end are zero.
template <typename T>
__device__ __forceinline__ void load(const View& view, const Pixels& at, int64_t channel,
                                     T (&values)[kLanes]) {
  const uintptr_t where = address(view, at, channel);
  const bool vector = is_vector(view, at, where);
  const int64_t step = view.stride_pixel;
  switch (view.dtype) {
    case DType::kFloat32: {
      if (vector) {
        const float4* source = reinterpret_cast<const float4*>(where);
        const float4 low = __ldg(source), high = __ldg(source + 1);
        values[0] = low.x, values[1] = low.y, values[2] = low.z, values[3] = low.w;
        values[4] = high.x, values[5] = high.y, values[6] = high.z, values[7] = high.w;
      } else {
        const float* source = reinterpret_cast<const float*>(where);
#pragma unroll
        for (int t = 0; t < kLanes; ++t) {
          values[t] = t < at.count ? static_cast<T>(source[t * step]) : T(0);
        }
      }
      break;
    }
    case DType::kFloat64: {
      const double* source = reinterpret_cast<const double*>(where);
      if (vector) {
#pragma unroll
        for (int t = 0; t < kLanes; t += 2) {
          const double2 pair = __ldg(reinterpret_cast<const double2*>(source + t));
          values[t] = static_cast<T>(pair.x), values[t + 1] = static_cast<T>(pair.y);
        }
      } else {
#pragma unroll
        for (int t = 0; t < kLanes; ++t) {
          values[t] = t < at.count ? static_cast<T>(source[t * step]) : T(0);
        }
      }
      break;
    }
    case DType::kFloat16:
    case DType::kBFloat16: {
      const bool half = view.dtype == DType::kFloat16;
      const uint16_t* source = reinterpret_cast<const uint16_t*>(where);
      uint16_t raw[kLanes];
      if (vector) {
        const uint4 packed = __ldg(reinterpret_cast<const uint4*>(source));
        const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
        for (int t = 0; t < kLanes; ++t) {
          raw[t] = static_cast<uint16_t>(words[t / 2] >> (16 * (t % 2)));
        }
      } else {
#pragma unroll
        for (int t = 0; t < kLanes; ++t) raw[t] = t < at.count ? source[t * step] : uint16_t{0};
      }
#pragma unroll
      for (int t = 0; t < kLanes; ++t) {
        values[t] = static_cast<T>(
            half ? __half2float(__ushort_as_half(raw[t]))
                 : __uint_as_float(static_cast<uint32_t>(raw[t]) << 16));
      }
      break;
    }
    default: {  // kUInt8; every path must write `values`, or old ones stay in registers
      const uint8_t* source = reinterpret_cast<const uint8_t*>(where);
#pragma unroll
      for (int t = 0; t < kLanes; ++t) {
        values[t] = t < at.count ? static_cast<T>(source[t * step]) : T(0);
      }
      break;
    }
  }
}

// A mask as one bit for each lane.
__device__ __forceinline__ uint32_t load_mask(const View& view, const Pixels& at,
                                              int64_t channel) {
  uint32_t bits = 0;
  if (view.dtype == DType::kUInt8) {
    const uintptr_t where = address(view, at, channel);
    const uint8_t* source = reinterpret_cast<const uint8_t*>(where);
    if (is_vector(view, at, where)) {
      const uint2 packed = __ldg(reinterpret_cast<const uint2*>(source));
#pragma unroll
      for (int t = 0; t < kLanes; ++t) {
        const uint32_t word = t < 4 ? packed.x : packed.y;
        bits |= ((word >> (8 * (t % 4))) & 0xffu) != 0 ? 1u << t : 0u;
      }
    } else {
#pragma unroll
      for (int t = 0; t < kLanes; ++t) {
        if (t < at.count && source[t * view.stride_pixel] != 0) bits |= 1u << t;
      }
    }
    return bits;
  }
  if (view.dtype == DType::kFloat64) {
    double values[kLanes];
    load(view, at, channel, values);
#pragma unroll
    for (int t = 0; t < kLanes; ++t) bits |= values[t] != 0.0 ? 1u << t : 0u;
    return bits;
  }
  float values[kLanes];
  load(view, at, channel, values);
#pragma unroll
  for (int t = 0; t < kLanes; ++t) bits |= values[t] != 0.0f ? 1u << t : 0u;
  return bits;
}

__device__ __forceinline__ uint32_t half_bits(float value, bool half) {
  return half ? __half_as_ushort(__float2half_rn(value))
              : __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

template <typename T>
__device__ __forceinline__ void store(const MutableView& view, const Pixels& at, int64_t channel,
                                      const T (&values)[kLanes]) {
  if (at.count == 0) return;
  const uintptr_t where = address(view, at, channel);
  const bool vector = is_vector(view, at, where);
  const int64_t step = view.stride_pixel;
  switch (view.dtype) {
    case DType::kFloat32: {
      float* target = reinterpret_cast<float*>(where);
      if (vector) {
        float4* wide = reinterpret_cast<float4*>(where);
        wide[0] = make_float4(static_cast<float>(values[0]), static_cast<float>(values[1]),
                              static_cast<float>(values[2]), static_cast<float>(values[3]));
        wide[1] = make_float4(static_cast<float>(values[4]), static_cast<float>(values[5]),
                              static_cast<float>(values[6]), static_cast<float>(values[7]));
      } else {
#pragma unroll
        for (int t = 0; t < kLanes; ++t) {
          if (t < at.count) target[t * step] = static_cast<float>(values[t]);
        }
      }
      break;
    }
    case DType::kFloat64: {
      double* target = reinterpret_cast<double*>(where);
#pragma unroll
      for (int t = 0; t < kLanes; ++t) {
        if (t < at.count) target[t * step] = static_cast<double>(values[t]);
      }
      break;
    }
    case DType::kFloat16:
    case DType::kBFloat16: {
      const bool half = view.dtype == DType::kFloat16;
      uint16_t* target = reinterpret_cast<uint16_t*>(where);
      uint32_t raw[kLanes];
#pragma unroll
      for (int t = 0; t < kLanes; ++t) raw[t] = half_bits(static_cast<float>(values[t]), half);
      if (vector) {
        *reinterpret_cast<uint4*>(where) =
            make_uint4(raw[0] | raw[1] << 16, raw[2] | raw[3] << 16, raw[4] | raw[5] << 16,
                       raw[6] | raw[7] << 16);
      } else {
#pragma unroll
        for (int t = 0; t < kLanes; ++t) {
          if (t < at.count) target[t * step] = static_cast<uint16_t>(raw[t]);
        }
      }
      break;
    }
    case DType::kUInt8: {
      uint8_t* target = reinterpret_cast<uint8_t*>(where);
#pragma unroll
      for (int t = 0; t < kLanes; ++t) {
        if (t < at.count) target[t * step] = values[t] != T(0) ? 1 : 0;
      }
      break;
    }
  }
}

// One value of a [B] tensor.
template <typename T>
__device__ __forceinline__ T load_scalar(const View& view, int64_t batch) {
  const uintptr_t where = reinterpret_cast<uintptr_t>(view.data) +
                          batch * view.stride_batch * size_of(view.dtype);
  switch (view.dtype) {
    case DType::kFloat64:
      return static_cast<T>(*reinterpret_cast<const double*>(where));
    case DType::kFloat16:
      return static_cast<T>(__half2float(*reinterpret_cast<const __half*>(where)));
    case DType::kBFloat16:
      return static_cast<T>(__bfloat162float(*reinterpret_cast<const __nv_bfloat16*>(where)));
    case DType::kUInt8:
      return static_cast<T>(*reinterpret_cast<const uint8_t*>(where));
    default:
      return static_cast<T>(*reinterpret_cast<const float*>(where));
  }
}

__device__ __forceinline__ void store_scalar(const MutableView& view, int64_t batch,
                                             double value) {
  const uintptr_t where = reinterpret_cast<uintptr_t>(view.data) +
                          batch * view.stride_batch * size_of(view.dtype);
  switch (view.dtype) {
    case DType::kFloat64:
      *reinterpret_cast<double*>(where) = value;
      break;
    case DType::kFloat16:
    case DType::kBFloat16:
      *reinterpret_cast<uint16_t*>(where) = static_cast<uint16_t>(
          half_bits(static_cast<float>(value), view.dtype == DType::kFloat16));
      break;
    case DType::kUInt8:
      break;
    default:
      *reinterpret_cast<float*>(where) = static_cast<float>(value);
  }
}

// Sums of K values over the block, valid in thread 0. The order of additions is fixed. All threads
// of the block must take part.
template <int K, typename T>
__device__ __forceinline__ void block_sum(T (&values)[K]) {
  __shared__ T warp_sums[K][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warps = (blockDim.x + 31) / 32;
#pragma unroll
  for (int k = 0; k < K; ++k) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      values[k] += __shfl_down_sync(0xffffffffu, values[k], offset);
    }
    if (lane == 0) warp_sums[k][warp] = values[k];
  }
  __syncthreads();
  if (warp == 0) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      values[k] = lane < warps ? warp_sums[k][lane] : T(0);
#pragma unroll
      for (int offset = 16; offset > 0; offset /= 2) {
        values[k] += __shfl_down_sync(0xffffffffu, values[k], offset);
      }
    }
  }
  __syncthreads();  // the next call may write warp_sums
}

// The block's sums of one work item become its row of `partials`.
template <int K, typename T>
__device__ __forceinline__ void store_partials(double* partials, int64_t item, T (&sums)[K]) {
  block_sum<K>(sums);
  if (threadIdx.x == 0) {
#pragma unroll
    for (int k = 0; k < K; ++k) partials[item * K + k] = static_cast<double>(sums[k]);
  }
}

// Second stage: the sums of rows [begin, end) of `partials`, valid in thread 0.
template <int K>
__device__ __forceinline__ void sum_partials(const double* partials, int64_t begin, int64_t end,
                                             double (&sums)[K]) {
#pragma unroll
  for (int k = 0; k < K; ++k) sums[k] = 0.0;
  for (int64_t row = begin + threadIdx.x; row < end; row += blockDim.x) {
#pragma unroll
    for (int k = 0; k < K; ++k) sums[k] += partials[row * K + k];
  }
  block_sum<K>(sums);
}

inline void check(cudaError_t error, const char* op) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("blsgan::") + op + ": CUDA error " +
                             cudaGetErrorName(error) + " (" + cudaGetErrorString(error) + ")");
  }
}

// Makes `device` current for as long as it lives.
class OnDevice {
 public:
  OnDevice(int device, const char* op) : device_(device) {
    check(cudaGetDevice(&previous_), op);
    if (previous_ != device_) check(cudaSetDevice(device_), op);
  }
  ~OnDevice() {
    if (previous_ != device_) cudaSetDevice(previous_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int device_, previous_ = 0;
};

// The current device must be the context's. Reports the error of this launch alone, not what an
// earlier one of anybody's has left behind.
template <typename Args>
void launch_blocks(void (*kernel)(Args), const Args& args, int64_t blocks,
                   const CudaContext& context, const char* op) {
  constexpr int64_t kMostBlocks = 0x7fffffff;
  if (blocks > kMostBlocks) check(cudaErrorInvalidConfiguration, op);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.stream = static_cast<cudaStream_t>(context.stream);
  check(cudaLaunchKernelEx(&config, kernel, args), op);
}

// Launches `kernel` over all work items with as many blocks as the device holds at once (the
// kernels stride over the items); allocates nothing and never waits.
template <typename Args>
void launch(void (*kernel)(Args), const Args& args, int64_t items, const CudaContext& context,
            const char* op) {
  if (items == 0) return;
  const OnDevice here(context.device, op);
  int processors = 0, resident = 0;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, context.device), op);
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kThreads, 0), op);
  const int64_t grid = std::min<int64_t>(items, int64_t{processors} * std::max(resident, 1));
  launch_blocks(kernel, args, grid, context, op);
}

// Launches a second-stage kernel: one block for each group of rows.
template <typename Args>
void launch_finish(void (*kernel)(Args), const Args& args, int64_t blocks,
                   const CudaContext& context, const char* op) {
  if (blocks == 0) return;
  const OnDevice here(context.device, op);
  launch_blocks(kernel, args, blocks, context, op);
}

// Soft tissue of a thread's pixels, whether it is one value for each image or a map.
template <typename T>
__device__ __forceinline__ void load_soft_tissue(const View& view, const Pixels& at,
                                                 T (&k)[kLanes]) {
  if (is_map(view)) return load(view, at, 0, k);
  const T value = load_scalar<T>(view, at.batch);
#pragma unroll
  for (int t = 0; t < kLanes; ++t) k[t] = value;
}

// A thread's gradient of soft tissue, 0 where bones do not overlap: stored where it is a map, else
// returned, summed, as the thread's part of the image's.
template <typename T>
__device__ __forceinline__ T store_soft_gradient(const MutableView& target, const Pixels& at,
                                                 const T (&grad)[kLanes]) {
  if (is_map(target)) {
    store(target, at, 0, grad);
    return T(0);
  }
  T sum = T(0);
#pragma unroll
  for (int t = 0; t < kLanes; ++t) sum += grad[t];
  return sum;
}

// The second stage of the gradient of soft tissue, where that is one value for each image: one
// block for each.
struct FinishSoftTissue {
  Shape shape;
  const double* partials;
  MutableView grad_soft_tissue;
};

static __global__ void __launch_bounds__(kThreads) finish_soft_tissue(FinishSoftTissue a) {
  const int64_t chunks = chunks_per_image(a.shape);
  const int64_t batch = blockIdx.x;
  double sums[1];
  sum_partials<1>(a.partials, batch * chunks, (batch + 1) * chunks, sums);
  if (threadIdx.x == 0) {
    store_scalar(a.grad_soft_tissue, batch, sums[0]);
  }
}

template <typename Args>
void launch_finish_soft_tissue(const Args& args, const CudaContext& context, const char* op) {
  if (is_map(args.grad_soft_tissue)) return;
  launch_finish(finish_soft_tissue,
                FinishSoftTissue{args.shape, args.partials, args.grad_soft_tissue},
                args.shape.batch, context, op);
}

__device__ __forceinline__ bool is_set(uint32_t bits, int lane) { return (bits >> lane) & 1u; }

// Chooses the instantiation of a kernel: N = 2 keeps everything in registers; N = 0 stands for any
// number of layers and reads them again instead.
#define BLSGAN_CHOOSE(KERNEL, WIDE, LAYERS)                              \
  ((WIDE) ? ((LAYERS) == 2 ? KERNEL<double, 2> : KERNEL<double, 0>)      \
          : ((LAYERS) == 2 ? KERNEL<float, 2> : KERNEL<float, 0>))

// The same for a kernel that takes a law.
#define BLSGAN_CHOOSE_UNDER(KERNEL, LAW, WIDE, LAYERS)                               \
  ((WIDE) ? ((LAYERS) == 2 ? KERNEL<double, 2, LAW> : KERNEL<double, 0, LAW>)        \
          : ((LAYERS) == 2 ? KERNEL<float, 2, LAW> : KERNEL<float, 0, LAW>))
#define BLSGAN_CHOOSE_BY_LAW(KERNEL, ARGS, WIDE)                                     \
  ((ARGS).law == 0.0                                                                 \
       ? BLSGAN_CHOOSE_UNDER(KERNEL, TransmissionLaw, WIDE, (ARGS).shape.layers)     \
       : BLSGAN_CHOOSE_UNDER(KERNEL, ExponentialLaw, WIDE, (ARGS).shape.layers))

}  // namespace blsgan::cuda
