// The vectorisable exponential and logarithms against the platform's own in double.

#include <limits>

#include "check.h"

using namespace blsgan;

int main() {
  double worst_exp = 0, worst_log = 0, worst_log1p = 0;
  for (int i = 0; i <= 2000000; ++i) {
    const float x = -87.0f * static_cast<float>(i) / 2000000.0f;
    const double want = std::exp(static_cast<double>(x));
    worst_exp = std::fmax(worst_exp, std::fabs(exp_bounded(x) / want - 1.0));
  }
  for (int i = 1; i <= 2000000; ++i) {
    const float x = static_cast<float>(i) / 2000000.0f;
    const double want = std::log(static_cast<double>(x));
    worst_log = std::fmax(worst_log, std::fabs(log_positive(x) - want) / std::fmax(-want, 1e-2));
    const double sum = std::log1p(static_cast<double>(x));
    worst_log1p = std::fmax(worst_log1p, std::fabs(log1p_unit(x) / sum - 1.0));
  }
  std::printf("relative errors: exp %.2g, log %.2g, log1p %.2g\n", worst_exp, worst_log, worst_log1p);
  CHECK(worst_exp < 2e-7);
  CHECK(worst_log < 3e-7);
  CHECK(worst_log1p < 2e-7);

  const float infinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(exp_bounded(0.0f) == 1.0f);
  CHECK(exp_bounded(-0.0f) == 1.0f);
  CHECK(exp_bounded(-100.0f) == 0.0f);
  CHECK(exp_bounded(-infinity) == 0.0f);
  CHECK(std::isnan(exp_bounded(nan)));
  CHECK(log_positive(1.0f) == 0.0f);
  CHECK(std::isnan(log_positive(nan)));
  CHECK_NEAR(log_positive(static_cast<float>(kTransmissionMin)), -24 * std::log(2.0), 1e-5);
  CHECK(log1p_unit(0.0f) == 0.0f);
  CHECK_NEAR(log1p_unit(1e-30f), 1e-30, 1e-36);

  CHECK(clamp_soft_tissue(-1.0f) == 0.0f);
  CHECK(clamp_soft_tissue(2.0) == kSoftTissueMax);
  CHECK(std::isnan(clamp_soft_tissue(nan)));
  CHECK(soft_tissue_has_gradient(0.0) && soft_tissue_has_gradient(0.95));
  CHECK(!soft_tissue_has_gradient(0.951) && !soft_tissue_has_gradient(-1e-9));

  for (const float z : {0.0f, 5.0f, -5.0f, 100.0f, -100.0f}) {
    const Sigmoid<float> s(z);
    const double p = 1.0 / (1.0 + std::exp(-static_cast<double>(z)));
    CHECK_NEAR(s.value, p, 1e-7);
    CHECK_NEAR(s.slope, p * (1.0 - p), 1e-7);
    CHECK_NEAR(cross_entropy(z, s.softplus, 1.0f), std::log1p(std::exp(-z * 1.0)), 1e-5);
  }
  return report("elementary");
}
