// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// See results.hpp. UNIT is the function to define.
#include "compiled/results.hpp"

#include <cstddef>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "orrery/orrery.hpp"

namespace compiled_test {
namespace {

constexpr std::int64_t length = 45, heads = 4, dim = 8;

/// Visible where query + key is even: hides pairs that no mask of the library hides alike.
struct own_mask {
  [[nodiscard]] static constexpr bool visible(std::int64_t query, std::int64_t key) { return (query + key) % 2 == 0; }
  [[nodiscard]] static constexpr orrery::visibility classify(std::int64_t, std::int64_t, std::int64_t, std::int64_t) {
    return orrery::visibility::some;
  }
  [[nodiscard]] static std::string name() { return "own"; }
};

template <class Kernel, class Topology, class Mask>
std::vector<unsigned char> run(const question& asked, const Topology& topology, const Mask& mask) {
  using storage = typename Kernel::storage;
  std::vector<std::vector<unsigned char>> of_ranks(static_cast<std::size_t>(asked.world));
  orrery::threads::run(asked.world, {.deadline = 60}, [&](orrery::threads::world& world) {
    orrery::attention<Topology, Kernel> attend{
        world, {.length = length, .query_heads = heads, .head_dim = dim}, mask, orrery::zigzag{}, topology};
    const std::int64_t tokens = attend.query_positions().size();
    const auto elements = static_cast<std::size_t>(tokens * heads * dim);
    std::vector<std::vector<storage>> tensors(8, std::vector<storage>(elements));
    for (std::size_t t = 0; t < 5; ++t) {
      std::size_t i = 0;
      for (const std::int64_t p : attend.query_positions()) {
        for (std::int64_t e = 0; e < heads * dim; ++e, ++i) {
          const auto mixed = static_cast<double>((p * 31 + e * 17 + static_cast<std::int64_t>(t) * 7) % 23);
          tensors[t][i] = static_cast<storage>(static_cast<float>(mixed / 11 - 1));
        }
      }
    }
    std::vector<typename decltype(attend)::log_sum_exp> lse(static_cast<std::size_t>(tokens * heads));
    const auto view = [&](std::size_t t) {
      return orrery::batch_sequence_head_dim(tensors[t].data(), 1, tokens, heads, dim);
    };
    const auto rows = orrery::batch_head_sequence(lse.data(), 1, heads, tokens);
    attend.forward(view(0), view(1), view(2), view(4), rows);
    attend.backward({.q = view(0),
                     .k = view(1),
                     .v = view(2),
                     .out = view(4),
                     .lse = rows,
                     .grad_out = view(3),
                     .grad_q = view(5),
                     .grad_k = view(6),
                     .grad_v = view(7)});
    std::vector<unsigned char>& bytes = of_ranks[static_cast<std::size_t>(world.rank())];
    const auto append = [&](const auto& values) {
      const auto* const first = reinterpret_cast<const unsigned char*>(values.data());
      bytes.insert(bytes.end(), first, first + values.size() * sizeof(values[0]));
    };
    for (const std::size_t t : {4U, 5U, 6U, 7U}) append(tensors[t]);
    append(lse);
  });
  std::vector<unsigned char> all;
  for (const auto& bytes : of_ranks) all.insert(all.end(), bytes.begin(), bytes.end());
  return all;
}

template <class Kernel, class Topology>
std::vector<unsigned char> with_mask(const question& asked, const Topology& topology) {
  const orrery::documents batch{std::vector<std::int64_t>{20, 3, 22}};
  if (asked.mask == "full") return run<Kernel>(asked, topology, orrery::full{});
  if (asked.mask == "causal") return run<Kernel>(asked, topology, orrery::causal{});
  if (asked.mask == "documents & window") {
    return run<Kernel>(asked, topology, batch & orrery::window{.left = 5, .right = 1});
  }
  if (asked.mask == "own") return run<Kernel>(asked, topology, own_mask{});
  throw std::logic_error{"no mask " + asked.mask};
}

}  // namespace

std::vector<unsigned char> UNIT(const question& asked) {
  if (asked.topology == "ring") return with_mask<orrery::flash<float>>(asked, orrery::ring{});
  if (asked.topology == "wallfacer<2>") return with_mask<orrery::flash<float>>(asked, orrery::wallfacer<2>{});
  throw std::logic_error{"no topology " + asked.topology};
}

}  // namespace compiled_test
