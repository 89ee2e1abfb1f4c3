// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

#include "orrery/attention/shape.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/layout/segment.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/predict/detail/visible_pairs.hpp"
#include "orrery/predict/machine.hpp"
#include "orrery/predict/simulate.hpp"
#include "orrery/predict/simulation_options.hpp"
#include "orrery/predict/tile_work.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/tune/recommend.hpp"

namespace orrery {

/// What `estimate_schedules` finds of one schedule.
struct schedule_estimate {
  any_topology topology;
  schedule::pass circulate;  ///< the faster of the backward's policies; `pass::forward` if there is no backward
  double seconds = 0;        ///< of a forward and a backward
  std::int64_t peak_bytes = 0;
};

/// Estimates the time of schedules for many ranks, the fastest first: as `recommend` does, but for balanced work. Every
/// tile gets its share of the pairs that the mask leaves, and everything is sent, so that ranks are alike and one of
/// each orbit is simulated (see `simulate`). That is what a mask like `causal` comes to with `zigzag` or another layout
/// that balances, within a few per cent; a mask that hides whole shards is overestimated. To choose, simulate the first
/// few:
///
///     std::vector<orrery::any_topology> few;
///     for (const auto& one : orrery::estimate_schedules(1024, machine, shape, orrery::causal{})) {
///       if (few.size() < 6) few.push_back(one.topology);
///     }
///     const auto found = orrery::recommend(1024, machine, shape, orrery::causal{}, orrery::zigzag{}, {}, few);
///
/// Leaves out what cannot be used, for its heads, the world or memory. Costs milliseconds for each candidate and pass;
/// more for `wallfacer`, whose ranks are not alike. `length` is rounded up to a multiple of the world. Throws
/// `std::invalid_argument` for a machine or shape that no schedule suits.
template <mask Mask = full>
[[nodiscard]] std::vector<schedule_estimate> estimate_schedules(int world, const machine& m, attention_shape shape,
                                                                const Mask& mask = {}, simulation_options options = {},
                                                                std::vector<any_topology> candidates = {}) {
  m.check();
  m.check_world(world);
  attention_shape given = shape.completed();
  const auto whole = [](std::int64_t length) { return segment{0, length, length, length}; };
  double share = 1;
  if (given.length > 0 && *given.key_length > 0) {
    const auto visible = detail::count_visible_pairs(mask, whole(given.length), whole(*given.key_length)).pairs;
    share = static_cast<double>(visible) / static_cast<double>(given.length) / static_cast<double>(*given.key_length);
    given.length = (given.length + world - 1) / world * world;
    given.key_length = (*given.key_length + world - 1) / world * world;
  }
  const auto timer = options.tile_seconds;
  options.as_written = true;
  options.with_timeline = false;
  const auto timed_in = [&](schedule::pass p) {
    options.pass = p;
    options.tile_seconds = [&timer, share, &rates = m.device.rates(p)](tile_work w) {
      if (w.pairs > 0) w.pairs = (std::max)(std::llround(static_cast<double>(w.pairs) * share), 1LL);
      return timer ? timer(w) : tile_seconds(w, rates);
    };
  };
  timed_in(schedule::pass::forward);
  if (candidates.empty()) candidates = schedules_for(world, m);
  (void)simulate(ring{}, world, m, given, full{}, contiguous{},
                 options);  // what a ring is refused for, all are: throws
  std::vector<schedule_estimate> found;
  for (const any_topology& one : candidates) {
    try {
      timed_in(schedule::pass::forward);
      const prediction forward = simulate(one, world, m, given, full{}, contiguous{}, options);
      schedule_estimate best{one, schedule::pass::forward, forward.seconds, forward.peak_bytes()};
      if (!given.forward_only) {
        for (const schedule::pass p : {schedule::pass::circulate_keys, schedule::pass::circulate_queries}) {
          timed_in(p);
          const prediction backward = simulate(one, world, m, given, full{}, contiguous{}, options);
          const double seconds = forward.seconds + backward.seconds;
          if (best.circulate != schedule::pass::forward && best.seconds <= seconds) continue;
          best.circulate = p;
          best.seconds = seconds;
          best.peak_bytes = (std::max)(forward.peak_bytes(), backward.peak_bytes());
        }
      }
      if (m.device.capacity == 0 || best.peak_bytes <= m.device.capacity) found.push_back(std::move(best));
    } catch (const std::invalid_argument&) {
      continue;  // `recommend` says why
    }
  }
  std::stable_sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.seconds < b.seconds; });
  return found;
}

}  // namespace orrery
