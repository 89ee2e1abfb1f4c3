#!/usr/bin/env python3
# Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
"""Reads what nvcc makes of the kernels of device_flash, without a GPU: compiles them, and disassembles them by nvdisasm.

    pip install nvidia-cuda-nvdisasm             # where the toolkit has none
    bench/kernel/cuda/sass.py                    # a table of every kernel
    bench/kernel/cuda/sass.py --keep build/sass  # the same; compiles only those whose code is not in the folder
    bench/kernel/cuda/sass.py --check            # fails if the forward's exponentials do not overlap a product

The table has registers of a thread, bytes that are spilled anywhere, and instructions of the whole kernel. Then, of a
warp's loop for one block of the other side's tokens, all of them visible: its instructions, those of them that access
spilled registers, products (HMMA, HGMMA) and exponentials (MUFU). The loop is the cycle of basic blocks with the fewest
instructions through a product, so copies that a condition guards are not in it.

Predicted cycles are those of the busiest pipe of a quarter of a multiprocessor, as if all else were hidden behind it: a
lower bound, which no run has confirmed. A quarter has one warp of a block of mma.sync kernels with four warps, and is
counted so for all of them, and two warps of one of wgmma kernels. Rates are those of CUDA's programming guide and of
the data sheets: a warp's instruction takes a cycle to issue; a tensor core multiplies 256 (8.0) or 512 (9.0) pairs a
cycle; fp32 takes 2 cycles (8.0) or 1 (9.0), integers, comparisons, packing and IMAD 2, MUFU 8; the multiprocessor's
shared memory moves 128 bytes a cycle. Exits with 77 where nvcc or nvdisasm is missing.
"""
import argparse
import heapq
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[3]
DIMS = ((64, 64), (96, 96), (128, 128), (192, 128), (256, 256))
PRODUCTS = ("HMMA", "HGMMA")
GRADIENTS = ("of_queries", "of_keys_and_values", "of_keys", "of_values")


def nvdisasm():
    """The program: of the path, of the toolkit, or of the Python package."""
    found = shutil.which("nvdisasm")
    if found:
        return found
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations if spec else ():
        for program in pathlib.Path(folder).glob("*/bin/nvdisasm"):
            program.chmod(0o755)
            return str(program)
    return None


def source_of(kernel):
    """A translation unit that holds one kernel: ("forward", architecture, mask, key_dim, value_dim, gradient)."""
    name, architecture, mask, key_dim, value_dim, gradient = kernel
    by_warpgroups = name.startswith("wgmma")
    folder = "kernel/cuda/" + ("wgmma/" if by_warpgroups else "flash_")
    backward = name.endswith("backward")
    body = "device_flash_" + ("wgmma_" if by_warpgroups else "") + ("backward" if backward else "forward")
    arguments = f"orrery::bfloat16, orrery::{mask}, {key_dim}, {value_dim}"
    if backward:
        arguments += f", orrery::device_gradient::{gradient}"
    run = "run_on_gpu_by_warpgroups" if by_warpgroups else "run_on_gpu"
    threads = "body::threads_of_block"
    return f"""#include "orrery/{folder}{'backward' if backward else 'forward'}.cuh"
#include "orrery/device/gpu.cuh"
#include "orrery/mask/{mask}.hpp"
using body = orrery::detail::{body}<{arguments}>;
template __global__ void orrery::detail::{run}<{threads}, body>(const __grid_constant__ body);
"""


def disassemble(kernel, folder, nvcc):
    """Returns the disassembly, and ptxas's words; those in the folder, where it has them."""
    name = "_".join(str(one) for one in kernel if one).replace(" ", "_")
    source, cubin, sass, words = (pathlib.Path(folder, f"{name}.{end}") for end in ("cu", "cubin", "sass", "txt"))
    if sass.exists() and words.exists():
        return sass.read_text(), words.read_text()
    source.write_text(source_of(kernel))
    architecture = kernel[1]
    command = [nvcc, "-std=c++20", "-O3", "--expt-relaxed-constexpr", f"-I{ROOT / 'include'}", "-cubin", "-gencode",
               f"arch=compute_{architecture},code=sm_{architecture}", "--ptxas-options=-v", "-o", cubin, source]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode != 0:
        sys.exit(made.stdout + made.stderr)
    text = subprocess.run([nvdisasm(), "-c", cubin], capture_output=True, text=True, check=True).stdout
    words.write_text(made.stderr)
    sass.write_text(text)
    return text, made.stderr


def instructions(text):
    """Mnemonics and operands of the first kernel, in the order of addresses; labels as ("label", name)."""
    functions = re.split(r"^\.text\..*:$", text, flags=re.MULTILINE)[1:]
    for line in max(functions, key=len).splitlines():
        label = re.match(r"^(\.L_x_\d+):", line)
        if label:
            yield "label", label.group(1)
        found = re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?);", line)
        if found:
            yield found.group(1), found.group(2).strip()


def between_waits(code):
    """The mnemonics after the wait for scores (one product pending) and before that for all products."""
    inside, found = False, []
    for name, operands in code:
        if name.startswith("WARPGROUP.DEPBAR"):
            if operands.endswith("0x1"):
                inside, found = True, []
            elif inside:
                return found
        elif inside:
            found.append(name)
    return []


def check(nvcc):
    """Fails unless all exponentials of a tile come before the wait for the product of weights and values."""
    with tempfile.TemporaryDirectory() as folder:
        text, said = disassemble(("wgmma forward", "90a", "causal", 128, 128, None), folder, nvcc)
    names = between_waits(instructions(text))
    exponentials = sum(name == "MUFU.EX2" for name in names)
    expected = 2 * 128 // 4 + 2  # of a thread's scores in two rows, and of its two rows' factors
    spilled = re.search(r"([1-9]\d*) bytes spill", said)
    print(f"{exponentials} exponentials before the wait for the product, {expected} expected; "
          f"{spilled.group(0) if spilled else 'nothing spills'}")
    return 0 if exponentials >= expected and not spilled else 1


def kernels():
    """All that device_flash<bfloat16> launches under a causal mask: as `source_of` takes them."""
    for key_dim, value_dim in DIMS:
        both = key_dim + value_dim
        yield "forward", "80", "causal", key_dim, value_dim, None
        for gradient in GRADIENTS[:2] if both <= 320 else GRADIENTS[:1] + GRADIENTS[2:]:
            yield "backward", "80", "causal", key_dim, value_dim, gradient
    for key_dim, value_dim in DIMS:
        wide_key, wide_value = (128 if dim == 96 else dim for dim in (key_dim, value_dim))  # see warpgroup_columns
        yield "wgmma forward", "90a", "causal", key_dim, wide_value, None
        if key_dim == 96:
            continue  # the backward is that of 128
        for gradient in GRADIENTS[:2] if wide_key + wide_value <= 256 else GRADIENTS[:1] + GRADIENTS[2:]:
            yield "wgmma backward", "90a", "causal", wide_key, wide_value, gradient


class Instruction:
    """One line of a disassembly."""

    def __init__(self, predicate, name, operands):
        self.predicate, self.name, self.operands = predicate, name, operands
        self.kind = name.split(".")[0]


def basic_blocks(text):
    """The first kernel's basic blocks, by label, in the order of addresses: lists of instructions."""
    functions = re.split(r"^\.text\..*:$", text, flags=re.MULTILINE)[1:]
    blocks, label = {"": []}, ""
    for line in max(functions, key=len).splitlines():
        found = re.match(r"^(\.L_x_\d+):", line)
        if found:
            label = found.group(1)
            blocks[label] = []
        found = re.search(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?);", line)
        if found:
            blocks[label].append(Instruction(*found.groups()))
            if found.group(2).startswith(("BRA", "EXIT", "RET")):
                label = f"{label}+"  # a branch ends a block; what follows has no label of its own
                blocks[label] = []
    return blocks


def successors(blocks):
    """Of each block, those that can follow."""
    labels, after = list(blocks), {}
    for place, label in enumerate(labels):
        last = blocks[label][-1] if blocks[label] else None
        ends = last is not None and last.kind in ("BRA", "EXIT", "RET")
        conditional = ends and (last.predicate or "P" in last.operands.split("`")[0])
        after[label] = labels[place + 1:place + 2] if not ends or conditional else []
        if ends and last.kind == "BRA":
            after[label] += [one for one in re.findall(r"\((\.L_x_\d+)\)", last.operands) if one in blocks]
    return after


def shortest_cycle(blocks, after, first):
    """The labels on the way with the fewest instructions from a block back to itself, or nothing."""
    queue = [(len(blocks[first]), 0, first, (first,))]
    done, ways = set(), 0
    while queue:
        length, _, label, way = heapq.heappop(queue)
        for one in after[label]:
            if one == first:
                return way
            if one not in done:
                ways += 1
                heapq.heappush(queue, (length + len(blocks[one]), ways, one, way + (one,)))
        done.add(label)
    return ()


def key_block_loop(text):
    """The instructions of a warp for one block of the other side's tokens, of which all are visible."""
    blocks = basic_blocks(text)
    after = successors(blocks)
    best, density = [], 0
    for label, own in blocks.items():
        if not any(one.kind in PRODUCTS for one in own):
            continue
        loop = [one for part in shortest_cycle(blocks, after, label) for one in blocks[part]]
        products = sum(tensor_cycles(one) for one in loop)
        if loop and products / len(loop) > density:
            best, density = loop, products / len(loop)
    return best


def tensor_cycles(one):
    """Of the tensor core of a quarter of a multiprocessor: 256 multiplications a cycle on 8.0, 512 on 9.0."""
    if one.kind == "HMMA":
        return 16 * 8 * 16 / 256
    shape = re.search(r"\.64x(\d+)x16", one.name) if one.kind == "HGMMA" else None  # 16 rows for each quarter
    return 16 * int(shape[1]) * 16 / 512 if shape else 0


def pipe_cycles(one, architecture):
    """The pipe, besides the tensor core, that a warp's instruction takes, and for how many cycles."""
    wide = 4 if ".128" in one.name else 2 if ".64" in one.name else 1
    if one.kind == "MUFU":
        return "exponentials", 8
    if one.kind == "LDSM":
        return "shared memory", 4 * int((re.search(r"\.M88\.(\d)", one.name) or [0, 1])[1])
    if one.kind in ("LDS", "STS"):
        return "shared memory", 4 * wide
    if one.kind == "SHFL":
        return "shared memory", 4
    if one.kind in ("FADD", "FMUL", "FFMA"):
        return "fp32", 1 if architecture == "90a" else 2
    if one.kind in ("FMNMX", "FSEL", "FSETP", "F2FP", "LOP3", "SHF", "ISETP", "SEL", "IADD3", "LEA", "PRMT", "PLOP3"):
        return "integer", 2
    if one.kind == "IMAD":
        return "fp32", 1 if ".MOV" in one.name and architecture == "90a" else 2
    return "issue", 0


def predicted(loop, architecture):
    """Cycles of the pipe that is busiest, by name, for one warp on each quarter of a multiprocessor."""
    pipes = {"issue": len(loop), "tensor cores": sum(tensor_cycles(one) for one in loop)}
    for one in loop:
        pipe, cycles = pipe_cycles(one, architecture)
        pipes[pipe] = pipes.get(pipe, 0) + cycles
    return pipes


def table(nvcc, folder):
    """Prints the table."""
    print("| kernel | target | head dimensions | registers | spilled bytes (stores) | instructions | a block: instructions "
          "| local accesses | products | exponentials | tensor cores, cycles | busiest other pipe, cycles "
          "| predicted, cycles | tensor cores busy |\n|" + " --- |" * 14)
    for kernel in kernels():
        text, said = disassemble(kernel, folder, nvcc)
        registers = max(int(number) for number in re.findall(r"Used (\d+) registers", said))
        spilled = max(int(number) for number in re.findall(r"(\d+) bytes spill stores", said))
        name, architecture, _, key_dim, value_dim, gradient = kernel
        loop = key_block_loop(text)
        warps = 2 if name.startswith("wgmma") else 1
        pipes = {pipe: warps * cycles for pipe, cycles in predicted(loop, architecture).items()}
        tensor = pipes.pop("tensor cores")
        other = max(pipes, key=pipes.get)
        most = max(tensor, pipes[other])
        count = lambda *kinds: sum(one.kind in kinds for one in loop)
        print(f"| {name}{' ' + gradient if gradient else ''} | sm_{architecture} | {key_dim}, {value_dim} | {registers} "
              f"| {spilled} | {sum(one[0] != 'label' for one in instructions(text))} | {len(loop)} "
              f"| {count('LDL', 'STL')} | {count(*PRODUCTS)} | {count('MUFU')} | {tensor:.0f} "
              f"| {other} {pipes[other]:.0f} | {most:.0f} | {100 * tensor / most:.0f} % |", flush=True)
    return 0


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--check", action="store_true", help="test the order of the forward by warpgroups")
    arguments.add_argument("--keep", help="a folder for the code of kernels, which is taken from there if it is there")
    arguments.add_argument("--nvcc", default=shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc")
    given = arguments.parse_args()
    for what, there in (("nvcc", os.access(given.nvcc, os.X_OK)), ("nvdisasm", nvdisasm())):
        if not there:
            print(f"skipped: there is no {what} (Python package nvidia-cuda-{what})")
            return 77
    if given.check:
        return check(given.nvcc)
    if given.keep:
        os.makedirs(given.keep, exist_ok=True)
        return table(given.nvcc, given.keep)
    with tempfile.TemporaryDirectory() as folder:
        return table(given.nvcc, folder)


if __name__ == "__main__":
    sys.exit(main())
