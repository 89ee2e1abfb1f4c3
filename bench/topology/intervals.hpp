// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

namespace bench {

/// When a rank's call began and ended, in seconds of a clock that all ranks share.
struct interval {
  double begin = 0;
  double end = 0;
};

/// What every rank has, on every rank. Collective.
template <class T, class World>
std::vector<std::vector<T>> of_all_ranks(World& world, const std::vector<T>& mine) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::vector<std::vector<T>> all;
  for (const std::string& bytes :
       world.all_gather(std::string{reinterpret_cast<const char*>(mine.data()), mine.size() * sizeof(T)})) {
    std::memcpy(all.emplace_back(bytes.size() / sizeof(T)).data(), bytes.data(), bytes.size());
  }
  return all;
}

/// The seconds of each call, from the first rank's beginning to the last rank's end.
template <class World>
std::vector<double> seconds_of(World& world, const std::vector<interval>& mine) {
  std::vector<double> seconds;
  const auto all = of_all_ranks(world, mine);
  for (std::size_t call = 0; call < mine.size(); ++call) {
    interval whole = mine[call];
    for (const std::vector<interval>& of_rank : all) {
      whole.begin = std::min(whole.begin, of_rank[call].begin);
      whole.end = std::max(whole.end, of_rank[call].end);
    }
    seconds.push_back(whole.end - whole.begin);
  }
  return seconds;
}

/// The largest of all ranks' values. Collective.
template <class T, class World>
T largest(World& world, T mine) {
  for (const std::vector<T>& other : of_all_ranks(world, std::vector<T>{mine})) mine = std::max(mine, other[0]);
  return mine;
}

}  // namespace bench
