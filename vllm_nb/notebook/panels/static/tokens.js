// Tokens: text coloured by how likely each token was; the one in focus with its alternatives; forks as a tree.

import { html, numbersTable, percent, significant } from "./dom.js";
import { panel } from "./panel.js";
import { rowStore, storeOf } from "./stores.js";

const CUTS = { temperature: "temperature 0 takes the likeliest", top_k: "cut by top_k", top_p: "cut by top_p", min_p: "cut by min_p" };

/** How strong the ground behind a token is: 0 for a certain one. */
export function tokenShade(p) {
  return Math.max(0, Math.min(70, Math.round(70 * (1 - p))));
}

/** What is shown of a token's text, so that every one can be seen and pointed at. */
export function visibleText(text) {
  return text.replaceAll("\n", "⏎\n").replaceAll("\t", "⇥") || "·";
}

/** A token in words: [text, id, p, rank, entropy, alternatives]. */
export function tokenWords([text, , p, rank, entropy]) {
  const parts = [`${JSON.stringify(text)}: probability ${percent(p)}`];
  parts.push(rank === null ? "not among the alternatives" : rank === 1 ? "the likeliest" : `rank ${rank}`);
  if (entropy !== null) parts.push(`entropy ${significant(entropy)} bits`);
  return parts.join(", ");
}

/** What became of an alternative [id, text, p, q, cut, exact]. */
export function fate([, , , q, cut, exact]) {
  if (cut) return CUTS[cut];
  if (q === null) return "";
  return `drawn with ${exact ? "" : "at least "}${percent(q)}`;
}

/** Nodes of the tree in order, each with its depth. */
export function treeRows(nodes, parent = null, depth = 0) {
  const known = new Set(nodes.map((node) => node.id));
  const children = nodes.filter((node) => (known.has(node.parent) ? node.parent : null) === parent);
  return children.flatMap((node) => [{ ...node, depth }, ...treeRows(nodes, node.id, depth + 1)]);
}

/** Builds the view inside `box`; call what it returns with each new state. */
export function tokensView(box, model) {
  const text = html("div", { class: "vn-flow", role: "listbox", "aria-label": "tokens" });
  const detail = html("div", { class: "vn-detail" });
  const tree = html("ul", { class: "vn-tree", "aria-label": "branches" });
  const problem = html("div", { class: "vn-over", role: "alert" });
  const note = html("div", { class: "vn-muted" }, "The stronger the colour, the less likely. Underlined: another token was likelier.");
  box.append(note, text, detail, problem, html("b", {}, "Branches"), tree);
  // A panel sends its tokens apart from its state, the picture of one answer all at once.
  const store = model.get("rows") ? storeOf(model, "rows", (ask) => rowStore(model.get("rows"), ask)) : null;
  let state = null;
  let tokens = []; // those that the text shows
  let chosen = null; // place of the token in focus
  let marked = null; // its element
  let told = null; // what the detail shows: [token, whether it can be forked, how it was sampled]
  let asked = false; // a fork is under way

  const choose = (place, focus = false) => {
    chosen = Math.max(0, Math.min(place, tokens.length - 1));
    const element = text.children[chosen];
    if (element !== marked) {
      for (const [each, now] of [[marked, false], [element, true]]) {
        if (!each) continue;
        each.tabIndex = now ? 0 : -1;
        each.setAttribute("aria-selected", String(now));
      }
      marked = element;
    }
    if (focus) element?.focus();
    const shown = [tokens[chosen], state.can_fork, JSON.stringify(state.sampling)]; // tokens come before their state
    if (told && told.every((part, i) => part === shown[i])) return; // what a pointer is on stays there
    told = shown;
    drawDetail(detail, state, tokens[chosen], chosen, fork);
  };
  const write = (keep, next) => {
    if (!tokens.length) text.replaceChildren();
    while (text.children.length > keep) text.lastChild.remove();
    tokens = next;
    text.append(...tokens.slice(keep).map((token, i) => tokenSpan(token, keep + i, state, choose)));
    if (!tokens.length) text.append(html("span", { class: "vn-muted" }, "No request has asked for logprobs yet: %%vllm --logprobs 5."));
  };
  const fork = (token) => {
    asked = true;
    problem.textContent = "";
    model.send({ type: "fork", position: chosen, token });
  };
  const select = (id) => {
    model.set("selected", id);
    model.save_changes();
  };
  text.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10, Home: -1e9, End: 1e9 }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    event.stopPropagation(); // else JupyterLab moves to another cell
    choose((chosen ?? 0) + move, true);
  });
  const showChosen = () => {
    if (tokens.length) choose(chosen ?? 0);
    else [detail.replaceChildren(), (told = marked = null)];
  };
  const complain = () => {
    problem.textContent = model.get("problem");
  };
  model.on("change:problem", complain);

  const update = (next) => {
    const before = state;
    const another = before && next.selected !== before.selected;
    state = next;
    if (!before || another || next.tokens || next.begins !== before.begins) write(0, store ? store.rows : state.tokens);
    if (another && asked) chosen = state.begins; // the fork has come
    if (another) asked = false;
    showChosen();
    tree.replaceChildren(...treeRows(state.nodes).map((node) => branchItem(node, state.selected, select)));
    numbersTable(box, "Numbers", ["", "token", "probability", "rank", "entropy, bits"], () =>
      tokens.map(([shown, , p, rank, entropy], place) => [place, JSON.stringify(shown), p, rank ?? "–", entropy ?? "–"]),
    );
  };
  const stopListening = store?.listen((keep) => {
    if (!state) return;
    write(keep, store.rows);
    showChosen();
  });
  update.end = () => {
    stopListening?.();
    model.off("change:problem", complain);
  };
  return update;
}

function tokenSpan(token, place, state, choose) {
  const kind = `vn-token${token[3] > 1 ? " vn-unlikely" : ""}${state.begins && place === state.begins ? " vn-forked" : ""}`;
  const shade = `--shade: ${tokenShade(token[2])}%`;
  const label = { role: "option", "aria-label": tokenWords(token), title: tokenWords(token) };
  const events = { onpointerenter: () => choose(place), onfocus: () => choose(place), onclick: () => choose(place, true) };
  return html("span", { class: kind, style: shade, tabindex: -1, ...label, ...events }, visibleText(token[0]));
}

function drawDetail(box, state, token, place, fork) {
  const rows = token[5].map((other) => {
    const [id, shown, p, , cut] = other;
    const taken = id === token[1];
    const bar = html("i", { style: `width: ${(100 * p).toFixed(1)}%` });
    const action = taken
      ? html("span", { class: "vn-muted" }, "taken")
      : html("button", { type: "button", disabled: !state.can_fork, onclick: () => fork(id), "aria-label": `fork with ${JSON.stringify(shown)}` }, "fork");
    return html(
      "tr",
      { class: `${taken ? "vn-taken" : ""}${cut ? " vn-cut" : ""}` },
      html("td", { class: "vn-mono" }, visibleText(shown)),
      html("td", { class: "vn-chance" }, bar),
      html("td", {}, percent(p)),
      html("td", {}, fate(other)),
      html("td", {}, action),
    );
  });
  const settings = Object.entries(state.sampling).map(([name, value]) => `${name} ${significant(value)}`);
  box.replaceChildren(
    html("div", { role: "status" }, html("b", {}, `Token ${place}: `), tokenWords(token)),
    html("table", { class: "vn-alternatives" }, html("tbody", {}, ...rows)),
    html("div", { class: "vn-muted" }, `Sampling: ${settings.join(", ") || "unknown"}`),
  );
}

function branchItem(node, selected, select) {
  const origin = node.parent === null ? `sequence ${node.id}` : `↳ ${node.id}, from token ${node.at} of ${node.parent}`;
  const label = `${origin}: ${visibleText(node.text).replaceAll("\n", " ")} (${node.count} tokens, ${node.state})`;
  const attributes = { type: "button", "aria-pressed": String(node.id === selected), onclick: () => select(node.id) };
  return html("li", { style: `margin-left: ${18 * node.depth}px` }, html("button", attributes, label));
}

export default panel("Tokens", tokensView);
