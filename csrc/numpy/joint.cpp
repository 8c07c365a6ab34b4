// The windows of csrc/joint for NumPy arrays.

#include "joint.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <tuple>

#include "../joint/window.h"

namespace blsgan {
namespace {

namespace py = pybind11;
using joint::Box;
using joint::Mask;
using joint::Masks;
using joint::Window;

using Covered = py::array_t<bool, py::array::c_style | py::array::forcecast>;
using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Edges = std::tuple<int64_t, int64_t, int64_t, int64_t>;

constexpr int64_t kMostReachPx = 1024;
constexpr double kMostPx = 1 << 20;  // of a picture's or a window's side

static_assert(sizeof(bool) == 1, "a mask of NumPy is read as bytes");

const uint8_t* bytes(const Covered& mask) { return reinterpret_cast<const uint8_t*>(mask.data()); }

Masks masks_of(const Covered& masks) {
  if (masks.ndim() != 3 || masks.size() == 0) {
    throw py::value_error("masks must have the shape [N, H, W], of one pixel at least");
  }
  return {bytes(masks), masks.shape(0), masks.shape(1), masks.shape(2)};
}

Masks two_masks(const Covered& masks) {
  if (masks.ndim() != 3 || masks.shape(0) != 2) {
    throw py::value_error("masks must have the shape [2, H, W]");
  }
  return masks_of(masks);
}

int64_t checked_reach(int64_t reach_px) {
  if (reach_px >= 0 && reach_px <= kMostReachPx) return reach_px;
  throw py::value_error("a reach must be from 0 to " + std::to_string(kMostReachPx) + " px, got " +
                        std::to_string(reach_px));
}

// Without the interpreter's lock: others may work meanwhile.
template <typename Work>
auto freely(Work work) {
  const py::gil_scoped_release release;
  return work();
}

void check_plane(const py::array& plane) {
  if (plane.ndim() != 2) throw py::value_error("a plane must have the shape [H, W]");
}

py::array_t<bool> as_array(const Mask& mask, int64_t height, int64_t width) {
  py::array_t<bool> made({height, width});
  std::copy(mask.begin(), mask.end(), made.mutable_data());
  return made;
}

uint8_t* bytes(py::array_t<bool>& mask) { return reinterpret_cast<uint8_t*>(mask.mutable_data()); }

py::array_t<bool> grown(const Covered& mask, int64_t reach_px) {
  check_plane(mask);
  const int64_t height = mask.shape(0), width = mask.shape(1), reach = checked_reach(reach_px);
  Mask given(bytes(mask), bytes(mask) + mask.size());
  return as_array(freely([&] { return joint::grown(std::move(given), height, width, reach); }), height,
                  width);
}

py::array_t<bool> zone(const Covered& masks, int64_t reach_px) {
  const Masks given = masks_of(masks);
  const int64_t reach = checked_reach(reach_px);
  return as_array(freely([&] { return joint::zone(given, reach); }), given.height, given.width);
}

py::array_t<float> extend(const Floats& planes, const Covered& known) {
  if (planes.ndim() != 3 || known.ndim() != 2 || planes.shape(1) != known.shape(0) ||
      planes.shape(2) != known.shape(1)) {
    throw py::value_error("planes [N, H, W] and what is known of them [H, W] do not fit");
  }
  py::array_t<float> values({planes.shape(0), planes.shape(1), planes.shape(2)});
  std::copy_n(planes.data(), planes.size(), values.mutable_data());
  const int64_t count = planes.shape(0), height = known.shape(0), width = known.shape(1);
  const Mask given(bytes(known), bytes(known) + known.size());
  float* target = values.mutable_data();
  freely([&] { joint::extend(target, count, given, height, width); });
  return values;
}

Window window(double top, double left, int64_t height, int64_t width, double scale) {
  const double sides[] = {static_cast<double>(height), static_cast<double>(width)};
  bool fits = scale > 0 && std::abs(top) <= kMostPx && std::abs(left) <= kMostPx;
  for (double side : sides) fits = fits && side >= 1 && side <= kMostPx && side / scale <= kMostPx;
  if (!fits) {
    throw py::value_error("a window needs a scale above 0, a pixel at least, and 2^20 px at most");
  }
  return {top, left, height, width, scale};
}

Edges edges(const Window& window, const std::tuple<int64_t, int64_t>& shape) {
  const Box box = window.box(std::get<0>(shape), std::get<1>(shape));
  return {box.top, box.left, box.bottom, box.right};
}

py::array_t<float> resample(const Window& window, const py::array& plane) {
  check_plane(plane);
  py::array_t<float> made({window.height, window.width});
  const auto fill = [&](const auto* values) {
    const int64_t height = plane.shape(0), width = plane.shape(1);
    const auto found = freely([&] { return window.resample(values, height, width); });
    std::copy(found.begin(), found.end(), made.mutable_data());
  };
  if (plane.dtype().kind() == 'b') {  // a picture's mask is not made four times as large
    const Covered mask(plane);
    fill(bytes(mask));
  } else {
    const Floats values(plane);
    fill(values.data());
  }
  return made;
}

py::array_t<float> restore(const Window& window, const Floats& planes, const Edges& edges,
                           std::optional<py::array_t<float>> out) {
  const auto [top, left, bottom, right] = edges;
  if (planes.ndim() != 3 || planes.shape(1) != window.height || planes.shape(2) != window.width) {
    throw py::value_error("planes must have the shape [N, height, width] of the window");
  }
  const Box inside = window.box(bottom, right);
  if (top < inside.top || left < inside.left || bottom > inside.bottom || right > inside.right ||
      top >= bottom || left >= right) {
    throw py::value_error("the box must lie inside the window");
  }
  const Box box{top, left, bottom, right};
  if (!out) out = py::array_t<float>({planes.shape(0), box.height(), box.width()});
  if (out->ndim() != 3 || out->shape(0) != planes.shape(0) || out->shape(1) != box.height() ||
      out->shape(2) != box.width() || out->strides(2) != sizeof(float)) {
    throw py::value_error("out must have the planes' number, the box's size and rows of float32");
  }
  const int64_t stride = out->strides(1) / static_cast<int64_t>(sizeof(float));
  for (int64_t n = 0; n < planes.shape(0); ++n) {
    const float* plane = planes.data(n, 0, 0);
    float* target = out->mutable_data(n, 0, 0);
    freely([&] { window.restore(plane, box, target, stride); });
  }
  return *out;
}

py::array_t<bool> zone_in(const Window& window, const Covered& masks, int64_t reach_px) {
  const Masks given = masks_of(masks);
  const int64_t reach = checked_reach(reach_px);
  // Pages of zeros that are never written take no memory: most of a large picture.
  py::array_t<bool> whole = py::module_::import("numpy").attr("zeros")(
      py::make_tuple(given.height, given.width), py::dtype::of<bool>());
  uint8_t* target = bytes(whole);
  freely([&] { window.zone(given, reach, target); });
  return whole;
}

py::array_t<bool> grown_in(const Window& window, const Covered& masks, int64_t margin_px) {
  const Masks given = masks_of(masks);
  const int64_t margin = checked_reach(margin_px);
  py::array_t<bool> larger({given.count, given.height, given.width});
  std::copy_n(masks.data(), masks.size(), larger.mutable_data());
  for (int64_t bone = 0; bone < given.count; ++bone) {
    uint8_t* target = bytes(larger) + bone * given.height * given.width;
    freely([&] { window.grow(given, bone, margin, target); });
  }
  return larger;
}

std::optional<Window> around_overlap(const Covered& masks, int64_t size_multiple) {
  if (size_multiple < 1 || size_multiple > 256) {
    throw py::value_error("size_multiple must be from 1 to 256");
  }
  const Masks given = two_masks(masks);
  return freely([&] { return joint::around_overlap(given, size_multiple); });
}

}  // namespace

void bind_joint(py::module_& m) {
  py::class_<Window>(m, "Window")
      .def(py::init(&window), py::arg("top"), py::arg("left"), py::arg("height"), py::arg("width"),
           py::arg("scale") = 1.0)
      .def_readonly("top", &Window::top)
      .def_readonly("left", &Window::left)
      .def_readonly("height", &Window::height)
      .def_readonly("width", &Window::width)
      .def_readonly("scale", &Window::scale)
      .def_property_readonly("aligned", &Window::aligned)
      .def("__repr__",
           [](const Window& w) {
             return py::str("Window(top={}, left={}, height={}, width={}, scale={})")
                 .format(w.top, w.left, w.height, w.width, w.scale);
           })
      .def("box", &edges, py::arg("shape"))
      .def("zone", &zone_in, py::arg("masks"), py::arg("reach_px"))
      .def("grown", &grown_in, py::arg("masks"), py::arg("margin_px"))
      .def("resample", &resample, py::arg("plane"))
      .def("restore", &restore, py::arg("planes"), py::arg("box"), py::arg("out").noconvert() = py::none());
  m.def("grown", &grown, py::arg("mask"), py::arg("reach_px"));
  m.def("zone", &zone, py::arg("masks"), py::arg("reach_px"));
  m.def("extend", &extend, py::arg("planes"), py::arg("known"));
  m.def("bone_width_px",
        [](const Covered& masks) { return joint::bone_width_px(two_masks(masks)); }, py::arg("masks"));
  m.def("working_scale",
        [](const Covered& masks) { return joint::working_scale(two_masks(masks)); }, py::arg("masks"));
  m.def("around_overlap", &around_overlap, py::arg("masks"), py::arg("size_multiple"));
  m.attr("TYPICAL_BONE_WIDTH_PX") = joint::kTypicalBoneWidthPx;
  m.attr("SAME_SCALE") = py::make_tuple(joint::kSameScaleLow, joint::kSameScaleHigh);
  m.attr("MAX_AREA_PX") = joint::kMaxAreaPx;
}

}  // namespace blsgan
