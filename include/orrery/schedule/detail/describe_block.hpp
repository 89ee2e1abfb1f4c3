// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <string>

#include "orrery/schedule/block.hpp"

namespace orrery::detail {

/// "key shard 3", "query shard 3 (slice 2)"; of a program that cuts shards into several chunks "chunk k3.1", which is
/// chunk 1 of key shard 3.
[[nodiscard]] inline std::string describe_block(const schedule::block& b, int chunks) {
  const bool is_query = b.side == schedule::side::query;
  return (chunks > 1 ? is_query ? "chunk q" : "chunk k"
          : is_query ? "query shard "
                     : "key shard ") +
         std::to_string(b.shard) + (chunks > 1 ? "." + std::to_string(b.chunk) : "") +
         (b.slice == 0 ? "" : " (slice " + std::to_string(b.slice) + ")");
}

}  // namespace orrery::detail
