// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/schedule/detail/split_by_tensor.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <tuple>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/topology/topology.hpp"

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
    const auto split = orrery::schedule::split_by_tensor(orrery::program_of(Topology{}, rank, world, p), sides);
    const orrery::program& steps = split.program;
    for (int e = 0; e < steps.exchanges.size(); ++e) {
      const orrery::schedule::exchange& x = steps.exchanges[e];
      std::vector<block> out, in;
      for (int s = x.sent.first; s < x.sent.end(); ++s) out.push_back(steps.sent[s]);
      for (int r = x.received.first; r < x.received.end(); ++r) in.push_back(steps.received[r].block);
      if (!out.empty()) sent[{rank, x.to, x.lane}].emplace_back(split.tensor_of(e), out);
      if (!in.empty()) received[{x.from, rank, x.lane}].emplace_back(split.tensor_of(e), in);
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
      const auto count = [](auto& counts, const orrery::program& p, int e, int weight_of_query, int weight_of_key) {
        for (int s = p.exchanges[e].sent.first; s < p.exchanges[e].sent.end(); ++s) {
          const block& b = p.sent[s];
          counts[{p.exchanges[e].to, static_cast<int>(b.side), b.shard, b.slice}] +=
              b.side == side::query ? weight_of_query : weight_of_key;
        }
      };
      for (int e = 0; e < whole.exchanges.size(); ++e) count(of_whole, whole, e, 1, 2);
      for (int e = 0; e < split.program.exchanges.size(); ++e) {
        const bool all = split.tensor_of(e) == orrery::schedule::every_tensor;
        count(of_split, split.program, e, 1, all ? 2 : 1);
      }
      CHECK((of_whole == of_split));

      std::vector<int> awaited(split.program.completions.begin(), split.program.completions.end());
      std::sort(awaited.begin(), awaited.end());
      CHECK(std::adjacent_find(awaited.begin(), awaited.end()) == awaited.end());
      CHECK(awaited.size() == static_cast<std::size_t>(split.program.exchanges.size()));
    }
  }
}

TEST_CASE("the first step's exchanges come tensor by tensor, and collectives stay collectives") {
  const auto split =
      orrery::schedule::split_by_tensor(orrery::program_of(orrery::ulysses{}, 1, 4, orrery::pass::forward), sides);
  CHECK(std::vector<int>(split.tensor.begin(), split.tensor.begin() + 9) ==
        std::vector<int>{0, 0, 0, 1, 1, 1, 2, 2, 2});
  REQUIRE(split.program.collectives.size() == 4);
  for (int c = 0; c < 3; ++c) {
    CHECK(split.program.collectives[c].kind == orrery::schedule::collective_kind::all_to_all);
    CHECK(split.program.collectives[c].exchanges == orrery::schedule::range{3 * c, 3});
  }
  std::set<int> lanes;
  for (int e = 0; e < 9; ++e) lanes.insert(split.program.exchanges[e].lane);
  CHECK(lanes == std::set<int>{1, 2, 3});
  CHECK(split.program.exchanges[9].lane == 0);  // the partials go home whole
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
  for (int e = 0; e < split.program.exchanges.size(); ++e) {
    const orrery::schedule::exchange& x = split.program.exchanges[e];
    sends += x.sent.count > 0 ? 1 : 0;
    receives += x.received.count > 0 ? 1 : 0;
    CHECK((x.received.count > 0) == (split.tensor_of(e) == orrery::schedule::every_tensor));
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
  CHECK(split.program.exchanges.size() == 2 * 2 + 1);
  CHECK(split.program.collectives.empty());
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
  for (const orrery::schedule::exchange& x : split.program.exchanges) lanes.insert(x.lane);
  CHECK(split.program.exchanges.size() == 3 * 3);
  CHECK(lanes.size() == 3 * 3);
}
