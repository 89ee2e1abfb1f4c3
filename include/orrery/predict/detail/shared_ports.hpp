// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace orrery::detail {

/// Ports whose bandwidth the messages that use them share max-min fairly, as TCP, InfiniBand and NVLink do to a good
/// approximation: no message gets more unless one with less loses.
///
/// Messages that use the same two ports have one rate: they are a *class*, which remembers how many bytes each of its
/// messages has been served. A message begins at some service and ends when the class has served its bytes more.
/// Rates are computed again only where something changed: for the *component* of classes that are connected by ports
/// with those that began or ended a message. Of a component, only the next completion is announced.
class shared_ports {
 public:
  struct completion {
    double at;
    int component;
    std::uint32_t version;  ///< it is void if the component has another by then
  };

  /// Ports of these capacities, in bytes per second.
  explicit shared_ports(const std::vector<double>& capacities) : ports_(capacities.size()) {
    for (std::size_t p = 0; p < capacities.size(); ++p) ports_[p].capacity = capacities[p];
  }

  /// A class of messages between two ports, none of which gets more than `most` bytes per second. Both may be one port,
  /// of which `from_weight` counts. A message that stands for several of one port's has their number as its weight
  /// there.
  int add_class(int from, int to, double most, int from_weight = 1, int to_weight = 1) {
    flow_class one;
    one.ports[0] = from;
    one.ports[1] = to;
    one.weights[0] = from_weight;
    one.weights[1] = to_weight;
    one.most = most;
    classes_.push_back(std::move(one));
    return static_cast<int>(classes_.size()) - 1;
  }

  /// A message of `bytes` > 0 begins. Rates are wrong until `share`.
  void begin(double now, int of_class, double bytes, int message) {
    flow_class& c = class_of(of_class);
    advance(c, now);
    c.waiting.push_back({c.served + bytes, message});
    std::push_heap(c.waiting.begin(), c.waiting.end(), is_later);
    if (c.waiting.size() == 1) activate(of_class);
    mark(of_class);
  }

  /// True if this completion is still to come.
  [[nodiscard]] bool is_valid(const completion& c) const noexcept {
    return components_[static_cast<std::size_t>(c.component)].version == c.version;
  }
  /// A valid completion has come: calls done(message) for each message of the component that ends by `until`, which is
  /// `now` but for rounding. Rates are wrong until `share`.
  template <class Done>
  void complete(double now, double until, int of_component, const Done& done) {
    for (const int which : components_[static_cast<std::size_t>(of_component)].members) {
      flow_class& c = class_of(which);
      if (c.waiting.empty() || c.next_at > until) continue;
      advance(c, now);
      const double served = c.waiting.front().ends;
      const double slack = 1e-12 * served;
      if (c.served < served) c.served = served;
      while (!c.waiting.empty() && c.waiting.front().ends <= served + slack) {
        const int message = c.waiting.front().message;
        std::pop_heap(c.waiting.begin(), c.waiting.end(), is_later);
        c.waiting.pop_back();
        done(message);
      }
      c.next_at = infinity;
      mark(which);
      if (c.waiting.empty()) deactivate(which);
    }
  }

  /// Computes the rates where they changed, and calls next(completion) for the next one of each component that changed.
  template <class Next>
  void share(double now, const Next& next) {
    ++round_;
    while (!marked_.empty()) {
      flow_class& c = class_of(marked_.back());
      marked_.pop_back();
      if (!c.marked) continue;
      c.marked = false;
      leave_component(c);
      // The ports of a class that has no message any more may be in two components.
      for (int i = 0; i < ports_of(c); ++i) {
        if (port_of(c.ports[i]).round != round_) share_component(now, c.ports[i], next);
      }
    }
    free_.insert(free_.end(), retired_.begin(), retired_.end());
    retired_.clear();
  }

 private:
  static constexpr double infinity = (std::numeric_limits<double>::max)();

  struct flow {
    double ends;  ///< the service of its class at which it ends
    int message;
  };
  struct flow_class {
    int ports[2] = {0, 0};
    int places[2] = {-1, -1};  ///< where it is in the lists of its ports
    int weights[2] = {1, 1};   ///< how many messages of each port one of its messages is
    double most = 0;
    double rate = 0;            ///< of each message
    double served = 0;          ///< bytes of each message, since the class has had any
    double updated = 0;         ///< when that was
    double next_end = 0;        ///< the service at which its next message ends
    double next_at = infinity;  ///< when that will be
    int component = -1;
    bool marked = false;
    bool found = false;  ///< in this component
    bool fixed = false;
    std::vector<flow> waiting;  ///< a heap, the next to end in front
  };
  struct port {
    double capacity = 0;
    std::vector<int> classes;  ///< with messages under way
    double left = 0;
    std::int64_t count = 0;   ///< messages whose rate is not fixed yet
    std::uint64_t round = 0;  ///< when it was shared last
  };
  struct component {
    std::vector<int> members;
    std::uint32_t version = 0;
    bool live = false;
  };
  struct candidate {
    double share;
    int port;
  };

  [[nodiscard]] static bool is_later(const flow& a, const flow& b) noexcept {
    return a.ends > b.ends || (a.ends == b.ends && a.message > b.message);
  }
  [[nodiscard]] flow_class& class_of(int c) noexcept { return classes_[static_cast<std::size_t>(c)]; }
  [[nodiscard]] port& port_of(int p) noexcept { return ports_[static_cast<std::size_t>(p)]; }
  [[nodiscard]] static int ports_of(const flow_class& c) noexcept { return c.ports[0] == c.ports[1] ? 1 : 2; }

  static void advance(flow_class& c, double now) noexcept {
    c.served += c.rate * (now - c.updated);
    c.updated = now;
    if (c.waiting.empty()) {
      c.served = 0;  // keeps numbers accurate
      c.rate = 0;
    }
  }
  void mark(int which) {
    flow_class& c = class_of(which);
    if (c.marked) return;
    c.marked = true;
    marked_.push_back(which);
  }
  void activate(int which) {
    flow_class& c = class_of(which);
    for (int i = 0; i < ports_of(c); ++i) {
      port& p = port_of(c.ports[i]);
      c.places[i] = static_cast<int>(p.classes.size());
      p.classes.push_back(which);
    }
  }
  void deactivate(int which) {
    flow_class& c = class_of(which);
    for (int i = 0; i < ports_of(c); ++i) {
      port& p = port_of(c.ports[i]);
      const int last = p.classes.back();
      p.classes[static_cast<std::size_t>(c.places[i])] = last;
      p.classes.pop_back();
      flow_class& moved = class_of(last);
      for (int j = 0; j < 2; ++j) {
        if (moved.ports[j] == c.ports[i] && (j == 0 || ports_of(moved) == 2)) moved.places[j] = c.places[i];
      }
    }
    c.rate = 0;
    c.served = 0;
  }
  /// What was announced of a class's component is void. Its number is free when all of its classes have another: at the
  /// end of `share`, since each of them is connected with one that began or ended a message.
  void leave_component(flow_class& c) {
    if (c.component < 0) return;
    component& old = components_[static_cast<std::size_t>(c.component)];
    if (old.live) {
      old.live = false;
      ++old.version;
      retired_.push_back(c.component);
    }
    c.component = -1;
  }

  /// The classes and ports that are connected with a port.
  void find_component(int first, std::vector<int>& members) {
    members.clear();
    found_ports_.clear();
    const auto add_port = [&](int which) {
      port& p = port_of(which);
      if (p.round == round_) return;
      p.round = round_;
      p.left = p.capacity;
      p.count = 0;
      found_ports_.push_back(which);
    };
    add_port(first);
    for (std::size_t next = 0; next < found_ports_.size(); ++next) {
      for (const int which : port_of(found_ports_[next]).classes) {
        flow_class& c = class_of(which);
        if (c.found) continue;
        c.found = true;
        c.fixed = false;
        c.marked = false;
        leave_component(c);
        members.push_back(which);
        for (int i = 0; i < ports_of(c); ++i) add_port(c.ports[i]);
        const auto messages = static_cast<std::int64_t>(c.waiting.size());
        for (int i = 0; i < ports_of(c); ++i) port_of(c.ports[i]).count += messages * c.weights[i];
      }
    }
  }
  /// Sorts classes by the most that a message of theirs gets: of few different numbers.
  void sort_by_most(std::vector<int>& members) {
    double least = -1;
    sorted_.clear();
    while (sorted_.size() < members.size()) {
      double next = infinity;
      for (const int which : members) {
        const double most = class_of(which).most;
        if (most > least && most < next) next = most;
      }
      for (const int which : members) {
        if (class_of(which).most == next) sorted_.push_back(which);
      }
      least = next;
    }
    members.swap(sorted_);
  }

  template <class Next>
  void share_component(double now, int first, const Next& next) {
    if (free_.empty()) {
      free_.push_back(static_cast<int>(components_.size()));
      components_.emplace_back();
    }
    const int number = free_.back();
    component& made = components_[static_cast<std::size_t>(number)];
    std::vector<int>& members = made.members;
    find_component(first, members);
    const auto later = [](const candidate& a, const candidate& b) {
      return a.share > b.share || (a.share == b.share && a.port > b.port);
    };
    candidates_.clear();
    for (const int p : found_ports_) {
      port& one = port_of(p);
      if (one.count > 0) candidates_.push_back({one.left / static_cast<double>(one.count), p});
    }
    if (members.empty()) return;
    free_.pop_back();
    std::make_heap(candidates_.begin(), candidates_.end(), later);
    sort_by_most(members);
    double earliest = infinity;
    const auto fix = [&](int which, double rate) {
      flow_class& c = class_of(which);
      c.fixed = true;
      const auto messages = static_cast<std::int64_t>(c.waiting.size());
      for (int i = 0; i < ports_of(c); ++i) {
        port& p = port_of(c.ports[i]);
        p.left -= rate * static_cast<double>(messages * c.weights[i]);
        if (p.left < 0) p.left = 0;
        p.count -= messages * c.weights[i];
      }
      set_rate(now, c, rate);
      if (c.next_at < earliest) earliest = c.next_at;
    };
    std::size_t slowest = 0;  // of the classes that are not fixed, that with the least `most`
    while (!candidates_.empty()) {
      while (slowest < members.size() && class_of(members[slowest]).fixed) ++slowest;
      const candidate least = candidates_.front();
      port& p = port_of(least.port);
      const double share = p.count > 0 ? p.left / static_cast<double>(p.count) : 0;
      if (p.count == 0 || share > least.share) {  // others of its classes were fixed meanwhile
        std::pop_heap(candidates_.begin(), candidates_.end(), later);
        candidates_.pop_back();
        if (p.count > 0) {
          candidates_.push_back({share, least.port});
          std::push_heap(candidates_.begin(), candidates_.end(), later);
        }
        continue;
      }
      if (slowest < members.size() && class_of(members[slowest]).most < share) {
        fix(members[slowest], class_of(members[slowest]).most);
        continue;
      }
      std::pop_heap(candidates_.begin(), candidates_.end(), later);
      candidates_.pop_back();
      for (const int which : p.classes) {
        if (!class_of(which).fixed) fix(which, share);
      }
    }
    for (const int which : members) {
      class_of(which).found = false;
      class_of(which).component = number;
    }
    made.live = true;
    next(completion{earliest, number, ++made.version});
  }

  static void set_rate(double now, flow_class& c, double rate) noexcept {
    const double ends = c.waiting.front().ends;
    if (rate == c.rate && ends == c.next_end && c.next_at < infinity) return;
    advance(c, now);
    c.rate = rate;
    c.next_end = ends;
    const double left = ends - c.served;
    c.next_at = now + (left > 0 ? left / rate : 0);
  }

  std::vector<port> ports_;
  std::vector<flow_class> classes_;
  std::uint64_t round_ = 0;
  std::vector<int> marked_, found_ports_, sorted_;
  std::vector<candidate> candidates_;
  std::vector<component> components_;
  std::vector<int> free_, retired_;  ///< numbers of components
};

}  // namespace orrery::detail
