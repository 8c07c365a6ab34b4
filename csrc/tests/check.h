// A test is a program that returns 0. CHECK reports the place and the values and goes on, so that
// one run shows every failure.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "beer_lambert.h"
#include "ops.h"

inline int failures = 0;

#define CHECK(condition)                                                   \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::printf("%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
      ++failures;                                                          \
    }                                                                      \
  } while (false)

#define CHECK_NEAR(got, want, limit)                                                     \
  do {                                                                                   \
    const double got_value = (got), want_value = (want);                                 \
    if (!(std::fabs(got_value - want_value) <= (limit))) {                               \
      std::printf("%s:%d: %s is %.9g, not %.9g\n", __FILE__, __LINE__, #got, got_value,  \
                  want_value);                                                           \
      ++failures;                                                                        \
    }                                                                                    \
  } while (false)

inline int report(const char* name) {
  std::printf("%s: %d failures\n", name, failures);
  return failures == 0 ? 0 : 1;
}

// A contiguous tensor that owns its values.
template <typename T>
struct Array {
  std::vector<T> values;
  int64_t channels, pixels;

  Array(int64_t batch, int64_t channel_count, int64_t pixel_count)
      : values(static_cast<size_t>(batch * channel_count * pixel_count)),
        channels(channel_count),
        pixels(pixel_count) {}

  T& at(int64_t b, int64_t c, int64_t p) {
    return values[static_cast<size_t>((b * channels + c) * pixels + p)];
  }
  static constexpr blsgan::DType dtype() {
    if (sizeof(T) == 8) return blsgan::DType::kFloat64;
    return sizeof(T) == 4 ? blsgan::DType::kFloat32 : blsgan::DType::kUInt8;
  }
  blsgan::View view() const {
    return {values.data(), channels * pixels, pixels, 1, dtype()};
  }
  blsgan::MutableView out() { return {values.data(), channels * pixels, pixels, 1, dtype()}; }
};

// A [B] tensor.
inline blsgan::View vector_view(const std::vector<float>& values) {
  return {values.data(), 1, 0, 0, blsgan::DType::kFloat32};
}
inline blsgan::MutableView vector_out(std::vector<float>& values) {
  return {values.data(), 1, 0, 0, blsgan::DType::kFloat32};
}

// Runs the items one by one, last first: results must not depend on who does what when.
inline void backwards_for(int64_t count, blsgan::ParallelBody body, void* context) {
  for (int64_t i = count - 1; i >= 0; --i) body(context, i, i + 1);
}

struct Random {
  // The same numbers on every run: a failure can be looked at again.
  std::mt19937 engine{7};  // NOLINT(bugprone-random-generator-seed)
  double operator()(double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(engine);
  }
};
