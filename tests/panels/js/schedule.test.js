import assert from "node:assert/strict";
import { test } from "node:test";

import { cellAt, cellWords, spanWords, stepLabels } from "./schedule.js";

const lane = {
  name: "3  abc",
  spans: [["waiting", 5, 7, 0, "blocks"], ["cached", 8, 8, 32, ""], ["prefill", 8, 8, 10, ""], ["decode", 9, 20, 12, ""]],
};
const state = { columns: 10, steps: [5, 6, 7, 8, 9], lanes: [lane, lane] };

test("a span is told in words", () => {
  assert.equal(spanWords(lane.spans[0]), "steps 5 to 7: waits: too few KV blocks are free");
  assert.equal(spanWords(["preempted", 4, 4, 90, ""]), "step 4: preempted, 90 computed tokens thrown away");
  assert.equal(spanWords(["finished", 4, 4, 9, "length"]), "step 4: finished (length) after 9 tokens");
});

test("a cell tells all that its sequence did in that step, and no more", () => {
  assert.equal(
    cellWords(lane, 8),
    "sequence 3  abc, step 8: 32 tokens found in the prefix cache; prefill of 10 tokens",
  );
  assert.equal(cellWords(lane, 15), "sequence 3  abc, step 15: decodes a token");
  assert.equal(cellWords(lane, 99), "sequence 3  abc, step 99: not there");
});

test("a point belongs to the cell it lies in", () => {
  const width = (760 - 128 - 4) / 10;
  assert.deepEqual(cellAt(state, 128 + 1.5 * width, 20), { column: 1, lane: 1 });
  assert.equal(cellAt(state, 10, 10), null); // a name
  assert.equal(cellAt(state, 128 + 7 * width, 10), null); // a column without a step
  assert.equal(cellAt(state, 200, 500), null);
});

test("few steps have one label, for two would lie over each other", () => {
  const shown = (count, columns) => stepLabels({ columns, steps: Array.from({ length: count }, (_, i) => 1228 + i) });
  assert.deepEqual(shown(5, 72), [["step 1228 to 1232", 128, "start"]]);
  assert.deepEqual(shown(1, 72), [["step 1228", 128, "start"]]);
  assert.deepEqual(shown(0, 72), []);
  assert.deepEqual(shown(72, 72), [["step 1228", 128, "start"], ["1299", 756, "end"]]);
});
