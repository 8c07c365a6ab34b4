// What an ONNX model may not do: take weights from files other than itself (blsgan/runtimes/onnx_model.py).

#pragma once

#include <map>
#include <string>

#include "files.h"
#include "joint.h"

namespace blsgan::runner {

// Throws Failure unless `model` is an ONNX model that holds all its tensors: one in another file is not
// covered by the model's hash, and may be any file that the process can read.
void refuse_external_data(const File& model);

// What blsgan wrote into a model about the separation it is for. Throws Failure where that is missing,
// as in models of before 0.2, or is nothing that can be used.
Physics physics_of(const File& model);
Physics physics_of(const std::map<std::string, std::string>& described, const std::string& path);

}  // namespace blsgan::runner
