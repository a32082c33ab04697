// The bar below a panel: play, halt, seek, speed, and what there is to say of engine and kernel.

import { html, svg } from "./dom.js";

const SPEEDS = [0.1, 0.25, 0.5, 1, 2, 5, 10];
const SHAPES = { // paths in a square of 12; the characters for them come as coloured emoji in some browsers
  back: "M1 1h2v10h-2z M11 1v10L4 6z",
  play: "M2 1v10l9-5z",
  halt: "M2 1h3v10h-3z M7 1h3v10h-3z",
  forward: "M1 1v10l7-5z M9 1h2v10h-2z",
};

/** What stands at the end of the bar: [text, whether it is bad news]. transport: see player.py. */
export function statusOf(transport, alive) {
  if (!alive) return ["the kernel was restarted: run the cell again, and the panel goes on", true];
  if (transport.error) return [`the engine is gone: ${transport.error}`, true];
  const parts = [`step ${transport.step}`];
  if (!transport.following) parts.push(`of ${transport.first} to ${transport.last}`);
  if (transport.paused) parts.push("engine paused");
  if (transport.lost) parts.push(`${transport.lost} events lost`);
  return [parts.join(" · "), false];
}

/** The bar, for `send`, which takes messages to the kernel. */
export function transportBar(send) {
  let transport = null;
  let alive = true;
  const step = (by) => send({ type: "seek", step: transport.step + by });
  const button = (label, words, action) =>
    html("button", { type: "button", "aria-label": words, title: words, onclick: action }, label);
  const icon = (shape) => svg("svg", { viewBox: "0 0 12 12", "aria-hidden": "true" }, svg("path", { d: SHAPES[shape] }));
  const back = button(icon("back"), "one step back", () => step(-1));
  const play = button(icon("play"), "play", () => send({ type: transport.playing ? "halt" : "play" }));
  const forward = button(icon("forward"), "one step on", () => step(1));
  const live = button("live", "show what happens now", () => send({ type: "follow" }));
  const slider = html("input", { type: "range", class: "vn-seek", "aria-label": "step", min: 0, max: 0, step: 1 });
  slider.addEventListener("input", () => send({ type: "seek", step: slider.valueAsNumber }));
  const speed = html(
    "select",
    { "aria-label": "speed", onchange: () => send({ type: "speed", speed: Number(speed.value) }) },
    ...SPEEDS.map((value) => html("option", { value }, `${value}×`)),
  );
  const status = html("span", { class: "vn-status", role: "status" });
  const element = html("div", { class: "vn-transport" }, back, play, forward, slider, speed, live, status);

  const show = () => {
    if (!transport) return;
    play.querySelector("path").setAttribute("d", SHAPES[transport.playing ? "halt" : "play"]);
    play.title = transport.playing ? "halt the picture" : "play";
    play.setAttribute("aria-label", play.title);
    live.hidden = !transport.live;
    live.setAttribute("aria-pressed", String(transport.following));
    if (document.activeElement !== slider || transport.playing) {
      Object.assign(slider, { min: transport.first, max: transport.last });
      slider.value = transport.step;
    }
    speed.value = transport.speed;
    speed.hidden = transport.following;
    const [text, bad] = statusOf(transport, alive);
    if (status.textContent !== text) status.textContent = text;
    status.classList.toggle("vn-bad", bad);
    for (const control of [back, play, forward, slider, speed, live]) control.disabled = !alive;
  };
  return {
    element,
    update(next) {
      transport = next;
      show();
    },
    setKernel(isThere) {
      alive = isThere;
      show();
    },
  };
}
