// Markdown on the page: elements made from the parser's tree, and of a text that grows only its end made anew.

import { copyText, h, icon } from "./dom.js";
import { highlight } from "./highlight.js";
import { MarkdownParser } from "./markdown.js";

const INLINE_TAGS = { strong: "strong", emphasis: "em", deleted: "del", group: "span" };

export class MarkdownView {
  #parser = new MarkdownParser();

  constructor(element) {
    this.element = element;
  }

  update(text) {
    const { blocks, kept } = this.#parser.update(text);
    while (this.element.childNodes.length > kept) this.element.lastChild.remove();
    this.element.append(...blocks.slice(kept).map(blockElement));
  }
}

function blockElement(block) {
  switch (block.type) {
    case "heading":
      return h(`h${Math.min(block.level + 2, 6)}`, { class: `vn-h${block.level}` }, ...inline(block.inline));
    case "rule":
      return h("hr");
    case "code":
      return codeElement(block);
    case "quote":
      return h("blockquote", {}, ...block.blocks.map(blockElement));
    case "list":
      return listElement(block);
    case "table":
      return tableElement(block);
    default:
      return h("p", {}, ...inline(block.inline));
  }
}

function inline(nodes) {
  return nodes.map((node) => {
    if (node.type === "text") return node.text;
    if (node.type === "break") return h("br");
    if (node.type === "code") return h("code", {}, node.text);
    if (node.type === "link") {
      const safe = { target: "_blank", rel: "noopener noreferrer nofollow" };
      return h("a", { href: node.href, ...safe }, ...inline(node.inline));
    }
    return h(INLINE_TAGS[node.type], {}, ...inline(node.inline));
  });
}

function listElement({ ordered, from, loose, items }) {
  const entries = items.map((blocks) => {
    const tight = !loose && blocks[0]?.type === "paragraph";
    const first = tight ? inline(blocks[0].inline) : [];
    return h("li", {}, ...first, ...blocks.slice(tight ? 1 : 0).map(blockElement));
  });
  return h(ordered ? "ol" : "ul", { start: ordered && from !== 1 ? from : null }, ...entries);
}

function tableElement({ aligns, head, rows }) {
  const row = (cells, tag) =>
    h("tr", {}, ...cells.map((cell, i) => h(tag, { class: aligns[i] && `vn-${aligns[i]}` }, ...inline(cell))));
  const table = h("table", {}, h("thead", {}, row(head, "th")), h("tbody", {}, ...rows.map((cells) => row(cells, "td"))));
  return h("div", { class: "vn-table", tabindex: "0", role: "region", "aria-label": "Table" }, table);
}

function codeElement({ language, text }) {
  const label = h("span", {}, "Copy");
  const copy = h("button", { type: "button", class: "vn-button" }, icon("copy"), label);
  copy.addEventListener("click", async () => {
    await copyText(text);
    label.textContent = "Copied";
    setTimeout(() => (label.textContent = "Copy"), 1500);
  });
  const pieces = highlight(text, language).map((piece) =>
    piece.kind ? h("span", { class: `vn-${piece.kind}` }, piece.text) : piece.text);
  const name = language || "code";
  return h("div", { class: "vn-code" },
    h("div", { class: "vn-code-head" }, h("span", {}, name), copy),
    h("pre", { tabindex: "0", "aria-label": name }, h("code", {}, ...pieces)));
}
