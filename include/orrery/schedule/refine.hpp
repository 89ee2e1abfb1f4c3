// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery::schedule {

/// Cuts each shard of a program into `chunks` chunks: in every tile and message a block becomes its chunks, one after
/// the other. Steps, messages and what they carry in all stay the same, and so do the verdict, the volume and the
/// symmetry of programs; collectives stay collectives. What differs is how finely others can look: `prune` drops
/// chunks, and a layout says which tokens each chunk has (see `layout`).
///
///     orrery::program p = refine(orrery::ring{}.program(rank, world), 2);
///
/// Takes a program as a topology writes it, before `finish`. If its shards are cut already, its chunks are cut: chunk c
/// of `program::chunks` becomes those from c * chunks on. Costs time and memory linear in the result.
///
/// Throws `std::invalid_argument` if `chunks` is less than 1, if a shard would have more than `most_chunks`, or if the
/// program would name more blocks than an `int` counts.
[[nodiscard]] constexpr program refine(const program& unpruned, int chunks) {
  if (chunks < 1 || chunks > most_chunks / unpruned.chunks) {
    throw std::invalid_argument{"orrery: refine: chunks is " + std::to_string(chunks) + ", expected 1 to " +
                                std::to_string(most_chunks / unpruned.chunks) + ": a shard has at most " +
                                std::to_string(most_chunks) + " chunks" +
                                (unpruned.chunks == 1 ? "" : ", and has " + std::to_string(unpruned.chunks) + " now")};
  }
  const auto fits = [&](int blocks) { return blocks <= (std::numeric_limits<int>::max)() / 4 / chunks; };
  if (!fits(unpruned.sent.count) || !fits(unpruned.received.count) || !fits(unpruned.queries.count) ||
      !fits(unpruned.keys.count) || !fits(unpruned.world * unpruned.chunks)) {
    throw std::invalid_argument{"orrery: refine: chunks is " + std::to_string(chunks) +
                                ", with which a program of this world would name too many blocks; cut shards into "
                                "fewer chunks"};
  }
  program refined;
  refined.rank = unpruned.rank;
  refined.world = unpruned.world;
  refined.slices = unpruned.slices;
  refined.chunks = unpruned.chunks * chunks;
  refined.pass = unpruned.pass;
  refined.collectives = unpruned.collectives;

  const auto cut = [&](const range& r) { return range{r.first * chunks, r.count * chunks}; };
  refined.steps = list<step>(unpruned.steps.count);
  for (int i = 0; i < unpruned.steps.count; ++i) {
    const step& now = unpruned.steps.items[i];
    refined.steps.items[i] = {{0, 0}, now.exchanges, {cut(now.tile.queries), cut(now.tile.keys)}};
  }
  refined.exchanges = unpruned.exchanges;
  for (exchange& x : refined.exchanges) {
    x.sent = cut(x.sent);
    x.received = cut(x.received);
  }
  refined.sent = list<block>(unpruned.sent.count * chunks);
  block* sent = refined.sent.items;
  for (const block& b : unpruned.sent)
    for (int c = 0; c < chunks; ++c, ++sent)
      *sent = {b.side, static_cast<std::uint16_t>(b.chunk * chunks + c), b.shard, b.slice};
  const auto cut_all = [&](const list<held_block>& from, list<held_block>& to) {
    to = list<held_block>(from.count * chunks);
    held_block* held = to.items;
    for (const held_block& h : from)
      for (int c = 0; c < chunks; ++c, ++held)
        *held = {{h.block.side, static_cast<std::uint16_t>(h.block.chunk * chunks + c), h.block.shard, h.block.slice},
                 no_slot};
  };
  cut_all(unpruned.received, refined.received);
  cut_all(unpruned.queries, refined.queries);
  cut_all(unpruned.keys, refined.keys);
  return refined;
}

/// The programs of all ranks, cut alike. What is said of one program holds for all.
[[nodiscard]] constexpr list<program> refine(const list<program>& unpruned, int chunks) {
  list<program> refined(unpruned.size());
  for (int rank = 0; rank < unpruned.size(); ++rank) refined[rank] = refine(unpruned[rank], chunks);
  return refined;
}

}  // namespace orrery::schedule
