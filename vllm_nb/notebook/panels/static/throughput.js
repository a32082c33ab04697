// Throughput: tiles with the numbers of now, rates and levels over time, latency histograms.

import { histogramChart, lineChart, within } from "./charts.js";
import { duration, html, numbersTable, percent, shortNumber, svg } from "./dom.js";
import { panel } from "./panel.js";

const LATENCIES = { ttft: "Time to first token", itl: "Between two tokens", tpot: "Per token of a request" };

/** The numbers of now, those of the last bin where the engine does not stand still since: [name, value]. */
export function tiles(state) {
  const now = (name) => state.now?.[name] ?? state[name][state[name].length - 1] ?? 0;
  const share = state.bandwidth;
  return [
    ["decode", `${shortNumber(now("decode"))} tok/s`],
    ["prefill", `${shortNumber(now("prefill"))} tok/s`],
    ["running", shortNumber(now("running"))],
    ["waiting", shortNumber(now("waiting"))],
    ["KV cache in use", percent(now("used"))],
    ["of memory bandwidth", share === null ? "unknown" : percent(share)],
  ];
}

const WINDOWS = [10, 30, 120, 600, 0];

/** Builds the view inside `box`; call what it returns with each new state. */
export function throughputView(box, model) {
  const row = html("div", { class: "vn-tiles" });
  const windows = html(
    "select",
    { "aria-label": "stretch of time", onchange: () => choose(Number(windows.value)) },
    ...WINDOWS.map((seconds) => html("option", { value: seconds }, seconds ? `last ${duration(seconds)}` : "all")),
  );
  const choose = (seconds) => {
    model.set("seconds", seconds);
    model.save_changes();
  };
  const measure = html("button", { type: "button", onclick: () => model.send({ type: "measure" }) }, "measure memory bandwidth");
  const figure = (height) => svg("svg", { height });
  const rate = figure(190);
  const [sequences, cache] = [figure(130), figure(130)];
  const histograms = Object.keys(LATENCIES).map(() => figure(132));
  const columns = (count) => ({ class: "vn-row", style: `grid-template-columns: repeat(${count}, minmax(0, 1fr))` });
  box.append(html("div", { class: "vn-head" }, row, html("div", { class: "vn-actions" }, measure, windows)), rate);
  box.append(html("div", columns(2), sequences, cache), html("div", columns(3), ...histograms));

  return (state) => {
    windows.value = model.get("seconds");
    measure.hidden = state.read_rate !== null || !model.get("transport").live;
    row.replaceChildren(
      ...tiles(state).map(([name, value]) =>
        html("div", { class: "vn-tile" }, html("b", {}, value), html("span", {}, name)),
      ),
    );
    const end = state.now ? "last step" : "now";
    const bound = within(state.bound, [state.decode, state.prefill]);
    const rates = [
      { name: "decode", role: "series0", values: state.decode },
      { name: "prefill", role: "series1", values: state.prefill, dash: "6 3" },
      { name: "decode at full bandwidth", role: "series7", values: bound, dash: "2 3" },
    ];
    lineChart(rate, { width: 760, height: 190 }, "Tokens a second", rates, state.seconds, end);
    const queues = [
      { name: "running", role: "series2", values: state.running },
      { name: "waiting", role: "series3", values: state.waiting, dash: "6 3" },
    ];
    lineChart(sequences, { width: 370, height: 130 }, "Sequences", queues, state.seconds, end);
    const used = state.used.map((share) => (share === null ? null : 100 * share));
    lineChart(cache, { width: 370, height: 130 }, "KV cache, %", [{ name: "in use", role: "series4", values: used }], state.seconds, end);
    Object.entries(LATENCIES).forEach(([name, title], i) =>
      histogramChart(histograms[i], { width: 240, height: 132 }, title, `series${i}`, state.latencies[name]),
    );
    numbersTable(box, "Numbers", ["", "now"], () => numbers(state));
  };
}

function numbers(state) {
  const latencies = Object.entries(LATENCIES).map(([name, title]) => [
    `${title} (p50, p90, p99)`,
    ["p50", "p90", "p99"].map((mark) => duration(state.latencies[name][mark])).join(", "),
  ]);
  return [...tiles(state), ...latencies];
}

export default panel("Throughput", throughputView);
