"use strict";
// Draws one chart for each metric, all runs over each other. `DATA` has the runs:
// {name, color, curves: {split: {metric: [[step, tokens, hours, value], ...]}}}.

const AXES = {step: 0, tokens: 1, hours: 2};
const WIDTH = 360, HEIGHT = 220, LEFT = 52, RIGHT = 8, TOP = 8, BOTTOM = 32;
const HELD_OUT = "#e07b00";  // of a single run
const state = {axis: "step", log: false, smooth: 0, shown: new Set(DATA.map((_, i) => i))};

function make(name, attributes = {}, parent = null) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (parent) parent.append(node);
  return node;
}

function format(value) {
  const size = Math.abs(value);
  if (size >= 1e9) return +(value / 1e9).toPrecision(3) + "G";
  if (size >= 1e6) return +(value / 1e6).toPrecision(3) + "M";
  if (size >= 1e4) return +(value / 1e3).toPrecision(3) + "k";
  if (size !== 0 && size < 1e-3) return value.toExponential(1);
  return String(+value.toPrecision(4));
}

// Round numbers between two limits; powers of ten on a logarithmic axis.
function ticks(low, high, log, count) {
  if (log) {
    const found = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++)
      for (const m of [1, 2, 5]) found.push(m * 10 ** e);
    const inside = found.filter((v) => v >= low && v <= high);
    if (inside.length >= 2) return inside.length > 6 ? inside.filter((_, i) => i % 3 === 0) : inside;
  }
  const rough = (high - low || Math.abs(high) || 1) / count;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * unit).find((s) => s >= rough);
  const found = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step) found.push(+v.toPrecision(12));
  return found;
}

// An exponential mean over points, corrected for its beginning.
function smoothed(points) {
  if (!state.smooth) return points;
  let mean = 0, weight = 0;
  return points.map(([x, y]) => {
    mean = state.smooth * mean + (1 - state.smooth) * y;
    weight = state.smooth * weight + (1 - state.smooth);
    return [x, mean / weight];
  });
}

function collect(chart) {
  const lines = [];
  DATA.forEach((run, i) => {
    if (!state.shown.has(i)) return;
    for (const split of chart.splits) {
      const found = (run.curves[split] || {})[chart.metric];
      if (!found) continue;
      const raw = found.map((p) => [p[AXES[state.axis]], p[3]]).filter((p) => !state.log || p[1] > 0);
      const color = DATA.length === 1 && split !== "train" ? HELD_OUT : run.color;
      if (raw.length) lines.push({run, split, color, points: split === "train" ? smoothed(raw) : raw});
    }
  });
  return lines;
}

function draw(chart) {
  const {node, tip} = chart, lines = collect(chart);
  node.querySelector("svg")?.remove();
  const svg = make("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": chart.metric});
  node.insertBefore(svg, tip);
  if (!lines.length) {
    make("text", {x: WIDTH / 2, y: HEIGHT / 2, "text-anchor": "middle"}, svg).textContent = "no values";
    return;
  }
  const all = lines.flatMap((line) => line.points);
  const xs = all.map((p) => p[0]), ys = all.map((p) => p[1]);
  const least = (v) => v.reduce((a, b) => Math.min(a, b)), most = (v) => v.reduce((a, b) => Math.max(a, b));
  let [x0, x1, y0, y1] = [Math.min(0, least(xs)), most(xs), least(ys), most(ys)];
  if (x1 === x0) x1 = x0 + 1;
  if (y1 === y0) { const pad = Math.abs(y1) * 0.05 || 1; y1 += pad; y0 = state.log ? y0 / 1.05 : y0 - pad; }
  const scale = state.log ? Math.log10 : (v) => v;
  const px = (x) => LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
  const py = (y) => HEIGHT - BOTTOM - (scale(y) - scale(y0)) / (scale(y1) - scale(y0)) * (HEIGHT - TOP - BOTTOM);
  for (const y of ticks(y0, y1, state.log, 5)) {
    make("line", {class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: py(y), y2: py(y)}, svg);
    make("text", {x: LEFT - 6, y: py(y) + 3.5, "text-anchor": "end"}, svg).textContent = format(y);
  }
  for (const x of ticks(x0, x1, false, 5))
    make("text", {x: px(x), y: HEIGHT - 18, "text-anchor": "middle"}, svg).textContent = format(x);
  make("text", {x: WIDTH - RIGHT, y: HEIGHT - 4, "text-anchor": "end"}, svg).textContent = state.axis;
  for (const {split, color, points} of lines) {
    const path = points.map((p, i) => `${i ? "L" : "M"}${px(p[0]).toFixed(1)} ${py(p[1]).toFixed(1)}`).join("");
    make("path", {d: path, fill: "none", stroke: color, "stroke-width": split === "train" ? 1.2 : 1.6,
      "stroke-opacity": split === "train" ? 0.75 : 1, "stroke-dasharray": split === "test" ? "4 3" : ""}, svg);
    if (split !== "train" || points.length === 1)
      for (const p of points) make("circle", {cx: px(p[0]), cy: py(p[1]), r: 2.2, fill: color}, svg);
  }
  const cursor = make("line", {class: "grid", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden"}, svg);
  svg.onpointermove = (event) => {
    const box = svg.getBoundingClientRect();
    const x = x0 + ((event.clientX - box.left) / box.width * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT) * (x1 - x0);
    const nearest = (points) => points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
    const found = lines.map((line) => [line, nearest(line.points)]);
    tip.replaceChildren(...found.map(([{run, split, color}, p]) => {
      const row = document.createElement("div"), swatch = document.createElement("span");
      swatch.className = "swatch"; swatch.style.background = color;
      row.append(swatch, ` ${DATA.length > 1 ? run.name + " " : ""}${split} ${format(p[1])} at ${format(p[0])}`);
      return row;
    }));
    const at = px(found[0][1][0]);
    for (const key of ["x1", "x2"]) cursor.setAttribute(key, at);
    cursor.setAttribute("visibility", "visible");
    tip.style.display = "block";
    const left = event.clientX - node.getBoundingClientRect().left;
    tip.style.left = `${Math.min(left + 14, node.clientWidth - tip.offsetWidth - 4)}px`;
    tip.style.top = "2.2rem";
  };
  svg.onpointerleave = () => { tip.style.display = "none"; cursor.setAttribute("visibility", "hidden"); };
}

const charts = [...document.querySelectorAll(".chart")].map((node) => {
  const tip = document.createElement("div");
  tip.className = "tip";
  node.append(tip);
  return {node, tip, metric: node.dataset.metric, splits: node.dataset.splits.split(" ")};
});
const drawAll = () => charts.forEach(draw);
document.querySelector("#axis").onchange = (event) => { state.axis = event.target.value; drawAll(); };
document.querySelector("#log").onchange = (event) => { state.log = event.target.checked; drawAll(); };
document.querySelector("#smooth").oninput = (event) => { state.smooth = +event.target.value; drawAll(); };
for (const box of document.querySelectorAll("[data-run]"))
  box.onchange = () => { state.shown[box.checked ? "add" : "delete"](+box.dataset.run); drawAll(); };
drawAll();
