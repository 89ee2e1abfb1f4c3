// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

#include "orrery/device/code.hpp"
#include "orrery/tensor/view.hpp"

namespace orrery::detail {

/// The box that one tensor copy (PTX ISA, "cp.async.bulk.tensor") brings to shared memory. Of a tensor of 16-bit
/// elements with dimensions [dim, sequence, head, batch], it is 64 elements of `rows` tokens of one head. Elements
/// beyond the extents of the tensor arrive as 0.
struct tensor_box {
  static constexpr int columns = 64;  ///< 128 bytes: one row of a swizzled tile

  const void* data = nullptr;
  std::int64_t extent[4] = {};        ///< in elements, dim first
  std::int64_t stride_bytes[3] = {};  ///< of all dimensions but dim
  int rows = 0;

  /// Makes the box of the tokens [0, tokens) of a view.
  template <class T>
  [[nodiscard]] static constexpr tensor_box of(const tensor_view<const T>& view, std::int64_t tokens,
                                               int rows) noexcept {
    static_assert(sizeof(T) == 2);
    // A dimension of one element has an arbitrary stride, but the map needs a valid one.
    const auto stride = [](std::int64_t size, std::int64_t elements) { return size == 1 ? 16 : 2 * elements; };
    return {view.data,
            {view.dim, tokens, view.heads, view.batch},
            {stride(tokens, view.sequence_stride), stride(view.heads, view.head_stride),
             stride(view.batch, view.batch_stride)},
            rows};
  }

  /// A tensor without elements is never read, and its map is empty.
  [[nodiscard]] constexpr bool is_empty() const noexcept {
    return extent[0] == 0 || extent[1] == 0 || extent[2] == 0 || extent[3] == 0;
  }

  /// Returns true if a tensor map can describe this box: addresses and strides must be multiples of 16 bytes, strides
  /// positive and below 2^40, and coordinates below 2^31 (CUDA driver API, cuTensorMapEncodeTiled).
  [[nodiscard]] bool has_map() const noexcept {
    if (reinterpret_cast<std::uintptr_t>(data) % 16 != 0 || extent[0] % 8 != 0) return false;
    for (const std::int64_t size : extent) {
      if (size <= 0 || size >= std::int64_t{1} << 31) return false;
    }
    for (const std::int64_t stride : stride_bytes) {
      if (stride <= 0 || stride % 16 != 0 || stride >= std::int64_t{1} << 40) return false;
    }
    return true;
  }
};

/// A tensor box in the form that a device reads: the bits of a CUtensorMap.
struct alignas(128) tensor_map {
  std::uint64_t words[16] = {};
};

/// Returns the descriptor of a matrix in shared memory for wgmma (PTX ISA, "Matrix Descriptor Format"). Bits 0 to 13
/// are the address, 16 to 29 the byte offset of the leading dimension, and 32 to 45 that of the stride dimension, each
/// without its four low bits. Bits 49 to 51 are the base offset, which is 0 if the swizzle pattern begins at multiples
/// of 1024 bytes. Bits 62 and 63 are the swizzle, here always 1, the swizzle of 128 bytes.
[[nodiscard]] constexpr std::uint64_t matrix_descriptor(std::uint32_t address, int leading_bytes,
                                                        int stride_bytes) noexcept {
  const auto encode = [](std::uint32_t value) { return static_cast<std::uint64_t>((value & 0x3ffffu) >> 4); };
  return encode(address) | encode(static_cast<std::uint32_t>(leading_bytes)) << 16 |
         encode(static_cast<std::uint32_t>(stride_bytes)) << 32 | std::uint64_t{1} << 62;
}

/// Returns the descriptor of the matrix that lies `bytes` bytes, a multiple of 16, further on. One addition to the low
/// word.
[[nodiscard]] constexpr std::uint64_t moved_descriptor(std::uint64_t matrix, int bytes) noexcept {
  const auto low = static_cast<std::uint32_t>(matrix) + static_cast<std::uint32_t>(bytes / 16);
  return (matrix & 0xffffffff00000000u) | low;
}

/// A tile of 16-bit elements in shared memory, in the layout that tensor copies write and wgmma reads: panels of 64
/// columns, each with its rows of 128 bytes one after the other. The i-th part of 16 bytes of row r is at place i xor
/// (r mod 8) (PTX ISA, "Shared Memory Matrix Layout", 128-byte swizzle). `at` must be a multiple of 1024.
template <int rows, int dim>
struct swizzled_tile {
  static_assert(rows % 8 == 0 && rows <= 256 && dim % 16 == 0);
  static constexpr int panels = (dim + tensor_box::columns - 1) / tensor_box::columns;
  static constexpr int row_bytes = 2 * tensor_box::columns;
  static constexpr int panel_bytes = rows * row_bytes;
  static constexpr int bytes = panels * panel_bytes;
  static constexpr int pattern_bytes = 8 * row_bytes;  ///< after which the swizzle repeats
  static constexpr int elements_of_row = dim;

  int at;

  /// Returns where the 16 bytes of the columns from 8 `part` on are.
  [[nodiscard]] constexpr int place(int row, int part) const noexcept {
    return at + part / 8 * panel_bytes + row * row_bytes + ((part ^ row) % 8) * 16;
  }

  /// Starts to copy a box of `rows` tokens from `token` on; the mbarrier must expect `bytes`. Called by one thread.
  template <class Threads>
  ORRERY_DEVICE void copy(const Threads& threads, const tensor_map& map, int mbarrier, std::int64_t token,
                          std::int64_t head, std::int64_t batch) const {
    ORRERY_UNROLL
    for (int panel = 0; panel < panels; ++panel) {
      threads.copy_tensor(
          at + panel * panel_bytes, map,
          {panel * tensor_box::columns, static_cast<int>(token), static_cast<int>(head), static_cast<int>(batch)},
          mbarrier);
    }
  }

  /// Returns the descriptor of rows from `first_row` on, a multiple of 8, and of columns 16k to 16k + 15, which are the
  /// inner dimension ("K-major"). The offset of the leading dimension is not used.
  template <class Threads>
  [[nodiscard]] ORRERY_DEVICE std::uint64_t along_columns(const Threads& threads, int first_row, int k) const {
    constexpr int steps = tensor_box::columns / 16;
    return moved_descriptor(matrix_descriptor(threads.address(at + first_row * row_bytes), 16, pattern_bytes),
                            k / steps * panel_bytes + k % steps * 32);
  }

  /// Returns the descriptor of rows 16k to 16k + 15, which are the inner dimension, and of columns from panel `panel`
  /// on ("MN-major": the offset of the leading dimension leads to the next 64 columns, that of the stride dimension to
  /// the next 8 rows).
  template <class Threads>
  [[nodiscard]] ORRERY_DEVICE std::uint64_t along_rows(const Threads& threads, int k, int panel) const {
    return moved_descriptor(matrix_descriptor(threads.address(at), panel_bytes, pattern_bytes),
                            panel * panel_bytes + 16 * k * row_bytes);
  }
};

}  // namespace orrery::detail
