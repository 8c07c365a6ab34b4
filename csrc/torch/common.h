// What every op's registration shares: tensors to Views, checks, outputs, and the place to run.
//
// Only LibTorch's stable ABI is used, so one binary serves every torch from 2.11 on. The precise
// checks with Python's exception types are in blsgan/ops; those here keep a direct call of
// torch.ops.blsgan.* memory safe.

#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <tuple>
#include <utility>
#include <vector>

#include "../beer_lambert.h"
#include "../ops.h"

#if defined(BLSGAN_WITH_CUDA)
// Absent from a CPU-only torch, where no CUDA tensor can ask for it.
#pragma weak aoti_torch_get_current_cuda_stream
#endif

#if defined(BLSGAN_EMULATED_CUDA)
#include "../tests/cuda_emulator/emulator.h"
#endif

namespace blsgan::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Tests run the CUDA kernels on the CPU (csrc/tests/cuda_emulator): it is told which memory a call
// may touch, and runs what would go to a GPU.
#if defined(BLSGAN_EMULATED_CUDA)
constexpr bool kEmulated = true;
using emulator::Memory;
inline void declare(const Tensor& tensor, Memory memory) {
  int64_t last = 0;
  for (int64_t axis = 0; axis < tensor.dim(); ++axis) {
    if (tensor.size(axis) == 0) return;
    last += (tensor.size(axis) - 1) * tensor.stride(axis);
  }
  const auto element = static_cast<int64_t>(tensor.element_size());
  emulator::declare(tensor.const_data_ptr(), (last + 1) * element, memory, element);
}
#else
constexpr bool kEmulated = false;
enum class Memory { kInput, kOutput, kScratch };
inline void declare(const Tensor&, Memory) {}
#endif

inline DType dtype_of(const Tensor& tensor, const char* op, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Bool:
    case ScalarType::Byte:
      return DType::kUInt8;
    default:
      STD_TORCH_CHECK(false, "blsgan::", op, ": ", name,
                      " must be float64, float32, float16, bfloat16, uint8 or bool");
  }
}

// A tensor with its View. Pixels that do not lie on one stride (a cropped slice) are copied, once,
// to a contiguous tensor; contiguous, channels_last and expanded ones are used where they are.
class Input {
 public:
  Input(const Tensor& tensor, const char* op, const char* name) : tensor_(tensor) {
    const int64_t rank = tensor.dim();
    if (rank == 4) {
      const bool flat = tensor.size(2) <= 1 || tensor.size(3) == 0 ||
                        tensor.stride(2) == tensor.size(3) * tensor.stride(3) ||
                        tensor.size(3) == 1;
      if (!flat) tensor_ = torch::stable::contiguous(tensor);
      view_.stride_batch = tensor_.stride(0);
      view_.stride_channel = tensor_.stride(1);
      view_.stride_pixel = tensor_.size(3) == 1 ? tensor_.stride(2) : tensor_.stride(3);
    } else if (rank == 1) {
      view_.stride_batch = tensor_.stride(0);
      view_.stride_pixel = 0;
    }
    declare(tensor_, Memory::kInput);
    view_.data = tensor_.const_data_ptr();
    view_.dtype = dtype_of(tensor_, op, name);
  }
  const View& view() const { return view_; }
  operator const View&() const { return view_; }

 private:
  Tensor tensor_;
  View view_;
};

// A contiguous output (or nothing) as a View.
inline MutableView output_view(const Tensor& tensor, const char* op, const char* name) {
  MutableView view;
  if (tensor.numel() == 0) return view;
  declare(tensor, Memory::kOutput);
  view.data = tensor.mutable_data_ptr();
  view.dtype = dtype_of(tensor, op, name);
  if (tensor.dim() == 4) {
    view.stride_batch = tensor.stride(0);
    view.stride_channel = tensor.stride(1);
    view.stride_pixel = 1;
  } else {
    view.stride_batch = 1;
    view.stride_pixel = 0;
  }
  return view;
}

inline Tensor empty(const Tensor& like, std::vector<int64_t> sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, sizes, dtype);
}

// A contiguous tensor with the sizes and the type of another; one of no elements.
inline Tensor empty_as(const Tensor& like, const Tensor& shaped) {
  const auto sizes = shaped.sizes();
  return empty(like, std::vector<int64_t>(sizes.begin(), sizes.end()), shaped.scalar_type());
}
inline Tensor nothing(const Tensor& like) { return empty(like, {0}, like.scalar_type()); }

// The result of a reduction over `over`: 0 where there is nothing to reduce, else to be written.
inline Tensor reduced(const Tensor& over, std::vector<int64_t> sizes, ScalarType dtype) {
  if (over.numel() > 0) return empty(over, std::move(sizes), dtype);
  return torch::stable::new_zeros(over, sizes, dtype);
}

// The gradient of soft tissue, in soft tissue's own shape; 0 where there is nothing to reduce.
inline Tensor soft_tissue_gradient(const Tensor& over, const Tensor& soft_tissue) {
  const auto sizes = soft_tissue.sizes();
  return reduced(over, std::vector<int64_t>(sizes.begin(), sizes.end()),
                 soft_tissue.scalar_type());
}

inline void check_size(const char* op, const char* name, const Tensor& tensor,
                       std::initializer_list<int64_t> sizes) {
  bool same = tensor.dim() == static_cast<int64_t>(sizes.size());
  int64_t axis = 0;
  for (auto size = sizes.begin(); same && size != sizes.end(); ++size, ++axis) {
    same = tensor.size(axis) == *size;
  }
  STD_TORCH_CHECK(same, "blsgan::", op, ": ", name, " has the wrong shape");
}

// Soft tissue is [B] or a map [B,1,H,W].
inline void check_soft_tissue(const char* op, const Tensor& tensor, const Shape& shape) {
  if (tensor.dim() == 4) {
    check_size(op, "soft_tissue", tensor, {shape.batch, 1, shape.height, shape.width});
  } else {
    check_size(op, "soft_tissue", tensor, {shape.batch});
  }
}

inline void check_law(const char* op, double law) {
  STD_TORCH_CHECK(is_law(law), "blsgan::", op, ": law must be 0 or between ", kLawMin, " and ",
                  kLawMax);
}

inline void check_device(const char* op, const char* name, const Tensor& tensor,
                         const Tensor& first) {
  STD_TORCH_CHECK(tensor.is_cuda() == first.is_cuda() && tensor.is_cpu() == first.is_cpu() &&
                      tensor.get_device_index() == first.get_device_index(),
                  "blsgan::", op, ": ", name, " is on another device than the first argument");
}

// Shape of the problem from the masks [B,N,H,W], N >= 2.
inline Shape shape_of(const char* op, const Tensor& masks) {
  STD_TORCH_CHECK(masks.dim() == 4 && masks.size(1) >= 2, "blsgan::", op,
                  ": masks must have the shape [B,N,H,W] with N >= 2");
  return {masks.size(0), masks.size(1), masks.size(2), masks.size(3)};
}

inline bool is_wide(std::initializer_list<Tensor> tensors) {
  for (const Tensor& tensor : tensors) {
    if (tensor.scalar_type() == ScalarType::Double) return true;
  }
  return false;
}

inline void torch_parallel(int64_t count, ParallelBody body, void* context) {
  torch::stable::parallel_for(0, count, 1, [=](int64_t begin, int64_t end) {
    body(context, begin, end);
  });
}

// Room for `rows` rows of `columns` partial sums, from torch's allocator on the tensor's device.
class Partials {
 public:
  Partials(const Tensor& like, int64_t rows, int64_t columns = 1)
      : tensor_(empty(like, {rows * columns}, ScalarType::Double)) {
    declare(tensor_, Memory::kScratch);
  }
  double* data() const { return static_cast<double*>(tensor_.mutable_data_ptr()); }

 private:
  Tensor tensor_;
};

// Bytes that only the kernels of a GPU need.
class DeviceBytes {
 public:
  DeviceBytes(const Tensor& like, int64_t count)
      : tensor_(empty(like, {like.is_cuda() || kEmulated ? count : 0}, ScalarType::Byte)) {
    declare(tensor_, Memory::kScratch);
  }
  uint8_t* data() const { return static_cast<uint8_t*>(tensor_.mutable_data_ptr()); }

 private:
  Tensor tensor_;
};

inline const double* doubles(const Tensor& tensor) {
  declare(tensor, Memory::kInput);
  return static_cast<const double*>(tensor.const_data_ptr());
}

// A loss is a scalar of float32 (float64 where the arithmetic is), with the float64 statistics its
// backward pass needs.
class LossOutputs {
 public:
  LossOutputs(const Tensor& like, int64_t statistics, bool wide)
      : loss_(reduced(like, {}, wide ? ScalarType::Double : ScalarType::Float)),
        statistics_(reduced(like, {statistics}, ScalarType::Double)) {}
  MutableView loss(const char* op) const { return output_view(loss_, op, "loss"); }
  double* data() const {
    declare(statistics_, Memory::kOutput);
    return static_cast<double*>(statistics_.mutable_data_ptr());
  }
  std::tuple<Tensor, Tensor> result() const { return {loss_, statistics_}; }

 private:
  Tensor loss_, statistics_;
};

inline void check_loss_gradient(const char* op, const Tensor& grad_loss, const Tensor& statistics,
                                int64_t count, const Tensor& first) {
  check_size(op, "grad_loss", grad_loss, {});
  check_size(op, "statistics", statistics, {count});
  check_device(op, "grad_loss", grad_loss, first);
  check_device(op, "statistics", statistics, first);
  STD_TORCH_CHECK(statistics.scalar_type() == ScalarType::Double && statistics.is_contiguous(),
                  "blsgan::", op, ": statistics must be the contiguous float64 tensor that ", op,
                  " returned");
}

// Runs `args` where `first` lives: on torch's CPU threads, or on its device's current stream.
template <typename Args>
void run(const char* op, const Tensor& first, bool wide, const Args& args) {
  if (first.is_cuda()) {
#if defined(BLSGAN_WITH_CUDA)
    const int device = first.get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    CudaContext context;
    context.wide = wide;
    context.device = device;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "blsgan::", op,
                    ": this torch has no CUDA");
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &context.stream));
    run_cuda(args, context);
#else
    STD_TORCH_CHECK(false, "blsgan::", op,
                    ": blsgan was built without CUDA (see `blsgan doctor` for the reason); "
                    "rebuild it with BLSGAN_CUDA=1 or move the tensors to the CPU");
#endif
    return;
  }
  STD_TORCH_CHECK(first.is_cpu(), "blsgan::", op, ": only CPU and CUDA tensors are supported");
#if defined(BLSGAN_EMULATED_CUDA)
  CudaContext emulated;
  emulated.wide = wide;
  return emulator::run([&] { run_cuda(args, emulated); });
#endif
  CpuContext context;
  context.wide = wide;
  context.parallel_for = torch_parallel;
  run_cpu(args, context);
}

}  // namespace blsgan::binding

// One implementation serves both keys; a build without CUDA answers CUDA tensors with a sentence.
#define BLSGAN_REGISTER_IMPLEMENTATIONS(REGISTER)              \
  STABLE_TORCH_LIBRARY_IMPL(blsgan, CPU, m) { REGISTER(m); }   \
  STABLE_TORCH_LIBRARY_IMPL(blsgan, CUDA, m) { REGISTER(m); }
