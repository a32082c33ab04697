// The chat in a notebook: state comes in traits, actions go as messages; see vllm_nb/notebook/chat_widget.py.

import { ChatView } from "./chat.js";
import { download, h, iconButton, pickFile } from "./dom.js";
import { isAlive, watchKernel } from "../notebook/panels/static/kernel.js";
import { Conversation } from "./tree.js";

const PATIENCE = 1500; // ms until a message that the kernel has not taken is worth a word
const BUSY = "The kernel is busy with a cell and takes this up when the cell ends. Interrupt the cell (■ above the notebook) to have it now.";
const GONE = "The kernel was restarted: run the cell again for a new chat. Export still saves this one, as JSON or Markdown.";
const TRAITS = ["state", "generation", "live", "busy", "model", "notice"];

/** What stands above the composer. gone: the kernel is another one; late: it has not taken a message for a while. */
function noticeOf({ gone, late, notice }) {
  return gone ? GONE : late ? BUSY : notice;
}

class Widget {
  #waiting = new Map(); // timers of messages that are not taken yet, by id
  #actions = {};

  constructor(model, el) {
    this.model = model;
    this.root = h("div", { class: "vllm-nb vn-widget" });
    this.root.style.height = `${model.get("height")}px`;
    el.append(this.root);
    for (const name of ["send", "stop", "edit", "regenerate", "branch", "remove", "select", "configure", "reset", "load"]) {
      this.#actions[name] = (...args) => this.#tell(name, args);
    }
    this.view = new ChatView(this.root, this.#actions, { title: "Chat", tools: this.#tools() });
    this.generation = model.get("generation");
    this.draw = this.draw.bind(this);
    this.receive = this.receive.bind(this);
    this.root.addEventListener("keydown", keepFromJupyter);
    for (const name of TRAITS) model.on(`change:${name}`, this.draw);
    model.on("msg:custom", this.receive);
    this.timer = setInterval(() => model.get("busy") && this.draw(), 250); // the seconds until the first token
    this.draw();
    this.stopAsking = watchKernel(model, this.root, (isThere) => this.#setGone(!isThere));
  }

  close() {
    clearInterval(this.timer);
    this.stopAsking();
    for (const timer of this.#waiting.values()) clearTimeout(timer);
    for (const name of TRAITS) this.model.off(`change:${name}`, this.draw);
    this.model.off("msg:custom", this.receive);
  }

  draw() {
    const { model, view } = this;
    if (this.generation !== model.get("generation")) view.reset();
    this.generation = model.get("generation");
    const conversation = Conversation.fromDict(model.get("state"));
    const live = model.get("live");
    const turn = live && conversation.turns.get(live.id);
    if (turn) Object.assign(turn, { content: live.content, reasoning: live.reasoning });
    if (live?.id !== this.liveId) [this.liveId, this.began] = [live?.id, performance.now()];
    const elapsed = (performance.now() - this.began) / 1000;
    view.title.textContent = conversation.title || "Chat";
    const { gone, late } = this;
    const writing = gone ? { live: null, busy: false } : { live, busy: model.get("busy") };
    const notice = noticeOf({ gone, late, notice: model.get("notice") });
    view.render({ conversation, ...writing, elapsed, gone, model: model.get("model"), notice });
  }

  receive({ handled, export: kind, content }) {
    if (kind === "notebook") download("chat.ipynb", JSON.stringify(content, null, 1), "application/x-ipynb+json");
    if (!this.#waiting.has(handled)) return;
    clearTimeout(this.#waiting.get(handled));
    this.#waiting.delete(handled);
    this.#setLate(false);
  }

  #tell(action, args) {
    const id = [...crypto.getRandomValues(new Uint32Array(2))].join("-");
    this.#waiting.set(id, setTimeout(() => this.#setLate(true), PATIENCE));
    try {
      this.model.send({ id, action, args });
    } catch {
      this.#setGone(true);
    }
  }

  async #setLate(late) {
    this.late = late && this.#waiting.size > 0;
    this.draw();
    if (this.late && !(await isAlive(this.model))) this.#setGone(true); // one that is busy answers when it is not
  }

  #setGone(gone) {
    this.gone = gone;
    this.draw();
  }

  // New, import and the three kinds of export
  #tools() {
    const saved = () => this.model.get("state");
    const exports = {
      JSON: () => download("chat.json", JSON.stringify(saved(), null, 1), "application/json"),
      Markdown: () => download("chat.md", Conversation.fromDict(saved()).toMarkdown(), "text/markdown"),
      Notebook: () => this.#tell("export", ["notebook"]),
    };
    const menu = h("div", { class: "vn-menu", role: "menu", hidden: true }, ...Object.entries(exports).map(([name, act]) =>
      h("button", { type: "button", role: "menuitem", class: "vn-button", onclick: () => (toggle(false), act()) }, name)));
    const toggle = (open) => {
      menu.hidden = !open;
      button.setAttribute("aria-expanded", String(open));
      if (open) menu.firstChild.focus();
    };
    const button = iconButton("export", "Export", () => toggle(menu.hidden), { "aria-haspopup": "menu", "aria-expanded": "false" });
    const box = h("span", { class: "vn-anchor" }, button, menu);
    box.addEventListener("focusout", (event) => box.contains(event.relatedTarget) || toggle(false));
    box.addEventListener("keydown", (event) => event.key === "Escape" && (toggle(false), button.focus()));
    return [
      iconButton("plus", "New conversation", () => this.#actions.reset()),
      iconButton("import", "Import JSON", () => this.#import()),
      box,
    ];
  }

  async #import() {
    const text = await pickFile(".json,application/json");
    if (text === undefined) return;
    try {
      this.#actions.load(Conversation.fromDict(JSON.parse(text)).toDict());
    } catch (error) {
      this.view.notify(`This file cannot be imported: ${error.message}`);
    }
  }
}

// What is typed in here is not for Jupyter's own shortcuts, but Ctrl+S and its like are.
function keepFromJupyter(event) {
  if (!(event.ctrlKey || event.metaKey) || event.key === "Enter") event.stopPropagation();
}

function render({ model, el }) {
  const widget = new Widget(model, el);
  return () => widget.close();
}

export default { render };
