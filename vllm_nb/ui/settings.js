// The panel of parameters. An empty field means: as the model's makers recommend.

import { h } from "./dom.js";

const NUMBERS = [
  ["temperature", "Temperature", "0 always takes the likeliest token; higher is more varied", { min: 0, max: 100, step: 0.1 }],
  ["top_p", "Top p", "keep the likeliest tokens that hold this much probability", { min: 0, max: 1, step: 0.05 }],
  ["top_k", "Top k", "keep this many of the likeliest tokens", { min: 0, step: 1 }],
  ["min_p", "Min p", "drop tokens below this share of the likeliest one’s probability", { min: 0, max: 1, step: 0.01 }],
  ["max_tokens", "Max tokens", "end the answer after this many", { min: 1, step: 1 }],
  ["seed", "Seed", "the same seed gives the same text", { step: 1 }],
  ["repetition_penalty", "Repetition penalty", "above 1: less of what was said", { min: 0.01, max: 100, step: 0.05 }],
  ["frequency_penalty", "Frequency penalty", "for each earlier use of a token in the answer", { min: -2, max: 2, step: 0.1 }],
  ["presence_penalty", "Presence penalty", "once for a token that the answer has used", { min: -2, max: 2, step: 0.1 }],
];

let panels = 0; // makes ids unique where a page has several

export class Settings {
  // change({system, params}): what the fields say now
  constructor(change) {
    this.prefix = `vn-settings-${(panels += 1)}`;
    this.inputs = new Map();
    this.element = h("aside", { class: "vn-settings", id: this.prefix, "aria-label": "Parameters" },
      h("h2", {}, "Parameters"),
      this.#text("system", "System message", "what the model is told before everything else", 4),
      ...NUMBERS.map(([name, label, help, limits]) => this.#number(name, label, help, limits)),
      this.#text("stop", "Stop texts", "one a line; the answer ends before them", 2));
    this.element.addEventListener("change", () => change(this.#read()));
  }

  show({ system, params }) {
    const stop = [params.stop ?? []].flat();
    for (const [name, input] of this.inputs) {
      if (input === document.activeElement) continue; // not under the user's fingers
      const value = name === "system" ? system : name === "stop" ? stop.join("\n") : params[name];
      input.value = value ?? "";
    }
  }

  #read() {
    const params = {};
    for (const [name] of NUMBERS) {
      const { value } = this.inputs.get(name);
      if (value !== "" && Number.isFinite(Number(value))) params[name] = Number(value);
    }
    const stop = this.inputs.get("stop").value.split("\n").filter(Boolean);
    if (stop.length) params.stop = stop;
    return { system: this.inputs.get("system").value.trim() || null, params };
  }

  #number(name, label, help, limits) {
    return this.#field(name, label, help, h("input", { type: "number", inputmode: "decimal", placeholder: "default", ...limits }));
  }

  #text(name, label, help, rows) {
    return this.#field(name, label, help, h("textarea", { rows }));
  }

  #field(name, label, help, input) {
    const id = `${this.prefix}-${name}`;
    const attributes = { id, name, class: "vn-input", "aria-describedby": `${id}-help` };
    for (const [key, value] of Object.entries(attributes)) input.setAttribute(key, value);
    this.inputs.set(name, input);
    return h("div", { class: "vn-field" }, h("label", { for: id }, label), input, h("small", { id: `${id}-help` }, help));
  }
}
