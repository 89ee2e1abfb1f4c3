// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <string>

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery::schedule {

/// A hash of 64 bits of what a topology has written, for ranks to compare: equal schedules have equal digests on every
/// machine, and two that differ have, but for a chance of 2^-64, different ones.
///
/// Counts steps, exchanges, tiles and remarks. Does not count what `finish` adds (completions and slots), which follows
/// from the rest. Costs time linear in the programs that are added.
class schedule_digest {
 public:
  /// The next program, without its remarks.
  constexpr void add(const program& p) noexcept {
    add(word(p.rank, p.world), word(p.slices, 4 * p.chunks + static_cast<int>(p.pass)),
        word(p.steps.count, p.exchanges.count), word(p.sent.count, p.received.count),
        word(p.queries.count, p.keys.count));
    for (const step& one : p.steps) add(word(one.exchanges), word(one.tile.queries), word(one.tile.keys));
    for (const exchange& one : p.exchanges) {
      add(word(one.to, one.from), word(one.lane, static_cast<int>(one.payload)), word(one.posted, one.complete_before),
          word(one.sent), word(one.received));
    }
    add_all(p.sent);
    add_all(p.received);
    add_all(p.queries);
    add_all(p.keys);
  }

  /// The remarks of the next program.
  constexpr void add_remarks(const program& p) noexcept {
    add(word(p.rank, p.collectives.count));
    for (const collective& one : p.collectives) {
      add(word(static_cast<int>(one.kind), one.first_rank), word(one.ranks, one.rank_stride), word(one.exchanges));
    }
  }

  /// Sixteen hexadecimal digits.
  [[nodiscard]] std::string text() const {
    std::string digits(16, '0');
    std::uint64_t left = state_;
    for (std::size_t i = digits.size(); i-- > 0; left /= 16) digits[i] = "0123456789abcdef"[left % 16];
    return digits;
  }

  constexpr bool operator==(const schedule_digest&) const = default;

 private:
  [[nodiscard]] static constexpr std::uint64_t word(int a, int b) noexcept {
    return std::uint64_t{static_cast<std::uint32_t>(a)} << 32 | static_cast<std::uint32_t>(b);
  }
  [[nodiscard]] static constexpr std::uint64_t word(const range& r) noexcept { return word(r.first, r.count); }
  [[nodiscard]] static constexpr std::uint64_t word(const block& b) noexcept {
    return (word(b.shard, b.slice) ^ std::uint64_t{static_cast<std::uint8_t>(b.side)} << 63) +
           b.chunk * 0x9fb21c651e98df25u;
  }
  [[nodiscard]] static constexpr std::uint64_t word(const held_block& b) noexcept { return word(b.block); }

  /// The products do not wait for each other. Their factors are odd: one word that differs is never lost.
  constexpr void add(std::uint64_t a, std::uint64_t b = 0, std::uint64_t c = 0, std::uint64_t d = 0,
                     std::uint64_t e = 0) noexcept {
    const std::uint64_t words = a * 0x9e3779b97f4a7c15u + b * 0xbf58476d1ce4e5b9u + c * 0x94d049bb133111ebu +
                                d * 0xd6e8feb86659fd93u + e * 0xc2b2ae3d27d4eb4fu;
    state_ = (state_ ^ words) * 0xff51afd7ed558ccdu;
    state_ ^= state_ >> 32;
  }
  template <class Block>
  constexpr void add_all(const list<Block>& blocks) noexcept {
    const Block* const items = blocks.items;
    int i = 0;
    for (; i + 4 <= blocks.count; i += 4)
      add(word(items[i]), word(items[i + 1]), word(items[i + 2]), word(items[i + 3]));
    for (; i < blocks.count; ++i) add(word(items[i]));
  }

  std::uint64_t state_ = 0;
};

}  // namespace orrery::schedule
