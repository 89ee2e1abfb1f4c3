#!/usr/bin/env bash
# Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#
# Everything that needs a GPU, on a machine that has one and perhaps no network, within so many minutes:
#
#     tests/gpu/on_gpu.sh bring                      # on a machine with a network: puts what to carry into build/carry
#     tests/gpu/on_gpu.sh run OUT [MINUTES] [STEP...]
#
# Steps, in this order unless named: build, test, nccl, cudnn, memcheck, racecheck, examples, topology, speed, movement. Each has a time limit,
# none stops the others, and the last output is a table of them. OUT gets summary.txt, log.txt (all that was printed, cut
# to 2 MB a step), topology.json, gpu.md and gpu.json. What is built stays in build/gpu for another run.
#
# Needed are nvcc, CMake, a C++ compiler and Python; compute-sanitizer, NCCL (also from Python's package) and PyTorch are
# used where they are found. The tests need doctest's header: installed, or in build/carry (see `bring`).
set -uo pipefail
cd "$(dirname "$0")/../.."
readonly build=build/gpu carry=build/carry
export PATH="$PATH:/usr/local/cuda/bin:/usr/local/cuda/compute-sanitizer"

say() { printf '%s\n' "$*" >&2; }

doctest_header() {
  local header
  for header in $carry/include/doctest/doctest.h /usr/include/doctest/doctest.h /usr/local/include/doctest/doctest.h \
    build/*/_deps/debian/doctest/usr/include/doctest/doctest.h build/*/_deps/doctest-src/doctest/doctest.h; do
    if [ -e "$header" ]; then
      printf '%s\n' "$header"
      return
    fi
  done
  return 1
}

bring() {
  local header
  if ! header=$(doctest_header); then
    cmake --preset cuda >/dev/null || return 1 # which gets it
    header=$(doctest_header) || return 1
  fi
  mkdir -p $carry/include/doctest
  [ "$header" -ef $carry/include/doctest/doctest.h ] || cp "$header" $carry/include/doctest/
  # Optional: for the kernel that is cuDNN.
  [ -d build/cuda/_deps/cudnn_frontend/include ] || cmake --preset cuda >/dev/null
  [ ! -d build/cuda/_deps/cudnn_frontend/include ] || cp -r build/cuda/_deps/cudnn_frontend/include/. $carry/include/
  say "Carry $carry along with the sources."
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
  local header architecture settings=()
  architecture=$(architectures)
  [ -n "$architecture" ] || { say "nvidia-smi names no GPU here"; return 1; }
  mapfile -t settings < <(nccl_settings)
  [ ! -e $carry/include/cudnn_frontend.h ] || settings+=("-DORRERY_CUDNN_FRONTEND_INCLUDE_DIR=$PWD/$carry/include")
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

step_build() {
  local target failed=0 all
  nvidia-smi
  nvcc --version
  configure || return 1
  all=$(cmake --build $build --target help)
  local targets=()
  # The last ones need NCCL, or cuDNN and cudnn-frontend.
  for target in test_gpu bench_gpu bench_topology_cuda bench_kernel_cuda_backend device_graph train nccl_by_file test_gpu_nccl \
    test_cudnn_gpu bench_kernel_cudnn_attention; do
    if grep -qE "(^|[ :])$target(:|\$| )" <<<"$all"; then
      targets+=("$target")
    else
      say "There is no target $target here."
      failed=1
    fi
  done
  local on=(--)
  command -v ninja >/dev/null && on+=(-k 0) || on+=(-k)
  cmake --build $build --parallel --target "${targets[@]}" "${on[@]}" && return $failed
}

step_test() { $build/tests/test_gpu --no-intro --duration=true; }

step_nccl() {
  local nccl=$build/tests/test_gpu_nccl failed=0
  $nccl --no-intro || failed=1
  # Processes on one GPU, each of which says that it is another host.
  $nccl --processes 2 || [ $? = 77 ] || failed=1
  $nccl --processes 4 || [ $? = 77 ] || failed=1
  return $failed
}

step_cudnn() { $build/tests/test_cudnn_gpu --no-intro; }

# Cases that are small, since the sanitizer makes kernels many times slower.
readonly few="batches; strides*,slices of heads*,rows that see nothing*,backward: a row*,*few ranks*"

sanitize() {
  command -v compute-sanitizer >/dev/null || { say "there is no compute-sanitizer here"; return 1; }
  compute-sanitizer --tool "$1" --error-exitcode 9 --print-limit 20 $build/tests/test_gpu --no-intro \
    "--test-case=$few"
}
step_memcheck() { sanitize memcheck; }
step_racecheck() { sanitize racecheck; }

step_examples() {
  local failed=0
  "$build/examples/device_graph" || failed=1
  rm -f $build/nccl_id
  timeout 60 $build/examples/nccl_by_file $build/nccl_id 0 1 || failed=1
  "$build/examples/train" --device cuda --steps 8 || failed=1
  "$build/examples/train" --device cuda --dtype bfloat16 --steps 8 || failed=1
  return $failed
}

step_topology() {
  $build/bench/bench_topology_cuda -b 4K -e 16K -f 4 -n 10 -w 2 -r 8 --pass both --dim 128 --json "$out/topology.json"
}

step_speed() { python3 bench/gpu.py --program $build/bench/bench_gpu --out "$out"; }

step_movement() {
  local failed=0
  $build/bench/bench_kernel_cuda_backend || failed=1
  $build/bench/bench_kernel_cudnn_attention || failed=1
  return $failed
}

run() {
  out=$1
  local minutes=${2:-9} name limit left status began deadline failed=0
  shift $(($# < 2 ? $# : 2))
  local steps=("$@")
  [ ${#steps[@]} -gt 0 ] || steps=(build test nccl cudnn memcheck racecheck examples topology speed movement)
  local -A limits=([build]=300 [test]=200 [nccl]=90 [cudnn]=90 [memcheck]=120 [racecheck]=120 [examples]=120 [topology]=90 [speed]=300
    [movement]=90)
  for name in "${steps[@]}"; do
    [ -n "${limits[$name]:-}" ] || { say "There is no step $name; there are ${!limits[*]}."; return 2; }
  done
  mkdir -p "$out" && out=$(realpath "$out")
  export out PYTHONUNBUFFERED=1
  : >"$out/log.txt"
  : >"$out/summary.txt"
  deadline=$((SECONDS + minutes * 60 - 10))
  for name in "${steps[@]}"; do
    left=$((deadline - SECONDS)) limit=${limits[$name]}
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$limit" -lt 5 ]; then
      echo "$name: no time left" >>"$out/summary.txt"
      failed=1
      continue
    fi
    echo "==== $name, at most $limit s"
    began=$SECONDS
    timeout -k 5 "$limit" "$0" step "$name" >"$out/$name.part" 2>&1
    status=$?
    tail -n 12 "$out/$name.part"
    { echo "==== $name" && tail -c 2000000 "$out/$name.part"; } >>"$out/log.txt"
    rm -f "$out/$name.part"
    case $status in
      0) echo "$name: passed in $((SECONDS - began)) s" ;;
      77) echo "$name: skipped, there is no GPU" ;;
      124 | 137) echo "$name: NOT DONE after $limit s" && failed=1 ;;
      *) echo "$name: FAILED with $status after $((SECONDS - began)) s" && failed=1 ;;
    esac >>"$out/summary.txt"
    case $status in 0 | 77) ;; *) failed=1 ;; esac
  done
  echo "==== summary"
  cat "$out/summary.txt"
  return $failed
}

case ${1:-} in
  bring) bring ;;
  run) [ $# -ge 2 ] && shift && run "$@" ;;
  step) "step_$2" ;;
  *) sed -n '4,17s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
