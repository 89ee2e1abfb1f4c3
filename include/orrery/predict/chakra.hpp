// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
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
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/topology.hpp"

namespace orrery::detail {

/// Writes nodes of a Chakra execution trace: length-prefixed protobuf messages, without a protobuf library.
class chakra_trace {
 public:
  chakra_trace() { append(text(1, "0.0.4")); }

  /// A computation of so many microseconds. Returns the node's number; `after` holds numbers of earlier nodes.
  int compute(const std::string& name, std::uint64_t microseconds, const std::vector<int>& after) {
    const std::string operations = attribute("num_ops", int64_value, 1) + attribute("tensor_size", uint64_value, 1);
    return node(name, compute_node, microseconds, after, operations);
  }
  int send(const std::string& name, std::int64_t bytes, int from, int to, int tag, const std::vector<int>& after) {
    return node(name, send_node, 0, after, communication(bytes, from, to, tag));
  }
  int receive(const std::string& name, std::int64_t bytes, int from, int to, int tag, const std::vector<int>& after) {
    return node(name, receive_node, 0, after, communication(bytes, from, to, tag));
  }

  /// The bytes of the file.
  [[nodiscard]] const std::string& bytes() const noexcept { return bytes_; }

 private:
  static constexpr int compute_node = 4, send_node = 5, receive_node = 6;
  static constexpr int int32_value = 7, int64_value = 9, uint64_value = 13, bool_value = 27;  // fields of an attribute

  [[nodiscard]] static std::string varint(std::uint64_t number) {
    std::string all;
    for (; number >= 128; number >>= 7) all += static_cast<char>((number & 127) | 128);
    return all + static_cast<char>(number);
  }
  [[nodiscard]] static std::string number(int field, std::uint64_t value) {
    return varint(static_cast<std::uint64_t>(field) << 3) + varint(value);
  }
  [[nodiscard]] static std::string text(int field, std::string_view value) {
    return varint(static_cast<std::uint64_t>(field) << 3 | 2) + varint(value.size()) + std::string{value};
  }
  [[nodiscard]] static std::string attribute(std::string_view name, int field, std::uint64_t value) {
    return text(10, text(1, name) + number(field, value));
  }
  [[nodiscard]] static std::string communication(std::int64_t bytes, int from, int to, int tag) {
    return attribute("comm_size", int64_value, static_cast<std::uint64_t>(bytes)) +
           attribute("comm_src", int32_value, static_cast<std::uint64_t>(from)) +
           attribute("comm_dst", int32_value, static_cast<std::uint64_t>(to)) +
           attribute("comm_tag", int32_value, static_cast<std::uint64_t>(tag));
  }
  int node(const std::string& name, int type, std::uint64_t microseconds, const std::vector<int>& after,
           const std::string& attributes) {
    std::string all =
        number(1, static_cast<std::uint64_t>(nodes_)) + text(2, name) + number(3, static_cast<std::uint64_t>(type));
    std::string packed;
    for (const int one : after) packed += varint(static_cast<std::uint64_t>(one));
    if (!packed.empty()) all += text(5, packed);
    if (microseconds > 0) all += number(7, microseconds);
    append(all + attribute("is_cpu_op", bool_value, 0) + attributes);
    return nodes_++;
  }
  void append(const std::string& message) { bytes_ += varint(message.size()) + message; }

  std::string bytes_;
  int nodes_ = 0;
};

/// Writes the trace of one rank. A node waits for the tile before it, and for the messages that completed since.
[[nodiscard]] inline std::string chakra_of(const timed_schedule& schedule, int rank) {
  chakra_trace trace;
  const program& p = schedule.programs[rank];
  const step_times& t = schedule.times[static_cast<std::size_t>(rank)];
  const auto micro = [](double seconds) {
    return static_cast<std::uint64_t>(seconds > 0 ? (std::max)(std::llround(seconds * 1e6), 1LL) : 0);
  };
  const auto at = [](int i) { return static_cast<std::size_t>(i); };
  std::vector<int> sends(at(p.exchanges.size()), -1), receives(at(p.exchanges.size()), -1), after;
  std::map<std::pair<int, int>, int> sent, received;
  if (t.begin > 0) after = {trace.compute("host", micro(t.begin), {})};
  for (int s = 0; s <= p.steps.size(); ++s) {
    for (const int e : p.completed_before(s)) {
      if (sends[at(e)] >= 0) after.push_back(sends[at(e)]);
      if (receives[at(e)] >= 0) after.push_back(receives[at(e)]);
    }
    if (t.arrivals[at(s)] > 0) {
      after = {trace.compute("merge before step " + std::to_string(s), micro(t.arrivals[at(s)]), after)};
    }
    if (s == p.steps.size()) break;
    for (const int e : p.steps[s].exchanges) {
      const exchange& x = p.exchanges[e];
      const auto tag = [&](int number) { return x.lane * 65536 + number % 65536; };
      const std::string lane =
          " in step " + std::to_string(s) + (x.lane == 0 ? "" : ", lane " + std::to_string(x.lane));
      if (x.sent.count > 0) {
        sends[at(e)] = trace.send("send to " + std::to_string(x.to) + lane, schedule.bytes[at(rank)][at(e)], rank, x.to,
                                  tag(sent[{x.to, x.lane}]++), after);
      }
      if (x.received.count > 0) {
        const int number = received[{x.from, x.lane}]++;
        int which = -1, seen = 0;
        const program& from = schedule.programs[x.from];
        for (int other = 0; other < from.exchanges.size() && which < 0; ++other) {
          const exchange& y = from.exchanges[other];
          if (y.sent.count > 0 && y.to == rank && y.lane == x.lane && seen++ == number) which = other;
        }
        receives[at(e)] =
            trace.receive("receive from " + std::to_string(x.from) + lane,
                          which < 0 ? 0 : schedule.bytes[at(x.from)][at(which)], x.from, rank, tag(number), after);
      }
    }
    const double busy = t.host[at(s)] + t.tiles[at(s)] + t.merges[at(s)];
    if (busy > 0) after = {trace.compute("tile of step " + std::to_string(s), micro(busy), after)};
  }
  return trace.bytes();
}

}  // namespace orrery::detail

namespace orrery {

/// The schedule of an attention operator's call as Chakra execution traces, the contents of one file for each rank:
/// computations, sends and receives, and what waits for what. ASTRA-sim reads them as PREFIX.RANK.et. The arguments are
/// those of `simulate`, and it throws as that does.
///
///     const auto traces = orrery::chakra_traces(orrery::ring{}, 4, machine, shape);
///     std::ofstream{"ring.0.et", std::ios::binary} << traces[0];
///
/// ASTRA-sim counts whole microseconds, and lets a rank have one computation and one send under way: schedules with
/// several lanes come out slower there than they are. `goal_text` is exact.
template <topology Topology, mask Mask = full, layout Layout = contiguous>
[[nodiscard]] std::vector<std::string> chakra_traces(const Topology& topology, int world, const machine& m,
                                                     const attention_shape& shape, const Mask& mask = {},
                                                     const Layout& layout = {},
                                                     const simulation_options& options = {}) {
  const detail::timed_schedule schedule =
      detail::time_attention(any_topology{topology}, world, m, shape, mask, detail::layout_source{layout}, options);
  std::vector<std::string> all;
  all.reserve(static_cast<std::size_t>(world));
  for (int rank = 0; rank < world; ++rank) all.push_back(detail::chakra_of(schedule, rank));
  return all;
}

}  // namespace orrery
