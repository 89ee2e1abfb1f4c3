// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "orrery/attention/token_blocks.hpp"
#include "orrery/kernel/cpu/microkernels.hpp"
#include "orrery/tensor/float16.hpp"
#include "orrery/tensor/view.hpp"

namespace orrery::detail {

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

template <class A>
inline void fill_zero(A* to, std::int64_t count) noexcept {
  for (std::int64_t i = 0; i < count; ++i) to[i] = A{0};
}

/// Consecutive elements in the type that the kernel computes in.
template <class S, class A>
inline void widen(const flash_steps<A>& steps, const S* from, A* to, std::int64_t count) noexcept {
  if constexpr (std::is_same_v<S, A>) {
    std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(A));
  } else if constexpr (std::is_same_v<S, bfloat16>) {
    steps.widen_bfloat16(from, to, count);
  } else {
    static_assert(std::is_same_v<S, float16>);
    steps.widen_float16(from, to, count);
  }
}

/// Copies one head of a block of tokens to scratch rows `ld` apart, padded with zeros to `width` elements and to a
/// multiple of the steps' `tile_rows`.
template <class S, class A>
inline void copy_tokens(const flash_steps<A>& steps, const tensor_view<const S>& tensor, std::int64_t b,
                        std::int64_t head, const token_block& tokens, A* to, std::int64_t ld,
                        std::int64_t width) noexcept {
  for (std::int64_t i = 0; i < tokens.count; ++i) {
    A* line = to + i * ld;
    widen(steps, tensor.at(b, tokens.first + i, head), line, tensor.dim);
    fill_zero(line + tensor.dim, width - tensor.dim);
  }
  for (std::int64_t i = tokens.count; i < round_up(tokens.count, steps.tile_rows); ++i) {
    fill_zero(to + i * ld, width);
  }
}

/// The copies of one head of a block of tokens, which is not empty, to scratch rows `ld` apart, padded with zeros to
/// `width` elements, to be made within `tiles` tiles of products.
template <class S, class A>
[[nodiscard]] inline row_copies<A> copies_of(const flash_steps<A>& steps, const tensor_view<const S>& tensor,
                                             std::int64_t b, std::int64_t head, const token_block& tokens, A* to,
                                             std::int64_t ld, std::int64_t width, std::int64_t tiles) noexcept {
  constexpr std::int64_t size = static_cast<std::int64_t>(sizeof(S));
  row_copies<A> copies;
  copies.from = reinterpret_cast<const std::byte*>(tensor.at(b, tokens.first, head));
  copies.stride = tensor.sequence_stride * size;
  copies.bytes = tensor.dim * size;
  copies.to = to;
  copies.ld = ld;
  copies.dim = tensor.dim;
  copies.width = width;
  copies.left = tokens.count;
  copies.each = tiles < tokens.count ? (tokens.count + tiles - 1) / (tiles > 0 ? tiles : 1) : 1;
  if constexpr (std::is_same_v<S, bfloat16>) {
    copies.widen = steps.widen_bfloat16;
  } else if constexpr (std::is_same_v<S, float16>) {
    copies.widen = steps.widen_float16;
  } else {
    static_assert(std::is_same_v<S, A>);
  }
  return copies;
}

/// Tokens [first, end) of one head, to be asked for within `tiles` tiles of products.
template <class S>
[[nodiscard]] inline row_prefetch rows_to_ask_for(const tensor_view<S>& tensor, std::int64_t b, std::int64_t head,
                                                  std::int64_t first, std::int64_t end, std::int64_t tiles,
                                                  bool to_write) noexcept {
  if (first >= end) return {};
  constexpr std::int64_t size = static_cast<std::int64_t>(sizeof(S));
  row_prefetch asked;
  asked.from = reinterpret_cast<const std::byte*>(tensor.at(b, first, head));
  asked.stride = tensor.sequence_stride * size;
  asked.bytes = tensor.dim * size;
  asked.left = end - first;
  asked.each = (end - first + tiles - 1) / tiles;
  asked.to_write = to_write;
  return asked;
}

/// Makes all copies that are left, and fills the rows after them, up to a multiple of the steps' `tile_rows`, with
/// zeros.
template <class A>
inline void finish_copies(const flash_steps<A>& steps, row_copies<A>& copies, std::int64_t tokens) noexcept {
  steps.copy(copies);
  for (std::int64_t i = tokens; i < round_up(tokens, steps.tile_rows); ++i) {
    fill_zero(copies.to + (i - tokens) * copies.ld, copies.width);
  }
}

/// Asks for tokens [first, end) of one head, which will be copied soon: a trainer's rows share no page, and no
/// prefetcher of the processor follows them.
template <class S>
inline void prefetch_tokens(const tensor_view<const S>& tensor, std::int64_t b, std::int64_t head, std::int64_t first,
                            std::int64_t end) noexcept {
  constexpr std::int64_t line = 64 / static_cast<std::int64_t>(sizeof(S));
  for (std::int64_t token = first; token < end; ++token) {
    const S* row = tensor.at(b, token, head);
    for (std::int64_t c = 0; c < tensor.dim; c += line) __builtin_prefetch(row + c, 0, 2);
  }
}

/// Transposes `count` tokens of one head, from token `first` on, to scratch columns `ld` apart, times `factor`; columns
/// up to `width`, a multiple of the vectors' lanes, are padded with zeros.
template <class S, class A>
inline void transpose_tokens(const flash_steps<A>& steps, const tensor_view<const S>& tensor, std::int64_t b,
                             std::int64_t head, std::int64_t first, std::int64_t count, A factor, A* to,
                             std::int64_t ld, std::int64_t width) noexcept {
  if (width == 0) return;  // of an empty shard, which has no address
  if constexpr (std::is_same_v<S, A>) {
    steps.transpose(tensor.at(b, first, head), tensor.sequence_stride, count, tensor.dim, factor, to, ld, width);
  } else {
    constexpr std::int64_t most_rows = 16;  // the widest vectors' lanes
    constexpr std::int64_t part = 64;
    A wide[most_rows * part];
    for (std::int64_t row = 0; row < width; row += steps.lanes) {
      const std::int64_t left = count - row;
      const std::int64_t rows = left < 0 ? 0 : left < steps.lanes ? left : steps.lanes;
      for (std::int64_t c = 0; c < tensor.dim; c += part) {
        const std::int64_t dims = tensor.dim - c < part ? tensor.dim - c : part;
        for (std::int64_t i = 0; i < rows; ++i) {
          widen(steps, tensor.at(b, first + row + i, head) + c, wide + i * part, dims);
        }
        steps.transpose(wide, part, rows, dims, factor, to + c * ld + row, ld, steps.lanes);
      }
    }
  }
}

}  // namespace orrery::detail
