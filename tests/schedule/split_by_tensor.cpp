// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/schedule/detail/split_by_tensor.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <tuple>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/schedule/detail/symmetry.hpp"
#include "orrery/topology/topology.hpp"
#include "orrery/verify/verify.hpp"

#include "support/topologies.hpp"

namespace {

using orrery::schedule::block;
using orrery::schedule::side;

constexpr std::array sides{side::query, side::key, side::key};

/// For each (sender, receiver, lane): what each message names, and which tensor it carries, in order.
using traffic = std::map<std::tuple<int, int, int>, std::vector<std::pair<int, std::vector<block>>>>;

template <class Topology>
std::pair<traffic, traffic> messages(int world, orrery::pass p) {
  traffic sent, received;
  for (int rank = 0; rank < world; ++rank) {
    const orrery::program split =
        orrery::schedule::split_by_tensor(orrery::program_of(Topology{}, rank, world, p), sides);
    for (const orrery::schedule::exchange& x : split.exchanges) {
      std::vector<block> out, in;
      for (const block& b : split.sent_by(x)) out.push_back(b);
      for (const orrery::schedule::held_block& b : split.received_by(x)) in.push_back(b.block);
      if (!out.empty()) sent[{rank, x.to, x.lane}].emplace_back(x.tensor, out);
      if (!in.empty()) received[{x.from, rank, x.lane}].emplace_back(x.tensor, in);
    }
  }
  return {sent, received};
}

}  // namespace

TEST_CASE_TEMPLATE("both ends of every message split it alike", Topology, ORRERY_TEST_TOPOLOGIES) {
  for (const int world : {1, 2, 3, 4, 6, 8, 9, 12, 16}) {
    for (const orrery::pass p : {orrery::pass::forward, orrery::pass::circulate_keys}) {
      if (orrery::unsupported_reason(Topology{}, world, p) != nullptr) continue;
      INFO(orrery::name_of(Topology{}), " over ", world);
      const auto [sent, received] = messages<Topology>(world, p);
      CHECK((sent == received));
    }
  }
}

TEST_CASE_TEMPLATE("every block travels with all its tensors, each of them once", Topology, ORRERY_TEST_TOPOLOGIES) {
  for (const int world : {4, 8, 9}) {
    if (orrery::unsupported_reason(Topology{}, world, orrery::pass::forward) != nullptr) continue;
    for (int rank = 0; rank < world; ++rank) {
      const orrery::program whole = orrery::program_of(Topology{}, rank, world, orrery::pass::forward);
      const auto split = orrery::schedule::split_by_tensor(whole, sides);
      std::map<std::tuple<int, int, int, int>, int> of_whole, of_split;  // peer, side, shard, slice
      const auto count = [](auto& counts, const orrery::program& p) {
        for (const orrery::schedule::exchange& x : p.exchanges) {
          const int of_key = x.tensor == orrery::schedule::every_tensor ? 2 : 1;
          for (const block& b : p.sent_by(x))
            counts[{x.to, static_cast<int>(b.side), b.shard, b.slice}] += b.side == side::query ? 1 : of_key;
        }
      };
      count(of_whole, whole);
      count(of_split, split);
      CHECK((of_whole == of_split));

      std::vector<int> awaited(split.completions.begin(), split.completions.end());
      std::sort(awaited.begin(), awaited.end());
      CHECK(std::adjacent_find(awaited.begin(), awaited.end()) == awaited.end());
      CHECK(awaited.size() == static_cast<std::size_t>(split.exchanges.size()));
    }
  }
}

TEST_CASE("the first step's exchanges come tensor by tensor, and collectives stay collectives") {
  const auto split =
      orrery::schedule::split_by_tensor(orrery::program_of(orrery::ulysses{}, 1, 4, orrery::pass::forward), sides);
  std::vector<int> tensors;
  for (int e = 0; e < 9; ++e) tensors.push_back(split.exchanges[e].tensor);
  CHECK(tensors == std::vector<int>{1, 1, 1, 2, 2, 2, 3, 3, 3});
  CHECK(split.exchanges[9].tensor == orrery::schedule::every_tensor);
  REQUIRE(split.collectives.size() == 4);
  for (int c = 0; c < 3; ++c) {
    CHECK(split.collectives[c].kind == orrery::schedule::collective_kind::all_to_all);
    CHECK(split.collectives[c].exchanges == orrery::schedule::range{3 * c, 3});
  }
  std::set<int> lanes;
  for (int e = 0; e < 9; ++e) lanes.insert(split.exchanges[e].lane);
  CHECK(lanes == std::set<int>{1, 2, 3});
  CHECK(split.exchanges[9].lane == 0);  // the partials go home whole
}

TEST_CASE("each end of an exchange is split by the blocks that it names") {
  // Sends its own keys, and receives keys that are not its sender's own.
  orrery::builder schedule{0, 3};
  schedule.begin_exchange(1, 2);
  schedule.send(orrery::key(0));
  schedule.receive(orrery::key(1));
  schedule.next_step();
  schedule.interact(orrery::query(0), orrery::key(1));
  orrery::program p = schedule;
  orrery::schedule::finish(p);
  const auto split = orrery::schedule::split_by_tensor(p, sides);
  int sends = 0, receives = 0;
  for (int e = 0; e < split.exchanges.size(); ++e) {
    const orrery::schedule::exchange& x = split.exchanges[e];
    sends += x.sent.count > 0 ? 1 : 0;
    receives += x.received.count > 0 ? 1 : 0;
    CHECK((x.received.count > 0) == (x.tensor == orrery::schedule::every_tensor));
    CHECK((x.to == orrery::schedule::no_rank) == (x.sent.count == 0));
    CHECK((x.from == orrery::schedule::no_rank) == (x.received.count == 0));
  }
  CHECK(sends == 2);
  CHECK(receives == 1);
}

TEST_CASE("a part of a collective's exchanges is no collective") {
  // Of three exchanges one relays another rank's keys, which stay one message.
  orrery::builder schedule{0, 4};
  for (int peer = 1; peer < 4; ++peer) {
    schedule.begin_exchange(peer, orrery::schedule::no_rank);
    schedule.send(orrery::key(peer == 2 ? 3 : 0));
  }
  schedule.mark_collective(orrery::schedule::collective_kind::all_gather, {0, 4}, 0);
  orrery::program p = schedule;
  orrery::schedule::finish(p);
  REQUIRE(p.collectives.size() == 1);
  const auto split = orrery::schedule::split_by_tensor(p, sides);
  CHECK(split.exchanges.size() == 2 * 2 + 1);
  CHECK(split.collectives.empty());
}

TEST_CASE("tensors of different lanes do not share a lane") {
  orrery::builder schedule{0, 2};
  for (int lane = 0; lane < 3; ++lane) {
    schedule.begin_exchange(1, orrery::schedule::no_rank, {lane});
    schedule.send(orrery::query(0));
    schedule.send(orrery::key(0));
  }
  orrery::program p = schedule;
  orrery::schedule::finish(p);
  const auto split = orrery::schedule::split_by_tensor(p, sides);
  std::set<int> lanes;
  for (const orrery::schedule::exchange& x : split.exchanges) lanes.insert(x.lane);
  CHECK(split.exchanges.size() == 3 * 3);
  CHECK(lanes.size() == 3 * 3);
}

TEST_CASE("an exchange carries all tensors, or the one that it names") {
  orrery::schedule::exchange x{};
  CHECK(x.tensor == orrery::schedule::every_tensor);
  CHECK(x.carries(0));
  CHECK(x.carries(2));
  x.tensor = 2;
  CHECK(!x.carries(0));
  CHECK(x.carries(1));
  CHECK(!x.carries(2));
}

TEST_CASE("what is split is not proven again: schedules move whole blocks") {
  orrery::schedule::list<orrery::program> all = orrery::programs_of(orrery::ring{}, 3);
  CHECK(orrery::verify(all).ok());
  for (orrery::program& p : all) p = orrery::schedule::split_by_tensor(p, sides);
  const orrery::verdict found = orrery::verify(all);
  CHECK(found.found == orrery::fault::tensor_alone);
  CHECK(found.message() ==
        "rank 0, step 0: an exchange carries tensor 1 of its blocks alone, but schedules move whole blocks; leave "
        "exchange::tensor at every_tensor, and ask the operator for operand_messages::per_tensor");
}

TEST_CASE("ranks of which one sends single tensors are not alike") {
  const orrery::program whole = orrery::program_of(orrery::ring{}, 0, 3);
  orrery::program other = whole;
  CHECK(orrery::schedule::have_one_structure(whole, other));
  other.exchanges[0].tensor = 1;
  CHECK(!orrery::schedule::have_one_structure(whole, other));
}
