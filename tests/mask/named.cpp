// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Masks that are chosen at run time.
#include "orrery/mask/named.hpp"

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include <doctest/doctest.h>

#include "mask/brute_force.hpp"

namespace named_test {

using orrery::causal;
using orrery::prefix;
using orrery::window;

namespace {

constexpr std::int64_t most = INT64_MAX;

static_assert(orrery::mask_with_keys_of<orrery::any_mask> && orrery::diagonal_mask<orrery::any_mask>);
static_assert(std::is_trivially_copyable_v<orrery::any_mask>);  // for device kernels
static_assert(orrery::any_mask{causal{3}}.is_diagonal() && orrery::any_mask{orrery::full{}}.is_diagonal());
static_assert(!orrery::any_mask{window{}}.is_diagonal() && !orrery::any_mask{prefix{2}}.is_diagonal());
static_assert(!orrery::any_mask{causal{} & window{2, 2}}.is_diagonal());

}  // namespace

TEST_CASE("masks by their names") {
  const auto check = [](const auto& mask) {
    const orrery::any_mask named = orrery::mask_named(mask.name());
    INFO(mask.name());
    CHECK(named == orrery::any_mask{mask});
    CHECK(named.name() == mask.name());
    CHECK(mask_test::first_wrong(named, [&](std::int64_t query, std::int64_t key) { return mask.visible(query, key); },
                                 7, 8, {false, false}) == "");
    for (const std::int64_t query : {std::int64_t{0}, std::int64_t{3}, std::int64_t{9}, most - 1, most}) {
      for (const std::int64_t key : {std::int64_t{0}, std::int64_t{2}, std::int64_t{3}, std::int64_t{13}, most}) {
        CHECK(named.visible(query, key) == mask.visible(query, key));
        CHECK(named.classify(query, most, 0, key) == mask.classify(query, most, 0, key));
        CHECK(named.classify(0, query, key, key) == mask.classify(0, query, key, key));
        CHECK(named.keys_of(0, query) == mask.keys_of(0, query));
      }
    }
  };
  check(orrery::full{});
  for (const std::int64_t offset : {-most - 1, std::int64_t{-5}, std::int64_t{0}, std::int64_t{4}, most}) {
    check(causal{offset});
    CHECK(orrery::mask_named(causal{offset}.name()).diagonal() == offset);
    check(causal{offset} & window{3, window::unbounded});
    check(window{2, 1} & causal{offset});
  }
  for (const std::int64_t left : {window::unbounded, std::int64_t{0}, std::int64_t{4095}, most}) {
    check(window{left, 2});
    check(window{2, left});
  }
  for (const std::int64_t length : {std::int64_t{0}, std::int64_t{3}, most}) check(prefix{length});
  CHECK(orrery::mask_named("window< 3 , 4 >").name() == "window<3,4>");
}

TEST_CASE("names that no mask has") {
  const auto said = [](const char* name) {
    try {
      static_cast<void>(orrery::mask_named(name));
    } catch (const std::invalid_argument& e) {
      return std::string{e.what()};
    }
    return std::string{"nothing"};
  };
  const std::string all = "full, causal, causal with offset N, window<Left,Right>, prefix<Length>";
  CHECK(said("casual") == "orrery: mask_named: \"casual\" is no mask; did you mean causal? There are " + all);
  CHECK(said("causal with offset x").find("is no mask") != std::string::npos);
  CHECK(said("causal with offset 9223372036854775808").find("is no mask") != std::string::npos);
  CHECK(said("sink") == "orrery: mask_named: \"sink\" is no mask; there are " + all);
  CHECK(said("window") == "orrery: mask_named: \"window\" has 0 arguments, expected window<Left,Right>");
  CHECK(said("window<-2,0>") ==
        "orrery: mask_named: \"window<-2,0>\" has argument -2, expected a number from -1 to 9223372036854775807 in "
        "window<Left,Right>");
  CHECK(said("causal & prefix<3>") ==
        "orrery: mask_named: \"causal & prefix<3>\" is no mask; of two names, one is causal and one is "
        "window<Left,Right>");
}

}  // namespace named_test
