// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "orrery/attention.hpp"
#include "orrery/attention/shape.hpp"
#include "orrery/layout/detail/layout_source.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/layout/token_positions.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/predict/machine.hpp"
#include "orrery/predict/machine_text.hpp"
#include "orrery/predict/prediction.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/tensor/view.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/topology.hpp"
#include "orrery/transport/transport.hpp"
#include "orrery/tune/detail/choice_file.hpp"
#include "orrery/tune/detail/choice_key.hpp"
#include "orrery/tune/recommend.hpp"
#include "orrery/tune/schedule_choice.hpp"

namespace orrery {

/// An attention operator whose topology is chosen at run time, among those that were compiled: the one that is fastest
/// by `recommend` for this world, shape, machine, mask and layout.
///
///     const orrery::machine here = orrery::read_machine(text);  // written by bench_machine
///     orrery::tuned<orrery::flash<float>, orrery::ring, orrery::wallfacer<2>, orrery::concentric<8>, orrery::ulysses>
///         attend{world, {.length = 65536, .query_heads = 32, .key_heads = 8, .head_dim = 128}, here,
///                orrery::causal{}, orrery::zigzag{}, {.remember = "schedules.txt"}};
///     if (world.rank() == 0) std::cout << attend.choice().why << '\n';
///     attend.forward(q, k, v, out, lse);
///
/// Rank 0 predicts, and all ranks run what it has chosen: `attention<Topology, Kernel>`, with both policies of the
/// backward tried unless the shape is `forward_only`. `visit` gives that operator itself.
///
/// With a file, a choice is remembered with everything that it depends on: the world and its transport, the shape, the
/// kernel, the machine's text, the candidates and their programs, the visible pairs of each two shards, and the version
/// of the predictions. What a file says of anything else is not considered, a damaged choice is not believed, and a
/// file that is none of choices is neither read nor written; `choice().file_note` says so.
template <class Kernel, topology... Topologies>
class tuned {
  static_assert(sizeof...(Topologies) > 0, "orrery::tuned needs topologies to choose from: tuned<Kernel, ring, ...>");
  static_assert((std::is_default_constructible_v<Topologies> && ...),
                "orrery::tuned makes its topologies itself; for topologies that are values use recommend and "
                "attention<any_topology, Kernel>");

 public:
  using storage = typename Kernel::storage;
  using accumulator = typename Kernel::accumulator;
  using log_sum_exp = detail::log_sum_exp_of<storage>;
  using backward_arguments = orrery::backward_arguments<Kernel>;

  /// Collective: all ranks construct it, with the same arguments. `world` must outlive the operator if `measure` is
  /// called. `shape.circulate` is not considered.
  ///
  /// Costs what `recommend` costs on rank 0, while the others wait for it within their deadline, and the construction
  /// of one operator. Throws, on every rank, `std::invalid_argument` if no topology can be used, with the reason of
  /// each, if two candidates have one name, or if ranks disagree about the machine; and as the constructor of
  /// `attention` does.
  template <transport World, mask Mask = full, layout Layout = contiguous>
  tuned(World& world, const attention_shape& shape, const machine& m, const Mask& mask = {}, const Layout& layout = {},
        const tuning_options& options = {})
      : remember_{options.remember} {
    choose(world, shape, m, mask, layout);
    construct_ = [&world, shape, mask, layout](tuned& self, const schedule_choice::candidate& one) {
      attention_shape asked = shape;
      if (one.circulate != schedule::pass::forward) asked.circulate = one.circulate;
      self.emplace(one.index, world, asked, mask, layout);
    };
    construct_(*this, choice_.chosen());
  }

  /// What was chosen, and why.
  [[nodiscard]] const schedule_choice& choice() const noexcept { return choice_; }

  /// Calls `call` with the operator that was chosen, an `attention<Topology, Kernel>&`; returns what it returns.
  template <class Call>
  decltype(auto) visit(Call&& call) {
    return std::visit(std::forward<Call>(call), chosen_operator());
  }

  /// As `attention::forward`.
  void forward(const tensor_view<const storage>& q, const tensor_view<const storage>& k,
               const tensor_view<const storage>& v, const tensor_view<storage>& out, const row_view<log_sum_exp>& lse,
               const output_listener& on_final = {}) {
    visit([&](auto& attend) { attend.forward(q, k, v, out, lse, on_final); });
  }
  /// As `attention::backward`.
  void backward(const backward_arguments& given, const output_listener& on_final = {}) {
    visit([&](auto& attend) { attend.backward(given, on_final); });
  }
  [[nodiscard]] const token_positions& query_positions() const {
    return std::visit([](const auto& attend) -> const token_positions& { return attend.query_positions(); },
                      chosen_operator());
  }
  [[nodiscard]] const token_positions& key_positions() const {
    return std::visit([](const auto& attend) -> const token_positions& { return attend.key_positions(); },
                      chosen_operator());
  }
  [[nodiscard]] const attention_shape& shape() const {
    return std::visit([](const auto& attend) -> const attention_shape& { return attend.shape(); }, chosen_operator());
  }
  [[nodiscard]] std::int64_t workspace_bytes() const {
    return std::visit([](const auto& attend) { return attend.workspace_bytes(); }, chosen_operator());
  }

  /// Measures the best `count` candidates on the transport, and keeps the fastest. Collective.
  ///
  ///     attend.measure(world, 3, 5, [&](auto& one) {
  ///       one.forward(q, k, v, out, lse);
  ///       one.backward(gradients);
  ///     });
  ///
  /// `call` is called with each of them as an `attention<Topology, Kernel>&`, once and then `iterations` times; it
  /// returns when the work is done (on a device: synchronises). Counts the median of the slowest rank's seconds. The
  /// file of choices remembers the result. Does nothing for a choice that was remembered as measured.
  ///
  /// Throws `std::invalid_argument` for less than 1 candidate or iteration, and what `call` throws.
  template <transport World, class Call>
  void measure(World& world, int count, int iterations, const Call& call);

 private:
  using operators = std::variant<attention<Topologies, Kernel>...>;

  /// Sets the choice on all ranks, and what `remember` needs.
  template <class World, class Mask, class Layout>
  void choose(World& world, const attention_shape& shape, const machine& m, const Mask& mask, const Layout& layout);
  /// Throws `std::logic_error` if there is none, since `measure` failed to construct one.
  [[nodiscard]] operators& chosen_operator() {
    if (operator_) return *operator_;
    throw std::logic_error{"orrery: tuned: there is no operator, since measure failed; construct another one"};
  }
  [[nodiscard]] const operators& chosen_operator() const { return const_cast<tuned&>(*this).chosen_operator(); }
  [[nodiscard]] static const std::vector<any_topology>& candidates() {
    static const std::vector<any_topology> all{any_topology{Topologies{}}...};
    return all;
  }

  template <class... Arguments>
  void emplace(std::size_t index, Arguments&... arguments) {
    [&]<std::size_t... i>(std::index_sequence<i...>) {
      ((i == index ? (void)construct<i>(arguments...) : void()), ...);
    }
    (std::index_sequence_for<Topologies...>{});
  }
  template <std::size_t index, class... Arguments>
  void construct(Arguments&... arguments) {
    operator_.reset();  // two plans may not fit into memory
    using one = std::variant_alternative_t<index, operators>;
    one made{arguments...};
    operator_.emplace(std::in_place_index<index>, std::move(made));
  }
  void put_in_file();

  std::string remember_;
  std::string key_;  ///< of the file; on rank 0
  bool is_first_rank_ = false;
  schedule_choice choice_;
  std::function<void(tuned&, const schedule_choice::candidate&)> construct_;
  std::optional<operators> operator_;
};

template <class Kernel, topology... Topologies>
template <class World, class Mask, class Layout>
void tuned<Kernel, Topologies...>::choose(World& world, const attention_shape& shape, const machine& m,
                                          const Mask& mask, const Layout& layout) {
  is_first_rank_ = world.rank() == 0;
  if (const std::string twice = detail::name_of_two(candidates()); !twice.empty()) {
    throw std::invalid_argument{"orrery: tuned: two candidates are named \"" + twice +
                                "\"; list each once, and give topologies of your own a name()"};
  }
  std::string error, machine_text;
  try {
    machine_text = detail::in_one_line(to_string(m));
    m.check_world(world.size());
  } catch (const std::invalid_argument& e) {
    error = e.what();
  }
  std::string names;
  for (const any_topology& one : candidates()) names += (names.empty() ? "" : "; ") + one.name();
  const detail::agreement agreements[] = {{"error", error},
                                          {"candidates of tuned", names},
                                          {"shape", to_string(shape.completed())},
                                          {"mask", std::string{mask.name()}},
                                          {"layout", std::string{layout.name()}},
                                          {"machine", machine_text}};
  detail::require_agreement(world, agreements);
  std::string told;
  if (is_first_rank_) {
    try {
      attention_shape asked = shape.completed();
      asked.circulate = schedule::pass::circulate_keys;
      detail::choice_file file{remember_};
      if (!remember_.empty()) {
        key_ = detail::choice_key(world.size(), detail::text_of_type<World>(), asked, Kernel::name(), mask,
                                  detail::layout_source{layout}, machine_text,
                                  detail::digests_of(candidates(), world.size()));
        choice_ = detail::remembered(file, key_, candidates());
      }
      if (choice_.ranked.empty()) {
        simulation_options how;
        how.storage_bytes = static_cast<std::int64_t>(sizeof(storage));
        how.sum_bytes = static_cast<std::int64_t>(sizeof(accumulator));
        choice_ = detail::choice_of(recommend(world.size(), m, shape, mask, layout, how, candidates()), candidates());
        put_in_file();
      }
      if (choice_.file_note.empty()) choice_.file_note = file.note();
      if (!remember_.empty() && key_.empty()) {
        choice_.file_note = "the layout has too many pieces to compare masks by: the choice is not remembered";
      }
      told = detail::text_of_choice(choice_);
    } catch (const std::exception& e) {
      told = std::string{"!"} + e.what();
    }
  }
  told = world.all_gather(told).front();
  if (told.substr(0, 1) == "!") throw std::invalid_argument{told.substr(1)};
  const std::string note = choice_.file_note;
  choice_ = detail::choice_of_text(told, candidates());
  choice_.file_note = note;
}

template <class Kernel, topology... Topologies>
void tuned<Kernel, Topologies...>::put_in_file() {
  if (remember_.empty() || !is_first_rank_) return;
  detail::choice_file file{remember_};
  file.put({key_, choice_.ranked});
  choice_.file_note = file.note();
}

template <class Kernel, topology... Topologies>
template <transport World, class Call>
void tuned<Kernel, Topologies...>::measure(World& world, int count, int iterations, const Call& call) {
  for (const auto& [name, value] : {std::pair{"count", count}, {"iterations", iterations}}) {
    if (value < 1) {
      throw std::invalid_argument{std::string{"orrery: tuned::measure: "} + name + " is " + std::to_string(value) +
                                  ", expected at least 1"};
    }
  }
  if (choice_.from == schedule_choice::source::remembered && choice_.chosen().measured > 0) return;
  using clock = std::chrono::steady_clock;
  const auto tried = (std::min)(choice_.ranked.size(), static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < tried; ++i) {
    schedule_choice::candidate& one = choice_.ranked[i];
    construct_(*this, one);
    std::vector<double> seconds(static_cast<std::size_t>(iterations));
    visit(call);
    for (double& of_call : seconds) {
      world.barrier();
      const auto begin = clock::now();
      visit(call);
      of_call = std::chrono::duration<double>(clock::now() - begin).count();
    }
    one.measured = detail::median_of_slowest(world, seconds);
  }
  const auto end = choice_.ranked.begin() + static_cast<std::ptrdiff_t>(tried);
  const auto fastest = std::min_element(choice_.ranked.begin(), end,
                                        [](const auto& a, const auto& b) { return a.measured < b.measured; });
  const bool is_last = fastest + 1 == end;
  std::rotate(choice_.ranked.begin(), fastest, fastest + 1);
  choice_.from = schedule_choice::source::measured;
  choice_.why = choice_.chosen().name + " was the fastest of " + std::to_string(tried) +
                " that were measured: " + detail::seconds_text(choice_.chosen().measured) + ", predicted " +
                detail::seconds_text(choice_.chosen().predicted);
  if (!is_last) construct_(*this, choice_.chosen());
  put_in_file();
}

}  // namespace orrery
