// CPU kernels work on tiles of pixels that fit the first-level cache: a tile of each input is read
// as float32 (float64) whatever its type and strides, the formulas run over it in plain loops the
// compiler vectorises, and the result is written back in its own type. Contiguous tensors of the
// computing type are used in place.

#pragma once

#include <cstdint>
#include <vector>

#include "../beer_lambert.h"
#include "../ops.h"

// One binary, the best instruction set of the machine it runs on. Sanitizers instrument the
// resolvers themselves, which run before their runtime is ready.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !defined(BLSGAN_NO_CLONES)
#define BLSGAN_HAS_CLONES 1
#define BLSGAN_CLONES \
  __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define BLSGAN_HAS_CLONES 0
#define BLSGAN_CLONES
#endif

// Before a loop whose iterations do not depend on each other. Not `omp simd`, which keeps small
// structs of the loop's body in memory and then gives up; that one is for sums.
#if defined(__clang__)
#define BLSGAN_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define BLSGAN_INDEPENDENT _Pragma("GCC ivdep")
#else
#define BLSGAN_INDEPENDENT
#endif

namespace blsgan::cpu {

constexpr int kTile = 512;
static_assert(kChunkPixels % kTile == 0);

// Pixels [p, p + count) of one channel; returns either the tensor's own memory or `buffer`.
const float* load_tile(const View& view, int64_t batch, int64_t channel, int64_t p, int count,
                       float* buffer);
const double* load_tile(const View& view, int64_t batch, int64_t channel, int64_t p, int count,
                        double* buffer);
// The same for a mask: 1 where the element is not zero (NaN counts as not zero), 0 elsewhere.
// Returns how many elements are set.
int load_mask(const View& view, int64_t batch, int64_t channel, int64_t p, int count,
              float* buffer);
int load_mask(const View& view, int64_t batch, int64_t channel, int64_t p, int count,
              double* buffer);
// The same as bytes that are not zero where the mask is set: the tensor's own memory where it holds
// bytes, else `buffer`.
const uint8_t* mask_tile(const View& view, int64_t batch, int64_t channel, int64_t p, int count,
                         uint8_t* buffer);
void store_tile(const MutableView& view, int64_t batch, int64_t channel, int64_t p, int count,
                const float* values);
void store_tile(const MutableView& view, int64_t batch, int64_t channel, int64_t p, int count,
                const double* values);
void store_zeros(const MutableView& view, int64_t batch, int64_t channel, int64_t p, int count);

// Whether a tile of mask bytes is set anywhere, and how often.
BLSGAN_HD bool any_set(const uint8_t* __restrict mask, int count) {
  uint8_t some = 0;
#pragma omp simd reduction(| : some)
  for (int t = 0; t < count; ++t) some |= mask[t];
  return some != 0;
}
BLSGAN_HD int count_set(const uint8_t* __restrict mask, int count) {
  int set = 0;
#pragma omp simd reduction(+ : set)
  for (int t = 0; t < count; ++t) set += mask[t] != 0 ? 1 : 0;
  return set;
}

// Adds a mask's bytes, whatever they are where it is set, to the pixels that any and that several
// masks cover, 0 or 1 each.
BLSGAN_HD void add_cover(const uint8_t* __restrict mask, int64_t count, uint8_t* __restrict any,
                         uint8_t* __restrict shared) {
BLSGAN_INDEPENDENT
  for (int64_t t = 0; t < count; ++t) {
    const uint8_t set = mask[t] != 0 ? 1 : 0;
    shared[t] |= any[t] & set;
    any[t] |= set;
  }
}

// Where to write results that store_tile would only copy: the tensor itself, or `buffer`.
inline float* output_tile(const MutableView& view, int64_t batch, int64_t channel, int64_t p,
                          float* buffer) {
  if (view.dtype != DType::kFloat32 || view.stride_pixel != 1) return buffer;
  return static_cast<float*>(view.data) + batch * view.stride_batch +
         channel * view.stride_channel + p;
}
inline double* output_tile(const MutableView& view, int64_t batch, int64_t channel, int64_t p,
                           double* buffer) {
  if (view.dtype != DType::kFloat64 || view.stride_pixel != 1) return buffer;
  return static_cast<double*>(view.data) + batch * view.stride_batch +
         channel * view.stride_channel + p;
}
template <typename T>
inline void finish_tile(const MutableView& view, int64_t batch, int64_t channel, int64_t p,
                        int count, const T* target, const T* buffer) {
  if (target == buffer) store_tile(view, batch, channel, p, count, buffer);
}

// One value of a [B] tensor.
template <typename T>
inline T load_scalar(const View& view, int64_t batch) {
  T value;
  const T* loaded = load_tile(view, batch, 0, 0, 1, &value);
  return *loaded;
}
template <typename T>
inline void store_scalar(const MutableView& view, int64_t batch, T value) {
  store_tile(view, batch, 0, 0, 1, &value);
}

// The pixels of one work item.
struct Span {
  int64_t batch, begin, end;

  // Pixels of the tile that begins at p.
  int tile(int64_t p) const { return static_cast<int>(end - p < kTile ? end - p : kTile); }
};
inline Span span_of(const Shape& shape, int64_t item) {
  const int64_t per_image = chunks_per_image(shape);
  const int64_t begin = item % per_image * kChunkPixels;
  const int64_t end = begin + kChunkPixels;
  return {item / per_image, begin, end < shape.pixels() ? end : shape.pixels()};
}

// Asks for large pages for a large output before it is first touched: the page faults of a fresh
// allocation cost more than the arithmetic. Does nothing where the system has no such call.
void advise_large_pages(const MutableView& view, int64_t elements);

// Scratch tiles of one thread, aligned for vector code.
template <typename T>
class Tiles {
 public:
  explicit Tiles(int64_t count) : storage_(static_cast<size_t>(count) * kTile + 64 / sizeof(T)) {
    const auto address = reinterpret_cast<uintptr_t>(storage_.data());
    base_ = storage_.data() + ((64 - address % 64) % 64) / sizeof(T);
  }
  T* operator[](int64_t index) { return base_ + index * kTile; }

 private:
  std::vector<T> storage_;
  T* base_;
};

// Runs `chunk(args, begin, end)` over all items.
template <typename Args>
void for_items(int64_t items, const CpuContext& context, const Args& args,
               void (*narrow)(const Args&, int64_t, int64_t),
               void (*wide)(const Args&, int64_t, int64_t)) {
  struct Call {
    const Args& args;
    void (*function)(const Args&, int64_t, int64_t);
  } call{args, context.wide ? wide : narrow};
  context.parallel_for(
      items,
      [](void* opaque, int64_t begin, int64_t end) {
        const Call& c = *static_cast<const Call*>(opaque);
        c.function(c.args, begin, end);
      },
      &call);
}

// The second stage of a per-image reduction: adds each image's partial sums in order.
void finish_soft_tissue_gradient(const Shape& shape, const View& soft_tissue,
                                 const double* partials, const MutableView& grad_soft_tissue);

// The second stage of a root mean square error: {sum of squares, count} rows become the loss and
// its statistics.
void finish_rmse(int64_t items, const double* partials, const MutableView& loss,
                 double* statistics);

}  // namespace blsgan::cpu
