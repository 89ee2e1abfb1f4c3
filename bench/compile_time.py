#!/usr/bin/env python3
# Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
"""What Orrery costs a compiler, in user seconds: each header over an empty file, proofs by static_assert over their
headers alone, and programs at -O2, by headers alone and with operators compiled once (see orrery/compiled.hpp). Medians. With --only depth, instead: the smallest -ftemplate-depth that each of them compiles with, which
no number of ranks may change. Exits with 1 if something takes longer than its limit times the allowance for noise, or does not
compile with the compiler's default limits."""
import argparse
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile

INCLUDE = pathlib.Path(__file__).resolve().parent.parent / "include"
HEADER_LIMITS = {"orrery/orrery.hpp": 1.3}  # seconds over an empty file
PROOF_LIMITS = {16: 0.3, 64: 3.0}  # seconds over the headers alone, by ranks
PROGRAM_LIMITS = {"compiled": 2.0, "compiled, three element types": 5.0}  # seconds
DEPTH_LIMIT = 100  # of nested templates; a compiler's own limit is 900 or 1024
PROOFS = {
    "ring": "orrery/topology/ring.hpp",
    "all_gather": "orrery/topology/all_gather.hpp",
    "double_ring<4>": "orrery/topology/double_ring.hpp",
    "wallfacer<2>": "orrery/topology/wallfacer.hpp",
    "concentric<2>": "orrery/topology/concentric.hpp",
    "usp<4>": "orrery/topology/all_to_all.hpp",
    "ulysses": "orrery/topology/all_to_all.hpp",
}

PROGRAM = """#include <orrery/orrery.hpp>

template <class Topology, class T>
void step(orrery::threads::world& world, T* memory, typename orrery::flash<T>::accumulator* sums) {{
  orrery::attention<Topology, orrery::flash<T>> attend{{
      world, {{.length = 4096, .query_heads = 8, .head_dim = 64}}, orrery::causal{{}}, orrery::zigzag{{}}}};
  const std::int64_t tokens = attend.query_positions().size();
  const auto view = [&](int i) {{
    return orrery::batch_sequence_head_dim(memory + i * tokens * 512, 1, tokens, 8, 64);
  }};
  const auto lse = orrery::batch_head_sequence(sums, 1, 8, tokens);
  attend.forward(view(0), view(1), view(2), view(3), lse);
  attend.backward({{.q = view(0), .k = view(1), .v = view(2), .out = view(3), .lse = lse, .grad_out = view(4),
                   .grad_q = view(5), .grad_k = view(6), .grad_v = view(7)}});
}}

template <class T>
void run(T* memory, typename orrery::flash<T>::accumulator* sums) {{
  orrery::threads::run(4, [&](orrery::threads::world& world) {{ step<orrery::{topology}>(world, memory, sums); }});
}}

{runs}"""
FLOAT = "template void run(float*, float*);\n"
THREE = FLOAT + "template void run(double*, double*);\ntemplate void run(orrery::bfloat16*, float*);\n"


class DoesNotCompile(Exception):
    pass


def user_seconds(compiler, text, runs, flags=()):
    """Median of the compiler's user time on a file with this text."""
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "source.cpp"
        source.write_text(text)
        command = [compiler, "-std=c++20", *flags, f"-I{INCLUDE}", "-c", str(source), "-o", os.devnull]
        times = []
        for _ in range(runs):
            before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
            done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
            if done.returncode != 0:
                raise DoesNotCompile(done.stderr)
            times.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
    return statistics.median(times)


def template_depth(compiler, text, most):
    """The smallest -ftemplate-depth that a file with this text compiles with; None if `most` is too small."""
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "source.cpp"
        source.write_text(text)

        def compiles(depth):
            command = [compiler, "-std=c++20", f"-I{INCLUDE}", f"-ftemplate-depth={depth}", "-fsyntax-only", str(source)]
            return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0

        if not compiles(most):
            return None
        too_small, enough = 0, most
        while enough - too_small > 1:
            middle = (too_small + enough) // 2
            if compiles(middle):
                enough = middle
            else:
                too_small = middle
    return enough


def includes(*headers):
    return "".join(f'#include "{header}"\n' for header in headers)


class Report:
    def __init__(self, compiler, arguments):
        self.compiler = compiler
        self.arguments = arguments
        self.failures = []

    def line(self, what, text, base, limit, flags=()):
        try:
            seconds = user_seconds(self.compiler, text, self.arguments.runs, flags) - base
        except DoesNotCompile as error:
            self.failures.append(f"{self.compiler}: {what} does not compile")
            print(f"  {what:<44} {'-':>8}  does not compile:\n{error}", flush=True)
            return
        remark = ""
        if limit is not None:
            remark = f"{limit:8.2f}  {'within' if seconds <= limit else 'BEYOND'}"
            if seconds > limit * self.arguments.noise:
                self.failures.append(f"{self.compiler}: {what} takes {seconds:.2f} s, limit {limit} s")
        print(f"  {what:<44} {seconds:8.2f} {remark}".rstrip(), flush=True)

    def every_header(self):
        # Those that need nothing but the standard library.
        alone = (path for path in INCLUDE.rglob("*.hpp") if not path.stem.startswith(("device", "mpi", "nccl")))
        return self.arguments.header or sorted(str(path.relative_to(INCLUDE)) for path in alone)

    def headers(self):
        empty = user_seconds(self.compiler, "", self.arguments.runs)
        self.title(f"header, over an empty file's {empty:.2f} s")
        for header in self.every_header():
            self.line(header, includes(header), empty, HEADER_LIMITS.get(header))

    def proofs(self):
        for topology in self.arguments.topology or PROOFS:
            headers = includes(PROOFS[topology], "orrery/verify/verify.hpp")
            alone = user_seconds(self.compiler, headers, self.arguments.runs)
            self.title(f"proof of {topology}, over its headers' {alone:.2f} s")
            for which in self.arguments.passes.split(","):
                for ranks in self.arguments.ranks:
                    proof = f"static_assert(orrery::verify(orrery::{topology}{{}}, {ranks}, orrery::pass::{which}));\n"
                    self.line(f"{topology} {which}, {ranks} ranks", headers + proof, alone, PROOF_LIMITS.get(ranks))

    def programs(self):
        self.title("programs at -O2")
        for topology in self.arguments.topology or ["ring", "wallfacer<2>", "ulysses"]:
            for what, runs in ("", FLOAT), (", three element types", THREE):
                text = PROGRAM.format(topology=topology, runs=runs)
                self.line(f"{topology}, headers alone{what}", text, 0, None, ["-O2"])
                self.line(f"{topology}, compiled{what}", text, 0, PROGRAM_LIMITS[f"compiled{what}"],
                          ["-O2", "-DORRERY_COMPILED"])

    def depths(self):
        texts = {header: includes(header) for header in self.every_header()}
        for topology in self.arguments.topology or PROOFS:
            for ranks in self.arguments.ranks:
                headers = includes(PROOFS[topology], "orrery/verify/verify.hpp")
                texts[f"proof of {topology}, {ranks} ranks"] = (
                    headers + f"static_assert(orrery::verify(orrery::{topology}{{}}, {ranks}));\n")
        print(f"\n{self.compiler}: the smallest -ftemplate-depth\n  {'':<44} {'depth':>8} {'limit':>8}", flush=True)
        for what, text in texts.items():
            depth = template_depth(self.compiler, text, DEPTH_LIMIT)
            if depth is None:
                self.failures.append(f"{self.compiler}: {what} needs more than {DEPTH_LIMIT} nested templates, or does "
                                     "not compile")
            print(f"  {what:<44} {'-' if depth is None else depth:>8} {DEPTH_LIMIT:>8}", flush=True)

    def title(self, text):
        print(f"\n{self.compiler}: {text}\n  {'':<44} {'time (s)':>8} {'limit (s)':>9}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compilers", default="g++,clang++", help="those of them that are installed (%(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="of each compilation; the median counts (%(default)s)")
    parser.add_argument("--noise", type=float, default=2, help="how often its limit a time may be (%(default)s)")
    parser.add_argument("--only", choices=["headers", "proofs", "programs", "depth"], help="one part of the times only, or no times")
    parser.add_argument("--header", action="append", help="this header only, such as orrery/orrery.hpp; repeatable")
    parser.add_argument("--topology", action="append", choices=PROOFS, help="this proof only; repeatable")
    parser.add_argument("--passes", default="forward,circulate_keys", help="and circulate_queries, as long as circulate_keys (%(default)s)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 32, 64], help="(8 16 32 64)")
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error("--runs: expected at least 1")

    failures = []
    compilers = [name for name in arguments.compilers.split(",") if shutil.which(name)]
    if not compilers:
        parser.error(f"--compilers: none of {arguments.compilers} is installed")
    for compiler in compilers:
        version = subprocess.run([compiler, "--version"], stdout=subprocess.PIPE, text=True, check=True)
        print(f"{compiler}: {version.stdout.splitlines()[0]}; -std=c++20, medians of {arguments.runs}, user time")
        report = Report(compiler, arguments)
        if arguments.only == "depth":
            report.depths()
        if arguments.only in (None, "headers"):
            report.headers()
        if arguments.only in (None, "proofs"):
            report.proofs()
        if arguments.only in (None, "programs"):
            report.programs()
        failures += report.failures
        print()
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
