// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// Trains a small GPT whose every sequence is split across ranks (threads here, or streams of CUDA devices; processes in
// train_mpi.cpp), once on one rank and once with every topology, and shows that the loss curves are the same up to
// rounding. What a trainer needs of Orrery is in `train_with` (train/training.hpp); the model (train/model.hpp) calls
// the operator and knows nothing of ranks.

#include <cstdio>
#include <exception>
#include <stdexcept>

#include <orrery/orrery.hpp>

#include "train/devices.hpp"
#include "train/trainer.hpp"

namespace train {

/// A schedule of one's own: keys travel both ways round the ring at once, so that each goes only half-way. Links that
/// carry both directions at full speed need half the time, and the backward pass follows from the forward.
struct two_way_ring {
  static constexpr const char* name() { return "two_way_ring"; }

  static constexpr orrery::program program(int rank, int world) {
    const int clockwise = world / 2, counterclockwise = (world - 1) / 2;  // how far keys travel
    orrery::builder schedule{rank, world};
    for (int hop = 0; hop <= clockwise; ++hop) {
      if (hop < clockwise) schedule.shift(orrery::key(rank - hop), +1, {.lane = 0});
      if (hop < counterclockwise) schedule.shift(orrery::key(rank + hop), -1, {.lane = 1});
      schedule.interact(orrery::query(rank), orrery::key(rank - hop));
      if (hop > 0 && hop <= counterclockwise) schedule.add_to_tile(orrery::key(rank + hop));
      schedule.next_step();
    }
    return schedule;
  }
};
static_assert(orrery::verify(two_way_ring{}, 8));
static_assert(orrery::verify(two_way_ring{}, 7));

const topologies all{orrery::ring{},           two_way_ring{},
                     orrery::double_ring<2>{}, orrery::wallfacer<2>{},
                     orrery::concentric<2>{},  orrery::concentric<2, 2>{},
                     orrery::concentric<4>{},  orrery::all_to_all<2, orrery::wallfacer<2>>{},
                     orrery::usp<2>{},         orrery::usp<4>{},
                     orrery::ulysses{},        orrery::all_gather{}};

}  // namespace train

int main(int count, char** arguments) {
  try {
    const train::options o = train::parse({arguments + 1, arguments + count});
    const bool host = o.help || o.device == "host";
    return train::run(host ? train::training_on(train::thread_ranks{}) : train::training_on_devices(), train::all, o);
  } catch (const std::invalid_argument& wrong) {
    std::fprintf(stderr, "train: %s\n", wrong.what());
    return 2;
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "train: %s\n", failure.what());
    return 1;
  }
}
