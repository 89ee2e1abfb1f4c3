#!/usr/bin/env python3
# Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
"""The flash kernel beside PyTorch's scaled_dot_product_attention on the CPU: same shapes and thread count, in turn.

    pip install torch numpy
    bench/pytorch.py build/bench/bench/bench_kernel_on_request squares [threads] [repetitions]
    bench/pytorch.py build/bench/bench/bench_kernel_on_request shapes [threads] [repetitions]

Prints GF/s per core (of processor time, which other tenants disturb least) of visible pairs, the ratio of the times and
that of the processor times (PyTorch / ours), all medians over pairs of neighbours in time. Both get tensors of the same
layout: "sequence" is [batch, sequence, head, dim], as a model's projections leave them, "head" is [batch, head,
sequence, dim]. What limits decoding is memory: its column is the rate at which keys and values are read, in per cent of
that of a loop that sums up as many bytes, by as many threads, in the same turns.

PyTorch gets what is fastest there: the batch of its documents for documents of equal length, `is_causal` where the mask
is causal, the heads of a group as tokens where there is one query and else `enable_gqa`, and a mask of booleans for
windows.
"""
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Case:
    """A call; see bench/kernel/on_request.cpp."""
    direction: str = "forward"
    type: str = "float"
    layout: str = "sequence"
    batch: int = 1
    queries: int = 4096
    keys: int = 4096
    query_heads: int = 8
    key_heads: int = 8
    dim: int = 64
    value_dim: int = 64
    mask: str = "full"

    def request(self):
        return (f"{self.direction} {self.type} {self.layout} {self.batch} {self.queries} {self.keys} "
                f"{self.query_heads} {self.key_heads} {self.dim} {self.value_dim} {self.mask}")

    def number(self):
        return int(self.mask.split(":")[1])

    def pairs(self):
        """Visible pairs of a query and a key, of all heads and the batch."""
        n, m = self.queries, self.keys
        if self.mask == "full":
            pairs = n * m
        elif self.mask == "causal":
            pairs = sum(range(m - n + 1, m + 1))
        elif self.mask.startswith("window"):
            pairs = sum(min(i, self.number()) for i in range(m - n + 1, m + 1))
        else:
            last = n % self.number()
            pairs = n // self.number() * sum(range(self.number() + 1)) + sum(range(last + 1))
        return self.batch * self.query_heads * pairs

    def flop(self):
        two, five = (1, 1), (3, 2)
        of_keys, of_values = two if self.direction == "forward" else five
        return 2 * self.pairs() * (of_keys * self.dim + of_values * self.value_dim)

    def bytes_of_keys(self):
        size = {"float": 4, "double": 8, "bfloat16": 2, "float16": 2}[self.type]
        return self.batch * self.keys * self.key_heads * (self.dim + self.value_dim) * size


def squares():
    for layout in "sequence", "head":
        for direction in "forward", "backward":
            for dim in 64, 128:
                for mask in "full", "causal":
                    yield Case(direction, layout=layout, dim=dim, value_dim=dim, mask=mask)


def shapes():
    decode = Case(queries=1, keys=100_000, dim=128, value_dim=128, mask="causal")
    yield decode
    yield replace(decode, layout="head")
    yield replace(decode, type="bfloat16")
    yield replace(decode, query_heads=64)
    yield replace(decode, query_heads=64, layout="head")
    yield replace(decode, queries=4)
    yield replace(decode, query_heads=128, key_heads=1, dim=576, value_dim=512)
    short = Case(queries=4233, keys=4233)
    both = "forward", "backward"
    for direction in both:
        for tokens in 17, 128, 512:
            yield replace(short, direction=direction, mask=f"documents:{tokens}")
        for tokens in 128, 512, 4096:
            yield replace(short, direction=direction, query_heads=2, key_heads=2, queries=16384, keys=16384,
                          mask=f"window:{tokens}")
        for dim in 40, 80, 96, 256, 512:
            yield Case(direction, queries=2048, keys=2048, query_heads=4, key_heads=4, dim=dim, value_dim=dim,
                       mask="causal")
        yield Case(direction, queries=2048, keys=2048, query_heads=4, key_heads=4, dim=192, value_dim=128,
                   mask="causal")
        yield Case(direction, queries=2048, keys=2048, query_heads=16, key_heads=2, mask="causal")
        yield Case(direction, batch=8, queries=512, keys=512, mask="causal")
    for kind in "double", "bfloat16", "float16":
        yield Case(type=kind, queries=2048, keys=2048)


def main():
    if len(sys.argv) < 3 or sys.argv[2] not in ("squares", "shapes"):
        sys.exit(__doc__)
    threads = int(sys.argv[3]) if len(sys.argv) > 3 else 2
    repetitions = int(sys.argv[4]) if len(sys.argv) > 4 else 5
    cases = squares if sys.argv[2] == "squares" else shapes
    torch.set_num_threads(threads)
    print(f"{threads} threads, PyTorch {torch.__version__}; GF/s per core\n")
    print("| pass | type | layout | shape | heads | dims | mask | flash | PyTorch | ratio | cpu_ratio | of memory |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    ours = subprocess.Popen([sys.argv[1], str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(request):
        print(request, file=ours.stdin, flush=True)
        return tuple(float(x) for x in ours.stdout.readline().split())

    for case in cases():
        compare(case, repetitions, ask)
    ours.stdin.close()


def timed(call):
    begin, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - begin, time.process_time() - cpu


def rival(case):
    """A call of PyTorch for a case."""
    batch, queries, keys, mask = case.batch, case.queries, case.keys, case.mask
    if mask.startswith("documents"):
        batch, queries, keys = -(-queries // case.number()), case.number(), case.number()
        mask = "causal"
    dtype = getattr(torch, {"float": "float32", "double": "float64"}.get(case.type, case.type))

    def tensor(tokens, heads, dim):
        if case.layout == "head":
            return (torch.rand(batch, heads, tokens, dim) * 2 - 1).to(dtype)
        return (torch.rand(batch, tokens, heads, dim) * 2 - 1).to(dtype).transpose(1, 2)

    q = tensor(queries, case.query_heads, case.dim)
    k = tensor(keys, case.key_heads, case.dim)
    v = tensor(keys, case.key_heads, case.value_dim)
    options = {}
    if queries == 1:  # query heads of a group as tokens
        q = q.view(batch, case.key_heads, -1, case.dim)
    elif case.key_heads < case.query_heads:
        options["enable_gqa"] = True
    if mask == "causal" and queries == keys:
        options["is_causal"] = True
    elif mask == "causal" and queries > 1:
        options["attn_mask"] = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    elif mask.startswith("window"):
        seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
        options["attn_mask"] = seen & ~seen.tril(-case.number())
    attend = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)
    if case.direction == "forward":
        return torch.no_grad()(attend)
    for one in q, k, v:
        one.requires_grad_()
    out = attend()
    grad = tensor(queries, case.query_heads, case.value_dim)
    return lambda: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True)


def compare(case, repetitions, ask):
    memory = case.queries <= 8
    call = rival(case)
    times, theirs, reads = [], [], []
    for turn in range(repetitions + 1):
        ours = ask(case.request())
        other = timed(call)
        if memory:
            reads.append(ask(f"read {case.bytes_of_keys()}")[0] / ours[0])
        if turn > 0:
            times.append(ours)
            theirs.append(other)
    median = statistics.median
    gflop = case.flop() * 1e-9
    print(f"| {case.direction} | {case.type} | {case.layout} | {case.batch} × {case.queries} × {case.keys} "
          f"| {case.query_heads}/{case.key_heads} | {case.dim}/{case.value_dim} | {case.mask} "
          f"| {gflop / median(o[1] for o in times):.1f} | {gflop / median(t[1] for t in theirs):.1f} "
          f"| {median(t[0] / o[0] for o, t in zip(times, theirs)):.2f} "
          f"| {median(t[1] / o[1] for o, t in zip(times, theirs)):.2f} "
          f"| {f'{100 * median(reads[1:]):.0f} %' if memory else ''} |", flush=True)


main()
