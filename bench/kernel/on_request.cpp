// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The flash kernel for comparisons with programs in other languages, call by call in one run: reads requests, a line
// each, and answers with the seconds and the processor seconds of one call (see pytorch.py).
//
//   bench_kernel_on_request [threads = 2]
//
// A request is PASS TYPE LAYOUT BATCH QUERIES KEYS QUERY_HEADS KEY_HEADS DIM VALUE_DIM MASK, such as
// "forward float sequence 1 4096 4096 8 8 64 64 causal":
//   PASS    forward or backward
//   TYPE    float, double, bfloat16 or float16, of which backwards are measured for float alone
//   LAYOUT  sequence: [batch, sequence, head, dim]; head: [batch, head, sequence, dim]
//   MASK    full; causal (query i is at the position of key KEYS - QUERIES + i); window:N, causal, of N keys; or
//           documents:N, causal, each of N tokens
// Or it is "read BYTES": the sum of so many bytes, each thread's own part in order, for the rate of memory.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <iostream>
#include <memory>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "orrery/orrery.hpp"

#include "common/arguments.hpp"
#include "common/problem.hpp"
#include "common/statistics.hpp"

namespace {

struct request {
  std::string pass, type, layout, mask;
  std::int64_t batch = 1, queries = 1, keys = 1, query_heads = 1, key_heads = 1, dim = 1, value_dim = 1;

  friend std::istream& operator>>(std::istream& in, request& r) {
    return in >> r.pass >> r.type >> r.layout >> r.batch >> r.queries >> r.keys >> r.query_heads >> r.key_heads >>
           r.dim >> r.value_dim >> r.mask;
  }
};

[[noreturn]] void refuse(const std::string& why) { throw std::invalid_argument{"bench_kernel_on_request: " + why}; }

/// The number after the colon of a mask such as "window:128".
std::int64_t number_of(const std::string& mask) {
  const std::int64_t number = std::atoll(mask.c_str() + mask.find(':') + 1);
  if (number < 1) refuse("the mask \"" + mask + "\" needs a number from 1");
  return number;
}

/// Documents of so many tokens each; the last one may be shorter.
orrery::documents documents_of(std::int64_t length, std::int64_t tokens) {
  std::vector<std::int64_t> lengths;
  for (std::int64_t left = length; left > 0; left -= tokens) lengths.push_back(left < tokens ? left : tokens);
  return orrery::documents{lengths};
}

/// The tensors of a request, and calls on them.
struct any_tensors {
  virtual ~any_tensors() = default;
  virtual void call(const orrery::host_context& context) = 0;
};

template <class T>
class tensors : public any_tensors {
 public:
  using kernel = orrery::flash<T>;
  using A = typename kernel::accumulator;

  explicit tensors(const request& r) : r_{r} {
    fill(q_, 1, r.queries * r.query_heads * r.dim);
    fill(k_, 2, r.keys * r.key_heads * r.dim);
    fill(v_, 3, r.keys * r.key_heads * r.value_dim);
    out_.resize(static_cast<std::size_t>(r.batch * r.queries * r.query_heads * r.value_dim));
    lse_.resize(static_cast<std::size_t>(r.batch * r.queries * r.query_heads));
    if (r.pass == "forward") return;
    fill(grad_out_, 4, r.queries * r.query_heads * r.value_dim);
    grad_q_.resize(q_.size());
    grad_k_.resize(k_.size());
    grad_v_.resize(v_.size());
    delta_.resize(lse_.size());
    run("forward", {});
  }

  void call(const orrery::host_context& context) override { run(r_.pass, context); }

 private:
  void fill(std::vector<T>& to, std::uint64_t tensor, std::int64_t count) {
    to.reserve(static_cast<std::size_t>(r_.batch * count));
    for (std::int64_t i = 0; i < r_.batch * count; ++i) to.push_back(static_cast<T>(bench::value_at(tensor, i)));
  }

  template <class E>
  auto view(std::vector<E>& data, std::int64_t tokens, std::int64_t heads, std::int64_t dim) {
    return r_.layout == "head" ? orrery::batch_head_sequence_dim(data.data(), r_.batch, heads, tokens, dim)
                               : orrery::batch_sequence_head_dim(data.data(), r_.batch, tokens, heads, dim);
  }
  auto of_queries(auto& data, std::int64_t dim) { return view(data, r_.queries, r_.query_heads, dim); }
  auto of_keys(auto& data, std::int64_t dim) { return view(data, r_.keys, r_.key_heads, dim); }
  auto rows(std::vector<A>& data) {
    return orrery::batch_head_sequence(data.data(), r_.batch, r_.query_heads, r_.queries);
  }

  void run(const std::string& pass, const orrery::host_context& context) {
    if (r_.mask == "full") return run(pass, context, orrery::full{});
    if (r_.mask == "causal") return run(pass, context, orrery::causal{});
    if (r_.mask.starts_with("window:"))
      return run(pass, context, orrery::causal{} & orrery::window{.left = number_of(r_.mask) - 1});
    if (r_.mask.starts_with("documents:"))
      return run(pass, context, orrery::causal{} & documents_of(r_.keys, number_of(r_.mask)));
    refuse("the mask \"" + r_.mask + "\" is none of full, causal, window:N and documents:N");
  }

  template <class Mask>
  void run(const std::string& pass, const orrery::host_context& context, const Mask& mask) {
    orrery::segments of_q, of_k;
    of_q.add({r_.keys - r_.queries, r_.queries, r_.queries, r_.queries});
    of_k.add({0, r_.keys, r_.keys, r_.keys});
    const orrery::head_map heads{0, 0, r_.query_heads / r_.key_heads};
    const auto scale = static_cast<A>(1 / std::sqrt(static_cast<double>(r_.dim)));
    if (pass == "forward") {
      const orrery::forward_queries<T, A> q{of_queries(q_, r_.dim), of_queries(out_, r_.value_dim), rows(lse_), of_q,
                                            true};
      const orrery::forward_keys<T> k{of_keys(k_, r_.dim), of_keys(v_, r_.value_dim), of_k};
      kernel::template forward<Mask>(context, std::span(&q, 1), std::span(&k, 1), heads, scale, mask);
    } else if constexpr (std::is_same_v<T, float>) {
      kernel::row_dot(context, of_queries(out_, r_.value_dim), of_queries(grad_out_, r_.value_dim), rows(delta_));
      const orrery::backward_queries<T, A> q{of_queries(q_, r_.dim),
                                             of_queries(grad_out_, r_.value_dim),
                                             rows(lse_),
                                             rows(delta_),
                                             of_queries(grad_q_, r_.dim),
                                             of_q,
                                             true};
      const orrery::backward_keys<T, A> k{of_keys(k_, r_.dim),
                                          of_keys(v_, r_.value_dim),
                                          of_keys(grad_k_, r_.dim),
                                          of_keys(grad_v_, r_.value_dim),
                                          of_k,
                                          true};
      kernel::template backward<Mask>(context, std::span(&q, 1), std::span(&k, 1), heads, scale, mask);
    } else {
      refuse("backwards are measured for float alone");
    }
  }

  request r_;
  std::vector<T> q_, k_, v_, grad_out_;
  std::vector<A> out_, grad_q_, grad_k_, grad_v_, lse_, delta_;
};

std::unique_ptr<any_tensors> tensors_of(const request& r) {
  if (r.pass != "forward" && r.pass != "backward") refuse("the pass \"" + r.pass + "\" is not forward or backward");
  if (r.layout != "sequence" && r.layout != "head") refuse("the layout \"" + r.layout + "\" is not sequence or head");
  if (r.key_heads < 1 || r.query_heads % r.key_heads != 0) refuse("key heads must divide query heads");
  if (r.queries < 1 || r.queries > r.keys) refuse("there must be from 1 to KEYS queries");
  if (r.type == "float") return std::make_unique<tensors<float>>(r);
  if (r.type == "double") return std::make_unique<tensors<double>>(r);
  if (r.type == "bfloat16") return std::make_unique<tensors<orrery::bfloat16>>(r);
  if (r.type == "float16") return std::make_unique<tensors<orrery::float16>>(r);
  refuse("the type \"" + r.type + "\" is none of float, double, bfloat16 and float16");
}

/// Reads memory in order, on all threads of a team.
class memory_reader : public any_tensors {
 public:
  explicit memory_reader(std::int64_t bytes) : numbers_(static_cast<std::size_t>(bytes / 8), 1) {}

  void call(const orrery::host_context& context) override {
    constexpr std::size_t part = 1 << 16;
    std::vector<std::uint64_t> sums(numbers_.size() / part + 1);
    context.for_each(static_cast<std::int64_t>(sums.size()), [&](std::int64_t item, const orrery::host_context&) {
      const auto first = static_cast<std::size_t>(item) * part;
      const std::size_t end = first + part < numbers_.size() ? first + part : numbers_.size();
      std::uint64_t sum = 0;
      for (std::size_t i = first; i < end; ++i) sum += numbers_[i];
      sums[static_cast<std::size_t>(item)] = sum;
    });
    std::uint64_t sum = 0;
    for (const std::uint64_t one : sums) sum += one;
    if (sum != numbers_.size()) refuse("memory does not hold what was written");
  }

 private:
  std::vector<std::uint64_t> numbers_;
};

}  // namespace

int main(int argc, char** argv) try {
  bench::arguments given{argc, argv, "bench_kernel_on_request [threads = 2]"};
  orrery::thread_team team{static_cast<int>(given.number("threads", 2, 1, 1024))};
  given.finish();
  struct known {
    std::string request;
    std::unique_ptr<any_tensors> problem;
  };
  known of_attention, of_reading;  // the last ones
  std::string line;
  while (std::getline(std::cin, line)) {
    auto& [last, problem] = line.starts_with("read ") ? of_reading : of_attention;
    if (line != last) {
      problem = nullptr;
      std::istringstream words{line};
      request r;
      std::int64_t bytes = 0;
      if (line.starts_with("read ")) {
        std::string read;
        if (!(words >> read >> bytes) || bytes < 8) refuse("\"" + line + "\" needs a number of bytes, at least 8");
        problem = std::make_unique<memory_reader>(bytes);
      } else if (words >> r) {
        problem = tensors_of(r);
      } else {
        refuse("\"" + line + "\" is no request");
      }
      last = line;
    }
    const auto begin = bench::clock_type::now();
    const std::clock_t cpu_begin = std::clock();
    problem->call({.team = &team});
    const std::clock_t cpu = std::clock() - cpu_begin;
    std::printf("%.9f %.9f\n", bench::seconds_between(begin, bench::clock_type::now()),
                static_cast<double>(cpu) / CLOCKS_PER_SEC);
    std::fflush(stdout);
  }
} catch (const std::invalid_argument& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 2;
}
