#include "resample.h"

#include <algorithm>
#include <cmath>

namespace blsgan::runner {
namespace {

// What one output pixel takes: weights for the inputs from `first` on.
struct Taps {
  int64_t first = 0;
  std::vector<double> weights;
};

// The triangle is widened where the picture shrinks, so that nothing aliases.
std::vector<Taps> triangle(int64_t input_size, float start, float stop, int64_t output_size) {
  const double scale = static_cast<double>(stop - start) / static_cast<double>(output_size);
  const double support = std::max(scale, 1.0);
  std::vector<Taps> taps(static_cast<size_t>(output_size));
  for (int64_t i = 0; i < output_size; ++i) {
    const double center = start + (static_cast<double>(i) + 0.5) * scale;
    const double low = center - support + 0.5, high = center + support + 0.5;
    const int64_t first = std::max<int64_t>(static_cast<int64_t>(low), 0);
    const int64_t last = std::min(static_cast<int64_t>(high), input_size);
    Taps& tap = taps[static_cast<size_t>(i)];
    tap.first = first;
    double sum = 0;
    for (int64_t j = first; j < last; ++j) {
      const double distance =
          std::fabs((static_cast<double>(j) - center + 0.5) * (1.0 / support));
      tap.weights.push_back(distance < 1.0 ? 1.0 - distance : 0.0);
      sum += tap.weights.back();
    }
    if (sum != 0) {
      for (double& weight : tap.weights) weight /= sum;
    }
  }
  return taps;
}

}  // namespace

Plane resize(const Plane& plane, int64_t height, int64_t width, const Box& box) {
  const std::vector<Taps> across = triangle(plane.width, box.left, box.right, width);
  const std::vector<Taps> down = triangle(plane.height, box.top, box.bottom, height);
  Plane rows(plane.height, width);
  for (int64_t y = 0; y < plane.height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      const Taps& tap = across[static_cast<size_t>(x)];
      double sum = 0;
      for (size_t j = 0; j < tap.weights.size(); ++j) {
        sum += plane.at(y, tap.first + static_cast<int64_t>(j)) * tap.weights[j];
      }
      rows.at(y, x) = static_cast<float>(sum);
    }
  }
  Plane result(height, width);
  for (int64_t y = 0; y < height; ++y) {
    const Taps& tap = down[static_cast<size_t>(y)];
    for (int64_t x = 0; x < width; ++x) {
      double sum = 0;
      for (size_t j = 0; j < tap.weights.size(); ++j) {
        sum += rows.at(tap.first + static_cast<int64_t>(j), x) * tap.weights[j];
      }
      result.at(y, x) = static_cast<float>(sum);
    }
  }
  return result;
}

}  // namespace blsgan::runner
