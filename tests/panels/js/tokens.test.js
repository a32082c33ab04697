import assert from "node:assert/strict";
import { test } from "node:test";

import { fate, tokenShade, tokenWords, treeRows, visibleText } from "./tokens.js";

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
