// Attention paging: the logical blocks of one sequence, its block table, and the physical blocks that a step reads.

import { html, numbersTable, setOptions, svg } from "./dom.js";
import { panel } from "./panel.js";

const [ROW, TOP, LEFT, TABLE, MEMORY, SIDE] = [18, 34, 12, 380, 500, 260];
const HINT = "Red: written in this step. Point at a logical block, or use the arrow keys.";
const READERS = { all: "all layers", full: "layers without window", none: "no layer: left of the window" };

/** Columns and cell size of a square that holds all physical blocks, row by row. */
export function blockGrid(numBlocks) {
  const columns = Math.ceil(Math.sqrt(numBlocks));
  return { columns, cell: SIDE / columns };
}

/** Where the middle of a physical block is. */
export function blockCenter(numBlocks, block) {
  const { columns, cell } = blockGrid(numBlocks);
  return [MEMORY + ((block % columns) + 0.5) * cell, TOP + (Math.floor(block / columns) + 0.5) * cell];
}

export function pagingHeadline(state) {
  if (!state.rows.length) return `Step ${state.step}: no sequence computes here`;
  const { first, last } = state;
  const queries = first === last ? `token ${last}` : `tokens ${first} to ${last}`;
  const where = `${last + 1} tokens in ${state.blocks.length} blocks`;
  return `Step ${state.step}: ${queries} of ${state.name} ${first === last ? "attends" : "attend"} to ${where}`;
}

/** A row of the picture in words. */
export function pagingRowWords([logical, block, start, stop, readers, written, text]) {
  const what = `logical block ${logical} is physical block ${block}: tokens ${start} to ${stop - 1}`;
  return `${what}, read by ${READERS[readers]}${written ? ", written in this step" : ""}: ${text}`;
}

function pagingView(box, model) {
  const choice = html("select", { "aria-label": "sequence" });
  choice.addEventListener("change", () => {
    model.set("sequence", choice.value === "" ? null : Number(choice.value));
    model.save_changes();
  });
  const headline = html("strong", { class: "vn-headline" });
  const picture = svg("svg", { role: "listbox", tabindex: 0, "aria-label": "logical blocks" });
  const words = html("div", { class: "vn-words", "aria-live": "polite" });
  box.append(html("div", { class: "vn-head" }, headline, choice), picture, words);
  let chosen = null; // logical block
  let state = null;

  const choose = (logical) => {
    chosen = logical;
    draw();
  };
  picture.addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!by || !state.rows.length) return;
    event.preventDefault();
    event.stopPropagation();
    const at = state.rows.findIndex(([logical]) => logical === chosen);
    choose(state.rows[Math.min(Math.max(at + by, 0), state.rows.length - 1)][0]);
  });

  const draw = () => {
    const height = TOP + Math.max(ROW * (state.rows.length + 1), SIDE) + 8;
    picture.setAttribute("viewBox", `0 0 ${MEMORY + SIDE + 12} ${state.rows.length ? height : 10}`);
    picture.replaceChildren(...(state.rows.length ? parts(state, chosen, choose) : []));
    const row = state.rows.find(([logical]) => logical === chosen);
    words.textContent = row ? pagingRowWords(row) : state.rows.length ? HINT : "";
  };
  return (next) => {
    state = next;
    headline.textContent = pagingHeadline(state);
    setOptions(choice, [["", "the first that decodes"], ...state.sequences], model.get("sequence") ?? "");
    draw();
    numbersTable(box, "Numbers", ["logical block", "physical block", "tokens", "read by", "text"], () =>
      state.rows.map(([logical, block, start, stop, readers, , text]) => [
        logical, block, `${start} to ${stop - 1}`, READERS[readers], text,
      ]),
    );
  };
}

function parts(state, chosen, choose) {
  const titles = [[LEFT, "logical blocks"], [TABLE, "block table"], [MEMORY, "physical blocks"]];
  const head = titles.map(([x, text]) => svg("text", { x, y: TOP - 10, class: "vn-tick" }, text));
  return [...head, ...memory(state, chosen), ...state.rows.flatMap((row, place) => rowParts(state, row, place, chosen, choose))];
}

function memory(state, chosen) {
  const { columns, cell } = blockGrid(state.num_blocks);
  const rows = Math.ceil(state.num_blocks / columns);
  const size = { width: columns * cell, height: rows * cell };
  const leftOut = state.full_only + state.unread;
  const side = Math.max(cell - 1, 1.5);
  const cells = state.blocks.map((block, logical) => {
    const [x, y] = blockCenter(state.num_blocks, block);
    const kind = `vn-bar vn-${logical < leftOut ? "series5" : "series0"}${logical === chosen ? " vn-chosen" : ""}`;
    return svg("rect", { x: x - side / 2, y: y - side / 2, width: side, height: side, class: kind });
  });
  return [svg("rect", { x: MEMORY, y: TOP, ...size, class: "vn-outline" }), ...cells];
}

function rowParts(state, row, place, chosen, choose) {
  const [logical, block, , , readers, written, text] = row;
  const y = TOP + place * ROW;
  const [cx, cy] = blockCenter(state.num_blocks, block);
  const isChosen = logical === chosen;
  const kind = `vn-outline vn-read-${readers}${written ? " vn-written" : ""}${isChosen ? " vn-chosen" : ""}`;
  const shown = [...text].slice(0, 50).join("");
  const events = { onpointerenter: () => choose(logical), onclick: () => choose(logical) };
  const gap = place > 0 && logical !== state.rows[place - 1][0] + 1;
  return [
    gap ? svg("text", { x: LEFT + 2, y: y + 1, class: "vn-tick" }, "⋮") : null,
    readers === "none" ? null : svg("line", { x1: TABLE + 76, y1: y + 7, x2: cx, y2: cy, class: `${kind} vn-arrow` }),
    svg(
      "g",
      { role: "option", "aria-selected": String(isChosen), "aria-label": pagingRowWords(row), ...events },
      svg("rect", { x: LEFT, y, width: TABLE - LEFT - 16, height: ROW - 3, class: kind }),
      svg("text", { x: LEFT + 6, y: y + 11, class: "vn-tick" }, String(logical)),
      svg("text", { x: LEFT + 38, y: y + 11, class: "vn-mono vn-excerpt" }, shown),
      svg("text", { x: TABLE, y: y + 11 }, `${logical} → ${block}`),
    ),
  ].filter((part) => part !== null);
}

export default panel("Attention paging", pagingView);
