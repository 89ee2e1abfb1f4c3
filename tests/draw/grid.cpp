// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/draw/grid.hpp"

#include <sstream>
#include <stdexcept>
#include <string>

#include <doctest/doctest.h>

#include "orrery/schedule/builder.hpp"
#include "orrery/topology/all_gather.hpp"
#include "orrery/topology/all_to_all.hpp"
#include "orrery/topology/double_ring.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/topology/wallfacer.hpp"

namespace grid_test {

using namespace orrery;

using namespace orrery::schedule;

TEST_CASE("a ring's grid") {
  CHECK(draw_grid(ring{}, 3) ==
        "step   | 0         | 1         | 2\n"
        "rank 0 | 0x0 >1:k0 | 0x2 >1:k2 | 0x1\n"
        "rank 1 | 1x1 >2:k1 | 1x0 >2:k0 | 1x2\n"
        "rank 2 | 2x2 >0:k2 | 2x1 >0:k1 | 2x0\n"
        "\n"
        "QxK     computes query shards Q with key shards K\n"
        ">R:kS   sends key shards S to ranks R\n");
  CHECK(draw_grid(ring{}, 1) ==
        "step   | 0\n"
        "rank 0 | 0x0\n"
        "\n"
        "QxK     computes query shards Q with key shards K\n");
}

TEST_CASE("partials and lanes are marked, and a rank that waits has an empty cell") {
  CHECK(draw_grid(ring{}, 3, pass::circulate_queries) ==
        "step   | 0         | 1         | 2            | 3\n"
        "rank 0 | 0x0 >1:q0 | 2x0 >1:q2 | 1x0 >1:+q2@1 | >1:+q1@1\n"
        "rank 1 | 1x1 >2:q1 | 0x1 >2:q0 | 2x1 >2:+q0@1 | >2:+q2@1\n"
        "rank 2 | 2x2 >0:q2 | 1x2 >0:q1 | 0x2 >0:+q1@1 | >0:+q0@1\n"
        "\n"
        "QxK     computes query shards Q with key shards K\n"
        ">R:qS   sends query shards S to ranks R\n"
        ">R:+qS  sends partials of query shards S to ranks R\n"
        "@L      in lane L; without it, in lane 0\n");
}

TEST_CASE("slices are named, runs of shards shortened") {
  CHECK(draw_grid(ulysses{}, 3) ==
        "step   | 0                   | 1         | 2\n"
        "rank 0 | >1:q0k0.1 >2:q0k0.2 | 0-2x0-2.0 | >1:+q1.0 >2:+q2.0\n"
        "rank 1 | >2:q1k1.2 >0:q1k1.0 | 0-2x0-2.1 | >2:+q2.1 >0:+q0.1\n"
        "rank 2 | >0:q2k2.0 >1:q2k2.1 | 0-2x0-2.2 | >0:+q0.2 >1:+q1.2\n"
        "\n"
        "QxK     computes query shards Q with key shards K\n"
        ">R:qS   sends query shards S to ranks R\n"
        ">R:kS   sends key shards S to ranks R\n"
        ">R:+qS  sends partials of query shards S to ranks R\n"
        ".H      of slices H of the heads; without it, of all slices\n");
}

TEST_CASE("a message that is in flight for several steps says until when") {
  CHECK(draw_grid(double_ring<2>{}, 4, pass::circulate_keys) ==
        "step   | 0                   | 1   | 2                  | 3   | 4        | 5\n"
        "rank 0 | 0x0 >2:k0@2~2 >1:k0 | 0x1 | 0x2 >1:k2 >1:+k1@1 | 0x3 | >1:+k3@1 | >2:+k2@3\n"
        "rank 1 | 1x1 >3:k1@2~2 >0:k1 | 1x0 | 1x3 >0:k3 >0:+k0@1 | 1x2 | >0:+k2@1 | >3:+k3@3\n"
        "rank 2 | 2x2 >0:k2@2~2 >3:k2 | 2x3 | 2x0 >3:k0 >3:+k3@1 | 2x1 | >3:+k1@1 | >0:+k0@3\n"
        "rank 3 | 3x3 >1:k3@2~2 >2:k3 | 3x2 | 3x1 >2:k1 >2:+k2@1 | 3x0 | >2:+k0@1 | >1:+k1@3\n"
        "\n"
        "QxK     computes query shards Q with key shards K\n"
        ">R:kS   sends key shards S to ranks R\n"
        ">R:+kS  sends partials of key shards S to ranks R\n"
        "@L      in lane L; without it, in lane 0\n"
        "~T      in flight until step T; without it, until the next step\n");
}

TEST_CASE("blocks of which some slices are sent stand beside blocks of which all are") {
  builder schedule{0, 4, pass::forward, 3};
  schedule.begin_exchange(1, no_rank, {.lane = 7, .steps = 2});
  schedule.send(queries(0, 2).in_slice(1));
  schedule.send({side::key, 0, 2, 1, 0, 3});
  schedule.send({side::key, 3, 1, 1, 1, 2});
  list<program> programs;
  programs.push_back(schedule);
  CHECK(draw_grid(programs) ==
        "step   | 0                       | 1\n"
        "rank 0 | >1:q0,1.1k0,1k3.1,2@7~2 |\n"
        "\n"
        ">R:qS   sends query shards S to ranks R\n"
        ">R:kS   sends key shards S to ranks R\n"
        ".H      of slices H of the heads; without it, of all slices\n"
        "@L      in lane L; without it, in lane 0\n"
        "~T      in flight until step T; without it, until the next step\n");
}

TEST_CASE("messages that differ in their receivers only are one word") {
  CHECK(draw_grid(all_gather{}, 16).find("rank 13 | >0-12,14,15:k13 | 13x0-15\n") != std::string::npos);
}

TEST_CASE("steps that have no room in a line follow below, and long cells have several lines") {
  CHECK(draw_grid(ulysses{}, 4, pass::forward, 58) ==
        "step   | 0                   | 1\n"
        "rank 0 | >1:q0k0.1 >2:q0k0.2 | 0-3x0-3.0\n"
        "       | >3:q0k0.3           |\n"
        "rank 1 | >2:q1k1.2 >3:q1k1.3 | 0-3x0-3.1\n"
        "       | >0:q1k1.0           |\n"
        "rank 2 | >3:q2k2.3 >0:q2k2.0 | 0-3x0-3.2\n"
        "       | >1:q2k2.1           |\n"
        "rank 3 | >0:q3k3.0 >1:q3k3.1 | 0-3x0-3.3\n"
        "       | >2:q3k3.2           |\n"
        "\n"
        "step   | 2\n"
        "rank 0 | >1:+q1.0 >2:+q2.0\n"
        "       | >3:+q3.0\n"
        "rank 1 | >2:+q2.1 >3:+q3.1\n"
        "       | >0:+q0.1\n"
        "rank 2 | >3:+q3.2 >0:+q0.2\n"
        "       | >1:+q1.2\n"
        "rank 3 | >0:+q0.3 >1:+q1.3\n"
        "       | >2:+q2.3\n"
        "\n"
        "QxK     computes query shards Q with key shards K\n"
        ">R:qS   sends query shards S to ranks R\n"
        ">R:kS   sends key shards S to ranks R\n"
        ">R:+qS  sends partials of query shards S to ranks R\n"
        ".H      of slices H of the heads; without it, of all slices\n");
}

TEST_CASE("of sixteen ranks nothing is left out, and no line is wider than asked") {
  const auto check = [](const auto& t) {
    for (const pass p : {pass::forward, pass::circulate_keys}) {
      const list<program> programs = programs_of(t, 16, p);
      std::istringstream lines{draw_grid(t, 16, p)};
      int rows_of_15 = 0, tiles = 0, expected = 0;
      for (std::string line; std::getline(lines, line);) {
        INFO(line);
        CHECK(line.size() <= 100);
        if (line.find("rank 15") == 0) ++rows_of_15;
        if (line.find("rank") == 0) {
          for (std::size_t i = 1; i + 1 < line.size(); ++i) tiles += line[i] == 'x';
        }
      }
      for (const program& of : programs) {
        for (const step& s : of.steps) expected += !s.tile.empty();
      }
      CHECK(tiles == expected);
      CHECK(rows_of_15 > 0);
    }
  };
  check(ring{});
  check(ulysses{});
  check(all_gather{});
  check(wallfacer<4>{});
  check(double_ring<4>{});
}

TEST_CASE("a refused world is not drawn") {
  CHECK_THROWS_AS(static_cast<void>(draw_grid(wallfacer<2>{}, 6)), std::invalid_argument);
}

}  // namespace grid_test
