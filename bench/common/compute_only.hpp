// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

// A schedule's computation alone: the same operator, so the same tiles in the same order over the same buffers, with a
// transport that moves nothing and a kernel that does nothing but tiles. Its results mean nothing.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "orrery/host/memory.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/transport/adaptor.hpp"
#include "orrery/transport/transport.hpp"

#include "common/problem.hpp"

namespace bench {

/// Nothing is packed, merged or copied.
template <class Kernel>
struct tiles_of : Kernel {
  static std::string name() { return "tiles of " + Kernel::name(); }
  template <class... Views>
  static void copy(const Views&...) {}
  template <class... Views>
  static void add(const Views&...) {}
  template <class... Views>
  static void merge(const Views&...) {}
  template <class... Views>
  static void row_dot(const Views&...) {}
};

/// What would have arrived is there already: numbers from -1 to 1, since zeros may be faster than data.
template <class T>
class filled_memory : public orrery::detail::host_memory {
 public:
  filled_memory() = default;
  explicit filled_memory(std::int64_t bytes) : host_memory{bytes} {
    T* const all = reinterpret_cast<T*>(data());
    for (std::int64_t i = 0; i < bytes / static_cast<std::int64_t>(sizeof(T)); ++i)
      all[i] = static_cast<T>(value_at(5, i));
  }
};

/// The transport that moves nothing. Plans live in `Memory`, which has what would arrive; kernels are called with
/// `context`.
template <class Memory, class Context, orrery::transport World>
class null_transport : public orrery::transport_adaptor<World, null_transport<Memory, Context, World>> {
 public:
  using memory = Memory;

  struct channel {
    Context given;

    static void begin() {}
    static void post(int) {}
    static void await(int) {}
    [[nodiscard]] Context context() const { return given; }
  };

  null_transport(World& world, const Context& context)
      : orrery::transport_adaptor<World, null_transport>{world}, context_{context} {}

  [[nodiscard]] channel open(const orrery::program&, const std::vector<orrery::exchange_pieces>&) const {
    return {context_};
  }

 private:
  Context context_;
};

}  // namespace bench
