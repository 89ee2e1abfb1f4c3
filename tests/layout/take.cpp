// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/layout/take.hpp"

#include <cstdint>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/layout/layout.hpp"
#include "orrery/tensor/float16.hpp"

namespace take_test {

using orrery::put;
using orrery::row_view;
using orrery::take;
using orrery::tensor_view;
using orrery::token_positions;

namespace {

constexpr std::int64_t batch = 2, heads = 3, dim = 5;

template <class Layout>
token_positions shard_of(int rank, int world, std::int64_t length) {
  return Layout::shard(rank, world, length);
}

/// Cuts a whole tensor into the shards of all ranks, whose memory has another order, and puts these together again.
template <class Layout, class T>
void round_trip(int world, std::int64_t length) {
  INFO(Layout::name(), " over ", world, ", length ", length);
  std::vector<T> whole(static_cast<std::size_t>(batch * length * heads * dim));
  for (std::size_t i = 0; i < whole.size(); ++i) whole[i] = static_cast<T>(static_cast<float>(i % 251));
  std::vector<T> again(whole.size(), static_cast<T>(-1.0F));
  const tensor_view<const T> from = orrery::batch_sequence_head_dim<const T>(whole.data(), batch, length, heads, dim);
  const tensor_view<T> to = orrery::batch_sequence_head_dim(again.data(), batch, length, heads, dim);
  std::vector<float> whole_rows(static_cast<std::size_t>(batch * heads * length)), rows_again(whole_rows.size(), -1.0F);
  std::iota(whole_rows.begin(), whole_rows.end(), 0.0F);
  const auto from_rows = orrery::batch_head_sequence<const float>(whole_rows.data(), batch, heads, length);
  const auto to_rows = orrery::batch_head_sequence(rows_again.data(), batch, heads, length);
  for (int rank = 0; rank < world; ++rank) {
    const token_positions positions = shard_of<Layout>(rank, world, length);
    const std::int64_t n = positions.size();
    std::vector<T> memory(static_cast<std::size_t>(batch * n * heads * dim));
    const tensor_view<T> shard = orrery::batch_head_sequence_dim(memory.data(), batch, heads, n, dim);
    take(from, positions, shard);
    std::vector<float> memory_of_rows(static_cast<std::size_t>(batch * heads * n));
    const row_view<float> rows{memory_of_rows.data(), batch, heads, n, 1, batch * n, batch};
    take(from_rows, positions, rows);
    bool right = true;
    for (std::int64_t t = 0; t < n; ++t)
      for (std::int64_t b = 0; b < batch; ++b)
        for (std::int64_t h = 0; h < heads; ++h) {
          right = right && *rows.at(b, h, t) == *from_rows.at(b, h, positions[t]);
          for (std::int64_t i = 0; i < dim; ++i)
            right = right && shard.at(b, t, h)[i] == from.at(b, positions[t], h)[i];
        }
    CHECK(right);
    put(shard, positions, to);
    put(rows, positions, to_rows);
  }
  CHECK(again == whole);
  CHECK(rows_again == whole_rows);
}

std::string said(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::invalid_argument& e) {
    return e.what();
  }
  return "nothing";
}

}  // namespace

TEST_CASE("the shards of all ranks, put together, are the whole") {
  for (const int world : {1, 2, 5}) {
    for (const std::int64_t length : {0, 1, 7, 26}) {
      round_trip<orrery::contiguous, float>(world, length);
      round_trip<orrery::zigzag, double>(world, length);
      round_trip<orrery::striped<2>, orrery::bfloat16>(world, length);
    }
  }
}

TEST_CASE("put leaves the other tokens as they are") {
  std::vector<float> whole(6, 9.0F);
  std::vector<float> shard{1, 2};
  put(orrery::batch_head_sequence(shard.data(), 1, 1, 2), shard_of<orrery::contiguous>(1, 3, 6),
      orrery::batch_head_sequence(whole.data(), 1, 1, 6));
  CHECK(whole == std::vector<float>{9, 9, 1, 2, 9, 9});
}

TEST_CASE("views that do not fit are refused, and nothing is written") {
  std::vector<float> whole(batch * 12 * heads * dim, 1.0F), part(batch * 4 * heads * dim, 2.0F);
  const auto positions = shard_of<orrery::zigzag>(1, 3, 12);  // 2 3 8 9
  const auto from = orrery::batch_sequence_head_dim(whole.data(), batch, 12, heads, dim);
  const auto to = orrery::batch_sequence_head_dim(part.data(), batch, 4, heads, dim);
  const auto check = [&](const std::string& message, const std::function<void(tensor_view<float>&)>& of_whole,
                         const std::function<void(tensor_view<float>&)>& of_shard) {
    auto spoilt_whole = from;
    auto spoilt_shard = to;
    of_whole(spoilt_whole);
    of_shard(spoilt_shard);
    CHECK(said([&] { take(spoilt_whole, positions, spoilt_shard); }) == "orrery: take: " + message);
    CHECK(said([&] { put(spoilt_shard, positions, spoilt_whole); }) == "orrery: put: " + message);
  };
  const auto keep = [](auto&) {};
  const std::string whole_sequence = ", as the whole sequence";
  check("the shard has batch 1, expected 2" + whole_sequence, keep, [](auto& v) { v.batch = 1; });
  check(
      "the shard has heads 3, expected 2" + whole_sequence, [](auto& v) { v.heads = 2; }, keep);
  check("the shard has dim 4, expected 5" + whole_sequence, keep, [](auto& v) { v.dim = 4; });
  check("the shard has sequence 3, expected 4, as there are positions", keep, [](auto& v) { v.sequence = 3; });
  check(
      "the last position is 9, but the whole sequence has 9 tokens; was its layout asked for another length?",
      [](auto& v) { v.sequence = 9; }, keep);
  check("the shard's view is null", keep, [](auto& v) { v.data = nullptr; });
  check(
      "the whole sequence's view is null", [](auto& v) { v.data = nullptr; }, keep);
  CHECK(whole == std::vector<float>(whole.size(), 1.0F));
  CHECK(part == std::vector<float>(part.size(), 2.0F));

  std::vector<float> rows(batch * heads * 12);
  const auto of_rows = orrery::batch_head_sequence(rows.data(), batch, heads, 12);
  CHECK(said([&] { take(of_rows, positions, of_rows); }) ==
        "orrery: take: the shard has sequence 12, expected 4, as there are positions");
}

}  // namespace take_test
