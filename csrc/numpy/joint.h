#pragma once

#include <pybind11/pybind11.h>

namespace blsgan {

// The windows of csrc/joint, into blsgan._native.
void bind_joint(pybind11::module_& m);

}  // namespace blsgan
