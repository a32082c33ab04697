import assert from "node:assert/strict";
import { test } from "node:test";

class Element extends EventTarget {
  children = [];
  style = {};
  dataset = {};
  classList = { add() {}, toggle() {} };
  get childNodes() { return this.children; }
  append(...children) { this.children.push(...children); }
  appendChild(child) { return this.children.push(child), child; }
  replaceChildren(...children) { this.children = children; }
  insertBefore(child) { this.children.push(child); }
  setAttribute(name, value) { this[name] = value; }
  remove() {}
  get(name) { return this.class === name ? this : this.children.map((child) => child.get?.(name)).find(Boolean); }
}
const document = { createElement: () => new Element(), createElementNS: () => new Element() };
Object.assign(globalThis, { document, window: new EventTarget(), Element, Node: Element });

const { default: widget } = await import("../../../vllm_nb/ui/widget.js");

const SAVED = { format: "vllm_nb.conversation", version: 1, turns: [
  { id: 1, parent: null, role: "user", content: "x" }, { id: 2, parent: 1, role: "assistant", content: "" },
], current: 2 };

/** The chat, waiting for an answer, in a page whose kernel has these comms. */
function chatIn(comms, t) {
  const live = { id: 2, content: "", reasoning: "", tokens: 0, rate: null, ttft: null };
  const traits = { state: SAVED, generation: 1, live, busy: true, model: "m", notice: "loading", height: 9, panel_id: "m1" };
  const manager = { get_model: async () => ({ comm_live: true }), _get_comm_info: async () => comms };
  const model = { widget_manager: manager, get: (name) => traits[name], on() {}, off() {}, send() {} };
  const el = new Element();
  t.after(widget.render({ model, el })); // its timer would keep the process
  return el;
}

const settled = () => new Promise(setImmediate);

test("a chat whose kernel was restarted says so, does not wait, and takes nothing", async (t) => {
  const el = chatIn({}, t);
  await settled();
  assert.match(el.get("vn-notice").textContent, /^The kernel was restarted: run the cell again/);
  assert.equal(el.get("vn-pulse"), undefined);
  assert.equal(el.get("vn-button vn-primary vn-send").disabled, true);
});

test("one whose kernel is there goes on", async (t) => {
  const el = chatIn({ m1: {} }, t);
  await settled();
  assert.equal(el.get("vn-notice").textContent, "loading");
  assert.match(el.get("vn-pulse").children[0], /^waiting for the first token/);
  assert.equal(el.get("vn-button vn-primary vn-send").disabled, false);
});
