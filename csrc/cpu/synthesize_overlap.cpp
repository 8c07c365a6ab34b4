#include <algorithm>
#include <cstring>
#include <vector>

#include "tile.h"

namespace blsgan {
namespace {

// Two passes: the first moves the masks and measures the soft tissue in the new overlap, the second
// composes with it. Both take blocks of rows, because the neighbourhoods are two-dimensional.

struct RowBlock {
  int64_t batch, begin, end;
};
BLSGAN_HD RowBlock block_of(const Shape& shape, int64_t item) {
  const int64_t blocks = synthesis_blocks(shape);
  const int64_t begin = item % blocks * kSynthesisRows;
  return {item / blocks, begin, std::min<int64_t>(begin + kSynthesisRows, shape.height)};
}

// The shifts of one image's layers.
template <typename T>
BLSGAN_HD void load_shifts(const SynthesizeOverlap& a, int64_t batch,
                           std::vector<RowShift<T>>& shifts) {
  for (size_t i = 0; i < shifts.size(); ++i) {
    const double shift = i == 0   ? cpu::load_scalar<double>(a.shift_upper, batch)
                         : i == 1 ? -cpu::load_scalar<double>(a.shift_lower, batch)
                                  : 0.0;
    shifts[i] = RowShift<T>::of(shift, a.shape.height);
  }
}

// Rows of bytes, 0 or 1, with room on both sides for horizontal windows.
class ByteRows {
 public:
  static constexpr int64_t kMargin = 64;
  ByteRows(int64_t rows, int64_t width)
      : stride_(width + 2 * kMargin), bytes_(static_cast<size_t>(rows * stride_)) {}
  uint8_t* operator[](int64_t row) { return bytes_.data() + row * stride_ + kMargin; }

 private:
  int64_t stride_;
  std::vector<uint8_t> bytes_;
};

// A row of a mask, not zero where it is set: in place where the tensor holds bytes, else in `target`.
BLSGAN_HD const uint8_t* mask_row(const View& view, int64_t batch, int64_t layer, int64_t row,
                                  int64_t width, uint8_t* target) {
  return cpu::mask_tile(view, batch, layer, row * width, static_cast<int>(width), target);
}

BLSGAN_HD View as_input(const MutableView& output) {
  View view;
  view.data = output.data;
  view.dtype = output.dtype;
  view.stride_batch = output.stride_batch;
  view.stride_channel = output.stride_channel;
  return view;
}

BLSGAN_HD void write_mask_row(const MutableView& view, int64_t batch, int64_t layer, int64_t row,
                              int64_t width, float* buffer, const uint8_t* source) {
  if (view.dtype == DType::kUInt8 && view.stride_pixel == 1) {
    std::memcpy(static_cast<uint8_t*>(view.data) + batch * view.stride_batch +
                    layer * view.stride_channel + row * width,
                source, static_cast<size_t>(width));
    return;
  }
  for (int64_t x = 0; x < width; ++x) buffer[x] = static_cast<float>(source[x]);
  cpu::store_tile(view, batch, layer, row * width, static_cast<int>(width), buffer);
}

// Masks grown by one pixel, moved, written; the sums of the background over their overlap.
template <typename T>
BLSGAN_HD void move_masks(const SynthesizeOverlap& a, int64_t begin, int64_t end) {
  const int64_t width = a.shape.width, height = a.shape.height;
  ByteRows rows(5, width);  // one source row, grown vertically, moved, coverage twice
  std::vector<float> buffer(static_cast<size_t>(width));
  std::vector<T> background_buffer(static_cast<size_t>(width));
  std::vector<RowShift<T>> shifts(static_cast<size_t>(a.shape.layers));
  for (int64_t item = begin; item < end; ++item) {
    const RowBlock block = block_of(a.shape, item);
    load_shifts(a, block.batch, shifts);
    double background_sum = 0.0, overlap_sum = 0.0;
    for (int64_t y = block.begin; y < block.end; ++y) {
      uint8_t *__restrict grown = rows[1], *__restrict moved = rows[2];
      uint8_t *__restrict any = rows[3], *__restrict shared = rows[4];
      std::memset(any, 0, static_cast<size_t>(width));
      std::memset(shared, 0, static_cast<size_t>(width));
      for (int64_t i = 0; i < a.shape.layers; ++i) {
        const RowShift<T> shift = shifts[static_cast<size_t>(i)];
        // Source rows that decide, grown: those of either row together, which is one range.
        const int64_t last = y - shift.whole + (shift.first_decides() ? 0 : -1);
        const int64_t first = y - shift.whole - (shift.second_decides() ? 1 : 0);
        std::memset(grown - 1, 0, static_cast<size_t>(width) + 2);
        // A source row outside the image is empty after growing too, so its neighbours do not
        // count: only rows next to an existing row are read.
        for (int64_t row = first - 1; row <= last + 1; ++row) {
          const bool reaches =
              (row - 1 >= first && row - 1 <= last && row - 1 >= 0 && row - 1 < height) ||
              (row >= first && row <= last) ||
              (row + 1 >= first && row + 1 <= last && row + 1 >= 0 && row + 1 < height);
          if (row < 0 || row >= height || !reaches) continue;
          const uint8_t* __restrict source =
              mask_row(a.masks, block.batch, i, row, width, rows[0]);
BLSGAN_INDEPENDENT
          for (int64_t x = 0; x < width; ++x) grown[x] |= source[x] != 0 ? 1 : 0;
        }
BLSGAN_INDEPENDENT
        for (int64_t x = 0; x < width; ++x) moved[x] = grown[x - 1] | grown[x] | grown[x + 1];
        cpu::add_cover(moved, width, any, shared);
        write_mask_row(a.shifted_masks, block.batch, i, y, width, buffer.data(), moved);
      }
      int count = 0;
#pragma omp simd reduction(+ : count)
      for (int64_t x = 0; x < width; ++x) count += shared[x];
      if (count == 0) continue;
      const T* __restrict background =
          cpu::load_tile(a.background, block.batch, 0, y * width, static_cast<int>(width),
                         background_buffer.data());
      T sum = T(0);
#pragma omp simd reduction(+ : sum)
      for (int64_t x = 0; x < width; ++x) sum += shared[x] != 0 ? background[x] : T(0);
      background_sum += static_cast<double>(sum);
      overlap_sum += count;
    }
    a.partials[item * kSynthesisSums] = background_sum;
    a.partials[item * kSynthesisSums + 1] = overlap_sum;
  }
}

// Rows of the overlap's mask around a block, and from them the rows of Canny's edge. Row numbers are
// the image's.
class OverlapRows {
 public:
  // Room for a block of `rows` rows and what decides about their rim.
  OverlapRows(int64_t rows, int64_t width, int64_t height)
      : width_(width),
        height_(height),
        overlap_(rows + kHalo, width),
        dx_(rows + kHalo, width),
        dy_(rows + kHalo, width),
        norm_(rows + kHalo, width),
        edge_(rows + kHalo, width),
        shared_(static_cast<size_t>(rows + kHalo)) {}

  BLSGAN_HD void start(int64_t begin) { first_ = begin - kRimHaloBefore; }
  BLSGAN_HD uint8_t* overlap(int64_t y) { return overlap_[y - first_]; }
  BLSGAN_HD uint8_t* edge(int64_t y) { return edge_[y - first_]; }

  // Closes a row that was written: counts it and repeats its ends, as Canny's border does.
  BLSGAN_HD void close(int64_t y) {
    uint8_t* row = overlap(y);
    int count = 0;
#pragma omp simd reduction(+ : count)
    for (int64_t x = 0; x < width_; ++x) count += row[x];
    shared_[static_cast<size_t>(y - first_)] = count;
    row[-1] = row[0];
    row[width_] = row[width_ - 1];
  }

  // Whether any row of [from, to] that lies in the image holds overlap.
  BLSGAN_HD bool any(int64_t from, int64_t to) {
    int64_t count = 0;
    for (int64_t y = std::max<int64_t>(from, 0); y <= std::min(to, height_ - 1); ++y) {
      count += shared_[static_cast<size_t>(y - first_)];
    }
    return count > 0;
  }

  // Gradient rows [from, to], then edge rows one less at either end; outside the image there is no
  // gradient.
  BLSGAN_HD void find_edges(int64_t from, int64_t to) {
    for (int64_t y = from; y <= to; ++y) gradient(y);
    for (int64_t y = from + 1; y < to; ++y) edges(y);
  }

  // The rim's row y, where `any` is set too: 1 there, 0 elsewhere.
  BLSGAN_HD void rim(int64_t y, const uint8_t* __restrict any, uint8_t* __restrict target) {
    std::memset(target, 0, static_cast<size_t>(width_));
    for (int64_t r = y - kRimBefore; r <= y + kRimBehind; ++r) {
      const uint8_t* __restrict from = edge(r);
BLSGAN_INDEPENDENT
      for (int64_t x = 0; x < width_; ++x) {
        target[x] |= from[x - 2] | from[x - 1] | from[x] | from[x + 1];
      }
    }
BLSGAN_INDEPENDENT
    for (int64_t x = 0; x < width_; ++x) target[x] &= any[x];
  }

  // Reads row y of the masks: which pixels any bone covers, and the overlap, closed; 0 or 1 each.
  BLSGAN_HD void load(const View& masks, int64_t layers, int64_t batch, int64_t y,
                      uint8_t* __restrict any, uint8_t* buffer) {
    uint8_t* __restrict shared = overlap(y);
    std::memset(any, 0, static_cast<size_t>(width_));
    std::memset(shared, 0, static_cast<size_t>(width_));
    for (int64_t i = 0; i < layers; ++i) {
      cpu::add_cover(mask_row(masks, batch, i, y, width_, buffer), width_, any, shared);
    }
    close(y);
  }

 private:
  static constexpr int64_t kHalo = kRimHaloBefore + kRimHaloBehind;

  BLSGAN_HD int8_t* signed_row(ByteRows& rows, int64_t y) {
    return reinterpret_cast<int8_t*>(rows[y - first_]);
  }

  BLSGAN_HD void gradient(int64_t y) {
    int8_t *__restrict dx = signed_row(dx_, y), *__restrict dy = signed_row(dy_, y),
           *__restrict norm = signed_row(norm_, y);
    std::memset(norm - 1, 0, static_cast<size_t>(width_) + 2);
    if (y < 0 || y >= height_ || !any(y - 1, y + 1)) return;
    const auto* __restrict above = signed_row(overlap_, std::max<int64_t>(y - 1, 0));
    const auto* __restrict here = signed_row(overlap_, y);
    const auto* __restrict below = signed_row(overlap_, std::min(y + 1, height_ - 1));
BLSGAN_INDEPENDENT
    for (int64_t x = 0; x < width_; ++x) {
      const int gx = (above[x + 1] - above[x - 1]) + 2 * (here[x + 1] - here[x - 1]) +
                     (below[x + 1] - below[x - 1]);
      const int gy = (below[x - 1] - above[x - 1]) + 2 * (below[x] - above[x]) +
                     (below[x + 1] - above[x + 1]);
      dx[x] = static_cast<int8_t>(gx);
      dy[x] = static_cast<int8_t>(gy);
      norm[x] = static_cast<int8_t>((gx < 0 ? -gx : gx) + (gy < 0 ? -gy : gy));
    }
  }

  BLSGAN_HD void edges(int64_t y) {
    uint8_t* __restrict target = edge(y);
    std::memset(target - kRimBefore, 0, static_cast<size_t>(width_) + kRimBefore + kRimBehind);
    if (y < 0 || y >= height_ || !any(y - 1, y + 1)) return;
    const int8_t *__restrict dx = signed_row(dx_, y), *__restrict dy = signed_row(dy_, y),
                 *__restrict above = signed_row(norm_, y - 1),
                 *__restrict here = signed_row(norm_, y),
                 *__restrict below = signed_row(norm_, y + 1);
BLSGAN_INDEPENDENT
    for (int64_t x = 0; x < width_; ++x) {
      const bool kept = is_canny_edge(
          dx[x], dy[x], here[x],
          {here[x - 1], here[x + 1], above[x], below[x], above[x - 1], above[x + 1],
           below[x - 1], below[x + 1]});
      target[x] = kept ? 1 : 0;
    }
  }

  int64_t width_, height_, first_ = 0;
  ByteRows overlap_, dx_, dy_, norm_, edge_;
  std::vector<int> shared_;
};

// One row of two layers, moved and composed in one loop; `first` and `second` are the rows of the
// image that each layer mixes. The masks are 0 or 1.
template <typename T>
struct MovedRow {
  const T *first, *second;
  const uint8_t* mask;
  T keep, take;
  T* layer;
};
template <typename T>
BLSGAN_HD void compose_pair(const MovedRow<T>& upper, const MovedRow<T>& lower, int64_t width,
                            T inverse_soft, T* __restrict composed) {
  const T *__restrict first0 = upper.first, *__restrict second0 = upper.second,
          *__restrict first1 = lower.first, *__restrict second1 = lower.second;
  const uint8_t *__restrict mask0 = upper.mask, *__restrict mask1 = lower.mask;
  T *__restrict layer0 = upper.layer, *__restrict layer1 = lower.layer;
  const T keep0 = upper.keep, take0 = upper.take, keep1 = lower.keep, take1 = lower.take;
  const TransmissionLaw<T> law;
BLSGAN_INDEPENDENT
  for (int64_t x = 0; x < width; ++x) {
    const bool c0 = mask0[x] != 0, c1 = mask1[x] != 0;
    const T value0 = keep_if(c0, keep0 * first0[x] + take0 * second0[x]);
    const T value1 = keep_if(c1, keep1 * first1[x] + take1 * second1[x]);
    layer0[x] = value0;
    layer1[x] = value1;
    Composition<T> pixel = law.start();
    law.add(pixel, value0, c0 ? T(1) : T(0), inverse_soft);
    law.add(pixel, value1, c1 ? T(1) : T(0), inverse_soft);
    composed[x] = clamp_unit(law.value(pixel));
  }
}

// The running composition of a row, of any number of layers.
template <typename T>
class ComposedRow {
 public:
  explicit ComposedRow(int64_t width)
      : width_(width), values_(4 * static_cast<size_t>(width)) {}

  BLSGAN_HD void start() {
    for (int64_t x = 0; x < width_; ++x) {
      part(0)[x] = T(1);
      part(1)[x] = T(1);
      part(2)[x] = T(0);
      part(3)[x] = T(0);
    }
  }
  BLSGAN_HD void add(const T* __restrict layer, const uint8_t* __restrict mask, T inverse_soft) {
    T *__restrict bones = part(0), *__restrict soft = part(1), *__restrict single = part(2),
      *__restrict coverage = part(3);
    const TransmissionLaw<T> law;
BLSGAN_INDEPENDENT
    for (int64_t x = 0; x < width_; ++x) {
      Composition<T> pixel{bones[x], soft[x], single[x], coverage[x]};
      law.add(pixel, layer[x], mask[x] != 0 ? T(1) : T(0), inverse_soft);
      bones[x] = pixel.bones;
      soft[x] = pixel.soft;
      single[x] = pixel.single;
      coverage[x] = pixel.coverage;
    }
  }
  BLSGAN_HD Composition<T> at(int64_t x) { return {part(0)[x], part(1)[x], part(2)[x], part(3)[x]}; }

 private:
  BLSGAN_HD T* part(int64_t index) { return values_.data() + index * width_; }

  int64_t width_;
  std::vector<T> values_;
};

template <typename T>
BLSGAN_HD void compose(const SynthesizeOverlap& a, int64_t begin, int64_t end) {
  const int64_t width = a.shape.width, height = a.shape.height, layers = a.shape.layers;
  const auto row_size = static_cast<size_t>(width);
  const int row_count = static_cast<int>(width);
  // Composed rows with one more on either side.
  std::vector<T> composed(row_size * (kSynthesisRows + 2));
  OverlapRows rows(kSynthesisRows, width, height);
  ByteRows work(4, width);
  std::vector<T> buffers(row_size * 7), vertical(row_size + 2), zeros(row_size, T(0));
  const auto buffer = [&](int64_t index) __attribute__((always_inline)) {
    return buffers.data() + index * width;
  };
  ComposedRow<T> running(layers > 2 ? width : 0);
  std::vector<RowShift<T>> shifts(static_cast<size_t>(layers));
  const View moved_masks = as_input(a.shifted_masks), soft = as_input(a.soft_tissue);
  for (int64_t item = begin; item < end; ++item) {
    const RowBlock block = block_of(a.shape, item);
    load_shifts(a, block.batch, shifts);
    const T k = cpu::load_scalar<T>(soft, block.batch);
    const TransmissionLaw<T> law;
    const T inverse_soft = law.soft_factor(k).value;

    const auto composed_row = [&](int64_t y) __attribute__((always_inline)) {
      return composed.data() + row_size * static_cast<size_t>(y - block.begin + 1);
    };
    const auto source_row = [&](int64_t row, T* target) __attribute__((always_inline)) {
      if (row < 0 || row >= height) return static_cast<const T*>(zeros.data());
      return cpu::load_tile(a.image, block.batch, 0, row * width, row_count, target);
    };
    rows.start(block.begin);
    for (int64_t y = std::max<int64_t>(block.begin - kRimHaloBefore, 0);
         y < std::min(block.end + kRimHaloBehind, height); ++y) {
      rows.load(moved_masks, layers, block.batch, y, work[0], work[1]);
      if (y < block.begin - 1 || y > block.end) continue;
      const bool stores = y >= block.begin && y < block.end;
      // What layer i mixes in this row, and where its row goes: `slot` tells the buffers apart.
      const auto moved_row = [&](int64_t i, int64_t slot) __attribute__((always_inline)) {
        const RowShift<T> shift = shifts[static_cast<size_t>(i)];
        MovedRow<T> row;
        row.first = source_row(y - shift.whole, buffer(3 * slot));
        row.second = shift.fraction == T(0)
                         ? zeros.data()
                         : source_row(y - shift.whole - 1, buffer(3 * slot + 1));
        row.mask = mask_row(moved_masks, block.batch, i, y, width, work[1 + slot]);
        row.keep = T(1) - shift.fraction;
        row.take = shift.fraction;
        row.layer = stores ? cpu::output_tile(a.layers, block.batch, i, y * width,
                                              buffer(3 * slot + 2))
                           : buffer(3 * slot + 2);
        return row;
      };
      const auto finish = [&](int64_t i, int64_t slot, const T* layer)
                              __attribute__((always_inline)) {
        if (stores) {
          cpu::finish_tile<T>(a.layers, block.batch, i, y * width, row_count, layer,
                              buffer(3 * slot + 2));
        }
      };
      T* __restrict result = composed_row(y);
      if (layers == 2) {
        const MovedRow<T> upper = moved_row(0, 0), lower = moved_row(1, 1);
        compose_pair(upper, lower, width, inverse_soft, result);
        finish(0, 0, upper.layer);
        finish(1, 1, lower.layer);
        continue;
      }
      running.start();
      for (int64_t i = 0; i < layers; ++i) {
        const MovedRow<T> row = moved_row(i, 0);
        const T *__restrict first = row.first, *__restrict second = row.second;
        const uint8_t* __restrict mask = row.mask;
        T* __restrict layer = row.layer;
        const T keep = row.keep, take = row.take;
BLSGAN_INDEPENDENT
        for (int64_t x = 0; x < width; ++x) {
          layer[x] = keep_if(mask[x] != 0, keep * first[x] + take * second[x]);
        }
        running.add(layer, mask, inverse_soft);
        finish(i, 0, layer);
      }
BLSGAN_INDEPENDENT
      for (int64_t x = 0; x < width; ++x) result[x] = clamp_unit(law.value(running.at(x)));
    }
    const bool any_overlap =
        rows.any(block.begin - kRimHaloBefore, block.end + kRimHaloBehind - 1);
    if (any_overlap) {
      rows.find_edges(block.begin - kRimBefore - 1, block.end + kRimBehind);
    }

    for (int64_t y = block.begin; y < block.end; ++y) {
      T* row = composed_row(y);
      if (!any_overlap || !rows.any(y - kRimHaloBefore, y + kRimHaloBehind)) {
        cpu::store_tile(a.composed, block.batch, 0, y * width, row_count, row);
        continue;
      }
      // Pixels off the bones stay 0.
      uint8_t *__restrict any = work[0], *__restrict rim = work[3];
      std::memset(any, 0, row_size);
      for (int64_t i = 0; i < layers; ++i) {
        const uint8_t* __restrict mask =
            mask_row(moved_masks, block.batch, i, y, width, work[1]);
BLSGAN_INDEPENDENT
        for (int64_t x = 0; x < width; ++x) any[x] |= mask[x];
      }
      rows.rim(y, any, rim);
      const T* __restrict above = composed_row(mirrored(y, -1, height));
      const T* __restrict below = composed_row(mirrored(y, 1, height));
      T* __restrict column = vertical.data() + 1;
BLSGAN_INDEPENDENT
      for (int64_t x = 0; x < width; ++x) {
        column[x] = T(0.25) * (above[x] + below[x]) + T(0.5) * row[x];
      }
      column[-1] = column[mirrored(0, -1, width)];
      column[width] = column[mirrored(width - 1, 1, width)];
      T* __restrict result =
          cpu::output_tile(a.composed, block.batch, 0, y * width, buffer(6));
BLSGAN_INDEPENDENT
      for (int64_t x = 0; x < width; ++x) {
        const T blurred = T(0.25) * (column[x - 1] + column[x + 1]) + T(0.5) * column[x];
        result[x] = rim[x] != 0 ? blurred : row[x];
      }
      cpu::finish_tile<T>(a.composed, block.batch, 0, y * width, row_count, result, buffer(6));
    }
  }
}

BLSGAN_CLONES void move_masks_narrow(const SynthesizeOverlap& a, int64_t begin, int64_t end) {
  move_masks<float>(a, begin, end);
}
BLSGAN_CLONES void move_masks_wide(const SynthesizeOverlap& a, int64_t begin, int64_t end) {
  move_masks<double>(a, begin, end);
}
BLSGAN_CLONES void compose_narrow(const SynthesizeOverlap& a, int64_t begin, int64_t end) {
  compose<float>(a, begin, end);
}
BLSGAN_CLONES void compose_wide(const SynthesizeOverlap& a, int64_t begin, int64_t end) {
  compose<double>(a, begin, end);
}

}  // namespace

void run_cpu(const SynthesizeOverlap& args, const CpuContext& context) {
  const Shape& shape = args.shape;
  const int64_t plane = shape.batch * shape.pixels();
  cpu::advise_large_pages(args.layers, plane * shape.layers);
  cpu::advise_large_pages(args.shifted_masks, plane * shape.layers);
  cpu::advise_large_pages(args.composed, plane);
  cpu::for_items(synthesis_items(shape), context, args, move_masks_narrow, move_masks_wide);
  const int64_t blocks = synthesis_blocks(shape);
  for (int64_t b = 0; b < shape.batch; ++b) {
    double sum = 0.0, count = 0.0;
    for (int64_t item = b * blocks; item < (b + 1) * blocks; ++item) {
      sum += args.partials[item * kSynthesisSums];
      count += args.partials[item * kSynthesisSums + 1];
    }
    cpu::store_scalar(args.soft_tissue, b, count > 0.0 ? clamp_soft_tissue(sum / count) : 0.0);
  }
  cpu::for_items(synthesis_items(shape), context, args, compose_narrow, compose_wide);
}

}  // namespace blsgan
