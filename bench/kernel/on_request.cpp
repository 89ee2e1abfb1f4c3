// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The flash kernel for comparisons with programs in other languages, call by call in one run: reads lines such as
// "forward 128 causal" and answers with the seconds and the processor seconds of one call (see pytorch.py).
//
//   bench_kernel_on_request [sequence = 4096] [heads = 8] [threads = 2] [layout = sequence]
//
// The layout "sequence" is [batch, sequence, head, dim]; "head" is [batch, head, sequence, dim].
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <map>
#include <memory>
#include <string>

#include "orrery/orrery.hpp"

#include "common/arguments.hpp"
#include "common/problem.hpp"
#include "common/statistics.hpp"

namespace {

/// A shard's tensors as [batch, head, sequence, dim] in the same memory.
struct heads_apart {
  bench::shard<float>& of;

  template <class View>
  static View apart(View view) {
    view.sequence_stride = view.dim;
    view.head_stride = view.sequence * view.dim;
    return view;
  }
  auto q() { return apart(of.q()); }
  auto k() { return apart(of.k()); }
  auto v() { return apart(of.v()); }
  auto out() { return apart(of.out()); }
  auto grad_out() { return apart(of.grad_out()); }
  auto grad_q() { return apart(of.grad_q()); }
  auto grad_k() { return apart(of.grad_k()); }
  auto grad_v() { return apart(of.grad_v()); }
  auto lse() { return of.lse(); }
  auto delta() { return of.delta(); }
  auto& positions() { return of.positions(); }
};

}  // namespace

int main(int argc, char** argv) {
  using kernel = orrery::flash<float>;
  using bench::clock_type;
  orrery::attention_shape shape;
  bench::arguments given{argc, argv,
                         "bench_kernel_on_request [sequence = 4096] [heads = 8] [threads = 2] [layout = sequence]"};
  shape.length = given.number("sequence", 4096);
  shape.query_heads = given.number("heads", 8);
  orrery::thread_team team{static_cast<int>(given.number("threads", 2, 1, 1024))};
  const bool head_by_head = given.word("layout", "sequence", "head") == "head";
  given.finish();
  std::map<long long, std::unique_ptr<bench::shard<float>>> problems;
  char pass[16], mask[16];
  long long dim = 0;
  while (std::scanf("%15s %lld %15s", pass, &dim, mask) == 3) {
    std::unique_ptr<bench::shard<float>>& problem = problems[dim];
    if (problem == nullptr) {
      shape.head_dim = dim;
      problem = std::make_unique<bench::shard<float>>(shape, orrery::contiguous::shard(0, 1, shape.length));
    }
    const orrery::pass p = pass[0] == 'f' ? orrery::pass::forward : orrery::pass::circulate_keys;
    const auto begin = clock_type::now();
    const std::clock_t cpu_begin = std::clock();
    const auto call = [&](auto& tensors) {
      if (mask[0] == 'c') {
        bench::call_kernel<kernel>(tensors, p, orrery::causal{}, {.team = &team});
      } else {
        bench::call_kernel<kernel>(tensors, p, orrery::full{}, {.team = &team});
      }
    };
    if (head_by_head) {
      heads_apart tensors{*problem};
      call(tensors);
    } else {
      call(*problem);
    }
    const std::clock_t cpu = std::clock() - cpu_begin;
    std::printf("%.9f %.9f\n", bench::seconds_between(begin, clock_type::now()),
                static_cast<double>(cpu) / CLOCKS_PER_SEC);
    std::fflush(stdout);
  }
}
