// Elements by one call, and the icons. Text only ever becomes text nodes.

// h("button", {class: "x", onclick: f, "aria-label": "Close"}, "text", element, null)
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "disabled" || name === "checked") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";
const ICONS = {
  attach: "M16.5 7.5 9 15a2.1 2.1 0 0 0 3 3l8-8a4.2 4.2 0 0 0-6-6l-8 8a6.4 6.4 0 0 0 9 9l6-6",
  branch: "M7 4v16M7 12c6 0 10-1 10-6M17 6l-3 3M17 6l3 3",
  check: "M4 12.5 9.5 18 20 6.5",
  close: "M5 5l14 14M19 5 5 19",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  down: "M12 5v14M6 13l6 6 6-6",
  edit: "M4 20l1-5L16 4l4 4L9 19zM14 6l4 4",
  export: "M12 3v12M7 10l5 5 5-5M4 20h16",
  import: "M12 15V3M7 8l5-5 5 5M4 20h16",
  left: "M15 5l-7 7 7 7",
  menu: "M4 6h16M4 12h16M4 18h16",
  moon: "M20 14A8.5 8.5 0 0 1 10 4a8.5 8.5 0 1 0 10 10z",
  plus: "M12 5v14M5 12h14",
  redo: "M20 5v6h-6M19.5 11A8 8 0 1 0 20 15",
  right: "M9 5l7 7-7 7",
  send: "M12 20V5M5 12l7-7 7 7",
  sliders: "M4 7h9M17 7h3M4 17h3M11 17h9M13 5v4M7 15v4",
  stop: "M7 7h10v10H7z",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.4M17.6 17.6 19 19M5 19l1.4-1.4M17.6 6.4 19 5",
  trash: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5M14 11v5",
};

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", class: "vn-icon", "aria-hidden": "true" })) {
    svg.setAttribute(key, value);
  }
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

// A button that shows only an icon and says what it does to everybody who cannot see it.
export function iconButton(name, label, onclick, properties = {}) {
  return h("button", { type: "button", class: "vn-button", title: label, "aria-label": label, onclick, ...properties },
    icon(name));
}

// Offer a text as a file.
export function download(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000); // not before the browser has begun to read it
}

// The text of a file that the user picks; undefined when the dialogue is closed without.
export function pickFile(accept) {
  return new Promise((resolve) => {
    const input = h("input", { type: "file", accept, oncancel: () => resolve(undefined) });
    input.addEventListener("change", () => resolve(input.files[0]?.text()));
    input.click();
  });
}

export async function copyText(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = h("textarea", { value: text }); // a page that is not on https or localhost has no clipboard
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
