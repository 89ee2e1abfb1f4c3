// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/verify/detail/verify_once.hpp"

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/placed.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/topology/wallfacer.hpp"
#include "orrery/tune/least_egress.hpp"

namespace {

using orrery::pass;

/// A ring that counts the programs that it writes, all values and threads together. `Tag` makes it a type of its own.
template <int Tag>
struct counting_ring {
  static inline std::atomic<int> written = 0;

  [[nodiscard]] orrery::program program(int rank, int world, pass p = pass::forward) const {
    ++written;
    return orrery::ring::program(rank, world, p);
  }
};

/// The same, but with a value: 1 leaves out the last tile.
template <int Tag>
struct faulty_ring : counting_ring<Tag> {
  int faulty = 0;

  explicit faulty_ring(int is_faulty) : faulty{is_faulty} {}
  [[nodiscard]] orrery::program program(int rank, int world, pass p = pass::forward) const {
    orrery::program one = counting_ring<Tag>::program(rank, world, p);
    if (faulty == 1) one.steps.back().tile = {{0, 0}, {0, 0}};
    return one;
  }
};
struct comparable : faulty_ring<1> {
  using faulty_ring::faulty_ring;
  bool operator==(const comparable& other) const { return faulty == other.faulty; }
};
struct incomparable : faulty_ring<2> {
  using faulty_ring::faulty_ring;
};
struct base_of_inheriting {
  int unlike = 0;
  bool operator==(const base_of_inheriting&) const = default;
};
struct inheriting : base_of_inheriting, faulty_ring<3> {
  using faulty_ring::faulty_ring;
};

template <class Topology>
int written_by(const Topology& t, int world, pass p = pass::forward) {
  const int before = Topology::written;
  CHECK(orrery::detail::verify_once(t, world, p).ok() == orrery::verify(t, world, p).ok());
  return Topology::written - before - world;  // those of `verify` are not counted
}

}  // namespace

static_assert(orrery::comparable_by_value<orrery::ring>);
static_assert(orrery::comparable_by_value<comparable>);
static_assert(orrery::comparable_by_value<orrery::any_topology>);
static_assert(orrery::comparable_by_value<orrery::placed<orrery::ring, orrery::rings_in_nodes>>);
static_assert(orrery::comparable_by_value<orrery::placed<orrery::ring, orrery::least_egress>>);
static_assert(!orrery::comparable_by_value<incomparable>);
static_assert(!orrery::comparable_by_value<inheriting>);
static_assert(!orrery::comparable_by_value<orrery::placed<incomparable, orrery::rings_in_nodes>>);

TEST_CASE("a proof is done once for each world and pass") {
  CHECK(written_by(counting_ring<0>{}, 6) == 6);
  CHECK(written_by(counting_ring<0>{}, 6) == 0);
  CHECK(written_by(counting_ring<0>{}, 7) == 7);
  CHECK(written_by(counting_ring<0>{}, 6, pass::circulate_keys) == 6);
  CHECK(written_by(counting_ring<0>{}, 6, pass::circulate_queries) == 6);
  CHECK(written_by(counting_ring<0>{}, 6, pass::circulate_keys) == 0);
}

TEST_CASE("threads that ask at the same time share one proof") {
  struct slow_ring : counting_ring<4> {
    [[nodiscard]] orrery::program program(int rank, int world) const {
      std::this_thread::sleep_for(std::chrono::milliseconds{2});  // so that all threads come while one proves
      return counting_ring::program(rank, world);
    }
  };
  std::atomic<int> proven = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] { proven += orrery::detail::verify_once(slow_ring{}, 16).ok(); });
  }
  for (std::thread& one : threads) one.join();
  CHECK(proven == 8);
  CHECK(slow_ring::written == 16);
}

TEST_CASE("an answer serves equal topologies only") {
  CHECK(written_by(comparable{0}, 5) == 5);
  const orrery::verdict wrong = orrery::detail::verify_once(comparable{1}, 5);
  CHECK(wrong.found == orrery::fault::pair_missing);
  CHECK(written_by(comparable{0}, 5) == 0);
  CHECK(orrery::detail::verify_once(comparable{1}, 5).message() == wrong.message());
}

TEST_CASE("topologies that cannot be compared are proven each time") {
  CHECK(written_by(incomparable{0}, 5) == 5);
  CHECK(written_by(incomparable{0}, 5) == 5);
  CHECK(orrery::detail::verify_once(incomparable{1}, 5).found == orrery::fault::pair_missing);
  CHECK(written_by(inheriting{0}, 5) == 5);
  CHECK(orrery::detail::verify_once(inheriting{1}, 5).found == orrery::fault::pair_missing);
}

TEST_CASE("topologies chosen at run time are equal if they hold the same") {
  using orrery::any_topology;
  const any_topology ring = counting_ring<5>{};
  const any_topology incomparable_one = incomparable{0};
  CHECK(ring == any_topology{counting_ring<5>{}});
  CHECK(ring != any_topology{counting_ring<6>{}});
  CHECK(any_topology{comparable{0}} == any_topology{comparable{0}});
  CHECK(any_topology{comparable{0}} != any_topology{comparable{1}});
  CHECK(incomparable_one == any_topology{incomparable_one});
  CHECK(incomparable_one != any_topology{incomparable{0}});

  using placed = orrery::placed<any_topology, orrery::least_egress>;
  CHECK(placed{ring, {.ranks_per_node = 2}} == placed{ring, {.ranks_per_node = 2}});
  CHECK(placed{ring, {.ranks_per_node = 2}} != placed{ring, {.ranks_per_node = 1}});
  CHECK(placed{ring, {.ranks_per_node = 2}} != placed{any_topology{counting_ring<6>{}}, {.ranks_per_node = 2}});

  CHECK(orrery::detail::verify_once(ring, 5).ok());
  const int before = counting_ring<5>::written;
  CHECK(orrery::detail::verify_once(any_topology{counting_ring<5>{}}, 5).ok());
  CHECK(counting_ring<5>::written == before);
  CHECK(!orrery::detail::verify_once(any_topology{comparable{1}}, 5).ok());
}

TEST_CASE("a topology that throws is asked again") {
  struct throwing {
    static orrery::program program(int rank, int world) {
      static int calls = 0;
      if (calls++ == 0) throw std::runtime_error{"once"};
      return orrery::ring::program(rank, world);
    }
  };
  CHECK_THROWS_AS(static_cast<void>(orrery::detail::verify_once(throwing{}, 4)), std::runtime_error);
  CHECK(orrery::detail::verify_once(throwing{}, 4).ok());
}

TEST_CASE("the reason of a refusal is that of the topology that is asked, not of one that is gone") {
  struct refusing : counting_ring<8> {
    std::string reason;

    explicit refusing(const std::string& why) : reason{why} {}
    [[nodiscard]] const char* unsupported_reason(int) const { return reason.c_str(); }
    bool operator==(const refusing&) const { return true; }
  };
  const std::string first = "refuses for the first reason, which is longer than any string that lies in itself";
  const std::string second = "refuses for the second reason, which is longer than any string that lies in itself";
  for (const std::string& reason : {first, second}) {
    const orrery::any_topology chosen = refusing{reason};
    for (const orrery::verdict& v :
         {orrery::detail::verify_once(refusing{reason}, 4), orrery::detail::verify_once(chosen, 4)}) {
      CHECK(v.found == orrery::fault::world_refused);
    }
    CHECK(std::string{orrery::detail::verify_once(chosen, 4).reason} == reason);
  }
}

TEST_CASE("every number that a topology writes counts in the digest, and what follows from them does not") {
  using orrery::program;
  const auto digest_of = [](const program& p) {
    orrery::schedule::schedule_digest digest;
    digest.add(p);
    digest.add_remarks(p);
    return digest.text();
  };
  const auto numbers_of = [](program& p) {
    std::vector<int*> all{&p.rank, &p.world, &p.slices};
    const auto add_range = [&](orrery::schedule::range& r) { all.insert(all.end(), {&r.first, &r.count}); };
    const auto add_block = [&](orrery::schedule::block& b) { all.insert(all.end(), {&b.shard, &b.slice}); };
    for (orrery::schedule::step& one : p.steps)
      add_range(one.exchanges), add_range(one.tile.queries), add_range(one.tile.keys);
    for (orrery::schedule::exchange& one : p.exchanges) {
      all.insert(all.end(), {&one.to, &one.from, &one.lane, &one.posted, &one.complete_before});
      add_range(one.sent), add_range(one.received);
    }
    for (orrery::schedule::block& one : p.sent) add_block(one);
    for (auto* held : {&p.received, &p.queries, &p.keys}) {
      for (orrery::schedule::held_block& one : *held) add_block(one.block);
    }
    for (orrery::schedule::collective& one : p.collectives) {
      all.insert(all.end(), {&one.first_rank, &one.ranks, &one.rank_stride});
      add_range(one.exchanges);
    }
    return all;
  };
  const auto differs_with = [&](const program& p, const auto& edit) {
    program edited = p;
    edit(edited);
    return digest_of(edited) != digest_of(p);
  };
  for (const pass p : {pass::forward, pass::circulate_keys}) {
    program one = orrery::detail::unallocated_program(orrery::wallfacer<2>{}, 3, 16, p);
    CHECK(!one.collectives.empty());
    const std::string digest = digest_of(one);
    std::vector<int*> numbers = numbers_of(one);
    CHECK(numbers.size() > 100);
    for (int* number : numbers) {
      ++*number;
      CHECK(digest_of(one) != digest);
      --*number;
    }
    CHECK(digest_of(one) == digest);
    const auto other_side = [](orrery::schedule::side& s) { s = orrery::schedule::other_side(s); };
    CHECK(differs_with(one, [&](program& x) { x.pass = pass::circulate_queries; }));
    CHECK(differs_with(one, [&](program& x) { x.exchanges[0].payload = orrery::schedule::payload::partial; }));
    CHECK(differs_with(one, [&](program& x) { other_side(x.sent[0].side); }));
    CHECK(differs_with(one, [&](program& x) { other_side(x.received[0].block.side); }));
    CHECK(differs_with(one, [&](program& x) { other_side(x.queries[0].block.side); }));
    CHECK(differs_with(one, [&](program& x) { other_side(x.keys.back().block.side); }));
    CHECK(
        differs_with(one, [&](program& x) { x.collectives[0].kind = orrery::schedule::collective_kind::all_to_all; }));
    CHECK(differs_with(one, [&](program& x) { x.collectives.pop_back(); }));
    CHECK(differs_with(one, [&](program& x) { x.steps.push_back({{0, 0}, {0, 0}, {{0, 0}, {0, 0}}}); }));
    CHECK_FALSE(differs_with(one, [&](program& x) { orrery::schedule::finish(x); }));
  }
}

TEST_CASE("old answers are forgotten, and found again") {
  for (int world = 1; world <= 70; ++world) CHECK(orrery::detail::verify_once(counting_ring<7>{}, world).ok());
  CHECK(written_by(counting_ring<7>{}, 70) == 0);
  CHECK(written_by(counting_ring<7>{}, 1) == 1);
}
