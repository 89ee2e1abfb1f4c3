// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/kernel/cpu/backend.hpp"

#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/host/thread_team.hpp"

namespace {

constexpr std::int64_t batch = 2, tokens = 3, heads = 4, dim = 11;
constexpr auto size = static_cast<std::size_t>(batch * tokens * heads * dim);
const orrery::host_context context{};

std::vector<double> counting() {
  std::vector<double> values(size);
  std::iota(values.begin(), values.end(), 1.0);
  return values;
}

}  // namespace

TEST_CASE("copy changes layout and type, and back") {
  auto values = counting();
  std::vector<float> other(size);
  std::vector<double> back(size);
  const auto from = orrery::batch_sequence_head_dim(values.data(), batch, tokens, heads, dim);
  const auto to = orrery::batch_head_sequence_dim(other.data(), batch, heads, tokens, dim);
  orrery::detail::host_backend::copy(context, orrery::tensor_view<const double>(from), to);
  CHECK(*to.at(1, 2, 3) == static_cast<float>(*from.at(1, 2, 3)));
  CHECK(to.at(0, 1, 2)[10] == static_cast<float>(from.at(0, 1, 2)[10]));
  orrery::detail::host_backend::copy(context, to,
                                     orrery::batch_sequence_head_dim(back.data(), batch, tokens, heads, dim));
  CHECK(back == values);
}

// Long tensors are cut into parts of about 32768 elements, for threads to share: one token each, several, and a rest.
TEST_CASE("copy of a long tensor copies every token") {
  struct sizes {
    std::int64_t batch, tokens, heads, dim;
  };
  orrery::thread_team team{3};
  for (const auto& [of_batch, of_tokens, of_heads, of_dim] :
       {sizes{2, 3, 2, 16384}, sizes{1, 2, 1, 40000}, sizes{2, 20, 4, 1000}, sizes{1, 16384, 1, 4}}) {
    for (const orrery::host_context& how : {orrery::host_context{}, orrery::host_context{&team}}) {
      std::vector<float> values(static_cast<std::size_t>(of_batch * of_tokens * of_heads * of_dim));
      std::iota(values.begin(), values.end(), 1.0f);
      std::vector<float> copied(values.size());
      const auto from = orrery::batch_sequence_head_dim(values.data(), of_batch, of_tokens, of_heads, of_dim);
      orrery::detail::host_backend::copy(
          how, from, orrery::batch_sequence_head_dim(copied.data(), of_batch, of_tokens, of_heads, of_dim));
      CHECK((copied == values));
    }
  }
}

TEST_CASE("copy of rows changes layout") {
  std::vector<double> rows(static_cast<std::size_t>(batch * heads * tokens));
  std::iota(rows.begin(), rows.end(), 0.0);
  std::vector<double> other(rows.size()), back(rows.size());
  const auto from = orrery::batch_head_sequence(rows.data(), batch, heads, tokens);
  const orrery::row_view<double> to{other.data(), batch, heads, tokens, heads * tokens, 1, heads};
  orrery::detail::host_backend::copy(context, from, to);
  CHECK(*to.at(1, 3, 2) == *from.at(1, 3, 2));
  CHECK(other != rows);
  orrery::detail::host_backend::copy(context, to, orrery::batch_head_sequence(back.data(), batch, heads, tokens));
  CHECK(back == rows);
}

TEST_CASE("add and clear") {
  auto values = counting();
  const auto once = values;
  const auto view = orrery::batch_sequence_head_dim(values.data(), batch, tokens, heads, dim);
  orrery::detail::host_backend::add(context, view,
                                    orrery::batch_sequence_head_dim(once.data(), batch, tokens, heads, dim));
  for (std::size_t i = 0; i < size; ++i) CHECK(values[i] == 2 * once[i]);

  auto part = view.slice_heads(1, 2);
  part.dim = 10;
  orrery::detail::host_backend::clear(context, part);
  for (std::size_t i = 0; i < size; ++i) {
    const std::size_t head = i / dim % heads;
    const bool inside = head >= 1 && head <= 2 && i % dim < 10;
    CHECK(values[i] == (inside ? 0 : 2 * once[i]));
  }

  std::vector<float> lse(static_cast<std::size_t>(batch * heads * tokens));
  orrery::detail::host_backend::clear(context, orrery::batch_head_sequence(lse.data(), batch, heads, tokens),
                                      -std::numeric_limits<float>::infinity());
  for (const float value : lse) CHECK(value == -std::numeric_limits<float>::infinity());
}

TEST_CASE("row_dot sums over the head dimension") {
  auto x = counting();
  std::vector<float> y(size);
  for (std::size_t i = 0; i < size; ++i) y[i] = static_cast<float>(i % 7) - 3.0f;
  std::vector<double> delta(static_cast<std::size_t>(batch * heads * tokens), -1.0);
  const auto out = orrery::batch_sequence_head_dim(x.data(), batch, tokens, heads, dim);
  const auto grad = orrery::batch_sequence_head_dim(y.data(), batch, tokens, heads, dim);
  const auto rows = orrery::batch_head_sequence(delta.data(), batch, heads, tokens);
  orrery::detail::host_backend::row_dot(context, out, grad, rows);
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t h = 0; h < heads; ++h) {
      for (std::int64_t t = 0; t < tokens; ++t) {
        double sum = 0;
        for (std::int64_t c = 0; c < dim; ++c) sum += out.at(b, t, h)[c] * static_cast<double>(grad.at(b, t, h)[c]);
        CHECK(*rows.at(b, h, t) == sum);  // integers: exact in any order
      }
    }
  }
}
