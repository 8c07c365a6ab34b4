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

// What the masks of two bones say of a tile: whether either covers any pixel, and both the same.
struct PairCover {
  bool first, second, shared;

  BLSGAN_HD PairCover(const uint8_t* __restrict m0, const uint8_t* __restrict m1, int count) {
    uint8_t some0 = 0, some1 = 0, both = 0;
#pragma omp simd reduction(| : some0, some1, both)
    for (int t = 0; t < count; ++t) {
      some0 |= m0[t];
      some1 |= m1[t];
      both |= (m0[t] != 0) & (m1[t] != 0);
    }
    first = some0 != 0;
    second = some1 != 0;
    shared = both != 0;
  }
  bool any() const { return first || second; }
};

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

// What a formula makes of the soft tissue of a tile, and the derivative of that, whether soft tissue
// is one value for each image or a map.
template <typename T>
class SoftTiles {
 public:
  explicit SoftTiles(const View& soft_tissue) : view_(soft_tissue), scratch_(3) {}

  // `of` makes a Sloped of k. One value for an image is worked out once.
  template <typename Of>
  BLSGAN_HD void load(int64_t batch, int64_t p, int count, Of of) {
    T *__restrict value = scratch_[0], *__restrict slope = scratch_[1];
    if (is_map(view_)) {
      const T* __restrict k = load_tile(view_, batch, 0, p, count, scratch_[2]);
BLSGAN_INDEPENDENT
      for (int t = 0; t < count; ++t) {
        const Sloped<T> term = of(k[t]);
        value[t] = term.value;
        slope[t] = term.slope;
      }
    } else if (batch != batch_) {
      batch_ = batch;
      const Sloped<T> term = of(load_scalar<T>(view_, batch));
      for (int t = 0; t < kTile; ++t) {
        value[t] = term.value;
        slope[t] = term.slope;
      }
    }
  }
  T* value() { return scratch_[0]; }
  T* slope() { return scratch_[1]; }

 private:
  const View& view_;
  Tiles<T> scratch_;
  int64_t batch_ = -1;
};

// Where a tile's gradient of soft tissue goes: into the map, or into one work item's sum.
template <typename T>
class SoftGradient {
 public:
  explicit SoftGradient(const MutableView& target) : target_(target), scratch_(1) {}

  // Where to write the gradient of a tile; `finish` then takes it from there.
  T* tile(int64_t batch, int64_t p) {
    return is_map(target_) ? output_tile(target_, batch, 0, p, scratch_[0]) : scratch_[0];
  }
  BLSGAN_HD void finish(int64_t batch, int64_t p, int count, const T* __restrict grad) {
    if (is_map(target_)) {
      finish_tile<T>(target_, batch, 0, p, count, grad, scratch_[0]);
      return;
    }
    T part = T(0);
#pragma omp simd reduction(+ : part)
    for (int t = 0; t < count; ++t) part += grad[t];
    sum_ += static_cast<double>(part);
  }
  // A tile without an overlap.
  void finish_zeros(int64_t batch, int64_t p, int count) {
    if (is_map(target_)) store_zeros(target_, batch, 0, p, count);
  }
  // The sum since the last call.
  double take_sum() {
    const double sum = sum_;
    sum_ = 0.0;
    return sum;
  }

 private:
  const MutableView& target_;
  Tiles<T> scratch_;
  double sum_ = 0.0;
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

// The second stage of soft tissue's gradient, where that is one value for each image: adds the
// image's partial sums in order.
void finish_soft_tissue_gradient(const Shape& shape, const double* partials,
                                 const MutableView& grad_soft_tissue);

// The second stage of a root mean square error: {sum of squares, count} rows become the loss and
// its statistics.
void finish_rmse(int64_t items, const double* partials, const MutableView& loss,
                 double* statistics);

}  // namespace blsgan::cpu
