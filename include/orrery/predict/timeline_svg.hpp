// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <string>

#include "orrery/detail/svg_number.hpp"
#include "orrery/predict/prediction.hpp"

namespace orrery::detail {

/// Draws a predicted timeline: see `timeline_svg`.
class timeline_drawing {
 public:
  timeline_drawing(const prediction& p, int width) : p_{p}, width_{static_cast<double>(width)} {
    row_ = p.world <= 16 ? 22 : p.world <= 32 ? 14 : p.world <= 64 ? 9 : 4;
  }

  [[nodiscard]] std::string text() {
    const double bottom = top + row_ * p_.world;
    const double height = bottom + 52;
    const std::string sentence = escaped(p_.why());
    svg_ = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " + svg_number(width_) + " " + svg_number(height) +
           "\" width=\"" + svg_number(width_) + "\" height=\"" + svg_number(height) + "\" role=\"img\">\n<title>" +
           sentence + "</title>\n" + style;
    label(left, 16, "title", shortened(escaped(p_.schedule.empty() ? "schedule" : p_.schedule), "title"));
    label(left, 34, "note", shortened(sentence, "note"));
    axis(bottom);
    label(left - 6, top - 4, "rank", "rank");
    const int every = p_.world <= 32 ? 1 : p_.world <= 64 ? 4 : 16;
    for (int rank = 0; rank < p_.world; rank += every) {
      svg_ += "<text class=\"rank\" x=\"" + svg_number(left - 6) + "\" y=\"" +
              svg_number(top + row_ * rank + row_ / 2 + 4) + "\">" + std::to_string(rank) + "</text>\n";
    }
    for (const prediction::span& s : p_.timeline) {
      if (s.what != prediction::span::kind::message) bar(s);
    }
    legend(bottom + 38);
    return svg_ + "</svg>\n";
  }

 private:
  static constexpr double left = 64, right = 16, top = 48;
  static constexpr const char* style =
      "<style>\n"
      "text { font: 12px \"DejaVu Sans\", Verdana, sans-serif; fill: #1f2328; }\n"
      ".title { font-weight: bold; }\n.note { font-size: 11px; }\n.rank { font-size: 11px; text-anchor: end; }\n"
      ".tick { font-size: 11px; text-anchor: middle; }\n.grid { stroke: #d1d9e0; stroke-width: 1; }\n"
      ".tile { fill: #2f7dc1; }\n.merge { fill: #c9700c; }\n.host { fill: #9457b8; }\n.wait { fill: #d7dce1; }\n"
      "@media (prefers-color-scheme: dark) {\ntext { fill: #e6edf3; }\n.grid { stroke: #3d444d; }\n"
      ".wait { fill: #3d444d; }\n}\n</style>\n";

  [[nodiscard]] static std::string escaped(const std::string& text) {
    std::string all;
    for (const char c : text) all += c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '&' ? "&amp;" : std::string{c};
    return all;
  }
  /// So much of a text as has room, at about 7 pixels a character.
  [[nodiscard]] std::string shortened(const std::string& text, const std::string& what) const {
    const auto most = static_cast<std::size_t>((width_ - left - right) / (what == "title" ? 7.6 : 6.4));
    if (text.size() <= most) return text;
    const std::size_t entity = text.find_last_of('&', most - 1);
    const std::size_t end = entity != text.npos && most - entity < 5 ? entity : most;
    return text.substr(0, end) + "…";
  }
  [[nodiscard]] double x_of(double seconds) const {
    return left + (p_.seconds > 0 ? seconds / p_.seconds : 0) * (width_ - left - right);
  }
  void label(double x, double y, const std::string& what, const std::string& text) {
    svg_ +=
        "<text class=\"" + what + "\" x=\"" + svg_number(x) + "\" y=\"" + svg_number(y) + "\">" + text + "</text>\n";
  }
  /// About six ticks at round times.
  void axis(double bottom) {
    double tick = 1e-9;
    for (int i = 0; tick * 6 < p_.seconds && i < 60; ++i) tick *= i % 3 == 1 ? 2.5 : 2;
    for (int i = 0; i * tick <= p_.seconds * (1 + 1e-9); ++i) {
      const double at = i * tick;
      const std::string x = svg_number(x_of(at));
      svg_ += "<line class=\"grid\" x1=\"" + x + "\" y1=\"" + svg_number(top) + "\" x2=\"" + x + "\" y2=\"" +
              svg_number(bottom) + "\"/>\n";
      label(x_of(at), bottom + 15, "tick", tick_text(at, tick));
      if (p_.seconds <= 0) break;
    }
  }
  [[nodiscard]] static std::string tick_text(double at, double tick) {
    const double factor = tick >= 1 ? 1 : tick >= 1e-3 ? 1e3 : tick >= 1e-6 ? 1e6 : 1e9;
    return svg_number(at * factor) + (factor == 1 ? " s" : factor == 1e3 ? " ms" : factor == 1e6 ? " µs" : " ns");
  }
  void bar(const prediction::span& s) {
    using kind = prediction::span::kind;
    const char* const name = s.what == kind::tile    ? "tile"
                             : s.what == kind::merge ? "merge"
                             : s.what == kind::host  ? "host"
                                                     : "wait";
    const double x = x_of(s.begin), w = x_of(s.end) - x, gap = row_ > 6 ? 2 : 0.5;
    svg_ += std::string{"<rect class=\""} + name + "\" x=\"" + svg_number(x) + "\" y=\"" +
            svg_number(top + row_ * s.rank + gap) + "\" width=\"" + svg_number(w > 1.2 ? w - 0.6 : w) + "\" height=\"" +
            svg_number(row_ - 2 * gap) + "\"><title>rank " + std::to_string(s.rank) + ", step " +
            std::to_string(s.step) + ": " + name +
            (s.what == kind::wait && s.to >= 0 ? " for rank " + std::to_string(s.to) : std::string{}) + ", " +
            seconds_text(s.end - s.begin) + "</title></rect>\n";
  }
  void legend(double y) {
    double x = left;
    for (const char* const name : {"tile", "merge", "host", "wait"}) {
      svg_ += std::string{"<rect class=\""} + name + "\" x=\"" + svg_number(x) + "\" y=\"" + svg_number(y - 10) +
              "\" width=\"12\" height=\"12\"/>\n";
      label(x + 17, y, "note", name);
      x += 80;
    }
  }

  const prediction& p_;
  double width_;
  double row_ = 22;
  std::string svg_;
};

}  // namespace orrery::detail

namespace orrery {

/// Draws a predicted timeline as an SVG file: a row for each rank, its tiles, merges, host time and waits over time,
/// and the sentence that says what limits it. Colours follow the reader's choice of light or dark; a bar says under the
/// mouse what it is. `width` is in pixels, at least 320.
///
///     const auto found = orrery::simulate(topology, 16, machine, shape, mask, layout, {.with_timeline = true});
///     std::ofstream{"predicted.svg"} << orrery::timeline_svg(found);
[[nodiscard]] inline std::string timeline_svg(const prediction& p, int width = 900) {
  return detail::timeline_drawing{p, width < 320 ? 320 : width}.text();
}

}  // namespace orrery
