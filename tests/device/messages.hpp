// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <exception>
#include <string>

#include <doctest/doctest.h>

namespace cuda_test {

/// What `body` throws; empty if it does not.
template <class Body>
std::string message_of_exception(const Body& body) {
  try {
    body();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

inline bool says(const std::string& message, const std::string& part) {
  INFO("said: ", message);
  const bool found = message.find(part) != std::string::npos;
  CHECK_MESSAGE(found, "without: ", part);
  return found;
}

}  // namespace cuda_test
