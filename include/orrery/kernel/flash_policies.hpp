// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <string>

#include "orrery/detail/initializer_text.hpp"

namespace orrery {

/// The blocks of a pass of `flash`.
struct flash_block_policy {
  /// A block has at most so many keys, and fewer where scratch for the head dimensions does not hold as many.
  std::int64_t most_keys = 96;
  /// So many blocks (forward: of keys; backward: of queries) are summed up before the sum is carried to the totals:
  /// fewer bound the errors of long sequences closer, and take more time.
  std::int64_t blocks_in_part = 16;

  constexpr bool operator==(const flash_block_policy&) const = default;
};

/// The policy as its designated initialiser: "{.most_keys = 96, .blocks_in_part = 16}".
[[nodiscard]] inline std::string to_string(const flash_block_policy& p) {
  return detail::initializer_text{}.member("most_keys", p.most_keys).member("blocks_in_part", p.blocks_in_part).text();
}

/// What `flash` chooses. To choose otherwise, derive from it, declare a function again, and give the type to `flash` as
/// its last template argument:
///
///     struct small_blocks : orrery::flash_policies {
///       static constexpr orrery::flash_block_policy forward() { return {.most_keys = 32, .blocks_in_part = 16}; }
///     };
///     using kernel = orrery::flash<float, orrery::instruction_set::avx512, small_blocks>;
///
/// Results depend on the policy by rounding only.
struct flash_policies {
  [[nodiscard]] static constexpr flash_block_policy forward() { return {.most_keys = 96, .blocks_in_part = 16}; }
  [[nodiscard]] static constexpr flash_block_policy backward() { return {.most_keys = 512, .blocks_in_part = 32}; }
};

}  // namespace orrery
