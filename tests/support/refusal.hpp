// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdexcept>
#include <string>

/// The message of the `std::invalid_argument` that the call throws; empty if it throws nothing.
template <class Call>
[[nodiscard]] std::string refusal_of(const Call& call) {
  try {
    call();
  } catch (const std::invalid_argument& e) {
    return e.what();
  }
  return "";
}
