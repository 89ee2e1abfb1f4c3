#!/usr/bin/env python3
# Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
"""The flash kernel beside PyTorch's scaled_dot_product_attention on the CPU: same shapes and thread count, in turn.

    pip install torch numpy
    bench/pytorch.py build/bench/bench/bench_kernel_on_request [sequence] [heads] [threads] [repetitions] [layout ...]

Prints GF/s per core (of processor time, which other tenants disturb least), the ratio of the times and that of the
processor times (PyTorch / ours), all medians over pairs of neighbours in time. Both get tensors of the same layout:
"sequence" is [batch, sequence, head, dim], as a model's projections leave them, "head" is [batch, head, sequence, dim].
"""
import statistics
import subprocess
import sys
import time

import torch


def main():
    program = sys.argv[1]
    numbers = [int(a) for a in sys.argv[2:6]]
    sequence, heads, threads, repetitions = numbers + [4096, 8, 2, 5][len(numbers):]
    layouts = sys.argv[6:] or ["sequence", "head"]
    torch.set_num_threads(threads)
    print(f"float, batch 1, sequence {sequence}, heads {heads}, {threads} threads, PyTorch {torch.__version__}; "
          "GF/s per core\n")
    print("| layout   | pass     | dim | mask   | flash   | PyTorch | ratio | cpu_ratio |")
    print("| -------- | -------- | --- | ------ | ------- | ------- | ----- | --------- |")
    for layout in layouts:
        compare(program, sequence, heads, threads, repetitions, layout)


def compare(program, sequence, heads, threads, repetitions, layout):
    ours = subprocess.Popen([program, str(sequence), str(heads), str(threads), layout], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True)

    def flash(*what):
        print(*what, file=ours.stdin, flush=True)
        return tuple(float(x) for x in ours.stdout.readline().split())

    def tensor(dim):
        if layout == "head":
            return torch.rand(1, heads, sequence, dim) * 2 - 1
        return (torch.rand(1, sequence, heads, dim) * 2 - 1).transpose(1, 2)

    def timed(call):
        begin, cpu = time.perf_counter(), time.process_time()
        call()
        return time.perf_counter() - begin, time.process_time() - cpu

    for direction in "forward", "backward":
        for dim in 64, 128:
            for mask in "full", "causal":
                q, k, v, grad = (tensor(dim) for _ in range(4))
                attend = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=mask == "causal")
                if direction == "forward":
                    with torch.no_grad():
                        call = torch.no_grad()(attend)
                else:
                    for one in q, k, v:
                        one.requires_grad_()
                    out = attend()
                    call = lambda: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True)
                flash("forward", dim, mask)
                flash(direction, dim, mask)
                timed(call)
                pairs = [(flash(direction, dim, mask), timed(call)) for _ in range(repetitions)]
                visible = sequence * (sequence + 1) / 2 if mask == "causal" else sequence * sequence
                flop = (4 if direction == "forward" else 10) * visible * heads * dim * 1e-9
                median = statistics.median
                print(f"| {layout:8} | {direction:8} | {dim:3} | {mask:6} | {flop / median(o[1] for o, _ in pairs):7.1f} "
                      f"| {flop / median(t[1] for _, t in pairs):7.1f} | {median(t[0] / o[0] for o, t in pairs):5.2f} "
                      f"| {median(t[1] / o[1] for o, t in pairs):9.2f} |", flush=True)
    ours.stdin.close()


main()
