// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include "bind/group_reader.h"

#include <cmath>

#include "bind/arrays.h"
#include "bind/checks.h"
#include "core/error.h"

namespace py = pybind11;

namespace lb::bind {

namespace {

// What float() takes, NumPy's numbers included; not an array, which might have to be waited for.
bool is_number(py::handle value) {
  if (PyFloat_Check(value.ptr()) || PyLong_Check(value.ptr())) return true;
  const PyNumberMethods* methods = Py_TYPE(value.ptr())->tp_as_number;
  return methods != nullptr && methods->nb_float != nullptr && !py::hasattr(value, "__dlpack__");
}

std::string text(double x) { return py::str(py::float_(x)); }

}  // namespace

py::object GroupReader::get(const char* key) const {
  PyObject* value = PyDict_GetItemString(group_.ptr(), key);
  if (value == nullptr) {
    throw ValueError(std::string(op_) + ": " + key +
                     " is missing from the parameter group. Add it, or build the group with "
                     "add_param_group.");
  }
  return py::reinterpret_borrow<py::object>(value);
}

void GroupReader::fail(const std::string& what, py::handle got, const std::string& expected) const {
  const std::string of_group = index_ < 0 ? "" : " of param_groups[" + std::to_string(index_) + "]";
  throw ValueError(std::string(op_) + ": " + what + of_group + ": got " +
                   std::string(py::repr(got)) + ", expected " + expected + ".");
}

double GroupReader::checked(const std::string& what, py::handle value, double low,
                            double high) const {
  const std::string expected = high == kInfinity
                                   ? "a number >= " + text(low)
                                   : "a number in [" + text(low) + ", " + text(high) + ")";
  if (!is_number(value)) fail(what, value, expected);
  const double x = PyFloat_AsDouble(value.ptr());
  if (PyErr_Occurred() != nullptr) throw py::error_already_set();
  if (!(x >= low && (x < high || high == kInfinity))) fail(what, value, expected);
  return x;
}

double GroupReader::number(const char* key, double low, double high) const {
  return checked(key, get(key), low, high);
}

void GroupReader::numbers(const char* key, double low, double high,
                          std::initializer_list<double*> places) const {
  const py::object value = get(key);
  if (!py::isinstance<py::sequence>(value) || py::len(value) != places.size()) {
    fail(key, value, std::to_string(places.size()) + " numbers");
  }
  size_t i = 0;
  for (double* place : places) {
    const std::string name = key + ("[" + std::to_string(i) + "]");
    *place = checked(name, value[py::int_(i)], low, high);
    ++i;
  }
}

double GroupReader::limit(const char* key) const {
  const py::object value = get(key);
  if (value.is_none()) return kInfinity;
  const double x = checked(key, value, -kInfinity, kInfinity);
  return x > 0 ? x : kInfinity;
}

std::pair<double, double> GroupReader::bounds(const char* key, bool single) const {
  const py::object value = get(key);
  if (value.is_none()) return {0, kInfinity};
  if (single && is_number(value)) return {0, checked(key, value, 0, kInfinity)};
  if (!py::isinstance<py::sequence>(value) || py::len(value) != 2) {
    fail(key, value, single ? "None, a number or (low, high)" : "None or (low, high)");
  }
  double low, high;
  numbers(key, 0, kInfinity, {&low, &high});
  if (low > high) fail(key, value, "low <= high");
  return {low, high};
}

bool GroupReader::flag(const char* key) const {
  const py::object value = get(key);
  const int truth = PyObject_IsTrue(value.ptr());
  if (truth < 0) throw py::error_already_set();
  return truth == 1;
}

uint64_t GroupReader::whole(const char* key) const {
  const py::object value = get(key);
  if (PyLong_Check(value.ptr()) && !PyBool_Check(value.ptr())) {
    const uint64_t number = PyLong_AsUnsignedLongLong(value.ptr());
    if (PyErr_Occurred() == nullptr) return number;
    PyErr_Clear();
  }
  fail(key, value, "an integer in [0, 2**64)");
}

int GroupReader::choice(const char* key, std::initializer_list<const char*> choices, int when_true,
                        int when_false) const {
  const py::object value = get(key);
  if (PyBool_Check(value.ptr())) {
    const int position = value.ptr() == Py_True ? when_true : when_false;
    if (position >= 0) return position;
  }
  std::string expected = "one of";
  int position = 0;
  for (const char* choice : choices) {
    if (py::isinstance<py::str>(value) && value.cast<std::string>() == choice) return position;
    expected += (position == 0 ? " '" : ", '") + std::string(choice) + "'";
    ++position;
  }
  fail(key, value, expected + (when_true >= 0 || when_false >= 0 ? ", True, False" : ""));
}

std::pair<double, const float*> GroupReader::rate(const char* key) const {
  const py::object value = get(key);
  if (is_number(value)) return {checked(key, value, 0, kInfinity), nullptr};
  if (!py::hasattr(value, "__dlpack__")) fail(key, value, "a number >= 0.0 or a one-element array");
  const ArrayList array = ArrayList::single(op_, key, value);
  const TensorView& view = array[0];
  if (view.numel != 1) fail(key, value, "one element");
  if (view.device.type == DeviceType::cuda) {
    check_dtype(array, {DType::float32}, "A learning rate on a GPU is read there.");
    return {0, static_cast<const float*>(view.data)};
  }
  check_dtype(array, {DType::float32, DType::float64});
  const double x = view.dtype == DType::float32 ? double(*static_cast<const float*>(view.data))
                                                : *static_cast<const double*>(view.data);
  return {checked(key, py::float_(x), 0, kInfinity), nullptr};
}

}  // namespace lb::bind
