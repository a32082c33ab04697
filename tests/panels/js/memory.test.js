import assert from "node:assert/strict";
import { test } from "node:test";

import { fromSlider, memoryBar, toSlider, verdictWords } from "./memory.js";

test("a slider reaches every end, and comes back to where it was", () => {
  for (const most of [256, 8192, 131072]) {
    assert.equal(fromSlider(0, most), 1);
    assert.equal(fromSlider(1000, most), most);
    for (const value of [1, 2, 16, 64, 256]) {
      const again = fromSlider(toSlider(value, most), most);
      assert.ok(Math.abs(again - value) <= value * 0.05, `${value} of ${most} became ${again}`);
    }
  }
});

test("what is left is what the parts leave", () => {
  const device = { total: 100, others: 10, runtime: 5 };
  assert.equal(memoryBar(device, { weights: 40, kv: 30, activations: 20 }).left, -5);
});

test("the verdict says whether it fits", () => {
  const settings = { context: 100, sequences: 1 };
  const result = { left: 2 ** 20, most: 3, wasted: 12, blocks: 7 };
  assert.match(verdictWords(result, settings), /^It fits, with 1 MiB to spare. 3 such sequences would fit. 1 sequence take/);
  assert.match(verdictWords({ ...result, left: -(2 ** 20) }, settings), /^It does not fit: 1 MiB too much/);
});
