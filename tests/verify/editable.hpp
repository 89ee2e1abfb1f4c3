// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

// A program taken apart, so that a test can change it and put it together again.

#include <vector>

#include "orrery/schedule/detail/slot_allocation.hpp"
#include "orrery/schedule/program.hpp"

namespace editable {

struct exchange {
  int to;
  int from;
  int lane;
  orrery::schedule::payload payload;
  int complete_before;
  std::vector<orrery::schedule::block> sent;
  std::vector<orrery::schedule::held_block> received;
};

struct step {
  std::vector<exchange> exchanges;
  std::vector<orrery::schedule::held_block> queries;
  std::vector<orrery::schedule::held_block> keys;
};

struct program {
  orrery::program original;
  std::vector<step> steps;

  explicit program(const orrery::program& p) : original{p} {
    for (const orrery::schedule::step& now : p.steps) {
      step& to = steps.emplace_back();
      for (int e = now.exchanges.first; e < now.exchanges.end(); ++e) {
        const orrery::schedule::exchange& x = p.exchanges[e];
        exchange& copy =
            to.exchanges.emplace_back(exchange{x.to, x.from, x.lane, x.payload, x.complete_before, {}, {}});
        copy.sent.assign(p.sent.begin() + x.sent.first, p.sent.begin() + x.sent.end());
        copy.received.assign(p.received.begin() + x.received.first, p.received.begin() + x.received.end());
      }
      to.queries.assign(p.queries.begin() + now.tile.queries.first, p.queries.begin() + now.tile.queries.end());
      to.keys.assign(p.keys.begin() + now.tile.keys.first, p.keys.begin() + now.tile.keys.end());
    }
  }

  /// With the slots that the blocks had, and those of what was added as they were given.
  [[nodiscard]] orrery::program with_its_slots() const {
    orrery::program p;
    p.rank = original.rank;
    p.world = original.world;
    p.slices = original.slices;
    p.chunks = original.chunks;
    p.pass = original.pass;
    p.slots = original.slots;
    for (const step& now : steps) {
      const int first = p.exchanges.size();
      for (const exchange& x : now.exchanges) {
        p.exchanges.push_back({x.to,
                               x.from,
                               x.lane,
                               x.payload,
                               p.steps.size(),
                               x.complete_before,
                               {p.sent.size(), static_cast<int>(x.sent.size())},
                               {p.received.size(), static_cast<int>(x.received.size())},
                               orrery::schedule::every_tensor});
        for (const orrery::schedule::block& b : x.sent) p.sent.push_back(b);
        for (const orrery::schedule::held_block& b : x.received) p.received.push_back(b);
      }
      const orrery::schedule::tile tile{{p.queries.size(), static_cast<int>(now.queries.size())},
                                        {p.keys.size(), static_cast<int>(now.keys.size())}};
      for (const orrery::schedule::held_block& b : now.queries) p.queries.push_back(b);
      for (const orrery::schedule::held_block& b : now.keys) p.keys.push_back(b);
      p.steps.push_back({{0, 0}, {first, p.exchanges.size() - first}, tile});
    }
    order_completions(p);
    return p;
  }

  /// With slots assigned anew.
  [[nodiscard]] orrery::program finished() const {
    orrery::program p = with_its_slots();
    finish(p);
    return p;
  }

  /// A step that does the same tile again, after step i.
  void repeat_tile(int i) {
    for (step& each : steps) {
      for (exchange& x : each.exchanges) x.complete_before += x.complete_before > i + 1 ? 1 : 0;
    }
    const auto at = steps.begin() + i;
    steps.insert(at + 1, step{{}, at->queries, at->keys});
  }
};

/// Applies `change` to one rank's program, taken apart, and assigns its slots anew.
template <class Change>
void change(orrery::schedule::list<orrery::program>& all, int rank, const Change& change_it) {
  program taken_apart{all[rank]};
  change_it(taken_apart);
  all[rank] = taken_apart.finished();
}

/// The same, but every block keeps its slot.
template <class Change>
void change_keeping_slots(orrery::schedule::list<orrery::program>& all, int rank, const Change& change_it) {
  program taken_apart{all[rank]};
  change_it(taken_apart);
  all[rank] = taken_apart.with_its_slots();
}

}  // namespace editable
