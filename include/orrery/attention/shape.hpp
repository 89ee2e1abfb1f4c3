// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <cstdio>
#include <optional>
#include <stdexcept>
#include <string>

#include "orrery/attention/view_overlap.hpp"
#include "orrery/detail/initializer_text.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/schedule/detail/counted.hpp"
#include "orrery/schedule/detail/schedule_digest.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/tensor/math.hpp"
#include "orrery/tensor/view.hpp"
#include "orrery/transport/transport.hpp"
#include "orrery/verify/verdict.hpp"

namespace orrery {

/// The sizes of an attention operator, for the whole sequence and all heads: what every rank must say alike.
///
///     orrery::attention_shape shape{.length = 65536, .query_heads = 32, .key_heads = 8, .head_dim = 128};
///
/// Optional members that are left out have the defaults below; a 0 that was computed is no default, but refused.
struct attention_shape {
  std::int64_t batch = 1;
  std::int64_t length = 0;  ///< tokens of the query sequence, over all ranks
  std::int64_t query_heads = 1;
  std::optional<std::int64_t> key_heads{};   ///< a divisor of query_heads; default: query_heads
  std::int64_t head_dim = 0;                 ///< of queries and keys
  std::optional<std::int64_t> value_dim{};   ///< of values and outputs; default: head_dim
  std::optional<std::int64_t> key_length{};  ///< tokens of the key sequence, over all ranks; default: length
  std::optional<double> scale{};             ///< of the scores; default: 1 / sqrt(head_dim)
  schedule::pass circulate = schedule::pass::circulate_keys;  ///< the backward's policy
  /// Whether the forward's operands travel one by one, as they are computed (see `attention::begin_forward`).
  orrery::schedule::operand_messages operand_messages = orrery::schedule::operand_messages::per_block;
  /// If true, no backward is planned, proven or given memory, and the topology need not have one. For inference.
  bool forward_only = false;

  /// Returns the shape with all defaults filled in: every optional member has a value.
  [[nodiscard]] attention_shape completed() const {
    attention_shape full = *this;
    full.key_heads = key_heads.value_or(query_heads);
    full.value_dim = value_dim.value_or(head_dim);
    full.key_length = key_length.value_or(length);
    full.scale = scale.value_or(head_dim > 0 ? 1 / detail::math::sqrt(static_cast<double>(head_dim)) : 1);
    return full;
  }
};

/// The shape as its designated initialiser, without what has its default:
/// "{.length = 65536, .query_heads = 32, .head_dim = 128}".
[[nodiscard]] inline std::string to_string(const attention_shape& shape) {
  using code = detail::initializer_text::code;
  const attention_shape defaults;
  detail::initializer_text text;
  text.member("batch", shape.batch, defaults.batch)
      .member("length", shape.length)
      .member("query_heads", shape.query_heads, defaults.query_heads)
      .member("key_heads", shape.key_heads)
      .member("head_dim", shape.head_dim)
      .member("value_dim", shape.value_dim)
      .member("key_length", shape.key_length)
      .member("scale", shape.scale)
      .member("circulate", code{std::string{"pass::"} + name_of(shape.circulate)},
              code{std::string{"pass::"} + name_of(defaults.circulate)});
  if (shape.operand_messages != defaults.operand_messages)
    text.member("operand_messages", code{"operand_messages::per_tensor"});
  return text.member("forward_only", shape.forward_only, defaults.forward_only).text();
}

}  // namespace orrery

namespace orrery::detail {

/// The arguments of an attention operator, and what is derived from them: for checks, messages, and comparison between
/// ranks.
struct attention_request {
  attention_shape shape;  ///< completed
  int world = 1;
  std::string topology;
  int slices = 1;  ///< into which the topology cuts the heads
  std::string kernel;
  std::int64_t max_head_dim = 0;
  std::string mask;
  std::string layout;
  std::uint64_t shards = 0;         ///< a digest of all ranks' shards; 0: not known yet
  std::uint64_t visible_pairs = 0;  ///< a digest of the pairs of shards that the mask leaves; 0: not known yet
  schedule_digest forward{};        ///< of all ranks' programs, as this rank has proven them
  schedule_digest backward{};       ///< unless forward_only

  /// The passes of the operator.
  [[nodiscard]] list<pass> passes() const {
    list<pass> all;
    all.push_back(pass::forward);
    if (!shape.forward_only) all.push_back(shape.circulate);
    return all;
  }

  /// Empty, or a message.
  [[nodiscard]] std::string what_is_wrong_with_sizes() const {
    const named_size sizes[] = {{"batch", shape.batch, ""},
                                {"length", shape.length, ""},
                                {"query_heads", shape.query_heads, ""},
                                {"key_heads", *shape.key_heads, "query_heads"},
                                {"head_dim", shape.head_dim, ""},
                                {"value_dim", *shape.value_dim, "head_dim"},
                                {"key_length", *shape.key_length, "length"}};
    for (const named_size& one : sizes) {
      if (one.size < 1) {
        return one.text() + ", expected at least 1" +
               (*one.otherwise == 0 ? std::string{} : std::string{"; leave it out to use "} + one.otherwise);
      }
    }
    if (shape.query_heads % *shape.key_heads != 0) {
      return "key_heads is " + std::to_string(*shape.key_heads) + ", expected a divisor of query_heads, " +
             std::to_string(shape.query_heads);
    }
    for (const named_size& one : {named_size{"head_dim", shape.head_dim}, {"value_dim", *shape.value_dim}}) {
      if (one.size > max_head_dim) {
        return one.text() + ", but kernel " + kernel + " goes up to " + std::to_string(max_head_dim) +
               "; orrery::reference has no limit";
      }
    }
    for (const std::int64_t length : {shape.length, *shape.key_length}) {
      const named_size factors[] = {sizes[0], length == shape.length ? sizes[1] : sizes[6], sizes[2], sizes[4],
                                    sizes[5]};
      std::string error = what_is_wrong_with_product(factors);
      if (!error.empty()) return error;
    }
    if (*shape.scale == 0) return "scale is 0, expected another number; leave it out for 1 / sqrt(head_dim)";
    if (!math::is_finite(*shape.scale))
      return "scale is " + std::to_string(*shape.scale) + ", expected a finite number";
    if (shape.circulate != pass::circulate_keys && shape.circulate != pass::circulate_queries) {
      return "circulate is pass::forward, expected pass::circulate_keys or pass::circulate_queries";
    }
    return "";
  }

  /// Empty, or a message; `largest` is the largest number of the type that the kernel computes in. The kernels
  /// multiply the scale by log2(e) = 1.44.
  [[nodiscard]] std::string what_is_wrong_with_scale(double largest) const {
    const double scale = *shape.scale;
    const double most = largest / 2;
    if (scale <= most && scale >= -most) return "";
    char text[160];
    std::snprintf(text, sizeof text, "scale is %g, expected a number from -%.4g to %.4g: beyond, ", scale, most, most);
    return text + std::string{"scores are too large for the numbers in which kernel "} + kernel + " computes";
  }

  /// Returns the message about the layout's shards for a sequence whose length is `name`, `length`.
  [[nodiscard]] std::string wrong_shards(const char* name, std::int64_t length, const std::string& why) const {
    return "layout " + layout + " (" + name + " " + std::to_string(length) + " over " + counted_ranks(world) + ") " +
           why;
  }

  /// Empty, or a message.
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

  /// Returns the message about a schedule that is not proven.
  [[nodiscard]] std::string unproven(pass p, const verdict& v) const {
    return "the schedule of topology " + topology + " (" + name_of(p) + ") is wrong for " + counted_ranks(world) +
           ": " + v.message();
  }

  /// Returns the fields that ranks compare, among them the error of this rank.
  [[nodiscard]] list<agreement> fields(const std::string& error) const {
    list<agreement> all;
    const auto say = [&](const char* name, const std::string& value) { all.push_back({name, value}); };
    const auto say_size = [&](const char* name, std::int64_t size) { say(name, std::to_string(size)); };
    char scale[32];
    std::snprintf(scale, sizeof scale, "%.17g", *shape.scale);
    say("error", error);
    say("topology", topology);
    say("kernel", kernel);
    say("mask", mask);
    say("layout", layout);
    say_size("batch", shape.batch);
    say_size("length", shape.length);
    say_size("query_heads", shape.query_heads);
    say_size("key_heads", *shape.key_heads);
    say_size("head_dim", shape.head_dim);
    say_size("value_dim", *shape.value_dim);
    say_size("key_length", *shape.key_length);
    say("scale", scale);
    say("circulate", name_of(shape.circulate));
    say("operand_messages", name_of(shape.operand_messages));
    say("forward_only", shape.forward_only ? "true" : "false");
    // Topologies of one name may differ: nameless ones, and values of a type whose name leaves something out.
    say("the forward's programs", topology + " with digest " + forward.text());
    if (!shape.forward_only) say("the backward's programs", topology + " with digest " + backward.text());
    say("shards (their digest)", std::to_string(shards));
    say("visible pairs of shards (their digest)", std::to_string(visible_pairs));
    return all;
  }

 private:
  struct named_size {
    const char* name;
    std::int64_t size;
    const char* otherwise = "";  ///< what is used if it is left out

    [[nodiscard]] std::string text() const { return std::string{name} + " is " + std::to_string(size); }
  };

  /// The most numbers that queries and outputs of the whole sequence may have together. No size that an operator
  /// computes from fewer overflows, and no machine has more.
  static constexpr std::int64_t most_numbers = std::int64_t{1} << 52;

  /// Empty, or a message that names the largest factor. The last two are the dimensions, which are added.
  [[nodiscard]] static std::string what_is_wrong_with_product(const named_size (&factors)[5]) {
    const named_size* largest = &factors[0];
    for (const named_size& one : factors) largest = one.size > largest->size ? &one : largest;
    std::int64_t left = most_numbers;  // of the limit divided by the factors
    if (largest->size < most_numbers) {
      for (int i = 0; i < 3; ++i) left /= factors[i].size;
      if (left / (factors[3].size + factors[4].size) > 0) return "";
    }
    std::string others;
    for (const named_size& one : factors) {
      if (&one != largest)
        others += (others.empty() ? "" : ", ") + std::string{one.name} + " " + std::to_string(one.size);
    }
    return largest->text() + ", too large: with " + others + " the tensors would have more than 2^52 numbers";
  }
};

/// The sizes that a view must have. `call` and `name` are for the message.
struct expected_view {
  const char* call;
  const char* name;
  std::int64_t batch;
  std::int64_t sequence;
  std::int64_t heads;
  std::int64_t dim;  ///< 1 for rows

  /// Each throws `std::invalid_argument` if the view was left out or does not fit; else returns its bytes.
  template <class T>
  footprint check(const tensor_view<T>& view) const {
    check_given(view);
    check_sizes(view.batch, view.sequence, view.heads, view.dim);
    return check_memory(view, view.dim);
  }
  template <class T>
  footprint check(const row_view<T>& view) const {
    check_given(view);
    check_sizes(view.batch, view.sequence, view.heads, dim);
    return check_memory(view, 1);
  }

  [[noreturn]] void refuse(const std::string& why) const {
    throw std::invalid_argument{std::string{"orrery: attention::"} + call + ": " + name + " " + why};
  }

 private:
  /// A view that was left out is default constructed: it has no address and no sizes.
  template <class View>
  void check_given(const View& view) const {
    if (view.data != nullptr || view.batch != 0 || view.sequence != 0 || view.heads != 0) return;
    refuse("was left out; expected a view with batch " + std::to_string(batch) + ", " + std::to_string(sequence) +
           " tokens and " + std::to_string(heads) + (heads == 1 ? " head" : " heads"));
  }
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
  void check_stride(const char* what, std::int64_t size, std::int64_t stride) const {
    if (stride < 0 && size > 1) {
      refuse("has " + std::string{what} + " " + std::to_string(stride) + ", expected at least 0");
    }
  }
  template <class View>
  [[nodiscard]] footprint check_memory(const View& view, std::int64_t elements) const {
    constexpr std::int64_t bytes = sizeof(typename View::element);
    constexpr std::int64_t most = footprint::most_extent / bytes;
    if (view.size() == 0) return {};
    if (view.data == nullptr) refuse("is null");
    const auto address = reinterpret_cast<std::uintptr_t>(view.data);
    if (address % alignof(typename View::element) != 0) {
      refuse("is not aligned to its elements of " + std::to_string(bytes) + " bytes");
    }
    check_stride("batch_stride", view.batch, view.batch_stride);
    check_stride("sequence_stride", view.sequence, view.sequence_stride);
    check_stride("head_stride", view.heads, view.head_stride);
    const auto in_bytes = [](std::int64_t stride) { return stride > most ? most * bytes : stride * bytes; };
    const std::int64_t counts[] = {view.batch, view.sequence, view.heads};
    std::int64_t strides[] = {view.batch_stride, view.sequence_stride, view.head_stride};
    for (int i = 0; i < 3; ++i) strides[i] = counts[i] == 1 ? 0 : in_bytes(strides[i]);
    const footprint where = footprint::of(address, elements * bytes, counts, strides);
    if (where.extent < 0 || address + static_cast<std::uint64_t>(where.extent) < address) {
      refuse("has strides that lead out of the address space: batch_stride " + std::to_string(view.batch_stride) +
             ", sequence_stride " + std::to_string(view.sequence_stride) + ", head_stride " +
             std::to_string(view.head_stride));
    }
    return where;
  }
};

/// The views of one call, of which outputs must not share memory with any other. Outputs come first.
class call_views {
 public:
  /// Throws `std::invalid_argument` if the view does not fit, or if two of its elements, or an element and one of an
  /// output before it, share memory.
  template <class View>
  void writes(const expected_view& expected, const View& view) {
    const footprint bytes = expected.check(view);
    if (const overlap found = overlap_within(bytes); found != overlap::no) {
      expected.refuse(
          (found == overlap::yes ? std::string{"has elements that share memory"} : undecided("its own elements")) +
          ": batch_stride " + std::to_string(view.batch_stride) + ", sequence_stride " +
          std::to_string(view.sequence_stride) + ", head_stride " + std::to_string(view.head_stride) +
          "; each element of an output needs memory of its own");
    }
    expect_apart(expected, bytes);
    outputs_[count_++] = {expected.name, bytes};
  }

  /// Throws `std::invalid_argument` if the view does not fit, or shares memory with an output.
  template <class View>
  void reads(const expected_view& expected, const View& view) const {
    expect_apart(expected, expected.check(view));
  }

 private:
  struct output {
    const char* name = nullptr;
    footprint bytes;
  };

  static std::string undecided(const std::string& what) {
    return "has strides that do not nest and could lead to memory of " + what;
  }
  void expect_apart(const expected_view& expected, const footprint& bytes) const {
    for (int i = 0; i < count_; ++i) {
      const overlap found = overlap_of(outputs_[i].bytes, bytes);
      if (found == overlap::no) continue;
      const std::string other = outputs_[i].name;
      expected.refuse((found == overlap::yes ? "shares memory with " + other : undecided(other)) +
                      "; an output needs memory of its own, apart from the inputs and the other outputs");
    }
  }

  output outputs_[3];
  int count_ = 0;
};

}  // namespace orrery::detail
