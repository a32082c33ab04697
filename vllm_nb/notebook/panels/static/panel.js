// What all panels have in common: a box, the transport bar, frames that are answered, and what is said when the engine
// or the kernel is gone.

import { html } from "./dom.js";
import { watchKernel } from "./kernel.js";
import { transportBar } from "./transport.js";

/**
 * A module for anywidget. build(box, model) makes the picture in `box` and returns update(state), which is called with
 * each new state, at most once between two paintings of the page; update.end, where there is one, when the view goes.
 */
export function panel(title, build) {
  return { render: ({ model, el }) => show(title, build, model, el) };
}

function show(title, build, model, el) {
  const view = Math.random().toString(36).slice(2);
  const body = html("div", { class: "vn-body" });
  const tell = (message) => {
    try {
      model.send(message);
    } catch {
      // The kernel is gone, which the bar says.
    }
  };
  const bar = transportBar(tell);
  const instead = html("style", {}, `.vn-picture-${model.get("panel_id")} { display: none }`); // picture.py
  const box = html("section", { class: "vllm-nb vn-panel", "aria-label": title }, instead, body, bar.element);
  box.addEventListener("keydown", keepFromNotebook);
  el.append(box);
  const update = build(body, model);

  let waiting = false;
  const draw = () => {
    waiting = false;
    update(model.get("state"));
    const transport = model.get("transport");
    bar.element.hidden = !("step" in transport); // a picture without a player
    if (!bar.element.hidden) bar.update(transport);
    tell({ type: "drawn", frame: model.get("frame") });
  };
  const redraw = () => {
    if (!waiting) requestAnimationFrame(draw);
    waiting = true;
  };
  model.on("change:state change:transport", redraw);

  let number = 0; // messages may overtake each other: one way leads past a cell that runs, another does not
  const seen = (visible) => tell({ type: "seen", view, number: (number += 1), visible });
  const stopWatching = watchVisible(box, seen);
  draw();
  const stopAsking = watchKernel(model, box, (isThere) => bar.setKernel(isThere));

  return () => {
    stopWatching();
    update.end?.();
    model.off("change:state change:transport", redraw);
    stopAsking();
    seen(false);
  };
}

/** Keys belong to the control that has the focus: JupyterLab would go to another cell, or begin to edit one. */
function keepFromNotebook(event) {
  const meantForIt = event.ctrlKey || event.metaKey || event.altKey || (event.shiftKey && event.key === "Enter");
  if (!meantForIt && event.target.closest("button, select, input, summary")) event.stopPropagation();
}

/** Calls back whenever it changes whether a reader can see the element. Returns the way to end it. */
function watchVisible(element, callback) {
  let inView = false;
  let told = null;
  const tell = () => {
    const visible = inView && document.visibilityState === "visible";
    if (visible !== told) callback((told = visible));
  };
  const observer = new IntersectionObserver((entries) => {
    inView = entries[entries.length - 1].isIntersecting;
    tell();
  });
  observer.observe(element);
  document.addEventListener("visibilitychange", tell);
  return () => {
    observer.disconnect();
    document.removeEventListener("visibilitychange", tell);
  };
}
