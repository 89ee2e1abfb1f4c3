// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// The verifier, tested by what it must refuse: right programs, damaged in one place, and the fault that each damage is.

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/draw/grid.hpp"
#include "orrery/verify/verify.hpp"

#include "editable.hpp"
#include "verify/every_topology.hpp"

namespace {

using orrery::fault;
using orrery::program;
using orrery::detail::fault_clue;
using orrery::schedule::block;
using orrery::schedule::exchange;
using orrery::schedule::held_block;
using orrery::schedule::list;
using orrery::schedule::no_rank;
using orrery::schedule::no_slot;
using orrery::schedule::payload;
using orrery::schedule::side;

using world_of_programs = list<program>;

/// Where the fault has to be found; what is left open may be anywhere.
struct place {
  int rank;
  std::optional<int> step{};
  std::optional<block> what{};
  std::optional<int> peer{};
};

/// Counts the sites at which a damage is possible, and says which one it is to be done at.
struct sites {
  int wanted;
  int seen = 0;
  bool here() { return seen++ == wanted; }
};

/// Damages the programs at the site that is wanted; nothing if there is none.
using damage = std::optional<place> (*)(world_of_programs&, sites&);

struct mutation {
  const char* name;
  fault expected;
  damage apply;
  std::optional<fault_clue::kind> clue{};  ///< what the message must explain it by
};

// What mutations ask about programs. --------------------------------------------------------------------------------

/// One message: exchange `e` of rank a sends, exchange `f` of rank b receives.
struct message {
  int a, e, b, f;
};

/// The message that exchange e of rank a sends; e must send.
message message_of(const world_of_programs& all, int a, int e) {
  const exchange& x = all[a].exchanges[e];
  int index = 0;
  for (int earlier = 0; earlier < e; ++earlier) {
    const exchange& y = all[a].exchanges[earlier];
    if (y.to == x.to && y.lane == x.lane && y.sent.count > 0) ++index;
  }
  for (int f = 0; f < all[x.to].exchanges.size(); ++f) {
    const exchange& y = all[x.to].exchanges[f];
    if (y.from == a && y.lane == x.lane && y.received.count > 0 && index-- == 0) return {a, e, x.to, f};
  }
  FAIL("the undamaged programs are wrong");
  return {};
}

std::vector<message> messages_of(const world_of_programs& all) {
  std::vector<message> messages;
  for (const program& p : all) {
    for (int e = 0; e < p.exchanges.size(); ++e) {
      if (p.exchanges[e].sent.count > 0) messages.push_back(message_of(all, p.rank, e));
    }
  }
  return messages;
}

const exchange& sender(const world_of_programs& all, const message& m) { return all[m.a].exchanges[m.e]; }
const exchange& receiver(const world_of_programs& all, const message& m) { return all[m.b].exchanges[m.f]; }

std::vector<block> blocks_of(const world_of_programs& all, const message& m) {
  const exchange& x = sender(all, m);
  return {all[m.a].sent.begin() + x.sent.first, all[m.a].sent.begin() + x.sent.end()};
}

bool is_last_of_its_channel(const world_of_programs& all, const message& m) {
  const exchange& x = sender(all, m);
  for (int e = m.e + 1; e < all[m.a].exchanges.size(); ++e) {
    const exchange& y = all[m.a].exchanges[e];
    if (y.to == x.to && y.lane == x.lane && y.sent.count > 0) return false;
  }
  return true;
}

/// If one end of this message is missing, is that seen from the others of its channel? Not if the next one has the same
/// blocks, nor, in a test that puts it behind all others of its step, if the next one is in the same step.
bool is_missed(const world_of_programs& all, const message& m) {
  const exchange& x = sender(all, m);
  for (int e = m.e + 1; e < all[m.a].exchanges.size(); ++e) {
    const exchange& y = all[m.a].exchanges[e];
    if (y.to != x.to || y.lane != x.lane || y.sent.count == 0) continue;
    const message next = message_of(all, m.a, e);
    return blocks_of(all, next) != blocks_of(all, m) && y.posted != x.posted &&
           receiver(all, next).posted != receiver(all, m).posted;
  }
  return true;
}

int times_received(const program& p, const block& what, payload c) {
  int times = 0;
  for (const exchange& x : p.exchanges) {
    for (int r = x.received.first; x.payload == c && r < x.received.end(); ++r)
      times += p.received[r].block == what ? 1 : 0;
  }
  return times;
}

bool is_in(const std::vector<held_block>& held, const block& what) {
  return std::any_of(held.begin(), held.end(), [&](const held_block& h) { return h.block == what; });
}
bool is_in(const std::vector<block>& blocks, const block& what) {
  return std::find(blocks.begin(), blocks.end(), what) != blocks.end();
}

/// Is the operand read in this step, by its tile or by an exchange?
bool reads(const editable::step& now, const block& what) {
  if (!now.queries.empty() && !now.keys.empty() && (is_in(now.queries, what) || is_in(now.keys, what))) return true;
  return std::any_of(now.exchanges.begin(), now.exchanges.end(),
                     [&](const editable::exchange& x) { return x.payload == payload::operand && is_in(x.sent, what); });
}

/// The first step from `step` on in which the operand is read.
std::optional<int> first_read(const program& p, const block& what, int step) {
  const editable::program readable{p};
  for (int i = step; i < p.steps.size(); ++i) {
    if (reads(readable.steps[static_cast<std::size_t>(i)], what)) return i;
  }
  return std::nullopt;
}

/// The steps in which partials of a block are sent.
std::vector<int> sends_of_partial(const program& p, const block& what) {
  std::vector<int> steps;
  for (const exchange& x : p.exchanges) {
    for (int s = x.sent.first; x.payload == payload::partial && s < x.sent.end(); ++s) {
      if (p.sent[s] == what) steps.push_back(x.posted);
    }
  }
  return steps;
}

template <class Container>
auto& at(Container& container, int index) {
  return container[static_cast<std::size_t>(index)];
}

/// Exchange e of a program that was taken apart; its step is `posted`.
editable::exchange& taken(editable::program& p, int e) {
  const exchange& x = p.original.exchanges[e];
  return at(at(p.steps, x.posted).exchanges, e - p.original.steps[x.posted].exchanges.first);
}

/// Takes the sending half out of exchange e, as an exchange of its own behind all others of the step.
editable::exchange& split_send(editable::program& p, int e) {
  editable::exchange& x = taken(p, e);
  editable::exchange half{x.to, no_rank, x.lane, x.payload, x.complete_before, x.sent, {}};
  x.to = no_rank;
  x.sent.clear();
  return at(p.steps, p.original.exchanges[e].posted).exchanges.emplace_back(half);
}
editable::exchange& split_receive(editable::program& p, int e) {
  editable::exchange& x = taken(p, e);
  editable::exchange half{no_rank, x.from, x.lane, x.payload, x.complete_before, {}, x.received};
  x.from = no_rank;
  x.received.clear();
  return at(p.steps, p.original.exchanges[e].posted).exchanges.emplace_back(half);
}
void drop_send(editable::program& p, int e) {
  taken(p, e).to = no_rank;
  taken(p, e).sent.clear();
}
void drop_receive(editable::program& p, int e) {
  taken(p, e).from = no_rank;
  taken(p, e).received.clear();
}

// Exchanges. --------------------------------------------------------------------------------------------------------

std::optional<place> drop_exchange(world_of_programs& all, sites& s) {
  for (const message& m : messages_of(all)) {
    if (sender(all, m).payload != payload::operand) continue;
    const program& p = all[m.b];
    std::optional<int> first;
    bool sole = true;
    for (const block& what : blocks_of(all, m)) {
      if (what.shard == m.b) continue;
      sole = sole && times_received(p, what, payload::operand) == 1;
      const auto read = first_read(p, what, 0);
      if (read && (!first || *read < *first)) first = read;
    }
    if (!sole || !first || !s.here()) continue;
    editable::change(all, m.a, [&](editable::program& a) { drop_send(a, m.e); });
    editable::change(all, m.b, [&](editable::program& b) { drop_receive(b, m.f); });
    return place{m.b, first};
  }
  return std::nullopt;
}

/// The sender still sends the block, which nobody receives, and which is missed when it is used.
std::optional<place> drop_receive_of_an_operand(world_of_programs& all, sites& s) {
  for (const message& m : messages_of(all)) {
    if (sender(all, m).payload != payload::operand) continue;
    const std::vector<block> blocks = blocks_of(all, m);
    std::optional<int> first;
    for (const block& what : blocks) {
      if (what.shard == m.b || times_received(all[m.b], what, payload::operand) != 1) continue;
      const auto read = first_read(all[m.b], what, 0);
      if (read && (!first || *read < *first)) first = read;
    }
    if (blocks.size() > 1 || !first || !s.here()) continue;
    const place found{m.b, first, blocks[0]};
    editable::change(all, m.b, [&](editable::program& b) { drop_receive(b, m.f); });
    return found;
  }
  return std::nullopt;
}

bool goes_home(const world_of_programs& all, const message& m) {
  const std::vector<block> blocks = blocks_of(all, m);
  return sender(all, m).payload == payload::partial &&
         std::all_of(blocks.begin(), blocks.end(), [&](const block& what) { return what.shard == m.b; });
}

std::optional<place> drop_partial(world_of_programs& all, sites& s) {
  for (const message& m : messages_of(all)) {
    if (!goes_home(all, m) || !s.here()) continue;
    editable::change(all, m.a, [&](editable::program& a) { drop_send(a, m.e); });
    editable::change(all, m.b, [&](editable::program& b) { drop_receive(b, m.f); });
    return place{m.a};
  }
  return std::nullopt;
}

std::optional<place> drop_receive_only(world_of_programs& all, sites& s) {
  for (const message& m : messages_of(all)) {
    if (!goes_home(all, m) || !is_missed(all, m) || !s.here()) continue;
    const place found{m.a, sender(all, m).posted, blocks_of(all, m)[0], m.b};
    editable::change(all, m.b, [&](editable::program& b) { drop_receive(b, m.f); });
    return found;
  }
  return std::nullopt;
}

std::optional<place> drop_send_only(world_of_programs& all, sites& s) {
  for (const message& m : messages_of(all)) {
    if (sender(all, m).payload != payload::operand || !is_missed(all, m) || !s.here()) continue;
    const place found{m.b, receiver(all, m).posted, blocks_of(all, m)[0], m.a};
    editable::change(all, m.a, [&](editable::program& a) { drop_send(a, m.e); });
    return found;
  }
  return std::nullopt;
}

/// Every pair of a rank and a step, with another rank.
template <class Do>
std::optional<place> at_some_step(world_of_programs& all, sites& s, const Do& act) {
  if (all.size() == 1) return std::nullopt;
  for (int rank = 0; rank < all.size(); ++rank) {
    for (int i = 0; i < all[rank].steps.size(); ++i) {
      if (!s.here()) continue;
      act(rank, i, (rank + 1) % all.size());
      return place{rank, i};
    }
  }
  return std::nullopt;
}

std::optional<place> send_to_one_who_does_not_know(world_of_programs& all, sites& s) {
  return at_some_step(all, s, [&](int rank, int i, int other) {
    editable::change(all, rank, [&](editable::program& p) {
      at(p.steps, i).exchanges.push_back({other, no_rank, 15, payload::operand, i + 1, {{side::key, 0, rank, 0}}, {}});
    });
  });
}

std::optional<place> await_one_who_does_not_know(world_of_programs& all, sites& s) {
  return at_some_step(all, s, [&](int rank, int i, int other) {
    editable::change(all, rank, [&](editable::program& p) {
      at(p.steps, i)
          .exchanges.push_back(
              {no_rank, other, 15, payload::operand, i + 1, {}, {{{side::key, 0, other, 0}, no_slot}}});
    });
  });
}

bool awaits(const program& p, int from, int lane) {
  return std::any_of(p.exchanges.begin(), p.exchanges.end(),
                     [&](const exchange& x) { return x.from == from && x.lane == lane && x.received.count > 0; });
}

std::optional<place> swap_peers_of_two_ranks(world_of_programs& all, sites& s) {
  for (int a = 0; a < all.size(); ++a) {
    for (int b = a + 1; b < all.size(); ++b) {
      for (int e = 0; e < std::min(all[a].exchanges.size(), all[b].exchanges.size()); ++e) {
        exchange& x = all[a].exchanges[e];
        exchange& y = all[b].exchanges[e];
        if (x.sent.count == 0 || y.sent.count == 0 || x.to == y.to || x.to == b || y.to == a) continue;
        if (awaits(all[y.to], a, x.lane) || !s.here()) continue;
        std::swap(x.to, y.to);
        return place{a, x.posted, all[a].sent[x.sent.first], x.to};
      }
    }
  }
  return std::nullopt;
}

std::optional<place> swap_peers_of_one_rank(world_of_programs& all, sites& s) {
  for (program& p : all) {
    for (int e = 0; e + 1 < p.exchanges.size(); ++e) {
      exchange& x = p.exchanges[e];
      exchange& y = p.exchanges[e + 1];
      if (x.sent.count == 0 || y.sent.count == 0 || x.to == y.to) continue;
      if (x.posted != y.posted || x.lane != y.lane || x.payload != y.payload) continue;
      const message second = message_of(all, p.rank, e + 1);
      if (blocks_of(all, message_of(all, p.rank, e)) == blocks_of(all, second) || !s.here()) continue;
      std::swap(x.to, y.to);
      return place{second.b, receiver(all, second).posted, {}, p.rank};
    }
  }
  return std::nullopt;
}

std::optional<place> send_in_another_lane(world_of_programs& all, sites& s) {
  for (const message& m : messages_of(all)) {
    if (!is_missed(all, m) || !s.here()) continue;
    const place found{m.a, sender(all, m).posted, blocks_of(all, m)[0], m.b};
    editable::change(all, m.a, [&](editable::program& a) { split_send(a, m.e).lane = 15; });
    return found;
  }
  return std::nullopt;
}

std::optional<place> receive_in_another_lane(world_of_programs& all, sites& s) {
  for (const message& m : messages_of(all)) {
    if (!is_missed(all, m) || !s.here()) continue;
    const place found{m.a, sender(all, m).posted, blocks_of(all, m)[0], m.b};
    editable::change(all, m.b, [&](editable::program& b) { split_receive(b, m.f).lane = 15; });
    return found;
  }
  return std::nullopt;
}

std::optional<place> send_another_block(world_of_programs& all, sites& s) {
  for (const message& m : messages_of(all)) {
    if (sender(all, m).payload != payload::operand || !s.here()) continue;
    const place found{m.b, receiver(all, m).posted, {}, m.a};
    editable::change(all, m.a, [&](editable::program& a) {
      block& first = taken(a, m.e).sent[0];
      first = {other_side(first.side), 0, m.a, first.slice};
    });
    return found;
  }
  return std::nullopt;
}

std::optional<place> send_in_another_order(world_of_programs& all, sites& s) {
  for (const message& m : messages_of(all)) {
    if (sender(all, m).sent.count < 2 || !s.here()) continue;
    std::swap(all[m.a].sent[sender(all, m).sent.first], all[m.a].sent[sender(all, m).sent.first + 1]);
    return place{m.b, receiver(all, m).posted, {}, m.a};
  }
  return std::nullopt;
}

std::optional<place> send_a_block_less(world_of_programs& all, sites& s) {
  for (const message& m : messages_of(all)) {
    if (sender(all, m).payload != payload::operand || sender(all, m).sent.count < 2 || !s.here()) continue;
    --all[m.a].exchanges[m.e].sent.count;
    return place{m.b, receiver(all, m).posted, {}, m.a};
  }
  return std::nullopt;
}

std::optional<place> send_operands_as_another_cargo(world_of_programs& all, sites& s) {
  for (const message& m : messages_of(all)) {
    if (!goes_home(all, m) || !s.here()) continue;
    const place found{m.b, receiver(all, m).posted, {}, m.a};
    editable::change(all, m.b, [&](editable::program& b) { split_receive(b, m.f).payload = payload::operand; });
    // The split-off half comes last in its step, which must not change the order within its channel.
    return is_last_of_its_channel(all, m) ? std::optional{found} : std::nullopt;
  }
  return std::nullopt;
}

// What an exchange, a tile and a program may say at all. ------------------------------------------------------------

/// Every exchange that sends.
template <class Do>
std::optional<place> at_some_send(world_of_programs& all, sites& s, const Do& act) {
  for (program& p : all) {
    for (exchange& x : p.exchanges) {
      if (x.sent.count == 0 || !s.here()) continue;
      place found{p.rank, x.posted};
      act(p, x, found);
      return found;
    }
  }
  return std::nullopt;
}
/// Every exchange that receives.
template <class Do>
std::optional<place> at_some_receive(world_of_programs& all, sites& s, const Do& act) {
  for (program& p : all) {
    for (exchange& x : p.exchanges) {
      if (x.received.count == 0 || !s.here()) continue;
      place found{p.rank, x.posted};
      act(p, x, found);
      return found;
    }
  }
  return std::nullopt;
}
/// Every tile.
template <class Do>
std::optional<place> at_some_tile(world_of_programs& all, sites& s, const Do& act) {
  for (program& p : all) {
    for (int i = 0; i < p.steps.size(); ++i) {
      if (p.steps[i].tile.empty() || !s.here()) continue;
      place found{p.rank, i};
      act(p, p.steps[i].tile, found);
      return found;
    }
  }
  return std::nullopt;
}

std::optional<place> send_outside(world_of_programs& all, sites& s) {
  return at_some_send(all, s, [](program& p, exchange& x, place& found) { found.peer = x.to = p.world; });
}
std::optional<place> receive_from_outside(world_of_programs& all, sites& s) {
  return at_some_receive(all, s, [](program&, exchange& x, place& found) { found.peer = x.from = -2; });
}
std::optional<place> send_to_oneself(world_of_programs& all, sites& s) {
  return at_some_send(all, s, [](program& p, exchange& x, place& found) { found.peer = x.to = p.rank; });
}
std::optional<place> receive_from_oneself(world_of_programs& all, sites& s) {
  return at_some_receive(all, s, [](program& p, exchange& x, place& found) { found.peer = x.from = p.rank; });
}
std::optional<place> send_to_nobody(world_of_programs& all, sites& s) {
  return at_some_send(all, s, [](program&, exchange& x, place& found) { found.peer = x.to = no_rank; });
}
std::optional<place> receive_from_nobody(world_of_programs& all, sites& s) {
  return at_some_receive(all, s, [](program&, exchange& x, place& found) { found.peer = x.from = no_rank; });
}
std::optional<place> lane_too_high(world_of_programs& all, sites& s) {
  return at_some_send(all, s, [](program&, exchange& x, place& found) { found.peer = x.lane = 99; });
}
std::optional<place> lane_below_zero(world_of_programs& all, sites& s) {
  return at_some_receive(all, s, [](program&, exchange& x, place& found) { found.peer = x.lane = -1; });
}
std::optional<place> tensor_alone(world_of_programs& all, sites& s) {
  return at_some_send(all, s, [](program&, exchange& x, place& found) { found.peer = (x.tensor = 2) - 1; });
}
std::optional<place> send_a_shard_that_is_not(world_of_programs& all, sites& s) {
  return at_some_send(all, s, [](program& p, exchange& x, place& found) {
    p.sent[x.sent.first].shard = p.world;
    found.what = p.sent[x.sent.first];
  });
}
std::optional<place> send_a_slice_that_is_not(world_of_programs& all, sites& s) {
  return at_some_send(all, s, [](program& p, exchange& x, place& found) {
    p.sent[x.sent.first].slice = -1;
    found.what = p.sent[x.sent.first];
  });
}
std::optional<place> receive_a_shard_that_is_not(world_of_programs& all, sites& s) {
  return at_some_receive(all, s, [](program& p, exchange& x, place& found) {
    p.received[x.received.first].block.shard = -1;
    found.what = p.received[x.received.first].block;
  });
}
std::optional<place> receive_a_slice_that_is_not(world_of_programs& all, sites& s) {
  return at_some_receive(all, s, [](program& p, exchange& x, place& found) {
    p.received[x.received.first].block.slice = p.slices;
    found.what = p.received[x.received.first].block;
  });
}
std::optional<place> compute_a_shard_that_is_not(world_of_programs& all, sites& s) {
  return at_some_tile(all, s, [](program& p, orrery::schedule::tile& t, place& found) {
    p.keys[t.keys.first].block.shard = p.world + 3;
    found.what = p.keys[t.keys.first].block;
  });
}
std::optional<place> compute_a_slice_that_is_not(world_of_programs& all, sites& s) {
  return at_some_tile(all, s, [](program& p, orrery::schedule::tile& t, place& found) {
    for (int q = t.queries.first; q < t.queries.end(); ++q) p.queries[q].block.slice = p.slices;
    for (int k = t.keys.first; k < t.keys.end(); ++k) p.keys[k].block.slice = p.slices;
    found.what = p.queries[t.queries.first].block;
  });
}
std::optional<place> query_is_a_key(world_of_programs& all, sites& s) {
  return at_some_tile(all, s, [](program& p, orrery::schedule::tile& t, place& found) {
    p.queries[t.queries.first].block.side = side::key;
    found.what = p.queries[t.queries.first].block;
  });
}
std::optional<place> key_is_a_query(world_of_programs& all, sites& s) {
  return at_some_tile(all, s, [](program& p, orrery::schedule::tile& t, place& found) {
    p.keys[t.keys.end() - 1].block.side = side::query;
    found.what = p.keys[t.keys.end() - 1].block;
  });
}
std::optional<place> key_of_another_slice(world_of_programs& all, sites& s) {
  if (all[0].slices == 1) return std::nullopt;
  return at_some_tile(all, s, [](program& p, orrery::schedule::tile& t, place& found) {
    block& last = p.keys[t.keys.end() - 1].block;
    last.slice = (last.slice + 1) % p.slices;
    found.what = last;
  });
}
std::optional<place> complete_at_once(world_of_programs& all, sites& s) {
  return at_some_send(all, s, [](program& p, exchange& x, place&) {
    x.complete_before = x.posted;
    order_completions(p);
  });
}
std::optional<place> complete_after_the_end(world_of_programs& all, sites& s) {
  return at_some_receive(all, s, [](program& p, exchange& x, place&) { x.complete_before = p.steps.size() + 1; });
}
std::optional<place> never_await(world_of_programs& all, sites& s) {
  for (program& p : all) {
    for (int i = 0; i <= p.steps.size(); ++i) {
      orrery::schedule::range& completions = i < p.steps.size() ? p.steps[i].completions : p.final_completions;
      if (completions.count == 0 || !s.here()) continue;
      --completions.count;
      return place{p.rank};
    }
  }
  return std::nullopt;
}
std::optional<place> never_post(world_of_programs& all, sites& s) {
  for (program& p : all) {
    for (orrery::schedule::step& now : p.steps) {
      if (now.exchanges.count == 0 || !s.here()) continue;
      --now.exchanges.count;
      return place{p.rank};
    }
  }
  return std::nullopt;
}
std::optional<place> await_twice(world_of_programs& all, sites& s) {
  for (program& p : all) {
    for (int c = 1; c < p.completions.size(); ++c) {
      const exchange& x = p.exchanges[p.completions[c]];
      if (x.complete_before != p.exchanges[p.completions[c - 1]].complete_before || !s.here()) continue;
      p.completions[c] = p.completions[c - 1];
      return place{p.rank};
    }
  }
  return std::nullopt;
}

std::optional<place> exchange_two_programs(world_of_programs& all, sites& s) {
  for (int rank = 0; rank + 1 < all.size(); ++rank) {
    if (!s.here()) continue;
    std::swap(all[rank], all[rank + 1]);
    return place{rank};
  }
  return std::nullopt;
}
std::optional<place> program_for_another_world(world_of_programs& all, sites& s) {
  for (program& p : all) {
    if (!s.here()) continue;
    ++p.world;
    return place{p.rank};
  }
  return std::nullopt;
}
std::optional<place> program_with_other_slices(world_of_programs& all, sites& s) {
  for (int rank = 1; rank < all.size(); ++rank) {
    if (!s.here()) continue;
    ++all[rank].slices;
    return place{rank};
  }
  return std::nullopt;
}
std::optional<place> program_for_another_pass(world_of_programs& all, sites& s) {
  for (int rank = 1; rank < all.size(); ++rank) {
    if (!s.here()) continue;
    program& p = all[rank];
    p.pass = p.pass == orrery::pass::forward ? orrery::pass::circulate_keys : orrery::pass::forward;
    return place{rank};
  }
  return std::nullopt;
}

// Tiles. ------------------------------------------------------------------------------------------------------------

std::optional<place> repeat_a_tile(world_of_programs& all, sites& s) {
  int rank = 0;
  auto found = at_some_tile(all, s, [&](program& p, orrery::schedule::tile&, place& where) {
    rank = p.rank;
    ++*where.step;
  });
  if (found) editable::change(all, rank, [&](editable::program& p) { p.repeat_tile(*found->step - 1); });
  return found;
}

std::optional<place> name_a_key_twice(world_of_programs& all, sites& s) {
  std::optional<block> key;
  auto found = at_some_tile(all, s, [&](program& p, orrery::schedule::tile& t, place& where) {
    key = p.keys[t.keys.first].block;
    where.what = p.queries[t.queries.first].block;
    where.peer = key->shard;
  });
  if (!found) return found;
  editable::change_keeping_slots(all, found->rank, [&](editable::program& p) {
    at(p.steps, *found->step).keys.push_back({*key, no_slot});
  });
  return found;
}

std::optional<place> name_a_query_twice(world_of_programs& all, sites& s) {
  std::optional<block> query;
  auto found = at_some_tile(all, s, [&](program& p, orrery::schedule::tile& t, place& where) {
    query = where.what = p.queries[t.queries.first].block;
  });
  if (!found) return found;
  editable::change_keeping_slots(all, found->rank, [&](editable::program& p) {
    at(p.steps, *found->step).queries.push_back({*query, no_slot});
  });
  return found;
}

/// Does the rank add to a block's partial in another tile, too (or is it at home, or has it none)?
bool is_added_to_elsewhere(const program& p, int step, const held_block& holder) {
  const block& what = holder.block;
  if (what.shard == p.rank || !has_partials(p.pass, what.side)) return true;
  if (times_received(p, what, payload::partial) > 0 || sends_of_partial(p, what).size() != 1) return false;
  const editable::program readable{p};
  for (int i = 0; i < p.steps.size(); ++i) {
    const editable::step& other = readable.steps[static_cast<std::size_t>(i)];
    if (i != step && (is_in(other.queries, what) || is_in(other.keys, what))) return true;
  }
  return false;
}

block first_of(const std::vector<held_block>& held) {
  return std::min_element(held.begin(), held.end(),
                          [](const held_block& a, const held_block& b) { return a.block.shard < b.block.shard; })
      ->block;
}

std::optional<place> drop_a_tile(world_of_programs& all, sites& s) {
  for (int rank = 0; rank < all.size(); ++rank) {
    const editable::program readable{all[rank]};
    for (int i = 0; i < all[rank].steps.size(); ++i) {
      const editable::step& now = readable.steps[static_cast<std::size_t>(i)];
      if (now.queries.empty() || now.keys.empty()) continue;
      const auto elsewhere = [&](const held_block& h) { return is_added_to_elsewhere(all[rank], i, h); };
      if (!std::all_of(now.queries.begin(), now.queries.end(), elsewhere)) continue;
      if (!std::all_of(now.keys.begin(), now.keys.end(), elsewhere)) continue;
      if (!s.here()) continue;
      const block query = first_of(now.queries);
      const place found{query.shard, {}, query, first_of(now.keys).shard};
      editable::change(all, rank, [&](editable::program& p) {
        at(p.steps, i).queries.clear();
        at(p.steps, i).keys.clear();
      });
      return found;
    }
  }
  return std::nullopt;
}

std::optional<place> leave_a_key_out(world_of_programs& all, sites& s) {
  for (int rank = 0; rank < all.size(); ++rank) {
    const editable::program readable{all[rank]};
    for (int i = 0; i < all[rank].steps.size(); ++i) {
      const editable::step& now = readable.steps[static_cast<std::size_t>(i)];
      if (now.queries.empty() || now.keys.size() < 2) continue;
      for (std::size_t k = 0; k < now.keys.size(); ++k) {
        if (!is_added_to_elsewhere(all[rank], i, now.keys[k]) || !s.here()) continue;
        const block query = first_of(now.queries);
        const place found{query.shard, {}, query, now.keys[k].block.shard};
        editable::change(all, rank, [&](editable::program& p) {
          std::vector<held_block>& keys = at(p.steps, i).keys;
          keys.erase(keys.begin() + static_cast<std::ptrdiff_t>(k));
        });
        return found;
      }
    }
  }
  return std::nullopt;
}

/// Drops a tile whose partial is then sent on, though nothing was added to it.
std::optional<place> drop_the_tile_of_a_partial(world_of_programs& all, sites& s) {
  for (int rank = 0; rank < all.size(); ++rank) {
    const editable::program readable{all[rank]};
    for (int i = 0; i < all[rank].steps.size(); ++i) {
      const editable::step& now = readable.steps[static_cast<std::size_t>(i)];
      if (now.queries.empty() || now.keys.empty()) continue;
      std::optional<place> found;
      for (const std::vector<held_block>* held : {&now.queries, &now.keys}) {
        for (const held_block& h : *held) {
          const block& what = h.block;
          if (what.shard == rank || !has_partials(all[rank].pass, what.side)) continue;
          const std::vector<int> sends = sends_of_partial(all[rank], what);
          if (sends.size() != 1 || times_received(all[rank], what, payload::partial) > 0) continue;
          int tiles = 0;
          for (const editable::step& each : readable.steps) {
            tiles += is_in(each.queries, what) || is_in(each.keys, what) ? 1 : 0;
          }
          if (tiles == 1 && (!found || sends[0] < *found->step)) found = place{rank, sends[0]};
        }
      }
      if (!found || !s.here()) continue;
      editable::change(all, rank, [&](editable::program& p) {
        at(p.steps, i).queries.clear();
        at(p.steps, i).keys.clear();
      });
      return found;
    }
  }
  return std::nullopt;
}

std::optional<place> use_an_operand_a_step_early(world_of_programs& all, sites& s) {
  for (const message& m : messages_of(all)) {
    const exchange& y = receiver(all, m);
    if (y.payload != payload::operand || y.complete_before == all[m.b].steps.size()) continue;
    const editable::program readable{all[m.b]};
    const editable::step& next = readable.steps[static_cast<std::size_t>(y.complete_before)];
    const std::vector<block> blocks = blocks_of(all, m);
    const bool needed = std::any_of(blocks.begin(), blocks.end(), [&](const block& what) {
      return what.shard != m.b && times_received(all[m.b], what, payload::operand) == 1 && reads(next, what);
    });
    if (!needed || !s.here()) continue;
    const place found{m.b, y.complete_before};
    editable::change(all, m.b, [&](editable::program& b) { ++split_receive(b, m.f).complete_before; });
    return found;
  }
  return std::nullopt;
}

// Slots. ------------------------------------------------------------------------------------------------------------

/// Receives an operand into the slot of another one that is needed later: frees that slot too early.
std::optional<place> free_a_slot_early(world_of_programs& all, sites& s) {
  for (program& p : all) {
    for (const exchange& early : p.exchanges) {
      for (const exchange& late : p.exchanges) {
        if (early.payload != payload::operand || late.payload != payload::operand) continue;
        for (int r = early.received.first; r < early.received.end(); ++r) {
          for (int q = std::max(r + 1, late.received.first); q < late.received.end(); ++q) {
            const held_block& needed = p.received[r];
            held_block& arriving = p.received[q];
            if (needed.block.side != arriving.block.side || needed.block.shard == p.rank) continue;
            if (needed.slot == arriving.slot || needed.block == arriving.block) continue;
            if (times_received(p, needed.block, payload::operand) > 1) continue;
            const auto read = first_read(p, needed.block, late.posted);
            if (!read || !s.here()) continue;
            arriving.slot = needed.slot;
            return place{p.rank, std::nullopt, needed.block};
          }
        }
      }
    }
  }
  return std::nullopt;
}

/// Begins a partial in the slot of another one that begins in the same tile.
std::optional<place> begin_two_partials_in_one_slot(world_of_programs& all, sites& s) {
  for (program& p : all) {
    for (int i = 0; i < p.steps.size(); ++i) {
      for (const orrery::schedule::range& which : {p.steps[i].tile.queries, p.steps[i].tile.keys}) {
        list<held_block>& holders = which == p.steps[i].tile.queries ? p.queries : p.keys;
        int first = no_slot;
        for (int h = which.first; h < which.end(); ++h) {
          if (holders[h].slot == no_slot) continue;
          if (first == no_slot) {
            first = h;
          } else if (s.here()) {
            holders[h].slot = holders[first].slot;
            return place{p.rank, i, holders[first].block};
          }
        }
      }
    }
  }
  return std::nullopt;
}

/// Receives a partial where one is running.
std::optional<place> receive_over_a_partial(world_of_programs& all, sites& s) {
  for (program& p : all) {
    for (const exchange& x : p.exchanges) {
      if (x.payload != payload::partial || x.received.count < 2 || !s.here()) continue;
      int r = x.received.first;
      while (r + 1 < x.received.end() && p.received[r + 1].block.side != p.received[r].block.side) ++r;
      if (r + 1 == x.received.end()) return std::nullopt;
      p.received[r + 1].slot = p.received[r].slot;
      return place{p.rank, x.posted};
    }
  }
  return std::nullopt;
}

std::optional<place> a_slot_too_few(world_of_programs& all, sites& s) {
  for (program& p : all) {
    for (int& slots : p.slots) {
      if (slots == 0 || !s.here()) continue;
      --slots;
      return place{p.rank};
    }
  }
  return std::nullopt;
}
std::optional<place> receive_into_no_slot(world_of_programs& all, sites& s) {
  return at_some_receive(all, s, [](program& p, exchange& x, place& found) {
    p.received[x.received.end() - 1].slot = no_slot;
    found.what = p.received[x.received.end() - 1].block;
  });
}
std::optional<place> receive_into_a_slot_that_is_not(world_of_programs& all, sites& s) {
  return at_some_receive(all, s, [](program& p, exchange& x, place& found) {
    held_block& first = p.received[x.received.first];
    first.slot = p.slots_of(first.block.side, x.payload);
    found.what = first.block;
  });
}
std::optional<place> begin_a_partial_in_no_slot(world_of_programs& all, sites& s) {
  for (program& p : all) {
    for (int i = 0; i < p.steps.size(); ++i) {
      const orrery::schedule::range& queries = p.steps[i].tile.queries;
      for (int q = queries.first; q < queries.end(); ++q) {
        if (p.queries[q].slot == no_slot || !s.here()) continue;
        p.queries[q].slot = no_slot;
        return place{p.rank, i, p.queries[q].block};
      }
    }
  }
  return std::nullopt;
}

// Partials. ---------------------------------------------------------------------------------------------------------

std::optional<place> send_a_partial_twice(world_of_programs& all, sites& s) {
  for (const message& m : messages_of(all)) {
    if (sender(all, m).payload != payload::partial || !s.here()) continue;
    const block what = blocks_of(all, m)[0];
    const place found{m.a, sender(all, m).posted, what};
    editable::change(all, m.a, [&](editable::program& a) {
      editable::exchange again = taken(a, m.e);
      again.from = no_rank;
      again.received.clear();
      at(a.steps, *found.step).exchanges.push_back(again);
    });
    return found;
  }
  return std::nullopt;
}

/// Sends a partial that its home awaits to another rank, which does not send it on.
std::optional<place> send_a_partial_to_a_wrong_home(world_of_programs& all, sites& s) {
  for (const message& m : messages_of(all)) {
    const std::vector<block> blocks = blocks_of(all, m);
    if (!goes_home(all, m)) continue;
    for (int wrong = 0; wrong < all.size(); ++wrong) {
      const int arrives = receiver(all, m).complete_before;
      if (wrong == m.a || wrong == m.b || arrives > all[wrong].steps.size()) continue;
      const bool stays = std::all_of(blocks.begin(), blocks.end(), [&](const block& what) {
        const std::vector<int> sends = sends_of_partial(all[wrong], what);
        return std::all_of(sends.begin(), sends.end(), [&](int step) { return step < arrives; });
      });
      if (!stays || !s.here()) continue;
      const exchange y = receiver(all, m);
      editable::change(all, m.a, [&](editable::program& a) { split_send(a, m.e).to = wrong; });
      editable::change(all, m.b, [&](editable::program& b) { drop_receive(b, m.f); });
      editable::change(all, wrong, [&](editable::program& w) {
        std::vector<held_block> received;
        for (const block& what : blocks) received.push_back({what, no_slot});
        at(w.steps, y.posted).exchanges.push_back({no_rank, m.a, y.lane, payload::partial, arrives, {}, received});
      });
      return place{wrong};
    }
  }
  return std::nullopt;
}

std::optional<place> send_a_partial_away_from_home(world_of_programs& all, sites& s) {
  return at_some_step(all, s, [&](int rank, int i, int other) {
    editable::change(all, rank, [&](editable::program& p) {
      at(p.steps, i)
          .exchanges.push_back({other, no_rank, 15, payload::partial, i + 1, {{side::query, 0, rank, 0}}, {}});
    });
  });
}

/// Lets a partial arrive when what it should have been added to has gone.
std::optional<place> let_a_partial_arrive_late(world_of_programs& all, sites& s) {
  for (const message& m : messages_of(all)) {
    const exchange& y = receiver(all, m);
    if (y.payload != payload::partial || goes_home(all, m) || y.complete_before == all[m.b].steps.size()) continue;
    const std::vector<block> blocks = blocks_of(all, m);
    const editable::program readable{all[m.b]};
    const bool missed = std::all_of(blocks.begin(), blocks.end(), [&](const block& what) {
      const std::vector<int> sends = sends_of_partial(all[m.b], what);
      if (sends.size() != 1 || sends[0] != y.complete_before || times_received(all[m.b], what, y.payload) > 1)
        return false;
      for (int i = 0; i < sends[0]; ++i) {  // it has something of its own to send
        const editable::step& each = readable.steps[static_cast<std::size_t>(i)];
        if (is_in(each.queries, what) || is_in(each.keys, what)) return true;
      }
      return false;
    });
    if (!missed || !s.here()) continue;
    editable::change(all, m.b, [&](editable::program& b) { ++split_receive(b, m.f).complete_before; });
    return place{m.b};
  }
  return std::nullopt;
}

const mutation mutations[] = {
    {"an exchange is dropped at both ends", fault::operand_missing, drop_exchange},
    {"the receive of an operand is dropped", fault::operand_missing, drop_receive_of_an_operand,
     fault_clue::kind::not_received},
    {"an operand is used a step too early", fault::operand_missing, use_an_operand_a_step_early,
     fault_clue::kind::in_flight},
    {"only the receive is dropped", fault::send_unmatched, drop_receive_only},
    {"a send that nobody receives", fault::send_unmatched, send_to_one_who_does_not_know},
    {"the peers of two ranks are swapped", fault::send_unmatched, swap_peers_of_two_ranks},
    {"a send in another lane", fault::send_unmatched, send_in_another_lane, fault_clue::kind::other_lane},
    {"a receive in another lane", fault::send_unmatched, receive_in_another_lane, fault_clue::kind::other_lane},
    {"only the send is dropped", fault::receive_unmatched, drop_send_only},
    {"a receive that nobody sends", fault::receive_unmatched, await_one_who_does_not_know},
    {"two peers of one rank are swapped", fault::blocks_disagree, swap_peers_of_one_rank},
    {"another block is sent", fault::blocks_disagree, send_another_block, fault_clue::kind::other_block},
    {"blocks are sent in another order", fault::blocks_disagree, send_in_another_order, fault_clue::kind::other_block},
    {"a block less is sent", fault::blocks_disagree, send_a_block_less, fault_clue::kind::other_count},
    {"partials are awaited as operands", fault::blocks_disagree, send_operands_as_another_cargo,
     fault_clue::kind::other_payload},
    {"a send to a rank outside the world", fault::peer_outside_world, send_outside},
    {"a receive from a rank outside the world", fault::peer_outside_world, receive_from_outside},
    {"a send to oneself", fault::peer_outside_world, send_to_oneself},
    {"a receive from oneself", fault::peer_outside_world, receive_from_oneself},
    {"a send to nobody", fault::peer_outside_world, send_to_nobody},
    {"a receive from nobody", fault::peer_outside_world, receive_from_nobody},
    {"lane 99", fault::lane_does_not_exist, lane_too_high},
    {"lane -1", fault::lane_does_not_exist, lane_below_zero},
    {"a tensor alone", fault::tensor_alone, tensor_alone},
    {"a shard outside the world is sent", fault::block_outside_world, send_a_shard_that_is_not},
    {"a slice that does not exist is sent", fault::block_outside_world, send_a_slice_that_is_not},
    {"a shard outside the world is received", fault::block_outside_world, receive_a_shard_that_is_not},
    {"a slice that does not exist is received", fault::block_outside_world, receive_a_slice_that_is_not},
    {"a shard outside the world is computed", fault::block_outside_world, compute_a_shard_that_is_not},
    {"a slice that does not exist is computed", fault::block_outside_world, compute_a_slice_that_is_not},
    {"a key among the queries", fault::sides_confused, query_is_a_key},
    {"a query among the keys", fault::sides_confused, key_is_a_query},
    {"a key of another slice", fault::sides_confused, key_of_another_slice},
    {"an exchange that is complete at once", fault::exchange_takes_no_step, complete_at_once},
    {"an exchange that completes after the end", fault::exchange_takes_no_step, complete_after_the_end},
    {"an exchange that is never awaited", fault::exchange_takes_no_step, never_await},
    {"an exchange that is never posted", fault::exchange_takes_no_step, never_post},
    {"an exchange that is awaited twice", fault::exchange_takes_no_step, await_twice},
    {"two ranks' programs are exchanged", fault::program_of_another, exchange_two_programs},
    {"a program for another world", fault::program_of_another, program_for_another_world},
    {"a program with other slices", fault::program_of_another, program_with_other_slices},
    {"a program for another pass", fault::program_of_another, program_for_another_pass},
    {"a tile is computed twice", fault::pair_computed_twice, repeat_a_tile},
    {"a tile names a key twice", fault::pair_computed_twice, name_a_key_twice},
    {"a tile names a query twice", fault::pair_computed_twice, name_a_query_twice},
    {"a tile is dropped", fault::pair_missing, drop_a_tile},
    {"a key is left out of a tile", fault::pair_missing, leave_a_key_out},
    {"a slot is freed early", fault::slot_overwritten, free_a_slot_early},
    {"two partials begin in one slot", fault::slot_overwritten, begin_two_partials_in_one_slot},
    {"two partials arrive in one slot", fault::slot_overwritten, receive_over_a_partial},
    {"a slot too few", fault::slot_missing, a_slot_too_few},
    {"a block is received into no slot", fault::slot_missing, receive_into_no_slot},
    {"a block is received into a slot that does not exist", fault::slot_missing, receive_into_a_slot_that_is_not},
    {"a partial begins in no slot", fault::slot_missing, begin_a_partial_in_no_slot},
    {"a partial is sent twice", fault::partial_not_held, send_a_partial_twice},
    {"a partial is sent to which nothing was added", fault::partial_not_held, drop_the_tile_of_a_partial},
    {"a partial is sent to a wrong home", fault::partial_stranded, send_a_partial_to_a_wrong_home},
    {"a partial is not sent home", fault::partial_stranded, drop_partial},
    {"a partial arrives too late", fault::partial_stranded, let_a_partial_arrive_late},
    {"a home's partial is sent away", fault::partial_leaves_home, send_a_partial_away_from_home},
};

/// Is the exchange that explains the fault in the programs, in the step and lane that the message says?
bool is_true(const fault_clue& clue, const world_of_programs& all, const orrery::verdict& v) {
  using kind = fault_clue::kind;
  const bool is_receive =
      clue.found == kind::in_flight || (v.found == fault::send_unmatched && clue.found != kind::none);
  const int rank = clue.found == kind::in_flight ? v.rank : clue.found == kind::other_peer ? v.peer : clue.rank;
  const program& p = all[rank];
  return std::any_of(p.exchanges.begin(), p.exchanges.end(), [&](const exchange& x) {
    std::vector<block> blocks;
    for (int i = x.sent.first; !is_receive && i < x.sent.end(); ++i) blocks.push_back(p.sent[i]);
    for (int i = x.received.first; is_receive && i < x.received.end(); ++i) blocks.push_back(p.received[i].block);
    const int peer = is_receive ? x.from : x.to;
    const int expected_peer = clue.found == kind::in_flight || clue.found == kind::other_peer ? clue.rank : v.rank;
    if (x.posted != clue.step || x.lane != clue.lane || peer != expected_peer || !is_in(blocks, clue.block))
      return false;
    if (clue.found == kind::in_flight || clue.found == kind::not_received)
      return x.payload == payload::operand && is_in(blocks, v.block) &&
             (clue.found == kind::not_received || x.complete_before == clue.until);
    if (clue.found == kind::other_block) return !(clue.block == v.block);
    if (clue.found == kind::other_count) return clue.count == static_cast<int>(blocks.size());
    if (clue.found == kind::other_payload) return x.payload == clue.payload && clue.payload != v.payload;
    if (clue.found == kind::other_lane) return clue.lane != v.lane && is_in(blocks, v.block);
    return x.payload == clue.payload;
  });
}

}  // namespace

TEST_CASE("each damage to a right schedule is found, and named") {
  struct count {
    int cases = 0;
    int topologies = 0;
  };
  std::vector<count> counts(std::size(mutations));
  for (const topologies::entry& topology : topologies::all_and_in_chunks()) {
    CAPTURE(topology.name);
    std::vector<bool> applied(std::size(mutations));
    for (const int world : {1, 2, 3, 4, 6, 8, 9, 12, 16}) {
      for (const orrery::pass p : topologies::every_pass) {
        if (!topology.admits(world, p)) continue;
        CAPTURE(world);
        CAPTURE(std::string{name_of(p)});
        const world_of_programs right = topology.programs(world, p);
        for (std::size_t i = 0; i < std::size(mutations); ++i) {
          const mutation& m = mutations[i];
          CAPTURE(std::string{m.name});
          world_of_programs untouched = right;
          sites every{-1};
          m.apply(untouched, every);
          REQUIRE(untouched == right);
          int last = -1;
          for (const int site : {0, every.seen / 2, every.seen - 1}) {
            if (site <= last) continue;
            last = site;
            world_of_programs damaged = right;
            sites wanted{site};
            const std::optional<place> where = m.apply(damaged, wanted);
            if (!where) continue;
            const orrery::verdict found = orrery::verify(damaged);
            CAPTURE(site);
            INFO(found.message());
            INFO(orrery::draw_grid(right));
            REQUIRE(found.found == m.expected);
            REQUIRE(found.rank == where->rank);
            if (where->step) REQUIRE(found.step == *where->step);
            if (where->what) REQUIRE((found.block == *where->what));
            if (where->peer) REQUIRE(found.peer == *where->peer);
            if (m.clue) REQUIRE(found.clue.found == *m.clue);
            if (found.clue.found != fault_clue::kind::none) REQUIRE(is_true(found.clue, damaged, found));
            ++counts[i].cases;
            applied[i] = true;
          }
        }
      }
    }
    for (std::size_t i = 0; i < std::size(mutations); ++i) counts[i].topologies += applied[i] ? 1 : 0;
  }
  for (std::size_t i = 0; i < std::size(mutations); ++i) {
    CAPTURE(std::string{mutations[i].name});
    CHECK(counts[i].cases >= 100);
    CHECK(counts[i].topologies >= 8);
  }
}
