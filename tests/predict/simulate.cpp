// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Simulated times of programs: against another simulator, against formulas, and against bounds that must hold.
#include "orrery/predict/simulate.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/layout/layout.hpp"
#include "orrery/mask/causal.hpp"
#include "orrery/mask/intersection.hpp"
#include "orrery/mask/window.hpp"
#include "orrery/predict/machine_text.hpp"
#include "orrery/predict/traffic.hpp"
#include "orrery/schedule/builder.hpp"
#include "orrery/topology/named.hpp"

#include "predict/reference_times.hpp"
#include "support/refusal.hpp"
#include "support/relative.hpp"

namespace simulate_test {

using orrery::machine;
using orrery::pass;
using orrery::prediction;
using orrery::program;
using orrery::programs_of;
using orrery::simulate;
using orrery::topology_named;
namespace schedule = orrery::schedule;

namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// One level, with a port for each rank.
machine flat(double bandwidth, double latency, int ranks = 64) {
  return {.name = "flat",
          .levels = {{.name = "cluster", .count = ranks, .bandwidth = bandwidth, .latency = latency}},
          .device = {.forward = {.full = 1e12}}};
}
/// Nodes with one card each.
machine nodes(int ranks_per_node, double bandwidth = 1.25e9) {
  machine m = flat(20e9, 2e-6, ranks_per_node);
  m.levels[0].name = "node";
  m.levels.push_back({.name = "cluster", .count = 64, .bandwidth = bandwidth, .latency = 1e-5, .shared_by = "node"});
  return m;
}

/// Bytes of blocks: a key block has twice those of a query block, in slices.
struct block_bytes {
  std::int64_t of_query;
  int slices;

  std::int64_t operator()(schedule::side s, schedule::payload, const schedule::block&) const {
    return (s == schedule::side::key ? 2 : 1) * of_query / slices;
  }
};

prediction simulated(const char* topology, int world, const machine& m, double pair_nanoseconds, std::int64_t bytes,
                     pass p = pass::forward) {
  const schedule::list<program> programs = programs_of(topology_named(topology), world, p);
  const int slices = programs[0].slices;
  return simulate(programs, m, block_bytes{bytes, slices}, [&](const program&, const schedule::tile& t) {
    return 1e-9 * std::floor(pair_nanoseconds * t.queries.count * t.keys.count / slices);
  });
}

/// Programs in which every rank sends blocks of given sizes to ranks, all in one step; sizes are told by the shard.
struct message {
  int from, to;
};
prediction exchanged(int world, const std::vector<message>& messages, const machine& m,
                     const std::vector<std::int64_t>& bytes, bool with_timeline = false) {
  schedule::list<program> programs;
  for (int rank = 0; rank < world; ++rank) {
    orrery::builder b{rank, world};
    for (int i = 0; i < static_cast<int>(messages.size()); ++i) {
      const message& one = messages[static_cast<std::size_t>(i)];
      const schedule::block block{schedule::side::key, 0, one.from, 0};
      if (one.from == rank) {
        b.begin_exchange(one.to, schedule::no_rank, {i}, schedule::payload::operand);
        b.send(block);
      }
      if (one.to == rank) {
        b.begin_exchange(schedule::no_rank, one.from, {i}, schedule::payload::operand);
        b.receive(block);
      }
    }
    b.next_step();
    program p = b;
    schedule::finish(p);
    programs.push_back(p);
  }
  const auto size = [&](schedule::side, schedule::payload, const schedule::block& b) {
    return bytes[static_cast<std::size_t>(b.shard)];
  };
  return simulate(
      programs, m, size, [](const program&, const schedule::tile&) { return 0.0; }, with_timeline);
}

/// Programs of some steps without tiles, in which messages are posted; each has a lane and a size of its own.
struct posted_message {
  int from, to;
  int sent_in, received_in;  ///< the steps in which its ends post it
  std::int64_t bytes;
  int steps = 1;  ///< that it may be under way
};
prediction in_steps(int world, int steps, const std::vector<posted_message>& messages, const machine& m) {
  schedule::list<program> programs;
  for (int rank = 0; rank < world; ++rank) {
    orrery::builder b{rank, world};
    for (int step = 0; step < steps; ++step) {
      for (int i = 0; i < static_cast<int>(messages.size()); ++i) {
        const posted_message& one = messages[static_cast<std::size_t>(i)];
        const schedule::block block{schedule::side::key, 0, one.from, i};
        if (one.from == rank && one.sent_in == step) {
          b.begin_exchange(one.to, schedule::no_rank, {i, one.steps});
          b.send(block);
        }
        if (one.to == rank && one.received_in == step) {
          b.begin_exchange(schedule::no_rank, one.from, {i, one.steps});
          b.receive(block);
        }
      }
      b.next_step();
    }
    program p = b;
    p.slices = static_cast<int>(messages.size());
    programs.push_back(p);
  }
  const auto size = [&](schedule::side, schedule::payload, const schedule::block& b) {
    return messages[static_cast<std::size_t>(b.slice)].bytes;
  };
  return simulate(
      programs, m, size, [](const program&, const schedule::tile&) { return 0.0; }, true);
}
/// The bars of the messages of a timeline, by lane.
std::vector<prediction::span> messages_of(const prediction& p, std::size_t count) {
  std::vector<prediction::span> all(count);
  for (const prediction::span& s : p.timeline) {
    if (s.what == prediction::span::kind::message) all[static_cast<std::size_t>(s.lane)] = s;
  }
  return all;
}

/// When messages end that begin at once: each takes one or two ports, and no more than `most`. Step by step: all get
/// more until a port is full or they have the most, and those stay; then the first one ends.
struct fluid {
  std::vector<int> ports;
  double left;
  double rate = 0;
  double end = -1;
};
void flow(std::vector<fluid>& messages, std::size_t ports, double capacity, double most) {
  double now = 0;
  for (std::size_t done = 0; done < messages.size();) {
    std::vector<double> room(ports, capacity);
    std::vector<fluid*> open;
    for (fluid& one : messages) {
      if (one.end < 0) open.push_back(&one);
    }
    while (!open.empty()) {
      std::vector<int> users(ports, 0);
      for (const fluid* one : open) {
        for (const int p : one->ports) ++users[static_cast<std::size_t>(p)];
      }
      double rate = most;
      for (std::size_t p = 0; p < ports; ++p) rate = users[p] > 0 ? std::fmin(rate, room[p] / users[p]) : rate;
      std::vector<fluid*> others;
      std::vector<double> before = room;
      for (fluid* const one : open) {
        bool is_full = rate == most;
        for (const int p : one->ports) {
          const auto at = static_cast<std::size_t>(p);
          is_full = is_full || before[at] / users[at] <= rate * (1 + 1e-12);
        }
        one->rate = rate;
        if (!is_full) others.push_back(one);
        for (const int p : one->ports) room[static_cast<std::size_t>(p)] -= is_full ? rate : 0;
      }
      open = others;
    }
    double next = HUGE_VAL;
    for (const fluid& one : messages) next = one.end < 0 ? std::fmin(next, one.left / one.rate) : next;
    now += next;
    for (fluid& one : messages) {
      if (one.end >= 0) continue;
      one.left -= next * one.rate;
      if (one.left > 1e-6) continue;
      one.end = now;
      ++done;
    }
  }
}

constexpr orrery::attention_shape shape{.length = 4096, .query_heads = 16, .key_heads = 4, .head_dim = 64};

const char* const topologies[] = {
    "ring",   "all_gather",      "double_ring<4>",  "wallfacer<2>", "concentric<2>",
    "usp<4>", "concentric<2,2>", "concentric<2,4>", "ulysses",      "all_to_all<2,concentric<2>>"};

}  // namespace

TEST_CASE("42 programs with own ports take what another simulator says") {
  for (const reference_times::own_ports& one : reference_times::with_own_ports) {
    CAPTURE(one.topology);
    CAPTURE(one.world);
    const machine m = flat(one.computes ? 1e9 / 0.005 : 1e9 / 0.05, 2.5e-6);
    const prediction found = simulated(one.topology, one.world, m, one.computes ? 4e6 : 1e5, 16777216);
    CHECK(found.seconds * 1e9 == relative(one.nanoseconds, 1e-9));
  }
  CHECK(std::size(reference_times::with_own_ports) == 42);
}

TEST_CASE("42 programs that share cards, forward and backward, take what another simulator says") {
  for (const reference_times::shared_ports& one : reference_times::with_shared_ports) {
    CAPTURE(one.topology);
    CAPTURE(one.world);
    machine m = nodes(one.ranks_per_node);
    m.device.step = 1e-6;
    m.device.message = 3e-6;
    const prediction found = simulated(one.topology, one.world, m, 2e5, 1 << 20, one.pass);
    CHECK(found.seconds * 1e9 == relative(one.nanoseconds, 1e-9));
  }
}

// A ring of four whose hops of 16 MiB take 2 GB/s and 2.5 us: 26173321 ns in LogGOPSim, which counts the bytes of a
// message less one, and rounds down; at 200 GB/s it computes for 4 ms.
TEST_CASE("a ring of four takes the nanoseconds of LogGOPSim") {
  const auto one_tensor = [](const machine& m) {
    return simulate(
        programs_of(orrery::ring{}, 4), m,
        [](schedule::side, schedule::payload, const schedule::block&) { return std::int64_t{16777216}; },
        [](const program&, const schedule::tile&) { return 1e-3; });
  };
  CHECK(std::abs(one_tensor(flat(1e9 / 0.5, 2.5e-6)).seconds * 1e9 - 26173321) <= 3.5);
  CHECK(one_tensor(flat(1e9 / 0.005, 2.5e-6)).seconds * 1e9 == relative(4000000, 1e-12));
}

TEST_CASE("a ring takes its hops or its tiles, whatever the number of ranks") {
  for (const int world : {1, 2, 3, 5, 7, 13}) {
    CAPTURE(world);
    const double hop = 3e-6 + 2e6 / 1e9, tile = 1e-4;
    const prediction slow_links = simulated("ring", world, flat(1e9, 3e-6), tile * 1e9, 1000000);
    CHECK(slow_links.seconds == relative((world - 1) * hop + tile));
    const prediction fast_links = simulated("ring", world, flat(1e15, 0), tile * 1e9, 1000000);
    CHECK(fast_links.seconds == relative(world * tile));
  }
}

TEST_CASE("ports are shared max-min fairly") {
  const double latency = 1e-5;
  const machine m = flat(1e9, latency);
  const auto seconds = [&](const prediction& p) { return p.seconds - latency; };
  // Two from one rank: half each. The shorter one leaves its half to the longer one.
  CHECK(seconds(exchanged(4, {{0, 2}, {0, 3}}, m, {1000000, 0, 0, 0})) == relative(2e-3));
  // 1, 2 and 3 MB to one rank: 1 MB each at a third, 1 MB each at a half, the last alone.
  const prediction three = exchanged(4, {{1, 0}, {2, 0}, {3, 0}}, m, {0, 1000000, 2000000, 3000000}, true);
  CHECK(seconds(three) == relative(6e-3));
  std::vector<double> ends;
  for (const prediction::span& s : three.timeline) {
    if (s.what == prediction::span::kind::message) ends.push_back(s.end - latency);
  }
  REQUIRE(ends.size() == 3);
  CHECK(ends[0] == relative(3e-3));
  CHECK(ends[1] == relative(5e-3));
  CHECK(ends[2] == relative(6e-3));
  // 0 sends to 2 and 3, 1 to 3: the port of 3 is shared, and so is that of 0. All get a half; a FIFO port would let 1
  // wait. Then 4 sends to 3, too: the three at 3 get a third, and 0 -> 2 what 0 has left, two thirds.
  CHECK(seconds(exchanged(5, {{0, 2}, {0, 3}, {1, 3}}, m, {1000000, 1000000, 0, 0, 0})) == relative(2e-3));
  const prediction left = exchanged(5, {{0, 2}, {0, 3}, {1, 3}, {4, 3}}, m, {1000000, 1000000, 0, 0, 1000000}, true);
  for (const prediction::span& s : left.timeline) {
    if (s.what != prediction::span::kind::message) continue;
    CHECK(s.end - latency == relative(s.to == 2 ? 1.5e-3 : 3e-3));
  }
}

TEST_CASE("cards of nodes, several ports, half duplex and buses") {
  const auto seconds = [](const machine& m, const std::vector<message>& messages, std::int64_t bytes) {
    return exchanged(4, messages, m, {bytes, bytes, bytes, bytes}).seconds - 1e-5;
  };
  // Two ranks a node: both send to the other node.
  machine m = nodes(2, 1e9);
  CHECK(seconds(m, {{0, 2}, {1, 3}}, 1000000) == relative(2e-3));
  CHECK(seconds(m, {{0, 2}, {3, 1}}, 1000000) == relative(1e-3));
  m.levels[1].full_duplex = false;
  CHECK(seconds(m, {{0, 2}, {3, 1}}, 1000000) == relative(2e-3));
  m.levels[1].full_duplex = true;
  m.levels[1].ports = 2;
  CHECK(seconds(m, {{0, 2}, {1, 3}}, 1000000) == relative(1e-3));
  CHECK(seconds(m, {{0, 2}}, 1000000) == relative(1e-3));  // one message uses one port
  CHECK(seconds(m, {{0, 2}, {0, 3}, {1, 2}, {1, 3}}, 1000000) == relative(2e-3));
  m.levels[1].shared_by.clear();
  m.levels[1].ports = 1;
  CHECK(seconds(m, {{0, 2}, {1, 3}}, 1000000) == relative(1e-3));
  // A bus inside the node: all its messages share it.
  machine bus = flat(1e9, 1e-5, 4);
  bus.levels[0].shared_by = "cluster";
  CHECK(seconds(bus, {{0, 1}, {2, 3}}, 1000000) == relative(2e-3));
  CHECK(exchanged(4, {{0, 1}, {2, 3}}, bus, {1000000, 0, 1000000, 0}).bound_communication() == relative(2e-3));
}

TEST_CASE("messages that share ports of any kind end when a simulation from completion to completion says so") {
  constexpr int world = 6;
  struct kind {
    bool full_duplex;
    bool is_bus;
    int ports;
  };
  std::uint32_t random = 1;
  const auto below = [&](std::uint32_t n) {
    random = random * 1664525 + 1013904223;
    return (random >> 8) % n;
  };
  for (const kind k : {kind{true, false, 1},
                       {false, false, 1},
                       {true, false, 2},
                       {false, false, 3},
                       {true, true, 1},
                       {false, true, 1},
                       {false, true, 2}}) {
    machine m = flat(1e9, 0, world);
    m.levels[0].full_duplex = k.full_duplex;
    m.levels[0].ports = k.ports;
    if (k.is_bus) m.levels[0].shared_by = "cluster";
    for (int round = 0; round < 40; ++round) {
      CAPTURE(k.full_duplex);
      CAPTURE(k.is_bus);
      CAPTURE(k.ports);
      CAPTURE(round);
      std::vector<posted_message> messages;
      std::vector<fluid> flows;
      for (int i = 1 + static_cast<int>(below(12)); i > 0; --i) {
        const int from = static_cast<int>(below(world)), to = (from + 1 + static_cast<int>(below(world - 1))) % world;
        const std::int64_t bytes = 1000 * (1 + static_cast<std::int64_t>(below(50)));
        messages.push_back({from, to, 0, 0, bytes});
        const int out = k.is_bus ? 0 : from, in = (k.full_duplex ? (k.is_bus ? 1 : world) : 0) + (k.is_bus ? 0 : to);
        flows.push_back({out == in ? std::vector<int>{out} : std::vector<int>{out, in}, static_cast<double>(bytes)});
      }
      flow(flows, 2 * world, 1e9 * k.ports, 1e9);
      const std::vector<prediction::span> found = messages_of(in_steps(world, 1, messages, m), messages.size());
      for (std::size_t i = 0; i < flows.size(); ++i) CHECK(found[i].end == relative(flows[i].end));
    }
  }
}

TEST_CASE("a short message overtakes a long one whose rate it leaves as it is") {
  machine m = flat(1e9, 0, 2);
  m.levels[0].ports = 2;
  m.device.step = 1e-3;
  const auto found = messages_of(in_steps(2, 3, {{0, 1, 0, 0, 8000000, 3}, {0, 1, 1, 1, 1000000, 1}}, m), 2);
  CHECK(found[0].end == relative(8e-3));
  CHECK(found[1].begin == relative(1e-3));
  CHECK(found[1].end == relative(2e-3));
}

TEST_CASE("one message takes one port of a half duplex bus, and a node that is not full has its ports") {
  machine bus = flat(1e9, 0, 4);
  bus.levels[0].shared_by = "cluster";
  bus.levels[0].full_duplex = false;
  CHECK(exchanged(4, {{0, 1}}, bus, {1000000, 0, 0, 0}).seconds == relative(1e-3));
  CHECK(exchanged(3, {{0, 1}, {1, 2}}, bus, {1000000, 1000000, 0}).seconds == relative(2e-3));
}

TEST_CASE("a message without bytes takes the latency") {
  CHECK(exchanged(2, {{0, 1}}, flat(1e9, 1e-5), {0, 0}).seconds == relative(1e-5));
}

TEST_CASE("the longest wait is told with its step and its peer, and messages with when they were posted and begun") {
  machine m = flat(1e9, 0, 3);
  m.device.step = 1e-5;
  // Rank 0 waits for a long message of rank 1, then for a short one of rank 2, which posted it long before.
  const prediction found = in_steps(3, 2, {{1, 0, 0, 0, 3000000}, {2, 0, 0, 1, 1000000}}, m);
  CHECK(found.ranks[0].waits_for == 1);
  CHECK(found.ranks[0].waits_in_step == 1);
  CHECK(found.ranks[0].longest_wait == relative(3e-3 - 1e-5));
  CHECK(found.ranks[0].waits == relative(3e-3 - 1e-5 + 1e-3 - 1e-5));
  CHECK(found.ranks[0].host == relative(2e-5));
  const std::vector<prediction::span> messages = messages_of(found, 2);
  CHECK(messages[1].posted == 0);
  CHECK(messages[1].begin == relative(3e-3));
  CHECK(messages[1].step == 0);
  // Where the sender is late, it is late, whenever the receiver posted.
  const std::vector<prediction::span> late = messages_of(in_steps(3, 2, {{1, 0, 1, 0, 1000, 2}}, m), 1);
  CHECK(late[0].posted == relative(1e-5));
  CHECK(late[0].begin == relative(1e-5));
}

TEST_CASE("ends of messages find each other by their lanes, in whatever order ranks list them") {
  schedule::list<program> programs;
  for (const int rank : {0, 1}) {
    orrery::builder b{rank, 2};
    for (const int lane : {rank, 1 - rank}) {
      b.begin_exchange(rank == 0 ? 1 : schedule::no_rank, rank == 0 ? schedule::no_rank : 0, {lane});
      const schedule::block block{schedule::side::key, 0, 0, lane};
      if (rank == 0) b.send(block);
      if (rank == 1) b.receive(block);
    }
    b.next_step();
    program p = b;
    p.slices = 2;
    programs.push_back(p);
  }
  const prediction found = simulate(
      programs, flat(1e9, 0),
      [](schedule::side, schedule::payload, const schedule::block& b) { return b.slice == 0 ? 1000 : 5000; },
      [](const program&, const schedule::tile&) { return 0.0; }, true);
  const std::vector<prediction::span> messages = messages_of(found, 2);
  CHECK(messages[0].bytes == 1000);
  CHECK(messages[1].bytes == 5000);
}

TEST_CASE("the busiest port is named by its direction and its rank or node") {
  const auto port = [](const machine& m, const std::vector<message>& messages, std::size_t level) {
    return exchanged(4, messages, m, {1000, 1000, 1000, 1000}).levels[level].port;
  };
  CHECK(port(flat(1e9, 0), {{0, 2}, {1, 2}, {3, 2}}, 0) == "the links to rank 2");
  CHECK(port(flat(1e9, 0), {{3, 0}, {3, 1}}, 0) == "the links from rank 3");
  CHECK(port(nodes(2), {{2, 0}, {3, 1}, {0, 2}}, 1) == "the links from node 1");
  machine m = flat(1e9, 0);
  m.levels[0].full_duplex = false;
  CHECK(port(m, {{0, 2}, {1, 2}}, 0) == "the links of rank 2");
}

TEST_CASE("a message begins when both its ends have posted it") {
  // Rank 1 computes twice as long: its tile delays what rank 0 has posted long before.
  machine m = flat(1e9, 0, 2);
  m.speed = {1, 0.5};
  const schedule::list<program> programs = programs_of(orrery::ring{}, 2, pass::circulate_keys);
  const prediction found = simulate(
      programs, m, block_bytes{1000, 1}, [](const program&, const schedule::tile&) { return 1e-3; }, true);
  CHECK(found.ranks[0].waits_for == 1);
  // Rank 0 has ended its tiles after 2 ms, rank 1 after 4: then its sums travel.
  CHECK(found.ranks[0].longest_wait == relative(2e-3 + 2e-6));
  CHECK(found.ranks[1].tiles == relative(4e-3));
  for (const prediction::span& s : found.timeline) {
    if (s.what == prediction::span::kind::message) CHECK(s.begin >= s.posted);
  }
}

TEST_CASE("what ranks do adds up, and no bound is undercut") {
  for (const machine& m : {flat(1e9, 5e-6), flat(1e12, 1e-6), nodes(2), nodes(4), orrery::machine_named("h100")}) {
    for (const char* const topology : topologies) {
      for (const pass p : {pass::forward, pass::circulate_keys, pass::circulate_queries}) {
        for (const int world : {1, 8, 16}) {
          CAPTURE(m.name);
          CAPTURE(topology);
          CAPTURE(world);
          const orrery::any_topology chosen = topology_named(topology);
          if (chosen.unsupported_reason(world, p) != nullptr) continue;
          const prediction found = simulate(chosen, world, m, shape, orrery::causal{}, orrery::zigzag{}, {.pass = p});
          CHECK(found.world == world);
          CHECK(found.pass == p);
          CHECK(found.seconds >= found.bound_compute * (1 - 1e-12));
          CHECK(found.seconds >= found.bound_communication() * (1 - 1e-12));
          double last = 0;
          for (const prediction::rank_times& r : found.ranks) {
            CHECK(r.tiles + r.merges + r.host + r.waits == relative(r.end));
            CHECK(r.tiles > 0);
            last = r.end > last ? r.end : last;
          }
          CHECK(found.seconds == last);
        }
      }
    }
  }
}

TEST_CASE("bytes and messages of all levels are those of traffic") {
  for (const char* const topology : topologies) {
    CAPTURE(topology);
    const orrery::any_topology chosen = topology_named(topology);
    const prediction found = simulate(chosen, 16, nodes(4), shape);
    const orrery::attention_shape full = shape.completed();
    schedule::list<orrery::segments> shards;
    for (int rank = 0; rank < 16; ++rank) shards.push_back(orrery::contiguous::shard(rank, 16, full.length));
    const orrery::attention_sizes sizes{full, pass::forward, slices_of(chosen, 16), 1, 2, 4, shards, shards};
    const orrery::byte_report report = traffic(programs_of(chosen, 16), sizes);
    CHECK(found.levels[0].bytes + found.levels[1].bytes == report.total);
    std::int64_t messages = 0;
    for (const auto& of : report.ranks) messages += of.messages_sent;
    CHECK(found.levels[0].messages + found.levels[1].messages == messages);
    const auto card = static_cast<double>((std::max)(report.node_egress(4), report.node_ingress(4)));
    CHECK(found.levels[1].busiest_port == relative(card / 1.25e9));
  }
}

TEST_CASE("tiles have the pairs that the mask leaves, each once") {
  const machine m = flat(1e12, 0);
  orrery::simulation_options options;
  options.tile_seconds = [](const orrery::tile_work& w) {
    return 1e-9 * static_cast<double>(w.pairs * w.query_heads * w.batch);
  };
  const auto pairs = [&](const prediction& found) {
    double sum = 0;
    for (const prediction::rank_times& r : found.ranks) sum += r.tiles;
    return sum * 1e9 / 16 / 3;
  };
  orrery::attention_shape batch = shape;
  batch.batch = 3;
  const auto n = static_cast<double>(shape.length);
  const auto expect_all = [&](const auto& mask, const auto& layout, double expected) {
    for (const char* const topology : topologies) {
      for (const bool as_written : {false, true}) {
        CAPTURE(topology);
        options.as_written = as_written;
        CHECK(pairs(simulate(topology_named(topology), 16, m, batch, mask, layout, options)) ==
              relative(expected, 1e-12));
      }
    }
  };
  expect_all(orrery::full{}, orrery::contiguous{}, n * n);
  expect_all(orrery::causal{}, orrery::contiguous{}, n * (n + 1) / 2);
  expect_all(orrery::causal{}, orrery::zigzag{}, n * (n + 1) / 2);
  expect_all(orrery::causal{}, orrery::striped<4>{}, n * (n + 1) / 2);
  const double w = 100;
  expect_all(orrery::causal{} & orrery::window{99, -1}, orrery::contiguous{}, n * w - w * (w - 1) / 2);
}

TEST_CASE("rows and the longest row of tiles, of shards of several segments") {
  const std::int64_t n = 64;
  orrery::simulation_options options;
  std::vector<orrery::tile_work> works;
  options.tile_seconds = [&](const orrery::tile_work& w) {
    works.push_back(w);
    return 1e-3;
  };
  // Ranks 0 and 1 hold [0, 16) and [48, 64), and [16, 48).
  const auto shard_of = [](std::int64_t token) { return token < 16 || token >= 48 ? 0 : 1; };
  const auto check = [&](const auto& mask) {
    works.clear();
    (void)simulate(orrery::ring{}, 2, flat(1e12, 0), {.length = n, .head_dim = 8}, mask, orrery::zigzag{}, options);
    REQUIRE(works.size() == 4);
    const int shards[4][2] = {{0, 0}, {0, 1}, {1, 1}, {1, 0}};  // of queries and keys, in the order of the tiles
    for (std::size_t i = 0; i < 4; ++i) {
      std::int64_t pairs = 0, rows = 0, longest = 0;
      for (std::int64_t q = 0; q < n; ++q) {
        std::int64_t seen = 0;
        for (std::int64_t k = 0; k < n; ++k) {
          seen += shard_of(q) == shards[i][0] && shard_of(k) == shards[i][1] && mask.visible(q, k) ? 1 : 0;
        }
        pairs += seen;
        rows += seen > 0 ? 1 : 0;
        longest = seen > longest ? seen : longest;
      }
      CAPTURE(i);
      CHECK(works[i].pairs == pairs);
      CHECK(works[i].rows == rows);
      CHECK(works[i].longest_row == longest);
    }
  };
  check(orrery::causal{});
  check(orrery::window{0, -1});
}

TEST_CASE("what a mask hides is not sent, unless schedules are simulated as they are written") {
  const machine m = nodes(4);
  const auto bytes = [](const prediction& p) { return p.levels[0].bytes + p.levels[1].bytes; };
  const prediction pruned = simulate(orrery::ring{}, 16, m, shape, orrery::causal{});
  const prediction written =
      simulate(orrery::ring{}, 16, m, shape, orrery::causal{}, orrery::contiguous{}, {.as_written = true});
  CHECK(bytes(pruned) * 2 == bytes(written));
  CHECK(contains(pruned.schedule, "ring, pruned to the pairs that the mask lets be seen"));
  CHECK(contains(written.schedule, "ring, for all pairs of shards, as the topology writes it"));
}

TEST_CASE("heads that do not divide are uneven, and the rank with more of them is last") {
  orrery::attention_shape uneven{.length = 16384, .query_heads = 14, .head_dim = 128};
  const machine m = flat(1e15, 0);
  const prediction found = simulate(orrery::ulysses{}, 4, m, uneven);
  CHECK(found.ranks[0].tiles / found.ranks[1].tiles == relative(3.0 / 4, 0.01));
  CHECK(found.seconds == found.ranks[1].end);
}

TEST_CASE("a kernel's time is launch, work at its rate, and a tail") {
  using orrery::tile_work;
  const machine::kernel_rates rates{
      .full = 4e12, .causal = 2e12, .launch = 1e-5, .prologue = 50, .block = 128, .units = 10};
  const tile_work square{.pairs = 1000000,
                         .rows = 1000,
                         .longest_row = 1000,
                         .query_heads = 8,
                         .key_heads = 8,
                         .batch = 2,
                         .head_dim = 64,
                         .value_dim = 128};
  // 2 (64 + 128) flop a pair; 1000 * 50 columns of prologue; 128 * 1000 pairs on each of 10 units.
  CHECK(tile_seconds(square, rates) == relative(1e-5 + 384.0 * (1050000.0 * 16 + 1280000) / 4e12));
  tile_work backward = square;
  backward.pass = pass::circulate_keys;
  CHECK(backward.flop_per_pair() == 2 * (3 * 64 + 2 * 128));
  tile_work diagonal = square;
  diagonal.pairs = 500500;
  diagonal.diagonal_rows = 999;
  CHECK(diagonal.is_diagonal());
  CHECK(tile_seconds(diagonal, rates) ==
        relative(1e-5 + 384.0 * ((500500.0 + 50000 + 999 * 128) * 16 + 1280000) / 2e12));
  CHECK_FALSE(square.is_diagonal());
  machine::kernel_rates one_rate = rates;
  one_rate.causal = 0;
  CHECK(tile_seconds(diagonal, one_rate) ==
        relative(1e-5 + 384.0 * ((500500.0 + 50000 + 999 * 128) * 16 + 1280000) / 4e12));
  for (const std::int64_t pairs : {399000, 751000}) {  // too few or too many of all for a diagonal
    tile_work other = diagonal;
    other.pairs = pairs;
    CHECK_FALSE(other.is_diagonal());
  }
  CHECK(tile_seconds(tile_work{}, rates) == 0);
}

TEST_CASE("merging apart from the kernel, and what arrives, takes memory's time") {
  machine m = flat(1e15, 0);
  m.device.memory = 1e9;
  const auto merges = [&](const char* topology) {
    return simulate(topology_named(topology), 4, m, shape).ranks[0].merges;
  };
  CHECK(merges("ring") == 0);  // the kernel accumulates
  m.device.forward.merge = 30;
  // Three tiles of four are merged: 1024 rows of 16 heads of 64.
  CHECK(merges("ring") == relative(3 * 30 * 1024.0 * 16 * 64 / 1e9));
  m.device.forward.merge = 0;
  // concentric<2>: one partial of float with its log-sum-exp arrives: two are read, one is written.
  CHECK(merges("concentric<2>") == relative(3 * 4 * 1024.0 * 16 * 65 / 1e9));
  // Backward, three partials arrive that this rank has begun: of dK and dV, or of dQ.
  const auto of_backward = [&](pass p) {
    return simulate(orrery::ring{}, 4, m, shape, orrery::full{}, orrery::contiguous{}, {.pass = p}).ranks[0].merges;
  };
  CHECK(of_backward(pass::circulate_keys) == relative(3 * 3 * 1024.0 * 4 * 2 * 64 * 4 / 1e9));
  CHECK(of_backward(pass::circulate_queries) == relative(3 * 3 * 1024.0 * 16 * 64 * 4 / 1e9));
}

TEST_CASE("where heads are cut, own tensors are copied before and after") {
  machine m = flat(1e15, 0);
  m.device.memory = 1e9;
  const auto host = [&](const char* topology, pass p) {
    return simulate(topology_named(topology), 4, m, shape, orrery::full{}, orrery::contiguous{}, {.pass = p})
        .ranks[0]
        .host;
  };
  CHECK(host("ring", pass::forward) == 0);
  // Q, K, V and O of 1024 tokens, of two bytes: read and written, on both sides of the transposition.
  const double bytes = 1024.0 * (2 * 16 + 2 * 4) * 64 * 2;
  CHECK(host("ulysses", pass::forward) == relative(4 * bytes / 1e9));
  CHECK(host("ulysses", pass::circulate_keys) == relative(8 * bytes / 1e9));
}

TEST_CASE("the host takes its time, and slow ranks take more of it") {
  machine m = flat(1e15, 0, 4);
  m.device.call = 1e-3;
  m.device.step = 1e-4;
  m.device.message = 1e-5;
  m.speed = {1, 1, 0.5};
  const prediction found = simulate(orrery::ring{}, 4, m, shape);
  CHECK(found.ranks[0].host == relative(1e-3 + 4e-4 + 3e-5));
  CHECK(found.ranks[2].host == relative(2 * found.ranks[0].host));
  CHECK(found.ranks[2].tiles == relative(2 * found.ranks[0].tiles));
  CHECK(found.last_rank() == 2);
  CHECK(found.bound_compute == relative(found.ranks[2].host + found.ranks[2].tiles));
  m.speed.clear();
  CHECK(simulate(orrery::ring{}, 4, m, shape).last_rank() == 0);  // the first of several
}

TEST_CASE("hosts of slow ranks take more time, whatever the times of tiles are taken from") {
  machine m = flat(1e15, 0, 4);
  m.device.call = 1e-3;
  m.device.step = 1e-4;
  m.device.message = 1e-5;
  m.speed = {1, 0.25};
  const prediction found = simulate(programs_of(orrery::ring{}, 4), m, block_bytes{1000, 1},
                                    [](const program&, const schedule::tile&) { return 1e-3; });
  CHECK(found.ranks[0].host == relative(1e-3 + 4e-4 + 3e-5));
  CHECK(found.ranks[1].host == relative(4 * found.ranks[0].host));
  CHECK(found.ranks[1].tiles == relative(4 * found.ranks[0].tiles));
}

TEST_CASE("messages slow the tile that they fly behind, where a machine says so") {
  for (const double bandwidth : {1e9, 1e8}) {  // a hop is shorter than a tile, or longer
    machine m = flat(bandwidth, 0, 4);
    const double before = simulate(orrery::ring{}, 4, m, shape).ranks[0].tiles;
    m.device.slowed = 0.5;
    const double after = simulate(orrery::ring{}, 4, m, shape).ranks[0].tiles;
    const double tile = before / 4, hop = 2.0 * 1024 * 4 * 64 * 2 / bandwidth;
    CHECK((tile < hop) == (bandwidth == 1e8));
    CHECK(after - before == relative(3 * 0.5 * (tile < hop ? tile : hop)));
  }
  // Where both directions share a link, what a rank sends takes its time from what arrives.
  machine m = flat(1e9, 0, 4);
  m.levels[0].full_duplex = false;
  const double before = simulate(orrery::ring{}, 4, m, shape).ranks[0].tiles;
  m.device.slowed = 0.5;
  const double shared = simulate(orrery::ring{}, 4, m, shape).ranks[0].tiles;
  const double tile = before / 4, hop = 2.0 * 1024 * 4 * 64 * 2 / 1e9;
  CHECK(shared - before == relative(3 * 0.5 * (tile < 2 * hop ? tile : 2 * hop)));
}

TEST_CASE("memory is own tensors, slots and packed copies") {
  const prediction found = simulate(orrery::ring{}, 4, flat(1e9, 0), shape);
  const std::int64_t q = 1024 * 16 * 64 * 2, kv = 2 * 1024 * 4 * 64 * 2;
  const int slots = programs_of(orrery::ring{}, 4)[0].slots_of(schedule::side::key, schedule::payload::operand);
  CHECK(found.peak_bytes() == 2 * q + kv + 1024 * 16 * 4 + slots * kv + kv);
  // A block that is sent several times is packed once.
  const prediction all = simulate(orrery::all_gather{}, 4, flat(1e9, 0), shape);
  CHECK(all.peak_bytes() == 2 * q + kv + 1024 * 16 * 4 + 3 * kv + kv);
}

TEST_CASE("a timeline has every bar and every message, one after the other") {
  machine m = nodes(4);
  m.device.memory = 1e10;
  m.device.forward.merge = 30;
  m.device.step = 1e-5;
  const prediction found =
      simulate(orrery::concentric<2>{}, 8, m, shape, orrery::causal{}, orrery::zigzag{}, {.with_timeline = true});
  for (std::size_t i = 1; i < found.timeline.size(); ++i) {
    const prediction::span &a = found.timeline[i - 1], &b = found.timeline[i];
    CHECK((a.rank < b.rank || (a.rank == b.rank && a.begin <= b.begin)));
  }
  CHECK(found.ranks[0].merges > 0);
  std::vector<double> until(8, 0.0), busy(8, 0.0);
  std::int64_t messages = 0, bytes = 0;
  for (const prediction::span& s : found.timeline) {
    CHECK(s.end >= s.begin);
    if (s.what == prediction::span::kind::message) {
      ++messages;
      bytes += s.bytes;
      continue;
    }
    const auto rank = static_cast<std::size_t>(s.rank);
    CHECK(s.begin >= until[rank] - 1e-12);
    until[rank] = s.end;
    busy[rank] += s.end - s.begin;
  }
  CHECK(messages == found.levels[0].messages + found.levels[1].messages);
  CHECK(bytes == found.levels[0].bytes + found.levels[1].bytes);
  for (std::size_t rank = 0; rank < 8; ++rank) CHECK(busy[rank] == relative(found.ranks[rank].end));
  CHECK(simulate(orrery::ring{}, 8, nodes(4), shape).timeline.empty());
}

TEST_CASE("a sentence says what limits") {
  const prediction slow_card = simulate(orrery::ring{}, 8, nodes(4, 1e8), shape);
  CHECK(contains(slow_card.why(), "the level cluster limits it; the links"));
  CHECK(contains(slow_card.why(), "from node 0 are busy for"));
  machine m = flat(1e15, 0);
  CHECK(contains(simulate(orrery::ring{}, 8, m, shape).why(), "computing limits it"));
  const prediction latency = simulate(orrery::ring{}, 8, flat(1e15, 1), shape);
  CHECK(contains(latency.why(), "waits for 100 % of it, longest for rank"));
  CHECK(contains(to_string(slow_card), "level node: "));
  CHECK(contains(to_string(slow_card), "memory: "));
  // Where both bounds are near, the larger one is what limits.
  prediction both;
  both.seconds = 1;
  both.bound_compute = 0.92;
  both.ranks.resize(1);
  both.levels = {{.name = "cluster", .busiest_port = 0.95, .port = "the links from rank 0"}};
  CHECK(contains(both.why(), "the level cluster limits it"));
  both.levels[0].busiest_port = 0.91;
  CHECK(contains(both.why(), "computing limits it"));
  CHECK(orrery::detail::bytes_text(999.4e6) == "999 MB");
  CHECK(orrery::detail::bytes_text(999.7e6) == "1.00 GB");
}

TEST_CASE("what cannot be simulated is refused") {
  const machine m = flat(1e9, 0, 8);
  const auto refusal = [&](const auto& topology, int world, const orrery::attention_shape& s,
                           const orrery::simulation_options& options = {}) {
    return refusal_of([&] { (void)simulate(topology, world, m, s, orrery::full{}, orrery::contiguous{}, options); });
  };
  CHECK(refusal(orrery::ring{}, 8, shape).empty());
  CHECK(contains(refusal(orrery::ring{}, 9, shape), "world is 9, but the machine has 8 ranks"));
  CHECK(contains(refusal(orrery::wallfacer<2>{}, 6, shape), "topology wallfacer<2> over 6 ranks"));
  CHECK(contains(refusal(orrery::ulysses{}, 8, {.length = 64, .query_heads = 4, .head_dim = 8}),
                 "cuts the heads into 8 slices, but query_heads is 4"));
  CHECK(contains(refusal(orrery::ring{}, 8, {.length = 0, .head_dim = 8}), "length is 0"));
  CHECK(contains(refusal(orrery::ring{}, 8, shape, {.storage_bytes = 0}), "storage_bytes is 0, expected 1 to 16"));
  machine none = m;
  none.device.forward.full = 0;
  CHECK(contains(refusal_of([&] { (void)simulate(orrery::ring{}, 8, none, shape); }), "full is 0"));
  // A message without its other end, and two ranks that each wait for the other's later send.
  const auto bytes = [](schedule::side, schedule::payload, const schedule::block&) { return 1; };
  const auto seconds = [](const program&, const schedule::tile&) { return 0.0; };
  schedule::list<program> programs = programs_of(orrery::ring{}, 4);
  programs[2] = programs_of(orrery::ring{}, 1)[0];
  programs[2].rank = 2;
  const auto changed = [&](const auto& change) {
    schedule::list<program> all = programs_of(orrery::ring{}, 4);
    change(all[1]);
    return refusal_of([&] { (void)simulate(all, m, bytes, seconds); });
  };
  const char* const order = "the program of rank 1 is of another rank, or has an exchange that completes before it is";
  CHECK(contains(changed([](program& p) { p.rank = 2; }), order));
  CHECK(contains(changed([](program& p) { p.exchanges[0].complete_before = p.exchanges[0].posted; }), order));
  CHECK(contains(changed([](program& p) { p.exchanges[0].complete_before = p.steps.size() + 1; }), order));
  schedule::list<program> to_themselves = programs_of(orrery::ring{}, 2);
  for (program& p : to_themselves) p.exchanges[0].to = p.exchanges[0].from = p.rank;
  CHECK(contains(refusal_of([&] { (void)simulate(to_themselves, m, bytes, seconds); }), "has no other end"));
  CHECK(contains(refusal_of([&] { (void)simulate(programs, m, bytes, seconds); }), "verify(...) says what is wrong"));
  schedule::list<program> crossed;
  for (int rank = 0; rank < 2; ++rank) {
    orrery::builder b{rank, 2};
    b.begin_exchange(schedule::no_rank, 1 - rank, {}, schedule::payload::operand);
    b.receive(schedule::block{schedule::side::key, 0, 1 - rank, 0});
    b.next_step();
    b.begin_exchange(1 - rank, schedule::no_rank, {}, schedule::payload::operand);
    b.send(schedule::block{schedule::side::key, 0, rank, 0});
    b.next_step();
    crossed.push_back(b);
    schedule::finish(crossed.back());
  }
  CHECK(contains(refusal_of([&] { (void)simulate(crossed, m, bytes, seconds); }),
                 "the schedule does not end: rank 0 waits for ever before step 1"));
}

}  // namespace simulate_test
