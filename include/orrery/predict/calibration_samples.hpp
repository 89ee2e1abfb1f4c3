// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <string>
#include <vector>

#include "orrery/predict/tile_work.hpp"

namespace orrery {

/// What was measured on a machine, for `calibrate`. All seconds are medians of several repetitions after a warm-up,
/// with all ranks busy at once. `what` describes a sample in messages: "1024 x 1024".
struct calibration_samples {
  /// A kernel's call, forward or backward, into results that begin with it.
  struct tile {
    tile_work work{};
    double seconds = 0;
    std::string what{};
  };
  /// The same call into results that were begun before: what it takes more is the merge.
  struct accumulated_tile {
    tile_work work{};
    double seconds_begun = 0;  ///< of the call that begins
    double seconds = 0;        ///< of the one that accumulates
    std::string what{};
  };
  /// Messages between neighbours of a level, posted together by each rank that sends.
  struct message {
    int level = 0;           ///< of the machine
    std::int64_t bytes = 0;  ///< of each message
    double seconds = 0;      ///< from posting the first to the arrival of the last
    int posted = 1;          ///< messages that each sender posts at once
    int senders = 1;         ///< of each group of the level below (a node) that send out of it at once
    bool both_ways = false;  ///< those ranks receive as much at the same time
    std::string what{};
  };
  /// Copying or merging in memory, on all ranks at once.
  struct copy {
    double bytes = 0;  ///< read and written
    double seconds = 0;
    std::string what{};
  };
  /// A tile with messages in flight that arrive before it ends.
  struct hidden_message {
    double tile_seconds = 0;      ///< of the tile alone
    double transfer_seconds = 0;  ///< of the messages alone, at most as long
    double seconds = 0;           ///< of both together
    std::string what{};
  };
  /// Whole calls of an operator whose tiles and messages take next to no time. Messages wait for each other.
  struct call {
    int steps = 0;
    int messages = 0;        ///< that a rank posts, one a step at most
    std::int64_t bytes = 0;  ///< of each
    tile_work work{};        ///< of each step's tile
    double seconds = 0;
    std::string what{};
  };

  std::vector<tile> tiles{};
  std::vector<accumulated_tile> accumulated{};
  std::vector<message> messages{};
  std::vector<copy> copies{};
  std::vector<hidden_message> hidden{};
  std::vector<call> calls{};
};

}  // namespace orrery
