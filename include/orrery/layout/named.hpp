// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

#include "orrery/layout/detail/layout_source.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/layout/per_document.hpp"
#include "orrery/layout/segment.hpp"
#include "orrery/schedule/detail/names.hpp"

namespace orrery {

/// A layout that is chosen at run time: it has the name, the shards and the chunks of the one that it holds, which
/// copies share. Only if `has_whole_shards()` can it be asked for a shard.
class any_layout {
 public:
  template <class Layout>
    requires(!std::same_as<Layout, any_layout> && layout<Layout>)
  any_layout(const Layout& l)  // NOLINT(google-explicit-constructor): a layout is a layout
      : held_{std::make_shared<const some<Layout>>(l)} {}

  [[nodiscard]] segments shard(int rank, int world, std::int64_t length) const {
    return held_->shard(rank, world, length);
  }
  [[nodiscard]] bool has_whole_shards() const { return held_->has_whole_shards(); }
  /// True if it is there to cut shards into chunks (see `chunked`).
  [[nodiscard]] bool asks_for_chunks() const { return held_->asks_for_chunks(); }
  [[nodiscard]] int chunks(int world, std::int64_t length) const { return held_->chunks(world, length); }
  [[nodiscard]] segments chunk(int rank, int chunk, int world, std::int64_t length) const {
    return held_->chunk(rank, chunk, world, length);
  }
  [[nodiscard]] std::string name() const { return held_->name(); }

 private:
  struct any {
    any() = default;
    any(const any&) = delete;
    any& operator=(const any&) = delete;
    virtual ~any() = default;
    [[nodiscard]] virtual segments shard(int rank, int world, std::int64_t length) const = 0;
    [[nodiscard]] virtual bool has_whole_shards() const = 0;
    [[nodiscard]] virtual bool asks_for_chunks() const = 0;
    [[nodiscard]] virtual int chunks(int world, std::int64_t length) const = 0;
    [[nodiscard]] virtual segments chunk(int rank, int chunk, int world, std::int64_t length) const = 0;
    [[nodiscard]] virtual std::string name() const = 0;
  };

  template <class Layout>
  struct some final : any {
    Layout held;

    explicit some(const Layout& l) : held{l} {}
    [[nodiscard]] segments shard(int rank, int world, std::int64_t length) const override {
      if constexpr (layout_of_shards<Layout>) return held.shard(rank, world, length);
      throw std::logic_error{"orrery: any_layout::shard: layout " + name() +
                             " has no whole shards; ask for its chunks"};
    }
    [[nodiscard]] bool has_whole_shards() const override { return layout_of_shards<Layout>; }
    [[nodiscard]] bool asks_for_chunks() const override { return detail::layout_source{held}.asks_for_chunks(); }
    [[nodiscard]] int chunks(int world, std::int64_t length) const override {
      if constexpr (layout_of_chunks<Layout>) return held.chunks(world, length);
      return 1;
    }
    [[nodiscard]] segments chunk(int rank, int chunk, int world, std::int64_t length) const override {
      if constexpr (layout_of_chunks<Layout>) {
        return held.chunk(rank, chunk, world, length);
      } else {
        return held.shard(rank, world, length);
      }
    }
    [[nodiscard]] std::string name() const override { return held.name(); }
  };

  std::shared_ptr<const any> held_;
};

}  // namespace orrery

namespace orrery::detail {

/// `striped<Run>`, with Run as a value.
struct named_striped {
  std::int64_t run;

  // NOLINTNEXTLINE(bugprone-exception-escape): adds one segment
  [[nodiscard]] segments shard(int rank, int world, std::int64_t length) const noexcept {
    return striped_shard(rank, world, length, run);
  }
  [[nodiscard]] std::string name() const { return "striped<" + std::to_string(run) + ">"; }
};

}  // namespace orrery::detail

namespace orrery {

/// The layout of this name, as `name()` writes it: for a trainer's flag. There are `contiguous`, `zigzag`, `striped`
/// and `striped<Run>`, Run >= 1; and with the lengths of packed documents `per_document<L>`, L being one of those (see
/// `per_document`).
///
///     orrery::attention<orrery::ring, orrery::flash<float>> attend{
///         world, shape, orrery::mask_named("causal"), orrery::layout_named("striped<16>")};
///
/// Throws `std::invalid_argument` for another name, with the nearest one and all that there are, and for lengths of
/// documents that are none.
[[nodiscard]] inline any_layout layout_named(std::string_view name, std::span<const std::int64_t> documents = {}) {
  static constexpr const char* known[] = {"contiguous", "zigzag", "striped<Run>", "per_document<L>"};
  static constexpr detail::nameable layouts{"layout_named", "layout", known};
  const detail::parsed_name parsed{name, layouts};
  if (parsed.is("contiguous")) return contiguous{};
  if (parsed.is("zigzag")) return zigzag{};
  if (parsed.is("striped", 0, 1)) {
    constexpr std::int64_t most = (std::numeric_limits<std::int64_t>::max)();
    return detail::named_striped{parsed.arguments() == 0 ? 1 : parsed.number(0, most)};
  }
  if (parsed.is("per_document", 1, 1)) {
    if (documents.empty()) parsed.refuse("needs the lengths of the documents: layout_named(name, lengths)");
    return per_document<any_layout>{documents, layout_named(parsed.argument(0))};
  }
  parsed.refuse_unknown();
}

}  // namespace orrery
