// SHA-256 (FIPS 180-4): whether a file is the one that its manifest describes.

#pragma once

#include <string>

#include "files.h"

namespace blsgan::runner {

// 64 hexadecimal digits.
std::string sha256(const Bytes& data);

}  // namespace blsgan::runner
