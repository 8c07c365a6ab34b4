#include "composition.cuh"

namespace blsgan {
namespace {

using namespace cuda;
constexpr const char* kOp = "supervisor_loss";

// Pixels that two or more bones cover.
__device__ __forceinline__ uint32_t overlap_of(const View& masks, const Pixels& at,
                                               int64_t layers) {
  uint32_t any = 0, shared = 0;
#pragma unroll 2
  for (int64_t i = 0; i < layers; ++i) {
    const uint32_t mask = load_mask(masks, at, i);
    shared |= any & mask;
    any |= mask;
  }
  return shared;
}

__device__ __forceinline__ uint32_t target_of(SupervisorTarget target, uint32_t mask,
                                              uint32_t overlap, bool real) {
  if (target == SupervisorTarget::kExclusive) return mask & ~overlap;
  return real && target == SupervisorTarget::kZeros ? 0u : mask;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) forward(SupervisorLoss a) {
  const int64_t items = item_count(a.shape);
  const int64_t layers = a.shape.layers;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Pixels at = pixels_of(a.shape, item);
    T sums[kSupervisorSums] = {};
    if (at.count > 0) {
      const uint32_t overlap = overlap_of(a.masks, at, layers);
      for (int64_t i = 0; i < layers; ++i) {
        const uint32_t mask = load_mask(a.masks, at, i);
        T logits[2][kLanes];  // both of the bone's channels are in flight together
        load(a.logits, at, i, logits[0]);
        load(a.logits, at, i + layers, logits[1]);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t target = target_of(a.target, mask, overlap, half == 1);
#pragma unroll
          for (int t = 0; t < kLanes; ++t) {
            if (t >= at.count) continue;
            const T z = logits[half][t];
            const Sigmoid<T> s(z);
            const T wanted = is_set(target, t) ? T(1) : T(0);
            sums[0] += cross_entropy(z, s.softplus, wanted);
            sums[1] += s.value * wanted;
            sums[2] += s.value;
            sums[3] += wanted;
            if (is_set(overlap, t)) {
              sums[4] += cross_entropy(z, s.softplus, T(1));
              sums[5] += s.value;
              sums[6] += T(1);
            }
          }
        }
      }
    }
    store_partials<kSupervisorSums>(a.partials, item, sums);
  }
}

struct Finish {
  int64_t items;
  double elements;
  bool hybrid;
  const double* partials;
  MutableView loss;
  double* statistics;
};

__global__ void __launch_bounds__(kThreads) finish(Finish a) {
  double sums[kSupervisorSums];
  sum_partials<kSupervisorSums>(a.partials, 0, a.items, sums);
  if (threadIdx.x == 0) {
    const SupervisorStatistics result = supervisor_statistics(
        {sums[0], sums[1], sums[2], sums[3], sums[4], sums[5], sums[6]}, a.elements, a.hybrid);
    a.statistics[0] = result.entropy;
    a.statistics[1] = result.overlap_entropy;
    a.statistics[2] = result.dice;
    a.statistics[3] = result.dice_target;
    a.statistics[4] = result.dice_overlap;
    store_scalar(a.loss, 0, result.loss);
  }
}

// Blocks that must fit a multiprocessor: as many as the registers allow without a spill.
template <typename T>
constexpr int kBlocks = sizeof(T) == 8 ? 2 : 3;

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) backward(SupervisorLossBackward a) {
  const int64_t items = item_count(a.shape);
  const int64_t layers = a.shape.layers;
  const SupervisorSlopes<T> slopes(a.statistics, load_scalar<double>(a.grad_loss, 0));
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Pixels at = pixels_of(a.shape, item);
    if (at.count == 0) continue;
    const uint32_t overlap = overlap_of(a.masks, at, layers);
    for (int64_t i = 0; i < layers; ++i) {
      const uint32_t mask = load_mask(a.masks, at, i);
      T logits[2][kLanes];
      load(a.logits, at, i, logits[0]);
      load(a.logits, at, i + layers, logits[1]);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t target = target_of(a.target, mask, overlap, half == 1);
        T grad[kLanes];
#pragma unroll
        for (int t = 0; t < kLanes; ++t) {
          grad[t] = slopes.at(SigmoidSlope<T>(logits[half][t]), is_set(target, t) ? T(1) : T(0),
                              is_set(overlap, t) ? T(1) : T(0));
        }
        store(a.grad_logits, at, i + half * layers, grad);
      }
    }
  }
}

}  // namespace

void run_cuda(const SupervisorLoss& args, const CudaContext& context) {
  const int64_t items = item_count(args.shape);
  launch(context.wide ? forward<double> : forward<float>, args, items, context, kOp);
  const double elements =
      2.0 * static_cast<double>(args.shape.batch * args.shape.layers * args.shape.pixels());
  launch_finish(
      finish, Finish{items, elements, args.hybrid, args.partials, args.loss, args.statistics}, 1,
      context, kOp);
}

void run_cuda(const SupervisorLossBackward& args, const CudaContext& context) {
  launch(context.wide ? backward<double> : backward<float>, args, item_count(args.shape), context,
         kOp);
}

}  // namespace blsgan
