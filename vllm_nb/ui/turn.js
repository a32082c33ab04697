// One turn on the page: who speaks, images, reasoning, text, what it cost, and what can be done with it.

import { copyText, h, icon, iconButton } from "./dom.js";
import { MarkdownView } from "./render.js";
import { imagesOf, nameOf, textOf } from "./tree.js";

export class TurnView {
  #text = null;
  #reasoning = null;
  #shown = {};

  // actions: edit(id, text), regenerate(id), branch(id), remove(id), select(id)
  constructor(turn, actions) {
    this.id = turn.id;
    this.actions = actions;
    this.name = h("div", { class: "vn-name" }, nameOf(turn.role));
    this.body = h("div", { class: "vn-body" });
    this.facts = h("div", { class: "vn-facts" });
    this.tools = h("div", { class: "vn-tools" });
    this.foot = h("div", { class: "vn-foot" }, this.tools, this.facts);
    this.element = h("article", { class: `vn-turn vn-${turn.role}`, "aria-label": nameOf(turn.role), "data-turn": turn.id },
      this.name, this.body, this.foot);
  }

  // state: siblings: turns; busy: an answer is being written somewhere; live: {tokens, rate, ttft} where it is this one;
  // elapsed: seconds since it was asked for
  update(turn, state) {
    this.turn = turn;
    if (this.editing) return;
    this.#showContent(turn, state);
    const { siblings, busy, live } = state;
    const tools = JSON.stringify([siblings.map(({ id }) => id), busy]);
    if (tools !== this.#shown.tools) this.tools.replaceChildren(...this.#buttons(turn, siblings, busy));
    this.#shown.tools = tools;
    this.facts.replaceChildren(...(live ? [progress(live, state.elapsed)] : facts(turn)));
    this.element.classList.toggle("vn-live", Boolean(live));
    this.element.setAttribute("aria-busy", String(Boolean(live)));
  }

  #showContent(turn, { live }) {
    const content = JSON.stringify([textOf(turn), turn.reasoning, turn.error, Boolean(live), turn.tool_calls]);
    if (content === this.#shown.content) return;
    this.#shown.content = content;
    if (!this.#text) {
      const images = imagesOf(turn).map((url) => picture(url));
      this.text = h("div", { class: "vn-text" });
      this.#text = turn.role === "assistant" ? new MarkdownView(this.text) : { update: (text) => (this.text.textContent = text) };
      this.body.append(...(images.length ? [h("div", { class: "vn-images" }, ...images)] : []), this.text);
    }
    if (turn.reasoning) this.#showReasoning(turn, live);
    this.#text.update(textOf(turn));
    this.#showCalls(turn);
    this.#showError(turn.error);
  }

  #showReasoning(turn, live) {
    if (!this.#reasoning) {
      const inner = h("div", { class: "vn-text" });
      this.summary = h("summary");
      this.#reasoning = new MarkdownView(inner);
      this.text.before(h("details", { class: "vn-reasoning" }, this.summary, inner));
    }
    this.summary.textContent = live && !textOf(turn) ? "Thinking …" : "Reasoning";
    this.#reasoning.update(turn.reasoning);
  }

  #showCalls({ tool_calls }) {
    if (!tool_calls.length) return;
    this.calls ??= this.body.appendChild(h("div", { class: "vn-calls" }));
    const calls = tool_calls.map(({ function: call }) => h("code", {}, `${call.name}(${call.arguments})`));
    this.calls.replaceChildren(...calls);
  }

  #showError(error) {
    this.error?.remove();
    this.error = error && this.body.appendChild(h("div", { class: "vn-error", role: "alert" }, error));
  }

  #buttons(turn, siblings, busy) {
    const { actions, id } = this;
    const off = { disabled: busy };
    const copy = iconButton("copy", "Copy text", async () => {
      await copyText(textOf(this.turn));
      copy.replaceChildren(icon("check"));
      setTimeout(() => copy.replaceChildren(icon("copy")), 1500);
    });
    return [
      ...(siblings.length > 1 ? [this.#switch(siblings, busy)] : []),
      copy,
      iconButton("edit", "Edit: makes a new branch", () => this.#edit(), off),
      ...(turn.role === "assistant" ? [
        iconButton("redo", "Answer again: makes a new branch", () => actions.regenerate(id), off),
        iconButton("branch", "Branch off here", () => actions.branch(id), off),
      ] : []),
      iconButton("trash", "Delete this and what follows", () => actions.remove(id), off),
    ];
  }

  // ‹ 2/3 ›
  #switch(siblings, busy) {
    const at = siblings.findIndex(({ id }) => id === this.id);
    const arrow = (name, label, step) => {
      const other = siblings[at + step];
      const go = () => this.actions.select(other.id);
      return iconButton(name, label, go, { disabled: busy || !other });
    };
    const place = h("span", { "aria-label": `version ${at + 1} of ${siblings.length}` }, `${at + 1}/${siblings.length}`);
    return h("span", { class: "vn-switch", role: "group", "aria-label": "Versions" },
      arrow("left", "Previous version", -1), place, arrow("right", "Next version", 1));
  }

  #edit() {
    this.editing = true;
    const close = () => {
      this.editing = false;
      form.replaceWith(this.body);
      this.foot.hidden = false;
      this.tools.querySelector("[aria-label^=Edit]")?.focus();
    };
    const save = () => {
      close();
      this.actions.edit(this.id, area.value);
    };
    const area = h("textarea", { class: "vn-input", value: textOf(this.turn), "aria-label": "Text of this turn", rows: "3" });
    const verb = this.turn.role === "user" ? "Send" : "Keep";
    const form = h("form", { class: "vn-edit" }, area, h("div", { class: "vn-row" },
      h("button", { type: "button", class: "vn-button vn-framed", onclick: close }, "Cancel"),
      h("button", { class: "vn-button vn-primary" }, verb)));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      save();
    });
    form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") close();
      else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    this.foot.hidden = true;
    this.body.replaceWith(form);
    area.style.height = `${Math.min(area.scrollHeight + 4, 400)}px`;
    area.focus();
  }
}

// Pictures only from the conversation itself: an address elsewhere is shown as such.
function picture(url) {
  if (url.startsWith("data:image/")) return h("img", { src: url, alt: "attached image" });
  return h("code", {}, url);
}

// What is known while an answer is being written.
function progress({ tokens, rate, ttft }, elapsed) {
  const parts = tokens
    ? [count(tokens), rate ? `${rate.toFixed(1)} tok/s` : "", `first token ${ttft.toFixed(2)} s`]
    : [`waiting for the first token: ${elapsed.toFixed(1)} s`];
  return h("span", { class: "vn-pulse" }, parts.filter(Boolean).join(" · "));
}

// What an answer cost, and why it ended where that is worth a word.
function facts({ usage, timings, finish_reason }) {
  const parts = [];
  if (usage) parts.push(count(usage.completion_tokens));
  if (timings?.decode_tokens_per_s) parts.push(`${timings.decode_tokens_per_s.toFixed(1)} tok/s`);
  if (timings?.ttft_s) parts.push(`first token ${timings.ttft_s.toFixed(2)} s`);
  if (usage?.cached_tokens) parts.push(`${usage.cached_tokens} of ${usage.prompt_tokens} prompt tokens from cache`);
  if (finish_reason === "length") parts.push("cut off at max_tokens or the context’s end");
  if (finish_reason === "abort") parts.push("stopped");
  return parts.length ? [parts.join(" · ")] : [];
}

function count(tokens) {
  return tokens === 1 ? "1 token" : `${tokens} tokens`;
}
