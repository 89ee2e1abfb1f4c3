// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "orrery/mask/causal.hpp"
#include "orrery/mask/mask.hpp"

/// Masks of a user, as device code may call them: constexpr functions, trivially copyable.
namespace cuda_test {

/// Keys at most `reach` positions away, with an exact interval test.
struct band {
  std::int64_t reach = 3;

  [[nodiscard]] constexpr bool visible(std::int64_t query, std::int64_t key) const {
    return (query > key ? query - key : key - query) <= reach;
  }
  [[nodiscard]] constexpr orrery::visibility classify(std::int64_t query_first, std::int64_t query_last,
                                                      std::int64_t key_first, std::int64_t key_last) const {
    if (key_first - query_last > reach || query_first - key_last > reach) return orrery::visibility::none;
    if (key_last - query_first <= reach && query_last - key_first <= reach) return orrery::visibility::all;
    return orrery::visibility::some;
  }
  [[nodiscard]] std::string name() const { return "band " + std::to_string(reach); }
};

/// Hash-like holes, and an interval test that knows nothing.
struct holes {
  [[nodiscard]] constexpr bool visible(std::int64_t query, std::int64_t key) const {
    return (query * 7 + key * 13) % 5 != 0;
  }
  [[nodiscard]] constexpr orrery::visibility classify(std::int64_t, std::int64_t, std::int64_t, std::int64_t) const {
    return orrery::visibility::some;
  }
  [[nodiscard]] std::string name() const { return "holes"; }
};

/// Packed documents: token i sees the tokens of its own document. Their boundaries (the positions at which documents
/// begin, the first 0, and the end) are in memory that the device can read.
struct packed {
  const std::int64_t* boundaries;
  int documents;

  [[nodiscard]] constexpr int document(std::int64_t position) const {
    int found = 0;
    while (found + 1 < documents && boundaries[found + 1] <= position) ++found;
    return found;
  }
  [[nodiscard]] constexpr bool visible(std::int64_t query, std::int64_t key) const {
    return document(query) == document(key);
  }
  [[nodiscard]] constexpr orrery::visibility classify(std::int64_t query_first, std::int64_t query_last,
                                                      std::int64_t key_first, std::int64_t key_last) const {
    const int first = document(query_first), last = document(query_last);
    if (document(key_last) < first || document(key_first) > last) return orrery::visibility::none;
    const bool one = first == last && document(key_first) == first && document(key_last) == first;
    return one ? orrery::visibility::all : orrery::visibility::some;
  }
  [[nodiscard]] std::string name() const { return "packed"; }
};

/// Any of these and the library's own, chosen at run time, so that a kernel is compiled once for all of them.
struct any_mask {
  enum class kind { full, causal, band, holes, packed };
  kind which = kind::full;
  bool blind = false;  ///< its interval test knows nothing
  orrery::causal causal{};
  cuda_test::band band{};
  cuda_test::packed packed{nullptr, 0};

  [[nodiscard]] constexpr bool visible(std::int64_t query, std::int64_t key) const {
    switch (which) {
      case kind::full:
        return true;
      case kind::causal:
        return causal.visible(query, key);
      case kind::band:
        return band.visible(query, key);
      case kind::holes:
        return holes{}.visible(query, key);
      default:
        return packed.visible(query, key);
    }
  }
  [[nodiscard]] constexpr orrery::visibility classify(std::int64_t query_first, std::int64_t query_last,
                                                      std::int64_t key_first, std::int64_t key_last) const {
    if (blind) return orrery::visibility::some;
    switch (which) {
      case kind::full:
        return orrery::visibility::all;
      case kind::causal:
        return causal.classify(query_first, query_last, key_first, key_last);
      case kind::band:
        return band.classify(query_first, query_last, key_first, key_last);
      case kind::holes:
        return orrery::visibility::some;
      default:
        return packed.classify(query_first, query_last, key_first, key_last);
    }
  }
  [[nodiscard]] std::string name() const { return "any mask, kind " + std::to_string(static_cast<int>(which)); }
};

}  // namespace cuda_test
