// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Masks say the same of pairs and of intervals of pairs, with offsets of any size.
#include "orrery/mask/mask.hpp"

#include <cstdint>
#include <stdexcept>
#include <string>

#include <doctest/doctest.h>

#include "orrery/mask/named.hpp"

using orrery::causal;
using orrery::visibility;

namespace {

constexpr std::int64_t most = INT64_MAX;

// In constant expressions, so that an overflow does not compile.
static_assert(causal{most}.visible(0, most) && causal{most}.visible(most, most) && causal{most}.visible(most, 0));
static_assert(!causal{-most - 1}.visible(most, 0) && !causal{-most - 1}.visible(0, 0));
static_assert(causal{-most}.visible(most, 0) && !causal{-most}.visible(most, 1) && !causal{-most}.visible(most - 1, 0));
static_assert(causal{most}.classify(0, most, 0, most) == visibility::all);
static_assert(causal{-most - 1}.classify(0, most, 0, most) == visibility::none);
static_assert(causal{-most}.classify(0, most, 0, most) == visibility::some);
static_assert(causal{most - 1}.classify(0, most, 0, most) == visibility::some);

}  // namespace

TEST_CASE("what causal masks say of intervals holds for all their pairs") {
  for (const std::int64_t offset : {-most - 1, -most, std::int64_t{-5}, std::int64_t{-1}, std::int64_t{0},
                                    std::int64_t{1}, std::int64_t{4}, most - 1, most}) {
    const causal mask{offset};
    for (std::int64_t query = 0; query < 5; ++query) {
      for (std::int64_t last_query = query; last_query < 5; ++last_query) {
        for (std::int64_t key = 0; key < 5; ++key) {
          for (std::int64_t last_key = key; last_key < 5; ++last_key) {
            int visible = 0;
            int pairs = 0;
            for (std::int64_t i = query; i <= last_query; ++i) {
              for (std::int64_t j = key; j <= last_key; ++j, ++pairs) visible += mask.visible(i, j) ? 1 : 0;
            }
            const visibility right = visible == 0       ? visibility::none
                                     : visible == pairs ? visibility::all
                                                        : visibility::some;
            CHECK(mask.classify(query, last_query, key, last_key) == right);
          }
        }
      }
    }
  }
}

TEST_CASE("masks by their names") {
  static_assert(orrery::mask<orrery::any_mask> && orrery::diagonal_mask<orrery::any_mask>);
  const auto check = [](const auto& mask) {
    const orrery::any_mask named = orrery::mask_named(mask.name());
    INFO(mask.name());
    CHECK(named.name() == mask.name());
    for (const std::int64_t query : {std::int64_t{0}, std::int64_t{3}, std::int64_t{9}, most - 1, most}) {
      for (const std::int64_t key : {std::int64_t{0}, std::int64_t{2}, std::int64_t{3}, std::int64_t{13}, most}) {
        CHECK(named.visible(query, key) == mask.visible(query, key));
        CHECK(named.classify(query, most, 0, key) == mask.classify(query, most, 0, key));
        CHECK(named.classify(0, query, key, key) == mask.classify(0, query, key, key));
      }
    }
  };
  check(orrery::full{});
  for (const std::int64_t offset : {-most - 1, std::int64_t{-5}, std::int64_t{0}, std::int64_t{4}, most}) {
    check(causal{offset});
    CHECK(orrery::mask_named(causal{offset}.name()).diagonal() == offset);
  }
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
  const std::string end = "There are full, causal, causal with offset N";
  CHECK(said("casual") == "orrery: mask_named: \"casual\" is no mask; did you mean causal? " + end);
  CHECK(said("causal with offset x").find("is no mask") != std::string::npos);
  CHECK(said("causal with offset 9223372036854775808").find("is no mask") != std::string::npos);
  CHECK(said("window") == "orrery: mask_named: \"window\" is no mask; there are full, causal, causal with offset N");
}
