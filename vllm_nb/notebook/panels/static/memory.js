// Memory: a bar each for what was predicted, what is measured, and what would be with other settings.

import { bytes, html, percent } from "./dom.js";
import { panel } from "./panel.js";

const PARTS = {
  others: ["others on this machine", "series7"],
  runtime: ["Python, PyTorch, kernels", "series5"],
  weights: ["weights", "series0"],
  kv: ["KV cache", "series4"],
  activations: ["activations", "series3"],
};
const OWN = ["runtime", "weights", "kv", "activations"]; // this engine's
const BLOCK_SIZES = [16, 32, 64, 128, 256];
const MOST_SEQUENCES = 256;

/** Bytes by part for other settings; memory.py computes the same, and says what the names mean. */
export function whatIf(plan, { context, sequences, dtype, block_size: size }) {
  const { device, activation_bytes: each } = plan;
  const perSequence = Math.ceil(context / size);
  const kvSequence = perSequence * size * plan.kv_token_bytes[dtype];
  const weights = plan.weight_bytes[dtype];
  const tokens = Math.max(plan.max_num_batched_tokens, sequences);
  const fixed = each.token * tokens + each.row * plan.logits_beside + each.context * context;
  const parts = {
    others: device.others,
    runtime: device.runtime,
    weights,
    kv: sequences * kvSequence,
    activations: fixed + each.row * sequences,
  };
  const room = device.total - device.others - device.runtime - weights - fixed;
  return {
    ...parts,
    left: device.total - Object.values(parts).reduce((sum, part) => sum + part, 0),
    most: Math.max(0, Math.floor(room / (kvSequence + each.row))),
    wasted: sequences * (perSequence * size - context),
    blocks: sequences * perSequence,
  };
}

/** Bytes by part of a prediction or a measurement. */
export function memoryBar(device, use) {
  const parts = { others: device.others, runtime: device.runtime, ...use };
  return { ...parts, left: device.total - Object.values(parts).reduce((sum, part) => sum + part, 0) };
}

/** [name, parts] of each bar that is shown. */
export function memoryBars(state, settings) {
  const { plan, measured } = state;
  const found = [["predicted", memoryBar(plan.device, plan.use)]];
  if (measured) found.push(["measured", memoryBar(measured.device, measured.use)]);
  return [...found, ["what if", whatIf(plan, settings)]];
}

/** A slider's position 0..1000 for a value between 1 and `most` on a logarithmic scale, and back. */
export function toSlider(value, most) {
  return Math.round((1000 * Math.log(value)) / Math.log(most));
}

export function fromSlider(position, most) {
  const value = most ** (position / 1000);
  const step = value < 32 ? 1 : 2 ** Math.max(0, Math.floor(Math.log2(value)) - 4);
  return Math.min(most, Math.max(1, Math.round(value / step) * step));
}

/** Builds the view inside `box`; call what it returns with each new state. */
export function memoryView(box, model) {
  const title = html("div", { class: "vn-head" });
  const scale = html("div", { class: "vn-muted" }, SCALE);
  const shown = html("div", { class: "vn-bars" });
  const table = html("div");
  const controls = html("form", { class: "vn-controls", onsubmit: (event) => event.preventDefault() });
  const verdict = html("div", { class: "vn-verdict", role: "status", "aria-live": "polite" });
  const fieldset = html("fieldset", {}, html("legend", {}, "What if"), controls, verdict);
  box.append(title, scale, shown, fieldset, table);
  let state = null;
  let settings = null; // those of the sliders: the reader's, however often a new state comes
  let shownModel = null;
  let saving = null;

  const show = () => {
    const [found, total] = [memoryBars(state, settings), state.plan.device.total];
    const longest = Math.max(...found.map(([, parts]) => OWN.reduce((sum, part) => sum + parts[part], 0)));
    shown.replaceChildren(
      ...found.map(([name, parts]) => oneBar(name, parts, total, longest, name === "measured" ? state.used : null)),
    );
    table.replaceChildren(numbersOf(found));
    verdict.textContent = verdictWords(whatIf(state.plan, settings), settings);
  };
  const change = (name, value) => {
    settings = { ...settings, [name]: value };
    show();
    clearTimeout(saving);
    saving = setTimeout(() => {
      model.set("settings", settings);
      model.save_changes(); // for static pictures, and for the next who opens the page
    }, 300);
  };

  return (next) => {
    state = next;
    if (!state.plan) {
      title.textContent = state.error;
      for (const part of [scale, shown, fieldset, table]) part.hidden = true;
      return;
    }
    title.replaceChildren(html("b", {}, `Memory of ${state.plan.model}`), html("span", { class: "vn-muted" }, `${state.plan.device.name}, ${bytes(state.plan.device.total)}`));
    if (shownModel !== state.plan.model) {
      [shownModel, settings] = [state.plan.model, model.get("settings")];
      controls.replaceChildren(...sliders(state.plan, settings, change));
    }
    show();
  };
}

const SCALE = "Thick bars: this engine. Thin bars: the whole machine, grey what others take, black or white this engine.";

/** What the engine takes, to a scale that all bars share; below, a thin bar of the whole device. */
function oneBar(name, parts, total, longest, used) {
  const pieces = OWN.map((part) => {
    const inner = part === "kv" && used !== null ? html("i", { class: "vn-used", style: `width: ${100 * used}%` }) : null;
    const tip = `${PARTS[part][0]}: ${bytes(parts[part])}${inner ? `, ${percent(used)} in use` : ""}`;
    const style = `width: ${(100 * parts[part]) / longest}%`;
    return html("div", { class: `vn-piece vn-${PARTS[part][1]}`, style, title: tip }, inner);
  });
  const over = parts.left < 0;
  const limit = over ? { class: "vn-limit", style: `left: ${(100 * (total - parts.others)) / longest}%`, title: "all there is" } : null;
  const verdict = over ? html("b", { class: "vn-over" }, `${bytes(-parts.left)} too much`) : html("span", {}, `${bytes(parts.left)} left`);
  const whole = total - Math.min(parts.left, 0);
  const own = OWN.reduce((sum, part) => sum + parts[part], 0);
  const words = Object.entries(PARTS).map(([part, [title]]) => `${title} ${bytes(parts[part])}`);
  return html(
    "div",
    { role: "img", "aria-label": `${name}: ${words.join(", ")}, ${bytes(parts.left)} left` },
    html("div", { class: "vn-head" }, html("b", {}, name), verdict),
    html("div", { class: "vn-stack" }, ...pieces, limit && html("div", limit)),
    html(
      "div",
      { class: "vn-device", title: `others ${bytes(parts.others)}, this engine ${bytes(own)}, of ${bytes(total)}` },
      html("div", { class: "vn-series7", style: `width: ${(100 * parts.others) / whole}%` }),
      html("div", { class: "vn-text", style: `width: ${(100 * own) / whole}%` }),
    ),
  );
}

/** The same in numbers, with the keys to the colours. */
function numbersOf(shown) {
  const head = html("tr", {}, html("th", {}), ...shown.map(([name]) => html("th", { scope: "col" }, name)));
  const titles = [...Object.entries(PARTS), ["left", ["left", null]]];
  const body = titles.map(([part, [title, role]]) =>
    html(
      "tr",
      {},
      html("th", { scope: "row" }, html("i", { class: `vn-swatch ${role ? `vn-${role}` : "vn-none"}` }), title),
      ...shown.map(([, parts]) => html("td", { class: parts[part] < 0 ? "vn-over" : null }, bytes(parts[part]))),
    ),
  );
  return html("table", { class: "vn-table" }, html("thead", {}, head), html("tbody", {}, ...body));
}

function sliders(plan, settings, change) {
  const longest = Math.max(plan.max_position, settings.context);
  const slider = (name, text, most) => {
    const value = html("output", {}, settings[name].toLocaleString("en"));
    const moved = (event) => {
      const chosen = fromSlider(Number(event.target.value), most);
      value.textContent = chosen.toLocaleString("en");
      event.target.setAttribute("aria-valuetext", `${chosen}`);
      change(name, chosen);
    };
    const place = toSlider(settings[name], most);
    const input = html("input", { type: "range", min: 0, max: 1000, value: place, name, oninput: moved });
    return html("label", {}, text, input, value);
  };
  const choice = (name, text, values) => {
    const options = values.map((each) => html("option", { value: each, selected: each === settings[name] }, String(each)));
    const chosen = (event) => change(name, typeof values[0] === "number" ? Number(event.target.value) : event.target.value);
    return html("label", {}, text, html("select", { name, onchange: chosen }, ...options));
  };
  const sizes = [...new Set([...BLOCK_SIZES, settings.block_size])].sort((a, b) => a - b);
  return [
    slider("context", "tokens of context", longest),
    slider("sequences", "sequences", Math.max(MOST_SEQUENCES, settings.sequences)),
    choice("dtype", "dtype", Object.keys(plan.weight_bytes)),
    choice("block_size", "tokens a block", sizes),
  ];
}

/** What the settings mean, in a sentence. */
export function verdictWords(result, settings) {
  const waste = settings.context * settings.sequences ? result.wasted / (result.wasted + settings.context * settings.sequences) : 0;
  const fits = result.left >= 0 ? `It fits, with ${bytes(result.left)} to spare` : `It does not fit: ${bytes(-result.left)} too much`;
  const plural = settings.sequences === 1 ? "sequence" : "sequences";
  return (
    `${fits}. ${result.most.toLocaleString("en")} such sequences would fit. ${settings.sequences} ${plural} take ` +
    `${result.blocks.toLocaleString("en")} blocks, of which ${percent(waste)} stays empty in last blocks.`
  );
}

export default panel("Memory", memoryView);
