// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <string>

#include "orrery/detail/initializer_text.hpp"

namespace orrery {

/// The gradients that one kernel of `device_flash`'s backward sums up.
enum class device_gradient { of_queries, of_keys, of_values, of_keys_and_values };

/// The tiles and threads of a kernel of `device_flash` that multiplies by mma.sync. Its rows, 16 * row_tiles * warps
/// tokens, are the side whose results it sums up; it goes through the other side in tiles of `columns` tokens.
struct device_tile_policy {
  int warps = 4;      ///< of a block of threads
  int row_tiles = 1;  ///< of 16 rows, for each warp: more read columns less often and take more registers
  int columns = 64;   ///< 32, 64 or, forward, 128; at most 32 for each warp
  int blocks_at_once =
      0;  ///< for each multiprocessor, a bound on registers; 0: as many as the compiler's choice allows

  [[nodiscard]] constexpr int rows() const noexcept { return 16 * row_tiles * warps; }
  constexpr bool operator==(const device_tile_policy&) const = default;
};

/// The same for a kernel that multiplies by wgmma: two warpgroups compute, of 64 rows each, and a third one copies.
struct device_warpgroup_policy {
  int columns = 64;  ///< 64 or 128
  /// Tiles of columns that have room in shared memory. Kernels are written for 2: at head dimension 128 three forward
  /// stages of 128 columns, 64 KiB each, do not fit beside the queries, and the producer counts tiles modulo powers
  /// of 2.
  int stages = 2;
  int producer_registers = 56;  ///< of a thread that copies; a multiple of 8, as the next
  int compute_registers = 224;  ///< of a thread that computes
  bool take_turns = false;      ///< whether warpgroups take turns in beginning products; of the forward only
  bool overlap_softmax = true;  ///< whether exponentials come before the wait for a product; of the forward only

  constexpr bool operator==(const device_warpgroup_policy&) const = default;
};

/// The policy as its designated initialiser: "{.warps = 4, .row_tiles = 2, .columns = 64, .blocks_at_once = 0}".
[[nodiscard]] inline std::string to_string(const device_tile_policy& p) {
  return detail::initializer_text{}
      .member("warps", p.warps)
      .member("row_tiles", p.row_tiles)
      .member("columns", p.columns)
      .member("blocks_at_once", p.blocks_at_once)
      .text();
}
[[nodiscard]] inline std::string to_string(const device_warpgroup_policy& p) {
  return detail::initializer_text{}
      .member("columns", p.columns)
      .member("stages", p.stages)
      .member("producer_registers", p.producer_registers)
      .member("compute_registers", p.compute_registers)
      .member("take_turns", p.take_turns)
      .member("overlap_softmax", p.overlap_softmax)
      .text();
}

/// What `device_flash` chooses, by the head dimensions to which it pads. To choose otherwise, derive from it, declare
/// a function again, and give the type to `device_flash` as its last template argument:
///
///     struct short_tiles : orrery::device_flash_policies {
///       static constexpr orrery::device_tile_policy forward(int, int) { return {.warps = 4, .columns = 32}; }
///     };
///     using kernel = orrery::device_flash<orrery::bfloat16, 128, orrery::detail::gpu,
///                                         orrery::device_instructions::mma_sync, short_tiles>;
///
/// What does not fit a device's registers or shared memory does not compile, or is refused when an operator is made.
/// Results depend on the policy by rounding only.
struct device_flash_policies {
  /// A warp's 32 rows where its registers hold their sums. Three blocks for each multiprocessor, where a thread's sums
  /// and scores leave registers for them: without this bound compilers take more.
  [[nodiscard]] static constexpr device_tile_policy forward(int key_dim, int value_dim) {
    const int row_tiles = key_dim + value_dim <= 256 ? 2 : 1;
    return {.warps = 4,
            .row_tiles = row_tiles,
            .columns = 64,
            .blocks_at_once = row_tiles == 1 && value_dim <= 128 ? 3 : 0};
  }
  /// `row_tiles` is 1. The gradient of queries asks for as many blocks as fit without spilled registers: left alone,
  /// compilers spill some in its loop to fit twice as many.
  [[nodiscard]] static constexpr device_tile_policy backward(int key_dim, int value_dim, device_gradient gradient) {
    const bool small = key_dim + value_dim <= 256;
    if (gradient == device_gradient::of_queries && small) {
      const bool smallest = key_dim + value_dim <= 128;
      return {.warps = smallest ? 4 : 8, .row_tiles = 1, .columns = 64, .blocks_at_once = smallest ? 3 : 1};
    }
    return {.warps = small ? 8 : 4, .row_tiles = 1, .columns = small ? 64 : 32, .blocks_at_once = 0};
  }
  /// The number of columns that warpgroups give to sums of `dim`, a head dimension as padded. 96 of them lie across
  /// one and a half panels of the swizzle pattern, which no published kernel is known to multiply. So they are taken as
  /// 128, whose last 32 are zeros and cost a third more time. A policy that returns `dim` multiplies 96.
  [[nodiscard]] static constexpr int warpgroup_columns(int dim) { return dim == 96 ? 128 : dim; }
  [[nodiscard]] static constexpr device_warpgroup_policy warpgroup_forward(int key_dim, int value_dim) {
    return {.columns = key_dim + value_dim <= 320 ? 128 : 64,
            .stages = 2,
            .producer_registers = value_dim > 128  ? 72
                                  : value_dim > 64 ? 88
                                                   : 120,
            .compute_registers = value_dim > 128  ? 216
                                 : value_dim > 64 ? 208
                                                  : 192,
            .take_turns = key_dim <= 128};
  }
  /// As many columns as registers have room for.
  [[nodiscard]] static constexpr device_warpgroup_policy warpgroup_backward(int key_dim, int value_dim,
                                                                            device_gradient gradient) {
    const bool first = gradient != device_gradient::of_values;
    const bool both = gradient == device_gradient::of_keys_and_values;
    const int columns = !both && (first ? key_dim : value_dim) <= 128 ? 128 : 64;
    // Registers of a thread for its sums, scores and their gradients, of its two rows; there are at most 192.
    const int accumulators = ((first ? key_dim + columns : 0) + (!first || both ? value_dim : 0) + columns) / 2;
    return {.columns = columns,
            .stages = 2,
            .producer_registers = accumulators < 160    ? 104
                                  : accumulators <= 176 ? 88
                                                        : 56,
            .compute_registers = accumulators < 160    ? 200
                                 : accumulators <= 176 ? 208
                                                       : 224,
            .take_turns = false};
  }
};

}  // namespace orrery
