// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include "bind/arrays.h"

#include <algorithm>
#include <utility>

#include "bind/errors.h"
#include "bind/fetch_ahead.h"
#include "core/error.h"

namespace py = pybind11;

namespace lb::bind {
namespace {

// ---- From DLPack's description to ours ----------------------------------------------------------

DType dtype_of_dlpack(dlpack::DataType dtype) {
  if (dtype.lanes != 1) return DType::other;
  if (dtype.code == dlpack::kBfloat && dtype.bits == 16) return DType::bfloat16;
  if (dtype.code == dlpack::kInt && dtype.bits == 8) return DType::int8;
  if (dtype.code == dlpack::kInt && dtype.bits == 64) return DType::int64;
  if (dtype.code != dlpack::kFloat) return DType::other;
  switch (dtype.bits) {
    case 16:
      return DType::float16;
    case 32:
      return DType::float32;
    case 64:
      return DType::float64;
    default:
      return DType::other;
  }
}

// Pinned memory is memory of the host, and managed memory is used on the device it names.
bool to_device(dlpack::Device from, Device& to) {
  switch (from.type) {
    case dlpack::kCpu:
    case dlpack::kCudaHost:
      to = {DeviceType::cpu, 0};
      return true;
    case dlpack::kCuda:
    case dlpack::kCudaManaged:
      to = {DeviceType::cuda, from.index};
      return true;
    default:
      return false;
  }
}

// A view of the imaginary part of a conjugate has torch's negative bit set, which DLPack drops:
// we would read the wrong sign. Torch gives such views, of one element only, as gradients. (Longer
// ones have stride 2 and fail check_dense.) Asking costs as much as the view, but they can be told
// from almost all others: half a complex number is at an odd multiple of its size.
bool may_be_negative(const TensorView& view) {
  const auto address = reinterpret_cast<uintptr_t>(view.data);
  return view.numel == 1 && (address & uintptr_t(size_of(view.dtype))) != 0;
}

bool is_negative(py::handle tensor) {
  static PyObject* const is_neg = PyUnicode_InternFromString("is_neg");
  const auto answer =
      py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor.ptr(), is_neg));
  if (!answer) throw py::error_already_set();
  return answer.is(py::bool_(true));
}

}  // namespace

// ---- ArrayList ----------------------------------------------------------------------------------

ArrayList::ArrayList(const char* op, const char* argument, py::tuple items, bool single)
    : op_(op),
      argument_(argument),
      single_(single),
      items_(std::move(items)),
      count_(items_.size()) {}

ArrayList::ArrayList(const char* op, const char* argument, py::handle sequence,
                     const ArrayList* first)
    : ArrayList(op, argument, items_of(op, argument, sequence), false) {
  view_rows(this, 1, first);
}

ArrayList ArrayList::single(const char* op, const char* argument, py::handle array,
                            const ArrayList* first) {
  ArrayList list(op, argument, py::make_tuple(array), true);
  view_rows(&list, 1, first);
  return list;
}

ArrayList ArrayList::optional(const char* op, const char* argument, py::handle array_or_none,
                              const ArrayList* first) {
  if (array_or_none.is_none()) return ArrayList(op, argument, py::tuple(), true);
  return single(op, argument, array_or_none, first);
}

bool ArrayList::read_only(size_t i) const {
  return std::binary_search(read_only_.begin(), read_only_.end(), i);
}

void* ArrayList::stream() const {
  if (empty() || views_[0].device.type == DeviceType::cpu) return nullptr;
  return first_exporter_->current_stream(views_[0].device.index);
}

std::string ArrayList::label(size_t i) const {
  return single_ ? argument_ : std::string(argument_) + "[" + std::to_string(i) + "]";
}

std::string ArrayList::where(size_t i) const { return std::string(op_) + ": " + label(i); }

py::tuple ArrayList::items_of(const char* op, const char* argument, py::handle sequence) {
  if (PyTuple_Check(sequence.ptr())) return py::reinterpret_borrow<py::tuple>(sequence);
  // No other iterable: a tensor is one too, and would fall apart into its rows.
  if (PyList_Check(sequence.ptr())) {
    return py::reinterpret_steal<py::tuple>(PyList_AsTuple(sequence.ptr()));
  }
  throw TypeError(std::string(op) + ": " + argument + " is " + kind_of(sequence) +
                  ", expected a list or tuple of arrays.");
}

void ArrayList::view_rows(ArrayList* lists, size_t count, const ArrayList* first) {
  size_t longest = 0;
  for (size_t k = 0; k < count; ++k) {
    lists[k].views_.reserve(lists[k].count_);
    longest = std::max(longest, lists[k].count_);
  }
  for (size_t i = 0; i < longest; ++i) {
    for (size_t k = 0; k < count; ++k) {
      if (i < lists[k].count_) lists[k].view(i, k == 0 ? first : &lists[0]);
    }
  }
}

void ArrayList::view(size_t i, const ArrayList* first) {
  PyObject* const* const items = PySequence_Fast_ITEMS(items_.ptr());
  if (Py_TYPE(items[i]) != type_) set_type(i);
  const bool torch = exporter_->library == Library::torch;
  if (torch) fetch_ahead(items, i, count_, exporter_->layout_known, Part::storage);
  switch (rung_) {
    case Rung::exchange:
      add_borrowed(i, *exporter_);
      break;
    case Rung::managed:
      add_managed(i, *exporter_);
      break;
    case Rung::capsule:
      add_capsule(i, torch_capsule(items[i]));
      break;
    case Rung::protocol:
      add_protocol(i, *exporter_, first);
      break;
  }
  if (torch && may_be_negative(views_.back())) refuse_negative(i);
}

void ArrayList::set_type(size_t i) {
  const py::handle array = object(i);
  exporter_ = exporter_of(array);
  if (exporter_ == nullptr) {
    throw TypeError(where(i) + " is " + kind_of(array) +
                    ", expected an array (a torch.Tensor, or an object with __dlpack__).");
  }
  type_ = Py_TYPE(array.ptr());
  rung_ = exporter_->rung();
  if (i == 0) first_exporter_ = exporter_;
}

void ArrayList::refuse_negative(size_t i) const {
  if (!is_negative(object(i))) return;
  throw TypeError(where(i) + " has its negative bit set. Pass x.resolve_neg().");
}

void ArrayList::add_borrowed(size_t i, Exporter& exporter) {
  dlpack::Tensor tensor;
  if (exporter.api->dltensor_from_py_object_no_sync(object(i).ptr(), &tensor) != 0) fail_to_view(i);
  if (i == 0) exporter.layout_known = is_behind(object(i).ptr(), tensor.shape);
  add(i, tensor);
}

void ArrayList::add_managed(size_t i, const Exporter& exporter) {
  dlpack::VersionedTensor* tensor = nullptr;
  if (exporter.api->managed_tensor_from_py_object_no_sync(object(i).ptr(), &tensor) != 0) {
    fail_to_view(i);
  }
  managed_.emplace_back(tensor);
  add_versioned(i, *tensor);
}

void ArrayList::add_protocol(size_t i, Exporter& exporter, const ArrayList* first) {
  PyObject* const array = object(i).ptr();
  dlpack::Device dlpack_device;
  if (!protocol_device(array, dlpack_device)) fail_to_view(i);
  py::object stream = py::none();
  Device device;
  if (to_device(dlpack_device, device) && device.type == DeviceType::cuda) {
    if (first == nullptr || first->empty()) first = this;
    void* const pointer = first->empty() ? exporter.current_stream(device.index) : first->stream();
    // The protocol calls the default stream 1, since 0 could mean two things.
    stream = py::int_(pointer == nullptr ? 1 : reinterpret_cast<uintptr_t>(pointer));
  }
  add_capsule(i, protocol_capsule(array, stream.ptr(), exporter));
}

void ArrayList::add_capsule(size_t i, PyObject* new_capsule) {
  if (new_capsule == nullptr) fail_to_view(i);
  auto capsule = py::reinterpret_steal<py::object>(new_capsule);
  if (PyCapsule_IsValid(capsule.ptr(), dlpack::kVersionedCapsule) != 0) {
    const void* tensor = PyCapsule_GetPointer(capsule.ptr(), dlpack::kVersionedCapsule);
    add_versioned(i, *static_cast<const dlpack::VersionedTensor*>(tensor));
  } else if (PyCapsule_IsValid(capsule.ptr(), dlpack::kCapsule) != 0) {
    const void* tensor = PyCapsule_GetPointer(capsule.ptr(), dlpack::kCapsule);
    add(i, static_cast<const dlpack::ManagedTensor*>(tensor)->tensor);
  } else {
    throw TypeError(where(i) + " gave " + kind_of(capsule) + " as its DLPack capsule.");
  }
  capsules_.push_back(std::move(capsule));
}

void ArrayList::add_versioned(size_t i, const dlpack::VersionedTensor& tensor) {
  if (tensor.version.major != dlpack::kMajor) {
    throw TypeError(where(i) + " is described by DLPack " + std::to_string(tensor.version.major) +
                    ", expected DLPack 1. Update largebatch.");
  }
  if ((tensor.flags & dlpack::kReadOnly) != 0) read_only_.push_back(i);
  add(i, tensor.tensor);
}

void ArrayList::add(size_t i, const dlpack::Tensor& tensor) {
  TensorView& view = views_.emplace_back();  // in place: a copy would wait for each of its fields
  if (!to_device(tensor.device, view.device)) fail_device(i, tensor.device);
  view.dtype = dtype_of_dlpack(tensor.dtype);
  view.dlpack_code = tensor.dtype.code;
  view.dlpack_bits = tensor.dtype.bits;
  view.ndim = tensor.ndim;
  view.shape = tensor.shape;
  view.strides = tensor.strides;
  view.numel = 1;
  view.contiguous = true;
  for (int32_t d = tensor.ndim; d-- > 0; view.numel *= tensor.shape[d]) {
    if (tensor.strides == nullptr || tensor.shape[d] == 1) continue;
    view.contiguous = view.contiguous && tensor.strides[d] == view.numel;
  }
  view.contiguous = view.contiguous || view.numel == 0;
  // Wrappers (DTensor, FakeTensor) answer with the shape of the whole and no memory.
  if (tensor.data == nullptr && view.numel > 0) fail_to_view(i);
  view.data =
      tensor.data == nullptr ? nullptr : static_cast<char*>(tensor.data) + tensor.byte_offset;
  int64_t elements = view.numel;  // in memory, with those between the rows of a view
  if (view.strides != nullptr && view.numel > 0) {
    int64_t reach = 0;
    for (int32_t d = 0; d < view.ndim; ++d) {
      reach += (view.shape[d] - 1) * std::max<int64_t>(view.strides[d], 0);
    }
    elements = std::max(elements, reach + 1);
  }
  watch_.add(view.data, size_t(elements) * ((view.dlpack_bits + 7u) / 8u),
             [&] { return label(i); });
}

void ArrayList::fail_device(size_t i, dlpack::Device device) const {
  throw ValueError(where(i) + " is on a device of DLPack type " + std::to_string(device.type) +
                   ", expected cpu or cuda.");
}

void ArrayList::fail_to_view(size_t i) const {
  const std::string reason = take_python_error();  // first: nothing may be pending while we ask
  throw TypeError(where(i) + " " + explain_no_memory(object(i), reason));
}

}  // namespace lb::bind
