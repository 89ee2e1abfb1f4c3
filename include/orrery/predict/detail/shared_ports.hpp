// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace orrery::detail {

/// Ports whose bandwidth the messages that use them share max-min fairly, as TCP, InfiniBand and NVLink do to a good
/// approximation: no message gets more unless one with less loses.
///
/// Messages that use the same two ports have one rate: they are a *class*, which remembers how many bytes each of its
/// messages has been served. A message begins at some service and ends when the class has served its bytes more.
/// Rates are computed again only where something changed: for the classes that are connected by ports with those that
/// began or ended a message.
class shared_ports {
 public:
  struct completion {
    double at;
    int of_class;
    std::uint32_t version;  ///< it is void if the class has another by then
  };

  /// Ports of these capacities, in bytes per second.
  explicit shared_ports(const std::vector<double>& capacities) : ports_(capacities.size()) {
    for (std::size_t p = 0; p < capacities.size(); ++p) ports_[p].capacity = capacities[p];
  }

  /// A class of messages between two ports, none of which gets more than `most` bytes per second. Both may be one port.
  int add_class(int from, int to, double most) {
    flow_class one;
    one.ports[0] = from;
    one.ports[1] = to;
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
    return classes_[static_cast<std::size_t>(c.of_class)].version == c.version;
  }
  /// A valid completion has come: calls done(message) for each message that ends with it. Rates are wrong until
  /// `share`.
  template <class Done>
  void complete(double now, int of_class, const Done& done) {
    flow_class& c = class_of(of_class);
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
    mark(of_class);
    if (c.waiting.empty()) deactivate(of_class);
  }

  /// Computes the rates where they changed, and calls next(completion) for each class with another next completion.
  template <class Next>
  void share(double now, const Next& next) {
    while (!marked_.empty()) {
      const int first = marked_.back();
      marked_.pop_back();
      if (class_of(first).marked) share_component(now, first, next);
    }
  }

 private:
  struct flow {
    double ends;  ///< the service of its class at which it ends
    int message;
  };
  struct flow_class {
    int ports[2] = {0, 0};
    int places[2] = {-1, -1};  ///< where it is in the lists of its ports
    double most = 0;
    double rate = 0;      ///< of each message
    double served = 0;    ///< bytes of each message, since the class has had any
    double updated = 0;   ///< when that was
    double next_end = 0;  ///< the service at which the completion that was announced comes
    std::uint32_t version = 0;
    bool marked = false;
    bool found = false;  ///< in this component
    bool fixed = false;
    std::vector<flow> waiting;  ///< a heap, the next to end in front
  };
  struct port {
    double capacity = 0;
    std::vector<int> classes;  ///< with messages under way
    double left = 0;
    std::int64_t count = 0;  ///< messages whose rate is not fixed yet
    bool found = false;
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
    ++c.version;
    c.rate = 0;
    c.served = 0;
  }

  /// The classes and ports that are connected with a class.
  void find_component(int first) {
    members_.clear();
    found_ports_.clear();
    const auto add_ports = [&](const flow_class& c) {
      for (int i = 0; i < ports_of(c); ++i) {
        port& p = port_of(c.ports[i]);
        if (p.found) continue;
        p.found = true;
        found_ports_.push_back(c.ports[i]);
      }
    };
    class_of(first).marked = false;
    add_ports(class_of(first));
    for (std::size_t next = 0; next < found_ports_.size(); ++next) {
      for (const int which : port_of(found_ports_[next]).classes) {
        flow_class& c = class_of(which);
        if (c.found) continue;
        c.found = true;
        c.marked = false;
        members_.push_back(which);
        add_ports(c);
      }
    }
  }

  template <class Next>
  void share_component(double now, int first, const Next& next) {
    find_component(first);
    const auto later = [](const candidate& a, const candidate& b) {
      return a.share > b.share || (a.share == b.share && a.port > b.port);
    };
    candidates_.clear();
    for (const int p : found_ports_) {
      port& one = port_of(p);
      one.found = false;
      one.left = one.capacity;
      one.count = 0;
      for (const int which : one.classes) one.count += static_cast<std::int64_t>(class_of(which).waiting.size());
      if (one.count > 0) candidates_.push_back({one.left / static_cast<double>(one.count), p});
    }
    std::make_heap(candidates_.begin(), candidates_.end(), later);
    std::sort(members_.begin(), members_.end(), [&](int a, int b) {
      return class_of(a).most < class_of(b).most || (class_of(a).most == class_of(b).most && a < b);
    });
    std::size_t slowest = 0;  // of the classes that are not fixed, that with the least `most`
    for (const int which : members_) {
      class_of(which).found = false;
      class_of(which).fixed = false;
    }
    const auto fix = [&](int which, double rate) {
      flow_class& c = class_of(which);
      c.fixed = true;
      const auto messages = static_cast<double>(c.waiting.size());
      for (int i = 0; i < ports_of(c); ++i) {
        port& p = port_of(c.ports[i]);
        p.left -= rate * messages;
        if (p.left < 0) p.left = 0;
        p.count -= static_cast<std::int64_t>(c.waiting.size());
      }
      set_rate(now, which, rate, next);
    };
    while (!candidates_.empty()) {
      while (slowest < members_.size() && class_of(members_[slowest]).fixed) ++slowest;
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
      if (slowest < members_.size() && class_of(members_[slowest]).most < share) {
        fix(members_[slowest], class_of(members_[slowest]).most);
        continue;
      }
      std::pop_heap(candidates_.begin(), candidates_.end(), later);
      candidates_.pop_back();
      for (const int which : p.classes) {
        if (!class_of(which).fixed) fix(which, share);
      }
    }
  }

  template <class Next>
  void set_rate(double now, int which, double rate, const Next& next) {
    flow_class& c = class_of(which);
    const double ends = c.waiting.front().ends;
    if (rate == c.rate && ends == c.next_end) return;
    advance(c, now);
    c.rate = rate;
    c.next_end = ends;
    const double left = ends - c.served;
    next(completion{now + (left > 0 ? left / rate : 0), which, ++c.version});
  }

  std::vector<port> ports_;
  std::vector<flow_class> classes_;
  std::vector<int> marked_, members_, found_ports_;
  std::vector<candidate> candidates_;
};

}  // namespace orrery::detail
