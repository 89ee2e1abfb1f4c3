// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Masks say the same of pairs and of intervals of pairs, with offsets of any size.
#include "orrery/mask/mask.hpp"

#include <cstdint>

#include <doctest/doctest.h>

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
