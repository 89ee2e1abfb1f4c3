#!/usr/bin/env python3
# Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
"""What Orrery's kernels and operators reach on a CUDA device, beside the device's ceilings and PyTorch's attention.

    python3 bench/gpu.py --program build/gpu/bench/bench_gpu --out results

Runs bench_gpu and then PyTorch's scaled_dot_product_attention (its flash and its cuDNN backend) over the same shapes on
the same device, and writes results/gpu.md, a Markdown table that names the device and the versions, and results/gpu.json.
All figures are medians of events of one run. What cannot be measured, because PyTorch or a backend is missing, is said to
be "not measured". --quick takes small sizes, for a minute. --read FILE makes the tables of an earlier gpu.json again.
--rehearse needs neither the program nor a device: PyTorch's part over tiny shapes on the host, and the tables, to see
that they work (cuDNN is then "not measured", and no figure means anything).
"""
import argparse
import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import time

REPETITIONS, WARM_UP = 20, 3


def seconds(torch, device, call, repetitions=REPETITIONS):
    """The device's seconds of call(), the median."""
    measured = []
    for i in range(-WARM_UP, repetitions):
        if device == "cpu":
            begin = time.perf_counter()
            call()
            measured.append(time.perf_counter() - begin)
            continue
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        if i >= 0:
            measured.append(begin.elapsed_time(end) * 1e-3)
    return statistics.median(measured)


def attention_flop(row):
    """As bench_gpu counts it: of pairs that meet, 4 flop for each element forward and 10 backward."""
    pairs = row["tokens"] * (row["tokens"] + 1) / 2 if row["mask"] == "causal" else row["tokens"] ** 2
    return (4 if row["pass"] == "forward" else 10) * pairs * row["heads"] * row["dim"]


def pytorch_rows(shapes, size, device="cuda"):
    """Rows of PyTorch over the shapes (of bench_gpu's kernel rows) and of a product of so large matrices, and facts
    about it."""
    try:
        import torch
        import torch.nn.functional as functional
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError as missing:
        return [], {"pytorch": f"not measured: {missing}"}
    if device == "cuda" and not torch.cuda.is_available():
        return [], {"pytorch": "not measured: PyTorch sees no CUDA device"}
    facts = {"pytorch": f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"}
    rows = []
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    rows.append({"section": "ceiling", "of": f"matrix product, bfloat16, {size} (PyTorch)",
                 "tflop_per_s": 2 * size ** 3 / seconds(torch, device, lambda: torch.matmul(a, b)) * 1e-12})
    del a, b
    for backend, name in ((SDPBackend.FLASH_ATTENTION, "PyTorch, flash"), (SDPBackend.CUDNN_ATTENTION, "PyTorch, cuDNN")):
        for shape in shapes:
            row = {**shape, "section": "kernel", "kernel": name}
            try:
                # Batch 1 and the order [batch, sequence, head, dim] in memory, as bench_gpu has them.
                q, k, v, grad = (torch.randn(1, shape["tokens"], shape["heads"], shape["dim"], device=device,
                                             dtype=torch.bfloat16).transpose(1, 2) for _ in range(4))
                for one in (q, k, v):
                    one.requires_grad_(True)
                attend = lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=shape["mask"] == "causal")
                with sdpa_kernel(backend):
                    if shape["pass"] == "forward":
                        with torch.no_grad():
                            taken = seconds(torch, device, attend)
                    else:
                        out = attend()
                        taken = seconds(torch, device,
                                        lambda: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True))
                row.update(ms=taken * 1e3, tflop_per_s=attention_flop(shape) / taken * 1e-12)
            except RuntimeError as failure:
                row["why"] = str(failure).splitlines()[0]
            rows.append(row)
            print(f"{name}: {row}", flush=True)
    return rows, facts


def figure(row, key, digits):
    value = row.get(key) if row else None
    return "not measured" if value is None else f"{value:.{digits}f}"


def kernel_table(rows):
    """One line for each shape, one column for each kernel; per cent of the largest ceiling of the tensor cores."""
    most = max((r["tflop_per_s"] for r in rows if r["section"] == "ceiling" and "tflop_per_s" in r), default=None)
    of = [r for r in rows if r["section"] == "kernel"]
    kernels = list(dict.fromkeys(r["kernel"] for r in of))
    lines = ["| pass | mask | dim | tokens | heads | " + " | ".join(f"{k}" for k in kernels) + " |",
             "| --- | --- | --- | --- | --- |" + " --- |" * len(kernels)]
    for key in dict.fromkeys((r["pass"], r["mask"], r["dim"], r["tokens"], r["heads"]) for r in of):
        cells = []
        for kernel in kernels:
            found = [r for r in of if r["kernel"] == kernel
                     and (r["pass"], r["mask"], r["dim"], r["tokens"], r["heads"]) == key]
            cell = figure(found[0] if found else None, "tflop_per_s", 0)
            if most and cell != "not measured":
                cell += f" ({100 * found[0]['tflop_per_s'] / most:.0f} %)"
            cells.append(cell)
        lines.append("| " + " | ".join([str(k) for k in key] + cells) + " |")
    return lines


def table(rows, section, columns):
    """A line for each row of the section; columns: heading, key, digits (None: as it is)."""
    lines = ["| " + " | ".join(heading for heading, _, _ in columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        if row["section"] == section:
            cells = [str(row.get(key, "")) if digits is None else figure(row, key, digits) for _, key, digits in columns]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def markdown(results):
    rows = results["rows"]
    sections = {r["section"] for r in rows}
    text = [f"Device: {results['device']}.", f"PyTorch: {results['pytorch']}.",
            "Medians of one run" + (", small sizes" if results["quick"] else "") + ".", ""]
    text += ["| ceiling | measured |", "| --- | --- |"]
    text += [f"| {r['of']} | {figure(r, 'tflop_per_s', 0)} TFLOP/s |" if "tflop_per_s" in r else
             f"| {r['of']} | {figure(r, 'gb_per_s', 0)} GB/s |" for r in rows if r["section"] == "ceiling"]
    if "kernel" in sections:
        text += ["", "Attention alone, bfloat16, batch 1, in TFLOP/s (per cent of the highest ceiling; forward 4 flop for "
                 "each pair and element, backward 10; our forward writes float, PyTorch's bfloat16):", ""]
        text += kernel_table(rows)
        errors = {r["kernel"]: max(q["max_error"] for q in rows if q.get("kernel") == r["kernel"] and "max_error" in q)
                  for r in rows if r["section"] == "kernel" and "max_error" in r}
        text += ["", "Largest error beside device_reference, relative to the larger of 1 and the largest element: "
                 + ", ".join(f"{kernel} {error:.1e}" for kernel, error in errors.items()) + "."]
    if "movement" in sections:
        text += ["", "Kernels that move data and add partial results:", ""]
        text += table(rows, "movement", [("kernel", "what", None), ("MB", "mb", 0), ("ms", "ms", 3), ("GB/s", "gb_per_s", 0),
                                         ("% of copy", "percent_of_copy", 0)])
    if "operator" in sections:
        text += ["", "The operator, all ranks on this device, as a ratio to one call of its kernel over the same work "
                 "(1: as fast), by calls and as a launched graph:", ""]
        text += table(rows, "operator", [("topology", "topology", None), ("ranks", "ranks", None), ("mask", "mask", None),
                                         ("pass", "pass", None), ("tokens", "tokens", None), ("heads", "heads", None),
                                         ("dim", "dim", None), ("kernel ms", "kernel_ms", 2), ("ms", "ms", 2),
                                         ("ratio", "ratio", 3), ("graph ms", "graph_ms", 2), ("ratio", "graph_ratio", 3)])
    if "host" in sections:
        text += ["", "What enqueuing costs the host's threads, by calls and as a launched graph:", ""]
        text += table(rows, "host", [("topology", "topology", None), ("ranks", "ranks", None), ("pass", "pass", None),
                                     ("steps", "steps", None), ("us per step", "us_per_step", 1),
                                     ("graph, us per step", "graph_us_per_step", 1)])
    return "\n".join(text) + "\n"


def rehearse():
    """The tables of tiny shapes on the host. Throws unless each shape has a figure of PyTorch's flash backend."""
    shapes = [{"pass": direction, "mask": mask, "dim": 32, "tokens": 64, "heads": 2}
              for direction in ("forward", "backward") for mask in ("full", "causal")]
    ours = [{**shape, "section": "kernel", "kernel": "device_flash", "ms": 1.0, "tflop_per_s": attention_flop(shape) * 1e-9,
             "max_error": 1e-3} for shape in shapes]
    rows, facts = pytorch_rows(shapes, 64, "cpu")
    flash = [row for row in rows if row.get("kernel") == "PyTorch, flash"]
    if len(flash) != len(shapes) or not all(row.get("tflop_per_s", 0) > 0 for row in flash):
        sys.exit(f"PyTorch's flash backend has not computed every shape: {flash}")
    return {"device": "none, a rehearsal", "quick": True, **facts, "rows": ours + rows}


def main():
    here = pathlib.Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=here.parent / "build/gpu/bench/bench_gpu")
    parser.add_argument("--out", default=pathlib.Path("."), type=pathlib.Path)
    parser.add_argument("--only", help="sections of bench_gpu, with commas")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--read", type=pathlib.Path)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    if options.read:
        print(markdown(json.loads(options.read.read_text())), end="")
        return 0
    if options.rehearse:
        print(markdown(rehearse()), end="")
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    answer = options.out / "gpu.json"
    command = [str(options.program), "--json", str(answer)] + (["--quick"] if options.quick else [])
    command += ["--only", options.only] if options.only else []
    with contextlib.suppress(FileNotFoundError):
        answer.unlink()
    if (status := subprocess.run(command).returncode) != 0:
        sys.exit(f"{' '.join(command)} failed with {status}")
    results = json.loads(answer.read_text())
    shapes = [{key: row[key] for key in ("pass", "mask", "dim", "tokens", "heads")}
              for row in results["rows"] if row["section"] == "kernel"]
    rows, facts = pytorch_rows(list({tuple(s.items()): s for s in shapes}.values()),
                               4096 if options.quick else 8192)
    results = {"quick": options.quick, **results, **facts, "rows": results["rows"] + rows}
    answer.write_text(json.dumps(results, indent=1) + "\n")
    text = markdown(results)
    (options.out / "gpu.md").write_text(text)
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
