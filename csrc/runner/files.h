// Reading a user's file once and whole; writing files of which all appear, or none does.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace blsgan::runner {

using Bytes = std::vector<uint8_t>;

struct File {
  std::string path;
  Bytes data;
};

struct Output {
  std::string path;
  Bytes data;
};

// `what` ("image", "mask", "weights") is the word for it in messages. Throws Failure for a file that
// is missing, a folder, not regular, empty, beyond 1 GiB or unreadable.
File read_file(const std::string& path, const char* what);

// Writes every output under a temporary name in `folder` (made if it is missing), flushes and renames
// them together; SIGINT, SIGTERM and SIGHUP wait meanwhile. What a killed process left there is removed.
// Throws Failure, leaving older files alone.
void write_together(const std::string& folder, const std::vector<Output>& outputs);

// Whether both paths name one existing file.
bool same_file(const std::string& a, const std::string& b);

// "folder/joint.v2.png" -> "joint.v2", and -> ".png" (lower case).
std::string stem(const std::string& path);
std::string suffix(const std::string& path);

}  // namespace blsgan::runner
