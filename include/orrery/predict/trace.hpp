// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cmath>
#include <cstdint>
#include <string>

#include "orrery/draw/timeline.hpp"
#include "orrery/predict/prediction.hpp"

namespace orrery {

/// A predicted timeline in the Chrome trace event format, for https://ui.perfetto.dev and chrome://tracing, as `traced`
/// writes measured ones: a process for each rank, with what it does and its messages in flight.
///
///     const auto found = orrery::simulate(topology, 16, machine, shape, mask, layout, {.with_timeline = true});
///     std::ofstream{"predicted.json"} << orrery::chrome_trace(found);
///
/// Empty of events if the prediction has no timeline.
[[nodiscard]] inline std::string chrome_trace(const prediction& p) {
  timeline events;
  int rank = -1;
  const auto nanoseconds = [](double seconds) { return static_cast<std::int64_t>(std::llround(seconds * 1e9)); };
  for (const prediction::span& s : p.timeline) {
    while (rank < s.rank) events.begin_rank(++rank);
    const std::string step = std::to_string(s.step);
    const std::int64_t begin = nanoseconds(s.begin), end = nanoseconds(s.end);
    using kind = prediction::span::kind;
    if (s.what == kind::message) {
      events.flight(s.lane, "to " + std::to_string(s.to), begin, end,
                    {{"step", step}, {"bytes", std::to_string(s.bytes)}});
    } else if (s.what == kind::wait) {
      events.slice("wait", "wait for " + std::to_string(s.to), begin, end, {{"step", step}});
    } else {
      const char* const name = s.what == kind::tile ? "tile" : s.what == kind::merge ? "merge" : "host";
      events.slice(name, std::string{name} + " " + step, begin, end, {{"step", step}});
    }
  }
  const std::string parts[] = {events.events()};
  return timeline::document(parts);
}

}  // namespace orrery
