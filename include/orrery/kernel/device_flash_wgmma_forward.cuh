// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "orrery/kernel/device_blocks.hpp"
#include "orrery/kernel/device_code.hpp"
#include "orrery/kernel/device_flash_rows.cuh"
#include "orrery/kernel/device_flash_steps.cuh"
#include "orrery/kernel/device_tensor_map.hpp"
#include "orrery/kernel/mask.hpp"
#include "orrery/kernel/tile.hpp"

namespace orrery {

/// The forward of `device_flash` by warpgroups, for head dimensions up to key_dim and value_dim: what
/// `device_flash_forward` computes, with the instructions of compute capability 9.0.
///
/// A block of threads has a tile of 64 queries for each of its two computing warpgroups (Shah et al., arXiv
/// 2407.08608). One warp of another warpgroup goes through the keys' tiles and brings them to shared memory by tensor
/// copies, two tiles ahead; mbarriers say which have come, and which are not needed any more. A computing warpgroup
/// begins the product of the queries and the next keys, then that of the current weights and values, and makes weights
/// of the former's scores while the latter is on its way. Where registers allow, warpgroups take turns in beginning
/// products, so that one has the tensor cores while the other exponentiates.
template <class T, class Mask, int key_dim, int value_dim>
struct device_flash_wgmma_forward {
  static constexpr int groups = 2;  ///< that compute
  static constexpr int rows = 64 * groups;
  static constexpr int columns = key_dim + value_dim <= 320 ? 128 : 64;
  static constexpr int stages = 2;
  static constexpr int threads_of_block = 128 * (1 + groups);
  static constexpr bool take_turns = key_dim <= 128;

  /// Of a thread, once each warpgroup has its task. Together no more than the block was launched with, 168 for each: a
  /// warpgroup that asked for more would wait for ever.
  static constexpr int registers_to_bring = value_dim > 128 ? 72 : 88;
  static constexpr int registers_to_compute = value_dim > 128 ? 216 : 208;
  static_assert(registers_to_bring + groups * registers_to_compute <= 65536 / threads_of_block / 8 * 8 * (1 + groups));

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
  static constexpr int positions_at = values_at + stages * value_tile::bytes;
  static constexpr int announcements_at = positions_at + stages * columns * 8;
  static constexpr int mbarriers_at = announcements_at + stages * 8;
  static constexpr int shared_bytes = mbarriers_at + (1 + 4 * stages) * 8;

  /// Can tensor copies read all of these tensors?
  [[nodiscard]] static bool can_copy(const device_blocks<forward_queries<T, float>>& queries,
                                     const device_blocks<forward_keys<T>>& keys) noexcept {
    const auto can = [](const tensor_box& box) { return box.is_empty() || box.has_map(); };
    bool all = true;
    for (const auto& one : queries) all = all && can(tensor_box::of(one.q, one.positions.tokens(), rows));
    for (const auto& one : keys) {
      all = all && can(tensor_box::of(one.k, one.positions.tokens(), columns)) &&
            can(tensor_box::of(one.v, one.positions.tokens(), columns));
    }
    return all;
  }

  /// With the maps that `Device` makes of the tensors.
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
      threads.template give_registers_back<registers_to_bring>();
      if (warp == 0) bring(threads, item);
    } else {
      threads.template take_registers<registers_to_compute>();
      compute(threads, item, warp - 4);
    }
  }

 private:
  static constexpr int queries_are_there = mbarriers_at;
  static constexpr int keys_are_there(int stage) { return mbarriers_at + 8 * (1 + stage); }
  static constexpr int values_are_there(int stage) { return mbarriers_at + 8 * (1 + stages + stage); }
  static constexpr int keys_are_read(int stage) { return mbarriers_at + 8 * (1 + 2 * stages + stage); }
  static constexpr int values_are_read(int stage) { return mbarriers_at + 8 * (1 + 3 * stages + stage); }

  static constexpr key_tile keys_of(int stage) { return {keys_at + stage * key_tile::bytes}; }
  static constexpr value_tile values_of(int stage) { return {values_at + stage * value_tile::bytes}; }
  static constexpr shared_positions positions_of(int stage) { return {positions_at + stage * columns * 8}; }

  /// The stages in turn, and the parity of their mbarriers' phases.
  struct ring {
    int stage = 0;
    int parity = 0;

    ORRERY_DEVICE void next() {
      if (++stage == stages) {
        stage = 0;
        parity ^= 1;
      }
    }
  };

  /// What the warp that brings a tile of keys says of it: a word in shared memory.
  struct announcement {
    int count;        ///< of its tokens; 0: there is no tile
    visibility seen;  ///< `some`: the tokens' positions are in shared memory, too
    bool last;

    template <class Threads>
    ORRERY_DEVICE void write(const Threads& threads, int stage) const {
      threads.store(announcements_at + 8 * stage, count | static_cast<int>(seen) << 8 | (last ? 1 : 0) << 16);
    }
    template <class Threads>
    [[nodiscard]] static ORRERY_DEVICE announcement read(const Threads& threads, int stage) {
      const int word = threads.uniform(threads.template load<int>(announcements_at + 8 * stage));
      return {word & 0xff, static_cast<visibility>(word >> 8 & 0xff), word >> 16 != 0};
    }
  };

  /// What one warp does: it brings the queries, and the keys and values that they see.
  template <class Threads>
  ORRERY_DEVICE void bring(const Threads& threads, const device_item& item) const {
    const std::int64_t key_head = heads.key_head(item.head);
    const std::int64_t first_position = item.tokens.position(0);
    const std::int64_t last_position = item.tokens.position(item.tokens.count - 1);
    const auto classify = [&](std::int64_t first, std::int64_t last) {
      return mask.classify(first_position, last_position, first, last);
    };
    const bool leads = threads.lane() == 0;
    device_cursor<forward_keys<T>> next{keys, {key_head, key_head + 1}, columns};
    bool more = next.next(classify);
    if (!more) {
      if (leads) {
        announcement{0, visibility::none, true}.write(threads, 0);
        threads.mbarrier_arrive(keys_are_there(0));
      }
      return;
    }
    if (leads) {
      threads.mbarrier_arrive_expecting(queries_are_there, query_tile::bytes);
      query_tile{0}.copy(threads, query_maps[item.block], queries_are_there, item.tokens.first, item.head, item.batch);
    }
    for (ring at; more; at.next()) {
      const token_block tokens = next.tokens();
      const visibility seen = next.seen();
      const int block = next.block_index();
      const int count = static_cast<int>(tokens.count);
      more = next.next(classify);
      threads.mbarrier_wait(keys_are_read(at.stage), at.parity ^ 1);
      if (seen == visibility::some) {
        for (int i = threads.lane(); i < count; i += 32) {
          threads.store(positions_of(at.stage).at + 8 * i, tokens.position(i));
        }
      }
      if (leads) announcement{count, seen, !more}.write(threads, at.stage);
      threads.converge();  // what all lanes wrote is announced by the first one's arrival
      if (leads) {
        threads.mbarrier_arrive_expecting(keys_are_there(at.stage), key_tile::bytes);
        keys_of(at.stage).copy(threads, key_maps[block], keys_are_there(at.stage), tokens.first, key_head, item.batch);
      }
      threads.mbarrier_wait(values_are_read(at.stage), at.parity ^ 1);
      if (leads) {
        threads.mbarrier_arrive_expecting(values_are_there(at.stage), value_tile::bytes);
        values_of(at.stage).copy(threads, value_maps[block], values_are_there(at.stage), tokens.first, key_head,
                                 item.batch);
      }
    }
  }

  /// What the others do; `warp` counts them.
  template <class Threads>
  ORRERY_DEVICE void compute(const Threads& threads, const device_item& item, int warp) const {
    const forward_queries<T, float>& block = queries.of[item.block];
    const int group = warp / 4;
    const score_factor factor{scale};
    const float sign = scale < 0 ? -1.0f : scale == 0 ? 0.0f : 1.0f;
    rows_of_warp running;
    running.first = 16 * warp;
    running.begin(threads, block, item);
    std::int64_t query_positions[2];
    running.for_rows(threads, [&](int, int half, int row) {
      query_positions[half] = item.tokens.position(row < item.tokens.count ? row : item.tokens.count - 1);
    });

    ring of_keys;
    threads.mbarrier_wait(keys_are_there(0), 0);
    announcement tile = announcement::read(threads, 0);
    if (tile.count > 0) {
      threads.mbarrier_wait(queries_are_there, 0);
      auto scores = rows_of_warp::scores::zeros();
      visible_pairs visible = pairs_that_are_visible(threads, running, query_positions, 0, tile);
      begin_scores(threads, scores, group, 0);
      threads.template wait_for_products<0>();
      threads.hold(scores.of[0]);
      let_go(threads, keys_are_read(0));
      prepare(threads, running, scores, sign, tile, visible);
      running.change(threads, running.weigh(threads, scores, factor.factor));
      weights_of_tile weights = rounded(threads, scores);

      ring of_values;
      if (take_turns && !tile.last && group == groups - 1) pass_turn(threads, group);
      while (!tile.last) {
        of_keys.next();
        threads.mbarrier_wait(keys_are_there(of_keys.stage), of_keys.parity);
        tile = announcement::read(threads, of_keys.stage);
        visible = pairs_that_are_visible(threads, running, query_positions, of_keys.stage, tile);
        if (take_turns) threads.named_barrier_sync(1 + group, 256);
        begin_scores(threads, scores, group, of_keys.stage);
        threads.mbarrier_wait(values_are_there(of_values.stage), of_values.parity);
        begin_sums(threads, running, weights, of_values.stage);
        if (take_turns && !(tile.last && group == groups - 1)) pass_turn(threads, group);
        threads.template wait_for_products<1>();
        threads.hold(scores.of[0]);
        let_go(threads, keys_are_read(of_keys.stage));
        prepare(threads, running, scores, sign, tile, visible);
        const auto changes = running.weigh(threads, scores, factor.factor);
        threads.template wait_for_products<0>();
        threads.hold(running.out.of[0]);
        threads.hold(scores.of[0]);
        let_go(threads, values_are_read(of_values.stage));
        running.change(threads, changes);
        weights = rounded(threads, scores);
        of_values.next();
      }
      threads.mbarrier_wait(values_are_there(of_values.stage), of_values.parity);
      begin_sums(threads, running, weights, of_values.stage);
      threads.template wait_for_products<0>();
      threads.hold(running.out.of[0]);
    }
    running.finish(threads, block, item);
  }

  /// A warp's weights as left operands of products: of 16 columns each.
  struct weights_of_tile {
    std::uint32_t of[static_cast<std::size_t>(columns) / 16][4];
  };
  template <class Threads>
  [[nodiscard]] static ORRERY_DEVICE weights_of_tile rounded(const Threads& threads,
                                                             const typename rows_of_warp::scores& scores) {
    weights_of_tile weights;
    ORRERY_UNROLL
    for (int k = 0; k < columns / 16; ++k) {
      ORRERY_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float(&two)[4] = scores.of[0][2 * k + i / 2];
        weights.of[k][i] = threads.template pack<T>(two[i % 2 * 2], two[i % 2 * 2 + 1]);
      }
    }
    return weights;
  }

  /// Begins the products of the group's queries and a stage's keys.
  template <class Threads>
  static ORRERY_DEVICE void begin_scores(const Threads& threads, typename rows_of_warp::scores& scores, int group,
                                         int stage) {
    threads.hold(scores.of[0]);
    threads.fence_products();
    ORRERY_UNROLL
    for (int k = 0; k < key_dim / 16; ++k) {
      threads.template multiply<T>(scores.of[0], query_tile{0}.along_columns(threads, 64 * group, k),
                                   keys_of(stage).along_columns(threads, 0, k), k > 0);
    }
    threads.commit_products();
  }

  /// Begins to add a stage's values, weighed. Products are of at most 128 columns.
  template <class Threads>
  static ORRERY_DEVICE void begin_sums(const Threads& threads, rows_of_warp& running, weights_of_tile& weights,
                                       int stage) {
    constexpr int part = value_dim <= 128 ? value_dim : value_dim / 2;
    threads.hold(running.out.of[0]);
    threads.hold(weights.of);
    threads.fence_products();
    ORRERY_UNROLL
    for (int k = 0; k < columns / 16; ++k) {
      threads.template multiply_add<T, 0, part / 8>(running.out.of[0], weights.of[k],
                                                    values_of(stage).along_rows(threads, k, 0));
      if constexpr (part < value_dim) {
        threads.template multiply_add<T, part / 8, part / 8>(
            running.out.of[0], weights.of[k], values_of(stage).along_rows(threads, k, part / tensor_box::columns));
      }
    }
    threads.commit_products();
  }

  /// The warp does not need any more what the mbarrier stands for.
  template <class Threads>
  static ORRERY_DEVICE void let_go(const Threads& threads, int mbarrier) {
    threads.converge();
    if (threads.lane() == 0) threads.mbarrier_arrive(mbarrier);
  }

  /// The next group may begin its products.
  template <class Threads>
  static ORRERY_DEVICE void pass_turn(const Threads& threads, int group) {
    threads.named_barrier_arrive(1 + (group + 1 < groups ? group + 1 : 0), 256);
  }

  /// Before there are scores, so that a mask has the registers to itself that scores would take.
  template <class Threads>
  ORRERY_DEVICE visible_pairs pairs_that_are_visible(const Threads& threads, const rows_of_warp& running,
                                                     const std::int64_t (&query_positions)[2], int stage,
                                                     const announcement& tile) const {
    visible_pairs visible{};
    if (!hides(tile)) return visible;
    running.for_rows(threads, [&](int m, int half, int) {
      const std::int64_t query = query_positions[half];
      visible.of[m][half] = visible_columns(threads, tile.count, [&](int column) {
        return tile.seen == visibility::all || mask.visible(query, positions_of(stage)(threads, column));
      });
    });
    return visible;
  }

  static constexpr bool hides(const announcement& tile) {
    return tile.seen == visibility::some || tile.count < columns;
  }

  /// Scores get the scale's sign, and what is not visible is hidden.
  template <class Threads>
  static ORRERY_DEVICE void prepare(const Threads& threads, const rows_of_warp& running,
                                    typename rows_of_warp::scores& scores, float sign, const announcement& tile,
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

}  // namespace orrery
