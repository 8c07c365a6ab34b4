#include "composition.cuh"
#include "rmse.cuh"

namespace blsgan {
namespace {

using namespace cuda;
constexpr const char* kOp = "layer_loss";

// Layers do not mix, so one loop serves every N.
template <typename T>
__global__ void __launch_bounds__(kThreads) forward(LayerLoss a) {
  const int64_t items = item_count(a.shape);
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Pixels at = pixels_of(a.shape, item);
    T sums[kRmseSums] = {};
    if (at.count > 0) {
#pragma unroll 2
      for (int64_t i = 0; i < a.shape.layers; ++i) {
        const uint32_t mask = load_mask(a.masks, at, i);
        if (mask == 0) continue;
        T layer[kLanes], truth[kLanes];
        load(a.layers, at, i, layer);
        load(a.true_layers, at, i, truth);
#pragma unroll
        for (int t = 0; t < kLanes; ++t) {
          if (is_set(mask, t)) {
            const T difference = layer[t] - truth[t];
            sums[0] += difference * difference;
            sums[1] += T(1);
          }
        }
      }
    }
    store_partials<kRmseSums>(a.partials, item, sums);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kMinBlocks<T>) backward(LayerLossBackward a) {
  const int64_t items = item_count(a.shape);
  const T slope = rmse_slope<T>(a.grad_loss, a.statistics);
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Pixels at = pixels_of(a.shape, item);
    if (at.count == 0) continue;
#pragma unroll 2
    for (int64_t i = 0; i < a.shape.layers; ++i) {
      const uint32_t mask = load_mask(a.masks, at, i);
      T grad[kLanes] = {};
      if (mask != 0) {
        T layer[kLanes], truth[kLanes];
        load(a.layers, at, i, layer);
        load(a.true_layers, at, i, truth);
#pragma unroll
        for (int t = 0; t < kLanes; ++t) {
          grad[t] = is_set(mask, t) ? slope * (layer[t] - truth[t]) : T(0);
        }
      }
      store(a.grad_layers, at, i, grad);
      if (a.grad_true_layers.data != nullptr) {
#pragma unroll
        for (int t = 0; t < kLanes; ++t) grad[t] = -grad[t];
        store(a.grad_true_layers, at, i, grad);
      }
    }
  }
}

}  // namespace

void run_cuda(const LayerLoss& args, const CudaContext& context) {
  const int64_t items = item_count(args.shape);
  launch(context.wide ? forward<double> : forward<float>, args, items, context, kOp);
  launch_finish(finish_rmse, FinishRmse{items, args.partials, args.loss, args.statistics}, 1,
                context, kOp);
}

void run_cuda(const LayerLossBackward& args, const CudaContext& context) {
  launch(context.wide ? backward<double> : backward<float>, args, item_count(args.shape), context,
         kOp);
}

}  // namespace blsgan
