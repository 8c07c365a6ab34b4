// The second stage of a root mean square error and the factor of its gradient.

#pragma once

#include "common.cuh"

namespace blsgan::cuda {

struct FinishRmse {
  int64_t items;
  const double* partials;
  MutableView loss;
  double* statistics;
};

static __global__ void __launch_bounds__(kThreads) finish_rmse(FinishRmse a) {
  double sums[kRmseSums];
  sum_partials<kRmseSums>(a.partials, 0, a.items, sums);
  if (threadIdx.x == 0) {
    a.statistics[0] = root_mean_square(sums[0], sums[1]);
    a.statistics[1] = sums[1];
    store_scalar(a.loss, 0, a.statistics[0]);
  }
}

template <typename T>
__device__ __forceinline__ T rmse_slope(const View& grad_loss, const double* statistics) {
  return static_cast<T>(load_scalar<double>(grad_loss, 0) *
                        root_mean_square_slope(statistics[0], statistics[1]));
}

}  // namespace blsgan::cuda
