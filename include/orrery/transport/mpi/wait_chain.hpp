// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "orrery/schedule/builder.hpp"

namespace orrery::mpi {

/// What a rank waits for: a message from or to one rank, or a collective call with all members of a group.
struct pending_wait {
  std::string text;                     ///< "in step 3 for key shard 1 from rank 2"
  schedule::rank_group peers{0, 0, 1};  ///< empty: it does not wait
  std::uint64_t call = 0;               ///< identifies a collective call, the same on all members; 0: a message
};

/// Finds the rank that a waiting rank waits for in the end. It asks the ranks that it waits for, then those that these
/// wait for, and so on. A rank that waits answers at once. A rank that computes answers when its kernel polls MPI. A
/// rank that is stopped does not answer.
class wait_chain_query {
 public:
  void begin(int rank, int size, const pending_wait& local) {
    rank_ = rank;
    asked_.assign(static_cast<std::size_t>(size), false);
    answers_.assign(static_cast<std::size_t>(size), std::nullopt);
    asked_[static_cast<std::size_t>(rank)] = true;
    answers_[static_cast<std::size_t>(rank)] = local;
  }
  void take(int from, const pending_wait& answer) { answers_[static_cast<std::size_t>(from)] = answer; }

  /// Returns what is known so far, as the end of an error message. Calls `ask(rank)` for each rank that must be asked
  /// next.
  template <class Ask>
  [[nodiscard]] std::string trace(const Ask& ask) {
    std::string text;
    int last = rank_;
    for (std::size_t hops = 0; hops < answers_.size(); ++hops) {
      const pending_wait& now = *answer_of(last);
      std::vector<int> silent, elsewhere;
      for (int i = 0; i < now.peers.count; ++i) {
        const int other = now.peers.member(i);
        if (other == last) continue;
        if (!asked_[static_cast<std::size_t>(other)]) {
          asked_[static_cast<std::size_t>(other)] = true;
          ask(other);
        }
        const std::optional<pending_wait>& answer = answer_of(other);
        if (!answer) {
          silent.push_back(other);
        } else if (now.call == 0 || answer->call != now.call) {
          elsewhere.push_back(other);
        }
      }
      const std::vector<int>& late = silent.empty() ? elsewhere : silent;
      if (late.empty()) return text;
      if (now.call != 0) {
        text += hops == 0 ? "" : ", which waits in a collective call";
        text += "; missing: rank ";
        for (const int rank : late) text += (rank == late[0] ? "" : ", ") + std::to_string(rank);
      } else if (hops > 0) {
        text += (hops == 1 ? ", which itself waits for rank " : ", which waits for rank ") + std::to_string(late[0]);
      }
      last = late[0];
      if (last == rank_) return text;  // a cycle
      const std::string who = "; rank " + std::to_string(last);
      if (!silent.empty()) return text + who + " does not answer: it is late, stopped or dead";
      if (answer_of(last)->peers.count == 0) return text + who + " is not waiting: it computes";
    }
    return text;
  }

 private:
  [[nodiscard]] const std::optional<pending_wait>& answer_of(int rank) const {
    return answers_[static_cast<std::size_t>(rank)];
  }

  int rank_ = 0;
  std::vector<bool> asked_;
  std::vector<std::optional<pending_wait>> answers_;
};

}  // namespace orrery::mpi
