// The same kernels for NumPy arrays, for a machine without torch.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <exception>
#include <string>
#include <thread>
#include <vector>

#include "../beer_lambert.h"
#include "../ops.h"
#include "joint.h"

namespace py = pybind11;

namespace {

using namespace blsgan;

std::string shape_text(const py::array& array) {
  std::string text = "[";
  for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) {
    text += (axis ? ", " : "") + std::to_string(array.shape(axis));
  }
  return text + "]";
}

DType dtype_of(const py::array& array, const char* name, bool mask) {
  const char kind = array.dtype().kind();
  const py::ssize_t size = array.itemsize();
  if (mask && (kind == 'b' || (kind == 'u' && size == 1))) return DType::kUInt8;
  if (!mask && kind == 'f' && size == 4) return DType::kFloat32;
  if (!mask && kind == 'f' && size == 8) return DType::kFloat64;
  throw py::type_error(std::string(name) + " must be " + (mask ? "bool or uint8" : "float32 or float64") +
                       ", got " + py::str(array.dtype()).cast<std::string>());
}

void check_shape(const py::array& array, const char* name, const std::vector<int64_t>& sizes) {
  bool same = array.ndim() == static_cast<py::ssize_t>(sizes.size());
  std::string wanted = "[";
  for (size_t axis = 0; axis < sizes.size(); ++axis) {
    same = same && array.shape(static_cast<py::ssize_t>(axis)) == sizes[axis];
    wanted += (axis ? ", " : "") + std::to_string(sizes[axis]);
  }
  if (!same) {
    throw py::value_error(std::string(name) + " must have the shape " + wanted + "], got " +
                          shape_text(array));
  }
}

View view_of(const py::array& array, const char* name, bool mask = false) {
  if (!(array.flags() & py::array::c_style)) {
    throw py::value_error(std::string(name) +
                          " must be C-contiguous (numpy.ascontiguousarray makes it so)");
  }
  View view;
  view.data = array.data();
  view.dtype = dtype_of(array, name, mask);
  if (array.ndim() == 4) {
    view.stride_channel = array.shape(2) * array.shape(3);
    view.stride_batch = array.shape(1) * view.stride_channel;
  } else {
    view.stride_batch = 1;
    view.stride_pixel = 0;
  }
  return view;
}

MutableView output_view(py::array& array) {
  const View view = view_of(array, "output");
  MutableView output;
  output.data = array.mutable_data();
  output.stride_batch = view.stride_batch;
  output.stride_channel = view.stride_channel;
  output.stride_pixel = view.stride_pixel;
  output.dtype = view.dtype;
  return output;
}

// Soft tissue is [B] or a map [B,1,H,W].
void check_soft_tissue(const py::array& array, const Shape& shape) {
  if (array.ndim() == 4) {
    check_shape(array, "soft_tissue", {shape.batch, 1, shape.height, shape.width});
  } else {
    check_shape(array, "soft_tissue", {shape.batch});
  }
}

double checked_law(double law) {
  if (is_law(law)) return law;
  throw py::value_error("law must be 0 or between 1 and 20, got " +
                        py::str(py::float_(law)).cast<std::string>());
}

Shape shape_of(const py::array& masks) {
  if (masks.ndim() != 4 || masks.shape(1) < 2) {
    throw py::value_error("masks must have the shape [B, N, H, W] with N >= 2, got " +
                          shape_text(masks));
  }
  return {masks.shape(0), masks.shape(1), masks.shape(2), masks.shape(3)};
}

// Threads are worth their start only for large images; results do not depend on their number.
void threaded_for(int64_t count, ParallelBody body, void* context) {
  constexpr int64_t kItemsPerThread = 256;  // half a million pixels
  const int64_t available = std::max(1u, std::thread::hardware_concurrency());
  const int64_t threads = std::clamp<int64_t>(count / kItemsPerThread, 1, available);
  if (threads == 1) return serial_for(count, body, context);
  std::vector<std::exception_ptr> errors(static_cast<size_t>(threads));
  std::vector<std::thread> workers;
  for (int64_t w = 0; w < threads; ++w) {
    workers.emplace_back([&, w] {
      try {
        body(context, count * w / threads, count * (w + 1) / threads);
      } catch (...) {
        errors[static_cast<size_t>(w)] = std::current_exception();
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

template <typename Args>
void run(const Args& args, bool wide) {
  CpuContext context;
  context.wide = wide;
  context.parallel_for = threaded_for;
  const py::gil_scoped_release release;
  run_cpu(args, context);
}

py::array compose_layers(const py::array& layers, const py::array& masks,
                         const py::array& soft_tissue, double law) {
  const Shape shape = shape_of(masks);
  check_shape(layers, "layers", {shape.batch, shape.layers, shape.height, shape.width});
  check_soft_tissue(soft_tissue, shape);
  ComposeLayers args;
  args.shape = shape;
  args.law = checked_law(law);
  args.layers = view_of(layers, "layers");
  args.masks = view_of(masks, "masks", true);
  args.soft_tissue = view_of(soft_tissue, "soft_tissue");
  py::array composed(layers.dtype(), {shape.batch, int64_t{1}, shape.height, shape.width});
  if (composed.size() == 0) return composed;
  args.composed = output_view(composed);
  run(args, args.layers.dtype == DType::kFloat64);
  return composed;
}

py::array split_attenuation(const py::array& share_logits, const py::array& image,
                            const py::array& masks, const py::array& soft_tissue, double law) {
  const Shape shape = shape_of(masks);
  check_shape(share_logits, "share_logits",
              {shape.batch, shape.layers, shape.height, shape.width});
  check_shape(image, "image", {shape.batch, 1, shape.height, shape.width});
  check_soft_tissue(soft_tissue, shape);
  SplitAttenuation args;
  args.shape = shape;
  args.law = checked_law(law);
  args.share_logits = view_of(share_logits, "share_logits");
  args.image = view_of(image, "image");
  args.masks = view_of(masks, "masks", true);
  args.soft_tissue = view_of(soft_tissue, "soft_tissue");
  py::array layers(image.dtype(), {shape.batch, shape.layers, shape.height, shape.width});
  if (layers.size() == 0) return layers;
  args.layers = output_view(layers);
  run(args, args.share_logits.dtype == DType::kFloat64 || args.image.dtype == DType::kFloat64);
  return layers;
}

// The build passes its facts as string literals; a fact it does not pass is left out.
py::dict build_info() {
  py::dict info;
  info["cpu_dispatch"] = cpu_dispatch_level();
  info["cxx_standard"] = static_cast<int64_t>(__cplusplus);
  info["soft_tissue_max"] = kSoftTissueMax;
  info["law_min"] = kLawMin;
  info["law_max"] = kLawMax;
#if defined(BLSGAN_VERSION)
  info["version"] = BLSGAN_VERSION;
#endif
#if defined(BLSGAN_GIT_COMMIT)
  info["git_commit"] = BLSGAN_GIT_COMMIT;
#endif
#if defined(BLSGAN_COMPILER)
  info["compiler"] = BLSGAN_COMPILER;
#elif defined(__VERSION__)
  info["compiler"] = __VERSION__;
#endif
#if defined(BLSGAN_CXX_FLAGS)
  info["cxx_flags"] = BLSGAN_CXX_FLAGS;
#endif
#if defined(BLSGAN_CUDA_ARCHS)
  info["cuda_architectures"] = BLSGAN_CUDA_ARCHS;
#endif
#if defined(BLSGAN_CUDA_REASON)
  info["cuda_reason"] = BLSGAN_CUDA_REASON;
#endif
#if defined(BLSGAN_TORCH_ABI)
  info["torch_abi"] = BLSGAN_TORCH_ABI;
#endif
#if defined(BLSGAN_TORCH_BUILT)
  info["torch_built"] = BLSGAN_TORCH_BUILT;
#endif
#if defined(BLSGAN_SANITIZE)
  info["sanitize"] = BLSGAN_SANITIZE;
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "blsgan's CPU kernels and windows for NumPy arrays; blsgan.ops.native and blsgan.joint explain them.";
  m.def("compose_layers", &compose_layers, py::arg("layers"), py::arg("masks"),
        py::arg("soft_tissue"), py::arg("law") = 0.0);
  m.def("split_attenuation", &split_attenuation, py::arg("share_logits"), py::arg("image"),
        py::arg("masks"), py::arg("soft_tissue"), py::arg("law") = 0.0);
  m.def("build_info", &build_info);
  bind_joint(m);
}
