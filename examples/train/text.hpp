// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include <orrery/layout/segment.hpp>

namespace train {

/// Text as a byte-level model sees it, and where in it the sequences of a training begin: random places, one for each
/// step and sequence of the batch, the same for every training.
class training_text {
 public:
  training_text(const std::vector<std::string>& files, std::int64_t steps, std::int64_t batch, std::int64_t length,
                std::int64_t seed)
      : batch_{batch} {
    for (const std::string& file : files) {
      std::ifstream stream{file, std::ios::binary};
      if (!stream || std::filesystem::is_directory(file)) throw std::invalid_argument{"cannot read " + file};
      bytes_.insert(bytes_.end(), std::istreambuf_iterator<char>{stream}, {});
    }
    const std::int64_t last_begin = bytes() - length - 1;
    if (last_begin < 0)
      throw std::invalid_argument{"sequences of " + std::to_string(length) + " tokens need a longer text than " +
                                  std::to_string(bytes()) + " bytes; lower --length, or name a text with --text FILE"};
    std::mt19937_64 random{static_cast<std::uint64_t>(seed)};
    std::uniform_int_distribution<std::int64_t> begin{0, last_begin};
    for (std::int64_t i = 0; i < steps * batch; ++i) begins_.push_back(begin(random));
  }

  [[nodiscard]] std::int64_t bytes() const { return static_cast<std::int64_t>(bytes_.size()); }

  /// Of each sequence of one step's batch: the tokens at `positions`, read `ahead` bytes further on.
  [[nodiscard]] std::vector<std::uint8_t> tokens(std::int64_t step, const orrery::token_positions& positions,
                                                 std::int64_t ahead) const {
    std::vector<std::uint8_t> tokens;
    for (std::int64_t b = 0; b < batch_; ++b) {
      const std::int64_t begin = begins_[static_cast<std::size_t>(step * batch_ + b)] + ahead;
      for (const std::int64_t position : positions)
        tokens.push_back(bytes_[static_cast<std::size_t>(begin + position)]);
    }
    return tokens;
  }

 private:
  std::int64_t batch_;
  std::vector<std::uint8_t> bytes_;
  std::vector<std::int64_t> begins_;
};

}  // namespace train
