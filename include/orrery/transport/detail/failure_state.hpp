// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <atomic>
#include <cstddef>
#include <initializer_list>
#include <mutex>
#include <string>
#include <string_view>

#include "orrery/schedule/program.hpp"
#include "orrery/transport/detail/describe.hpp"
#include "orrery/transport/transport.hpp"

namespace orrery::detail {

/// The failure of a world, as all its ranks know it (threads), or as one rank does (MPI, NCCL). The first failure
/// counts: it is what every later call of every rank reports. Any thread may record it.
class failure_state {
 public:
  static constexpr std::size_t any_length = std::string::npos;

  /// `end` is the end of all messages: what becomes of the world. Longer reasons than `longest` are cut, if it is
  /// given; then memory is taken now, and `record` takes none.
  explicit failure_state(const char* end = world_is_lost, std::size_t longest = any_length)
      : end_{end}, longest_{longest} {
    if (longest != any_length) why_.reserve(longest);
  }
  failure_state(const failure_state&) = delete;
  failure_state& operator=(const failure_state&) = delete;

  /// True if a failure has been recorded. Then `why` does not change any more.
  [[nodiscard]] bool happened() const noexcept { return happened_.load(std::memory_order_seq_cst); }

  /// Records the first failure: a clause, the concatenation of the parts. Returns true if this call did. Throws
  /// `std::bad_alloc`, and records nothing, if there is no memory for it.
  bool record(std::initializer_list<std::string_view> parts) {
    const std::lock_guard lock{mutex_};
    if (happened()) return false;
    why_.clear();
    for (const std::string_view part : parts) why_.append(part.substr(0, longest_ - why_.size()));
    happened_.store(true, std::memory_order_seq_cst);
    return true;
  }
  bool record(std::string_view why) { return record({why}); }

  /// Records that a rank has failed, where there is no memory for a reason.
  bool record_rank(int rank) noexcept {
    const std::lock_guard lock{mutex_};
    if (happened()) return false;
    rank_ = rank;
    happened_.store(true, std::memory_order_seq_cst);
    return true;
  }

  /// The reason of the first failure; empty if `record_rank` recorded it.
  [[nodiscard]] std::string_view why() const noexcept { return why_; }

  /// Throws what `rank` reports after a failure: the same in all its calls, for which `message` keeps it. `doing` is
  /// what the rank was doing if another rank failed first; else empty.
  [[noreturn]] void stop(int rank, std::string& message, const std::string& doing) const {
    if (message.empty()) {
      message = describe_stop(rank, rank_ == no_rank ? why_ : "rank " + std::to_string(rank_) + " failed", doing, end_);
    }
    throw transport_error{message};
  }

 private:
  const char* end_;
  std::size_t longest_;
  std::mutex mutex_;
  std::atomic<bool> happened_{false};
  std::string why_;
  int rank_ = no_rank;
};

}  // namespace orrery::detail
