// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <cudnn_frontend.h>

#include "orrery/detail/source_place.hpp"
#include "orrery/device/context.hpp"
#include "orrery/kernel/cudnn/call.hpp"

namespace orrery {

/// A call of cuDNN failed. `what()` is a message that names the call, its place in the source and cuDNN's own words.
class cudnn_error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace orrery

namespace orrery::detail {

/// Throws `cudnn_error` unless `status`, the result of `call`, is a success.
inline void check_cudnn(cudnnStatus_t status, const char* call, const source_place& place = source_place::current()) {
  if (status == CUDNN_STATUS_SUCCESS) return;
  char words[1024] = "";
  cudnnGetLastErrorString(words, sizeof words);
  throw cudnn_error{std::string{"orrery: "} + call + " in " + place.file + ":" + std::to_string(place.line) +
                    " failed: " + cudnnGetErrorString(status) + (words[0] == '\0' ? "" : ", ") + words +
                    "; a CUDA device, a driver as new as the toolkit and the libraries of cuDNN are needed, or another "
                    "kernel, as orrery::device_flash"};
}

/// The same of cudnn-frontend.
inline void check_cudnn(const cudnn_frontend::error_t& error, const char* call,
                        const source_place& place = source_place::current()) {
  if (error.is_good()) return;
  throw cudnn_error{std::string{"orrery: "} + call + " in " + place.file + ":" + std::to_string(place.line) +
                    " failed: " + error.err_msg};
}

/// The numbers of the tensors of a call's graph.
enum class cudnn_tensor : std::int64_t { q = 1, k, v, out, lse, grad_out, grad_q, grad_k, grad_v };

/// Makes an empty graph that of one call, with nothing built. What is said of the device must be said before.
inline void describe_cudnn_call(cudnn_frontend::graph::Graph& made, const cudnn_call& call) {
  namespace fe = cudnn_frontend;
  namespace graph = fe::graph;
  using dims = std::vector<std::int64_t>;
  made.set_io_data_type(call.type == cudnn_type::bfloat16 ? fe::DataType_t::BFLOAT16 : fe::DataType_t::HALF)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);

  const auto describe = [&](auto& tensor, cudnn_tensor which, const dims& shape, const cudnn_strides& s) {
    tensor.set_uid(static_cast<std::int64_t>(which)).set_dim(shape).set_stride({s.batch, s.head, s.sequence, 1});
  };
  const auto operand = [&](cudnn_tensor which, const char* name, const dims& shape, const cudnn_strides& s) {
    graph::Tensor_attributes tensor;
    tensor.set_name(name);
    if (which == cudnn_tensor::lse) tensor.set_data_type(fe::DataType_t::FLOAT);
    describe(tensor, which, shape, s);
    return made.tensor(tensor);
  };
  const auto result = [&](const std::shared_ptr<graph::Tensor_attributes>& tensor, cudnn_tensor which,
                          const dims& shape, const cudnn_strides& s) {
    tensor->set_output(true);
    if (which == cudnn_tensor::lse) tensor->set_data_type(fe::DataType_t::FLOAT);
    describe(*tensor, which, shape, s);
  };
  // Where there are as many queries as keys both alignments mean the same, and this one is the older.
  const auto masked = [&](auto& attributes) {
    if (!call.causal) return;
    attributes
        .set_diagonal_alignment(call.queries == call.keys ? fe::DiagonalAlignment_t::TOP_LEFT
                                                          : fe::DiagonalAlignment_t::BOTTOM_RIGHT)
        .set_diagonal_band_right_bound(0);
  };

  const dims q_shape{call.batch, call.query_heads, call.queries, call.key_dim};
  const dims k_shape{call.batch, call.key_heads, call.keys, call.key_dim};
  const dims v_shape{call.batch, call.key_heads, call.keys, call.value_dim};
  const dims out_shape{call.batch, call.query_heads, call.queries, call.value_dim};
  const dims lse_shape{call.batch, call.query_heads, call.queries, 1};
  const cudnn_strides lse_strides = cudnn_strides::packed(call.query_heads, call.queries, 1);
  const auto q = operand(cudnn_tensor::q, "q", q_shape, call.q);
  const auto k = operand(cudnn_tensor::k, "k", k_shape, call.k);
  const auto v = operand(cudnn_tensor::v, "v", v_shape, call.v);
  if (!call.backward) {
    auto attributes = graph::SDPA_attributes{}.set_name("attention").set_generate_stats(true);
    attributes.set_attn_scale(call.scale);
    masked(attributes);
    const auto [out, lse] = made.sdpa(q, k, v, attributes);
    result(out, cudnn_tensor::out, out_shape, call.out);
    result(lse, cudnn_tensor::lse, lse_shape, lse_strides);
  } else {
    const auto out = operand(cudnn_tensor::out, "out", out_shape, call.out);
    const auto lse = operand(cudnn_tensor::lse, "lse", lse_shape, lse_strides);
    const auto grad_out = operand(cudnn_tensor::grad_out, "grad_out", out_shape, call.grad_out);
    auto attributes = graph::SDPA_backward_attributes{}.set_name("attention").set_deterministic_algorithm(true);
    attributes.set_attn_scale(call.scale);
    masked(attributes);
    const auto [grad_q, grad_k, grad_v] = made.sdpa_backward(q, k, v, out, grad_out, lse, attributes);
    result(grad_q, cudnn_tensor::grad_q, q_shape, call.grad_q);
    result(grad_k, cudnn_tensor::grad_k, k_shape, call.grad_k);
    result(grad_v, cudnn_tensor::grad_v, v_shape, call.grad_v);
  }
}

/// Asks cuDNN for engines that compute the graph, deterministically: bad if there is none. `handle` is null where the
/// graph has the properties of a device instead.
[[nodiscard]] inline cudnn_frontend::error_t supported_by_cudnn(cudnn_frontend::graph::Graph& graph,
                                                                cudnnHandle_t handle) {
  if (const auto error = graph.validate(); error.is_bad()) return error;
  if (const auto error = graph.build_operation_graph(handle); error.is_bad()) return error;
  if (const auto error = graph.create_execution_plans({cudnn_frontend::HeurMode_t::A}); error.is_bad()) return error;
  graph.deselect_numeric_notes({cudnn_frontend::NumericalNote_t::NONDETERMINISTIC});
  return graph.check_support();
}

}  // namespace orrery::detail

namespace orrery {

/// cuDNN itself, by its graph API and cudnn-frontend (written for 1.32 and cuDNN 9.19): a `cudnn_engine` for the device
/// that is current when it is made. In a call it takes no device memory; cuDNN takes some of the host's.
///
/// cudnn-frontend takes compilers long (half a minute with g++, minutes with nvcc; less if all sources of a program
/// define CUDNN_FRONTEND_SKIP_JSON_LIB). Where that matters, include this header in one source for the host's compiler,
/// and give `device_cudnn` an engine that forwards to it, as the tests do.
class cudnn_graphs {
 public:
  /// Throws `cudnn_error`.
  cudnn_graphs() { detail::check_cudnn(cudnnCreate(&handle_), "cudnnCreate"); }
  cudnn_graphs(const cudnn_graphs&) = delete;
  cudnn_graphs& operator=(const cudnn_graphs&) = delete;
  ~cudnn_graphs() {
    plans_.clear();
    static_cast<void>(cudnnDestroy(handle_));
  }

  /// Cost: up to seconds, where cuDNN compiles. Throws `std::invalid_argument` if cuDNN does not have the call.
  int plan(const detail::cudnn_call& call) {
    execution made{std::make_unique<cudnn_frontend::graph::Graph>(), {}, 0};
    detail::describe_cudnn_call(*made.graph, call);
    if (const auto error = build(*made.graph); error.is_bad()) {
      throw std::invalid_argument{"orrery: cuDNN " + std::to_string(cudnnGetVersion()) +
                                  " does not have, on this device, the " + call.text() + ": " + error.err_msg +
                                  "; orrery::device_flash may have it"};
    }
    detail::check_cudnn(made.graph->get_workspace_size(made.workspace_bytes), "Graph::get_workspace_size");
    for (const detail::cudnn_tensor which : tensors_of(call.backward))
      made.addresses[static_cast<std::int64_t>(which)] = nullptr;
    plans_.push_back(std::move(made));
    return static_cast<int>(plans_.size()) - 1;
  }

  [[nodiscard]] std::int64_t workspace_bytes(int plan) const {
    return plans_[static_cast<std::size_t>(plan)].workspace_bytes;
  }

  /// Throws `cudnn_error`.
  void run(int plan, const device_context& context, const detail::cudnn_tensors& tensors, void* workspace) {
    if (!streamed_ || stream_ != context.stream)
      detail::check_cudnn(cudnnSetStream(handle_, context.stream), "cudnnSetStream");
    streamed_ = true;
    stream_ = context.stream;
    execution& made = plans_[static_cast<std::size_t>(plan)];
    for (auto& [number, address] : made.addresses)
      address = address_of(static_cast<detail::cudnn_tensor>(number), tensors);
    detail::check_cudnn(made.graph->execute(handle_, made.addresses, workspace), "Graph::execute");
  }

 private:
  struct execution {
    std::unique_ptr<cudnn_frontend::graph::Graph> graph;
    std::unordered_map<std::int64_t, void*> addresses;  // of this call
    std::int64_t workspace_bytes;
  };

  cudnn_frontend::error_t build(cudnn_frontend::graph::Graph& graph) {
    if (const auto error = detail::supported_by_cudnn(graph, handle_); error.is_bad()) return error;
    return graph.build_plans();
  }

  static std::vector<detail::cudnn_tensor> tensors_of(bool backward) {
    using enum detail::cudnn_tensor;
    return backward ? std::vector{q, k, v, out, lse, grad_out, grad_q, grad_k, grad_v} : std::vector{q, k, v, out, lse};
  }

  // cuDNN's tensors are all without const.
  static void* address_of(detail::cudnn_tensor which, const detail::cudnn_tensors& t) {
    switch (which) {
      case detail::cudnn_tensor::q:
        return const_cast<void*>(t.q);
      case detail::cudnn_tensor::k:
        return const_cast<void*>(t.k);
      case detail::cudnn_tensor::v:
        return const_cast<void*>(t.v);
      case detail::cudnn_tensor::out:
        return t.out;
      case detail::cudnn_tensor::lse:
        return t.lse;
      case detail::cudnn_tensor::grad_out:
        return const_cast<void*>(t.grad_out);
      case detail::cudnn_tensor::grad_q:
        return t.grad_q;
      case detail::cudnn_tensor::grad_k:
        return t.grad_k;
      case detail::cudnn_tensor::grad_v:
        return t.grad_v;
    }
    return nullptr;
  }

  cudnnHandle_t handle_ = nullptr;
  std::vector<execution> plans_;
  cudaStream_t stream_ = nullptr;
  bool streamed_ = false;
};

static_assert(detail::cudnn_engine<cudnn_graphs>);

}  // namespace orrery
