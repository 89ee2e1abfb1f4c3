// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "orrery/schedule/program.hpp"
#include "orrery/schedule/residency.hpp"
#include "orrery/schedule/translate.hpp"
#include "orrery/topology/topology.hpp"
#include "orrery/verify/verdict.hpp"

namespace orrery {

/// Proves the programs of a whole world. What is proven, and by what argument:
///
/// 1. Every rank alone, step by step (`walk`): each block that a tile or an exchange reads is in a slot, has arrived,
/// and
///    stays until the reading is done; each partial that is sent is held and given up; none remains at the end but at
///    home.
/// 2. All messages (`match`): the k-th message from rank a to rank b in a lane, and the k-th that b awaits from a, name
///    the same blocks. With 1, every operand is a true copy and every partial is merged exactly once.
/// 3. All tiles (`cover`): each visible pair of shards is computed exactly once in each slice.
/// 4. Progress (`advance`): all ranks reach their end even if no send completes before it is received.
///
/// It may be given the programs of the first ranks only, if those of all others are the same after all ranks and shards
/// (modulo the world) and slices (modulo their number) were counted on: rank r's is the one of rank r modulo `period`,
/// moved on by the rest. What is proven of a program holds for the moved one, and each message and each tile is proven
/// where it comes from. Of programs that are the same but for the names of shards and slices (`first_alike`), 1 is
/// proven for the first: only these need be finished.
///
/// Time: linear in the number of blocks that the given programs name, and slices × period × world / 64 words.
class verification {
 public:
  /// All programs of a world, finished.
  constexpr explicit verification(const list<program>& programs)
      : programs_{programs}, world_{programs.count}, period_{programs.count} {
    verdict_.world = world_;
  }
  /// Those of the first period, with what `first_alike` says of them; finished are those that it names.
  constexpr verification(const list<program>& programs, int world, list<int> alike)
      : programs_{programs}, world_{world}, period_{programs.count}, alike_{static_cast<list<int>&&>(alike)} {
    verdict_.world = world;
  }

  template <class Visible>
  constexpr verdict run(const Visible& visible) {
    for (int rank = 0; rank < period_; ++rank) {
      if ((alike_.empty() || alike_.items[rank] == rank) && !walk(programs_.items[rank])) return verdict_;
    }
    if (match() && cover(visible)) advance();
    return verdict_;
  }

  /// Do all exchanges overlap, in steps, with their counterparts? Only then is progress proven without all programs.
  [[nodiscard]] constexpr bool in_step() const noexcept { return in_step_; }

 private:
  static constexpr int none = -1;
  static constexpr int most_lanes = 16;
  static constexpr int never = 1 << 30;

  constexpr bool refuse(fault f, int rank, int step, const block& what, int peer = 0) {
    verdict_.found = f;
    verdict_.rank = rank;
    verdict_.step = step;
    verdict_.block = what;
    verdict_.peer = peer;
    return false;
  }

  // 1. ------------------------------------------------------------------------------------------------------------

  constexpr bool walk(const program& p) {
    residency here{p};
    const int steps = p.steps.count;
    const step* const step_of = p.steps.items;
    if (!all_exchanges_have_steps(p)) return false;
    for (int i = 0; i < steps; ++i) {
      if (!complete(p, here, i, step_of[i].completions) || !post(p, here, i, step_of[i].exchanges)) return false;
      const tile& t = step_of[i].tile;
      if (t.empty()) continue;
      const int slice = p.queries.items[t.queries.first].block.slice;
      if (!compute(p, here, i, p.queries.items, t.queries, side::query, slice)) return false;
      if (!compute(p, here, i, p.keys.items, t.keys, side::key, slice)) return false;
    }
    if (!complete(p, here, steps, p.final_completions)) return false;
    for (const side s : {side::query, side::key}) {
      const int kind = residency::kind_of(s, cargo::partial);
      for (int slot = 0; slot < here.slots(kind); ++slot) {
        const residency::place& left = here.at(kind, slot);
        if (left.held) return refuse(fault::partial_stranded, p.rank, steps, left.what);
      }
    }
    return true;
  }

  /// Do the steps' ranges follow each other, so that every exchange is posted and awaited somewhere?
  constexpr bool all_exchanges_have_steps(const program& p) {
    int posted = 0;
    int completed = 0;
    for (int i = 0; i < p.steps.count; ++i) {
      const step& now = p.steps.items[i];
      if (now.exchanges.first != posted || now.completions.first != completed) {
        return refuse(fault::exchange_takes_no_step, p.rank, i, {}, p.rank);
      }
      posted = now.exchanges.end();
      completed = now.completions.end();
    }
    if (posted != p.exchanges.count || p.final_completions.first != completed ||
        p.final_completions.end() != p.exchanges.count || p.completions.count != p.exchanges.count) {
      return refuse(fault::exchange_takes_no_step, p.rank, p.steps.count, {}, p.rank);
    }
    return true;
  }

  constexpr bool complete(const program& p, residency& here, int i, const range& completions) {
    const int end = completions.end();
    for (int c = completions.first, before = none; c < end; ++c) {
      const int e = p.completions.items[c];
      const exchange& done = p.exchanges.items[e];
      // Increasing and each in its step: as none is left out, every exchange is completed exactly once.
      if (e <= before || done.complete_before != i) {
        return refuse(fault::exchange_takes_no_step, p.rank, done.posted, {}, done.to != nobody ? done.to : done.from);
      }
      before = e;
      if (done.cargo == cargo::operand) continue;
      for (int r = done.received.first; r < done.received.end(); ++r) {
        const held_block& arrived = p.received.items[r];
        const int kind = residency::kind_of(arrived.block.side, cargo::partial);
        // It may be merged: into the result at home, or into what this rank has begun. Else it is found from now on.
        here.forget(kind, arrived.slot);
        if (arrived.block.shard == p.rank || here.find(kind, arrived.block, i) != none) continue;
        here.fill(kind, arrived.slot, arrived.block, i);
      }
    }
    return true;
  }

  constexpr bool post(const program& p, residency& here, int i, const range& exchanges) {
    const int end = exchanges.end();
    for (int e = exchanges.first; e < end; ++e) {
      const exchange& x = p.exchanges.items[e];
      if (x.posted != i || x.complete_before <= i || x.complete_before > p.steps.count) {
        return refuse(fault::exchange_takes_no_step, p.rank, i, {}, x.to != nobody ? x.to : x.from);
      }
      if (x.lane < 0 || x.lane >= most_lanes) return refuse(fault::lane_does_not_exist, p.rank, i, {}, x.lane);
      if (!is_peer(p, x.to) || (x.to == nobody && x.sent.count > 0))
        return refuse(fault::peer_outside_world, p.rank, i, {}, x.to);
      if (!is_peer(p, x.from) || (x.from == nobody && x.received.count > 0))
        return refuse(fault::peer_outside_world, p.rank, i, {}, x.from);
      if (x.lane >= lanes_) lanes_ = x.lane + 1;
      const int sent_end = x.sent.end();
      for (int s = x.sent.first; s < sent_end; ++s) {
        if (!(x.cargo == cargo::operand ? read(p, here, i, p.sent.items[s], x.complete_before)
                                        : send_partial(p, here, i, p.sent.items[s], x.complete_before))) {
          return false;
        }
      }
      const int received_end = x.received.end();
      for (int r = x.received.first; r < received_end; ++r) {
        if (!receive(p, here, i, p.received.items[r], x)) return false;
      }
    }
    return true;
  }

  [[nodiscard]] static constexpr bool is_peer(const program& p, int rank) {
    return rank == nobody || (rank >= 0 && rank < p.world && rank != p.rank);
  }
  [[nodiscard]] static constexpr bool exists(const program& p, const block& b) {
    return b.shard >= 0 && b.shard < p.world && b.slice >= 0 && b.slice < p.slices;
  }

  constexpr bool receive(const program& p, residency& here, int i, const held_block& arriving, const exchange& x) {
    if (!exists(p, arriving.block)) return refuse(fault::block_outside_world, p.rank, i, arriving.block);
    const int kind = residency::kind_of(arriving.block.side, x.cargo);
    if (arriving.slot < 0 || arriving.slot >= here.slots(kind))
      return refuse(fault::slot_missing, p.rank, i, arriving.block);
    const residency::place& slot = here.at(kind, arriving.slot);
    if (slot.free_from > i || (x.cargo == cargo::partial && slot.held)) {
      return refuse(fault::slot_overwritten, p.rank, i, slot.what);
    }
    if (x.cargo == cargo::operand) {
      here.fill(kind, arriving.slot, arriving.block, x.complete_before);
    } else {
      here.reserve(kind, arriving.slot, arriving.block, x.complete_before);
    }
    return true;
  }

  constexpr bool read(const program& p, residency& here, int i, const block& what, int until) {
    if (what.shard < 0 || what.shard >= p.world || what.slice < 0 || what.slice >= p.slices) {
      return refuse(fault::block_outside_world, p.rank, i, what);
    }
    if (what.shard == p.rank) return true;
    const int kind = residency::kind_of(what.side, cargo::operand);
    const int slot = here.find(kind, what, i);
    if (slot == none) {
      const bool overwritten = here.was_here(kind, what) && here.find(kind, what, never) == none;
      return refuse(overwritten ? fault::slot_overwritten : fault::operand_missing, p.rank, i, what);
    }
    residency::place& place = here.at(kind, slot);
    if (place.free_from < until) place.free_from = until;
    return true;
  }

  constexpr bool send_partial(const program& p, residency& here, int i, const block& what, int until) {
    if (!exists(p, what)) return refuse(fault::block_outside_world, p.rank, i, what);
    if (what.shard == p.rank) return refuse(fault::partial_leaves_home, p.rank, i, what);
    const int kind = residency::kind_of(what.side, cargo::partial);
    const int slot = here.find(kind, what, i);
    if (slot == none) return refuse(fault::partial_not_held, p.rank, i, what);
    here.forget(kind, slot);
    here.at(kind, slot).free_from = until;
    return true;
  }

  constexpr bool compute(const program& p, residency& here, int i, const held_block* holders, const range& which,
                         side s, int slice) {
    const int end = which.end();
    for (int b = which.first; b < end; ++b) {
      const block& what = holders[b].block;
      if (what.side != s || what.slice != slice) return refuse(fault::sides_confused, p.rank, i, what);
      if (!read(p, here, i, what, i + 1)) return false;
      if (what.shard == p.rank || !has_partials(p.pass, s)) continue;
      const int kind = residency::kind_of(s, cargo::partial);
      if (here.find(kind, what, i) != none) continue;
      if (holders[b].slot < 0 || holders[b].slot >= here.slots(kind))
        return refuse(fault::slot_missing, p.rank, i, what);
      const residency::place& slot = here.at(kind, holders[b].slot);
      if (slot.held || slot.free_from > i) return refuse(fault::slot_overwritten, p.rank, i, slot.what);
      here.fill(kind, holders[b].slot, what, i);
    }
    return true;
  }

  // 2. ------------------------------------------------------------------------------------------------------------

  /// The exchanges in which a rank receives, by sender and lane: those of (sender, lane) are
  /// exchanges[first[sender * lanes + lane]] up to the next entry of `first`, in the order in which they are posted.
  struct receives {
    list<int> first;
    list<int> exchanges;
  };

  /// For each exchange of a rank, the step in which each end's counterpart is posted (none: there is no such end).
  struct counterparts {
    list<int> receiver_posts;
    list<int> sender_posts;
  };

  constexpr bool match() {
    receives_ = list<receives>(period_);
    counterparts_ = list<counterparts>(period_);
    for (int rank = 0; rank < period_; ++rank) {
      index_receives(rank);
      counterparts_[rank].receiver_posts = list<int>(programs_[rank].exchanges.count, none);
      counterparts_[rank].sender_posts = list<int>(programs_[rank].exchanges.count, none);
    }
    for (int rank = 0; rank < period_; ++rank) {
      if (!match_sends(rank)) return false;
    }
    for (const program& p : programs_) {
      for (int e = 0; e < p.exchanges.count; ++e) {
        const exchange& x = p.exchanges[e];
        if (x.received.count > 0 && counterparts_[p.rank].sender_posts[e] == none) {
          return refuse(fault::receive_unmatched, p.rank, x.posted, p.received[x.received.first].block, x.from);
        }
      }
    }
    return true;
  }

  constexpr void index_receives(int rank) {
    const program& p = programs_.items[rank];
    const exchange* const exchanges = p.exchanges.items;
    const int count = p.exchanges.count;
    receives& index = receives_.items[rank];
    const int channels = world_ * lanes_;
    index.first = list<int>(channels + 1);
    index.exchanges = list<int>(count);
    int* const first = index.first.items;
    for (int e = 0; e < count; ++e) {
      if (exchanges[e].received.count > 0) ++first[exchanges[e].from * lanes_ + exchanges[e].lane];
    }
    for (int channel = 0, before = 0; channel <= channels; ++channel) before = first[channel] += before;
    int* const indexed = index.exchanges.items;
    for (int e = count - 1; e >= 0; --e) {
      if (exchanges[e].received.count > 0) indexed[--first[exchanges[e].from * lanes_ + exchanges[e].lane]] = e;
    }
  }

  constexpr bool match_sends(int rank) {
    const program& p = programs_.items[rank];
    list<int> messages(world_ * lanes_);
    int* const message = messages.items;
    const int count = p.exchanges.count;
    for (int e = 0; e < count; ++e) {
      const exchange& x = p.exchanges.items[e];
      if (x.sent.count == 0) continue;
      const int representative = x.to % period_;
      const int moved = x.to - representative;  // the receiver's program is the representative's, moved on by this
      const int sender = rank - moved < 0 ? rank - moved + world_ : rank - moved;
      const int* const channel = receives_.items[representative].first.items + sender * lanes_ + x.lane;
      const int at = channel[0] + message[x.to * lanes_ + x.lane]++;
      if (at >= channel[1]) return refuse(fault::send_unmatched, rank, x.posted, p.sent[x.sent.first], x.to);
      const program& q = programs_.items[representative];
      const int counterpart = receives_.items[representative].exchanges.items[at];
      const exchange& y = q.exchanges.items[counterpart];
      const block* const sent = p.sent.items + x.sent.first;
      const held_block* const received = q.received.items + y.received.first;
      bool agree = x.cargo == y.cargo && x.sent.count == y.received.count;
      for (int b = 0; agree && b < x.sent.count; ++b) agree = is_moved(p, received[b].block, sent[b], moved);
      if (!agree) return refuse(fault::blocks_disagree, x.to, y.posted, moved_on(p, received[0].block, moved), rank);
      counterparts_.items[rank].receiver_posts.items[e] = y.posted;
      counterparts_.items[representative].sender_posts.items[counterpart] = x.posted;
      if (x.posted >= y.complete_before || y.posted >= x.complete_before) in_step_ = false;
    }
    return true;
  }

  [[nodiscard]] static constexpr block moved_on(const program& p, const block& b, int distance) {
    return {b.side, (b.shard + distance) % p.world, (b.slice + distance) % p.slices};
  }
  [[nodiscard]] static constexpr bool is_moved(const program& p, const block& from, const block& to, int distance) {
    return from.side == to.side && (from.shard + distance - to.shard) % p.world == 0 &&
           (from.slice + distance - to.slice) % p.slices == 0;
  }

  // 3. ------------------------------------------------------------------------------------------------------------

  using word = std::uint64_t;

  struct placed_tile {
    int rank;
    int step;
    int next;
  };

  template <class Visible>
  constexpr bool cover(const Visible& visible) {
    return period_ == world_ ? cover_slice_by_slice(visible) : cover_first_rows(visible);
  }

  /// The rows of the first `period` query shards, in all slices; each tile is moved to where its queries are among
  /// them.
  template <class Visible>
  constexpr bool cover_first_rows(const Visible& visible) {
    const int slices = programs_.items[0].slices;
    const int words = (world_ + 63) / 64;
    list<word> computed(slices * period_ * words);
    for (int rank = 0; rank < period_; ++rank) {
      const program& p = programs_.items[rank];
      for (int i = 0; i < p.steps.count; ++i) {
        const tile& t = p.steps.items[i].tile;
        if (t.empty()) continue;
        const int keys_end = t.keys.end();
        for (int q = t.queries.first; q < t.queries.end(); ++q) {
          const block& query = p.queries.items[q].block;
          const int row = query.shard % period_;
          const int back = query.shard - row;
          const int slice = ((query.slice - back) % slices + slices) % slices;
          word* const bits = computed.items + (slice * period_ + row) * words;
          for (int k = t.keys.first; k < keys_end; ++k) {
            const int key = p.keys.items[k].block.shard - back;
            const unsigned shard = static_cast<unsigned>(key < 0 ? key + world_ : key);
            word& w = bits[shard / 64];
            if ((w >> shard % 64 & 1U) != 0)
              return refuse(fault::pair_computed_twice, rank, i, query, p.keys.items[k].block.shard);
            w |= word{1} << shard % 64;
          }
        }
      }
    }
    for (int slice = 0; slice < slices; ++slice) {
      if (!all_visible(computed.items + slice * period_ * words, slice, visible)) return false;
    }
    return true;
  }

  /// Are all visible pairs of the first `period` query shards computed in this slice?
  template <class Visible>
  constexpr bool all_visible(const word* computed, int slice, const Visible& visible) {
    const int words = (world_ + 63) / 64;
    for (int q = 0; q < period_; ++q) {
      for (int w = 0; w < words; ++w) {
        const int keys = world_ - 64 * w < 64 ? world_ - 64 * w : 64;
        const word all = keys == 64 ? ~word{0} : (word{1} << static_cast<unsigned>(keys)) - 1;
        if (computed[q * words + w] == all) continue;
        for (int k = 64 * w; k < 64 * w + keys; ++k) {
          const bool done = (computed[q * words + w] >> static_cast<unsigned>(k % 64) & 1U) != 0;
          if (!done && visible(q, k)) return refuse(fault::pair_missing, q, 0, {side::query, q, slice}, k);
        }
      }
    }
    return true;
  }

  template <class Visible>
  constexpr bool cover_slice_by_slice(const Visible& visible) {
    const int world = programs_.count;
    const int slices = programs_.items[0].slices;
    const int words = (world + 63) / 64;
    list<int> first_tile(slices, none);
    list<placed_tile> tiles;
    for (int rank = world - 1; rank >= 0; --rank) {
      const program& p = programs_.items[rank];
      for (int i = p.steps.count - 1; i >= 0; --i) {
        const tile& t = p.steps.items[i].tile;
        if (t.empty()) continue;
        int& first = first_tile.items[p.queries.items[t.queries.first].block.slice];
        tiles.push_back({rank, i, first});
        first = tiles.count - 1;
      }
    }
    list<word> computed(world * words);
    list<word> tile_keys(words);
    for (int slice = 0; slice < slices; ++slice) {
      if (slice > 0) {
        for (word& w : computed) w = 0;
      }
      for (int t = first_tile[slice]; t != none; t = tiles[t].next) {
        if (!mark(tiles[t].rank, tiles[t].step, computed, tile_keys)) return false;
      }
      if (!all_visible(computed.items, slice, visible)) return false;
    }
    return true;
  }

  constexpr bool mark(int rank, int step, list<word>& computed, list<word>& tile_keys) {
    const program& p = programs_.items[rank];
    const int words = tile_keys.count;
    const range& queries = p.steps.items[step].tile.queries;
    const range& keys = p.steps.items[step].tile.keys;
    if (keys.count <= words || queries.count == 1) {
      for (int q = queries.first; q < queries.end(); ++q) {
        word* const row = computed.items + p.queries.items[q].block.shard * words;
        const int end = keys.end();
        for (int k = keys.first; k < end; ++k) {
          const int shard = p.keys.items[k].block.shard;
          const word bit = word{1} << static_cast<unsigned>(shard % 64);
          word& w = row[shard / 64];
          if ((w & bit) != 0) return refuse(fault::pair_computed_twice, rank, step, p.queries[q].block, shard);
          w |= bit;
        }
      }
      return true;
    }
    for (word& w : tile_keys) w = 0;
    const int end = keys.end();
    for (int k = keys.first; k < end; ++k) {
      const int shard = p.keys.items[k].block.shard;
      const word bit = word{1} << static_cast<unsigned>(shard % 64);
      word& w = tile_keys.items[shard / 64];
      if ((w & bit) != 0) {
        return refuse(fault::pair_computed_twice, rank, step, p.queries[queries.first].block, shard);
      }
      w |= bit;
    }
    for (int q = queries.first; q < queries.end(); ++q) {
      word* const row = computed.items + p.queries.items[q].block.shard * words;
      for (int w = 0; w < words; ++w) {
        const word twice = row[w] & tile_keys.items[w];
        if (twice != 0) {
          int shard = 64 * w;
          while ((twice >> static_cast<unsigned>(shard % 64) & 1U) == 0) ++shard;
          return refuse(fault::pair_computed_twice, rank, step, p.queries[q].block, shard);
        }
        row[w] |= tile_keys.items[w];
      }
    }
    return true;
  }

  // 4. ------------------------------------------------------------------------------------------------------------

  /// May the rank begin `step`, with the others where they are? If not, `peer` is whom it waits for.
  constexpr bool may_enter(int rank, int step, const list<int>& entered, int& peer) const {
    const program& p = programs_.items[rank];
    const range& completions = step < p.steps.count ? p.steps[step].completions : p.final_completions;
    for (int c = completions.first; c < completions.end(); ++c) {
      const int e = p.completions[c];
      const exchange& x = p.exchanges[e];
      if (x.sent.count > 0 && entered[x.to] < counterparts_[rank].receiver_posts[e]) {
        peer = x.to;
        return false;
      }
      if (x.received.count > 0 && entered[x.from] < counterparts_[rank].sender_posts[e]) {
        peer = x.from;
        return false;
      }
    }
    return true;
  }

  constexpr bool advance() {
    // If each end posts before the other must be complete, counting steps orders all waits, and none is circular.
    if (in_step_ || !alike_.empty()) return true;
    const int world = programs_.count;
    list<int> entered(world);
    int peer = 0;
    for (bool moved = true; moved;) {
      moved = false;
      for (int rank = 0; rank < world; ++rank) {
        while (entered[rank] < programs_[rank].steps.count && may_enter(rank, entered[rank] + 1, entered, peer)) {
          ++entered[rank];
          moved = true;
        }
      }
    }
    for (int rank = 0; rank < world; ++rank) {
      if (entered[rank] == programs_[rank].steps.count) continue;
      may_enter(rank, entered[rank] + 1, entered, peer);
      return refuse(fault::deadlock, rank, entered[rank] + 1, {}, peer);
    }
    return true;
  }

  const list<program>& programs_;
  int world_;
  int period_;
  list<int> alike_;
  verdict verdict_;
  list<receives> receives_;
  list<counterparts> counterparts_;
  int lanes_ = 1;
  bool in_step_ = true;
};

/// All pairs of shards are visible: what a mask that is not known at plan time asks for.
struct every_pair {
  [[nodiscard]] constexpr bool operator()(int, int) const noexcept { return true; }
};

/// Proves the finished programs of all ranks, in the order of the ranks; see `verification` for what and how.
/// `visible(query shard, key shard)` says which pairs must be computed; others may be.
template <class Visible = every_pair>
[[nodiscard]] constexpr verdict verify(const list<program>& programs, const Visible& visible = {}) {
  verdict refusal;
  refusal.world = programs.size();
  if (programs.empty()) {
    refusal.found = fault::world_refused;
    refusal.reason = "needs a world of at least one rank";
    return refusal;
  }
  for (int rank = 0; rank < programs.size(); ++rank) {
    const program& p = programs[rank];
    if (p.rank == rank && p.world == programs.size() && p.pass == programs[0].pass && p.slices == programs[0].slices)
      continue;
    refusal.found = fault::program_of_another;
    refusal.rank = rank;
    return refusal;
  }
  return verification{programs}.run(visible);
}

/// Proves a topology's schedule for a world: forward, or a backward.
///
///     static_assert(orrery::verify(my_ring{}, 8));
///     std::cout << orrery::verify(my_ring{}, 1000, orrery::pass::circulate_keys) << '\n';
///
/// Every rank's program is written and looked at. Where the programs repeat from rank to rank, which is checked block
/// by block (`is_translate`), those of the first period are proven for all.
template <topology Topology>
[[nodiscard]] constexpr verdict verify(const Topology& t, int world, pass p = pass::forward) {
  verdict refusal;
  refusal.world = world;
  if (const char* reason = refuses(t, world, p)) {
    refusal.found = fault::world_refused;
    refusal.reason = reason;
    return refusal;
  }
  list<program> all;  // of all ranks, where they are written together
  if (!writes_each_rank_alone<Topology>(p)) all = drafts_of(t, world, p);
  list<program> first;  // of the first period, as far as it is known
  first.reserve(world);
  int period = 0;
  for (int rank = 0; rank < world; ++rank) {
    program one;
    if (all.empty()) {
      one = draft_of(t, rank, world, p);
    } else {
      one = static_cast<program&&>(all[rank]);
    }
    if (one.rank != rank || one.world != world || one.pass != p || one.slices != slices_of(t, world)) {
      refusal.found = fault::program_of_another;
      refusal.rank = rank;
      return refusal;
    }
    if (period == 0 && rank > 0 && world % rank == 0 && is_translate(first[0], one, rank)) period = rank;
    if (period == 0) {
      first.items[first.count++] = static_cast<program&&>(one);
    } else if (rank % period != 0 && !is_translate(first[rank % period], one, rank - rank % period)) {
      period = -1;
    } else if (rank % period == 0 && rank != period && !is_translate(first[0], one, rank)) {
      period = -1;
    }
    if (period == -1) break;
  }
  if (period != -1) {
    list<int> alike = first_alike(first);
    for (int rank = 0; rank < first.count; ++rank) {
      if (alike.items[rank] == rank) finish(first.items[rank]);
    }
    verification proof{first, world, static_cast<list<int>&&>(alike)};
    const verdict found = proof.run(every_pair{});
    if (!found.ok() || proof.in_step()) return found;
  }
  // The first ranks' programs do not speak for all.
  return verify(programs_of(t, world, p));
}

}  // namespace orrery
