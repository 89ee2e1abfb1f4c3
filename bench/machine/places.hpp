// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <sched.h>
#include <unistd.h>

#include "orrery/predict/rank_places.hpp"

namespace bench {

/// Where the calling thread may compute: by its affinity, or else on all cores.
inline orrery::rank_place place_of_this_thread() {
  orrery::rank_place place;
  char host[256] = "unknown";
  (void)gethostname(host, sizeof host - 1);
  place.host = host;
#ifdef __linux__
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
    for (std::size_t core = 0; core < CPU_SETSIZE; ++core) {
      if (CPU_ISSET(core, &allowed)) place.cores.push_back(static_cast<int>(core));
    }
  }
#endif
  const auto cores = static_cast<int>(std::thread::hardware_concurrency());
  if (place.cores.empty()) {
    for (int core = 0; core < cores; ++core) place.cores.push_back(core);
  }
  return place;
}

/// The places of all ranks. Collective.
template <class World>
std::vector<orrery::rank_place> places_of(World& world, int threads) {
  const orrery::rank_place own = place_of_this_thread();
  std::ostringstream text;
  text << own.host;
  for (const int core : own.cores) text << ' ' << core;
  std::vector<orrery::rank_place> all;
  for (const std::string& of_rank : world.all_gather(text.str())) {
    std::istringstream words{of_rank};
    orrery::rank_place& one = all.emplace_back();
    one.threads = threads;
    words >> one.host;
    for (int core = 0; words >> core;) one.cores.push_back(core);
  }
  return all;
}

}  // namespace bench
