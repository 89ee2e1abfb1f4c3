// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "orrery/schedule/assignment.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/schedule/derive_backward.hpp"
#include "orrery/schedule/detail/schedule_digest.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery {

/// A topology whose programs are data: written by a planner, a search or another program, for one world.
///
///     orrery::precomputed plan{"my_plan", orrery::programs_of(assignment)};
///     orrery::attention<orrery::precomputed, orrery::flash<float>> attend{world, shape, mask, layout, plan};
///
/// Like every topology it is proven before anything is sent, and can be counted, drawn and placed. Where its programs
/// cut shards into chunks, an operator cuts the layout's shards into as many; a layout that cuts them itself must cut
/// them into as many, or into a divisor of that. Copies share the programs. Two are equal if they have
/// one name and the digests of their programs are equal.
class precomputed {
 public:
  /// `forward` and `circulate_keys` are the programs of all ranks, finished or not. Without the latter, the backward is
  /// derived from the forward (see `derive_backward`); `circulate_queries` likewise, if it is given. Throws
  /// `std::invalid_argument` if there are no programs, or if they are not those of the ranks of one world, in order.
  precomputed(std::string name, schedule::list<schedule::program> forward,
              schedule::list<schedule::program> circulate_keys = {},
              schedule::list<schedule::program> circulate_queries = {})
      : name_{std::move(name)} {
    auto made = std::make_shared<programs_of_passes>();
    check(forward, schedule::pass::forward, forward);
    if (circulate_keys.empty()) {
      circulate_keys = schedule::derive_backward(forward);
    }
    check(circulate_keys, schedule::pass::circulate_keys, forward);
    if (!circulate_queries.empty()) check(circulate_queries, schedule::pass::circulate_queries, forward);
    for (const schedule::list<schedule::program>* of_pass : {&forward, &circulate_keys, &circulate_queries}) {
      for (const schedule::program& one : *of_pass) digest_.add(one), digest_.add_remarks(one);
    }
    made->of[0] = std::move(forward);
    made->of[1] = std::move(circulate_keys);
    made->of[2] = std::move(circulate_queries);
    programs_ = std::move(made);
  }
  /// The schedule of an assignment.
  precomputed(std::string name, const assignment& work)
      : precomputed{std::move(name), detail::unallocated_programs(work)} {}

  [[nodiscard]] std::string name() const { return name_; }
  [[nodiscard]] static constexpr const char* pairs_left_out() {
    return "is precomputed, and not for all pairs that this mask and layout ask for: plan it for the same documents, "
           "length and mask (orrery::pack takes lengths, .length with padding, and .causal), and give the operator the "
           "layout that it was planned for (of pack, contiguous)";
  }
  /// Into how many chunks its programs cut each shard.
  [[nodiscard]] int chunks() const noexcept { return forward()[0].chunks; }
  [[nodiscard]] int slices(int) const noexcept { return forward()[0].slices; }
  [[nodiscard]] const char* unsupported_reason(int world, schedule::pass p) const noexcept {
    if (world != forward().size()) return "is precomputed for another number of ranks; plan again for this one";
    if (of(p).empty()) return "has no programs for this backward policy; use circulate_keys, or give it some";
    return nullptr;
  }
  [[nodiscard]] orrery::schedule::program program(int rank, int, schedule::pass p = schedule::pass::forward) const {
    return of(p)[rank];
  }
  [[nodiscard]] schedule::list<orrery::schedule::program> programs(int,
                                                                   schedule::pass p = schedule::pass::forward) const {
    return of(p);
  }
  [[nodiscard]] bool operator==(const precomputed& other) const noexcept {
    return programs_ == other.programs_ || (name_ == other.name_ && digest_ == other.digest_);
  }

 private:
  struct programs_of_passes {
    schedule::list<orrery::schedule::program> of[3];
  };

  [[nodiscard]] const schedule::list<orrery::schedule::program>& of(schedule::pass p) const noexcept {
    return programs_->of[static_cast<int>(p)];
  }
  [[nodiscard]] const schedule::list<orrery::schedule::program>& forward() const noexcept {
    return of(schedule::pass::forward);
  }

  void check(const schedule::list<orrery::schedule::program>& all, schedule::pass p,
             const schedule::list<orrery::schedule::program>& like) const {
    const auto refuse = [&](const std::string& why) {
      throw std::invalid_argument{"orrery: precomputed: " + name_ + ": " + why};
    };
    if (all.empty()) refuse("there are no programs, expected one for each rank");
    for (int rank = 0; rank < all.size(); ++rank) {
      const orrery::schedule::program& one = all[rank];
      if (one.rank == rank && one.world == like.size() && all.size() == like.size() && one.pass == p &&
          one.slices == like[0].slices && one.chunks == like[0].chunks)
        continue;
      refuse("program " + std::to_string(rank) + " of pass " + schedule::name_of(p) + " is of rank " +
             std::to_string(one.rank) + " of " + std::to_string(one.world) + " in pass " + schedule::name_of(one.pass) +
             ", or cut differently; expected the programs of the ranks of one world, in their order");
    }
  }

  std::string name_;
  std::shared_ptr<const programs_of_passes> programs_;
  schedule::schedule_digest digest_;
};

}  // namespace orrery
