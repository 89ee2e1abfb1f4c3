// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>

#include "orrery/kernel/elementary.hpp"
#include "orrery/kernel/view.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/schedule/hand_over.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/schedule_digest.hpp"
#include "orrery/transport/transport.hpp"
#include "orrery/verify/verdict.hpp"

namespace orrery {

/// The sizes of an attention operator, for the whole sequence and all heads: what every rank must say alike.
struct attention_shape {
  std::int64_t batch = 1;
  std::int64_t length = 0;  ///< tokens of the query sequence, over all ranks
  std::int64_t query_heads = 1;
  std::int64_t key_heads = 0;             ///< a divisor of query_heads; 0: as many as query heads
  std::int64_t head_dim = 0;              ///< of queries and keys
  std::int64_t value_dim = 0;             ///< of values and outputs; 0: head_dim
  std::int64_t key_length = 0;            ///< tokens of the key sequence, over all ranks; 0: length
  double scale = 0;                       ///< of the scores; 0: 1 / sqrt(head_dim)
  pass circulate = pass::circulate_keys;  ///< the backward's policy
  /// Of the forward's operands, for those who compute them one after the other (see `attention::begin_forward`).
  orrery::hand_over hand_over = orrery::hand_over::together;

  /// With all defaults filled in.
  [[nodiscard]] attention_shape completed() const {
    attention_shape full = *this;
    if (key_heads == 0) full.key_heads = query_heads;
    if (value_dim == 0) full.value_dim = head_dim;
    if (key_length == 0) full.key_length = length;
    if (scale == 0 && head_dim > 0) full.scale = 1 / elementary::sqrt(static_cast<double>(head_dim));
    return full;
  }
};

/// What an attention operator is made of, as far as its arguments can be wrong: for sentences, and for ranks to
/// compare.
struct attention_request {
  attention_shape shape;  ///< completed
  int world = 1;
  std::string topology;
  int slices = 1;  ///< into which the topology cuts the heads
  std::string kernel;
  std::int64_t max_head_dim = 0;
  std::string mask;
  std::string layout;
  schedule_digest forward{};  ///< of all ranks' programs, as this rank has proven them
  schedule_digest backward{};

  /// Empty, or a sentence.
  [[nodiscard]] std::string what_is_wrong_with_sizes() const {
    const named_size sizes[] = {
        {"batch", shape.batch},          {"length", shape.length},     {"query_heads", shape.query_heads},
        {"key_heads", shape.key_heads},  {"head_dim", shape.head_dim}, {"value_dim", shape.value_dim},
        {"key_length", shape.key_length}};
    for (const auto& [name, size] : sizes) {
      if (size < 1) return std::string{name} + " is " + std::to_string(size) + ", expected at least 1";
    }
    if (shape.query_heads % shape.key_heads != 0) {
      return "key_heads is " + std::to_string(shape.key_heads) + ", expected a divisor of query_heads, " +
             std::to_string(shape.query_heads);
    }
    for (const auto& [name, dim] : {named_size{"head_dim", shape.head_dim}, named_size{"value_dim", shape.value_dim}}) {
      if (dim > max_head_dim) {
        return std::string{name} + " is " + std::to_string(dim) + ", but kernel " + kernel + " goes up to " +
               std::to_string(max_head_dim) + "; orrery::reference has no limit";
      }
    }
    if (!elementary::is_finite(shape.scale))
      return "scale is " + std::to_string(shape.scale) + ", expected a finite number";
    if (shape.circulate != pass::circulate_keys && shape.circulate != pass::circulate_queries) {
      return "circulate is pass::forward, expected pass::circulate_keys or pass::circulate_queries";
    }
    return "";
  }

  /// What to say of a topology that refuses this world, for `reason`.
  [[nodiscard]] std::string refused(const char* reason) const {
    return "topology " + topology + " over " + std::to_string(world) + " ranks " + reason;
  }

  /// Empty, or a sentence.
  [[nodiscard]] std::string what_is_wrong_with_slices() const {
    if (slices <= shape.query_heads) return "";
    int hybrid = 1;
    for (int u = 2; u <= world; ++u) {
      if (world % u == 0 && u <= shape.query_heads) hybrid = u;
    }
    return "topology " + topology + " cuts the heads into " + std::to_string(slices) + " slices, but query_heads is " +
           std::to_string(shape.query_heads) + "; " +
           (hybrid > 1 ? "usp<" + std::to_string(hybrid) + "> works here: all-to-all over " + std::to_string(hybrid) +
                             " ranks, a ring across"
                       : std::string{"ring and concentric do not cut heads"});
  }

  /// What to say of a schedule that is not proven.
  [[nodiscard]] std::string unproven(pass p, const verdict& v) const {
    return "the schedule of topology " + topology + " (" + name_of(p) + ") is wrong for " + std::to_string(world) +
           " ranks: " + v.sentence();
  }

  /// All of it, with what is wrong on this rank, as ranks compare it.
  [[nodiscard]] list<agreement> fields(const std::string& error) const {
    list<agreement> all;
    const auto say = [&](const char* name, const std::string& value) { all.push_back({name, value}); };
    const auto say_size = [&](const char* name, std::int64_t size) { say(name, std::to_string(size)); };
    char scale[32];
    std::snprintf(scale, sizeof scale, "%.17g", shape.scale);
    say("error", error);
    say("topology", topology);
    say("kernel", kernel);
    say("mask", mask);
    say("layout", layout);
    say_size("batch", shape.batch);
    say_size("length", shape.length);
    say_size("query_heads", shape.query_heads);
    say_size("key_heads", shape.key_heads);
    say_size("head_dim", shape.head_dim);
    say_size("value_dim", shape.value_dim);
    say_size("key_length", shape.key_length);
    say("scale", scale);
    say("circulate", name_of(shape.circulate));
    say("hand_over", name_of(shape.hand_over));
    // Topologies of one name may differ: nameless ones, and values of a type whose name leaves something out.
    say("the forward's programs", topology + " with digest " + forward.text());
    say("the backward's programs", topology + " with digest " + backward.text());
    return all;
  }

 private:
  struct named_size {
    const char* name;
    std::int64_t size;
  };
};

/// The sizes that a view must have, and whose view it is: `call` and `name` are for the sentence.
struct expected_view {
  const char* call;
  const char* name;
  std::int64_t batch;
  std::int64_t sequence;
  std::int64_t heads;
  std::int64_t dim;  ///< 1 for rows

  /// Each throws `std::invalid_argument` if the view does not fit.
  template <class T>
  void check(const tensor_view<T>& view) const {
    check_sizes(view.batch, view.sequence, view.heads, view.dim);
    check_memory(view.data, view.size(), alignof(T));
  }
  template <class T>
  void check(const row_view<T>& view) const {
    check_sizes(view.batch, view.sequence, view.heads, dim);
    check_memory(view.data, view.size(), alignof(T));
  }

 private:
  void check_sizes(std::int64_t is_batch, std::int64_t is_sequence, std::int64_t is_heads, std::int64_t is_dim) const {
    check_size("batch", is_batch, batch);
    check_size("sequence (this rank's tokens)", is_sequence, sequence);
    check_size("heads", is_heads, heads);
    check_size("dim", is_dim, dim);
  }
  void check_size(const char* what, std::int64_t is, std::int64_t expected) const {
    if (is != expected) {
      refuse("has " + std::string{what} + " " + std::to_string(is) + ", expected " + std::to_string(expected));
    }
  }
  void check_memory(const void* data, std::int64_t elements, std::size_t alignment) const {
    if (elements == 0) return;
    if (data == nullptr) refuse("is null");
    if (reinterpret_cast<std::uintptr_t>(data) % alignment != 0) {
      refuse("is not aligned to its elements of " + std::to_string(alignment) + " bytes");
    }
  }
  [[noreturn]] void refuse(const std::string& why) const {
    throw std::invalid_argument{std::string{"orrery: attention::"} + call + ": " + name + " " + why};
  }
};

}  // namespace orrery
