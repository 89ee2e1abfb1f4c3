// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The tensor-core kernel over the transport `device`, 1 to 8 ranks on one GPU: masks × layouts × topologies.
#include <vector>

#include <doctest/doctest.h>

#include "orrery/topology/all_gather.hpp"
#include "orrery/topology/all_to_all.hpp"
#include "orrery/topology/concentric.hpp"
#include "orrery/topology/double_ring.hpp"
#include "orrery/topology/wallfacer.hpp"

#include "kernel/cuda/flash_conformance.hpp"
#include "support/topologies.hpp"

TEST_CASE_TEMPLATE("device_flash over streams", T, orrery::bfloat16, orrery::float16) {
  using cuda_test::any_mask;
  using kind = any_mask::kind;
  cuda_test::check_flash_over<T, orrery::detail::gpu>(
      {1, 2, 3, 4, 8},
      {orrery::ring{}, orrery::all_gather{}, orrery::wallfacer<2>{}, orrery::concentric<2>{}, orrery::double_ring<2>{},
       orrery::ulysses{}, orrery::usp<2>{}, my_ring{}},
      {{}, {kind::causal}, {kind::causal, false, {-17}}, {kind::band, false, {}, {29}}, {kind::holes}},
      {orrery::contiguous{}, orrery::zigzag{}, orrery::striped<3>{}},
      {{.length = 131, .query_heads = 8, .key_heads = 4, .head_dim = 64},
       {.batch = 2, .length = 91, .query_heads = 8, .head_dim = 24, .value_dim = 40},
       {.length = 7, .query_heads = 8, .key_heads = 2, .head_dim = 32, .key_length = 150}});
}

TEST_CASE("device_flash over streams, few ranks") {
  using kind = cuda_test::any_mask::kind;
  cuda_test::check_flash_over<orrery::bfloat16, orrery::detail::gpu>(
      {2}, {orrery::ring{}, orrery::ulysses{}}, {{kind::causal}}, {orrery::zigzag{}},
      {{.length = 70, .query_heads = 2, .head_dim = 64}});
}
