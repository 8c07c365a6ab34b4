#include "zone.h"

#include <algorithm>
#include <cstddef>
#include <utility>

namespace blsgan::joint {
namespace {

// The sum over 3x3 pixels, columns first, with zeros beyond the plane.
std::vector<float> sum_3x3(const float* plane, int64_t height, int64_t width) {
  std::vector<float> result(static_cast<size_t>(height * width));
  std::vector<float> sums(static_cast<size_t>(width + 2));
  for (int64_t y = 0; y < height; ++y) {
    const float* row = plane + y * width;
    for (int64_t x = 0; x < width; ++x) {
      const float above = y > 0 ? row[x - width] : 0.0F, below = y + 1 < height ? row[x + width] : 0.0F;
      sums[static_cast<size_t>(x + 1)] = above + row[x] + below;
    }
    for (size_t x = 0; x < static_cast<size_t>(width); ++x) {
      result[static_cast<size_t>(y * width) + x] = sums[x] + sums[x + 1] + sums[x + 2];
    }
  }
  return result;
}

void turn(Mask& mask) {
  for (uint8_t& covered : mask) covered = covered == 0 ? 1 : 0;
}

}  // namespace

Mask grown(Mask mask, int64_t height, int64_t width, int64_t reach_px) {
  for (uint8_t& covered : mask) covered = covered != 0 ? 1 : 0;
  Mask before, sides(static_cast<size_t>(width + 2));
  for (int64_t step = 0; step < reach_px; ++step) {
    before = mask;
    for (int64_t y = 0; y < height; ++y) {
      const uint8_t* row = before.data() + y * width;
      const uint8_t* above = y > 0 ? row - width : row;
      const uint8_t* below = y + 1 < height ? row + width : row;
      uint8_t* target = mask.data() + y * width;
      for (int64_t x = 0; x < width; ++x) target[x] = above[x] | row[x] | below[x];
      std::copy_n(step % 2 == 0 ? target : row, width, sides.begin() + 1);
      for (int64_t x = 0; x < width; ++x) {
        target[x] |= sides[static_cast<size_t>(x)] | sides[static_cast<size_t>(x + 2)];
      }
    }
  }
  return mask;
}

Mask zone(const Masks& masks, int64_t reach_px) {
  const auto pixels = static_cast<size_t>(masks.height * masks.width);
  const auto larger = [&](Mask mask, int64_t reach) {
    return grown(std::move(mask), masks.height, masks.width, reach);
  };
  Mask closed(pixels), once(pixels), twice(pixels);
  for (int64_t bone = 0; bone < masks.count; ++bone) {
    const uint8_t* drawn = masks[bone];
    const Mask reached = larger(Mask(drawn, drawn + pixels), reach_px);
    for (size_t p = 0; p < pixels; ++p) {
      twice[p] |= once[p] & reached[p];
      once[p] |= reached[p];
      closed[p] |= drawn[p] != 0 ? 1 : 0;
    }
  }
  const Mask drawn = closed;
  closed = larger(std::move(closed), reach_px / 2);
  turn(closed);
  closed = larger(std::move(closed), reach_px / 2);
  turn(closed);
  for (size_t p = 0; p < pixels; ++p) twice[p] &= drawn[p] | closed[p];
  return twice;
}

void extend(float* values, int64_t channels, const Mask& known, int64_t height, int64_t width) {
  constexpr int kReachPx = 4;
  const auto pixels = static_cast<size_t>(height * width);
  std::vector<float> weight(pixels);
  for (size_t p = 0; p < pixels; ++p) weight[p] = known[p] != 0 ? 1.0F : 0.0F;
  for (size_t p = 0; p < pixels * static_cast<size_t>(channels); ++p) {
    values[p] *= weight[p % pixels];
  }
  for (int step = 0; step < kReachPx; ++step) {
    const std::vector<float> count = sum_3x3(weight.data(), height, width);
    for (int64_t channel = 0; channel < channels; ++channel) {
      float* plane = values + static_cast<size_t>(channel) * pixels;
      const std::vector<float> total = sum_3x3(plane, height, width);
      for (size_t p = 0; p < pixels; ++p) {
        if (weight[p] == 0 && count[p] > 0) plane[p] = total[p] / count[p];
      }
    }
    for (size_t p = 0; p < pixels; ++p) {
      if (count[p] > 0) weight[p] = 1;
    }
  }
}

}  // namespace blsgan::joint
