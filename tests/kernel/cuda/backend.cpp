// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Data movement and sums on a device against the host's, to the last bit where they do the same arithmetic.
#include "orrery/kernel/cuda/backend.cuh"

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/attention/merge.hpp"
#include "orrery/kernel/cpu/backend.hpp"
#include "orrery/kernel/cuda/row_partition.cuh"
#include "orrery/tensor/float16.hpp"
#include "orrery/tensor/view.hpp"

#include "device/emulator.hpp"
#include "kernel/problem.hpp"

namespace {

using backend = orrery::detail::device_backend<emulator::device>;
using host = orrery::detail::host_backend;
using kernel_test::order;
using orrery::bfloat16;
using orrery::float16;

const orrery::device_context context{};
const orrery::host_context on_host{};
constexpr std::int64_t batch = 2, tokens = 70, heads = 3;  // tokens: more than one block's

/// The same numbers for both backends, in any layout; 1/8 steps are exact in all types.
template <class T>
kernel_test::owned_tensor<T> numbers(std::int64_t dim, order layout, std::int64_t margin, int seed) {
  kernel_test::owned_tensor<T> made{batch, tokens, heads, dim, layout, margin, T{0}};
  int next = seed;
  made.each([&](std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t c) {
    next = (next * 37 + 11) % 64;
    made.view().at(b, t, h)[c] = static_cast<T>(static_cast<float>(next - 32) / 8.0f);
  });
  return made;
}

template <class T>
kernel_test::owned_rows<T> rows(int seed) {
  kernel_test::owned_rows<T> made{batch, heads, tokens, T{0}};
  int next = seed;
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t h = 0; h < heads; ++h) {
      for (std::int64_t t = 0; t < tokens; ++t) {
        next = (next * 29 + 7) % 40;
        *made.view().at(b, h, t) =
            next % 5 == 0 ? -std::numeric_limits<T>::infinity() : static_cast<T>(next % 3 == 0 ? 100 * next : next);
      }
    }
  }
  return made;
}

template <class T>
bool same_bits(const T& x, const T& y) {
  return std::memcmp(&x, &y, sizeof(T)) == 0;
}

template <class T>
void check_same(const kernel_test::owned_tensor<T>& expected, const kernel_test::owned_tensor<T>& got) {
  std::int64_t wrong = 0;
  expected.each([&](std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t c) {
    wrong += same_bits(expected.view().at(b, t, h)[c], got.view().at(b, t, h)[c]) ? 0 : 1;
  });
  CHECK(wrong == 0);
  CHECK(got.marks_outside() == got.elements_outside());
}

template <class T>
void check_same(const kernel_test::owned_rows<T>& expected, const kernel_test::owned_rows<T>& got) {
  std::int64_t wrong = 0;
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t h = 0; h < heads; ++h) {
      for (std::int64_t t = 0; t < tokens; ++t) {
        wrong += same_bits(*expected.view().at(b, h, t), *got.view().at(b, h, t)) ? 0 : 1;
      }
    }
  }
  CHECK(wrong == 0);
}

/// Dimensions and margins by which vectors fit, and by which they do not.
template <class Visit>
void for_shapes(const Visit& visit) {
  for (const std::int64_t dim : {32, 12, 5, 136}) {  // the last: more pieces than a warp has lanes
    for (const std::int64_t margin : {0, 16, 3}) {
      if (dim > 100 && margin != 16) continue;
      INFO("dim ", dim, ", margin ", margin);
      visit(dim, margin);
    }
  }
}

template <class T, class U>
struct types {
  using from = T;
  using to = U;
};

}  // namespace

#define CONVERSIONS                                                                               \
  types<float, float>, types<double, double>, types<bfloat16, bfloat16>, types<float16, float16>, \
      types<float, bfloat16>, types<float, float16>, types<bfloat16, float>, types<double, float>

TEST_CASE("vectors move tensors whose heads all begin at multiples of 16 bytes, and no others") {
  alignas(16) static float memory[256] = {};
  const orrery::tensor_view<float> fits{memory, 2, 2, 2, 8, 64, 16, 8};
  CHECK(orrery::detail::moves_by_vectors(fits, 4));
  CHECK(orrery::detail::moves_by_vectors(fits, 8));
  CHECK_FALSE(orrery::detail::moves_by_vectors(fits, 16));
  for (const auto stride : {&orrery::tensor_view<float>::batch_stride, &orrery::tensor_view<float>::sequence_stride,
                            &orrery::tensor_view<float>::head_stride}) {
    auto odd = fits;
    odd.*stride += 1;
    CHECK_FALSE(orrery::detail::moves_by_vectors(odd, 4));
  }
  auto odd = fits;
  odd.data += 1;
  CHECK_FALSE(orrery::detail::moves_by_vectors(odd, 4));
}

TEST_CASE_TEMPLATE("copy and add: every layout, aligned and not", Types, CONVERSIONS) {
  using T = typename Types::from;
  using U = typename Types::to;
  for_shapes([&](std::int64_t dim, std::int64_t margin) {
    const auto from = numbers<T>(dim, order::sequence_batch_head, margin, 1);
    auto expected = numbers<U>(dim, order::batch_head_sequence, margin, 2);
    auto got = numbers<U>(dim, order::batch_head_sequence, margin, 2);
    const orrery::tensor_view<const T> source = from.view();
    if constexpr (sizeof(U) > 2) {
      host::add(on_host, expected.view(), source);
      backend::add(context, got.view(), source);
      check_same(expected, got);
    }
    host::copy(on_host, source, expected.view());
    backend::copy(context, source, got.view());
    check_same(expected, got);
  });
}

TEST_CASE_TEMPLATE("copy of a slice of heads leaves the others alone", T, float, bfloat16) {
  const auto from = numbers<T>(16, order::batch_sequence_head, 0, 1);
  auto expected = numbers<T>(16, order::batch_head_sequence, 0, 2);
  auto got = numbers<T>(16, order::batch_head_sequence, 0, 2);
  host::copy(on_host, from.view().slice_heads(1, 2), expected.view().slice_heads(0, 2));
  backend::copy(context, from.view().slice_heads(1, 2), got.view().slice_heads(0, 2));
  check_same(expected, got);
}

TEST_CASE_TEMPLATE("clear", T, float, double, bfloat16, float16) {
  for_shapes([&](std::int64_t dim, std::int64_t margin) {
    auto expected = numbers<T>(dim, order::batch_sequence_head, margin, 1);
    auto got = numbers<T>(dim, order::batch_sequence_head, margin, 1);
    host::clear(on_host, expected.view());
    backend::clear(context, got.view());
    check_same(expected, got);
    host::clear(on_host, expected.view().slice_heads(1, 1), T{1.5f});
    backend::clear(context, got.view().slice_heads(1, 1), T{1.5f});
    check_same(expected, got);
  });
}

TEST_CASE_TEMPLATE("rows: copy and clear", T, float, double) {
  const auto from = rows<T>(1);
  auto expected = rows<T>(2);
  auto got = rows<T>(2);
  host::copy(on_host, from.view(), expected.view());
  backend::copy(context, from.view(), got.view());
  check_same(expected, got);
  host::clear(on_host, expected.view().slice_heads(1, 1), -std::numeric_limits<T>::infinity());
  backend::clear(context, got.view().slice_heads(1, 1), -std::numeric_limits<T>::infinity());
  check_same(expected, got);
}

TEST_CASE_TEMPLATE("merge: rows that have seen no key on either side or both, and gaps of thousands", Types,
                   CONVERSIONS) {
  using F = typename Types::from;
  using A = std::conditional_t<sizeof(typename Types::to) == 2, float, typename Types::to>;
  for_shapes([&](std::int64_t dim, std::int64_t margin) {
    const auto from = numbers<F>(dim, order::batch_head_sequence, margin, 1);
    const auto lse_from = rows<A>(3);
    auto expected = numbers<A>(dim, order::batch_sequence_head, margin, 2);
    auto got = numbers<A>(dim, order::batch_sequence_head, margin, 2);
    auto expected_lse = rows<A>(4);
    auto got_lse = rows<A>(4);
    // A row that has seen nothing may hold anything.
    for (auto* side : {&expected, &got}) {
      side->each([&](std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t c) {
        if (std::isinf(*got_lse.view().at(b, h, t)) && !std::isinf(*lse_from.view().at(b, h, t))) {
          side->view().at(b, t, h)[c] = std::numeric_limits<A>::quiet_NaN();
        }
      });
    }
    host::merge(on_host, expected.view(), expected_lse.view(), from.view(), lse_from.view());
    backend::merge(context, got.view(), got_lse.view(), from.view(), lse_from.view());
    check_same(expected, got);
    check_same(expected_lse, got_lse);
  });
}

TEST_CASE_TEMPLATE("merge: NaN, in a log-sum-exp or in a row whose weight is too small for the type", A, float,
                   double) {
  const A nan = std::numeric_limits<A>::quiet_NaN(), infinity = std::numeric_limits<A>::infinity();
  const A sides[] = {nan, -infinity, A{1}, A{-10000}, infinity};
  const auto value_of = [&](A lse, std::int64_t i) { return lse == A{1} && i != 1 ? A{2} : nan; };
  for (const A into : sides) {
    for (const A from : sides) {
      CAPTURE(into);
      CAPTURE(from);
      constexpr std::int64_t dim = 4;
      A out_into[dim], out_from[dim], expected[dim], lse = into, expected_lse = into;
      for (std::int64_t i = 0; i < dim; ++i) {
        out_into[i] = expected[i] = value_of(into, i);
        out_from[i] = value_of(from, i + 1);
      }
      const auto view = [](A* data) { return orrery::batch_sequence_head_dim(data, 1, 1, 1, dim); };
      const auto row = [](A& of) { return orrery::batch_head_sequence(&of, 1, 1, 1); };
      A lse_from = from;
      orrery::detail::merge_row(expected, expected_lse, out_from, from, dim);
      backend::merge(context, view(out_into), row(lse), view(out_from), row(lse_from));
      for (std::int64_t i = 0; i < dim; ++i) {
        CHECK((std::isnan(expected[i]) ? std::isnan(out_into[i]) : out_into[i] == expected[i]));
      }
      CHECK((std::isnan(expected_lse) ? std::isnan(lse) : lse == expected_lse));
    }
  }
}

TEST_CASE_TEMPLATE("row_dot: exact sums in any order", Types, CONVERSIONS) {
  using T = typename Types::from;
  using U = typename Types::to;
  using A = std::conditional_t<sizeof(T) == 2, float, T>;
  for_shapes([&](std::int64_t dim, std::int64_t margin) {
    const auto out = numbers<T>(dim, order::batch_sequence_head, margin, 1);
    const auto grad_out = numbers<U>(dim, order::batch_head_sequence, margin, 5);
    auto expected = rows<A>(1);
    auto got = rows<A>(2);
    host::row_dot(on_host, out.view(), grad_out.view(), expected.view());
    backend::row_dot(context, out.view(), grad_out.view(), got.view());
    check_same(expected, got);
  });
}

TEST_CASE("what is empty needs no memory and no kernel") {
  const auto before = emulator::counted.blocks;
  const auto nothing = orrery::batch_sequence_head_dim<float>(nullptr, 1, 0, 4, 8);
  const auto no_rows = orrery::batch_head_sequence<float>(nullptr, 1, 4, 0);
  backend::copy(context, nothing, nothing);
  backend::copy(context, no_rows, no_rows);
  backend::add(context, nothing, nothing);
  backend::clear(context, nothing);
  backend::clear(context, no_rows);
  backend::merge(context, nothing, no_rows, nothing, no_rows);
  backend::row_dot(context, nothing, nothing, no_rows);
  CHECK(emulator::counted.blocks == before);
}
