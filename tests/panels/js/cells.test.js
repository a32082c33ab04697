import assert from "node:assert/strict";
import { test } from "node:test";

import { blockAfterKey, blockAt, CELL_SHARED, CELL_STORED, CELL_USED, CELL_WRITTEN, cellLayout, cellStore, cellWords, numbersIn } from "./cells.js";
import { cellPainter } from "./cell_painter.js";
import { blockFacts } from "./kv.js";

test("every block has a place, and the place leads back to it", () => {
  for (const [count, width] of [[1, 300], [24, 740], [1024, 740], [100000, 740], [7, 3]]) {
    const size = cellLayout(count, width);
    assert.ok(size.columns * size.rows >= count && size.columns * (size.rows - 1) < count);
    for (const block of [0, count >> 1, count - 1]) {
      const [x, y] = [(block % size.columns) * size.side, Math.floor(block / size.columns) * size.side];
      assert.equal(blockAt(size, count, x, y), block);
      assert.equal(blockAt(size, count, x + size.side - 1, y + size.side - 1), block);
    }
    assert.equal(blockAt(size, count, -1, 0), null);
    assert.equal(blockAt(size, count, 0, size.rows * size.side), null);
  }
});

test("keys move among the blocks and stay there", () => {
  assert.equal(blockAfterKey("ArrowRight", null, 10, 4), 0);
  assert.equal(blockAfterKey("ArrowRight", 9, 10, 4), 9);
  assert.equal(blockAfterKey("ArrowDown", 2, 10, 4), 6);
  assert.equal(blockAfterKey("ArrowUp", 2, 10, 4), 2);
  assert.equal(blockAfterKey("End", 2, 10, 4), 9);
  assert.equal(blockAfterKey("x", 2, 10, 4), null);
});

test("a cell in words", () => {
  assert.equal(cellWords(0, 16), "free");
  assert.equal(cellWords(CELL_STORED | 16, 16), "free, in the prefix cache, 16 of 16 tokens");
  const all = CELL_USED | CELL_SHARED | CELL_WRITTEN | 3;
  assert.equal(cellWords(all, 16), "in use, shared, just written, 3 of 16 tokens");
});

const sent = (...numbers) => new DataView(new Uint32Array([99, ...numbers]).buffer, 4); // part of a larger buffer

test("messages bring the cells up to date, and a lost one is noticed", () => {
  const asked = [];
  const heard = [];
  const store = cellStore({ view: sent(1, 2, 3), frame: 5 }, () => asked.push(store.frame));
  store.listen((blocks) => heard.push([...blocks]));
  store.take({ frame: 6, previous: 3 }, [sent(0, 2), sent(7, 9)]);
  assert.deepEqual([...store.cells], [7, 2, 9]);
  assert.deepEqual(asked, []);
  store.take({ frame: 9, previous: 8 }, [sent(1), sent(4)]);
  assert.deepEqual(asked, [6]);
  store.take({ frame: 10, previous: 9 }, [sent(0, 1, 2), sent(1, 1, 1)]);
  assert.deepEqual([...store.cells], [1, 1, 1]);
  assert.deepEqual(heard, [[0, 2], [1], [0, 1, 2]]);
});

test("buffers of odd places are read", () => {
  const bytes = new Uint8Array(9);
  bytes.set([1, 0, 0, 0, 2, 0, 0, 0], 1);
  assert.deepEqual([...numbersIn(new DataView(bytes.buffer, 1))], [1, 2]);
});

test("what is said of a block", () => {
  const chosen = { tokens: [1], text: "x", references: 2, holders: [[3, "r", 0, 1]], hash: "b", chain: ["b", "a"], length: 2, age: 0 };
  assert.deepEqual(Object.fromEntries(blockFacts(chosen)), {
    tokens: "x", references: "2: r [0], block 1 of its table", hash: "b", chain: "a", written: "in this step",
  });
  assert.equal(Object.fromEntries(blockFacts({ ...chosen, hash: null })).chain, undefined);
});

/** The colours in which a cell is filled, one upon the other, on a page where each role is a colour of that name. */
function fillsOf(cell) {
  const fills = [];
  const pen = new Proxy({ createPattern: () => "hatch", fillRect: () => fills.push(pen.fillStyle) }, {
    get: (known, name) => known[name] ?? (() => {}),
    set: (known, name, value) => value === undefined || (known[name] = value) !== undefined, // as a canvas does
  });
  const element = () => ({ style: {}, setAttribute() {}, append() {}, after() {}, getContext: () => pen });
  const page = { document: { createElement: element }, window: {}, getComputedStyle: () => ({ getPropertyValue: (name) => name }) };
  Object.assign(globalThis, page);
  try {
    cellPainter(element(), {}).paint([cell], { columns: 1, rows: 1, side: 4 }, 16);
  } finally {
    for (const name of Object.keys(page)) delete globalThis[name];
  }
  return fills;
}

test("a block has the colour of its owner, and one that was cached before anybody watched has one too", () => {
  const cell = (owner) => ((owner << 16) | CELL_STORED | 16) >>> 0;
  assert.deepEqual(fillsOf(0), ["--vn-surface"]);
  assert.deepEqual(fillsOf(cell(1)), ["--vn-surface", "--vn-series0"]);
  assert.deepEqual(fillsOf(cell(65535)), ["--vn-surface", "--vn-series6"]);
  assert.deepEqual(fillsOf(cell(0)), ["--vn-surface", "--vn-series7"]);
});
