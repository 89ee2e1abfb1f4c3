// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The tensor-core kernel by warpgroups on the emulated device, and when it is chosen.
#include <cstdint>
#include <span>

#include <doctest/doctest.h>

#include "device/emulator_warpgroup.hpp"

namespace cuda_test {
using tested = emulator::warpgroup_device;
}

#include "kernel/cuda/flash_wgmma_cases.hpp"

namespace {

/// How many products of warpgroups a run needs.
template <class Kernel>
std::int64_t products_of(std::int64_t margin) {
  const oracle::shape shape{1, 9, 11, 1, 1, 8, 8, 1.0};
  plan how = cut(shape, 1, 1);
  how.margin = margin;
  emulator::counted = {};
  static_cast<void>(kernel_test::run<Kernel>(oracle::random_problem<bfloat16>(shape, 1), any_mask{}, how));
  return emulator::counted.products;
}

/// So large that a launch takes it without tensor maps only.
struct large_mask : orrery::full {
  std::int64_t unused[100] = {};
};

}  // namespace

TEST_CASE("a mask that leaves no room for tensor maps is computed without") {
  const oracle::shape shape{1, 9, 11, 1, 1, 8, 8, 1.0};
  emulator::counted = {};
  check<bfloat16>(oracle::random_problem<bfloat16>(shape, 60), large_mask{}, cut(shape, 1, 1));
  CHECK(emulator::counted.products == 0);
}

TEST_CASE("wgmma is used where it was asked for, the device has it, and tensor copies can read the tensors") {
  // Two tiles of queries and two of keys, and two groups for each pair. Along 64 columns are 4 products, along 128 keys
  // or 64 queries 8 or 4: forward scores and values, for grad_q two along columns and one along keys, for grad_k and
  // grad_v two along columns and two along queries.
  constexpr std::int64_t all = 2 * 2 * 2 * ((4 + 8) + (4 + 4 + 8) + (4 + 4 + 4 + 4));
  CHECK(products_of<kernel<bfloat16>>(0) == all);
  CHECK(products_of<kernel<bfloat16>>(8) == all);
  CHECK(products_of<kernel<bfloat16>>(3) == 0);
  CHECK(products_of<orrery::device_flash<bfloat16, 64, emulator::warpgroup_device>>(0) == 0);
  const auto limits = emulator::device::limits;
  for (const int capability : {80, 89, 100, 103, 120}) {
    emulator::device::limits.compute_capability = capability;
    CHECK(products_of<kernel<bfloat16>>(0) == 0);
  }
  emulator::device::limits = limits;
  emulator::device::limits.shared_bytes = 80 * 1024;
  CHECK(products_of<kernel<bfloat16>>(0) == 0);
  emulator::device::limits = limits;
}

TEST_CASE("the backward uses wgmma only where tensor copies can read grad_out, too") {
  constexpr std::int64_t n = 9, dim = 8;
  auto memory = cuda_test::vector_of(n * dim + 8, bfloat16{1});
  auto rows = cuda_test::vector_of(n, 0.0f), grad = cuda_test::vector_of(n * dim, 0.0f);
  const auto view = [](auto* data) { return orrery::batch_sequence_head_dim(data, 1, n, 1, dim); };
  const auto numbers = orrery::batch_head_sequence(rows.data(), 1, 1, n);
  const orrery::backward_keys<bfloat16, float> keys{view(memory.data()), view(memory.data()),      view(grad.data()),
                                                    view(grad.data()),   kernel_test::piece(0, n), true};
  for (const int offset : {0, 4}) {
    const orrery::backward_queries<bfloat16, float> queries{
        view(memory.data()), view(memory.data() + offset), numbers, numbers,
        view(grad.data()),   kernel_test::piece(0, n),     true};
    emulator::counted = {};
    kernel<bfloat16>::backward({}, std::span(&queries, 1), std::span(&keys, 1), {}, 1, any_mask{});
    CHECK((emulator::counted.products > 0) == (offset == 0));
    CHECK((emulator::counted.multiplications > 0) == (offset != 0));
  }
}

TEST_CASE("which tensors a tensor map can describe") {
  alignas(16) static const bfloat16 memory[64] = {};
  const auto box = [](std::int64_t batch, std::int64_t sequence, std::int64_t heads, std::int64_t dim) {
    return orrery::batch_sequence_head_dim(memory, batch, sequence, heads, dim);
  };
  const auto has_map = [](const orrery::tensor_view<const bfloat16>& view) {
    return orrery::detail::tensor_box::of(view, view.sequence, 64).has_map();
  };
  CHECK(has_map(box(2, 3, 4, 8)));
  CHECK_FALSE(has_map(box(2, 3, 4, 12)));
  CHECK(orrery::detail::tensor_box::of(box(2, 0, 4, 8), 0, 64).is_empty());
  auto view = box(2, 3, 4, 8);
  view.data = memory + 4;
  CHECK_FALSE(has_map(view));
  view = box(2, 3, 4, 8);
  view.batch_stride = 0;  // one batch for all
  CHECK_FALSE(has_map(view));
  view.batch = 1;  // then its stride does not matter
  CHECK(has_map(view));
  view = box(2, 3, 4, 8);
  view.sequence_stride = -view.sequence_stride;
  CHECK_FALSE(has_map(view));
  view.sequence_stride = std::int64_t{1} << 39;
  CHECK_FALSE(has_map(view));
  view = box(1, std::int64_t{1} << 31, 1, 8);
  CHECK_FALSE(has_map(view));
}
