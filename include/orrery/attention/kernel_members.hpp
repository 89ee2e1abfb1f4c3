// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>
#include <cstdint>
#include <span>
#include <string>

#include "orrery/attention/tile.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/tensor/view.hpp"

namespace orrery::detail {

// What operators use of a kernel, member by member. Those that take tensors ask for the types first.

template <class Kernel>
concept has_storage = requires {
  typename Kernel::storage;
};
template <class Kernel>
concept has_accumulator = requires {
  typename Kernel::accumulator;
};
template <class Kernel>
concept has_context = requires {
  typename Kernel::context;
};
template <class Kernel>
concept has_types = has_storage<Kernel> && has_accumulator<Kernel> && has_context<Kernel>;

template <class Kernel>
concept has_max_head_dim = requires {
  { Kernel::max_head_dim } -> std::convertible_to<std::int64_t>;
};
template <class Kernel>
concept has_name = requires {
  { Kernel::name() } -> std::convertible_to<std::string>;
};
template <class Kernel>
concept has_supports = requires {
  { Kernel::template supports<full> } -> std::convertible_to<bool>;
};

/// The operator's tensors and rows, as a kernel's functions get them.
template <class Kernel>
struct kernel_arguments {
  using storage = typename Kernel::storage;
  using accumulator = typename Kernel::accumulator;
  using log_sum_exp = log_sum_exp_of<storage>;

  const typename Kernel::context& context;
  const tensor_view<const storage>& operand;
  const tensor_view<storage>& result;
  const tensor_view<accumulator>& sum;
  const row_view<accumulator>& rows;
  const row_view<const accumulator>& given_rows;
  const row_view<log_sum_exp>& lse;
  const row_view<const log_sum_exp>& given_lse;
  const head_map& heads;
  accumulator scale;
  std::span<const forward_queries<storage, accumulator>> forward_queries_of_tile;
  std::span<const forward_keys<storage>> forward_keys_of_tile;
  std::span<const backward_queries<storage, accumulator>> backward_queries_of_tile;
  std::span<const backward_keys<storage, accumulator>> backward_keys_of_tile;
};

template <class Kernel>
concept has_copy = has_types<Kernel> && requires(const kernel_arguments<Kernel>& a) {
  Kernel::copy(a.context, a.operand, a.result);  // packs
  Kernel::copy(a.context, a.sum, a.sum);
  Kernel::copy(a.context, a.sum, a.result);
  Kernel::copy(a.context, a.rows, a.rows);
  Kernel::copy(a.context, a.given_rows, a.rows);
  Kernel::copy(a.context, a.rows, a.lse);
  Kernel::copy(a.context, a.given_lse, a.rows);
};
template <class Kernel>
concept has_add = has_types<Kernel> && requires(const kernel_arguments<Kernel>& a) {
  Kernel::add(a.context, a.sum, a.sum);
};
template <class Kernel>
concept has_clear = has_types<Kernel> && requires(const kernel_arguments<Kernel>& a) {
  Kernel::clear(a.context, a.sum);
  Kernel::clear(a.context, a.result);
  Kernel::clear(a.context, a.rows, a.scale);
};
template <class Kernel>
concept has_merge = has_types<Kernel> && requires(const kernel_arguments<Kernel>& a) {
  Kernel::merge(a.context, a.sum, a.rows, a.sum, a.rows);
};
template <class Kernel>
concept has_row_dot = has_types<Kernel> && requires(const kernel_arguments<Kernel>& a) {
  Kernel::row_dot(a.context, a.operand, a.operand, a.rows);
};

template <template <class> class>
struct some_template;
/// Has a member template `planned`, which then has forward and backward (see `planned_kernel`).
template <class Kernel>
concept has_planned = requires {
  typename some_template<Kernel::template planned>;
};

template <class Kernel>
concept has_forward = has_planned<Kernel> ||(has_types<Kernel>&& requires(const kernel_arguments<Kernel>& a) {
  Kernel::forward(a.context, a.forward_queries_of_tile, a.forward_keys_of_tile, a.heads, a.scale, full{});
});
template <class Kernel>
concept has_backward = has_planned<Kernel> ||(has_types<Kernel>&& requires(const kernel_arguments<Kernel>& a) {
  Kernel::backward(a.context, a.backward_queries_of_tile, a.backward_keys_of_tile, a.heads, a.scale, full{});
});

/// Does not compile if a member of the kernel is missing, and says which one.
template <class Kernel>
constexpr bool expect_kernel() {
  static_assert(
      has_storage<Kernel>,
      "orrery: a kernel of attention needs a type `storage`, of the elements of tensors; see orrery::reference");
  static_assert(has_accumulator<Kernel>,
                "orrery: a kernel of attention needs a type `accumulator`, of the numbers that it sums in; see "
                "orrery::reference");
  static_assert(
      has_context<Kernel>,
      "orrery: a kernel of attention needs a type `context`, of what it is called with: orrery::host_context or "
      "orrery::device_context");
  static_assert(has_max_head_dim<Kernel>,
                "orrery: a kernel of attention needs `static constexpr std::int64_t max_head_dim`, the largest head "
                "dimension that it has");
  static_assert(has_name<Kernel>, "orrery: a kernel of attention needs `static std::string name()`, for messages");
  static_assert(
      has_supports<Kernel>,
      "orrery: a kernel of attention needs `template <mask Mask> static constexpr bool supports`, the masks for "
      "which it is right");
  static_assert(!has_types<Kernel> || has_copy<Kernel>,
                "orrery: a kernel of attention needs `static void copy(const context&, from, to)` for tensor_view and "
                "row_view, of storage and of accumulator; host kernels inherit it from orrery::detail::host_backend");
  static_assert(!has_types<Kernel> || has_add<Kernel>,
                "orrery: a kernel of attention needs `static void add(const context&, into, from)` for "
                "tensor_view<accumulator>");
  static_assert(!has_types<Kernel> || has_clear<Kernel>,
                "orrery: a kernel of attention needs `static void clear(const context&, view, value)` for tensor_view, "
                "where the value may be left out and is 0, and row_view, of storage and of accumulator; host kernels "
                "inherit it from orrery::detail::host_backend");
  static_assert(!has_types<Kernel> || has_merge<Kernel>,
                "orrery: a kernel of attention needs `static void merge(const context&, out, lse, arrived_out, "
                "arrived_lse)` for tensor_view<accumulator> and row_view<accumulator>");
  static_assert(!has_types<Kernel> || has_row_dot<Kernel>,
                "orrery: a kernel of attention needs `static void row_dot(const context&, out, grad_out, delta)` for "
                "tensor_view<const storage> and row_view<accumulator>");
  static_assert(!has_types<Kernel> || has_forward<Kernel>,
                "orrery: a kernel of attention needs `static void forward(const context&, std::span<const "
                "forward_queries<storage, accumulator>>, std::span<const forward_keys<storage>>, const head_map&, "
                "accumulator scale, const Mask&)`, or a plan; see orrery::planned_kernel");
  static_assert(!has_types<Kernel> || has_backward<Kernel>,
                "orrery: a kernel of attention needs `static void backward(const context&, std::span<const "
                "backward_queries<storage, accumulator>>, std::span<const backward_keys<storage, accumulator>>, const "
                "head_map&, accumulator scale, const Mask&)`, or a plan; see orrery::planned_kernel");
  return true;
}

}  // namespace orrery::detail
