// Small helpers to build what a panel shows, and the words for its numbers.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element with attributes ("on..." are listeners, null is left out) and children. */
export function html(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** The colour of a role as the page has it now, for a canvas. */
export function colour(element, role) {
  return getComputedStyle(element).getPropertyValue(`--vn-${role}`).trim();
}

/** A table of the same numbers that the picture shows, which opens on demand. It stays as the reader left it. */
export function numbersTable(box, caption, columns, rows) {
  let details = box.querySelector(":scope > details.vn-numbers");
  if (!details) {
    details = html("details", { class: "vn-numbers" }, html("summary", {}, caption), html("table"));
    details.addEventListener("toggle", () => details.update());
    box.append(details);
  }
  details.update = () => {
    if (!details.open) return; // nobody looks
    const head = html("tr", {}, ...columns.map((column) => html("th", { scope: "col" }, column)));
    const body = rows().map((row) => html("tr", {}, ...row.map((value) => html("td", {}, String(value)))));
    details.querySelector("table").replaceChildren(html("thead", {}, head), html("tbody", {}, ...body));
  };
  details.update();
}

/** The options [value, text] of a select. An open list is left alone where they are the same. */
export function setOptions(select, options, value) {
  const said = JSON.stringify(options);
  if (select.dataset.options !== said) {
    select.replaceChildren(...options.map(([each, text]) => html("option", { value: each }, text)));
    select.dataset.options = said;
  }
  select.value = value;
}

/** Short: 12k, 340, 0.5. */
export function shortNumber(value) {
  for (const [limit, by, unit] of [[1e9, 1e9, "G"], [1e6, 1e6, "M"], [1e4, 1e3, "k"]]) {
    if (Math.abs(value) >= limit) return `${significant(value / by)}${unit}`;
  }
  return value === Math.round(value) ? value.toFixed(0) : significant(value);
}

/** "3.2 ms", "1.25 s"; a dash where unknown. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  return seconds < 1 ? `${significant(seconds * 1e3)} ms` : `${significant(seconds)} s`;
}

/** Three digits that matter, without zeros behind. */
export function significant(value) {
  return String(Number(value.toPrecision(3)));
}

/** "3.4 GiB", "120 MiB". */
export function bytes(value) {
  for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (Math.abs(value) >= size) return `${significant(value / size)} ${unit}`;
  }
  return `${value.toFixed(0)} B`;
}

export function percent(share) {
  return share === null || share === undefined ? "–" : `${significant(share * 100)} %`;
}
