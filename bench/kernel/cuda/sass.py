#!/usr/bin/env python3
# Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
"""Reads what nvcc makes of the kernels of device_flash, without a GPU: compiles them, and disassembles them by nvdisasm.

    pip install nvidia-cuda-nvdisasm             # where the toolkit has none
    bench/kernel/cuda/sass.py                    # a table of registers, spills and instructions, of every kernel
    bench/kernel/cuda/sass.py --check            # fails if the forward's exponentials do not overlap a product

Instructions are those of the whole program of a kernel, not those that run. Of them, products are the tensor cores' and
exponentials are MUFU.EX2. Exits with 77 where nvcc or nvdisasm is missing.
"""
import argparse
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
    """Returns the disassembly, and ptxas's words."""
    source, cubin = pathlib.Path(folder, "kernel.cu"), pathlib.Path(folder, "kernel.cubin")
    source.write_text(source_of(kernel))
    architecture = kernel[1]
    command = [nvcc, "-std=c++20", "-O3", "--expt-relaxed-constexpr", f"-I{ROOT / 'include'}", "-cubin", "-gencode",
               f"arch=compute_{architecture},code=sm_{architecture}", "--ptxas-options=-v", "-o", cubin, source]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode != 0:
        sys.exit(made.stdout + made.stderr)
    return subprocess.run([nvdisasm(), "-c", cubin], capture_output=True, text=True, check=True).stdout, made.stderr


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


def table(nvcc):
    """Prints the table."""
    print("| kernel | target | head dimensions | registers | spilled bytes (stores) | instructions | products "
          "| exponentials |\n| --- | --- | --- | --- | --- | --- | --- | --- |")
    for kernel in kernels():
        with tempfile.TemporaryDirectory() as folder:
            text, said = disassemble(kernel, folder, nvcc)
        names = [name for name, _ in instructions(text) if name != "label"]
        registers = max(int(number) for number in re.findall(r"Used (\d+) registers", said))
        spilled = max(int(number) for number in re.findall(r"(\d+) bytes spill stores", said))
        name, architecture, _, key_dim, value_dim, gradient = kernel
        products = sum(one.startswith(("HMMA", "HGMMA")) for one in names)
        print(f"| {name}{' ' + gradient if gradient else ''} | sm_{architecture} | {key_dim}, {value_dim} | {registers} "
              f"| {spilled} | {len(names)} | {products} | {names.count('MUFU.EX2')} |", flush=True)
    return 0


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--check", action="store_true", help="test the order of the forward by warpgroups")
    arguments.add_argument("--nvcc", default=shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc")
    given = arguments.parse_args()
    for what, there in (("nvcc", os.access(given.nvcc, os.X_OK)), ("nvdisasm", nvdisasm())):
        if not there:
            print(f"skipped: there is no {what} (Python package nvidia-cuda-{what})")
            return 77
    return check(given.nvcc) if given.check else table(given.nvcc)


if __name__ == "__main__":
    sys.exit(main())
