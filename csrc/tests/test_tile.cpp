// Reading and writing every element type: all 65536 patterns of both half formats, strides, masks.

#include <cstring>
#include <limits>

#include "check.h"
#include "cpu/tile.h"

using namespace blsgan;

namespace {

// What the formats mean, by their definition.
double meaning(uint16_t bits, int exponent_bits) {
  const int mantissa_bits = 15 - exponent_bits;
  const int sign = bits >> 15;
  const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  double value;
  if (exponent == (1 << exponent_bits) - 1) {
    value = mantissa ? std::numeric_limits<double>::quiet_NaN()
                     : std::numeric_limits<double>::infinity();
  } else if (exponent == 0) {
    value = std::ldexp(mantissa, 1 - bias - mantissa_bits);
  } else {
    value = std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
  }
  return sign ? -value : value;
}

void check_format(DType dtype, int exponent_bits) {
  std::vector<uint16_t> all(65536), back(65536);
  for (int i = 0; i < 65536; ++i) all[static_cast<size_t>(i)] = static_cast<uint16_t>(i);
  std::vector<float> values(65536);
  const View view{all.data(), 0, 0, 1, dtype};
  cpu::load_tile(view, 0, 0, 0, 65536, values.data());
  for (int i = 0; i < 65536; ++i) {
    const double want = meaning(static_cast<uint16_t>(i), exponent_bits);
    const double got = values[static_cast<size_t>(i)];
    if (std::isnan(want) ? !std::isnan(got) : got != want) {
      CHECK_NEAR(got, want, 0.0);
      return;
    }
  }
  cpu::store_tile(MutableView{back.data(), 0, 0, 1, dtype}, 0, 0, 0, 65536, values.data());
  for (int i = 0; i < 65536; ++i) {
    const auto index = static_cast<size_t>(i);
    if (std::isnan(values[index])) {
      CHECK(std::isnan(meaning(back[index], exponent_bits)));
    } else if (back[index] != all[index]) {
      CHECK_NEAR(back[index], all[index], 0.0);
      return;
    }
  }
  // Rounding: to nearest, ties to even, halfway between any two neighbours.
  for (int i = 0; i < 65535; ++i) {
    const double low = meaning(static_cast<uint16_t>(i), exponent_bits);
    const double high = meaning(static_cast<uint16_t>(i + 1), exponent_bits);
    if (!std::isfinite(low) || !std::isfinite(high) || (i & 0x7fff) == 0x7fff) continue;
    const float middle = static_cast<float>((low + high) / 2);
    if (static_cast<double>(middle) != (low + high) / 2) continue;
    const float around[3] = {std::nextafterf(middle, static_cast<float>(low)), middle,
                             std::nextafterf(middle, static_cast<float>(high))};
    uint16_t rounded[3];
    cpu::store_tile(MutableView{rounded, 0, 0, 1, dtype}, 0, 0, 0, 3, around);
    const bool right = rounded[0] == i && rounded[2] == i + 1 && rounded[1] == (i & 1 ? i + 1 : i);
    if (!right) {
      CHECK_NEAR(rounded[1], i, 0.0);
      return;
    }
  }
}

}  // namespace

int main() {
  check_format(DType::kFloat16, 5);
  check_format(DType::kBFloat16, 8);

  float large[2] = {65519.0f, 65520.0f};
  uint16_t halves[2];
  cpu::store_tile(MutableView{halves, 0, 0, 1, DType::kFloat16}, 0, 0, 0, 2, large);
  CHECK(halves[0] == 0x7bff && halves[1] == 0x7c00);

  // Strides: channel 1 of batch 1 of a channels_last tensor [2, 3, pixels].
  std::vector<float> interleaved(600);
  for (size_t i = 0; i < interleaved.size(); ++i) interleaved[i] = static_cast<float>(i);
  const View strided{interleaved.data(), 300, 1, 3, DType::kFloat32};
  float buffer[64];
  const float* loaded = cpu::load_tile(strided, 1, 1, 7, 50, buffer);
  CHECK(loaded == buffer);
  for (int t = 0; t < 50; ++t) CHECK(buffer[t] == static_cast<float>(300 + 1 + (7 + t) * 3));
  const View plain{interleaved.data(), 300, 100, 1, DType::kFloat32};
  CHECK(cpu::load_tile(plain, 1, 2, 5, 10, buffer) == interleaved.data() + 505);
  CHECK(cpu::load_tile(View{interleaved.data(), 0, 0, 0, DType::kFloat32}, 9, 9, 9, 4, buffer)[3] ==
        0.0f);

  const uint8_t bytes[5] = {0, 1, 7, 255, 0};
  float mask[5];
  CHECK(cpu::load_mask(View{bytes, 0, 0, 1, DType::kUInt8}, 0, 0, 0, 5, mask) == 3);
  CHECK(mask[0] == 0 && mask[1] == 1 && mask[2] == 1 && mask[3] == 1 && mask[4] == 0);
  const float floats[4] = {0.0f, -0.0f, 0.3f, std::numeric_limits<float>::quiet_NaN()};
  CHECK(cpu::load_mask(View{floats, 0, 0, 1, DType::kFloat32}, 0, 0, 0, 4, mask) == 2);

  std::vector<double> wide(8, 1.0);
  cpu::store_zeros(MutableView{wide.data(), 0, 0, 2, DType::kFloat64}, 0, 0, 1, 3);
  CHECK(wide[0] == 1 && wide[2] == 0 && wide[4] == 0 && wide[6] == 0 && wide[7] == 1);
  return report("tile");
}
