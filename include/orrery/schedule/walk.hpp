// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include "orrery/schedule/program.hpp"

namespace orrery::schedule {

/// What `walk` calls. A visitor derives from it and declares the members that it needs, with these parameters.
struct visitor {
  /// First in each step, and once more with the number of steps, for the last completions.
  constexpr void begin_step([[maybe_unused]] int step) {}
  /// Exchange `e` of the program is awaited, and its partials are merged.
  constexpr void complete([[maybe_unused]] int step, [[maybe_unused]] int e, [[maybe_unused]] const exchange& x) {}
  /// Exchange `e` of the program is posted.
  constexpr void post([[maybe_unused]] int step, [[maybe_unused]] int e, [[maybe_unused]] const exchange& x) {}
  /// The tile of the step, which is not empty, is computed.
  constexpr void compute([[maybe_unused]] int step, [[maybe_unused]] const tile& t) {}
};

/// Visits what one rank does, in the order in which it does it: in each step, what must have arrived is completed, then
/// exchanges are posted, then the tile is computed while they are in flight. After the last step, the last exchanges
/// are completed.
///
/// Costs time linear in the program. The executor's plan and the drawings are made by such walks; `verify` reads
/// programs on its own.
///
///     struct printer : orrery::schedule::visitor {
///       void post(int step, int, const orrery::schedule::exchange& x) { std::cout << step << ": to " << x.to << '\n';
///       }
///     };
///     printer out;
///     orrery::schedule::walk(program, out);
template <class Visitor>
constexpr void walk(const program& p, Visitor& visit) {
  for (int i = 0; i <= p.steps.size(); ++i) {
    visit.begin_step(i);
    for (const int e : p.completed_before(i)) visit.complete(i, e, p.exchanges[e]);
    if (i == p.steps.size()) break;
    const step& now = p.steps[i];
    for (const int e : now.exchanges) visit.post(i, e, p.exchanges[e]);
    if (!now.tile.empty()) visit.compute(i, now.tile);
  }
}

}  // namespace orrery::schedule
