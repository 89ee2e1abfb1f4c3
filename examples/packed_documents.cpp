// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// A packed batch: documents of any lengths in one sequence, each of which sees itself alone. The outputs of each
// document must be those of the document by itself.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <mutex>
#include <vector>

#include <orrery/orrery.hpp>

namespace {

constexpr std::int64_t heads = 2, dim = 16, width = heads * dim;

/// What a model would have made of the token at this position: the same numbers wherever it is computed.
double feature(std::int64_t token, std::int64_t i) { return std::sin(static_cast<double>(token * width + i)); }

/// The outputs of `length` tokens, of which the first is token `first_token` of the batch, over `ranks` ranks.
template <class Mask>
std::vector<double> attend_over(int ranks, std::int64_t first_token, std::int64_t length, const Mask& mask) {
  std::vector<double> outputs(static_cast<std::size_t>(length * width));
  std::mutex mutex;
  orrery::threads::run(ranks, [&](auto& world) {
    orrery::attention<orrery::ring, orrery::flash<double>> attend{
        world, {.length = length, .query_heads = heads, .head_dim = dim}, mask, orrery::zigzag{}};

    const auto& positions = attend.query_positions();
    const std::int64_t tokens = positions.size();
    std::vector<double> x(static_cast<std::size_t>(tokens * width)), out(x.size());
    std::vector<double> sums(static_cast<std::size_t>(tokens * heads));
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (std::int64_t i = 0; i < width; ++i) {
        x[static_cast<std::size_t>(t * width + i)] = feature(first_token + positions[t], i);
      }
    }
    const auto view = orrery::batch_sequence_head_dim(x.data(), 1, tokens, heads, dim);
    attend.forward(view, view, view, orrery::batch_sequence_head_dim(out.data(), 1, tokens, heads, dim),
                   orrery::batch_head_sequence(sums.data(), 1, heads, tokens));

    const std::lock_guard lock{mutex};
    for (std::int64_t t = 0; t < tokens; ++t) {
      std::copy_n(&out[static_cast<std::size_t>(t * width)], width,
                  &outputs[static_cast<std::size_t>(positions[t] * width)]);
    }
  });
  return outputs;
}

}  // namespace

int main() {
  const std::vector<int> lengths{300, 12, 451, 1, 160};
  const std::int64_t length = 1000;  // 76 tokens of padding at the end, which see nothing and are seen by nothing

  const auto mask = orrery::documents{lengths} & orrery::causal{} & orrery::window{.left = 255};
  std::printf("%s\n", mask.name().c_str());
  const std::vector<double> packed = attend_over(4, 0, length, mask);

  double largest = 0;
  std::int64_t first = 0;
  for (const int tokens : lengths) {
    const std::vector<double> alone = attend_over(1, first, tokens, orrery::causal{} & orrery::window{.left = 255});
    for (std::size_t i = 0; i < alone.size(); ++i) {
      largest = std::max(largest, std::abs(alone[i] - packed[static_cast<std::size_t>(first * width) + i]));
    }
    first += tokens;
  }
  double padding = 0;
  for (std::size_t i = static_cast<std::size_t>(first * width); i < packed.size(); ++i) {
    padding = std::max(padding, std::abs(packed[i]));
  }
  std::printf("largest difference from documents by themselves: %s; largest output of padding: %g\n",
              largest < 1e-12 ? "less than 1e-12" : "too large", padding);
  return largest < 1e-12 && padding == 0 ? 0 : 1;
}
