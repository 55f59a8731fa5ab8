// The module dynaspec_cli._C: what this build can do. It links neither the ops nor PyTorch.
#include <pybind11/pybind11.h>
#include <torch/headeronly/version.h>

#include <string>

#include "cpu/kernels/isa.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "What the compiled ops of dynaspec (dynaspec_cli._ops) were built for.";
  m.def(
      "isa", [] { return std::string(dynaspec::cpu::level_name(dynaspec::cpu::level())); },
      "Instruction-set level in use; RuntimeError if DYNASPEC_CPU_ISA asks for one that is not "
      "there.");
  m.def(
      "available_isas", [] { return dynaspec::cpu::available_levels(); },
      "Levels this processor can run, worst first, separated by commas.");
  m.def(
      "torch_version", [] { return std::string(TORCH_VERSION); },
      "The torch release built against.");
  m.def("has_cuda", [] {
#ifdef DYNASPEC_WITH_CUDA
    return true;
#else
    return false;
#endif
  });
}
