// The namespace of the ops; each op defines its schema and kernels in its own file.
#include <torch/csrc/stable/library.h>

#include <string>

#include "../ops.h"

namespace {

std::string build_info() {
  std::string info = std::string("cpu=") + blsgan::cpu_dispatch_level();
#if defined(BLSGAN_WITH_CUDA)
  info += " cuda=yes";
#elif defined(BLSGAN_EMULATED_CUDA)
  info += " cuda=emulated";
#else
  info += " cuda=no";
#endif
  return info;
}

}  // namespace

STABLE_TORCH_LIBRARY(blsgan, m) { m.def("build_info() -> str"); }
STABLE_TORCH_LIBRARY_IMPL(blsgan, CompositeExplicitAutograd, m) {
  m.impl("build_info", TORCH_BOX(&build_info));
}
