#!/usr/bin/env python3
# Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
"""The tables and the picture of bench/machine.md, from what bench_machine and bench_machine_mpi have written.

    bench_machine 2 4 4 64 7 every > threads.txt
    mpirun -n 2 bench_machine_mpi 4 4 64 7 every > processes.txt
    bench/machine.py threads.txt processes.txt     # prints the tables, and writes bench/machine.svg
"""

import itertools
import math
import pathlib
import re
import sys

ROW = re.compile(r"# \| `(.*)` \| (\w+) \| (.*) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|")


def rows_of(path):
    """(schedule, pass, mask, tokens) -> (measured, predicted), both in ms."""
    found = {}
    for line in pathlib.Path(path).read_text().splitlines():
        row = ROW.match(line)
        if row:
            found[(row[1], row[2], row[3], int(row[4]))] = (float(row[5]), float(row[6]))
    if not found:
        sys.exit(f"{path} has no rows of schedules; write it with bench_machine ... every")
    return found


def accuracy(rows):
    errors = [abs(predicted / measured - 1) for measured, predicted in rows]
    return f"{100 * sum(errors) / len(errors):.1f} % on average, {100 * max(errors):.1f} % at worst"


def order(rows):
    """How many pairs of schedules that were measured more than 5 % apart are in the right order, and of how many."""
    right = pairs = 0
    for a, b in itertools.combinations(rows, 2):
        if a[1:] != b[1:] or abs(rows[a][0] / rows[b][0] - 1) <= 0.05:
            continue
        pairs += 1
        right += (rows[a][0] < rows[b][0]) == (rows[a][1] < rows[b][1])
    return right, pairs


def regret(rows):
    """By how much the schedule that is predicted to be the fastest was slower than the fastest, at worst."""
    worst = 0
    for question in {key[1:] for key in rows}:
        same = [value for key, value in rows.items() if key[1:] == question]
        worst = max(worst, min(same, key=lambda value: value[1])[0] / min(same)[0] - 1)
    return worst


def print_tables(threads, processes):
    print("| tokens | threads: off by | processes: off by |\n| --- | --- | --- |")
    for tokens in sorted({key[3] for key in threads}):
        of = [accuracy([value for key, value in rows.items() if key[3] == tokens]) for rows in (threads, processes)]
        print(f"| {tokens} | {of[0]} | {of[1]} |")
    for name, rows in (("threads", threads), ("processes", processes)):
        right, pairs = order(rows)
        print(f"\n{name}: {right} of {pairs} pairs in order, regret {100 * regret(rows):.0f} %")
    print("\n| schedule | pass | mask | tokens | threads | predicted | | processes | predicted | |")
    print("| --- " * 10 + "|")
    for key, (measured, predicted) in threads.items():
        cells = [f"`{key[0]}`", *key[1:3], str(key[3])]
        for of in ((measured, predicted), processes[key]):
            cells += [f"{of[0]:.2f}", f"{of[1]:.2f}", f"{100 * (of[1] / of[0] - 1):+.1f} %"]
        print("| " + " | ".join(cells) + " |")


def picture(panels):
    """Predicted over measured, both logarithmic: a panel each."""
    side, left, top, gap = 320, 64, 74, 70
    every = [value for _, rows in panels for pair in rows.values() for value in pair]
    low, high = math.log10(min(every)) - 0.08, math.log10(max(every)) + 0.08

    def along(value):
        return (math.log10(value) - low) / (high - low) * side

    width = left + len(panels) * (side + gap) - gap + 24
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 460" width="{width}" height="460" '
           'font-family="sans-serif" font-size="12">',
           "<style>.page{fill:#fff}text{fill:#222}.soft{fill:#666}.grid{stroke:#ddd}.line{stroke:#222}"
           ".band{fill:#8888;fill-opacity:.25}.full{stroke:#0b66c3}.causal{stroke:#c2571a}"
           ".full.forward{fill:#0b66c3}.causal.forward{fill:#c2571a}.backward{fill:none}"
           "@media(prefers-color-scheme:dark){.page{fill:#15181c}text{fill:#e6e6e6}.soft{fill:#a0a0a0}"
           ".grid{stroke:#333}.line{stroke:#ccc}.full{stroke:#6cb2ff}.causal{stroke:#ff9d5c}"
           ".full.forward{fill:#6cb2ff}.causal.forward{fill:#ff9d5c}.full.backward,.causal.backward{fill:none}}</style>",
           f'<rect class="page" width="{width}" height="460"/>',
           f'<text x="{left}" y="24" font-size="15" font-weight="bold">Predicted beside measured, two ranks</text>',
           f'<text class="soft" x="{left}" y="42">band: 15 % off</text>']
    legend = left + 96
    for mask in ("full", "causal"):
        for p in ("forward", "backward"):
            out.append(f'<circle class="{mask} {p}" cx="{legend}" cy="38" r="4" stroke-width="1.5"/>'
                       f'<text class="soft" x="{legend + 9}" y="42">{mask}, {p}</text>')
            legend += 118
    for i, (name, rows) in enumerate(panels):
        x0, y0 = left + i * (side + gap), top + side
        out.append(f'<text x="{x0}" y="{top - 8}" font-weight="bold">{name}</text>')
        for tick in (1, 3, 10, 30, 100, 300):
            if not low <= math.log10(tick) <= high:
                continue
            at = along(tick)
            out.append(f'<path class="grid" d="M{x0 + at:.1f} {y0}v-{side}M{x0} {y0 - at:.1f}h{side}"/>'
                       f'<text class="soft" x="{x0 + at:.1f}" y="{y0 + 16}" text-anchor="middle">{tick}</text>'
                       f'<text class="soft" x="{x0 - 6}" y="{y0 - at + 4:.1f}" text-anchor="end">{tick}</text>')
        off = side * math.log10(1.15) / (high - low)
        out.append(f'<path class="band" d="M{x0} {y0}v{-off:.1f}L{x0 + side - off:.1f} {top}H{x0 + side}V{top + off:.1f}'
                   f'L{x0 + off:.1f} {y0}Z"/><path class="line" d="M{x0} {y0}l{side} -{side}" fill="none"/>')
        for (schedule, p, mask, tokens), (measured, predicted) in rows.items():
            kind = "causal" if mask.startswith("causal") else "full"
            out.append(f'<circle class="{kind} {p}" cx="{x0 + along(measured):.1f}" cy="{y0 - along(predicted):.1f}" '
                       f'r="4" stroke-width="1.5"><title>{schedule.replace("<", "&lt;")}, {p}, {mask}, {tokens} tokens: '
                       f'measured {measured} ms, predicted {predicted} ms</title></circle>')
        out.append(f'<text class="soft" x="{x0 + side / 2:.0f}" y="{y0 + 36}" text-anchor="middle">measured, ms</text>')
        if i == 0:
            out.append(f'<text class="soft" transform="translate({x0 - 40} {y0 - side / 2:.0f}) rotate(-90)" '
                       'text-anchor="middle">predicted, ms</text>')
    return "\n".join(out) + "\n</svg>\n"


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    threads, processes = (rows_of(path) for path in sys.argv[1:])
    if threads.keys() != processes.keys():
        sys.exit("the two files have different rows: write both with the same arguments")
    print_tables(threads, processes)
    file = pathlib.Path(__file__).resolve().parent / "machine.svg"
    file.write_text(picture([("threads of one process", threads), ("processes over MPI", processes)]))


if __name__ == "__main__":
    main()
