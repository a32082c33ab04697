import assert from "node:assert/strict";
import { test } from "node:test";

import { fate, tokenShade, tokenWords, treeRows, visibleText, tokensView } from "./tokens.js";

test("the ground is the darker the less likely the token was", () => {
  assert.equal(tokenShade(1), 0);
  assert.equal(tokenShade(0), 70);
  assert.ok(tokenShade(0.2) > tokenShade(0.6));
});

test("every token can be seen", () => {
  assert.equal(visibleText("a\nb"), "a⏎\nb");
  assert.equal(visibleText(""), "·");
});

test("a token is told in words", () => {
  assert.equal(tokenWords([" the", 5, 0.25, 2, 3.5, []]), '" the": probability 25 %, rank 2, entropy 3.5 bits');
  assert.equal(tokenWords(["x", 5, 0.9, 1, null, []]), '"x": probability 90 %, the likeliest');
});

test("what became of an alternative", () => {
  assert.equal(fate([1, "a", 0.5, 0.7, "", true]), "drawn with 70 %");
  assert.equal(fate([1, "a", 0.5, 0.7, "", false]), "drawn with at least 70 %");
  assert.equal(fate([1, "a", 0.5, 0, "top_k", true]), "cut by top_k");
  assert.equal(fate([1, "a", 0.5, null, "", true]), "");
});

test("forks stand below what they were forked from", () => {
  const nodes = [{ id: 0, parent: null }, { id: 1, parent: 0 }, { id: 2, parent: null }, { id: 3, parent: 1 }, { id: 4, parent: 99 }];
  assert.deepEqual(treeRows(nodes).map((node) => [node.id, node.depth]), [[0, 0], [1, 1], [3, 2], [2, 0], [4, 0]]);
});

class Element extends EventTarget {
  children = [];
  dataset = {};
  append(...children) { this.children.push(...children); }
  replaceChildren(...children) { this.children = children; }
  querySelector() { return null; }
  setAttribute(name, value) { this[name] = value; }
  get lastChild() { return { remove: () => this.children.pop() }; }
  get words() { return this.children.map((child) => child.words ?? child).join(""); }
}

test("a token that has come before its state is told with how it was sampled as soon as that is known", () => {
  globalThis.document = { createElement: () => new Element() };
  const callbacks = {};
  const traits = { panel_id: "m1", rows: { rows: [], frame: 0 } };
  const model = { get: (name) => traits[name], on: (name, callback) => (callbacks[name] = callback), off() {}, send() {} };
  const box = new Element();
  const update = tokensView(box, model);
  const state = { nodes: [], selected: null, sampling: {}, can_fork: true };
  update(state);
  callbacks["msg:custom"]({ type: "rows", frame: 1, previous: 0, keep: 0, rows: [["a", 1, 0.5, 1, null, []]] }, []);
  assert.match(box.words, /Sampling: unknown/);
  update({ ...state, selected: 0, begins: 0, sampling: { temperature: 0.7, top_k: 0 } });
  assert.match(box.words, /Sampling: temperature 0.7, top_k 0/);
});
