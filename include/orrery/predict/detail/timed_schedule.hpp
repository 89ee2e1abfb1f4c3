// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "orrery/predict/detail/rank_orbits.hpp"
#include "orrery/predict/machine.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery::detail {

/// What a rank's steps take, in the order in which it does them; all in seconds.
struct step_times {
  double begin = 0;              ///< of the host, before the first step
  std::vector<double> arrivals;  ///< merging what has arrived before each step, and after the last
  std::vector<double> tiles;     ///< of each step
  std::vector<double> merges;    ///< of each step's tile with what was begun before
  std::vector<double> host;      ///< of each step
};

/// The finished programs of all ranks, with what their steps take and what their exchanges send: all that a simulation
/// or an export needs. For a simulation, those of one rank of each orbit.
struct timed_schedule {
  rank_orbits orbits;
  list<program> programs;  ///< of the orbits' representatives
  std::vector<step_times> times;
  std::vector<std::vector<std::int64_t>> bytes;  ///< that each exchange of each program sends
  std::vector<std::int64_t> memory;              ///< of each program's rank; empty: not known
  std::string note;                              ///< what is known of the schedule
};

/// Times programs by two functions: see `simulate`.
template <class Cost, class TileSeconds>
[[nodiscard]] timed_schedule time_programs(const list<program>& programs, const machine& m, const Cost& bytes,
                                           const TileSeconds& tile_seconds) {
  timed_schedule made;
  made.orbits = rank_orbits{programs.size()};
  made.programs = programs;
  for (const program& p : programs) {
    const auto steps = static_cast<std::size_t>(p.steps.size());
    const double speed = m.speed_of(p.rank);
    step_times t{m.device.call / speed, std::vector<double>(steps + 1), std::vector<double>(steps),
                 std::vector<double>(steps), std::vector<double>(steps)};
    for (int i = 0; i < p.steps.size(); ++i) {
      const step& now = p.steps[i];
      const auto at = static_cast<std::size_t>(i);
      t.host[at] = (m.device.step + m.device.message * now.exchanges.count) / speed;
      if (!now.tile.empty()) t.tiles[at] = tile_seconds(p, now.tile) / speed;
    }
    made.times.push_back(std::move(t));
    std::vector<std::int64_t> of_rank;
    for (const exchange& x : p.exchanges) {
      std::int64_t sum = 0;
      for (const block& b : p.sent_by(x)) sum += static_cast<std::int64_t>(bytes(b.side, x.payload, b));
      of_rank.push_back(sum);
    }
    made.bytes.push_back(std::move(of_rank));
  }
  return made;
}

}  // namespace orrery::detail
