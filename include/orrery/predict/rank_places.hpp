// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace orrery {

/// Where a rank computes: a host, and the cores that it may use there (its affinity), of which it keeps `threads` busy.
struct rank_place {
  std::string host{};
  std::vector<int> cores{};
  int threads = 1;
};

}  // namespace orrery

namespace orrery::detail {

/// Gives each thread of the ranks of one host a core of its own, by augmenting paths.
class core_assignment {
 public:
  explicit core_assignment(std::span<const rank_place> places) : places_{places} {}

  /// False if there is no core for a thread of this rank.
  [[nodiscard]] bool add(std::size_t rank) {
    tried_.assign(owner_.size(), false);
    return augment(rank);
  }

 private:
  [[nodiscard]] bool augment(std::size_t rank) {
    for (const int core : places_[rank].cores) {
      if (core < 0) continue;
      const auto at = static_cast<std::size_t>(core);
      if (at >= owner_.size()) {
        owner_.resize(at + 1, places_.size());
        tried_.resize(at + 1, false);
      }
      if (tried_[at]) continue;
      tried_[at] = true;
      if (owner_[at] == places_.size() || augment(owner_[at])) {
        owner_[at] = rank;
        return true;
      }
    }
    return false;
  }

  std::span<const rank_place> places_;
  std::vector<std::size_t> owner_;  // of each core, a rank; or their number
  std::vector<bool> tried_;
};

}  // namespace orrery::detail

namespace orrery {

/// Empty if every thread of every rank can have a core of its own. Else a message: then `simulate` does not apply, for
/// it knows nothing of ranks that wait for a core that others compute on.
///
///     if (const std::string why = orrery::why_ranks_share_cores(places); !why.empty()) std::cerr << why << '\n';
///
/// `places` has all ranks in order. Cores are what the operating system calls processors; two hardware threads of one
/// core count as two.
[[nodiscard]] inline std::string why_ranks_share_cores(std::span<const rank_place> places) {
  for (std::size_t first = 0; first < places.size(); ++first) {
    const std::string& host = places[first].host;
    bool is_known = false;
    for (std::size_t i = 0; i < first; ++i) is_known = is_known || places[i].host == host;
    if (is_known) continue;
    detail::core_assignment assignment{places};
    int ranks = 0, threads = 0;
    std::vector<int> cores;
    bool shares = false;
    for (std::size_t rank = first; rank < places.size(); ++rank) {
      if (places[rank].host != host) continue;
      ++ranks;
      threads += places[rank].threads;
      for (int t = 0; t < places[rank].threads; ++t) shares = !assignment.add(rank) || shares;
      for (const int core : places[rank].cores) {
        bool counted = false;
        for (const int one : cores) counted = counted || one == core;
        if (!counted) cores.push_back(core);
      }
    }
    if (!shares) continue;
    return "the " + std::to_string(ranks) + " ranks of host " + host + " keep " + std::to_string(threads) +
           " threads busy and share " + std::to_string(cores.size()) + " core" + (cores.size() == 1 ? "" : "s") +
           (static_cast<std::size_t>(threads) > cores.size()
                ? std::string{"; start at most as many ranks as cores"}
                : std::string{", of which some may use too few; bind each rank to cores of its own"}) +
           ". Predictions do not apply where ranks wait for cores";
  }
  return "";
}

}  // namespace orrery
