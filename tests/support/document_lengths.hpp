// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

/// Lengths of documents as trainers pack them.
namespace document_lengths {

/// Random lengths that fill `length` tokens, distributed as those of the data set that MagiAttention publishes a
/// histogram of; none is longer than a quarter of the batch. The same for a seed on every machine.
[[nodiscard]] inline std::vector<std::int64_t> of(std::int64_t length, unsigned seed) {
  struct bin {
    std::int64_t longest;
    unsigned share;  // in hundredths of a per cent
  };
  constexpr bin bins[] = {{10, 22},    {50, 291},   {100, 520},   {200, 1023}, {500, 2819}, {1024, 2464}, {2048, 1565},
                          {4096, 734}, {8192, 305}, {16384, 129}, {32768, 85}, {65536, 14}, {131072, 17}, {196608, 14}};
  unsigned all = 0;
  for (const bin& one : bins) all += one.share;
  std::mt19937 random{seed};  // not a distribution of the standard library: those differ
  std::vector<std::int64_t> lengths;
  for (std::int64_t left = length; left > 0; left -= lengths.back()) {
    auto share = static_cast<unsigned>(random() % all);
    std::int64_t shortest = 1;
    std::int64_t longest = 0;
    for (const bin& one : bins) {
      longest = one.longest;
      if (share < one.share) break;
      share -= one.share;
      shortest = longest + 1;
    }
    const std::int64_t drawn =
        shortest + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(longest - shortest + 1));
    lengths.push_back((std::min)({drawn, length / 4, left}));
  }
  return lengths;
}

}  // namespace document_lengths
