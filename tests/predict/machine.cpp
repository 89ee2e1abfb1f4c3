// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Machines as data and as text: what is read, what is refused and with which words, and a fuzz of the reader.
#include "orrery/predict/machine.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/predict/detail/quantity.hpp"
#include "orrery/predict/machine_text.hpp"

#include "support/refusal.hpp"
#include "support/relative.hpp"

using orrery::machine;
using orrery::machine_named;
using orrery::read_machine;

namespace {

constexpr const char* presets[] = {"a100", "h100", "h800", "h200", "b200", "cpu-100gbe", "cpu-10gbe"};

/// A machine that says everything that there is to say.
constexpr const char* everything = R"(
# a comment
machine  2 nodes of 8 H100                  # and its name
device   full 640 TFLOP/s   causal 620 TF   backward 550 TFLOP/s   backward-causal 515 TFLOP/s
device   launch 10 us   prologue 40 columns   block 64 rows   units 132   name H100
device   memory 3.0 TB/s   capacity 80 GiB   merge 30 B   backward-merge 8 B   slowed 5 %
level    node     8 devices   NVLink4   365 GB/s   12 us   each its own
level    pod      2 nodes     PCIe      252Gbit/s   5us    shared by pod   half duplex
level    cluster  4 pods      100GbE    12.5 GB/s   1e-2 ms   shared by node   2 ports   full duplex
host     call 200 us   step 1 us   message 500 ns
rank     3 speed 90 %
rank     8-9 speed 150 %
)";

std::string wrong(const std::string& text) {
  return refusal_of([&] { (void)read_machine(text); });
}
/// The message about a line that follows these three; its place is line 4.
std::string wrong_line(const std::string& line) { return wrong("machine a\nlike h100\n\n  " + line + "\n"); }

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("a machine that says everything is read in base units") {
  const machine m = read_machine(everything);
  CHECK(m.name == "2 nodes of 8 H100");
  CHECK(m.device.name == "H100");
  CHECK(m.device.forward.full == 640e12);
  CHECK(m.device.forward.causal == 620e12);
  CHECK(m.device.backward.full == 550e12);
  CHECK(m.device.backward.causal == 515e12);
  CHECK(m.device.forward.launch == 10 * 1e-6);
  CHECK(m.device.backward.launch == 10 * 1e-6);
  CHECK(m.device.forward.prologue == 40);
  CHECK(m.device.forward.block == 64);
  CHECK(m.device.forward.units == 132);
  CHECK(m.device.forward.merge == 30);
  CHECK(m.device.backward.merge == 8);
  CHECK(m.device.memory == 3e12);
  CHECK(m.device.capacity == std::int64_t{80} << 30);
  CHECK(m.device.slowed == relative(0.05));
  CHECK(m.device.call == relative(200e-6));
  CHECK(m.device.step == relative(1e-6));
  CHECK(m.device.message == relative(500e-9));
  REQUIRE(m.levels.size() == 3);
  CHECK(m.levels[0] ==
        machine::level{.name = "node", .count = 8, .link = "NVLink4", .bandwidth = 365e9, .latency = 12 * 1e-6});
  CHECK(m.levels[1].shared_by == "pod");
  CHECK_FALSE(m.levels[1].full_duplex);
  CHECK(m.levels[1].bandwidth == 31.5e9);
  CHECK(m.levels[2].link == "100GbE");
  CHECK(m.levels[2].latency == relative(10e-6));
  CHECK(m.levels[2].shared_by == "node");
  CHECK(m.levels[2].ports == 2);
  CHECK(m.levels[2].full_duplex);
  CHECK(m.ranks() == 64);
  CHECK(m.ranks_of_level(-1) == 1);
  CHECK(m.ranks_of_level(1) == 16);
  CHECK(m.speed_of(3) == relative(0.9));
  CHECK(m.speed_of(4) == 1);
  CHECK(m.speed_of(9) == relative(1.5));
  CHECK(m.speed_of(10) == 1);
  CHECK(read_machine(to_string(m)) == m);
}

TEST_CASE("presets are machines, and are written as texts that are read as the same machines") {
  for (const char* const name : presets) {
    CAPTURE(name);
    const machine m = machine_named(name);
    CHECK(m.name == name);
    CHECK(m.ranks() >= 1024);
    CHECK(read_machine(to_string(m)) == m);
  }
  CHECK(refusal_of([] { (void)machine_named("h10"); }) ==
        "orrery: machine_named: \"h10\" is no machine; did you mean h100? There are a100, h100, h800, h200, b200, "
        "cpu-100gbe, cpu-10gbe");
}

TEST_CASE("a machine is like a preset, or another of its text, but for what it says") {
  const machine h100 = machine_named("h100");
  const machine m = read_machine(R"(
    machine small cluster
    like    base
    level   cluster  4 nodes
    device  units 66
    machine base
    like    h100
    level   cluster  25 GB/s  shared by node
    machine other
    device  like a100  causal 1 TF
    level   node 1 device
  )");
  CHECK(m.levels[0] == h100.levels[0]);
  CHECK(m.levels[1].count == 4);
  CHECK(m.levels[1].bandwidth == 25e9);
  CHECK(m.levels[1].latency == h100.levels[1].latency);
  CHECK(m.levels[1].link == "NDR");
  CHECK(m.levels[1].shared_by == "node");
  CHECK(m.device.forward.units == 66);
  CHECK(m.device.forward.full == h100.device.forward.full);
  const machine other =
      read_machine("machine x\nlike h100\nmachine other\ndevice like a100 causal 1 TF\nlevel n 1 device", "other");
  CHECK(other.device.forward.full == machine_named("a100").device.forward.full);
  CHECK(other.device.forward.causal == 1e12);
  CHECK(contains(refusal_of([] { (void)read_machine("machine x\nlike h100", "y"); }), "\"y\" is no machine"));
}

TEST_CASE("what a machine is like need not be one, and all of it can be overridden") {
  const machine m = read_machine(R"(
    machine whole
    like    part
    device  full 1 TF
    level   node  each its own
    rank    8-9 speed 150 %
    rank    3 speed 50 %
    machine part
    level   node  10 devices  1 GB/s  shared by node
  )");
  CHECK(m.levels[0].shared_by.empty());
  CHECK(m.speed_of(3) == relative(0.5));
  CHECK(m.speed_of(9) == relative(1.5));
  CHECK(contains(wrong("machine part\nlevel node 10 devices 1 GB/s"), "forward: full is 0"));
  const auto nested = [](int count) {
    std::string text;
    for (int i = 0; i + 1 < count; ++i)
      text += "machine m" + std::to_string(i) + "\nlike m" + std::to_string(i + 1) + "\n";
    return text + "machine m" + std::to_string(count - 1) + "\nlike h100\n";
  };
  CHECK(wrong(nested(64)).empty());
  CHECK(contains(wrong(nested(66)), "more than 64 machines are like each other"));
}

TEST_CASE("what is wrong is refused with its line, its column, and what is near") {
  struct wrong_text {
    const char* line;  // begins in column 3
    const char* column;
    const char* message;
  };
  const wrong_text all[] = {
      // Numbers without units, ambiguous and wrong ones.
      {"device launch 10", "17", "10 has no unit; launch is given in ns, us, ms, s"},
      {"level cluster 25", "17", "25 has no unit; bandwidth is given in bit/s, B/s"},
      {"level cluster 25 12 us", "17", "25 has no unit"},
      {"level cluster 25 Gb", "20", "\"Gb\" is read as bits by some and as bytes by others; write Gbit/s or GB/s"},
      {"level cluster 25 Gb/s", "20", "write Gbit/s or GB/s"},
      {"level cluster 25Gbps", "19", "write Gbit/s or GB/s"},
      {"level cluster 25 kb/s", "20", "write kbit/s or KB/s"},
      {"level cluster 25 GB", "20", "GB is the unit of something else; bandwidth is given in"},
      {"host call 3 GB/s", "15", "GB/s is the unit of something else; call is given in ns, us, ms, s"},
      {"device full 3 TFLOPs", "17", "\"TFLOPs\" is no unit of full; did you mean TFLOP/s?"},
      {"device full 3 TFLOPS/s", "17", "did you mean TFLOP/s?"},
      {"host call 3 sec", "15", "\"sec\" is no unit of call"},
      {"device units 12us", "16", "\"12us\" is no number, expected units"},
      {"rank 3 speed 0.9", "16", "0.9 has no unit; speed is given in %"},
      // Numbers that no machine has.
      {"level cluster -3 GB/s", "17", "bandwidth is -3 GB/s, expected more than 0"},
      {"level cluster 0 GB/s", "17", "bandwidth is 0 GB/s, expected more than 0"},
      {"level cluster 1e40 GB/s", "17", "bandwidth is 1e40 GB/s, expected more than 0 and at most 1e+06 TB/s"},
      {"level cluster 1e999 GB/s", "17", "bandwidth is 1e999 GB/s, expected"},
      {"level cluster 0 nodes", "17", "the number of nodes is 0, expected 1 to 1048576"},
      {"level cluster 2.5 nodes", "17", "the number of nodes is 2.5, expected a whole number"},
      {"level cluster 9999999 nodes", "17", "the number of nodes is 9999999, expected 1 to 1048576"},
      {"level cluster 0 ports", "17", "the number of ports is 0"},
      {"device full -1TF", "15", "full is -1TF, expected more than 0"},
      {"device full nan TFLOP/s", "15", "\"nan\" is no number, expected full"},
      {"device full inf TFLOP/s", "15", "\"inf\" is no number"},
      {"device launch 1e999 us", "17", "launch is 1e999 us, expected at least 0 and at most"},
      {"device launch -1 us", "17", "launch is -1 us, expected at least 0 and at most"},
      {"device units 0", "16", "units is 0, expected 1 to"},
      {"device slowed 101 %", "17", "slowed is 101 %, expected at least 0 and at most 100 %"},
      {"device capacity 0 GB", "19", "capacity is 0 GB, expected more than 0"},
      {"rank 3 speed 0 %", "16", "speed is 0 %, expected more than 0"},
      // Keys that are not known.
      {"devise full 1 TF", "3", "\"devise\" is no fact of a machine; did you mean device? There are machine, like"},
      {"device lanch 10 us", "10", "\"lanch\" is no fact of a device; did you mean launch?"},
      {"host cal 1 us", "8", "\"cal\" is no fact of a host; did you mean call? There are call, step, message"},
      {"rank 3 sped 90 %", "10", "\"sped\" stands where speed was expected"},
      {"level cluster NDR 25 GB/s each is own", "34", "\"is\" stands where each its own was expected"},
      {"level cluster NDR shard by node", "21", "\"shard\" is no fact of a level"},
      {"level cluster half duplx", "22", "\"duplx\" stands where half duplex or full duplex was expected"},
      {"level cluster shared by nod", "27", "\"nod\" is no level that is this one or below it; did you mean node?"},
      {"level rack 4 nodes 1 GB/s", "16", "\"nodes\" is no member of level rack; there are clusters"},
      // What is missing, or too much.
      {"device full", "14", "the line ends where a number, full, was expected"},
      {"level", "8", "the line ends where the name of a level was expected"},
      {"level 8 devices", "9", "\"8\" is no name of a level"},
      {"level rack 1 GB/s", "9", "level rack does not say how many clusters it has, as in 8 clusters"},
      {"level rack 4 clusters", "9", "level rack of 4 clusters does not say its bandwidth"},
      {"level cluster shared", "23", "the line ends where shared by LEVEL was expected"},
      {"rank x speed 90 %", "8", "\"x\" is no rank, expected a number from 0 to 1048575, or two as in 8-15"},
      {"rank 9-8 speed 90 %", "8", "the ranks 9-8 do not ascend"},
      {"rank 3- speed 90 %", "8", "\"3-\" is no rank"},
      {"rank 3 speed 90 % 4", "21", "\"4\" is too much in this line"},
      {"like a100", "3", "like must be the first line of its machine"},
      {"device full 1 TF like a100", "20", "like must be the first fact of a device"},
      {"device full 1 TF full 2 TF", "20", "device full is given twice"},
      {"level rack 4 clusters 1 GB/s 1 us 2 GB/s", "39", "bandwidth of level rack is given twice"},
      {"level rack 4 clusters 1 GB/s half duplex full duplex", "44", "duplex of level rack is given twice"},
      {"level rack 4 clusters 2 clusters 1 GB/s", "27", "clusters of level rack is given twice"},
      {"level rack 4 clusters 1 GB/s each its own shared by cluster", "45",
       "whose links those of level rack are is given twice"},
      {"machine a", "3", "a machine \"a\" stands in line 1 already"},
      {"machine", "3", "machine lacks a name"},
  };
  for (const wrong_text& one : all) {
    CAPTURE(one.line);
    const std::string message = wrong_line(one.line);
    CAPTURE(message);
    const std::string place = "orrery: read_machine: line 4, column " + std::string{one.column} + ": ";
    CHECK(message.substr(0, place.size()) == place);
    CHECK(contains(message, one.message));
  }
}

TEST_CASE("texts without a machine, with cycles or with machines that cannot be are refused") {
  CHECK(contains(wrong(""), "the text describes no machine; begin with a line \"machine NAME\""));
  CHECK(contains(wrong("# nothing\n\n"), "describes no machine"));
  CHECK(contains(wrong("device full 1 TF"), "line 1, column 1: \"device\" stands before the first machine"));
  CHECK(contains(wrong("machine a\nlike a"), "line 2, column 6: machine \"a\" is like itself; let one be"));
  CHECK(contains(wrong("machine a\nlike b\nmachine b\nlike c\nmachine c\nlike a"),
                 "line 6, column 6: machine \"a\" is like itself, by way of \"c\""));
  CHECK(contains(wrong("machine a\ndevice like b\nlevel n 1 device\nmachine b\ndevice like a\nlevel n 1 device"),
                 "machine \"a\" is like itself, by way of \"b\""));
  CHECK(
      contains(wrong("machine a\nlike h10"), "line 2, column 6: \"h10\" is no machine or preset; did you mean h100?"));
  CHECK(contains(wrong("machine a\nlike"), "line 2, column 1: like lacks a name"));
  CHECK(contains(wrong("machine a\nlike h100\nlevel node 2 devices\nlevel node 4 devices"),
                 "line 4, column 7: level node is given twice"));
  CHECK(contains(wrong("\nmachine a\nlevel node 1 device"), "the machine of line 2: forward: full is 0, expected"));
  CHECK(contains(wrong("machine a\ndevice full 1 TF"), "levels is empty, expected at least one level"));
  CHECK(contains(wrong("machine a\nlike h100\nlevel rack 1048576 clusters 1 GB/s"), "the number of ranks is"));
  CHECK(contains(wrong("machine a\nlike cpu-10gbe\nlevel cluster 2 nodes\nrank 2 speed 50 %"),
                 "speed is of 3 ranks, expected at most one for each of the 2 ranks"));
}

TEST_CASE("machines of programs are checked") {
  const machine good = machine_named("h100");
  const auto refused = [&](const auto& change) {
    machine m = good;
    change(m);
    return refusal_of([&] { m.check(); });
  };
  CHECK(refused([](machine&) {}).empty());
  CHECK(contains(refused([](machine& m) { m.levels.clear(); }), "levels is empty"));
  CHECK(contains(refused([](machine& m) { m.levels[0].count = 0; }), "level \"node\": count is 0, expected"));
  CHECK(contains(refused([](machine& m) { m.levels[0].name = "a b"; }), "name is \"a b\", expected one word"));
  CHECK(contains(refused([](machine& m) { m.levels[1].name = "node"; }), "name is given to two levels"));
  CHECK(contains(refused([](machine& m) { m.levels[1].shared_by = "pod"; }), "shared_by is \"pod\", expected"));
  CHECK(contains(refused([](machine& m) { m.levels[0].shared_by = "cluster"; }), "shared_by is \"cluster\", expected"));
  CHECK(contains(refused([](machine& m) { m.levels[0].bandwidth = 0; }), "bandwidth is 0, expected a number above 0"));
  CHECK(contains(refused([](machine& m) { m.levels[0].latency = -1; }), "latency is -1, expected a number from 0"));
  CHECK(contains(refused([](machine& m) { m.levels[0].ports = 0; }), "ports is 0"));
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK(contains(refused([&](machine& m) { m.levels[0].bandwidth = nan; }), "bandwidth is"));
  CHECK(contains(refused([&](machine& m) { m.device.forward.full = nan; }), "forward: full is"));
  CHECK(contains(refused([&](machine& m) { m.device.memory = -1; }), "device: memory is -1"));
  CHECK(contains(refused([&](machine& m) { m.device.backward.units = 0; }), "backward: units is 0"));
  CHECK(contains(refused([&](machine& m) { m.speed = {1, 0}; }), "speed is 0"));
  CHECK(contains(refused([&](machine& m) { m.device.capacity = -1; }), "capacity is -1"));
}

TEST_CASE("a machine that is smaller than the world, or whose nodes are not full, is refused") {
  machine m = machine_named("h100");
  m.levels[1].count = 4;
  for (const int world : {1, 2, 5, 8, 16, 24, 32}) CHECK_NOTHROW(m.check_world(world));
  CHECK(refusal_of([&] { m.check_world(33); }) ==
        "orrery: machine \"h100\": world is 33, but the machine has 32 ranks; give its outermost level, \"cluster\", "
        "more members than 4");
  CHECK(refusal_of([&] { m.check_world(12); }) ==
        "orrery: machine \"h100\": world is 12, which does not divide into groups of the level \"node\", of 8 ranks "
        "each; use a multiple of that, or give the level another number of members");
  CHECK(contains(refusal_of([&] { m.check_world(0); }), "world is 0, expected at least 1"));
}

TEST_CASE("numbers are written so that they are read as the same numbers") {
  std::mt19937_64 random{7};
  for (int i = 0; i < 2000; ++i) {
    const double value = std::ldexp(static_cast<double>(random() >> 11), static_cast<int>(random() % 60) - 50);
    CAPTURE(value);
    for (const orrery::detail::dimension of : {orrery::detail::dimension::time, orrery::detail::dimension::bandwidth,
                                               orrery::detail::dimension::computing}) {
      const std::string text = orrery::detail::quantity_text(value, of);
      CAPTURE(text);
      double number = 0;
      const std::size_t digits = orrery::detail::read_number(text, number);
      REQUIRE(digits > 0);
      const orrery::detail::unit* const unit = orrery::detail::unit_named(std::string_view{text}.substr(digits + 1));
      REQUIRE(unit != nullptr);
      CHECK(number * unit->factor == value);
    }
  }
}

TEST_CASE("numbers are written in the largest unit in which they are at least 1") {
  using orrery::detail::dimension;
  using orrery::detail::quantity_text;
  CHECK(quantity_text(365e9, dimension::bandwidth) == "365 GB/s");
  CHECK(quantity_text(2.5 * 1e-6, dimension::time) == "2.5 us");
  CHECK(quantity_text(0.5, dimension::time) == "500 ms");
  CHECK(quantity_text(2e13, dimension::computing) == "20 TFLOP/s");
  CHECK(quantity_text(1536, dimension::size) == "1.536 KB");
  double number = 0;
  CHECK(orrery::detail::read_number("+3.5 s", number) == 4);
  CHECK(number == 3.5);
  CHECK(orrery::detail::read_number("-3", number) == 2);
  CHECK(number == -3);
  CHECK(orrery::detail::read_number("+", number) == 0);
}

// Texts that are nearly right: words and characters of a right one are dropped, doubled, swapped, changed. Each is
// refused as an invalid argument, or read as a machine that can be.
TEST_CASE("the reader never fails otherwise than by a refusal") {
  std::vector<std::string> sources{everything};
  for (const char* const name : presets) sources.push_back(to_string(machine_named(name)));
  sources.emplace_back("machine a\nlike b\nmachine b\ndevice like h100\nlevel n 2 devices 1 GB/s 1 us\n");
  const std::string strange[] = {"-",
                                 "1e999",
                                 "0",
                                 "GB/s",
                                 "#",
                                 "\n",
                                 "\xff",
                                 "Gb",
                                 "like",
                                 "device",
                                 "8-",
                                 "%",
                                 "9223372036854775808",
                                 ".",
                                 "1.5e",
                                 "h100",
                                 "machine",
                                 "rank 1 speed 50 %"};
  std::mt19937 random{11};
  const auto below = [&](std::size_t n) { return random() % n; };
  int accepted = 0, refused = 0;
  for (int i = 0; i < 6000; ++i) {
    std::string text = sources[below(sources.size())];
    for (std::size_t changes = 1 + below(3); changes > 0 && !text.empty(); --changes) {
      const std::size_t at = below(text.size());
      const std::size_t space = text.find_first_of(" \n", at);
      const std::size_t word_end = space == std::string::npos ? text.size() : space;
      switch (below(6)) {
        case 0:
          text.erase(at, 1);
          break;
        case 1:
          text.erase(at, word_end - at);
          break;
        case 2:
          text[at] = static_cast<char>(below(256));
          break;
        case 3:
          text.insert(at, strange[below(std::size(strange))]);
          break;
        case 4:
          text.insert(at, text.substr(below(text.size()), below(40)));
          break;
        default:
          text.resize(at);
          break;
      }
    }
    CAPTURE(text);
    machine m;
    const std::string refusal = refusal_of([&] { m = read_machine(text); });
    if (refusal.empty()) {
      ++accepted;
      CHECK_NOTHROW(m.check());
      if (m.device.forward.launch == m.device.backward.launch) CHECK_NOTHROW((void)read_machine(to_string(m)));
    } else {
      ++refused;
      CHECK(refusal.substr(0, 22) == "orrery: read_machine: ");
    }
  }
  CHECK(accepted > 200);
  CHECK(refused > 2000);
}
