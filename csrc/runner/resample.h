// Pillow's antialiased triangle resize (mode F) in the same arithmetic: coefficients and sums in
// float64, one float32 plane between the horizontal and the vertical pass, the box in float32.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace blsgan::runner {

// Left, top, right, bottom in pixels of the plane; may be fractional.
struct Box {
  float left, top, right, bottom;
};

struct Plane {
  int64_t height = 0;
  int64_t width = 0;
  std::vector<float> values;

  Plane() = default;
  Plane(int64_t plane_height, int64_t plane_width)
      : height(plane_height),
        width(plane_width),
        values(static_cast<size_t>(plane_height * plane_width)) {}
  float& at(int64_t y, int64_t x) { return values[static_cast<size_t>(y * width + x)]; }
  float at(int64_t y, int64_t x) const { return values[static_cast<size_t>(y * width + x)]; }
};

// [height,width] from the part of `plane` inside `box`, which lies within it.
Plane resize(const Plane& plane, int64_t height, int64_t width, const Box& box);

}  // namespace blsgan::runner
