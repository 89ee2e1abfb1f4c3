// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <string>

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/detail/describe_block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

/// The parts of error messages that all transports share.
namespace orrery::detail {

/// The two ends of a message: this rank receives or sends it.
enum class direction : std::uint8_t { receiving, sending };

/// Describes the blocks of a message: "key shard 3" or "query shard 0 (slice 2), query shard 1 (slice 2)"; where shards
/// are cut into several chunks "chunk k3.1".
[[nodiscard]] inline std::string describe_blocks(const list<block>& blocks, int chunks = 1) {
  std::string text;
  for (const block& b : blocks) text += (text.empty() ? "" : ", ") + describe_block(b, chunks);
  return text;
}

/// Describes what exchange `e` of the program sends or receives: "key shard 3" or "the partial of query shard 0".
[[nodiscard]] inline std::string describe_message(const program& p, int e, direction w) {
  const exchange& x = p.exchanges[e];
  list<block> named;
  if (w == direction::sending) {
    for (const block& sent : p.sent_by(x)) named.push_back(sent);
  } else {
    for (const held_block& received : p.received_by(x)) named.push_back(received.block);
  }
  return (x.payload == payload::partial ? "the partial of " : "") + describe_blocks(named, p.chunks);
}

/// Describes what a rank waits for when it awaits one end of exchange `e`: "in step 3 for key shard 1 from rank 2".
[[nodiscard]] inline std::string describe_wait(const program& p, int e, direction w) {
  const exchange& x = p.exchanges[e];
  const std::string step = "in step " + std::to_string(x.complete_before) + " for ";
  const std::string message = describe_message(p, e, w);
  return w == direction::sending ? step + "rank " + std::to_string(x.to) + " to take " + message
                                 : step + message + " from rank " + std::to_string(x.from);
}

/// "0.3 s".
[[nodiscard]] inline std::string describe_seconds(double seconds) {
  std::string text = std::to_string(seconds);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text + " s";
}

/// The end of an error message: it says whether the world can still be used.
inline constexpr const char* world_is_lost = "; this world cannot be used any more";
inline constexpr const char* world_is_usable = "; this world can still be used";

/// Composes the message that `rank` throws when its world has failed: "orrery: rank 1 stops: rank 2 failed; rank 1 was
/// beginning a call; this world cannot be used any more".
///
/// `why` is the first failure, a clause. `doing` is what this rank was doing if another rank failed first; else empty.
/// `end` says what becomes of the world.
[[nodiscard]] inline std::string describe_stop(int rank, const std::string& why, const std::string& doing = "",
                                               const std::string& end = world_is_lost) {
  const std::string who = "rank " + std::to_string(rank);
  return "orrery: " + who + " stops: " + why + (doing.empty() ? "" : "; " + who + " was " + doing) + end;
}

}  // namespace orrery::detail
