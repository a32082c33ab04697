import assert from "node:assert/strict";
import { test } from "node:test";
import { highlight } from "../../../vllm_nb/ui/highlight.js";
import { parseInline, safeUrl } from "../../../vllm_nb/ui/inline.js";
import { MarkdownParser, parseMarkdown } from "../../../vllm_nb/ui/markdown.js";
import { random } from "./random.mjs";

// The tree in a short notation: p(a <strong>b</strong>).
const TAGS = { strong: "b", emphasis: "i", deleted: "s", link: "a", group: "g" };
const inline = (nodes) => nodes.map((node) => {
  if (node.type === "text") return node.text;
  if (node.type === "break") return "|";
  if (node.type === "code") return `\`${node.text}\``;
  const open = node.type === "link" ? `a ${node.href}` : TAGS[node.type];
  return `<${open}>${inline(node.inline)}</${TAGS[node.type]}>`;
}).join("");
const show = (blocks) => blocks.map((block) => {
  switch (block.type) {
    case "heading": return `h${block.level}(${inline(block.inline)})`;
    case "code": return `code ${block.language}(${block.text})`;
    case "quote": return `quote(${show(block.blocks)})`;
    case "list": return `${block.ordered ? `ol${block.from}` : "ul"}(${block.items.map(show).join("; ")})`;
    case "table": return `table(${[block.head, ...block.rows].map((row) => row.map(inline).join(",")).join("; ")})`;
    case "rule": return "rule";
    default: return `p(${inline(block.inline)})`;
  }
}).join(" ");

const CASES = [
  ["# A *b* #\ntext", "h1(A <i>b</i>) p(text)"],
  ["#no heading", "p(#no heading)"],
  ["a\nb\n\nc", "p(a|b) p(c)"],
  ["**bold** __too__ *it* _it_ ~~off~~ ***both***",
    "p(<b>bold</b> <b>too</b> <i>it</i> <i>it</i> <s>off</s> <b><i>both</i></b>)"],
  ["snake_case_name 2 * 3 * 4 **open", "p(snake_case_name 2 * 3 * 4 **open)"],
  ["*a **b** c*", "p(<i>a <b>b</b> c</i>)"],
  ["`a*b*` ``x`y`` `open", "p(`a*b*` `x`y` `open)"],
  ["\\*not\\* \\a", "p(*not* \\a)"],
  ["[t](https://a.example/x_(y) \"title\")", "p(<a https://a.example/x_(y)>t</a>)"],
  ["see https://a.example/x. (https://b.example)", "p(see <a https://a.example/x>https://a.example/x</a>. (<a https://b.example/>https://b.example</a>))"],
  ["[t](javascript:alert(1)) [u](data:text/html,x)", "p(<g>t</g> <g>u</g>)"],
  ["![alt](https://a.example/p.png)", "p(<a https://a.example/p.png>alt</a>)"],
  ["```py\nx = 1\n\n# y\n```\nafter", "code py(x = 1\n\n# y) p(after)"],
  ["~~~\n```\n~~~", "code (```)"],
  ["```js\nopen", "code js(open)"],
  ["- a\n- b\n  - c\n\n    d\n- e", "ul(p(a); p(b) ul(p(c) p(d)); p(e))"],
  ["3. x\n4) y\n\nz", "ol3(p(x); p(y)) p(z)"],
  ["- a\n\ntext\n\n- b", "ul(p(a)) p(text) ul(p(b))"],
  ["1. code:\n   ```c\n   int x;\n   ```\n2. end", "ol1(p(code:) code c(int x;); p(end))"],
  ["text\n- item", "p(text) ul(p(item))"],
  ["> a\n> - b\n\nc", "quote(p(a) ul(p(b))) p(c)"],
  ["| a | b |\n|:-|-:|\n| 1 \\| 2 | **3** |\n\nend", "table(a,b; 1 | 2,<b>3</b>) p(end)"],
  ["a\n\n---\n\n* * *", "p(a) rule rule"],
  ["<b onclick=x>hi</b>", "p(<b onclick=x>hi</b>)"],
];

for (const [source, expected] of CASES) {
  test(JSON.stringify(source), () => assert.equal(show(parseMarkdown(source)), expected));
}

test("a text that grows gives at each step what it gives at once", () => {
  const pick = random(11);
  const parts = ["a", " ", "\n", "\n\n", "- ", "1. ", "  ", "```", "```py\n", "|", "|-|-|\n", "# ", "> ", "**", "*", "---", "x|y\n"];
  for (let round = 0; round < 600; round += 1) {
    const parser = new MarkdownParser();
    let text = "";
    for (let step = 0; step < 25; step += 1) {
      text += parts[pick(parts.length)];
      assert.deepEqual(parser.update(text).blocks, parseMarkdown(text), JSON.stringify(text));
    }
  }
});

test("what is kept is the same objects, and a changed text begins anew", () => {
  const parser = new MarkdownParser();
  const { blocks } = parser.update("one\n\ntwo\n\nthree\n\nfour");
  const next = parser.update("one\n\ntwo\n\nthree\n\nfour and more");
  assert.ok(next.kept >= 2);
  for (let at = 0; at < next.kept; at += 1) assert.equal(next.blocks[at], blocks[at]);
  assert.equal(parser.update("other").kept, 0);
});

test("no text takes long", () => {
  const began = performance.now();
  for (const part of ["[", "*", "**a ", "`", "_a ", "![a](", "> ", "- ", "~~", "***", "|", "# ", "\\", "a|b\n", "(", "  - x\n"]) {
    parseMarkdown(part.repeat(20_000));
  }
  assert.ok(performance.now() - began < 5000);
});

test("only harmless addresses are links", () => {
  for (const bad of ["javascript:x", "JaVaScRiPt:x", "data:text/html,x", "vbscript:x", "file:///x", "/x", "x", "java\nscript:x"]) {
    assert.equal(safeUrl(bad), null, bad);
  }
  assert.equal(safeUrl("mailto:a@b.example"), "mailto:a@b.example");
  assert.deepEqual(parseInline("http://[broken"), [{ type: "text", text: "http://[broken" }]);
});

test("highlighted code is the same code", () => {
  const pieces = highlight('def f():  # "no"\n    return "a # b", 0x1F', "python");
  assert.equal(pieces.map(({ text }) => text).join(""), 'def f():  # "no"\n    return "a # b", 0x1F');
  assert.deepEqual(pieces.filter(({ kind }) => kind).map(({ kind, text }) => [kind, text]), [
    ["keyword", "def"], ["comment", '# "no"'], ["keyword", "return"], ["string", '"a # b"'], ["number", "0x1F"],
  ]);
  assert.deepEqual(highlight("SELECT x", "sql")[0], { kind: "keyword", text: "SELECT" });
  assert.deepEqual(highlight("anything", ""), [{ kind: null, text: "anything" }]);
  const pick = random(3);
  const parts = ['"', "'", "`", "#", "//", "/*", "*/", "\n", "if ", "1.5", "\\", "é"];
  for (const language of ["python", "js", "c", "bash", "sql", "json", "unknown"]) {
    for (let round = 0; round < 100; round += 1) {
      const code = Array.from({ length: 20 }, () => parts[pick(parts.length)]).join("");
      assert.equal(highlight(code, language).map(({ text }) => text).join(""), code);
    }
  }
});
