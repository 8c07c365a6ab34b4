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

// The gradients of a weighted sum of all results against differences of it, in float64.
void check_gradients(int64_t height, int64_t width, float upper, float lower) {
  const Shape shape{1, 2, height, width};
  const int64_t pixels = shape.pixels();
  Array<double> image(1, 1, pixels), background(1, 1, pixels), composed(1, 1, pixels),
      layers(1, 2, pixels), on_composed(1, 1, pixels), on_layers(1, 2, pixels),
      on_image(1, 1, pixels), on_background(1, 1, pixels);
  Array<uint8_t> masks(1, 2, pixels), moved(1, 2, pixels);
  Array<double> soft(1, 1, 1), on_soft(1, 1, 1);
  Random random;
  for (auto& v : image.values) v = random(0.3, 0.9);
  for (auto& v : background.values) v = random(0.05, 0.2);
  for (auto& v : on_composed.values) v = random(-1, 1);
  for (auto& v : on_layers.values) v = random(-1, 1);
  on_soft.values[0] = 0.7;
  for (int64_t p = 0; p < pixels; ++p) {
    const int64_t y = p / width;
    const bool inside = width == 1 || p % width > 0;
    masks.at(0, 0, p) = y >= height / 8 && y < 3 * height / 8;
    masks.at(0, 1, p) = y >= 5 * height / 8 && y < 7 * height / 8 && inside;
  }
  std::vector<float> up{upper}, low{lower};
  const auto items = static_cast<size_t>(std::max(synthesis_items(shape), item_count(shape)));
  std::vector<double> partials(items * kSynthesisBackwardSums), shares(1);
  CpuContext context;
  context.wide = true;
  context.parallel_for = backwards_for;
  const View scalar{soft.values.data(), 1, 0, 1, DType::kFloat64};
  const auto total = [&]() {
    run_cpu(SynthesizeOverlap{shape, image.view(), masks.view(), background.view(),
                              vector_view(up), vector_view(low), composed.out(), moved.out(),
                              layers.out(), soft.out(), partials.data(), nullptr},
            context);
    double sum = on_soft.values[0] * soft.values[0];
    for (int64_t p = 0; p < pixels; ++p) {
      sum += on_composed.at(0, 0, p) * composed.at(0, 0, p);
      for (int64_t i = 0; i < 2; ++i) sum += on_layers.at(0, i, p) * layers.at(0, i, p);
    }
    return sum;
  };
  total();
  CHECK(soft.values[0] > 0.0);
  run_cpu(SynthesizeOverlapBackward{shape, on_composed.view(), on_layers.view(), on_soft.view(),
                                    layers.view(), moved.view(), scalar, background.view(),
                                    vector_view(up), vector_view(low), on_image.out(),
                                    on_background.out(), partials.data(), shares.data(), nullptr},
          context);
  const auto check = [&](Array<double>& input, Array<double>& gradient) {
    for (int64_t p = 0; p < pixels; p += 7) {
      const double value = input.at(0, 0, p), step = 1e-6;
      input.at(0, 0, p) = value + step;
      const double above = total();
      input.at(0, 0, p) = value - step;
      const double below = total();
      input.at(0, 0, p) = value;
      CHECK_NEAR(gradient.at(0, 0, p), (above - below) / (2 * step), 1e-6);
      if (failures > 20) return;
    }
  };
  check(image, on_image);
  check(background, on_background);
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
  check_gradients(24, 13, 4.25f, 5.5f);
  check_gradients(70, 5, 11.0f, 12.75f);  // shifts across the borders of work items
  check_gradients(16, 1, 3.5f, 3.0f);
  return report("synthesis");
}
