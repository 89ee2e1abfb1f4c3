// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The operator against the oracle on ranks that are processes: every topology that admits as many, under every mask and
// layout. All cases share one world, as a trainer's operators do.
#include "support/conformance.hpp"

#include <doctest/doctest.h>

#include "orrery/kernel/flash.hpp"
#include "orrery/topology/all_gather.hpp"
#include "orrery/topology/all_to_all.hpp"
#include "orrery/topology/concentric.hpp"
#include "orrery/topology/double_ring.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/topology/wallfacer.hpp"

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

}  // namespace

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
