// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/host/plan_memory.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

namespace {

using orrery::detail::any_plan_memory;
using orrery::detail::host_memory;
using orrery::detail::plan_memory;

/// Memory of another kind.
class other_memory {
 public:
  other_memory() = default;
  explicit other_memory(std::int64_t bytes) : bytes_(static_cast<std::size_t>(bytes)) {}
  [[nodiscard]] std::byte* data() noexcept { return bytes_.data(); }

 private:
  std::vector<std::byte> bytes_;
};

}  // namespace

TEST_CASE("the next plan gets the buffers of the last one, in their order, and larger ones where these are too small") {
  auto buffers = plan_memory<host_memory>::reuse(nullptr);
  std::byte* const first = buffers->take("a test", 100);
  std::byte* const second = buffers->take("a test", 200);
  CHECK(first != second);
  CHECK(buffers->bytes() == 300);
  first[99] = std::byte{7};

  buffers = plan_memory<host_memory>::reuse(std::move(buffers));
  CHECK(buffers->take("a test", 60) == first);
  CHECK(first[99] == std::byte{7});
  CHECK(buffers->bytes() == 300);
  static_cast<void>(buffers->take("a test", 500));
  CHECK(buffers->bytes() == 600);
  static_cast<void>(buffers->take("a test", 1));
  CHECK(buffers->bytes() == 601);
}

TEST_CASE("buffers of another kind of memory are given back") {
  std::unique_ptr<any_plan_memory> kept = plan_memory<host_memory>::reuse(nullptr);
  static_cast<void>(static_cast<plan_memory<host_memory>&>(*kept).take("a test", 100));
  const auto buffers = plan_memory<other_memory>::reuse(std::move(kept));
  CHECK(buffers->bytes() == 0);
  CHECK(buffers->take("a test", 10) != nullptr);
  CHECK(buffers->bytes() == 10);
}
