// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace emulator {

/// Which of a block's threads knows of which others' doings, as vector clocks (Flanagan and Freund, "FastTrack", 2009):
/// each thread counts its own times, one after each time that it lets others know, and remembers the last time of each
/// other that it knows of. An mbarrier is a thread, too, whose times are its phases, for what copies wrote that it
/// counts.
class clocks {
 public:
  using times = std::vector<std::uint32_t>;

  void begin(int threads) {
    threads_ = threads;
    of_.assign(static_cast<std::size_t>(threads), times(static_cast<std::size_t>(threads), 0));
    for (int i = 0; i < threads; ++i) own(i) = 1;
  }
  /// Room for one more mbarrier; returns its number, after those of the threads.
  [[nodiscard]] int add() {
    for (times& one : of_) one.push_back(0);
    return static_cast<int>(of_[0].size()) - 1;
  }

  [[nodiscard]] std::uint32_t now(int thread) const { return of_[index(thread)][index(thread)]; }
  [[nodiscard]] bool knows(int thread, int other, std::uint32_t time) const {
    return other == thread || of_[index(thread)][index(other)] >= time;
  }

  /// The thread tells what it knows.
  void tell(int thread, times& whom) {
    join(whom, of_[index(thread)]);
    ++own(thread);
  }
  void learn(int thread, const times& from) { join(of_[index(thread)], from); }
  /// Threads from `first` on tell each other.
  void meet(int first, int count) {
    times all;
    for (int i = first; i < first + count; ++i) tell(i, all);
    for (int i = first; i < first + count; ++i) learn(i, all);
  }
  /// What the thread did until now is before what it does from now on.
  std::uint32_t tick(int thread) { return own(thread)++; }

  static void join(times& into, const times& from) {
    if (into.size() < from.size()) into.resize(from.size(), 0);
    for (std::size_t i = 0; i < from.size(); ++i) into[i] = (std::max)(into[i], from[i]);
  }

 private:
  static std::size_t index(int thread) { return static_cast<std::size_t>(thread); }
  std::uint32_t& own(int thread) { return of_[index(thread)][index(thread)]; }

  int threads_ = 0;
  std::vector<times> of_;
};

}  // namespace emulator
