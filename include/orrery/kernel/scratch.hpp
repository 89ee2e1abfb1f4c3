// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "orrery/kernel/flash_steps.hpp"
#include "orrery/kernel/token_blocks.hpp"
#include "orrery/kernel/view.hpp"

namespace orrery {

/// Takes arrays one after the other, each on a cache line of its own, from memory that somebody else owns.
template <class T>
class scratch_cursor {
 public:
  explicit constexpr scratch_cursor(T* memory) noexcept : next_(memory) {}

  [[nodiscard]] static constexpr std::int64_t padded(std::int64_t count) noexcept {
    constexpr std::int64_t line = 64 / static_cast<std::int64_t>(sizeof(T));
    return (count + line - 1) / line * line;
  }

  /// The distance of rows of `count` elements that puts them on lines of their own and not all into the same few sets
  /// of a cache: an odd number of lines.
  [[nodiscard]] static constexpr std::int64_t row_distance(std::int64_t count) noexcept {
    constexpr std::int64_t line = 64 / static_cast<std::int64_t>(sizeof(T));
    return ((count + line - 1) / line | 1) * line;
  }

  [[nodiscard]] constexpr T* take(std::int64_t count) noexcept {
    T* taken = next_;
    next_ += padded(count);
    return taken;
  }

 private:
  T* next_;
};

[[nodiscard]] constexpr std::int64_t round_up(std::int64_t count, std::int64_t granule) noexcept {
  return (count + granule - 1) / granule * granule;
}

/// Copies one head of a block of tokens to scratch rows `ld` apart, padded with zeros to `width` elements and to a
/// multiple of `granule` rows.
template <class S, class A>
inline void copy_tokens(const tensor_view<const S>& tensor, std::int64_t b, std::int64_t head,
                        const token_block& tokens, A* to, std::int64_t ld, std::int64_t width,
                        std::int64_t granule) noexcept {
  for (std::int64_t i = 0; i < tokens.count; ++i) {
    const S* from = tensor.at(b, tokens.first + i, head);
    A* line = to + i * ld;
    if constexpr (std::is_same_v<S, A>) {
      std::memcpy(line, from, static_cast<std::size_t>(tensor.dim) * sizeof(A));
    } else {
      for (std::int64_t c = 0; c < tensor.dim; ++c) line[c] = static_cast<A>(from[c]);
    }
    for (std::int64_t c = tensor.dim; c < width; ++c) line[c] = A{0};
  }
  for (std::int64_t i = tokens.count; i < round_up(tokens.count, granule); ++i) {
    for (std::int64_t c = 0; c < width; ++c) to[i * ld + c] = A{0};
  }
}

/// Transposes `count` tokens of one head, from token `first` on, to scratch columns `ld` apart, times `factor`; columns
/// up to `width`, a multiple of the vectors' lanes, are padded with zeros.
template <class S, class A>
inline void transpose_tokens(const flash_steps<A>& steps, const tensor_view<const S>& tensor, std::int64_t b,
                             std::int64_t head, std::int64_t first, std::int64_t count, A factor, A* to,
                             std::int64_t ld, std::int64_t width) noexcept {
  steps.transpose(tensor.at(b, first, head), tensor.sequence_stride, count, tensor.dim, factor, to, ld, width);
}

}  // namespace orrery
