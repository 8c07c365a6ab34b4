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

BLSGAN_HD double shift_of(const SynthesizeOverlap& a, int64_t batch, int64_t layer) {
  if (layer == 0) return cpu::load_scalar<double>(a.shift_upper, batch);
  if (layer == 1) return -cpu::load_scalar<double>(a.shift_lower, batch);
  return 0.0;
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

template <typename View_>
BLSGAN_HD void read_mask_row(const View_& view, int64_t batch, int64_t layer, int64_t row,
                             int64_t width, float* buffer, uint8_t* __restrict target) {
  if (view.dtype == DType::kUInt8 && view.stride_pixel == 1) {
    const uint8_t* __restrict source = static_cast<const uint8_t*>(view.data) +
                                       batch * view.stride_batch + layer * view.stride_channel +
                                       row * width;
BLSGAN_INDEPENDENT
    for (int64_t x = 0; x < width; ++x) target[x] = source[x] != 0 ? 1 : 0;
    return;
  }
  cpu::load_mask(view, batch, layer, row * width, static_cast<int>(width), buffer);
  for (int64_t x = 0; x < width; ++x) target[x] = buffer[x] != 0.0f ? 1 : 0;
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
  for (int64_t item = begin; item < end; ++item) {
    const RowBlock block = block_of(a.shape, item);
    double background_sum = 0.0, overlap_sum = 0.0;
    for (int64_t y = block.begin; y < block.end; ++y) {
      uint8_t *source = rows[0], *grown = rows[1], *moved = rows[2];
      uint8_t *__restrict any = rows[3], *__restrict shared = rows[4];
      std::memset(any, 0, static_cast<size_t>(width));
      std::memset(shared, 0, static_cast<size_t>(width));
      for (int64_t i = 0; i < a.shape.layers; ++i) {
        const auto shift = RowShift<T>::of(shift_of(a, block.batch, i), height);
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
          read_mask_row(a.masks, block.batch, i, row, width, buffer.data(), source);
BLSGAN_INDEPENDENT
          for (int64_t x = 0; x < width; ++x) grown[x] |= source[x];
        }
BLSGAN_INDEPENDENT
        for (int64_t x = 0; x < width; ++x) moved[x] = grown[x - 1] | grown[x] | grown[x + 1];
BLSGAN_INDEPENDENT
        for (int64_t x = 0; x < width; ++x) {
          shared[x] |= any[x] & moved[x];
          any[x] |= moved[x];
        }
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
  OverlapRows(int64_t width, int64_t height)
      : width_(width),
        height_(height),
        overlap_(kRows, width),
        dx_(kRows, width),
        dy_(kRows, width),
        norm_(kRows, width),
        edge_(kRows, width),
        shared_(kRows) {}

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

 private:
  static constexpr int64_t kRows = kSynthesisRows + kRimHaloBefore + kRimHaloBehind;

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

template <typename T>
BLSGAN_HD void compose(const SynthesizeOverlap& a, int64_t begin, int64_t end) {
  const int64_t width = a.shape.width, height = a.shape.height, layers = a.shape.layers;
  const auto row_size = static_cast<size_t>(width);
  // Composed rows with one more on either side.
  std::vector<T> composed(row_size * (kSynthesisRows + 2));
  OverlapRows rows(width, height);
  ByteRows work(3, width);
  std::vector<float> mask_buffer(row_size);
  std::vector<T> first_buffer(row_size), second_buffer(row_size), layer(row_size),
      transmission(row_size), correction(row_size), single(row_size), coverage(row_size),
      vertical(row_size + 2), zeros(row_size, T(0));
  View moved_masks;
  moved_masks.data = a.shifted_masks.data;
  moved_masks.dtype = a.shifted_masks.dtype;
  moved_masks.stride_batch = a.shifted_masks.stride_batch;
  moved_masks.stride_channel = a.shifted_masks.stride_channel;
  for (int64_t item = begin; item < end; ++item) {
    const RowBlock block = block_of(a.shape, item);
    View soft;
    soft.data = a.soft_tissue.data;
    soft.dtype = a.soft_tissue.dtype;
    soft.stride_batch = a.soft_tissue.stride_batch;
    const T k = clamp_soft_tissue(cpu::load_scalar<T>(soft, block.batch));
    const T inverse_soft = T(1) / (T(1) - k);

    const auto composed_row = [&](int64_t y) __attribute__((always_inline)) {
      return composed.data() + row_size * static_cast<size_t>(y - block.begin + 1);
    };
    rows.start(block.begin);
    for (int64_t y = std::max<int64_t>(block.begin - kRimHaloBefore, 0);
         y < std::min(block.end + kRimHaloBehind, height); ++y) {
      uint8_t *mask = work[0], *__restrict any = work[1];
      uint8_t* __restrict shared = rows.overlap(y);
      std::memset(any, 0, row_size);
      std::memset(shared, 0, row_size);
      const bool composes = y >= block.begin - 1 && y <= block.end;
      if (composes) {
        for (int64_t x = 0; x < width; ++x) {
          transmission[x] = T(1);
          correction[x] = T(1);
          single[x] = T(0);
          coverage[x] = T(0);
        }
      }
      for (int64_t i = 0; i < layers; ++i) {
        read_mask_row(moved_masks, block.batch, i, y, width, mask_buffer.data(), mask);
BLSGAN_INDEPENDENT
        for (int64_t x = 0; x < width; ++x) {
          shared[x] |= any[x] & mask[x];
          any[x] |= mask[x];
        }
        if (!composes) continue;
        const auto shift = RowShift<T>::of(shift_of(a, block.batch, i), height);
        const auto source_row = [&](int64_t row, T* buffer) -> const T* {
          if (row < 0 || row >= height) return zeros.data();
          return cpu::load_tile(a.image, block.batch, 0, row * width, static_cast<int>(width),
                                buffer);
        };
        const T* __restrict first = source_row(y - shift.whole, first_buffer.data());
        const T* __restrict second = shift.fraction == T(0)
                                         ? first
                                         : source_row(y - shift.whole - 1, second_buffer.data());
        T* __restrict value = layer.data();
        const T keep = T(1) - shift.fraction, take = shift.fraction;
        if (take == T(0)) {
BLSGAN_INDEPENDENT
          for (int64_t x = 0; x < width; ++x) value[x] = mask[x] != 0 ? first[x] : T(0);
        } else {
BLSGAN_INDEPENDENT
          for (int64_t x = 0; x < width; ++x) {
            const T mixed = keep * first[x] + take * second[x];
            value[x] = mask[x] != 0 ? mixed : T(0);
          }
        }
        if (y >= block.begin && y < block.end) {
          cpu::store_tile(a.layers, block.batch, i, y * width, static_cast<int>(width), value);
        }
        T *tr = transmission.data(), *co = correction.data(), *si = single.data(),
          *cv = coverage.data();
BLSGAN_INDEPENDENT
        for (int64_t x = 0; x < width; ++x) {
          Composition<T> pixel{tr[x], co[x], si[x], cv[x]};
          pixel.add(value[x], static_cast<T>(mask[x]), inverse_soft);
          tr[x] = pixel.transmission;
          co[x] = pixel.correction;
          si[x] = pixel.single;
          cv[x] = pixel.coverage;
        }
      }
      if (composes) {
        T* __restrict result = composed_row(y);
BLSGAN_INDEPENDENT
        for (int64_t x = 0; x < width; ++x) {
          result[x] = clamp_unit(
              Composition<T>{transmission[x], correction[x], single[x], coverage[x]}.value());
        }
      }
      rows.close(y);
    }
    const bool any_overlap =
        rows.any(block.begin - kRimHaloBefore, block.end + kRimHaloBehind - 1);
    if (any_overlap) {
      rows.find_edges(block.begin - kRimBefore - 1, block.end + kRimBehind);
    }

    for (int64_t y = block.begin; y < block.end; ++y) {
      T* row = composed_row(y);
      if (!any_overlap || !rows.any(y - kRimHaloBefore, y + kRimHaloBehind)) {
        cpu::store_tile(a.composed, block.batch, 0, y * width, static_cast<int>(width), row);
        continue;
      }
      uint8_t* __restrict rim = work[2];
      std::memset(rim, 0, row_size);
      for (int64_t r = y - kRimBefore; r <= y + kRimBehind; ++r) {
        const uint8_t* __restrict edge = rows.edge(r);
BLSGAN_INDEPENDENT
        for (int64_t x = 0; x < width; ++x) {
          rim[x] |= edge[x - 2] | edge[x - 1] | edge[x] | edge[x + 1];
        }
      }
      const T* __restrict above = composed_row(mirrored(y, -1, height));
      const T* __restrict below = composed_row(mirrored(y, 1, height));
      T* __restrict column = vertical.data() + 1;
BLSGAN_INDEPENDENT
      for (int64_t x = 0; x < width; ++x) {
        column[x] = T(0.25) * (above[x] + below[x]) + T(0.5) * row[x];
      }
      column[-1] = column[mirrored(0, -1, width)];
      column[width] = column[mirrored(width - 1, 1, width)];
      // Pixels off the bones stay 0.
      std::memset(work[1], 0, row_size);
      for (int64_t i = 0; i < layers; ++i) {
        read_mask_row(moved_masks, block.batch, i, y, width, mask_buffer.data(), work[0]);
        uint8_t* __restrict any = work[1];
        const uint8_t* __restrict mask = work[0];
BLSGAN_INDEPENDENT
        for (int64_t x = 0; x < width; ++x) any[x] |= mask[x];
      }
      const uint8_t* __restrict any = work[1];
      T* __restrict result = layer.data();
BLSGAN_INDEPENDENT
      for (int64_t x = 0; x < width; ++x) {
        const T blurred = T(0.25) * (column[x - 1] + column[x + 1]) + T(0.5) * column[x];
        result[x] = (rim[x] & any[x]) != 0 ? blurred : row[x];
      }
      cpu::store_tile(a.composed, block.batch, 0, y * width, static_cast<int>(width), result);
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
