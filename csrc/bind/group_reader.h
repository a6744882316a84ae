// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Reads the hyper-parameters of one group out of an entry of Optimizer.param_groups, and refuses
// what is out of range. The one place where their ranges stand: constructors check through it too.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>
#include <utility>

namespace lb::bind {

class GroupReader {
 public:
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();

  // `index` of the group for messages; negative when it has none yet.
  GroupReader(const char* op, int index, pybind11::dict group)
      : op_(op), index_(index), group_(std::move(group)) {}

  // A number in [low, high), NaN never; both ends included when high is infinity.
  double number(const char* key, double low, double high = kInfinity) const;
  // A sequence of them, as many as there are places for.
  void numbers(const char* key, double low, double high,
               std::initializer_list<double*> places) const;
  // Also None, and whatever is not positive, for "no limit": infinity.
  double limit(const char* key) const;
  // None, an upper bound (where `single` allows it), or (lower, upper); none of them negative.
  std::pair<double, double> bounds(const char* key, bool single) const;
  bool flag(const char* key) const;
  // An integer in [0, 2^64).
  uint64_t whole(const char* key) const;
  // The position of a string among the choices. True and False stand for the choices `when_true`
  // and `when_false`, where those are not negative.
  int choice(const char* key, std::initializer_list<const char*> choices, int when_true = -1,
             int when_false = -1) const;

  // A learning rate: a number, or a one-element array. One in host memory is read now; one on a
  // GPU is fp32 and will be read there: its address comes second.
  std::pair<double, const float*> rate(const char* key) const;

  [[noreturn]] void fail(const std::string& what, pybind11::handle got,
                         const std::string& expected) const;

 private:
  pybind11::object get(const char* key) const;
  double checked(const std::string& what, pybind11::handle value, double low, double high) const;

  const char* op_;
  int index_;
  pybind11::dict group_;
};

}  // namespace lb::bind
