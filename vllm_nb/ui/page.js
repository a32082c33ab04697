// The page at /: a chat, the conversations of this browser beside it, light or dark.

import { ChatView } from "./chat.js";
import { download, icon, iconButton, pickFile } from "./dom.js";
import { Session } from "./session.js";
import { Sidebar } from "./sidebar.js";
import { Store } from "./store.js";
import { Conversation, textOf } from "./tree.js";

const UNTITLED = "New conversation";
const TITLE_LENGTH = 60;
const LAST = "vllm_nb.last"; // keys of localStorage
const THEME = "vllm_nb.theme";

class Page {
  constructor() {
    this.store = new Store();
    this.model = "";
    this.removed = new Set(); // what an answer still being written must not bring back
    this.theme = iconButton("moon", "Dark or light", () => this.setTheme(isDark() ? "light" : "dark"));
    this.menu = iconButton("menu", "Conversations", () => this.toggleSidebar(), {
      "aria-expanded": "false", "aria-controls": "side",
    });
    this.chat = new ChatView(document.getElementById("chat"), this.#chatActions(), { title: UNTITLED, tools: [this.theme] });
    this.chat.title.before(this.menu);
    this.sidebar = new Sidebar(document.getElementById("side"), {
      open: (id) => this.open(id),
      create: () => this.create(),
      rename: (id, title) => this.rename(id, title),
      remove: (id) => this.remove(id),
      importFile: () => this.importFile(),
      exportJson: () => this.#offer("json", JSON.stringify(this.conversation.toDict(), null, 1), "application/json"),
      exportMarkdown: () => this.#offer("md", this.conversation.toMarkdown(), "text/markdown"),
    });
    document.addEventListener("keydown", (event) => this.#shortcut(event), true);
    this.#use(new Conversation(), newId());
  }

  async start() {
    this.setTheme(localStorage.getItem(THEME));
    if (location.hash) history.replaceState(null, "", "./"); // the key of a link that was followed
    const last = localStorage.getItem(LAST);
    if (last && !this.conversation.turns.size) await this.open(last);
    await this.list();
    const response = await fetch("v1/models");
    const [card] = response.ok ? (await response.json()).data : [];
    if (card) this.model = `${card.id} · ${card.max_model_len.toLocaleString("en")} tokens`;
    this.draw();
    this.chat.composer.focus();
  }

  get conversation() {
    return this.session.conversation;
  }

  #chatActions() {
    return {
      send: (content) => this.session.send(content),
      stop: () => this.session.stop(),
      edit: (turn, text) => this.session.edit(turn, text),
      regenerate: (turn) => this.session.regenerate(turn),
      branch: (turn) => {
        this.session.change("rewind", turn);
        this.chat.composer.focus();
      },
      remove: (turn) => this.session.change("remove", turn),
      select: (turn) => this.session.change("select", turn),
      configure: (settings) => this.save(Object.assign(this.conversation, settings)),
    };
  }

  draw() {
    const { conversation, live, busy, elapsed } = this.session;
    this.chat.title.textContent = conversation.title || UNTITLED;
    document.title = `${conversation.title || "Chat"} · vllm_nb`;
    this.chat.render({ conversation, live, busy, elapsed, model: this.model });
  }

  // Conversations

  #use(conversation, id) {
    this.session?.stop(); // nobody would see the rest of that answer
    this.id = id;
    const session = new Session(conversation, {
      changed: () => session === this.session && this.draw(),
      saved: () => this.save(conversation, id),
    });
    this.session = session;
    this.chat.reset();
    this.draw();
  }

  async show(conversation, id) {
    this.#use(conversation, id);
    localStorage.setItem(LAST, id);
    await this.list();
    this.toggleSidebar(false);
    this.chat.composer.focus();
  }

  create() {
    return this.show(new Conversation(), newId());
  }

  async open(id) {
    const record = await this.store.get(id);
    if (record) await this.show(Conversation.fromDict(record.data), id);
  }

  // An empty conversation is not kept; the first question is its title until it is renamed.
  async save(conversation, id = this.id) {
    if (!conversation.turns.size || this.removed.has(id)) return;
    conversation.title ||= textOf(conversation.branch[0] ?? { content: "" }).slice(0, TITLE_LENGTH).split("\n")[0];
    await this.store.put({ id, title: conversation.title, updated: Date.now(), data: conversation.toDict() });
    localStorage.setItem(LAST, this.id);
    await this.list();
    this.chat.title.textContent = this.conversation.title || UNTITLED;
  }

  async list() {
    this.sidebar.show(await this.store.list(), this.id);
  }

  async rename(id, title) {
    const record = await this.store.get(id);
    record.title = record.data.title = title;
    await this.store.put(record);
    if (id === this.id) this.conversation.title = title;
    this.draw();
    await this.list();
  }

  async remove(id) {
    this.removed.add(id);
    await this.store.remove(id);
    await (id === this.id ? this.create() : this.list());
  }

  async importFile() {
    const text = await pickFile(".json,application/json");
    if (text === undefined) return;
    try {
      await this.show(Conversation.fromDict(JSON.parse(text)), newId());
      await this.save(this.conversation);
    } catch (error) {
      this.chat.notify(`This file cannot be imported: ${error.message}`);
    }
  }

  #offer(ending, text, type) {
    const name = (this.conversation.title || "conversation").replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, TITLE_LENGTH);
    download(`${name}.${ending}`, text, type);
  }

  // The page

  setTheme(name) {
    if (name) {
      document.documentElement.dataset.theme = name;
      localStorage.setItem(THEME, name);
    }
    this.theme.replaceChildren(icon(isDark() ? "sun" : "moon"));
  }

  toggleSidebar(open = !document.body.classList.contains("page-open-side")) {
    document.body.classList.toggle("page-open-side", open);
    this.menu.setAttribute("aria-expanded", String(open));
  }

  #shortcut(event) {
    if (event.altKey && event.code === "KeyN") this.create();
    else if (event.altKey && event.code === "KeyP") this.chat.toggleSettings();
    else if (event.key === "Escape" && this.session.busy) this.session.stop();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

// Not randomUUID, which pages have only on https and localhost.
function newId() {
  return [...crypto.getRandomValues(new Uint8Array(8))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

new Page().start();
