// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <string>

#include "orrery/layout/detail/layout_source.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/layout/segment.hpp"

namespace orrery {

/// A layout whose shards are cut into equally many tokens each, so that what a mask hides of a shard need not be sent,
/// chunk by chunk. Which tokens are whose does not change.
///
///     // Of a million tokens on 64 ranks, a window of 4096 needs a quarter of the shard before a rank's own.
///     orrery::attention<orrery::ring, orrery::flash<float>> attend{
///         world, shape, orrery::causal{} & orrery::window{.left = 4095}, orrery::chunked{orrery::contiguous{}, 4}};
///
/// More chunks follow the mask more closely, and take longer to plan; messages stay as many, tiles have more and
/// smaller blocks. `chunks` is 1 to `schedule::most_chunks`, and on all ranks together at most 32768: an operator
/// refuses others.
template <layout_of_shards Layout = contiguous>
struct chunked {
  Layout layout{};
  int count = 1;  ///< of each shard

  [[nodiscard]] constexpr segments shard(int rank, int world, std::int64_t length) const {
    return layout.shard(rank, world, length);
  }
  [[nodiscard]] constexpr int chunks(int /*world*/, std::int64_t /*length*/) const noexcept { return count; }
  /// On devices, too, where `zigzag`, say, is run whole.
  [[nodiscard]] static constexpr bool asks_for_chunks() noexcept { return true; }
  [[nodiscard]] constexpr segments chunk(int rank, int chunk, int world, std::int64_t length) const {
    return detail::cut(layout.shard(rank, world, length), count, chunk);
  }
  [[nodiscard]] std::string name() const {
    return std::string{layout.name()} + " in " + std::to_string(count) + " chunks";
  }
};

template <layout_of_shards Layout>
chunked(Layout, int) -> chunked<Layout>;

}  // namespace orrery
