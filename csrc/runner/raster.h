// PNG and binary PGM as one grey channel, without losing or inventing a bit; 16-bit pictures back.
// What blsgan/io/raster.py refuses is refused here, in the same words.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "files.h"

namespace blsgan::runner {

constexpr int64_t kMaxPixels = int64_t{1} << 26;
constexpr int64_t kMaxSide = 20000;

// `values` is [height,width] in steps of the file's own levels, 0..full; `full` is 255 or 65535 for a
// PNG, the file's own maximum for a PGM. `container_bits` is 8 or 16.
struct Raster {
  int64_t height = 0;
  int64_t width = 0;
  std::vector<uint16_t> values;
  int full = 255;
  int container_bits = 8;
};

// Throws Failure for anything that is not a grey PNG (where libpng was there) or PGM, for damage,
// colour, transparency, several pictures and sizes beyond kMaxPixels.
Raster decode_raster(const File& file);

// A radiograph, float32 [height,width] in [0,1], and what was decided on the way.
struct Radiograph {
  int64_t height = 0;
  int64_t width = 0;
  std::vector<float> pixels;
  std::vector<std::string> notes;
};

// `bit_depth` 0: from the values, as blsgan/io/levels.py guesses.
Radiograph decode_radiograph(const File& file, int bit_depth, bool invert);

// A mask file as 0 and 1 [height,width]; two levels, one of them 0, are taken as they are, soft edges
// are cut at half of white. Throws Failure for anything else (blsgan/io/masks.py).
std::vector<uint8_t> decode_mask(const File& file, int64_t height, int64_t width);

bool has_png();

// 16-bit grey [height,width].
Bytes encode_png(const std::vector<uint16_t>& values, int64_t height, int64_t width);
Bytes encode_pgm(const std::vector<uint16_t>& values, int64_t height, int64_t width);

}  // namespace blsgan::runner
