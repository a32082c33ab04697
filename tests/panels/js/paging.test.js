import assert from "node:assert/strict";
import { test } from "node:test";

import { blockCenter, blockGrid, pagingHeadline, pagingRowWords } from "./paging.js";

test("each physical block has a place of its own in the square", () => {
  for (const count of [1, 24, 1000]) {
    const { cell } = blockGrid(count);
    const places = new Set(Array.from({ length: count }, (_, block) => blockCenter(count, block).map((at) => Math.floor(at / cell)).join()));
    assert.equal(places.size, count);
  }
});

test("a row and the whole in words", () => {
  const row = [2, 17, 32, 40, "full", true, "text"];
  assert.equal(
    pagingRowWords(row),
    "logical block 2 is physical block 17: tokens 32 to 39, read by layers without window, written in this step: text",
  );
  const state = { step: 3, rows: [row], first: 39, last: 39, name: "r [0]", blocks: [4, 5, 17] };
  assert.equal(pagingHeadline(state), "Step 3: token 39 of r [0] attends to 40 tokens in 3 blocks");
  assert.match(pagingHeadline({ ...state, first: 30 }), /tokens 30 to 39/);
  assert.match(pagingHeadline({ ...state, rows: [] }), /no sequence/);
});
