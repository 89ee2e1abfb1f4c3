// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

#include "orrery/attention/tile.hpp"
#include "orrery/device/code.hpp"
#include "orrery/device/tensor_map.hpp"
#include "orrery/kernel/cuda/blocks.hpp"
#include "orrery/kernel/cuda/shared_tiles.cuh"
#include "orrery/kernel/cuda/softmax_rows.cuh"
#include "orrery/kernel/cuda/visible_columns.cuh"
#include "orrery/kernel/cuda/wgmma/shared_tiles.cuh"
#include "orrery/kernel/device_flash_policies.hpp"
#include "orrery/mask/mask.hpp"

namespace orrery::detail {

/// The forward of `device_flash` by warpgroups, for head dimensions up to key_dim and value_dim: what
/// `device_flash_forward` computes, with the instructions of compute capability 9.0.
///
/// A block of threads has a tile of 64 queries for each of its two computing warpgroups (Shah et al., arXiv
/// 2407.08608). One warp of another warpgroup goes through the keys' tiles and brings them to shared memory by tensor
/// copies, two tiles ahead; mbarriers say which have come, and which are not needed any more. A computing warpgroup
/// begins the product of the queries and the next keys, then that of the current weights and values, and makes weights
/// of the former's scores while the latter is on its way. Where registers allow, warpgroups take turns in beginning
/// products, so that one has the tensor cores while the other exponentiates.
template <class T, class Mask, int key_dim, int value_dim, class Policies = device_flash_policies>
struct device_flash_wgmma_forward {
  static constexpr int groups = 2;  ///< that compute
  static constexpr int rows = 64 * groups;
  static constexpr device_warpgroup_policy policy = Policies::warpgroup_forward(key_dim, value_dim);
  static constexpr int columns = policy.columns;
  static constexpr int stages = policy.stages;
  static constexpr int threads_of_block = 128 * (1 + groups);
  static constexpr bool take_turns = policy.take_turns;

  /// Registers of a thread, once each warpgroup has its task. Together at most what the block was launched with, 168
  /// for each thread: a warpgroup that asked for more would wait for ever.
  static constexpr int producer_registers = policy.producer_registers;
  static constexpr int registers_to_compute = policy.compute_registers;
  static_assert(producer_registers + groups * registers_to_compute <= 65536 / threads_of_block / 8 * 8 * (1 + groups));
  static_assert(columns == 64 || columns == 128, "orrery: a policy for warpgroups needs .columns 64 or 128");
  static_assert(stages == 2, "orrery: a policy for warpgroups needs .stages = 2");

  device_blocks<forward_queries<T, float>> queries;
  device_blocks<forward_keys<T>> keys;
  head_map heads;
  float scale;
  Mask mask;
  tensor_map query_maps[device_blocks<forward_queries<T, float>>::most];
  tensor_map key_maps[device_blocks<forward_keys<T>>::most];
  tensor_map value_maps[device_blocks<forward_keys<T>>::most];

  using rows_of_warp = device_flash_rows<1, columns, value_dim>;
  using visible_pairs = typename rows_of_warp::template by_row<std::uint32_t>;
  using query_tile = swizzled_tile<rows, key_dim>;
  using key_tile = swizzled_tile<columns, key_dim>;
  using value_tile = swizzled_tile<columns, value_dim>;

  static constexpr int keys_at = query_tile::bytes;
  static constexpr int values_at = keys_at + stages * key_tile::bytes;
  static constexpr int row_positions_at = values_at + stages * value_tile::bytes;
  static constexpr int positions_at = row_positions_at + rows * 8;
  static constexpr int announcements_at = positions_at + stages * columns * 8;
  static constexpr int mbarriers_at = announcements_at + stages * 8;
  static constexpr int sums_at = mbarriers_at + (2 + 4 * stages) * 8;
  static constexpr int shared_bytes = sums_at + rows_of_warp::shared_bytes(rows);
  static constexpr unsigned tiles_of_sum = columns_of_sum / columns;

  /// Makes the kernel, with tensor maps from `Device`.
  template <class Device>
  [[nodiscard]] static device_flash_wgmma_forward on(const device_blocks<forward_queries<T, float>>& queries,
                                                     const device_blocks<forward_keys<T>>& keys, const head_map& heads,
                                                     float scale, const Mask& mask) {
    device_flash_wgmma_forward body{queries, keys, heads, scale, mask, {}, {}, {}};
    for (int i = 0; i < queries.count; ++i) {
      const auto& one = queries.of[i];
      body.query_maps[i] = Device::map(tensor_box::of(one.q, one.positions.tokens(), rows));
    }
    for (int i = 0; i < keys.count; ++i) {
      const auto& one = keys.of[i];
      body.key_maps[i] = Device::map(tensor_box::of(one.k, one.positions.tokens(), columns));
      body.value_maps[i] = Device::map(tensor_box::of(one.v, one.positions.tokens(), columns));
    }
    return body;
  }

  [[nodiscard]] std::int64_t blocks() const noexcept { return device_item::count(queries, rows); }

  template <class Threads>
  ORRERY_DEVICE void operator()(const Threads& threads) const {
    const int warp = threads.uniform(threads.warp());
    if (threads.thread() == 0) {
      threads.mbarrier_init(queries_are_there, 1);
      threads.mbarrier_init(values_to_clear, 1);
      for (int stage = 0; stage < stages; ++stage) {
        threads.mbarrier_init(keys_are_there(stage), 1);
        threads.mbarrier_init(values_are_there(stage), 1);
        threads.mbarrier_init(keys_are_read(stage), 4 * groups);
        threads.mbarrier_init(values_are_read(stage), 4 * groups);
      }
      threads.fence_async_proxy();
    }
    threads.barrier();
    const device_item item = device_item::of(queries, threads.block(), rows);
    if (warp < 4) {
      threads.template give_registers_back<producer_registers>();
      if (warp == 0) bring(threads, item);
    } else {
      threads.template take_registers<registers_to_compute>();
      compute(threads, item, warp - 4);
    }
  }

 private:
  static constexpr int queries_are_there = mbarriers_at;
  static constexpr int values_to_clear = mbarriers_at + 8;  ///< are there, some to be cleared before others read them
  static constexpr int keys_are_there(int stage) { return mbarriers_at + 8 * (2 + stage); }
  static constexpr int values_are_there(int stage) { return mbarriers_at + 8 * (2 + stages + stage); }
  static constexpr int keys_are_read(int stage) { return mbarriers_at + 8 * (2 + 2 * stages + stage); }
  static constexpr int values_are_read(int stage) { return mbarriers_at + 8 * (2 + 3 * stages + stage); }

  static constexpr key_tile keys_of(int stage) { return {keys_at + stage * key_tile::bytes}; }
  static constexpr value_tile values_of(int stage) { return {values_at + stage * value_tile::bytes}; }
  static constexpr shared_positions row_positions() { return {row_positions_at}; }
  static constexpr shared_positions positions_of(int stage) { return {positions_at + stage * columns * 8}; }
  static constexpr int announcement_of(int stage) { return announcements_at + 8 * stage; }

  /// The work of the producer warp: copies the queries, and the keys and values that they see.
  template <class Threads>
  ORRERY_DEVICE void bring(const Threads& threads, const device_item& item) const {
    const std::int64_t key_head = heads.key_head(item.head);
    write_positions<rows>(threads, row_positions(), item.tokens);
    threads.converge();
    const auto classify = [&](std::int64_t first, std::int64_t last) {
      return mask.classify(row_positions()(threads, 0), row_positions()(threads, rows - 1), first, last);
    };
    const bool leads = threads.lane() == 0;
    device_cursor<forward_keys<T>, columns> next{keys, {key_head, key_head + 1}};
    bool more = next.next(classify);
    if (!more) {
      if (leads) {
        tile_announcement::of(0, visibility::none, true).write(threads, announcement_of(0));
        threads.mbarrier_arrive(keys_are_there(0));
      }
      return;
    }
    if (leads) {
      threads.mbarrier_arrive_expecting(queries_are_there, query_tile::bytes);
      query_tile{0}.copy(threads, query_maps[item.block], queries_are_there, item.tokens.first, item.head, item.batch);
    }
    int parity_to_clear = 0;
    for (unsigned n = 0; more; ++n) {
      const stage_of<stages> of{n};
      const device_cursor<forward_keys<T>, columns> at = next;
      const int count = static_cast<int>(at.tokens().count);
      more = next.next(classify);
      threads.mbarrier_wait(keys_are_read(of.stage), of.parity ^ 1);
      if (at.seen() == visibility::some) write_positions<columns>(threads, positions_of(of.stage), at.tokens());
      if (leads) tile_announcement::of(count, at.seen(), !more).write(threads, announcement_of(of.stage));
      threads.converge();  // what all lanes wrote is announced by the first one's arrival
      if (leads) {
        threads.mbarrier_arrive_expecting(keys_are_there(of.stage), key_tile::bytes);
        keys_of(of.stage).copy(threads, key_maps[at.block_index()], keys_are_there(of.stage), at.tokens().first,
                               key_head, item.batch);
      }
      unseen_columns<columns> unseen;
      bool clears = false;
      const bool is_end = at.tokens().first + count == at.block().positions.tokens();
      if (at.seen() == visibility::some || (count < columns && !is_end)) {
        unseen = unseen_columns<columns>::of(threads, count, is_end, at.seen(), [&](int column) {
          const std::int64_t key = positions_of(of.stage)(threads, column);
          return any_meets<rows>(classify(key, key),
                                 [&](int row) { return mask.visible(row_positions()(threads, row), key); });
        });
        clears = unseen.any(threads);
      }
      threads.mbarrier_wait(values_are_read(of.stage), of.parity ^ 1);
      const int arrive = clears ? values_to_clear : values_are_there(of.stage);
      if (leads) {
        threads.mbarrier_arrive_expecting(arrive, value_tile::bytes);
        values_of(of.stage).copy(threads, value_maps[at.block_index()], arrive, at.tokens().first, key_head,
                                 item.batch);
      }
      if (clears) {
        threads.mbarrier_wait(values_to_clear, parity_to_clear);
        parity_to_clear ^= 1;
        unseen.clear(threads, values_of(of.stage));
        threads.fence_async_proxy();
        let_go(threads, values_are_there(of.stage));
      }
    }
  }

  /// The work of the computing warps, which `warp` counts.
  template <class Threads>
  ORRERY_DEVICE void compute(const Threads& threads, const device_item& item, int warp) const {
    const forward_queries<T, float>& block = queries.of[item.block];
    const int group = warp / 4;
    const score_factor factor{scale};
    const float sign = scale < 0 ? -1.0f : scale == 0 ? 0.0f : 1.0f;
    auto running = rows_of_warp::of(16 * warp, sums_at, rows);
    running.begin(threads, block, item);
    std::int64_t query_positions[2];
    running.for_rows(threads, [&](int, int half, int row) {
      query_positions[half] = item.tokens.position(row < item.tokens.count ? row : item.tokens.count - 1);
    });

    unsigned n = 0;  // of the tile whose scores are computed; the values to be added are its own or those before
    for (bool more = true; more;) {
      const stage_of<stages> of_first{n};
      threads.mbarrier_wait(keys_are_there(of_first.stage), of_first.parity);
      tile_announcement tile = tile_announcement::read(threads, announcement_of(of_first.stage));
      if (tile.count() == 0) {
        if (!block.fresh) return;
        break;
      }
      if (n == 0) threads.mbarrier_wait(queries_are_there, 0);
      auto scores = rows_of_warp::scores::zeros();
      visible_pairs visible = pairs_that_are_visible(threads, running, query_positions, of_first.stage, tile);
      begin_rows<T>(threads, scores, query_tile{0}, 64 * group, keys_of(of_first.stage));
      threads.template wait_for_products<0>();
      threads.hold(scores.of[0]);
      let_go(threads, keys_are_read(of_first.stage));
      prepare(threads, running, scores, sign, tile, visible);
      running.change(threads, running.weigh(threads, scores, factor.factor));
      rounded_rows<columns> weights;
      weights.template round<T>(threads, scores);

      if (take_turns && !ends_sum(n, tile) && group == groups - 1) pass_turn(threads, group);
      while (!ends_sum(n, tile)) {
        const stage_of<stages> of_values{n};
        const stage_of<stages> of_keys{++n};
        threads.mbarrier_wait(keys_are_there(of_keys.stage), of_keys.parity);
        tile = tile_announcement::read(threads, announcement_of(of_keys.stage));
        visible = pairs_that_are_visible(threads, running, query_positions, of_keys.stage, tile);
        if (take_turns) threads.named_barrier_sync(1 + group, 256);
        begin_rows<T>(threads, scores, query_tile{0}, 64 * group, keys_of(of_keys.stage));
        threads.mbarrier_wait(values_are_there(of_values.stage), of_values.parity);
        begin_columns<T>(threads, running.out, weights, values_of(of_values.stage));
        if (take_turns && !(ends_sum(n, tile) && group == groups - 1)) pass_turn(threads, group);
        threads.template wait_for_products<1>();
        threads.hold(scores.of[0]);
        let_go(threads, keys_are_read(of_keys.stage));
        prepare(threads, running, scores, sign, tile, visible);
        const auto changes = running.weigh(threads, scores, factor.factor);
        if constexpr (policy.overlap_softmax) {
          // Ends the basic block: compilers move the wait for products above exponentials of the same block. The values
          // have come, so this wait returns at once.
          threads.hold(scores.of[0]);
          threads.mbarrier_wait(values_are_there(of_values.stage), of_values.parity);
        }
        threads.template wait_for_products<0>();
        threads.hold(running.out.of[0]);
        threads.hold(scores.of[0]);
        let_go(threads, values_are_read(of_values.stage));
        running.change(threads, changes);
        weights.template round<T>(threads, scores);
      }
      const stage_of<stages> of_values{n};
      threads.mbarrier_wait(values_are_there(of_values.stage), of_values.parity);
      begin_columns<T>(threads, running.out, weights, values_of(of_values.stage));
      threads.template wait_for_products<0>();
      threads.hold(running.out.of[0]);
      more = !tile.last();
      // Found anew: the loop has no registers to remember them.
      const device_item again = device_item::of(queries, threads.block(), rows);
      if (n >= tiles_of_sum || !queries.of[again.block].fresh) {
        running.fetch(threads, queries.of[again.block], again);
      }
      if (more) {
        let_go(threads, values_are_read(of_values.stage));
        running.flush(threads, queries.of[again.block], again);
        ++n;
      }
    }
    const device_item again = device_item::of(queries, threads.block(), rows);
    running.finish(threads, queries.of[again.block], again);
  }

  /// Returns true for the last tile of all, and the last one of those whose weighted values become one sum in
  /// registers.
  static constexpr bool ends_sum(unsigned n, const tile_announcement& tile) noexcept {
    return tile.last() || n % tiles_of_sum == tiles_of_sum - 1;
  }

  /// The next group may begin its products.
  template <class Threads>
  static ORRERY_DEVICE void pass_turn(const Threads& threads, int group) {
    threads.named_barrier_arrive(1 + (group + 1 < groups ? group + 1 : 0), 256);
  }

  /// Asks the mask. Called before there are scores, so that the mask can use the registers that scores will take.
  template <class Threads>
  ORRERY_DEVICE visible_pairs pairs_that_are_visible(const Threads& threads, const rows_of_warp& running,
                                                     const std::int64_t (&query_positions)[2], int stage,
                                                     const tile_announcement& tile) const {
    visible_pairs visible{};
    if (!hides(tile)) return visible;
    running.for_rows(threads, [&](int m, int half, int) {
      const std::int64_t query = query_positions[half];
      visible.of[m][half] = tile.seen() == visibility::all
                                ? columns_before(threads, tile.count())
                                : visible_keys(threads, mask, query, tile.count(),
                                               [&](int column) { return positions_of(stage)(threads, column); });
    });
    return visible;
  }

  static constexpr bool hides(const tile_announcement& tile) {
    return tile.seen() == visibility::some || tile.count() < columns;
  }

  /// Scores get the scale's sign, and what is not visible is hidden.
  template <class Threads>
  static ORRERY_DEVICE void prepare(const Threads& threads, const rows_of_warp& running,
                                    typename rows_of_warp::scores& scores, float sign, const tile_announcement& tile,
                                    const visible_pairs& visible) {
    if (sign != 1) {
      ORRERY_UNROLL
      for (int n = 0; n < columns / 8; ++n) {
        ORRERY_UNROLL
        for (int i = 0; i < 4; ++i) scores.of[0][n][i] *= sign;
      }
    }
    if (hides(tile)) running.hide(threads, scores, visible);
  }
};

}  // namespace orrery::detail
