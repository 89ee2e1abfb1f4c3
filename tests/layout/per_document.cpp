// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/layout/per_document.hpp"

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/layout/detail/layout_source.hpp"
#include "orrery/layout/named.hpp"
#include "orrery/layout/token_positions.hpp"

namespace per_document_test {

using orrery::contiguous;
using orrery::per_document;
using orrery::segments;
using orrery::striped;
using orrery::token_positions;
using orrery::zigzag;
using orrery::detail::layout_source;
using orrery::schedule::list;

namespace {

/// The positions of a rank's shard, after all shards have been found right.
template <class Layout>
std::vector<std::int64_t> shard_of(const Layout& l, int rank, int world, std::int64_t length) {
  const layout_source source{l};
  int chunks = 0;
  CHECK(source.count_chunks(world, length, chunks) == "");
  list<segments> shards;
  CHECK(source.deal(world, length, chunks, shards) == "");
  std::vector<std::int64_t> all;
  for (const std::int64_t position :
       token_positions{std::span{shards.begin() + rank * chunks, static_cast<std::size_t>(chunks)}})
    all.push_back(position);
  return all;
}

template <class Make>
std::string refusal(const Make& make) {
  try {
    static_cast<void>(make());
  } catch (const std::invalid_argument& e) {
    return e.what();
  }
  return "";
}

using positions = std::vector<std::int64_t>;
using numbers = std::vector<int>;

}  // namespace

TEST_CASE("two documents of 8 tokens by zigzag on two ranks") {
  const auto layout = per_document<zigzag>::from_cu_seqlens(numbers{0, 8, 16});
  CHECK(shard_of(layout, 0, 2, 16) == positions{0, 1, 6, 7, 8, 9, 14, 15});
  CHECK(shard_of(layout, 1, 2, 16) == positions{2, 3, 4, 5, 10, 11, 12, 13});
  CHECK(layout == per_document<zigzag>{numbers{8, 8}});
  CHECK(layout.documents() == 2);
  CHECK_FALSE(layout_source{layout}.has_whole_shards());
  CHECK(layout.chunks(2, 16) == 4);
}

TEST_CASE("documents of any lengths, and padding, by any layout") {
  const numbers lengths{5, 1, 1, 30, 2, 17};
  for (const int world : {1, 2, 3, 8}) {
    for (const std::int64_t length : {56, 57, 80}) {
      CAPTURE(world);
      CAPTURE(length);
      for (int rank = 0; rank < world; ++rank) {
        positions expected;
        std::int64_t begin = 0;
        for (const std::int64_t tokens : {5, 1, 1, 30, 2, 17, static_cast<int>(length) - 56}) {
          if (tokens == 0) continue;
          for (const std::int64_t p : token_positions{contiguous::shard(rank, world, tokens)})
            expected.push_back(begin + p);
          begin += tokens;
        }
        CHECK(shard_of(per_document<contiguous>{lengths}, rank, world, length) == expected);
      }
      shard_of(per_document<zigzag>{lengths}, 0, world, length);
      shard_of(per_document<striped<3>>{lengths}, 0, world, length);
      shard_of(per_document<per_document<zigzag>>{numbers{56}, per_document<zigzag>{lengths}}, 0, world, 56);
    }
  }
}

TEST_CASE("many documents have whole shards of the inner layout as chunks") {
  for (const int documents : {32, 33, 1000}) {
    const per_document<zigzag> layout{numbers(static_cast<std::size_t>(documents), 7)};
    CHECK(layout.chunks(4, documents * 7) == (documents == 32 ? 64 : documents));
    // Of each document's 8 pieces rank 1 has one without a token, and one of one token.
    CHECK(shard_of(layout, 1, 4, documents * 7).size() == static_cast<std::size_t>(2 * documents));
  }
  CHECK(layout_source{per_document<zigzag>{numbers(70000, 1)}}.has_whole_shards() == false);
  int chunks = 0;
  CHECK(layout_source{per_document<zigzag>{numbers(70000, 1)}}.count_chunks(2, 70000, chunks) ==
        "cuts each shard into 70000 chunks, expected 1 to 65535");
}

TEST_CASE("wrong documents are refused") {
  CHECK(refusal([] { return per_document<zigzag>{numbers{}}; }) ==
        "orrery: per_document: there are no documents; expected one");
  CHECK(refusal([] {
          return per_document<zigzag>{numbers{4, 0}};
        }) == "orrery: per_document: lengths[1] is 0, expected at least 1 token, and less than 2^62 in all");
  CHECK(refusal([] { return per_document<zigzag>{numbers{-4}}; }) ==
        "orrery: per_document: lengths[0] is -4, expected at least 1 token, and less than 2^62 in all");
  CHECK(refusal([] {
          return per_document<zigzag>{std::vector<std::int64_t>{1, INT64_MAX}};
        }) ==
        "orrery: per_document: lengths[1] is 9223372036854775807, expected at least 1 token, and less than 2^62 in "
        "all");
  CHECK(refusal([] {
          return per_document<zigzag>::from_cu_seqlens(numbers{1, 8});
        }) == "orrery: per_document: cu_seqlens[0] is 1, expected 0");
  CHECK(refusal([] {
          return per_document<zigzag>::from_cu_seqlens(numbers{0, 8, 8});
        }) == "orrery: per_document: cu_seqlens[2] is 8, expected more than the number before it, and at most 2^62");
  CHECK(refusal([] { return per_document<zigzag>::from_cu_seqlens(numbers{0}); }) ==
        "orrery: per_document: there are no documents; expected one");
  list<segments> shards;
  CHECK(layout_source{per_document<zigzag>{numbers{9, 8}}}.deal(2, 16, 4, shards) ==
        "threw: the lengths of its documents add up to 17, but the sequence has 16 tokens");
}

TEST_CASE("names tell the inner layout, the number of documents and their lengths apart") {
  const std::string name = per_document<zigzag>{numbers{8, 8}}.name();
  CHECK(name.substr(0, 34) == "per_document<zigzag>(2 documents, ");
  CHECK(name != per_document<zigzag>{numbers{7, 9}}.name());
  CHECK(name == orrery::layout_named("per_document<zigzag>", std::vector<std::int64_t>{8, 8}).name());
  CHECK(per_document<striped<4>>{numbers{8}}.name().substr(0, 37) == "per_document<striped<4>>(1 document, ");
}

TEST_CASE("a layout of documents by its name") {
  const std::vector<std::int64_t> lengths{8, 8};
  const orrery::any_layout layout = orrery::layout_named("per_document<zigzag>", lengths);
  CHECK(shard_of(layout, 0, 2, 16) == positions{0, 1, 6, 7, 8, 9, 14, 15});
  CHECK(shard_of(orrery::layout_named("per_document<striped<2>>", lengths), 0, 2, 16) ==
        positions{0, 1, 4, 5, 8, 9, 12, 13});
  CHECK(refusal([] { return orrery::layout_named("per_document<zigzag>"); }) ==
        "orrery: layout_named: \"per_document<zigzag>\" needs the lengths of the documents: layout_named(name, "
        "lengths)");
  CHECK(refusal([&] { return orrery::layout_named("per_document<zigzak>", lengths); }).find("zigzag") !=
        std::string::npos);
}

}  // namespace per_document_test
