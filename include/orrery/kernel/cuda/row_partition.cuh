// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "orrery/device/code.hpp"
#include "orrery/tensor/view.hpp"

/// The parts of the work of kernels that move data, and the elements that their threads hold.
namespace orrery::detail {

/// The part of a tensor that one block of threads works on: some tokens of one head. Blocks are counted with the heads
/// fastest and the batch slowest: those that run together read whole tokens of a trainer's [..., head, dim] tensors,
/// and long runs of the packed [head, sequence, dim] ones.
struct device_rows {
  std::int64_t batch;
  std::int64_t head;
  std::int64_t first;  ///< token
  int count;

  [[nodiscard]] static constexpr std::int64_t blocks(std::int64_t batch, std::int64_t heads, std::int64_t tokens,
                                                     std::int64_t tokens_of_block) noexcept {
    return batch * heads * ((tokens + tokens_of_block - 1) / tokens_of_block);
  }
  [[nodiscard]] static constexpr device_rows of(std::int64_t block, std::int64_t heads, std::int64_t tokens,
                                                std::int64_t tokens_of_block) noexcept {
    // A grid has fewer than 2^31 blocks, and divisions of 64 bits would take longer than the block's work.
    const auto index = static_cast<std::uint32_t>(block);
    const auto head_count = static_cast<std::uint32_t>(heads);
    const auto parts = static_cast<std::uint32_t>((tokens + tokens_of_block - 1) / tokens_of_block);
    const std::uint32_t row = index / head_count;
    const std::int64_t first = row % parts * tokens_of_block;
    const std::int64_t left = tokens - first;
    return {row / parts, index % head_count, first, static_cast<int>(left < tokens_of_block ? left : tokens_of_block)};
  }
};

/// Returns true if all heads of the tensor can be read and written by vectors of 16 bytes, and `elements` at a time.
template <class T>
[[nodiscard]] constexpr bool moves_by_vectors(const tensor_view<T>& tensor, std::int64_t elements) noexcept {
  constexpr std::int64_t vector = 16 / static_cast<std::int64_t>(sizeof(T));
  return reinterpret_cast<std::uintptr_t>(tensor.data) % 16 == 0 && tensor.dim % elements == 0 &&
         tensor.batch_stride % vector == 0 && tensor.sequence_stride % vector == 0 && tensor.head_stride % vector == 0;
}

/// Elements that a thread holds at a time, in registers.
template <class T, int count>
struct device_elements {
  T of[static_cast<std::size_t>(count)];

  /// Reads them from global memory; by vectors, if these fill vectors, since the address is then aligned.
  template <class Threads>
  static ORRERY_DEVICE device_elements read(const Threads& threads, const T* from) {
    device_elements all;
    if constexpr (sizeof(T) * count % 16 == 0) {
      vector_words words[sizeof all.of / 16];
      for (std::size_t i = 0; i < sizeof all.of / 16; ++i) words[i] = threads.read_vector(from + i * (16 / sizeof(T)));
      std::memcpy(all.of, words, sizeof words);
    } else {
      for (int i = 0; i < count; ++i) all.of[i] = from[i];
    }
    return all;
  }

  template <class Threads>
  ORRERY_DEVICE void write(const Threads& threads, T* to) const {
    if constexpr (sizeof(T) * count % 16 == 0) {
      vector_words words[sizeof of / 16];
      std::memcpy(words, of, sizeof words);
      for (std::size_t i = 0; i < sizeof of / 16; ++i) threads.write_vector(to + i * (16 / sizeof(T)), words[i]);
    } else {
      for (int i = 0; i < count; ++i) to[i] = of[i];
    }
  }
};

/// How these kernels cut their work: of a tensor's head, so many tokens are a block's.
struct device_backend_sizes {
  static constexpr int threads = 256;
  static constexpr int tokens = 64;
  static constexpr int rows = 2048;  ///< where there is only one number for each token
  static constexpr int at_once = 4;  ///< of its pieces, a thread reads so many before it writes the first
};

/// One of the pieces of some elements into which a block's rows are cut, as a thread takes them, every 256th. A
/// division for the thread's first one, none for those that follow.
class device_piece {
 public:
  int row;
  int part;

  constexpr device_piece() = default;
  /// The thread's first, where rows have so many parts.
  constexpr device_piece(int thread, int parts) noexcept
      : row{thread / parts},
        part{thread % parts},
        parts_{parts},
        more_rows_{device_backend_sizes::threads / parts},
        more_parts_{device_backend_sizes::threads % parts} {}

  constexpr void next() noexcept {
    row += more_rows_;
    part += more_parts_;
    if (part >= parts_) {
      part -= parts_;
      ++row;
    }
  }

 private:
  int parts_;
  int more_rows_;
  int more_parts_;
};

/// The lanes of a warp that share a row of so many pieces, and how many rows a warp has at a time.
struct device_row_lanes {
  int of_row = 32;
  int rows = 1;

  explicit constexpr device_row_lanes(int parts) noexcept {
    for (; of_row > 1 && of_row / 2 >= parts; of_row /= 2) rows *= 2;
  }
};

}  // namespace orrery::detail
