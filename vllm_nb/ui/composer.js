// Where the next message is written: text, images by button, paste or drop, and one button that sends or stops.

import { h, icon, iconButton } from "./dom.js";

const MAX_IMAGE = 10 * 2 ** 20; // bytes; a request may have 32 MiB, in base64

export class Composer {
  #images = [];
  #busy = false;

  // actions: send(content), stop(); notify(text): tell the user what is wrong
  constructor(actions, notify) {
    this.actions = actions;
    this.notify = notify;
    const hint = "Message the model";
    this.area = h("textarea", { class: "vn-input", rows: "1", placeholder: hint, "aria-label": hint, oninput: () => this.#fit() });
    this.files = h("input", { type: "file", accept: "image/*", multiple: true, hidden: true, tabindex: "-1" });
    this.files.addEventListener("change", () => this.#attach(this.files.files));
    this.previews = h("div", { class: "vn-images" });
    this.button = h("button", { class: "vn-button vn-primary vn-send" });
    this.element = h("form", { class: "vn-composer" }, this.previews, h("div", { class: "vn-row" },
      iconButton("attach", "Attach images", () => this.files.click()), this.files, this.area, this.button));
    this.#listen();
    this.setBusy(false);
  }

  focus() {
    this.area.focus();
  }

  // gone: nobody would take what is sent, so that it stays here
  setBusy(busy, gone = false) {
    this.#busy = busy;
    this.button.disabled = gone;
    const label = busy ? "Stop (Esc)" : "Send (Ctrl+Enter)";
    this.button.replaceChildren(icon(busy ? "stop" : "send"));
    this.button.classList.toggle("vn-stop", busy);
    this.button.title = label;
    this.button.setAttribute("aria-label", label);
  }

  #listen() {
    this.element.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#busy) this.actions.stop();
      else this.#send();
    });
    this.area.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.isComposing) return;
      const sends = event.ctrlKey || event.metaKey || !(event.shiftKey || matchMedia("(pointer: coarse)").matches);
      if (!sends) return;
      event.preventDefault();
      if (!this.#busy) this.#send();
    });
    this.area.addEventListener("paste", (event) => this.#take(event, event.clipboardData.files));
    this.element.addEventListener("dragover", (event) => event.preventDefault());
    this.element.addEventListener("drop", (event) => this.#take(event, event.dataTransfer.files));
  }

  #send() {
    const text = this.area.value.trim();
    if (this.button.disabled || (!text && !this.#images.length)) return;
    const images = this.#images.map((url) => ({ type: "image_url", image_url: { url } }));
    this.actions.send(images.length ? [...images, ...(text ? [{ type: "text", text }] : [])] : text);
    this.area.value = "";
    this.#images = [];
    this.#show();
    this.#fit();
  }

  #take(event, files) {
    if (!files.length) return;
    event.preventDefault();
    this.#attach(files);
  }

  async #attach(files) {
    for (const file of files) {
      if (!file.type.startsWith("image/")) this.notify(`${file.name} is no image`);
      else if (file.size > MAX_IMAGE) this.notify(`${file.name} is larger than ${MAX_IMAGE / 2 ** 20} MiB`);
      else this.#images.push(await dataUrl(file));
    }
    this.files.value = "";
    this.#show();
    this.focus();
  }

  #show() {
    this.previews.replaceChildren(...this.#images.map((url, at) => {
      const remove = iconButton("close", `Remove image ${at + 1}`, () => {
        this.#images.splice(at, 1);
        this.#show();
        this.focus();
      });
      return h("span", { class: "vn-preview" }, h("img", { src: url, alt: `image ${at + 1} to send` }), remove);
    }));
  }

  // As high as its text, up to a limit that the style sheet sets.
  #fit() {
    this.area.style.height = "auto";
    this.area.style.height = `${this.area.scrollHeight + 2}px`;
  }
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
