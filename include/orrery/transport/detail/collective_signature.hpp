// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>

/// Signatures of collective calls. Ranks compare them when they meet in a call, so that calls that do not match are an
/// error, instead of one text read as another, or memory read past its end. Used by every transport.
namespace orrery::detail {

/// The kind of a collective call.
enum class collective_call : std::uint8_t {
  barrier,
  all_gather,
  all_reduce_sum,
  agreement,  ///< `require_agreement`: the construction of an operator
  open,       ///< `open`: the plan of an operator
  recorder,   ///< of `traced`: its construction and its timeline
};

/// The type of the values of an `all_reduce_sum`. Ranks may be built by different compilers, so it is described by the
/// type's properties, not by its name.
struct element_type {
  enum class kind : std::uint8_t { none, signed_integer, unsigned_integer, floating, other };

  element_type::kind category = kind::none;
  std::uint8_t digits = 0;  ///< `std::numeric_limits<T>::digits`: tells bfloat16 from float16
  std::uint32_t bytes = 0;

  template <class T>
  [[nodiscard]] static constexpr element_type of() noexcept {
    using limits = std::numeric_limits<T>;
    kind category = kind::other;
    if (limits::is_specialized && limits::is_integer) {
      category = limits::is_signed ? kind::signed_integer : kind::unsigned_integer;
    } else if (limits::is_specialized) {
      category = kind::floating;
    }
    return {category, static_cast<std::uint8_t>(limits::digits & 255), static_cast<std::uint32_t>(sizeof(T))};
  }

  friend constexpr bool operator==(const element_type&, const element_type&) = default;

  /// "float", "int32" or "a type of 24 bytes".
  [[nodiscard]] std::string name() const {
    if (category == kind::signed_integer) return "int" + std::to_string(bytes * 8);
    if (category == kind::unsigned_integer) return "uint" + std::to_string(bytes * 8);
    if (category == kind::floating && digits == 8 && bytes == 2) return "bfloat16";
    if (category == kind::floating && digits == 11 && bytes == 2) return "float16";
    if (category == kind::floating && digits == 24 && bytes == 4) return "float";
    if (category == kind::floating && digits == 53 && bytes == 8) return "double";
    return (category == kind::floating ? "a floating-point type of " : "a type of ") + std::to_string(bytes) + " bytes";
  }
};

/// One collective call of one rank. Two ranks make the same call if their signatures are equal.
struct collective_signature {
  /// The size of the serialized form in bytes, the same on every rank.
  static constexpr std::size_t size = 32;

  collective_call call = collective_call::barrier;
  element_type element{};      ///< of `all_reduce_sum`
  std::int64_t count = 0;      ///< values of `all_reduce_sum`; 0 for calls in which ranks may give different amounts
  std::uint64_t sequence = 0;  ///< this rank's collective calls before this one

  friend constexpr bool operator==(const collective_signature&, const collective_signature&) = default;

  /// The signature of `all_reduce_sum` of `count` values of type T.
  template <class T>
  [[nodiscard]] static constexpr collective_signature sum(std::size_t count, std::uint64_t sequence = 0) noexcept {
    return {collective_call::all_reduce_sum, element_type::of<T>(), static_cast<std::int64_t>(count), sequence};
  }

  /// Serializes the signature, to the same bytes on every machine. Transports send it before anything else of the call.
  [[nodiscard]] constexpr std::array<std::byte, size> serialize() const noexcept {
    std::array<std::byte, size> bytes{};
    put(bytes, 0, magic, 4);
    put(bytes, 4, static_cast<std::uint64_t>(call), 1);
    put(bytes, 5, static_cast<std::uint64_t>(element.category), 1);
    put(bytes, 6, element.digits, 1);
    put(bytes, 8, element.bytes, 4);
    put(bytes, 16, static_cast<std::uint64_t>(count), 8);
    put(bytes, 24, sequence, 8);
    return bytes;
  }

  /// Parses the output of `serialize`. Returns false, and leaves `into` unchanged, for anything else.
  [[nodiscard]] static constexpr bool parse(std::span<const std::byte> bytes, collective_signature& into) noexcept {
    if (bytes.size() != size || get(bytes, 0, 4) != magic) return false;
    if (get(bytes, 7, 1) != 0 || get(bytes, 12, 4) != 0) return false;
    if (get(bytes, 4, 1) > static_cast<std::uint64_t>(collective_call::recorder)) return false;
    if (get(bytes, 5, 1) > static_cast<std::uint64_t>(element_type::kind::other)) return false;
    if ((get(bytes, 16, 8) >> 63) != 0) return false;  // a count is not negative
    into.call = static_cast<collective_call>(get(bytes, 4, 1));
    into.element = {static_cast<element_type::kind>(get(bytes, 5, 1)), static_cast<std::uint8_t>(get(bytes, 6, 1)),
                    static_cast<std::uint32_t>(get(bytes, 8, 4))};
    into.count = static_cast<std::int64_t>(get(bytes, 16, 8));
    into.sequence = get(bytes, 24, 8);
    return true;
  }

  /// "all_reduce_sum of 4 values of float".
  [[nodiscard]] std::string describe() const {
    static constexpr const char* names[] = {"barrier",
                                            "all_gather",
                                            "all_reduce_sum",
                                            "require_agreement, as the construction of an operator does",
                                            "open, as the construction of an operator does",
                                            "traced, for its clock or timeline"};
    std::string text = names[static_cast<std::size_t>(call)];
    if (call == collective_call::all_reduce_sum)
      text += " of " + std::to_string(count) + " values of " + element.name();
    return text;
  }

 private:
  static constexpr std::uint64_t magic = 0x4f435331;  // "OCS1"

  static constexpr void put(std::array<std::byte, size>& bytes, std::size_t at, std::uint64_t number, int count) {
    for (int i = 0; i < count; ++i) {
      bytes[at + static_cast<std::size_t>(i)] = static_cast<std::byte>((number >> (8 * i)) & 255);
    }
  }
  [[nodiscard]] static constexpr std::uint64_t get(std::span<const std::byte> bytes, std::size_t at, int count) {
    std::uint64_t number = 0;
    for (int i = 0; i < count; ++i) {
      number |= static_cast<std::uint64_t>(bytes[at + static_cast<std::size_t>(i)]) << (8 * i);
    }
    return number;
  }
};

/// The result of comparing the signatures of all ranks.
struct collective_mismatch {
  /// Empty if all are equal; else a clause that says which ranks call what.
  std::string text;
  /// True if all ranks make the same call and differ only in the type or number of their values: an argument is wrong,
  /// and the world can still be used. False if the ranks have diverged.
  bool of_arguments = false;
};

/// Compares the signatures of all ranks, in the order of the ranks. Returns the same on every rank. If all are equal,
/// costs P comparisons and allocates nothing.
[[nodiscard]] inline collective_mismatch compare_signatures(std::span<const collective_signature> of_ranks) {
  bool equal = true;
  bool same_call = true;
  bool same_sequence = true;
  bool same_element = true;
  for (const collective_signature& signature : of_ranks) {
    equal = equal && signature == of_ranks[0];
    same_call = same_call && signature.call == of_ranks[0].call;
    same_sequence = same_sequence && signature.sequence == of_ranks[0].sequence;
    same_element = same_element && signature.element == of_ranks[0].element;
  }
  if (equal) return {};

  std::string groups;
  for (std::size_t first = 0; first < of_ranks.size(); ++first) {
    std::size_t before = 0;
    while (!(of_ranks[before] == of_ranks[first])) ++before;
    if (before < first) continue;  // named with that rank
    std::string ranks = std::to_string(first);
    bool several = false;
    for (std::size_t rank = first + 1; rank < of_ranks.size(); ++rank) {
      if (!(of_ranks[rank] == of_ranks[first])) continue;
      ranks += ", " + std::to_string(rank);
      several = true;
    }
    groups += (groups.empty() ? "" : "; ");
    groups += (several ? "ranks " + ranks + " call " : "rank " + ranks + " calls ") + of_ranks[first].describe();
    if (!same_sequence) groups += " as collective call " + std::to_string(of_ranks[first].sequence + 1);
  }
  if (!same_call || !same_sequence) {
    return {"ranks are in different collective calls: " + groups + "; let all ranks make the same calls, in one order",
            false};
  }
  return {"ranks give different values to one collective call: " + groups + "; give " +
              (same_element ? "equally many" : "values of one type"),
          true};
}

/// Throws, the same on every rank, if the signatures are not all equal: `std::invalid_argument` if only the type or
/// number of the values differs (the world can still be used). Else calls `fail(why)`, which must record the failure of
/// the world and throw `transport_error`.
template <class Fail>
void require_same_call(std::span<const collective_signature> of_ranks, const Fail& fail) {
  const collective_mismatch wrong = compare_signatures(of_ranks);
  if (wrong.text.empty()) return;
  if (wrong.of_arguments) throw std::invalid_argument{"orrery: " + wrong.text};
  fail(wrong.text);
}

}  // namespace orrery::detail
