// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "orrery/schedule/builder.hpp"

namespace orrery::mpi {

/// What a rank waits for: a message from or to one rank, or a collective call with all members of a group.
struct waiting {
  std::string text;                    ///< "in step 3 for key shard 1 from rank 2"
  schedule::rank_group whom{0, 0, 1};  ///< nobody: it does not wait
  std::uint64_t call = 0;              ///< the same number on all members of a collective call; 0: a message
};

/// Whom does a rank wait for in the end? It asks those that it waits for, then those that these wait for, and so on: a
/// rank that waits answers at once, and one that computes when its kernel lets MPI work; one that stands still does
/// not.
class inquiry {
 public:
  void begin(int rank, int size, const waiting& mine) {
    rank_ = rank;
    asked_.assign(static_cast<std::size_t>(size), false);
    answers_.assign(static_cast<std::size_t>(size), std::nullopt);
    asked_[static_cast<std::size_t>(rank)] = true;
    answers_[static_cast<std::size_t>(rank)] = mine;
  }
  void take(int from, const waiting& answer) { answers_[static_cast<std::size_t>(from)] = answer; }

  /// What is known so far, as the rest of a message. Calls `ask(rank)` for everybody who has to be asked next.
  template <class Ask>
  [[nodiscard]] std::string follow(const Ask& ask) {
    std::string text;
    int last = rank_;
    for (std::size_t hops = 0; hops < answers_.size(); ++hops) {
      const waiting& now = *answer_of(last);
      std::vector<int> silent, elsewhere;
      for (int i = 0; i < now.whom.count; ++i) {
        const int other = now.whom.member(i);
        if (other == last) continue;
        if (!asked_[static_cast<std::size_t>(other)]) {
          asked_[static_cast<std::size_t>(other)] = true;
          ask(other);
        }
        const std::optional<waiting>& answer = answer_of(other);
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
        text += "; not there: rank ";
        for (const int one : late) text += (one == late[0] ? "" : ", ") + std::to_string(one);
      } else if (hops > 0) {
        text += (hops == 1 ? ", which itself waits for rank " : ", which waits for rank ") + std::to_string(late[0]);
      }
      last = late[0];
      if (last == rank_) return text;  // round in a circle
      const std::string who = "; rank " + std::to_string(last);
      if (!silent.empty()) return text + who + " does not answer: it is late, stands still or has died";
      if (answer_of(last)->whom.count == 0) return text + who + " does not wait for anybody: it computes";
    }
    return text;
  }

 private:
  [[nodiscard]] const std::optional<waiting>& answer_of(int rank) const {
    return answers_[static_cast<std::size_t>(rank)];
  }

  int rank_ = 0;
  std::vector<bool> asked_;
  std::vector<std::optional<waiting>> answers_;
};

}  // namespace orrery::mpi
