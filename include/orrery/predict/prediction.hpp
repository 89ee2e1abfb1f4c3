// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "orrery/detail/unit_text.hpp"
#include "orrery/schedule/block.hpp"

namespace orrery {

/// What `simulate` predicts of one call. Times are seconds from the call's begin, bytes are of the whole call.
struct prediction {
  /// What one rank does. tiles + merges + host + waits == end.
  struct rank_times {
    double tiles = 0;
    double merges = 0;
    double host = 0;              ///< of the call, its steps and messages, and packing
    double waits = 0;             ///< for messages
    double end = 0;               ///< when its last step is done
    int waits_for = -1;           ///< the other end of the message that ended its longest wait; -1: it never waited
    int waits_in_step = -1;       ///< the step before which it did; the number of steps: at the end
    double longest_wait = 0;      ///< how long that was
    std::int64_t peak_bytes = 0;  ///< its own tensors and all buffers; 0: the sizes of tensors are not known
  };
  /// What crosses the links of one level of the machine.
  struct level_use {
    std::string name;
    std::int64_t bytes = 0;     ///< of all ranks
    std::int64_t messages = 0;  ///< likewise
    double busiest_port = 0;    ///< seconds for which the busiest port must be busy: a lower bound of the time
    std::string port;           ///< which one that is: "the links from rank 3", "the links from node 1"
  };
  /// A bar of the timeline.
  struct span {
    enum class kind : std::uint8_t { tile, merge, host, wait, message };
    kind what;
    int rank;  ///< of a message, its sender
    int step;  ///< of a message, that in which its sender posted it
    double begin;
    double end;
    int to = -1;             ///< of a message
    int lane = 0;            ///< likewise
    std::int64_t bytes = 0;  ///< likewise
    double posted = 0;       ///< of a message: when its sender posted it; it begins when both ends have
  };

  int world = 0;
  schedule::pass pass = schedule::pass::forward;
  std::string machine;       ///< its name
  std::string schedule;      ///< what is known of the schedule: its topology, and whether it was pruned
  double seconds = 0;        ///< until the last rank is done
  double bound_compute = 0;  ///< tiles, merges and host of the busiest rank: a lower bound of the time
  std::vector<rank_times> ranks;
  std::vector<level_use> levels;  ///< of the machine, from the inside out
  std::vector<span> timeline;     ///< empty unless asked for

  /// The busiest port of any level: the other lower bound of the time.
  [[nodiscard]] double bound_communication() const noexcept {
    double most = 0;
    for (const level_use& one : levels) most = one.busiest_port > most ? one.busiest_port : most;
    return most;
  }
  /// The most bytes of memory of any rank.
  [[nodiscard]] std::int64_t peak_bytes() const noexcept {
    std::int64_t most = 0;
    for (const rank_times& one : ranks) most = one.peak_bytes > most ? one.peak_bytes : most;
    return most;
  }
  /// The rank that is done last; the first of several.
  [[nodiscard]] int last_rank() const noexcept {
    std::size_t last = 0;
    for (std::size_t rank = 1; rank < ranks.size(); ++rank) {
      if (ranks[rank].end > ranks[last].end) last = rank;
    }
    return static_cast<int>(last);
  }
  /// One sentence: how long it takes, and what limits it.
  [[nodiscard]] std::string why() const;
};

}  // namespace orrery

namespace orrery::detail {

/// Writes the part of a whole: "43 %".
[[nodiscard]] inline std::string percent_text(double part, double whole) {
  char text[32];
  std::snprintf(text, sizeof text, "%.0f %%", whole > 0 ? 100 * part / whole : 0.0);
  return text;
}

}  // namespace orrery::detail

namespace orrery {

inline std::string prediction::why() const {
  using detail::percent_text;
  using detail::seconds_text;
  if (ranks.empty()) return "nothing to do";
  const level_use* busiest = nullptr;
  for (const level_use& one : levels) {
    if (busiest == nullptr || one.busiest_port > busiest->busiest_port) busiest = &one;
  }
  const double links = busiest == nullptr ? 0 : busiest->busiest_port;
  const rank_times& last = ranks[static_cast<std::size_t>(last_rank())];
  std::string text = seconds_text(seconds) + ": ";
  if (bound_compute >= 0.9 * seconds && bound_compute >= links) {
    text += "computing limits it; the busiest rank computes for " + percent_text(bound_compute, seconds) + " of it";
    if (links > 0) text += ", and the busiest port is busy for " + percent_text(links, seconds);
  } else if (links >= 0.8 * seconds) {
    text += "the level " + busiest->name + " limits it; " + busiest->port + " are busy for " +
            percent_text(links, seconds) + " of it, and the busiest rank computes for " +
            percent_text(bound_compute, seconds);
  } else {
    text += "rank " + std::to_string(last_rank()) + " is last, and waits for " + percent_text(last.waits, seconds) +
            " of it";
    if (last.waits_for >= 0) {
      text += ", longest for rank " + std::to_string(last.waits_for) + " before step " +
              std::to_string(last.waits_in_step) + " (" + seconds_text(last.longest_wait) + ")";
    }
    text += "; no bound is near: computing " + percent_text(bound_compute, seconds) + ", the busiest port " +
            percent_text(links, seconds) + (busiest == nullptr || links == 0 ? "" : " (level " + busiest->name + ")");
  }
  return text;
}

/// A table for people: the sentence, the levels, and the slowest rank. Several lines.
[[nodiscard]] inline std::string to_string(const prediction& p) {
  std::string text = p.why() + "\n";
  if (!p.schedule.empty()) text += "schedule: " + p.schedule + "\n";
  for (const prediction::level_use& one : p.levels) {
    if (one.messages == 0) continue;
    text += "level " + one.name + ": " + detail::bytes_text(static_cast<double>(one.bytes)) + " in " +
            std::to_string(one.messages) + (one.messages == 1 ? " message" : " messages") + "; " + one.port +
            " busy for " + detail::seconds_text(one.busiest_port) + "\n";
  }
  if (p.ranks.empty()) return text;
  const prediction::rank_times& last = p.ranks[static_cast<std::size_t>(p.last_rank())];
  text += "rank " + std::to_string(p.last_rank()) + ", the last: tiles " + detail::seconds_text(last.tiles) +
          ", merges " + detail::seconds_text(last.merges) + ", host " + detail::seconds_text(last.host) + ", waits " +
          detail::seconds_text(last.waits) + "\n";
  if (p.peak_bytes() > 0) {
    text += "memory: " + detail::bytes_text(static_cast<double>(p.peak_bytes())) + " on the rank that needs most\n";
  }
  return text;
}

}  // namespace orrery
