// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Views of the arrays that Python hands us: torch tensors of any version, NumPy and CuPy arrays,
// anything that speaks DLPack.
// None is copied; exporter.h says how each type is viewed.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bind/exporter.h"
#include "core/macros.h"
#include "core/tensor.h"
#include "core/watch.h"

namespace lb::bind {

// The arrays of one argument. Construct and destroy it with the GIL held; in between the GIL may
// be released: the arrays, and with them the views, live as long as the list does.
// Throws TypeError or ValueError, naming op, argument and index, for what cannot be viewed: no
// array, no memory (meta, fake, DTensor), sparse, inside a torch.func transform, a foreign device.
class ArrayList {
 public:
  // Every array of a Python list or tuple. `op` and `argument` are for messages and must outlive
  // the list. `first` is the list whose stream the op will run on: exporters that are told a
  // stream are told that one. Null: this list itself.
  ArrayList(const char* op, const char* argument, pybind11::handle sequence,
            const ArrayList* first = nullptr);

  // The lists of several arguments, of as many arrays each or of fewer, taken row by row: what
  // belongs to one tensor was made at one time, and lies together. The first is `first` of the
  // others.
  struct Argument {
    const char* name;
    pybind11::handle sequence;
  };
  template <size_t N>
  static std::array<ArrayList, N> rows(const char* op, const Argument (&arguments)[N]) {
    return rows(op, arguments, std::make_index_sequence<N>());
  }

  // An argument that is one array: a list of one, called `argument` and not `argument[0]`.
  static ArrayList single(const char* op, const char* argument, pybind11::handle array,
                          const ArrayList* first = nullptr);
  // The same, or an empty list for None.
  static ArrayList optional(const char* op, const char* argument, pybind11::handle array_or_none,
                            const ArrayList* first = nullptr);

  size_t size() const { return views_.size(); }
  bool empty() const { return views_.empty(); }
  const TensorView& operator[](size_t i) const { return views_[i]; }
  std::vector<TensorView>::const_iterator begin() const { return views_.begin(); }
  std::vector<TensorView>::const_iterator end() const { return views_.end(); }
  // The Python object of a view.
  pybind11::handle object(size_t i) const { return PyTuple_GET_ITEM(items_.ptr(), Py_ssize_t(i)); }
  // Whether the exporter forbids writing. (Only NumPy is known to say so.)
  bool read_only(size_t i) const;

  // The stream that the library of the first array works on, on that array's device. Null for the
  // CPU and for an empty list.
  void* stream() const;

  const char* op() const { return op_; }
  const char* argument() const { return argument_; }
  std::string label(size_t i) const;  // "grads[3]"; "found_inf" for an argument that is one array
  std::string where(size_t i) const;  // "lamb: grads[3]", the beginning of every message

 private:
  ArrayList(const char* op, const char* argument, pybind11::tuple items, bool single);

  template <size_t N, size_t... I>
  static std::array<ArrayList, N> rows(const char* op, const Argument (&arguments)[N],
                                       std::index_sequence<I...>) {
    std::array<ArrayList, N> lists{ArrayList(
        op, arguments[I].name, items_of(op, arguments[I].name, arguments[I].sequence), false)...};
    view_rows(lists.data(), N, nullptr);
    return lists;
  }
  static pybind11::tuple items_of(const char* op, const char* argument, pybind11::handle sequence);
  static void view_rows(ArrayList* lists, size_t count, const ArrayList* first);

  struct Release {
    void operator()(dlpack::VersionedTensor* tensor) const {
      if (tensor->deleter != nullptr) tensor->deleter(tensor);
    }
  };

  void view(size_t i, const ArrayList* first);
  LB_OUTLINE void set_type(size_t i);
  LB_OUTLINE void refuse_negative(size_t i) const;
  void add_borrowed(size_t i, Exporter& exporter);
  void add_managed(size_t i, const Exporter& exporter);
  void add_capsule(size_t i, PyObject* new_capsule);
  void add_protocol(size_t i, Exporter& exporter, const ArrayList* first);
  void add_versioned(size_t i, const dlpack::VersionedTensor& tensor);
  void add(size_t i, const dlpack::Tensor& tensor);
  [[noreturn]] LB_OUTLINE void fail_device(size_t i, dlpack::Device device) const;
  [[noreturn]] LB_OUTLINE void fail_to_view(size_t i) const;

  const char* op_;
  const char* argument_;
  bool single_;
  pybind11::tuple items_;  // keeps the arrays alive, whatever becomes of the caller's list
  size_t count_;
  std::vector<TensorView> views_;
  std::vector<std::unique_ptr<dlpack::VersionedTensor, Release>> managed_;
  std::vector<pybind11::object> capsules_;  // not consumed: their own destructors release
  std::vector<size_t> read_only_;           // indices, ascending
  const Exporter* first_exporter_ = nullptr;
  Exporter* exporter_ = nullptr;  // of the type of the last array: mostly that of all
  PyTypeObject* type_ = nullptr;
  Rung rung_ = Rung::exchange;
  Watch watch_;
};

}  // namespace lb::bind
