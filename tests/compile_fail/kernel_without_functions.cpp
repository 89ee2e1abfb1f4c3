// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// A kernel that has types and constants, but none of the functions that are called.
//
// EXPECT: orrery: a kernel of attention needs `static void copy\(const context&, from, to\)`
// EXPECT: orrery: a kernel of attention needs `static void add\(const context&, into, from\)`
// EXPECT: orrery: a kernel of attention needs `static void clear\(const context&, view, value\)`
// EXPECT: orrery: a kernel of attention needs `static void merge\(const context&, out, lse, arrived_out, arrived_lse\)`
// EXPECT: orrery: a kernel of attention needs `static void row_dot\(const context&, out, grad_out, delta\)`
// EXPECT: orrery: a kernel of attention needs `static void forward\(const context&, std::span
// EXPECT: orrery: a kernel of attention needs `static void backward\(const context&, std::span
// REJECT: orrery: a kernel of attention needs (a type|`static constexpr|`static std|`template)

#include "orrery/attention.hpp"
#include "orrery/kernel/reference.hpp"
#include "orrery/topology/ring.hpp"

using with_all = orrery::reference<float>;
#ifdef ORRERY_CONTROL
struct my_kernel : with_all {};
#else
struct my_kernel {
  using storage = with_all::storage;
  using accumulator = with_all::accumulator;
  using context = with_all::context;
  static constexpr std::int64_t max_head_dim = with_all::max_head_dim;
  template <orrery::mask Mask>
  static constexpr bool supports = true;
  static std::string name() { return "my_kernel"; }
};
#endif
using my_operator = orrery::attention<orrery::ring, my_kernel>;
static_assert(sizeof(my_operator) > 0);
