// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <mutex>
#include <string>
#include <vector>

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/derive_backward.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/topology/concentric.hpp"
#include "orrery/tune/detail/triangle_programs.hpp"
#include "orrery/tune/detail/triangle_search.hpp"

namespace orrery {

/// Causal attention over contiguous shards in two dimensions: each rank computes some pairs of shards of few queries
/// and few keys, of those below the diagonal alone. All ranks compute as much, up to half a pair.
///
///     orrery::attention<orrery::causal_grid, orrery::flash<float>> attend{world, shape, orrery::causal{},
///                                                                         orrery::contiguous{}};
///     orrery::verify(orrery::causal_grid{}, 16, orrery::pass::forward, orrery::below_diagonal{});
///
/// In shard units, forward, average / busiest sender: 5.25 / 6 over 8 ranks and 9.375 / 11 over 16, where
/// `concentric` sends 8 and 12, for all pairs. With other masks or layouts it is refused, since pairs are missing.
///
/// How the pairs are found depends on the world (see `method`):
///
/// - up to 20 ranks by a search, in integers and from a fixed seed, which finds the same on every machine. It takes
///   half a second for 16 ranks, once in a process;
/// - over m²/2 ranks, m even (32, 50, 72, 98, 128, ...), from squares: the sequence is cut into m pieces, and a rank
///   has the pairs of two pieces or those within two pieces. Most ranks need 2m - 2 units, m/2 of them 4m - 4;
/// - over others it is `concentric<A>` for all pairs, A the largest divisor up to the square root of the world.
///
/// The backward is derived (see `derive_backward`): both sides travel in it, whatever `circulate` says.
struct causal_grid {
  /// The most ranks for which pairs are searched.
  static constexpr int most_searched = 20;

  [[nodiscard]] static std::string name() { return "causal_grid"; }
  [[nodiscard]] static constexpr const char* pairs_left_out() {
    return "computes only pairs whose key shard is not after the query shard: use it with a causal mask and the layout "
           "contiguous, or take concentric";
  }

  /// How the schedule for a world is made: "search", "squares of 8 pieces", or "concentric<4,1>, for all pairs: ...".
  [[nodiscard]] static std::string method(int world) {
    if (world <= most_searched) return "search";
    if (const int m = pieces(world); m > 0) return "squares of " + std::to_string(m) + " pieces";
    return "concentric<" + std::to_string(rows(world)) +
           ",1>, for all pairs: pairs below the diagonal are searched for up to " + std::to_string(most_searched) +
           " ranks, and laid out in squares for m * m / 2 ranks, m even; " + std::to_string(world) + " is neither";
  }

  [[nodiscard]] static orrery::schedule::program program(int rank, int world,
                                                         schedule::pass p = schedule::pass::forward) {
    return programs(world, p)[rank];
  }
  /// Of all ranks.
  [[nodiscard]] static schedule::list<orrery::schedule::program> programs(int world, schedule::pass p) {
    if (world > most_searched && pieces(world) == 0) {
      schedule::list<orrery::schedule::program> all;
      for (int rank = 0; rank < world; ++rank)
        all.push_back(detail::concentric_program(rank, world, rows(world), 1, p));
      return all;
    }
    const schedule::list<orrery::schedule::program> forward = known_forward(world);
    return p == schedule::pass::forward ? forward : schedule::derive_backward(forward, p);
  }

 private:
  /// The even m with m²/2 ranks; 0: there is none.
  [[nodiscard]] static constexpr int pieces(int world) {
    int m = 2;
    while (m * m / 2 < world) m += 2;
    return m * m / 2 == world ? m : 0;
  }
  [[nodiscard]] static constexpr int rows(int world) {
    int largest = 1;
    for (int a = 2; a * a <= world; ++a) largest = world % a == 0 ? a : largest;
    return largest;
  }

  /// The forward, made once in a process. Whoever asks while another thread makes one waits for it.
  [[nodiscard]] static schedule::list<orrery::schedule::program> known_forward(int world) {
    struct answer {
      int world;
      schedule::list<orrery::schedule::program> forward;
    };
    // Never destroyed: an object in static storage may ask later.
    static auto& mutex = *new std::mutex;
    static auto& answers = *new std::vector<answer>;
    const std::lock_guard lock{mutex};
    for (const answer& known : answers) {
      if (known.world == world) return known.forward;
    }
    const detail::triangle pairs =
        world <= most_searched ? detail::triangle_search{world}.run() : detail::triangle::of_squares(pieces(world));
    answers.push_back({world, detail::triangle_programs{pairs}.run()});
    return answers.back().forward;
  }
};

}  // namespace orrery
