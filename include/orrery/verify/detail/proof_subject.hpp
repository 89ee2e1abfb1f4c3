// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/verify/verdict.hpp"

namespace orrery::detail {

/// What the parts of a proof share: the programs, and the first fault that was found.
struct proof_subject {
  const list<program>& programs;  ///< of the first `period` ranks
  int world;
  int period;  ///< rank r's program is that of rank r modulo period, moved on by the rest
  verdict found;

  /// Notes the fault; false.
  constexpr bool refuse(fault f, int rank, int step, const block& what, int peer = 0) {
    found.found = f;
    found.rank = rank;
    found.step = step;
    found.block = what;
    found.peer = peer;
    return false;
  }
};

}  // namespace orrery::detail
