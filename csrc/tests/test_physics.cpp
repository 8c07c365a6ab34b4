// Composition and split: values by the formulas in double, exact inversion, gradients by
// differences, order of the work.

#include "check.h"

using namespace blsgan;

namespace {

constexpr int64_t kBatch = 2, kHeight = 53, kWidth = 61, kPixels = kHeight * kWidth;

template <typename T>
struct Problem {
  Problem(int64_t layer_count, double law_of, bool map)
      : law(law_of),
        shape{kBatch, layer_count, kHeight, kWidth},
        layers(kBatch, layer_count, kPixels),
        logits(kBatch, layer_count, kPixels),
        image(kBatch, 1, kPixels),
        masks(kBatch, layer_count, kPixels),
        soft(kBatch, 1, map ? kPixels : 1) {
    Random random;
    for (auto& v : layers.values) v = static_cast<T>(random(0, 1));
    for (auto& v : logits.values) v = static_cast<T>(random(-4, 4));
    for (auto& v : image.values) v = static_cast<T>(random(0, 1));
    for (auto& v : masks.values) v = random(0, 1) < 0.6 ? 1 : 0;
    for (auto& v : soft.values) v = static_cast<T>(random(0.1, 0.5));
  }
  // Soft tissue, or its gradient, is a map, or [B].
  static View soft_view(Array<T>& of) {
    View view = of.view();
    if (of.pixels == 1) view.stride_pixel = 0;
    return view;
  }
  static MutableView soft_out(Array<T>& of) {
    MutableView view = of.out();
    if (of.pixels == 1) view.stride_pixel = 0;
    return view;
  }
  double k(int64_t b, int64_t p) { return soft.at(b, 0, soft.pixels == 1 ? 0 : p); }
  Array<T> composed() {
    Array<T> result(kBatch, 1, kPixels);
    run(ComposeLayers{shape, layers.view(), masks.view(), soft_view(soft), result.out(), law});
    return result;
  }
  Array<T> split(ParallelFor parallel = serial_for) {
    Array<T> result(kBatch, shape.layers, kPixels);
    run(SplitAttenuation{shape, logits.view(), image.view(), masks.view(), soft_view(soft),
                         result.out(), law},
        parallel);
    return result;
  }
  template <typename Args>
  void run(const Args& args, ParallelFor parallel = serial_for) {
    CpuContext context;
    context.wide = sizeof(T) == 8;
    context.parallel_for = parallel;
    run_cpu(args, context);
  }

  double law;
  Shape shape;
  Array<T> layers, logits, image;
  Array<uint8_t> masks;
  Array<T> soft;
};

double attenuation(double display, double law) {
  return law == 0 ? -std::log(1 - display) : std::exp(law * display) - 1;
}
double display(double attenuation, double law) {
  return law == 0 ? 1 - std::exp(-attenuation) : std::log(1 + attenuation) / law;
}

template <typename T>
void check_values(int64_t layer_count, double law, bool map, double limit) {
  Problem<T> problem(layer_count, law, map);
  Array<T> composed = problem.composed(), split = problem.split();
  for (int64_t b = 0; b < kBatch; ++b) {
    for (int64_t p = 0; p < kPixels; ++p) {
      const double soft = attenuation(problem.k(b, p), law);
      double sum = 0, weights = 0;
      int n = 0;
      for (int64_t i = 0; i < layer_count; ++i) {
        if (!problem.masks.at(b, i, p)) continue;
        ++n;
        sum += attenuation(problem.layers.at(b, i, p), law);
        weights += std::exp(static_cast<double>(problem.logits.at(b, i, p)));
      }
      sum -= n > 1 ? (n - 1) * soft : 0.0;
      // Below a display of 0 the exponential law goes on as its tangent.
      const double want = law != 0 && sum < 0 ? sum / law : display(sum, law);
      const double digits = law == 0 ? 1.0 : 20.0;  // lost where layers nearly cancel
      CHECK_NEAR(composed.at(b, 0, p), want, digits * limit * std::fmax(1.0, std::fabs(want)));
      const double image = problem.image.at(b, 0, p);
      for (int64_t i = 0; i < layer_count; ++i) {
        const T got = split.at(b, i, p);
        if (!problem.masks.at(b, i, p)) {
          CHECK(got == T(0));
        } else if (n == 1) {
          CHECK(got == problem.image.at(b, 0, p));
        } else {
          const double share = std::exp(static_cast<double>(problem.logits.at(b, i, p))) / weights;
          const double bone = attenuation(image, law) - soft;
          CHECK_NEAR(got, display(soft + share * bone, law), limit);
        }
      }
      if (failures > 20) return;
    }
  }
  // The split of the image composes to the image.
  problem.layers = split;
  Array<T> again = problem.composed();
  for (int64_t b = 0; b < kBatch; ++b) {
    for (int64_t p = 0; p < kPixels; ++p) {
      bool any = false;
      for (int64_t i = 0; i < layer_count; ++i) any = any || problem.masks.at(b, i, p);
      CHECK_NEAR(again.at(b, 0, p), any ? problem.image.at(b, 0, p) : 0.0, 10 * limit);
      if (failures > 20) return;
    }
  }
  CHECK(problem.split(backwards_for).values == problem.split().values);
}

// Central differences of <composed, g> and <split, g> in double.
void check_gradients(int64_t layer_count, double law, bool map) {
  Problem<double> problem(layer_count, law, map);
  Array<double> g(kBatch, 1, kPixels), g_layers(kBatch, layer_count, kPixels);
  Random random;
  for (auto& v : g.values) v = random(-1, 1);
  for (auto& v : g_layers.values) v = random(-1, 1);
  for (auto& v : problem.image.values) v = 0.05 + 0.9 * v;

  const auto dot = [](const Array<double>& a, const Array<double>& b) {
    double sum = 0;
    for (size_t i = 0; i < a.values.size(); ++i) sum += a.values[i] * b.values[i];
    return sum;
  };
  std::vector<double> partials(static_cast<size_t>(item_count(problem.shape)));
  Array<double> grad_soft(kBatch, 1, problem.soft.pixels);
  Array<double> grad_layers(kBatch, layer_count, kPixels);
  problem.run(ComposeLayersBackward{problem.shape, g.view(), problem.layers.view(),
                                    problem.masks.view(), problem.soft_view(problem.soft),
                                    grad_layers.out(), problem.soft_out(grad_soft),
                                    partials.data(), law});
  const double step = 1e-6;
  const auto difference = [&](double& place, auto evaluate) {
    const double before = place;
    place = before + step;
    const double high = evaluate();
    place = before - step;
    const double low = evaluate();
    place = before;
    return (high - low) / (2 * step);
  };
  const auto compose = [&] { return dot(problem.composed(), g); };
  const auto split = [&] { return dot(problem.split(), g_layers); };
  for (size_t index = 3; index < problem.layers.values.size(); index += 997) {
    const double want = difference(problem.layers.values[index], compose);
    CHECK_NEAR(grad_layers.values[index], want, 1e-6 * std::fmax(1.0, std::fabs(want)));
  }
  // The gradient of one value for an image is a sum over the image.
  const auto check_soft = [&](auto evaluate) {
    for (size_t index = 0; index < grad_soft.values.size(); index += map ? 997 : 1) {
      const double want = difference(problem.soft.values[index], evaluate);
      CHECK_NEAR(grad_soft.values[index], want, 1e-6 * std::fmax(10.0, std::fabs(want)));
    }
  };
  check_soft(compose);

  Array<double> grad_logits(kBatch, layer_count, kPixels), grad_image(kBatch, 1, kPixels);
  problem.run(SplitAttenuationBackward{
      problem.shape, g_layers.view(), problem.logits.view(), problem.image.view(),
      problem.masks.view(), problem.soft_view(problem.soft), grad_logits.out(), grad_image.out(),
      problem.soft_out(grad_soft), partials.data(), law});
  for (size_t index = 5; index < problem.logits.values.size(); index += 997) {
    CHECK_NEAR(grad_logits.values[index], difference(problem.logits.values[index], split), 1e-6);
  }
  for (size_t index = 5; index < problem.image.values.size(); index += 997) {
    CHECK_NEAR(grad_image.values[index], difference(problem.image.values[index], split), 1e-5);
  }
  check_soft(split);
}

}  // namespace

int main() {
  for (const int64_t layer_count : {2, 3, 5}) {
    for (const double law : {0.0, 7.4}) {
      for (const bool map : {false, true}) {
        check_values<double>(layer_count, law, map, 1e-12);
        check_values<float>(layer_count, law, map, 1e-6);
        check_gradients(layer_count, law, map);
      }
    }
  }
  return report("physics");
}
