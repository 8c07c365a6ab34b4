// The formulas of blsgan, each written once and used by every kernel, host and device.
//
// Symbols: `layer` is one bone with the soft tissue around it, as displayed, `covered` says whether
// that bone's mask covers the pixel, `coverage` (n) counts the covering bones, `soft_tissue` (k) is
// the displayed intensity of soft tissue alone, which n composed layers count n - 1 times too often.
// Attenuations A add up along a ray; a law says how a display x shows them:
//
//     A(composed) = sum_i A(layer_i) - (n - 1) A(k)                  over the covering bones
//
//     law = 0      A(x) = -log(1 - x)         the display is 1 - transmission
//     law = b > 0  A(x) = exp(b x) - 1        the display is a logarithm of attenuation
//
// Source: Beer-Lambert law; Wang et al., "BLS-GAN", AAAI 2025 (arXiv 2409.07304) for n = 2, law = 0.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "macros.h"

namespace blsgan {

// Soft tissue is never denser than this; nothing is ever divided by less than 1 - kSoftTissueMax.
// Outside [0, kSoftTissueMax] the value is clamped and its gradient is zero (as torch.clamp).
constexpr double kSoftTissueMax = 0.95;
// A pixel at exactly 1 would have infinite attenuation; its transmission is held at 2^-24, one
// rounding step of float32 below white, in every precision, so that all precisions agree.
constexpr double kTransmissionMin = 1.0 / 16777216.0;
// A law is 0 or an exponent of [1, 20]: below 1 it would be a sum of intensities, which float32
// loses in the logarithm of numbers near 1, above 20 a white pixel's attenuation passes 5e8.
constexpr double kLawMin = 1.0, kLawMax = 20.0;
BLSGAN_HD bool is_law(double law) { return law == 0.0 || (law >= kLawMin && law <= kLawMax); }

// ------------------------------------------------------------------------------------------------
// Elementary functions. On the host in float32 they are branch-free polynomials that a compiler
// turns into vector code (relative error below 2e-7 on the stated domain; NaN stays NaN); elsewhere
// they are the platform's own.

namespace detail {

BLSGAN_HD float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

BLSGAN_HD uint32_t bits_of_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

BLSGAN_HD double keep_if(bool keep, double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  bits &= uint64_t{0} - static_cast<uint64_t>(keep);
  memcpy(&value, &bits, sizeof bits);
  return value;
}

BLSGAN_HD float keep_if(bool keep, float value) {
  return float_of_bits(bits_of_float(value) & (0u - static_cast<uint32_t>(keep)));
}

// log(1 + f) for f in [sqrt(1/2) - 1, sqrt(2) - 1]; minimax fit of (log1p(f) - f + f^2/2) / f^3.
BLSGAN_HD float log1p_near_zero(float f) {
  float p = -0.0830638f;
  p = p * f + 0.12800372f;
  p = p * f - 0.12943667f;
  p = p * f + 0.14190075f;
  p = p * f - 0.16643459f;
  p = p * f + 0.20001884f;
  p = p * f - 0.2500028f;
  p = p * f + 0.33333325f;
  return f + (f * f) * (f * p - 0.5f);
}

constexpr float kLn2 = 0.693147180559945f;

}  // namespace detail

// `value` where `keep`, else 0, without a branch: compilers join conditionals on the same mask into
// control flow, which then does not vectorise. NaN that is not kept is gone.
using detail::keep_if;

// exp(x) for x <= 80; 0 below -87.
BLSGAN_HD float exp_bounded(float x) {
#if defined(__CUDA_ARCH__)
  return ::expf(x);
#else
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const float clamped = x < -87.0f ? -87.0f : x;
  const float shifted = clamped * 1.44269504088896f + magic;
  const float n = shifted - magic;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  float p = 0.0013941207f;  // minimax fit of (exp(r) - 1 - r) / r^2 on [-ln2/2, ln2/2]
  p = p * r + 0.008363235f;
  p = p * r + 0.041666374f;
  p = p * r + 0.16666576f;
  p = p * r + 0.5f;
  const float mantissa = 1.0f + (r + (r * r) * p);
  const float scale = detail::float_of_bits((detail::bits_of_float(shifted) << 23) + 0x3f800000u);
  return x < -87.0f ? 0.0f : mantissa * scale;
#endif
}

BLSGAN_HD double exp_bounded(double x) { return ::exp(x); }

// log(x) for finite x in the normal range.
BLSGAN_HD float log_positive(float x) {
#if defined(__CUDA_ARCH__)
  return ::logf(x);
#else
  const uint32_t offset = detail::bits_of_float(x) - 0x3f3504f3u;  // bits of sqrt(1/2)
  const int32_t exponent = static_cast<int32_t>(offset) >> 23;
  const float m = detail::float_of_bits((offset & 0x007fffffu) + 0x3f3504f3u);
  const float value =
      static_cast<float>(exponent) * detail::kLn2 + detail::log1p_near_zero(m - 1.0f);
  return value + (x - x);  // NaN in, NaN out
#endif
}

BLSGAN_HD double log_positive(double x) { return ::log(x); }

// log(1 + e) for e in [0, 1].
BLSGAN_HD float log1p_unit(float e) {
#if defined(__CUDA_ARCH__)
  return ::log1pf(e);
#else
  const bool upper = e > 0.41421356f;
  const float f = upper ? (e - 1.0f) * 0.5f : e;
  return (upper ? detail::kLn2 : 0.0f) + detail::log1p_near_zero(f);
#endif
}

BLSGAN_HD double log1p_unit(double e) { return ::log1p(e); }

// ------------------------------------------------------------------------------------------------
// Soft tissue

template <typename T>
BLSGAN_HD T clamp_soft_tissue(T k) {
  const T top = static_cast<T>(kSoftTissueMax);
  return k < T(0) ? T(0) : (k > top ? top : k);
}

template <typename T>
BLSGAN_HD bool soft_tissue_has_gradient(T k) {
  return !(k < T(0)) && !(k > static_cast<T>(kSoftTissueMax));
}

template <typename T>
BLSGAN_HD T clamp_unit(T value) {
  return value < T(0) ? T(0) : (value > T(1) ? T(1) : value);
}

// ------------------------------------------------------------------------------------------------
// The laws. Each has the same members, so that a kernel is written once:
//     attenuation(x), attenuation_slope(x, A(x))  A and dA/dx of a display, clamped to where A is
//                                                 finite and not negative, with zero slope there
//     display(A), display_slope(A)                its inverse and dx/dA
//     start, add, value                           composes a pixel, layer by layer
//     term(layer)                                 what add takes of a layer
//     layer_slope, soft_slope                     d value / d layer and / d k
// `soft` stands for soft_factor(k), what compose makes of soft tissue.

// What is known of a pixel after some of its layers.
template <typename T>
struct Composition {
  T bones;     // the layers' terms: their product (law = 0) or their sum
  T soft;      // the soft tissue in excess: prod 1/(1 - k) (law = 0) or sum exp(b k)
  T single;    // sum of the covering layers: the pixel itself where one bone covers it
  T coverage;  // number of covering bones
};

// A value with its derivative, which is 0 where the value is clamped.
template <typename T>
struct Sloped {
  T value, slope;
};

template <typename T>
BLSGAN_HD T clamp_transmission(T image) {
  const T low = static_cast<T>(kTransmissionMin);
  const T transmission = T(1) - image;
  return transmission < low ? low : (transmission > T(1) ? T(1) : transmission);
}

template <typename T>
struct TransmissionLaw {
  static constexpr bool kNeedsOthers = true;  // layer_slope depends on `others`

  BLSGAN_HD explicit TransmissionLaw(double = 0.0) {}

  BLSGAN_HD T attenuation(T display) const { return -log_positive(clamp_transmission(display)); }
  BLSGAN_HD T attenuation_slope(T display, T) const {
    const bool inside = !(display < T(0)) && !(T(1) - display < static_cast<T>(kTransmissionMin));
    return keep_if(inside, T(1) / clamp_transmission(display));
  }
  BLSGAN_HD T display(T attenuation) const { return T(1) - exp_bounded(-attenuation); }
  BLSGAN_HD T display_slope(T attenuation) const { return exp_bounded(-attenuation); }

  BLSGAN_HD Sloped<T> soft_factor(T k) const {
    const T value = T(1) / (T(1) - clamp_soft_tissue(k));
    return {value, keep_if(soft_tissue_has_gradient(k), value)};
  }
  BLSGAN_HD static Composition<T> start() { return {T(1), T(1), T(0), T(0)}; }
  BLSGAN_HD T term(T layer) const { return T(1) - layer; }
  // `covered` is 0 or 1; whatever a layer holds outside its mask (NaN included) has no effect.
  BLSGAN_HD void add(Composition<T>& pixel, T layer, T covered, T soft) const {
    const T value = keep_if(covered != T(0), layer);
    pixel.bones *= term(value);
    pixel.soft *= covered * pixel.coverage != T(0) ? soft : T(1);
    pixel.single += value;
    pixel.coverage += covered;
  }
  // With one covering bone the pixel is that layer, bit for bit.
  BLSGAN_HD T value(const Composition<T>& pixel) const {
    const T shared = T(1) - pixel.bones * pixel.soft;
    return pixel.coverage > T(1) ? shared : pixel.single;
  }
  // Of a covering layer; `others` is the product of the other covering layers' terms.
  BLSGAN_HD T layer_slope(const Composition<T>& pixel, T, T others) const {
    return others * pixel.soft;
  }
  BLSGAN_HD T soft_slope(const Composition<T>& pixel, T factor_slope) const {
    const T slope = (T(1) - pixel.coverage) * pixel.bones * pixel.soft * factor_slope;
    return keep_if((pixel.coverage > T(1)) & (factor_slope != T(0)), slope);
  }
};

template <typename T>
struct ExponentialLaw {
  static constexpr bool kNeedsOthers = false;
  T exponent, inverse;

  BLSGAN_HD explicit ExponentialLaw(double law)
      : exponent(static_cast<T>(law)), inverse(T(1) / static_cast<T>(law)) {}

  BLSGAN_HD T attenuation(T display) const {
    return exp_bounded(exponent * clamp_unit(display)) - T(1);
  }
  BLSGAN_HD T attenuation_slope(T display, T attenuation) const {
    const bool inside = !(display < T(0)) && !(display > T(1));
    return keep_if(inside, exponent * (T(1) + attenuation));
  }
  BLSGAN_HD T display(T attenuation) const { return inverse * log_positive(T(1) + attenuation); }
  BLSGAN_HD T display_slope(T attenuation) const { return inverse / (T(1) + attenuation); }

  BLSGAN_HD Sloped<T> soft_factor(T k) const {
    const T value = exp_bounded(exponent * clamp_soft_tissue(k));
    return {value, keep_if(soft_tissue_has_gradient(k), value)};
  }
  BLSGAN_HD static Composition<T> start() { return {T(0), T(0), T(0), T(0)}; }
  // Far off the displays of [0,1] the exponential is held, so that sums of it stay finite.
  BLSGAN_HD T term(T layer) const {
    const T power = exponent * layer;
    return exp_bounded(power < T(-80) ? T(-80) : (power > T(80) ? T(80) : power));
  }
  BLSGAN_HD void add(Composition<T>& pixel, T layer, T covered, T soft) const {
    const T value = keep_if(covered != T(0), layer);
    pixel.bones += keep_if(covered != T(0), term(value));
    pixel.soft += covered * pixel.coverage != T(0) ? soft : T(0);
    pixel.single += value;
    pixel.coverage += covered;
  }
  // Layers that were not split from an image may hold less than the soft tissue counted twice.
  // Below a display of 0 the logarithm goes on as its tangent: finite, and with a gradient that
  // leads back.
  BLSGAN_HD T value(const Composition<T>& pixel) const {
    const T sum = pixel.bones - pixel.soft;
    const T logarithm = log_positive(sum > T(1) ? sum : T(1));
    const T shared = inverse * (sum > T(1) ? logarithm : sum - T(1));
    return pixel.coverage > T(1) ? shared : pixel.single;
  }
  BLSGAN_HD T layer_slope(const Composition<T>& pixel, T term, T) const {
    return pixel.coverage > T(1) ? term * inverse_sum(pixel) : T(1);
  }
  BLSGAN_HD T soft_slope(const Composition<T>& pixel, T factor_slope) const {
    const T slope = (T(1) - pixel.coverage) * inverse_sum(pixel) * factor_slope;
    return keep_if((pixel.coverage > T(1)) & (factor_slope != T(0)), slope);
  }

 private:
  BLSGAN_HD static T inverse_sum(const Composition<T>& pixel) {
    const T sum = pixel.bones - pixel.soft;
    return T(1) / (sum > T(1) ? sum : T(1));
  }
};

// ------------------------------------------------------------------------------------------------
// Split: the inverse, exact by construction. Inside an overlap of n bones with shares r_i of bone
// that sum to 1 the layers' attenuations are a + r_i (A - a), with A = A(image), a = A(k): as
// compose asks, they sum to A + (n - 1) a. A bone without a share shows soft tissue alone. Where the
// image is darker than soft tissue, A < a, the same holds: each A_i lies between A and a.

// a with da/dk.
template <typename T, typename Law>
BLSGAN_HD Sloped<T> soft_attenuation(const Law& law, T k) {
  const T clamped = clamp_soft_tissue(k), a = law.attenuation(clamped);
  return {a, keep_if(soft_tissue_has_gradient(k), law.attenuation_slope(clamped, a))};
}

// A_i = a + r_i (A - a); `bone` is A - a, what the bones share.
template <typename T>
BLSGAN_HD T layer_attenuation(T share, T bone, T soft) {
  return soft + share * bone;
}

// The shares of two covering bones: the softmax of their logits, with one exponential instead of
// two. As in a softmax, +infinity gives NaN.
template <typename T>
struct PairShares {
  T first, second;

  BLSGAN_HD PairShares(T logit0, T logit1) {
    const T difference = logit0 - logit1;
    const bool lower = difference < T(0);
    const T largest = lower ? logit1 : logit0;
    const T e = exp_bounded(lower ? difference : -difference) + (largest - largest);
    const T inverse = T(1) / (T(1) + e);
    first = lower ? e * inverse : inverse;
    second = lower ? inverse : e * inverse;
  }
};

// The gradient of the logit of share r_i of more than two is proportional to
//     r_i (g_i - sum_j r_j g_j),        g_i that of the share;
// these sum to 0 over the bones. Where r_i is nearly 1 the difference has lost its digits, so that
// one, the only share that can be above one half, is minus the sum of the others'.
template <typename T>
BLSGAN_HD T other_logit_gradient(T share, T grad_share, T mean_grad_share) {
  return share > T(0.5) ? T(0) : share * (grad_share - mean_grad_share);
}
template <typename T>
BLSGAN_HD T logit_gradient(T share, T grad_share, T mean_grad_share, T sum_of_others) {
  return share > T(0.5) ? -sum_of_others : share * (grad_share - mean_grad_share);
}

// ------------------------------------------------------------------------------------------------
// Root mean square error, from its sums

BLSGAN_HD double root_mean_square(double sum_of_squares, double count) {
  return count > 0.0 ? ::sqrt(sum_of_squares / count) : 0.0;
}

// d rmse / d difference, per unit of difference. The root has no derivative at 0, its minimum: the
// gradient there is 0.
BLSGAN_HD double root_mean_square_slope(double rmse, double count) {
  return rmse == 0.0 ? 0.0 : 1.0 / (rmse * count);
}

// ------------------------------------------------------------------------------------------------
// Sigmoid with its cross entropy, finite for every finite logit

template <typename T>
struct SigmoidSlope {
  T e;      // exp(-|z|)
  T value;  // p
  T slope;  // p (1 - p)

  BLSGAN_HD explicit SigmoidSlope(T z) {
    e = exp_bounded(z < T(0) ? z : -z);
    const T inverse = T(1) / (T(1) + e);
    const T other = e * inverse;
    value = z < T(0) ? other : inverse;
    slope = other * inverse;
  }
};
template <typename T>
struct Sigmoid : SigmoidSlope<T> {
  T softplus;  // log(1 + exp(-|z|)): -log p = softplus + max(-z, 0)

  BLSGAN_HD explicit Sigmoid(T z) : SigmoidSlope<T>(z) { softplus = log1p_unit(this->e); }
};

// Binary cross entropy of a sigmoid's logit against a target of 0 or 1.
template <typename T>
BLSGAN_HD T cross_entropy(T z, T softplus, T target) {
  return softplus + (z > T(0) ? z : T(0)) - z * target;
}

// What a supervisor loss adds up, and what its gradient is made of.
//     loss = w_bce (BCE + BCE_overlap) + w_dice (Dice + Dice_overlap)
// with Dice = 1 - (2 sum p t + 1) / (sum p + sum t + 1): smoothed by one pixel, so that two empty
// masks agree perfectly. BCEs are means over all elements of the logits.
struct SupervisorSums {
  double cross_entropy, p_and_target, p, target, overlap_entropy, p_in_overlap, overlap;
};
struct SupervisorStatistics {
  double loss;
  double entropy;          // of p - target
  double overlap_entropy;  // of p - 1 in the overlap
  double dice, dice_target, dice_overlap;  // of p (1 - p): everywhere, times target, in overlap
};

BLSGAN_HD SupervisorStatistics supervisor_statistics(const SupervisorSums& s, double elements,
                                                     bool hybrid) {
  if (!hybrid) return {s.cross_entropy / elements, 1.0 / elements, 0.0, 0.0, 0.0, 0.0};
  const double weight = 0.5;
  const double up = 2.0 * s.p_and_target + 1.0, down = s.p + s.target + 1.0;
  const double up_overlap = 2.0 * s.p_in_overlap + 1.0;
  const double down_overlap = s.p_in_overlap + s.overlap + 1.0;
  SupervisorStatistics r;
  r.loss = weight * ((s.cross_entropy + s.overlap_entropy) / elements + (1.0 - up / down) +
                     (1.0 - up_overlap / down_overlap));
  r.entropy = weight / elements;
  r.overlap_entropy = weight / elements;
  r.dice = weight * up / (down * down);
  r.dice_target = -weight * 2.0 / down;
  r.dice_overlap = weight * (up_overlap - 2.0 * down_overlap) / (down_overlap * down_overlap);
  return r;
}

// The same coefficients in the kernel's arithmetic, scaled by the incoming gradient.
template <typename T>
struct SupervisorSlopes {
  T entropy, overlap_entropy, dice, dice_target, dice_overlap;

  BLSGAN_HD SupervisorSlopes(const double* statistics, double grad)
      : entropy(static_cast<T>(grad * statistics[0])),
        overlap_entropy(static_cast<T>(grad * statistics[1])),
        dice(static_cast<T>(grad * statistics[2])),
        dice_target(static_cast<T>(grad * statistics[3])),
        dice_overlap(static_cast<T>(grad * statistics[4])) {}

  // d loss / d logit, outside the overlap and anywhere
  BLSGAN_HD T at(const SigmoidSlope<T>& p, T target) const {
    return entropy * (p.value - target) + p.slope * (dice + dice_target * target);
  }
  BLSGAN_HD T at(const SigmoidSlope<T>& p, T target, T overlap) const {
    return at(p, target) +
           overlap * (overlap_entropy * (p.value - T(1)) + p.slope * dice_overlap);
  }
};

// ------------------------------------------------------------------------------------------------
// Synthetic overlap

// A shift along the rows: row y of the result mixes rows y - whole and y - whole - 1 of the source.
template <typename T>
struct RowShift {
  int64_t whole;
  T fraction;  // weight of row y - whole - 1, in [0, 1)

  // `shift` counts rows downwards. One that is not finite, or larger than the image, moves
  // everything out of it.
  BLSGAN_HD static RowShift of(double shift, int64_t height) {
    const double limit = static_cast<double>(height) + 1.0;
    if (!(shift > -limit && shift < limit)) return {height + 1, T(0)};
    const double floor = ::floor(shift);
    const auto whole = static_cast<int64_t>(floor);
    const auto fraction = static_cast<T>(shift - floor);
    // -1e-9 is a whole row up and, in float32, a whole row down.
    if (fraction < T(1)) return {whole, fraction};
    return {whole + 1, T(0)};
  }

  // The interpolated value; the second row does not count, NaN or not, where its weight is 0.
  BLSGAN_HD T mix(T first, T second) const {
    return fraction == T(0) ? first : (T(1) - fraction) * first + fraction * second;
  }
  // Which rows decide about a mask: interpolated, then covered from one half on.
  BLSGAN_HD bool first_decides() const { return !(fraction > T(0.5)); }
  BLSGAN_HD bool second_decides() const { return !(fraction < T(0.5)); }
};

// The rim of an overlap is Canny's edge of its mask, dilated by a 4x4 square. On a mask every
// gradient is above Canny's thresholds, so no edge is traced: a pixel is an edge where the Sobel
// gradient's L1 norm `m` is a maximum across the edge, ties going to the pixel before (left, above).
// The direction is one of three sectors, split at 22.5 and 67.5 degrees; with the integers that a
// mask's gradient can take (-4..4), 2/5 and 5/2 split as the tangents 0.414 and 2.414 do.
struct CannyNeighbours {
  int left, right, above, below, above_left, above_right, below_left, below_right;
};
BLSGAN_HD bool is_canny_edge(int dx, int dy, int m, const CannyNeighbours& n) {
  const int x = dx < 0 ? -dx : dx, y = dy < 0 ? -dy : dy;
  const bool across = (m > n.left) & (m >= n.right);
  const bool along = (m > n.above) & (m >= n.below);
  const bool falling = (m > n.above_left) & (m > n.below_right);
  const bool rising = (m > n.above_right) & (m > n.below_left);
  // Without a branch, so that a compiler takes many pixels at once.
  const bool same = (dx < 0) == (dy < 0), flat = 5 * y < 2 * x, steep = 2 * y > 5 * x;
  const bool diagonal = (same & falling) | (!same & rising);
  return (m > 0) & ((flat & across) | ((!flat) & ((steep & along) | (!steep & diagonal))));
}
// A pixel is on the rim where an edge lies in its rows and columns -2..1: the dilating square
// reaches one pixel before an edge and two behind it, which is two to either side of the border.
constexpr int kRimBefore = 2, kRimBehind = 1;
// Reach of everything that decides about a pixel's rim: Sobel, the comparison, the square.
constexpr int kRimHaloBefore = kRimBefore + 2, kRimHaloBehind = kRimBehind + 2;

// Neighbour `offset` (-1, 0, 1) of `position` on an axis of `size` pixels, mirrored at the ends
// without repeating them.
BLSGAN_HD int64_t mirrored(int64_t position, int64_t offset, int64_t size) {
  const int64_t to = position + offset;
  if (to >= 0 && to < size) return to;
  const int64_t back = position - offset;
  return back >= 0 && back < size ? back : position;
}

}  // namespace blsgan
