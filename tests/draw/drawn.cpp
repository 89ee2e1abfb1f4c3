// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Schedules as pictures: what their files say. pictures.py reads their layout.

#include <cstddef>
#include <cstdint>
#include <string>

#include <doctest/doctest.h>

#include "orrery/draw/coverage_svg.hpp"
#include "orrery/draw/schedule_html.hpp"
#include "orrery/draw/traffic_svg.hpp"
#include "orrery/predict/traffic.hpp"
#include "orrery/topology/named.hpp"

#include "support/refusal.hpp"

namespace drawn_test {

using orrery::coverage_svg;
using orrery::programs_of;
using orrery::schedule_html;
using orrery::topology_named;
using orrery::traffic_svg;

namespace {

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t found = 0;
  for (std::size_t at = text.find(part); at != text.npos; at = text.find(part, at + part.size())) ++found;
  return found;
}

std::int64_t megabyte(orrery::schedule::side, orrery::schedule::payload, const orrery::schedule::block&) {
  return 1000000;
}

}  // namespace

TEST_CASE("every pair of ranks that exchange something is a cell with its bytes") {
  for (const char* const name : {"ring", "wallfacer<2>", "ulysses", "concentric<4>"}) {
    CAPTURE(name);
    const auto programs = programs_of(topology_named(name), 16);
    const std::string svg = traffic_svg(programs, megabyte, {.title = "a < b & \"c\"", .ranks_per_node = 4});
    std::size_t pairs = 0;
    const auto report = orrery::traffic(programs, megabyte);
    for (const std::int64_t bytes : report.between) pairs += bytes > 0 ? 1 : 0;
    CHECK(count(svg, "<title>rank ") == pairs);
    CHECK(count(svg, "a &lt; b &amp; &quot;c&quot;") == 2);
    CHECK(count(svg, "class=\"node\"") == 2 * 5);
  }
  const std::string ring = traffic_svg(programs_of(orrery::ring{}, 4), megabyte);
  CHECK(count(ring, "rank 3 to rank 0: 3.00 MB in 3 messages") == 1);
  CHECK(count(ring, "class=\"node\"") == 0);
  CHECK(count(ring, "between nodes") == 0);
  CHECK(refusal_of([] { (void)traffic_svg(programs_of(orrery::ring{}, 2), megabyte, {.ranks_per_node = 0}); }) ==
        "orrery: traffic_svg: ranks_per_node is 0, expected at least 1");
}

TEST_CASE("every pair of shards is a cell of the rank and step that computes it") {
  const std::string ring = coverage_svg(programs_of(orrery::ring{}, 4));
  CHECK(count(ring, "class=\"cell\"") == 16);
  CHECK(count(ring, "query 1, key 3: rank 1, step 2") == 1);
  // Half of the pairs, below the diagonal.
  CHECK(count(coverage_svg(programs_of(orrery::half_ring{}, 8)), "class=\"cell\"") == 36);
  // A slice of the heads is computed by one rank of two.
  const auto cut = programs_of(topology_named("usp<2>"), 4);
  CHECK(count(coverage_svg(cut, {.slice = 1}), ": rank 1, step") == 8);
  CHECK(count(coverage_svg(cut, {.slice = 1}), ": rank 0, step") == 0);
  CHECK(count(coverage_svg(cut), "slice 0 of the heads") == 1);
  CHECK(refusal_of([&] { (void)coverage_svg(cut, {.slice = 2}); }) ==
        "orrery: coverage_svg: slice is 2, expected less than 2, the slices of the heads");
}

TEST_CASE("a page has all steps and messages, and no text leaves its strings") {
  const auto programs = programs_of(topology_named("concentric<2,2>"), 8);
  const std::string page = schedule_html(programs, megabyte, {.title = "</script>\"\\", .ranks_per_node = 2});
  std::size_t messages = 0;
  for (const orrery::program& p : programs) {
    for (const orrery::schedule::exchange& x : p.exchanges) messages += x.sent.count > 0 ? 1 : 0;
  }
  CHECK(count(page, ",1000000]") + count(page, ",2000000]") == messages);
  CHECK(count(page, "{steps:[") == 8);
  CHECK(count(page, "</script>") == 1);
  CHECK(count(page, "title: \"\\u003c/script>\\u0022\\u005c\"") == 1);
  CHECK(count(page, "q:\"0,1\",k:\"0,2\"") == 1);
  CHECK(count(page, "\"key 0,2\",2000000]") == 2);  // from ranks 0 and 2
  CHECK(count(schedule_html(programs_of(topology_named("usp<2>"), 4), megabyte), "key 0 in slice 1") > 0);
  CHECK(refusal_of([&] { (void)schedule_html(programs, megabyte, {.ranks_per_node = -1}); }) ==
        "orrery: schedule_html: ranks_per_node is -1, expected at least 1");
}

}  // namespace drawn_test
