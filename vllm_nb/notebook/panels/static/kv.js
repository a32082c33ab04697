// KV map: a cell a physical block. Only cells that have changed are painted again, so 100,000 of them stay fluid.

import { blockAfterKey, blockAt, cellLayout, cellStore, cellWords, ownerOf, packedOwner } from "./cells.js";
import { cellPainter } from "./cell_painter.js";
import { html, numbersTable, percent, setOptions } from "./dom.js";
import { panel } from "./panel.js";
import { storeOf } from "./stores.js";

/** The numbers beside the map: [name, value]. */
export function kvTiles(state) {
  const total = state.num_blocks;
  return [
    [`of ${total.toLocaleString("en")} blocks in use`, state.used.toLocaleString("en")],
    ["occupancy", percent(state.used / total)],
    ["shared by several", state.shared.toLocaleString("en")],
    ["free, still cached", state.cached_free.toLocaleString("en")],
    ["prefix cache hit rate", percent(state.prompt_tokens ? state.cached_tokens / state.prompt_tokens : null)],
    ["evictions", state.evictions.toLocaleString("en")],
  ];
}

/** What the panel says of the chosen block: [name, value]. */
export function blockFacts(chosen) {
  const holders = chosen.holders.map(([number, request, choice, logical]) => `${request} [${choice}], block ${logical} of its table`);
  return [
    ["tokens", chosen.tokens.length ? chosen.text : "none known"],
    ["references", `${chosen.references}${holders.length ? `: ${holders.join("; ")}` : ""}`],
    ["hash", chosen.hash ?? "not in the prefix cache"],
    ["chain", chosen.length > 1 ? `${chosen.chain.slice(1).join(" ← ")}${chosen.length > chosen.chain.length ? " ← …" : ""}` : "it begins one"],
    ["written", chosen.age === null ? "before anybody watched" : chosen.age === 0 ? "in this step" : `${chosen.age} steps ago`],
  ].filter(([name]) => name !== "chain" || chosen.hash);
}

function kvView(box, model) {
  const store = storeOf(model, "cells", (ask) => cellStore(model.get("cells"), ask));
  const tiles = html("div", { class: "vn-tiles" });
  const canvas = html("canvas", { tabindex: 0, role: "application", "aria-label": "KV cache, a cell a block; arrow keys choose one" });
  const scroll = html("div", { class: "vn-map" }, canvas);
  const legend = html("div", { class: "vn-legend" }, ...legendParts());
  const request = html("select", { "aria-label": "block table of" });
  request.addEventListener("change", () => select("sequence", request.value === "" ? null : Number(request.value)));
  const words = html("div", { class: "vn-words", "aria-live": "polite" });
  const facts = html("dl", { class: "vn-facts" });
  box.append(tiles, scroll, html("div", { class: "vn-head" }, legend, request), words);
  const painter = cellPainter(canvas, box);
  let state = null;
  let size = null;
  let chosen = null;

  const select = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  const choose = (block) => {
    if (block === chosen) return;
    chosen = block;
    if (!facts.isConnected) words.after(facts); // from now on there is room for them
    if (painter.marked) painter.mark(block, state.table);
    say();
    select("block", block);
  };
  const say = () => {
    words.textContent = chosen === null || !state ? "Point at a block, or use the arrow keys." : `block ${chosen}: ${cellWords(store.cells[chosen], state.block_size)}`;
  };

  canvas.addEventListener("pointermove", (event) => {
    if (size) choose(blockAt(size, store.cells.length, event.offsetX, event.offsetY));
  });
  canvas.addEventListener("click", () => selectOwner());
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "Escape") [choose(null), select("sequence", null)];
    else if (event.key === "Enter") selectOwner();
    else {
      const block = blockAfterKey(event.key, chosen, store.cells.length, size.columns);
      if (block === null) return;
      choose(block);
      scroll.scrollTop = Math.floor(block / size.columns) * size.side - scroll.clientHeight / 2;
    }
    event.preventDefault();
    event.stopPropagation();
  });
  const selectOwner = () => {
    const owner = chosen === null ? 0 : ownerOf(store.cells[chosen]);
    const found = state.sequences.find(([number]) => packedOwner(number) === owner);
    select("sequence", found ? found[0] : null);
  };

  const paintAll = () => {
    const width = scroll.clientWidth;
    if (!width || !state) return;
    size = cellLayout(store.cells.length, width);
    paint();
  };
  const paint = () => {
    painter.paint(store.cells, size, state.block_size);
    painter.mark(chosen, state.table);
  };
  const stopListening = store.listen((changed) => {
    if (size) painter.update(store.cells, changed);
  });
  const resized = new ResizeObserver(paintAll);
  resized.observe(scroll);
  const themed = new MutationObserver(() => size && paint()); // at its old size: JupyterLab hides all meanwhile
  themed.observe(document.body, { attributes: true, attributeFilter: ["class", "data-jp-theme-light", "data-theme"] });

  const update = (next) => {
    state = next;
    tiles.replaceChildren(
      ...kvTiles(state).map(([name, value]) => html("div", { class: "vn-tile" }, html("b", {}, value), html("span", {}, name))),
    );
    setOptions(request, [["", "no block table"], ...state.sequences.map(([number, name]) => [number, name])], model.get("sequence") ?? "");
    if (!size) paintAll();
    else painter.mark(chosen, state.table);
    say();
    const known = state.chosen && state.chosen.block === chosen ? blockFacts(state.chosen) : [];
    facts.replaceChildren(...known.flatMap(([name, value]) => [html("dt", {}, name), html("dd", {}, value)]));
    numbersTable(box, "Numbers", ["", "now"], () => [
      ...kvTiles(state),
      ...state.sequences.map(([, name, computed, blocks]) => [name, `${computed} tokens in ${blocks} blocks`]),
    ]);
  };
  update.end = () => [stopListening(), resized.disconnect(), themed.disconnect()];
  return update;
}

function legendParts() {
  const kinds = [["used", "in use, colour by request"], ["shared", "shared prefix"], ["cached", "free, still cached"], ["written", "just written"]];
  return kinds.map(([kind, words]) => html("span", {}, html("i", { class: `vn-cell vn-cell-${kind}` }), words));
}

export default panel("KV cache", kvView);
