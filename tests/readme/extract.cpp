// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Makes a program of all C++ code blocks of a Markdown file, or checks the file:
//
//     readme_extract FILE.md WRAPPERS OUT.cpp
//     readme_extract --check FILE.md [MOST_LINES]
//
// A block is a whole program, with a main that returns 0; or a fragment, below a line `<!-- compiled in NAME -->`: it
// then takes the place of the line `@block@` in WRAPPERS/NAME.cpp.in, which defines `int run()`, 0 if all is well. Each
// block is in a namespace of its own, below its own includes, and the program calls main or run of all of them. A
// C++ block that is neither is an error, and so are code blocks that do not say their language.
//
// Checked are the languages of code blocks, that links to files lead to files, and how many lines there are.

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <regex>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

struct code_block {
  std::string language;
  std::string wrapper;   // "" for none
  std::size_t line = 0;  // of its first line
  std::vector<std::string> lines;
};

struct document {
  fs::path path;
  std::vector<std::string> lines;
  std::vector<code_block> blocks;
};

[[noreturn]] void refuse(const fs::path& path, std::size_t line, const std::string& why) {
  throw std::runtime_error{path.string() + ":" + std::to_string(line) + ": " + why};
}

std::vector<std::string> lines_of(const fs::path& path) {
  std::ifstream in{path};
  if (!in) throw std::runtime_error{path.string() + " cannot be read"};
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

document read(const fs::path& path) {
  static const std::set<std::string> languages{"cpp", "cmake", "sh", "text"};
  static const std::regex marker{"<!-- compiled in (\\w+) -->"};
  document d{path, lines_of(path), {}};
  bool inside = false;
  std::string wrapper;
  for (std::size_t i = 0; i < d.lines.size(); ++i) {
    const std::string& line = d.lines[i];
    std::smatch found;
    if (line.rfind("```", 0) == 0) {
      if (!inside) {
        const std::string language = line.substr(3);
        if (languages.count(language) == 0) refuse(path, i + 1, "a code block must be cpp, cmake, sh or text");
        if (!wrapper.empty() && language != "cpp") refuse(path, i + 1, "only C++ is compiled in a wrapper");
        d.blocks.push_back({language, wrapper, i + 2, {}});
        wrapper.clear();
      }
      inside = !inside;
    } else if (inside) {
      d.blocks.back().lines.push_back(line);
    } else if (std::regex_match(line, found, marker)) {
      wrapper = found[1];
    } else if (line.find("<!-- compiled") != std::string::npos || line.find("```") != std::string::npos ||
               line.find("~~~") != std::string::npos || line.rfind("    ", 0) == 0) {
      refuse(path, i + 1, "code begins with ``` in the first column, and its wrapper with <!-- compiled in NAME -->");
    } else if (!wrapper.empty() && !line.empty()) {
      refuse(path, i + 1, "a code block must follow its wrapper");
    }
  }
  if (inside) refuse(path, d.lines.size(), "the last code block does not end");
  return d;
}

bool is_include(const std::string& line) { return line.rfind("#include", 0) == 0; }

void write_program(const document& d, const fs::path& wrappers, std::ostream& out) {
  std::vector<std::string> calls;
  for (const code_block& block : d.blocks) {
    if (block.language != "cpp") continue;
    struct numbered {
      std::string text, file;
      std::size_t line;
    };
    std::vector<numbered> lines;
    const auto add_block = [&] {
      for (std::size_t i = 0; i < block.lines.size(); ++i) {
        lines.push_back({block.lines[i], d.path.string(), block.line + i});
      }
    };
    bool is_program = false;
    for (const std::string& line : block.lines) is_program = is_program || line.rfind("int main(", 0) == 0;
    if (block.wrapper.empty()) {
      if (!is_program) refuse(d.path, block.line, "a fragment of C++ needs a line <!-- compiled in NAME --> above it");
      add_block();
    } else {
      const fs::path path = wrappers / (block.wrapper + ".cpp.in");
      const std::vector<std::string> wrapper = lines_of(path);
      int places = 0;
      for (std::size_t i = 0; i < wrapper.size(); ++i) {
        if (wrapper[i].find("@block@") == std::string::npos) {
          lines.push_back({wrapper[i], path.string(), i + 1});
        } else {
          ++places;
          add_block();
        }
      }
      if (places != 1) refuse(path, 1, "a wrapper needs one line @block@");
    }
    const auto write = [&](const numbered& line) {
      out << "#line " << line.line << " \"" << line.file << "\"\n" << line.text << '\n';
    };
    const std::string name = "block_at_line_" + std::to_string(block.line);
    for (const numbered& line : lines) {
      if (is_include(line.text)) write(line);
    }
    out << "namespace " << name << " {\n";
    for (const numbered& line : lines) {
      if (!is_include(line.text) && line.text.rfind("#pragma once", 0) != 0) write(line);
    }
    out << "}  // namespace " << name << "\n";
    calls.push_back("{\"" + d.path.string() + ":" + std::to_string(block.line) + "\", &" + name +
                    (block.wrapper.empty() ? "::main" : "::run") + "}");
  }
  if (calls.empty()) refuse(d.path, 1, "there is no C++ code block");
  out << "#line 1 \"all blocks of " << d.path.string() << "\"\n#include <cstdio>\n#include <exception>\n"
      << "int main() {\n  struct { const char* place; int (*run)(); } const blocks[] = {\n";
  for (const std::string& call : calls) out << "    " << call << ",\n";
  out << R"(  };
  int failed = 0;
  for (const auto& block : blocks) {
    int result = 1;
    std::printf("%s\n", block.place);
    try {
      result = block.run();
    } catch (const std::exception& e) {
      std::printf("%s\n", e.what());
    }
    if (result != 0) std::printf("%s: FAILED\n", block.place);
    failed += result != 0;
  }
  if (failed == 0) std::printf("all blocks passed\n");
  return failed;
}
)";
}

void check(const document& d, std::size_t most_lines) {
  if (d.lines.size() > most_lines) {
    refuse(d.path, d.lines.size(), "the file has more than " + std::to_string(most_lines) + " lines");
  }
  static const std::regex link{"(?:\\]\\(|src=\")([^)\"#]+)"};
  bool inside = false;
  std::size_t links = 0;
  for (std::size_t i = 0; i < d.lines.size(); ++i) {
    if (d.lines[i].rfind("```", 0) == 0) inside = !inside;
    if (inside) continue;
    for (std::sregex_iterator at{d.lines[i].begin(), d.lines[i].end(), link}, end; at != end; ++at) {
      const std::string target = (*at)[1];
      if (target.rfind("http", 0) == 0) continue;
      ++links;
      if (!fs::exists(d.path.parent_path() / target)) refuse(d.path, i + 1, "there is no " + target);
    }
  }
  std::cout << d.path.string() << ": " << links << " links to files\n";
}

}  // namespace

int main(int count, char** arguments) {
  const std::vector<std::string> words(arguments + 1, arguments + count);
  try {
    if (words.size() >= 2 && words[0] == "--check") {
      check(read(words[1]), words.size() > 2 ? std::stoul(words[2]) : 10000);
    } else if (words.size() == 3) {
      std::ostringstream program;
      write_program(read(words[0]), words[1], program);
      if (!(std::ofstream{words[2]} << program.str()).flush())
        throw std::runtime_error{words[2] + " cannot be written"};
    } else {
      throw std::runtime_error{"usage: readme_extract FILE.md WRAPPERS OUT.cpp, or --check FILE.md [MOST_LINES]"};
    }
  } catch (const std::exception& e) {
    std::cerr << e.what() << '\n';
    return 1;
  }
  return 0;
}
