// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "orrery/schedule/list.hpp"
#include "orrery/transport/adaptor.hpp"
#include "orrery/transport/transport.hpp"

namespace orrery {

/// Adaptor that counts what this rank sends in calls of the operators made from it. Costs two additions for each
/// exchange.
///
///     orrery::counted counting{world};
///     orrery::attention<orrery::ring, orrery::flash<float>> attend{counting, shape};
///     attend.forward(...);
///     counting.bytes_sent();
template <transport World>
class counted : public transport_adaptor<World, counted<World>> {
  struct totals {
    std::int64_t bytes = 0;
    std::int64_t messages = 0;
  };

 public:
  explicit counted(World& world)
      : transport_adaptor<World, counted<World>>{world}, totals_{std::make_shared<totals>()} {}

  /// Bytes and messages that this rank has sent in exchanges since construction or `reset`.
  [[nodiscard]] std::int64_t bytes_sent() const noexcept { return totals_->bytes; }
  [[nodiscard]] std::int64_t messages_sent() const noexcept { return totals_->messages; }
  void reset() noexcept { *totals_ = {}; }

  class channel : public channel_adaptor<detail::channel_of<World>> {
   public:
    channel(detail::channel_of<World> inner, std::shared_ptr<totals> totals, schedule::list<std::int64_t> bytes)
        : channel_adaptor<detail::channel_of<World>>{std::move(inner)},
          totals_{std::move(totals)},
          bytes_{std::move(bytes)} {}

    void post(int exchange) {
      if (const std::int64_t bytes = bytes_[exchange]; bytes >= 0) {
        totals_->bytes += bytes;
        ++totals_->messages;
      }
      channel_adaptor<detail::channel_of<World>>::post(exchange);
    }

   private:
    std::shared_ptr<totals> totals_;
    schedule::list<std::int64_t> bytes_;  // of each exchange; -1 if it sends no message
  };

  [[nodiscard]] channel open(const schedule::program& p, std::vector<exchange_pieces> pieces) {
    schedule::list<std::int64_t> bytes;
    for (const exchange_pieces& of_exchange : pieces) {
      std::int64_t sum = of_exchange.sent.empty() ? -1 : 0;
      for (const piece& part : of_exchange.sent) sum += part.bytes;
      bytes.push_back(sum);
    }
    return {this->world().open(p, std::move(pieces)), totals_, std::move(bytes)};
  }

 private:
  std::shared_ptr<totals> totals_;
};

}  // namespace orrery
