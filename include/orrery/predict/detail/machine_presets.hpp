// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

namespace orrery::detail {

/// The machines that `machine_named` and `like` know, as a text that `read_machine` reads.
///
/// Links: plateaus of published NCCL measurements. Kernels: FlashAttention-2 and -3 at head dimension 128 in bfloat16,
/// and least squares over published tables of ring attention. What is not measured says so.
inline constexpr const char* machine_presets = R"(
machine  a100
device   full 215 TFLOP/s  causal 205 TFLOP/s  backward 185 TFLOP/s  backward-causal 175 TFLOP/s
device   launch 10 us  units 108  memory 1.7 TB/s  capacity 80 GB
level    node     8 devices    NVLink3   220 GB/s  12 us  each its own
level    cluster  128 nodes    HDR        24 GB/s  20 us  each its own

machine  h100
device   full 640 TFLOP/s  causal 620 TFLOP/s  backward 550 TFLOP/s  backward-causal 515 TFLOP/s
device   launch 10 us  units 132  memory 3 TB/s  capacity 80 GB
level    node     8 devices    NVLink4   365 GB/s  12 us  each its own
level    cluster  128 nodes    NDR        48 GB/s  20 us  each its own

machine  h800                  # FlashAttention-2; NVLink as ring attention uses it
device   full 360 TFLOP/s  causal 327 TFLOP/s  backward 318 TFLOP/s  backward-causal 289 TFLOP/s
device   launch 10 us  units 132  memory 2.9 TB/s  capacity 80 GB
level    node     8 devices    NVLink    160 GB/s  12 us  each its own
level    cluster  128 nodes    NDR        48 GB/s  20 us  each its own

machine  h200                  # the kernels of an h100; links measured
like     h100
device   memory 4.3 TB/s  capacity 141 GB
level    node     NVSwitch  368 GB/s  12 us

machine  b200                  # kernels: half of a published FP8 figure, a guess
device   full 920 TFLOP/s  causal 860 TFLOP/s  backward 780 TFLOP/s  backward-causal 730 TFLOP/s
device   launch 10 us  units 148  memory 7 TB/s  capacity 180 GB
level    node     8 devices    NVLink5   682 GB/s  12 us  each its own
level    cluster  128 nodes    NDR        48 GB/s  20 us  each its own

machine  cpu-100gbe            # 32 cores a node, a rank a node; rates of the flash kernel on AVX-512: an estimate
device   full 2.6 TFLOP/s  causal 2.4 TFLOP/s  backward 2.2 TFLOP/s  launch 2 us
device   units 32  block 64 rows  memory 200 GB/s
level    node     1 device
level    cluster  1024 nodes   100GbE   11.5 GB/s  30 us  shared by node
host     call 20 us  step 5 us  message 8 us

machine  cpu-10gbe
like     cpu-100gbe
level    cluster  10GbE  1.19 GB/s  40 us
)";

}  // namespace orrery::detail
