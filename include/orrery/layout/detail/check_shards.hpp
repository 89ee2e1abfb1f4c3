// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "orrery/detail/number_digest.hpp"
#include "orrery/layout/segment.hpp"
#include "orrery/schedule/list.hpp"

namespace orrery::detail {

/// What is wrong with the shards of a layout, and where.
struct shard_fault {
  enum class kind : std::uint8_t {
    none,
    run,       ///< a segment of `rank` has runs of `position` tokens
    order,     ///< in the shard of `rank`, `position` comes after `previous`, which is not smaller
    outside,   ///< `rank` has `position`, which is not in the sequence
    no_rank,   ///< `position` is in no shard
    two_ranks  ///< `position` is in the shards of `rank` and `other`
  };
  kind found = kind::none;
  std::int64_t position = 0;
  int rank = 0;
  int other = 0;
  std::int64_t previous = 0;

  constexpr bool operator==(const shard_fault&) const = default;

  /// Empty if there is none; else a predicate of the layout.
  [[nodiscard]] std::string message() const {
    const std::string at = "position " + std::to_string(position);
    const std::string shard = "the shard of rank " + std::to_string(rank);
    switch (found) {
      case kind::none:
        return "";
      case kind::run:
        return "gives rank " + std::to_string(rank) + " a segment whose runs have " + std::to_string(position) +
               " tokens, expected at least 1";
      case kind::order:
        return "has " + at + " after position " + std::to_string(previous) + " in " + shard +
               ", expected ascending positions";
      case kind::outside:
        return "has " + at + " in " + shard + ", which is not in the sequence";
      case kind::no_rank:
        return "gives " + at + " to no rank, expected each position in exactly one shard";
      case kind::two_ranks:
        return "gives " + at + " to ranks " + std::to_string(rank < other ? rank : other) + " and " +
               std::to_string(rank < other ? other : rank) + ", expected each position in exactly one shard";
    }
    return "";
  }
};

/// Tells whether shards hold each position of a sequence exactly once, each in ascending order.
///
/// Walks the runs of all segments in the order of their positions. Where the same segments interleave for a whole
/// period, the least common multiple of their strides, all periods alike that follow are skipped. So the cost is that
/// of a few periods for each segment that begins or ends, however long the sequence: O(S log S) steps for S segments of
/// `contiguous`, `zigzag` and `striped`. Only segments that interleave with strides of no common multiple within the
/// sequence are walked run by run.
class shard_check {
 public:
  /// `length` is at least 0. A shard may be given in several chunks: chunk c of rank r at [r * chunks + c].
  [[nodiscard]] static constexpr shard_fault run(const schedule::list<segments>& shards, std::int64_t length,
                                                 int chunks = 1) {
    shard_check check{length};
    std::int64_t last = -1;
    for (int i = 0; i < shards.size(); ++i) {
      if (i % chunks == 0) last = -1;
      if (const shard_fault found = check.take(i / chunks, shards[i], last); found.found != shard_fault::kind::none)
        return found;
    }
    return check.walk();
  }

 private:
  using kind = shard_fault::kind;

  /// The runs of a segment that have not been walked yet.
  struct runs {
    std::int64_t next;  // position
    std::int64_t left;  // tokens
    std::int64_t run;
    std::int64_t stride;
    int rank;
  };

  /// A heap of runs with the smallest next position at the top.
  struct queue {
    schedule::list<runs> all;

    constexpr void push(const runs& one) {
      all.push_back(one);
      for (int i = all.size() - 1; i > 0 && all[i].next < all[(i - 1) / 2].next; i = (i - 1) / 2) {
        swap(i, (i - 1) / 2);
      }
    }
    constexpr runs pop() {
      const runs top = all[0];
      const runs last = all.pop_back();
      if (all.empty()) return top;
      all[0] = last;
      for (int i = 0;;) {
        int least = i;
        for (int child = 2 * i + 1; child <= 2 * i + 2 && child < all.size(); ++child) {
          if (all[child].next < all[least].next) least = child;
        }
        if (least == i) return top;
        swap(i, least);
        i = least;
      }
    }
    constexpr void swap(int i, int j) {
      const runs other = all[i];
      all[i] = all[j];
      all[j] = other;
    }
  };

  explicit constexpr shard_check(std::int64_t length) : length_{length} {}

  /// Checks the next chunk of one shard by itself, and remembers its segments. `last` is the last position before it
  /// in this shard, or -1.
  constexpr shard_fault take(int rank, const segments& shard, std::int64_t& last) {
    for (const segment& piece : shard) {
      if (piece.run < 1) return {kind::run, piece.run, rank};
      if (last >= 0 && piece.begin <= last) return {kind::order, piece.begin, rank, 0, last};
      if (piece.begin < 0 || piece.begin >= length_) return {kind::outside, piece.begin, rank};
      runs one{piece.begin, piece.count, piece.run, piece.stride, rank};
      if (one.run >= one.left) one.run = one.stride = one.left;  // one run, whose stride says nothing
      const std::int64_t room = length_ - one.next;
      if (one.stride < one.run && one.run <= room) {
        return {kind::order, one.next + one.stride, rank, 0, one.next + one.run - 1};
      }
      const std::int64_t strides = (one.left - 1) / one.run;  // from the first run to the last
      if (one.run > room || (strides > 0 && one.stride > (room - 1) / strides) ||
          (one.left - 1) % one.run >= room - strides * one.stride) {
        return {kind::outside, first_outside(one), rank};
      }
      last = one.next + strides * one.stride + (one.left - 1) % one.run;
      waiting_.push(one);
    }
    return {};
  }

  /// The first position past the end of runs that leave the sequence.
  [[nodiscard]] constexpr std::int64_t first_outside(const runs& one) const {
    if (one.run > length_ - one.next) return length_;
    const std::int64_t inside = (length_ - 1 - one.next) / one.stride;  // the run that begins last within
    const std::int64_t begin = one.next + inside * one.stride;
    if (length_ - begin < one.run) return length_;
    std::int64_t next = 0;
    return __builtin_add_overflow(begin, one.stride, &next) ? INT64_MAX : next;
  }

  constexpr shard_fault walk() {
    int last_rank = 0;
    while (now_ < length_ || !waiting_.all.empty() || !begun_.all.empty()) {
      const bool begins = begun_.all.empty() || (!waiting_.all.empty() && waiting_.all[0].next < begun_.all[0].next);
      queue& from = begins ? waiting_ : begun_;
      if (from.all.empty() || from.all[0].next > now_) return {kind::no_rank, now_};
      if (from.all[0].next < now_) return {kind::two_ranks, from.all[0].next, last_rank, from.all[0].rank};
      runs one = from.pop();
      const std::int64_t tokens = one.run < one.left ? one.run : one.left;
      now_ += tokens;
      one.left -= tokens;
      last_rank = one.rank;
      const bool ends = one.left == 0;
      if (!ends) {
        one.next += one.stride;
        begun_.push(one);
      }
      if (begins || ends) {
        period_ = begun_.all.empty() ? 1 : begins && !ends ? common_multiple(period_, one.stride) : period_;
        period_begin_ = now_;
      } else if (now_ - period_begin_ == period_) {
        skip_periods();
      }
    }
    return {};
  }

  /// 0 if it is larger than the sequence, or unknown.
  [[nodiscard]] constexpr std::int64_t common_multiple(std::int64_t a, std::int64_t b) const {
    if (a == 0) return 0;
    std::int64_t divisor = a;
    for (std::int64_t rest = b; rest != 0;) {
      const std::int64_t next = divisor % rest;
      divisor = rest;
      rest = next;
    }
    return b / divisor > length_ / a ? 0 : b / divisor * a;
  }

  /// What was walked in the last period comes again until a segment begins or ends.
  constexpr void skip_periods() {
    std::int64_t periods = waiting_.all.empty() ? length_ : (waiting_.all[0].next - now_) / period_;
    for (const runs& one : begun_.all) {
      const std::int64_t alike = (one.left - 1) / (period_ / one.stride * one.run);
      if (alike < periods) periods = alike;
    }
    if (periods > 0) {
      now_ += periods * period_;
      for (runs& one : begun_.all) {
        one.next += periods * period_;
        one.left -= periods * (period_ / one.stride * one.run);
      }
    }
    period_begin_ = now_;
  }

  std::int64_t length_;
  queue waiting_;                  // segments of which nothing has been walked
  queue begun_;                    // segments of which a part has been walked
  std::int64_t now_ = 0;           // each position before this one is in exactly one shard
  std::int64_t period_ = 1;        // a multiple of the strides of begun_; 0: too large
  std::int64_t period_begin_ = 0;  // no segment has begun or ended since
};

/// What `shard_check` finds, found once in a process for shards that are right: ranks that are threads, and operators
/// of the same layout and length, share it. Keeps up to 16 answers.
[[nodiscard]] inline shard_fault check_shards(const schedule::list<segments>& shards, std::int64_t length,
                                              int chunks = 1) {
  struct answer {
    std::int64_t length;
    int chunks;
    schedule::list<segments> shards;
  };
  constexpr std::size_t most = 16;
  static std::mutex mutex;
  static std::vector<answer> answers;
  static std::size_t oldest = 0;

  const std::lock_guard lock{mutex};
  for (const answer& known : answers) {
    if (known.length == length && known.chunks == chunks && known.shards == shards) return {};
  }
  const shard_fault found = shard_check::run(shards, length, chunks);
  if (found.found != shard_fault::kind::none) return found;
  if (answers.size() < most) {
    answers.push_back({length, chunks, shards});
  } else {
    answers[oldest] = {length, chunks, shards};
    oldest = (oldest + 1) % most;
  }
  return found;
}

/// A number by which ranks can tell whether they have the same shards. Continues from `begun`.
[[nodiscard]] inline std::uint64_t digest_of(const schedule::list<segments>& shards,
                                             std::uint64_t begun = number_digest{}.value()) noexcept {
  number_digest digest{begun};
  for (const segments& shard : shards) {
    digest.add(shard.size());
    for (const segment& piece : shard) {
      for (const std::int64_t number : {piece.begin, piece.count, piece.run, piece.stride}) digest.add(number);
    }
  }
  return digest.value();
}

}  // namespace orrery::detail
