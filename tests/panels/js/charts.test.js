import assert from "node:assert/strict";
import { test } from "node:test";

import { bars, linePieces, niceTicks } from "./charts.js";
import { bytes, duration, percent, shortNumber } from "./dom.js";

test("ticks begin at 0, reach the top, and are round", () => {
  assert.deepEqual(niceTicks(10), [0, 2, 4, 6, 8, 10]);
  assert.deepEqual(niceTicks(0), [0, 1]);
  for (const top of [0.0013, 7, 99, 1234, 5e7]) {
    const ticks = niceTicks(top);
    assert.ok(ticks.length <= 6 && ticks[ticks.length - 1] >= top * 0.999, `${top}: ${ticks}`);
  }
});

test("a line is cut at its gaps, and its ends are the box's", () => {
  const box = { left: 10, right: 110, top: 0, bottom: 50 };
  assert.deepEqual(linePieces([0, 5, null, 10, 10], box, 10), [[[10, 50], [35, 25]], [[85, 0], [110, 0]]]);
  assert.deepEqual(linePieces([null, 1, null], box, 10), []);
});

test("the fullest bar is as high as the box, and says what it counts", () => {
  const found = bars({ edges: [0.001, 0.002, 0.004], counts: [2, 4] }, { left: 0, right: 100, top: 10, bottom: 50 });
  assert.deepEqual(found.map((bar) => [bar.x, bar.y, bar.height]), [[0.5, 30, 20], [50.5, 10, 40]]);
  assert.equal(found[0].label, "1 ms to 2 ms: 2");
});

test("numbers are short", () => {
  assert.equal(shortNumber(12345), "12.3k");
  assert.equal(shortNumber(999), "999");
  assert.equal(shortNumber(0.12345), "0.123");
  assert.equal(duration(0.00123), "1.23 ms");
  assert.equal(duration(12.5), "12.5 s");
  assert.equal(duration(null), "–");
  assert.equal(bytes(3.5 * 2 ** 30), "3.5 GiB");
  assert.equal(bytes(12), "12 B");
  assert.equal(percent(0.5), "50 %");
});
