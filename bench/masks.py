#!/usr/bin/env python3
# Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
"""What masks leave to send, in milliseconds: bench_masks_mpi on a cluster in a box (see cluster.py).

    cmake --workflow --preset bench
    sudo bench/masks.py                    # some minutes; prints the tables of bench/masks.md
    sudo bench/masks.py --shapes 4x4 --calls 3 --realtime

Skipped, with exit status 77, where cluster.py is. Fails where bench_masks_mpi does: if the bytes that ranks count are
not those that operators tell of, or if results are not those of the whole sequence.
"""

import argparse
import pathlib

import cluster


def main():
    here = pathlib.Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=here.parent / "build/bench/bench/bench_masks_mpi")
    parser.add_argument("--shapes", type=lambda text: text.split(","), default=["4x4", "2x8"],
                        help="nodes x ranks of each (4x4,2x8)")
    parser.add_argument("--link", choices=list(cluster.RATES), default="100mbit")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--realtime", action="store_true", help="as for cluster.py")
    options = parser.parse_args()
    for shape in options.shapes:
        parts = shape.split("x")
        if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts) or int(parts[0]) < 2:
            parser.error(f"--shapes: {shape} is not NODESxRANKS with at least 2 nodes")
    cluster.skip_if_not_permitted()
    for shape in options.shapes:
        nodes, per_node = (int(part) for part in shape.split("x"))
        with cluster.Cluster(nodes, cluster.RATES[options.link], options.realtime) as box:
            rates = box.rate_of_links()
            print(f"\n## {cluster.spoken(shape, options.link)}\n\nMeasured by `bench/masks.py` on {cluster.processor()}"
                  f"{'; ranks ran at real-time priority' if options.realtime else ''}. A link carries {rates[0]:.0f} and "
                  f"{rates[1]:.0f} Mbit/s at the same time.", flush=True)
            arguments = [str(number) for number in (options.tokens, options.heads, options.dim, options.calls,
                                                    per_node)]
            print(box.mpirun([str(options.program), *arguments], per_node), end="", flush=True)


if __name__ == "__main__":
    main()
