// Composition and split: values by the formulas in double, exact inversion, gradients by
// differences, order of the work.

#include "check.h"

using namespace blsgan;

namespace {

constexpr int64_t kBatch = 2, kHeight = 53, kWidth = 61, kPixels = kHeight * kWidth;

template <typename T>
struct Problem {
  explicit Problem(int64_t layer_count)
      : shape{kBatch, layer_count, kHeight, kWidth},
        layers(kBatch, layer_count, kPixels),
        logits(kBatch, layer_count, kPixels),
        image(kBatch, 1, kPixels),
        masks(kBatch, layer_count, kPixels),
        soft{0.2f, 0.55f} {
    Random random;
    for (auto& v : layers.values) v = static_cast<T>(random(0, 1));
    for (auto& v : logits.values) v = static_cast<T>(random(-4, 4));
    for (auto& v : image.values) v = static_cast<T>(random(0, 1));
    for (auto& v : masks.values) v = random(0, 1) < 0.6 ? 1 : 0;
  }
  Array<T> composed() {
    Array<T> result(kBatch, 1, kPixels);
    run(ComposeLayers{shape, layers.view(), masks.view(), vector_view(soft), result.out()});
    return result;
  }
  Array<T> split(ParallelFor parallel = serial_for) {
    Array<T> result(kBatch, shape.layers, kPixels);
    run(SplitAttenuation{shape, logits.view(), image.view(), masks.view(), vector_view(soft),
                         result.out()},
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

  Shape shape;
  Array<T> layers, logits, image;
  Array<uint8_t> masks;
  std::vector<float> soft;
};

template <typename T>
void check_values(int64_t layer_count, double limit) {
  Problem<T> problem(layer_count);
  Array<T> composed = problem.composed(), split = problem.split();
  for (int64_t b = 0; b < kBatch; ++b) {
    const double k = problem.soft[static_cast<size_t>(b)];
    for (int64_t p = 0; p < kPixels; ++p) {
      double transmission = 1, weights = 0;
      int n = 0;
      for (int64_t i = 0; i < layer_count; ++i) {
        if (!problem.masks.at(b, i, p)) continue;
        ++n;
        transmission *= 1.0 - problem.layers.at(b, i, p);
        weights += std::exp(static_cast<double>(problem.logits.at(b, i, p)));
      }
      const double want = n ? 1.0 - transmission / std::pow(1 - k, n - 1) : 0.0;
      CHECK_NEAR(composed.at(b, 0, p), want, limit * std::fmax(1.0, std::fabs(want)));
      const double image = problem.image.at(b, 0, p);
      for (int64_t i = 0; i < layer_count; ++i) {
        const T got = split.at(b, i, p);
        if (!problem.masks.at(b, i, p)) {
          CHECK(got == T(0));
        } else if (n == 1) {
          CHECK(got == problem.image.at(b, 0, p));
        } else {
          const double share = std::exp(static_cast<double>(problem.logits.at(b, i, p))) / weights;
          const double total = -std::log(1 - image) - (n - 1) * std::log(1 - k);
          CHECK_NEAR(got, 1.0 - std::exp(-share * total), limit);
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
void check_gradients(int64_t layer_count) {
  Problem<double> problem(layer_count);
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
  std::vector<float> grad_soft(kBatch);
  Array<double> grad_layers(kBatch, layer_count, kPixels);
  problem.run(ComposeLayersBackward{problem.shape, g.view(), problem.layers.view(),
                                    problem.masks.view(), vector_view(problem.soft),
                                    grad_layers.out(), vector_out(grad_soft), partials.data()});
  const double step = 1e-6;
  const auto difference = [&](auto& place, auto evaluate) {
    const auto before = place;
    place = static_cast<std::remove_reference_t<decltype(place)>>(before + step);
    const double high = evaluate();
    place = static_cast<std::remove_reference_t<decltype(place)>>(before - step);
    const double low = evaluate();
    place = before;
    return (high - low) / (2 * step);
  };
  const auto compose = [&] { return dot(problem.composed(), g); };
  const auto split = [&] { return dot(problem.split(), g_layers); };
  for (size_t index = 3; index < problem.layers.values.size(); index += 997) {
    CHECK_NEAR(grad_layers.values[index], difference(problem.layers.values[index], compose), 1e-6);
  }

  Array<double> grad_logits(kBatch, layer_count, kPixels), grad_image(kBatch, 1, kPixels);
  problem.run(SplitAttenuationBackward{
      problem.shape, g_layers.view(), problem.logits.view(), problem.image.view(),
      problem.masks.view(), vector_view(problem.soft), grad_logits.out(), grad_image.out(),
      vector_out(grad_soft), partials.data()});
  for (size_t index = 5; index < problem.logits.values.size(); index += 997) {
    CHECK_NEAR(grad_logits.values[index], difference(problem.logits.values[index], split), 1e-6);
  }
  for (size_t index = 5; index < problem.image.values.size(); index += 997) {
    CHECK_NEAR(grad_image.values[index], difference(problem.image.values[index], split), 1e-5);
  }
  // k itself is float32 here: a step that float32 resolves.
  const double low = split(), width = 1e-3;
  problem.soft[0] += static_cast<float>(width);
  CHECK_NEAR(grad_soft[0], (split() - low) / width, 0.02 * std::fabs(grad_soft[0]) + 1e-2);
}

}  // namespace

int main() {
  for (const int64_t layer_count : {2, 3, 5}) {
    check_values<double>(layer_count, 1e-12);
    check_values<float>(layer_count, 1e-6);
    check_gradients(layer_count);
  }
  return report("physics");
}
