// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/mask/full.hpp"

#include <cstdint>

#include <doctest/doctest.h>

#include "mask/brute_force.hpp"

static_assert(orrery::mask_with_keys_of<orrery::full> && orrery::full{}.visible(0, INT64_MAX));
static_assert(orrery::full{} == orrery::full{});

TEST_CASE("full shows everything") {
  CHECK(mask_test::first_wrong(
            orrery::full{}, [](std::int64_t, std::int64_t) { return true; }, 4, 5) == "");
  CHECK(orrery::full::name() == "full");
}
