// The list of conversations beside the chat: open, rename, delete, begin, export, import.

import { h, iconButton } from "./dom.js";

export class Sidebar {
  // actions: open(id), rename(id, title), remove(id), create(), importFile(), exportJson(), exportMarkdown()
  constructor(element, actions) {
    this.actions = actions;
    this.list = h("ul", { class: "page-list" });
    this.element = element;
    const button = (label, act) => h("button", { type: "button", class: "vn-button vn-framed", onclick: act }, label);
    element.append(
      h("div", { class: "page-side-head" }, h("strong", {}, "vllm_nb"),
        iconButton("plus", "New conversation (Alt+N)", actions.create, { class: "vn-button vn-primary" })),
      h("nav", { "aria-label": "Conversations" }, this.list),
      h("div", { class: "page-side-foot" }, button("Import", actions.importFile), button("Export JSON", actions.exportJson),
        button("Export Markdown", actions.exportMarkdown)));
  }

  show(entries, currentId) {
    this.list.replaceChildren(...entries.map((entry) => this.#item(entry, entry.id === currentId)));
  }

  #item({ id, title }, current) {
    const name = title || "New conversation";
    const item = h("li", { class: current ? "page-current" : null },
      h("button", { type: "button", class: "page-open", title: name, "aria-current": current ? "page" : null,
        onclick: () => this.actions.open(id) }, name),
      iconButton("edit", `Rename ${name}`, () => this.#rename(item, id, name)),
      iconButton("trash", `Delete ${name}`, () => this.#confirm(item, id, name)));
    return item;
  }

  #rename(item, id, name) {
    const input = h("input", { class: "vn-input", value: name, "aria-label": "Name of the conversation" });
    let open = true;
    const finish = (keep) => {
      if (!open) return; // leaving the field after Enter
      open = false;
      this.actions.rename(id, keep ? input.value.trim() || name : name);
    };
    input.addEventListener("blur", () => finish(true));
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") finish(true);
      if (event.key === "Escape") finish(false);
      event.stopPropagation();
    });
    item.replaceChildren(input);
    input.select();
  }

  // Asks in place: a dialogue of the browser would stop a streaming answer.
  #confirm(item, id, name) {
    const before = [...item.childNodes];
    const remove = h("button", { type: "button", class: "vn-button vn-danger", onclick: () => this.actions.remove(id) }, "Delete");
    const keep = h("button", { type: "button", class: "vn-button vn-framed", onclick: () => item.replaceChildren(...before) }, "Keep");
    item.replaceChildren(h("span", { class: "page-ask", role: "alert" }, `Delete “${name}”?`), remove, keep);
    remove.focus();
  }
}
