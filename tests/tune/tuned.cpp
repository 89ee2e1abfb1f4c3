// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Operators whose topology is chosen at run time: which one runs, what is refused, what is remembered.
#include "orrery/tune/tuned.hpp"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>
#include <unistd.h>

#include "orrery/kernel/reference.hpp"
#include "orrery/mask/causal.hpp"
#include "orrery/mask/window.hpp"
#include "orrery/predict/machine_text.hpp"
#include "orrery/topology/all_to_all.hpp"
#include "orrery/topology/concentric.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/topology/wallfacer.hpp"
#include "orrery/transport/counted.hpp"
#include "orrery/transport/threads.hpp"

#include "support/refusal.hpp"

namespace tuned_test {

using orrery::attention_shape;
using orrery::machine;
using orrery::schedule_choice;
using orrery::detail::choice_text;
using orrery::detail::remembered_choice;
using kernel = orrery::reference<float>;
using among_four = orrery::tuned<kernel, orrery::ring, orrery::wallfacer<2>, orrery::concentric<8>, orrery::ulysses>;

constexpr attention_shape shape{.length = 64, .query_heads = 4, .key_heads = 2, .head_dim = 8};

/// Four ranks with links of this rate.
machine of_four(const char* link) {
  return orrery::read_machine(std::string{"machine four\ndevice full 1 GFLOP/s units 1\nlevel node 4 devices "} + link +
                              " 1 us\n");
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// A name in the temporary folder; the file is removed at the end.
struct temporary_file {
  std::string path = (std::filesystem::temp_directory_path() /
                      ("orrery_tuned_" + std::to_string(getpid()) + "_" + std::to_string(number())))
                         .string();

  temporary_file() = default;
  temporary_file(const temporary_file&) = delete;
  temporary_file& operator=(const temporary_file&) = delete;
  ~temporary_file() { (void)std::remove(path.c_str()); }

  [[nodiscard]] std::string text() const {
    std::ifstream file{path, std::ios::binary};
    return {std::istreambuf_iterator<char>{file}, {}};
  }
  void write(const std::string& text) const { std::ofstream{path, std::ios::binary} << text; }
  static int number() {
    static int count = 0;
    return ++count;
  }
};

/// A rank's shard, and a forward of any operator on it.
struct shard_of_rank {
  std::vector<float> q, k, v, out, lse;
  std::int64_t tokens;

  template <class Attention>
  explicit shard_of_rank(const Attention& attend) : tokens{attend.query_positions().size()} {
    const auto fill = [&](std::vector<float>& to, std::int64_t heads, std::int64_t salt) {
      for (std::int64_t t = 0; t < tokens; ++t) {
        for (std::int64_t i = 0; i < heads * 8; ++i) {
          const std::int64_t x = (attend.query_positions()[t] * 131 + i * 17 + salt) % 23;
          to.push_back(static_cast<float>(x) / 11 - 1);
        }
      }
    };
    fill(q, 4, 1);
    fill(k, 2, 2);
    fill(v, 2, 3);
    out.resize(q.size());
    lse.resize(static_cast<std::size_t>(tokens * 4));
  }
  template <class Attention>
  void forward(Attention& attend) {
    attend.forward(orrery::batch_sequence_head_dim(q.data(), 1, tokens, 4, 8),
                   orrery::batch_sequence_head_dim(k.data(), 1, tokens, 2, 8),
                   orrery::batch_sequence_head_dim(v.data(), 1, tokens, 2, 8),
                   orrery::batch_sequence_head_dim(out.data(), 1, tokens, 4, 8),
                   orrery::batch_head_sequence(lse.data(), 1, 4, tokens));
  }
};

/// Rank 0's choice, on four threads.
template <class Mask = orrery::full>
schedule_choice choice_for(const machine& m, const std::string& file, const attention_shape& of = shape,
                           const Mask& mask = {}) {
  schedule_choice found;
  orrery::threads::run(4, [&](auto& world) {
    const among_four attend{world, of, m, mask, orrery::contiguous{}, {.remember = file}};
    if (world.rank() == 0) found = attend.choice();
  });
  return found;
}

TEST_CASE("the fastest topology runs, the same on every rank, with right results") {
  for (const char* link : {"100 GB/s", "1 MB/s"}) {
    CAPTURE(link);
    const machine m = of_four(link);
    orrery::simulation_options how;
    how.storage_bytes = 4;
    const std::string best =
        orrery::recommend(4, m, shape, orrery::causal{}, orrery::zigzag{}, how,
                          {orrery::ring{}, orrery::wallfacer<2>{}, orrery::concentric<8>{}, orrery::ulysses{}})
            .best()
            .topology.name();
    std::atomic<int> same{0};
    orrery::threads::run(4, [&](auto& world) {
      among_four attend{world, shape, m, orrery::causal{}, orrery::zigzag{}};
      if (attend.choice().chosen().name == best) ++same;
      if (!contains(attend.choice().why, best + ", ")) --same;
      attend.visit([&]<class Topology>(orrery::attention<Topology, kernel>&) {
        if (orrery::name_of(Topology{}) != best) --same;
      });
      orrery::attention<orrery::ring, kernel> other{world, shape, orrery::causal{}, orrery::zigzag{}};
      shard_of_rank a{attend}, b{other};
      a.forward(attend);
      b.forward(other);
      for (std::size_t i = 0; i < a.out.size(); ++i) {
        if (!(a.out[i] - b.out[i] < 1e-5F && b.out[i] - a.out[i] < 1e-5F)) --same;
      }
      if (attend.shape().circulate != attend.choice().chosen().circulate) --same;
      if (attend.workspace_bytes() <= 0) --same;
    });
    CHECK(same == 4);
  }
}

TEST_CASE("the machine decides") {
  // Slow links: what moves least. Fast ones: what has the least tail, or the least memory.
  const schedule_choice slow = choice_for(of_four("100 KB/s"), "");
  const schedule_choice fast = choice_for(of_four("900 GB/s"), "");
  CHECK(slow.from == schedule_choice::source::predicted);
  CHECK(slow.ranked.size() == 6);  // three topologies, both policies; concentric<8> needs more ranks
  CHECK(slow.chosen().name != fast.chosen().name);
  for (std::size_t i = 2; i < slow.ranked.size(); ++i) {
    CHECK(slow.ranked[i].predicted >= slow.ranked[i - 1].predicted);
  }
}

TEST_CASE("a forward alone has no policy of the backward") {
  attention_shape forward = shape;
  forward.forward_only = true;
  const schedule_choice found = choice_for(of_four("1 GB/s"), "", forward);
  CHECK(found.ranked.size() == 3);
  CHECK(found.chosen().circulate == orrery::pass::forward);
}

TEST_CASE("where nothing can be used, every rank is told why of each") {
  std::atomic<int> told{0};
  orrery::threads::run(3, [&](auto& world) {
    const machine m = orrery::read_machine("machine three\ndevice full 1 TF\nlevel node 3 devices 1 GB/s\n");
    attention_shape of = shape;
    of.length = 63;
    of.query_heads = of.key_heads.emplace(2);
    using none = orrery::tuned<kernel, orrery::wallfacer<2>, orrery::ulysses>;
    const std::string why = refusal_of([&] { none{world, of, m}; });
    if (contains(why, "no schedule can be used; wallfacer<2>") && contains(why, "; ulysses")) ++told;
  });
  CHECK(told == 3);
}

TEST_CASE("ranks that have different machines, and machines that cannot be, are refused on every rank") {
  std::atomic<int> told{0};
  orrery::threads::run(2, [&](auto& world) {
    machine m = orrery::read_machine("machine two\ndevice full 1 TF\nlevel node 2 devices 1 GB/s\n");
    if (world.rank() == 1) m.device.forward.full = 2e12;
    using two = orrery::tuned<kernel, orrery::ring>;
    if (contains(refusal_of([&] { two{world, shape, m}; }), "ranks disagree about machine")) ++told;
    if (world.rank() == 1) m.levels.clear();
    if (contains(refusal_of([&] { two{world, shape, m}; }), "rank 1: orrery: machine: levels is empty")) ++told;
    m = orrery::read_machine("machine one\ndevice full 1 TF\nlevel node 1 device\n");
    if (contains(refusal_of([&] { two{world, shape, m}; }), "world is 2, but the machine has 1 ranks")) ++told;
  });
  CHECK(told == 6);
}

TEST_CASE("a choice is remembered for the same question, and for no other") {
  const temporary_file file;
  const machine m = of_four("1 GB/s");
  const schedule_choice first = choice_for(m, file.path);
  CHECK(first.from == schedule_choice::source::predicted);
  CHECK(first.file_note.empty());
  const schedule_choice again = choice_for(m, file.path);
  CHECK(again.from == schedule_choice::source::remembered);
  CHECK(again.ranked == first.ranked);
  CHECK(contains(again.why, "as remembered: predicted "));

  const auto is_new = [](const schedule_choice& c) { return c.from == schedule_choice::source::predicted; };
  CHECK(is_new(choice_for(of_four("2 GB/s"), file.path)));
  attention_shape longer = shape;
  longer.length = 128;
  CHECK(is_new(choice_for(m, file.path, longer)));
  longer = shape;
  longer.forward_only = true;
  CHECK(is_new(choice_for(m, file.path, longer)));
  CHECK(is_new(choice_for(m, file.path, shape, orrery::causal{})));
  CHECK(is_new(choice_for(m, file.path, shape, orrery::window{8})));
  CHECK(is_new(choice_for(m, file.path, shape, orrery::window{9})));
  orrery::threads::run(4, [&](auto& world) {  // another transport
    orrery::counted counting{world};
    const among_four attend{counting, shape, m, orrery::full{}, orrery::contiguous{}, {.remember = file.path}};
    const bool is_predicted = attend.choice().from == schedule_choice::source::predicted;
    if (world.rank() == 0) CHECK(is_predicted);
  });
  // All of them stand beside each other.
  CHECK(choice_text::parse(file.text()).choices.size() == 8);
  CHECK(choice_for(m, file.path, shape, orrery::window{8}).from == schedule_choice::source::remembered);
  CHECK(choice_for(m, file.path).from == schedule_choice::source::remembered);
}

TEST_CASE("a damaged choice is not believed, and replaced") {
  const temporary_file file;
  const machine m = of_four("1 GB/s");
  (void)choice_for(m, file.path);
  const std::string good = file.text();
  std::string bad = good;
  const std::size_t at = bad.find("schedule ");
  REQUIRE(at != std::string::npos);
  bad.insert(bad.find('0', at), "9");
  file.write(bad);
  const schedule_choice found = choice_for(m, file.path);
  CHECK(found.from == schedule_choice::source::predicted);
  CHECK(file.text() == good);

  file.write(bad);
  const orrery::detail::choice_file read{file.path};
  CHECK(contains(read.note(), " is damaged: the choice of line 2: its digest is that of other lines; what is damaged"));
}

TEST_CASE("a file of something else is neither read nor written") {
  const temporary_file file;
  const std::string diary = "dear diary\n";
  file.write(diary);
  const schedule_choice found = choice_for(of_four("1 GB/s"), file.path);
  CHECK(found.from == schedule_choice::source::predicted);
  CHECK(contains(found.file_note, "is no file of choices and is neither read nor written: its first line is \"dear"));
  CHECK(file.text() == diary);
  const schedule_choice nowhere = choice_for(of_four("1 GB/s"), "/nonexistent/folder/file");
  CHECK(nowhere.from == schedule_choice::source::predicted);
  CHECK(contains(nowhere.file_note, "cannot be written"));
}

TEST_CASE("a link to a file of choices stays one, and what is no file is left alone") {
  temporary_file target, link;
  std::filesystem::create_symlink(target.path, link.path);
  target.write("");
  orrery::detail::choice_file{link.path}.put({"some key\n", {{0, "ring", orrery::pass::forward, 1.0, 0}}});
  CHECK(std::filesystem::is_symlink(link.path));
  CHECK(contains(target.text(), "some key"));
  orrery::detail::choice_file folder{std::filesystem::temp_directory_path().string()};
  CHECK(contains(folder.note(), "is not a file that can be read"));
  folder.put({"some key\n", {{0, "ring", orrery::pass::forward, 1.0, 0}}});
  CHECK(std::filesystem::is_directory(std::filesystem::temp_directory_path()));
}

/// A ring without a name, and another one.
struct nameless : orrery::ring {
  [[nodiscard]] static std::string name() { return "mine"; }
};
struct also_nameless : orrery::concentric<2> {
  [[nodiscard]] static std::string name() { return "mine"; }
};

TEST_CASE("candidates of one name are refused, and what a name stands for is part of the key") {
  orrery::threads::run(4, [](auto& world) {
    using both = orrery::tuned<kernel, nameless, also_nameless>;
    CHECK(contains(refusal_of([&] {
                     both{world, shape, of_four("1 GB/s")};
                   }),
                   "two candidates are named \"mine\"; list each once"));
  });
  const auto digests = [](const orrery::any_topology& one) { return orrery::detail::digests_of({one}, 4); };
  CHECK(digests(nameless{}) == digests(nameless{}));
  CHECK(digests(nameless{}) != digests(also_nameless{}));
  CHECK(contains(digests(nameless{}), "mine "));
}

TEST_CASE("what is measured decides, and is remembered") {
  const temporary_file file;
  const machine m = of_four("1 GB/s");
  std::atomic<int> good{0}, calls{0};
  orrery::threads::run(4, [&](auto& world) {
    among_four attend{world, shape, m, orrery::full{}, orrery::contiguous{}, {.remember = file.path}};
    const std::size_t ranked = attend.choice().ranked.size();
    attend.measure(world, 3, 2, [&](auto& one) {
      shard_of_rank on{one};
      on.forward(one);
      ++calls;
    });
    const schedule_choice& now = attend.choice();
    if (now.from != schedule_choice::source::measured || now.ranked.size() != ranked) return;
    if (!contains(now.why, "was the fastest of 3 that were measured")) return;
    for (std::size_t i = 0; i < 3; ++i) {
      if (!(now.ranked[i].measured >= now.chosen().measured && now.chosen().measured > 0)) return;
    }
    bool runs = false;
    attend.visit([&]<class Topology>(orrery::attention<Topology, kernel>&) {
      runs = orrery::name_of(Topology{}) == now.chosen().name;
    });
    if (runs) ++good;
  });
  CHECK(good == 4);
  CHECK(calls == 4 * 3 * 3);  // once before, and twice, for three
  const schedule_choice again = choice_for(m, file.path);
  CHECK(again.from == schedule_choice::source::remembered);
  CHECK(again.chosen().measured > 0);
  CHECK(contains(again.why, "measured "));

  orrery::threads::run(1, [&](auto& world) {
    orrery::tuned<kernel, orrery::ring> attend{world, shape, m};
    CHECK(contains(refusal_of([&] { attend.measure(world, 0, 1, [](auto&) {}); }), "count is 0, expected at least 1"));
    CHECK(contains(refusal_of([&] { attend.measure(world, 1, 0, [](auto&) {}); }), "iterations is 0"));
  });
}

TEST_CASE("texts of choices: cut or flipped anywhere, only choices that were written are read") {
  choice_text text;
  text.put({"world 4\nmask full\n", {{0, "ring", orrery::pass::circulate_keys, 0.25, 0}}});
  text.put({"world 8\nmask full\n",
            {{0, "concentric<2,2>", orrery::pass::circulate_queries, 1e-3, 2e-3}, {0, "ring", {}, 0.5, 0}}});
  const std::string written = text.text();
  CHECK(choice_text::parse(written).choices == text.choices);
  CHECK(choice_text::parse(written).damaged.empty());
  const auto is_safe = [&](const std::string& damaged) {
    const choice_text found = choice_text::parse(damaged);
    for (const remembered_choice& one : found.choices) {
      const remembered_choice* const known = text.find(one.key);
      if (known == nullptr || !(*known == one)) return false;
    }
    return damaged == written || found.choices.size() < 2 || found.choices == text.choices;
  };
  for (std::size_t n = 0; n < written.size(); ++n) CHECK(is_safe(written.substr(0, n)));
  std::mt19937_64 random{5};
  for (int i = 0; i < 3000; ++i) {
    std::string damaged = written;
    for (std::uint64_t n = random() % 3 + 1; n > 0; --n) {
      damaged[random() % damaged.size()] = static_cast<char>(random() % 256);
    }
    CHECK(is_safe(damaged));
  }
  CHECK(!choice_text::parse("orrery schedule choices, format 2\n").foreign.empty());
}

}  // namespace tuned_test
