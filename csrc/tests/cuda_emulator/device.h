// What the stand-ins for CUDA's headers ask of the emulator.

#pragma once

#include <cstddef>
#include <cstdint>

namespace blsgan::emulator {

// Runs body(context) as every thread of a grid, blocks one after another. True if no rule was
// broken; otherwise `failure` says which.
bool launch(unsigned blocks, unsigned threads, void (*body)(const void*), const void* context);
const char* failure();
int processors();

enum Index { kThread, kBlock, kThreads, kBlocks };
unsigned index(Index which);

void barrier();
// The bits that lane + offset of the warp gives, those given where there is no such lane.
uint64_t shuffle_down(uint32_t mask, uint64_t bits, unsigned offset);
// A whole access of a vector, which has to be aligned as such; kLdg goes through the read-only path.
enum Access { kRead, kWrite, kLdg };
void touch(const volatile void* where, size_t bytes, Access access);

}  // namespace blsgan::emulator
