// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Masks that leave pairs of shards out, for which schedules are specialised, against the oracle.
#include "orrery/layout/chunked.hpp"
#include "orrery/mask/window.hpp"
#include "orrery/topology/half_ring.hpp"

#include "attention/matrix.hpp"
#include "support/topologies.hpp"

namespace {

template <class Topology, class Mask>
void check_contiguous(int world, const Mask& mask) {
  if (orrery::unsupported_reason(Topology{}, world) != nullptr) return;
  const orrery::attention_shape shape{.length = 83, .query_heads = 9, .key_heads = 3, .head_dim = 3};
  attention_test::check<Topology>(world, shape, mask, orrery::contiguous{});
  attention_test::check<Topology>(world, shape, mask, orrery::chunked{orrery::contiguous{}, 3});
}

}  // namespace

TEST_CASE("half_ring runs every mask that hides what is above the diagonal, in every world") {
  for (const int world : {1, 2, 3, 4, 5, 7, 8, 13}) {
    check_contiguous<orrery::half_ring>(world, orrery::causal{});
    check_contiguous<orrery::half_ring>(world, orrery::causal{-30});
    check_contiguous<orrery::half_ring>(world, orrery::window{.left = 20, .right = 0});
  }
}

TEST_CASE_TEMPLATE("every topology runs masks that leave out pairs of shards", Topology, ORRERY_TEST_TOPOLOGIES) {
  for (const int world : {1, 2, 3, 4, 5, 8, 9}) {
    check_contiguous<Topology>(world, orrery::causal{});
    check_contiguous<Topology>(world, orrery::causal{-30});  // the first ranks see nothing
    check_contiguous<Topology>(world, orrery::causal{-83});  // no rank sees anything
    check_contiguous<Topology>(world, orrery::window{.left = 9, .right = 3});
  }
}
