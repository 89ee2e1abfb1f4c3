// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "orrery/attention/shape.hpp"
#include "orrery/attention/sizes.hpp"
#include "orrery/layout/segment.hpp"
#include "orrery/predict/detail/timed_schedule.hpp"
#include "orrery/predict/detail/visible_pairs.hpp"
#include "orrery/predict/machine.hpp"
#include "orrery/predict/tile_work.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery::detail {

/// Which blocks' partials a rank has begun. The same object serves one rank after the other.
class begun_partials {
 public:
  begun_partials(int world, int slices, int chunks)
      : slices_{slices}, chunks_{chunks}, of_side_{std::size_t(world) * std::size_t(slices) * std::size_t(chunks)} {
    begun_.resize(2 * of_side_);
  }

  /// Returns true if the partial had been begun, and begins it.
  bool begin(const block& b) {
    const std::size_t at = static_cast<std::size_t>(b.side) * of_side_ +
                           (static_cast<std::size_t>(b.shard) * static_cast<std::size_t>(chunks_) + b.chunk) *
                               static_cast<std::size_t>(slices_) +
                           static_cast<std::size_t>(b.slice);
    if (begun_[at]) return true;
    begun_[at] = true;
    touched_.push_back(at);
    return false;
  }
  /// Forgets all, for the next rank.
  void clear() {
    for (const std::size_t at : touched_) begun_[at] = false;
    touched_.clear();
  }

 private:
  int slices_;
  int chunks_;
  std::size_t of_side_;
  std::vector<bool> begun_;
  std::vector<std::size_t> touched_;
};

/// What the programs of an attention operator take on a machine: the work of each tile, from the exact number of pairs
/// that the mask leaves, and what is merged and packed.
class attention_times {
 public:
  using pair_counter = std::function<pair_count(const segment&, const segment&)>;
  using tile_timer = std::function<double(const tile_work&)>;

  /// Shards are dealt in the programs' chunks: chunk c of shard s at [s * chunks + c]. `every_pair`: the mask hides
  /// nothing. An empty `timer` is `tile_seconds`.
  attention_times(const attention_shape& shape, const machine& m, const attention_sizes& sizes,
                  const list<segments>& query_shards, const list<segments>& key_shards, pair_counter count,
                  bool every_pair, tile_timer timer)
      : shape_{shape},
        machine_{m},
        sizes_{sizes},
        query_shards_{query_shards},
        key_shards_{key_shards},
        count_{std::move(count)},
        every_pair_{every_pair},
        timer_{std::move(timer)} {}

  /// The times of all ranks, and the bytes that each of their exchanges sends.
  void find(const list<program>& programs, std::int64_t storage_bytes, std::int64_t sum_bytes,
            std::vector<step_times>& times, std::vector<std::vector<std::int64_t>>& bytes) {
    if (programs.empty()) return;
    storage_bytes_ = storage_bytes;
    sum_bytes_ = sum_bytes;
    begun_partials begun{programs[0].world, programs[0].slices, programs[0].chunks};
    for (const program& p : programs) {
      begun.clear();
      times.push_back(of_rank(p, begun));
      std::vector<std::int64_t> sent;
      sent.reserve(static_cast<std::size_t>(p.exchanges.size()));
      for (const exchange& x : p.exchanges) {
        std::int64_t sum = 0;
        for (const block& b : p.sent_by(x)) sum += sizes_(b.side, x.payload, b);
        sent.push_back(sum);
      }
      bytes.push_back(std::move(sent));
    }
  }

  /// What the kernel computes in a tile.
  [[nodiscard]] tile_work work_of(const program& p, const tile& t) {
    const entries<const held_block> queries = p.queries_of(t), keys = p.keys_of(t);
    tile_work w = every_pair_ ? of_all_pairs(queries, keys) : counted(queries, keys, p.chunks);
    w.pass = p.pass;
    w.query_heads = sizes_.heads(queries[0].block);
    w.key_heads = sizes_.heads(keys[0].block);
    w.batch = shape_.batch;
    w.head_dim = shape_.head_dim;
    w.value_dim = *shape_.value_dim;
    return w;
  }

  /// The bytes of a rank's own tensors and of its buffers: slots, and packed copies of own blocks that it sends.
  [[nodiscard]] std::int64_t memory_of(const program& p, std::int64_t storage_bytes, std::int64_t sum_bytes) const {
    std::int64_t all = 0;
    for (const side s : {side::query, side::key}) {
      std::int64_t tokens = 0;
      for (int c = 0; c < p.chunks; ++c) {
        tokens += sizes_.tokens({s, static_cast<std::uint16_t>(c), p.rank, 0});
      }
      const std::int64_t heads = s == side::query ? shape_.query_heads : *shape_.key_heads;
      const std::int64_t numbers = shape_.batch * tokens * heads * (shape_.head_dim + *shape_.value_dim);
      all += numbers * storage_bytes * (p.pass == pass::forward ? 1 : 2);  // Q, O or K, V; and their gradients
      if (s == side::query) all += shape_.batch * tokens * heads * sum_bytes * (p.pass == pass::forward ? 1 : 2);
    }
    for (const side s : {side::query, side::key}) {
      for (const payload c : {payload::operand, payload::partial}) {
        const int slots = p.slots_of(s, c);
        if (slots > 0) all += slots * largest_block(p, s, c);
      }
    }
    return all + packed_bytes(p);
  }

 private:
  [[nodiscard]] const segments& shard_of(const block& b, int chunks) const {
    return (b.side == side::query ? query_shards_ : key_shards_)[b.shard * chunks + b.chunk];
  }
  [[nodiscard]] std::int64_t largest_block(const program& p, side s, payload c) const {
    std::int64_t most = 0;
    for (int shard = 0; shard < p.world; ++shard) {
      for (int chunk = 0; chunk < p.chunks; ++chunk) {
        most = (std::max)(most, sizes_(s, c, {s, static_cast<std::uint16_t>(chunk), shard, 0}));
      }
    }
    return most;
  }
  [[nodiscard]] std::int64_t packed_bytes(const program& p) const {
    std::vector<std::int64_t> packed;  // numbers of blocks
    std::int64_t all = 0;
    for (const exchange& x : p.exchanges) {
      if (x.payload != payload::operand) continue;
      for (const block& b : p.sent_by(x)) {
        if (b.shard != p.rank) continue;
        const std::int64_t number = (static_cast<std::int64_t>(b.side) * p.chunks + b.chunk) * p.slices + b.slice;
        if (static_cast<std::size_t>(number) >= packed.size()) packed.resize(static_cast<std::size_t>(number) + 1);
        if (packed[static_cast<std::size_t>(number)] != 0) continue;
        packed[static_cast<std::size_t>(number)] = 1;
        all += sizes_(b.side, x.payload, b);
      }
    }
    return all;
  }

  [[nodiscard]] step_times of_rank(const program& p, begun_partials& begun) {
    const double speed = machine_.speed_of(p.rank);
    const machine::processor& d = machine_.device;
    const machine::kernel_rates& rates = d.rates(p.pass);
    const auto steps = static_cast<std::size_t>(p.steps.size());
    step_times t;
    t.begin = d.call / speed + packing(p);
    t.arrivals.resize(steps + 1);
    t.tiles.resize(steps);
    t.merges.resize(steps);
    t.host.resize(steps);
    for (int i = 0; i <= p.steps.size(); ++i) {
      const auto at = static_cast<std::size_t>(i);
      for (const int e : p.completed_before(i)) t.arrivals[at] += arrival(p, p.exchanges[e], begun);
      if (i == p.steps.size()) break;
      const step& now = p.steps[i];
      t.host[at] = (d.step + d.message * now.exchanges.count) / speed;
      if (now.tile.empty()) continue;
      const tile_work w = work_of(p, now.tile);
      const double seconds = (timer_ ? timer_(w) : tile_seconds(w, rates)) / speed;
      t.tiles[at] = seconds + slowing(p, now, seconds);
      if (w.pairs > 0) t.merges[at] = merging(p, now.tile, w, rates, begun);
    }
    return t;
  }

  /// Merging the partials of a message into those that this rank has begun: reads two, writes one.
  [[nodiscard]] double arrival(const program& p, const exchange& x, begun_partials& begun) const {
    if (x.payload != payload::partial || machine_.device.memory == 0) return 0;
    std::int64_t bytes = 0;
    for (const held_block& arriving : p.received_by(x)) {
      const block& b = arriving.block;
      if (begun.begin(b)) bytes += 3 * sizes_(b.side, x.payload, b);
    }
    return static_cast<double>(bytes) / machine_.device.memory;
  }
  /// Merging a tile's result into the queries' partials that were begun before, where the kernel does not.
  [[nodiscard]] double merging(const program& p, const tile& t, const tile_work& w, const machine::kernel_rates& rates,
                               begun_partials& begun) const {
    std::int64_t tokens = 0, all = 0;
    for (const held_block& q : p.queries_of(t)) {
      const std::int64_t own = sizes_.tokens(q.block);
      all += own;
      if (begun.begin(q.block)) tokens += own;
    }
    if (p.pass != pass::forward) {
      for (const held_block& k : p.keys_of(t)) begun.begin(k.block);
    }
    if (rates.merge == 0 || machine_.device.memory == 0 || all == 0) return 0;
    const double rows = static_cast<double>(w.rows) * static_cast<double>(tokens) / static_cast<double>(all);
    const double elements = rows * static_cast<double>(w.query_heads * w.batch * w.value_dim);
    return rates.merge * elements / machine_.device.memory;
  }
  /// Copying heads apart, and results together, where heads are cut into slices: reads and writes all own tensors on
  /// both sides of the transposition.
  [[nodiscard]] double packing(const program& p) const {
    if (p.slices == 1 || machine_.device.memory == 0) return 0;
    std::int64_t numbers = 0;
    for (const side s : {side::query, side::key}) {
      for (int c = 0; c < p.chunks; ++c) {
        numbers += sizes_.tokens({s, static_cast<std::uint16_t>(c), p.rank, 0}) *
                   (s == side::query ? shape_.query_heads : *shape_.key_heads);
      }
    }
    numbers *= shape_.batch * (shape_.head_dim + *shape_.value_dim) * (p.pass == pass::forward ? 1 : 2);
    return 4 * static_cast<double>(numbers * storage_bytes_) / machine_.device.memory;
  }
  /// What arriving messages take from the tile that they fly behind.
  [[nodiscard]] double slowing(const program& p, const step& now, double tile) const {
    if (machine_.device.slowed == 0) return 0;
    double seconds = 0;
    for (const exchange& x : p.exchanges_of(now)) {
      if (x.received.count == 0) continue;
      std::int64_t bytes = 0;
      for (const held_block& b : p.received_by(x)) bytes += sizes_(b.block.side, x.payload, b.block);
      std::size_t l = 0;
      while (l + 1 < machine_.levels.size() && p.rank / machine_.ranks_of_level(static_cast<int>(l)) !=
                                                   x.from / machine_.ranks_of_level(static_cast<int>(l))) {
        ++l;
      }
      if (!machine_.levels[l].full_duplex) {  // what is sent takes its time from what arrives
        for (const block& b : p.sent_by(x)) bytes += sizes_(b.side, x.payload, b);
      }
      seconds += static_cast<double>(bytes) / machine_.levels[l].bandwidth;
    }
    return machine_.device.slowed * (std::min)(tile, seconds);
  }

  [[nodiscard]] tile_work of_all_pairs(const entries<const held_block>& queries,
                                       const entries<const held_block>& keys) const {
    tile_work w;
    for (const held_block& q : queries) w.rows += sizes_.tokens(q.block);
    for (const held_block& k : keys) w.longest_row += sizes_.tokens(k.block);
    w.pairs = w.rows * w.longest_row;
    if (w.pairs == 0) w.rows = w.longest_row = 0;
    return w;
  }

  /// Ranks that compute the same blocks, in other slices of the heads, share the answer.
  [[nodiscard]] tile_work counted(const entries<const held_block>& queries, const entries<const held_block>& keys,
                                  int chunks) {
    tile_key key;
    for (const auto& blocks : {queries, keys}) {
      for (const held_block& b : blocks) {
        const auto shard = static_cast<std::uint64_t>(b.block.shard) * 2 + (b.block.side == side::key ? 1 : 0);
        key.add(shard * static_cast<std::uint64_t>(chunks) + b.block.chunk);
      }
    }
    const auto [known, is_new] = tiles_.try_emplace(key);
    if (is_new) known->second = count(queries, keys, chunks);
    return known->second;
  }
  [[nodiscard]] tile_work count(const entries<const held_block>& queries, const entries<const held_block>& keys,
                                int chunks) const {
    tile_work w;
    for (const held_block& q : queries) {
      for (const segment& of_queries : shard_of(q.block, chunks)) {
        std::int64_t rows = 0, longest = 0;
        for (const held_block& k : keys) {
          for (const segment& of_keys : shard_of(k.block, chunks)) {
            const pair_count n = count_(of_queries, of_keys);
            w.pairs += n.pairs;
            w.diagonal_rows += n.partial_rows;
            rows = (std::max)(rows, n.rows);
            longest += n.longest_row;
          }
        }
        w.rows += rows;
        w.longest_row = (std::max)(w.longest_row, longest);
      }
    }
    return w;
  }

  /// Two sums of hashes of the numbers of blocks, 128 bits: that two tiles of one schedule have the same is not to be
  /// expected. Sums, since ranks name the blocks of one tile in different orders.
  struct tile_key {
    std::uint64_t first = 0;
    std::uint64_t second = 0;

    void add(std::uint64_t number) noexcept {
      number = (number + 0x9e3779b97f4a7c15u) * 0xff51afd7ed558ccdu;
      number = (number ^ number >> 32) * 0xc4ceb9fe1a85ec53u;
      first += number ^ number >> 29;
      number = (number ^ 0xc2b2ae3d27d4eb4fu) * 0x9fb21c651e98df25u;
      second += number ^ number >> 31;
    }
    bool operator==(const tile_key&) const = default;
  };
  struct tile_key_hash {
    [[nodiscard]] std::size_t operator()(const tile_key& k) const noexcept { return static_cast<std::size_t>(k.first); }
  };

  const attention_shape& shape_;
  const machine& machine_;
  const attention_sizes& sizes_;
  const list<segments>& query_shards_;
  const list<segments>& key_shards_;
  pair_counter count_;
  bool every_pair_;
  tile_timer timer_;
  std::int64_t storage_bytes_ = 0;
  std::int64_t sum_bytes_ = 0;
  std::unordered_map<tile_key, tile_work, tile_key_hash> tiles_;
};

}  // namespace orrery::detail
