#!/usr/bin/env python3
# Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
"""Compiles a file to assembly and looks for spills in its loops of products.

usage: spills.py COMPILER [FLAG ...] SOURCE

A loop of products has no branch within, spreads elements over vectors (two or more times) and multiplies four or more
vectors. It keeps its sums in registers: a store of a vector to the stack is a spill, after which multiplications wait
for memory. Prints such loops and fails. Fails, too, if it finds no loop of products of an instruction set, since it
would then check nothing.
"""

import os
import re
import subprocess
import sys
import tempfile

LABEL = re.compile(r"(\.L\w+):")
FUNCTION = re.compile(r"(_Z\w+):")
JUMP = re.compile(r"\tj\w+\t(\.L\w+)")
MULTIPLY = re.compile(r"\t(?:vfn?m(?:add|sub)\d+p[sd]|v?mulp[sd])\t")
SPREAD = re.compile(r"\t(?:vbroadcasts[sd]|v?shufps\t\$0,|v?unpcklpd|v?movddup|vpermilp[sd]|.*\{1to\d+\})")
STORE = re.compile(r"\tv?mov[au]p[sd]\t%[xyz]mm\d+, (?:-?\d+)?\((%r[sb]p)\)")
FRAME = re.compile(r"\tmovq\t%rsp, %rbp")
SETS = ("baseline", "avx2", "avx512")


def functions(assembly):
    """The functions of a file: (name, lines)."""
    name, lines = None, []
    for line in assembly.splitlines():
        found = FUNCTION.match(line)
        if found:
            if name:
                yield name, lines
            name, lines = found.group(1), []
        lines.append(line)
    if name:
        yield name, lines


def loops_of_products(lines):
    """The lines of each loop of products among those of a function, and how many products it has."""
    begin = None
    for number, line in enumerate(lines):
        jump = JUMP.match(line)
        if jump and begin is not None and LABEL.match(lines[begin]).group(1) == jump.group(1):
            loop = lines[begin : number + 1]
            products = sum(bool(MULTIPLY.match(one)) for one in loop)
            # Constants are relative to %rip; elements of a matrix are not.
            spread = sum(bool(SPREAD.match(one)) and "%rip" not in one for one in loop)
            if products >= 4 and spread >= 2:
                yield loop, products
        if LABEL.match(line):
            begin = number
        elif jump:
            begin = None


def main():
    *command, source = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        output = os.path.join(folder, "out.s")
        subprocess.run([*command, "-S", source, "-o", output], check=True)
        with open(output, encoding="utf-8") as file:
            assembly = file.read()

    checked = dict.fromkeys(SETS, 0)
    spilled = 0
    for name, lines in functions(assembly):
        stack = {"%rsp", "%rbp"} if any(FRAME.match(line) for line in lines) else {"%rsp"}
        for loop, products in loops_of_products(lines):
            for one in SETS:
                if f"{len(one)}{one}" in name:
                    checked[one] += 1
            stores = [line for line in loop if (found := STORE.match(line)) and found.group(1) in stack]
            if stores:
                spilled += 1
                print(f"{name}: a loop of {products} products stores {len(stores)} vectors to the stack:")
                print("\n".join(loop))
    print("loops of products: " + ", ".join(f"{checked[one]} of {one}" for one in SETS))
    if spilled or not all(checked.values()):
        sys.exit("FAILED: " + (f"{spilled} loops spill" if spilled else "an instruction set has none"))


if __name__ == "__main__":
    main()
