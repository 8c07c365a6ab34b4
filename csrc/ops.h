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

// Soft tissue and its gradient are one value for each image, [B], where their pixels' stride is 0,
// and else a map, [B,1,H,W].
template <typename Pointer>
BLSGAN_HD bool is_map(const BasicView<Pointer>& soft_tissue) {
  return soft_tissue.stride_pixel != 0;
}

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

// ---- `law` of the three ops that follow: 0, or the exponent of the exponential law
// (beer_lambert.h). The partial sums of soft tissue's gradient count where it is no map.

// ---- compose_layers: composed[B,1,H,W] from layers[B,N,H,W], masks[B,N,H,W], soft_tissue
struct ComposeLayers {
  Shape shape;
  View layers, masks, soft_tissue;
  MutableView composed;
  double law = 0.0;
};
struct ComposeLayersBackward {
  Shape shape;
  View grad_composed, layers, masks, soft_tissue;
  MutableView grad_layers, grad_soft_tissue;
  double* partials;  // item_count
  double law = 0.0;
};

// ---- split_attenuation: layers[B,N,H,W] from share_logits[B,N,H,W], image[B,1,H,W], masks,
// soft_tissue
struct SplitAttenuation {
  Shape shape;
  View share_logits, image, masks, soft_tissue;
  MutableView layers;
  double law = 0.0;
};
struct SplitAttenuationBackward {
  Shape shape;
  View grad_layers, share_logits, image, masks, soft_tissue;
  MutableView grad_share_logits, grad_image, grad_soft_tissue;
  double* partials;  // item_count
  double law = 0.0;
};

// ---- root mean square errors; `loss` is a scalar, `statistics`[2] = {the error, pixels compared},
// which the backward pass needs. The error of no pixels is 0, and so is the gradient where the
// error is 0.
constexpr int kRmseSums = 2;

// ---- reconstruction_loss: compose_layers against image over the union of the masks
struct ReconstructionLoss {
  Shape shape;
  View layers, masks, soft_tissue, image;
  MutableView loss;
  double* statistics;
  double* partials;  // item_count * kRmseSums
  double law = 0.0;
};
struct ReconstructionLossBackward {
  Shape shape;
  View grad_loss, layers, masks, soft_tissue, image;
  const double* statistics;
  MutableView grad_layers, grad_soft_tissue, grad_image;
  double* partials;  // item_count
  double law = 0.0;
};

// ---- layer_loss: layers against true_layers, each inside its mask
struct LayerLoss {
  Shape shape;
  View layers, true_layers, masks;
  MutableView loss;
  double* statistics;
  double* partials;  // item_count * kRmseSums
};
struct LayerLossBackward {
  Shape shape;
  View grad_loss, layers, true_layers, masks;
  const double* statistics;
  MutableView grad_layers, grad_true_layers;
};

// ---- supervisor_loss: sigmoid, BCE and Dice of logits[B,2N,H,W] against masks[B,N,H,W]; the first
// N channels mean "bone i is here", the last N "it is a real, separated layer".
enum class SupervisorTarget : int32_t {
  kMasks,      // (M, M): separated layers
  kZeros,      // (M, 0): generated layers, for the supervisor itself
  kExclusive,  // (M - overlap, M - overlap): real images in which bones overlap
};
constexpr int kSupervisorSums = 7;
constexpr int kSupervisorStatistics = 5;
struct SupervisorLoss {
  Shape shape;  // of the masks
  View logits, masks;
  SupervisorTarget target;
  bool hybrid;  // 0.5 BCE + 0.5 Dice, plain plus in the overlap; otherwise the plain BCE
  MutableView loss;
  double* statistics;
  double* partials;  // item_count * kSupervisorSums
};
struct SupervisorLossBackward {
  Shape shape;
  View grad_loss, logits, masks;
  SupervisorTarget target;
  const double* statistics;
  MutableView grad_logits;
};

// ---- synthesize_overlap: a batch of radiographs without overlap to pairs with known layers. Bone 0
// moves down by shift_upper, bone 1 up by shift_lower, others stay.
constexpr int kSynthesisRows = 32;  // rows of one image that make a work item
constexpr int kSynthesisSums = 2;
struct SynthesizeOverlap {
  Shape shape;
  View image, masks, background, shift_upper, shift_lower;
  MutableView composed, shifted_masks, layers, soft_tissue;
  double* partials;  // max(synthesis_items, item_count) * kSynthesisSums
  uint8_t* planes;   // CUDA only: 2 * batch * pixels, the overlap and its edge
};
BLSGAN_HD int64_t synthesis_blocks(const Shape& shape) {
  return (shape.height + kSynthesisRows - 1) / kSynthesisRows;
}
BLSGAN_HD int64_t synthesis_items(const Shape& shape) {
  return shape.batch * synthesis_blocks(shape);
}

void run_cpu(const ComposeLayers&, const CpuContext&);
void run_cpu(const ComposeLayersBackward&, const CpuContext&);
void run_cpu(const SplitAttenuation&, const CpuContext&);
void run_cpu(const SplitAttenuationBackward&, const CpuContext&);
void run_cpu(const ReconstructionLoss&, const CpuContext&);
void run_cpu(const ReconstructionLossBackward&, const CpuContext&);
void run_cpu(const LayerLoss&, const CpuContext&);
void run_cpu(const LayerLossBackward&, const CpuContext&);
void run_cpu(const SupervisorLoss&, const CpuContext&);
void run_cpu(const SupervisorLossBackward&, const CpuContext&);
void run_cpu(const SynthesizeOverlap&, const CpuContext&);

// Throw std::runtime_error with the op's name when a launch fails.
void run_cuda(const ComposeLayers&, const CudaContext&);
void run_cuda(const ComposeLayersBackward&, const CudaContext&);
void run_cuda(const SplitAttenuation&, const CudaContext&);
void run_cuda(const SplitAttenuationBackward&, const CudaContext&);
void run_cuda(const ReconstructionLoss&, const CudaContext&);
void run_cuda(const ReconstructionLossBackward&, const CudaContext&);
void run_cuda(const LayerLoss&, const CudaContext&);
void run_cuda(const LayerLossBackward&, const CudaContext&);
void run_cuda(const SupervisorLoss&, const CudaContext&);
void run_cuda(const SupervisorLossBackward&, const CudaContext&);
void run_cuda(const SynthesizeOverlap&, const CudaContext&);

// Name of the instruction set the CPU kernels dispatch to on this machine.
const char* cpu_dispatch_level();

}  // namespace blsgan
