#include <algorithm>
#include <vector>

#include "tile.h"

namespace blsgan {
namespace {

using cpu::kTile;
using cpu::Tiles;

// A tile's targets: one for each bone in either half of the channels, and the overlap.
template <typename T>
class Targets {
 public:
  explicit Targets(int64_t layers)
      : covered(static_cast<size_t>(layers)), scratch_(layers + 2), layers_(layers) {
    std::fill_n(scratch_[layers_ + 1], kTile, T(0));
  }

  BLSGAN_HD void load(const View& masks, SupervisorTarget target, int64_t batch, int64_t p,
                      int count) {
    T* __restrict overlap = scratch_[layers_];
    zero_real_ = target == SupervisorTarget::kZeros;
    for (int t = 0; t < count; ++t) overlap[t] = T(0);
    for (int64_t i = 0; i < layers_; ++i) {
      T* __restrict mask = scratch_[i];
      covered[static_cast<size_t>(i)] = cpu::load_mask(masks, batch, i, p, count, mask);
BLSGAN_INDEPENDENT
      for (int t = 0; t < count; ++t) overlap[t] += mask[t];
    }
    int found = 0;
#pragma omp simd reduction(+ : found)
    for (int t = 0; t < count; ++t) {
      overlap[t] = overlap[t] > T(1) ? T(1) : T(0);
      found += overlap[t] > T(0) ? 1 : 0;
    }
    shared = found;
    if (target == SupervisorTarget::kExclusive && shared > 0) {
      for (int64_t i = 0; i < layers_; ++i) {
        T* __restrict mask = scratch_[i];
        int left = 0;
#pragma omp simd reduction(+ : left)
        for (int t = 0; t < count; ++t) {
          mask[t] = overlap[t] > T(0) ? T(0) : mask[t];
          left += mask[t] > T(0) ? 1 : 0;
        }
        covered[static_cast<size_t>(i)] = left;
      }
    }
  }

  T* overlap() { return scratch_[layers_]; }
  // Pixels with a target of 1 in a channel.
  int count_of(int64_t channel) {
    if (channel >= layers_ && zero_real_) return 0;
    return covered[static_cast<size_t>(channel % layers_)];
  }
  T* of(int64_t channel) {
    if (channel < layers_) return scratch_[channel];
    return scratch_[zero_real_ ? layers_ + 1 : channel - layers_];
  }

  int shared = 0;            // pixels in the overlap
  std::vector<int> covered;  // of each mask

 private:
  Tiles<T> scratch_;
  int64_t layers_;
  bool zero_real_ = false;
};

// Sum of log(1 + e) over a tile, e in [0, 1]. The factors are at most 2, so 32 of them multiply
// without overflow and one logarithm serves them all; the product's rounding is 2^-24 for each, no
// more than a logarithm's own.
template <typename T>
BLSGAN_HD T sum_log1p(const T* one_plus_e, int count) {
  constexpr int kColumns = 16;
  static_assert(kTile / kColumns <= 32);
  T product[kColumns];
  for (int c = 0; c < kColumns; ++c) product[c] = T(1);
  const int whole = count / kColumns * kColumns;
  for (int t = 0; t < whole; t += kColumns) {
BLSGAN_INDEPENDENT
    for (int c = 0; c < kColumns; ++c) product[c] *= one_plus_e[t + c];
  }
  T sum = T(0);
#pragma omp simd reduction(+ : sum)
  for (int c = 0; c < kColumns; ++c) sum += log_positive(product[c]);
  for (int t = whole; t < count; ++t) sum += log_positive(one_plus_e[t]);
  return sum;
}

template <typename T>
BLSGAN_HD void forward(const SupervisorLoss& a, int64_t begin, int64_t end) {
  Targets<T> targets(a.shape.layers);
  Tiles<T> scratch(3);
  T *one_plus_e = scratch[1], *shared_one_plus_e = scratch[2];
  for (int64_t item = begin; item < end; ++item) {
    const cpu::Span span = cpu::span_of(a.shape, item);
    double sums[kSupervisorSums] = {};
    for (int64_t p = span.begin; p < span.end; p += kTile) {
      const int count = span.tile(p);
      targets.load(a.masks, a.target, span.batch, p, count);
      const T* overlap = targets.overlap();
      for (int64_t channel = 0; channel < 2 * a.shape.layers; ++channel) {
        const T* target = targets.of(channel);
        const T* logits = cpu::load_tile(a.logits, span.batch, channel, p, count, scratch[0]);
        T linear = T(0), p_and_target = T(0), p_sum = T(0);
#pragma omp simd reduction(+ : linear, p_and_target, p_sum)
        for (int t = 0; t < count; ++t) {
          const T z = logits[t];
          const T e = exp_nonpositive(z < T(0) ? z : -z);
          const T inverse = T(1) / (T(1) + e);
          const T value = z < T(0) ? e * inverse : inverse;
          one_plus_e[t] = T(1) + e;
          linear += cross_entropy(z, T(0), target[t]);
          p_and_target += value * target[t];
          p_sum += value;
        }
        sums[0] += static_cast<double>(linear) + static_cast<double>(sum_log1p(one_plus_e, count));
        sums[1] += static_cast<double>(p_and_target);
        sums[2] += static_cast<double>(p_sum);
        if (!a.hybrid) continue;
        sums[3] += targets.count_of(channel);
        if (targets.shared == 0) continue;
        T overlap_linear = T(0), p_in_overlap = T(0);
#pragma omp simd reduction(+ : overlap_linear, p_in_overlap)
        for (int t = 0; t < count; ++t) {
          const bool inside = overlap[t] > T(0);
          const T inverse = T(1) / one_plus_e[t];
          const T value = logits[t] < T(0) ? T(1) - inverse : inverse;
          shared_one_plus_e[t] = inside ? one_plus_e[t] : T(1);
          overlap_linear += inside ? cross_entropy(logits[t], T(0), T(1)) : T(0);
          p_in_overlap += inside ? value : T(0);
        }
        sums[4] += static_cast<double>(overlap_linear) +
                   static_cast<double>(sum_log1p(shared_one_plus_e, count));
        sums[5] += static_cast<double>(p_in_overlap);
        sums[6] += targets.shared;
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
BLSGAN_INDEPENDENT
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
