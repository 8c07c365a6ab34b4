#include "network.h"

#include "failure.h"

namespace blsgan::runner {

bool has_tensorrt() { return false; }

std::unique_ptr<Network> load_tensorrt(File plan) {
  throw data_failure(plan.path +
                     " is a TensorRT plan, and this blsgan-infer was built without TensorRT; give an "
                     ".onnx file, or build again where TensorRT's headers are.");
}

}  // namespace blsgan::runner
