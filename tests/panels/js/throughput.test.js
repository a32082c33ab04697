import assert from "node:assert/strict";
import { test } from "node:test";

import { tiles } from "./throughput.js";

test("where the engine stands still since, the last bin's rates are not those of now", () => {
  const bins = { decode: [9, 8], prefill: [0, 4], running: [1, 1], waiting: [0, null], used: [0.5, 0.5], bandwidth: null };
  const shown = (now) => tiles({ ...bins, now }).map(([, value]) => value).slice(0, 5);
  assert.deepEqual(shown(null), ["8 tok/s", "4 tok/s", "1", "0", "50 %"]);
  const still = { decode: 0, prefill: 0, running: 0, waiting: 0, used: 0 };
  assert.deepEqual(shown(still), ["0 tok/s", "0 tok/s", "0", "0", "0 %"]);
});
