#include "composition.cuh"

namespace blsgan {
namespace {

using namespace cuda;
constexpr const char* kOp = "compose_layers";

template <typename T, int N>
__global__ void __launch_bounds__(kThreads, kMinBlocks<T>) forward(ComposeLayers a) {
  const int64_t items = item_count(a.shape);
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Pixels at = pixels_of(a.shape, item);
    if (at.count == 0) continue;
    const T inverse_soft = inverse_soft_transmission<T>(a.soft_tissue, at.batch);
    LayerTile<T, N> tile;
    tile.load(a.layers, a.masks, at, a.shape.layers);
    Composition<T> pixel[kLanes];
    tile.compose(pixel, inverse_soft);
    T composed[kLanes];
#pragma unroll
    for (int t = 0; t < kLanes; ++t) composed[t] = pixel[t].value();
    store(a.composed, at, 0, composed);
  }
}

template <typename T, int N>
__global__ void __launch_bounds__(kThreads, kMinBlocks<T>) backward(ComposeLayersBackward a) {
  const int64_t items = item_count(a.shape);
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Pixels at = pixels_of(a.shape, item);
    T sums[1] = {T(0)};
    if (at.count > 0) {
      const T inverse_soft = inverse_soft_transmission<T>(a.soft_tissue, at.batch);
      LayerTile<T, N> tile;
      tile.load(a.layers, a.masks, at, a.shape.layers);
      T grad[kLanes];
      load(a.grad_composed, at, 0, grad);
      Composition<T> pixel[kLanes];
      tile.compose(pixel, inverse_soft);
      sums[0] = tile.backward(pixel, grad, inverse_soft, a.grad_layers);
    }
    store_partials<1>(a.partials, item, sums);
  }
}

}  // namespace

void run_cuda(const ComposeLayers& args, const CudaContext& context) {
  launch(BLSGAN_CHOOSE(forward, context.wide, args.shape.layers), args, item_count(args.shape),
         context, kOp);
}

void run_cuda(const ComposeLayersBackward& args, const CudaContext& context) {
  launch(BLSGAN_CHOOSE(backward, context.wide, args.shape.layers), args, item_count(args.shape),
         context, kOp);
  launch_finish(
      finish_soft_tissue,
      FinishSoftTissue{args.shape, args.soft_tissue, args.partials, args.grad_soft_tissue},
      args.shape.batch, context, kOp);
}

}  // namespace blsgan
