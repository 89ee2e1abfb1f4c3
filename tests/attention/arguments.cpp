// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// What an operator refuses, and with which message; nothing is written then, and the operator still works.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/flash.hpp"
#include "orrery/kernel/reference.hpp"
#include "orrery/transport/threads.hpp"

#include "support/conformance.hpp"
#include "support/topologies.hpp"

namespace arguments_test {

namespace {

using orrery::attention_shape;
using orrery::pass;

/// The message with which all ranks refuse to construct an operator; says so if they do not agree.
template <class Topology, class Kernel = orrery::flash<float>>
std::string refusal(int world, const attention_shape& shape, const Topology& topology = {}) {
  std::vector<std::string> messages(static_cast<std::size_t>(world), "not refused");
  orrery::threads::run(world, [&](auto& on) {
    try {
      const orrery::attention<Topology, Kernel> attend{on, shape, orrery::full{}, orrery::contiguous{}, topology};
    } catch (const std::invalid_argument& e) {
      messages[static_cast<std::size_t>(on.rank())] = e.what();
    }
  });
  for (const std::string& one : messages) {
    if (one != messages[0]) return "ranks say different things: " + messages[0] + " / " + one;
  }
  return messages[0];
}

/// A ring whose rank 1 computes its last tile twice.
struct twice {
  constexpr orrery::program program(int rank, int world) const {
    orrery::builder schedule{rank, world};
    for (int hop = 0; hop < world; ++hop) {
      if (hop + 1 < world) schedule.shift(orrery::key(rank - hop), +1);
      schedule.interact(orrery::query(rank), orrery::key(rank - hop));
      schedule.next_step();
    }
    if (rank == 1) schedule.interact(orrery::query(rank), orrery::key(rank + 1));
    return schedule;
  }
  static std::string name() { return "twice"; }
};

/// A ring that is right forward, but not backward.
struct no_way_back {
  constexpr orrery::program program(int rank, int world, pass p) const {
    orrery::program right = orrery::ring::program(rank, world, p);
    if (p != pass::forward) right.steps[0].tile = {{0, 0}, {0, 0}};
    return right;
  }
  static std::string name() { return "no_way_back"; }
};

/// A ring that must not be asked for a backward.
struct ring_of_forwards {
  constexpr orrery::program program(int rank, int world, pass p) const {
    if (p != pass::forward) throw std::logic_error{"asked for a backward"};
    return orrery::ring::program(rank, world, p);
  }
  constexpr const char* unsupported_reason(int, pass p) const {
    return p == pass::forward ? nullptr : "has no backward";
  }
  static std::string name() { return "ring_of_forwards"; }
};

constexpr attention_shape good{.length = 12, .query_heads = 4, .key_heads = 2, .head_dim = 8};

template <class Change>
attention_shape but(const Change& change) {
  attention_shape shape = good;
  change(shape);
  return shape;
}

}  // namespace

TEST_CASE("sizes") {
  const auto said = [](auto change) { return refusal<orrery::ring>(2, but(change)); };
  CHECK(said([](auto& s) { s.batch = 0; }) == "orrery: rank 0: batch is 0, expected at least 1");
  CHECK(said([](auto& s) { s.length = 0; }) == "orrery: rank 0: length is 0, expected at least 1");
  CHECK(said([](auto& s) { s.length = -5; }) == "orrery: rank 0: length is -5, expected at least 1");
  CHECK(said([](auto& s) { s.query_heads = 0; }) == "orrery: rank 0: query_heads is 0, expected at least 1");
  CHECK(said([](auto& s) { s.key_heads = -2; }) ==
        "orrery: rank 0: key_heads is -2, expected at least 1; leave it out to use query_heads");
  CHECK(said([](auto& s) { s.head_dim = 0; }) == "orrery: rank 0: head_dim is 0, expected at least 1");
  CHECK(said([](auto& s) { s.value_dim = -1; }) ==
        "orrery: rank 0: value_dim is -1, expected at least 1; leave it out to use head_dim");
  CHECK(said([](auto& s) { s.key_length = -1; }) ==
        "orrery: rank 0: key_length is -1, expected at least 1; leave it out to use length");
  // A 0 that was computed is no default.
  CHECK(said([](auto& s) { s.key_heads = 0; }) ==
        "orrery: rank 0: key_heads is 0, expected at least 1; leave it out to use query_heads");
  CHECK(said([](auto& s) { s.value_dim = 0; }) ==
        "orrery: rank 0: value_dim is 0, expected at least 1; leave it out to use head_dim");
  CHECK(said([](auto& s) { s.key_length = 0; }) ==
        "orrery: rank 0: key_length is 0, expected at least 1; leave it out to use length");
  CHECK(said([](auto& s) { s.key_heads = {}, s.value_dim = {}, s.key_length = {}; }) == "not refused");
  CHECK(said([](auto& s) { s.key_heads = 3; }) ==
        "orrery: rank 0: key_heads is 3, expected a divisor of query_heads, 4");
  CHECK(said([](auto& s) { s.key_heads = 8; }) ==
        "orrery: rank 0: key_heads is 8, expected a divisor of query_heads, 4");
  CHECK(refusal<orrery::ring>(3, good) == "not refused");
}

TEST_CASE("head dimensions that the kernel does not have") {
  const std::string most = std::to_string(orrery::flash<float>::max_head_dim);
  const std::int64_t more = orrery::flash<float>::max_head_dim + 1;
  const std::string rest = " is " + std::to_string(more) + ", but kernel flash<float> goes up to " + most +
                           "; orrery::reference has no limit";
  CHECK(refusal<orrery::ring>(2, but([&](auto& s) { s.head_dim = more; })) == "orrery: rank 0: head_dim" + rest);
  CHECK(refusal<orrery::ring>(2, but([&](auto& s) { s.value_dim = more; })) == "orrery: rank 0: value_dim" + rest);
  CHECK(refusal<orrery::ring>(2, but([&](auto& s) { s.value_dim = more - 1; })) == "not refused");
  CHECK(refusal<orrery::ring, orrery::reference<float>>(2, but([&](auto& s) { s.head_dim = more; })) == "not refused");
}

TEST_CASE("scale and policy") {
  const auto said = [](auto change) { return refusal<orrery::ring>(2, but(change)); };
  for (const double zero : {0.0, -0.0}) {
    CHECK(said([&](auto& s) { s.scale = zero; }) ==
          "orrery: rank 0: scale is 0, expected another number; leave it out for 1 / sqrt(head_dim)");
  }
  CHECK(said([](auto& s) { s.scale = -1e-30; }) == "not refused");
  CHECK(said([](auto& s) { s.scale = std::numeric_limits<double>::infinity(); }) ==
        "orrery: rank 0: scale is inf, expected a finite number");
  CHECK(said([](auto& s) { s.scale = std::nan(""); }) == "orrery: rank 0: scale is nan, expected a finite number");
  for (const double most : {0x1p127, -0x1p127}) {  // a little more than half of the largest float
    CHECK(said([&](auto& s) { s.scale = most * (1 - 0x1p-20); }) == "not refused");
    CHECK(said([&](auto& s) { s.scale = most; }).find(", expected a number from -1.701e+38 to 1.701e+38") !=
          std::string::npos);
  }
  for (const double scale : {1e39, 1e300}) {  // finite in double only
    CHECK(said([&](auto& s) { s.scale = scale; }) ==
          std::string{"orrery: rank 0: scale is "} + (scale == 1e39 ? "1e+39" : "1e+300") +
              ", expected a number from -1.701e+38 to 1.701e+38: beyond, scores are too large for the numbers in which "
              "kernel flash<float> computes");
    CHECK(refusal<orrery::ring, orrery::reference<float>>(2, but([&](auto& s) { s.scale = scale; })) == "not refused");
  }
  CHECK(said([](auto& s) { s.circulate = pass::forward; }) ==
        "orrery: rank 0: circulate is pass::forward, expected pass::circulate_keys or pass::circulate_queries");
}

TEST_CASE("sizes whose products overflow: the message names the largest") {
  const auto said = [](auto change) { return refusal<orrery::ring, orrery::reference<float>>(2, but(change)); };
  const auto too_large = [](const char* name, std::int64_t size, const char* others) {
    return std::string{"orrery: rank 0: "} + name + " is " + std::to_string(size) + ", too large: with " + others +
           " the tensors would have more than 2^52 numbers";
  };
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  for (const std::int64_t size : {most - 1, most / 2 + 1, (std::int64_t{1} << 52) + 2, std::int64_t{1} << 49}) {
    CHECK(said([&](auto& s) { s.batch = size; }) ==
          too_large("batch", size, "length 12, query_heads 4, head_dim 8, value_dim 8"));
    CHECK(said([&](auto& s) { s.length = size; }) ==
          too_large("length", size, "batch 1, query_heads 4, head_dim 8, value_dim 8"));
    CHECK(said([&](auto& s) { s.query_heads = size; }) ==
          too_large("query_heads", size, "batch 1, length 12, head_dim 8, value_dim 8"));
    CHECK(said([&](auto& s) { s.head_dim = size, s.value_dim = 8; }) ==
          too_large("head_dim", size, "batch 1, length 12, query_heads 4, value_dim 8"));
    CHECK(said([&](auto& s) { s.value_dim = size; }) ==
          too_large("value_dim", size, "batch 1, length 12, query_heads 4, head_dim 8"));
    CHECK(said([&](auto& s) { s.key_length = size; }) ==
          too_large("key_length", size, "batch 1, query_heads 4, head_dim 8, value_dim 8"));
  }
}

TEST_CASE("memory that cannot be had: the message says how much, and for what") {
  const auto said = [](int world, std::int64_t length) -> std::string {
    try {
      orrery::threads::run(world, [&](auto& on) {
        const orrery::attention<orrery::ring, orrery::flash<float>> attend{on, {.length = length, .head_dim = 1}};
      });
    } catch (const std::exception& e) {
      return e.what();
    }
    return "not refused";
  };
  constexpr std::int64_t length = std::int64_t{1} << 50;
  const std::string alone = said(1, length);
  INFO(alone);
  CHECK(alone.find("orrery: no memory for delta and the results under way of a plan: 4503599627370496 bytes were asked "
                   "for; use more ranks") == 0);
  const std::string two = said(2, length);
  INFO(two);
  CHECK(two.find(": 2251799813685248 bytes were asked for") != std::string::npos);
  CHECK_THROWS_AS(orrery::detail::host_memory{std::numeric_limits<std::int64_t>::max()}, orrery::detail::memory_error);
}

namespace {

/// Each rank's segments, whatever the length.
struct listed {
  std::vector<std::vector<orrery::segment>> ranks;

  [[nodiscard]] orrery::segments shard(int rank, int, std::int64_t) const {
    orrery::segments all;
    for (const orrery::segment& piece : ranks.at(static_cast<std::size_t>(rank))) all.add(piece);
    return all;
  }
  static std::string name() { return "listed"; }
};

/// The message with which all of two ranks refuse a layout for 8 queries and `key_length` keys.
std::string refused_layout(const listed& layout, std::int64_t key_length = 8) {
  std::vector<std::string> messages(2, "not refused");
  orrery::threads::run(2, [&](auto& on) {
    try {
      const orrery::attention<orrery::ring, orrery::flash<float>> attend{
          on, {.length = 8, .head_dim = 1, .key_length = key_length}, orrery::full{}, layout};
    } catch (const std::invalid_argument& e) {
      messages[static_cast<std::size_t>(on.rank())] = e.what();
    }
  });
  return messages[0] == messages[1] ? messages[0] : messages[0] + " / " + messages[1];
}

}  // namespace

TEST_CASE("layouts whose shards are not the sequence") {
  const std::string begin = "orrery: rank 0: layout listed (length 8 over 2 ranks) ";
  CHECK(refused_layout({{{{0, 4, 4, 4}}, {{4, 4, 4, 4}}}}) == "not refused");
  CHECK(refused_layout({{{{0, 8, 8, 8}}, {}}}) == "not refused");
  CHECK(refused_layout({{{{0, 4, 2, 4}}, {{2, 4, 2, 4}}}}) == "not refused");
  CHECK(refused_layout({{{{0, 5, 5, 5}}, {{4, 4, 4, 4}}}}) ==
        begin + "gives position 4 to ranks 0 and 1, expected each position in exactly one shard");
  CHECK(refused_layout({{{{0, 3, 3, 3}}, {{4, 4, 4, 4}}}}) ==
        begin + "gives position 3 to no rank, expected each position in exactly one shard");
  CHECK(refused_layout({{{{0, 4, 4, 4}}, {{4, 5, 5, 5}}}}) ==
        begin + "has position 8 in the shard of rank 1, which is not in the sequence");
  CHECK(refused_layout({{{{2, 2, 2, 2}, {0, 2, 2, 2}}, {{4, 4, 4, 4}}}}) ==
        begin + "has position 0 after position 3 in the shard of rank 0, expected ascending positions");
  CHECK(refused_layout({{{{0, 1, 1, 1}, {2, 1, 1, 1}, {4, 1, 1, 1}}, {{1, 3, 1, 2}}}}) ==
        begin + "threw: orrery: segments::add: a shard has at most two segments; merge segments that touch");
  // Keys have shards of their own.
  CHECK(refused_layout({{{{0, 4, 4, 4}}, {{4, 4, 4, 4}}}}, 7) ==
        "orrery: rank 0: layout listed (key_length 7 over 2 ranks) has position 7 in the shard of rank 1, which is not "
        "in the sequence");
}

TEST_CASE("layouts of one name whose shards differ from rank to rank") {
  const std::vector<listed> layouts{{{{{0, 4, 4, 4}}, {{4, 4, 4, 4}}}}, {{{{0, 4, 1, 2}}, {{1, 4, 1, 2}}}}};
  std::string said;
  try {
    orrery::threads::run(2, [&](auto& on) {
      const orrery::attention<orrery::ring, orrery::flash<float>> attend{
          on, {.length = 8, .head_dim = 1}, orrery::full{}, layouts[static_cast<std::size_t>(on.rank())]};
    });
  } catch (const std::invalid_argument& e) {
    said = e.what();
  }
  CHECK(said.find("orrery: ranks disagree about shards (their digest): rank 0 has ") == 0);
}

TEST_CASE("worlds that the topology does not admit") {
  CHECK(refusal<orrery::wallfacer<3>>(8, good) ==
        "orrery: rank 0: topology wallfacer<3> over 8 ranks needs a world that C*C divides: choose a smaller C, or "
        "concentric<C>, for which C need only divide it");
  CHECK(refusal<orrery::concentric<2, 2>>(6, good) ==
        "orrery: rank 0: topology concentric<2,2> over 6 ranks needs a world that A*B divides: choose A and B from the "
        "world's divisors, or ring");
  CHECK(
      refusal<orrery::all_to_all<2, orrery::wallfacer<2>>>(4, good) ==
      "orrery: rank 0: topology all_to_all<2,wallfacer<2>> over 4 ranks runs wallfacer<2> over 2 ranks, which needs a "
      "world that C*C divides: choose a smaller C, or concentric<C>, for which C need only divide it");
  CHECK(refusal<orrery::wallfacer<2>>(1, good).find("topology wallfacer<2> over 1 rank needs a world") !=
        std::string::npos);
  CHECK(refusal<orrery::double_ring<4>>(6, good).find("over 6 ranks needs a world that I divides") !=
        std::string::npos);
}

TEST_CASE("more slices than query heads: the message names a hybrid that works, and it does") {
  const auto heads = [](std::int64_t count) {
    return attention_shape{.length = 24, .query_heads = count, .head_dim = 8};
  };
  CHECK(refusal<orrery::ulysses>(8, heads(6)) ==
        "orrery: rank 0: topology ulysses cuts the heads into 8 slices, but query_heads is 6; usp<4> works here: "
        "all-to-all over 4 ranks, a ring across");
  CHECK(refusal<orrery::usp<4>>(8, heads(6)) == "not refused");
  CHECK(refusal<orrery::ulysses>(9, heads(4)).find("; usp<3> works here") != std::string::npos);
  CHECK(refusal<orrery::usp<3>>(9, heads(4)) == "not refused");
  CHECK(refusal<orrery::ulysses>(5, heads(4)) ==
        "orrery: rank 0: topology ulysses cuts the heads into 5 slices, but query_heads is 4; ring and concentric do "
        "not cut heads");
  CHECK(
      refusal<orrery::usp<4>>(8, heads(3)).find("usp<4> cuts the heads into 4 slices, but query_heads is 3; usp<2>") !=
      std::string::npos);
}

TEST_CASE("a wrong schedule is refused at run time, with the verifier's message") {
  const std::string verdict = orrery::verify(twice{}, 4).message();
  CHECK(verdict.find("query shard 1 meets key shard 2 for the second time") != std::string::npos);
  CHECK(refusal<twice>(4, good) ==
        "orrery: rank 0: the schedule of topology twice (forward) is wrong for 4 ranks: " + verdict);
  const std::string backward = orrery::verify(no_way_back{}, 3, pass::circulate_queries).message();
  CHECK(refusal<no_way_back>(3, but([](auto& s) { s.circulate = pass::circulate_queries; })) ==
        "orrery: rank 0: the schedule of topology no_way_back (circulate_queries) is wrong for 3 ranks: " + backward);
}

TEST_CASE("an operator that is forward_only neither needs nor proves a backward") {
  const auto forward_only = but([](auto& s) { s.forward_only = true; });
  CHECK(refusal<no_way_back>(3, forward_only) == "not refused");
  CHECK(refusal<ring_of_forwards>(3, good) == "orrery: rank 0: topology ring_of_forwards over 3 ranks has no backward");
  CHECK(refusal<ring_of_forwards>(3, forward_only) == "not refused");
  CHECK(refusal<twice>(4, forward_only).find("the schedule of topology twice (forward) is wrong") != std::string::npos);
}

namespace {

using kernel = orrery::flash<double>;
using tensors = conformance::rank_tensors<kernel>;
using attention = orrery::attention<orrery::ring, kernel>;

/// The views of one call.
struct call {
  orrery::tensor_view<const double> q, k, v, in_out, grad_out;
  orrery::row_view<const double> in_lse;
  orrery::tensor_view<double> out, grad_q, grad_k, grad_v;
  orrery::row_view<double> lse;

  explicit call(const tensors& t)
      : q(t.q.view()),
        k(t.k.view()),
        v(t.v.view()),
        in_out(t.out.view()),
        grad_out(t.grad_out.view()),
        in_lse(t.lse.view()),
        out(t.out.view()),
        grad_q(t.grad_q.view()),
        grad_k(t.grad_k.view()),
        grad_v(t.grad_v.view()),
        lse(t.lse.view()) {}

  void forward(attention& attend) const { attend.forward(q, k, v, out, lse); }
  void backward(attention& attend) const {
    attend.backward({.q = q,
                     .k = k,
                     .v = v,
                     .out = in_out,
                     .lse = in_lse,
                     .grad_out = grad_out,
                     .grad_q = grad_q,
                     .grad_k = grad_k,
                     .grad_v = grad_v});
  }
};

constexpr attention_shape called{
    .batch = 2, .length = 10, .query_heads = 4, .key_heads = 2, .head_dim = 3, .value_dim = 5, .key_length = 6};

/// Each rank makes a call whose views `change` has spoilt, compares its message (up to "..."), makes sure that nothing
/// was written, and then makes the right call. Empty if all is well.
std::string refused_call(bool forward, const std::string& message, const std::function<void(call&)>& change) {
  const auto p = oracle::random_problem<double>(conformance::oracle_shape(called), 1);
  const oracle::answer a = oracle::solve(p, orrery::full{});
  try {
    orrery::threads::run(2, [&](auto& on) {
      attention attend{on, called};
      tensors mine{p, attend.query_positions(), attend.key_positions(), {kernel_test::order::batch_sequence_head, 3}};
      if (!forward) mine.forward(attend);
      const std::string before = mine.bits();
      call spoilt{mine};
      change(spoilt);
      std::string said = "nothing";
      try {
        if (forward) {
          spoilt.forward(attend);
        } else {
          spoilt.backward(attend);
        }
      } catch (const std::invalid_argument& e) {
        said = e.what();
      }
      const bool begins = message.size() > 3 && message.compare(message.size() - 3, 3, "...") == 0;
      const std::string begin = message.substr(0, message.size() - 3);
      if (begins ? said.find(begin) != 0 : said != message) throw std::logic_error{"it says: " + said};
      if (mine.bits() != before) throw std::logic_error{"something was written"};
      if (forward) mine.forward(attend);
      mine.backward(attend);
      const std::string wrong = mine.mismatch(p, a, attend.query_positions(), attend.key_positions());
      if (!wrong.empty()) throw std::logic_error{"afterwards" + wrong};
    });
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

template <class T>
T* shifted_by_one_byte(T* data) {
  using byte = std::conditional_t<std::is_const_v<T>, const std::byte, std::byte>;
  return reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(reinterpret_cast<byte*>(data) + 1));
}

/// Spoils one view, which is `view(call)`, in every way.
template <class View>
void check_view(bool forward, const std::string& name, const View& view, int tokens, int heads, int dim) {
  const std::string begin = std::string{"orrery: attention::"} + (forward ? "forward: " : "backward: ") + name + " ";
  INFO(begin);
  const auto has = [&](const char* what, int got, int expected) {
    return begin + "has " + what + " " + std::to_string(got) + ", expected " + std::to_string(expected);
  };
  const auto check = [&](const std::string& message, const auto& spoil) {
    CHECK(refused_call(forward, message, [&](call& c) { spoil(view(c)); }) == "");
  };
  const auto count = [](int of, const char* one) { return std::to_string(of) + " " + one + "s"; };
  check(
      begin + "was left out; expected a view with batch 2, " + count(tokens, "token") + " and " + count(heads, "head"),
      [](auto& v) { v = {}; });
  check(has("batch", 3, 2), [](auto& v) { v.batch = 3; });
  check(has("sequence (this rank's tokens)", tokens - 1, tokens), [&](auto& v) { v.sequence = tokens - 1; });
  check(has("sequence (this rank's tokens)", 2 * tokens, tokens), [&](auto& v) { v.sequence = 2 * tokens; });
  check(has("heads", heads + 1, heads), [&](auto& v) { v.heads = heads + 1; });
  if (dim > 0) {
    check(has("dim", dim + 1, dim), [&](auto& v) {
      if constexpr (requires { v.dim; }) v.dim = dim + 1;
    });
  }
  check(begin + "is null", [](auto& v) { v.data = nullptr; });
  check(begin + "is not aligned to its elements of 8 bytes", [](auto& v) { v.data = shifted_by_one_byte(v.data); });
  check(begin + "has batch_stride -100, expected at least 0", [](auto& v) { v.batch_stride = -100; });
  check(begin + "has sequence_stride -1, expected at least 0", [](auto& v) { v.sequence_stride = -1; });
  check(begin + "has head_stride -7, expected at least 0", [](auto& v) { v.head_stride = -7; });
}

/// Lays the output `first` over the view `second`, in memory apart from all other tensors; the message names both, in
/// this order.
template <class Output, class Other>
void check_shared(bool forward, const std::string& first, const Output& output, const std::string& second,
                  const Other& other) {
  const std::string message = std::string{"orrery: attention::"} + (forward ? "forward: " : "backward: ") + second +
                              " shares memory with " + first +
                              "; an output needs memory of its own, apart from the inputs and the other outputs";
  INFO(message);
  std::vector<double> memory(1 << 16);
  double* const apart = memory.data() + memory.size() / 2;
  for (const std::ptrdiff_t distance : {-1, 0, 1}) {
    CHECK(refused_call(forward, message, [&](call& c) {
            output(c).data = apart + distance;
            other(c).data = apart;
          }) == "");
  }
}

/// Gives an output elements that share memory.
template <class Output>
void check_shared_within(bool forward, const std::string& name, const Output& output) {
  const auto check = [&](const auto& spoil) {
    const std::string message = std::string{"orrery: attention::"} + (forward ? "forward: " : "backward: ") + name +
                                " has elements that share memory: ...";
    CHECK(refused_call(forward, message, [&](call& c) { spoil(output(c)); }) == "");
  };
  check([](auto& v) { v.batch_stride = 0; });
  check([](auto& v) { v.sequence_stride = 0; });
  check([](auto& v) { v.head_stride = 0; });
  check([](auto& v) { v.batch_stride = v.sequence_stride; });
  check([](auto& v) { v.sequence_stride = v.head_stride; });
}

}  // namespace

TEST_CASE("views of a forward that do not fit") {
  check_view(
      true, "q", [](call & c) -> auto& { return c.q; }, 5, 4, 3);
  check_view(
      true, "k", [](call & c) -> auto& { return c.k; }, 3, 2, 3);
  check_view(
      true, "v", [](call & c) -> auto& { return c.v; }, 3, 2, 5);
  check_view(
      true, "out", [](call & c) -> auto& { return c.out; }, 5, 4, 5);
  check_view(
      true, "lse", [](call & c) -> auto& { return c.lse; }, 5, 4, 0);
}

TEST_CASE("views of a backward that do not fit") {
  check_view(
      false, "q", [](call & c) -> auto& { return c.q; }, 5, 4, 3);
  check_view(
      false, "k", [](call & c) -> auto& { return c.k; }, 3, 2, 3);
  check_view(
      false, "v", [](call & c) -> auto& { return c.v; }, 3, 2, 5);
  check_view(
      false, "out", [](call & c) -> auto& { return c.in_out; }, 5, 4, 5);
  check_view(
      false, "lse", [](call & c) -> auto& { return c.in_lse; }, 5, 4, 0);
  check_view(
      false, "grad_out", [](call & c) -> auto& { return c.grad_out; }, 5, 4, 5);
  check_view(
      false, "grad_q", [](call & c) -> auto& { return c.grad_q; }, 5, 4, 3);
  check_view(
      false, "grad_k", [](call & c) -> auto& { return c.grad_k; }, 3, 2, 3);
  check_view(
      false, "grad_v", [](call & c) -> auto& { return c.grad_v; }, 3, 2, 5);
}

TEST_CASE("outputs of a forward that share memory") {
  const auto out = [](call & c) -> auto& { return c.out; };
  const auto lse = [](call & c) -> auto& { return c.lse; };
  check_shared(true, "out", out, "lse", lse);
  check_shared(
      true, "out", out, "q", [](call & c) -> auto& { return c.q; });
  check_shared(
      true, "out", out, "k", [](call & c) -> auto& { return c.k; });
  check_shared(
      true, "out", out, "v", [](call & c) -> auto& { return c.v; });
  check_shared(
      true, "lse", lse, "q", [](call & c) -> auto& { return c.q; });
  check_shared(
      true, "lse", lse, "k", [](call & c) -> auto& { return c.k; });
  check_shared(
      true, "lse", lse, "v", [](call & c) -> auto& { return c.v; });
  check_shared_within(true, "out", out);
  check_shared_within(true, "lse", lse);
}

TEST_CASE("outputs of a backward that share memory") {
  const auto grad_q = [](call & c) -> auto& { return c.grad_q; };
  const auto grad_k = [](call & c) -> auto& { return c.grad_k; };
  const auto grad_v = [](call & c) -> auto& { return c.grad_v; };
  check_shared(false, "grad_q", grad_q, "grad_k", grad_k);
  check_shared(false, "grad_q", grad_q, "grad_v", grad_v);
  check_shared(false, "grad_k", grad_k, "grad_v", grad_v);
  const auto against_inputs = [](const char* name, const auto& output) {
    check_shared(
        false, name, output, "q", [](call & c) -> auto& { return c.q; });
    check_shared(
        false, name, output, "k", [](call & c) -> auto& { return c.k; });
    check_shared(
        false, name, output, "v", [](call & c) -> auto& { return c.v; });
    check_shared(
        false, name, output, "out", [](call & c) -> auto& { return c.in_out; });
    check_shared(
        false, name, output, "lse", [](call & c) -> auto& { return c.in_lse; });
    check_shared(
        false, name, output, "grad_out", [](call & c) -> auto& { return c.grad_out; });
    check_shared_within(false, name, output);
  };
  against_inputs("grad_q", grad_q);
  against_inputs("grad_k", grad_k);
  against_inputs("grad_v", grad_v);
}

TEST_CASE("strides of dimensions of one are not read") {
  double element = 0;
  const orrery::tensor_view<double> view{&element, 1, 1, 1, 1, -100, -7, -1};
  CHECK_NOTHROW(orrery::detail::expected_view{"forward", "q", 1, 1, 1, 1}.check(view));
}

TEST_CASE("strides that lead out of the address space") {
  constexpr std::int64_t far = std::numeric_limits<std::int64_t>::max();
  for (const std::int64_t stride : {far, far / 2, far / 8}) {
    CHECK(refused_call(true, "orrery: attention::forward: q has strides that lead out of the address space: ...",
                       [&](call& c) { c.q.sequence_stride = stride; }) == "");
    CHECK(refused_call(true, "orrery: attention::forward: lse has strides that lead out of the address space: ...",
                       [&](call& c) { c.lse.head_stride = stride; }) == "");
  }
}

TEST_CASE("a forward that is begun refuses operands that share memory with its outputs") {
  const auto said = [](int operand, int output) {
    std::string message = "not refused";
    orrery::threads::run(1, [&](auto& on) {
      attention attend{on, {.length = 2, .head_dim = 2}};
      std::vector<double> numbers(40, 0.0);
      const auto tensor = [&](int at) {
        return orrery::batch_sequence_head_dim(&numbers[static_cast<std::size_t>(at)], 1, 2, 1, 2);
      };
      const auto rows = [&](int at) {
        return orrery::batch_head_sequence(&numbers[static_cast<std::size_t>(at)], 1, 1, 2);
      };
      const auto place = [&](int which) { return operand != which ? 10 * which : output == 0 ? 33 : 37; };
      try {
        auto begun = attend.begin_forward(tensor(30), rows(output == 0 ? 38 : 36));
        begun.queries(tensor(place(0)));
        begun.keys(tensor(place(1)));
        begun.values(tensor(place(2)));
        begun.finish();
      } catch (const std::invalid_argument& e) {
        message = e.what();
      }
    });
    return message;
  };
  const char* const operands[] = {"q", "k", "v"};
  const char* const outputs[] = {"out", "lse"};
  CHECK(said(3, 0) == "not refused");
  for (int operand = 0; operand < 3; ++operand) {
    for (int output = 0; output < 2; ++output) {
      CHECK(said(operand, output) ==
            std::string{"orrery: attention::begin_forward: "} + operands[operand] + " shares memory with " +
                outputs[output] + "; an output needs memory of its own, apart from the inputs and the other outputs");
    }
  }
  orrery::threads::run(1, [](auto& on) {
    attention attend{on, {.length = 2, .head_dim = 2}};
    std::vector<double> numbers(5, 0.0);
    CHECK_THROWS_AS(static_cast<void>(attend.begin_forward(orrery::batch_sequence_head_dim(numbers.data(), 1, 2, 1, 2),
                                                           orrery::batch_head_sequence(&numbers[3], 1, 1, 2))),
                    std::invalid_argument);
  });
}

TEST_CASE(
    "slices of one tensor in any order, for operands and for gradients, and keys of which several heads are one") {
  constexpr std::int64_t batch = 2, heads = 3, dim = 4;
  struct memory_order {
    std::int64_t batch, sequence, head, next;  ///< strides, and from q to k and from k to v
  };
  for (const int world : {1, 4}) {
    orrery::threads::run(world, [&](auto& on) {
      attention attend{on, {.batch = batch, .length = 11, .query_heads = heads, .head_dim = dim}};
      const std::int64_t tokens = attend.query_positions().size();
      const std::int64_t third = batch * tokens * heads * dim;
      const memory_order orders[] = {
          {tokens * heads * dim, heads * dim, dim, third},                      // three tensors
          {tokens * 3 * heads * dim, 3 * heads * dim, dim, heads * dim},        // packed
          {tokens * 3 * heads * dim, 3 * heads * dim, 3 * dim, dim},            // packed head by head
          {3 * heads * dim, batch * 3 * heads * dim, dim, heads * dim},         // packed, sequence first
          {3 * heads * tokens * dim, dim, tokens * dim, heads * tokens * dim},  // packed, heads first
      };
      std::vector<double> first;  // results of the first order
      for (const bool one_key_head : {false, true}) {
        first.clear();
        for (const memory_order& order : orders) {
          std::vector<double> operands(static_cast<std::size_t>(3 * third)), gradients(operands.size(), 7.0);
          std::vector<double> out(static_cast<std::size_t>(third)), grad_out(out.size());
          std::vector<double> lse(static_cast<std::size_t>(batch * heads * tokens));
          const auto of = [&](std::vector<double>& data, std::int64_t which) {
            return orrery::tensor_view<double>{
                data.data() + which * order.next, batch, tokens, heads, dim, order.batch, order.sequence, order.head};
          };
          const auto each = [&](const orrery::tensor_view<double>& view, const auto& visit) {
            for (std::int64_t b = 0; b < batch; ++b)
              for (std::int64_t t = 0; t < tokens; ++t)
                for (std::int64_t h = 0; h < heads; ++h)
                  for (std::int64_t c = 0; c < dim; ++c) visit(view.at(b, t, h)[c], b, t, h, c);
          };
          for (std::int64_t which = 0; which < 3; ++which) {
            each(of(operands, which), [&](double& x, auto b, auto t, auto h, auto c) {
              const std::int64_t head = one_key_head && which > 0 ? 0 : h;
              x = std::sin(static_cast<double>(b + 3 * t + 5 * head + 7 * c + 11 * which));
            });
          }
          const auto whole = [&](std::vector<double>& data) {
            return orrery::batch_sequence_head_dim(data.data(), batch, tokens, heads, dim);
          };
          each(whole(grad_out), [](double& x, auto b, auto t, auto h, auto c) {
            x = std::cos(static_cast<double>(2 * b + t + 3 * h + 5 * c));
          });
          auto k = of(operands, 1), v = of(operands, 2);
          if (one_key_head && &order != &orders[0]) k.head_stride = v.head_stride = 0;
          const auto sums = orrery::batch_head_sequence(lse.data(), batch, heads, tokens);
          attend.forward(of(operands, 0), k, v, whole(out), sums);
          attend.backward(of(operands, 0), k, v, whole(out), sums, whole(grad_out), of(gradients, 0), of(gradients, 1),
                          of(gradients, 2));
          std::vector<double> results;
          const auto collect = [&](double x, auto...) { results.push_back(x); };
          each(whole(out), collect);
          for (std::int64_t which = 0; which < 3; ++which) each(of(gradients, which), collect);
          results.insert(results.end(), lse.begin(), lse.end());
          if (first.empty()) first = results;
          if (results != first) throw std::logic_error{"other results"};
        }
      }
    });
  }
}

TEST_CASE("a backward of an operator that is forward_only is refused; its forward is right") {
  const auto p = oracle::random_problem<double>(conformance::oracle_shape(called), 2);
  const oracle::answer a = oracle::solve(p, orrery::causal{});
  orrery::threads::run(2, {.deadline = 10}, [&](auto& on) {
    attention_shape shape = called;
    shape.forward_only = true;
    attention attend{on, shape, orrery::causal{}, orrery::zigzag{}};
    tensors mine{p, attend.query_positions(), attend.key_positions(), {}};
    for (int i = 0; i < 2; ++i) {
      mine.poison();
      mine.forward(attend);
      const std::string before = mine.bits();
      // A rank alone finds out: nothing is sent.
      if (on.rank() == i) {
        std::string said = "nothing";
        try {
          mine.backward(attend);
        } catch (const std::logic_error& e) {
          said = e.what();
        }
        if (said !=
            "orrery: attention::backward: this operator is forward_only, and has no backward; construct one without "
            "forward_only in its shape")
          throw std::logic_error{said};
      }
      if (mine.bits() != before) throw std::logic_error{"something was written"};
    }
    // With the backward of another operator all is right.
    attention other{on, called, orrery::causal{}, orrery::zigzag{}};
    mine.backward(other);
    const std::string wrong = mine.mismatch(p, a, attend.query_positions(), attend.key_positions());
    if (!wrong.empty()) throw std::logic_error{wrong};
  });
}

TEST_CASE("a rank without tokens may give null") {
  orrery::threads::run(3, [](auto& on) {
    orrery::attention<orrery::ring, orrery::flash<float>> attend{on, {.length = 2, .head_dim = 1}};
    const std::int64_t tokens = attend.query_positions().size();
    std::vector<float> x(static_cast<std::size_t>(tokens), 1.0F);
    std::vector<float> y(x.size(), std::numeric_limits<float>::quiet_NaN());
    std::vector<float> sums(x.size());
    const auto in = orrery::batch_sequence_head_dim<const float>(x.empty() ? nullptr : x.data(), 1, tokens, 1, 1);
    const auto out = orrery::batch_sequence_head_dim(y.empty() ? nullptr : y.data(), 1, tokens, 1, 1);
    attend.forward(in, in, in, out, orrery::batch_head_sequence(sums.empty() ? nullptr : sums.data(), 1, 1, tokens));
    for (const float value : y) {
      if (value != 1.0F) throw std::logic_error{"the mean of ones is " + std::to_string(value)};
    }
  });
}

TEST_CASE("the shape is completed") {
  orrery::threads::run(1, [](auto& on) {
    const orrery::attention<orrery::ring, kernel> attend{on, {.length = 3, .query_heads = 6, .head_dim = 16}};
    const attention_shape& s = attend.shape();
    CHECK(s.key_heads == 6);
    CHECK(s.value_dim == 16);
    CHECK(s.key_length == 3);
    CHECK(s.scale == 0.25);
    CHECK(attend.workspace_bytes() == 3 * 6 * 8);  // one rank: delta alone
  });
}

}  // namespace arguments_test
