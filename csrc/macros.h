// Functions for host and device that are always inlined, so that each clone of a CPU kernel
// compiles them for its own instruction set.

#pragma once

#if defined(__CUDACC__)
#define BLSGAN_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__) || defined(__clang__)
#define BLSGAN_HD inline __attribute__((always_inline))
#else
#define BLSGAN_HD inline
#endif
