// A whole chat: the turns, the composer, the parameters. It draws a state and calls actions; where the answers come from
// (fetch on the page, comms in a notebook) is not its business.

import { Composer } from "./composer.js";
import { h, icon, iconButton } from "./dom.js";
import { Settings } from "./settings.js";
import { TurnView } from "./turn.js";

const NEAR_END = 60; // pixels: who reads the end keeps seeing it

export class ChatView {
  #views = new Map(); // of the turns that are shown, by id
  #spoken = "";

  // actions: send, stop, edit, regenerate, branch, remove, select, configure. tools: elements for the head.
  constructor(root, actions, { title, tools = [] }) {
    this.actions = actions;
    this.title = h("h1", { class: "vn-title" }, title);
    this.model = h("span", { class: "vn-model" });
    this.settings = new Settings(actions.configure);
    this.settings.element.hidden = true;
    this.toggle = iconButton("sliders", "Parameters", () => this.toggleSettings(), {
      "aria-expanded": "false", "aria-controls": this.settings.element.id,
    });
    this.log = h("div", { class: "vn-log", role: "log", "aria-label": "Conversation", tabindex: "0" });
    this.jump = h("button", { type: "button", class: "vn-button vn-jump", hidden: true, "aria-label": "Jump to the end",
      onclick: () => this.#toEnd() }, icon("down"));
    this.status = h("div", { class: "vn-hidden", role: "status" });
    this.notice = h("div", { class: "vn-notice", role: "alert", hidden: true });
    this.composer = new Composer(actions, (text) => this.notify(text));
    this.root = root;
    root.classList.add("vn-chat");
    root.append(
      h("header", { class: "vn-head" }, this.title, this.model, h("span", { class: "vn-space" }), ...tools, this.toggle),
      h("div", { class: "vn-main" },
        h("div", { class: "vn-column" }, this.log, this.jump, this.notice, this.composer.element, this.status),
        this.settings.element));
    this.log.addEventListener("scroll", () => (this.jump.hidden = this.#atEnd()));
    root.addEventListener("keydown", (event) => this.#key(event));
  }

  // state: {conversation, live: {id, tokens, rate, ttft} or null, busy, elapsed: seconds, model, notice, hint,
  // gone: nobody takes what is written}
  render(state) {
    const following = this.#atEnd();
    this.state = state;
    const { conversation, live, busy, elapsed = 0 } = state;
    const branch = conversation.branch;
    this.#keepOnly(branch);
    branch.forEach((turn, at) => {
      const view = this.#view(turn);
      if (this.log.children[at] !== view.element) this.log.insertBefore(view.element, this.log.children[at] ?? null);
      view.update(turn, { siblings: conversation.siblings(turn.id), busy, live: live?.id === turn.id ? live : null, elapsed });
    });
    this.#greet(branch.length === 0, state.hint);
    this.model.textContent = state.model ?? "";
    this.settings.show(conversation);
    this.composer.setBusy(busy, state.gone);
    if (state.notice !== undefined) this.notify(state.notice);
    this.#announce(busy, branch.at(-1));
    if (following) this.#toEnd();
    this.jump.hidden = this.#atEnd();
  }

  notify(text) {
    this.notice.textContent = text ?? "";
    this.notice.hidden = !text;
  }

  toggleSettings() {
    const open = this.settings.element.hidden;
    this.settings.element.hidden = !open;
    this.toggle.setAttribute("aria-expanded", String(open));
    if (open) this.settings.element.querySelector("textarea").focus();
  }

  #view(turn) {
    if (!this.#views.has(turn.id)) this.#views.set(turn.id, new TurnView(turn, this.actions));
    return this.#views.get(turn.id);
  }

  #keepOnly(branch) {
    const shown = new Set(branch.map(({ id }) => id));
    for (const [id, view] of this.#views) {
      if (shown.has(id)) continue;
      view.element.remove();
      this.#views.delete(id);
    }
  }

  // Another conversation: turns with the same ids are not the same turns.
  reset() {
    for (const view of this.#views.values()) view.element.remove();
    this.#views.clear();
    this.notify("");
  }

  #greet(empty, hint) {
    this.greeting?.remove();
    this.greeting = null;
    if (!empty) return;
    this.greeting = this.log.appendChild(h("div", { class: "vn-greeting" }, h("p", {}, "Ask the model something."),
      h("p", {}, hint ?? "Enter or Ctrl+Enter sends, Shift+Enter begins a new line, Esc stops an answer.")));
  }

  // For those who listen: the state once, not every token.
  #announce(busy, last) {
    const now = busy ? "The model is answering." : last?.finish_reason === "abort" ? "Stopped." : last?.error ? "" : "Ready.";
    if (now === this.#spoken) return;
    this.#spoken = now;
    this.status.textContent = now;
  }

  #key(event) {
    if (event.key !== "Escape" || !this.state?.busy) return;
    this.actions.stop();
    event.preventDefault();
  }

  #atEnd() {
    return this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < NEAR_END;
  }

  #toEnd() {
    this.log.scrollTop = this.log.scrollHeight;
  }
}
