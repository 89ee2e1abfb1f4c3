// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "orrery/detail/initializer_text.hpp"
#include "orrery/predict/detail/quantity.hpp"
#include "orrery/predict/detail/xml_elements.hpp"
#include "orrery/predict/machine.hpp"

namespace orrery::detail {

/// Makes a machine of what NCCL says of a node. See `machine_of_nccl_topology`.
class nccl_topology {
 public:
  explicit nccl_topology(std::string_view text) : xml_{"machine_of_nccl_topology", text} {
    check_system();
    for (std::size_t i = 0; i < xml_.all().size(); ++i) {
      const xml_element& one = xml_.all()[i];
      if (one.name == "gpu") add_gpu(one);
      if (one.name == "nvlink") add_links(one);
      if (one.name == "net") add_card(one);
    }
    if (gpus_.empty()) xml_.refuse(1, "<system> has no <gpu>; dump it with NCCL_TOPO_DUMP_FILE on a node with GPUs");
  }

  [[nodiscard]] machine like(const machine& preset, int nodes) const {
    const auto refuse = [](const std::string& why) {
      throw std::invalid_argument{"orrery: machine_of_nccl_topology: " + why};
    };
    if (nodes < 1 || nodes > machine_limits::members) {
      refuse("nodes is " + std::to_string(nodes) + ", expected 1 to " + std::to_string(machine_limits::members));
    }
    if (preset.levels.empty()) refuse("like has no levels, expected a machine such as machine_named(\"h100\")");
    machine m;
    m.device = preset.device;
    m.name = std::to_string(nodes) + (nodes == 1 ? " node of " : " nodes of ") + std::to_string(gpus_.size()) + " GPUs";
    m.levels.push_back(node_level(preset.levels.front().latency));
    if (nodes > 1) {
      if (cards_.empty()) refuse("nodes is " + std::to_string(nodes) + ", but no <net> connects them");
      m.levels.push_back(network_level(nodes, preset.levels.back().latency));
    }
    m.check();
    return m;
  }

 private:
  struct gpu {
    int line;
    int number;       ///< of the element
    double per_link;  ///< bytes per second
    double pci;       ///< bytes per second
    std::string_view bus;
    std::vector<std::string_view> peers{};  ///< that links lead to
    std::vector<double> links{};            ///< how many, of each
    bool has_switch = false;
  };
  struct card {
    double rate;     ///< bytes per second
    double latency;  ///< seconds; 0: not said
  };

  [[nodiscard]] std::string at(const xml_element& e, const char* attribute) const {
    return "<" + std::string{e.name} + ">: " + attribute;
  }
  [[nodiscard]] std::string_view text_of(const xml_element& e, const char* attribute) const {
    const std::string_view* const value = e.find(attribute);
    if (value == nullptr) xml_.refuse(e.line, at(e, attribute) + " is missing");
    return *value;
  }
  [[nodiscard]] double number_of(const xml_element& e, const char* attribute, double least, double most) const {
    const std::string_view text = text_of(e, attribute);
    double value = 0;
    if (read_number(text, value) == text.size() && !text.empty() && value >= least && value <= most) return value;
    xml_.refuse(e.line, at(e, attribute) + " is \"" + std::string{text} + "\", expected a number from " +
                            initializer_text::code_of(least) + " to " + initializer_text::code_of(most));
  }

  void check_system() const {
    if (xml_.all().empty()) xml_.refuse(1, "there is no <system>; dump it with NCCL_TOPO_DUMP_FILE");
    std::string_view host;
    for (const xml_element& one : xml_.all()) {
      if ((one.parent < 0) != (one.name == "system")) {
        xml_.refuse(one.line, "<" + std::string{one.name} + "> stands " + (one.parent < 0 ? "outside" : "inside") +
                                  " of the one <system>");
      }
      if (one.parent < 0) {
        if (&one != &xml_.all().front()) xml_.refuse(one.line, "there is a second <system>");
        const std::string_view version = text_of(one, "version");
        if (version != "1") {
          xml_.refuse(one.line, at(one, "version") + " is \"" + std::string{version} +
                                    "\", expected \"1\": other libraries than NCCL write others");
        }
      }
      const std::string_view* const of = one.name == "cpu" ? one.find("host_hash") : nullptr;
      if (of == nullptr) continue;
      if (!host.empty() && host != *of) {
        xml_.refuse(one.line, at(one, "host_hash") +
                                  " is another one than before: the file describes several nodes, "
                                  "expected one; give their number as `nodes`");
      }
      host = *of;
    }
  }

  /// Bytes per second of an NVLink, in one direction, as NCCL counts them.
  [[nodiscard]] double rate_of_link(const xml_element& e) const {
    const auto sm = static_cast<int>(number_of(e, "sm", 10, 10000));
    if (sm >= 100) return 40.1e9;
    if (sm >= 90) return 20.6e9;
    if (sm == 86) return 12e9;
    if (sm >= 70) return 20e9;
    return sm >= 60 ? 18e9 : 20e9;
  }
  /// Bytes per second of the PCI device that an element stands in; as NCCL counts them.
  [[nodiscard]] double rate_of_pci(const xml_element& e) const {
    if (e.parent < 0 || xml_.all()[static_cast<std::size_t>(e.parent)].name != "pci") return 0;
    const xml_element& pci = xml_.all()[static_cast<std::size_t>(e.parent)];
    const std::string_view* const speed = pci.find("link_speed");
    double transfers = 0;
    if (speed == nullptr || read_number(*speed, transfers) == 0) return 0;
    if (!(transfers > 0 && transfers <= 1000)) {
      xml_.refuse(pci.line,
                  at(pci, "link_speed") + " is \"" + std::string{*speed} + "\", expected as \"16 GT/s PCIe\"");
    }
    double width = number_of(pci, "link_width", 0, 64);
    if (width == 0) width = 16;
    return transfers * 0.75e9 / 8 * width;
  }

  void add_gpu(const xml_element& e) {
    (void)number_of(e, "dev", 0, 1e6);
    const auto number = static_cast<int>(&e - xml_.all().data());
    std::string_view bus;
    if (e.parent >= 0) {
      const std::string_view* const of = xml_.all()[static_cast<std::size_t>(e.parent)].find("busid");
      if (of != nullptr) bus = *of;
    }
    for (const gpu& other : gpus_) {
      if (bus.empty() || other.bus != bus) continue;
      xml_.refuse(e.line, "<gpu>: another one, of line " + std::to_string(other.line) + ", has the busid " +
                              std::string{bus} + ", too");
    }
    gpus_.push_back({e.line, number, rate_of_link(e), rate_of_pci(e), bus});
  }
  void add_links(const xml_element& e) {
    if (gpus_.empty() || e.parent != gpus_.back().number) xml_.refuse(e.line, "<nvlink> stands outside of a <gpu>");
    gpu& of = gpus_.back();
    of.peers.push_back(text_of(e, "target"));
    of.links.push_back(number_of(e, "count", 1, 1000));
    const std::string_view* const kind = e.find("tclass");
    of.has_switch = of.has_switch || (kind != nullptr && kind->substr(0, 6) == "0x0680");
  }
  void add_card(const xml_element& e) {
    double speed = number_of(e, "speed", -1e9, 1e9);  // Mbit/s
    if (speed <= 0) speed = 10000;                    // as NCCL does
    const double latency = e.find("latency") == nullptr ? 0 : number_of(e, "latency", 0, 1e9);
    cards_.push_back({speed * 1e6 / 8, latency * 1e-6});
  }

  /// With a switch, all links of a GPU reach every other one; without, those between two of them; else PCI.
  [[nodiscard]] machine::level node_level(double latency) const {
    machine::level l{.name = "node", .count = static_cast<int>(gpus_.size()), .link = "NVLink", .latency = latency};
    double least = machine_limits::bytes_per_second;
    double pci = machine_limits::bytes_per_second;
    for (const gpu& one : gpus_) {
      pci = (std::min)(pci, one.pci);
      double all = 0;
      for (const double count : one.links) all += count;
      if (!one.has_switch) {
        for (const gpu& other : gpus_) {
          if (&other == &one) continue;
          double between = 0;
          for (std::size_t i = 0; i < one.peers.size(); ++i) {
            if (one.peers[i] == other.bus) between += one.links[i];
          }
          all = (std::min)(all, between);
        }
      }
      least = (std::min)(least, all * one.per_link);
    }
    if (least > 0) {
      l.bandwidth = least;
      return l;
    }
    l.link = "PCI";
    l.bandwidth = pci;
    if (pci > 0 || gpus_.size() == 1) return l;
    xml_.refuse(gpus_.front().line,
                "<gpu>: neither NVLinks between all GPUs nor link_speed and link_width of their <pci>, so that their "
                "bandwidth is not known");
  }
  /// The fastest cards; slower ones are for something else.
  [[nodiscard]] machine::level network_level(int nodes, double latency) const {
    double rate = 0;
    for (const card& one : cards_) rate = (std::max)(rate, one.rate);
    int ports = 0;
    for (const card& one : cards_) {
      if (one.rate < rate) continue;
      ++ports;
      if (one.latency > 0) latency = one.latency;
    }
    machine::level l{.name = "cluster", .count = nodes, .link = "network", .bandwidth = rate, .latency = latency};
    const auto devices = static_cast<int>(gpus_.size());
    if (ports % devices == 0) {
      const int of_each = ports / devices;
      l.bandwidth = rate * of_each;
    } else {
      l.shared_by = "node";
      l.ports = ports;
    }
    return l;
  }

  xml_elements xml_;
  std::vector<gpu> gpus_;
  std::vector<card> cards_;
};

}  // namespace orrery::detail

namespace orrery {

/// The machine of a topology that NCCL has written of one node (with NCCL_TOPO_DUMP_FILE=node.xml), and of so many
/// nodes like it:
///
///     const auto m = orrery::machine_of_nccl_topology(text, orrery::machine_named("h100"), 16);
///     std::cout << to_string(m);
///
/// From the text: the number of GPUs; the bandwidth of their NVLinks, count times NCCL's rate for a link of that GPU
/// (through switches, all links of a GPU; without, those between two GPUs), or, where not all are connected by NVLink,
/// of PCI; the network cards with the highest speed, each a GPU's own if their numbers match and shared by the node
/// else, and their latency if the text gives one. From `like`: the device with its kernels and memory, the latency of
/// its first level, and that of its last one. Says nothing of what the network between nodes is.
///
/// Throws `std::invalid_argument` with line, element and attribute for what cannot be read: a text that is not of NCCL,
/// of several nodes, without GPUs, or with numbers that cannot be.
[[nodiscard]] inline machine machine_of_nccl_topology(std::string_view xml, const machine& like, int nodes = 1) {
  return detail::nccl_topology{xml}.like(like, nodes);
}

}  // namespace orrery
