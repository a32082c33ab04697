import assert from "node:assert/strict";
import { test } from "node:test";

import { isAlive, watchKernel } from "./kernel.js";

globalThis.window = new EventTarget();

/** A model of anywidget's in JupyterLab: `speak(session)` is a message of its kernel, `comms` what that one knows. */
function modelIn(comms) {
  const slots = new Set();
  const kernel = { anyMessage: { connect: (slot) => slots.add(slot), disconnect: (slot) => slots.delete(slot) } };
  const manager = { kernel, get_model: async () => ({ comm_live: true }), _get_comm_info: async () => comms };
  const speak = (session) => slots.forEach((slot) => slot(kernel, { msg: { header: { session } }, direction: "recv" }));
  return { widget_manager: manager, get: () => "m1", on() {}, off() {}, speak, slots };
}

/** Collects what is told; `next()` is the next of it. */
function listener() {
  const [told, waiting] = [[], []];
  const take = (value) => (waiting.length ? waiting.shift()(value) : told.push(value));
  return { take, told, next: () => (told.length ? told.shift() : new Promise((resolve) => waiting.push(resolve))) };
}

test("a kernel that has been restarted is noticed by its first word, or when a reader comes", async () => {
  const comms = { m1: {} };
  const [model, element, heard] = [modelIn(comms), new EventTarget(), listener()];
  const stop = watchKernel(model, element, heard.take);
  assert.equal(await heard.next(), true);
  model.speak("one");
  model.speak("one");
  assert.deepEqual(heard.told, []);
  model.speak("two");
  assert.equal(await heard.next(), false);
  delete comms.m1;
  for (const [target, name] of [[element, "pointerenter"], [element, "focusin"], [window, "focus"]]) {
    target.dispatchEvent(new Event(name));
    assert.equal(await heard.next(), false);
  }
  stop();
  assert.equal(model.slots.size, 0);
});

test("a model that the page does not know any more has no kernel", async () => {
  const model = modelIn({ m1: {} });
  assert.equal(await isAlive(model), true);
  model.widget_manager.get_model = () => Promise.reject(new Error("widget model not found"));
  assert.equal(await isAlive(model), false);
});
