#include "tile.h"

#include <cstring>
#include <type_traits>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace blsgan::cpu {
namespace {

using detail::bits_of_float;
using detail::float_of_bits;

BLSGAN_HD float from_half(uint16_t half) {
  // Widen exponent and mantissa, then rescale: subnormals come out right without a branch.
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fffu) << 13;
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const float finite = float_of_bits(magnitude) * 5.192296858534828e+33f;  // 2^112
  const uint32_t special = magnitude | 0x7f800000u;                        // infinity or NaN
  const uint32_t bits = magnitude >= 0x0f800000u ? special : bits_of_float(finite);
  return float_of_bits(bits | sign);
}

BLSGAN_HD uint16_t to_half(float value) {
  const uint32_t bits = bits_of_float(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Normal results: round to nearest even on the 13 bits that go.
  const uint32_t normal = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal results: adding 0.5 aligns the mantissa so that the addition itself rounds.
  const uint32_t subnormal = bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  return static_cast<uint16_t>(sign | (magnitude >= 0x47800000u ? special : finite));
}

BLSGAN_HD float from_bfloat16(uint16_t value) {
  return float_of_bits(static_cast<uint32_t>(value) << 16);
}

BLSGAN_HD uint16_t to_bfloat16(float value) {
  const uint32_t bits = bits_of_float(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

struct Float16 {
  using Storage = uint16_t;
  BLSGAN_HD static float read(uint16_t v) { return from_half(v); }
  BLSGAN_HD static uint16_t write(float v) { return to_half(v); }
  BLSGAN_HD static bool is_set(uint16_t v) { return (v & 0x7fffu) != 0; }
};
struct BFloat16 {
  using Storage = uint16_t;
  BLSGAN_HD static float read(uint16_t v) { return from_bfloat16(v); }
  BLSGAN_HD static uint16_t write(float v) { return to_bfloat16(v); }
  BLSGAN_HD static bool is_set(uint16_t v) { return (v & 0x7fffu) != 0; }
};
struct Float32 {
  using Storage = float;
  BLSGAN_HD static float read(float v) { return v; }
  BLSGAN_HD static float write(float v) { return v; }
  BLSGAN_HD static bool is_set(float v) { return v != 0.0f; }
};
struct Float64 {
  using Storage = double;
  BLSGAN_HD static double read(double v) { return v; }
  BLSGAN_HD static double write(double v) { return v; }
  BLSGAN_HD static bool is_set(double v) { return v != 0.0; }
};
struct UInt8 {
  using Storage = uint8_t;
  BLSGAN_HD static float read(uint8_t v) { return static_cast<float>(v); }
  BLSGAN_HD static uint8_t write(float v) { return v != 0.0f ? 1 : 0; }
  BLSGAN_HD static bool is_set(uint8_t v) { return v != 0; }
};

template <typename Element, typename Pointer>
BLSGAN_HD auto address(const BasicView<Pointer>& view, int64_t batch, int64_t channel, int64_t p) {
  using Storage = typename Element::Storage;
  const int64_t offset =
      batch * view.stride_batch + channel * view.stride_channel + p * view.stride_pixel;
  if constexpr (std::is_const_v<std::remove_pointer_t<Pointer>>) {
    return static_cast<const Storage*>(view.data) + offset;
  } else {
    return static_cast<Storage*>(view.data) + offset;
  }
}

// The four loops below have a unit-stride form, which vectorises, and a strided one.
template <typename Element, typename T>
BLSGAN_HD void read_as(const View& view, int64_t batch, int64_t channel, int64_t p, int count,
                       T* __restrict buffer) {
  const auto* __restrict source = address<Element>(view, batch, channel, p);
  const int64_t step = view.stride_pixel;
  if (step == 1) {
BLSGAN_INDEPENDENT
    for (int t = 0; t < count; ++t) buffer[t] = static_cast<T>(Element::read(source[t]));
  } else {
    for (int t = 0; t < count; ++t) buffer[t] = static_cast<T>(Element::read(source[t * step]));
  }
}

template <typename Element, typename T>
BLSGAN_HD int read_mask_as(const View& view, int64_t batch, int64_t channel, int64_t p, int count,
                           T* __restrict buffer) {
  const auto* __restrict source = address<Element>(view, batch, channel, p);
  const int64_t step = view.stride_pixel;
  int set = 0;
  if (step == 1) {
#pragma omp simd reduction(+ : set)
    for (int t = 0; t < count; ++t) {
      const int covered = Element::is_set(source[t]) ? 1 : 0;
      buffer[t] = static_cast<T>(covered);
      set += covered;
    }
  } else {
    for (int t = 0; t < count; ++t) {
      const int covered = Element::is_set(source[t * step]) ? 1 : 0;
      buffer[t] = static_cast<T>(covered);
      set += covered;
    }
  }
  return set;
}

template <typename Element, typename T>
BLSGAN_HD void write_as(const MutableView& view, int64_t batch, int64_t channel, int64_t p,
                        int count, const T* __restrict values) {
  using Value = decltype(Element::read(typename Element::Storage{}));
  auto* __restrict target = address<Element>(view, batch, channel, p);
  const int64_t step = view.stride_pixel;
  if (step == 1) {
BLSGAN_INDEPENDENT
    for (int t = 0; t < count; ++t) target[t] = Element::write(static_cast<Value>(values[t]));
  } else {
    for (int t = 0; t < count; ++t) {
      target[t * step] = Element::write(static_cast<Value>(values[t]));
    }
  }
}

template <typename T>
BLSGAN_HD const T* read_any(const View& view, int64_t batch, int64_t channel, int64_t p, int count,
                            T* buffer) {
  switch (view.dtype) {
    case DType::kFloat32:
      read_as<Float32>(view, batch, channel, p, count, buffer);
      break;
    case DType::kFloat64:
      read_as<Float64>(view, batch, channel, p, count, buffer);
      break;
    case DType::kFloat16:
      read_as<Float16>(view, batch, channel, p, count, buffer);
      break;
    case DType::kBFloat16:
      read_as<BFloat16>(view, batch, channel, p, count, buffer);
      break;
    case DType::kUInt8:
      read_as<UInt8>(view, batch, channel, p, count, buffer);
      break;
  }
  return buffer;
}

template <typename T>
BLSGAN_HD int read_mask_any(const View& view, int64_t batch, int64_t channel, int64_t p, int count,
                            T* buffer) {
  switch (view.dtype) {
    case DType::kFloat32:
      return read_mask_as<Float32>(view, batch, channel, p, count, buffer);
    case DType::kFloat64:
      return read_mask_as<Float64>(view, batch, channel, p, count, buffer);
    case DType::kFloat16:
      return read_mask_as<Float16>(view, batch, channel, p, count, buffer);
    case DType::kBFloat16:
      return read_mask_as<BFloat16>(view, batch, channel, p, count, buffer);
    case DType::kUInt8:
      return read_mask_as<UInt8>(view, batch, channel, p, count, buffer);
  }
  return 0;
}

template <typename T>
BLSGAN_HD void write_any(const MutableView& view, int64_t batch, int64_t channel, int64_t p,
                         int count, const T* values) {
  switch (view.dtype) {
    case DType::kFloat32:
      return write_as<Float32>(view, batch, channel, p, count, values);
    case DType::kFloat64:
      return write_as<Float64>(view, batch, channel, p, count, values);
    case DType::kFloat16:
      return write_as<Float16>(view, batch, channel, p, count, values);
    case DType::kBFloat16:
      return write_as<BFloat16>(view, batch, channel, p, count, values);
    case DType::kUInt8:
      return write_as<UInt8>(view, batch, channel, p, count, values);
  }
}

BLSGAN_CLONES void convert_tile(const View& view, int64_t batch, int64_t channel, int64_t p,
                                int count, float* buffer) {
  read_any(view, batch, channel, p, count, buffer);
}
BLSGAN_CLONES void convert_tile_wide(const View& view, int64_t batch, int64_t channel, int64_t p,
                                     int count, double* buffer) {
  read_any(view, batch, channel, p, count, buffer);
}
BLSGAN_CLONES int convert_mask(const View& view, int64_t batch, int64_t channel, int64_t p,
                               int count, float* buffer) {
  return read_mask_any(view, batch, channel, p, count, buffer);
}
BLSGAN_CLONES int convert_mask_wide(const View& view, int64_t batch, int64_t channel, int64_t p,
                                    int count, double* buffer) {
  return read_mask_any(view, batch, channel, p, count, buffer);
}
BLSGAN_CLONES void convert_mask_bytes(const View& view, int64_t batch, int64_t channel, int64_t p,
                                      int count, uint8_t* buffer) {
  read_mask_any(view, batch, channel, p, count, buffer);
}
BLSGAN_CLONES void write_tile(const MutableView& view, int64_t batch, int64_t channel, int64_t p,
                              int count, const float* values) {
  write_any(view, batch, channel, p, count, values);
}
BLSGAN_CLONES void write_tile_wide(const MutableView& view, int64_t batch, int64_t channel,
                                   int64_t p, int count, const double* values) {
  write_any(view, batch, channel, p, count, values);
}

}  // namespace

const float* load_tile(const View& view, int64_t batch, int64_t channel, int64_t p, int count,
                       float* buffer) {
  if (view.dtype == DType::kFloat32 && view.stride_pixel == 1) {
    return address<Float32>(view, batch, channel, p);
  }
  convert_tile(view, batch, channel, p, count, buffer);
  return buffer;
}

const double* load_tile(const View& view, int64_t batch, int64_t channel, int64_t p, int count,
                        double* buffer) {
  if (view.dtype == DType::kFloat64 && view.stride_pixel == 1) {
    return address<Float64>(view, batch, channel, p);
  }
  convert_tile_wide(view, batch, channel, p, count, buffer);
  return buffer;
}

int load_mask(const View& view, int64_t batch, int64_t channel, int64_t p, int count,
              float* buffer) {
  return convert_mask(view, batch, channel, p, count, buffer);
}

int load_mask(const View& view, int64_t batch, int64_t channel, int64_t p, int count,
              double* buffer) {
  return convert_mask_wide(view, batch, channel, p, count, buffer);
}

const uint8_t* mask_tile(const View& view, int64_t batch, int64_t channel, int64_t p, int count,
                         uint8_t* buffer) {
  if (view.dtype == DType::kUInt8 && view.stride_pixel == 1) {
    return address<UInt8>(view, batch, channel, p);
  }
  convert_mask_bytes(view, batch, channel, p, count, buffer);
  return buffer;
}

void store_tile(const MutableView& view, int64_t batch, int64_t channel, int64_t p, int count,
                const float* values) {
  write_tile(view, batch, channel, p, count, values);
}

void store_tile(const MutableView& view, int64_t batch, int64_t channel, int64_t p, int count,
                const double* values) {
  write_tile_wide(view, batch, channel, p, count, values);
}

void store_zeros(const MutableView& view, int64_t batch, int64_t channel, int64_t p, int count) {
  const int64_t size = size_of(view.dtype);
  char* target = static_cast<char*>(view.data) +
                 (batch * view.stride_batch + channel * view.stride_channel +
                  p * view.stride_pixel) *
                     size;
  if (view.stride_pixel == 1) {
    std::memset(target, 0, static_cast<size_t>(count * size));
    return;
  }
  for (int t = 0; t < count; ++t) {
    std::memset(target + t * view.stride_pixel * size, 0, static_cast<size_t>(size));
  }
}

void advise_large_pages(const MutableView& view, int64_t elements) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kLargePage = uintptr_t{2} << 20;
  const auto bytes = static_cast<uintptr_t>(elements * size_of(view.dtype));
  if (view.data == nullptr || bytes < 4 * kLargePage) return;
  const auto begin = reinterpret_cast<uintptr_t>(view.data);
  const uintptr_t first = (begin + kLargePage - 1) & ~(kLargePage - 1);
  const uintptr_t last = (begin + bytes) & ~(kLargePage - 1);
  // A refusal only costs speed.
  if (last > first) (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)view;
  (void)elements;
#endif
}

void finish_soft_tissue_gradient(const Shape& shape, const double* partials,
                                 const MutableView& grad_soft_tissue) {
  if (is_map(grad_soft_tissue)) return;
  const int64_t chunks = chunks_per_image(shape);
  for (int64_t b = 0; b < shape.batch; ++b) {
    double sum = 0.0;
    for (int64_t c = 0; c < chunks; ++c) sum += partials[b * chunks + c];
    store_scalar(grad_soft_tissue, b, sum);
  }
}

void finish_rmse(int64_t items, const double* partials, const MutableView& loss,
                 double* statistics) {
  double squares = 0.0, count = 0.0;
  for (int64_t item = 0; item < items; ++item) {
    squares += partials[item * kRmseSums];
    count += partials[item * kRmseSums + 1];
  }
  statistics[0] = root_mean_square(squares, count);
  statistics[1] = count;
  store_scalar(loss, 0, statistics[0]);
}

}  // namespace blsgan::cpu

namespace blsgan {

const char* cpu_dispatch_level() {
#if BLSGAN_HAS_CLONES
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return "x86-64-v4";
  if (__builtin_cpu_supports("x86-64-v3")) return "x86-64-v3";
  return "x86-64";
#elif defined(__aarch64__)
  return "aarch64";
#else
  return "default";
#endif
}

}  // namespace blsgan
