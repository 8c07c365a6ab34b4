#include "composition.cuh"
#include "rmse.cuh"

namespace blsgan {
namespace {

using namespace cuda;
constexpr const char* kOp = "reconstruction_loss";

template <typename T, int N>
__global__ void __launch_bounds__(kThreads) forward(ReconstructionLoss a) {
  const int64_t items = item_count(a.shape);
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Pixels at = pixels_of(a.shape, item);
    T sums[kRmseSums] = {};
    if (at.count > 0) {
      const T inverse_soft = inverse_soft_transmission<T>(a.soft_tissue, at.batch);
      LayerTile<T, N> tile;
      tile.load(a.layers, a.masks, at, a.shape.layers);
      T image[kLanes];
      load(a.image, at, 0, image);
      Composition<T> pixel[kLanes];
      tile.compose(pixel, inverse_soft);
#pragma unroll
      for (int t = 0; t < kLanes; ++t) {
        if (t < at.count && pixel[t].coverage > T(0)) {
          const T difference = pixel[t].value() - image[t];
          sums[0] += difference * difference;
          sums[1] += T(1);
        }
      }
    }
    store_partials<kRmseSums>(a.partials, item, sums);
  }
}

template <typename T, int N>
__global__ void __launch_bounds__(kThreads, kMinBlocks<T>) backward(ReconstructionLossBackward a) {
  const int64_t items = item_count(a.shape);
  const T slope = rmse_slope<T>(a.grad_loss, a.statistics);
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Pixels at = pixels_of(a.shape, item);
    T sums[1] = {T(0)};
    if (at.count > 0) {
      const T inverse_soft = inverse_soft_transmission<T>(a.soft_tissue, at.batch);
      LayerTile<T, N> tile;
      tile.load(a.layers, a.masks, at, a.shape.layers);
      T grad[kLanes];
      load(a.image, at, 0, grad);
      Composition<T> pixel[kLanes];
      tile.compose(pixel, inverse_soft);
#pragma unroll
      for (int t = 0; t < kLanes; ++t) {
        const T value = slope * (pixel[t].value() - grad[t]);
        grad[t] = pixel[t].coverage > T(0) ? value : T(0);
      }
      sums[0] = tile.backward(pixel, grad, inverse_soft, a.grad_layers);
      if (a.grad_image.data != nullptr) {
#pragma unroll
        for (int t = 0; t < kLanes; ++t) grad[t] = -grad[t];
        store(a.grad_image, at, 0, grad);
      }
    }
    store_partials<1>(a.partials, item, sums);
  }
}

}  // namespace

void run_cuda(const ReconstructionLoss& args, const CudaContext& context) {
  const int64_t items = item_count(args.shape);
  launch(BLSGAN_CHOOSE(forward, context.wide, args.shape.layers), args, items, context, kOp);
  launch_finish(finish_rmse, FinishRmse{items, args.partials, args.loss, args.statistics}, 1,
                context, kOp);
}

void run_cuda(const ReconstructionLossBackward& args, const CudaContext& context) {
  launch(BLSGAN_CHOOSE(backward, context.wide, args.shape.layers), args, item_count(args.shape),
         context, kOp);
  launch_finish(
      finish_soft_tissue,
      FinishSoftTissue{args.shape, args.soft_tissue, args.partials, args.grad_soft_tissue},
      args.shape.batch, context, kOp);
}

}  // namespace blsgan
