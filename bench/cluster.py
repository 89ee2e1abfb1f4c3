#!/usr/bin/env python3
# Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
"""A cluster in a box: bench_topology_mpi on nodes that are network namespaces of this machine.

Every node is a namespace with one network card (a veth pair) and a host name of its own; a bridge in a further
namespace is the switch. Links are shaped both ways by token buckets, so that what a node sends, and what it receives,
shares one card of the given rate, as in a real cluster. MPI is told that nodes are machines: ranks of one node exchange
through shared memory, ranks of different nodes through TCP over the shaped links.

    cmake --workflow --preset bench
    sudo bench/cluster.py                       # all of it, half an hour; rewrites bench/cluster/
    sudo bench/cluster.py --shapes 4x4 --links 100mbit --out /tmp/box
    bench/cluster.py --draw                     # table and picture again, from bench/cluster/results.json

Needs Linux, the right to make network namespaces, iproute2 and OpenMPI. Where that is not permitted it says so and exits
with 77. All namespaces are named orrery-box-PID-*; a second process takes them down, and what runs in them, as soon as
this one ends, however it ends.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
SKIPPED = 77
RANKS = 16
RATES = {"100mbit": 100e6, "1gbit": 1e9, "unshaped": None}
# 16 tokens of 16 heads of 128 a rank: a shard unit is 128 KiB, so that a ring at 100 Mbit/s takes a second, and there is
# little to compute meanwhile: 16 ranks share the cores of one machine.
PROBLEM = ["-b", "256", "-e", "256", "--heads", "16", "--dim", "128", "--mask", "full"]
UNIT_BYTES = 256 // RANKS * 16 * 128 * 4


def run(*command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class Cluster:
    """Nodes that share a switch, while the context lasts."""

    def __init__(self, nodes, rate, realtime=False):
        self.priority = "chrt --rr 1" if realtime else ""
        self.name = f"orrery-box-{os.getpid()}"
        self.nodes = [f"{self.name}-n{i}" for i in range(nodes)]
        self.switch = f"{self.name}-switch"
        self.rate = rate

    def address(self, i):
        return f"10.55.0.{i + 1}"

    def __enter__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix=self.name))
        # Ends when its input does, which is when this process lets go of it or is no more.
        take_down = "cat > /dev/null\n"
        for namespace in [*self.nodes, self.switch]:
            take_down += f"ip netns pids {namespace} 2> /dev/null | xargs -r kill -9\n"
        for namespace in [*self.nodes, self.switch]:
            take_down += f"ip netns delete {namespace} 2> /dev/null\n"
        take_down += f"rm -rf '{self.folder}'\n"
        self.undertaker = subprocess.Popen(["sh", "-c", take_down], stdin=subprocess.PIPE, start_new_session=True)
        try:
            self.build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.undertaker.stdin.close()
        self.undertaker.wait()

    def build(self):
        run("ip", "netns", "add", self.switch)
        run("ip", "-n", self.switch, "link", "add", "bridge", "type", "bridge")
        run("ip", "-n", self.switch, "link", "set", "bridge", "up")
        hosts = "127.0.0.1 localhost\n"
        for i, node in enumerate(self.nodes):
            run("ip", "netns", "add", node)
            run("ip", "-n", node, "link", "set", "lo", "up")
            # A network of one cable must not be mistaken for the internet: no probing for a rate after every pause.
            run("ip", "netns", "exec", node, "sysctl", "-qw", "net.ipv4.tcp_congestion_control=reno",
                "net.ipv4.tcp_slow_start_after_idle=0")
            run("ip", "link", "add", "card", "netns", node, "type", "veth", "peer", "name", f"port{i}", "netns", self.switch)
            run("ip", "-n", node, "address", "add", f"{self.address(i)}/24", "dev", "card")
            run("ip", "-n", node, "link", "set", "card", "up")
            run("ip", "-n", self.switch, "link", "set", f"port{i}", "master", "bridge", "up")
            if self.rate:
                for namespace, device in ((node, "card"), (self.switch, f"port{i}")):
                    # The bucket is small against a message, the queue long enough to lose nothing.
                    burst = str(max(16384, int(self.rate / 8 / 1000)))
                    run("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", "rate", f"{int(self.rate)}bit",
                        "burst", burst, "limit", "8mb")
            hosts += f"{self.address(i)} n{i}\n"
        (self.folder / "hosts").write_text(hosts)
        agent = self.folder / "agent"
        agent.write_text("#!/bin/sh\n# agent HOST COMMAND: runs the command on a node, as ssh would.\n"
                         f"host=$1; shift\nexec ip netns exec {self.name}-$host unshare -m -u sh -c "
                         f"\"mount --bind '{self.folder}/hosts' /etc/hosts; hostname $host; exec {self.priority} $*\"\n")
        agent.chmod(0o755)
        self.agent = str(agent)

    def start(self, node, program):
        """A Python program on a node."""
        return subprocess.Popen(["ip", "netns", "exec", self.nodes[node], sys.executable, "-c", program],
                                stdout=subprocess.PIPE, text=True)

    def rate_of_links(self):
        """Mbit/s that two nodes send each other at the same time, each way."""
        program = """
import socket, sys, threading, time
me, other, megabytes = {me!r}, {other!r}, {megabytes}
server = socket.create_server((me, 5555))
def take():
    connection, _ = server.accept()
    begin, got = None, 0
    while part := connection.recv(1 << 16):
        begin = begin or time.monotonic()
        got += len(part)
    print(8e-6 * got / (time.monotonic() - begin))
taking = threading.Thread(target=take)
taking.start()
for attempt in range(100):
    try:
        to = socket.create_connection((other, 5555))
        break
    except OSError:
        time.sleep(0.05)
to.sendall(bytes(megabytes << 20))
to.close()
taking.join()
"""
        megabytes = 16 if self.rate == 100e6 else 128
        ends = [self.start(a, program.format(me=self.address(a), other=self.address(b), megabytes=megabytes))
                for a, b in ((0, 1), (1, 0))]
        return [float(end.communicate()[0]) for end in ends]

    def mpirun(self, command, per_node):
        options = ["--mca", "plm_rsh_agent", self.agent, "--mca", "plm_rsh_no_tree_spawn", "1", "--mca",
                   "oob_tcp_if_include", "card", "--mca", "btl_tcp_if_include", "card", "--mca", "pml", "ob1",
                   # By default TCP links are half duplex: sends only, and both ways go at once.
                   "--mca", "btl", "vader,tcp,self", "--mca", "btl_tcp_flags", "1", "--mca", "mpi_yield_when_idle", "1",
                   # No message waits for its receiver to be scheduled and ask for it: cards of clusters do not, either.
                   "--mca", "btl_tcp_eager_limit", str(4 << 20),
                   "--mca", "orte_base_help_aggregate", "1", "--oversubscribe", "--bind-to", "none", "--host",
                   ",".join(f"n{i}:{per_node}" for i in range(len(self.nodes)))]
        environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                           OMP_NUM_THREADS="1")
        words = " ".join(f"'{word}'" for word in ["mpirun", *options, *command])
        done = subprocess.run([self.agent, "n0", words], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              env=environment, timeout=3600)
        if done.returncode != 0:
            raise RuntimeError(f"mpirun: {done.stdout}{done.stderr}")
        return done.stdout


def topologies_for(per_node):
    inner = {f"double_ring<{per_node}>", f"usp<{per_node}>"}
    return ["ring", *sorted(inner), "wallfacer<2>", "wallfacer<4>", "concentric<2>", "concentric<4>", "concentric<2,2>",
            "concentric<2,4>", "ulysses"]


def skip_if_not_permitted():
    if not shutil.which("ip") or not shutil.which("tc") or not shutil.which("mpirun"):
        print("skipped: a cluster in a box needs ip and tc (iproute2) and mpirun (OpenMPI)")
        sys.exit(SKIPPED)
    try:
        with Cluster(2, 100e6):
            pass
    except (RuntimeError, OSError) as error:
        print(f"skipped: this machine does not let us make and shape network namespaces ({error})")
        sys.exit(SKIPPED)


def processor():
    with open("/proc/cpuinfo") as told:
        names = [line.split(":", 1)[1].strip() for line in told if line.startswith("model name")]
    return f"{names[0] if names else 'an unknown processor'}, {os.cpu_count()} cores"


def measure(options, finished):
    """Calls finished(results) after each shape and link, with what has been measured so far."""
    skip_if_not_permitted()
    if not os.access(options.program, os.X_OK):
        sys.exit(f"cluster.py: there is no {options.program}: build it by cmake --workflow --preset bench")

    all_rows, links = [], []
    for shape in options.shapes:
        nodes, per_node = (int(n) for n in shape.split("x"))
        for link in options.links:
            with Cluster(nodes, RATES[link], options.realtime) as cluster:
                both_ways = cluster.rate_of_links()
                links.append({"shape": shape, "link": link, "mbit_each_way": both_ways, "realtime": options.realtime})
                print(f"{shape}, {link}: {both_ways[0]:.1f} and {both_ways[1]:.1f} Mbit/s at the same time", flush=True)
                for circulate in ("keys", "queries"):
                    begin = time.monotonic()
                    answer = cluster.folder / "rows.json"
                    cluster.mpirun([options.program, *PROBLEM, "--nodes", str(nodes), "--placement", "teams,rings,least",
                                    "--pass", "both", "--circulate", circulate, "-n", str(options.iterations), "-w", "1",
                                    "--topology", ",".join(topologies_for(per_node)), "--json", str(answer)], per_node)
                    told = json.loads(answer.read_text())
                    for row in told["rows"]:
                        all_rows.append({"shape": shape, "link": link, "circulate": circulate,
                                         "iterations": options.iterations, **row})
                    print(f"  {circulate} circulate: {len(told['rows'])} rows in {time.monotonic() - begin:.0f} s",
                          flush=True)
            for part in ("rows", "iterations", "nodes"):
                told.pop(part)
            finished({**told, "unit_bytes": UNIT_BYTES, "links": links, "rows": all_rows})


# What the results say -------------------------------------------------------------------------------------------------


def calls_of(results):
    """(shape, link, circulate) -> {(topology, placement): forward and backward together}, in the order of the runs."""
    cells = {}
    for row in results["rows"]:
        cell = cells.setdefault((row["shape"], row["link"], row["circulate"]), {})
        one = cell.setdefault((row["topology"], row["placement"]),
                              {"seconds": 0, "alone": 0, "egress": 0, "error": 0, "worst": 0})
        one["seconds"] += row["seconds_median"]
        one["worst"] += row["seconds_p99"]
        one["alone"] += row["seconds_compute_alone"]
        one["egress"] += row["node_egress_units"]
        one["error"] = max(one["error"], row["max_error"] or 0)
    return cells


def family(topology):
    return topology.split("<")[0]


def best(cell, wanted):
    chosen = {key: one for key, one in cell.items() if family(key[0]) in wanted}
    return min(chosen.items(), key=lambda item: item[1]["seconds"])


def per_topology(cell):
    """The fastest placement of each topology."""
    fastest = {}
    for (topology, placement), one in cell.items():
        if topology not in fastest or one["seconds"] < fastest[topology][1]["seconds"]:
            fastest[topology] = (placement, one)
    return fastest


def spoken(shape, link):
    nodes, per_node = shape.split("x")
    return f"{nodes} nodes × {per_node} ranks, " + {"100mbit": "100 Mbit/s", "1gbit": "1 Gbit/s"}.get(link, "unshaped")


def table(results):
    cells = calls_of(results)
    counts = {row["link"]: row["iterations"] for row in results["rows"]}
    counts = ", ".join(f"{n} ({link})" for link, n in counts.items()) if len(set(counts.values())) > 1 else \
        str(next(iter(counts.values())))
    lines = [f"Measured by `bench/cluster.py` on {results['processor']}, {results['cores']} cores; {results['compiler']}.",
             f"16 ranks, {results['query_heads']} heads of {results['head_dim']}, {results['rows'][0]['tokens']} tokens, {results['mask']} mask, "
             f"{results['layout']} layout, {results['dtype']}: a shard unit is {results['unit_bytes'] // 1024} KiB.",
             f"Milliseconds of a forward and a backward, medians of {counts} calls each; in brackets the speed relative to "
             "the ring of the same column",
             "and what the per-node egress of `traffic` predicts for it, where the network limits: on faster links the "
             "cores do, which all ranks share.",
             "*keys* and *queries* say what circulates in the backward. The fastest of a column is bold."
             + (" Ranks ran at real-time priority." if all(link.get("realtime") for link in results["links"]) else ""), ""]
    for shape in dict.fromkeys(key[0] for key in cells):
        links = list(dict.fromkeys(key[1] for key in cells if key[0] == shape))
        columns = [(link, circulate) for link in links for circulate in ("keys", "queries")]
        lines += [f"### {shape.replace('x', ' nodes × ')} ranks", "",
                  "| topology | placement | " + " | ".join(f"{spoken(shape, l).split(', ')[1]}, {c}" for l, c in columns) + " |",
                  "| --- | --- |" + " --- |" * len(columns)]
        names = list(dict.fromkeys(name for column in columns for name in cells[(shape, *column)]))
        topologies = list(dict.fromkeys(name[0] for name in names))
        names.sort(key=lambda name: topologies.index(name[0]))  # of one topology one below the other
        for name in names:
            cell_texts = []
            for column in columns:
                cell = cells[(shape, *column)]
                if name not in cell:
                    cell_texts.append("")
                    continue
                one, ring = cell[name], cell[("ring", "teams")]
                fastest = min(other["seconds"] for other in cell.values())
                text = f"{1e3 * one['seconds']:.0f} ({ring['seconds'] / one['seconds']:.2f}; {ring['egress'] / one['egress']:.2f})"
                cell_texts.append(f"**{text}**" if one["seconds"] == fastest else text)
            lines.append(f"| `{name[0]}` | {name[1]} | " + " | ".join(cell_texts) + " |")
        lines.append("")
    lines += ["### The best of each family, over placements and backward policies", "",
              "The ring of arXiv 2310.01889 circulates keys; so does the first figure's. A fairer ring circulates what is "
              "cheaper: the second.", "",
              "| | ring | best `wallfacer` | best `concentric` | `wallfacer` / ring | `concentric` / ring |",
              "| --- | --- | --- | --- | --- | --- |"]
    for shape, link in dict.fromkeys(key[:2] for key in cells):
        both = [cells[(shape, link, c)] for c in ("keys", "queries")]
        rings = [cell[("ring", "teams")]["seconds"] for cell in both]
        text = f"| {spoken(shape, link)} | {1e3 * rings[0]:.0f}, {1e3 * min(rings):.0f} ms |"
        ratios = ""
        for wanted in ("wallfacer", "concentric"):
            options = [(best(cell, {wanted}), c) for cell, c in zip(both, ("keys", "queries"))]
            ((topology, placement), one), circulate = min(options, key=lambda option: option[0][1]["seconds"])
            text += f" {1e3 * one['seconds']:.0f} ms: `{topology}`, {placement}, {circulate} |"
            ratios += f" {rings[0] / one['seconds']:.2f}, {min(rings) / one['seconds']:.2f} |"
        lines.append(text + ratios)
    return "\n".join(lines) + "\n"


COLOURS = {"ring": "#7f8c8d", "double_ring": "#b08d57", "wallfacer": "#2c7fb8", "concentric": "#d95f0e", "usp": "#54a868",
           "ulysses": "#2d7a4f"}


def picture(results):
    """Bars: time of a forward and backward, of each topology where it is placed best; dots: what egress predicts."""
    cells = calls_of(results)
    shapes = list(dict.fromkeys(key[0] for key in cells))
    links = list(dict.fromkeys(key[1] for key in cells))
    width, bar, gap, label, top = 330, 15, 4, 128, 92
    rows = max(len(per_topology(cell)) for cell in cells.values())
    panel = rows * (bar + gap) + 58
    total_width, total_height = label + len(links) * width + 20, top + len(shapes) * panel + 36
    text = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total_width} {total_height}" '
            f'width="{total_width}" height="{total_height}" font-family="sans-serif" font-size="11">',
            f'<rect width="{total_width}" height="{total_height}" fill="white"/>',
            '<text x="14" y="24" font-size="16" font-weight="bold">A cluster in a box: attention, forward + backward, '
            '16 ranks</text>',
            f'<text x="14" y="43" fill="#444">Each topology with its fastest placement and backward policy (t, r, l: teams, '
            'rings in nodes, least egress; k, q: keys, queries circulate). Shorter is faster.</text>',
            '<circle cx="19" cy="57" r="3.5" fill="none" stroke="black"/><text x="28" y="61" fill="#444">'
            'predicted before anything runs: the busiest node’s egress, by traffic(), at the link’s rate</text>']
    for row, shape in enumerate(shapes):
        y = top + row * panel
        nodes, per_node = shape.split("x")
        text.append(f'<text x="14" y="{y + 12}" font-size="13" font-weight="bold">{nodes} nodes × {per_node}</text>')
        for column, link in enumerate(links):
            fastest = {}
            for circulate in ("keys", "queries"):
                for topology, (placement, one) in per_topology(cells[(shape, link, circulate)]).items():
                    if topology not in fastest or one["seconds"] < fastest[topology][2]["seconds"]:
                        fastest[topology] = (placement, circulate, one)
            x = label + column * width
            longest = max(one["seconds"] for _, _, one in fastest.values())
            scale = (width - 120) / longest
            text.append(f'<text x="{x}" y="{y + 12}" font-size="12" fill="#444">{spoken(shape, link).split(", ")[1]}</text>')
            for i, (topology, (placement, circulate, one)) in enumerate(fastest.items()):
                at = y + 22 + i * (bar + gap)
                if column == 0:
                    name = topology.replace("<", "&lt;").replace(">", "&gt;").replace(",1&gt;", "&gt;")
                    text.append(f'<text x="{label - 8}" y="{at + 11}" text-anchor="end">{name}</text>')
                text.append(f'<rect x="{x}" y="{at}" width="{scale * one["seconds"]:.1f}" height="{bar}" '
                            f'fill="{COLOURS[family(topology)]}"/>')
                end = x + scale * one["seconds"]
                if RATES[link]:
                    predicted = one["egress"] * results["unit_bytes"] * 8 / RATES[link]
                    if predicted < longest * 1.15:
                        text.append(f'<circle cx="{x + scale * predicted:.1f}" cy="{at + bar / 2}" r="3.5" fill="white" '
                                    'fill-opacity="0.6" stroke="black"/>')
                        end = max(end, x + scale * predicted + 4)
                ring = fastest["ring"][2]["seconds"]
                speed = "" if topology == "ring" else f" · {ring / one['seconds']:.2f}×"
                text.append(f'<text x="{end + 5:.1f}" y="{at + 11}" fill="#333">{1e3 * one["seconds"]:.0f} ms{speed} '
                            f'<tspan fill="#999">{placement[0]}{circulate[0]}</tspan></text>')
    text.append(f'<text x="14" y="{total_height - 12}" fill="#444">{results["query_heads"]} heads of {results["head_dim"]}, '
                f'{results["rows"][0]["tokens"]} tokens, {results["mask"]}, {results["dtype"]}; {results["processor"]}, {results["cores"]} shared cores; '
                'ranks of a node share its one network card. × is the speed relative to the ring.</text>')
    return "\n".join([*text, "</svg>"]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=str(HERE.parent / "build/bench/bench/bench_topology_mpi"))
    parser.add_argument("--shapes", type=lambda text: text.split(","), default=["4x4", "2x8", "8x2"],
                        help="nodes x ranks of each, 16 in all (4x4,2x8,8x2)")
    parser.add_argument("--links", type=lambda text: text.split(","), default=list(RATES),
                        help="of 100mbit, 1gbit and unshaped (all)")
    parser.add_argument("--iterations", type=int, default=3, help="timed calls of each kind (3)")
    parser.add_argument("--realtime", action="store_true",
                        help="ranks go before all other work of the machine, which will feel it: for a machine in use")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "cluster", help="folder of the results (bench/cluster)")
    parser.add_argument("--draw", action="store_true", help="measure nothing, only write table and picture again")
    options = parser.parse_args()
    for shape in options.shapes:
        parts = shape.split("x")
        if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts) or \
                int(parts[0]) * int(parts[1]) != RANKS or int(parts[0]) < 2:
            parser.error(f"--shapes: {shape} is not NODESxRANKS with {RANKS} ranks in all and at least 2 nodes")
    for link in options.links:
        if link not in RATES:
            parser.error(f"--links: {link} is none of {', '.join(RATES)}")
    # Any of these ends the program as an error does: by taking the cluster down.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda caught, _: sys.exit(128 + caught))

    options.out.mkdir(parents=True, exist_ok=True)
    stored = options.out / "results.json"

    def finished(results):
        again = {(row["shape"], row["link"]) for row in results["rows"]}
        if known and known["unit_bytes"] == results["unit_bytes"]:
            results = {**results}
            for part in ("links", "rows"):
                results[part] = [one for one in known[part] if (one["shape"], one["link"]) not in again] + results[part]
        rows = ",\n".join(json.dumps(row) for row in results.pop("rows"))  # one a line
        stored.write_text(json.dumps(results)[:-1] + f', "rows": [\n{rows}\n]}}\n')

    known = json.loads(stored.read_text()) if stored.exists() else None
    if not options.draw:
        measure(options, finished)
    results = json.loads(stored.read_text())
    order = [(shape, link) for shape in ("4x4", "2x8", "8x2") for link in RATES]
    results["rows"].sort(key=lambda row: order.index((row["shape"], row["link"])) if (row["shape"], row["link"]) in order
                         else len(order))
    (options.out / "README.md").write_text("# A cluster in a box\n\n![bars](times.svg)\n\n" + table(results))
    (options.out / "times.svg").write_text(picture(results))
    print(f"written: {options.out}/README.md, times.svg and results.json")


if __name__ == "__main__":
    main()
