// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "orrery/attention/tile.hpp"
#include "orrery/device/code.hpp"
#include "orrery/device/tensor_map.hpp"
#include "orrery/kernel/cuda/backward_again.cuh"
#include "orrery/kernel/cuda/blocks.hpp"
#include "orrery/kernel/cuda/shared_tiles.cuh"
#include "orrery/kernel/cuda/wgmma/backward_layout.cuh"
#include "orrery/kernel/cuda/wgmma/pairs.cuh"
#include "orrery/kernel/cuda/wgmma/shared_tiles.cuh"
#include "orrery/mask/mask.hpp"

namespace orrery::detail {

/// The backward of `device_flash` by warpgroups, for head dimensions up to key_dim and value_dim: what
/// `device_flash_backward` computes, with the instructions of compute capability 9.0.
///
/// A block of threads has a tile of 128 rows, of the side whose gradients it sums up, 64 for each of its two computing
/// warpgroups, and goes through the other side's tiles, the columns, in a fixed order, so that nothing is added by two
/// blocks. One warp of another warpgroup brings the columns by tensor copies, queries and keys (the first tensors of
/// their sides) and grad_out and values (the second ones) in rings of their own. A computing warpgroup begins the
/// product of the first tensors, then that of the second ones, makes probabilities of the former while the latter is on
/// its way and gradients of scores of both, and adds them, weighing columns, to sums in its registers; the last of
/// these is waited for when the next tile's first is on its way. While it computes the other one multiplies.
///
/// That grad_q has a kernel of its own makes 7 products of what one kernel would do by 5; but then all blocks would add
/// to grad_q, in an order that is either not the same in each call or that blocks wait for. Where products take all of
/// the time, the backward is 5/7 as fast as the forward, counting 2.5 times its flop.
template <class T, class Mask, int key_dim, int value_dim, device_gradient gradient,
          class Policies = device_flash_policies>
struct device_flash_wgmma_backward : wgmma_backward_layout<key_dim, value_dim, gradient, Policies> {
  using layout = wgmma_backward_layout<key_dim, value_dim, gradient, Policies>;
  using first_rows = typename layout::first_rows;
  using second_rows = typename layout::second_rows;
  using first_columns = typename layout::first_columns;
  using second_columns = typename layout::second_columns;
  using layout::rows_are_queries, layout::sums_first, layout::sums_second, layout::groups, layout::rows,
      layout::columns, layout::producer_registers, layout::registers_to_compute, layout::row_bytes,
      layout::first_stages, layout::second_stages, layout::tiles_of_sum, layout::rows_are_there,
      layout::columns_to_clear, layout::first_is_there, layout::first_is_read, layout::second_is_there,
      layout::second_is_read, layout::first_of, layout::second_of, layout::row_positions, layout::positions_of,
      layout::lse_of, layout::delta_of, layout::announcement_of, layout::unwritten;
  using row_block = std::conditional_t<rows_are_queries, wgmma_query_rows, wgmma_key_rows>;
  using column_block = std::conditional_t<rows_are_queries, wgmma_key_columns, wgmma_query_columns>;
  static constexpr std::size_t most = device_blocks<row_block>::most;

  device_blocks<row_block> row_side;
  device_blocks<column_block> column_side;
  head_map heads;
  float scale;
  Mask mask;
  tensor_map first_row_maps[most], second_row_maps[most];
  tensor_map first_column_maps[most], second_column_maps[most];

  /// Makes the kernel, with tensor maps from `Device`.
  template <class Device>
  [[nodiscard]] static device_flash_wgmma_backward on(const device_blocks<backward_queries<T, float>>& queries,
                                                      const device_blocks<backward_keys<T, float>>& keys,
                                                      const head_map& heads, float scale, const Mask& mask) {
    device_flash_wgmma_backward body{{}, {}, {}, heads, scale, mask, {}, {}, {}, {}};
    const auto map = [](const tensor_view<const T>& view, const segments& positions, int box_rows) {
      return Device::map(tensor_box::of(view, positions.tokens(), box_rows));
    };
    for (const auto& one : queries) {
      if constexpr (rows_are_queries) {
        const int i = body.row_side.count++;
        body.row_side.of[i] = {one.grad_q, one.lse, one.delta, one.positions, one.fresh};
        body.first_row_maps[i] = map(one.q, one.positions, rows);
        body.second_row_maps[i] = map(one.grad_out, one.positions, rows);
      } else {
        const int i = body.column_side.count++;
        body.column_side.of[i] = {one.lse, one.delta, one.positions};
        body.first_column_maps[i] = map(one.q, one.positions, columns);
        body.second_column_maps[i] = map(one.grad_out, one.positions, columns);
      }
    }
    for (const auto& one : keys) {
      if constexpr (rows_are_queries) {
        const int i = body.column_side.count++;
        body.column_side.of[i] = {one.positions};
        body.first_column_maps[i] = map(one.k, one.positions, columns);
        body.second_column_maps[i] = map(one.v, one.positions, columns);
      } else {
        const int i = body.row_side.count++;
        body.row_side.of[i] = {sums_first ? one.grad_k : one.grad_v, one.grad_v, one.positions, one.fresh};
        body.first_row_maps[i] = map(one.k, one.positions, rows);
        body.second_row_maps[i] = map(one.v, one.positions, rows);
      }
    }
    return body;
  }

  [[nodiscard]] constexpr std::int64_t blocks() const noexcept { return device_item::count(row_side, rows); }

  template <class Threads>
  ORRERY_DEVICE void operator()(const Threads& threads) const {
    const int warp = threads.uniform(threads.warp());
    layout::begin(threads);
    threads.barrier();
    if (warp < 4) {
      threads.template give_registers_back<producer_registers>();
      if (warp == 0) bring(threads);
    } else {
      threads.template take_registers<registers_to_compute>();
      compute(threads, warp - 4);
    }
  }

 private:
  using pairs = device_flash_wgmma_pairs<columns, rows_are_queries>;
  using scores = typename pairs::scores;
  using operands = rounded_rows<columns>;
  // Where nothing is summed, fragments that nobody uses.
  using first_sums = fragments<1, (sums_first ? key_dim : 32) / 8>;
  using second_sums = fragments<1, (sums_second ? value_dim : 32) / 8>;
  using again = device_flash_backward_again<T, rows_are_queries, sums_first, sums_second, first_sums, second_sums>;

  /// Returns what the block works on. Under a causal mask, rows that see or are seen by most come first. Computed again
  /// wherever it is needed, since a computing thread has no registers to keep it.
  template <class Threads>
  ORRERY_DEVICE device_item item_of(const Threads& threads) const {
    const int index = threads.uniform(static_cast<int>(threads.block()));
    return device_item::of(row_side, rows_are_queries ? index : blocks() - 1 - index, rows);
  }

  constexpr bool is_visible(std::int64_t row, std::int64_t column) const {
    return rows_are_queries ? mask.visible(row, column) : mask.visible(column, row);
  }

  constexpr head_group column_heads(std::int64_t head) const noexcept {
    if constexpr (rows_are_queries) {
      const std::int64_t key_head = heads.key_head(head);
      return {key_head, key_head + 1};
    } else {
      return head_group::of(heads, head, column_side.count == 0 ? 0 : column_side.of[0].lse.heads);
    }
  }

  /// The work of the producer warp: copies the rows, then the tiles of columns that they meet, and announces the end.
  template <class Threads>
  ORRERY_DEVICE void bring(const Threads& threads) const {
    const bool leads = threads.lane() == 0;
    const device_item item = item_of(threads);
    const int batch = static_cast<int>(item.batch);
    if (leads) copy_rows(threads, item);
    write_positions<rows>(threads, row_positions(), item.tokens);
    threads.converge();
    const auto classify = [&](std::int64_t first, std::int64_t last) {
      const std::int64_t first_row = row_positions()(threads, 0), last_row = row_positions()(threads, rows - 1);
      return rows_are_queries ? mask.classify(first_row, last_row, first, last)
                              : mask.classify(first, last, first_row, last_row);
    };
    device_cursor<column_block, columns> at{column_side, column_heads(item.head)};
    unsigned n = 0;  // of tiles, and the parity of `columns_to_clear` as its highest bit, since registers are few
    for (; at.next(classify); ++n) {
      const stage_of<first_stages> of_first{n};
      const stage_of<second_stages> of_second{n};
      const int count = static_cast<int>(at.tokens().count);
      const auto numbers = pairs::column_numbers::read(threads, at.block(), batch, at.head(), at.tokens());

      threads.mbarrier_wait(first_is_read(of_first.stage), of_first.parity ^ 1);
      if (at.seen() == visibility::some) write_positions<columns>(threads, positions_of(of_first.stage), at.tokens());
      numbers.write_lse(threads, lse_of(of_first.stage));
      const auto take_second = [&] {
        threads.mbarrier_wait(second_is_read(of_second.stage), of_second.parity ^ 1);
        if constexpr (sums_first) numbers.write_delta(threads, delta_of(of_second.stage));
        threads.converge();
      };
      // Where there are as many stages of both, the second one is free before the first one.
      if constexpr (second_stages == first_stages) take_second();
      unseen_columns<columns> unseen;
      bool clears = false;
      const bool is_end = at.tokens().first + count == at.block().positions.tokens();
      if (at.seen() == visibility::some || (count < columns && !is_end)) {
        unseen = unseen_columns<columns>::of(threads, count, is_end, at.seen(), [&](int column) {
          const std::int64_t position = positions_of(of_first.stage)(threads, column);
          return any_meets<rows>(classify(position, position),
                                 [&](int row) { return is_visible(row_positions()(threads, row), position); });
        });
        clears = unseen.any(threads);
      }
      const bool has_nan = numbers.has_nan(threads);
      if (leads)
        tile_announcement::of(count, at.seen(), false, has_nan).write(threads, announcement_of(of_first.stage));
      threads.converge();  // what all lanes wrote is announced by the first one's arrival
      const int first_arrives = clears ? columns_to_clear : first_is_there(of_first.stage);
      if (leads) {
        threads.mbarrier_arrive_expecting(first_arrives, first_columns::bytes);
        first_of(of_first.stage)
            .copy(threads, first_column_maps[at.block_index()], first_arrives, at.tokens().first, at.head(), batch);
      }
      if constexpr (second_stages < first_stages) take_second();
      // Values that nobody sees are multiplied by no weight.
      const int second_arrives = clears && !rows_are_queries ? columns_to_clear : second_is_there(of_second.stage);
      if (leads) {
        threads.mbarrier_arrive_expecting(second_arrives, second_columns::bytes);
        second_of(of_second.stage)
            .copy(threads, second_column_maps[at.block_index()], second_arrives, at.tokens().first, at.head(), batch);
      }
      if (clears) {
        threads.mbarrier_wait(columns_to_clear, static_cast<int>(n >> 31));
        n ^= 1u << 31;
        unseen.clear(threads, first_of(of_first.stage));
        if constexpr (!rows_are_queries) unseen.clear(threads, second_of(of_second.stage));
        threads.fence_async_proxy();
        let_go(threads, first_is_there(of_first.stage));
        if constexpr (!rows_are_queries) let_go(threads, second_is_there(of_second.stage));
      }
    }
    const stage_of<first_stages> after{n};
    threads.mbarrier_wait(first_is_read(after.stage), after.parity ^ 1);
    if (leads) {
      tile_announcement::of(0, visibility::none, true).write(threads, announcement_of(after.stage));
      threads.mbarrier_arrive(first_is_there(after.stage));
    }
  }

  template <class Threads>
  ORRERY_DEVICE void copy_rows(const Threads& threads, const device_item& item) const {
    threads.mbarrier_arrive_expecting(rows_are_there, row_bytes);
    first_rows{0}.copy(threads, first_row_maps[item.block], rows_are_there, item.tokens.first, item.head, item.batch);
    if constexpr (sums_first) {
      second_rows{first_rows::bytes}.copy(threads, second_row_maps[item.block], rows_are_there, item.tokens.first,
                                          item.head, item.batch);
    }
  }

  /// The work of the computing warps, which `warp` counts.
  template <class Threads>
  ORRERY_DEVICE void compute(const Threads& threads, int warp) const {
    const int first_row = warp / 4 * 64;
    const device_item rows_of_block = item_of(threads);
    const auto own = pairs::row_numbers::read(threads, row_side.of[rows_of_block.block], rows_of_block, warp);
    const float factor = scale * pairs::log2_e;
    auto first_sum = first_sums::zeros();
    auto second_sum = second_sums::zeros();

    auto p = scores::zeros();
    auto grad = scores::zeros();
    operands of_p{}, of_grad{};
    const auto hold_sums = [&] {
      if constexpr (sums_first) {
        threads.hold(first_sum.of[0]);
        threads.hold(of_grad.of);
      }
      if constexpr (sums_second) {
        threads.hold(second_sum.of[0]);
        threads.hold(of_p.of);
      }
    };
    unwritten().begin(threads, warp);
    threads.mbarrier_wait(rows_are_there, 0);
    unsigned n = 0;
    bool more = true;
    for (int part = 0; more; ++part) {
      first_sum = first_sums::zeros();
      second_sum = second_sums::zeros();
      do {
        const stage_of<first_stages> of_first{n};
        const stage_of<second_stages> of_second{n};
        threads.mbarrier_wait(first_is_there(of_first.stage), of_first.parity);
        const auto tile = tile_announcement::read(threads, announcement_of(of_first.stage));
        more = tile.count() != 0;
        if (!more) break;
        bool hides = tile.seen() == visibility::some || (rows_are_queries && tile.count() < columns);
        typename pairs::visible_pairs visible{};
        if (hides) visible = pairs::ask(threads, warp, mask, row_positions(), positions_of(of_first.stage), tile);

        begin_rows<T>(threads, p, first_rows{0}, first_row, first_of(of_first.stage));
        threads.template wait_for_products<1>();
        hold_sums();
        if (n % tiles_of_sum != 0) {  // the last product of the tile before is done
          let_go_of_last(threads, n - 1);
        }
        threads.mbarrier_wait(second_is_there(of_second.stage), of_second.parity);
        if constexpr (sums_first) {
          pairs::to_minus_delta(threads, grad, own, delta_of(of_second.stage));
          begin_rows<T, true>(threads, grad, second_rows{first_rows::bytes}, first_row, second_of(of_second.stage));
          threads.template wait_for_products<1>();
          threads.hold(p.of[0]);
        } else {
          threads.template wait_for_products<0>();
          threads.hold(p.of[0]);
        }
        if constexpr (!rows_are_queries) {
          // Read anew, since registers are few.
          if (tile_announcement::read(threads, announcement_of(of_first.stage)).has_nan()) {
            if (!hides) visible = {{0xffffffffu, 0xffffffffu}};
            hides = true;
            pairs::leave_out(p, factor, visible);
          }
        }
        pairs::to_probabilities(threads, p, own, lse_of(of_first.stage), factor);
        if constexpr (!sums_first) let_go(threads, first_is_read(of_first.stage));  // its log-sum-exp is read, too
        if (hides) pairs::hide(p, visible);
        if constexpr (sums_second) {
          of_p.template round<T>(threads, p);
          begin_columns<T>(threads, second_sum, of_p, second_of(of_second.stage));
        }
        if constexpr (sums_first) {
          threads.template wait_for_products<sums_second ? 1 : 0>();
          threads.hold(grad.of[0]);
          pairs::to_score_gradients(p, grad);
          if constexpr (!sums_second) let_go(threads, second_is_read(of_second.stage));
          if (hides) pairs::hide(grad, visible);
          of_grad.template round<T>(threads, grad);
          begin_columns<T>(threads, first_sum, of_grad, first_of(of_first.stage));
          if constexpr (sums_second) {  // of products by registers, only one group may be on its way to the next tile
            threads.template wait_for_products<1>();
            threads.hold(second_sum.of[0]);
            threads.hold(of_p.of);
            let_go(threads, second_is_read(of_second.stage));
          }
        }
      } while (++n % tiles_of_sum != 0);
      threads.template wait_for_products<0>();
      hold_sums();
      if (more) let_go_of_last(threads, n - 1);

      // Found anew: the loop has no registers to remember it.
      const int warp_again = threads.uniform(threads.warp()) - 4;
      const bool is_nan = again::is_nan(threads, warp_again, item_of(threads), own, first_sum, second_sum);
      if (unwritten().keep(threads, warp_again, part, is_nan)) {
        write(threads, warp_again, first_sum, second_sum, part == 0, !more && n % tiles_of_sum == 0);
      }
    }
    threads.named_barrier_sync(1, 128 * groups);
    const int first_part = unwritten().first(threads, 4 * groups);
    if (first_part >= 0) sum_again(threads, threads.uniform(threads.warp()) - 4, first_part);
  }

  /// Adds the warp's sums to the gradients, or writes them if they are the first and results are fresh. `is_empty`:
  /// there was no tile.
  template <class Threads>
  ORRERY_DEVICE void write(const Threads& threads, int warp, const first_sums& first_sum, const second_sums& second_sum,
                           bool is_first, bool is_empty) const {
    const device_item item = item_of(threads);
    const row_block& block = row_side.of[item.block];
    const bool fresh = is_first && block.fresh;
    if (is_empty && !fresh) return;
    if constexpr (sums_first) pairs::add(threads, first_sum, scale, block.grad, fresh, item, warp);
    if constexpr (sums_second) {
      if constexpr (sums_first) {
        pairs::add(threads, second_sum, 1.0f, block.grad_v, fresh, item, warp);
      } else {
        pairs::add(threads, second_sum, 1.0f, block.grad, fresh, item, warp);
      }
    }
  }

  /// Forms again the sums that warps have not written, from part `first_part` on, by mma.sync. Called by all computing
  /// threads; one of them brings tiles, to the first stage. Arguments are values, since what a reference refers to
  /// would be in memory, in the loop, too.
  template <class Threads>
  ORRERY_NO_INLINE ORRERY_DEVICE void sum_again(Threads threads, int warp, int first_part) const {
    const device_item item = item_of(threads);
    const auto own = pairs::row_numbers::read(threads, row_side.of[item.block], item, warp);
    using cursor = device_cursor<column_block, columns>;
    int parity = 1;
    const auto bring = [&](const cursor& at) {
      threads.named_barrier_sync(1, 128 * groups);  // nobody needs the tile before any more
      if (warp == 0 && threads.lane() == 0) {
        const std::int64_t token = at.tokens().first;
        const int block = at.block_index();
        threads.mbarrier_arrive_expecting(rows_are_there, first_columns::bytes + second_columns::bytes);
        first_of(0).copy(threads, first_column_maps[block], rows_are_there, token, at.head(), item.batch);
        second_of(0).copy(threads, second_column_maps[block], rows_are_there, token, at.head(), item.batch);
      }
      threads.mbarrier_wait(rows_are_there, parity);
      parity ^= 1;
    };
    again::run(threads, warp, item, own, mask, scale * pairs::log2_e, cursor{column_side, column_heads(item.head)},
               pair_of_tiles{first_rows{0}, second_rows{first_rows::bytes}}, pair_of_tiles{first_of(0), second_of(0)},
               tiles_of_sum, first_part, bring, [&](int part, const auto& first_sum, const auto& second_sum) {
                 if (unwritten().lacks(threads, warp, part)) {
                   write(threads, warp, first_sum, second_sum, part == 0, false);
                 }
               });
  }

  /// Releases the stage that the last product of tile n has read.
  template <class Threads>
  static ORRERY_DEVICE void let_go_of_last(const Threads& threads, unsigned n) {
    if constexpr (sums_first) {
      let_go(threads, first_is_read(stage_of<first_stages>{n}.stage));
    } else {
      let_go(threads, second_is_read(stage_of<second_stages>{n}.stage));
    }
  }
};

}  // namespace orrery::detail
