#!/usr/bin/env python3
# Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
"""Reads the pictures that examples/draw_schedule.cpp draws.

    pictures.py text DRAW_SCHEDULE DIR       SVG is well-formed XML, and no label overlaps another or leaves the picture
    pictures.py browser DRAW_SCHEDULE DIR    the page answers to keys, slider and mouse in headless Chromium, if there is one
"""
import html.parser
import itertools
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

SVG = "{http://www.w3.org/2000/svg}"
CASES = [("ring", 4, 2), ("concentric<2,2>", 8, 4), ("wallfacer<2>", 16, 4), ("double_ring<8>", 64, 8), ("ulysses", 64, 8)]


def expect(holds, what):
    if not holds:
        sys.exit(f"pictures.py: {what}")


def draw(program, directory, case):
    name, ranks, node = case
    to = pathlib.Path(directory) / ("drawn_" + re.sub(r"\W", "_", name) + f"_{ranks}")
    to.mkdir(parents=True, exist_ok=True)
    subprocess.run([program, name, str(ranks), str(node), str(to)], check=True, stdout=subprocess.DEVNULL)
    return to


def boxes(root):
    """The box of each label: about 0.58 of its height wide a character (DejaVu Sans; bold 0.66)."""
    for text in root.iter(SVG + "text"):
        kind = text.get("class", "")
        height = 11 if kind in ("note", "row", "column", "in", "rank", "tick") else 12
        width = (0.66 if kind == "title" else 0.58) * height * len(text.text or "")
        x, y = float(text.get("x")), float(text.get("y"))
        if kind in ("row", "rank"):
            x -= width
        elif kind in ("column", "in", "tick"):
            x -= width / 2
        yield text.text, x, y - 0.78 * height, x + width, y + 0.2 * height


def check_svg(path):
    root = ElementTree.parse(path).getroot()
    expect(root.tag == SVG + "svg", f"{path}: not an SVG file")
    _, _, width, height = map(float, root.get("viewBox").split())
    labels = list(boxes(root))
    expect(len(labels) > 4, f"{path}: has {len(labels)} labels")
    for text, left, top, right, bottom in labels:
        expect(left >= -2 and top >= 0 and right <= width + 2 and bottom <= height,
               f"{path}: {text!r} leaves the picture: {left:.0f}..{right:.0f} of {width:.0f}, {bottom:.0f} of {height:.0f}")
    for a, b in itertools.combinations(labels, 2):
        apart = a[3] <= b[1] or b[3] <= a[1] or a[4] <= b[2] or b[4] <= a[2]
        expect(apart, f"{path}: {a[0]!r} overlaps {b[0]!r}")
    style = root.find(SVG + "style").text
    expect("prefers-color-scheme: dark" in style, f"{path}: has no dark colours")
    return root


class page_reader(html.parser.HTMLParser):
    """What a page loads from elsewhere, and which elements are not closed."""

    def __init__(self):
        super().__init__()
        self.open, self.outside, self.ids = [], [], set()

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "input"):
            self.open.append(tag)
        for key, value in attributes:
            if key in ("src", "href"):
                self.outside.append(value)
            if key == "id":
                self.ids.add(value)

    def handle_endtag(self, tag):
        expect(self.open and self.open.pop() == tag, f"</{tag}> closes another element")


def text(program, directory):
    for case in CASES:
        name, ranks, node = case
        to = draw(program, directory, case)
        traffic, coverage = check_svg(to / "traffic.svg"), check_svg(to / "coverage.svg")
        check_svg(to / "timeline.svg")
        cells = [one for one in coverage.iter(SVG + "rect") if one.get("class") == "cell"]
        expect(len(cells) == ranks * ranks, f"{name}: {len(cells)} pairs are covered, expected {ranks * ranks}")
        colours = 1 if name == "ulysses" else ranks  # a slice of the heads is one rank's
        expect(len({one.get("fill") for one in cells}) == colours, f"{name}: ranks share colours")
        if name == "ring":
            hovers = [one.find(SVG + "title").text for one in traffic.iter(SVG + "rect") if one.find(SVG + "title") is not None]
            expect(hovers == [f"rank {r} to rank {(r + 1) % ranks}: 403 MB in 3 messages" for r in range(ranks)], f"ring: {hovers}")
        page = (to / "schedule.html").read_text()
        reader = page_reader()
        reader.feed(page)
        expect(reader.open == [], f"{name}: {reader.open} are not closed")
        expect(reader.outside == [], f"{name}: the page needs {reader.outside}")
        expect({"picture", "slider", "step", "hover", "messages"} <= reader.ids, f"{name}: the page has {reader.ids}")


# What a reader does: to the right twice, to the left, to the end, the slider, a message, a rank.
READER = """
<script>
const seen = [];
const note = () => seen.push($("step").textContent);
const press = key => { document.dispatchEvent(new KeyboardEvent("keydown", {key})); note(); };
note();
press("ArrowRight"); press("ArrowRight"); press("ArrowLeft"); press("End"); press("ArrowRight"); press("Home");
$("slider").value = 1; $("slider").dispatchEvent(new Event("input")); note();
document.querySelector(".message").dispatchEvent(new MouseEvent("mouseenter"));
seen.push($("hover").textContent);
document.querySelector("g[data-rank='2']").dispatchEvent(new MouseEvent("mouseenter"));
seen.push($("hover").textContent);
document.body.append(Object.assign(document.createElement("pre"), {id: "seen", textContent: seen.join("|")}));
</script>
"""


def browser(program, directory):
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        print("skipped: no chromium in PATH")
        return
    to = draw(program, directory, CASES[0])
    page = (to / "schedule.html").read_text()
    (to / "read.html").write_text(page.replace("</body>", READER + "</body>"))
    flags = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1150,820",
             f"--user-data-dir={to / 'profile'}"]
    address = (to / "read.html").resolve().as_uri()
    dom = subprocess.run([*flags, "--dump-dom", address], check=True, capture_output=True, text=True, timeout=120).stdout
    found = re.search(r'<pre id="seen">(.*?)</pre>', dom, re.S)
    expect(found, "the page's script has failed")
    seen = found.group(1).split("|")
    at = [re.match(r"step (\d+) of 0 to 3: (\d+) ranks compute, (\d+) messages posted, (.*)$", one) for one in seen[:8]]
    expect(all(at), f"steps read {seen}")
    expect([int(one.group(1)) for one in at] == [0, 1, 2, 1, 3, 3, 0, 1], f"keys lead to {seen}")
    expect([one.group(3) for one in at] == ["4", "4", "4", "4", "0", "0", "4", "4"], f"messages are {seen}")
    expect(at[0].group(4) == "537 MB", f"bytes are {seen[0]}")
    expect(seen[8] == "rank 0 to rank 1: key operands key 3\n134 MB, posted in step 1, complete before step 2, lane 0", seen[8])
    expect(seen[9] == "rank 2, step 1: queries 2 × keys 1", seen[9])
    shots = {}
    for scheme, number in (("light", "1"), ("dark", "0")):
        shot = to / f"page_{scheme}.png"
        shot.unlink(missing_ok=True)
        subprocess.run([*flags, f"--blink-settings=preferredColorScheme={number}", f"--screenshot={shot}",
                        (to / "schedule.html").resolve().as_uri() + "#step=1"], check=True, capture_output=True, timeout=120)
        shots[scheme] = shot.read_bytes()
        expect(shots[scheme][:8] == b"\x89PNG\r\n\x1a\n", "the screenshot is not a PNG file")
        expect(struct.unpack(">II", shots[scheme][16:24]) == (1150, 820), "the screenshot has another size")
        expect(len(shots[scheme]) > 10000, "the page is empty")
    expect(shots["light"] != shots["dark"], "the page has no dark colours")


if __name__ == "__main__":
    {"text": text, "browser": browser}[sys.argv[1]](*sys.argv[2:4])
