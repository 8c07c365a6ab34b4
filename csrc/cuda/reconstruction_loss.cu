#include "composition.cuh"
#include "rmse.cuh"

namespace blsgan {
namespace {

using namespace cuda;
constexpr const char* kOp = "reconstruction_loss";

// Left free, the compiler would spill in float32 to fit one block more.
template <typename T, int N, template <typename> class Law>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 2 : 0) forward(ReconstructionLoss a) {
  const int64_t items = item_count(a.shape);
  const Law<T> law(a.law);
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Pixels at = pixels_of(a.shape, item);
    T sums[kRmseSums] = {};
    if (at.count > 0) {
      T k[kLanes];
      load_soft_tissue(a.soft_tissue, at, k);
      LayerTile<T, N> tile;
      tile.load(a.layers, a.masks, at, a.shape.layers);
      T image[kLanes];
      load(a.image, at, 0, image);
      Composition<T> pixel[kLanes];
      tile.compose(law, k, pixel);
#pragma unroll
      for (int t = 0; t < kLanes; ++t) {
        if (t < at.count && pixel[t].coverage > T(0)) {
          const T difference = law.value(pixel[t]) - image[t];
          sums[0] += difference * difference;
          sums[1] += T(1);
        }
      }
    }
    store_partials<kRmseSums>(a.partials, item, sums);
  }
}

template <typename T, int N, template <typename> class Law>
__global__ void __launch_bounds__(kThreads, kMinBlocks<T>) backward(ReconstructionLossBackward a) {
  const int64_t items = item_count(a.shape);
  const Law<T> law(a.law);
  const T slope = rmse_slope<T>(a.grad_loss, a.statistics);
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Pixels at = pixels_of(a.shape, item);
    T sums[1] = {T(0)};
    if (at.count > 0) {
      T k[kLanes];
      load_soft_tissue(a.soft_tissue, at, k);
      // Two layers of float64 do not fit the registers.
      LayerTile<T, sizeof(T) == 8 ? 0 : N> tile;
      tile.load(a.layers, a.masks, at, a.shape.layers);
      T grad[kLanes];
      load(a.image, at, 0, grad);
      Composition<T> pixel[kLanes];
      tile.compose(law, k, pixel);
#pragma unroll
      for (int t = 0; t < kLanes; ++t) {
        const T value = slope * (law.value(pixel[t]) - grad[t]);
        grad[t] = pixel[t].coverage > T(0) ? value : T(0);
      }
      if (a.grad_image.data != nullptr) {
        T result[kLanes];
#pragma unroll
        for (int t = 0; t < kLanes; ++t) result[t] = -grad[t];
        store(a.grad_image, at, 0, result);
      }
      sums[0] =
          differentiate(law, tile, pixel, k, grad, a.grad_layers, a.grad_soft_tissue);
    }
    store_partials<1>(a.partials, item, sums);
  }
}

}  // namespace

void run_cuda(const ReconstructionLoss& args, const CudaContext& context) {
  const int64_t items = item_count(args.shape);
  launch(BLSGAN_CHOOSE_BY_LAW(forward, args, context.wide), args, items, context, kOp);
  launch_finish(finish_rmse, FinishRmse{items, args.partials, args.loss, args.statistics}, 1,
                context, kOp);
}

void run_cuda(const ReconstructionLossBackward& args, const CudaContext& context) {
  launch(BLSGAN_CHOOSE_BY_LAW(backward, args, context.wide), args, item_count(args.shape), context,
         kOp);
  launch_finish_soft_tissue(args, context, kOp);
}

}  // namespace blsgan
