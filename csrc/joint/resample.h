// Pillow's antialiased triangle resize (mode F) in the same arithmetic: coefficients and sums in
// float64, one float32 plane between the horizontal and the vertical pass, the box in float32.

#pragma once

#include <cstdint>

namespace blsgan::joint {

// Left, top, right, bottom in pixels of a plane; may be fractional.
struct Part {
  float left, top, right, bottom;
};

// What of `plane` [height,width], contiguous, lies inside `part`, itself within the plane, to `out`
// [out_height,out_width], whose rows begin `out_stride` values apart.
void resize(const float* plane, int64_t height, int64_t width, const Part& part, float* out,
            int64_t out_height, int64_t out_width, int64_t out_stride);

}  // namespace blsgan::joint
