// What runs the generator: ONNX Runtime, loaded when it is needed, or TensorRT where its headers were
// found at build time.

#pragma once

#include <memory>
#include <string>

#include "files.h"
#include "joint.h"

namespace blsgan::runner {

class Network {
 public:
  Network() = default;
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;
  virtual ~Network() = default;
  // Throws Failure when the runtime fails, or gave what cannot be split by.
  virtual Prediction run(const NetworkInput& input) = 0;
  virtual std::string runtime() const = 0;  // name and version
};

// `library` names the shared library of ONNX Runtime; empty: $BLSGAN_ONNXRUNTIME, else the loader's
// search path. `threads` 0: the usable cores, at most 8.
std::unique_ptr<Network> load_onnxruntime(File weights, const std::string& library, int threads);

// A TensorRT plan; its manifest (PLAN.json) is held against this machine before it is deserialised.
std::unique_ptr<Network> load_tensorrt(const File& plan);

bool has_tensorrt();

// Throws Failure for shapes that do not fit the input and for NaN or infinity.
Prediction checked(Prediction prediction, const NetworkInput& input, const std::string& weights);

}  // namespace blsgan::runner
