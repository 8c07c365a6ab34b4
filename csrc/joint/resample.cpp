#include "resample.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace blsgan::joint {
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

void resize(const float* plane, int64_t height, int64_t width, const Part& part, float* out,
            int64_t out_height, int64_t out_width, int64_t out_stride) {
  const std::vector<Taps> across = triangle(width, part.left, part.right, out_width);
  const std::vector<Taps> down = triangle(height, part.top, part.bottom, out_height);
  // Only rows that are read.
  const int64_t first = down.front().first;
  int64_t last = first;
  for (const Taps& tap : down) {
    last = std::max(last, tap.first + static_cast<int64_t>(tap.weights.size()));
  }
  std::vector<float> rows(static_cast<size_t>((last - first) * out_width));
  for (int64_t y = first; y < last; ++y) {
    const float* from = plane + y * width;
    float* to = rows.data() + (y - first) * out_width;
    for (int64_t x = 0; x < out_width; ++x) {
      const Taps& tap = across[static_cast<size_t>(x)];
      double sum = 0;
      for (size_t j = 0; j < tap.weights.size(); ++j) {
        sum += from[tap.first + static_cast<int64_t>(j)] * tap.weights[j];
      }
      to[x] = static_cast<float>(sum);
    }
  }
  std::vector<double> sums(static_cast<size_t>(out_width));
  for (int64_t y = 0; y < out_height; ++y) {
    const Taps& tap = down[static_cast<size_t>(y)];
    std::fill(sums.begin(), sums.end(), 0.0);
    for (size_t j = 0; j < tap.weights.size(); ++j) {
      const float* row = rows.data() + (tap.first - first + static_cast<int64_t>(j)) * out_width;
      for (size_t x = 0; x < sums.size(); ++x) sums[x] += row[x] * tap.weights[j];
    }
    std::copy(sums.begin(), sums.end(), out + y * out_stride);
  }
}

}  // namespace blsgan::joint
