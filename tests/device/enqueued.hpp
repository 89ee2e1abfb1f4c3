// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>

#include "orrery/attention/tile.hpp"
#include "orrery/device/context.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/tensor/view.hpp"

#include "device/runtime_double.hpp"

namespace cuda_test {

/// The memory from a view's first element to its last.
template <class T>
[[nodiscard]] cuda_double::bytes extent(const orrery::tensor_view<T>& t) {
  if (t.size() == 0) return {};
  return {t.data, t.at(t.batch - 1, t.sequence - 1, t.heads - 1) + t.dim};
}
template <class T>
[[nodiscard]] cuda_double::bytes extent(const orrery::row_view<T>& r) {
  if (r.size() == 0) return {};
  return {r.data, r.at(r.batch - 1, r.heads - 1, r.sequence - 1) + 1};
}

/// Work that streams have been given. A graph may run it again, so it is kept until `forget`.
class enqueued_work {
 public:
  static void enqueue(const orrery::device_context& context, cuda_double::accesses what, std::function<void()> work) {
    std::function<void()>* kept = nullptr;
    {
      const std::lock_guard lock{mutex()};
      kept = &all().emplace_back(std::move(work));
    }
    cuda_double::announce(std::move(what));
    orrery::detail::check_cuda(
        cudaLaunchHostFunc(
            context.stream, [](void* one) { (*static_cast<std::function<void()>*>(one))(); }, kept),
        "cudaLaunchHostFunc");
    // As trainers look whether a kernel of theirs was launched: what was ignored before must not be found.
    orrery::detail::check_cuda(cudaGetLastError(), "cudaGetLastError");
  }
  static void forget() {
    const std::lock_guard lock{mutex()};
    all().clear();
  }

 private:
  static std::mutex& mutex() {
    static std::mutex one;
    return one;
  }
  static std::deque<std::function<void()>>& all() {
    static std::deque<std::function<void()>> one;
    return one;
  }
};

/// A kernel of the host, called by streams of the runtime double: to a transport and an operator it is a kernel of a
/// device, whose operands are not there yet when it is called.
template <class Kernel>
struct enqueued {
  using storage = typename Kernel::storage;
  using accumulator = typename Kernel::accumulator;
  using context = orrery::device_context;

  static constexpr std::int64_t max_head_dim = Kernel::max_head_dim;
  template <orrery::mask Mask>
  static constexpr bool supports = Kernel::template supports<Mask>;
  [[nodiscard]] static std::string name() { return "enqueued " + Kernel::name(); }

  template <class From, class To>
  static void copy(const context& how, const From& from, const To& to) {
    enqueue(how, {"copy", {extent(from)}, {extent(to)}}, [=] { Kernel::copy({}, from, to); });
  }
  template <class Into, class From>
  static void add(const context& how, const Into& into, const From& from) {
    enqueue(how, {"add", {extent(from)}, {extent(into)}}, [=] { Kernel::add({}, into, from); });
  }
  template <class View, class... Value>
  static void clear(const context& how, const View& view, const Value&... value) {
    enqueue(how, {"clear", {}, {extent(view)}}, [=] { Kernel::clear({}, view, value...); });
  }
  template <class Out, class Rows, class From, class FromRows>
  static void merge(const context& how, const Out& out, const Rows& lse, const From& out_from,
                    const FromRows& lse_from) {
    enqueue(how, {"merge", {extent(out_from), extent(lse_from)}, {extent(out), extent(lse)}},
            [=] { Kernel::merge({}, out, lse, out_from, lse_from); });
  }
  template <class Out, class Grad, class Rows>
  static void row_dot(const context& how, const Out& out, const Grad& grad_out, const Rows& delta) {
    enqueue(how, {"row_dot", {extent(out), extent(grad_out)}, {extent(delta)}},
            [=] { Kernel::row_dot({}, out, grad_out, delta); });
  }

  template <orrery::mask Mask>
  static void forward(const context& how, std::span<const orrery::forward_queries<storage, accumulator>> queries,
                      std::span<const orrery::forward_keys<storage>> keys, const orrery::head_map& heads,
                      accumulator scale, const Mask& mask) {
    cuda_double::accesses what{"forward", {}, {}};
    for (const auto& one : queries) {
      what.reads.push_back(extent(one.q));
      what.writes.insert(what.writes.end(), {extent(one.out), extent(one.lse)});
    }
    for (const auto& one : keys) what.reads.insert(what.reads.end(), {extent(one.k), extent(one.v)});
    enqueue(
        how, std::move(what),
        [=, of_queries = std::vector(queries.begin(), queries.end()), of_keys = std::vector(keys.begin(), keys.end())] {
          Kernel::forward({}, std::span{of_queries}, std::span{of_keys}, heads, scale, mask);
        });
  }
  template <orrery::mask Mask>
  static void backward(const context& how, std::span<const orrery::backward_queries<storage, accumulator>> queries,
                       std::span<const orrery::backward_keys<storage, accumulator>> keys, const orrery::head_map& heads,
                       accumulator scale, const Mask& mask) {
    cuda_double::accesses what{"backward", {}, {}};
    for (const auto& one : queries) {
      what.reads.insert(what.reads.end(), {extent(one.q), extent(one.grad_out), extent(one.lse), extent(one.delta)});
      what.writes.push_back(extent(one.grad_q));
    }
    for (const auto& one : keys) {
      what.reads.insert(what.reads.end(), {extent(one.k), extent(one.v)});
      what.writes.insert(what.writes.end(), {extent(one.grad_k), extent(one.grad_v)});
    }
    enqueue(
        how, std::move(what),
        [=, of_queries = std::vector(queries.begin(), queries.end()), of_keys = std::vector(keys.begin(), keys.end())] {
          Kernel::backward({}, std::span{of_queries}, std::span{of_keys}, heads, scale, mask);
        });
  }

 private:
  static void enqueue(const context& how, cuda_double::accesses what, std::function<void()> work) {
    enqueued_work::enqueue(how, std::move(what), std::move(work));
  }
};

}  // namespace cuda_test
