// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Operators of orrery::compiled beside those of headers alone, in one program.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "compiled/results.hpp"

// The library's symbol for this version: VERSION_SYMBOL is that of the project.
namespace orrery::detail {
extern const char VERSION_SYMBOL;
}

TEST_CASE("the library and the headers give the same bits") {
  for (const std::string topology : {"ring", "wallfacer<2>"}) {
    for (const std::string mask : {"full", "causal", "documents & window", "own"}) {
      INFO(topology, " ", mask);
      const compiled_test::question asked{topology, mask};
      const std::vector<unsigned char> with = compiled_test::with_library(asked);
      CHECK(!with.empty());
      CHECK(with == compiled_test::without_library(asked));
    }
  }
}

TEST_CASE("a world that is refused is refused with the same message") {
  const auto message = [](auto ask) -> std::string {
    try {
      ask({"wallfacer<2>", "full", 6});
    } catch (const std::invalid_argument& e) {
      return e.what();
    }
    return "";
  };
  const std::string with = message(compiled_test::with_library);
  CHECK(with.find("wallfacer<2>") != std::string::npos);
  CHECK(with == message(compiled_test::without_library));
}

TEST_CASE("the library is known by the project's version") { CHECK(&orrery::detail::VERSION_SYMBOL != nullptr); }
