// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// What an optimizer of torch keeps tensor by tensor, gathered into the lists that a step takes.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <utility>
#include <vector>

#include "bind/exporter.h"
#include "bind/fetch_ahead.h"

namespace py = pybind11;

namespace lb::bind {
namespace {

// Whether the entry of a dict at `place` is that of `key`; if so, its value, and `place` moves on.
bool take(PyObject* dict, PyObject* key, Py_ssize_t& place, PyObject*& value) {
  Py_ssize_t next = place;
  PyObject* found;
  if (PyDict_Next(dict, &next, &found, &value) == 0 || found != key) return false;
  place = next;
  return true;
}

// The value of a key, borrowed; null if there is none.
PyObject* look_up(PyObject* dict, PyObject* key) {
  PyObject* const value = PyDict_GetItemWithError(dict, key);
  if (value == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
  return value;
}

// The parameters of all groups, and the group of each; false if a group has no list of them.
bool list_params(const std::vector<py::dict>& groups, py::list& params,
                 std::vector<size_t>& group_of) {
  static PyObject* const name = PyUnicode_InternFromString("params");
  for (size_t g = 0; g < groups.size(); ++g) {
    PyObject* const list = look_up(groups[g].ptr(), name);
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
    for (int i = 0; i < 4; ++i) coming(soon_);
    for (int i = 0; i < 8; ++i) coming(later_);
  }

  // Borrowed; null if there is none.
  PyObject* of(PyObject* param) {
    PyObject* state;
    return take_next(param, state) ? state : look_up(states_.ptr(), param);
  }
  // Passes over one that is not needed.
  void skip(PyObject* param) {
    PyObject* state;
    take_next(param, state);
  }

 private:
  bool take_next(PyObject* param, PyObject*& state) {
    if (!take(states_.ptr(), param, next_, state)) return false;
    // As fetch_ahead does for tensors: the table of a dict that comes soon, a dict that comes
    // later.
    PyObject* const soon = coming(soon_);
    if (soon != nullptr && PyDict_Check(soon)) {
      fetch(reinterpret_cast<PyDictObject*>(soon)->ma_keys, 4 * kLine);
    }
    fetch(coming(later_), kLine);
    return true;
  }
  PyObject* coming(Py_ssize_t& place) const {
    PyObject *key, *state = nullptr;
    PyDict_Next(states_.ptr(), &place, &key, &state);
    return state;
  }

  py::dict states_;
  Py_ssize_t next_ = 0, soon_ = 0, later_ = 0;
};

// The entries of states by name. Most often an entry lies where it lay in the state before, under
// the same key, and if all entries of a state are found, there are no others.
class EntryReader {
 public:
  explicit EntryReader(const std::vector<py::str>& names)
      : keys_(names.begin(), names.end()), places_(names.size(), 0) {}

  // Calls found(k, entry) for every name, with null where there is none.
  template <class Found>
  void read(PyObject* state, Found found) {
    Py_ssize_t rest = PyDict_GET_SIZE(state);
    for (size_t k = 0; k < keys_.size(); ++k) {
      PyObject* const entry = rest == 0 ? nullptr : of(state, k);
      if (entry != nullptr) --rest;
      found(k, entry);
    }
  }

 private:
  PyObject* of(PyObject* state, size_t k) {
    PyObject* entry;
    Py_ssize_t place = places_[k];
    if (take(state, keys_[k].ptr(), place, entry)) return entry;
    entry = look_up(state, keys_[k].ptr());
    if (entry != nullptr) remember(state, k);
    return entry;
  }
  void remember(PyObject* state, size_t k) {
    PyObject *key, *entry;
    Py_ssize_t place = 0, next = 0;
    for (; PyDict_Next(state, &next, &key, &entry) != 0; place = next) {
      if (!PyUnicode_Check(key) || PyUnicode_Compare(key, keys_[k].ptr()) != 0) continue;
      places_[k] = place;
      keys_[k] = py::reinterpret_borrow<py::object>(key);  // a checkpoint brings strings of its own
      return;
    }
  }

  std::vector<py::object> keys_;
  std::vector<Py_ssize_t> places_;
};

// A tuple in the making, of at most `most` items.
class Column {
 public:
  explicit Column(size_t most) : items_(most) {}
  void add(py::handle item) {
    PyTuple_SET_ITEM(items_.ptr(), count_, item.inc_ref().ptr());
    ++count_;
  }
  py::tuple take() {
    PyObject* items = items_.release().ptr();
    if (_PyTuple_Resize(&items, count_) != 0) throw py::error_already_set();
    return py::reinterpret_steal<py::tuple>(items);
  }

 private:
  py::tuple items_;
  Py_ssize_t count_ = 0;
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
  const Exporter* exporter = count == 0 ? nullptr : exporter_of(items[0]);
  const bool layout_known = exporter != nullptr && exporter->layout_known;
  StateReader state_reader(states);
  EntryReader entry_reader(names);
  for (size_t i = 0; i < count; ++i) {
    const py::handle param = items[i];
    if (!is_plain(param)) return py::none();
    fetch_ahead(items, i, count, layout_known, Part::autograd);
    auto grad = py::reinterpret_steal<py::object>(PyObject_GetAttr(param.ptr(), grad_name));
    if (!grad) throw py::error_already_set();
    if (grad.is_none()) {
      state_reader.skip(param.ptr());
      continue;
    }
    const py::handle state = state_reader.of(param.ptr());
    if (!is_plain(grad) || !state || !PyDict_Check(state.ptr())) return py::none();
    entry_reader.read(state.ptr(), [&](size_t k, PyObject* entry) {
      found[k] = found[k] || entry != nullptr;
      entries[k].add(entry == nullptr ? Py_None : entry);
    });
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
