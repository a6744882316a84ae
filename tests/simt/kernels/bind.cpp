// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// The module _kernels: a list of the functions of kernels.h.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "kernels/kernels.h"

namespace py = pybind11;
using namespace py::literals;
using namespace lb::simt_kernels;

PYBIND11_MODULE(_kernels, module) {
  module.def("sum_and_spread", sum_and_spread, "x"_a);
  module.def("inclusive_scan", inclusive_scan, "x"_a);
  module.def("histogram", histogram, "x"_a, "bins"_a);
  module.def("transpose", transpose, "x"_a, "rows"_a, "columns"_a);
  module.def("normalize", normalize, "x"_a, "blocks"_a);
  module.def("last_block_sum", last_block_sum, "x"_a);
  module.def("column_scan", column_scan, "x"_a, "blocks"_a);
  module.def("scale_by_fours", scale_by_fours, "x"_a, "factor"_a);
  module.def("two_streams", two_streams, "x"_a);
  module.def("indices", indices, "blocks"_a, "threads"_a);

  module.def("votes", votes, "x"_a);
  module.def("warp_reductions", warp_reductions, "x"_a);
  module.def("shuffles_int", shuffles<int>, "x"_a, "width"_a);
  module.def("shuffles_float", shuffles<float>, "x"_a, "width"_a);
  module.def("shuffles_double", shuffles<double>, "x"_a, "width"_a);
  module.def("half_warps", half_warps, "x"_a);
  module.def("barrier_votes", barrier_votes, "x"_a);
  module.def("bits", bits, "x"_a);
  module.def("atomic_add_int", atomic_add<int>, "x"_a);
  module.def("atomic_add_uint", atomic_add<unsigned>, "x"_a);
  module.def("atomic_add_ulonglong", atomic_add<unsigned long long>, "x"_a);
  module.def("atomic_add_float", atomic_add<float>, "x"_a);
  module.def("atomic_add_double", atomic_add<double>, "x"_a);
  module.def("atomic_others_int", atomic_others<int>, "x"_a);
  module.def("atomic_others_uint", atomic_others<unsigned>, "x"_a);
  module.def("atomic_others_ulonglong", atomic_others<unsigned long long>, "x"_a);

  module.def("planted", planted);
  module.def("run_planted", run_planted, "bug"_a, "mended"_a, "in"_a, "queued"_a = false);

  module.def("use_after_free", use_after_free, "mended"_a, "in"_a);
  module.def("missing_event", missing_event, "mended"_a, "in"_a);
  module.def("launch_empty", launch_empty, "blocks"_a, "threads"_a, "shared_bytes"_a = 0,
             "cooperative"_a = false);
  module.def("copy_to_device", copy_to_device, "bytes"_a, "buffer_bytes"_a);
}
