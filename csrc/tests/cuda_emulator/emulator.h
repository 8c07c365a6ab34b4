// Runs csrc/cuda on the CPU, thread by thread, and checks what a GPU would not. See docs/how-to/gpu.md.

#pragma once

#include <cstdint>
#include <functional>

namespace blsgan::emulator {

enum class Memory { kInput, kOutput, kScratch };

// Lets the kernels of the next `run` touch [data, data + bytes), and no other memory. Outputs and
// scratch hold nothing yet; `element` is the size of what is written there.
void declare(const void* data, int64_t bytes, Memory memory, int64_t element = 1);

// Calls `call`, which launches kernels, once for each order of threads and size of grid; forgets
// the declarations. A kernel that breaks a rule makes its launch fail.
// Throws std::runtime_error where two runs differ in a bit or an output is left unwritten.
void run(const std::function<void()>& call);

}  // namespace blsgan::emulator
