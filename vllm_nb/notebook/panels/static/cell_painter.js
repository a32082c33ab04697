// Paints the cells of the KV map on a canvas, and above it, on another, what the reader has chosen.

import { CELL_SHARED, CELL_STORED, CELL_USED, CELL_WRITTEN, seriesOf } from "./cells.js";
import { colour, html } from "./dom.js";

const SERIES_COUNT = 8;

/** For `canvas`; `themed` is an element from which the colours of the page can be read. */
export function cellPainter(canvas, themed) {
  const context = canvas.getContext("2d");
  const above = html("canvas", { class: "vn-above", "aria-hidden": "true" });
  canvas.after(above);
  let size = null;
  let blockSize = 16;
  let palette = null;

  const cell = (value, block) => {
    const { columns, side } = size;
    const [x, y] = [(block % columns) * side, Math.floor(block / columns) * side];
    const gap = side > 5 ? 1 : 0;
    const inner = side - gap;
    if (gap) {
      context.fillStyle = palette.page;
      context.fillRect(x, y, side, side);
    }
    context.fillStyle = palette.surface;
    context.fillRect(x, y, inner, inner);
    if (!(value & (CELL_USED | CELL_STORED))) return;
    context.globalAlpha = value & CELL_USED ? 1 : 0.3;
    context.fillStyle = palette.series[seriesOf(value, SERIES_COUNT)];
    const filled = side > 9 ? (inner * (value & 0xff)) / Math.min(blockSize, 255) : inner;
    context.fillRect(x, y + inner - filled, inner, filled);
    context.globalAlpha = 1;
    if (value & CELL_SHARED) {
      context.fillStyle = palette.hatch;
      context.fillRect(x, y, inner, inner);
    }
    if (value & CELL_WRITTEN) {
      context.strokeStyle = palette.text;
      context.lineWidth = side > 9 ? 2 : 1;
      const inset = context.lineWidth / 2;
      context.strokeRect(x + inset, y + inset, inner - 2 * inset, inner - 2 * inset);
    }
  };
  const painter = {
    marked: false,
    /** Everything anew, at the layout `next`. */
    paint(cells, next, tokens) {
      size = next;
      blockSize = tokens;
      palette = paletteOf(themed);
      palette.hatch = hatch(context, palette.page, size.side > 9 ? 6 : 3);
      for (const each of [canvas, above]) fit(each, size.columns * size.side, size.rows * size.side);
      for (let block = 0; block < cells.length; block += 1) cell(cells[block], block);
    },
    /** Only these blocks. */
    update(cells, blocks) {
      for (const block of blocks) cell(cells[block], block);
    },
    /** Outline a block, and draw a block table as a line from one block to the next. */
    mark(chosen, table) {
      painter.marked = true;
      const pen = above.getContext("2d");
      const center = (block) => [((block % size.columns) + 0.5) * size.side, (Math.floor(block / size.columns) + 0.5) * size.side];
      pen.clearRect(0, 0, size.columns * size.side, size.rows * size.side);
      pen.strokeStyle = palette.text;
      pen.lineWidth = 1.5;
      pen.beginPath();
      table.forEach((block, i) => (i ? pen.lineTo(...center(block)) : pen.moveTo(...center(block))));
      pen.stroke();
      for (const [at, radius] of [[table[0], 4], [table[table.length - 1], 2.5]]) {
        if (at === undefined) continue;
        pen.beginPath();
        pen.arc(...center(at), radius, 0, 7);
        pen.fillStyle = palette.text;
        pen.fill();
      }
      if (chosen === null) return;
      const [x, y] = center(chosen);
      pen.strokeStyle = palette.focus;
      pen.lineWidth = 3;
      pen.strokeRect(x - size.side / 2 - 1, y - size.side / 2 - 1, size.side + 1, size.side + 1);
    },
  };
  return painter;
}

function paletteOf(element) {
  const series = Array.from({ length: SERIES_COUNT }, (_, i) => colour(element, `series${i}`));
  const roles = ["surface", "text", "page", "focus"].map((role) => [role, colour(element, role)]);
  return { series, ...Object.fromEntries(roles) };
}

/** Diagonal lines, `every` pixels apart, as a fill: much faster than lines within a hundred thousand cells. */
function hatch(context, colour, every) {
  const tile = html("canvas", { width: every, height: every });
  const pen = tile.getContext("2d");
  pen.strokeStyle = colour;
  pen.lineWidth = every / 3;
  pen.beginPath();
  for (const at of [-every, 0, every]) {
    pen.moveTo(at - 1, every + 1);
    pen.lineTo(at + every + 1, -1);
  }
  pen.stroke();
  return context.createPattern(tile, "repeat");
}

function fit(canvas, width, height) {
  const density = Math.min(window.devicePixelRatio || 1, 2);
  Object.assign(canvas, { width: width * density, height: height * density });
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  canvas.getContext("2d").scale(density, density);
}
