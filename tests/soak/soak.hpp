// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <unistd.h>

#include "orrery/attention.hpp"
#include "orrery/kernel/flash.hpp"
#include "orrery/mask/documents.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/mask/mask.hpp"

#include "support/any.hpp"
#include "support/conformance.hpp"
#include "support/flash_steps.hpp"

/// Random calls: topologies, worlds, masks, layouts, lengths, heads, dimensions, types and memory orders, one after the
/// other in one process. Each result is compared with the oracle's, each call is made again, and cases from long ago
/// come back: the same bits, from another operator in another world.
namespace soak {

struct options {
  std::int64_t calls = 10000;
  double seconds = 1e9;
  std::uint64_t seed = 1;
  double growth = 16;  ///< MiB that the resident memory may grow after a fifth of 1000 calls or more
};

/// Throws a message for what is not understood.
[[nodiscard]] inline options parse(int argc, char** argv) {
  options read;
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    if (i + 1 == argc) throw std::invalid_argument{name + " needs a value"};
    if (name == "--calls") {
      read.calls = std::atoll(argv[i + 1]);
    } else if (name == "--seconds") {
      read.seconds = std::atof(argv[i + 1]);
    } else if (name == "--seed") {
      read.seed = static_cast<std::uint64_t>(std::atoll(argv[i + 1]));
    } else if (name == "--growth") {
      read.growth = std::atof(argv[i + 1]);
    } else {
      throw std::invalid_argument{name + " is unknown; there are --calls N, --seconds S, --seed N and --growth MIB"};
    }
  }
  return read;
}

/// A mask of `any`, with packed documents or without.
struct mask : any::mask {
  std::optional<orrery::documents> packed{};

  [[nodiscard]] bool visible(std::int64_t query, std::int64_t key) const {
    return any::mask::visible(query, key) && (!packed || packed->visible(query, key));
  }
  [[nodiscard]] orrery::visibility classify(std::int64_t query_first, std::int64_t query_last, std::int64_t key_first,
                                            std::int64_t key_last) const {
    const auto all = any::mask::classify(query_first, query_last, key_first, key_last);
    return packed ? (std::min)(all, packed->classify(query_first, query_last, key_first, key_last)) : all;
  }
  [[nodiscard]] orrery::position_interval keys_of(std::int64_t query_first, std::int64_t query_last) const {
    return packed ? packed->keys_of(query_first, query_last) : orrery::full::keys_of(query_first, query_last);
  }
  [[nodiscard]] std::string name() const { return any::mask::name() + (packed ? " & " + packed->name() : ""); }
  [[nodiscard]] std::string wrong_lengths(std::int64_t query_length, std::int64_t key_length) const {
    return packed ? packed->wrong_lengths(query_length, key_length) : "";
  }
};

/// One random operator, and its data.
struct lot {
  std::uint64_t seed = 0;
  int world = 1;
  orrery::any_topology topology = orrery::ring{};
  orrery::attention_shape shape;
  soak::mask mask;
  int layout = 0;
  bool in_double = true;

  [[nodiscard]] conformance::any_layout make_layout() const {
    if (layout == 0) return orrery::contiguous{};
    if (layout == 1) return orrery::zigzag{};
    if (layout == 2) return orrery::striped<1>{};
    return orrery::striped<3>{};
  }
  [[nodiscard]] std::string text() const {
    const auto number = [](std::int64_t n) { return std::to_string(n); };
    return "seed " + std::to_string(seed) + ": " + topology.name() + " over " + number(world) + ", " + mask.name() +
           ", " + make_layout().name() + ", " + (in_double ? "double" : "float") + ", " + to_string(shape);
  }

  /// The same everywhere for the same seed.
  [[nodiscard]] static lot draw(std::uint64_t seed, int largest_world) {
    std::mt19937_64 engine{seed * 0x9e3779b97f4a7c15ULL + 7};
    const auto from = [&](std::int64_t first, std::int64_t last) {
      return first + static_cast<std::int64_t>(engine() % static_cast<std::uint64_t>(last - first + 1));
    };
    static const std::vector<orrery::any_topology> topologies = any::topologies();
    lot one;
    one.seed = seed;
    const orrery::pass passes[] = {orrery::pass::circulate_keys, orrery::pass::circulate_queries};
    do {
      one.world = static_cast<int>(from(1, largest_world));
      one.topology = topologies[static_cast<std::size_t>(from(0, static_cast<std::int64_t>(topologies.size()) - 1))];
      one.shape.circulate = passes[from(0, 1)];
    } while (one.topology.unsupported_reason(one.world, orrery::pass::forward) != nullptr ||
             one.topology.unsupported_reason(one.world, one.shape.circulate) != nullptr);
    if (from(0, 1) == 0) one.shape.operand_messages = orrery::operand_messages::per_tensor;
    one.shape.key_heads = from(1, 4);
    const std::int64_t slices = one.topology.slices(one.world);
    do {
      one.shape.query_heads = *one.shape.key_heads * from(1, 12);
    } while (one.shape.query_heads < slices || one.shape.query_heads > 2 * slices + 6);
    one.shape.batch = from(1, 2);
    one.shape.length = from(1, from(0, 3) == 0 ? 6 : 48);
    one.shape.key_length = from(0, 2) == 0 ? from(1, 48) : one.shape.length;
    one.shape.head_dim = from(1, 17);
    one.shape.value_dim = from(0, 1) == 0 ? one.shape.head_dim : from(1, 17);
    const auto far = any::mask{}.reach;
    switch (from(0, 4)) {
      case 0:
        one.mask = {};
        break;
      case 1:
        one.mask = {{far, 0, 0}};
        break;
      case 2:
        one.mask = {{far, *one.shape.key_length - one.shape.length, 0}};
        break;
      case 3:
        one.mask = {{from(0, 20), from(0, 20), 0}};
        break;
      default:
        one.mask = {{from(0, 30), 0, from(2, 7)}};
        break;
    }
    if (from(0, 2) == 0) {  // documents, of which most batches leave padding
      std::vector<std::int64_t> of_queries, of_keys;
      std::int64_t queries = one.shape.length, keys = *one.shape.key_length;
      const bool apart = queries != keys || from(0, 2) == 0;
      while (queries > 0 && keys > 0 && (of_queries.empty() || from(0, 9) > 0)) {
        of_queries.push_back(from(1, queries));
        of_keys.push_back(apart ? from(1, keys) : of_queries.back());
        queries -= of_queries.back();
        keys -= of_keys.back();
      }
      one.mask.packed = orrery::documents{of_queries, of_keys};
    }
    one.layout = static_cast<int>(from(0, 3));
    one.in_double = from(0, 1) == 0;
    return one;
  }
};

[[nodiscard]] inline std::uint64_t digest_of(const std::string& bytes) {
  std::uint64_t digest = 0xcbf29ce484222325;  // FNV-1a
  for (const char c : bytes) digest = (digest ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return digest;
}

/// Runs a lot by `run(world, body)`, `rounds` times forward and backward. Returns a digest of all ranks' bits; throws
/// what is wrong.
template <class Kernel, class Run>
std::string run_lot(const Run& run, const lot& one, int rounds) {
  const auto p = oracle::random_problem<typename Kernel::storage>(conformance::oracle_shape(one.shape), one.seed);
  const oracle::answer a = oracle::solve(p, one.mask);
  std::string digest;
  run(one.world, [&](auto& on) {
    orrery::attention<orrery::any_topology, Kernel> attend{on, one.shape, one.mask, one.make_layout(), one.topology};
    const orrery::token_positions& queries = attend.query_positions();
    const orrery::token_positions& keys = attend.key_positions();
    conformance::rank_tensors<Kernel> mine{p, queries, keys, conformance::trainer_memory::of(one.seed)};
    std::string wrong, bits;
    for (int round = 0; round < rounds; ++round) {
      mine.poison();
      mine.forward(attend);
      mine.backward(attend);
      const std::string now = mine.bits();
      if (round == 0) {
        bits = now;
        wrong = mine.mismatch(p, a, queries, keys);
      } else if (now != bits) {
        wrong += "; call " + std::to_string(round) + " has other bits than the first";
      }
    }
    std::string all_wrong, all_bits;
    for (const std::string& of_rank : on.all_gather(std::to_string(digest_of(bits)) + " " + wrong)) {
      const std::size_t space = of_rank.find(' ');
      all_bits += of_rank.substr(0, space) + " ";
      all_wrong += of_rank.substr(space + 1);
    }
    if (!all_wrong.empty()) throw std::runtime_error{all_wrong};
    if (on.rank() == 0) digest = all_bits;
  });
  return digest;
}

/// Of this process, in MiB; 0 where it is not known.
[[nodiscard]] inline double resident_memory() {
  std::ifstream file{"/proc/self/statm"};
  double pages = 0;
  file >> pages >> pages;
  return pages * static_cast<double>(sysconf(_SC_PAGESIZE)) / (1 << 20);
}

/// Runs lots until there were enough calls, or `go_on(more)` says no. `says` prints. Throws what is wrong.
template <class Run, class GoOn>
std::string run(const options& how, int largest_world, const Run& on_ranks, const GoOn& go_on) {
  const auto start = std::chrono::steady_clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  std::vector<std::pair<std::uint64_t, std::string>> seen;  // seeds and bits of early lots
  std::int64_t calls = 0;
  std::int64_t lots = 0;
  std::int64_t returned = 0;
  double warm = 0;
  double most = 0;
  while (go_on(calls < how.calls && seconds() < how.seconds)) {
    const bool again = lots % 8 == 7 && !seen.empty();
    const std::size_t which = static_cast<std::size_t>(returned) % (again ? seen.size() : 1);
    const std::uint64_t seed = again ? seen[which].first : how.seed * 1000003 + static_cast<std::uint64_t>(lots);
    const lot one = lot::draw(seed, largest_world);
    const int rounds = 2 + static_cast<int>(seed % 3);
    try {
      const std::string bits = one.in_double ? run_lot<orrery::flash<double>>(on_ranks, one, rounds)
                                             : run_lot<orrery::flash<float>>(on_ranks, one, rounds);
      if (again && bits != seen[which].second) throw std::runtime_error{"other bits than the first time"};
      if (!again && seen.size() < 64) seen.emplace_back(seed, bits);
    } catch (const std::exception& e) {
      throw std::runtime_error{"after " + std::to_string(calls) + " calls, " + one.text() + ": " + e.what()};
    }
    returned += again ? 1 : 0;
    calls += 2 * rounds;
    ++lots;
    if (calls < how.calls / 5) {
      warm = resident_memory();
    } else {
      most = (std::max)(most, resident_memory());
    }
  }
  char text[300];
  std::snprintf(
      text, sizeof text,
      "%lld calls of %lld operators (%lld of them again) over 1 to %d ranks, seed %llu: all right, in %.0f s; "
      "resident memory %.1f MiB after a fifth, at most %.1f MiB from then on\n",
      static_cast<long long>(calls), static_cast<long long>(lots), static_cast<long long>(returned), largest_world,
      static_cast<unsigned long long>(how.seed), seconds(), warm, most);
  if (calls >= how.calls && calls >= 1000 && most > warm + how.growth) {
    throw std::runtime_error{std::string{"the memory grows: "} + text};
  }
  return text;
}

}  // namespace soak
