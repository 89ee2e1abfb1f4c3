// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// What constructing an operator does once.
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/attention.hpp"
#include "orrery/kernel/reference.hpp"
#include "orrery/schedule/relabel.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/concentric.hpp"
#include "orrery/topology/placed.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/transport/threads.hpp"
#include "orrery/verify/detail/verify_once.hpp"

#include "support/any.hpp"

namespace {

/// A ring that counts the programs that it writes.
struct counting_ring {
  static inline std::atomic<int> written = 0;

  [[nodiscard]] static orrery::program program(int rank, int world, orrery::pass p) {
    ++written;
    return orrery::ring::program(rank, world, p);
  }
};

/// A reference that plans, and counts the tiles that it is told of.
struct planning : orrery::reference<double> {
  static inline std::atomic<int> expected = 0;

  template <class Memory>
  struct planned : orrery::reference<double> {
    template <class... Arguments>
    static void expect_forward(const Arguments&...) {
      ++expected;
    }
    template <class... Arguments>
    static void expect_backward(const Arguments&...) {
      ++expected;
    }
    static void take_memory() {}
    static void begin() {}
    static std::int64_t bytes() { return 0; }
  };
};

constexpr int ranks = 8;
constexpr int passes = 2;

/// Programs that are written while 8 ranks that are threads construct an operator.
template <class Kernel>
int programs_written() {
  const int before = counting_ring::written;
  orrery::threads::run(ranks, [](auto& world) {
    const orrery::attention<counting_ring, Kernel> attend{world, {.length = 32, .query_heads = 1, .head_dim = 4}};
  });
  return counting_ring::written - before;
}

}  // namespace

TEST_CASE("ranks of one process share the proof of their schedule, and write their own programs once") {
  constexpr int proof = passes * ranks;
  constexpr int own = passes * ranks;
  CHECK(programs_written<orrery::reference<double>>() == proof + own);
  CHECK(programs_written<orrery::reference<double>>() == own);  // another operator of the same topology
  CHECK(programs_written<planning>() == own);
  CHECK(planning::expected == passes * ranks * ranks);
}

namespace {

/// How a ring without a name is written: all of these are right, and no two of them work together.
enum class variant { plain, reversed, other_lane, longer_forward, longer_backward, remarked };
constexpr variant variants[] = {variant::plain,          variant::reversed,        variant::other_lane,
                                variant::longer_forward, variant::longer_backward, variant::remarked};

orrery::program written(variant how, int rank, int world, orrery::pass p) {
  if (how == variant::reversed) {
    orrery::schedule::list<int> to(world);
    for (int r = 0; r < world; ++r) to[r] = (world - r) % world;
    return orrery::schedule::relabel(orrery::ring::program(to[rank], world, p), to);
  }
  orrery::program one = orrery::ring::program(rank, world, p);
  const bool last = rank == world - 1;
  if (how == variant::other_lane) {
    for (orrery::schedule::exchange& x : one.exchanges) x.lane += 1;
  } else if (how == (p == orrery::pass::forward ? variant::longer_forward : variant::longer_backward) && last) {
    one.steps.push_back({{0, 0}, {one.exchanges.size(), 0}, {{0, 0}, {0, 0}}});
  } else if (how == variant::remarked && last) {
    one.collectives.push_back({orrery::schedule::collective_kind::all_gather, 0, world, 1, {0, 1}});
  }
  return one;
}

struct nameless_ring {
  variant how = variant::plain;

  [[nodiscard]] orrery::program program(int rank, int world, orrery::pass p) const {
    return written(how, rank, world, p);
  }
  bool operator==(const nameless_ring&) const = default;
};

/// The same without equality, so that each operator proves its own.
struct incomparable_ring {
  variant how = variant::plain;

  [[nodiscard]] orrery::program program(int rank, int world, orrery::pass p) const {
    return written(how, rank, world, p);
  }
};

/// The same as a type for each, which says which it is only in its type.
template <variant How>
struct typed_ring {
  [[nodiscard]] static orrery::program program(int rank, int world, orrery::pass p) {
    return written(How, rank, world, p);
  }
};

/// What all ranks say, each of which constructs its operator of `topology_of(rank)`; "nothing" if that works.
template <class Topology, class TopologyOf>
std::string said_by_all(int world_size, const TopologyOf& topology_of) {
  std::vector<std::string> said(static_cast<std::size_t>(world_size), "nothing");
  orrery::threads::run(world_size, [&](auto& world) {
    try {
      const orrery::attention<Topology, orrery::reference<double>> attend{
          world,
          {.length = 32, .query_heads = 12, .head_dim = 4},
          orrery::full{},
          orrery::contiguous{},
          topology_of(world.rank())};
    } catch (const std::invalid_argument& e) {
      said[static_cast<std::size_t>(world.rank())] = e.what();
    }
  });
  for (const std::string& one : said) CHECK(one == said[0]);
  return said[0];
}

std::string digest_of(const orrery::any_topology& t, int world, orrery::pass p) {
  return orrery::detail::prove_once(t, world, p).digest.text();
}

/// That ranks which have two topologies of one name do not agree, and say so.
void check_told_apart(const orrery::any_topology& a, const orrery::any_topology& b, int world) {
  const orrery::pass forward = orrery::pass::forward;
  const orrery::pass backward = orrery::pass::circulate_keys;
  const bool in_forward = digest_of(a, world, forward) != digest_of(b, world, forward);
  const orrery::pass differing = in_forward ? forward : backward;
  std::string others = world == 2 ? "rank 0 has " : "ranks 0";
  for (int rank = 2; rank < world; ++rank) others += ", " + std::to_string(rank);
  if (world > 2) others += " have ";
  CHECK(said_by_all<orrery::any_topology>(world, [&](int rank) { return rank == 1 ? b : a; }) ==
        "orrery: ranks disagree about the " + std::string{in_forward ? "forward" : "backward"} +
            "'s programs: " + others + a.name() + " with digest " + digest_of(a, world, differing) + "; rank 1 has " +
            b.name() + " with digest " + digest_of(b, world, differing) + "; give all ranks the same");
}

}  // namespace

TEST_CASE("topologies of one name with different programs are told apart") {
  using orrery::any_topology;
  for (const int world : {3, 4}) {
    for (const variant one : variants) {
      for (const variant other : variants) {
        INFO("variants ", static_cast<int>(one), " and ", static_cast<int>(other), " over ", world);
        if (one == other) {
          CHECK(said_by_all<nameless_ring>(world, [&](int) { return nameless_ring{one}; }) == "nothing");
          continue;
        }
        check_told_apart(nameless_ring{one}, nameless_ring{other}, world);
      }
    }
  }
  // Other values of one type, with and without equality, and other types.
  CHECK(said_by_all<nameless_ring>(3, [](int rank) { return nameless_ring{variants[rank == 1]}; }) != "nothing");
  CHECK(said_by_all<incomparable_ring>(3, [](int rank) { return incomparable_ring{variants[rank == 1]}; }) !=
        "nothing");
  check_told_apart(typed_ring<variant::plain>{}, typed_ring<variant::reversed>{}, 3);
  check_told_apart(typed_ring<variant::plain>{}, nameless_ring{variant::longer_backward}, 3);
  // Placed.
  using orrery::placed;
  using orrery::teams_in_nodes;
  check_told_apart(placed<nameless_ring, teams_in_nodes>{{variant::plain}, {}},
                   placed<nameless_ring, teams_in_nodes>{{variant::reversed}, {}}, 4);
}

TEST_CASE("topologies of one name with the same programs agree, whatever their types") {
  CHECK(said_by_all<orrery::any_topology>(4, [](int rank) -> orrery::any_topology {
          if (rank == 0) return typed_ring<variant::plain>{};
          if (rank == 1) return nameless_ring{};
          return incomparable_ring{};
        }) == "nothing");
}

TEST_CASE("the digest of a schedule does not depend on the type that holds the topology") {
  std::vector<std::string> digests;
  for (const orrery::any_topology& topology : any::topologies()) {
    for (const orrery::pass p : {orrery::pass::forward, orrery::pass::circulate_keys}) {
      for (const int world : {8, 9, 16}) {
        if (topology.unsupported_reason(world, p) != nullptr) continue;
        INFO(topology.name(), " over ", world);
        const orrery::placed<orrery::any_topology, orrery::teams_in_nodes> as_written{topology, {}};
        CHECK(orrery::detail::prove_once(as_written, world, p).digest.text() == digest_of(topology, world, p));
        CHECK(digest_of(topology, world, p).size() == 16);
      }
    }
  }
  CHECK(orrery::detail::prove_once(orrery::concentric<2>{}, 8).digest.text() ==
        digest_of(orrery::concentric<2>{}, 8, orrery::pass::forward));
  CHECK(orrery::detail::prove_once(orrery::ring{}, 8).digest.text() ==
        digest_of(orrery::wallfacer<1>{}, 8, orrery::pass::forward));
}

namespace {

/// Every pair, but for those of one quarter of 32 queries and one of the keys.
struct hole {
  std::int64_t query;  ///< the first
  std::int64_t key;

  [[nodiscard]] bool visible(std::int64_t q, std::int64_t k) const {
    return q < query || q >= query + 8 || k < key || k >= key + 8;
  }
  [[nodiscard]] orrery::visibility classify(std::int64_t query_first, std::int64_t query_last, std::int64_t key_first,
                                            std::int64_t key_last) const {
    if (query_last < query || query_first >= query + 8 || key_last < key || key_first >= key + 8)
      return orrery::visibility::all;
    const bool inside = query_first >= query && query_last < query + 8 && key_first >= key && key_last < key + 8;
    return inside ? orrery::visibility::none : orrery::visibility::some;
  }
  [[nodiscard]] static std::string name() { return "hole"; }
};

}  // namespace

TEST_CASE("masks of one name that leave other pairs are told apart, if the programs are the same, too") {
  // Query shard 1 misses key shard 0, or query shard 0 key shard 2: the tile of these four keeps all of its blocks.
  orrery::threads::run(4, [](auto& world) {
    std::string said;
    try {
      const orrery::attention<orrery::concentric<2, 2>, orrery::reference<double>> attend{
          world, {.length = 32, .query_heads = 1, .head_dim = 4}, world.rank() == 1 ? hole{0, 16} : hole{8, 0}};
    } catch (const std::invalid_argument& e) {
      said = e.what();
    }
    const std::string expected = "orrery: ranks disagree about visible pairs of shards (their digest): ranks 0, 2, 3 ";
    if (said.find(expected) != 0) throw std::logic_error{"it says: " + said};
  });
}
