// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include "bind/exporter.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <unordered_map>

#include "core/error.h"

namespace py = pybind11;

namespace lb::bind {
namespace {

constexpr std::array<const char*, 4> kRungNames = {"exchange", "managed", "capsule", "protocol"};
Rung first_rung = Rung::exchange;

const char* name(Rung rung) { return kRungNames[static_cast<size_t>(rung)]; }

// Whether the type derives from a class of a module. Without the import: if nobody has imported
// the module, then nobody has made such an object.
bool derives_from(PyTypeObject* type, const char* module, const char* name) {
  PyObject* loaded = PyDict_GetItemString(PyImport_GetModuleDict(), module);
  if (loaded == nullptr) return false;
  const py::object base = py::getattr(loaded, name, py::none());
  if (!PyType_Check(base.ptr())) return false;
  return PyType_IsSubtype(type, reinterpret_cast<PyTypeObject*>(base.ptr())) != 0;
}

const dlpack::ExchangeApi* find_api(py::handle type) {
  // A subclass may switch the table off with None.
  const py::object capsule = py::getattr(type, dlpack::kExchangeAttribute, py::none());
  if (PyCapsule_IsValid(capsule.ptr(), dlpack::kExchangeCapsule) == 0) return nullptr;
  const auto* header = static_cast<const dlpack::ExchangeHeader*>(
      PyCapsule_GetPointer(capsule.ptr(), dlpack::kExchangeCapsule));
  while (header != nullptr && header->version.major != dlpack::kMajor) header = header->prev_api;
  return reinterpret_cast<const dlpack::ExchangeApi*>(header);
}

// object.__dlpack__(stream=stream, max_version=(1, 0)), the second only for those that know it.
PyObject* call_dlpack(PyObject* object, PyObject* stream, bool with_max_version) {
  static PyObject* const method = PyUnicode_InternFromString("__dlpack__");
  static PyObject* const max_version = py::make_tuple(dlpack::kMajor, 0).release().ptr();
  static PyObject* const one_keyword = py::make_tuple("stream").release().ptr();
  static PyObject* const two_keywords = py::make_tuple("stream", "max_version").release().ptr();
  PyObject* const arguments[] = {object, stream, max_version};
  return PyObject_VectorcallMethod(method, arguments, 1,
                                   with_max_version ? two_keywords : one_keyword);
}

}  // namespace

Rung Exporter::rung() const {
  if (api != nullptr) {
    const bool borrows = api->dltensor_from_py_object_no_sync != nullptr;
    if (borrows && first_rung == Rung::exchange) return Rung::exchange;
    if (first_rung <= Rung::managed) return Rung::managed;
  }
  const bool torch = library == Library::torch && first_rung <= Rung::capsule;
  return torch ? Rung::capsule : Rung::protocol;
}

void* Exporter::current_stream(int32_t device_index) const {
  void* stream = nullptr;
  if (api != nullptr) {
    if (api->current_work_stream(dlpack::kCuda, device_index, &stream) != 0) {
      throw py::error_already_set();
    }
  } else if (library == Library::torch) {
    const py::object current = py::module_::import("torch.cuda").attr("current_stream");
    stream = PyLong_AsVoidPtr(py::object(current(device_index).attr("cuda_stream")).ptr());
  } else if (library == Library::cupy) {
    const py::object current = py::module_::import("cupy.cuda").attr("get_current_stream");
    stream = PyLong_AsVoidPtr(py::object(current(device_index).attr("ptr")).ptr());
  }
  if (PyErr_Occurred() != nullptr) throw py::error_already_set();
  return stream;
}

Exporter* exporter_of(py::handle object) {
  // Entries stay for good and hold a reference to their type, so that its address is never that
  // of another type. Not destroyed at exit, when there may be no interpreter left.
  static auto* const known = new std::unordered_map<PyTypeObject*, Exporter>;
  PyTypeObject* const type = Py_TYPE(object.ptr());
  const auto found = known->find(type);
  if (found != known->end()) return &found->second;

  const py::handle type_object(reinterpret_cast<PyObject*>(type));
  Exporter exporter = {find_api(type_object), Library::other, true};
  if (derives_from(type, "torch", "Tensor")) exporter.library = Library::torch;
  if (derives_from(type, "cupy", "ndarray")) exporter.library = Library::cupy;
  if (exporter.api == nullptr && exporter.library == Library::other &&
      !py::hasattr(type_object, "__dlpack__")) {
    return nullptr;
  }
  type_object.inc_ref();
  return &known->emplace(type, exporter).first->second;
}

PyObject* torch_capsule(PyObject* tensor) {
  static PyObject* const to_dlpack =
      py::object(py::module_::import("torch.utils.dlpack").attr("to_dlpack")).release().ptr();
  return PyObject_CallOneArg(to_dlpack, tensor);
}

bool protocol_device(PyObject* object, dlpack::Device& device) {
  static PyObject* const method = PyUnicode_InternFromString("__dlpack_device__");
  const auto pair = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(object, method));
  // The type is often an enum, which "i" takes too.
  return pair && PyArg_ParseTuple(pair.ptr(), "ii", &device.type, &device.index) != 0;
}

PyObject* protocol_capsule(PyObject* object, PyObject* stream, Exporter& exporter) {
  PyObject* capsule = call_dlpack(object, stream, exporter.takes_max_version);
  if (capsule == nullptr && exporter.takes_max_version && PyErr_ExceptionMatches(PyExc_TypeError)) {
    PyErr_Clear();
    capsule = call_dlpack(object, stream, false);
    exporter.takes_max_version = capsule == nullptr;
  }
  return capsule;
}

std::string kind_of(py::handle object) {
  if (object.is_none()) return "None";
  const std::string kind = Py_TYPE(object.ptr())->tp_name;
  return (std::strchr("aeiouAEIOU", kind[0]) != nullptr ? "an " : "a ") + kind;
}

std::string set_dlpack_rung(const std::string& rung) {
  const auto found = std::find(kRungNames.begin(), kRungNames.end(), rung);
  if (found == kRungNames.end()) {
    throw ValueError("_set_dlpack_rung: got '" + rung +
                     "', expected exchange, managed, capsule or protocol.");
  }
  const Rung before = first_rung;
  first_rung = static_cast<Rung>(found - kRungNames.begin());
  return name(before);
}

std::string dlpack_rung(py::handle object) {
  const Exporter* exporter = exporter_of(object);
  if (exporter == nullptr) throw TypeError("_dlpack_rung: got " + kind_of(object) + ", no array.");
  return name(exporter->rung());
}

}  // namespace lb::bind
