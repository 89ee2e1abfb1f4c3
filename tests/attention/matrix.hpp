// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include <doctest/doctest.h>

#include "orrery/kernel/flash.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/transport/threads.hpp"

#include "support/conformance.hpp"
#include "support/topologies.hpp"

/// What the conformance tests of this folder share: the transport, the axes of the matrix and a user's own policies.
namespace attention_test {

/// A transport, as `conformance::failures` wants it.
inline constexpr auto on_threads = [](int ranks, auto&& body) { orrery::threads::run(ranks, body); };

/// A user's mask: keys that are at most `reach` positions away and not those at multiples of 7, with an interval test
/// that knows when a rectangle is out of reach.
struct band {
  std::int64_t reach = 9;

  [[nodiscard]] bool visible(std::int64_t query, std::int64_t key) const {
    return (query > key ? query - key : key - query) <= reach && key % 7 != 0;
  }
  [[nodiscard]] orrery::visibility classify(std::int64_t query_first, std::int64_t query_last, std::int64_t key_first,
                                            std::int64_t key_last) const {
    if (key_first - query_last > reach || query_first - key_last > reach) return orrery::visibility::none;
    return orrery::visibility::some;
  }
  [[nodiscard]] std::string name() const { return "band " + std::to_string(reach); }
};

/// The case, for a failure's message.
[[nodiscard]] inline std::string describe(const std::string& topology, int world, const std::string& kernel,
                                          const std::string& mask, const std::string& layout,
                                          const orrery::attention_shape& shape) {
  std::string text = topology + " over " + std::to_string(world) + ", " + kernel + ", " + mask + ", " + layout + ", " +
                     orrery::name_of(shape.circulate);
  const orrery::attention_shape full = shape.completed();
  const std::pair<const char*, std::int64_t> sizes[] = {{"batch", shape.batch},           {"length", shape.length},
                                                        {"key length", *full.key_length}, {"heads", shape.query_heads},
                                                        {"key heads", *full.key_heads},   {"head dim", shape.head_dim},
                                                        {"value dim", *full.value_dim}};
  for (const auto& [name, size] : sizes) text += std::string{", "} + name + " " + std::to_string(size);
  return text;
}

inline void expect_none(const std::string& found, const std::string& description) {
  INFO(description);
  CHECK(found == "");
}

/// One case in all policies that the topology admits, each with the next seed.
template <class Kernel, class Mask>
void check_policies(const orrery::any_topology& topology, int world, orrery::attention_shape shape, const Mask& mask,
                    const conformance::any_layout& layout, std::uint64_t& seed,
                    const conformance::change_of_problem& change = {}) {
  for (const orrery::pass circulate : {orrery::pass::circulate_keys, orrery::pass::circulate_queries}) {
    if (topology.unsupported_reason(world, circulate) != nullptr) continue;
    shape.circulate = circulate;
    expect_none(conformance::failures<orrery::any_topology, Kernel, orrery::threads::world>(
                    on_threads, world, shape, mask, layout, ++seed, topology, change),
                describe(topology.name(), world, Kernel::name(), mask.name(), layout.name(), shape));
  }
}

// The kernel of most cases is compiled once, in matrix.cpp.
extern template void check_policies<orrery::flash<double>>(const orrery::any_topology&, int, orrery::attention_shape,
                                                           const orrery::full&, const conformance::any_layout&,
                                                           std::uint64_t&, const conformance::change_of_problem&);
extern template void check_policies<orrery::flash<double>>(const orrery::any_topology&, int, orrery::attention_shape,
                                                           const orrery::causal&, const conformance::any_layout&,
                                                           std::uint64_t&, const conformance::change_of_problem&);
extern template void check_policies<orrery::flash<double>>(const orrery::any_topology&, int, orrery::attention_shape,
                                                           const band&, const conformance::any_layout&, std::uint64_t&,
                                                           const conformance::change_of_problem&);

/// The same for a topology that is known at compile time.
template <class Topology, class Kernel = orrery::flash<double>, class Mask>
void check(int world, const orrery::attention_shape& shape, const Mask& mask, const conformance::any_layout& layout) {
  static std::uint64_t seed = 0;
  check_policies<Kernel>(Topology{}, world, shape, mask, layout, seed);
}

/// Every layout.
template <class Topology, class Kernel = orrery::flash<double>, class Mask>
void check_layouts(int world, const orrery::attention_shape& shape, const Mask& mask) {
  check<Topology, Kernel>(world, shape, mask, orrery::contiguous{});
  check<Topology, Kernel>(world, shape, mask, orrery::zigzag{});
  check<Topology, Kernel>(world, shape, mask, orrery::striped<1>{});
  check<Topology, Kernel>(world, shape, mask, orrery::striped<3>{});
}

/// Every mask × every layout × both policies in one world.
template <class Topology>
void check_masks_and_layouts(int world) {
  const orrery::attention_shape shape{.length = 59, .query_heads = 8, .key_heads = 4, .head_dim = 6, .value_dim = 5};
  check_layouts<Topology>(world, shape, orrery::full{});
  check_layouts<Topology>(world, shape, orrery::causal{});
  check_layouts<Topology>(world, shape, orrery::causal{-17});  // the first 17 queries see nothing
  check_layouts<Topology>(world, shape, band{});
}

/// Every world that the topology admits among these, with lengths that divide by none of them.
template <class Topology>
void check_worlds() {
  for (const int world : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16}) {
    if (orrery::unsupported_reason(Topology{}, world) != nullptr) continue;
    const std::int64_t heads = orrery::slices_of(Topology{}, world) > 4 ? 16 : 4;
    check<Topology>(world, {.length = 83, .query_heads = heads, .key_heads = heads / 2, .head_dim = 4},
                    orrery::causal{}, orrery::zigzag{});
    check<Topology>(world, {.length = 5, .query_heads = heads, .head_dim = 4, .key_length = 47}, orrery::full{},
                    orrery::contiguous{});
  }
}

/// Lengths, heads, dimensions and batches of all kinds in one world; the topology must not cut the heads into more than
/// three slices.
template <class Topology>
void check_shapes(int world) {
  // Primes, fewer tokens than ranks, one token, nothing that divides.
  for (const std::int64_t length : {1, 2, 5, 7, 31, 97}) {
    const orrery::attention_shape shape{.length = length, .query_heads = 3, .key_heads = 3, .head_dim = 4};
    check<Topology>(world, shape, orrery::causal{}, orrery::zigzag{});
    check<Topology>(world, shape, orrery::full{}, orrery::striped<3>{});
    check<Topology>(world, shape, band{2}, orrery::contiguous{});
  }
  // Cross-attention, both ways; aligned at the last query and the last key.
  for (const auto& [length, key_length] : {std::pair{13, 61}, std::pair{61, 13}, std::pair{3, 29}, std::pair{29, 2}}) {
    const orrery::attention_shape shape{
        .length = length, .query_heads = 4, .key_heads = 2, .head_dim = 3, .key_length = key_length};
    check<Topology>(world, shape, orrery::full{}, orrery::zigzag{});
    check<Topology>(world, shape, orrery::causal{key_length - length}, orrery::zigzag{});
    check<Topology>(world, shape, orrery::causal{}, orrery::contiguous{});
  }
  // Grouped heads, down to one key head; unequal dimensions; batches; a scale of one's own.
  for (const auto& [heads, key_heads] : {std::pair{6, 6}, std::pair{6, 3}, std::pair{6, 2}, std::pair{6, 1},
                                         std::pair{3, 1}, std::pair{5, 5}, std::pair{12, 4}, std::pair{7, 1}}) {
    orrery::attention_shape shape{
        .batch = 2, .length = 23, .query_heads = heads, .key_heads = key_heads, .head_dim = 5, .value_dim = 9};
    check<Topology>(world, shape, orrery::causal{}, orrery::striped<1>{});
    shape.batch = 3;
    shape.value_dim = 1;
    shape.scale = 0.7;
    shape.key_length = 31;
    check<Topology>(world, shape, orrery::causal{8}, orrery::zigzag{});
  }
}

}  // namespace attention_test
