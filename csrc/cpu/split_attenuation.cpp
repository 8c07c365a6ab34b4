#include <limits>

#include "tile.h"

namespace blsgan {
namespace {

using cpu::kTile;
using cpu::Tiles;

// What a tile's masks say: how many bones cover each pixel, and whether any pixel is shared.
struct Cover {
  bool any, shared;
};

// The masks of all layers and their sum. Reads nothing else, because most tiles of a radiograph
// hold no overlap and need neither the logits nor an exponential.
template <typename T, typename MaskOf>
BLSGAN_HD Cover load_cover(const View& masks, int64_t layers, int64_t batch, int64_t p, int count,
                           MaskOf mask, T* __restrict coverage) {
  int set = 0;
  for (int t = 0; t < count; ++t) coverage[t] = T(0);
  for (int64_t i = 0; i < layers; ++i) {
    T* __restrict m = mask(i);
    set += cpu::load_mask(masks, batch, i, p, count, m);
BLSGAN_INDEPENDENT
    for (int t = 0; t < count; ++t) coverage[t] += m[t];
  }
  int shared = 0;
#pragma omp simd reduction(+ : shared)
  for (int t = 0; t < count; ++t) shared += coverage[t] > T(1) ? 1 : 0;
  return {set != 0, shared != 0};
}

// The shares of the covering bones, a softmax over them, and the total attenuation they divide.
template <typename T, typename MaskOf, typename ShareOf>
BLSGAN_HD void load_shares(const View& logits, int64_t layers, int64_t batch, int64_t p, int count,
                           MaskOf mask, ShareOf share, T* __restrict largest,
                           T* __restrict inverse_sum, T* __restrict buffer) {
  for (int t = 0; t < count; ++t) {
    largest[t] = -std::numeric_limits<T>::infinity();
    inverse_sum[t] = T(0);
  }
  for (int64_t i = 0; i < layers; ++i) {
    const T* m = mask(i);
    T* __restrict r = share(i);
    const T* __restrict source = cpu::load_tile(logits, batch, i, p, count, buffer);
BLSGAN_INDEPENDENT
    for (int t = 0; t < count; ++t) {
      const T logit = source[t];
      r[t] = logit;
      const T candidate = m[t] != T(0) ? logit : largest[t];
      largest[t] = candidate > largest[t] ? candidate : largest[t];
    }
  }
  for (int64_t i = 0; i < layers; ++i) {
    const T* m = mask(i);
    T* __restrict r = share(i);
BLSGAN_INDEPENDENT
    for (int t = 0; t < count; ++t) {
      const T weight = m[t] != T(0) ? exp_nonpositive(r[t] - largest[t]) : T(0);
      r[t] = weight;
      inverse_sum[t] += weight;
    }
  }
BLSGAN_INDEPENDENT
  for (int t = 0; t < count; ++t) inverse_sum[t] = T(1) / inverse_sum[t];
  for (int64_t i = 0; i < layers; ++i) {
    T* __restrict r = share(i);
BLSGAN_INDEPENDENT
    for (int t = 0; t < count; ++t) r[t] *= inverse_sum[t];
  }
}

// Two layers, the common case: the masks stay bytes, the shares need one exponential, and a tile
// without overlap is copied by its masks.
class PairMasks {
 public:
  BLSGAN_HD void load(const View& masks, int64_t batch, int64_t p, int count) {
    first = cpu::mask_tile(masks, batch, 0, p, count, buffers_[0]);
    second = cpu::mask_tile(masks, batch, 1, p, count, buffers_[1]);
    const uint8_t *__restrict m0 = first, *__restrict m1 = second;
    uint8_t some = 0, both = 0;
#pragma omp simd reduction(| : some, both)
    for (int t = 0; t < count; ++t) {
      some |= m0[t] | m1[t];
      both |= (m0[t] != 0) & (m1[t] != 0);
    }
    any = some != 0;
    shared = both != 0;
  }

  const uint8_t *first = nullptr, *second = nullptr;
  bool any = false, shared = false;

 private:
  uint8_t buffers_[2][kTile];
};

template <typename T>
BLSGAN_HD void forward_pair(const SplitAttenuation& a, int64_t begin, int64_t end) {
  Tiles<T> scratch(5);
  PairMasks masks;
  for (int64_t item = begin; item < end; ++item) {
    const cpu::Span span = cpu::span_of(a.shape, item);
    const T k = clamp_soft_tissue(cpu::load_scalar<T>(a.soft_tissue, span.batch));
    const T soft_attenuation = -log_positive(T(1) - k);
    for (int64_t p = span.begin; p < span.end; p += kTile) {
      const int count = span.tile(p);
      masks.load(a.masks, span.batch, p, count);
      if (!masks.any) {
        cpu::store_zeros(a.layers, span.batch, 0, p, count);
        cpu::store_zeros(a.layers, span.batch, 1, p, count);
        continue;
      }
      const uint8_t *__restrict m0 = masks.first, *__restrict m1 = masks.second;
      const T* __restrict image = cpu::load_tile(a.image, span.batch, 0, p, count, scratch[0]);
      T* __restrict layer0 = cpu::output_tile(a.layers, span.batch, 0, p, scratch[1]);
      T* __restrict layer1 = cpu::output_tile(a.layers, span.batch, 1, p, scratch[2]);
      if (masks.shared) {
        const T* __restrict logit0 =
            cpu::load_tile(a.share_logits, span.batch, 0, p, count, scratch[3]);
        const T* __restrict logit1 =
            cpu::load_tile(a.share_logits, span.batch, 1, p, count, scratch[4]);
BLSGAN_INDEPENDENT
        for (int t = 0; t < count; ++t) {
          const bool shared = (m0[t] != 0) & (m1[t] != 0);
          const PairShares<T> share(logit0[t], logit1[t]);
          const T total = total_attenuation(clamp_transmission(image[t]), T(2), soft_attenuation);
          const T inside0 = T(1) - split_transmission(share.first, total);
          const T inside1 = T(1) - split_transmission(share.second, total);
          layer0[t] = keep_if(m0[t] != 0, shared ? inside0 : image[t]);
          layer1[t] = keep_if(m1[t] != 0, shared ? inside1 : image[t]);
        }
      } else {
BLSGAN_INDEPENDENT
        for (int t = 0; t < count; ++t) {
          layer0[t] = keep_if(m0[t] != 0, image[t]);
          layer1[t] = keep_if(m1[t] != 0, image[t]);
        }
      }
      cpu::finish_tile<T>(a.layers, span.batch, 0, p, count, layer0, scratch[1]);
      cpu::finish_tile<T>(a.layers, span.batch, 1, p, count, layer1, scratch[2]);
    }
  }
}

template <typename T>
BLSGAN_HD void backward_pair(const SplitAttenuationBackward& a, int64_t begin, int64_t end) {
  Tiles<T> scratch(9);
  PairMasks masks;
  T *__restrict soft = scratch[7], *__restrict on_image = scratch[8];
  const bool wants_image = a.grad_image.data != nullptr;
  for (int64_t item = begin; item < end; ++item) {
    const cpu::Span span = cpu::span_of(a.shape, item);
    const T k = clamp_soft_tissue(cpu::load_scalar<T>(a.soft_tissue, span.batch));
    const T soft_attenuation = -log_positive(T(1) - k);
    double soft_sum = 0.0;
    for (int64_t p = span.begin; p < span.end; p += kTile) {
      const int count = span.tile(p);
      masks.load(a.masks, span.batch, p, count);
      if (!masks.shared) {
        cpu::store_zeros(a.grad_share_logits, span.batch, 0, p, count);
        cpu::store_zeros(a.grad_share_logits, span.batch, 1, p, count);
        if (!wants_image) continue;
      }
      const uint8_t *__restrict m0 = masks.first, *__restrict m1 = masks.second;
      const T* __restrict grad0 =
          cpu::load_tile(a.grad_layers, span.batch, 0, p, count, scratch[1]);
      const T* __restrict grad1 =
          cpu::load_tile(a.grad_layers, span.batch, 1, p, count, scratch[2]);
      T* __restrict result =
          wants_image ? cpu::output_tile(a.grad_image, span.batch, 0, p, on_image) : on_image;
      if (masks.shared) {
        const T* __restrict image = cpu::load_tile(a.image, span.batch, 0, p, count, scratch[0]);
        const T* __restrict logit0 =
            cpu::load_tile(a.share_logits, span.batch, 0, p, count, scratch[3]);
        const T* __restrict logit1 =
            cpu::load_tile(a.share_logits, span.batch, 1, p, count, scratch[4]);
        T* __restrict target0 =
            cpu::output_tile(a.grad_share_logits, span.batch, 0, p, scratch[5]);
        T* __restrict target1 =
            cpu::output_tile(a.grad_share_logits, span.batch, 1, p, scratch[6]);
BLSGAN_INDEPENDENT
        for (int t = 0; t < count; ++t) {
          const bool shared = (m0[t] != 0) & (m1[t] != 0);
          const PairShares<T> share(logit0[t], logit1[t]);
          const T transmission = clamp_transmission(image[t]);
          const T total = total_attenuation(transmission, T(2), soft_attenuation);
          // d layer_i / d A_i times the incoming gradient
          const T slope0 = grad0[t] * split_transmission(share.first, total);
          const T slope1 = grad1[t] * split_transmission(share.second, total);
          const T grad_logit = total * share.first * share.second * (slope0 - slope1);
          const T grad_total = slope0 * share.first + slope1 * share.second;
          target0[t] = keep_if(shared, grad_logit);
          target1[t] = keep_if(shared, -grad_logit);
          soft[t] = keep_if(shared, grad_total);
        }
        T sum = T(0);
#pragma omp simd reduction(+ : sum)
        for (int t = 0; t < count; ++t) sum += soft[t];
        soft_sum += static_cast<double>(sum);
        cpu::finish_tile<T>(a.grad_share_logits, span.batch, 0, p, count, target0, scratch[5]);
        cpu::finish_tile<T>(a.grad_share_logits, span.batch, 1, p, count, target1, scratch[6]);
        if (!wants_image) continue;
BLSGAN_INDEPENDENT
        for (int t = 0; t < count; ++t) {
          const bool shared = (m0[t] != 0) & (m1[t] != 0);
          const T copied = keep_if(m0[t] != 0, grad0[t]) + keep_if(m1[t] != 0, grad1[t]);
          const T inside =
              keep_if(image_has_gradient(image[t]), soft[t] / clamp_transmission(image[t]));
          result[t] = shared ? inside : copied;
        }
      } else {
BLSGAN_INDEPENDENT
        for (int t = 0; t < count; ++t) {
          result[t] = keep_if(m0[t] != 0, grad0[t]) + keep_if(m1[t] != 0, grad1[t]);
        }
      }
      cpu::finish_tile<T>(a.grad_image, span.batch, 0, p, count, result, on_image);
    }
    a.partials[item] = soft_sum / (1.0 - static_cast<double>(k));  // d a_soft / d k
  }
}

template <typename T>
BLSGAN_HD void forward(const SplitAttenuation& a, int64_t begin, int64_t end) {
  if (a.shape.layers == 2) return forward_pair<T>(a, begin, end);
  const int64_t layers = a.shape.layers;
  Tiles<T> scratch(7 + 2 * layers);
  T *coverage = scratch[0], *image_buffer = scratch[1], *result = scratch[2], *total = scratch[3],
    *largest = scratch[4], *inverse_sum = scratch[5], *buffer = scratch[6];
  const auto mask = [&](int64_t i) __attribute__((always_inline)) { return scratch[7 + 2 * i]; };
  const auto share = [&](int64_t i) __attribute__((always_inline)) { return scratch[8 + 2 * i]; };
  for (int64_t item = begin; item < end; ++item) {
    const cpu::Span span = cpu::span_of(a.shape, item);
    const T k = clamp_soft_tissue(cpu::load_scalar<T>(a.soft_tissue, span.batch));
    const T soft_attenuation = -log_positive(T(1) - k);
    for (int64_t p = span.begin; p < span.end; p += kTile) {
      const int count = span.tile(p);
      const Cover cover =
          load_cover(a.masks, layers, span.batch, p, count, mask, coverage);
      if (!cover.any) {
        for (int64_t i = 0; i < layers; ++i) {
          cpu::store_zeros(a.layers, span.batch, i, p, count);
        }
        continue;
      }
      const T* __restrict image =
          cpu::load_tile(a.image, span.batch, 0, p, count, image_buffer);
      if (cover.shared) {
        load_shares(a.share_logits, layers, span.batch, p, count, mask, share, largest,
                    inverse_sum, buffer);
BLSGAN_INDEPENDENT
        for (int t = 0; t < count; ++t) {
          total[t] =
              total_attenuation(clamp_transmission(image[t]), coverage[t], soft_attenuation);
        }
      }
      for (int64_t i = 0; i < layers; ++i) {
        const T *m = mask(i), *r = share(i);
        T* __restrict target = cpu::output_tile(a.layers, span.batch, i, p, result);
        if (cover.shared) {
BLSGAN_INDEPENDENT
          for (int t = 0; t < count; ++t) {
            const T inside = T(1) - split_transmission(r[t], total[t]);
            const T value = coverage[t] > T(1) ? inside : image[t];
            target[t] = m[t] != T(0) ? value : T(0);
          }
        } else {
BLSGAN_INDEPENDENT
          for (int t = 0; t < count; ++t) target[t] = m[t] != T(0) ? image[t] : T(0);
        }
        cpu::finish_tile<T>(a.layers, span.batch, i, p, count, target, result);
      }
    }
  }
}

template <typename T>
BLSGAN_HD void backward(const SplitAttenuationBackward& a, int64_t begin, int64_t end) {
  if (a.shape.layers == 2) return backward_pair<T>(a, begin, end);
  const int64_t layers = a.shape.layers;
  Tiles<T> scratch(9 + 3 * layers);
  T *coverage = scratch[0], *image_buffer = scratch[1], *result = scratch[2], *total = scratch[3],
    *largest = scratch[4], *inverse_sum = scratch[5], *buffer = scratch[6],
    *grad_total = scratch[7], *copied = scratch[8];
  const auto mask = [&](int64_t i) __attribute__((always_inline)) { return scratch[9 + 3 * i]; };
  const auto share = [&](int64_t i) __attribute__((always_inline)) { return scratch[10 + 3 * i]; };
  const auto slope = [&](int64_t i) __attribute__((always_inline)) { return scratch[11 + 3 * i]; };
  for (int64_t item = begin; item < end; ++item) {
    const cpu::Span span = cpu::span_of(a.shape, item);
    const T k = clamp_soft_tissue(cpu::load_scalar<T>(a.soft_tissue, span.batch));
    const T soft_attenuation = -log_positive(T(1) - k);
    double soft_sum = 0.0;
    for (int64_t p = span.begin; p < span.end; p += kTile) {
      const int count = span.tile(p);
      const Cover cover =
          load_cover(a.masks, layers, span.batch, p, count, mask, coverage);
      if (!cover.shared) {
        for (int64_t i = 0; i < layers; ++i) {
          cpu::store_zeros(a.grad_share_logits, span.batch, i, p, count);
        }
        if (a.grad_image.data == nullptr) continue;
      }
      for (int t = 0; t < count; ++t) {
        grad_total[t] = T(0);
        copied[t] = T(0);
      }
      const T* __restrict image =
          cpu::load_tile(a.image, span.batch, 0, p, count, image_buffer);
      if (cover.shared) {
        load_shares(a.share_logits, layers, span.batch, p, count, mask, share, largest,
                    inverse_sum, buffer);
BLSGAN_INDEPENDENT
        for (int t = 0; t < count; ++t) {
          total[t] =
              total_attenuation(clamp_transmission(image[t]), coverage[t], soft_attenuation);
        }
      }
      for (int64_t i = 0; i < layers; ++i) {
        const T *m = mask(i), *r = share(i);
        T* __restrict s = slope(i);
        const T* __restrict grad =
            cpu::load_tile(a.grad_layers, span.batch, i, p, count, buffer);
        if (cover.shared) {
BLSGAN_INDEPENDENT
          for (int t = 0; t < count; ++t) {
            // d layer_i / d A_i, and its part in the total's gradient
            const T value = grad[t] * split_transmission(r[t], total[t]);
            s[t] = m[t] != T(0) ? value : T(0);
            grad_total[t] += m[t] != T(0) ? value * r[t] : T(0);
            copied[t] += m[t] != T(0) ? grad[t] : T(0);
          }
        } else {
BLSGAN_INDEPENDENT
          for (int t = 0; t < count; ++t) copied[t] += m[t] != T(0) ? grad[t] : T(0);
        }
      }
      if (cover.shared) {
        for (int64_t i = 0; i < layers; ++i) {
          const T *m = mask(i), *r = share(i), *s = slope(i);
          T* __restrict target =
              cpu::output_tile(a.grad_share_logits, span.batch, i, p, result);
BLSGAN_INDEPENDENT
          for (int t = 0; t < count; ++t) {
            const T value = total[t] * r[t] * (s[t] - grad_total[t]);
            target[t] = coverage[t] > T(1) && m[t] != T(0) ? value : T(0);
          }
          cpu::finish_tile<T>(a.grad_share_logits, span.batch, i, p, count, target, result);
        }
        T sum = T(0);
#pragma omp simd reduction(+ : sum)
        for (int t = 0; t < count; ++t) {
          sum += coverage[t] > T(1) ? grad_total[t] * (coverage[t] - T(1)) : T(0);
        }
        soft_sum += static_cast<double>(sum);
      }
      if (a.grad_image.data != nullptr) {
        T* __restrict target = cpu::output_tile(a.grad_image, span.batch, 0, p, result);
BLSGAN_INDEPENDENT
        for (int t = 0; t < count; ++t) {
          const T inside = image_has_gradient(image[t])
                               ? grad_total[t] / clamp_transmission(image[t])
                               : T(0);
          target[t] = coverage[t] > T(1) ? inside : copied[t];
        }
        cpu::finish_tile<T>(a.grad_image, span.batch, 0, p, count, target, result);
      }
    }
    a.partials[item] = soft_sum / (1.0 - static_cast<double>(k));  // d a_soft / d k
  }
}

BLSGAN_CLONES void forward_narrow(const SplitAttenuation& a, int64_t begin, int64_t end) {
  forward<float>(a, begin, end);
}
BLSGAN_CLONES void forward_wide(const SplitAttenuation& a, int64_t begin, int64_t end) {
  forward<double>(a, begin, end);
}
BLSGAN_CLONES void backward_narrow(const SplitAttenuationBackward& a, int64_t begin, int64_t end) {
  backward<float>(a, begin, end);
}
BLSGAN_CLONES void backward_wide(const SplitAttenuationBackward& a, int64_t begin, int64_t end) {
  backward<double>(a, begin, end);
}

}  // namespace

void run_cpu(const SplitAttenuation& args, const CpuContext& context) {
  cpu::advise_large_pages(args.layers,
                          args.shape.batch * args.shape.layers * args.shape.pixels());
  cpu::for_items(item_count(args.shape), context, args, forward_narrow, forward_wide);
}

void run_cpu(const SplitAttenuationBackward& args, const CpuContext& context) {
  cpu::advise_large_pages(args.grad_share_logits,
                          args.shape.batch * args.shape.layers * args.shape.pixels());
  cpu::advise_large_pages(args.grad_image, args.shape.batch * args.shape.pixels());
  cpu::for_items(item_count(args.shape), context, args, backward_narrow, backward_wide);
  cpu::finish_soft_tissue_gradient(args.shape, args.soft_tissue, args.partials,
                                   args.grad_soft_tissue);
}

}  // namespace blsgan
