// Where bones' pictures reach beyond their masks (blsgan/joint/zone.py).

#pragma once

#include <cstdint>
#include <vector>

namespace blsgan::joint {

using Mask = std::vector<uint8_t>;  // [H,W]; 0, or not; what is returned has 0 and 1

// Masks [N,H,W], 0 and not 0, contiguous and somebody else's.
struct Masks {
  const uint8_t* values;
  int64_t count, height, width;

  const uint8_t* operator[](int64_t bone) const { return values + bone * height * width; }
};

// `mask` [H,W] dilated by `reach_px`: squares and crosses in turn, which is nearly round.
Mask grown(Mask mask, int64_t height, int64_t width, int64_t reach_px);

// Where at least two of the masks, each dilated by `reach_px`, cover a pixel that lies in one of
// them or in a gap between them no wider than the reach.
Mask zone(const Masks& masks, int64_t reach_px);

// Carries values [channels,H,W] four pixels outwards from where they are known; 0 beyond. A network
// answers for the zone only, and interpolation must not take in what lies outside.
void extend(float* values, int64_t channels, const Mask& known, int64_t height, int64_t width);

}  // namespace blsgan::joint
