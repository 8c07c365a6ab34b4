#include <cstring>
#include <vector>

#include "tile.h"

namespace blsgan {
namespace {

using cpu::kTile;
using cpu::Tiles;

// A tile's targets as bytes: one for each bone in either half of the channels, and the overlap.
class Targets {
 public:
  explicit Targets(int64_t layers)
      : tiles_(static_cast<size_t>(layers)),
        covered_(static_cast<size_t>(layers)),
        buffers_(static_cast<size_t>(layers) * kTile),
        layers_(layers) {}

  BLSGAN_HD void load(const View& masks, SupervisorTarget target, int64_t batch, int64_t p,
                      int count) {
    zero_real_ = target == SupervisorTarget::kZeros;
    uint8_t any[kTile];
    std::memset(any, 0, sizeof any);
    std::memset(overlap, 0, sizeof overlap);
    for (int64_t i = 0; i < layers_; ++i) {
      tiles_[static_cast<size_t>(i)] = cpu::mask_tile(masks, batch, i, p, count, buffer(i));
      cpu::add_cover(tiles_[static_cast<size_t>(i)], count, any, overlap);
    }
    shared = cpu::count_set(overlap, count);
    for (int64_t i = 0; i < layers_; ++i) {
      const auto index = static_cast<size_t>(i);
      if (target == SupervisorTarget::kExclusive && shared > 0) {
        const uint8_t* mask = tiles_[index];
        uint8_t* left = buffer(i);
BLSGAN_INDEPENDENT
        for (int t = 0; t < count; ++t) left[t] = overlap[t] != 0 ? 0 : mask[t];
        tiles_[index] = left;
      }
      covered_[index] = cpu::count_set(tiles_[index], count);
    }
  }

  // Pixels with a target of 1 in a channel.
  int count_of(int64_t channel) const {
    if (channel >= layers_ && zero_real_) return 0;
    return covered_[static_cast<size_t>(channel % layers_)];
  }
  const uint8_t* of(int64_t channel) const {
    if (channel >= layers_ && zero_real_) return kZeros;
    return tiles_[static_cast<size_t>(channel % layers_)];
  }

  int shared = 0;          // pixels in the overlap
  uint8_t overlap[kTile];  // 0 or 1

 private:
  static constexpr uint8_t kZeros[kTile] = {};
  uint8_t* buffer(int64_t layer) { return buffers_.data() + layer * kTile; }

  std::vector<const uint8_t*> tiles_;
  std::vector<int> covered_;
  std::vector<uint8_t> buffers_;
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

// What the pixels of one channel that are `inside` add to the linear part of the cross entropy
// against a target of 1, and to the sum of probabilities. Tiles that lie inside as a whole, or not
// at all, do not need it: their sums are known.
template <typename T>
struct Inside {
  T negative, p;
};
template <typename T>
BLSGAN_HD Inside<T> sum_inside(const T* __restrict logits, const T* __restrict p,
                               const uint8_t* __restrict inside, int count) {
  T negative = T(0), p_sum = T(0);
#pragma omp simd reduction(+ : negative, p_sum)
  for (int t = 0; t < count; ++t) {
    negative += keep_if(inside[t] != 0, cross_entropy(logits[t], T(0), T(1)));
    p_sum += keep_if(inside[t] != 0, p[t]);
  }
  return {negative, p_sum};
}

template <typename T>
BLSGAN_HD void forward(const SupervisorLoss& a, int64_t begin, int64_t end) {
  Targets targets(a.shape.layers);
  Tiles<T> scratch(4);
  T *__restrict one_plus_e = scratch[1], *__restrict p = scratch[2],
    *__restrict shared_one_plus_e = scratch[3];
  for (int64_t item = begin; item < end; ++item) {
    const cpu::Span span = cpu::span_of(a.shape, item);
    double sums[kSupervisorSums] = {};
    for (int64_t at = span.begin; at < span.end; at += kTile) {
      const int count = span.tile(at);
      targets.load(a.masks, a.target, span.batch, at, count);
      for (int64_t channel = 0; channel < 2 * a.shape.layers; ++channel) {
        const T* __restrict logits =
            cpu::load_tile(a.logits, span.batch, channel, at, count, scratch[0]);
        // The cross entropy's linear part if every target were 0, and if every target were 1.
        T positive = T(0), negative = T(0), p_sum = T(0);
#pragma omp simd reduction(+ : positive, negative, p_sum)
        for (int t = 0; t < count; ++t) {
          const T z = logits[t];
          const T e = exp_bounded(z < T(0) ? z : -z);
          const T inverse = T(1) / (T(1) + e);
          const T value = z < T(0) ? e * inverse : inverse;
          one_plus_e[t] = T(1) + e;
          p[t] = value;
          positive += cross_entropy(z, T(0), T(0));
          negative += cross_entropy(z, T(0), T(1));
          p_sum += value;
        }
        const T softplus = sum_log1p(one_plus_e, count);
        const int covered = targets.count_of(channel);
        T linear = covered == count ? negative : positive;
        T p_and_target = covered == count ? p_sum : T(0);
        if (covered > 0 && covered < count) {
          const uint8_t* __restrict target = targets.of(channel);
          T mixed = T(0), inside = T(0);
#pragma omp simd reduction(+ : mixed, inside)
          for (int t = 0; t < count; ++t) {
            mixed += cross_entropy(logits[t], T(0), target[t] != 0 ? T(1) : T(0));
            inside += keep_if(target[t] != 0, p[t]);
          }
          linear = mixed;
          p_and_target = inside;
        }
        sums[0] += static_cast<double>(linear) + static_cast<double>(softplus);
        if (!a.hybrid) continue;
        sums[1] += static_cast<double>(p_and_target);
        sums[2] += static_cast<double>(p_sum);
        sums[3] += covered;
        if (targets.shared == 0) continue;
        Inside<T> inside{negative, p_sum};
        T inside_softplus = softplus;
        if (targets.shared < count) {
          const uint8_t* __restrict overlap = targets.overlap;
          inside = sum_inside(logits, p, overlap, count);
BLSGAN_INDEPENDENT
          for (int t = 0; t < count; ++t) {
            shared_one_plus_e[t] = overlap[t] != 0 ? one_plus_e[t] : T(1);
          }
          inside_softplus = sum_log1p(shared_one_plus_e, count);
        }
        sums[4] += static_cast<double>(inside.negative) + static_cast<double>(inside_softplus);
        sums[5] += static_cast<double>(inside.p);
        sums[6] += targets.shared;
      }
    }
    for (int k = 0; k < kSupervisorSums; ++k) a.partials[item * kSupervisorSums + k] = sums[k];
  }
}

template <typename T>
BLSGAN_HD void backward(const SupervisorLossBackward& a, int64_t begin, int64_t end) {
  Targets targets(a.shape.layers);
  Tiles<T> scratch(2);
  const SupervisorSlopes<T> slopes(a.statistics, cpu::load_scalar<double>(a.grad_loss, 0));
  for (int64_t item = begin; item < end; ++item) {
    const cpu::Span span = cpu::span_of(a.shape, item);
    for (int64_t at = span.begin; at < span.end; at += kTile) {
      const int count = span.tile(at);
      targets.load(a.masks, a.target, span.batch, at, count);
      const uint8_t* __restrict overlap = targets.overlap;
      for (int64_t channel = 0; channel < 2 * a.shape.layers; ++channel) {
        const uint8_t* __restrict target = targets.of(channel);
        const T* __restrict logits =
            cpu::load_tile(a.logits, span.batch, channel, at, count, scratch[0]);
        T* __restrict result =
            cpu::output_tile(a.grad_logits, span.batch, channel, at, scratch[1]);
        if (targets.shared == 0) {
BLSGAN_INDEPENDENT
          for (int t = 0; t < count; ++t) {
            result[t] =
                slopes.at(SigmoidSlope<T>(logits[t]), target[t] != 0 ? T(1) : T(0));
          }
        } else {
BLSGAN_INDEPENDENT
          for (int t = 0; t < count; ++t) {
            result[t] = slopes.at(SigmoidSlope<T>(logits[t]), target[t] != 0 ? T(1) : T(0),
                                  overlap[t] != 0 ? T(1) : T(0));
          }
        }
        cpu::finish_tile<T>(a.grad_logits, span.batch, channel, at, count, result, scratch[1]);
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
