// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <nvtx3/nvToolsExt.h>

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/transport/adaptor.hpp"
#include "orrery/transport/detail/describe.hpp"
#include "orrery/transport/transport.hpp"

namespace orrery::detail {

/// The domain of all ranges: profilers show and filter it by its name.
[[nodiscard]] inline nvtxDomainHandle_t nvtx_domain() noexcept {
  static const nvtxDomainHandle_t one = nvtxDomainCreateA("orrery");
  return one;
}

/// What a range is called.
[[nodiscard]] inline nvtxEventAttributes_t nvtx_attributes(const char* name) noexcept {
  nvtxEventAttributes_t attributes{};
  attributes.version = NVTX_VERSION;
  attributes.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  attributes.messageType = NVTX_MESSAGE_TYPE_ASCII;
  attributes.message.ascii = name;
  return attributes;
}

/// A nested range of this thread, from construction to destruction.
class nvtx_scope {
 public:
  explicit nvtx_scope(const char* name) noexcept {
    const nvtxEventAttributes_t attributes = nvtx_attributes(name);
    nvtxDomainRangePushEx(nvtx_domain(), &attributes);
  }
  nvtx_scope(const nvtx_scope&) = delete;
  nvtx_scope& operator=(const nvtx_scope&) = delete;
  ~nvtx_scope() { nvtxDomainRangePop(nvtx_domain()); }
};

/// A range that may overlap others and end on another thread.
class nvtx_range {
 public:
  nvtx_range() = default;
  nvtx_range(nvtx_range&& other) noexcept
      : id_{std::exchange(other.id_, 0)}, open_{std::exchange(other.open_, false)} {}
  nvtx_range& operator=(nvtx_range&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(open_, other.open_);
    return *this;
  }
  ~nvtx_range() { end(); }

  /// Ends the range if it is open, and begins it anew.
  void begin(const char* name) noexcept {
    end();
    const nvtxEventAttributes_t attributes = nvtx_attributes(name);
    id_ = nvtxDomainRangeStartEx(nvtx_domain(), &attributes);
    open_ = true;
  }
  void end() noexcept {
    if (std::exchange(open_, false)) nvtxDomainRangeEnd(nvtx_domain(), id_);
  }

 private:
  nvtxRangeId_t id_ = 0;
  bool open_ = false;
};

/// The names of the ranges of a plan, composed when it is made.
struct nvtx_names {
  std::string call;
  std::vector<std::string> steps;
  std::vector<std::string> tiles;
  std::vector<std::string> exchanges;

  explicit nvtx_names(const schedule::program& p) : call{name_of(p.pass)} {
    const auto blocks_of = [&](const auto& held) {
      list<block> blocks;
      for (const held_block& one : held) blocks.push_back(one.block);
      return describe_blocks(blocks, p.chunks);
    };
    for (int s = 0; s < p.steps.size(); ++s) {
      steps.push_back("step " + std::to_string(s));
      const auto& tile = p.steps[s].tile;
      tiles.push_back(tile.empty() ? ""
                                   : "tile of " + blocks_of(p.queries_of(tile)) + " and " + blocks_of(p.keys_of(tile)));
    }
    steps.emplace_back("after the last step");  // completes what then arrives
    tiles.emplace_back();
    for (int e = 0; e < p.exchanges.size(); ++e) {
      const schedule::exchange& x = p.exchanges[e];
      std::string text;
      if (x.received.count > 0) {
        text = describe_message(p, e, direction::receiving) + " from rank " + std::to_string(x.from);
      }
      if (x.sent.count > 0) {
        text += (text.empty() ? "" : ", ") + describe_message(p, e, direction::sending) + " to rank " +
                std::to_string(x.to);
      }
      exchanges.push_back(text);
    }
  }
};

}  // namespace orrery::detail

namespace orrery {

/// Adaptor that names what operators do for NVIDIA's profilers: ranges of NVTX, in the domain "orrery".
///
///     orrery::nvtx named{world};
///     orrery::attention<orrery::ring, orrery::device_flash<orrery::bfloat16>> attend{named, shape, orrery::causal{}};
///     attend.forward(...);  // nsys profile --trace=cuda,nvtx ...
///
/// Each rank's calls then have
///
/// - a range for the call: "forward", "circulate_keys" and the like, from its begin to its end;
/// - a range for each exchange, from its post to its await, which may overlap others: "key shard 1 from rank 2, key
///   shard 0 to rank 1";
/// - nested ranges of the calling thread for each step and, in it, its tile: "step 1", "tile of query shard 0 and key
///   shard 1" (what arrives at last is completed "after the last step"); and "collective" for the world's own
///   collective calls.
///
/// All are closed when a call throws. On a device they are the times in which work is enqueued; profilers also show
/// them over the kernels that were enqueued in them ("NVTX ranges projected onto the GPU"). The replay of a captured
/// graph (see `device_graph`) has no ranges.
///
/// Needs the header nvtx3/nvToolsExt.h, which comes with the CUDA toolkit and needs no library but, before glibc 2.34,
/// -ldl. Names are composed when a plan is made; calls allocate nothing. Costs an indirect branch for each range where
/// no profiler is attached; nothing where the world is not wrapped. Can wrap and be wrapped by other adaptors.
///
/// Source: NVTX, github.com/NVIDIA/NVTX, version 3.
template <transport World>
class nvtx : public transport_adaptor<World, nvtx<World>> {
  using channel_below = detail::channel_of<World>;

 public:
  explicit nvtx(World& world) noexcept : transport_adaptor<World, nvtx<World>>{world} {}

  /// Wraps every collective member.
  template <class Call>
  decltype(auto) collective(const Call& call) {
    const detail::nvtx_scope scope{"collective"};
    return call();
  }

  class channel : public channel_adaptor<channel_below> {
    using inner = channel_adaptor<channel_below>;

   public:
    channel(channel_below below, const schedule::program& p)
        : inner{std::move(below)},
          names_{std::make_unique<detail::nvtx_names>(p)},
          in_flight_(static_cast<std::size_t>(p.exchanges.size())) {}

    void begin() {
      ended();
      call_.begin(names_->call.c_str());
      inner::begin();
    }
    void post(int exchange) {
      const auto e = static_cast<std::size_t>(exchange);
      in_flight_[e].begin(names_->exchanges[e].c_str());
      inner::post(exchange);
    }
    void await(int exchange) {
      inner::await(exchange);
      in_flight_[static_cast<std::size_t>(exchange)].end();
    }
    void enter(call_part part, int step) noexcept {
      const auto s = static_cast<std::size_t>(step);
      const std::string& name = part == call_part::step ? names_->steps[s] : names_->tiles[s];
      const nvtxEventAttributes_t attributes = detail::nvtx_attributes(name.c_str());
      nvtxDomainRangePushEx(detail::nvtx_domain(), &attributes);
      if constexpr (detail::observing<channel_below>) inner::enter(part, step);
    }
    void leave() noexcept {
      if constexpr (detail::observing<channel_below>) inner::leave();
      nvtxDomainRangePop(detail::nvtx_domain());
    }
    void ended() noexcept {
      if constexpr (detail::observing<channel_below>) inner::ended();
      for (detail::nvtx_range& one : in_flight_) one.end();
      call_.end();
    }

   private:
    std::unique_ptr<detail::nvtx_names> names_;  // where they are stays
    std::vector<detail::nvtx_range> in_flight_;  // by exchange
    detail::nvtx_range call_;
  };

  [[nodiscard]] channel open(const schedule::program& p, std::vector<exchange_pieces> pieces) {
    return collective([&] { return channel{this->world().open(p, std::move(pieces)), p}; });
  }
};

}  // namespace orrery
