#include "window.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "joint/resample.h"

namespace blsgan::joint {
namespace {

struct Pixel {
  double row, column;
};

// Calls visit(row, column) for every step-th pixel of a mask inside the box, in steps.
template <typename Visit>
void each_pixel(const uint8_t* mask, const Box& box, int64_t width, int64_t step, Visit visit) {
  for (int64_t y = box.top, row = 0; y < box.bottom; y += step, ++row) {
    for (int64_t x = box.left, column = 0; x < box.right; x += step, ++column) {
      if (mask[y * width + x]) visit(row, column);
    }
  }
}

// Where a bone's pixels lie on the whole, and how many they are.
struct Extent {
  Pixel centroid;
  int64_t count;
};

Extent extent(const uint8_t* mask, const Box& box, int64_t width, int64_t step) {
  int64_t rows = 0, columns = 0, count = 0;
  each_pixel(mask, box, width, step, [&](int64_t row, int64_t column) {
    rows += row;
    columns += column;
    ++count;
  });
  const auto mean = [&](int64_t sum) { return static_cast<double>(sum) / static_cast<double>(count); };
  return {{mean(rows), mean(columns)}, count};
}

// Unit vector from the upper to the lower bone; the picture's own where the bones lie on each other.
Pixel joint_axis(const Extent& upper, const Extent& lower) {
  const double row = lower.centroid.row - upper.centroid.row;
  const double column = lower.centroid.column - upper.centroid.column;
  // No hypot: that of glibc 2.35 would ask for it, and wheels run from 2.34 on.
  const double distance = std::sqrt(row * row + column * column);
  const double size = std::sqrt(static_cast<double>(upper.count + lower.count) / 2);
  return distance > size / 4 ? Pixel{row / distance, column / distance} : Pixel{1, 0};
}

// Between the order statistics, from the nearer of the two, as numpy.percentile does.
double percentile_90(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const double position = 0.9 * static_cast<double>(values.size() - 1);
  const size_t below = static_cast<size_t>(position);
  const size_t above = std::min(below + 1, values.size() - 1);
  const double share = position - static_cast<double>(below);
  const double step = values[above] - values[below];
  return share < 0.5 ? values[below] + step * share : values[above] - step * (1 - share);
}

// 90th percentile of the lengths of the bone's chords across the axis, in steps.
double chord_length(const uint8_t* mask, const Box& box, int64_t width, int64_t step,
                    const Pixel& axis) {
  const int64_t farthest = box.height() + box.width();  // along the axis, either way
  std::vector<double> counts(static_cast<size_t>(2 * farthest + 1));
  each_pixel(mask, box, width, step, [&](int64_t row, int64_t column) {
    const double along =
        static_cast<double>(row) * axis.row + static_cast<double>(column) * axis.column;
    ++counts[static_cast<size_t>(std::lrint(along) + farthest)];
  });
  counts.erase(std::remove(counts.begin(), counts.end(), 0.0), counts.end());
  return percentile_90(std::move(counts));
}

int64_t side(int64_t extent_px, int64_t context_px, double scale, int64_t multiple) {
  const double wanted =
      static_cast<double>(extent_px) * scale + 2 * static_cast<double>(context_px);
  const auto steps = static_cast<int64_t>(std::ceil(wanted / static_cast<double>(multiple)));
  return std::max<int64_t>(steps, 2) * multiple;
}

// First pixel of a window of `size` around start..stop, inside the image where it fits.
double origin(int64_t start, int64_t stop, double size, int64_t limit, bool whole) {
  const double length = static_cast<double>(limit);
  double first = (static_cast<double>(start + stop) - size) / 2;
  first = size <= length ? std::min(std::max(first, 0.0), length - size) : (length - size) / 2;
  return whole ? std::floor(first) : first;
}

Box wider(const Box& box, int64_t by) {
  return {box.top - by, box.left - by, box.bottom + by, box.right + by};
}

// What of `mask`, on a box wider by `by` on all sides, lies on `box`, into `whole` [H,W].
void put(const Mask& mask, const Box& box, int64_t by, uint8_t* whole, int64_t width) {
  for (int64_t y = 0; y < box.height(); ++y) {
    const auto row = mask.begin() + (y + by) * (box.width() + 2 * by) + by;
    std::copy_n(row, box.width(), whole + (box.top + y) * width + box.left);
  }
}

}  // namespace

Box bounding_box(const Masks& masks, bool all) {
  Box box{masks.height, masks.width, 0, 0};
  std::vector<uint8_t> covered(static_cast<size_t>(masks.width));
  for (int64_t y = 0; y < masks.height; ++y) {
    std::fill(covered.begin(), covered.end(), all ? 1 : 0);
    for (int64_t bone = 0; bone < masks.count; ++bone) {
      const uint8_t* row = masks[bone] + y * masks.width;
      for (size_t x = 0; x < covered.size(); ++x) {
        const bool drawn = row[x] != 0;
        covered[x] = all ? covered[x] & drawn : covered[x] | drawn;
      }
    }
    const auto first = std::find(covered.begin(), covered.end(), 1);
    if (first == covered.end()) continue;
    const auto last = std::find(covered.rbegin(), covered.rend(), 1);
    box.top = std::min(box.top, y);
    box.left = std::min<int64_t>(box.left, first - covered.begin());
    box.bottom = y + 1;
    box.right = std::max<int64_t>(box.right, covered.rend() - last);
  }
  return box;
}

double bone_width_px(const Masks& masks) {
  const Box box = bounding_box(masks, false);
  int64_t step = std::max<int64_t>(1, std::max(box.height(), box.width()) / 512);
  const auto bone = [&](int64_t number) { return extent(masks[number], box, masks.width, step); };
  Extent upper = bone(0), lower = bone(1);
  if (upper.count == 0 || lower.count == 0) {  // a bone thinner than the step
    step = 1;
    upper = bone(0);
    lower = bone(1);
  }
  if (upper.count == 0 || lower.count == 0) throw std::invalid_argument("a mask is empty");
  const Pixel axis = joint_axis(upper, lower);
  const auto chords = [&](int64_t number) {
    return chord_length(masks[number], box, masks.width, step, axis) * static_cast<double>(step);
  };
  return std::sqrt(chords(0) * chords(1));
}

double working_scale(const Masks& masks) {
  const double ratio = bone_width_px(masks) / kTypicalBoneWidthPx;
  if (kSameScaleLow <= ratio && ratio <= kSameScaleHigh) return 1.0;
  return std::min(1.0 / ratio, kMaxScale);
}

bool Window::aligned() const {
  return scale == 1.0 && std::floor(top) == top && std::floor(left) == left;
}

Box Window::box(int64_t image_height, int64_t image_width) const {
  // What the division adds to a whole number, or takes from it, must not take a row.
  constexpr double kTiny = 1e-9;
  const auto first = [](double start) {
    return static_cast<int64_t>(std::max(std::ceil(start - kTiny), 0.0));
  };
  const auto last = [this](double start, int64_t extent, int64_t count) {
    const double stop = std::floor(start + static_cast<double>(extent) / scale + kTiny);
    return static_cast<int64_t>(std::min(stop, static_cast<double>(count)));
  };
  return {first(top), first(left), last(top, height, image_height), last(left, width, image_width)};
}

int64_t Window::reach_in_image_px(int64_t reach_px) const {
  if (reach_px <= 0) return 0;
  return std::max<int64_t>(1, std::llrint(static_cast<double>(reach_px) / scale));
}

void Window::zone(const Masks& masks, int64_t reach_px, uint8_t* whole) const {
  const int64_t reach = reach_in_image_px(reach_px), beside = 2 * reach;  // as far as a zone depends on
  const Box seen = box(masks.height, masks.width), around = wider(seen, beside);
  if (seen.height() < 1 || seen.width() < 1) return;
  Mask given;
  for (int64_t bone = 0; bone < masks.count; ++bone) {
    cut(masks[bone], masks.height, masks.width, around, given);
  }
  const Masks cut_out{given.data(), masks.count, around.height(), around.width()};
  put(joint::zone(cut_out, reach), seen, beside, whole, masks.width);
}

void Window::grow(const Masks& masks, int64_t bone, int64_t margin_px, uint8_t* whole) const {
  const int64_t margin = reach_in_image_px(margin_px);
  const Box seen = box(masks.height, masks.width), around = wider(seen, margin);
  if (seen.height() < 1 || seen.width() < 1) return;
  Mask given;
  cut(masks[bone], masks.height, masks.width, around, given);
  put(grown(std::move(given), around.height(), around.width(), margin), seen, margin, whole,
      masks.width);
}

template <typename T>
std::vector<float> Window::resample(const T* plane, int64_t image_height,
                                    int64_t image_width) const {
  // Rounded: what the division adds to a whole number must not add a row.
  const auto rounded = [this](int64_t extent) {
    return std::nearbyint(static_cast<double>(extent) / scale * 1e9) / 1e9;
  };
  const double rows = rounded(height), columns = rounded(width);
  const Box covered{static_cast<int64_t>(std::floor(top)), static_cast<int64_t>(std::floor(left)),
                    static_cast<int64_t>(std::ceil(top + rows)),
                    static_cast<int64_t>(std::ceil(left + columns))};
  std::vector<float> padded;
  cut(plane, image_height, image_width, covered, padded);
  if constexpr (std::is_same_v<T, uint8_t>) {  // a mask
    for (float& value : padded) value = value != 0 ? 1.0F : 0.0F;
  }
  if (aligned()) return padded;
  const double y = top - static_cast<double>(covered.top);
  const double x = left - static_cast<double>(covered.left);
  const auto within = [](double stop, int64_t limit) {
    return static_cast<float>(std::min(stop, static_cast<double>(limit)));
  };
  const Part part{static_cast<float>(x), static_cast<float>(y),
                  within(x + columns, covered.width()), within(y + rows, covered.height())};
  std::vector<float> resampled(static_cast<size_t>(height * width));
  resize(padded.data(), covered.height(), covered.width(), part, resampled.data(), height, width,
         width);
  return resampled;
}

template std::vector<float> Window::resample(const float*, int64_t, int64_t) const;
template std::vector<float> Window::resample(const uint8_t*, int64_t, int64_t) const;

void Window::restore(const float* plane, const Box& box, float* out, int64_t stride) const {
  if (aligned()) {
    const float* from = plane + (box.top - static_cast<int64_t>(top)) * width;
    from += box.left - static_cast<int64_t>(left);
    for (int64_t y = 0; y < box.height(); ++y) {
      std::copy_n(from + y * width, box.width(), out + y * stride);
    }
    return;
  }
  const auto at = [this](int64_t edge, double first, double least, double most) {
    return static_cast<float>(
        std::min(std::max((static_cast<double>(edge) - first) * scale, least), most));
  };
  const double all = std::numeric_limits<double>::infinity(), none = -all;
  const Part part{at(box.left, left, 0, all), at(box.top, top, 0, all),
                  at(box.right, left, none, static_cast<double>(width)),
                  at(box.bottom, top, none, static_cast<double>(height))};
  resize(plane, height, width, part, out, box.height(), box.width(), stride);
}

std::optional<Window> around_overlap(const Masks& masks, int64_t size_multiple) {
  const Box overlap = bounding_box(masks, true);
  if (overlap.bottom == 0) return std::nullopt;
  Window window;
  window.scale = working_scale(masks);
  const auto area = [&] {
    window.height = side(overlap.height(), kContextRowsPx, window.scale, size_multiple);
    window.width = side(overlap.width(), kContextColumnsPx, window.scale, size_multiple);
    return window.height * window.width;
  };
  while (area() > kMaxAreaPx) window.scale *= 0.9;
  const bool whole = window.scale == 1.0;
  window.top = origin(overlap.top, overlap.bottom, static_cast<double>(window.height) / window.scale,
                      masks.height, whole);
  window.left = origin(overlap.left, overlap.right, static_cast<double>(window.width) / window.scale,
                       masks.width, whole);
  return window;
}

}  // namespace blsgan::joint
