// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

// Times and bytes of whole operators under masks, whatever ranks are: threads (masks.cpp) or processes (masks_mpi.cpp).

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "orrery/attention.hpp"
#include "orrery/kernel/flash.hpp"
#include "orrery/transport/counted.hpp"

#include "cases.hpp"
#include "common/arguments.hpp"
#include "common/problem.hpp"
#include "common/statistics.hpp"
#include "every_pair.hpp"
#include "topology/intervals.hpp"

namespace bench {

using masked_kernel = orrery::flash<float>;

/// What the arguments say.
struct masks_options {
  std::int64_t tokens = 1024;
  std::int64_t heads = 4;
  std::int64_t dim = 128;
  int calls = 5;
  int ranks_per_node = 0;  // 0: nothing is told of nodes

  /// Reads the arguments that both programs have. Ends the program for what it does not understand.
  void read(arguments& given) {
    tokens = given.number("tokens", tokens, 1, 1 << 20);
    heads = given.number("heads", heads, 1, 1024);
    dim = given.number("dim", dim, 1, masked_kernel::max_head_dim);
    calls = static_cast<int>(given.number("calls", calls, 1, 10000));
  }

  /// Empty, or what is wrong for a world of so many ranks.
  [[nodiscard]] std::string wrong_for(int world) const {
    if (ranks_per_node > 0 && world % ranks_per_node != 0) {
      return "ranks_per_node is " + std::to_string(ranks_per_node) + ", expected a divisor of " +
             std::to_string(world) + " ranks";
    }
    if (tokens % (16 * world) == 0) return "";
    return "tokens is " + std::to_string(tokens) + ", expected a multiple of " + std::to_string(16 * world) +
           ", 16 for each of " + std::to_string(world) + " ranks: chunks need more than one token";
  }
};

/// An operator of a group, its tensors on this rank, and what its calls took.
struct masked_operator {
  using attention = orrery::attention<orrery::any_topology, masked_kernel>;

  std::string name;
  std::size_t compared_with = 0;
  std::unique_ptr<attention> attend;
  std::unique_ptr<shard<float>> tensors;
  std::vector<interval> calls;  // of the pass that is measured
  std::vector<double> seconds;
};

inline double kibibytes(std::int64_t bytes) { return static_cast<double>(bytes) / 1024; }

/// Throws `std::logic_error` if what a rank counted of a call is not what `attention::traffic` tells of it.
template <class Counting>
void expect_counted(const Counting& counting, const orrery::operator_traffic& told, int rank, const std::string& name) {
  const auto& of_rank = told.ranks[rank];
  if (counting.bytes_sent() == of_rank.sent && counting.bytes_received() == of_rank.received) return;
  throw std::logic_error{name + ": rank " + std::to_string(rank) + " sent " + std::to_string(counting.bytes_sent()) +
                         " and received " + std::to_string(counting.bytes_received()) +
                         " bytes, but attention::traffic tells " + std::to_string(of_rank.sent) + " and " +
                         std::to_string(of_rank.received)};
}

/// Calls all operators in turn, so that what else the machine does meets all of them, and prints a row for each on the
/// first rank. Throws `std::logic_error` where bytes are not those that were told, or results not those of `whole`.
template <class World, class Counting>
void measure_pass(World& world, Counting& counting, std::vector<masked_operator>& all, orrery::pass p,
                  const shard<float>& whole, const masks_options& options) {
  std::vector<orrery::operator_traffic> told;
  for (masked_operator& one : all) {
    told.push_back(one.attend->traffic(p));
    one.calls.clear();
  }
  for (int call = -1; call < options.calls; ++call) {  // the first one is not timed
    for (std::size_t i = 0; i < all.size(); ++i) {
      counting.reset();
      world.barrier();
      const clock_type::time_point begin = clock_type::now();
      all[i].tensors->call(*all[i].attend, p);
      const clock_type::time_point end = clock_type::now();
      world.barrier();
      expect_counted(counting, told[i], world.rank(), all[i].name);
      if (call >= 0) {
        all[i].calls.push_back({std::chrono::duration<double>(begin.time_since_epoch()).count(),
                                std::chrono::duration<double>(end.time_since_epoch()).count()});
      }
    }
  }
  for (std::size_t i = 0; i < all.size(); ++i) {
    masked_operator& one = all[i];
    const double error = largest(world, one.tensors->error_against(whole, p));
    if (!(error <= tolerance<float>(options.tokens))) {
      throw std::logic_error{one.name + ", " + name_of(p) + ": the error against the kernel on the whole sequence is " +
                             std::to_string(error) + ", more than rounding"};
    }
    one.seconds = seconds_of(world, one.calls);
    std::vector<double> speeds;  // turn by turn
    for (std::size_t call = 0; call < one.seconds.size(); ++call) {
      speeds.push_back(all[one.compared_with].seconds[call] / one.seconds[call]);
    }
    if (world.rank() != 0) continue;
    std::printf("| %s | %s | %.1f | %.0f / %.0f |", one.name.c_str(),
                p == orrery::pass::forward ? "forward" : "backward", median(one.seconds) * 1e3, kibibytes(told[i].sent),
                kibibytes(told[i].received));
    if (options.ranks_per_node > 0) std::printf(" %.0f |", kibibytes(told[i].node_egress(options.ranks_per_node)));
    if (one.compared_with == i) {
      std::puts(" |");
    } else {
      std::printf(" %.2f |\n", median(speeds));
    }
    std::fflush(stdout);
  }
}

/// Prints the table of one mask on the first rank. Collective.
template <class World, class Mask, class Rows>
void measure_group(World& world, const std::string& title, const Mask& mask, const Rows& rows,
                   const masks_options& options) {
  const orrery::attention_shape shape{.length = options.tokens, .query_heads = options.heads, .head_dim = options.dim};
  bool planning = false;
  const every_pair_planned seen{mask, &planning};
  orrery::counted counting{world};
  std::vector<masked_operator> all;
  rows([&](const std::string& name, const orrery::any_topology& topology, const auto& layout, bool every_pair,
           std::size_t compared_with) {
    planning = every_pair;
    masked_operator one{name, compared_with, {}, {}, {}, {}};
    one.attend = std::make_unique<masked_operator::attention>(counting, shape, seen, layout, topology);
    planning = false;
    one.tensors = std::make_unique<shard<float>>(shape, one.attend->query_positions());
    all.push_back(std::move(one));
  });
  shard<float> whole{shape, orrery::contiguous::shard(0, 1, shape.length)};
  call_kernel<masked_kernel>(whole, orrery::pass::forward, seen, {});
  call_kernel<masked_kernel>(whole, orrery::pass::circulate_keys, seen, {});
  if (world.rank() == 0) {
    const bool nodes = options.ranks_per_node > 0;
    std::printf(
        "\n%s\n\n| schedule | pass | ms | rank sends / receives, KiB |%s speed |\n| --- | --- | --- | --- |%s --- |\n",
        title.c_str(), nodes ? " node sends, KiB |" : "", nodes ? " --- |" : "");
  }
  for (const orrery::pass p : {orrery::pass::forward, orrery::pass::circulate_keys}) {
    measure_pass(world, counting, all, p, whole, options);
  }
}

/// Prints all tables on the first rank. Collective. Throws `std::logic_error` where a result or a count is wrong.
template <class World>
void measure_masks(World& world, const masks_options& options) {
  if (world.rank() == 0) {
    std::printf("%d ranks, %lld tokens, %lld heads of %lld, float; medians of %d calls. A shard unit is %.1f KiB.\n",
                world.size(), static_cast<long long>(options.tokens), static_cast<long long>(options.heads),
                static_cast<long long>(options.dim), options.calls,
                static_cast<double>(options.tokens / world.size() * options.heads * options.dim) * 4 / 1024);
  }
  for_each_group(world.size(), options.tokens, [&](const std::string& title, const auto& mask, const auto& rows) {
    measure_group(world, title, mask, rows, options);
  });
}

}  // namespace bench
