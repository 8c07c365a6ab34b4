// The half of raster.h that needs libpng, and what both halves share.

#pragma once

#include <cstdint>
#include <string>

#include "raster.h"

namespace blsgan::runner {

// Throws Failure when a picture of this size is not going to be read.
void check_size(const std::string& path, int64_t height, int64_t width);

// Throws Failure, in a build without libpng always.
Raster decode_png(const File& file);

}  // namespace blsgan::runner
