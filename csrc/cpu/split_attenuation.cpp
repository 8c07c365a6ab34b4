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
      const T weight = m[t] != T(0) ? exp_bounded(r[t] - largest[t]) : T(0);
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

// Soft tissue's attenuation over a tile.
template <typename T, typename Law>
BLSGAN_HD void load_soft_tissue(cpu::SoftTiles<T>& soft, const Law& law, int64_t batch, int64_t p,
                                int count) {
  soft.load(batch, p, count,
            [&](T k) __attribute__((always_inline)) { return soft_attenuation(law, k); });
}

// Two layers, the common case: the masks stay bytes, the shares need one exponential, and a tile
// without overlap is copied by its masks.
template <typename T, typename Law>
BLSGAN_HD void forward_pair(const SplitAttenuation& a, const Law& law_in, int64_t begin,
                            int64_t end) {
  const Law law = law_in;
  Tiles<T> scratch(5);
  cpu::SoftTiles<T> soft(a.soft_tissue);
  uint8_t mask_buffers[2][kTile];
  for (int64_t item = begin; item < end; ++item) {
    const cpu::Span span = cpu::span_of(a.shape, item);
    for (int64_t p = span.begin; p < span.end; p += kTile) {
      const int count = span.tile(p);
      const uint8_t* __restrict m0 =
          cpu::mask_tile(a.masks, span.batch, 0, p, count, mask_buffers[0]);
      const uint8_t* __restrict m1 =
          cpu::mask_tile(a.masks, span.batch, 1, p, count, mask_buffers[1]);
      const cpu::PairCover cover(m0, m1, count);
      if (!cover.any()) {
        cpu::store_zeros(a.layers, span.batch, 0, p, count);
        cpu::store_zeros(a.layers, span.batch, 1, p, count);
        continue;
      }
      const T* __restrict image = cpu::load_tile(a.image, span.batch, 0, p, count, scratch[0]);
      T* __restrict layer0 = cpu::output_tile(a.layers, span.batch, 0, p, scratch[1]);
      T* __restrict layer1 = cpu::output_tile(a.layers, span.batch, 1, p, scratch[2]);
      if (cover.shared) {
        const T* __restrict logit0 =
            cpu::load_tile(a.share_logits, span.batch, 0, p, count, scratch[3]);
        const T* __restrict logit1 =
            cpu::load_tile(a.share_logits, span.batch, 1, p, count, scratch[4]);
        load_soft_tissue(soft, law, span.batch, p, count);
        const T* __restrict tissue = soft.value();
BLSGAN_INDEPENDENT
        for (int t = 0; t < count; ++t) {
          const bool shared = (m0[t] != 0) & (m1[t] != 0);
          const PairShares<T> share(logit0[t], logit1[t]);
          const T bone = law.attenuation(image[t]) - tissue[t];
          const T inside0 = law.display(layer_attenuation(share.first, bone, tissue[t]));
          const T inside1 = law.display(layer_attenuation(share.second, bone, tissue[t]));
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

template <typename T, typename Law>
BLSGAN_HD void backward_pair(const SplitAttenuationBackward& a, const Law& law_in, int64_t begin,
                             int64_t end) {
  const Law law = law_in;
  Tiles<T> scratch(8);
  cpu::SoftTiles<T> soft(a.soft_tissue);
  cpu::SoftGradient<T> grad_soft(a.grad_soft_tissue);
  uint8_t mask_buffers[2][kTile];
  T* const on_image = scratch[7];
  const bool wants_image = a.grad_image.data != nullptr;
  for (int64_t item = begin; item < end; ++item) {
    const cpu::Span span = cpu::span_of(a.shape, item);
    for (int64_t p = span.begin; p < span.end; p += kTile) {
      const int count = span.tile(p);
      const uint8_t* __restrict m0 =
          cpu::mask_tile(a.masks, span.batch, 0, p, count, mask_buffers[0]);
      const uint8_t* __restrict m1 =
          cpu::mask_tile(a.masks, span.batch, 1, p, count, mask_buffers[1]);
      const cpu::PairCover cover(m0, m1, count);
      if (!cover.shared) {
        cpu::store_zeros(a.grad_share_logits, span.batch, 0, p, count);
        cpu::store_zeros(a.grad_share_logits, span.batch, 1, p, count);
        grad_soft.finish_zeros(span.batch, p, count);
        if (!wants_image) continue;
      }
      const T* __restrict grad0 =
          cpu::load_tile(a.grad_layers, span.batch, 0, p, count, scratch[1]);
      const T* __restrict grad1 =
          cpu::load_tile(a.grad_layers, span.batch, 1, p, count, scratch[2]);
      T* __restrict result =
          wants_image ? cpu::output_tile(a.grad_image, span.batch, 0, p, on_image) : on_image;
      if (cover.shared) {
        const T* __restrict image = cpu::load_tile(a.image, span.batch, 0, p, count, scratch[0]);
        const T* __restrict logit0 =
            cpu::load_tile(a.share_logits, span.batch, 0, p, count, scratch[3]);
        const T* __restrict logit1 =
            cpu::load_tile(a.share_logits, span.batch, 1, p, count, scratch[4]);
        T* __restrict target0 =
            cpu::output_tile(a.grad_share_logits, span.batch, 0, p, scratch[5]);
        T* __restrict target1 =
            cpu::output_tile(a.grad_share_logits, span.batch, 1, p, scratch[6]);
        load_soft_tissue(soft, law, span.batch, p, count);
        const T *__restrict tissue = soft.value(), *__restrict tissue_slope = soft.slope();
        T* __restrict on_soft = grad_soft.tile(span.batch, p);
BLSGAN_INDEPENDENT
        for (int t = 0; t < count; ++t) {
          const bool shared = (m0[t] != 0) & (m1[t] != 0);
          const PairShares<T> share(logit0[t], logit1[t]);
          const T attenuation = law.attenuation(image[t]);
          const T bone = attenuation - tissue[t];
          // d layer_i / d A_i times the incoming gradient
          const T slope0 =
              grad0[t] * law.display_slope(layer_attenuation(share.first, bone, tissue[t]));
          const T slope1 =
              grad1[t] * law.display_slope(layer_attenuation(share.second, bone, tissue[t]));
          const T grad_logit = bone * share.first * share.second * (slope0 - slope1);
          const T grad_bone = slope0 * share.first + slope1 * share.second;
          const T grad_tissue = slope0 * share.second + slope1 * share.first;
          target0[t] = keep_if(shared, grad_logit);
          target1[t] = keep_if(shared, -grad_logit);
          on_soft[t] =
              keep_if(shared & (tissue_slope[t] != T(0)), grad_tissue * tissue_slope[t]);
          const T slope = law.attenuation_slope(image[t], attenuation);
          const T copied = keep_if(m0[t] != 0, grad0[t]) + keep_if(m1[t] != 0, grad1[t]);
          result[t] = shared ? keep_if(slope != T(0), grad_bone * slope) : copied;
        }
        grad_soft.finish(span.batch, p, count, on_soft);
        cpu::finish_tile<T>(a.grad_share_logits, span.batch, 0, p, count, target0, scratch[5]);
        cpu::finish_tile<T>(a.grad_share_logits, span.batch, 1, p, count, target1, scratch[6]);
        if (!wants_image) continue;
      } else {
BLSGAN_INDEPENDENT
        for (int t = 0; t < count; ++t) {
          result[t] = keep_if(m0[t] != 0, grad0[t]) + keep_if(m1[t] != 0, grad1[t]);
        }
      }
      cpu::finish_tile<T>(a.grad_image, span.batch, 0, p, count, result, on_image);
    }
    a.partials[item] = grad_soft.take_sum();
  }
}

template <typename T, typename Law>
BLSGAN_HD void forward(const SplitAttenuation& a, const Law& law_in, int64_t begin, int64_t end) {
  if (a.shape.layers == 2) return forward_pair<T>(a, law_in, begin, end);
  const Law law = law_in;
  const int64_t layers = a.shape.layers;
  Tiles<T> scratch(7 + 2 * layers);
  cpu::SoftTiles<T> soft(a.soft_tissue);
  T *coverage = scratch[0], *image_buffer = scratch[1], *result = scratch[2],
    *bone = scratch[3], *largest = scratch[4], *inverse_sum = scratch[5], *buffer = scratch[6];
  const T* const tissue = soft.value();
  const auto mask = [&](int64_t i) __attribute__((always_inline)) { return scratch[7 + 2 * i]; };
  const auto share = [&](int64_t i) __attribute__((always_inline)) { return scratch[8 + 2 * i]; };
  for (int64_t item = begin; item < end; ++item) {
    const cpu::Span span = cpu::span_of(a.shape, item);
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
        load_soft_tissue(soft, law, span.batch, p, count);
BLSGAN_INDEPENDENT
        for (int t = 0; t < count; ++t) bone[t] = law.attenuation(image[t]) - tissue[t];
      }
      for (int64_t i = 0; i < layers; ++i) {
        const T *m = mask(i), *r = share(i);
        T* __restrict target = cpu::output_tile(a.layers, span.batch, i, p, result);
        if (cover.shared) {
BLSGAN_INDEPENDENT
          for (int t = 0; t < count; ++t) {
            const T inside = law.display(layer_attenuation(r[t], bone[t], tissue[t]));
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

template <typename T, typename Law>
BLSGAN_HD void backward(const SplitAttenuationBackward& a, const Law& law_in, int64_t begin,
                        int64_t end) {
  if (a.shape.layers == 2) return backward_pair<T>(a, law_in, begin, end);
  const Law law = law_in;
  const int64_t layers = a.shape.layers;
  Tiles<T> scratch(12 + 3 * layers);
  cpu::SoftTiles<T> soft(a.soft_tissue);
  cpu::SoftGradient<T> grad_soft(a.grad_soft_tissue);
  T *coverage = scratch[0], *image_buffer = scratch[1], *result = scratch[2],
    *bone = scratch[3], *largest = scratch[4], *inverse_sum = scratch[5], *buffer = scratch[6],
    *grad_bone = scratch[7], *copied = scratch[8], *grad_tissue = scratch[9],
    *others = scratch[10], *image_slope = scratch[11];
  const T* const tissue = soft.value();
  const auto mask = [&](int64_t i) __attribute__((always_inline)) { return scratch[12 + 3 * i]; };
  const auto share = [&](int64_t i) __attribute__((always_inline)) { return scratch[13 + 3 * i]; };
  const auto slope = [&](int64_t i) __attribute__((always_inline)) { return scratch[14 + 3 * i]; };
  for (int64_t item = begin; item < end; ++item) {
    const cpu::Span span = cpu::span_of(a.shape, item);
    for (int64_t p = span.begin; p < span.end; p += kTile) {
      const int count = span.tile(p);
      const Cover cover =
          load_cover(a.masks, layers, span.batch, p, count, mask, coverage);
      if (!cover.shared) {
        for (int64_t i = 0; i < layers; ++i) {
          cpu::store_zeros(a.grad_share_logits, span.batch, i, p, count);
        }
        grad_soft.finish_zeros(span.batch, p, count);
        if (a.grad_image.data == nullptr) continue;
      }
      for (int t = 0; t < count; ++t) {
        grad_bone[t] = T(0);
        grad_tissue[t] = T(0);
        copied[t] = T(0);
        others[t] = T(0);
      }
      if (cover.shared) {
        const T* __restrict image =
            cpu::load_tile(a.image, span.batch, 0, p, count, image_buffer);
        load_shares(a.share_logits, layers, span.batch, p, count, mask, share, largest,
                    inverse_sum, buffer);
        load_soft_tissue(soft, law, span.batch, p, count);
BLSGAN_INDEPENDENT
        for (int t = 0; t < count; ++t) {
          const T attenuation = law.attenuation(image[t]);
          bone[t] = attenuation - tissue[t];
          image_slope[t] = law.attenuation_slope(image[t], attenuation);
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
            const bool covered = m[t] != T(0);
            // d layer_i / d A_i, times the incoming gradient
            const T value = grad[t] * law.display_slope(layer_attenuation(r[t], bone[t], tissue[t]));
            s[t] = keep_if(covered, value);
            grad_bone[t] += keep_if(covered, value * r[t]);
            grad_tissue[t] += keep_if(covered, value * (T(1) - r[t]));
            copied[t] += keep_if(covered, grad[t]);
          }
        } else {
BLSGAN_INDEPENDENT
          for (int t = 0; t < count; ++t) copied[t] += m[t] != T(0) ? grad[t] : T(0);
        }
      }
      if (cover.shared) {
        for (int64_t i = 0; i < layers; ++i) {
          const T *m = mask(i), *r = share(i), *s = slope(i);
BLSGAN_INDEPENDENT
          for (int t = 0; t < count; ++t) {
            others[t] +=
                keep_if(m[t] != T(0), other_logit_gradient(r[t], s[t], grad_bone[t]));
          }
        }
        for (int64_t i = 0; i < layers; ++i) {
          const T *m = mask(i), *r = share(i), *s = slope(i);
          T* __restrict target =
              cpu::output_tile(a.grad_share_logits, span.batch, i, p, result);
BLSGAN_INDEPENDENT
          for (int t = 0; t < count; ++t) {
            const T value = bone[t] * logit_gradient(r[t], s[t], grad_bone[t], others[t]);
            target[t] = coverage[t] > T(1) && m[t] != T(0) ? value : T(0);
          }
          cpu::finish_tile<T>(a.grad_share_logits, span.batch, i, p, count, target, result);
        }
        const T* __restrict tissue_slope = soft.slope();
        T* __restrict on_soft = grad_soft.tile(span.batch, p);
BLSGAN_INDEPENDENT
        for (int t = 0; t < count; ++t) {
          on_soft[t] = keep_if((coverage[t] > T(1)) & (tissue_slope[t] != T(0)),
                               grad_tissue[t] * tissue_slope[t]);
        }
        grad_soft.finish(span.batch, p, count, on_soft);
      }
      if (a.grad_image.data != nullptr) {
        T* __restrict target = cpu::output_tile(a.grad_image, span.batch, 0, p, result);
BLSGAN_INDEPENDENT
        for (int t = 0; t < count; ++t) {
          const T inside = keep_if(image_slope[t] != T(0), grad_bone[t] * image_slope[t]);
          target[t] = coverage[t] > T(1) ? inside : copied[t];
        }
        cpu::finish_tile<T>(a.grad_image, span.batch, 0, p, count, target, result);
      }
    }
    a.partials[item] = grad_soft.take_sum();
  }
}

template <typename T>
BLSGAN_HD void by_law(const SplitAttenuation& a, int64_t begin, int64_t end) {
  if (a.law == 0.0) return forward<T>(a, TransmissionLaw<T>(), begin, end);
  forward<T>(a, ExponentialLaw<T>(a.law), begin, end);
}
template <typename T>
BLSGAN_HD void by_law(const SplitAttenuationBackward& a, int64_t begin, int64_t end) {
  if (a.law == 0.0) return backward<T>(a, TransmissionLaw<T>(), begin, end);
  backward<T>(a, ExponentialLaw<T>(a.law), begin, end);
}

BLSGAN_CLONES void forward_narrow(const SplitAttenuation& a, int64_t begin, int64_t end) {
  by_law<float>(a, begin, end);
}
BLSGAN_CLONES void forward_wide(const SplitAttenuation& a, int64_t begin, int64_t end) {
  by_law<double>(a, begin, end);
}
BLSGAN_CLONES void backward_narrow(const SplitAttenuationBackward& a, int64_t begin, int64_t end) {
  by_law<float>(a, begin, end);
}
BLSGAN_CLONES void backward_wide(const SplitAttenuationBackward& a, int64_t begin, int64_t end) {
  by_law<double>(a, begin, end);
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
  cpu::finish_soft_tissue_gradient(args.shape, args.partials, args.grad_soft_tissue);
}

}  // namespace blsgan
