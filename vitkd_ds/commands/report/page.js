// Script of a report: draws the curves as SVG from the JSON in the page, and adds tooltips, filters and sorting. It uses
// no library, so a report is small and has no dependency to maintain.
"use strict";

const { runs, charts, marks } = JSON.parse(document.getElementById("data").textContent);
const HEIGHT = 190, PLOT = { left: 50, right: 10, top: 8, bottom: 34 };
const shown = new Set(runs.map((_, i) => i));

const epochOf = (run, step) => step / runs[run].steps_per_epoch;

function svg(name, attributes, parent, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return parent.appendChild(node);
}

function html(name, className, parent, text) {
  const node = document.createElement(name);
  node.className = className;
  if (text !== undefined) node.textContent = text; // never as markup: it may come from a run
  return parent.appendChild(node);
}

// About `count` round numbers from low to high.
function ticks(low, high, count) {
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

// Log axis: 1, 2 and 5 times each power of ten, or only the powers if those would be too many.
function logTicks(low, high) {
  const found = [], factors = Math.log10(high / low) > 2.5 ? [1] : [1, 2, 5];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const factor of factors) found.push(factor * 10 ** power);
  }
  const inside = found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
  return inside.length > 1 ? inside : ticks(low, high, 3).filter((value) => value > 0);
}

function short(value) {
  const size = Math.abs(value);
  if (size && (size < 0.001 || size >= 1e6)) return value.toExponential(1).replace(".0e", "e").replace("e+", "e");
  return String(Number(value.toPrecision(4)));
}

// Common end of all charts, so that their epochs are aligned.
function lastEpoch() {
  const ends = charts.flatMap(({ series }) => series.filter((one) => shown.has(one.run)))
    .map((one) => epochOf(one.run, one.steps[one.steps.length - 1]));
  return Math.max(0, ...ends);
}

// Scales from epochs and values to pixels, for a chart's visible curves.
function scales(chart, visible, width) {
  let low = Infinity, high = -Infinity;
  for (const one of visible) {
    for (const value of one.values) {
      if (!chart.is_log || value > 0) [low, high] = [Math.min(low, value), Math.max(high, value)];
    }
  }
  if (low > high) [low, high] = chart.is_log ? [0.1, 1] : [0, 1];
  // Include the ends of the healthy range, unless they are far below the values.
  for (const end of chart.zone || []) {
    if (end !== null && end > low / 20) [low, high] = [Math.min(low, end), Math.max(high, end)];
  }
  if (chart.is_log) [low, high] = [low / 1.15, high * 1.15];
  else if (low === high) [low, high] = [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  else [low, high] = [low >= 0 && low < 0.35 * high ? 0 : low - 0.06 * (high - low), high + 0.06 * (high - low)];
  const of = chart.is_log ? Math.log : Number, last = lastEpoch();
  const span = { x: width - PLOT.left - PLOT.right, y: HEIGHT - PLOT.top - PLOT.bottom };
  return {
    low, high, last,
    x: (epoch) => PLOT.left + (last ? epoch / last : 0) * span.x,
    y: (value) => PLOT.top + (1 - (of(value) - of(low)) / (of(high) - of(low))) * span.y,
  };
}

function draw(figure) {
  const chart = charts[figure.dataset.chart], picture = figure.querySelector("svg"), width = picture.clientWidth;
  if (!width) return;
  picture.replaceChildren();
  picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  const visible = chart.series.filter((one) => shown.has(one.run));
  const { low, high, last, x, y } = scales(chart, visible, width), foot = HEIGHT - PLOT.bottom;
  if (chart.zone) {
    const top = chart.zone[1] === null ? PLOT.top : Math.max(PLOT.top, y(chart.zone[1]));
    const bottom = chart.zone[0] === null ? foot : Math.min(foot, y(chart.zone[0]));
    const span = { width: width - PLOT.left - PLOT.right, height: Math.max(0, bottom - top) };
    svg("rect", { class: "zone", x: PLOT.left, y: top, ...span }, picture);
  }
  for (const value of chart.is_log ? logTicks(low, high) : ticks(low, high, 5)) {
    svg("line", { class: "grid", x1: PLOT.left, x2: width - PLOT.right, y1: y(value), y2: y(value) }, picture);
    svg("text", { x: PLOT.left - 6, y: y(value) + 4, "text-anchor": "end" }, picture, short(value));
  }
  for (const epoch of ticks(0, last, width > 420 ? 6 : 4)) {
    svg("text", { x: x(epoch), y: foot + 16, "text-anchor": "middle" }, picture, short(epoch));
  }
  svg("text", { x: width - PLOT.right, y: HEIGHT - 4, "text-anchor": "end" }, picture, "epochs");
  if (shown.has(0)) drawMarks(picture, x, foot, last);
  chart.series.forEach((one, number) => shown.has(one.run) && drawCurve(picture, chart, one, number, x, y));
  picture.querySelectorAll(".pale").forEach((curve) => picture.querySelector(".curve").before(curve));
  svg("g", { class: "hover" }, picture);
}

// Events of the first run.
function drawMarks(picture, x, foot, last) {
  for (const mark of marks) {
    const at = x(epochOf(0, mark.step));
    if (epochOf(0, mark.step) > last) continue;
    const shape = {
      restart: ["line", { x1: at, x2: at, y1: PLOT.top, y2: foot }],
      skipped: ["line", { x1: at, x2: at, y1: foot - 9, y2: foot }],
      checkpoint: ["path", { d: `M${at - 4} ${foot + 1}h8l-4 -7z` }],
    }[mark.kind];
    svg("title", {}, svg(shape[0], { class: mark.kind, ...shape[1] }, picture), mark.text);
  }
}

function strokeOf(chart, one, number) {
  return chart.key === "shares" ? `var(--c${(number + 2) % 8})` : runs[one.run].colour;
}

function drawCurve(picture, chart, one, number, x, y) {
  const stroke = strokeOf(chart, one, number), dash = one.dash ? "5 4" : runs[one.run].is_dotted ? "2 2" : "none";
  const place = (steps, values) => steps.map((step, i) => [step, values[i]])
    .filter(([, value]) => !chart.is_log || value > 0)
    .map(([step, value]) => [x(epochOf(one.run, step)), y(value)]);
  const line = (places, name) => {
    const path = places.map(([left, top]) => `${left.toFixed(1)} ${top.toFixed(1)}`).join("L");
    svg("path", { class: name, d: `M${path}`, style: `stroke:${stroke};stroke-dasharray:${dash}` }, picture);
  };
  const points = place(one.steps, one.values);
  line(points, one.means.length ? "curve pale" : "curve");
  if (one.means.length) line(place(one.mean_steps, one.means), "curve");
  if (points.length > 30 || one.dash) return;
  for (const [cx, cy] of points) svg("circle", { cx, cy, r: 2.2, style: `fill:${stroke}` }, picture);
}

// Index of the point nearest to an epoch, by bisection.
function nearest(one, epoch) {
  let low = 0, high = one.steps.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (epochOf(one.run, one.steps[middle]) < epoch) low = middle; else high = middle;
  }
  const distance = (i) => Math.abs(epochOf(one.run, one.steps[i]) - epoch);
  return distance(low) <= distance(high) ? low : high;
}

function hover(figure, event) {
  const chart = charts[figure.dataset.chart], picture = figure.querySelector("svg");
  const box = picture.getBoundingClientRect();
  const visible = [...chart.series.entries()].filter(([, one]) => shown.has(one.run));
  const layer = picture.querySelector(".hover"), tip = figure.querySelector(".tip");
  if (!visible.length || !layer) return;
  const { last, x, y } = scales(chart, visible.map(([, one]) => one), box.width);
  const part = (event.clientX - box.left - PLOT.left) / (box.width - PLOT.left - PLOT.right);
  const epoch = Math.min(1, Math.max(0, part)) * last;
  layer.replaceChildren();
  tip.replaceChildren();
  // All rows show values at the step nearest to the pointer. A curve without a point there shows its own nearest step.
  const found = visible.map(([number, one]) => ({ number, one, i: nearest(one, epoch) }));
  const at = ({ one, i }) => epochOf(one.run, one.steps[i]);
  const closest = found.reduce((best, each) => (Math.abs(at(each) - epoch) < Math.abs(at(best) - epoch) ? each : best));
  const step = closest.one.steps[closest.i];
  const left = x(at(closest));
  svg("line", { class: "cross", x1: left, x2: left, y1: PLOT.top, y2: HEIGHT - PLOT.bottom }, layer);
  html("div", "soft", tip, `step ${step}, epoch ${Number(at(closest).toFixed(2))}`);
  for (const { number, one, i } of found) {
    const row = html("div", "", tip), stroke = strokeOf(chart, one, number), value = one.values[i];
    html("span", "swatch", row).style.setProperty("--colour", stroke);
    html("span", "", row, one.steps[i] === step ? one.name : `${one.name}, step ${one.steps[i]}`);
    html("b", "", row, String(value));
    const centre = { cx: x(at({ one, i })), cy: y(value) };
    if (!chart.is_log || value > 0) svg("circle", { ...centre, r: 3.5, style: `fill:${stroke}` }, layer);
  }
  tip.hidden = false;
  const place = event.clientX - figure.getBoundingClientRect().left, room = figure.clientWidth - tip.offsetWidth - 6;
  tip.style.left = `${Math.max(6, Math.min(place + 14, room))}px`;
  tip.style.top = `${HEIGHT + 24}px`;
}

function leave(figure) {
  figure.querySelector(".tip").hidden = true;
  figure.querySelector(".hover")?.replaceChildren();
}

for (const figure of document.querySelectorAll(".chart")) {
  const picture = figure.querySelector("svg");
  picture.addEventListener("pointermove", (event) => hover(figure, event));
  picture.addEventListener("pointerdown", (event) => hover(figure, event));
  picture.addEventListener("pointerleave", () => leave(figure));
  new ResizeObserver(() => draw(figure)).observe(picture);
}

for (const box of document.querySelectorAll("input[data-run]")) {
  box.addEventListener("change", () => {
    shown[box.checked ? "add" : "delete"](Number(box.dataset.run));
    document.querySelectorAll(".chart").forEach((figure) => { leave(figure); draw(figure); });
  });
}

for (const field of document.querySelectorAll("input[data-filter]")) {
  const rows = [...document.querySelectorAll(`#${field.dataset.filter} tbody tr`)];
  field.addEventListener("input", () => {
    const wanted = field.value.trim().toLowerCase();
    for (const row of rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
  });
}

for (const choice of document.querySelectorAll("input[data-outcome]")) {
  choice.addEventListener("change", () => {
    for (const image of document.querySelectorAll(".images figure")) {
      image.hidden = choice.dataset.outcome !== "all" && image.dataset.outcome !== choice.dataset.outcome;
    }
  });
}

// Mark tables that are too wide, and make scrollable ones reachable by keyboard.
for (const place of document.querySelectorAll(".scroll")) {
  new ResizeObserver(() => {
    const isWide = place.scrollWidth > place.clientWidth, isHigh = place.scrollHeight > place.clientHeight;
    place.classList.toggle("wide", isWide);
    if (isWide || isHigh) place.tabIndex = 0; else place.removeAttribute("tabindex");
  }).observe(place);
}

// Table of a chart's values, as an alternative to the pointer; built when it is first opened.
for (const details of document.querySelectorAll(".chart details")) {
  details.addEventListener("toggle", () => {
    const { series } = charts[details.parentNode.dataset.chart];
    const table = html("table", "", details.querySelector(".scroll")), head = table.createTHead().insertRow();
    for (const name of ["step", ...series.map((one) => one.name)]) html("th", "", head, name).scope = "col";
    const body = table.createTBody(), steps = [...new Set(series.flatMap((one) => one.steps))];
    const valuesAt = series.map((one) => new Map(one.steps.map((step, i) => [step, one.values[i]])));
    for (const step of steps.sort((one, other) => one - other)) {
      const row = body.insertRow(), values = valuesAt.map((each) => each.get(step) ?? "");
      for (const value of [step, ...values]) html("td", "", row, String(value));
    }
  }, { once: true });
}

// Clicking a heading sorts by its column, and clicking again reverses the order. Non-numbers count as lowest.
for (const head of document.querySelectorAll("table.sorts th")) {
  const button = html("button", "", head);
  button.append(...[...head.childNodes].filter((node) => node !== button));
  head.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0], column = head.cellIndex;
    const descends = head.getAttribute("aria-sort") !== "descending" && (column > 0 || head.ariaSort === "ascending");
    head.parentNode.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", descends ? "descending" : "ascending");
    const number = (row) => parseFloat(row.cells[column].textContent.replace("\u2212", "-").replace(/[+,]/g, ""));
    const rank = (row) => (isNaN(number(row)) ? -Number.MAX_VALUE : number(row));
    const compare = column === 0
      ? (one, other) => one.cells[0].textContent.localeCompare(other.cells[0].textContent)
      : (one, other) => rank(one) - rank(other);
    body.append(...[...body.rows].sort((one, other) => (descends ? -1 : 1) * compare(one, other)));
  });
}
