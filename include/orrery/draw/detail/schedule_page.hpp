// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

namespace orrery::detail {

/// The page of `schedule_html` before its data: a style, the elements, and a script that draws `schedule`.
inline constexpr const char* schedule_page_head = R"page(<style>
:root { --ink: #1f2328; --paper: #ffffff; --soft: #eaeef2; --line: #8c959f; --idle: #d1d9e0; --on: #ffffff;
  --tile: #1f6fb5; --query: #9457b8; --key: #2f8f4e; --partial: #c9700c; --both: #c0396b; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --paper: #0d1117; --soft: #161b22; --line: #6e7681; --idle: #30363d; --on: #ffffff;
    --tile: #2f81cf; --query: #b07fd8; --key: #46b06a; --partial: #e08e2b; --both: #e0679a; }
}
body { font: 14px "DejaVu Sans", Verdana, sans-serif; color: var(--ink); background: var(--paper); margin: 16px; }
h1 { font-size: 18px; margin: 0 0 8px; }
#controls { display: flex; gap: 8px; align-items: center; flex-wrap: wrap; margin-bottom: 6px; }
#slider { width: 280px; }
button { font: inherit; color: var(--ink); background: var(--soft); border: 1px solid var(--line);
  border-radius: 4px; padding: 2px 10px; }
#main { display: flex; gap: 20px; margin-top: 10px; flex-wrap: wrap; align-items: flex-start; }
#picture { width: 640px; max-width: 100%; height: auto; }
#side { width: 400px; max-width: 100%; }
#hover { min-height: 5.2em; background: var(--soft); padding: 8px; border-radius: 4px; white-space: pre-line; }
#messages { margin-top: 10px; max-height: 430px; overflow-y: auto; font-size: 12px; line-height: 1.5; }
#messages div { border-left: 4px solid; padding-left: 6px; margin-bottom: 2px; overflow-wrap: anywhere; }
.legend span { display: inline-block; margin-right: 14px; }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 5px; }
svg text { font: 12px "DejaVu Sans", Verdana, sans-serif; fill: var(--ink); text-anchor: middle; }
svg .on { fill: var(--on); }
svg .rank { stroke: var(--line); }
svg .node { fill: none; stroke: var(--line); stroke-width: 3; }
svg .message { fill: none; stroke-width: 2; }
svg .message:hover, svg .message.same { stroke-width: 5; }
svg .late { stroke-dasharray: 6 4; }
</style>
</head>
<body>
<h1 id="title"></h1>
<div id="controls">
<button id="back" aria-label="previous step">&#9664;</button>
<input id="slider" type="range" min="0" value="0" aria-label="step">
<button id="on" aria-label="next step">&#9654;</button>
<span id="step" aria-live="polite"></span>
</div>
<div class="legend">
<span><i style="background:var(--tile)"></i>computes</span><span><i style="background:var(--idle)"></i>does not</span>
<span><i style="background:var(--query)"></i>query operands</span><span><i style="background:var(--key)"></i>key operands</span>
<span><i style="background:var(--both)"></i>both</span>
<span><i style="background:var(--partial)"></i>partials</span><span>dashed: posted in a step before</span>
</div>
<div id="main">
<svg id="picture" viewBox="0 0 640 640" role="img"></svg>
<div id="side"><div id="hover"></div><div id="messages"></div></div>
</div>
<script>
)page";

/// The page after its data. `schedule.ranks[r]` holds the steps of rank r as {q, k}, the texts of its tile, and its
/// messages as [posted, complete before, to, lane, kind, text of blocks, bytes].
inline constexpr const char* schedule_page_script = R"page(
const $ = id => document.getElementById(id), world = schedule.ranks.length;
const colours = ["var(--query)", "var(--key)", "var(--partial)", "var(--both)"];
const kinds = ["query operands", "key operands", "partials", "operands"];
const make = (name, attributes, text) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  return made;
};
const amount = bytes => {
  const units = ["B", "KB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  while (bytes >= 999.5 && unit < 5) { bytes /= 1000; ++unit; }
  return (unit === 0 || bytes >= 99.95 ? bytes.toFixed(0) : bytes.toFixed(bytes < 9.995 ? 2 : 1)) + " " + units[unit];
};
// Ranks on a circle, the first on top.
const radius = world <= 8 ? 200 : 240, disc = Math.min(22, Math.max(5, Math.PI * radius / Math.max(world, 1) - 2));
const at = (rank, r) => {
  const angle = 2 * Math.PI * rank / world - Math.PI / 2;
  return [320 + r * Math.cos(angle), 320 + r * Math.sin(angle)];
};
const f = x => x.toFixed(1);
const steps = Math.max(1, ...schedule.ranks.map(one => one.steps.length));
const idle = "Point at a rank or a message.\nArrow keys, Home, End or the slider choose the step.";
let now = 0;
const tell = text => { $("hover").textContent = text; };
const message_text = (rank, m) => "rank " + rank + " to rank " + m[2] + ": " + kinds[m[4]] + " " + m[5] + "\n" +
  amount(m[6]) + ", posted in step " + m[0] + ", complete before step " + m[1] + ", lane " + m[3];
const tile_text = (rank, step) => {
  const own = schedule.ranks[rank].steps[step];
  return own && own.q ? "queries " + own.q + " \u00d7 keys " + own.k : "computes nothing";
};
const hovered = (element, text) => {
  element.addEventListener("mouseenter", () => tell(text));
  element.addEventListener("mouseleave", () => tell(idle));
};
const draw = () => {
  const picture = $("picture"), list = $("messages");
  picture.replaceChildren();
  list.replaceChildren();
  tell(idle);
  const node = schedule.ranks_per_node;
  if (node > 1 && node < world) {
    for (let first = 0; first < world; first += node) {
      const a = at(first - 0.36, radius + disc + 8), b = at(first + node - 1 + 0.36, radius + disc + 8);
      picture.append(make("path", {class: "node", d: "M" + f(a[0]) + " " + f(a[1]) + "A" + f(radius + disc + 8) + " " +
        f(radius + disc + 8) + " 0 " + (node / world > 0.5 ? 1 : 0) + " 1 " + f(b[0]) + " " + f(b[1])}));
    }
  }
  let posted = 0, bytes = 0, computing = 0;
  const shown = [];
  schedule.ranks.forEach((one, rank) => one.messages.forEach(m => {
    if (m[0] > now || now >= m[1]) return;
    if (m[0] === now) { ++posted; bytes += m[6]; }
    shown.push([rank, m]);
  }));
  const faint = shown.length > 2000 ? 0.05 : shown.length > 400 ? 0.25 : shown.length > 100 ? 0.55 : 0.9;
  for (const [rank, m] of shown) {
    const a = at(rank, radius - disc - 2), b = at(m[2], radius - disc - 2);
    // Bent towards the centre, the two directions apart.
    const mid = [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
    const aside = [(b[1] - a[1]) * 0.08, (a[0] - b[0]) * 0.08];
    const c = [mid[0] + (320 - mid[0]) * 0.35 + aside[0], mid[1] + (320 - mid[1]) * 0.35 + aside[1]];
    const d = [b[0] - c[0], b[1] - c[1]], length = Math.hypot(...d) || 1, u = [d[0] / length, d[1] / length];
    const head = Math.min(9, disc);
    const path = make("path", {class: "message" + (m[0] < now ? " late" : ""), stroke: colours[m[4]],
      "stroke-opacity": faint, d: "M" + f(a[0]) + " " + f(a[1]) + "Q" + f(c[0]) + " " + f(c[1]) + " " + f(b[0]) + " " +
      f(b[1]) + "M" + f(b[0] - head * (u[0] - 0.5 * u[1])) + " " + f(b[1] - head * (u[1] + 0.5 * u[0])) + "L" +
      f(b[0]) + " " + f(b[1]) + "L" + f(b[0] - head * (u[0] + 0.5 * u[1])) + " " + f(b[1] - head * (u[1] - 0.5 * u[0]))});
    const text = message_text(rank, m);
    path.append(make("title", {}, text));
    hovered(path, text);
    picture.append(path);
    if (list.childElementCount < 256) {
      const line = document.createElement("div");
      line.style.borderColor = colours[m[4]];
      line.textContent = rank + " \u2192 " + m[2] + ": " + m[5] + ", " + amount(m[6]);
      line.addEventListener("mouseenter", () => { path.classList.add("same"); tell(text); });
      line.addEventListener("mouseleave", () => { path.classList.remove("same"); tell(idle); });
      list.append(line);
    }
  }
  if (shown.length > 256) list.append("and " + (shown.length - 256) + " more");
  for (let rank = 0; rank < world; ++rank) {
    const own = schedule.ranks[rank].steps[now], active = Boolean(own && own.q);
    if (active) ++computing;
    const c = at(rank, radius), group = make("g", {"data-rank": rank});
    group.append(make("circle", {class: "rank", cx: f(c[0]), cy: f(c[1]), r: f(disc),
      fill: active ? "var(--tile)" : "var(--idle)"}));
    if (disc >= 9) {
      group.append(make("text", {x: f(c[0]), y: f(c[1] + 4), class: active ? "on" : ""}, rank));
    } else if (rank % Math.ceil(18 / disc / 2) === 0) {
      const l = at(rank, radius + disc + 20);
      group.append(make("text", {x: f(l[0]), y: f(l[1] + 4)}, rank));
    }
    if (active && world <= 8) {
      const l = at(rank, radius + disc + 48);
      group.append(make("text", {x: f(l[0]), y: f(l[1] - 3)}, "q " + own.q));
      group.append(make("text", {x: f(l[0]), y: f(l[1] + 12)}, "k " + own.k));
    }
    const text = "rank " + rank + ", step " + now + ": " + tile_text(rank, now);
    group.append(make("title", {}, text));
    hovered(group, text);
    picture.append(group);
  }
  $("slider").value = now;
  $("step").textContent = "step " + now + " of 0 to " + (steps - 1) + ": " + computing + " ranks compute, " + posted +
    " messages posted, " + amount(bytes);
};
const go = step => { now = Math.min(steps - 1, Math.max(0, step)); draw(); };
$("title").textContent = schedule.title;
$("slider").max = steps - 1;
$("slider").addEventListener("input", () => go(Number($("slider").value)));
$("back").addEventListener("click", () => go(now - 1));
$("on").addEventListener("click", () => go(now + 1));
document.addEventListener("keydown", event => {
  const to = {ArrowRight: now + 1, ArrowUp: now + 1, ArrowLeft: now - 1, ArrowDown: now - 1, Home: 0, End: steps - 1};
  if (!(event.key in to)) return;
  event.preventDefault();
  go(to[event.key]);
});
const from_address = () => { const m = /step=(\d+)/.exec(location.hash); return m ? Number(m[1]) : 0; };
addEventListener("hashchange", () => go(from_address()));
go(from_address());
</script>
</body>
</html>
)page";

}  // namespace orrery::detail
