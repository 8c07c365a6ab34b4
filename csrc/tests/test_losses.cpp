// The losses against sums in double, their gradients by differences, and their limits.

#include "check.h"

using namespace blsgan;

namespace {

constexpr Shape kShape{2, 2, 70, 67};
constexpr int64_t kPixels = kShape.height * kShape.width;

struct Losses {
  Losses()
      : layers(2, 2, kPixels),
        truth(2, 2, kPixels),
        logits(2, 4, kPixels),
        image(2, 1, kPixels),
        masks(2, 2, kPixels),
        soft{0.3f, 0.5f},
        partials(static_cast<size_t>(item_count(kShape) * kSupervisorSums)) {
    Random random;
    for (auto* array : {&layers, &truth, &image}) {
      for (double& v : array->values) v = random(0, 1);
    }
    for (double& v : logits.values) v = random(-6, 6);
    for (uint8_t& v : masks.values) v = random(0, 1) < 0.6 ? 1 : 0;
  }
  CpuContext context(ParallelFor parallel = serial_for) const {
    CpuContext result;
    result.wide = true;
    result.parallel_for = parallel;
    return result;
  }
  MutableView loss_out() { return {&loss, 0, 0, 1, DType::kFloat64}; }
  View one() const { return {&unit, 0, 0, 1, DType::kFloat64}; }

  double layer(ParallelFor parallel = serial_for) {
    run_cpu(LayerLoss{kShape, layers.view(), truth.view(), masks.view(), loss_out(), statistics,
                      partials.data()},
            context(parallel));
    return loss;
  }
  double reconstruction(ParallelFor parallel = serial_for) {
    run_cpu(ReconstructionLoss{kShape, layers.view(), masks.view(), vector_view(soft),
                               image.view(), loss_out(), statistics, partials.data()},
            context(parallel));
    return loss;
  }
  double supervisor(SupervisorTarget target, bool hybrid, ParallelFor parallel = serial_for) {
    run_cpu(SupervisorLoss{kShape, logits.view(), masks.view(), target, hybrid, loss_out(),
                           statistics, partials.data()},
            context(parallel));
    return loss;
  }

  Array<double> layers, truth, logits, image;
  Array<uint8_t> masks;
  std::vector<float> soft;
  std::vector<double> partials;
  double loss = -1, unit = 1, statistics[kSupervisorStatistics] = {};
};

template <typename Evaluate>
void check_gradient(Array<double>& input, const Array<double>& gradient, Evaluate evaluate) {
  const double step = 1e-4;
  for (size_t index = 2; index < input.values.size(); index += 1499) {
    const double before = input.values[index];
    input.values[index] = before + step;
    const double high = evaluate();
    input.values[index] = before - step;
    const double low = evaluate();
    input.values[index] = before;
    const double want = (high - low) / (2 * step);
    CHECK_NEAR(gradient.values[index], want, 1e-9 + 1e-5 * std::fabs(want));
  }
}

}  // namespace

int main() {
  Losses l;

  double squares = 0, count = 0;
  for (size_t i = 0; i < l.masks.values.size(); ++i) {
    if (!l.masks.values[i]) continue;
    squares += std::pow(l.layers.values[i] - l.truth.values[i], 2);
    count += 1;
  }
  CHECK_NEAR(l.layer(), std::sqrt(squares / count), 1e-12);
  CHECK(l.layer(backwards_for) == l.layer());
  Array<double> grad(2, 2, kPixels);
  run_cpu(LayerLossBackward{kShape, l.one(), l.layers.view(), l.truth.view(), l.masks.view(),
                            l.statistics, grad.out(), MutableView{}},
          l.context());
  check_gradient(l.layers, grad, [&] { return l.layer(); });

  Array<double> composed(2, 1, kPixels);
  run_cpu(ComposeLayers{kShape, l.layers.view(), l.masks.view(), vector_view(l.soft),
                        composed.out()},
          l.context());
  squares = count = 0;
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t p = 0; p < kPixels; ++p) {
      if (!l.masks.at(b, 0, p) && !l.masks.at(b, 1, p)) continue;
      squares += std::pow(composed.at(b, 0, p) - l.image.at(b, 0, p), 2);
      count += 1;
    }
  }
  CHECK_NEAR(l.reconstruction(), std::sqrt(squares / count), 1e-12);
  CHECK(l.reconstruction(backwards_for) == l.reconstruction());
  std::vector<float> grad_soft(2);
  Array<double> grad_image(2, 1, kPixels);
  run_cpu(ReconstructionLossBackward{kShape, l.one(), l.layers.view(), l.masks.view(),
                                     vector_view(l.soft), l.image.view(), l.statistics, grad.out(),
                                     vector_out(grad_soft), grad_image.out(), l.partials.data()},
          l.context());
  check_gradient(l.layers, grad, [&] { return l.reconstruction(); });
  check_gradient(l.image, grad_image, [&] { return l.reconstruction(); });

  for (const bool hybrid : {false, true}) {
    for (const auto target :
         {SupervisorTarget::kMasks, SupervisorTarget::kZeros, SupervisorTarget::kExclusive}) {
      double entropy = 0, overlap_entropy = 0, pt = 0, ps = 0, ts = 0, po = 0, os = 0;
      for (int64_t b = 0; b < 2; ++b) {
        for (int64_t c = 0; c < 4; ++c) {
          for (int64_t p = 0; p < kPixels; ++p) {
            const bool overlap = l.masks.at(b, 0, p) && l.masks.at(b, 1, p);
            bool t = l.masks.at(b, c % 2, p) != 0;
            if (target == SupervisorTarget::kExclusive && overlap) t = false;
            if (target == SupervisorTarget::kZeros && c >= 2) t = false;
            const double z = l.logits.at(b, c, p), q = 1 / (1 + std::exp(-z));
            entropy -= t ? std::log(q) : std::log1p(-q);
            overlap_entropy -= overlap ? std::log(q) : 0.0;
            pt += t ? q : 0.0;
            ps += q;
            ts += t;
            po += overlap ? q : 0.0;
            os += overlap;
          }
        }
      }
      const double elements = static_cast<double>(l.logits.values.size());
      double want = entropy / elements;
      if (hybrid) {
        want = 0.5 * (want + overlap_entropy / elements + 1 - (2 * pt + 1) / (ps + ts + 1) + 1 -
                      (2 * po + 1) / (po + os + 1));
      }
      CHECK_NEAR(l.supervisor(target, hybrid), want, 1e-10);
      CHECK(l.supervisor(target, hybrid, backwards_for) == l.supervisor(target, hybrid));
      Array<double> grad_logits(2, 4, kPixels);
      run_cpu(SupervisorLossBackward{kShape, l.one(), l.logits.view(), l.masks.view(), target,
                                     l.statistics, grad_logits.out()},
              l.context());
      check_gradient(l.logits, grad_logits, [&] { return l.supervisor(target, hybrid); });
    }
  }

  // No covered pixel, and no error: 0, and a finite gradient.
  l.masks.values.assign(l.masks.values.size(), 0);
  CHECK(l.layer() == 0.0 && l.reconstruction() == 0.0);
  CHECK(std::isfinite(l.supervisor(SupervisorTarget::kMasks, true)));
  CHECK(root_mean_square_slope(0.0, 0.0) == 0.0 && root_mean_square_slope(0.0, 9.0) == 0.0);
  l.masks.values.assign(l.masks.values.size(), 1);
  l.truth.values = l.layers.values;
  CHECK(l.layer() == 0.0);
  run_cpu(LayerLossBackward{kShape, l.one(), l.layers.view(), l.truth.view(), l.masks.view(),
                            l.statistics, grad.out(), MutableView{}},
          l.context());
  for (const double v : grad.values) CHECK(v == 0.0);
  return report("losses");
}
