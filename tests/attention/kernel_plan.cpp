// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/attention/kernel_plan.hpp"

#include <array>
#include <atomic>
#include <cstdint>
#include <set>
#include <span>
#include <stdexcept>
#include <string>

#include <doctest/doctest.h>

#include "orrery/kernel/reference.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/transport/threads.hpp"

#include "support/any.hpp"
#include "support/conformance.hpp"

namespace kernel_plan_test {

namespace {

/// What a plan can know of one pair of blocks before it is called: sizes, strides and positions.
template <class Query, class Key>
std::array<std::int64_t, 16> description(const Query& query, const Key& key, const orrery::head_map& heads) {
  const auto first = [](const orrery::segments& s) { return s.size() > 0 ? s.position(0) : -1; };
  return {query.q.batch,
          query.q.sequence,
          query.q.heads,
          query.q.dim,
          query.q.batch_stride,
          query.q.sequence_stride,
          query.q.head_stride,
          first(query.positions),
          key.k.sequence,
          key.k.heads,
          key.k.sequence_stride,
          key.v.head_stride,
          key.v.dim,
          first(key.positions),
          heads.first_query_head,
          query.own + 2 * key.own};
}

/// `reference`, but each call must have been expected, and writes through a workspace.
struct planning : orrery::reference<double> {
  [[nodiscard]] static std::string name() { return "planning"; }
  static constexpr std::int64_t refused = 77;  // a head dimension
  static inline std::atomic<int> begun_by_all = 0;
  static inline std::atomic<int> backwards_expected = 0;

  template <class Memory>
  class planned {
   public:
    template <class Mask>
    void expect_forward(std::span<const orrery::forward_queries<double, double>> queries,
                        std::span<const orrery::forward_keys<double>> keys, const orrery::head_map& heads, double scale,
                        const Mask&) {
      expect(queries, keys, heads, scale, forwards_);
      for (const auto& one : queries) rows_ = (std::max)(rows_, one.lse.size());
    }
    template <class Mask>
    void expect_backward(std::span<const orrery::backward_queries<double, double>> queries,
                         std::span<const orrery::backward_keys<double, double>> keys, const orrery::head_map& heads,
                         double scale, const Mask&) {
      expect(queries, keys, heads, scale, backwards_);
      ++backwards_expected;
    }
    void take_memory() { memory_ = Memory{bytes()}; }
    [[nodiscard]] std::int64_t bytes() const { return rows_ * std::int64_t{sizeof(double)}; }
    void begin() {
      ++begun_;
      ++begun_by_all;
    }

    template <class Mask>
    void forward(const orrery::host_context& how, std::span<const orrery::forward_queries<double, double>> queries,
                 std::span<const orrery::forward_keys<double>> keys, const orrery::head_map& heads, double scale,
                 const Mask& mask) {
      require(queries, keys, heads, forwards_);
      for (const auto& one : queries) {
        const auto saved = orrery::batch_head_sequence(reinterpret_cast<double*>(memory_.data()), one.lse.batch,
                                                       one.lse.heads, one.lse.sequence);
        reference::copy(how, one.lse, saved);
        reference::copy(how, saved, one.lse);
      }
      reference::forward(how, queries, keys, heads, scale, mask);
    }
    template <class Mask>
    void backward(const orrery::host_context& how, std::span<const orrery::backward_queries<double, double>> queries,
                  std::span<const orrery::backward_keys<double, double>> keys, const orrery::head_map& heads,
                  double scale, const Mask& mask) {
      require(queries, keys, heads, backwards_);
      reference::backward(how, queries, keys, heads, scale, mask);
    }

   private:
    using descriptions = std::set<std::array<std::int64_t, 16>>;

    template <class Queries, class Keys>
    static void expect(const Queries& queries, const Keys& keys, const orrery::head_map& heads, double scale,
                       descriptions& all) {
      if (scale != 0.25) throw std::invalid_argument{"orrery: the plan's scale is not the operator's"};
      for (const auto& query : queries) {
        if (query.q.dim == refused)
          throw std::invalid_argument{"orrery: head_dim is 77, which kernel planning refuses"};
        if (query.q.data != nullptr || !query.fresh) throw std::invalid_argument{"a plan has no tensors yet"};
        for (const auto& key : keys) all.insert(description(query, key, heads));
      }
    }
    template <class Queries, class Keys>
    void require(const Queries& queries, const Keys& keys, const orrery::head_map& heads, const descriptions& all) {
      if (begun_ == 0) throw std::logic_error{"a call has not begun"};
      for (const auto& query : queries) {
        for (const auto& key : keys) {
          if (all.count(description(query, key, heads)) == 0) throw std::logic_error{"a tile was not expected"};
        }
      }
    }

    descriptions forwards_, backwards_;
    std::int64_t rows_ = 0;
    int begun_ = 0;
    Memory memory_;
  };
};

/// `reference`, with a plan that writes the results of a whole forward itself, but not those of a backward.
struct whole_forwards : orrery::reference<double> {
  [[nodiscard]] static std::string name() { return "whole_forwards"; }
  static inline std::atomic<int> run_by_all = 0;

  template <class Memory>
  struct planned {
    using forward_call = orrery::detail::whole_forward<double>;
    using backward_call = orrery::detail::whole_backward<double>;

    void take_memory() const {}
    [[nodiscard]] std::int64_t bytes() const { return 0; }
    void begin() const {}
    template <class... Arguments>
    void expect_forward(const Arguments&...) const {}
    template <class... Arguments>
    void expect_backward(const Arguments&...) const {}
    template <class Mask>
    [[nodiscard]] bool expect_whole(const forward_call&, const orrery::head_map&, double, const Mask&) const {
      return true;
    }
    template <class Mask>
    [[nodiscard]] bool expect_whole(const backward_call&, const orrery::head_map&, double, const Mask&) const {
      return false;
    }
    template <class Mask>
    void run_whole(const orrery::host_context& how, const forward_call& call, const orrery::head_map& heads,
                   double scale, const Mask& mask) const {
      ++run_by_all;
      const orrery::forward_queries<double, double> queries{call.q, call.out, call.lse, call.query_positions};
      const orrery::forward_keys<double> keys{call.k, call.v, call.key_positions};
      reference::forward(how, std::span{&queries, 1}, std::span{&keys, 1}, heads, scale, mask);
    }
    template <class Mask>
    void run_whole(const orrery::host_context&, const backward_call&, const orrery::head_map&, double,
                   const Mask&) const {
      throw std::logic_error{"this backward was not to be whole"};
    }
    template <class... Arguments>
    void forward(const Arguments&... arguments) const {
      reference::forward(arguments...);
    }
    template <class... Arguments>
    void backward(const Arguments&... arguments) const {
      reference::backward(arguments...);
    }
  };
};

constexpr auto on_threads = [](int ranks, auto&& body) { orrery::threads::run(ranks, {.deadline = 10}, body); };
constexpr orrery::attention_shape shape{
    .batch = 2, .length = 26, .query_heads = 4, .key_heads = 2, .head_dim = 4, .scale = 0.25};

// A kernel without one of its members is none: each of these hides one of those of `reference`.
class without_storage : public orrery::reference<float> {
  using storage = float;
};
class without_accumulator : public orrery::reference<float> {
  using accumulator = double;
};
class without_context : public orrery::reference<float> {
  using context = orrery::host_context;
};
struct without_max_head_dim : orrery::reference<float> {
  static void max_head_dim() = delete;
};
struct without_name : orrery::reference<float> {
  static void name() = delete;
};
struct without_copy : orrery::reference<float> {
  static void copy() = delete;
};
struct without_copy_of_rows : orrery::reference<float> {
  template <class From, class To>
  static void copy(const context&, const orrery::tensor_view<From>&, const orrery::tensor_view<To>&);
};
struct without_add : orrery::reference<float> {
  static void add() = delete;
};
struct without_clear : orrery::reference<float> {
  static void clear() = delete;
};
struct without_merge : orrery::reference<float> {
  static void merge() = delete;
};
struct without_row_dot : orrery::reference<float> {
  static void row_dot() = delete;
};
struct without_forward : orrery::reference<float> {
  static void forward() = delete;
};
struct without_backward : orrery::reference<float> {
  static void backward() = delete;
};
static_assert(orrery::attention_kernel<orrery::reference<float>> && orrery::attention_kernel<planning>);
static_assert(!orrery::attention_kernel<without_storage> && !orrery::attention_kernel<without_accumulator>);
static_assert(!orrery::attention_kernel<without_context> && !orrery::attention_kernel<without_max_head_dim>);
static_assert(!orrery::attention_kernel<without_name> && !orrery::attention_kernel<int>);
static_assert(!orrery::attention_kernel<without_copy> && !orrery::attention_kernel<without_copy_of_rows>);
static_assert(!orrery::attention_kernel<without_add> && !orrery::attention_kernel<without_clear>);
static_assert(!orrery::attention_kernel<without_merge>);
static_assert(!orrery::attention_kernel<without_row_dot> && !orrery::attention_kernel<without_forward>);
static_assert(!orrery::attention_kernel<without_backward>);

}  // namespace

TEST_CASE("a kernel's plan is told every tile before the first call") {
  std::uint64_t seed = 0;
  for (const orrery::any_topology& topology : any::topologies()) {
    if (topology.unsupported_reason(4, orrery::pass::forward) != nullptr) continue;
    for (const orrery::pass circulate : {orrery::pass::circulate_keys, orrery::pass::circulate_queries}) {
      if (topology.unsupported_reason(4, circulate) != nullptr) continue;
      orrery::attention_shape how = shape;
      how.circulate = circulate;
      // The trainer's tensors as a plan expects them: seeds that are multiples of 6.
      CHECK(conformance::failures<orrery::any_topology, planning, orrery::threads::world>(
                on_threads, 4, how, orrery::causal{}, orrery::zigzag{}, seed += 6, topology) == "");
    }
  }
}

TEST_CASE("a plan's workspace is the operator's") {
  const auto bytes = []<class Kernel>(const Kernel&) {
    std::int64_t all = 0;
    orrery::threads::run(1, [&](auto& world) {
      all = orrery::attention<orrery::ring, Kernel>{world, shape}.workspace_bytes();
    });
    return all;
  };
  CHECK(bytes(planning{}) - bytes(orrery::reference<double>{}) == 2 * 4 * 26 * 8);
}

TEST_CASE("a plan writes whole forwards itself, and backwards only if it can") {
  for (const int world : {1, 2}) {
    whole_forwards::run_by_all = 0;
    CHECK(conformance::failures<orrery::ring, whole_forwards, orrery::threads::world>(
              on_threads, world, shape, orrery::causal{}, orrery::contiguous{}) == "");
    CHECK(whole_forwards::run_by_all == (world == 1 ? 2 : 0));
  }
}

TEST_CASE("without a backward, a plan is not told of its tiles") {
  for (const bool forward_only : {false, true}) {
    orrery::attention_shape how = shape;
    how.forward_only = forward_only;
    planning::backwards_expected = 0;
    orrery::threads::run(2, [&](auto& world) { orrery::attention<orrery::ring, planning>{world, how}; });
    CHECK((planning::backwards_expected == 0) == forward_only);
  }
}

TEST_CASE("a plan is told of every call that begins") {
  orrery::threads::run(1, [&](auto& world) {
    orrery::attention<orrery::ring, planning> attend{world, shape};
    conformance::rank_tensors<planning> tensors{oracle::random_problem<double>(conformance::oracle_shape(shape), 1),
                                                attend.query_positions(),
                                                attend.key_positions(),
                                                {}};
    planning::begun_by_all = 0;
    tensors.forward(attend);
    if (planning::begun_by_all != 1) throw std::runtime_error{"the forward"};
    tensors.backward(attend);
    if (planning::begun_by_all != 2) throw std::runtime_error{"the backward"};
  });
}

TEST_CASE("what a plan refuses is said on every rank") {
  orrery::threads::run(3, {.deadline = 10}, [&](auto& world) {
    orrery::attention_shape how = shape;
    if (world.rank() == 1) how.head_dim = planning::refused;
    std::string message;
    try {
      orrery::attention<orrery::ring, planning> attend{world, how};
    } catch (const std::invalid_argument& e) {
      message = e.what();
    }
    if (message != "orrery: rank 1: head_dim is 77, which kernel planning refuses") throw std::runtime_error{message};
    if (!world.usable()) throw std::runtime_error{"the world cannot be used any more"};
  });
}

}  // namespace kernel_plan_test
