// What a user can cause: one sentence with the file, the value and the way out, and the exit status.

#pragma once

#include <cstdarg>
#include <cstdio>
#include <stdexcept>
#include <string>

namespace blsgan::runner {

struct Failure : std::runtime_error {
  Failure(int exit_status, const std::string& sentence)
      : std::runtime_error(sentence), status(exit_status) {}
  int status;
};

// The data cannot be used (exit status 1), or the command itself is wrong (2).
inline Failure data_failure(const std::string& sentence) { return {1, sentence}; }
inline Failure usage_failure(const std::string& sentence) { return {2, sentence}; }

// printf into a string.
__attribute__((format(printf, 1, 2))) inline std::string text(const char* format, ...) {
  va_list arguments, again;
  va_start(arguments, format);
  va_copy(again, arguments);
  const int length = std::vsnprintf(nullptr, 0, format, arguments);
  va_end(arguments);
  std::string result(length > 0 ? static_cast<size_t>(length) : 0, '\0');
  if (length > 0) std::vsnprintf(result.data(), result.size() + 1, format, again);
  va_end(again);
  return result;
}

}  // namespace blsgan::runner
