// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Whether ranks have cores of their own.
#include "orrery/predict/rank_places.hpp"

#include <string>
#include <vector>

#include <doctest/doctest.h>

namespace rank_places_test {

using orrery::rank_place;
using orrery::why_ranks_share_cores;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST_CASE("ranks that have cores of their own do not share") {
  CHECK(why_ranks_share_cores({}).empty());
  CHECK(why_ranks_share_cores(std::vector<rank_place>{{"a", {0, 1}}, {"a", {0, 1}}}).empty());
  CHECK(why_ranks_share_cores(std::vector<rank_place>{{"a", {0}}, {"a", {1}}, {"b", {0}}}).empty());
  CHECK(why_ranks_share_cores(std::vector<rank_place>{{"a", {0, 1, 2, 3}, 2}, {"a", {2, 3, 0, 1}, 2}}).empty());
  // The second and third need the first one's choices: 2, then 0, then 1.
  CHECK(why_ranks_share_cores(std::vector<rank_place>{{"a", {0, 1, 2}}, {"a", {0}}, {"a", {0, 1}}}).empty());
}

TEST_CASE("more threads than cores share them") {
  const std::string crowded = why_ranks_share_cores(std::vector<rank_place>{{"a", {0, 1}}, {"b", {0}}, {"b", {0}}});
  CHECK(contains(crowded, "the 2 ranks of host b keep 2 threads busy and share 1 core; start at most as many ranks"));
  CHECK(contains(crowded, "Predictions do not apply"));
  CHECK(contains(why_ranks_share_cores(std::vector<rank_place>{{"a", {0, 1}, 2}, {"a", {0, 1}, 1}}),
                 "the 2 ranks of host a keep 3 threads busy and share 2 cores"));
  CHECK(!why_ranks_share_cores(std::vector<rank_place>{{"a", {}}}).empty());
}

TEST_CASE("ranks that are bound to the same core share it, however many there are") {
  const std::string bound = why_ranks_share_cores(std::vector<rank_place>{{"a", {3}}, {"a", {3}}, {"a", {0, 1, 2}}});
  CHECK(contains(bound, "share 4 cores, of which some may use too few; bind each rank to cores of its own"));
}

}  // namespace rank_places_test
