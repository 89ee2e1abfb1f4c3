#!/usr/bin/env python3
# Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
"""Runs bench_plan with flags, and reads what it writes: check.py BENCH_PLAN DIRECTORY"""
import json
import pathlib
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

program, directory = sys.argv[1], pathlib.Path(sys.argv[2])
directory.mkdir(parents=True, exist_ok=True)
model = "--machine h100 --ranks 16 --query-heads 16 --key-heads 2 --head-dim 64 --mask full --layout contiguous".split()
files = [part for kind in ("json", "svg", "trace") for part in ("--" + kind, str(directory / kind))]
table = subprocess.run([program, *model, "--tokens", "8192", "--finalists", "3", *files], check=True, capture_output=True,
                       text=True).stdout
assert "| 1.00 | `" in table and "`ring`, keys" in table and "slower by a quick estimate" in table, table
plan = json.loads((directory / "json").read_text())
assert plan["tokens"] == 8192 and plan["mask"] == "full" and len(plan["schedules"]) >= 6, plan
for one in plan["schedules"]:
    assert one["volume_over_bound"] >= 1 and [level["name"] for level in one["levels"]] == ["node", "cluster"], one
    seconds = one["forward_seconds"] + one["backward_seconds"]
    assert abs(one["tokens_per_second"] * seconds / 8192 - 1) < 1e-6, one
assert json.loads((directory / "trace").read_text())["traceEvents"]
ElementTree.parse(directory / "svg")
subprocess.run([program, *model[:2], "--ranks", "4,8", "--map", str(directory / "map")], check=True)
cells = [one for one in ElementTree.parse(directory / "map").getroot().iter("{http://www.w3.org/2000/svg}rect")
         if one.get("class") == "cell"]
assert len(cells) == 2 * 9, len(cells)
refused = subprocess.run([program, *model, "--tokens", "8192", "--mask", "casual"], capture_output=True, text=True)
assert refused.returncode == 2 and "causal" in refused.stderr, refused
