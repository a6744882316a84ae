// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// The errors of the library. The binding turns each into the Python class named beside it;
// the message is one line: `op: argument[index] problem: got A, expected B. Hint.`
#pragma once

#include <stdexcept>
#include <string>

namespace lb {

struct TypeError : std::runtime_error {  // TypeError: wrong kind of object, wrong dtype
  using std::runtime_error::runtime_error;
};

struct ValueError : std::runtime_error {  // ValueError: wrong shape, stride, device or value
  using std::runtime_error::runtime_error;
};

struct CudaError : std::runtime_error {  // RuntimeError: a launch or a runtime call failed
  using std::runtime_error::runtime_error;
};

struct BackendUnavailable : std::runtime_error {  // largebatch.BackendUnavailable
  using std::runtime_error::runtime_error;
};

}  // namespace lb
