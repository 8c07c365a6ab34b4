#include "composition.cuh"

namespace blsgan {
namespace {

using namespace cuda;
constexpr const char* kOp = "compose_layers";

// Left free, the compiler would spill for many layers of float32 to fit one block more.
template <typename T, int N, template <typename> class Law>
__global__ void __launch_bounds__(kThreads, N == 0 && sizeof(T) == 4 ? 2 : kMinBlocks<T>)
    forward(ComposeLayers a) {
  const int64_t items = item_count(a.shape);
  const Law<T> law(a.law);
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Pixels at = pixels_of(a.shape, item);
    if (at.count == 0) continue;
    T k[kLanes];
    load_soft_tissue(a.soft_tissue, at, k);
    LayerTile<T, N> tile;
    tile.load(a.layers, a.masks, at, a.shape.layers);
    Composition<T> pixel[kLanes];
    tile.compose(law, k, pixel);
    T composed[kLanes];
#pragma unroll
    for (int t = 0; t < kLanes; ++t) composed[t] = law.value(pixel[t]);
    store(a.composed, at, 0, composed);
  }
}

template <typename T, int N, template <typename> class Law>
__global__ void __launch_bounds__(kThreads, kMinBlocks<T>) backward(ComposeLayersBackward a) {
  const int64_t items = item_count(a.shape);
  const Law<T> law(a.law);
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Pixels at = pixels_of(a.shape, item);
    T sums[1] = {T(0)};
    if (at.count > 0) {
      T k[kLanes];
      load_soft_tissue(a.soft_tissue, at, k);
      LayerTile<T, N> tile;
      tile.load(a.layers, a.masks, at, a.shape.layers);
      T grad[kLanes];
      load(a.grad_composed, at, 0, grad);
      Composition<T> pixel[kLanes];
      tile.compose(law, k, pixel);
      sums[0] =
          differentiate(law, tile, pixel, k, grad, a.grad_layers, a.grad_soft_tissue);
    }
    store_partials<1>(a.partials, item, sums);
  }
}

}  // namespace

void run_cuda(const ComposeLayers& args, const CudaContext& context) {
  launch(BLSGAN_CHOOSE_BY_LAW(forward, args, context.wide), args, item_count(args.shape), context,
         kOp);
}

void run_cuda(const ComposeLayersBackward& args, const CudaContext& context) {
  launch(BLSGAN_CHOOSE_BY_LAW(backward, args, context.wide), args, item_count(args.shape), context,
         kOp);
  launch_finish_soft_tissue(args, context, kOp);
}

}  // namespace blsgan
