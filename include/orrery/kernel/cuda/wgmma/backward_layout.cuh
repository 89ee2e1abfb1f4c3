// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include "orrery/device/code.hpp"
#include "orrery/device/tensor_map.hpp"
#include "orrery/kernel/cuda/backward_again.cuh"
#include "orrery/kernel/cuda/flash_backward.cuh"
#include "orrery/kernel/cuda/shared_tiles.cuh"
#include "orrery/kernel/cuda/wgmma/shared_tiles.cuh"
#include "orrery/kernel/device_flash_policies.hpp"

namespace orrery::detail {

/// The sizes of `device_flash_wgmma_backward`: its tiles, threads and registers, and where things are in shared memory.
template <int key_dim, int value_dim, device_gradient gradient, class Policies>
struct wgmma_backward_layout {
  static constexpr bool rows_are_queries = gradient == device_gradient::of_queries;
  static constexpr bool sums_first = gradient != device_gradient::of_values;  ///< grad_q or grad_k
  static constexpr bool sums_second =
      gradient == device_gradient::of_values || gradient == device_gradient::of_keys_and_values;

  static constexpr int groups = 2;  ///< that compute
  static constexpr int rows = 64 * groups;
  static constexpr int threads_of_block = 128 * (1 + groups);
  static constexpr device_warpgroup_policy policy = Policies::warpgroup_backward(key_dim, value_dim, gradient);
  static constexpr int columns = policy.columns;
  static_assert(columns == 64 || columns == 128, "orrery: a policy for warpgroups needs .columns 64 or 128");
  /// Registers of a thread, once each warpgroup has its task. Together at most what the block was launched with, 168
  /// for each thread: a warpgroup that asked for more would wait for ever.
  static constexpr int producer_registers = policy.producer_registers;
  static constexpr int registers_to_compute = policy.compute_registers;
  static_assert(producer_registers + groups * registers_to_compute <= 65536 / threads_of_block / 8 * 8 * (1 + groups));

  using first_rows = swizzled_tile<rows, key_dim>;
  using second_rows = swizzled_tile<rows, value_dim>;
  using first_columns = swizzled_tile<columns, key_dim>;
  using second_columns = swizzled_tile<columns, value_dim>;

  static constexpr int row_bytes = first_rows::bytes + (sums_first ? second_rows::bytes : 0);
  static constexpr int first_stages = policy.stages;
  static_assert(first_stages == 2, "orrery: a policy for warpgroups needs .stages = 2");
  /// One where there is no room for two: the last product of a tile needs its first columns.
  static constexpr int second_stages =
      row_bytes + first_stages * first_columns::bytes + 2 * second_columns::bytes <= 220 * 1024 ? 2 : 1;
  static_assert(
      sums_first || second_stages == first_stages,
      "a kernel that sums only the second columns releases both at one time: a stage less would be waited for");
  static constexpr int first_columns_at = row_bytes;
  static constexpr int second_columns_at = first_columns_at + first_stages * first_columns::bytes;
  static constexpr int row_positions_at = second_columns_at + second_stages * second_columns::bytes;
  // A stage of queries or keys also has their positions and log-sum-exp, and one of grad_out also has delta.
  static constexpr int column_positions_at = row_positions_at + rows * 8;
  static constexpr int lse_at = column_positions_at + first_stages * columns * 8;
  static constexpr int delta_at = lse_at + (rows_are_queries ? 0 : first_stages * columns * 4);
  static constexpr int announcements_at = delta_at + (rows_are_queries ? 0 : second_stages * columns * 4);
  static constexpr int mbarriers_at = announcements_at + first_stages * 8;
  static constexpr int unwritten_at = mbarriers_at + (2 + 2 * first_stages + 2 * second_stages) * 8;
  static constexpr int shared_bytes = unwritten_at + unwritten_parts::bytes(4 * groups);
  static_assert(shared_bytes <= 227 * 1024);
  static constexpr unsigned tiles_of_sum = columns_of_sum / columns;

  /// Signals the rows, and then tiles of columns that are brought again (see `unwritten_parts`).
  static constexpr int rows_are_there = mbarriers_at;
  /// Signals columns that have arrived, some of which must be cleared before other warps read them.
  static constexpr int columns_to_clear = mbarriers_at + 8;
  static constexpr int first_is_there(int stage) { return mbarriers_at + 8 * (2 + stage); }
  static constexpr int first_is_read(int stage) { return mbarriers_at + 8 * (2 + first_stages + stage); }
  static constexpr int second_is_there(int stage) { return mbarriers_at + 8 * (2 + 2 * first_stages + stage); }
  static constexpr int second_is_read(int stage) {
    return mbarriers_at + 8 * (2 + 2 * first_stages + second_stages + stage);
  }

  /// Initialises the mbarriers. Before a barrier.
  template <class Threads>
  static ORRERY_DEVICE void begin(const Threads& threads) {
    if (threads.thread() == 0) {
      threads.mbarrier_init(rows_are_there, 1);
      threads.mbarrier_init(columns_to_clear, rows_are_queries ? 1 : 2);
      for (int stage = 0; stage < first_stages; ++stage) {
        threads.mbarrier_init(first_is_there(stage), 1);
        threads.mbarrier_init(first_is_read(stage), 4 * groups);
      }
      for (int stage = 0; stage < second_stages; ++stage) {
        threads.mbarrier_init(second_is_there(stage), 1);
        threads.mbarrier_init(second_is_read(stage), 4 * groups);
      }
      threads.fence_async_proxy();
    }
  }

  static constexpr first_columns first_of(int stage) { return {first_columns_at + stage * first_columns::bytes}; }
  static constexpr second_columns second_of(int stage) { return {second_columns_at + stage * second_columns::bytes}; }
  static constexpr shared_positions row_positions() { return {row_positions_at}; }
  static constexpr shared_positions positions_of(int stage) { return {column_positions_at + stage * columns * 8}; }
  static constexpr int lse_of(int stage) { return lse_at + 4 * stage * columns; }
  static constexpr int delta_of(int stage) { return delta_at + 4 * stage * columns; }
  static constexpr unwritten_parts unwritten() { return {unwritten_at}; }
  static constexpr int announcement_of(int stage) { return announcements_at + 8 * stage; }
};

}  // namespace orrery::detail
