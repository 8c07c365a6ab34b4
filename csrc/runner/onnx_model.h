// What an ONNX model may not do: take weights from files other than itself (blsgan/runtimes/onnx_model.py).

#pragma once

#include "files.h"

namespace blsgan::runner {

// Throws Failure unless `model` is an ONNX model that holds all its tensors: one in another file is not
// covered by the model's hash, and may be any file that the process can read.
void refuse_external_data(const File& model);

}  // namespace blsgan::runner
