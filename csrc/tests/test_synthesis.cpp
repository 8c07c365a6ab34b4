// Synthetic overlaps against the definition, pixel by pixel, for sizes that cross blocks and tiles.

#include <algorithm>

#include "check.h"

using namespace blsgan;

namespace {

struct Plane {
  int64_t height, width;
  std::vector<double> values;
  double at(int64_t y, int64_t x) const {
    return y < 0 || y >= height || x < 0 || x >= width
               ? 0.0
               : values[static_cast<size_t>(y * width + x)];
  }
};

// The definition, without any of the kernel's structure.
void check_size(int64_t height, int64_t width, float upper, float lower) {
  const Shape shape{1, 2, height, width};
  const int64_t pixels = shape.pixels();
  Array<double> image(1, 1, pixels), background(1, 1, pixels), composed(1, 1, pixels),
      layers(1, 2, pixels);
  Array<uint8_t> masks(1, 2, pixels), moved(1, 2, pixels);
  Random random;
  for (auto& v : image.values) v = random(0, 1);
  for (auto& v : background.values) v = random(0.1, 0.4);
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      const bool edge = x < width / 8 || x > 7 * width / 8;
      masks.at(0, 0, y * width + x) = !edge && y > height / 10 && y < 4 * height / 10;
      masks.at(0, 1, y * width + x) = !edge && y > 6 * height / 10 && y < 9 * height / 10;
    }
  }
  std::vector<float> up{upper}, low{lower}, soft(1);
  std::vector<double> partials(static_cast<size_t>(
      std::max(synthesis_items(shape), item_count(shape)) * kSynthesisSums));
  CpuContext context;
  context.wide = true;
  context.parallel_for = backwards_for;
  run_cpu(SynthesizeOverlap{shape, image.view(), masks.view(), background.view(), vector_view(up),
                            vector_view(low), composed.out(), moved.out(), layers.out(),
                            vector_out(soft), partials.data(), nullptr},
          context);

  const auto row_mix = [&](const Plane& plane, double shift, int64_t y, int64_t x) {
    const auto whole = static_cast<int64_t>(std::floor(shift));
    const double fraction = shift - std::floor(shift);
    return (1 - fraction) * plane.at(y - whole, x) + fraction * plane.at(y - whole - 1, x);
  };
  Plane picture{height, width, image.values};
  double soft_sum = 0, soft_count = 0;
  std::vector<uint8_t> overlap(static_cast<size_t>(pixels));
  const double shifts[2] = {upper, -static_cast<double>(lower)};
  for (int i = 0; i < 2; ++i) {
    Plane grown{height, width, std::vector<double>(static_cast<size_t>(pixels))};
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t x = 0; x < width; ++x) {
        double any = 0;
        for (int64_t v = std::max<int64_t>(y - 1, 0); v <= std::min(y + 1, height - 1); ++v) {
          for (int64_t u = std::max<int64_t>(x - 1, 0); u <= std::min(x + 1, width - 1); ++u) {
            any = std::max<double>(any, masks.at(0, i, v * width + u));
          }
        }
        grown.values[static_cast<size_t>(y * width + x)] = any;
      }
    }
    for (int64_t p = 0; p < pixels; ++p) {
      const bool covered = row_mix(grown, shifts[i], p / width, p % width) >= 0.5;
      CHECK(moved.at(0, i, p) == (covered ? 1 : 0));
      overlap[static_cast<size_t>(p)] = static_cast<uint8_t>(overlap[static_cast<size_t>(p)] + covered);
      const double want = covered ? row_mix(picture, shifts[i], p / width, p % width) : 0.0;
      CHECK_NEAR(layers.at(0, i, p), want, 1e-12);
    }
  }
  for (int64_t p = 0; p < pixels; ++p) {
    if (overlap[static_cast<size_t>(p)] < 2) continue;
    soft_sum += background.at(0, 0, p);
    soft_count += 1;
  }
  const double k = soft_count > 0 ? soft_sum / soft_count : 0.0;
  CHECK_NEAR(soft[0], k, 1e-6);
  // Where no overlap is near, the image is the one layer; where it is, at least in range.
  for (int64_t p = 0; p < pixels; ++p) {
    const double value = composed.at(0, 0, p);
    CHECK(value >= 0.0 && value <= 1.0);
    if (!moved.at(0, 0, p) && !moved.at(0, 1, p)) CHECK(value == 0.0);
    if (soft_count == 0) CHECK_NEAR(value, layers.at(0, 0, p) + layers.at(0, 1, p), 1e-12);
    if (failures > 20) return;
  }
}

// One edge of each kind, by hand.
void check_canny_rule() {
  const CannyNeighbours none{0, 0, 0, 0, 0, 0, 0, 0};
  CHECK(!is_canny_edge(0, 0, 0, none));
  CHECK(is_canny_edge(4, 0, 4, {0, 4, 4, 4, 0, 4, 0, 4}));   // left of a vertical border
  CHECK(!is_canny_edge(4, 0, 4, {4, 0, 4, 4, 4, 0, 4, 0}));  // right of it
  CHECK(is_canny_edge(0, -4, 4, {4, 4, 0, 4, 0, 0, 4, 4}));  // above a horizontal border
  CHECK(is_canny_edge(3, 3, 6, {0, 0, 0, 0, 5, 9, 9, 5}));   // a diagonal: its own neighbours count
  CHECK(!is_canny_edge(3, -3, 6, {0, 0, 0, 0, 5, 9, 9, 5}));
}

}  // namespace

int main() {
  check_canny_rule();
  check_size(100, 64, 12.0f, 12.5f);
  check_size(97, 130, 13.25f, 9.75f);
  check_size(33, 17, 6.0f, 6.5f);
  check_size(64, 600, 0.0f, 0.0f);
  check_size(1, 1, 1.0f, 1.0f);
  check_size(5, 3, 100.0f, -100.0f);
  return report("synthesis");
}
