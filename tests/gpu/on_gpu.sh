#!/usr/bin/env bash
# Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#
# Everything that needs a GPU, on a machine that has one and perhaps no network and no compiler, within so many minutes:
#
#     tests/gpu/on_gpu.sh bring [ARCHITECTURES]      # on a machine with nvcc: builds what to carry into build/carry
#     tests/gpu/on_gpu.sh run OUT [MINUTES] [STEP...]
#
# ARCHITECTURES are CMake's, 90a-real if left out. What is carried has 60 MiB at most: programs that would make it more
# are left out, by name. Where nothing was carried, `run` builds the programs first, which takes nvcc, CMake and a C++
# compiler.
#
# Steps, in this order unless named: products mma_sync wgmma bits memcheck racecheck device speed graph train nccl nccl2
# nccl4 cudnn topology movement. Each has a time limit, none stops the others, and the last output is a table of them. OUT
# gets steps.md (the table, with the device), log.txt (all that was printed, cut to 2 MB a step), topology.json, gpu.md and
# gpu.json (with PyTorch in the same run). compute-sanitizer, NCCL and cuDNN (also from Python's packages) and PyTorch are
# used where they are found; a step whose program or library is missing is skipped by name.
set -uo pipefail
cd "$(dirname "$0")/../.."
readonly build=build/gpu carry=build/carry most_bytes=$((60 << 20))
export PATH="$PATH:/usr/local/cuda/bin:/usr/local/cuda/compute-sanitizer"

say() { printf '%s\n' "$*" >&2; }

doctest_header() {
  local header
  for header in /usr/include/doctest/doctest.h /usr/local/include/doctest/doctest.h \
    build/*/_deps/debian/doctest/usr/include/doctest/doctest.h build/*/_deps/doctest-src/doctest/doctest.h; do
    if [ -e "$header" ]; then
      printf '%s\n' "$header"
      return
    fi
  done
  return 1
}

# Programs by name, and what CMake calls their files.
readonly -A programs=([test_gpu]=tests/test_gpu [test_gpu_nccl]=tests/test_gpu_nccl [test_cudnn_gpu]=tests/test_cudnn_gpu
  [bench_gpu]=bench/bench_gpu [bench_topology_cuda]=bench/bench_topology_cuda
  [bench_kernel_cuda_backend]=bench/bench_kernel_cuda_backend
  [bench_kernel_cudnn_attention]=bench/bench_kernel_cudnn_attention [device_graph]=examples/device_graph
  [train]=examples/train)

# The path of a program: carried, or built here.
program() {
  if [ -x "$carry/bin/$1" ]; then
    printf '%s\n' "$PWD/$carry/bin/$1"
  else
    printf '%s\n' "$PWD/$build/${programs[$1]}"
  fi
}

# Puts stripped programs into build/carry/bin. Those of less use stay behind if all are too large.
bring() {
  local name bytes=0 size
  if ! doctest_header >/dev/null || [ ! -d build/cuda/_deps/cudnn_frontend/include ]; then
    cmake --preset cuda >/dev/null || return 1 # which gets them
  fi
  build_programs "${1:-90a-real}" || say "Not all programs could be built."
  rm -rf $carry
  mkdir -p $carry/bin $carry/lib
  cp "$(dirname "$(realpath "$(command -v nvcc)")")"/../lib64/libcudart.so.[0-9]* $carry/lib/ || return 1
  bytes=$(du -sbL $carry/lib | cut -f 1)
  for name in test_gpu bench_gpu test_gpu_nccl train device_graph bench_topology_cuda bench_kernel_cuda_backend \
    test_cudnn_gpu bench_kernel_cudnn_attention; do
    [ -x "$build/${programs[$name]}" ] || { say "$name: not built"; continue; }
    strip -o "$carry/bin/$name" "$build/${programs[$name]}" || return 1
    size=$(stat -c %s "$carry/bin/$name")
    if [ $((bytes + size)) -gt $most_bytes ]; then
      say "$name: left out, with $size bytes all would be above $most_bytes"
      rm "$carry/bin/$name"
      continue
    fi
    bytes=$((bytes + size))
    say "$name: $size bytes"
  done
  [ -x $carry/bin/test_gpu ] || { say "There is no test_gpu to carry."; return 1; }
  say "Carry $carry along with tests/gpu/on_gpu.sh and bench/gpu.py: $bytes bytes."
}

# Of the GPUs here: 90a for 9.0, whose own instructions have that name, and 80 for 8.0.
architectures() {
  nvidia-smi --query-gpu=compute_cap --format=csv,noheader | tr -d '. ' | sed 's/^90$/90a/; s/^10\([03]\)$/10\1a/' |
    sort -u | paste -sd ';' -
}

# NCCL as Python packages bring it: without a library of the plain name.
nccl_settings() {
  python3 - <<'PYTHON' 2>/dev/null
import glob, importlib.util, os
found = importlib.util.find_spec("nvidia.nccl")
for root in found.submodule_search_locations if found else []:
    libraries = glob.glob(os.path.join(root, "lib", "libnccl.so*"))
    if libraries and os.path.exists(os.path.join(root, "include", "nccl.h")):
        print(f"-DORRERY_NCCL_INCLUDE_DIR={root}/include\n-DORRERY_NCCL_LIBRARY={libraries[0]}")
        break
PYTHON
}

configure() {
  local header architecture=$1 settings=()
  mapfile -t settings < <(nccl_settings)
  local frontend=build/cuda/_deps/cudnn_frontend/include
  [ ! -e $frontend/cudnn_frontend.h ] || settings+=("-DORRERY_CUDNN_FRONTEND_INCLUDE_DIR=$PWD/$frontend")
  if header=$(doctest_header); then
    header=$(realpath "$(dirname "$(dirname "$header")")")
    mkdir -p $build/doctest
    printf '%s\n' 'add_library(doctest::doctest INTERFACE IMPORTED)' \
      "set_target_properties(doctest::doctest PROPERTIES INTERFACE_INCLUDE_DIRECTORIES \"$header\")" \
      >$build/doctest/doctest-config.cmake
    settings+=(-DORRERY_BUILD_TESTS=ON "-Ddoctest_DIR=$PWD/$build/doctest" "-DORRERY_UNIT_TESTS=^$")
  else
    say "There is no doctest here: test_gpu is not built. See \`$0 bring\`."
    settings+=(-DORRERY_BUILD_TESTS=OFF)
  fi
  command -v ninja >/dev/null && settings+=(-G Ninja)
  # Warnings of compilers that nobody has seen yet must not cost the run.
  cmake -S . -B $build -DCMAKE_BUILD_TYPE=Release "-DCMAKE_CUDA_ARCHITECTURES=$architecture" \
    -DORRERY_BUILD_CUDA=ON -DORRERY_BUILD_MPI=OFF -DORRERY_BUILD_BENCH=ON '-DORRERY_BENCHMARKS=^(gpu|topology_cuda|kernel_cuda_backend|kernel_cudnn_attention)$' \
    -DCMAKE_CXX_FLAGS=-w '-DCMAKE_CUDA_FLAGS=-w -Xcompiler=-w' "${settings[@]}"
}

# build_programs ARCHITECTURES
build_programs() {
  local target failed=0 all
  nvcc --version
  configure "$1" || return 1
  all=$(cmake --build $build --target help)
  local targets=()
  # The last ones need NCCL, or cuDNN and cudnn-frontend.
  for target in "${!programs[@]}"; do
    if grep -qE "(^|[ :])$target(:|\$| )" <<<"$all"; then
      targets+=("$target")
    else
      say "There is no target $target here."
      failed=1
    fi
  done
  local on=(--)
  command -v ninja >/dev/null && on+=(-k 0) || on+=(-k)
  # Without a number, make would start all compilers at once.
  cmake --build $build --parallel "${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}" --target "${targets[@]}" "${on[@]}" &&
    return $failed
}

step_build() {
  local architecture
  architecture=$(architectures)
  [ -n "$architecture" ] || { say "nvidia-smi names no GPU here"; return 1; }
  command -v nvcc >/dev/null || { say "there is no nvcc, and nothing was carried: see \`$0 bring\`"; return 1; }
  build_programs "$architecture"
}

# Runs a program, or says that it is missing, which counts as skipped.
call() {
  local path
  path=$(program "$1")
  [ -x "$path" ] || { say "there is no $1"; return 77; }
  shift
  "$path" "$@"
}
# both STATUS STATUS: of two programs: what failed counts more than what is missing.
both() {
  local one
  for one in "$@"; do
    [ "$one" = 0 ] || [ "$one" = 77 ] || return "$one"
  done
  [ "$1" = 0 ] && [ "$2" = 0 ] || return 77
}
tests() { call test_gpu --no-intro --duration=true "$@"; }

# each_case SECONDS FILTER...: every test case in a process of its own, so that one that hangs does not hide the others.
each_case() {
  local seconds=$1 name path status failed=0
  shift
  path=$(program test_gpu)
  [ -x "$path" ] || { say "there is no test_gpu"; return 77; }
  while read -r name; do
    # In the foreground: then it is in the step's group of processes, and ends with the step if that is stopped.
    timeout --foreground -k 5 "$seconds" "$path" --no-intro "$@" "--test-case=${name//,/\\,}" </dev/null \
      >"$out/case.part" 2>&1
    status=$?
    [ $status != 77 ] || { tail -n 1 "$out/case.part"; return 77; }
    if [ $status = 0 ]; then
      echo "passed: $name"
    else
      failed=1
      cat "$out/case.part"
      echo "FAILED with $status (124: after $seconds s): $name"
    fi
  done < <("$path" --no-intro --list-test-cases "$@" | grep -v '^\[doctest\]\|^===')
  rm -f "$out/case.part"
  return $failed
}

step_products() { each_case 30 "--source-file=*warpgroup_cases.hpp"; }
step_mma_sync() { tests "--source-file=*flash_cases.hpp,*flash.cu,*hidden_tokens_cases.hpp"; }
step_wgmma() { each_case 60 "--source-file=*flash_wgmma_cases.hpp"; }
step_bits() { tests "--test-case=wgmma: a thousand calls*"; }
step_device() { tests "--source-file=*gpu/device.cu,*flash_device.cu"; }

# Cases that are small, since the sanitizer makes kernels many times slower.
readonly few="batches; strides*,slices of heads*,rows that see nothing*,backward: a row*,products of a warpgroup*,*few ranks*"

sanitize() {
  command -v compute-sanitizer >/dev/null || { say "there is no compute-sanitizer here"; return 77; }
  [ -x "$(program test_gpu)" ] || { say "there is no test_gpu"; return 77; }
  compute-sanitizer --tool "$1" --error-exitcode 9 --print-limit 20 "$(program test_gpu)" --no-intro \
    "--test-case=$few"
}
step_memcheck() { sanitize memcheck; }
step_racecheck() { sanitize racecheck; }

# Forward (by warpgroups also without the overlap of products and exponentials), backward, movement and operators, beside
# PyTorch's kernels, in one run.
step_speed() {
  [ -x "$(program bench_gpu)" ] || { say "there is no bench_gpu"; return 77; }
  command -v python3 >/dev/null || { say "there is no python3"; return 77; }
  python3 bench/gpu.py --program "$(program bench_gpu)" --out "$out"
}
step_graph() { call device_graph; }
step_train() {
  local first=0 second=0
  call train --device cuda --steps 8 || first=$?
  call train --device cuda --dtype bfloat16 --steps 8 || second=$?
  both $first $second
}

step_nccl() { call test_gpu_nccl --no-intro; }
# Processes on one GPU, each of which says that it is another host: results, a graph, and the abort of all lanes.
step_nccl2() { call test_gpu_nccl --processes 2; }
step_nccl4() { call test_gpu_nccl --processes 4; }
step_cudnn() { call test_cudnn_gpu --no-intro; }
step_topology() {
  call bench_topology_cuda -b 4K -e 16K -f 4 -n 10 -w 2 -r 8 --pass both --dim 128 --json "$out/topology.json"
}
step_movement() {
  local first=0 second=0
  call bench_kernel_cuda_backend || first=$?
  call bench_kernel_cudnn_attention || second=$?
  both $first $second
}

# Libraries that Python's packages bring.
python_libraries() {
  python3 - <<'PYTHON' 2>/dev/null
import importlib.util, os
found = importlib.util.find_spec("nvidia")
for root in found.submodule_search_locations if found else []:
    print(":".join(os.path.join(root, one, "lib") for one in sorted(os.listdir(root))))
    break
PYTHON
}

run() {
  out=$1
  local minutes=${2:-20} name limit left status began deadline failed=0 result device
  shift $(($# < 2 ? $# : 2))
  local steps=("$@")
  local all=(products mma_sync wgmma bits memcheck racecheck device speed graph train nccl nccl2 nccl4 cudnn topology movement)
  [ ${#steps[@]} -gt 0 ] || steps=("${all[@]}")
  [ -d $carry/bin ] || [ "${steps[0]}" = build ] || steps=(build "${steps[@]}")
  local -A limits=([build]=600 [products]=120 [mma_sync]=120 [wgmma]=240 [bits]=60 [memcheck]=120 [racecheck]=120
    [device]=120 [speed]=300 [graph]=30 [train]=120 [nccl]=90 [nccl2]=60 [nccl4]=90 [cudnn]=90 [topology]=90 [movement]=90)
  for name in "${steps[@]}"; do
    [ -n "${limits[$name]:-}" ] || { say "There is no step $name; there are build ${all[*]}."; return 2; }
  done
  mkdir -p "$out" && out=$(realpath "$out")
  export out PYTHONUNBUFFERED=1 LD_LIBRARY_PATH="$PWD/$carry/lib:${LD_LIBRARY_PATH:-}:$(python_libraries)"
  device=$(nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv,noheader 2>/dev/null | paste -sd ';' -)
  : >"$out/log.txt"
  printf '%s\n\n| step | result | seconds | limit |\n| --- | --- | --- | --- |\n' "${device:-no GPU is named by nvidia-smi}" \
    >"$out/steps.md"
  deadline=$((SECONDS + minutes * 60 - 10))
  for name in "${steps[@]}"; do
    left=$((deadline - SECONDS)) limit=${limits[$name]}
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$limit" -lt 5 ]; then
      echo "| $name | NOT DONE: no time left | - | - |" >>"$out/steps.md"
      failed=1
      continue
    fi
    echo "==== $name, at most $limit s"
    began=$SECONDS
    timeout -k 5 "$limit" "$0" step "$name" >"$out/$name.part" 2>&1
    status=$?
    tail -n 12 "$out/$name.part"
    { echo "==== $name" && tail -c 2000000 "$out/$name.part"; } >>"$out/log.txt"
    case $status in
      0) result=passed ;;
      77) result="skipped: $(tail -n 1 "$out/$name.part" | tr '|' ' ')" ;;
      124 | 137) result="NOT DONE in time" failed=1 ;;
      *) result="FAILED with $status" failed=1 ;;
    esac
    rm -f "$out/$name.part"
    echo "| $name | $result | $((SECONDS - began)) | $limit |" >>"$out/steps.md"
  done
  echo "==== steps"
  cat "$out/steps.md"
  return $failed
}

case ${1:-} in
  bring) bring "${@:2}" ;;
  run) [ $# -ge 2 ] && shift && run "$@" ;;
  step) "step_$2" ;;
  *) sed -n '4,19s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
