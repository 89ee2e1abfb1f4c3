// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "model.hpp"

namespace train {

struct options {
  std::int64_t ranks = 8;
  std::int64_t steps = 24;
  std::int64_t batch = 1;
  std::int64_t length = 1024;
  std::int64_t seed = 1;
  gpt_shape shape;
  std::string device = "host";
  std::string dtype = "double";
  orrery::operand_messages operand_messages = orrery::operand_messages::per_tensor;
  std::string topology;  // only this one; all of them if empty
  std::vector<std::string> text;
  bool quiet = false;  // losses are not shown
  bool help = false;
};

inline constexpr const char* usage =
    R"(Trains a small GPT on one rank and then, with every topology, on several ranks (train: threads, or streams of CUDA
devices; train_mpi: the processes that mpirun starts) that each hold a part of every sequence. Fails if a loss curve
leaves that of one rank by more than rounding.

  --ranks N        ranks (default 8)
  --steps N        optimiser steps (default 24)
  --batch N        sequences in a step (default 1)
  --length N       tokens in a sequence (default 1024)
  --layers N       blocks of the model (default 2)
  --width N        width of the model, a multiple of 16 (default 128)
  --device NAME    host (default), or cuda: ranks are streams of all CUDA devices that there are, and all numbers are
                   there; the one rank to compare with is the host's
  --dtype NAME     double (default) or float; on CUDA devices also bfloat16: float, but for attention's operands and
                   results, which the tensor cores multiply
  --hand-over NAME of queries, keys and values to other ranks: by_tensor (default), each as soon as it is projected, or
                   together
  --seed N         of the parameters and of the choice of text (default 1)
  --topology NAME  only this one, spelt as in the table
  --text FILE      what to learn, may be given several times (default: this repository's LICENSE and README.md)
)";

/// Throws `std::invalid_argument` with a message. What is not said stays as it is in `o`.
inline options parse(const std::vector<std::string>& arguments, options o = {}) {
  struct number {
    const char* flag;
    std::int64_t* value;
    std::int64_t least, most;
  };
  const number numbers[] = {{"--ranks", &o.ranks, 1, 1024},
                            {"--steps", &o.steps, 1, 1'000'000},
                            {"--batch", &o.batch, 1, 1024},
                            {"--length", &o.length, 1, 1 << 24},
                            {"--layers", &o.shape.layers, 1, 1024},
                            {"--width", &o.shape.width, 16, 1 << 16},
                            {"--seed", &o.seed, 0, std::numeric_limits<std::int64_t>::max()}};
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& flag = arguments[i];
    if (flag == "--help") {
      o.help = true;
      continue;
    }
    const auto* n =
        std::find_if(std::begin(numbers), std::end(numbers), [&](const number& x) { return x.flag == flag; });
    const bool is_number = n != std::end(numbers);
    if (!is_number && flag != "--dtype" && flag != "--device" && flag != "--hand-over" && flag != "--topology" &&
        flag != "--text")
      throw std::invalid_argument{"there is no flag '" + flag + "'; --help lists them"};
    if (++i == arguments.size()) throw std::invalid_argument{flag + " needs a value"};
    const std::string& value = arguments[i];
    if (is_number) {
      const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), *n->value);
      if (error != std::errc{} || end != value.data() + value.size() || *n->value < n->least || *n->value > n->most)
        throw std::invalid_argument{flag + " needs a whole number from " + std::to_string(n->least) + " to " +
                                    std::to_string(n->most) + ", not '" + value + "'"};
    } else if (flag == "--topology") {
      o.topology = value;
    } else if (flag == "--text") {
      o.text.push_back(value);
    } else if (flag == "--hand-over") {
      if (value != "together" && value != "by_tensor")
        throw std::invalid_argument{"--hand-over needs by_tensor or together, not '" + value + "'"};
      o.operand_messages =
          value == "together" ? orrery::operand_messages::per_block : orrery::operand_messages::per_tensor;
    } else if (flag == "--device") {
      if (value != "host" && value != "cuda")
        throw std::invalid_argument{"--device needs host or cuda, not '" + value + "'"};
      o.device = value;
    } else if (value == "double" || value == "float" || value == "bfloat16") {
      o.dtype = value;
    } else {
      throw std::invalid_argument{"--dtype needs double, float or bfloat16, not '" + value + "'"};
    }
  }
  if (o.dtype == "bfloat16" && o.device != "cuda")
    throw std::invalid_argument{"--dtype bfloat16 needs --device cuda; on the host there are double and float"};
  if (o.shape.width % (2 * o.shape.query_heads) != 0)  // rotary positions turn pairs within a head
    throw std::invalid_argument{"--width needs a multiple of " + std::to_string(2 * o.shape.query_heads) + ", not " +
                                std::to_string(o.shape.width)};
  return o;
}

}  // namespace train
