// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// Shards in chunks: refine, and what reads refined programs.

#include "orrery/schedule/refine.hpp"

#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/draw/grid.hpp"
#include "orrery/predict/traffic.hpp"
#include "orrery/schedule/detail/schedule_digest.hpp"
#include "orrery/schedule/detail/symmetry.hpp"
#include "orrery/schedule/relabel.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/detail/refined.hpp"
#include "orrery/topology/placed.hpp"
#include "orrery/transport/detail/describe.hpp"
#include "orrery/verify/verify.hpp"

#include "support/finished.hpp"
#include "support/relative.hpp"
#include "verify/editable.hpp"
#include "verify/every_topology.hpp"

namespace refine_test {

using namespace orrery;
using namespace orrery::schedule;
using orrery::detail::refined;

namespace {

static_assert(sizeof(block) == 12);

// A refined topology keeps the period of its programs: a proof costs no more than chunks² times one of whole shards,
// and fits the default limits of both compilers.
static_assert(verify(refined{ring{}, 2}, 64));
static_assert(verify(refined{concentric<2, 2>{}, 3}, 16, pass::circulate_queries));
static_assert(verify(refined{usp<2>{}, 3}, 6, pass::circulate_keys));
static_assert(verify(refined{topologies::my_ring{}, 2}, 8, pass::circulate_keys));

schedule_digest digest_of(const list<program>& programs) {
  schedule_digest digest;
  for (const program& p : programs) digest.add(p);
  return digest;
}

/// The message for a ring of 4 whose shards are in 2 chunks after `damage` to rank 1.
template <class Damage>
std::string message_of_ring(const Damage& damage) {
  list<program> all = programs_of(refined{ring{}, 2}, 4);
  editable::change(all, 1, [&](editable::program& p) { damage(p.steps); });
  return verify(all).message();
}

}  // namespace

TEST_CASE("every topology's programs are right in 1, 2 and 3 chunks, and send as much") {
  for (const topologies::entry& topology : topologies::all()) {
    for (const int world : {1, 2, 3, 4, 6, 8, 9, 12, 16}) {
      for (const pass p : topologies::every_pass) {
        if (!topology.admits(world, p)) continue;
        CAPTURE(topology.name);
        CAPTURE(world);
        CAPTURE(std::string{name_of(p)});
        const list<program> whole = topology.programs(world, p);
        const traffic_report before = traffic(whole, weights_of(p));
        for (const int chunks : {1, 2, 3}) {
          CAPTURE(chunks);
          const list<program> programs = finished(refine(whole, chunks));
          const verdict found = verify(programs);
          INFO(found.message());
          REQUIRE(found.ok());
          if (chunks == 1) REQUIRE(programs == whole);
          const traffic_report after = traffic(programs, weights_of(p));
          CHECK(after.chunks == chunks * before.chunks);
          CHECK(after.sent == relative(before.sent));
          CHECK(after.messages_sent == before.messages_sent);
          CHECK(after.steps == before.steps);
          CHECK(after.peak_slots == chunks * before.peak_slots);
          for (int rank = 0; rank < world; ++rank) {
            CHECK(programs[rank].collectives == whole[rank].collectives);
            for (unsigned kind = 0; kind < 4; ++kind)
              REQUIRE(after.ranks[rank].blocks_sent[kind] == chunks * before.ranks[rank].blocks_sent[kind]);
          }
        }
      }
    }
  }
}

TEST_CASE("a block becomes its chunks, side by side, in tiles and messages") {
  const program p = refine(program_of(ring{}, 1, 4), 3);
  CHECK(p.chunks == 3);
  const exchange& x = p.exchanges[0];
  REQUIRE(x.sent.count == 3);
  REQUIRE(p.steps[1].tile.keys.count == 3);
  for (int c = 0; c < 3; ++c) {
    CHECK(p.sent[x.sent.first + c] == block{side::key, static_cast<std::uint16_t>(c), 1, 0});
    CHECK(p.received[x.received.first + c] ==
          held_block{block{side::key, static_cast<std::uint16_t>(c), 0, 0}, no_slot});
    CHECK(p.keys[p.steps[1].tile.keys.first + c].block == block{side::key, static_cast<std::uint16_t>(c), 0, 0});
  }
}

TEST_CASE("chunks are cut again") {
  const list<program> whole = detail::unallocated_programs(concentric<2, 2>{}, 8, pass::circulate_keys);
  CHECK(refine(refine(whole, 2), 3) == refine(whole, 6));
}

TEST_CASE("the digest tells how shards are cut, and which chunks are sent") {
  const list<program> whole = detail::unallocated_programs(ring{}, 4);
  CHECK(digest_of(refine(whole, 1)) == digest_of(whole));
  CHECK(digest_of(refine(whole, 2)) != digest_of(whole));
  CHECK(digest_of(refine(whole, 2)) != digest_of(refine(whole, 3)));
  list<program> other = refine(whole, 2);
  other[0].sent[0].chunk = 1;
  CHECK(digest_of(other) != digest_of(refine(whole, 2)));
  // Without tiles and messages, too.
  list<program> single = detail::unallocated_programs(ring{}, 1);
  list<program> cut = single;
  cut[0].chunks = 2;
  CHECK(digest_of(single) != digest_of(cut));
}

TEST_CASE("refined programs keep their symmetry, and only that") {
  const list<program> programs = refine(detail::unallocated_programs(ring{}, 6, pass::circulate_keys), 2);
  CHECK(is_rotation(programs[1], programs[3], 2));
  CHECK(is_relabeling(programs[1], programs[3]));
  for (const bool many : {true, false}) {
    program other = programs[3];
    many ? void(other.chunks = 3) : void(other.keys[0].block.chunk = 1);
    CHECK_FALSE(is_rotation(programs[1], other, 2));
    CHECK_FALSE(is_relabeling(programs[1], other));
  }
  const list<int> first = first_equivalent(programs);
  for (const int same : first) CHECK(same == 0);
}

TEST_CASE("ranks of refined programs get other numbers, and a backward is derived of a refined forward") {
  const list<program> whole = detail::unallocated_programs(double_ring<2>{}, 6);
  list<int> to(6);
  for (int rank = 0; rank < 6; ++rank) to[rank] = (5 * rank + 2) % 6;
  CHECK(relabel(refine(whole, 2), to) == refine(relabel(whole, to), 2));
  CHECK(verify(finished(relabel(refine(whole, 2), to))).ok());
  for (const topologies::entry& topology : topologies::all()) {
    if (!topology.admits(12, pass::forward)) continue;
    CAPTURE(topology.name);
    const list<program> backward = finished(derive_backward(refine(topology.programs(12, pass::forward), 2)));
    const verdict found = verify(backward);
    INFO(found.message());
    CHECK(found.ok());
    CHECK(traffic(backward, weights_of(pass::circulate_keys)).sent ==
          relative(
              traffic(finished(derive_backward(topology.programs(12, pass::forward))), weights_of(pass::circulate_keys))
                  .sent));
  }
}

TEST_CASE("verdicts name chunks") {
  CHECK(verify(programs_of(refined{ring{}, 2}, 4)).ok());
  // A chunk is left out at the receiver.
  CHECK(
      message_of_ring([](auto& steps) {
        steps[0].exchanges[0].received.pop_back();
        steps[1].exchanges[0].sent.pop_back();
        steps[1].keys.pop_back();
      }) ==
      "rank 1, step 0: chunk k0.0 is expected from rank 0 in lane 0, which sends 2 blocks instead of 1 (in its step 0, "
      "lane 0); name the same blocks in the same order at both ends");
  CHECK(message_of_ring([](auto& steps) { steps[0].exchanges[0].received.pop_back(); }) ==
        "rank 1, step 1: chunk k0.1 is used, but it is not received: rank 0 sends it to this rank (in its step 0, lane "
        "0); receive it in that lane and order");
  CHECK(message_of_ring([](auto& steps) { steps[0].exchanges[0].sent[1].chunk = 0; }) ==
        "rank 2, step 0: chunk k1.1 is expected from rank 1 in lane 0, which sends chunk k1.0 instead (in its step 0, "
        "lane 0); name the same blocks in the same order at both ends");
  CHECK(message_of_ring([](auto& steps) { steps[2].keys.pop_back(); }) ==
        "chunk q1.0 never meets chunk k3.1; let the two interact, for example on rank 1, which has the queries");
  CHECK(message_of_ring([](auto& steps) { steps[2].keys[1].block.chunk = 0; }) ==
        "rank 1, step 2: chunk q1.0 meets chunk k3.0 for the second time; leave one of the two tiles out");
  CHECK(message_of_ring([](auto& steps) { steps[2].keys[1].block.chunk = 2; }) ==
        "rank 1, step 2: chunk k3.2 does not exist; shards are 0 to 3, chunks 0 to 1 and slices below slices(world)");
  CHECK(message_of_ring([](auto& steps) { steps[0].exchanges[0].received[1].block.chunk = 7; }) ==
        "rank 1, step 0: chunk k0.7 does not exist; shards are 0 to 3, chunks 0 to 1 and slices below slices(world)");
  CHECK(message_of_ring([](auto& steps) { steps[0].exchanges[0].sent[1].chunk = 7; }) ==
        "rank 1, step 0: chunk k1.7 does not exist; shards are 0 to 3, chunks 0 to 1 and slices below slices(world)");
  // The message of one chunk is dropped at both ends.
  list<program> all = programs_of(refined{ring{}, 2}, 4);
  editable::change(all, 1, [](editable::program& p) { p.steps[2].exchanges[0].sent.pop_back(); });
  editable::change(all, 2, [](editable::program& p) { p.steps[2].exchanges[0].received.pop_back(); });
  CHECK(verify(all).message() ==
        "rank 2, step 3: chunk k3.1 is used, but it is not on this rank, and no rank sends it to this one; receive it "
        "in an earlier step, from a rank that has it");
  // A gradient's chunk does not come home.
  all = programs_of(refined{ring{}, 2}, 3, pass::circulate_keys);
  const int home = all[1].exchanges.back().to;
  editable::change(all, 1, [](editable::program& p) { p.steps.back().exchanges.back().sent.pop_back(); });
  editable::change(all, home, [](editable::program& p) { p.steps.back().exchanges.back().received.pop_back(); });
  CHECK(verify(all).message() == "the partial of chunk k" + std::to_string(home) + ".1 ends on rank 1; send it on to " +
                                     "rank " + std::to_string(home) + ", its home, as payload::partial");
  // A slice of a chunk.
  all = programs_of(refined{ulysses{}, 2}, 2);
  editable::change(all, 1, [](editable::program& p) { p.steps[1].keys.pop_back(); });
  CHECK(verify(all).message() ==
        "chunk q0.0 (slice 1) never meets chunk k0.1; let the two interact, for example on rank 0, which has the "
        "queries");
}

TEST_CASE("a pair of chunks is missing of a period") {
  struct my_half {
    [[nodiscard]] static constexpr int chunks() { return 2; }
    [[nodiscard]] constexpr orrery::program program(int rank, int world) const {
      orrery::program p = refine(orrery::detail::unallocated_program(ring{}, rank, world), 2);
      p.steps[1].tile.keys.count = 1;
      return p;
    }
  };
  CHECK(verify(my_half{}, 4).message() ==
        "chunk q0.0 never meets chunk k3.1; let the two interact, for example on rank 0, which has the queries");
  struct my_double {
    [[nodiscard]] static constexpr int chunks() { return 2; }
    [[nodiscard]] constexpr orrery::program program(int rank, int world) const {
      orrery::program p = refine(orrery::detail::unallocated_program(ring{}, rank, world), 2);
      p.keys[p.steps[1].tile.keys.first + 1].block.chunk = 0;
      return p;
    }
  };
  CHECK(verify(my_double{}, 4).message() ==
        "rank 0, step 1: chunk q0.0 meets chunk k3.0 for the second time; leave one of the two tiles out");
}

TEST_CASE("visible is asked about chunks by their numbers") {
  list<program> all = programs_of(refined{ring{}, 2}, 3);
  // Query chunk 0 of shard 1 leaves key chunk 1 of shard 1 out: above the diagonal.
  editable::change(all, 1, [](editable::program& p) {
    editable::step& own = p.steps[0];
    p.steps.push_back({{}, {own.queries[1]}, {own.keys[1]}});
    own.keys.pop_back();
  });
  CHECK(verify(all).message() ==
        "chunk q1.0 never meets chunk k1.1; let the two interact, for example on rank 1, which has the queries");
  CHECK(verify(all, [](int q, int k) { return k <= q; }).ok());
  CHECK_FALSE(verify(all, [](int q, int k) { return k <= q + 1; }).ok());
}

TEST_CASE("programs of one world are cut alike, into no more chunks than can be named") {
  list<program> all = programs_of(refined{ring{}, 2}, 3);
  all[1].chunks = 3;
  CHECK(verify(all).found == fault::program_of_another);
  CHECK(verify(all).rank == 1);
  for (program& p : all) p.chunks = 0;
  CHECK(verify(all).found == fault::program_of_another);
  for (program& p : all) p.chunks = 65536;
  CHECK(verify(all).found == fault::program_of_another);
  struct my_uneven {
    [[nodiscard]] constexpr orrery::program program(int rank, int world) const {
      return refine(orrery::detail::unallocated_program(ring{}, rank, world), 1 + rank % 2);
    }
  };
  CHECK(verify(my_uneven{}, 3).found == fault::program_of_another);
  CHECK(verify(my_uneven{}, 3).rank == 1);
  // A topology says into how many chunks it cuts shards.
  struct my_silent {
    [[nodiscard]] constexpr orrery::program program(int rank, int world) const {
      return refine(orrery::detail::unallocated_program(ring{}, rank, world), 2);
    }
  };
  CHECK(verify(my_silent{}, 3).found == fault::program_of_another);
  CHECK(verify(my_silent{}, 3, pass::circulate_keys).found == fault::program_of_another);
  CHECK(verify(my_silent{}, 3, pass::forward, below_diagonal{}).found == fault::program_of_another);
  CHECK(any_topology{refined{refined{ring{}, 2}, 3}}.chunks() == 6);
  CHECK(verify(placed{refined{ring{}, 2}, teams_in_nodes{}}, 4).ok());
  CHECK(any_topology{ring{}}.chunks() == 1);

  const program one = program_of(ring{}, 0, 1);
  CHECK(refine(one, 65535).keys.size() == 65535);
  CHECK_THROWS_WITH_AS(static_cast<void>(refine(one, 65536)),
                       "orrery: refine: chunks is 65536, expected 1 to 65535: a shard has at most 65535 chunks",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(static_cast<void>(refine(one, 0)),
                       "orrery: refine: chunks is 0, expected 1 to 65535: a shard has at most 65535 chunks",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(
      static_cast<void>(refine(refine(one, 2), 32768)),
      "orrery: refine: chunks is 32768, expected 1 to 32767: a shard has at most 65535 chunks, and has "
      "2 now",
      std::invalid_argument);
  CHECK_THROWS_WITH_AS(static_cast<void>(refine(program_of(ring{}, 0, 20000), 65535)),
                       "orrery: refine: chunks is 65535, with which a program of this world would name too many "
                       "blocks; cut shards into fewer chunks",
                       std::invalid_argument);
}

TEST_CASE("a builder writes chunks") {
  list<program> all(2);
  for (int rank = 0; rank < 2; ++rank) {
    builder schedule{rank, 2, pass::forward, 1, 2};
    for (int c = 0; c < 2; ++c) {
      schedule.shift(key(rank).in_chunk(c), 1);
      for (int q = 0; q < 2; ++q) schedule.add_to_tile(query(rank).in_chunk(q));
      schedule.add_to_tile(key(rank).in_chunk(c));
      schedule.next_step();
    }
    for (int q = 0; q < 2; ++q) schedule.add_to_tile(query(rank).in_chunk(q).in_slice(0));
    for (int k = 0; k < 2; ++k) schedule.add_to_tile(key(rank + 1).in_slice(0).in_chunk(k));
    all[rank] = schedule;
  }
  const verdict found = verify(finished(all));
  INFO(found.message());
  CHECK(found.ok());
}

TEST_CASE("drawings and transports name chunks") {
  list<program> all = programs_of(refined{ring{}, 2}, 3);
  CHECK(draw_grid(all).find("0x0 >1:k0 | 0x2 >1:k2 | 0x1\n") != std::string::npos);
  CHECK(draw_grid(all).find(".C      chunk C of a shard; without it, all its chunks\n") != std::string::npos);
  editable::change(all, 0, [](editable::program& p) {
    p.steps[0].keys.pop_back();
    p.steps[0].exchanges[0].sent.erase(p.steps[0].exchanges[0].sent.begin());
  });
  CHECK(draw_grid(all).find("0x0.0 >1:k0.1 | 0x2 >1:k2 | 0x1\n") != std::string::npos);
  CHECK(draw_grid(programs_of(refined{ulysses{}, 2}, 2)).find("/1") != std::string::npos);
  CHECK(draw_grid(programs_of(ring{}, 3)).find(".C") == std::string::npos);
  CHECK(orrery::detail::describe_wait(all[1], 0, orrery::detail::direction::receiving) ==
        "in step 1 for chunk k0.0, chunk k0.1 from rank 0");
  CHECK(orrery::detail::describe_wait(programs_of(ring{}, 3)[1], 0, orrery::detail::direction::receiving) ==
        "in step 1 for key shard 0 from rank 0");
}

}  // namespace refine_test
