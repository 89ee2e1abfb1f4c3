// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

// What most programs need: operators, kernels, masks, layouts, topologies, threads and verification, with nothing but
// the standard library. Other headers: transport/mpi.hpp, nccl.hpp, device.hpp, nvtx.hpp, traced.hpp and faulty.hpp;
// topology/named.hpp, mask/named.hpp, layout/named.hpp; topology/precomputed.hpp, tune/ and predict/.

#include "orrery/config.hpp"

#include "orrery/attention.hpp"
#include "orrery/draw/grid.hpp"
#include "orrery/kernel/flash.hpp"
#include "orrery/kernel/reference.hpp"
#include "orrery/layout/chunked.hpp"
#include "orrery/layout/labels.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/layout/per_document.hpp"
#include "orrery/layout/take.hpp"
#include "orrery/mask/causal.hpp"
#include "orrery/mask/documents.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/mask/intersection.hpp"
#include "orrery/mask/intervals.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/mask/prefix.hpp"
#include "orrery/mask/window.hpp"
#include "orrery/predict/traffic.hpp"
#include "orrery/schedule/builder.hpp"
#include "orrery/schedule/relation.hpp"
#include "orrery/tensor/view.hpp"
#include "orrery/topology/all_gather.hpp"
#include "orrery/topology/all_to_all.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/concentric.hpp"
#include "orrery/topology/double_ring.hpp"
#include "orrery/topology/half_ring.hpp"
#include "orrery/topology/placed.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/topology/wallfacer.hpp"
#include "orrery/transport/counted.hpp"
#include "orrery/transport/threads.hpp"
#include "orrery/tune/causal_grid.hpp"
#include "orrery/tune/least_egress.hpp"
#include "orrery/verify/verify.hpp"
