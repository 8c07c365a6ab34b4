#include "joint.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "failure.h"
#include "ops.h"

namespace blsgan::runner {
namespace {

using joint::Mask;

size_t index(int64_t y, int64_t x, int64_t width) { return static_cast<size_t>(y * width + x); }

float median(std::vector<float> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
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

// A contiguous [1,channels,pixels] tensor.
View view(const void* data, int64_t channels, int64_t pixels, DType dtype) {
  return {data, channels * pixels, pixels, 1, dtype};
}
MutableView output(std::vector<float>& values, int64_t channels, int64_t pixels) {
  return {values.data(), channels * pixels, pixels, 1, DType::kFloat32};
}

}  // namespace

Joint::Joint(int64_t height, int64_t width, std::vector<float> image, const Mask& upper,
             const Mask& lower)
    : height_(height), width_(width), image_(std::move(image)), masks_(upper) {
  masks_.insert(masks_.end(), lower.begin(), lower.end());
  float low = 2, high = -1;
  int64_t covered = 0;
  for (size_t p = 0; p < image_.size(); ++p) {
    overlap_px_ += upper[p] & lower[p];
    if (!(upper[p] | lower[p])) continue;
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
  window_ = joint::around_overlap(masks(), kSizeMultiple);
  const auto count = [](const Mask& mask) { return std::count(mask.begin(), mask.end(), 1); };
  const double smaller = static_cast<double>(std::min(count(upper), count(lower)));
  if (static_cast<double>(overlap_px_) > 0.6 * smaller) {
    notes_.emplace_back("the masks cover mostly the same pixels: do both show one bone?");
  } else if (mean_row(upper, height_, width_) > mean_row(lower, height_, width_)) {
    notes_.emplace_back(
        "the upper mask lies below the lower one: are the two masks swapped?");
  }
}

int64_t Joint::covered_px() const {
  int64_t count = 0;
  for (size_t p = 0; p < image_.size(); ++p) count += masks_[p] | masks()[1][p];
  return count;
}

const joint::Window& Joint::planned() const {
  if (!window_) throw std::logic_error("only joints with an overlap go through the network");
  return *window_;
}

NetworkInput Joint::network_input() const {
  const joint::Window& window = planned();
  NetworkInput input;
  input.height = window.height;
  input.width = window.width;
  input.image = window.resample(image_.data(), height_, width_);
  const std::vector<float> upper = window.resample(masks()[0], height_, width_);
  const std::vector<float> lower = window.resample(masks()[1], height_, width_);
  const size_t pixels = upper.size();
  const auto fill = [&](auto inside) {
    bool overlaps = false;
    input.masks.resize(2 * pixels);
    for (size_t p = 0; p < pixels; ++p) {
      input.masks[p] = inside(upper[p]) ? 1.0F : 0.0F;
      input.masks[pixels + p] = inside(lower[p]) ? 1.0F : 0.0F;
      overlaps = overlaps || (input.masks[p] > 0 && input.masks[pixels + p] > 0);
    }
    return overlaps;
  };
  // An overlap may be thinner than a working pixel.
  if (!fill([](float share) { return share >= 0.5F; })) fill([](float share) { return share > 0; });
  return input;
}

// Share logits and soft tissue [3,h,w] on the image's pixels of `box`.
std::vector<float> Joint::at_full_resolution(const Prediction& prediction, const NetworkInput& input,
                                             const joint::Box& box) const {
  const joint::Window& window = planned();
  std::vector<float> answers = prediction.share_logits;
  answers.insert(answers.end(), prediction.soft_tissue.begin(), prediction.soft_tissue.end());
  if (!window.aligned()) {
    const Mask drawn(input.masks.begin(), input.masks.end());
    const Mask known =
        joint::zone({drawn.data(), 2, input.height, input.width}, prediction.physics.reach_px);
    joint::extend(answers.data(), 3, known, input.height, input.width);
  }
  std::vector<float> restored(static_cast<size_t>(3 * box.height() * box.width()));
  for (int64_t channel = 0; channel < 3; ++channel) {
    window.restore(answers.data() + channel * input.height * input.width, box,
                   restored.data() + channel * box.height() * box.width(), box.width());
  }
  return restored;
}

std::vector<std::string> Joint::doubts_of_soft_tissue(const NetworkInput& input) const {
  const size_t pixels = input.image.size();
  Mask bones(pixels);
  std::vector<float> beside, alone;
  for (size_t p = 0; p < pixels; ++p) {
    bones[p] = input.masks[p] > 0 || input.masks[pixels + p] > 0 ? 1 : 0;
  }
  const Mask near = joint::grown(bones, input.height, input.width, kSoftTissueNearPx);
  const Mask far = joint::grown(bones, input.height, input.width, kSoftTissueFarPx);
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
    const bool upper = masks()[0][p] != 0, lower = masks()[1][p] != 0;
    if (upper) layers.upper[p] = image_[p];
    if (lower) layers.lower[p] = image_[p];
    if (upper || lower) layers.reconstruction[p] = image_[p];
  }
  return layers;
}

Layers Joint::split(const Prediction& prediction, const NetworkInput& input) const {
  const Physics& physics = prediction.physics;
  Mask zone(image_.size()), supports, inside;
  planned().zone(masks(), physics.reach_px, zone.data());
  const joint::Box box = joint::bounding_box({zone.data(), 1, height_, width_}, true);
  const int64_t pixels = box.height() * box.width();
  std::vector<float> image, separated(static_cast<size_t>(2 * pixels)),
      composed(static_cast<size_t>(pixels));
  joint::cut(image_.data(), height_, width_, box, image);
  joint::cut(masks()[0], height_, width_, box, supports);
  joint::cut(masks()[1], height_, width_, box, supports);
  joint::cut(zone.data(), height_, width_, box, inside);
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
      const size_t source = index(y, x, box.width());
      if (!inside[source]) continue;
      const size_t target = index(box.top + y, box.left + x, width_);
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
