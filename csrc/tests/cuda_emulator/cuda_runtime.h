// Stands in for CUDA's header of this name: as much of it as csrc/cuda uses.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "device.h"

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after another
#define EMULATED_UNCHECKED __attribute__((no_sanitize("thread")))

template <blsgan::emulator::Index kWhich>
struct EmulatedIndex {
  struct {
    operator unsigned() const { return blsgan::emulator::index(kWhich); }
  } x;
};
constexpr EmulatedIndex<blsgan::emulator::kThread> threadIdx{};
constexpr EmulatedIndex<blsgan::emulator::kBlock> blockIdx{};
constexpr EmulatedIndex<blsgan::emulator::kThreads> blockDim{};
constexpr EmulatedIndex<blsgan::emulator::kBlocks> gridDim{};

// ---- The host's side: one device, which is current.

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
  cudaErrorLaunchFailure = 719,
};
inline const char* cudaGetErrorName(cudaError_t error) {
  if (error == cudaErrorInvalidConfiguration) return "cudaErrorInvalidConfiguration";
  if (error == cudaErrorInvalidDevice) return "cudaErrorInvalidDevice";
  return error == cudaSuccess ? "cudaSuccess" : "cudaErrorLaunchFailure";
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? blsgan::emulator::failure() : "emulated";
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = blsgan::emulator::processors();
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t) {
  *blocks = 1;
  return cudaSuccess;
}

using cudaStream_t = void*;
struct dim3 {
  unsigned x, y = 1, z = 1;
  dim3(unsigned size = 1) : x(size) {}
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};
template <typename Args>
struct EmulatedCall {
  void (*kernel)(Args);
  const Args* args;
  EMULATED_UNCHECKED static void run(const void* context) {
    const auto* call = static_cast<const EmulatedCall*>(context);
    call->kernel(*call->args);
  }
};
template <typename Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Args),
                               const Args& args) {
  const unsigned blocks = config->gridDim.x, threads = config->blockDim.x;
  if (blocks == 0 || blocks > 0x7fffffffu || threads == 0 || threads > 1024) {
    return cudaErrorInvalidConfiguration;
  }
  const EmulatedCall<Args> call{kernel, &args};
  const bool done = blsgan::emulator::launch(blocks, threads, EmulatedCall<Args>::run, &call);
  return done ? cudaSuccess : cudaErrorLaunchFailure;
}

// ---- The device's side

// A vector is read and written as one: the compiler would split it, and its alignment were lost.
#define EMULATED_VECTOR(NAME, T, COUNT, ...)                                                    \
  struct alignas(sizeof(T) * COUNT) NAME {                                                      \
    T __VA_ARGS__;                                                                              \
    NAME() = default;                                                                           \
    EMULATED_UNCHECKED NAME(const NAME& other) {                                                \
      blsgan::emulator::touch(&other, sizeof other, blsgan::emulator::kRead);                   \
      memcpy(static_cast<void*>(this), &other, sizeof other);                                   \
    }                                                                                           \
    EMULATED_UNCHECKED NAME& operator=(const NAME& other) {                                     \
      blsgan::emulator::touch(&other, sizeof other, blsgan::emulator::kRead);                   \
      blsgan::emulator::touch(this, sizeof other, blsgan::emulator::kWrite);                    \
      memcpy(static_cast<void*>(this), &other, sizeof other);                                   \
      return *this;                                                                             \
    }                                                                                           \
  }
EMULATED_VECTOR(float4, float, 4, x, y, z, w);
EMULATED_VECTOR(double2, double, 2, x, y);
EMULATED_VECTOR(uint2, uint32_t, 2, x, y);
EMULATED_VECTOR(uint4, uint32_t, 4, x, y, z, w);
#undef EMULATED_VECTOR

inline float4 make_float4(float x, float y, float z, float w) {
  float4 v;
  v.x = x, v.y = y, v.z = z, v.w = w;
  return v;
}
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
  uint4 v;
  v.x = x, v.y = y, v.z = z, v.w = w;
  return v;
}

template <typename T>
EMULATED_UNCHECKED T __ldg(const T* source) {
  blsgan::emulator::touch(source, sizeof(T), blsgan::emulator::kLdg);
  T value;
  memcpy(static_cast<void*>(&value), static_cast<const void*>(source), sizeof value);
  return value;
}

inline void __syncthreads() { blsgan::emulator::barrier(); }
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, unsigned offset) {
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = blsgan::emulator::shuffle_down(mask, bits, offset);
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline float __uint_as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
