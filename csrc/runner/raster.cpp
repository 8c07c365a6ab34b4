#include "raster.h"

#include <algorithm>
#include <cstdlib>

#include "failure.h"
#include "png_codec.h"

namespace blsgan::runner {
namespace {

constexpr uint8_t kPngSignature[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};

bool is_space(uint8_t c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// The next number of a PGM header, after white space and comments; -1 where there is none of at most
// nine digits.
int64_t header_number(const Bytes& data, size_t& at) {
  while (at < data.size() && (is_space(data[at]) || data[at] == '#')) {
    if (data[at] == '#') {
      while (at < data.size() && data[at] != '\n') ++at;
    } else {
      ++at;
    }
  }
  const size_t first = at;
  int64_t number = 0;
  while (at < data.size() && data[at] >= '0' && data[at] <= '9' && at - first < 9) {
    number = 10 * number + (data[at++] - '0');
  }
  const bool more = at < data.size() && data[at] >= '0' && data[at] <= '9';
  return at == first || more ? -1 : number;
}

Raster decode_pgm(const File& file) {
  const Bytes& data = file.data;
  size_t at = 2;
  const int64_t width = header_number(data, at);
  const int64_t height = header_number(data, at);
  const int64_t full = header_number(data, at);
  if (width < 0 || height < 0 || full < 1 || full > 65535 || at >= data.size() ||
      !is_space(data[at])) {
    throw data_failure(file.path +
                       " is damaged or truncated (no size and maximum in its PGM header); export or "
                       "copy it again.");
  }
  ++at;
  check_size(file.path, height, width);
  Raster raster;
  raster.height = height;
  raster.width = width;
  raster.full = static_cast<int>(full);
  raster.container_bits = full > 255 ? 16 : 8;
  const size_t pixels = static_cast<size_t>(height * width);
  const size_t bytes = pixels * (full > 255 ? 2 : 1);
  if (data.size() - at < bytes) {
    throw data_failure(text("%s is damaged or truncated (%zu of %zu bytes of pixels); export or copy "
                            "it again.",
                            file.path.c_str(), data.size() - at, bytes));
  }
  if (data.size() - at > bytes) {
    throw data_failure(file.path +
                       " holds more than one picture; save the one to use as a file of its own.");
  }
  raster.values.resize(pixels);
  for (size_t p = 0; p < pixels; ++p) {
    raster.values[p] = full > 255 ? static_cast<uint16_t>(data[at + 2 * p] << 8 | data[at + 2 * p + 1])
                                  : data[at + p];
  }
  const int highest = *std::max_element(raster.values.begin(), raster.values.end());
  if (highest > full) {
    throw data_failure(text("%s is damaged: it has values up to %d, more than the maximum %d that it "
                            "names; export it again.",
                            file.path.c_str(), highest, static_cast<int>(full)));
  }
  return raster;
}

int guess_bits(int highest, int container) {
  for (int bits : {8, 10, 12, 14}) {
    if (bits < container && highest < (1 << bits)) return bits;
  }
  return container;
}

// Neighbouring pixels, down or to the right, of which one is in the mask.
int64_t outline_length(const std::vector<uint8_t>& mask, int64_t height, int64_t width) {
  int64_t count = 0;
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      const size_t p = static_cast<size_t>(y * width + x);
      if (y + 1 < height) count += mask[p] != mask[p + static_cast<size_t>(width)];
      if (x + 1 < width) count += mask[p] != mask[p + 1];
    }
  }
  return count;
}

}  // namespace

void check_size(const std::string& path, int64_t height, int64_t width) {
  if (height < 1 || width < 1) {
    throw data_failure(text("%s has no pixels (%lldx%lld); export it again.", path.c_str(),
                            static_cast<long long>(width), static_cast<long long>(height)));
  }
  if (height > kMaxSide || width > kMaxSide || height * width > kMaxPixels) {
    throw data_failure(text("%s has %lldx%lld pixels, more than the 67 megapixels (8192x8192) that "
                            "are read; crop it to the joint first.",
                            path.c_str(), static_cast<long long>(width),
                            static_cast<long long>(height)));
  }
}

Raster decode_raster(const File& file) {
  const Bytes& data = file.data;
  if (data.size() >= sizeof kPngSignature &&
      std::equal(std::begin(kPngSignature), std::end(kPngSignature), data.begin())) {
    return decode_png(file);
  }
  if (data.size() >= 3 && data[0] == 'P' && data[1] == '5' && (is_space(data[2]) || data[2] == '#')) {
    return decode_pgm(file);
  }
  throw data_failure(file.path + " is not a readable image; give a PNG or a binary PGM (P5) file.");
}

Radiograph decode_radiograph(const File& file, int bit_depth, bool invert) {
  const Raster raster = decode_raster(file);
  Radiograph radiograph;
  radiograph.height = raster.height;
  radiograph.width = raster.width;
  const int highest = *std::max_element(raster.values.begin(), raster.values.end());
  int full = raster.full;
  if (raster.container_bits > 8 && (bit_depth > 0 || full == 65535)) {
    // The file does not say how many of its bits are used.
    const int bits = bit_depth > 0 ? bit_depth : guess_bits(highest, 16);
    full = (1 << bits) - 1;
    if (bits != 16 && bit_depth == 0) {
      radiograph.notes.push_back(text("16-bit file taken as %d bit, by its largest value (a bit depth "
                                      "given says it for certain)",
                                      bits));
    }
    if (highest > full) {
      throw data_failure(text("%s has values up to %d, more than %d bits hold; give a larger bit "
                              "depth.",
                              file.path.c_str(), highest, bits));
    }
  }
  radiograph.pixels.reserve(raster.values.size());
  for (uint16_t value : raster.values) {
    const float level = static_cast<float>(static_cast<double>(value) / full);
    radiograph.pixels.push_back(invert ? 1.0F - level : level);
  }
  if (invert) radiograph.notes.emplace_back("inverted (asked for)");
  const auto [low, high] = std::minmax_element(radiograph.pixels.begin(), radiograph.pixels.end());
  if (*low == *high) {
    throw data_failure(text("%s is constant (every pixel is %g); give a radiograph.",
                            file.path.c_str(), static_cast<double>(*low)));
  }
  return radiograph;
}

std::vector<uint8_t> decode_mask(const File& file, int64_t height, int64_t width) {
  const Raster raster = decode_raster(file);
  const char* path = file.path.c_str();
  if (raster.height != height || raster.width != width) {
    throw data_failure(text("%s is %lldx%lld but the image is %lldx%lld; give the mask of this image.",
                            path, static_cast<long long>(raster.width),
                            static_cast<long long>(raster.height), static_cast<long long>(width),
                            static_cast<long long>(height)));
  }
  const auto [lowest, highest] = std::minmax_element(raster.values.begin(), raster.values.end());
  const int low = *lowest, high = *highest;
  if (high == 0) {
    throw data_failure(file.path + " is empty (no white pixel); paint the bone white.");
  }
  if (low == high) {
    throw data_failure(text("%s covers everything (every pixel is %d); paint only the bone white.",
                            path, high));
  }
  std::vector<uint8_t> mask(raster.values.size());
  const bool two_levels = low == 0 && std::all_of(raster.values.begin(), raster.values.end(),
                                                  [high](int v) { return v == 0 || v == high; });
  int64_t white = 0, grey = 0;
  for (size_t p = 0; p < mask.size(); ++p) {
    const double value = raster.values[p];
    mask[p] = two_levels ? value == high : value > raster.full / 2.0;
    white += mask[p];
    grey += value > raster.full / 8.0 && value < raster.full * 7.0 / 8.0;
  }
  if (two_levels) return mask;
  if (white == 0) {
    throw data_failure(text("%s is not a black and white mask: its values run from %d to %d; use 0 and "
                            "%d, or 0 and 1.",
                            path, low, high, raster.full));
  }
  // A radiograph given by mistake is grey far beyond three pixels for each of its outline.
  if (grey > 3 * outline_length(mask, height, width) || 2 * grey > white) {
    throw data_failure(text("%s is not a black and white mask: %lld pixels are grey, beside %lld white "
                            "ones; threshold it first.",
                            path, static_cast<long long>(grey), static_cast<long long>(white)));
  }
  if (white == static_cast<int64_t>(mask.size())) {
    throw data_failure(file.path +
                       " covers everything after thresholding; paint only the bone white.");
  }
  return mask;
}

Bytes encode_pgm(const std::vector<uint16_t>& values, int64_t height, int64_t width) {
  const std::string header = text("P5\n%lld %lld\n65535\n", static_cast<long long>(width),
                                  static_cast<long long>(height));
  Bytes bytes(header.begin(), header.end());
  bytes.reserve(bytes.size() + 2 * values.size());
  for (uint16_t value : values) {
    bytes.push_back(static_cast<uint8_t>(value >> 8));
    bytes.push_back(static_cast<uint8_t>(value & 0xff));
  }
  return bytes;
}

}  // namespace blsgan::runner
