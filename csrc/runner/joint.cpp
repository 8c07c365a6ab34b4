#include "joint.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>

#include "failure.h"
#include "ops.h"

namespace blsgan::runner {
namespace {

using Mask = std::vector<uint8_t>;

size_t index(int64_t y, int64_t x, int64_t width) { return static_cast<size_t>(y * width + x); }

Window bounding_box(const Mask& a, const Mask& b, bool both, int64_t height, int64_t width) {
  Window box{height, width, 0, 0};
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      const size_t p = index(y, x, width);
      if (both ? !(a[p] && b[p]) : !(a[p] || b[p])) continue;
      box.top = std::min(box.top, y);
      box.left = std::min(box.left, x);
      box.bottom = y + 1;
      box.right = std::max(box.right, x + 1);
    }
  }
  return box;
}

struct Pixel {
  double row, column;
};

std::vector<Pixel> pixels_of(const Mask& mask, const Window& box, int64_t width, int64_t step) {
  std::vector<Pixel> pixels;
  for (int64_t y = box.top; y < box.bottom; y += step) {
    for (int64_t x = box.left; x < box.right; x += step) {
      const int64_t row = (y - box.top) / step, column = (x - box.left) / step;
      if (mask[index(y, x, width)]) {
        pixels.push_back({static_cast<double>(row), static_cast<double>(column)});
      }
    }
  }
  return pixels;
}

Pixel centroid(const std::vector<Pixel>& pixels) {
  Pixel sum{0, 0};
  for (const Pixel& pixel : pixels) {
    sum.row += pixel.row;
    sum.column += pixel.column;
  }
  const double count = static_cast<double>(pixels.size());
  return {sum.row / count, sum.column / count};
}

// Unit vector from the upper to the lower bone; the picture's own where the bones lie on each other.
Pixel joint_axis(const std::vector<Pixel>& upper, const std::vector<Pixel>& lower) {
  const Pixel from = centroid(upper), to = centroid(lower);
  const double row = to.row - from.row, column = to.column - from.column;
  const double distance = std::hypot(row, column);
  const double size = std::sqrt(static_cast<double>(upper.size() + lower.size()) / 2);
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
double chord_length(const std::vector<Pixel>& bone, const Pixel& axis) {
  std::vector<int64_t> along;
  along.reserve(bone.size());
  for (const Pixel& pixel : bone) {
    along.push_back(
        static_cast<int64_t>(std::nearbyint(pixel.row * axis.row + pixel.column * axis.column)));
  }
  const auto [first, last] = std::minmax_element(along.begin(), along.end());
  std::vector<double> counts(static_cast<size_t>(*last - *first + 1));
  for (int64_t position : along) ++counts[static_cast<size_t>(position - *first)];
  counts.erase(std::remove(counts.begin(), counts.end(), 0.0), counts.end());
  return percentile_90(std::move(counts));
}

double working_scale(const Mask& upper, const Mask& lower, int64_t height, int64_t width) {
  const double ratio = bone_width_px(upper, lower, height, width) / kTypicalBoneWidthPx;
  if (kSameScaleLow <= ratio && ratio <= kSameScaleHigh) return 1.0;
  return std::min(1.0 / ratio, kMaxScale);
}

int64_t crop_size(int64_t extent_px, int64_t context_px, double scale) {
  const double wanted =
      static_cast<double>(extent_px) * scale + 2 * static_cast<double>(context_px);
  const auto steps = static_cast<int64_t>(std::ceil(wanted / kCropMultiple));
  return std::max<int64_t>(steps, 2) * kCropMultiple;
}

// `mask` dilated by `reach_px`: squares and crosses in turn, which is nearly round.
Mask grown(Mask mask, int64_t height, int64_t width, int64_t reach_px) {
  for (int64_t step = 0; step < reach_px; ++step) {
    const Mask before = mask;
    const auto at = [&](int64_t y, int64_t x) {
      return y >= 0 && x >= 0 && y < height && x < width && before[index(y, x, width)] != 0;
    };
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t x = 0; x < width; ++x) {
        bool any = at(y, x) || at(y - 1, x) || at(y + 1, x) || at(y, x - 1) || at(y, x + 1);
        if (step % 2 == 0) {
          any = any || at(y - 1, x - 1) || at(y - 1, x + 1) || at(y + 1, x - 1) || at(y + 1, x + 1);
        }
        mask[index(y, x, width)] = any ? 1 : 0;
      }
    }
  }
  return mask;
}

// Where both bones' pictures may reach (blsgan/joint/zone.py).
Mask zone_of(const Mask& upper, const Mask& lower, int64_t height, int64_t width,
             int64_t reach_px) {
  Mask zone = grown(upper, height, width, reach_px);
  const Mask other = grown(lower, height, width, reach_px);
  Mask closed = upper;
  for (size_t p = 0; p < closed.size(); ++p) closed[p] |= lower[p];
  const auto turned = [](Mask mask) {
    for (uint8_t& covered : mask) covered ^= 1;
    return mask;
  };
  closed = grown(std::move(closed), height, width, reach_px / 2);
  closed = turned(grown(turned(std::move(closed)), height, width, reach_px / 2));
  for (size_t p = 0; p < zone.size(); ++p) zone[p] &= other[p] & (upper[p] | lower[p] | closed[p]);
  return zone;
}

float median(std::vector<float> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

// First pixel of a crop of `size` around start..stop, inside the image where it fits.
double origin(int64_t start, int64_t stop, double size, int64_t limit, bool whole) {
  const double length = static_cast<double>(limit);
  double first = (static_cast<double>(start + stop) - size) / 2;
  first = size <= length ? std::min(std::max(first, 0.0), length - size) : (length - size) / 2;
  return whole ? std::floor(first) : first;
}

Crop plan(const Window& box, double scale, int64_t height, int64_t width) {
  Crop crop;
  crop.scale = scale;
  const auto measure = [&] {
    crop.height = crop_size(box.height(), kContextRowsPx, crop.scale);
    crop.width = crop_size(box.width(), kContextColumnsPx, crop.scale);
    return crop.height * crop.width;
  };
  while (measure() > kMaxCropAreaPx) crop.scale *= 0.9;
  const bool whole = crop.scale == 1.0;
  crop.top = origin(box.top, box.bottom, static_cast<double>(crop.height) / crop.scale, height, whole);
  crop.left = origin(box.left, box.right, static_cast<double>(crop.width) / crop.scale, width, whole);
  return crop;
}

double mean_row(const Mask& mask, int64_t height, int64_t width) {
  int64_t sum = 0, count = 0;
  for (int64_t y = 0; y < height; ++y) {
    const auto row = mask.begin() + y * width;
    if (std::find(row, row + width, 1) == row + width) continue;
    sum += y;
    ++count;
  }
  return static_cast<double>(sum) / static_cast<double>(count);
}

Plane sum_3x3(const Plane& plane) {
  const auto value = [](const Plane& p, int64_t y, int64_t x) {
    return y < 0 || x < 0 || y >= p.height || x >= p.width ? 0.0F : p.at(y, x);
  };
  Plane rows(plane.height, plane.width), result(plane.height, plane.width);
  for (int64_t y = 0; y < plane.height; ++y) {
    for (int64_t x = 0; x < plane.width; ++x) {
      rows.at(y, x) = value(plane, y - 1, x) + value(plane, y, x) + value(plane, y + 1, x);
    }
  }
  for (int64_t y = 0; y < plane.height; ++y) {
    for (int64_t x = 0; x < plane.width; ++x) {
      result.at(y, x) = value(rows, y, x - 1) + value(rows, y, x) + value(rows, y, x + 1);
    }
  }
  return result;
}

// Carries values four pixels outwards from where `weight` is 1; 0 beyond. The network answers for the
// zone only, and interpolation must not take in what lies outside.
Plane extend(Plane values, Plane weight) {
  for (size_t p = 0; p < values.values.size(); ++p) values.values[p] *= weight.values[p];
  for (int reach = 0; reach < 4; ++reach) {
    const Plane total = sum_3x3(values), count = sum_3x3(weight);
    for (size_t p = 0; p < values.values.size(); ++p) {
      if (weight.values[p] != 0 || count.values[p] <= 0) continue;
      values.values[p] = total.values[p] / std::max(count.values[p], 1.0F);
      weight.values[p] = 1;
    }
  }
  return values;
}

// A contiguous [1,channels,pixels] tensor.
View view(const void* data, int64_t channels, int64_t pixels, DType dtype) {
  return {data, channels * pixels, pixels, 1, dtype};
}
MutableView output(std::vector<float>& values, int64_t channels, int64_t pixels) {
  return {values.data(), channels * pixels, pixels, 1, DType::kFloat32};
}

}  // namespace

double bone_width_px(const Mask& upper, const Mask& lower, int64_t height, int64_t width) {
  const Window box = bounding_box(upper, lower, false, height, width);
  int64_t step = std::max<int64_t>(1, std::max(box.height(), box.width()) / 512);
  std::vector<Pixel> upper_pixels = pixels_of(upper, box, width, step);
  std::vector<Pixel> lower_pixels = pixels_of(lower, box, width, step);
  if (upper_pixels.empty() || lower_pixels.empty()) {  // a bone thinner than the step
    step = 1;
    upper_pixels = pixels_of(upper, box, width, step);
    lower_pixels = pixels_of(lower, box, width, step);
  }
  const Pixel axis = joint_axis(upper_pixels, lower_pixels);
  const double widths[] = {chord_length(upper_pixels, axis) * static_cast<double>(step),
                           chord_length(lower_pixels, axis) * static_cast<double>(step)};
  return std::sqrt(widths[0] * widths[1]);
}

Joint::Joint(int64_t height, int64_t width, std::vector<float> image, Mask upper, Mask lower)
    : height_(height), width_(width), image_(std::move(image)), overlap_(upper.size()) {
  masks_[0] = std::move(upper);
  masks_[1] = std::move(lower);
  float low = 2, high = -1;
  int64_t covered = 0;
  for (size_t p = 0; p < image_.size(); ++p) {
    overlap_[p] = masks_[0][p] & masks_[1][p];
    overlap_px_ += overlap_[p];
    if (!(masks_[0][p] | masks_[1][p])) continue;
    ++covered;
    low = std::min(low, image_[p]);
    high = std::max(high, image_[p]);
  }
  if (covered == static_cast<int64_t>(image_.size())) {
    throw data_failure("the masks cover every pixel; no background is left around the bones.");
  }
  if (low == high) {
    throw data_failure(text("the image is constant (%g) under the bones; there is nothing to "
                            "separate.",
                            static_cast<double>(low)));
  }
  if (overlap_px_ > 0) {
    crop_ = plan(bounding_box(masks_[0], masks_[1], true, height_, width_),
                 working_scale(masks_[0], masks_[1], height_, width_), height_, width_);
  }
  const auto count = [](const Mask& mask) { return std::count(mask.begin(), mask.end(), 1); };
  const double smaller = static_cast<double>(std::min(count(masks_[0]), count(masks_[1])));
  if (static_cast<double>(overlap_px_) > 0.6 * smaller) {
    notes_.emplace_back("the masks cover mostly the same pixels: do both show one bone?");
  } else if (mean_row(masks_[0], height_, width_) > mean_row(masks_[1], height_, width_)) {
    notes_.emplace_back(
        "the upper mask lies below the lower one: are the two masks swapped?");
  }
}

int64_t Joint::covered_px() const {
  int64_t count = 0;
  for (size_t p = 0; p < image_.size(); ++p) count += masks_[0][p] | masks_[1][p];
  return count;
}

// What of a zone lies inside the window: bones that only touch far beside their overlap stay as they
// are.
std::vector<uint8_t> Joint::seen(std::vector<uint8_t> zone) const {
  const Crop& crop = planned();
  const double bottom = crop.top + static_cast<double>(crop.height) / crop.scale;
  const double right = crop.left + static_cast<double>(crop.width) / crop.scale;
  for (int64_t y = 0; y < height_; ++y) {
    for (int64_t x = 0; x < width_; ++x) {
      const double row = static_cast<double>(y), column = static_cast<double>(x);
      if (row < crop.top || column < crop.left || row + 1 > bottom || column + 1 > right) {
        zone[index(y, x, width_)] = 0;
      }
    }
  }
  return zone;
}

const Crop& Joint::planned() const {
  if (!crop_) throw std::logic_error("only joints with an overlap go through the network");
  return *crop_;
}

template <typename T>
Plane Joint::resample(const std::vector<T>& plane) const {
  const Crop& crop = planned();
  const double extent_y = static_cast<double>(crop.height) / crop.scale;
  const double extent_x = static_cast<double>(crop.width) / crop.scale;
  const int64_t top = static_cast<int64_t>(std::floor(crop.top));
  const int64_t left = static_cast<int64_t>(std::floor(crop.left));
  const int64_t bottom = static_cast<int64_t>(std::ceil(crop.top + extent_y));
  const int64_t right = static_cast<int64_t>(std::ceil(crop.left + extent_x));
  Plane padded(bottom - top, right - left);
  for (int64_t y = std::max<int64_t>(top, 0); y < std::min(bottom, height_); ++y) {
    for (int64_t x = std::max<int64_t>(left, 0); x < std::min(right, width_); ++x) {
      padded.at(y - top, x - left) = static_cast<float>(plane[index(y, x, width_)]);
    }
  }
  if (crop.scale == 1.0) return padded;
  const double offset_y = crop.top - static_cast<double>(top);
  const double offset_x = crop.left - static_cast<double>(left);
  const Box box{static_cast<float>(offset_x), static_cast<float>(offset_y),
                static_cast<float>(std::min(offset_x + extent_x, static_cast<double>(padded.width))),
                static_cast<float>(std::min(offset_y + extent_y, static_cast<double>(padded.height)))};
  return resize(padded, crop.height, crop.width, box);
}

NetworkInput Joint::network_input() const {
  NetworkInput input;
  input.height = planned().height;
  input.width = planned().width;
  input.image = resample(image_).values;
  const Plane upper = resample(masks_[0]), lower = resample(masks_[1]);
  const size_t pixels = upper.values.size();
  const auto fill = [&](auto inside) {
    bool overlaps = false;
    input.masks.resize(2 * pixels);
    for (size_t p = 0; p < pixels; ++p) {
      input.masks[p] = inside(upper.values[p]) ? 1.0F : 0.0F;
      input.masks[pixels + p] = inside(lower.values[p]) ? 1.0F : 0.0F;
      overlaps = overlaps || (input.masks[p] > 0 && input.masks[pixels + p] > 0);
    }
    return overlaps;
  };
  // An overlap may be thinner than a working pixel.
  if (!fill([](float share) { return share >= 0.5F; })) fill([](float share) { return share > 0; });
  return input;
}

std::vector<float> Joint::at_full_resolution(const Prediction& prediction, const NetworkInput& input,
                                             const Window& box) const {
  const Crop& crop = planned();
  const size_t pixels = static_cast<size_t>(input.height * input.width);
  Plane known(input.height, input.width);
  if (crop.scale != 1.0) {
    const auto mask = [&](size_t bone) {
      Mask drawn(pixels);
      for (size_t p = 0; p < pixels; ++p) drawn[p] = input.masks[bone * pixels + p] > 0 ? 1 : 0;
      return drawn;
    };
    const Mask zone =
        zone_of(mask(0), mask(1), input.height, input.width, prediction.physics.reach_px);
    std::copy(zone.begin(), zone.end(), known.values.begin());
  }
  std::vector<float> answers;
  answers.reserve(static_cast<size_t>(3 * box.height() * box.width()));
  for (size_t channel = 0; channel < 3; ++channel) {
    Plane plane(input.height, input.width);
    const float* values = channel < 2 ? prediction.share_logits.data() + channel * pixels
                                      : prediction.soft_tissue.data();
    std::copy_n(values, pixels, plane.values.begin());
    if (crop.scale == 1.0) {
      const int64_t y = box.top - static_cast<int64_t>(crop.top);
      const int64_t x = box.left - static_cast<int64_t>(crop.left);
      for (int64_t row = y; row < y + box.height(); ++row) {
        for (int64_t column = x; column < x + box.width(); ++column) {
          answers.push_back(plane.at(row, column));
        }
      }
      continue;
    }
    const auto at = [&](int64_t edge, double first, double least, double most) {
      return static_cast<float>(
          std::min(std::max((static_cast<double>(edge) - first) * crop.scale, least), most));
    };
    const double all = std::numeric_limits<double>::infinity(), none = -all;
    const Box part{at(box.left, crop.left, 0, all), at(box.top, crop.top, 0, all),
                   at(box.right, crop.left, none, static_cast<double>(crop.width)),
                   at(box.bottom, crop.top, none, static_cast<double>(crop.height))};
    const Plane resized = resize(extend(std::move(plane), known), box.height(), box.width(), part);
    answers.insert(answers.end(), resized.values.begin(), resized.values.end());
  }
  return answers;
}

std::vector<std::string> Joint::doubts_of_soft_tissue(const NetworkInput& input) const {
  const size_t pixels = input.image.size();
  Mask bones(pixels);
  std::vector<float> beside, alone;
  for (size_t p = 0; p < pixels; ++p) {
    bones[p] = input.masks[p] > 0 || input.masks[pixels + p] > 0 ? 1 : 0;
  }
  const Mask near = grown(bones, input.height, input.width, kSoftTissueNearPx);
  const Mask far = grown(bones, input.height, input.width, kSoftTissueFarPx);
  for (size_t p = 0; p < pixels; ++p) {
    if (far[p] && !near[p] && input.image[p] > kBlack) beside.push_back(input.image[p]);
    if ((input.masks[p] > 0) != (input.masks[pixels + p] > 0)) alone.push_back(input.image[p]);
  }
  if (beside.size() < static_cast<size_t>(kSoftTissueLeastPx)) {
    return {"no soft tissue is seen beside the bones near the overlap: a typical one was assumed"};
  }
  if (!alone.empty() && median(std::move(beside)) >= median(std::move(alone))) {
    return {"what lies beside the bones is as bright as they are: do the masks miss the bones?"};
  }
  return {};
}

Layers Joint::without_overlap() const {
  Layers layers;
  layers.upper.resize(image_.size());
  layers.lower = layers.reconstruction = layers.residual = layers.upper;
  for (size_t p = 0; p < image_.size(); ++p) {
    if (masks_[0][p]) layers.upper[p] = image_[p];
    if (masks_[1][p]) layers.lower[p] = image_[p];
    if (masks_[0][p] | masks_[1][p]) layers.reconstruction[p] = image_[p];
  }
  return layers;
}

Layers Joint::split(const Prediction& prediction, const NetworkInput& input) const {
  const Physics& physics = prediction.physics;
  const double wide = static_cast<double>(physics.reach_px) / planned().scale;
  const int64_t reach_px =
      physics.reach_px > 0 ? std::max<int64_t>(1, std::llrint(wide)) : 0;  // as round() of Python
  const Mask zone = seen(zone_of(masks_[0], masks_[1], height_, width_, reach_px));
  const Window box = bounding_box(zone, zone, true, height_, width_);
  const int64_t pixels = box.height() * box.width();
  const auto cut = [&](const auto& plane, auto& target) {
    for (int64_t y = box.top; y < box.bottom; ++y) {
      const auto row = plane.begin() + y * width_;
      target.insert(target.end(), row + box.left, row + box.right);
    }
  };
  std::vector<float> image, separated(static_cast<size_t>(2 * pixels)),
      composed(static_cast<size_t>(pixels));
  Mask supports, inside;
  cut(image_, image);
  cut(masks_[0], supports);
  cut(masks_[1], supports);
  cut(zone, inside);
  for (size_t p = 0; p < supports.size(); ++p) supports[p] |= inside[p % inside.size()];
  const std::vector<float> answers = at_full_resolution(prediction, input, box);
  const float* tissue = answers.data() + 2 * pixels;
  const View soft_tissue = view(tissue, 1, pixels, DType::kFloat32);
  const Shape shape{1, 2, box.height(), box.width()};
  const CpuContext context;

  SplitAttenuation split;
  split.shape = shape;
  split.share_logits = view(answers.data(), 2, pixels, DType::kFloat32);
  split.image = view(image.data(), 1, pixels, DType::kFloat32);
  split.masks = view(supports.data(), 2, pixels, DType::kUInt8);
  split.soft_tissue = soft_tissue;
  split.layers = output(separated, 2, pixels);
  split.law = physics.law;
  run_cpu(split, context);

  ComposeLayers compose;
  compose.shape = shape;
  compose.layers = view(separated.data(), 2, pixels, DType::kFloat32);
  compose.masks = split.masks;
  compose.soft_tissue = soft_tissue;
  compose.composed = output(composed, 1, pixels);
  compose.law = physics.law;
  run_cpu(compose, context);

  Layers layers = without_overlap();
  int64_t counted = 0;
  for (int64_t y = 0; y < box.height(); ++y) {
    for (int64_t x = 0; x < box.width(); ++x) {
      const size_t target = index(box.top + y, box.left + x, width_);
      if (!zone[target]) continue;
      const size_t source = index(y, x, box.width());
      layers.upper[target] = separated[source];
      layers.lower[target] = separated[source + static_cast<size_t>(pixels)];
      layers.reconstruction[target] = composed[source];
      layers.residual[target] = image_[target] - composed[source];
      layers.soft_tissue += static_cast<double>(tissue[source]);
      ++counted;
    }
  }
  layers.soft_tissue /= static_cast<double>(counted);
  layers.notes = doubts_of_soft_tissue(input);
  return layers;
}

}  // namespace blsgan::runner
