// Schedule: a lane a sequence, a column a step; below, the token budget and the phases of each step.

import { html, numbersTable, shortNumber, svg } from "./dom.js";
import { panel } from "./panel.js";

const WIDTH = 760;
const LABELS = 128;
const LANE = 16;
const APART = 110; // pixels from which the first and the last step have a label each
const LEAST = 2; // height of a bar that stands for few tokens of many
const KINDS = { prefill: "series1", decode: "series0", cached: "series2", waiting: "series7", preempted: "alert", finished: "text" };
const PHASES = { schedule: "series3", prepare: "series4", forward: "series7", sample: "series5", update: "series6" };
const REASONS = {
  budget: "the step's token budget is spent",
  rows: "as many run as may",
  blocks: "too few KV blocks are free",
  leader: "a sibling computes their common prompt",
  new: "came during the step",
};

/** A span [kind, first, last, tokens, note] in words. */
export function spanWords([kind, first, last, tokens, note]) {
  const steps = first === last ? `step ${first}` : `steps ${first} to ${last}`;
  const words = {
    waiting: `waits: ${REASONS[note] ?? note}`,
    cached: `${tokens} tokens found in the prefix cache`,
    prefill: `prefill of ${tokens} tokens`,
    decode: tokens > 1 ? `decodes ${tokens} tokens` : "decodes a token",
    preempted: `preempted, ${tokens} computed tokens thrown away`,
    finished: `finished (${note}) after ${tokens} tokens`,
  };
  return `${steps}: ${words[kind]}`;
}

/** What a sequence did in one step, in words. */
export function cellWords(lane, step) {
  const spans = lane.spans.filter(([, first, last]) => first <= step && step <= last);
  if (!spans.length) return `sequence ${lane.name}, step ${step}: not there`;
  const parts = spans.map(([kind, , , tokens, note]) => spanWords([kind, step, step, kind === "decode" ? 1 : tokens, note]));
  return `sequence ${lane.name}, ${parts.join("; ").replaceAll(`; step ${step}:`, ";")}`;
}

/** The column under a point of the picture, and the lane: null outside. */
export function cellAt(state, x, y) {
  const width = columnWidth(state);
  const column = Math.floor((x - LABELS) / width);
  const lane = Math.floor(y / LANE);
  if (column < 0 || column >= state.steps.length || lane < 0 || lane >= state.lanes.length) return null;
  return { column, lane };
}

function columnWidth(state) {
  return (WIDTH - LABELS - 4) / state.columns;
}

/** Builds the view inside `box`; call what it returns with each new state. */
export function scheduleView(box) {
  const lanes = svg("svg", { tabindex: 0, class: "vn-lanes", role: "application" });
  const words = html("div", { class: "vn-words", role: "status", "aria-live": "polite" });
  const scroll = html("div", { class: "vn-scroll" }, lanes);
  const budget = svg("svg", {});
  const phases = svg("svg", {});
  box.append(legend(KINDS), scroll, words, budget, phases, legend(PHASES));
  let state = null;
  let cursor = null;

  const say = () => {
    const lane = cursor && state.lanes[cursor.lane];
    const step = cursor && state.steps[cursor.column];
    words.textContent = lane && step !== undefined ? cellWords(lane, step) : "Point at a cell, or use the arrow keys.";
  };
  lanes.addEventListener("pointermove", (event) => {
    const scale = WIDTH / lanes.getBoundingClientRect().width;
    cursor = state && cellAt(state, event.offsetX * scale, event.offsetY * scale);
    say();
  });
  lanes.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!move || !state?.steps.length) return;
    event.preventDefault();
    event.stopPropagation(); // else JupyterLab moves to another cell
    const from = cursor ?? { lane: 0, column: state.steps.length - 1 };
    cursor = {
      lane: Math.min(Math.max(from.lane + (cursor ? move[0] : 0), 0), state.lanes.length - 1),
      column: Math.min(Math.max(from.column + (cursor ? move[1] : 0), 0), state.steps.length - 1),
    };
    drawLanes(lanes, state, cursor);
    say();
  });

  return (next) => {
    state = next;
    drawLanes(lanes, state, document.activeElement === lanes ? cursor : null);
    drawBudget(budget, state);
    drawPhases(phases, state);
    say();
    numbersTable(box, "In words", ["sequence", "what happened"], () =>
      state.lanes.map((lane) => [lane.name, lane.spans.map(spanWords).join("; ")]),
    );
  };
}

function legend(roles) {
  const keys = Object.entries(roles).map(([name, role]) =>
    html("span", {}, html("i", { class: `vn-swatch vn-${role} vn-kind-${name}` }), name),
  );
  return html("div", { class: "vn-legend" }, ...keys);
}

function drawLanes(picture, state, cursor) {
  const height = Math.max(state.lanes.length, 1) * LANE;
  const width = columnWidth(state);
  const left = (step) => LABELS + (step - state.steps[0]) * width;
  const parts = state.lanes.flatMap((lane, i) => [
    svg("text", { x: 0, y: i * LANE + 12, class: "vn-lane" }, lane.name),
    ...lane.spans.flatMap((span) => spanShapes(span, left, width, i * LANE + 1)),
  ]);
  if (cursor) {
    const at = { x: LABELS + cursor.column * width, y: cursor.lane * LANE };
    parts.push(svg("rect", { ...at, width, height: LANE, class: "vn-cursor" }));
  }
  if (!state.lanes.length) parts.push(svg("text", { x: 0, y: 12, class: "vn-muted" }, "No step has been made yet."));
  if (state.hidden) parts.push(svg("text", { x: 0, y: height - 2, class: "vn-tick" }, `${state.hidden} older ones not shown`));
  picture.setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
  picture.setAttribute("aria-label", `Schedule: ${state.lanes.length} sequences, ${state.steps.length} steps`);
  picture.replaceChildren(...parts);
}

function spanShapes(span, left, width, y) {
  const [kind, first, last] = span;
  const [x, end, high] = [left(first), left(last) + width, LANE - 3];
  const title = () => svg("title", {}, spanWords(span));
  if (kind === "waiting") return [svg("line", { x1: x, x2: end, y1: y + high / 2, y2: y + high / 2, class: "vn-wait" }, title())];
  if (kind === "decode") {
    let ticks = "";
    for (let step = first + 1; step <= last; step++) ticks += `M${left(step).toFixed(1)} ${y + 3}v${high - 6}`;
    const bar = { x, y: y + 3, width: end - x, height: high - 6, class: "vn-bar vn-series0" };
    return [svg("rect", bar, title()), svg("path", { d: ticks || null, class: "vn-ticks" })];
  }
  if (kind === "prefill") return [svg("rect", { x, y, width: width - 0.6, height: high, class: "vn-bar vn-series1" }, title())];
  if (kind === "cached") return [svg("rect", { x: x - 4, y, width: 4, height: high, class: "vn-cached" }, title())];
  if (kind === "preempted") return [svg("path", { d: `M${x} ${y}l7 ${high}m-7 0l7 ${-high}`, class: "vn-preempted" }, title())];
  return [svg("line", { x1: end, x2: end, y1: y, y2: y + high, class: "vn-end" }, title())];
}

function drawBudget(picture, state) {
  const [high, width] = [56, columnWidth(state)];
  const most = Math.max(1, ...state.budget);
  const parts = [label(0, 11, "Tokens of a step", "vn-title"), label(0, 25, `outline: budget, ≤ ${most}`, "vn-tick")];
  state.steps.forEach((step, i) => {
    const x = LABELS + i * width + 0.5;
    const tall = (n) => n && Math.max((n / most) * high, LEAST); // few of many can be seen too
    const text = `step ${step}: ${state.decode[i]} decode, ${state.prefill[i]} prefill, budget ${state.budget[i]}`;
    const outline = { x, y: high - tall(state.budget[i]), width: width - 1, height: tall(state.budget[i]), class: "vn-outline" };
    const decode = { x, y: high - tall(state.decode[i]), width: width - 1, height: tall(state.decode[i]), class: "vn-bar vn-series0" };
    const both = tall(state.decode[i]) + tall(state.prefill[i]);
    const prefill = { x, y: high - both, width: width - 1, height: tall(state.prefill[i]), class: "vn-bar vn-series1" };
    parts.push(svg("g", {}, svg("title", {}, text), svg("rect", outline), svg("rect", decode), svg("rect", prefill)));
  });
  finish(picture, high + 4, "Tokens of each step, and its budget", parts);
}

/** Which steps are shown, as [text, x, anchor]: at both ends, or in one label where the ends are too close. */
export function stepLabels(state) {
  if (!state.steps.length) return [];
  const [first, last] = [state.steps[0], state.steps[state.steps.length - 1]];
  const wide = state.steps.length * columnWidth(state);
  if (wide < APART) return [[first === last ? `step ${first}` : `step ${first} to ${last}`, LABELS, "start"]];
  return [[`step ${first}`, LABELS, "start"], [`${last}`, LABELS + wide, "end"]];
}

function drawPhases(picture, state) {
  const [high, width] = [56, columnWidth(state)];
  const totals = state.steps.map((_, i) => Object.keys(PHASES).reduce((sum, name) => sum + state.phases[name][i], 0));
  const most = Math.max(1e-9, ...totals);
  const scale = state.steps.length ? `≤ ${shortNumber(most)} ms` : "–";
  const parts = [label(0, 11, "Time of a step", "vn-title"), label(0, 25, scale, "vn-tick")];
  state.steps.forEach((step, i) => {
    let y = high;
    const bars = Object.entries(PHASES).map(([name, role]) => {
      const height = (state.phases[name][i] / most) * high;
      y -= height;
      return svg("rect", { x: LABELS + i * width + 0.5, y, width: width - 1, height, class: `vn-bar vn-${role}` });
    });
    const text = Object.keys(PHASES).map((name) => `${name} ${shortNumber(state.phases[name][i])} ms`);
    parts.push(svg("g", {}, svg("title", {}, `step ${step}: ${text.join(", ")}`), ...bars));
  });
  for (const [text, x, anchor] of stepLabels(state)) {
    parts.push(svg("text", { x, y: high + 13, class: "vn-tick", "text-anchor": anchor }, text));
  }
  finish(picture, high + 18, "Time of each step by phase", parts);
}

function label(x, y, text, kind) {
  return svg("text", { x, y, class: kind }, text);
}

function finish(picture, height, name, parts) {
  picture.setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", name);
  picture.replaceChildren(...parts);
}

export default panel("Schedule", scheduleView);
