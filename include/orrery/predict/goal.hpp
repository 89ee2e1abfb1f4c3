// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "orrery/attention/shape.hpp"
#include "orrery/layout/detail/layout_source.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/predict/detail/attention_schedule.hpp"
#include "orrery/predict/detail/timed_schedule.hpp"
#include "orrery/predict/machine.hpp"
#include "orrery/predict/simulation_options.hpp"
#include "orrery/predict/traffic.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/topology.hpp"

namespace orrery::detail {

/// Writes a schedule in the GOAL format. Operation bS, which takes no time, marks the begin of step S: the step's tile,
/// sends and receives require it, and it requires what must have completed.
class goal_writer {
 public:
  explicit goal_writer(const timed_schedule& schedule) : schedule_{schedule} {}

  [[nodiscard]] std::string text() {
    text_ = "num_ranks " + std::to_string(schedule_.programs.size()) + "\n";
    for (const program& p : schedule_.programs) write(p);
    return std::move(text_);
  }

 private:
  void line(const std::string& words) { text_ += words + "\n"; }
  [[nodiscard]] static std::string label(char what, int number) { return what + std::to_string(number); }
  [[nodiscard]] static std::string nanoseconds(double seconds) { return std::to_string(std::llround(seconds * 1e9)); }
  void require(const std::string& later, const std::string& earlier) { line(later + " requires " + earlier); }

  void write(const program& p) {
    const step_times& t = schedule_.times[static_cast<std::size_t>(p.rank)];
    line("\nrank " + std::to_string(p.rank) + " {");
    if (t.begin > 0) line("c0: calc " + nanoseconds(t.begin) + " cpu 0");
    for (int s = 0; s <= p.steps.size(); ++s) {
      const auto at = static_cast<std::size_t>(s);
      if (t.arrivals[at] > 0) {
        line(label('w', s) + ": calc 0 cpu 3");
        line(label('m', s) + ": calc " + nanoseconds(t.arrivals[at]) + " cpu 0");
      }
      line(label('b', s) + ": calc 0 cpu 3");
      if (s == p.steps.size()) break;
      const double busy = t.host[at] + t.tiles[at] + t.merges[at];
      if (busy > 0) line(label('t', s) + ": calc " + nanoseconds(busy) + " cpu 0");
    }
    std::map<std::pair<int, int>, int> sent, received;  // messages of each peer and lane so far
    for (int e = 0; e < p.exchanges.size(); ++e) {
      const exchange& x = p.exchanges[e];
      if (x.sent.count > 0) {
        line(label('s', e) + ": send " + bytes_of(p.rank, e) + "b to " + std::to_string(x.to) + " tag " +
             std::to_string(tag(x.lane, sent[{x.to, x.lane}]++)) + " cpu 1 nic 0");
      }
      if (x.received.count > 0) {
        const int number = received[{x.from, x.lane}]++;
        line(label('r', e) + ": recv " + received_bytes(p, x, number) + "b from " + std::to_string(x.from) + " tag " +
             std::to_string(tag(x.lane, number)) + " cpu 2 nic 0");
      }
    }
    for (int s = 0; s <= p.steps.size(); ++s) require_before(p, t, s);
    for (int e = 0; e < p.exchanges.size(); ++e) {
      const exchange& x = p.exchanges[e];
      if (x.sent.count > 0) require(label('s', e), label('b', x.posted));
      if (x.received.count > 0) require(label('r', e), label('b', x.posted));
    }
    line("}");
  }
  /// What the begin of step s requires.
  void require_before(const program& p, const step_times& t, int s) {
    const auto at = static_cast<std::size_t>(s);
    const bool merges = t.arrivals[at] > 0;
    const std::string begin = label(merges ? 'w' : 'b', s);
    if (s == 0) {
      if (t.begin > 0) require(begin, "c0");
    } else {
      require(begin, label('b', s - 1));
      const double before = t.host[at - 1] + t.tiles[at - 1] + t.merges[at - 1];
      if (before > 0) require(begin, label('t', s - 1));
    }
    for (const int e : p.completed_before(s)) {
      if (p.exchanges[e].sent.count > 0) require(begin, label('s', e));
      if (p.exchanges[e].received.count > 0) require(begin, label('r', e));
    }
    if (merges) {
      require(label('m', s), label('w', s));
      require(label('b', s), label('m', s));
    }
    if (s < p.steps.size() && t.host[at] + t.tiles[at] + t.merges[at] > 0) require(label('t', s), label('b', s));
  }

  [[nodiscard]] static int tag(int lane, int number) noexcept { return lane * 65536 + number % 65536; }
  /// A message of no bytes is a marker to some readers: it has one.
  [[nodiscard]] static std::string at_least_one(std::int64_t bytes) { return std::to_string(bytes > 0 ? bytes : 1); }
  [[nodiscard]] std::string bytes_of(int rank, int e) const {
    return at_least_one(schedule_.bytes[static_cast<std::size_t>(rank)][static_cast<std::size_t>(e)]);
  }
  /// Those that the sender sends as its `number`-th message in this lane.
  [[nodiscard]] std::string received_bytes(const program& p, const exchange& x, int number) {
    std::map<std::pair<int, int>, std::vector<int>>& of_sender = sends_[x.from];
    if (of_sender.empty()) {
      const program& sender = schedule_.programs[x.from];
      for (int e = 0; e < sender.exchanges.size(); ++e) {
        if (sender.exchanges[e].sent.count > 0)
          of_sender[{sender.exchanges[e].to, sender.exchanges[e].lane}].push_back(e);
      }
    }
    return bytes_of(x.from, of_sender[{p.rank, x.lane}].at(static_cast<std::size_t>(number)));
  }

  const timed_schedule& schedule_;
  std::map<int, std::map<std::pair<int, int>, std::vector<int>>> sends_;
  std::string text_;
};

}  // namespace orrery::detail

namespace orrery {

/// The schedule of an attention operator's call in the GOAL format of LogGOPSim and ATLAHS: what each rank computes, in
/// nanoseconds, what it sends and receives, and what requires what. The simulator brings its own network; of the
/// machine only what ranks compute is written. The arguments are those of `simulate`, and it throws as that does.
///
///     std::ofstream{"ring.goal"} << orrery::goal_text(orrery::ring{}, 16, machine, shape, orrery::causal{});
///
/// Tiles are on cpu 0, sends on 1, receives on 2. With all messages by rendezvous (`-S 1`) and no overheads (`-o 0 -g 0
/// -O 0`), LogGOPSim's time is that of `simulate` where each rank has a port of its own, to 0.01 %. It must be ATLAHS'
/// fork: the older one has an integer for the time of a byte.
template <topology Topology, mask Mask = full, layout Layout = contiguous>
[[nodiscard]] std::string goal_text(const Topology& topology, int world, const machine& m, const attention_shape& shape,
                                    const Mask& mask = {}, const Layout& layout = {},
                                    const simulation_options& options = {}) {
  const detail::timed_schedule schedule =
      detail::time_attention(any_topology{topology}, world, m, shape, mask, detail::layout_source{layout}, options);
  return detail::goal_writer{schedule}.text();
}

/// The same of finished programs, with the sizes of blocks and the seconds of tiles that the other `simulate` takes.
template <block_cost Cost, class TileSeconds>
  requires requires(const TileSeconds& seconds, const schedule::program& p) {
    { seconds(p, schedule::tile{}) } -> std::convertible_to<double>;
  }
[[nodiscard]] std::string goal_text(const schedule::list<schedule::program>& programs, const machine& m,
                                    const Cost& bytes, const TileSeconds& tile_seconds) {
  const detail::timed_schedule schedule = detail::time_programs(programs, m, bytes, tile_seconds);
  return detail::goal_writer{schedule}.text();
}

}  // namespace orrery
