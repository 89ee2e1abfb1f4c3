#!/usr/bin/env python3
# Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
"""What early hand-over hides: the trainer's forward, with queries, keys and values handed over by tensor and together.

Runs train_mpi on a cluster in a box (see cluster.py): nodes of one rank each, whose links are shaped. Both ways take
turns, and the medians of all rounds are compared. Ranks that share a core have nothing to hide messages behind.

    cmake --workflow --preset test
    sudo bench/hand_over.py                # some minutes; prints a table

Skipped, with exit status 77, where cluster.py is.
"""

import argparse
import pathlib
import re
import statistics

import cluster

WAYS = ("together", "by_tensor")
TOPOLOGIES = ("ring", "concentric<2,1>", "ulysses")


def forward_milliseconds(box, options, topology, way):
    """Of the model's forward in one step: the median over the steps of a training."""
    flags = ["--steps", str(options.steps), "--length", str(options.length), "--width", str(options.width), "--layers", "2",
             "--dtype", "float", "--topology", topology, "--hand-over", way]
    told = box.mpirun([str(options.program), *flags], 1)
    rows = re.findall(rf"^  {re.escape(topology)} .* ([0-9.]+)$", told, re.MULTILINE)
    return float(rows[-1])  # of the table, which comes after the losses


def main():
    here = pathlib.Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=here.parent / "build/test/examples/train_mpi")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--links", type=lambda text: text.split(","), default=["100mbit"])
    parser.add_argument("--topologies", type=lambda text: text.split(), default=list(TOPOLOGIES), help="with blanks between")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--realtime", action="store_true", help="as for cluster.py")
    parser.add_argument("--out", type=pathlib.Path, help="file for the table, instead of the terminal")
    options = parser.parse_args()
    cluster.skip_if_not_permitted()

    lines = ["# Early hand-over", "",
             f"Measured by `bench/hand_over.py` on {cluster.processor()}: milliseconds of the model's forward in one step of",
             f"`train_mpi`, {options.nodes} nodes of one rank, {options.length} tokens, width {options.width}, 2 layers, float; "
             f"medians of {options.rounds} trainings of {options.steps} steps each.", "",
             "| topology | " + " | ".join(f"{link}, {way.replace('_', ' ')}" for link in options.links for way in WAYS) + " |",
             "| --- |" + " --- |" * (len(options.links) * len(WAYS))]
    cells = {}
    for link in options.links:
        with cluster.Cluster(options.nodes, cluster.RATES[link], options.realtime) as box:
            for topology in options.topologies:
                times = {way: [] for way in WAYS}
                for _ in range(options.rounds):
                    for way in WAYS:
                        times[way].append(forward_milliseconds(box, options, topology, way))
                for way in WAYS:
                    cells[topology, link, way] = statistics.median(times[way])
                print(link, topology, times, flush=True)
    for topology in options.topologies:
        texts = []
        for link in options.links:
            together, early = (cells[topology, link, way] for way in WAYS)
            texts += [f"{together:.0f}", f"{early:.0f} ({together / early:.2f}×)"]
        lines.append(f"| `{topology}` | " + " | ".join(texts) + " |")
    table = "\n".join(lines)
    if options.out:
        options.out.write_text(table + "\n")
    else:
        print(table)


if __name__ == "__main__":
    main()
