// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/schedule/block.hpp"

/// Nanoseconds that another simulator, written in another language and with another algorithm (it serves every message
/// on its own and moves from event to event by dividing what is left), gave for programs of this library. It agreed
/// with a third one, which reads the GOAL format, to 1 part in 10000 on the first table.
namespace reference_times {

using orrery::pass;

struct own_ports {
  const char* topology;
  int world;
  bool computes;  // is it bound by computing, or by communication?
  double nanoseconds;
};

/// A port for each rank. A query block has 16 MiB, a key block twice that, in as many slices as the topology cuts.
/// Bound by communication: 20 GB/s and 100 us for a pair of blocks; by computing: 200 GB/s and 4 ms. 2.5 us latency.
inline constexpr own_ports with_own_ports[] = {
    {"ring", 4, false, 5140664.800},
    {"ring", 4, true, 16000000.000},
    {"double_ring<4>", 4, false, 5140664.800},
    {"double_ring<4>", 4, true, 16000000.000},
    {"usp<4>", 4, false, 2921582.400},
    {"usp<4>", 4, true, 16256658.240},
    {"wallfacer<2>", 4, false, 7118386.400},
    {"wallfacer<2>", 4, true, 16678588.640},
    {"concentric<2,2>", 4, false, 3760443.200},
    {"concentric<2,2>", 4, true, 16340544.320},
    {"ulysses", 4, false, 2921582.400},
    {"ulysses", 4, true, 16256658.240},
    {"all_gather", 4, false, 5435664.800},
    {"all_gather", 4, true, 16505816.480},
    {"ring", 8, false, 11861551.200},
    {"ring", 8, true, 32000000.000},
    {"double_ring<4>", 8, false, 11959051.200},
    {"double_ring<4>", 8, true, 32000000.000},
    {"usp<4>", 8, false, 4601804.000},
    {"usp<4>", 8, true, 32256658.240},
    {"wallfacer<2>", 8, false, 10476329.600},
    {"wallfacer<2>", 8, true, 32678588.640},
    {"concentric<2,2>", 8, false, 7118386.400},
    {"concentric<2,2>", 8, true, 32340544.320},
    {"ulysses", 8, false, 3741012.800},
    {"ulysses", 8, true, 32298601.280},
    {"all_gather", 8, false, 12546551.200},
    {"all_gather", 8, true, 33176905.120},
    {"ring", 16, false, 25303324.000},
    {"ring", 16, true, 64000000.000},
    {"double_ring<4>", 16, false, 25595824.000},
    {"double_ring<4>", 16, true, 64000000.000},
    {"usp<4>", 16, false, 7962247.200},
    {"usp<4>", 16, true, 64256658.240},
    {"wallfacer<2>", 16, false, 17192216.000},
    {"wallfacer<2>", 16, true, 64678588.640},
    {"concentric<2,2>", 16, false, 13834272.800},
    {"concentric<2,2>", 16, true, 64340544.320},
    {"ulysses", 16, false, 4750728.000},
    {"ulysses", 16, true, 64319572.800},
    {"all_gather", 16, false, 26768324.000},
    {"all_gather", 16, true, 66519082.400},
};

struct shared_ports {
  const char* topology;
  int world;
  int ranks_per_node;
  orrery::pass pass;
  double nanoseconds;
};

/// A card for each node. A query block has 1 MiB, a key block twice that. In nodes 20 GB/s and 2 us, between them 1.25
/// GB/s and 10 us; 200 us for a pair of blocks; 1 us of the host for a step, 3 us for an exchange.
inline constexpr shared_ports with_shared_ports[] = {
    {"ring", 8, 4, pass::forward, 12015051.200},
    {"ring", 8, 4, pass::circulate_queries, 11834051.200},
    {"double_ring<4>", 8, 4, pass::forward, 7533886.400},
    {"double_ring<4>", 8, 4, pass::circulate_queries, 7607315.200},
    {"usp<4>", 8, 4, pass::forward, 7683172.800},
    {"usp<4>", 8, 4, pass::circulate_queries, 7771816.000},
    {"wallfacer<2>", 8, 4, pass::forward, 8539601.600},
    {"wallfacer<2>", 8, 4, pass::circulate_queries, 8708888.000},
    {"concentric<2,2>", 8, 4, pass::forward, 14446488.000},
    {"concentric<2,2>", 8, 4, pass::circulate_queries, 14561345.600},
    {"ulysses", 8, 4, pass::forward, 8331886.400},
    {"ulysses", 8, 4, pass::circulate_queries, 11687329.600},
    {"all_gather", 8, 4, pass::forward, 28454545.600},
    {"all_gather", 8, 4, pass::circulate_queries, 28464545.600},
    {"ring", 16, 4, pass::forward, 25516824.000},
    {"ring", 16, 4, pass::circulate_queries, 25335824.000},
    {"double_ring<4>", 16, 4, pass::forward, 20975659.200},
    {"double_ring<4>", 16, 4, pass::circulate_queries, 20182659.200},
    {"usp<4>", 16, 4, pass::forward, 21124945.600},
    {"usp<4>", 16, 4, pass::circulate_queries, 20422588.800},
    {"wallfacer<2>", 16, 4, pass::forward, 34609147.200},
    {"wallfacer<2>", 16, 4, pass::circulate_queries, 33880576.000},
    {"concentric<2,2>", 16, 4, pass::forward, 41310033.600},
    {"concentric<2,2>", 16, 4, pass::circulate_queries, 40633891.200},
    {"ulysses", 16, 4, pass::forward, 13287329.600},
    {"ulysses", 16, 4, pass::circulate_queries, 18320494.400},
    {"all_gather", 16, 4, pass::forward, 83741636.800},
    {"all_gather", 16, 4, pass::circulate_queries, 83751636.800},
    {"ring", 16, 2, pass::forward, 25516824.000},
    {"ring", 16, 2, pass::circulate_queries, 25335824.000},
    {"double_ring<4>", 16, 2, pass::forward, 31122988.800},
    {"double_ring<4>", 16, 2, pass::circulate_queries, 30378988.800},
    {"usp<4>", 16, 2, pass::forward, 14272772.800},
    {"usp<4>", 16, 2, pass::circulate_queries, 15169494.400},
    {"wallfacer<2>", 16, 2, pass::forward, 27898260.800},
    {"wallfacer<2>", 16, 2, pass::circulate_queries, 27179689.600},
    {"concentric<2,2>", 16, 2, pass::forward, 24383531.200},
    {"concentric<2,2>", 16, 2, pass::circulate_queries, 23558102.400},
    {"ulysses", 16, 2, pass::forward, 9093025.600},
    {"ulysses", 16, 2, pass::circulate_queries, 12029038.400},
    {"all_gather", 16, 2, pass::forward, 50187204.800},
    {"all_gather", 16, 2, pass::circulate_queries, 50197204.800},
};

}  // namespace reference_times
