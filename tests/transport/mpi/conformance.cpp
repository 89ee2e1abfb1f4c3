// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The operator against the oracle on ranks that are processes: every topology that admits as many, under every mask and
// layout. All cases share one world, as a trainer's operators do.
#include "support/conformance.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/flash.hpp"
#include "orrery/layout/chunked.hpp"
#include "orrery/layout/per_document.hpp"
#include "orrery/mask/documents.hpp"
#include "orrery/topology/all_gather.hpp"
#include "orrery/topology/all_to_all.hpp"
#include "orrery/topology/concentric.hpp"
#include "orrery/topology/double_ring.hpp"
#include "orrery/topology/half_ring.hpp"
#include "orrery/topology/precomputed.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/topology/wallfacer.hpp"
#include "orrery/tune/balanced.hpp"
#include "orrery/tune/causal_grid.hpp"
#include "orrery/tune/pack.hpp"

#include "support/any.hpp"
#include "transport/mpi/main.hpp"

namespace {

void expect_none(const std::string& found, const std::string& description) {
  INFO(description);
  CHECK(found == "");
}

template <class Topology, class Mask>
void check(orrery::mpi::world& world, const Mask& mask, const conformance::any_layout& layout, std::int64_t length,
           std::int64_t key_length) {
  static std::uint64_t seed = 0;
  const auto on_mpi = [&](int, auto&& body) { body(world); };
  for (const orrery::pass circulate : {orrery::pass::circulate_keys, orrery::pass::circulate_queries}) {
    if (orrery::unsupported_reason(Topology{}, world.size(), circulate) != nullptr) continue;
    const orrery::attention_shape shape{.batch = 2,
                                        .length = length,
                                        .query_heads = 8,
                                        .key_heads = 4,
                                        .head_dim = 6,
                                        .value_dim = 5,
                                        .key_length = key_length,
                                        .circulate = circulate};
    expect_none(
        conformance::failures<Topology, orrery::flash<double>, orrery::mpi::world>(on_mpi, world.size(), shape, mask,
                                                                                   layout, ++seed),
        orrery::name_of(Topology{}) + ", " + mask.name() + ", " + layout.name() + ", " + orrery::name_of(circulate));
  }
}

template <class Topology, class Mask>
void check_layouts(orrery::mpi::world& world, const Mask& mask) {
  check<Topology>(world, mask, orrery::contiguous{}, 43, 43);
  check<Topology>(world, mask, orrery::zigzag{}, 43, 43);
  check<Topology>(world, mask, orrery::striped<3>{}, 43, 43);
  check<Topology>(world, mask, orrery::zigzag{}, 3, 29);  // fewer tokens than ranks: empty messages
}

constexpr orrery::attention_shape packed{.length = 61, .query_heads = 4, .key_heads = 2, .head_dim = 6};

/// Is right under both collectives, with a mask, layout and topology that leave pairs out.
void check_specialised(const any::mask& mask, const conformance::any_layout& layout,
                       const orrery::any_topology& topology) {
  static std::uint64_t seed = 1000;
  for (const auto how : {orrery::mpi::collectives::expanded, orrery::mpi::collectives::native}) {
    orrery::mpi::world world{MPI_COMM_WORLD, {.collectives = how}};
    if (topology.unsupported_reason(world.size()) != nullptr) continue;
    const auto on_mpi = [&](int, auto&& body) { body(world); };
    expect_none(conformance::failures<orrery::any_topology, orrery::flash<double>, orrery::mpi::world>(
                    on_mpi, world.size(), packed, mask, layout, ++seed, topology),
                topology.name() + ", " + mask.name() + ", " + layout.name());
  }
}

}  // namespace

TEST_CASE("schedules of chunks, pruned for their mask") {
  int ranks = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  constexpr any::mask causal{.ahead = 0}, window{.reach = 7, .ahead = 0}, holes{.reach = 20, .hole = 3};
  const std::vector<conformance::any_layout> layouts{
      orrery::chunked{orrery::contiguous{}, 3}, orrery::zigzag{},
      orrery::per_document<orrery::zigzag>{std::vector<std::int64_t>{20, 1, 31}},
      orrery::balanced(causal, ranks, {.length = packed.length, .chunks = 3})};
  for (const any::mask& mask : {causal, window, holes}) {
    for (const conformance::any_layout& layout : layouts) {
      check_specialised(mask, layout, orrery::ring{});
      check_specialised(mask, layout, orrery::all_gather{});
      check_specialised(mask, layout, orrery::concentric<2>{});
      check_specialised(mask, layout, orrery::usp<2>{});
    }
  }
  check_specialised(causal, orrery::contiguous{}, orrery::half_ring{});
  check_specialised(window, orrery::contiguous{}, orrery::half_ring{});
  check_specialised(causal, orrery::contiguous{}, orrery::causal_grid{});
}

TEST_CASE("packed documents, planned again for each batch") {
  orrery::mpi::world world{MPI_COMM_WORLD, {}};
  using kernel = orrery::flash<double>;
  std::optional<orrery::attention<orrery::precomputed, kernel>> attend;
  std::uint64_t seed = 2000;
  for (const std::vector<std::int64_t>& lengths :
       {std::vector<std::int64_t>{61}, std::vector<std::int64_t>{2, 50, 3, 1, 5}, std::vector<std::int64_t>{30, 31}}) {
    const auto mask = orrery::documents{lengths} & orrery::causal{};
    const orrery::precomputed plan{"packed", orrery::pack(lengths, world.size()).work};
    if (attend) {
      attend->replan(world, mask, orrery::contiguous{}, plan);
    } else {
      attend.emplace(world, packed, mask, orrery::contiguous{}, plan);
    }
    const oracle::problem p = oracle::random_problem<double>(conformance::oracle_shape(packed), ++seed);
    conformance::rank_tensors<kernel> tensors{p, attend->query_positions(), attend->key_positions(),
                                              conformance::trainer_memory::of(seed)};
    tensors.forward(*attend);
    tensors.backward(*attend);
    CHECK(tensors.mismatch(p, oracle::solve(p, mask), attend->query_positions(), attend->key_positions()) == "");
  }
}

TEST_CASE_TEMPLATE("results", Topology, orrery::ring, orrery::wallfacer<1>, orrery::wallfacer<2>, orrery::concentric<2>,
                   orrery::concentric<3>, orrery::concentric<4>, orrery::concentric<1, 2>, orrery::concentric<2, 2>,
                   orrery::all_gather, orrery::ulysses, orrery::usp<2>, orrery::all_to_all<2, orrery::wallfacer<2>>,
                   orrery::double_ring<2>, orrery::double_ring<4>) {
  for (const auto how : {orrery::mpi::collectives::expanded, orrery::mpi::collectives::native}) {
    CAPTURE(static_cast<int>(how));
    orrery::mpi::world world{MPI_COMM_WORLD, {.threads_per_rank = 2, .collectives = how}};
    if (orrery::unsupported_reason(Topology{}, world.size()) != nullptr) return;
    const bool remarks = !Topology::program(0, world.size()).collectives.empty();
    if (how == orrery::mpi::collectives::native && !remarks) return;
    check_layouts<Topology>(world, orrery::full{});
    check_layouts<Topology>(world, orrery::causal{});
    check_layouts<Topology>(world, orrery::causal{-17});  // the first 17 queries see nothing
  }
}
