// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "orrery/schedule/block.hpp"

namespace orrery {

/// What `tuned` is told beside what an operator is.
struct tuning_options {
  /// The file in which choices are remembered, read and written by rank 0; empty: none. See `tuned`.
  std::string remember{};
};

/// What `tuned` has chosen, and why.
struct schedule_choice {
  enum class source : std::uint8_t { predicted, remembered, measured };
  struct candidate {
    std::size_t index = 0;  ///< of the topology, in the template arguments
    std::string name{};     ///< of the topology
    schedule::pass circulate =
        schedule::pass::forward;  ///< the backward's policy; `pass::forward` if there is no backward
    double predicted = 0;         ///< seconds of a forward and a backward
    double measured = 0;          ///< likewise; 0: not measured

    bool operator==(const candidate&) const = default;
  };

  std::vector<candidate> ranked;  ///< the chosen one, then the others by predicted time
  source from = source::predicted;
  std::string why;        ///< a sentence
  std::string file_note;  ///< empty, or what is wrong with the file of choices; on rank 0

  [[nodiscard]] const candidate& chosen() const { return ranked.front(); }
};

}  // namespace orrery
