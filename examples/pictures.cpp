// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Draws the pictures of README.md from the library's own programs:
//
//     pictures DIRECTORY          writes them
//     pictures --check DIRECTORY  compares them with the files that are there; a difference is an error

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <orrery/orrery.hpp>

namespace {

using orrery::schedule::exchange;
using orrery::schedule::list;
using orrery::schedule::payload;
using orrery::schedule::range;
using orrery::schedule::side;
using orrery::schedule::step;
using programs = list<orrery::program>;

/// The schedule that README.md writes.
struct my_ring {
  [[nodiscard]] static constexpr orrery::program program(int rank, int world) {
    orrery::builder schedule{rank, world};
    for (int hop = 0; hop < world; ++hop) {
      if (hop + 1 < world) schedule.shift(orrery::key(rank - hop), +1);
      schedule.interact(orrery::query(rank), orrery::key(rank - hop));
      schedule.next_step();
    }
    return schedule;
  }
};

struct point {
  double x = 0;
  double y = 0;
};

/// A number without the zeros at its end.
std::string text_of(double number) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.1f", number);
  std::string shown = text.data();
  if (shown.size() > 2 && shown.substr(shown.size() - 2) == ".0") shown.resize(shown.size() - 2);
  return shown == "-0" ? "0" : shown;
}

/// An SVG file whose colours follow the reader's choice of light or dark.
class picture {
 public:
  picture(double width, double height, const std::string& description) {
    out_ << "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " << text_of(width) << " " << text_of(height)
         << "\" width=\"" << text_of(width) << "\" height=\"" << text_of(height) << "\" role=\"img\" aria-label=\""
         << description << "\">\n<title>" << description << "</title>\n<style>\n"
         << R"(text { font: 13px "DejaVu Sans", Verdana, sans-serif; fill: #1f2328; }
.title { font-weight: bold; }
.small { font-size: 11px; }
.middle { text-anchor: middle; }
.white { fill: #ffffff; }
.line { stroke: #59636e; stroke-width: 1.3; fill: none; }
.head { fill: #59636e; }
.frame { stroke: #8c959f; fill: none; }
.empty { stroke: #8c959f; stroke-width: 0.6; fill: none; }
.done { opacity: 0.28; }
.c0 { fill: #2f7dc1; }
.c1 { fill: #c9700c; }
.c2 { fill: #2f8f4e; }
.c3 { fill: #9457b8; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .white { fill: #ffffff; }
  .line { stroke: #9198a1; }
  .head { fill: #9198a1; }
  .frame, .empty { stroke: #6e7681; }
}
</style>
)";
  }

  void text(point at, const std::string& shown, const std::string& classes = "") {
    out_ << "<text x=\"" << text_of(at.x) << "\" y=\"" << text_of(at.y) << "\""
         << (classes.empty() ? "" : " class=\"" + classes + "\"") << ">" << shown << "</text>\n";
  }
  void box(point at, double width, double height, const std::string& classes, double radius = 0) {
    out_ << "<rect x=\"" << text_of(at.x) << "\" y=\"" << text_of(at.y) << "\" width=\"" << text_of(width)
         << "\" height=\"" << text_of(height) << "\""
         << (radius > 0 ? " rx=\"" + text_of(radius) + "\"" : std::string{}) << " class=\"" << classes << "\"/>\n";
  }
  void disc(point at, double radius, const std::string& classes) {
    out_ << "<circle cx=\"" << text_of(at.x) << "\" cy=\"" << text_of(at.y) << "\" r=\"" << text_of(radius)
         << "\" class=\"" << classes << "\"/>\n";
  }
  /// A straight arrow of some width whose tip is at `to`.
  void arrow(point from, point to, double width = 1.3) {
    const double length = std::hypot(to.x - from.x, to.y - from.y);
    const point along{(to.x - from.x) / length, (to.y - from.y) / length};
    const double head = 5 + width;
    const point neck{to.x - along.x * head, to.y - along.y * head};
    const point aside{-along.y * head * 0.55, along.x * head * 0.55};
    out_ << "<line x1=\"" << text_of(from.x) << "\" y1=\"" << text_of(from.y) << "\" x2=\"" << text_of(neck.x)
         << "\" y2=\"" << text_of(neck.y) << "\" class=\"line\" style=\"stroke-width:" << text_of(width)
         << "\"/>\n<path d=\"M" << text_of(to.x) << " " << text_of(to.y) << "L" << text_of(neck.x + aside.x) << " "
         << text_of(neck.y + aside.y) << "L" << text_of(neck.x - aside.x) << " " << text_of(neck.y - aside.y)
         << "Z\" class=\"head\"/>\n";
  }

  [[nodiscard]] std::string finish() {
    out_ << "</svg>\n";
    return out_.str();
  }

 private:
  std::ostringstream out_;
};

std::string color_of(int shard) { return "c" + std::to_string(shard % 4); }

/// "k0,2" for the blocks that an exchange sends, "+q1" for partials.
std::string name_of_sent(const orrery::program& p, const exchange& x) {
  std::string name = x.payload == payload::partial ? "+" : "";
  for (int b = x.sent.first; b < x.sent.end(); ++b) {
    const bool first = b == x.sent.first;
    name += (first ? (p.sent[b].side == side::query ? "q" : "k") : ",") + std::to_string(p.sent[b].shard);
  }
  return name;
}

std::string shards_of(const list<orrery::schedule::held_block>& blocks, const range& which, const std::string& prefix) {
  std::string shown;
  for (int b = which.first; b < which.end(); ++b) {
    shown += (shown.empty() ? prefix : ",") + std::to_string(blocks[b].block.shard);
  }
  return shown;
}

// Shard, block, tile, partial ----------------------------------------------------------------------------------------

std::string blocks_picture() {
  constexpr int world = 4;
  const programs all = orrery::programs_of(orrery::concentric<2, 2>{}, world);
  const orrery::program& p = all[0];
  int at = 0;
  while (p.steps[at].tile.empty()) ++at;
  const step& now = p.steps[at];

  picture out{860, 292, "A sequence in four shards; the tile that rank 0 computes; the partials that it makes"};
  constexpr double cell = 44, left = 92, top = 76;
  out.text({left, 20}, "Every query meets every key", "title");
  out.text({left, 42}, "key side: K and V of four shards", "small");
  for (int i = 0; i < world; ++i) {
    const double along = i * cell;
    out.box({left + along + 2, top - 24}, cell - 4, 20, color_of(i), 3);
    out.text({left + along + cell / 2, top - 9}, "k" + std::to_string(i), "small middle white");
    out.box({left - 28, top + along + 2}, 24, cell - 4, color_of(i), 3);
    out.text({left - 16, top + along + cell / 2 + 4}, "q" + std::to_string(i), "small middle white");
  }
  out.text({8, top + 2 * cell - 8}, "query", "small");
  out.text({8, top + 2 * cell + 6}, "side:", "small");
  out.text({8, top + 2 * cell + 20}, "Q", "small");
  for (int b = now.tile.queries.first; b < now.tile.queries.end(); ++b) {
    for (int c = now.tile.keys.first; c < now.tile.keys.end(); ++c) {
      out.box({left + p.keys[c].block.shard * cell, top + p.queries[b].block.shard * cell}, cell, cell,
              color_of(p.rank));
    }
  }
  for (int i = 0; i < world; ++i) {
    for (int j = 0; j < world; ++j) out.box({left + j * cell, top + i * cell}, cell, cell, "empty");
  }
  out.text({left, top + 4 * cell + 22},
           "tile: " + shards_of(p.queries, now.tile.queries, "q") + " × " + shards_of(p.keys, now.tile.keys, "k") +
               ", computed by rank 0 in one step",
           "small");

  // What becomes of it.
  constexpr double right = 420;
  out.text({right, 20}, "What moves", "title");
  const std::array<std::pair<const char*, const char*>, 3> lines{
      {{"shard i", "the tokens of rank i, its owner"},
       {"block", "one side of one shard: q1 is Q, k2 is K and V"},
       {"operand", "a block to read: it is copied to the ranks that need it"}}};
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const double y = 48 + 20 * static_cast<double>(i);
    out.text({right, y}, lines[i].first, "small title");
    out.text({right + 64, y}, lines[i].second, "small");
  }
  out.text({right, 108}, "partial", "small title");
  out.text({right + 64, 108}, "a sum under way (output and log-sum-exp of a query shard):", "small");
  out.text({right + 64, 124}, "it is moved to its owner and merged there, once", "small");
  out.box({right, 158}, 86, 86, color_of(p.rank), 4);
  out.text({right + 43, 198}, "rank 0:", "small middle white");
  out.text({right + 43, 212}, "its tile", "small middle white");
  double y = 176;
  for (int b = now.tile.queries.first; b < now.tile.queries.end(); ++b, y += 50) {
    const int shard = p.queries[b].block.shard;
    const std::string name = "+q" + std::to_string(shard);
    out.arrow({right + 88, y}, {right + 150, y});
    out.box({right + 152, y - 13}, 46, 26, color_of(shard), 4);
    out.text({right + 175, y + 4}, name, "small middle white");
    out.arrow({right + 200, y}, {right + 256, y});
    out.text({right + 262, y + 4},
             shard == p.rank ? "its owner is rank 0: it stays" : "to rank " + std::to_string(shard) + ", merged there",
             "small");
  }
  return out.finish();
}

// A ring beside concentric<2,2> ---------------------------------------------------------------------------------------

/// Draws one step: the pairs that are computed, and the messages that are in flight meanwhile.
void draw_step(picture& out, const programs& all, int at, point corner, const std::array<point, 4>& places) {
  constexpr double cell = 17;
  const int world = all.size();
  out.text({corner.x + 34, corner.y}, "step " + std::to_string(at), "small middle");
  for (int earlier = 0; earlier <= at; ++earlier) {
    for (const orrery::program& p : all) {
      if (earlier >= p.steps.size()) continue;
      const auto& tile = p.steps[earlier].tile;
      for (int q = tile.queries.first; q < tile.queries.end(); ++q) {
        for (int k = tile.keys.first; k < tile.keys.end(); ++k) {
          out.box({corner.x + p.keys[k].block.shard * cell, corner.y + 10 + p.queries[q].block.shard * cell}, cell,
                  cell, color_of(p.rank) + (earlier < at ? " done" : ""));
        }
      }
    }
  }
  for (int i = 0; i < world; ++i) {
    for (int j = 0; j < world; ++j) out.box({corner.x + j * cell, corner.y + 10 + i * cell}, cell, cell, "empty");
  }
  const auto place_of = [&](int rank) {
    const point& p = places[static_cast<std::size_t>(rank)];
    return point{corner.x + 34 + p.x * 36, corner.y + 140 + p.y * 36};
  };
  for (const orrery::program& p : all) {
    if (at >= p.steps.size()) continue;
    const range& posted = p.steps[at].exchanges;
    for (int e = posted.first; e < posted.end(); ++e) {
      const exchange& x = p.exchanges[e];
      if (x.sent.count == 0) continue;
      const point from = place_of(p.rank);
      const point to = place_of(x.to);
      const double length = std::hypot(to.x - from.x, to.y - from.y);
      const point along{(to.x - from.x) / length, (to.y - from.y) / length};
      const point aside{along.y, -along.x};
      const auto at_distance = [&](double d, double beside) {
        return point{from.x + along.x * d + aside.x * beside, from.y + along.y * d + aside.y * beside};
      };
      out.arrow(at_distance(14, 4), at_distance(length - 13, 4));
      const point label = at_distance(length / 2, 13);
      out.text({label.x, label.y + 4}, name_of_sent(p, x), "small middle");
    }
  }
  for (int rank = 0; rank < world; ++rank) {
    const point p = place_of(rank);
    out.disc(p, 11, color_of(rank));
    out.text({p.x, p.y + 4}, std::to_string(rank), "small middle white");
  }
}

std::string ring_and_concentric_picture() {
  constexpr int world = 4;
  constexpr double column = 124;
  picture out{920, 278, "The steps of a ring and of concentric&lt;2,2&gt; over four ranks"};
  const auto panel = [&](double left, const auto& topology, const std::array<point, 4>& places) {
    const programs all = orrery::programs_of(topology, world);
    const orrery::traffic_report cost = orrery::traffic(topology, world);
    std::string name = orrery::name_of(topology);
    for (std::size_t i = 0; (i = name.find_first_of("<>", i)) != std::string::npos;) {
      name.replace(i, 1, name[i] == '<' ? "&lt;" : "&gt;");
    }
    out.text({left, 20}, name, "title");
    out.text({left, 36},
             "a rank sends " + text_of(cost.sent) + " units in " + std::to_string(cost.messages_sent) + " messages",
             "small");
    for (int at = 0; at < cost.steps; ++at) draw_step(out, all, at, {left + at * column + 14, 60}, places);
  };
  panel(10, orrery::ring{}, {{{-1, -1}, {1, -1}, {1, 1}, {-1, 1}}});
  panel(10 + 4 * column + 40, orrery::concentric<2, 2>{}, {{{-1, -1}, {1, -1}, {-1, 1}, {1, 1}}});
  out.text({10, 270},
           "Squares: query shards (down) × key shards (across), in the colour of the rank that computes them; pale: "
           "done. Arrows: messages of the step.",
           "small");
  return out.finish();
}

// A schedule of one's own ---------------------------------------------------------------------------------------------

std::string my_ring_picture() {
  constexpr int world = 4;
  const programs all = orrery::programs_of(my_ring{}, world);
  constexpr double left = 80, top = 40, column = 150, row = 54, width = 84, height = 30;
  picture out{650, 304, "my_ring over four ranks: a row for each rank, a column for each step"};
  const auto cell = [&](int rank, int at) { return point{left + at * column, top + rank * row}; };
  for (int at = 0; at < all[0].steps.size(); ++at) {
    out.text({cell(0, at).x + width / 2, 24}, "step " + std::to_string(at), "small middle");
  }
  for (const orrery::program& p : all) {
    out.text({10, cell(p.rank, 0).y + 20}, "rank " + std::to_string(p.rank), "small");
    for (int at = 0; at < p.steps.size(); ++at) {
      const point corner = cell(p.rank, at);
      const auto& now = p.steps[at];
      out.box(corner, width, height, color_of(p.keys[now.tile.keys.first].block.shard), 4);
      out.text({corner.x + width / 2, corner.y + 20},
               shards_of(p.queries, now.tile.queries, "q") + " × " + shards_of(p.keys, now.tile.keys, "k"),
               "small middle white");
      for (int e = now.exchanges.first; e < now.exchanges.end(); ++e) {
        const exchange& x = p.exchanges[e];
        if (x.sent.count == 0) continue;
        const point from{corner.x + width + 2, corner.y + height / 2};
        const point target = cell(x.to, x.complete_before);
        const bool last = x.to < p.rank;  // from the last rank to the first: drawn as leaving, and as arriving
        if (last) {
          out.arrow(from, {from.x + 30, from.y + 26});
          out.text({from.x + 34, from.y + 36}, name_of_sent(p, x) + " to " + std::to_string(x.to), "small");
          out.arrow({target.x - 32, target.y - 14}, {target.x - 2, target.y + height / 2 - 4});
        } else {
          const point to{target.x - 2, target.y + height / 2 - 4};
          out.arrow(from, to);
          out.text({(from.x + to.x) / 2 + 6, (from.y + to.y) / 2 - 4}, name_of_sent(p, x), "small");
        }
      }
    }
  }
  out.text(
      {10, 276},
      "A box is a step's tile: these queries meet these keys. An arrow is a message in flight meanwhile:", "small");
  out.text({10, 294}, "it arrives before the step to which it points.", "small");
  return out.finish();
}

// Nodes and egress ----------------------------------------------------------------------------------------------------

std::string egress_picture() {
  constexpr int world = 16, ranks_per_node = 4, nodes = world / ranks_per_node;
  picture out{900, 342, "Sixteen ranks on four nodes: what nodes send to each other"};
  constexpr double panel_width = 300;
  const std::array<point, nodes> corners{{{0, 0}, {1, 0}, {1, 1}, {0, 1}}};
  int panels = 0;
  const auto panel = [&](const std::string& title, const auto& topology) {
    const double left = panel_width * panels++ + 14;
    const orrery::traffic_report cost = orrery::traffic(topology, world);
    out.text({left, 20}, title, "title");
    out.text({left, 38}, "the busiest node sends " + text_of(cost.node_egress(ranks_per_node)) + " units", "small");
    const auto middle_of = [&](int node) {
      const point& c = corners[static_cast<std::size_t>(node)];
      return point{left + 56 + c.x * 160, 100 + c.y * 160};
    };
    for (int a = 0; a < nodes; ++a) {
      const point m = middle_of(a);
      out.box({m.x - 38, m.y - 38}, 76, 76, "frame", 6);
      for (int i = 0; i < ranks_per_node; ++i) {
        const point at{m.x + (i % 2 == 0 ? -17 : 17), m.y + (i < 2 ? -17 : 17)};
        out.disc(at, 13, color_of(a));
        out.text({at.x, at.y + 4}, std::to_string(a * ranks_per_node + i), "small middle white");
      }
    }
    for (int a = 0; a < nodes; ++a) {
      for (int b = 0; b < nodes; ++b) {
        double units = 0;
        for (int from = a * ranks_per_node; from < (a + 1) * ranks_per_node; ++from) {
          for (int to = b * ranks_per_node; to < (b + 1) * ranks_per_node; ++to) {
            units += cost.between[from * world + to];
          }
        }
        if (a == b || units == 0) continue;
        const point from = middle_of(a);
        const point to = middle_of(b);
        const double length = std::hypot(to.x - from.x, to.y - from.y);
        const point along{(to.x - from.x) / length, (to.y - from.y) / length};
        const point aside{along.y, -along.x};
        const bool diagonal = std::abs(along.x) > 0.1 && std::abs(along.y) > 0.1;
        const double gap = diagonal ? 58 : 42;
        const auto at = [&](double d, double beside) {
          return point{from.x + along.x * d + aside.x * beside, from.y + along.y * d + aside.y * beside};
        };
        out.arrow(at(gap, 7), at(length - gap, 7), 1 + units / 8);
        const point label = at(length * (diagonal ? 0.36 : 0.5), 20);
        out.text({label.x, label.y + 4}, text_of(units), "small middle");
      }
    }
  };
  panel("ring", orrery::ring{});
  panel("concentric&lt;2,2&gt;, as written", orrery::concentric<2, 2>{});
  panel("the same, placed", orrery::placed{orrery::concentric<2, 2>{}, orrery::least_egress{ranks_per_node}});
  out.text({14, 330},
           "Boxes are nodes, discs their ranks. An arrow is labelled with the shard units that one node sends "
           "another in a forward.",
           "small");
  return out.finish();
}

std::string read(const std::filesystem::path& path) {
  std::ifstream in{path, std::ios::binary};
  return {std::istreambuf_iterator<char>{in}, {}};
}

}  // namespace

int main(int count, char** arguments) {
  std::vector<std::string> words(arguments + 1, arguments + count);
  const bool check = words.size() == 2 && words[0] == "--check";
  if (check) words.erase(words.begin());
  if (words.size() != 1 || words[0].empty() || words[0][0] == '-') {
    std::cerr << "usage: pictures [--check] DIRECTORY\n";
    return 2;
  }
  bool right = true;
  const std::vector<std::pair<std::string, std::string>> all{{"blocks.svg", blocks_picture()},
                                                             {"ring_and_concentric.svg", ring_and_concentric_picture()},
                                                             {"my_ring.svg", my_ring_picture()},
                                                             {"egress.svg", egress_picture()}};
  for (const auto& [name, drawn] : all) {
    const std::filesystem::path path = std::filesystem::path{words[0]} / name;
    if (!check) {
      std::ofstream{path, std::ios::binary} << drawn;
      std::cout << "written: " << path.string() << '\n';
    }
    if (read(path) != drawn) {
      std::cerr << path.string() << " is not what `pictures` draws; run it on this folder\n";
      right = false;
    }
  }
  return right ? 0 : 1;
}
