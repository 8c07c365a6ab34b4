// Launchers of every kernel: raw pointers, sizes and a stream, no torch and no Python.
//
// A tensor is a View: any of the five element types, any strides for batch and channel, one stride
// for the flattened pixels (so contiguous, channels_last and expanded tensors all are Views without
// a copy). Element types may differ between the inputs of one call; arithmetic is float32, or
// float64 where `wide` is set. Offsets are 64 bit.
//
// Work is cut into items of kChunkPixels pixels of one image. Reductions write one row of partial
// sums for each item into `partials` and add the rows in their order in float64, so a result
// depends neither on the number of threads nor on the size of the grid.

#pragma once

#include <cstdint>

#include "macros.h"

namespace blsgan {

enum class DType : int32_t { kFloat32, kFloat64, kFloat16, kBFloat16, kUInt8 };

BLSGAN_HD constexpr int64_t size_of(DType dtype) {
  return dtype == DType::kFloat64   ? 8
         : dtype == DType::kFloat32 ? 4
         : dtype == DType::kUInt8   ? 1
                                    : 2;
}

// Strides count elements. A null pointer means "not wanted" for outputs.
template <typename Pointer>
struct BasicView {
  Pointer data = nullptr;
  int64_t stride_batch = 0;
  int64_t stride_channel = 0;
  int64_t stride_pixel = 1;
  DType dtype = DType::kFloat32;
};
using View = BasicView<const void*>;
using MutableView = BasicView<void*>;

struct Shape {
  int64_t batch = 0;
  int64_t layers = 0;
  int64_t height = 0;
  int64_t width = 0;

  BLSGAN_HD int64_t pixels() const { return height * width; }
};

constexpr int64_t kChunkPixels = 2048;

BLSGAN_HD int64_t chunks_per_image(const Shape& shape) {
  return (shape.pixels() + kChunkPixels - 1) / kChunkPixels;
}
BLSGAN_HD int64_t item_count(const Shape& shape) { return shape.batch * chunks_per_image(shape); }

// Runs body(context, begin, end) over parts of [0, count).
using ParallelBody = void (*)(void* context, int64_t begin, int64_t end);
using ParallelFor = void (*)(int64_t count, ParallelBody body, void* context);

// Runs everything on the calling thread.
inline void serial_for(int64_t count, ParallelBody body, void* context) {
  if (count > 0) body(context, 0, count);
}

// Where and how a call runs.
struct CpuContext {
  bool wide = false;
  ParallelFor parallel_for = serial_for;
};
struct CudaContext {
  bool wide = false;
  int device = 0;
  void* stream = nullptr;
};

// ---- compose_layers: composed[B,1,H,W] from layers[B,N,H,W], masks[B,N,H,W], soft_tissue[B]
struct ComposeLayers {
  Shape shape;
  View layers, masks, soft_tissue;
  MutableView composed;
};
struct ComposeLayersBackward {
  Shape shape;
  View grad_composed, layers, masks, soft_tissue;
  MutableView grad_layers, grad_soft_tissue;
  double* partials;  // item_count
};

// ---- split_attenuation: layers[B,N,H,W] from share_logits[B,N,H,W], image[B,1,H,W], masks,
// soft_tissue[B]
struct SplitAttenuation {
  Shape shape;
  View share_logits, image, masks, soft_tissue;
  MutableView layers;
};
struct SplitAttenuationBackward {
  Shape shape;
  View grad_layers, share_logits, image, masks, soft_tissue;
  MutableView grad_share_logits, grad_image, grad_soft_tissue;
  double* partials;  // item_count
};

void run_cpu(const ComposeLayers&, const CpuContext&);
void run_cpu(const ComposeLayersBackward&, const CpuContext&);
void run_cpu(const SplitAttenuation&, const CpuContext&);
void run_cpu(const SplitAttenuationBackward&, const CpuContext&);

// Throw std::runtime_error with the op's name when a launch fails.
void run_cuda(const ComposeLayers&, const CudaContext&);
void run_cuda(const ComposeLayersBackward&, const CudaContext&);
void run_cuda(const SplitAttenuation&, const CudaContext&);
void run_cuda(const SplitAttenuationBackward&, const CudaContext&);

// Name of the instruction set the CPU kernels dispatch to on this machine.
const char* cpu_dispatch_level();

}  // namespace blsgan
