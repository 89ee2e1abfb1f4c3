// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <string>
#include <string_view>

#include "orrery/detail/svg_number.hpp"

namespace orrery::detail {

/// Writes the elements of an SVG file, whose colours follow the reader's choice of light or dark.
class svg_text {
 public:
  [[nodiscard]] static std::string escaped(std::string_view text) {
    std::string all;
    for (const char c : text) {
      all += c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '&' ? "&amp;" : c == '"' ? "&quot;" : std::string{c};
    }
    return all;
  }
  /// About how many pixels a text of 12 pixels' height takes.
  [[nodiscard]] static double width_of(std::string_view text, double height = 12) noexcept {
    return 0.64 * height * static_cast<double>(text.size());
  }

  void text(double x, double y, const char* classes, std::string_view shown) {
    all_ += std::string{"<text class=\""} + classes + "\" x=\"" + svg_number(x) + "\" y=\"" + svg_number(y) + "\">" +
            escaped(shown) + "</text>\n";
  }
  /// `attributes` are more of them, `hover` what is shown under the mouse.
  void box(double x, double y, double width, double height, const std::string& attributes,
           const std::string& hover = "") {
    all_ += "<rect x=\"" + svg_number(x) + "\" y=\"" + svg_number(y) + "\" width=\"" + svg_number(width) +
            "\" height=\"" + svg_number(height) + "\" " + attributes +
            (hover.empty() ? "/>\n" : "><title>" + escaped(hover) + "</title></rect>\n");
  }
  void line(double x1, double y1, double x2, double y2, const char* classes) {
    all_ += std::string{"<line class=\""} + classes + "\" x1=\"" + svg_number(x1) + "\" y1=\"" + svg_number(y1) +
            "\" x2=\"" + svg_number(x2) + "\" y2=\"" + svg_number(y2) + "\"/>\n";
  }
  /// The whole file.
  [[nodiscard]] std::string document(double width, double height, std::string_view title) const {
    const std::string w = svg_number(width), h = svg_number(height);
    return "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " + w + " " + h + "\" width=\"" + w +
           "\" height=\"" + h + "\" role=\"img\">\n<title>" + escaped(title) + "</title>\n" + style + all_ + "</svg>\n";
  }

 private:
  static constexpr const char* style =
      "<style>\n"
      "text { font: 12px \"DejaVu Sans\", Verdana, sans-serif; fill: #1f2328; }\n"
      ".title { font-weight: bold; }\n.note { font-size: 11px; }\n"
      ".row { font-size: 11px; text-anchor: end; }\n.column { font-size: 11px; text-anchor: middle; }\n"
      ".in { font-size: 11px; text-anchor: middle; fill: #ffffff; }\n"
      ".ground { fill: #f6f8fa; }\n.cell { stroke: #ffffff; stroke-width: 0.5; }\n"
      ".sent { fill: #1f6fb5; }\n.grid { stroke: #d1d9e0; stroke-width: 0.5; }\n"
      ".node { stroke: #59636e; stroke-width: 1.6; fill: none; }\n"
      "@media (prefers-color-scheme: dark) {\n  text { fill: #e6edf3; }\n  .in { fill: #ffffff; }\n"
      "  .ground { fill: #161b22; }\n  .cell { stroke: #0d1117; }\n  .sent { fill: #2f7bc4; }\n"
      "  .grid { stroke: #3d444d; }\n  .node { stroke: #c9d1d9; }\n}\n</style>\n";

  std::string all_;
};

/// Every so many labels of rows of this height have room.
[[nodiscard]] inline int label_every(double row, double needed) noexcept {
  int every = 1;
  while (row * every < needed) every *= 2;
  return every;
}

}  // namespace orrery::detail
