// Lines over time and histograms, as SVG. The geometry is apart from the drawing, so that it can be tested without a page.

import { duration, shortNumber, svg } from "./dom.js";

/** 0 and multiples of a round number until `top` is reached, no more than most + 1 of them. */
export function niceTicks(top, most = 5) {
  if (!(top > 0)) return [0, 1];
  const power = 10 ** Math.floor(Math.log10(top / most) + 1e-12);
  const factor = [1, 2, 2.5, 5, 10, 20].find((each) => each * power * most >= top * (1 - 1e-9));
  const step = factor * power;
  const ticks = [0];
  while (ticks[ticks.length - 1] < top * (1 - 1e-9)) ticks.push(step * ticks.length);
  return ticks;
}

/** A line's points between its gaps: a list of lists of [x, y]. `most` is the value at the top. */
export function linePieces(values, box, most) {
  const pieces = [[]];
  const step = (box.right - box.left) / Math.max(values.length - 1, 1);
  values.forEach((value, i) => {
    if (value === null) pieces.push([]);
    else pieces[pieces.length - 1].push([box.left + i * step, box.bottom - (value / most) * (box.bottom - box.top)]);
  });
  return pieces.filter((piece) => piece.length > 1);
}

/** Values that would dwarf the other lines, above `times` their peak, are left out. */
export function within(values, lines, times = 3) {
  const peak = Math.max(0, ...lines.flat().filter((value) => value !== null));
  return values.map((value) => (value !== null && value <= times * peak ? value : null));
}

/** lines: {name, role, values, dash}, over `seconds` up to `end`. Draws into the svg element `picture`, which it empties. */
export function lineChart(picture, size, title, lines, seconds, end) {
  const box = { left: 44, top: 24, right: size.width - 2, bottom: size.height - 20 };
  const known = lines.flatMap((line) => line.values.filter((value) => value !== null));
  const ticks = niceTicks(Math.max(0, ...known));
  const most = ticks[ticks.length - 1];
  const parts = [svg("text", { x: 0, y: 11, class: "vn-title" }, title), ...legend(box.right, lines)];
  for (const tick of ticks) {
    const y = box.bottom - (tick / most) * (box.bottom - box.top);
    parts.push(svg("line", { x1: box.left, x2: box.right, y1: y, y2: y, class: "vn-grid" }));
    parts.push(svg("text", { x: box.left - 6, y: y + 4, class: "vn-tick", "text-anchor": "end" }, shortNumber(tick)));
  }
  for (const line of lines) {
    for (const piece of linePieces(line.values, box, most)) {
      const points = piece.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
      parts.push(svg("polyline", { points, class: `vn-line vn-${line.role}`, "stroke-dasharray": line.dash }));
    }
  }
  if (!seconds) parts.push(svg("text", { x: (box.left + box.right) / 2, y: (box.top + box.bottom) / 2, class: "vn-tick", "text-anchor": "middle" }, "no step yet"));
  for (const [share, anchor] of seconds ? [[0, "start"], [0.5, "middle"], [1, "end"]] : []) {
    const label = share === 1 ? end : `−${shortNumber((1 - share) * seconds)} s`;
    const x = box.left + share * (box.right - box.left);
    parts.push(svg("text", { x, y: box.bottom + 14, class: "vn-tick", "text-anchor": anchor }, label));
  }
  begin(picture, size, title, parts);
}

function legend(right, lines) {
  const parts = [];
  for (const line of [...lines].reverse()) {
    parts.push(svg("text", { x: right, y: 11, class: "vn-key", "text-anchor": "end" }, line.name));
    right -= widthOf(line.name) + 6;
    const ends = { x1: right - 18, x2: right, y1: 7, y2: 7 };
    parts.push(svg("line", { ...ends, class: `vn-line vn-${line.role}`, "stroke-dasharray": line.dash }));
    right -= 32;
  }
  return parts;
}

/** Of a word in a legend; fonts differ. */
function widthOf(words) {
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = '11px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'; // panel.css
  return pen.measureText(words).width;
}

/** Bars of a histogram: {x, y, width, height, label}, the fullest as high as the box. */
export function bars(data, box) {
  const step = (box.right - box.left) / Math.max(data.counts.length, 1);
  const most = Math.max(1, ...data.counts);
  return data.counts.map((count, i) => {
    const height = (count / most) * (box.bottom - box.top);
    const label = `${duration(data.edges[i])} to ${duration(data.edges[i + 1])}: ${count}`;
    return { x: box.left + i * step + 0.5, y: box.bottom - height, width: Math.max(step - 1, 0.5), height, label };
  });
}

/** data: edges in seconds, counts, p50, p90, p99. */
export function histogramChart(picture, size, title, role, data) {
  const box = { left: 0, top: 36, right: size.width, bottom: size.height - 18 };
  const marks = ["p50", "p90", "p99"].map((name) => `${name} ${duration(data[name])}`).join("   ");
  const parts = [
    svg("text", { x: 0, y: 11, class: "vn-title" }, title),
    svg("text", { x: 0, y: 27, class: "vn-key" }, data.n ? marks : "none yet"),
    svg("line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, class: "vn-grid" }),
  ];
  for (const { label, ...bar } of bars(data, box)) {
    parts.push(svg("rect", { ...bar, class: `vn-bar vn-${role}` }, svg("title", {}, label)));
  }
  if (data.n) {
    const ends = [data.edges[0], data.edges[data.edges.length - 1]];
    parts.push(svg("text", { x: 0, y: box.bottom + 14, class: "vn-tick" }, duration(ends[0])));
    const right = { x: box.right, y: box.bottom + 14, class: "vn-tick", "text-anchor": "end" };
    parts.push(svg("text", right, duration(ends[1])));
  }
  begin(picture, size, title, parts);
}

function begin(picture, size, title, parts) {
  picture.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", title);
  picture.replaceChildren(...parts);
}
