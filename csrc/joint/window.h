// Windows of a picture: where they lie, what is cut out by them, and the way back. One arithmetic
// for Python (csrc/numpy/joint.cpp) and for the runner, so the same bits.
//
// A network knows bones of one size. What it is given is a window of the picture at the *working
// scale*, at which the bones have that size, and what it answers is brought back to the picture's
// pixels.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "joint/zone.h"

namespace blsgan::joint {

// Width of a bone across the joint's axis in the public dataset's 256x256 images: median over 1194
// images of the two bones' geometric mean (90th percentile of the chords); the range is 124 to 223.
constexpr double kTypicalBoneWidthPx = 165.0;

// Bones whose width is within these multiples of the typical one are not resampled; the dataset's
// own images lie between 0.75 and 1.35.
constexpr double kSameScaleLow = 0.70, kSameScaleHigh = 1.45;

// A smaller picture is enlarged at most this much: there is no detail to be had from more.
constexpr double kMaxScale = 4.0;

// Surroundings of the overlap that a network sees, above and below it and to its sides, in pixels
// at working scale. Soft tissue lies beside the bones: with 12 px to the sides 79 % of the public
// dataset's overlaps show hardly any, with 32 px 1 %.
constexpr int64_t kContextRowsPx = 24, kContextColumnsPx = 32;

// Windows are kept below this by a smaller working scale, so memory is bounded whatever the masks.
constexpr int64_t kMaxAreaPx = int64_t{512} * 512;

// Top, left, bottom, right (past the end) in image pixels.
struct Box {
  int64_t top = 0, left = 0, bottom = 0, right = 0;
  int64_t height() const { return bottom - top; }
  int64_t width() const { return right - left; }
};

// Appends what of a plane [H,W] lies in the box, 0 where that reaches beyond.
template <typename To, typename From>
void cut(const From* plane, int64_t height, int64_t width, const Box& box, std::vector<To>& target) {
  const size_t start = target.size();
  target.resize(start + static_cast<size_t>(box.height() * box.width()));
  const int64_t left = std::max<int64_t>(box.left, 0), right = std::min(box.right, width);
  if (left >= right) return;
  for (int64_t y = std::max<int64_t>(box.top, 0); y < std::min(box.bottom, height); ++y) {
    std::copy(plane + y * width + left, plane + y * width + right,
              target.begin() + static_cast<std::ptrdiff_t>(start) + (y - box.top) * box.width() +
                  (left - box.left));
  }
}

// Of the pixels that every mask covers (`all`), or any; `bottom` is 0 where there are none.
Box bounding_box(const Masks& masks, bool all);

// How wide two bones are across the joint's axis, in pixels: the geometric mean of the 90th
// percentiles of their chords. Throws std::invalid_argument where a mask is empty.
double bone_width_px(const Masks& masks);

// Working pixels per image pixel: 1 for bones of about the dataset's size.
double working_scale(const Masks& masks);

struct Window {
  double top = 0, left = 0;         // where it begins, in image pixels; may be negative
  int64_t height = 0, width = 0;    // in working pixels
  double scale = 1;                 // working pixels per image pixel

  // Whether its pixels are the image's, so that nothing is resampled.
  bool aligned() const;

  // The pixels of a picture that lie wholly inside the window.
  Box box(int64_t image_height, int64_t image_width) const;

  // Where layers are estimated, for a reach in working pixels, into the pixels of box() of `whole`
  // [H,W]. Bones that only touch far beside their overlap stay as they are.
  void zone(const Masks& masks, int64_t reach_px, uint8_t* whole) const;

  // One of the masks dilated by so many working pixels, into the pixels of box() of `whole` [H,W].
  void grow(const Masks& masks, int64_t bone, int64_t margin_px, uint8_t* whole) const;

  // [height,width] of `plane` [H,W]; 0 outside the image.
  template <typename T>
  std::vector<float> resample(const T* plane, int64_t image_height, int64_t image_width) const;

  // `plane` [height,width] on the image's pixels of `box`, which lies inside the window, to `out`,
  // whose rows begin `stride` values apart.
  void restore(const float* plane, const Box& box, float* out, int64_t stride) const;

 private:
  int64_t reach_in_image_px(int64_t reach_px) const;
};

// What a network sees of the overlap of two masks: the overlap and its surroundings at working
// scale, inside the image where that is large enough. Both sides are multiples of `size_multiple`,
// at least twice that. None where there is no overlap.
std::optional<Window> around_overlap(const Masks& masks, int64_t size_multiple);

}  // namespace blsgan::joint
