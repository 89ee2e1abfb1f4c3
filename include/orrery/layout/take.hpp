// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "orrery/layout/segment.hpp"
#include "orrery/layout/token_positions.hpp"
#include "orrery/tensor/view.hpp"

namespace orrery::detail {

/// Checks the views of a call of `take` or `put`.
class shard_copy {
 public:
  explicit shard_copy(const char* call) noexcept : call_{call} {}

  /// Throws `std::invalid_argument` if the views do not fit each other or the positions.
  template <class Whole, class Shard>
  void check(const Whole& whole, const token_positions& positions, const Shard& shard) const {
    expect("batch", shard.batch, whole.batch, "as the whole sequence");
    expect("heads", shard.heads, whole.heads, "as the whole sequence");
    if constexpr (requires { shard.dim; }) expect("dim", shard.dim, whole.dim, "as the whole sequence");
    expect("sequence", shard.sequence, positions.size(), "as there are positions");
    if (positions.empty()) return;
    // Positions increase, and are never negative.
    if (const std::int64_t last = positions[positions.size() - 1]; last >= whole.sequence) {
      refuse("the last position is " + std::to_string(last) + ", but the whole sequence has " +
             std::to_string(whole.sequence) + " tokens; was its layout asked for another length?");
    }
    if (shard.size() > 0 && shard.data == nullptr) refuse("the shard's view is null");
    if (shard.size() > 0 && whole.data == nullptr) refuse("the whole sequence's view is null");
  }

 private:
  void expect(const char* what, std::int64_t is, std::int64_t expected, const char* as) const {
    if (is == expected) return;
    refuse("the shard has " + std::string{what} + " " + std::to_string(is) + ", expected " + std::to_string(expected) +
           ", " + as);
  }
  [[noreturn]] void refuse(const std::string& why) const {
    throw std::invalid_argument{std::string{"orrery: "} + call_ + ": " + why};
  }

  const char* call_;
};

/// Calls visit(position, token) for each token of a shard.
template <class Visit>
constexpr void for_each_token(const token_positions& positions, const Visit& visit) {
  std::int64_t token = 0;
  for (const segment& piece : positions.segments()) {
    for (std::int64_t i = 0; i < piece.count; ++i) visit(piece.position(i), token++);
  }
}

template <class From, class To>
void copy_token(const tensor_view<From>& from, std::int64_t source, const tensor_view<To>& to, std::int64_t target) {
  for (std::int64_t b = 0; b < to.batch; ++b) {
    for (std::int64_t head = 0; head < to.heads; ++head) {
      const From* const x = from.at(b, source, head);
      To* const y = to.at(b, target, head);
      for (std::int64_t i = 0; i < to.dim; ++i) y[i] = x[i];
    }
  }
}
template <class From, class To>
void copy_token(const row_view<From>& from, std::int64_t source, const row_view<To>& to, std::int64_t target) {
  for (std::int64_t b = 0; b < to.batch; ++b) {
    for (std::int64_t head = 0; head < to.heads; ++head) *to.at(b, head, target) = *from.at(b, head, source);
  }
}

/// Views of one kind and element type, of which the second is written.
template <class From, class To>
concept copied_view =
    !std::is_const_v<typename To::element> &&
    std::same_as<std::remove_const_t<typename From::element>, typename To::element> &&
    ((std::same_as<From, tensor_view<typename From::element>> && std::same_as<To, tensor_view<typename To::element>>) ||
     (std::same_as<From, row_view<typename From::element>> && std::same_as<To, row_view<typename To::element>>));

}  // namespace orrery::detail

namespace orrery {

/// Copies the tokens of one shard out of a tensor of the whole sequence: how a rank cuts a batch that every rank has
/// read. `whole` is [batch, length, heads, dim], `shard` [batch, positions.size(), heads, dim]; or both are rows, as
/// token ids are with one head.
///
///     orrery::take(whole_x, attend.query_positions(), x);
///
/// Local: nothing is sent. Host memory, any strides, one pass over the shard. The two views must not share memory.
/// Throws `std::invalid_argument`, before anything is written, for views that do not fit each other or the positions.
///
/// Named after `take` of NumPy and PyTorch, which choose elements by index, as `put` is after theirs; *gather* and
/// *scatter* are communication here.
template <class Whole, class Shard>
  requires detail::copied_view<Whole, Shard>
void take(const Whole& whole, const token_positions& positions, const Shard& shard) {
  detail::shard_copy{"take"}.check(whole, positions, shard);
  detail::for_each_token(
      positions, [&](std::int64_t position, std::int64_t token) { detail::copy_token(whole, position, shard, token); });
}

/// The inverse of `take`: copies a shard's tokens to their places in a tensor of the whole sequence, whose other tokens
/// stay as they are. The shards of all ranks together write all of it.
///
///     orrery::put(out, attend.query_positions(), whole_out);
///
/// Needs, costs and throws what `take` does.
template <class Shard, class Whole>
  requires detail::copied_view<Shard, Whole>
void put(const Shard& shard, const token_positions& positions, const Whole& whole) {
  detail::shard_copy{"put"}.check(whole, positions, shard);
  detail::for_each_token(
      positions, [&](std::int64_t position, std::int64_t token) { detail::copy_token(shard, token, whole, position); });
}

}  // namespace orrery
