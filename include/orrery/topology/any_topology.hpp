// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>
#include <memory>
#include <stdexcept>
#include <string>

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/topology/detail/refusing_part.hpp"
#include "orrery/topology/placed.hpp"
#include "orrery/topology/topology.hpp"

namespace orrery {

/// A topology that is chosen at run time: a trainer's flag, or the next one of a list to compare. Code that uses it is
/// compiled once for all of them.
///
///     const std::vector<orrery::any_topology> candidates{orrery::ring{}, orrery::wallfacer<2>{}, my_ring{}};
///     orrery::attention<orrery::any_topology, orrery::flash<float>> attend{world, shape, mask, layout, candidates[i]};
///
/// It has the name, the programs and the refusals of what it holds. What only a compiler can say (static_assert) it
/// says at run time, as every operator does. Copies share what they hold. Two are equal if they hold the same: one
/// object, or equal values of one type (see `comparable_by_value`).
class any_topology {
 public:
  template <class Topology>
    requires(!std::same_as<Topology, any_topology> && topology<Topology>)
  any_topology(const Topology& t)  // NOLINT(google-explicit-constructor): a topology is a topology
      : held_{std::make_shared<const some<Topology>>(t)} {}

  [[nodiscard]] std::string name() const { return held_->name(); }
  [[nodiscard]] const char* unsupported_reason(int world, schedule::pass p = schedule::pass::forward) const {
    return held_->unsupported_reason(world, p);
  }
  [[nodiscard]] const char* pairs_left_out() const { return held_->pairs_left_out(); }
  [[nodiscard]] bool has_unsupported_reason() const { return held_->has_unsupported_reason(); }
  [[nodiscard]] detail::refusing_part refusing_part(int world, schedule::pass p) const {
    return held_->refusing_part(world, p);
  }
  [[nodiscard]] int slices(int world) const { return held_->slices(world); }
  /// Into how many chunks its programs cut each shard: 1, unless they are data (see `precomputed`).
  [[nodiscard]] int chunks() const { return held_->chunks(); }
  /// The grid in which all programs are alike; empty if the topology names none.
  [[nodiscard]] schedule::list<int> symmetric_grid(int world) const { return held_->symmetric_grid(world); }
  /// Throws `std::invalid_argument` if the topology does not say how large its teams are.
  [[nodiscard]] int team(int world) const { return held_->team(world); }
  [[nodiscard]] orrery::schedule::program program(int rank, int world,
                                                  schedule::pass p = schedule::pass::forward) const {
    return held_->program(rank, world, p);
  }
  [[nodiscard]] schedule::list<orrery::schedule::program> programs(int world,
                                                                   schedule::pass p = schedule::pass::forward) const {
    return held_->programs(world, p);
  }
  /// True if a rank's program is written cheaply without those of the others.
  [[nodiscard]] bool writes_each_rank_alone(schedule::pass p) const { return held_->writes_each_rank_alone(p); }
  /// True if another value can be equal to this one, now or later. If not, an answer about it need not be remembered.
  [[nodiscard]] bool may_equal_another() const { return held_->comparable() || held_.use_count() > 1; }
  [[nodiscard]] bool operator==(const any_topology& other) const {
    return held_ == other.held_ || (held_->type() == other.held_->type() && held_->equals(*other.held_));
  }

 private:
  struct any {
    any() = default;
    any(const any&) = delete;
    any& operator=(const any&) = delete;
    virtual ~any() = default;
    [[nodiscard]] virtual const void* type() const = 0;
    [[nodiscard]] virtual bool equals(const any& of_same_type) const = 0;
    [[nodiscard]] virtual bool comparable() const = 0;
    [[nodiscard]] virtual bool writes_each_rank_alone(schedule::pass p) const = 0;
    [[nodiscard]] virtual std::string name() const = 0;
    [[nodiscard]] virtual const char* unsupported_reason(int world, schedule::pass p) const = 0;
    [[nodiscard]] virtual const char* pairs_left_out() const = 0;
    [[nodiscard]] virtual bool has_unsupported_reason() const = 0;
    [[nodiscard]] virtual detail::refusing_part refusing_part(int world, schedule::pass p) const = 0;
    [[nodiscard]] virtual int slices(int world) const = 0;
    [[nodiscard]] virtual int chunks() const = 0;
    [[nodiscard]] virtual schedule::list<int> symmetric_grid(int world) const = 0;
    [[nodiscard]] virtual int team(int world) const = 0;
    [[nodiscard]] virtual orrery::schedule::program program(int rank, int world, schedule::pass p) const = 0;
    [[nodiscard]] virtual schedule::list<orrery::schedule::program> programs(int world, schedule::pass p) const = 0;
  };

  template <topology Topology>
  struct some final : any {
    Topology held;

    explicit some(const Topology& t) : held{t} {}
    [[nodiscard]] const void* type() const override {
      static const char name_of_type = 0;  // its address
      return &name_of_type;
    }
    [[nodiscard]] bool equals(const any& of_same_type) const override {
      if constexpr (comparable_by_value<Topology>) {
        return detail::is_same_value(held, static_cast<const some&>(of_same_type).held);
      } else {
        return false;
      }
    }
    [[nodiscard]] bool comparable() const override { return comparable_by_value<Topology>; }
    [[nodiscard]] bool writes_each_rank_alone(schedule::pass p) const override {
      return detail::writes_each_rank_alone(held, p);
    }
    [[nodiscard]] std::string name() const override { return name_of(held); }
    [[nodiscard]] const char* unsupported_reason(int world, schedule::pass p) const override {
      return orrery::unsupported_reason(held, world, p);
    }
    [[nodiscard]] const char* pairs_left_out() const override { return detail::pairs_left_out(held); }
    [[nodiscard]] bool has_unsupported_reason() const override { return detail::has_unsupported_reason(held); }
    [[nodiscard]] detail::refusing_part refusing_part(int world, schedule::pass p) const override {
      return detail::refusing_part_of(held, world, p);
    }
    [[nodiscard]] int slices(int world) const override { return slices_of(held, world); }
    [[nodiscard]] int chunks() const override { return detail::chunks_of(held); }
    [[nodiscard]] schedule::list<int> symmetric_grid(int world) const override {
      return detail::symmetric_grid_of(held, world);
    }
    [[nodiscard]] int team(int world) const override {
      if constexpr (topology_of_teams<Topology>) {
        return held.team(world);
      } else {
        throw std::invalid_argument{"orrery: topology " + name() +
                                    " does not say how large its teams are: give it `int team(int world) const`, or "
                                    "place it by least_egress, which need not know"};
      }
    }
    [[nodiscard]] orrery::schedule::program program(int rank, int world, schedule::pass p) const override {
      return detail::unallocated_program(held, rank, world, p);
    }
    [[nodiscard]] schedule::list<orrery::schedule::program> programs(int world, schedule::pass p) const override {
      return detail::unallocated_programs(held, world, p);
    }
  };

  std::shared_ptr<const any> held_;
};

}  // namespace orrery
