// The inside of a paragraph: emphasis, code, links. Every search for a closing mark that fails is remembered, so that a
// text full of opening marks costs no more than its length.

const SPECIAL = /[\\`*_~[!\n]|https?:\/\//g;
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const MAX_NESTING = 12;
const MAX_LABEL = 500; // characters of a link's text that are searched for its end
const URL_END = /[\s<>"`]/;

// Nodes: {type: "text", text}, "code", "break", and with `inline` inside: "strong", "emphasis", "deleted", "link".
export function parseInline(text, depth = 0) {
  const nodes = [];
  const missing = new Set(); // closing marks that do not come any more
  let plain = "";
  let at = 0;
  const emit = (node) => {
    if (plain) nodes.push({ type: "text", text: plain });
    plain = "";
    nodes.push(node);
  };
  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const next = SPECIAL.exec(text)?.index ?? text.length;
    plain += text.slice(at, next);
    at = next;
    if (at === text.length) break;
    const [node, end] = nodeAt(text, at, depth, missing) ?? [];
    if (node?.type === "escape") plain += node.text;
    else if (node) emit(node);
    else plain += text[at];
    at = node ? end : at + 1;
  }
  if (plain) nodes.push({ type: "text", text: plain });
  return nodes;
}

// [node, where it ends], or undefined where the character stands for itself
function nodeAt(text, at, depth, missing) {
  switch (text[at]) {
    case "\\":
      if (text[at + 1] === "\n") return [{ type: "break" }, at + 2];
      return ESCAPABLE.test(text[at + 1] ?? "") ? [{ type: "escape", text: text[at + 1] }, at + 2] : undefined;
    case "\n":
      return [{ type: "break" }, at + 1];
    case "`":
      return code(text, at, missing);
    case "h":
      return bareLink(text, at);
    case "!":
      return text[at + 1] === "[" && depth < MAX_NESTING ? link(text, at + 1, depth) : undefined;
    case "[":
      return depth < MAX_NESTING ? link(text, at, depth) : undefined;
    default:
      return depth < MAX_NESTING ? emphasis(text, at, depth, missing) : undefined;
  }
}

function code(text, at, missing) {
  let end = at;
  while (text[end] === "`") end += 1;
  const marks = text.slice(at, end);
  if (missing.has(marks)) return [{ type: "escape", text: marks }, end];
  for (let close = text.indexOf(marks, end); close >= 0; ) {
    let after = close;
    while (text[after] === "`") after += 1;
    if (after - close === marks.length) {
      const inner = text.slice(end, close).replaceAll("\n", " ");
      const padded = inner.startsWith(" ") && inner.endsWith(" ") && inner.trim();
      return [{ type: "code", text: padded ? inner.slice(1, -1) : inner }, after];
    }
    close = text.indexOf(marks, after);
  }
  missing.add(marks);
  return [{ type: "escape", text: marks }, end];
}

const EMPHASIS = { "*": "emphasis", _: "emphasis", "**": "strong", __: "strong", "~~": "deleted" };

function emphasis(text, at, depth, missing) {
  const mark = text[at + 1] === text[at] ? text.slice(at, at + 2) : text[at];
  const begin = at + mark.length;
  const inWord = mark[0] === "_" && /[\p{L}\p{N}]/u.test(text[at - 1] ?? "");
  if (!EMPHASIS[mark] || missing.has(mark) || inWord || /^\s?$/.test(text[begin] ?? "")) return undefined;
  for (let close = text.indexOf(mark, begin + 1); close >= 0; close = text.indexOf(mark, close + 1)) {
    let after = close + mark.length;
    if (text[close - 1] === "\\" || /\s/.test(text[close - 1])) continue;
    if (mark[0] === "_" && /[\p{L}\p{N}]/u.test(text[after] ?? "")) continue;
    if (mark.length === 1 && (text[close - 1] === mark || text[after] === mark)) {
      if (text[after] === mark) close += 1; // a double mark inside is not this one's end
      continue;
    }
    if (mark.length === 2 && text[after] === mark[0]) after = (close += 1) + mark.length; // ***: the inner one ends first
    return [{ type: EMPHASIS[mark], inline: parseInline(text.slice(begin, close), depth + 1) }, after];
  }
  missing.add(mark);
  return undefined;
}

// [text](address "title"); an image is a link too: loading it would tell its server about the reader.
function link(text, at, depth) {
  let nested = 0;
  let close = at;
  for (; close < Math.min(text.length, at + MAX_LABEL); close += 1) {
    if (text[close] === "\\") close += 1;
    else if (text[close] === "[") nested += 1;
    else if (text[close] === "]" && --nested === 0) break;
  }
  if (text[close] !== "]" || text[close + 1] !== "(") return undefined;
  const target = /^\(\s*<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)/.exec(
    text.slice(close + 1, close + 1 + MAX_LABEL),
  );
  if (!target) return undefined;
  const label = parseInline(text.slice(at + 1, close), depth + 1);
  const end = close + 1 + target[0].length;
  const href = safeUrl(target[1]);
  if (!href) return [{ type: "group", inline: label }, end];
  return [{ type: "link", href, inline: label.length ? label : [{ type: "text", text: href }] }, end];
}

function bareLink(text, at) {
  let end = at;
  while (end < text.length && !URL_END.test(text[end])) end += 1;
  while (/[.,;:!?'*_~\])]/.test(text[end - 1]) && !(text[end - 1] === ")" && text.slice(at, end).includes("("))) end -= 1;
  const href = safeUrl(text.slice(at, end));
  return href ? [{ type: "link", href, inline: [{ type: "text", text: text.slice(at, end) }] }, end] : undefined;
}

// The address if a click on it does no harm, else null.
export function safeUrl(address) {
  try {
    const url = new URL(address);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}
