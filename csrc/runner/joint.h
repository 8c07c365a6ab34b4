// blsgan/joint/window.py and blsgan/tasks/separation.py without Python: the window around one overlap,
// what the network gets, and the layers from what it answers. The same arithmetic in the same order, so the same bits.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "resample.h"

namespace blsgan::runner {

// Top, left, bottom, right (past the end) in image pixels.
struct Window {
  int64_t top = 0, left = 0, bottom = 0, right = 0;
  int64_t height() const { return bottom - top; }
  int64_t width() const { return right - left; }
};

// Where the network looks: `top` and `left` in image pixels (whole where scale is 1, may be negative),
// `height` and `width` in working pixels.
struct Crop {
  double scale = 1;
  double top = 0, left = 0;
  int64_t height = 0, width = 0;
};

// image [1,h,w], masks [2,h,w] in {0,1}, contiguous.
struct NetworkInput {
  int64_t height = 0, width = 0;
  std::vector<float> image, masks;
};

// What a model says of the separation it is for: H and W are multiples of size_multiple, layers
// compose by the law, and a bone's picture reaches so many working pixels beyond its mask.
struct Physics {
  int64_t size_multiple = 8;
  double law = 0;
  int64_t reach_px = 0;
};

// share_logits [2,h,w] and soft_tissue [1,h,w].
struct Prediction {
  std::vector<float> share_logits, soft_tissue;
  Physics physics;
};

// float32 [H,W] each, as blsgan.Separation has them, the mean soft tissue in the zone, and what is
// doubtful about it.
struct Layers {
  std::vector<float> upper, lower, reconstruction, residual;
  double soft_tissue = 0;
  std::vector<std::string> notes;
};

// Median width of the bones in blsgan's training images and what else blsgan/joint/window.py names.
constexpr double kTypicalBoneWidthPx = 165.0;
constexpr double kSameScaleLow = 0.70, kSameScaleHigh = 1.45;
constexpr double kMaxScale = 4.0;
constexpr int64_t kContextRowsPx = 24, kContextColumnsPx = 32;
constexpr int64_t kCropMultiple = 8;
constexpr int64_t kMaxCropAreaPx = int64_t{512} * 512;
// blsgan/joint/zone.py
constexpr int64_t kSoftTissueNearPx = 3, kSoftTissueFarPx = 14, kSoftTissueLeastPx = 20;
constexpr float kBlack = 0.02F;

class Joint {
 public:
  // `image` [H,W] in [0,1], masks [H,W] of 0 and 1, each neither empty nor full. Throws Failure for
  // two masks that are one, that cover the picture, or an image that is constant under the bones.
  Joint(int64_t height, int64_t width, std::vector<float> image, std::vector<uint8_t> upper,
        std::vector<uint8_t> lower);

  const std::optional<Crop>& crop() const { return crop_; }
  const std::vector<std::string>& notes() const { return notes_; }
  int64_t height() const { return height_; }
  int64_t width() const { return width_; }
  int64_t overlap_px() const { return overlap_px_; }
  int64_t covered_px() const;

  NetworkInput network_input() const;

  // The layers in the zone that both bones' pictures reach, from what the network said about
  // network_input().
  Layers split(const Prediction& prediction, const NetworkInput& input) const;

  // The layers of bones that do not overlap: the image inside each mask.
  Layers without_overlap() const;

 private:
  const Crop& planned() const;
  std::vector<uint8_t> seen(std::vector<uint8_t> zone) const;
  template <typename T>
  Plane resample(const std::vector<T>& plane) const;
  std::vector<float> at_full_resolution(const Prediction& prediction, const NetworkInput& input,
                                        const Window& box) const;
  std::vector<std::string> doubts_of_soft_tissue(const NetworkInput& input) const;

  int64_t height_, width_;
  std::vector<float> image_;
  std::vector<uint8_t> masks_[2], overlap_;
  int64_t overlap_px_ = 0;
  std::optional<Crop> crop_;
  std::vector<std::string> notes_;
};

// Geometric mean of the bones' widths across the joint's axis, in pixels (blsgan/joint/geometry.py).
double bone_width_px(const std::vector<uint8_t>& upper, const std::vector<uint8_t>& lower,
                     int64_t height, int64_t width);

}  // namespace blsgan::runner
