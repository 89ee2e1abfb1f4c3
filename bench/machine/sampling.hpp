// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

// What bench_machine measures: the samples of `orrery::calibrate`, over any transport whose ranks compute on
// processors.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <time.h>

#include "orrery/attention.hpp"
#include "orrery/host/context.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/predict/calibration_samples.hpp"
#include "orrery/predict/machine.hpp"
#include "orrery/schedule/builder.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/topology/topology.hpp"

#include "common/problem.hpp"
#include "common/statistics.hpp"
#include "topology/intervals.hpp"

namespace bench {

/// What is measured, and how often.
struct sampling_options {
  std::int64_t heads = 4;
  std::int64_t key_heads = 4;
  std::int64_t dim = 64;
  int repetitions = 7;
  std::int64_t largest_message = 1 << 24;
};

/// Queries, keys and results of one tile, with buffers for both passes.
template <class Kernel>
class tile_tensors {
  using T = typename Kernel::storage;
  using A = typename Kernel::accumulator;

 public:
  tile_tensors(std::int64_t rows, std::int64_t keys, std::int64_t heads, std::int64_t key_heads, std::int64_t dim)
      : rows_{rows}, keys_{keys}, heads_{heads}, key_heads_{key_heads}, dim_{dim} {
    fill(q_, 1, rows * heads * dim);
    fill(k_, 2, keys * key_heads * dim);
    fill(v_, 3, keys * key_heads * dim);
    fill(grad_out_, 4, rows * heads * dim);
    const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
    out_.resize(size(rows * heads * dim));
    grad_q_.resize(out_.size());
    grad_k_.resize(size(keys * key_heads * dim));
    grad_v_.resize(grad_k_.size());
    lse_.resize(size(rows * heads));
    delta_.resize(lse_.size());
  }

  template <class Mask>
  void forward(const Mask& mask, bool begins) {
    const orrery::forward_queries<T, A> queries{of_queries(q_), of_queries(out_), of_rows(lse_), positions(rows_),
                                                begins};
    const orrery::forward_keys<T> keys{of_keys(k_), of_keys(v_), positions(keys_)};
    Kernel::template forward<Mask>(context_, std::span(&queries, 1), std::span(&keys, 1), map(), scale(), mask);
  }
  /// After a forward.
  template <class Mask>
  void backward(const Mask& mask) {
    const orrery::backward_queries<T, A> queries{
        of_queries(q_),      of_queries(grad_out_), of_rows(lse_), of_rows(delta_),
        of_queries(grad_q_), positions(rows_),      true};
    const orrery::backward_keys<T, A> keys{of_keys(k_),      of_keys(v_),      of_keys(grad_k_),
                                           of_keys(grad_v_), positions(keys_), true};
    Kernel::template backward<Mask>(context_, std::span(&queries, 1), std::span(&keys, 1), map(), scale(), mask);
  }

  /// What the tile is for a machine's rates.
  [[nodiscard]] orrery::tile_work work(orrery::pass p, bool causal) const {
    orrery::tile_work w;
    w.pass = p;
    w.rows = rows_;
    w.longest_row = keys_;
    w.pairs = causal ? rows_ * (rows_ + 1) / 2 : rows_ * keys_;
    w.diagonal_rows = causal ? rows_ - 1 : 0;
    w.query_heads = heads_;
    w.key_heads = key_heads_;
    w.head_dim = w.value_dim = dim_;
    return w;
  }

 private:
  template <class Number>
  static void fill(std::vector<Number>& tensor, std::uint64_t which, std::int64_t elements) {
    tensor.reserve(static_cast<std::size_t>(elements));
    for (std::int64_t i = 0; i < elements; ++i) tensor.push_back(static_cast<Number>(value_at(which, i)));
  }
  [[nodiscard]] static orrery::segments positions(std::int64_t tokens) {
    return orrery::contiguous::shard(0, 1, tokens);
  }
  [[nodiscard]] A scale() const { return static_cast<A>(1 / std::sqrt(static_cast<double>(dim_))); }
  [[nodiscard]] orrery::head_map map() const { return {0, 0, heads_ / key_heads_}; }
  template <class Number>
  auto of_queries(std::vector<Number>& data) {
    return orrery::batch_sequence_head_dim(data.data(), 1, rows_, heads_, dim_);
  }
  template <class Number>
  auto of_keys(std::vector<Number>& data) {
    return orrery::batch_sequence_head_dim(data.data(), 1, keys_, key_heads_, dim_);
  }
  auto of_rows(std::vector<A>& data) { return orrery::batch_head_sequence(data.data(), 1, heads_, rows_); }

  std::int64_t rows_, keys_, heads_, key_heads_, dim_;
  std::vector<T> q_, k_, v_, grad_out_;
  std::vector<A> out_, grad_q_, grad_k_, grad_v_, lse_, delta_;
  orrery::host_context context_{};
};

/// A ring for each slice of the heads, one after the other: as many steps as one likes.
struct sliced_ring {
  int count;

  [[nodiscard]] std::string name() const { return "sliced_ring<" + std::to_string(count) + ">"; }
  [[nodiscard]] int slices(int) const { return count; }
  [[nodiscard]] orrery::program program(int rank, int world, orrery::pass p = orrery::pass::forward) const {
    orrery::builder schedule{rank, world, p, count};
    for (int slice = 0; slice < count; ++slice) {
      for (int hop = 0; hop < world; ++hop) {
        auto keys = orrery::key(rank - hop);
        auto queries = orrery::query(rank);
        keys.slice = queries.slice = slice;
        if (hop + 1 < world) schedule.shift(keys, +1);
        schedule.interact(queries, keys);
        schedule.next_step();
      }
    }
    return schedule;
  }
  bool operator==(const sliced_ring&) const = default;
};

/// Measures one rank's part of all samples; all ranks do so together.
template <class Kernel, class World>
class sampler {
 public:
  /// `levels` are those of the machine, of which only names and counts are known.
  sampler(World& world, const orrery::machine& frame, const sampling_options& options)
      : world_{world}, frame_{frame}, options_{options} {}

  [[nodiscard]] orrery::calibration_samples run() {
    tiles();
    messages();
    copies();
    hidden();
    calls();
    return std::move(samples_);
  }

  /// The part of the time in which ranks computed, of that in which they tried to: less than 1 if other work ran on
  /// their cores. Collective; after `run`.
  [[nodiscard]] double share_of_cores() { return mean(tried_ > 0 ? std::min(computed_ / tried_, 1.0) : 1.0); }

 private:
  using memory = typename World::memory;
  using T = typename Kernel::storage;

  /// Seconds for which this thread has computed.
  [[nodiscard]] static double cpu_seconds() {
    timespec now{};
    (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  }

  /// Seconds of a call on this rank: the median of the repetitions, of so many calls that they take a while.
  template <class Call>
  double seconds_of_this_rank(const Call& call, int calls) {
    std::vector<double> seconds;
    for (int i = -1; i < options_.repetitions; ++i) {
      world_.barrier();
      const auto begin = clock_type::now();
      for (int c = 0; c < calls; ++c) call();
      if (i >= 0) seconds.push_back(seconds_between(begin, clock_type::now()) / calls);
    }
    return median(seconds);
  }
  /// The mean of all ranks. Collective.
  double mean(double mine) {
    double sum = 0;
    const auto all = of_all_ranks(world_, std::vector<double>{mine});
    for (const auto& one : all) sum += one[0];
    return sum / static_cast<double>(all.size());
  }
  /// Of calls that take some microseconds, so many that one clock tick does not matter. The same on all ranks.
  template <class Call>
  int calls_for(const Call& call, double least = 2e-3) {
    call();
    const auto begin = clock_type::now();
    call();
    const double once = largest(world_, seconds_between(begin, clock_type::now()));
    return static_cast<int>(std::clamp(least / std::max(once, 1e-9), 1.0, 10000.0));
  }
  /// Of a call that computes and waits for no one.
  template <class Call>
  double measure(const Call& call) {
    const auto counted = [&] {
      const auto begin = clock_type::now();
      const double before = cpu_seconds();
      call();
      computed_ += cpu_seconds() - before;
      tried_ += seconds_between(begin, clock_type::now());
    };
    const int calls = calls_for(call);
    if (calls > 1) return mean(seconds_of_this_rank(call, calls));
    return mean(seconds_of_this_rank(counted, 1));
  }

  void tiles() {
    const std::int64_t h = options_.heads;
    const auto tile = [&](std::int64_t rows, std::int64_t keys, bool causal, std::int64_t heads) {
      tile_tensors<Kernel> on{rows, keys, heads, heads == h ? options_.key_heads : heads, options_.dim};
      const std::string what = std::to_string(rows) + " x " + std::to_string(keys) + (causal ? " causal" : "") +
                               (heads == h ? "" : ", one head");
      const auto forward = [&](bool begins) {
        if (causal) {
          on.forward(orrery::causal{}, begins);
        } else {
          on.forward(orrery::full{}, begins);
        }
      };
      const double begun = measure([&] { forward(true); });
      samples_.tiles.push_back({on.work(orrery::pass::forward, causal), begun, what});
      if (rows != keys || rows < 512 || heads != h) return;
      if (!causal) {
        samples_.accumulated.push_back(
            {on.work(orrery::pass::forward, causal), begun, measure([&] { forward(false); }), what});
        forward(true);
      }
      const double backward = measure([&] {
        if (causal) {
          on.backward(orrery::causal{});
        } else {
          on.backward(orrery::full{});
        }
      });
      samples_.tiles.push_back({on.work(orrery::pass::circulate_keys, causal), backward, what + ", backward"});
    };
    for (const std::int64_t n : {128, 512, 1024, 2048}) tile(n, n, false, h);
    for (const std::int64_t n : {256, 512, 1024, 2048}) tile(n, n, true, h);
    tile(128, 4096, false, h);
    tile(4096, 128, false, h);
    tile(128, 4096, false, 1);
    tile(1, 1, false, 1);
  }

  /// Exchanges of `posted` messages in each of `steps` steps, each with buffers of its own: what a schedule sends has
  /// left the caches while tiles were computed.
  struct chain {
    chain(World& world, int to, int from, std::int64_t bytes, int posted, int steps)
        : program{program_of(world, to, from, posted, steps)},
          sent{bytes * posted * steps},
          received{bytes * posted * steps} {
      std::vector<orrery::exchange_pieces> pieces;
      std::int64_t at = 0;
      for (const orrery::schedule::exchange& x : program.exchanges) {
        orrery::exchange_pieces& one = pieces.emplace_back();
        if (x.sent.count > 0) one.sent.push_back({sent.data() + at, bytes});
        if (x.received.count > 0) one.received.push_back({received.data() + at, bytes});
        at += bytes;
      }
      channel.emplace_back(world.open(program, pieces));
    }

    /// Calls `work` while the messages of each step fly.
    template <class Work>
    void run(const Work& work) {
      auto& on = channel.front();
      on.begin();
      for (int i = 0; i <= program.steps.size(); ++i) {
        for (const int e : program.completed_before(i)) on.await(e);
        if (i == program.steps.size()) break;
        for (const int e : program.steps[i].exchanges) on.post(e);
        if constexpr (orrery::detail::batching<std::remove_reference_t<decltype(on)>>) on.posted();
        work();
      }
    }

    static orrery::program program_of(World& world, int to, int from, int posted, int steps) {
      orrery::builder schedule{world.rank(), world.size()};
      for (int step = 0; step < steps; ++step) {
        for (int lane = 0; lane < posted; ++lane) {
          schedule.begin_exchange(to, from, {lane, 1});
          schedule.send(orrery::key(world.rank()));
          schedule.receive(orrery::key(from));
        }
        schedule.next_step();
      }
      orrery::program p = schedule;
      orrery::schedule::finish(p);
      return p;
    }

    orrery::program program;
    memory sent;
    memory received;
    std::vector<orrery::detail::channel_of<World>> channel;  // one
  };

  /// The peers of this rank in a pattern of messages.
  [[nodiscard]] std::pair<int, int> peers(int level, bool all_of_node, bool both_ways) const {
    const auto node = static_cast<int>(frame_.ranks_of_level(0));
    const int rank = world_.rank(), world = world_.size();
    const int index = rank % node;
    int to = 0, from = 0, parity = 0;
    if (level == 0) {
      to = rank - index + (index + 1) % node;
      from = rank - index + (index + node - 1) % node;
      parity = index;
      if (index + 1 == node && node % 2 == 1 && !both_ways)
        return {orrery::schedule::no_rank, orrery::schedule::no_rank};
    } else {
      to = (rank + node) % world;
      from = (rank + world - node) % world;
      parity = rank / node;
      if (!all_of_node && index > 0) return {orrery::schedule::no_rank, orrery::schedule::no_rank};
      if (parity + 1 == world / node && world / node % 2 == 1 && !both_ways) {
        return {orrery::schedule::no_rank, orrery::schedule::no_rank};
      }
    }
    if (both_ways) return {to, from};
    return parity % 2 == 0 ? std::pair{to, orrery::schedule::no_rank} : std::pair{orrery::schedule::no_rank, from};
  }

  /// The seconds of a step of messages: of the rank that takes longest.
  double shift(int level, bool all_of_node, bool both_ways, std::int64_t bytes, int posted) {
    const auto [to, from] = peers(level, all_of_node, both_ways);
    const int steps =
        static_cast<int>(std::clamp<std::int64_t>(options_.largest_message * 4 / (bytes * posted), 1, 256));
    chain c{world_, to, from, bytes, posted, steps};
    const auto call = [&] { c.run([] {}); };
    return largest(world_, seconds_of_this_rank(call, calls_for(call))) / steps;
  }

  void messages() {
    for (int level = 0; level < static_cast<int>(frame_.levels.size()); ++level) {
      if (frame_.levels[static_cast<std::size_t>(level)].count < 2) continue;
      const auto node = static_cast<int>(frame_.ranks_of_level(0));
      for (const bool all_of_node : {true, false}) {
        if (!all_of_node && (level == 0 || node == 1)) continue;
        for (const bool both_ways : {true, false}) {
          for (std::int64_t bytes = 8; bytes <= options_.largest_message; bytes = bytes == 8 ? 1 << 16 : bytes * 4) {
            for (const int posted : {1, 8}) {
              if (posted > 1 && (bytes > 8 || !both_ways)) continue;
              const double seconds = shift(level, all_of_node, both_ways, bytes, posted);
              samples_.messages.push_back(
                  {level, bytes, seconds, posted, level > 0 && all_of_node ? node : 1, both_ways,
                   std::to_string(posted) + " x " + std::to_string(bytes) + " B, " +
                       (both_ways ? "both ways" : "one way") + (level > 0 && !all_of_node ? ", one rank a node" : "")});
            }
          }
        }
      }
    }
  }

  /// Moves through buffers that caches do not hold.
  void copies() {
    const std::int64_t width = options_.heads * options_.dim;
    constexpr std::int64_t all = 32768;  // tokens
    std::vector<float> from(static_cast<std::size_t>(all * width), 1.0F), to(from.size(), 2.0F);
    const orrery::host_context context{};
    for (const std::int64_t tokens : {1024, 8192}) {
      std::int64_t at = 0;
      const auto view = [&](std::vector<float>& data) {
        return orrery::batch_sequence_head_dim(data.data() + at * width, 1, tokens, options_.heads, options_.dim);
      };
      const auto next = [&] { at = (at + tokens) % all; };
      const auto bytes = static_cast<double>(tokens * width) * sizeof(float);
      const std::string size = std::to_string(tokens) + " tokens";
      samples_.copies.push_back({2 * bytes, measure([&] {
                                   Kernel::copy(context, view(from), view(to));
                                   next();
                                 }),
                                 "copy of " + size});
      samples_.copies.push_back({3 * bytes, measure([&] {
                                   Kernel::add(context, view(to), view(from));
                                   next();
                                 }),
                                 "sum of " + size});
    }
  }

  void hidden() {
    if (world_.size() < 2 || samples_.messages.empty()) return;
    tile_tensors<Kernel> on{512, 512, options_.heads, options_.key_heads, options_.dim};
    const auto tile = [&] { on.forward(orrery::full{}, true); };
    const double alone = largest(world_, seconds_of_this_rank(tile, 1));
    // So many bytes that they take half as long as the tile.
    double per_byte = 0;
    for (const auto& one : samples_.messages) {
      if (one.both_ways && one.posted == 1) per_byte = one.seconds / static_cast<double>(one.bytes);
    }
    const auto bytes = static_cast<std::int64_t>(
        std::clamp(0.5 * alone / per_byte, 4096.0, static_cast<double>(options_.largest_message)));
    const auto [to, from] = peers(frame_.levels.front().count > 1 ? 0 : 1, true, true);
    constexpr int steps = 4;
    chain c{world_, to, from, bytes, 1, steps};
    const double transfer = largest(world_, seconds_of_this_rank([&] { c.run([] {}); }, 1)) / steps;
    const double together = largest(world_, seconds_of_this_rank([&] { c.run(tile); }, 1)) / steps;
    samples_.hidden.push_back(
        {alone, std::min(alone, transfer), together, std::to_string(bytes) + " B behind a 512 x 512 tile"});
  }

  void calls() {
    for (const int slices : {1, 8, 64}) {
      const std::int64_t tokens = world_.size();
      orrery::attention_shape shape{.length = tokens, .query_heads = slices, .head_dim = options_.dim};
      shape.forward_only = true;
      orrery::attention<sliced_ring, Kernel> attend{world_, shape, orrery::full{}, orrery::contiguous{},
                                                    sliced_ring{slices}};
      shard<T> own{shape, attend.query_positions()};
      const auto call = [&] { own.forward(attend); };
      const double seconds = largest(world_, seconds_of_this_rank(call, calls_for(call)));
      tile_tensors<Kernel> tiny{1, 1, 1, 1, options_.dim};
      samples_.calls.push_back({slices * world_.size(), slices * (world_.size() - 1),
                                2 * options_.dim * static_cast<std::int64_t>(sizeof(T)),
                                tiny.work(orrery::pass::forward, false), seconds,
                                "a ring of 1 token a rank, " + std::to_string(slices) + " times"});
    }
  }

  World& world_;
  const orrery::machine& frame_;
  sampling_options options_;
  orrery::calibration_samples samples_;
  double computed_ = 0;  // seconds
  double tried_ = 0;
};

}  // namespace bench
