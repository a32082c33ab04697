// Markdown to a tree of plain objects: what models write, in time linear in its length, with nothing that could be
// markup of the page. `MarkdownParser` takes a text that grows and parses only its end anew.

import { parseInline } from "./inline.js";

const FENCE = /^( {0,3})(`{3,}|~{3,})\s*([^`\s]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:[ \t]+(.*))?$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const DELIMITERS = /^ *\|?(?: *:?-+:? *\|)+(?: *:?-+:? *)?$|^ *\| *:?-+:? *$/;
const BLANK = /^\s*$/;
const MAX_DEPTH = 12; // of quotes and lists in each other, and of emphasis

export class MarkdownParser {
  #text = "";
  #blocks = [];

  // The blocks of `text`, and how many of the first ones are the same objects as before.
  update(text) {
    const kept = text.startsWith(this.#text) ? this.#certain() : 0;
    const start = kept ? this.#blocks[kept].start : 0;
    const fresh = parseMarkdown(text.slice(start)).map((block) => ({ ...block, start: block.start + start }));
    this.#blocks = [...this.#blocks.slice(0, kept), ...fresh];
    this.#text = text;
    return { blocks: this.#blocks, kept };
  }

  // Only what follows a block can change it: two whole lines of the next one settle that it has ended.
  #certain() {
    let count = this.#blocks.length - 1;
    while (count > 0 && this.#text.slice(this.#blocks[count].start).split("\n", 3).length < 3) count -= 1;
    return Math.max(count, 0);
  }
}

// All blocks of a text; `start` is where each begins.
export function parseMarkdown(text) {
  return blocks(text.split("\n"), 0);
}

function blocks(lines, depth) {
  const found = [];
  let offset = 0;
  for (let at = 0; at < lines.length; ) {
    if (BLANK.test(lines[at])) {
      offset += lines[at].length + 1;
      at += 1;
      continue;
    }
    const [block, end] = blockAt(lines, at, depth);
    found.push({ ...block, start: offset });
    for (; at < end; at += 1) offset += lines[at].length + 1;
  }
  return found;
}

// [the block that begins at a line, the line after it]
function blockAt(lines, at, depth) {
  const line = lines[at];
  if (FENCE.test(line)) return fence(lines, at);
  const heading = HEADING.exec(line);
  if (heading) return [{ type: "heading", level: heading[1].length, inline: title(heading[2] ?? "") }, at + 1];
  if (RULE.test(line)) return [{ type: "rule" }, at + 1];
  if (depth < MAX_DEPTH) {
    if (QUOTE.test(line)) return quote(lines, at, depth);
    if (ITEM.test(line)) return list(lines, at, depth);
  }
  if (isTable(lines, at)) return table(lines, at);
  return paragraph(lines, at, depth);
}

// Without the marks that may close a heading.
function title(text) {
  let end = text.trimEnd().length;
  while (text[end - 1] === "#") end -= 1;
  return parseInline((end === 0 || /\s/.test(text[end - 1]) ? text.slice(0, end) : text).trim());
}

function fence(lines, at) {
  const [, indent, marks, language] = FENCE.exec(lines[at]);
  const closing = new RegExp(`^ {0,3}${marks[0] === "~" ? "~" : "`"}{${marks.length},}[ \\t]*$`);
  const body = [];
  let end = at + 1;
  while (end < lines.length && !closing.test(lines[end])) {
    body.push(lines[end].replace(new RegExp(`^ {0,${indent.length}}`), ""));
    end += 1;
  }
  const closed = end < lines.length;
  return [{ type: "code", language, text: body.join("\n"), closed }, closed ? end + 1 : end];
}

function quote(lines, at, depth) {
  const inner = [];
  let end = at;
  for (; end < lines.length && QUOTE.test(lines[end]); end += 1) inner.push(QUOTE.exec(lines[end])[1]);
  return [{ type: "quote", blocks: blocks(inner, depth + 1) }, end];
}

function list(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  const ordered = /\d/.test(first[2]);
  const indent = first[1].length;
  const items = [];
  let end = at;
  let loose = false;
  while (end < lines.length) {
    const item = ITEM.exec(lines[end]);
    if (!item || item[1].length > indent + 1 || item[1].length < indent || /\d/.test(item[2]) !== ordered) break;
    if (RULE.test(lines[end])) break;
    const body = [item[3] ?? ""];
    const inside = item[1].length + 2; // what is indented this far belongs to the item
    end += 1;
    while (end < lines.length && belongs(lines, end, inside)) {
      body.push(lines[end].slice(Math.min(lines[end].search(/\S|$/), item[1].length + item[2].length + 1)));
      end += 1;
    }
    const blank = end;
    while (end < lines.length && BLANK.test(lines[end])) end += 1;
    loose ||= body.some((line) => BLANK.test(line)) && body.length > 1;
    items.push(blocks(body, depth + 1));
    const next = end < lines.length && ITEM.exec(lines[end]);
    if (end > blank && !next) {
      end = blank;
      break;
    }
    loose ||= end > blank && Boolean(next);
  }
  return [{ type: "list", ordered, from: ordered ? Number.parseInt(first[2], 10) : 1, loose, items }, end];
}

// Whether a line continues an item: indented, or blank before something indented, or text right below text.
function belongs(lines, at, inside) {
  if (BLANK.test(lines[at])) {
    let next = at;
    while (next < lines.length && BLANK.test(lines[next])) next += 1;
    return next < lines.length && lines[next].search(/\S/) >= inside;
  }
  if (lines[at].search(/\S/) >= inside) return true;
  return !BLANK.test(lines[at - 1]) && !interrupts(lines, at);
}

function interrupts(lines, at) {
  return [FENCE, HEADING, RULE, QUOTE, ITEM].some((pattern) => pattern.test(lines[at])) || isTable(lines, at);
}

function isTable(lines, at) {
  return lines[at].includes("|") && at + 1 < lines.length && DELIMITERS.test(lines[at + 1]);
}

function table(lines, at) {
  const aligns = cells(lines[at + 1]).map((cell) => {
    const [left, right] = [cell.startsWith(":"), cell.endsWith(":")];
    return left && right ? "center" : right ? "right" : left ? "left" : null;
  });
  const head = cells(lines[at]).map(parseInline);
  const rows = [];
  let end = at + 2;
  for (; end < lines.length && lines[end].includes("|") && !BLANK.test(lines[end]); end += 1) {
    rows.push(cells(lines[end]).slice(0, head.length).map(parseInline));
  }
  return [{ type: "table", aligns, head, rows }, end];
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function paragraph(lines, at, depth) {
  let end = at + 1;
  while (end < lines.length && !BLANK.test(lines[end]) && !(depth < MAX_DEPTH && interrupts(lines, end))) end += 1;
  return [{ type: "paragraph", inline: parseInline(lines.slice(at, end).join("\n").trim()) }, end];
}
