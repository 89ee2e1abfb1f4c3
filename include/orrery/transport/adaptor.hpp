// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "orrery/schedule/program.hpp"
#include "orrery/transport/detail/collective_signature.hpp"
#include "orrery/transport/transport.hpp"

namespace orrery {

/// Base class of adaptors: transports that wrap another one. Forwards everything to the wrapped world. An adaptor
/// derives from it, defines `open`, and hides the members that it changes.
///
///     template <orrery::transport World>
///     struct slow : orrery::transport_adaptor<World, slow<World>> {
///       using orrery::transport_adaptor<World, slow<World>>::transport_adaptor;
///       template <class Call>
///       decltype(auto) collective(const Call& call) { return wait_a_little(), call(); }
///     };
///
/// All collective members but `open` call `collective(call)` of `Adaptor`, which by default calls `call()`.
template <transport World, class Adaptor>
class transport_adaptor {
 public:
  using memory = typename World::memory;

  explicit transport_adaptor(World& world) noexcept : world_{&world} {}

  [[nodiscard]] int rank() const noexcept { return world_->rank(); }
  [[nodiscard]] int size() const noexcept { return world_->size(); }
  [[nodiscard]] bool usable() { return world_->usable(); }
  void barrier() {
    self().collective([&] { world_->barrier(); });
  }
  [[nodiscard]] std::vector<std::string> all_gather(const std::string& text) {
    return self().collective([&] { return world_->all_gather(text); });
  }
  [[nodiscard]] std::vector<std::string> all_gather(const std::string& text,
                                                    detail::collective_call call) requires detail::naming_calls<World> {
    return self().collective([&] { return world_->all_gather(text, call); });
  }
  template <class T, std::size_t extent>
  void all_reduce_sum(std::span<T, extent> values) {
    self().collective([&] { world_->all_reduce_sum(values); });
  }
  void abandon(const std::string& why) requires detail::abandonable<World> { world_->abandon(why); }
  [[nodiscard]] detail::channel_of<World> open(const schedule::program& p, std::vector<exchange_pieces> pieces) {
    return world_->open(p, std::move(pieces));
  }

  template <class Call>
  decltype(auto) collective(const Call& call) {
    return call();
  }

 protected:
  [[nodiscard]] World& world() const noexcept { return *world_; }

 private:
  [[nodiscard]] Adaptor& self() noexcept { return static_cast<Adaptor&>(*this); }

  World* world_;
};

/// Base class of the channels of adaptors: forwards everything to the wrapped channel.
template <transport_channel Channel>
class channel_adaptor {
 public:
  explicit channel_adaptor(Channel inner) : inner_{std::move(inner)} {}

  void begin() { inner_.begin(); }
  void post(int exchange) { inner_.post(exchange); }
  void posted() requires detail::batching<Channel> { inner_.posted(); }
  void await(int exchange) { inner_.await(exchange); }
  void abandon(const std::string& why) requires detail::abandonable<Channel> { inner_.abandon(why); }
  void enter(call_part part, int step) noexcept requires detail::observing<Channel> { inner_.enter(part, step); }
  void leave() noexcept requires detail::observing<Channel> { inner_.leave(); }
  void ended() noexcept requires detail::observing<Channel> { inner_.ended(); }
  [[nodiscard]] auto context() const { return inner_.context(); }

 private:
  Channel inner_;
};

}  // namespace orrery
