// blsgan/tasks/separation.py without Python: what the network gets of one overlap, and the layers from
// what it answers. The same arithmetic in the same order, so the same bits.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "joint/window.h"

namespace blsgan::runner {

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

constexpr int64_t kSizeMultiple = 8;
// blsgan/joint/zone.py
constexpr int64_t kSoftTissueNearPx = 3, kSoftTissueFarPx = 14, kSoftTissueLeastPx = 20;
constexpr float kBlack = 0.02F;

class Joint {
 public:
  // `image` [H,W] in [0,1], masks [H,W] of 0 and 1, each neither empty nor full. Throws Failure for
  // two masks that are one, that cover the picture, or an image that is constant under the bones.
  Joint(int64_t height, int64_t width, std::vector<float> image, const joint::Mask& upper,
        const joint::Mask& lower);

  const std::optional<joint::Window>& window() const { return window_; }
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
  const joint::Window& planned() const;
  joint::Masks masks() const { return {masks_.data(), 2, height_, width_}; }
  std::vector<float> at_full_resolution(const Prediction& prediction, const NetworkInput& input,
                                        const joint::Box& box) const;
  std::vector<std::string> doubts_of_soft_tissue(const NetworkInput& input) const;

  int64_t height_, width_;
  std::vector<float> image_;
  joint::Mask masks_;  // [2,H,W]
  int64_t overlap_px_ = 0;
  std::optional<joint::Window> window_;
  std::vector<std::string> notes_;
};

}  // namespace blsgan::runner
