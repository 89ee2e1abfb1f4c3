// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// A kernel that has nothing.
//
// EXPECT: orrery: a kernel of attention needs a type `storage`, of the elements of tensors; see orrery::reference
// EXPECT: orrery: a kernel of attention needs a type `accumulator`, of the numbers that it sums in
// EXPECT: orrery: a kernel of attention needs a type `context`, of what it is called with: orrery::host_context or
// EXPECT: orrery: a kernel of attention needs `static constexpr std::int64_t max_head_dim`
// EXPECT: orrery: a kernel of attention needs `static std::string name\(\)`, for messages
// EXPECT: orrery: a kernel of attention needs `template <mask Mask> static constexpr bool supports`
// REJECT: orrery: a kernel of attention needs `static void

#include "orrery/attention.hpp"
#include "orrery/kernel/reference.hpp"
#include "orrery/topology/ring.hpp"

#ifdef ORRERY_CONTROL
struct my_kernel : orrery::reference<float> {};
#else
struct my_kernel {};
#endif
using my_operator = orrery::attention<orrery::ring, my_kernel>;
static_assert(sizeof(my_operator) > 0);
