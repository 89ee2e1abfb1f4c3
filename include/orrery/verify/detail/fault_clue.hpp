// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

#include "orrery/schedule/block.hpp"

namespace orrery::detail {

/// The exchange that explains a fault, if there is one.
struct fault_clue {
  enum class kind : std::uint8_t {
    none,
    in_flight,        ///< the missing operand is received from `rank` in `step`, and usable from step `until` on
    not_received,     ///< `rank` sends the missing operand in `step`, and this rank does not receive it
    other_lane,       ///< the peer, `rank`, names the message in another lane
    other_peer,       ///< the peer exchanges the message with `rank` instead
    other_partner,    ///< `rank` exchanges the message with this rank's peer, or with this rank, in vain
    other_block,      ///< the peer, `rank`, names `block` instead
    other_payload,    ///< the peer, `rank`, names the same blocks as another payload
    other_count,      ///< the peer, `rank`, names `count` blocks instead of `expected`
    message_too_few,  ///< the peer, `rank`, goes on with the next message, of `block`
  };

  kind found = kind::none;
  int rank = 0;
  int step = 0;
  int lane = 0;
  schedule::block block{};
  schedule::payload payload = schedule::payload::operand;
  int until = 0;
  int count = 0;
  int expected = 0;
};

}  // namespace orrery::detail
