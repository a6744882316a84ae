// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// What an optimizer of torch keeps tensor by tensor, gathered into the lists that a step takes.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <utility>
#include <vector>

#include "bind/fetch_ahead.h"

namespace py = pybind11;

namespace lb::bind {
namespace {

// The parameters of all groups, and the group of each; false if a group has no list of them.
bool list_params(const std::vector<py::dict>& groups, py::list& params,
                 std::vector<size_t>& group_of) {
  static PyObject* const name = PyUnicode_InternFromString("params");
  for (size_t g = 0; g < groups.size(); ++g) {
    PyObject* const list = PyDict_GetItemWithError(groups[g].ptr(), name);
    if (list == nullptr || !PyList_Check(list)) return false;
    const auto end = Py_ssize_t(params.size());
    if (PyList_SetSlice(params.ptr(), end, end, list) != 0) throw py::error_already_set();
    group_of.resize(params.size(), g);
  }
  return true;
}

// The states of parameters, asked for one after the other. Most often they lie in the dict in the
// order of the parameters, and need not be looked for by a hash, which torch answers in Python.
class StateReader {
 public:
  explicit StateReader(py::dict states) : states_(std::move(states)) {
    PyObject* state;
    for (int i = 0; i < 4; ++i) next(soon_, state);
    for (int i = 0; i < 8; ++i) next(later_, state);
  }

  // Borrowed; null if there is none.
  PyObject* of(PyObject* param) {
    PyObject* state;
    if (take(param, state)) return state;
    state = PyDict_GetItemWithError(states_.ptr(), param);
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    return state;
  }
  // Passes over one that is not needed.
  void skip(PyObject* param) {
    PyObject* state;
    take(param, state);
  }

 private:
  PyObject* next(Py_ssize_t& place, PyObject*& state) const {
    PyObject* key = state = nullptr;
    PyDict_Next(states_.ptr(), &place, &key, &state);
    return key;
  }

  // The next one in the dict, if it is that of `param`.
  bool take(PyObject* param, PyObject*& state) {
    Py_ssize_t place = place_;
    if (next(place, state) != param) return false;
    place_ = place;
    // As fetch_ahead does for tensors: the table of a dict that comes soon, a dict that comes
    // later.
    PyObject* coming;
    next(soon_, coming);
    if (coming != nullptr && PyDict_Check(coming)) {
      fetch(reinterpret_cast<PyDictObject*>(coming)->ma_keys, 4 * kLine);
    }
    next(later_, coming);
    fetch(coming, kLine);
    return true;
  }

  py::dict states_;
  Py_ssize_t place_ = 0, soon_ = 0, later_ = 0;
};

// A tuple in the making, of a length that is known at the end.
class Column {
 public:
  explicit Column(size_t reserved) { items_.reserve(reserved); }
  void add(py::handle item) { items_.push_back(py::reinterpret_borrow<py::object>(item)); }
  py::tuple take() {
    py::tuple result(items_.size());
    for (size_t i = 0; i < items_.size(); ++i) {
      PyTuple_SET_ITEM(result.ptr(), Py_ssize_t(i), items_[i].release().ptr());
    }
    return result;
  }

 private:
  std::vector<py::object> items_;
};

py::object collect(const std::vector<py::dict>& groups, const py::dict& states,
                   const std::vector<py::str>& names, const std::pair<py::type, py::type>& types) {
  static PyObject* const grad_name = PyUnicode_InternFromString("grad");
  const auto is_plain = [&](py::handle tensor) {
    const auto type = py::handle(reinterpret_cast<PyObject*>(Py_TYPE(tensor.ptr())));
    return type.is(types.first) || type.is(types.second);
  };
  py::list all_params;
  std::vector<size_t> group_of_param;
  if (!list_params(groups, all_params, group_of_param)) return py::none();
  std::vector<py::int_> indices;
  for (size_t g = 0; g < groups.size(); ++g) indices.emplace_back(g);

  const size_t count = all_params.size();
  PyObject* const* const items = PySequence_Fast_ITEMS(all_params.ptr());
  Column params(count), grads(count), dicts(count), group_of(count);
  std::vector<Column> entries;
  for (size_t k = 0; k < names.size(); ++k) entries.emplace_back(count);
  std::vector<bool> found(names.size(), false);
  StateReader reader(states);
  for (size_t i = 0; i < count; ++i) {
    const py::handle param = items[i];
    if (!is_plain(param)) return py::none();
    fetch_ahead(items, i, count);
    auto grad = py::reinterpret_steal<py::object>(PyObject_GetAttr(param.ptr(), grad_name));
    if (!grad) throw py::error_already_set();
    if (grad.is_none()) {
      reader.skip(param.ptr());
      continue;
    }
    const py::handle state = reader.of(param.ptr());
    if (!is_plain(grad) || !state || !PyDict_Check(state.ptr())) return py::none();
    for (size_t k = 0; k < names.size(); ++k) {
      PyObject* const entry = PyDict_GetItemWithError(state.ptr(), names[k].ptr());
      found[k] = found[k] || entry != nullptr;
      entries[k].add(entry == nullptr ? Py_None : entry);
    }
    params.add(param);
    grads.add(grad);
    dicts.add(state);
    group_of.add(indices[group_of_param[i]]);
  }
  py::dict columns;
  for (size_t k = 0; k < names.size(); ++k) {
    columns[names[k]] = found[k] ? py::object(entries[k].take()) : py::none();
  }
  return py::make_tuple(params.take(), grads.take(), dicts.take(), group_of.take(), columns);
}

}  // namespace

void register_collect(py::module_& module) {
  module.def(
      "collect", &collect, py::arg("groups"), py::arg("states"), py::arg("names"), py::arg("types"),
      "What Optimizer.param_groups and .state hold of the parameters that have a gradient: "
      "(params, grads, state dicts, index of the group of each, columns). columns[name] is the "
      "tuple of their states' entries called so, None where one has none; None instead of a tuple "
      "where none has one. None instead of all if a parameter or gradient is of no type of "
      "`types`, or a parameter has no state.");
}

}  // namespace lb::bind
