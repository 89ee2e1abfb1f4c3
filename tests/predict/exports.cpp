// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Schedules in the formats of other simulators, and predicted timelines for people.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/mask/causal.hpp"
#include "orrery/predict/chakra.hpp"
#include "orrery/predict/goal.hpp"
#include "orrery/predict/machine_text.hpp"
#include "orrery/predict/simulate.hpp"
#include "orrery/predict/timeline_svg.hpp"
#include "orrery/predict/trace.hpp"
#include "orrery/topology/named.hpp"

#include "support/relative.hpp"

using orrery::machine;
using orrery::program;
using orrery::programs_of;
using orrery::topology_named;
namespace schedule = orrery::schedule;

namespace {

/// Reads GOAL as LogGOPSim does where no two messages share a port: a message of b bytes takes L + (b - 1) G from when
/// both ends have posted it. Returns the nanoseconds until everything is done; -1 if something is never done.
double goal_nanoseconds(const std::string& text, double latency, double byte) {
  struct operation {
    double work = 0;
    int partner = -1;  // the other end of a message
    std::vector<int> requires_;
    double end = -1;
  };
  std::vector<operation> all;
  std::map<std::string, int> labels;  // of "rank.label"
  std::map<std::string, int> ends;    // the first end of each message, by "from>to#tag"
  std::istringstream lines{text};
  std::string rank;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words{line};
    std::vector<std::string> w;
    for (std::string word; words >> word;) w.push_back(word);
    if (w.size() > 1 && w[0] == "rank") rank = w[1];
    if (w.size() == 3 && w[1] == "requires") {
      all[static_cast<std::size_t>(labels.at(rank + "." + w[0]))].requires_.push_back(labels.at(rank + "." + w[2]));
    }
    if (w.empty() || w[0].back() != ':') continue;
    const int number = static_cast<int>(all.size());
    labels[rank + "." + w[0].substr(0, w[0].size() - 1)] = number;
    all.emplace_back();
    if (w[1] == "calc") {
      all.back().work = std::stod(w[2]);
      continue;
    }
    const std::string message = (w[1] == "send" ? rank + ">" + w[4] : w[4] + ">" + rank) + "#" + w[6];
    all.back().work = latency + (std::stod(w[2]) - 1) * byte;
    const auto [first, is_first] = ends.try_emplace(message, number);
    if (is_first) continue;
    all.back().partner = first->second;
    all[static_cast<std::size_t>(first->second)].partner = number;
    CHECK(all.back().work == all[static_cast<std::size_t>(first->second)].work);
  }
  const auto begin_of = [&](const operation& one) {
    double begin = 0;
    for (const int r : one.requires_) {
      const double end = all[static_cast<std::size_t>(r)].end;
      if (end < 0) return -1.0;
      begin = (std::max)(begin, end);
    }
    return begin;
  };
  for (bool more = true; more;) {
    more = false;
    for (operation& one : all) {
      if (one.end >= 0) continue;
      double begin = begin_of(one);
      if (begin >= 0 && one.partner >= 0) {
        const double other = begin_of(all[static_cast<std::size_t>(one.partner)]);
        begin = other < 0 ? -1 : (std::max)(begin, other);
      }
      if (begin < 0) continue;
      one.end = begin + one.work;
      more = true;
    }
  }
  double last = 0;
  for (const operation& one : all) {
    if (one.end < 0) return -1;
    last = (std::max)(last, one.end);
  }
  return last;
}

machine flat(double bandwidth, double latency) {
  return {.name = "flat",
          .levels = {{.name = "cluster", .count = 64, .bandwidth = bandwidth, .latency = latency}},
          .device = {.forward = {.full = 1e12}}};
}
constexpr auto sixteen_mebibytes = [](schedule::side, schedule::payload, const schedule::block&) {
  return std::int64_t{16777216};
};
constexpr auto one_millisecond = [](const program&, const schedule::tile&) { return 1e-3; };

constexpr orrery::attention_shape shape{.length = 4096, .query_heads = 16, .key_heads = 4, .head_dim = 64};

/// A field of a protobuf message: a number, or bytes.
struct field {
  int number;
  std::uint64_t value;
  std::string bytes;
};
std::uint64_t varint(const std::string& from, std::size_t& at) {
  std::uint64_t value = 0;
  for (unsigned shift = 0;; shift += 7) {
    const auto byte = static_cast<unsigned char>(from.at(at++));
    value |= static_cast<std::uint64_t>(byte & 127U) << shift;
    if (byte < 128) return value;
  }
}
std::vector<field> fields(const std::string& message) {
  std::vector<field> all;
  for (std::size_t at = 0; at < message.size();) {
    const std::uint64_t key = varint(message, at);
    field f{static_cast<int>(key >> 3), 0, ""};
    f.value = varint(message, at);
    if ((key & 7) == 2) {
      f.bytes = message.substr(at, f.value);
      at += f.value;
    } else {
      REQUIRE((key & 7) == 0);
    }
    all.push_back(f);
  }
  return all;
}

struct chakra_node {
  std::uint64_t id = 0, type = 0, microseconds = 0;
  std::vector<std::uint64_t> after;
  std::map<std::string, std::uint64_t> attributes;
};
std::vector<chakra_node> nodes_of(const std::string& file) {
  std::vector<chakra_node> all;
  bool first = true;
  for (std::size_t at = 0; at < file.size();) {
    const std::size_t size = varint(file, at);
    const std::vector<field> message = fields(file.substr(at, size));
    at += size;
    if (std::exchange(first, false)) continue;
    chakra_node n;
    for (const field& f : message) {
      if (f.number == 1) n.id = f.value;
      if (f.number == 3) n.type = f.value;
      if (f.number == 7) n.microseconds = f.value;
      if (f.number == 5) {
        for (std::size_t d = 0; d < f.bytes.size();) n.after.push_back(varint(f.bytes, d));
      }
      if (f.number == 10) {
        const std::vector<field> attribute = fields(f.bytes);
        n.attributes[attribute.at(0).bytes] = attribute.at(1).value;
      }
    }
    all.push_back(n);
  }
  return all;
}

int count(const std::string& text, const std::string& part) {
  int found = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

}  // namespace

TEST_CASE("a ring of two in GOAL") {
  CHECK(goal_text(programs_of(orrery::ring{}, 2), flat(1e9, 0), sixteen_mebibytes, one_millisecond) == R"(num_ranks 2

rank 0 {
b0: calc 0 cpu 3
t0: calc 1000000 cpu 0
b1: calc 0 cpu 3
t1: calc 1000000 cpu 0
b2: calc 0 cpu 3
s0: send 16777216b to 1 tag 0 cpu 1 nic 0
r0: recv 16777216b from 1 tag 0 cpu 2 nic 0
t0 requires b0
b1 requires b0
b1 requires t0
b1 requires s0
b1 requires r0
t1 requires b1
b2 requires b1
b2 requires t1
s0 requires b0
r0 requires b0
}

rank 1 {
b0: calc 0 cpu 3
t0: calc 1000000 cpu 0
b1: calc 0 cpu 3
t1: calc 1000000 cpu 0
b2: calc 0 cpu 3
s0: send 16777216b to 0 tag 0 cpu 1 nic 0
r0: recv 16777216b from 0 tag 0 cpu 2 nic 0
t0 requires b0
b1 requires b0
b1 requires t0
b1 requires s0
b1 requires r0
t1 requires b1
b2 requires b1
b2 requires t1
s0 requires b0
r0 requires b0
}
)");
}

// ring4_3.goal is written by hand. LogGOPSim says 26173321 and 4000000 ns of it.
TEST_CASE("a ring of four in GOAL takes what one that is written by hand takes") {
  std::ifstream file{ORRERY_SOURCE_DIR "/tests/predict/ring4_3.goal"};
  std::ostringstream by_hand;
  by_hand << file.rdbuf();
  const std::string written =
      goal_text(programs_of(orrery::ring{}, 4), flat(1e9, 0), sixteen_mebibytes, one_millisecond);
  for (const std::string& text : {by_hand.str(), written}) {
    CHECK(std::abs(goal_nanoseconds(text, 2500, 0.5) - 26173321) <= 2);
    CHECK(goal_nanoseconds(text, 2500, 0.005) == 4000000);
  }
}

TEST_CASE("GOAL of an operator takes what simulate says, with merges and the host") {
  machine m = flat(1e12, 3e-6);
  m.device.memory = 1e11;
  m.device.forward.merge = 30;
  m.device.call = 2e-5;
  m.device.step = 1e-6;
  for (const char* const topology : {"ring", "concentric<2>"}) {
    CAPTURE(topology);
    const orrery::any_topology chosen = topology_named(topology);
    const double simulated = simulate(chosen, 4, m, shape, orrery::causal{}, orrery::zigzag{}).seconds * 1e9;
    const std::string text = goal_text(chosen, 4, m, shape, orrery::causal{}, orrery::zigzag{});
    CHECK(goal_nanoseconds(text, 3000, 1e-3) == relative(simulated, 1e-4));
  }
}

TEST_CASE("a Chakra trace is, byte for byte, what a protobuf library reads") {
  orrery::detail::chakra_trace trace;
  trace.compute("tile q1 k1", 1000, {});
  trace.send("send k1 to 2", 16777216, 1, 2, 0, {});
  trace.receive("recv k0 from 0", 16777216, 0, 1, 0, {});
  trace.compute("tile q1 k0", 1000, {0, 2});
  const std::string expected =
      "070a05302e302e34410800120a74696c65207131206b31180438e807520e0a0969735f6370755f6f70d80100520b0a076e75"
      "6d5f6f70734801520f0a0b74656e736f725f73697a6568015e0801120c73656e64206b3120746f20321805520e0a0969735f"
      "6370755f6f70d8010052100a09636f6d6d5f73697a654880808008520c0a08636f6d6d5f7372633801520c0a08636f6d6d5f"
      "6473743802520c0a08636f6d6d5f7461673800600802120e72656376206b302066726f6d20301806520e0a0969735f637075"
      "5f6f70d8010052100a09636f6d6d5f73697a654880808008520c0a08636f6d6d5f7372633800520c0a08636f6d6d5f647374"
      "3801520c0a08636f6d6d5f7461673800450803120a74696c65207131206b3018042a02000238e807520e0a0969735f637075"
      "5f6f70d80100520b0a076e756d5f6f70734801520f0a0b74656e736f725f73697a656801";
  std::string hex;
  for (const char c : trace.bytes()) {
    const auto byte = static_cast<unsigned char>(c);
    hex += "0123456789abcdef"[byte / 16];
    hex += "0123456789abcdef"[byte % 16];
  }
  CHECK(hex == expected);
}

TEST_CASE("Chakra traces of all ranks match, and wait for what they need") {
  for (const char* const topology : {"ring", "concentric<2,2>", "usp<2>", "double_ring<4>", "ring, backward"}) {
    CAPTURE(topology);
    const bool backward = std::string{topology} == "ring, backward";  // operands and partials, in lanes of their own
    const orrery::any_topology chosen = topology_named(backward ? "ring" : topology);
    const std::vector<std::string> files =
        chakra_traces(chosen, 8, flat(1e9, 1e-6), shape, orrery::full{}, orrery::contiguous{},
                      {.pass = backward ? orrery::pass::circulate_keys : orrery::pass::forward});
    REQUIRE(files.size() == 8);
    std::map<std::vector<std::uint64_t>, int> open;  // messages by their two ranks, tag and size
    std::size_t tiles = 0;
    for (const std::string& file : files) {
      const std::vector<chakra_node> nodes = nodes_of(file);
      for (std::size_t i = 0; i < nodes.size(); ++i) {
        const chakra_node& n = nodes[i];
        CHECK(n.id == i);
        for (const std::uint64_t before : n.after) CHECK(before < i);
        tiles += n.type == 4 ? 1 : 0;
        if (n.type == 4) CHECK(n.microseconds > 0);
        if (n.type == 4) continue;
        const auto& a = n.attributes;
        open[{a.at("comm_src"), a.at("comm_dst"), a.at("comm_tag"), a.at("comm_size")}] += n.type == 5 ? 1 : -1;
      }
      // A ring's tiles need all that it receives, and its buffers all that it sends.
      if (std::string{topology} != "ring") continue;
      std::set<std::uint64_t> awaited;
      for (const chakra_node& n : nodes) awaited.insert(n.after.begin(), n.after.end());
      for (const chakra_node& n : nodes) CHECK((n.type == 4 || awaited.count(n.id) == 1));
    }
    for (const auto& [message, ends] : open) CHECK(ends == 0);
    CHECK(open.size() > 0);
    CHECK(tiles >= 8);
  }
}

TEST_CASE("what takes no time or no bytes is written so that readers take it for what it is") {
  // Computing for less than a microsecond is one in Chakra, which has no shorter ones; a message of no bytes has one in
  // GOAL.
  machine m = flat(1e9, 0);
  m.device.forward.full = 1e18;
  for (const chakra_node& n : nodes_of(chakra_traces(orrery::ring{}, 4, m, shape)[0])) {
    if (n.type == 4) CHECK(n.microseconds == 1);
  }
  const auto no_bytes = [](schedule::side, schedule::payload, const schedule::block&) { return std::int64_t{0}; };
  const std::string text = goal_text(programs_of(orrery::ring{}, 2), m, no_bytes, one_millisecond);
  CHECK(count(text, "send 1b to") == 2);
  CHECK(count(text, "recv 1b from") == 2);
}

TEST_CASE("a title that is too long for its picture is cut between characters") {
  orrery::prediction p;
  p.world = 1;
  p.ranks.resize(1);
  p.schedule = std::string(29, 'a') + "<2> and more that has no room";
  const std::string picture = timeline_svg(p, 320);
  CHECK(count(picture, std::string(29, 'a') + "…") == 1);
  CHECK(count(picture, "&l…") == 0);
}

TEST_CASE("a predicted timeline for viewers of traces, and as a picture") {
  machine m = orrery::machine_named("h100");
  const auto found =
      simulate(orrery::concentric<2>{}, 8, m, shape, orrery::causal{}, orrery::zigzag{}, {.with_timeline = true});
  int bars = 0, messages = 0, merges = 0;
  for (const orrery::prediction::span& s : found.timeline) {
    (s.what == orrery::prediction::span::kind::message ? messages : bars) += 1;
    merges += s.what == orrery::prediction::span::kind::merge ? 1 : 0;
  }
  const std::string trace = chrome_trace(found);
  CHECK(count(trace, "\"ph\":\"X\"") == bars);
  CHECK(count(trace, "\"ph\":\"b\"") == messages);
  CHECK(count(trace, "\"ph\":\"e\"") == messages);
  CHECK(count(trace, "\"process_name\"") == 8);
  CHECK(merges > 0);
  CHECK(count(trace, "\"cat\":\"merge\"") == merges);
  const std::string picture = timeline_svg(found);
  CHECK(count(picture, "<rect") == bars + 4);
  CHECK(count(picture, "</svg>") == 1);
  CHECK(count(picture, "concentric&lt;2") == 1);
  CHECK(count(picture, "concentric<2") == 0);
  CHECK(count(picture, "prefers-color-scheme: dark") == 1);
  CHECK(count(timeline_svg(orrery::prediction{}), "</svg>") == 1);
}
