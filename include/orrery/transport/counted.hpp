// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/transport/adaptor.hpp"
#include "orrery/transport/transport.hpp"

namespace orrery {

/// Adaptor that counts what this rank sends and receives in calls of the operators made from it. Costs four additions
/// for each exchange.
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

    void operator+=(const totals& more) noexcept {
      bytes += more.bytes;
      messages += more.messages;
    }
  };
  struct both_ways {
    totals sent;
    totals received;
  };

 public:
  explicit counted(World& world)
      : transport_adaptor<World, counted<World>>{world}, totals_{std::make_shared<both_ways>()} {}

  /// Bytes and messages that this rank has sent in exchanges since construction or `reset`.
  [[nodiscard]] std::int64_t bytes_sent() const noexcept { return totals_->sent.bytes; }
  [[nodiscard]] std::int64_t messages_sent() const noexcept { return totals_->sent.messages; }
  /// Bytes and messages that this rank has begun to receive likewise.
  [[nodiscard]] std::int64_t bytes_received() const noexcept { return totals_->received.bytes; }
  [[nodiscard]] std::int64_t messages_received() const noexcept { return totals_->received.messages; }
  void reset() noexcept { *totals_ = {}; }

  class channel : public channel_adaptor<detail::channel_of<World>> {
   public:
    channel(detail::channel_of<World> inner, std::shared_ptr<both_ways> totals, schedule::list<both_ways> exchanges)
        : channel_adaptor<detail::channel_of<World>>{std::move(inner)},
          totals_{std::move(totals)},
          exchanges_{std::move(exchanges)} {}

    void post(int exchange) {
      totals_->sent += exchanges_[exchange].sent;
      totals_->received += exchanges_[exchange].received;
      channel_adaptor<detail::channel_of<World>>::post(exchange);
    }

   private:
    std::shared_ptr<both_ways> totals_;
    schedule::list<both_ways> exchanges_;  // what each adds
  };

  [[nodiscard]] channel open(const schedule::program& p, std::vector<exchange_pieces> pieces) {
    const auto message_of = [](const std::vector<piece>& parts) {
      totals message{0, parts.empty() ? 0 : 1};
      for (const piece& part : parts) message.bytes += part.bytes;
      return message;
    };
    schedule::list<both_ways> exchanges;
    for (const exchange_pieces& of_exchange : pieces)
      exchanges.push_back({message_of(of_exchange.sent), message_of(of_exchange.received)});
    return {this->world().open(p, std::move(pieces)), totals_, std::move(exchanges)};
  }

 private:
  std::shared_ptr<both_ways> totals_;
};

}  // namespace orrery
