// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <orrery/transport/threads.hpp>

#include "places.hpp"

namespace train {

/// Ranks that are threads of this process; derived classes name the kernel of their attention.
struct on_threads {
  template <class Body>
  static void run(int ranks, const Body& body) {
    orrery::threads::run(ranks, body);
  }
  template <class World>
  static bool reports(const World& world) {
    return world.rank() == 0;
  }
  template <class World>
  static on_host place(const World&) {
    return {};
  }
};

}  // namespace train
