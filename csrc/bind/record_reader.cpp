// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include "bind/record_reader.h"

#include <algorithm>
#include <limits>

#include "bind/checks.h"
#include "bind/group_reader.h"
#include "core/cut.h"
#include "core/error.h"

namespace py = pybind11;

namespace lb::bind {

namespace {

// A record's dict over what it may leave out; an unknown key is refused.
py::dict with_defaults(const std::string& where, const py::dict& given) {
  using namespace py::literals;
  py::dict full("tensors"_a = 1, "k"_a = 0, "block"_a = 0, "tau"_a = 0.0, "values"_a = "float32",
                "scale_block"_a = 2048, "rounding"_a = "stochastic", "indices"_a = "auto",
                "seed"_a = 0, "id"_a = 0);
  for (const auto& [key, value] : given) {
    if (!full.contains(key) && std::string(py::str(key)) != "select") {
      throw ValueError(where + ": got " + std::string(py::repr(key)) +
                       ", expected a key of a record.");
    }
    full[key] = value;
  }
  return full;
}

int64_t count(const GroupReader& reader, const char* key) {
  const uint64_t number = reader.whole(key);
  if (number > uint64_t(1) << 62) reader.fail(key, py::int_(number), "at most 2**62");
  return int64_t(number);
}

WireIndex smallest_index(const Record& r) {
  if (r.select == Select::block && r.block <= 4096 && r.kept % 2 == 0) return WireIndex::blk12;
  Record other = r;
  other.index = WireIndex::blk16;
  const bool beyond_32_bits = r.numel >= int64_t(1) << 32;
  return beyond_32_bits || index_bytes(other) < 4 * r.slots ? WireIndex::blk16 : WireIndex::abs32;
}

void check_kept(const GroupReader& reader, Record& r, int64_t k) {
  const auto refuse = [&](const char* key, int64_t got, const std::string& expected) {
    reader.fail(key, py::int_(got), expected);
  };
  if (r.select == Select::dense) {
    r.slots = r.numel;
  } else if (r.select == Select::block) {
    const bool power = r.block >= 64 && r.block <= 65536 && (r.block & (r.block - 1)) == 0;
    if (!power) refuse("block", r.block, "a power of two from 64 to 65536");
    if (k < 1 || k > r.block) refuse("k", k, "1 to block = " + std::to_string(r.block));
    r.kept = k;
    r.num_blocks = (r.numel + r.block - 1) / r.block;
    const RecordBlock last = block_of(r, std::max<int64_t>(r.num_blocks - 1, 0));
    r.slots = r.num_blocks == 0 ? 0 : last.first_slot + last.kept;
  } else {
    if (k > r.numel) refuse("k", k, "at most the " + std::to_string(r.numel) + " elements");
    r.slots = k;
  }
}

}  // namespace

Record read_record(size_t index, const py::dict& given, const std::vector<int64_t>& numels,
                   size_t first, size_t& tensors) {
  const std::string where = "CompressionPlan: records[" + std::to_string(index) + "]";
  const GroupReader reader(where.c_str(), -1, with_defaults(where, given));
  const auto refuse = [&](const char* key, const std::string& expected) {
    reader.fail(key, given.contains(key) ? py::object(given[key]) : py::none(), expected);
  };
  Record r{};
  r.select =
      Select(reader.choice("select", {"dense", "topk", "block", "threshold", "random", "strided"}));
  r.value = WireValue(reader.choice(
      "values", {"float32", "float16", "bfloat16", "float64", "int8", "int4", "int2", "sign"}));
  r.nearest = reader.choice("rounding", {"stochastic", "nearest"}) == 1;
  r.scale_block = count(reader, "scale_block");
  r.block = count(reader, "block");
  r.tau = reader.number("tau", 0);
  r.seed = reader.whole("seed");
  r.id = reader.whole("id");
  tensors = size_t(count(reader, "tensors"));
  if (tensors < 1 || first + tensors > numels.size()) {
    refuse("tensors", "1 to the " + std::to_string(numels.size() - first) + " that are left");
  }
  for (size_t t = first; t < first + tensors; ++t) r.numel += numels[t];
  if (tensors > 1 && (r.dense() || r.select == Select::block)) {
    refuse("tensors", "1 with this select");
  }
  if (r.value == WireValue::sign && !r.dense()) refuse("values", "others with this select");
  if (r.scale_block < 64 || r.scale_block > kTile || r.scale_block % 64 != 0) {
    refuse("scale_block", "a multiple of 64 from 64 to 16384");
  }
  if (r.select == Select::threshold && r.tau == 0) refuse("tau", "a number above 0");
  check_kept(reader, r, count(reader, "k"));
  if (r.select == Select::topk && tensors == 1 && r.numel <= kTile) {
    r.block = std::max<int64_t>(r.numel, 1);
    r.kept = r.slots;
    r.num_blocks = r.slots > 0 ? 1 : 0;
  }
  const int wanted = reader.choice("indices", {"auto", "abs32", "blk16", "blk12"});
  r.index = r.dense() || r.drawn() ? WireIndex::none
            : wanted == 0          ? smallest_index(r)
                                   : WireIndex(wanted);
  if (r.index == WireIndex::abs32 && r.numel >= int64_t(1) << 32) {
    refuse("indices", "blk16 from 2**32 elements on");
  }
  if (r.index == WireIndex::blk12 &&
      (r.select != Select::block || r.block > 4096 || r.kept % 2 != 0)) {
    refuse("indices", "others unless blocks of at most 4096 keep an even number each");
  }
  lay_out(r);
  if (r.bytes > std::numeric_limits<uint32_t>::max()) {
    refuse("k", "a record of less than 2**32 bytes");
  }
  return r;
}

FeedbackReader::FeedbackReader(const char* op, const py::dict& method, const ArrayList& like)
    : inv_scale_(ArrayList::optional(
          op, "inv_scale",
          method.contains("inv_scale") ? py::object(method["inv_scale"]) : py::none(), &like)) {
  using namespace py::literals;
  py::dict full("eta"_a = 0.0, "beta"_a = py::none(), "decay"_a = 1.0, "mu"_a = 0.0,
                "nesterov"_a = false, "masking"_a = true);
  for (const auto& [key, value] : method) full[key] = value;
  const GroupReader reader(op, -1, full);
  hyper_.method =
      Feedback(reader.choice("method", {"none", "feedback", "ef21", "econtrol", "dgc"}));
  hyper_.average = !py::object(full["beta"]).is_none();
  hyper_.beta = hyper_.average ? reader.number("beta", 0) : 1;
  hyper_.eta = reader.number("eta", 0);
  hyper_.decay = reader.number("decay", 0);
  hyper_.mu = reader.number("mu", 0, 1);
  hyper_.nesterov = reader.flag("nesterov");
  hyper_.masking = reader.flag("masking");
  if (hyper_.beta == 0 || hyper_.beta > 1) reader.fail("beta", full["beta"], "a number in (0, 1]");
  if (hyper_.decay > 1) reader.fail("decay", full["decay"], "a number in [0, 1]");
  if (hyper_.average && hyper_.method == Feedback::dgc) {
    reader.fail("beta", full["beta"], "None with dgc, which has a momentum of its own");
  }
  check_scalar(inv_scale_, like);
  hyper_.inv_scale = data_or_null<const float>(inv_scale_);
}

}  // namespace lb::bind
