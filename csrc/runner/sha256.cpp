#include "sha256.h"

#include <array>
#include <cmath>

#include "failure.h"

namespace blsgan::runner {
namespace {

// The first 32 bits of the fractional part; the standard's constants are those of roots of primes.
uint32_t fraction(long double root) {
  return static_cast<uint32_t>((root - std::floor(root)) * 4294967296.0L);
}

struct Constants {
  std::array<uint32_t, 8> start{};   // of square roots
  std::array<uint32_t, 64> round{};  // of cube roots
  Constants() {
    size_t found = 0;
    for (int candidate = 2; found < round.size(); ++candidate) {
      bool prime = true;
      for (int divisor = 2; divisor * divisor <= candidate; ++divisor) {
        prime = prime && candidate % divisor != 0;
      }
      if (!prime) continue;
      const auto number = static_cast<long double>(candidate);
      if (found < start.size()) start[found] = fraction(std::sqrt(number));
      round[found++] = fraction(std::cbrt(number));
    }
  }
};

uint32_t turned(uint32_t word, int bits) { return word >> bits | word << (32 - bits); }

void add_block(const uint8_t* block, const Constants& constants, std::array<uint32_t, 8>& hash) {
  std::array<uint32_t, 64> w{};
  for (size_t t = 0; t < 16; ++t) {
    for (size_t i = 0; i < 4; ++i) w[t] = w[t] << 8 | block[4 * t + i];
  }
  for (size_t t = 16; t < 64; ++t) {
    const uint32_t a = w[t - 15], b = w[t - 2];
    w[t] = w[t - 16] + (turned(a, 7) ^ turned(a, 18) ^ a >> 3) + w[t - 7] +
           (turned(b, 17) ^ turned(b, 19) ^ b >> 10);
  }
  std::array<uint32_t, 8> s = hash;
  for (size_t t = 0; t < 64; ++t) {
    const uint32_t e = s[4], a = s[0];
    const uint32_t first = s[7] + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) +
                           ((e & s[5]) ^ (~e & s[6])) + constants.round[t] + w[t];
    const uint32_t second = (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) +
                            ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));
    s = {first + second, s[0], s[1], s[2], s[3] + first, s[4], s[5], s[6]};
  }
  for (size_t i = 0; i < 8; ++i) hash[i] += s[i];
}

}  // namespace

std::string sha256(const Bytes& data) {
  static const Constants constants;
  std::array<uint32_t, 8> hash = constants.start;
  const size_t whole = data.size() / 64 * 64;
  for (size_t at = 0; at < whole; at += 64) add_block(&data[at], constants, hash);
  Bytes tail(data.begin() + static_cast<int64_t>(whole), data.end());
  tail.push_back(0x80);
  tail.resize((tail.size() + 8 + 63) / 64 * 64);
  const uint64_t bits = uint64_t{data.size()} * 8;
  for (size_t i = 0; i < 8; ++i) tail[tail.size() - 1 - i] = static_cast<uint8_t>(bits >> 8 * i);
  for (size_t at = 0; at < tail.size(); at += 64) add_block(&tail[at], constants, hash);
  std::string digits;
  for (uint32_t word : hash) digits += text("%08x", word);
  return digits;
}

}  // namespace blsgan::runner
