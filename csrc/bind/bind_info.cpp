// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include <pybind11/pybind11.h>

#include <string>

#include "core/device.h"
#include "core/isa.h"
#include "core/parallel.h"

namespace py = pybind11;

namespace lb::bind {

namespace {

py::list isa_names() {
  py::list names;
  for (Isa isa : supported_isas()) names.append(name(isa));
  return names;
}

#if LB_CUDA
std::string cuda_version(int version) {  // 13020 is 13.2
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}
#endif

py::dict cuda_info() {
  py::dict info;
  info["compiled"] = bool(LB_CUDA);
#if LB_CUDA
  const cuda::Status status = cuda::status();
  info["available"] = status.available;
  info["reason"] = status.reason;
  info["version"] = cuda_version(status.runtime_version);
  info["architectures"] = LB_CUDA_ARCHITECTURES;
  info["driver"] = status.driver_version == 0 ? py::object(py::none())
                                              : py::str(cuda_version(status.driver_version));
  info["devices"] = status.device_count;
#else
  info["available"] = false;
  info["reason"] = LB_CUDA_OFF_REASON;
#endif
  return info;
}

py::dict build_info() {
  py::dict cpu;
  cpu["isa"] = name(cpu_isa());
  cpu["isas"] = isa_names();
#if defined(_OPENMP)
  cpu["openmp"] = true;
#else
  cpu["openmp"] = false;
#endif
  cpu["threads"] = max_threads();
  py::dict info;
  info["version"] = LB_VERSION;
  info["compiler"] = __VERSION__;
  info["cpu"] = cpu;
  info["cuda"] = cuda_info();
  return info;
}

bool cuda_available() {
#if LB_CUDA
  static const bool available = cuda::status().available;
  return available;
#else
  return false;
#endif
}

}  // namespace

void register_info(py::module_& module) {
  module.attr("__version__") = LB_VERSION;
  module.def(
      "build_info", &build_info,
      "What this build has in it, what of that runs here, and why a backend is off.\n\n"
      "Returns\n-------\ndict\n"
      "    `version`, `compiler`; `cpu` with `isa` (in use), `isas` (that this processor\n"
      "    runs), `openmp`, `threads`; `cuda` with `compiled`, `available`, `reason`, and if\n"
      "    compiled `version`, `architectures`, `driver`, `devices`.");
  module.def("cuda_available", &cuda_available, "Whether tensors on a GPU can be worked on.");
  module.def("cpu_isa", [] { return name(cpu_isa()); }, "The instruction set of the CPU loops.");
  module.def("cpu_isas", &isa_names, "Those that this processor runs.");
  module.def("set_cpu_isa", &set_cpu_isa, py::arg("name"),
             "Use this instruction set from now on; ValueError when it is not one of cpu_isas().");
  cpu_isa();  // a wrong LARGEBATCH_CPU_ISA is an error of the import, not of a later step
}

}  // namespace lb::bind
