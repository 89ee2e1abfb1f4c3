#!/usr/bin/env bash
# Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#
# What on_gpu.sh says of programs that pass, fail, are killed, skip or are missing: with scripts in their place.
set -uo pipefail
cd "$(dirname "$0")/../.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder/tests/gpu" "$folder/build/carry/bin" "$folder/build/carry/lib"
cp tests/gpu/on_gpu.sh "$folder/tests/gpu/"

# program NAME LINE...: a carried program.
program() {
  printf '%s\n' '#!/bin/sh' "${@:2}" >"$folder/build/carry/bin/$1"
  chmod +x "$folder/build/carry/bin/$1"
}
# shellcheck disable=SC2016 # the arguments are the scripts'
program test_gpu 'case "$*" in' '*--list-test-cases*) printf "first, of two\nsecond\n"; exit 0 ;;' \
  '*second*) echo "second says why"; exit 3 ;;' '*a?thousand*) kill -9 $$ ;;' 'esac' 'exit 0'
program test_gpu_nccl 'exit 77'
program train 'exit 0'
program bench_kernel_cuda_backend 'exit 4'
cd "$folder" || exit 1
tests/gpu/on_gpu.sh run out 1 products mma_sync bits graph train nccl nccl2 speed movement >printed.txt 2>&1
status=$?

failed=0
expect() {
  grep -qE "$2" "$1" && return
  echo "$1 lacks: $2"
  failed=1
}
[ $status = 1 ] || { echo "on_gpu.sh ended with $status"; failed=1; }
expect out/steps.md '^\| products \| FAILED with 1 '
expect out/steps.md '^\| mma_sync \| passed '
expect out/steps.md '^\| bits \| NOT DONE in time '
expect out/steps.md '^\| graph \| skipped: there is no device_graph '
expect out/steps.md '^\| train \| passed '
expect out/steps.md '^\| nccl \| skipped'
expect out/steps.md '^\| nccl2 \| skipped'
expect out/log.txt '^passed: first, of two'
expect out/log.txt '^FAILED with 3 .*: second'
expect out/log.txt '^second says why'
expect printed.txt '^\| train \| passed '
expect out/steps.md '^\| speed \| skipped: there is no bench_gpu '
expect out/steps.md '^\| movement \| FAILED with 4 ' # although the other program is missing
program test_gpu 'echo "there is no GPU"' 'exit 77'
tests/gpu/on_gpu.sh run none 1 products wgmma device train >none.txt 2>&1
[ $? = 0 ] || { echo "on_gpu.sh fails without a GPU"; failed=1; }
expect none/steps.md '^\| products \| skipped: there is no GPU '
expect none/steps.md '^\| wgmma \| skipped: there is no GPU '
expect none/steps.md '^\| device \| skipped: there is no GPU '
expect none/steps.md '^\| train \| passed '
[ $failed = 0 ] || cat out/steps.md
exit $failed
