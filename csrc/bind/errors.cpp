// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include "bind/errors.h"

#include <exception>

#include "core/error.h"

namespace py = pybind11;

namespace lb::bind {
namespace {

PyObject* backend_unavailable = nullptr;  // the class; one reference is ours for good

bool is_transform_tensor(py::handle torch, py::handle tensor) {
  // There is no public way to ask; without the private one the message is only less precise.
  const py::object functorch =
      py::getattr(py::getattr(torch, "_C", py::none()), "_functorch", py::none());
  const py::object ask = py::getattr(functorch, "is_functorch_wrapped_tensor", py::none());
  return !ask.is_none() && py::bool_(ask(tensor));
}

// What we know of the kinds of torch tensors; empty for one that has nothing special.
std::string explain_torch_tensor(py::handle torch, py::handle tensor) {
  // Fake tensors pretend to be where and what they stand for: ask first.
  if (py::hasattr(tensor, "fake_mode")) return "is a FakeTensor: fake tensors have no memory.";
  if (py::hasattr(tensor, "to_local")) {
    return "is a DTensor, whose memory is spread over processes. Pass x.to_local().";
  }
  if (is_transform_tensor(torch, tensor)) {
    return "is a tensor of a torch.func transform (vmap, grad, jvp), which has no memory of its "
           "own. Call the op outside the transform.";
  }
  if (py::bool_(tensor.attr("is_meta"))) {
    return "is a meta tensor, which has no memory. Materialize it, for example with "
           "module.to_empty(device=...).";
  }
  const auto layout = py::str(tensor.attr("layout")).cast<std::string>();
  if (layout == "torch.strided") return "";
  return "has layout " + layout + ", expected torch.strided. Pass x.to_dense().";
}

}  // namespace

void register_errors(py::module_& module) {
  const char* doc = "An op needs a backend that was not built, or that this machine cannot run.";
  backend_unavailable =
      PyErr_NewExceptionWithDoc("largebatch.BackendUnavailable", doc, PyExc_RuntimeError, nullptr);
  if (backend_unavailable == nullptr) throw py::error_already_set();
  module.attr("BackendUnavailable") = py::handle(backend_unavailable);

  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const TypeError& e) {
      py::set_error(PyExc_TypeError, e.what());
    } catch (const ValueError& e) {
      py::set_error(PyExc_ValueError, e.what());
    } catch (const CudaError& e) {
      py::set_error(PyExc_RuntimeError, e.what());
    } catch (const BackendUnavailable& e) {
      py::set_error(backend_unavailable, e.what());
    }
  });
}

std::string take_python_error() {
  if (PyErr_Occurred() == nullptr) return "";
  const bool of_array = PyErr_ExceptionMatches(PyExc_Exception) != 0 &&
                        PyErr_ExceptionMatches(PyExc_MemoryError) == 0;
  const py::error_already_set error;  // fetches, so that nothing is pending
  if (!of_array) throw error;
  const auto name = py::str(error.type().attr("__name__")).cast<std::string>();
  const auto message = py::str(error.value()).cast<std::string>();
  return name + ": " + message.substr(0, message.find('\n'));
}

std::string explain_no_memory(py::handle array, const std::string& reason) {
  PyObject* torch = PyDict_GetItemString(PyImport_GetModuleDict(), "torch");
  if (torch != nullptr && py::isinstance(array, py::handle(torch).attr("Tensor"))) {
    const std::string kind = explain_torch_tensor(torch, array);
    if (!kind.empty()) return kind;
  }
  if (!reason.empty()) return "cannot be viewed through DLPack (" + reason + ").";
  return "has elements but no memory (its data pointer is null).";
}

}  // namespace lb::bind
