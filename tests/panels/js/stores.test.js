import assert from "node:assert/strict";
import { test } from "node:test";

import { rowStore, storeOf } from "./stores.js";

test("messages bring the rows up to date, and a lost one is noticed", () => {
  const asked = [];
  const heard = [];
  const store = rowStore({ rows: ["a", "b"], frame: 5 }, () => asked.push(store.frame));
  store.listen((keep) => heard.push(keep));
  store.take({ frame: 6, previous: 3, keep: 2, rows: ["c"] });
  assert.deepEqual(store.rows, ["a", "b", "c"]);
  store.take({ frame: 9, previous: 8, keep: 5, rows: ["f"] }); // frame 8 never came
  assert.deepEqual([store.rows, asked], [["a", "b", "c"], [6]]);
  store.take({ frame: 9, previous: 9, keep: 0, rows: ["x", "y"] });
  store.take({ frame: 10, previous: 9, keep: 1, rows: [] });
  assert.deepEqual([store.rows, heard], [["x"], [2, 0, 1]]);
});

test("all views of a model share a store", () => {
  const listeners = [];
  const model = { get: () => "an id", on: (_, callback) => listeners.push(callback), send: () => {} };
  const make = (ask) => rowStore({ rows: [], frame: 0 }, ask);
  const store = storeOf(model, "rows", make);
  assert.equal(storeOf(model, "rows", make), store);
  assert.equal(listeners.length, 1);
  listeners[0]({ type: "other", frame: 1, previous: 0, keep: 0, rows: [1] });
  listeners[0]({ type: "rows", frame: 1, previous: 0, keep: 0, rows: [2] });
  assert.deepEqual(store.rows, [2]);
});
