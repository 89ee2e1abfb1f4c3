// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include "device/runtime_double.hpp"

/// The memory of the runtime double's devices, and what touches it: which of that is a race.
namespace cuda_double {

/// For each stream, by number, how many of its operations come before.
using vector_clock = std::map<int, std::uint64_t>;

inline void join(vector_clock& into, const vector_clock& other) {
  for (const auto& [stream, count] : other) {
    std::uint64_t& mine = into[stream];
    mine = (std::max)(mine, count);
  }
}

inline const std::byte* address(const void* of) { return static_cast<const std::byte*>(of); }

/// Sentences, the first hundred.
struct fault_list {
  std::vector<std::string> all;

  void add(const std::string& message) {
    if (all.size() < 100) all.push_back(message);
  }
};

inline bool overlap(const std::vector<bytes>& a, const std::vector<bytes>& b) {
  for (const bytes& x : a) {
    for (const bytes& y : b) {
      if (address(x.begin) < address(y.end) && address(y.begin) < address(x.end)) return true;
    }
  }
  return false;
}
/// Do two operations touch the same bytes, and one of them writes there?
[[nodiscard]] inline bool conflict(const accesses& a, const accesses& b) {
  return overlap(a.writes, b.writes) || overlap(a.writes, b.reads) || overlap(a.reads, b.writes);
}

/// Reserved once, and protected but while something that may touch it runs.
class device_arena {
 public:
  explicit device_arena(fault_list& faults) : faults_{&faults} {
    void* const reserved = mmap(nullptr, arena_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED) std::abort();
    arena_ = static_cast<std::byte*>(reserved);
  }

  /// While it lives, device memory may be touched.
  struct unprotected {
    device_arena& of;
    explicit unprotected(device_arena& arena) : of{arena} {
      if (of.open_++ == 0) of.protect(PROT_READ | PROT_WRITE);
    }
    unprotected(const unprotected&) = delete;
    unprotected& operator=(const unprotected&) = delete;
    ~unprotected() {
      if (--of.open_ == 0) of.protect(PROT_NONE);
    }
  };

  cudaError_t allocate(void** to, std::size_t size, int device, std::size_t most) {
    if (used(device) + size > most) return cudaErrorMemoryAllocation;
    // First fit, with a gap after each.
    std::size_t offset = 0;
    for (const auto& [begin, one] : allocations_) {
      if (begin - offset >= size + gap) break;
      offset = (begin + one.size + gap + alignment - 1) / alignment * alignment;
    }
    if (offset + size + gap > arena_size) return cudaErrorMemoryAllocation;
    allocations_[offset] = {size, device, {}};
    const unprotected writable{*this};
    std::memset(arena_ + offset, 0xff, size);
    *to = arena_ + offset;
    return cudaSuccess;
  }
  /// `known` comes before the call; null: the device is lost, and nothing runs any more.
  cudaError_t free(void* memory, const vector_clock* known) {
    if (memory == nullptr) return cudaSuccess;
    const auto found = allocations_.find(static_cast<std::size_t>(address(memory) - arena_));
    if (!in_arena(memory) || found == allocations_.end()) return cudaErrorInvalidValue;
    for (const access& one : found->second.touched) {
      if (known != nullptr && !comes_before(one, *known)) {
        faults_->add("memory is freed which " + one.name + " may still " + (one.writes ? "write" : "read"));
      }
    }
    allocations_.erase(found);
    return cudaSuccess;
  }
  [[nodiscard]] std::size_t used(int device) const {
    std::size_t sum = 0;
    for (const auto& [begin, one] : allocations_) sum += one.device == device ? one.size : 0;
    return sum;
  }
  [[nodiscard]] std::size_t allocations() const { return allocations_.size(); }

  /// Compares what a new operation touches with what others did.
  void touch(const accesses& what, int stream, const vector_clock& clock) {
    const std::uint64_t count = stream < 0 ? 0 : clock.at(stream);
    const auto one = [&](const bytes& range, bool writes) {
      if (range.begin == range.end || !in_arena(range.begin)) return;
      auto found = allocations_.upper_bound(static_cast<std::size_t>(address(range.begin) - arena_));
      if (found == allocations_.begin()) return faults_->add(what.name + " touches memory that is not allocated");
      --found;
      if (address(range.end) > arena_ + found->first + found->second.size) {
        return faults_->add(what.name + " touches memory outside of its allocation");
      }
      const access now{what.name, address(range.begin), address(range.end), writes, stream, count};
      std::vector<access>& touched = found->second.touched;
      for (const access& other : touched) {
        if (other.end <= now.begin || now.end <= other.begin || (!writes && !other.writes)) continue;
        if (other.stream == stream || comes_before(other, clock)) continue;
        faults_->add("race: " + other.name + (other.writes ? " writes" : " reads") + " what " + now.name +
                     (writes ? " writes" : " reads") + ", unordered");
      }
      std::erase_if(touched, [&](const access& other) {
        return now.begin <= other.begin && other.end <= now.end &&
               (writes || (other.stream == stream && !other.writes));
      });
      touched.push_back(now);
    };
    for (const bytes& range : what.reads) one(range, false);
    for (const bytes& range : what.writes) one(range, true);
  }

 private:
  static constexpr std::size_t arena_size = std::size_t{4} << 30;  // reserved, not used
  static constexpr std::size_t alignment = 256;
  static constexpr std::size_t gap = 256;

  struct access {
    std::string name;
    const std::byte* begin;
    const std::byte* end;
    bool writes;
    int stream;  // -1: the host
    std::uint64_t count;
  };
  struct allocation {
    std::size_t size = 0;
    int device = 0;
    std::vector<access> touched;
  };

  void protect(int how_to) {
    if (mprotect(arena_, arena_size, how_to) != 0) std::abort();
  }
  [[nodiscard]] bool in_arena(const void* memory) const {
    return address(memory) >= arena_ && address(memory) < arena_ + arena_size;
  }
  [[nodiscard]] static bool comes_before(const access& one, const vector_clock& clock) {
    if (one.stream < 0) return true;
    const auto found = clock.find(one.stream);
    return found != clock.end() && found->second >= one.count;
  }

  fault_list* faults_;
  std::byte* arena_ = nullptr;
  int open_ = 0;
  std::map<std::size_t, allocation> allocations_;  // by their offsets
};

}  // namespace cuda_double
