// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Masks that do not keep their promises are told so, with the pair.
#include "orrery/mask/mask_error.hpp"

#include <array>
#include <cstdint>
#include <functional>
#include <string>

#include <doctest/doctest.h>

#include "orrery/mask/causal.hpp"
#include "orrery/mask/documents.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/mask/intersection.hpp"
#include "orrery/mask/intervals.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/mask/named.hpp"
#include "orrery/mask/prefix.hpp"
#include "orrery/mask/window.hpp"

using orrery::causal;
using orrery::mask_error;
using orrery::position_interval;
using orrery::visibility;
using orrery::window;

namespace {

/// A window of 4 whose answers may be wrong.
struct window_of_four {
  std::int64_t ahead = 0;  ///< of what classify takes for visible
  std::int64_t late = 0;   ///< of the first key that keys_of names

  [[nodiscard]] bool visible(std::int64_t query, std::int64_t key) const { return key <= query && key > query - 4; }
  [[nodiscard]] visibility classify(std::int64_t q0, std::int64_t q1, std::int64_t k0, std::int64_t k1) const {
    return window{.left = 3, .right = ahead}.classify(q0, q1, k0, k1);
  }
  [[nodiscard]] position_interval keys_of(std::int64_t q0, std::int64_t q1) const {
    return {q0 - 3 + late > 0 ? q0 - 3 + late : 0, q1};
  }
  [[nodiscard]] static std::string name() { return "window of four"; }
};
/// Every second key of the window, which makes no interval.
struct holes : window_of_four {
  static constexpr bool rows_are_intervals = true;

  [[nodiscard]] bool visible(std::int64_t query, std::int64_t key) const {
    return key % 2 == 0 && window_of_four::visible(query, key);
  }
  [[nodiscard]] static visibility classify(std::int64_t, std::int64_t, std::int64_t, std::int64_t) {
    return visibility::some;
  }
  [[nodiscard]] static std::string name() { return "holes"; }
};

}  // namespace

TEST_CASE("the library's masks keep their promises") {
  const orrery::documents batch{std::array{3, 9, 1, 7}, std::array{5, 2, 1, 8}};
  const auto check = [](const auto& mask) {
    CHECK(mask_error(mask, 20, 16) == "");
    CHECK(mask_error(mask, 64, 1'000'000'000) == "");
    CHECK(mask_error(mask, 123'456'789, 300) == "");
  };
  check(orrery::full{});
  check(causal{});
  check(causal{-70});
  check(window{.left = 5, .right = 2});
  check(orrery::prefix{11});
  check(causal{} & window{.left = 40});
  check(batch);
  check(batch & causal{} & window{.left = 2});
  check(batch.top_left() & orrery::prefix{2});
  check(orrery::intervals{std::array{0, 3, 3, 1}, std::array{9, 3, 20, 2}});
  check(orrery::intervals{std::array{0, 3, 3, 1}, std::array{9, 3, 20, 2}} & causal{});
  check(orrery::mask_named("causal & window<3,-1>"));
  check(window_of_four{});
}

TEST_CASE("promises that are broken, in small sequences and in large ones") {
  CHECK(mask_error(window_of_four{.ahead = 1}, 9, 9) ==
        "mask window of four: classify says that of the queries 0 to 0 and the keys 0 to 1 all pairs are visible, but "
        "visible(0, 1) is false; `all` and `none` are promises, `some` is always right");
  CHECK(
      mask_error(window_of_four{.late = 1}, 9, 9) ==
      "mask window of four: keys_of says that the queries 3 to 3 see only the keys 1 to 3, but visible(3, 0) is true; "
      "the interval must contain every key that one of them sees");
  CHECK(mask_error(holes{}, 9, 9) ==
        "mask holes: rows_are_intervals says that query 1 sees all of the keys 0 to 1, but visible(1, 1) is false; "
        "leave rows_are_intervals out where keys_of of one query has keys that it does not see");
  for (const std::int64_t length : {33, 1000, 1'000'000}) {
    INFO(length);
    CHECK(mask_error(window_of_four{.ahead = 1}, length, length).find("all pairs are visible, but") !=
          std::string::npos);
    CHECK(mask_error(window_of_four{.late = 1}, length, length).find("see only the keys") != std::string::npos);
    CHECK(mask_error(holes{}, length, length).find("rows_are_intervals says") != std::string::npos);
  }
  struct blind : orrery::full {
    [[nodiscard]] static visibility classify(std::int64_t, std::int64_t, std::int64_t, std::int64_t) {
      return visibility::none;
    }
  };
  CHECK(mask_error(blind{}, 3, 3).find("no pair is visible, but visible(0, 0) is true") != std::string::npos);
  struct empty : causal {
    [[nodiscard]] static position_interval keys_of(std::int64_t, std::int64_t) { return {}; }
  };
  CHECK(mask_error(empty{}, 3, 3).find("the queries 0 to 0 see no key, but visible(0, 0) is true") !=
        std::string::npos);
}

TEST_CASE("what an operator asks finds what is often wrong") {
  CHECK(orrery::detail::wrong_mask(window_of_four{}, 100, 100) == "");
  CHECK(orrery::detail::wrong_mask(window_of_four{.late = 1}, 1000, 1000) != "");
  CHECK(orrery::detail::wrong_mask(holes{}, 1000, 1000) != "");
  CHECK(orrery::detail::wrong_mask(window{.left = -2}, 5, 5) ==
        "mask window<-2,-1>: window::left is -2, expected at least 0 tokens, or -1 (window::unbounded) for all; an "
        "offset is causal's");
  const orrery::documents batch{std::array{3, 4}};
  CHECK(orrery::detail::wrong_mask(batch & causal{}, 6, 7).find("mask documents<2 of 7 tokens, digest ") == 0);
  CHECK(mask_error(batch, 6, 7).find("the 2 documents have 7 queries, but length is 6") != std::string::npos);
}

namespace {

/// Causal, but its classify takes keys for `shift` further ahead than they are.
struct shifted_causal {
  std::int64_t shift = 1;

  [[nodiscard]] static bool visible(std::int64_t query, std::int64_t key) { return key <= query; }
  [[nodiscard]] visibility classify(std::int64_t q0, std::int64_t q1, std::int64_t k0, std::int64_t k1) const {
    return causal{}.classify(q0, q1, k0 + shift, k1 + shift);
  }
  [[nodiscard]] static std::string name() { return "shifted causal"; }
};

}  // namespace

TEST_CASE("a classify that is off by one is noticed at every length") {
  for (std::int64_t length = 2; length < 600; ++length) {
    for (const std::int64_t shift : {-1, 1}) {
      INFO(length, " tokens, shifted by ", shift);
      CHECK(orrery::detail::wrong_mask(shifted_causal{shift}, length, length) != "");
    }
    for (const std::int64_t ahead : {-1, 1}) {
      if (length > 8) {
        CHECK(orrery::detail::wrong_mask(window_of_four{.ahead = ahead}, length, length) != "");
      }
    }
  }
  CHECK(orrery::detail::wrong_mask(shifted_causal{0}, 100, 100) == "");
}
