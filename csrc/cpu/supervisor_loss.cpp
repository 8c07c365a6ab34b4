#include "tile.h"

namespace blsgan {
namespace {

using cpu::kTile;
using cpu::Tiles;

// A tile's targets: one for each bone in either half of the channels, and the overlap.
template <typename T>
class Targets {
 public:
  explicit Targets(int64_t layers) : scratch_(layers + 2), layers_(layers) {
    T* none = scratch_[layers_ + 1];
    for (int t = 0; t < kTile; ++t) none[t] = T(0);
  }

  BLSGAN_HD void load(const View& masks, SupervisorTarget target, int64_t batch, int64_t p,
                      int count) {
    T* __restrict overlap = scratch_[layers_];
    zero_real_ = target == SupervisorTarget::kZeros;
    for (int t = 0; t < count; ++t) overlap[t] = T(0);
    for (int64_t i = 0; i < layers_; ++i) {
      T* __restrict mask = scratch_[i];
      cpu::load_mask(masks, batch, i, p, count, mask);
#pragma omp simd
      for (int t = 0; t < count; ++t) overlap[t] += mask[t];
    }
#pragma omp simd
    for (int t = 0; t < count; ++t) overlap[t] = overlap[t] > T(1) ? T(1) : T(0);
    if (target == SupervisorTarget::kExclusive) {
      for (int64_t i = 0; i < layers_; ++i) {
        T* __restrict mask = scratch_[i];
#pragma omp simd
        for (int t = 0; t < count; ++t) mask[t] = overlap[t] > T(0) ? T(0) : mask[t];
      }
    }
  }

  T* overlap() { return scratch_[layers_]; }
  T* of(int64_t channel) {
    if (channel < layers_) return scratch_[channel];
    return scratch_[zero_real_ ? layers_ + 1 : channel - layers_];
  }

 private:
  Tiles<T> scratch_;
  int64_t layers_;
  bool zero_real_ = false;
};

template <typename T>
BLSGAN_HD void forward(const SupervisorLoss& a, int64_t begin, int64_t end) {
  Targets<T> targets(a.shape.layers);
  Tiles<T> scratch(1);
  for (int64_t item = begin; item < end; ++item) {
    const cpu::Span span = cpu::span_of(a.shape, item);
    double sums[kSupervisorSums] = {};
    for (int64_t p = span.begin; p < span.end; p += kTile) {
      const int count = span.tile(p);
      targets.load(a.masks, a.target, span.batch, p, count);
      const T* __restrict overlap = targets.overlap();
      for (int64_t channel = 0; channel < 2 * a.shape.layers; ++channel) {
        const T* __restrict target = targets.of(channel);
        const T* __restrict logits =
            cpu::load_tile(a.logits, span.batch, channel, p, count, scratch[0]);
        T entropy = T(0), p_and_target = T(0), p_sum = T(0), target_sum = T(0),
          overlap_entropy = T(0), p_in_overlap = T(0), overlap_sum = T(0);
        if (a.hybrid) {
#pragma omp simd reduction(+ : entropy, p_and_target, p_sum, target_sum, overlap_entropy, \
                               p_in_overlap, overlap_sum)
          for (int t = 0; t < count; ++t) {
            const Sigmoid<T> s(logits[t]);
            entropy += cross_entropy(logits[t], s.softplus, target[t]);
            p_and_target += s.value * target[t];
            p_sum += s.value;
            target_sum += target[t];
            overlap_entropy +=
                overlap[t] > T(0) ? cross_entropy(logits[t], s.softplus, T(1)) : T(0);
            p_in_overlap += s.value * overlap[t];
            overlap_sum += overlap[t];
          }
        } else {
#pragma omp simd reduction(+ : entropy)
          for (int t = 0; t < count; ++t) {
            entropy += cross_entropy(logits[t], Sigmoid<T>(logits[t]).softplus, target[t]);
          }
        }
        const T tile[kSupervisorSums] = {entropy,         p_and_target, p_sum,      target_sum,
                                         overlap_entropy, p_in_overlap, overlap_sum};
        for (int k = 0; k < kSupervisorSums; ++k) sums[k] += static_cast<double>(tile[k]);
      }
    }
    for (int k = 0; k < kSupervisorSums; ++k) a.partials[item * kSupervisorSums + k] = sums[k];
  }
}

template <typename T>
BLSGAN_HD void backward(const SupervisorLossBackward& a, int64_t begin, int64_t end) {
  Targets<T> targets(a.shape.layers);
  Tiles<T> scratch(2);
  const SupervisorSlopes<T> slopes(a.statistics, cpu::load_scalar<double>(a.grad_loss, 0));
  for (int64_t item = begin; item < end; ++item) {
    const cpu::Span span = cpu::span_of(a.shape, item);
    for (int64_t p = span.begin; p < span.end; p += kTile) {
      const int count = span.tile(p);
      targets.load(a.masks, a.target, span.batch, p, count);
      const T* __restrict overlap = targets.overlap();
      for (int64_t channel = 0; channel < 2 * a.shape.layers; ++channel) {
        const T* __restrict target = targets.of(channel);
        const T* __restrict logits =
            cpu::load_tile(a.logits, span.batch, channel, p, count, scratch[0]);
        T* __restrict result =
            cpu::output_tile(a.grad_logits, span.batch, channel, p, scratch[1]);
#pragma omp simd
        for (int t = 0; t < count; ++t) {
          result[t] = slopes.at(Sigmoid<T>(logits[t]), target[t], overlap[t]);
        }
        cpu::finish_tile<T>(a.grad_logits, span.batch, channel, p, count, result, scratch[1]);
      }
    }
  }
}

BLSGAN_CLONES void forward_narrow(const SupervisorLoss& a, int64_t begin, int64_t end) {
  forward<float>(a, begin, end);
}
BLSGAN_CLONES void forward_wide(const SupervisorLoss& a, int64_t begin, int64_t end) {
  forward<double>(a, begin, end);
}
BLSGAN_CLONES void backward_narrow(const SupervisorLossBackward& a, int64_t begin, int64_t end) {
  backward<float>(a, begin, end);
}
BLSGAN_CLONES void backward_wide(const SupervisorLossBackward& a, int64_t begin, int64_t end) {
  backward<double>(a, begin, end);
}

}  // namespace

void run_cpu(const SupervisorLoss& args, const CpuContext& context) {
  const int64_t items = item_count(args.shape);
  cpu::for_items(items, context, args, forward_narrow, forward_wide);
  double sums[kSupervisorSums] = {};
  for (int64_t item = 0; item < items; ++item) {
    for (int k = 0; k < kSupervisorSums; ++k) sums[k] += args.partials[item * kSupervisorSums + k];
  }
  const double elements =
      2.0 * static_cast<double>(args.shape.batch * args.shape.layers * args.shape.pixels());
  const SupervisorStatistics result = supervisor_statistics(
      {sums[0], sums[1], sums[2], sums[3], sums[4], sums[5], sums[6]}, elements, args.hybrid);
  args.statistics[0] = result.entropy;
  args.statistics[1] = result.overlap_entropy;
  args.statistics[2] = result.dice;
  args.statistics[3] = result.dice_target;
  args.statistics[4] = result.dice_overlap;
  cpu::store_scalar(args.loss, 0, result.loss);
}

void run_cpu(const SupervisorLossBackward& args, const CpuContext& context) {
  cpu::advise_large_pages(args.grad_logits,
                          2 * args.shape.batch * args.shape.layers * args.shape.pixels());
  cpu::for_items(item_count(args.shape), context, args, backward_narrow, backward_wide);
}

}  // namespace blsgan
