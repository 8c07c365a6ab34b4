#include "common.cuh"

namespace blsgan {
namespace {

using namespace cuda;
constexpr const char* kOp = "synthesize_overlap";

// Neighbourhoods are two-dimensional here: a thread takes single pixels, a warp 32 neighbouring
// ones, and the neighbours come from the first-level cache.

template <typename T>
__device__ __forceinline__ T value_at(const View& view, int64_t batch, int64_t channel,
                                      int64_t p) {
  const int64_t offset =
      batch * view.stride_batch + channel * view.stride_channel + p * view.stride_pixel;
  switch (view.dtype) {
    case DType::kFloat64:
      return static_cast<T>(static_cast<const double*>(view.data)[offset]);
    case DType::kFloat16:
      return static_cast<T>(__half2float(static_cast<const __half*>(view.data)[offset]));
    case DType::kBFloat16:
      return static_cast<T>(
          __bfloat162float(static_cast<const __nv_bfloat16*>(view.data)[offset]));
    case DType::kUInt8:
      return static_cast<T>(static_cast<const uint8_t*>(view.data)[offset]);
    default:
      return static_cast<T>(static_cast<const float*>(view.data)[offset]);
  }
}

template <typename T>
__device__ __forceinline__ void write_at(const MutableView& view, int64_t batch, int64_t channel,
                                         int64_t p, T value) {
  const int64_t offset =
      batch * view.stride_batch + channel * view.stride_channel + p * view.stride_pixel;
  switch (view.dtype) {
    case DType::kFloat64:
      static_cast<double*>(view.data)[offset] = static_cast<double>(value);
      break;
    case DType::kFloat16:
    case DType::kBFloat16:
      static_cast<uint16_t*>(view.data)[offset] = static_cast<uint16_t>(
          half_bits(static_cast<float>(value), view.dtype == DType::kFloat16));
      break;
    case DType::kUInt8:
      static_cast<uint8_t*>(view.data)[offset] = value != T(0) ? 1 : 0;
      break;
    default:
      static_cast<float*>(view.data)[offset] = static_cast<float>(value);
  }
}

__device__ __forceinline__ bool mask_at(const View& view, int64_t batch, int64_t channel,
                                        int64_t p) {
  if (view.dtype == DType::kUInt8) {
    return static_cast<const uint8_t*>(view.data)[batch * view.stride_batch +
                                                  channel * view.stride_channel +
                                                  p * view.stride_pixel] != 0;
  }
  if (view.dtype == DType::kFloat64) return value_at<double>(view, batch, channel, p) != 0.0;
  return value_at<float>(view, batch, channel, p) != 0.0f;
}

__device__ __forceinline__ View as_input(const MutableView& output) {
  return {output.data, output.stride_batch, output.stride_channel, output.stride_pixel,
          output.dtype};
}

template <typename T>
__device__ __forceinline__ RowShift<T> shift_of(const SynthesizeOverlap& a, int64_t batch,
                                                int64_t layer) {
  double shift = 0.0;
  if (layer == 0) shift = load_scalar<double>(a.shift_upper, batch);
  if (layer == 1) shift = -load_scalar<double>(a.shift_lower, batch);
  return RowShift<T>::of(shift, a.shape.height);
}

// Whether the mask grown by one pixel covers (y, x); rows outside the image are empty.
__device__ __forceinline__ bool grown_at(const SynthesizeOverlap& a, int64_t batch, int64_t layer,
                                         int64_t y, int64_t x) {
  if (y < 0 || y >= a.shape.height) return false;
  for (int64_t v = y - 1; v <= y + 1; ++v) {
    if (v < 0 || v >= a.shape.height) continue;
    for (int64_t u = x - 1; u <= x + 1; ++u) {
      if (u >= 0 && u < a.shape.width && mask_at(a.masks, batch, layer, v * a.shape.width + u)) {
        return true;
      }
    }
  }
  return false;
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2) move_masks(SynthesizeOverlap a) {
  const int64_t items = item_count(a.shape), per_image = chunks_per_image(a.shape);
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t batch = item / per_image, begin = item % per_image * kChunkPixels;
    T sums[kSynthesisSums] = {};
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t p = begin + lane * kThreads + threadIdx.x;
      if (p >= a.shape.pixels()) break;
      const int64_t y = p / a.shape.width, x = p % a.shape.width;
      int coverage = 0;
      for (int64_t i = 0; i < a.shape.layers; ++i) {
        const RowShift<T> shift = shift_of<T>(a, batch, i);
        const int64_t row = y - shift.whole;
        const bool covered =
            (shift.first_decides() && grown_at(a, batch, i, row, x)) ||
            (shift.second_decides() && grown_at(a, batch, i, row - 1, x));
        coverage += covered ? 1 : 0;
        write_at(a.shifted_masks, batch, i, p, covered ? 1.0f : 0.0f);
      }
      a.planes[batch * a.shape.pixels() + p] = coverage > 1 ? 1 : 0;
      if (coverage > 1) {
        sums[0] += value_at<T>(a.background, batch, 0, p);
        sums[1] += T(1);
      }
    }
    store_partials<kSynthesisSums>(a.partials, item, sums);
  }
}

__global__ void __launch_bounds__(kThreads) finish(SynthesizeOverlap a) {
  const int64_t chunks = chunks_per_image(a.shape), batch = blockIdx.x;
  double sums[kSynthesisSums];
  sum_partials<kSynthesisSums>(a.partials, batch * chunks, (batch + 1) * chunks, sums);
  if (threadIdx.x == 0) {
    store_scalar(a.soft_tissue, batch,
                 sums[1] > 0.0 ? clamp_soft_tissue(sums[0] / sums[1]) : 0.0);
  }
}

// Layer `layer` after its shift, where its moved mask covers (y, x).
template <typename T>
__device__ __forceinline__ T layer_at(const SynthesizeOverlap& a, int64_t batch, int64_t layer,
                                      int64_t y, int64_t x) {
  const RowShift<T> shift = shift_of<T>(a, batch, layer);
  const int64_t first = y - shift.whole, second = first - 1;
  const int64_t height = a.shape.height, width = a.shape.width;
  const T upper = first >= 0 && first < height
                      ? value_at<T>(a.image, batch, 0, first * width + x)
                      : T(0);
  const T lower = shift.fraction != T(0) && second >= 0 && second < height
                      ? value_at<T>(a.image, batch, 0, second * width + x)
                      : T(0);
  return shift.mix(upper, lower);
}

template <typename T>
__device__ __forceinline__ T composed_at(const SynthesizeOverlap& a, const View& moved,
                                         int64_t batch, int64_t y, int64_t x, T inverse_soft) {
  const TransmissionLaw<T> law;
  Composition<T> pixel = law.start();
  for (int64_t i = 0; i < a.shape.layers; ++i) {
    if (mask_at(moved, batch, i, y * a.shape.width + x)) {
      law.add(pixel, layer_at<T>(a, batch, i, y, x), T(1), inverse_soft);
    }
  }
  return clamp_unit(law.value(pixel));
}

// Sobel's gradient of the overlap's mask at (y, x), the mask repeated beyond the image's border; no
// gradient outside the image.
struct Gradient {
  int dx = 0, dy = 0, norm = 0;
};
__device__ __forceinline__ Gradient gradient_at(const uint8_t* overlap, const Shape& shape,
                                                int64_t y, int64_t x) {
  Gradient g;
  if (y < 0 || y >= shape.height || x < 0 || x >= shape.width) return g;
  const auto at = [&](int64_t v, int64_t u) -> int {
    const int64_t row = v < 0 ? 0 : (v < shape.height ? v : shape.height - 1);
    const int64_t column = u < 0 ? 0 : (u < shape.width ? u : shape.width - 1);
    return overlap[row * shape.width + column];
  };
  const int corner = at(y + 1, x + 1) - at(y - 1, x - 1);
  const int other = at(y - 1, x + 1) - at(y + 1, x - 1);
  g.dx = corner + other + 2 * (at(y, x + 1) - at(y, x - 1));
  g.dy = corner - other + 2 * (at(y + 1, x) - at(y - 1, x));
  g.norm = (g.dx < 0 ? -g.dx : g.dx) + (g.dy < 0 ? -g.dy : g.dy);
  return g;
}

// Planes of bytes, 0 or 1, one after another: the overlap, its edge.
struct Planes {
  Shape shape;
  uint8_t* planes;

  __device__ __forceinline__ uint8_t* of(int64_t which, int64_t batch) const {
    return planes + (which * shape.batch + batch) * shape.pixels();
  }
};

__global__ void __launch_bounds__(kThreads) find_edges(Planes a) {
  const int64_t items = item_count(a.shape), per_image = chunks_per_image(a.shape);
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t batch = item / per_image, begin = item % per_image * kChunkPixels;
    const uint8_t* overlap = a.of(0, batch);
    uint8_t* edge = a.of(1, batch);
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t p = begin + lane * kThreads + threadIdx.x;
      if (p >= a.shape.pixels()) break;
      const int64_t y = p / a.shape.width, x = p % a.shape.width;
      const Gradient g = gradient_at(overlap, a.shape, y, x);
      bool kept = false;
      if (g.norm > 0) {
        const auto norm = [&](int64_t v, int64_t u) {
          return gradient_at(overlap, a.shape, v, u).norm;
        };
        kept = is_canny_edge(g.dx, g.dy, g.norm,
                             {norm(y, x - 1), norm(y, x + 1), norm(y - 1, x), norm(y + 1, x),
                              norm(y - 1, x - 1), norm(y - 1, x + 1), norm(y + 1, x - 1),
                              norm(y + 1, x + 1)});
      }
      edge[p] = kept ? 1 : 0;
    }
  }
}

__device__ __forceinline__ bool on_rim(const Planes& a, int64_t batch, int64_t y, int64_t x) {
  const uint8_t* edge = a.of(1, batch);
  for (int64_t v = y - kRimBefore; v <= y + kRimBehind; ++v) {
    if (v < 0 || v >= a.shape.height) continue;
    for (int64_t u = x - kRimBefore; u <= x + kRimBehind; ++u) {
      if (u >= 0 && u < a.shape.width && edge[v * a.shape.width + u] != 0) return true;
    }
  }
  return false;
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2) compose(SynthesizeOverlap a) {
  const int64_t items = item_count(a.shape), per_image = chunks_per_image(a.shape);
  const int64_t height = a.shape.height, width = a.shape.width;
  const View moved = as_input(a.shifted_masks);
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t batch = item / per_image, begin = item % per_image * kChunkPixels;
    const TransmissionLaw<T> law;
    const T inverse_soft =
        law.soft_factor(load_scalar<T>(as_input(a.soft_tissue), batch)).value;
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t p = begin + lane * kThreads + threadIdx.x;
      if (p >= a.shape.pixels()) break;
      const int64_t y = p / width, x = p % width;
      Composition<T> pixel = law.start();
      for (int64_t i = 0; i < a.shape.layers; ++i) {
        T layer = T(0);
        if (mask_at(moved, batch, i, p)) {
          layer = layer_at<T>(a, batch, i, y, x);
          law.add(pixel, layer, T(1), inverse_soft);
        }
        write_at(a.layers, batch, i, p, layer);
      }
      T result = clamp_unit(law.value(pixel));
      if (pixel.coverage > T(0) && on_rim(Planes{a.shape, a.planes}, batch, y, x)) {
        result = T(0);
        for (int v = -1; v <= 1; ++v) {
          for (int u = -1; u <= 1; ++u) {
            const T weight = (v == 0 ? T(0.5) : T(0.25)) * (u == 0 ? T(0.5) : T(0.25));
            result += weight * composed_at<T>(a, moved, batch, mirrored(y, v, height),
                                              mirrored(x, u, width), inverse_soft);
          }
        }
      }
      write_at(a.composed, batch, 0, p, result);
    }
  }
}

}  // namespace

void run_cuda(const SynthesizeOverlap& args, const CudaContext& context) {
  const int64_t items = item_count(args.shape);
  launch(context.wide ? move_masks<double> : move_masks<float>, args, items, context, kOp);
  launch_finish(finish, args, args.shape.batch, context, kOp);
  launch(find_edges, Planes{args.shape, args.planes}, items, context, kOp);
  launch(context.wide ? compose<double> : compose<float>, args, items, context, kOp);
}

}  // namespace blsgan
