// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

namespace orrery::detail {

/// The keys of a block that some row sees, for `flash`. Products over keys leave out the others, which may hold
/// anything, since a weight of 0 times an infinity or NaN is NaN. Until `begin` is called all keys are seen, at no
/// cost.
template <std::int64_t most>
class flash_seen_keys {
 public:
  /// Keys [first, last), all seen or none of them.
  void begin(std::int64_t first, std::int64_t last, bool seen) noexcept {
    known_ = true;
    set(first, last, seen);
  }
  void set(std::int64_t first, std::int64_t last, bool seen) noexcept {
    for (std::int64_t key = first; key < last; ++key) seen_[key] = seen;
  }

  /// Calls visit(begin, end) for the runs of seen keys in [first, last).
  template <class Visit>
  void for_runs(std::int64_t first, std::int64_t last, const Visit& visit) const {
    if (!known_) return visit(first, last);
    for (std::int64_t key = first; key < last;) {
      std::int64_t end = key;
      while (end < last && seen_[end]) ++end;
      if (end > key) visit(key, end);
      key = end + 1;
    }
  }

 private:
  bool known_ = false;
  bool seen_[static_cast<std::uint64_t>(most)];
};

}  // namespace orrery::detail
