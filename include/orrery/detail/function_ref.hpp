// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>
#include <memory>
#include <type_traits>
#include <utility>

namespace orrery::detail {

template <class Signature>
class function_ref;

/// Refers to a callable of any type, which must outlive it: a function's parameter that is called before the function
/// returns, or a member that refers to a longer-lived object. Two pointers; allocates nothing. A call costs an indirect
/// call. See `std::function_ref` of C++26.
///
///     void for_all_ranks(function_ref<void(int)> body);
///     for_all_ranks([&](int rank) { ... });
///     function_ref<void()> poll{world, [](communicator& w) { w.progress(); }};  // refers to `world`
template <class Result, class... Arguments>
class function_ref<Result(Arguments...)> {
 public:
  /// Refers to nothing; may not be called.
  function_ref() = default;

  /// Refers to `callable`, an object.
  template <class Callable>
    requires(!std::same_as<std::remove_cvref_t<Callable>, function_ref> &&
             std::is_object_v<std::remove_reference_t<Callable>> &&
             std::is_invocable_r_v<Result, std::remove_reference_t<Callable>&, Arguments...>)
  // NOLINTNEXTLINE(google-explicit-constructor,bugprone-forwarding-reference-overload): passed as an argument
  function_ref(Callable&& callable)
  noexcept
      : object_{erased(callable)}, call_{[](void* object, Arguments... arguments) -> Result {
          return static_cast<Result>(
              (*static_cast<std::remove_reference_t<Callable>*>(object))(std::forward<Arguments>(arguments)...));
        }} {}

  /// Refers to `object`. A call is call(object, arguments...); `call` is a lambda expression without captures.
  template <class Object, class Call>
    requires(std::is_empty_v<Call>&& std::default_initializable<Call>&&
                 std::is_invocable_r_v<Result, const Call&, Object&, Arguments...>)
  function_ref(Object& object, Call)
  noexcept
      : object_{erased(object)}, call_{[](void* to, Arguments... arguments) -> Result {
          return static_cast<Result>(Call{}(*static_cast<Object*>(to), std::forward<Arguments>(arguments)...));
        }} {}

  Result operator()(Arguments... arguments) const { return call_(object_, std::forward<Arguments>(arguments)...); }

  /// True if it refers to something.
  [[nodiscard]] explicit operator bool() const noexcept { return call_ != nullptr; }

 private:
  template <class Object>
  [[nodiscard]] static void* erased(Object& object) noexcept {
    return const_cast<void*>(static_cast<const volatile void*>(std::addressof(object)));
  }

  void* object_ = nullptr;
  Result (*call_)(void*, Arguments...) = nullptr;
};

}  // namespace orrery::detail
