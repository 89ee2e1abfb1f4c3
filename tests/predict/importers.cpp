// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Machines from what others write: NCCL's topologies and ASTRA-sim's networks, whole, damaged and fuzzed.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>

#include <doctest/doctest.h>

#include "orrery/predict/import_astra.hpp"
#include "orrery/predict/import_nccl.hpp"
#include "orrery/predict/machine_text.hpp"

#include "support/refusal.hpp"

namespace importers_test {

using orrery::machine;
using orrery::machine_named;
using orrery::machine_of_astra_network;
using orrery::machine_of_nccl_topology;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }
bool is_about(double value, double expected) { return std::fabs(value - expected) <= 1e-9 * expected; }

std::string pci(const std::string& bus, const std::string& inside, const std::string& speed = "32.0 GT/s PCIe") {
  return "    <pci busid=\"" + bus + "\" class=\"0x030200\" link_speed=\"" + speed + "\" link_width=\"16\">\n" +
         inside + "    </pci>\n";
}
std::string node(const std::string& inside) {
  return "<system version=\"1\">\n  <cpu numaid=\"0\" affinity=\"ff\" arch=\"x86_64\">\n" + inside +
         "  </cpu>\n</system>\n";
}
std::string card(const std::string& name, const std::string& speed, const std::string& more = "") {
  return "      <nic>\n        <net name=\"" + name + "\" dev=\"0\" speed=\"" + speed + "\" port=\"1\" " + more +
         "/>\n      </nic>\n";
}

/// Two GPUs of an H100's kind behind four switches, with a card each and a slow one.
std::string two_h100() {
  std::string inside;
  for (const char* number : {"0", "1"}) {
    std::string links;
    for (const auto& [target, count] :
         {std::pair{"0000:05:00.0", "5"}, {"0000:06:00.0", "4"}, {"0000:07:00.0", "4"}, {"0000:08:00.0", "5"}}) {
      links += "        <nvlink target=\"" + std::string{target} + "\" count=\"" + count + "\" tclass=\"0x068000\"/>\n";
    }
    inside += pci(
        "0000:1" + std::string{number} + ":00.0",
        "      <gpu dev=\"" + std::string{number} + "\" sm=\"90\" rank=\"0\" gdr=\"1\">\n" + links + "      </gpu>\n");
    inside += pci("0000:2" + std::string{number} + ":00.0", card("mlx5_" + std::string{number}, "400000"));
  }
  return "<?xml version='1.0'?>\n<!-- a node -->\n" + node(inside + pci("0000:30:00.0", card("eth0", "25000")));
}

/// Two GPUs with four links to each other, and one card with a latency.
std::string two_v100() {
  const auto gpu = [](const char* dev, const char* peer) {
    return "      <gpu dev=\"" + std::string{dev} + "\" sm=\"70\" rank=\"0\" gdr=\"0\">\n        <nvlink target=\"" +
           peer + "\" count=\"4\" tclass=\"0x030200\"/>\n      </gpu>\n";
  };
  return node(pci("0000:1a:00.0", gpu("0", "0000:1b:00.0"), "8 GT/s") +
              pci("0000:1b:00.0", gpu("1", "0000:1a:00.0"), "8 GT/s") +
              pci("0000:1c:00.0", card("mlx5_0", "100000", "latency=\"2.5\" ")));
}

constexpr const char* three_dimensions = R"(# a comment
---
topology: [ Ring, FullyConnected, Switch ]  # kinds

npus_count: [ 2, 8, 4 ]
bandwidth: [200.0,100,50.0]   # GB/s
latency: [ 50.0, 500.0, 2e3 ] # ns
)";

TEST_CASE("NVLinks through switches: all links of a GPU, and a card for each") {
  const machine m = machine_of_nccl_topology(two_h100(), machine_named("h100"), 4);
  CHECK(m.ranks() == 8);
  CHECK(m.device == machine_named("h100").device);
  REQUIRE(m.levels.size() == 2);
  CHECK(m.levels[0].count == 2);
  CHECK(m.levels[0].link == "NVLink");
  CHECK(is_about(m.levels[0].bandwidth, 18 * 20.6e9));
  CHECK(m.levels[0].latency == machine_named("h100").levels[0].latency);
  CHECK(m.levels[1].count == 4);
  CHECK(is_about(m.levels[1].bandwidth, 50e9));
  CHECK(m.levels[1].shared_by.empty());
  CHECK(m.levels[1].latency == machine_named("h100").levels[1].latency);
  CHECK(orrery::read_machine(to_string(m)) == m);
  CHECK(machine_of_nccl_topology(two_h100(), machine_named("h100")).levels.size() == 1);
}

TEST_CASE("NVLinks without a switch: those between two GPUs; one card is shared by the node") {
  const machine m = machine_of_nccl_topology(two_v100(), machine_named("a100"), 3);
  REQUIRE(m.levels.size() == 2);
  CHECK(is_about(m.levels[0].bandwidth, 4 * 20e9));
  CHECK(is_about(m.levels[1].bandwidth, 12.5e9));
  CHECK(m.levels[1].shared_by == "node");
  CHECK(m.levels[1].ports == 1);
  CHECK(is_about(m.levels[1].latency, 2.5e-6));
}

TEST_CASE("GPUs that NVLink does not connect use PCI") {
  const std::string gpu = "      <gpu dev=\"0\" sm=\"80\"/>\n";
  const machine m = machine_of_nccl_topology(node(pci("0000:01:00.0", gpu, "16 GT/s") + pci("0000:02:00.0", gpu)),
                                             machine_named("a100"));
  CHECK(m.levels[0].link == "PCI");
  CHECK(is_about(m.levels[0].bandwidth, 24e9));
  // Three in a row: the ends have no link.
  const auto linked = [](const char* bus, const std::string& peer) {
    return pci(
        bus, "      <gpu dev=\"0\" sm=\"80\">\n        <nvlink target=\"" + peer + "\" count=\"2\"/>\n      </gpu>\n");
  };
  const machine row = machine_of_nccl_topology(node(linked("01", "02") + linked("02", "01") + linked("03", "02")),
                                               machine_named("a100"));
  CHECK(row.levels[0].link == "PCI");
  CHECK(is_about(row.levels[0].bandwidth, 48e9));
  // Three cards for two GPUs are shared; two of one speed beside a faster one do not count.
  const std::string two = pci("0000:01:00.0", gpu) + pci("0000:02:00.0", gpu);
  const std::string three = pci("11", card("a", "200000") + card("b", "200000") + card("c", "200000"));
  CHECK(machine_of_nccl_topology(node(two + three), machine_named("a100"), 2).levels[1].ports == 3);
  const std::string four = pci("12", card("d", "200000"));
  CHECK(
      is_about(machine_of_nccl_topology(node(two + three + four), machine_named("a100"), 2).levels[1].bandwidth, 50e9));
}

/// The text with the first `from`, which it must have, replaced.
std::string changed(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  return text.replace(at, from.size(), to);
}

TEST_CASE("a damaged topology of NCCL is refused with line, element and attribute") {
  const auto wrong = [](const std::string& text, int nodes = 1) {
    return refusal_of([&] { (void)machine_of_nccl_topology(text, machine_named("h100"), nodes); });
  };
  const std::string whole = two_v100();
  CHECK(wrong(whole).empty());
  const auto expect = [&](const std::string& from, const std::string& to, const std::string& message) {
    const std::string said = wrong(changed(whole, from, to));
    INFO(said);
    CHECK(contains(said, "orrery: machine_of_nccl_topology: line " + message));
  };
  expect("version=\"1\"", "version=\"2\"", "1: <system>: version is \"2\", expected \"1\"");
  expect(" version=\"1\"", "", "1: <system>: version is missing");
  expect("sm=\"70\"", "sm=\"seventy\"", "4: <gpu>: sm is \"seventy\", expected a number from 10 to 10000");
  expect("sm=\"70\"", "", "4: <gpu>: sm is missing");
  expect("sm=\"70\"", "sm=70", "4: <gpu>: the value of sm has no quotes");
  expect("sm=\"70\"", "sm", "4: <gpu>: sm has no value");
  expect("count=\"4\"", "count=\"0\"", "5: <nvlink>: count is \"0\", expected a number from 1 to 1000");
  expect("count=\"4\"", "count=\"4\" count=\"4\"", "5: <nvlink>: count is given twice");
  expect("speed=\"100000\"", "speed=\"fast\"", "15: <net>: speed is \"fast\"");
  expect("latency=\"2.5\"", "latency=\"-1\"", "15: <net>: latency is \"-1\"");
  expect("busid=\"0000:1b", "busid=\"0000:1a", "9: <gpu>: another one, of line 4, has the busid 0000:1a:00.0, too");
  expect("    </pci>", "    </cpu>", "7: </cpu> stands where </pci> of line 3 was expected");
  expect("</system>", "", "20: the text ends in <system> of line 1");
  expect("<gpu", "text <gpu", "4: text stands between elements");
  expect("\"1\">", "\"1\" ", "2: <system> has no >");
  expect("<cpu", "<!-- <cpu", "2: a comment does not end");
  CHECK(contains(wrong(whole + whole), "there is a second <system>"));
  CHECK(contains(wrong(""), "there is no <system>"));
  CHECK(contains(wrong("<cpu/>"), "<cpu> stands outside of the one <system>"));
  CHECK(contains(wrong(node("")), "<system> has no <gpu>"));
  CHECK(contains(wrong(node("<nvlink target=\"1\" count=\"1\"/>")), "<nvlink> stands outside of a <gpu>"));
  CHECK(contains(wrong("<system version=\"1\"><cpu host_hash=\"1\"/><cpu host_hash=\"2\"/></system>"),
                 "<cpu>: host_hash is another one than before"));
  CHECK(contains(wrong(node("<gpu dev=\"0\" sm=\"80\"/><gpu dev=\"1\" sm=\"80\"/>")), "their bandwidth is not known"));
  CHECK(contains(wrong(whole, 0), "nodes is 0, expected 1 to"));
  CHECK(contains(wrong(node("<gpu dev=\"0\" sm=\"80\"/>"), 2), "nodes is 2, but no <net> connects them"));
  std::string deep;
  for (int i = 0; i < 100; ++i) deep += "<a>";
  CHECK(contains(wrong(deep), "nested more than 64 deep"));
}

TEST_CASE("a network of ASTRA-sim has a level for each dimension") {
  const machine m = machine_of_astra_network(three_dimensions, machine_named("h100"));
  CHECK(m.ranks() == 64);
  REQUIRE(m.levels.size() == 3);
  CHECK(m.levels[0].count == 2);
  CHECK(m.levels[1].link == "FullyConnected");
  CHECK(is_about(m.levels[0].bandwidth, 200e9));
  CHECK(is_about(m.levels[2].bandwidth, 50e9));
  CHECK(is_about(m.levels[0].latency, 50e-9));
  CHECK(is_about(m.levels[2].latency, 2e-6));
  CHECK(m.device == machine_named("h100").device);
  CHECK(orrery::read_machine(to_string(m)) == m);
}

TEST_CASE("a damaged network of ASTRA-sim is refused with line and key") {
  const auto wrong = [](const std::string& text) {
    return refusal_of([&] { (void)machine_of_astra_network(text, machine_named("h100")); });
  };
  const auto expect = [&](const std::string& from, const std::string& to, const std::string& message) {
    const std::string said = wrong(changed(three_dimensions, from, to));
    INFO(said);
    CHECK(contains(said, "orrery: machine_of_astra_network: " + message));
  };
  expect("npus_count", "npu_count", "line 5: \"npu_count\" is no key of a network; did you mean npus_count?");
  expect("Ring", "Rings", "line 3: topology: \"Rings\" is no dimension; did you mean Ring?");
  expect("2, 8, 4", "2, 8", "line 5: npus_count has 2 dimensions, and topology in line 3 has 3");
  expect("2, 8, 4", "2, 8.5, 4", "line 5: npus_count: 8.5 is no whole number");
  expect("2, 8, 4", "2, -8, 4", "line 5: npus_count: \"-8\" of dimension 2, expected a number from 1 to");
  expect("2, 8, 4", "2, , 4", "line 5: npus_count has an empty value");
  expect("[ 2, 8, 4 ]", "64", "line 5: npus_count is \"64\", expected a list in one line, as [ 8, 4 ]");
  expect("200.0", "200GB/s", "line 6: bandwidth: \"200GB/s\" of dimension 1, expected a number from");
  expect("200.0", "0", "line 6: bandwidth: \"0\" of dimension 1");
  expect("50.0, 500", "-1, 500", "line 7: latency: \"-1\" of dimension 1");
  expect("latency: [ 50.0, 500.0, 2e3 ]", "", "latency is missing, expected a line such as \"latency: [ 900.0");
  expect("latency", "bandwidth: [1, 1, 1]\nlatency", "line 7: bandwidth is given twice, first in line 6");
  expect("topology", "a topology", "line 3: \"a topology\" is no key");
  expect("---", "hello", "line 2: \"hello\" is no line \"key: [ values ]\"");
  CHECK(contains(wrong(""), "topology is missing"));
  // Too large a machine is refused as every machine is.
  CHECK(
      contains(wrong("topology: [Ring,Ring,Ring]\nnpus_count: [1000000,1000,2]\nbandwidth: [1,1,1]\nlatency: [0,0,0]"),
               "the number of ranks is 1e+09"));
}

/// Cuts and flips a text; reading may only throw `std::invalid_argument`, and what it reads must be a machine.
void fuzz(const std::string& whole, const std::function<machine(const std::string&)>& read) {
  const auto is_safe = [&](const std::string& text) {
    try {
      read(text).check();
    } catch (const std::invalid_argument&) {}
  };
  for (std::size_t n = 0; n <= whole.size(); ++n) CHECK_NOTHROW(is_safe(whole.substr(0, n)));
  const std::string likely = "<>/\"'= \n[],:#-9eE.+0";
  std::mt19937_64 random{11};
  for (int i = 0; i < 5000; ++i) {
    std::string damaged = whole;
    for (std::uint64_t n = random() % 4 + 1; n > 0; --n) {
      const std::size_t at = random() % damaged.size();
      const std::uint64_t kind = random() % 4;
      if (kind == 0) {
        damaged.erase(at, random() % 8 + 1);
        if (damaged.empty()) damaged = " ";
      } else if (kind == 1) {
        damaged.insert(at, damaged.substr(random() % damaged.size(), random() % 40));
      } else {
        damaged[at] = kind == 2 ? likely[random() % likely.size()] : static_cast<char>(random() % 256);
      }
    }
    CHECK_NOTHROW(is_safe(damaged));
  }
}

TEST_CASE("damaged at random, both readers give a machine or refuse") {
  const machine like = machine_named("h100");
  fuzz(two_h100(), [&](const std::string& text) { return machine_of_nccl_topology(text, like, 4); });
  fuzz(two_v100(), [&](const std::string& text) { return machine_of_nccl_topology(text, like, 2); });
  fuzz(three_dimensions, [&](const std::string& text) { return machine_of_astra_network(text, like); });
}

}  // namespace importers_test
