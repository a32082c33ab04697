// The cells of the KV map: one number a block, as inspection/cells.py packs them, and where each is on the canvas.

import { listeners } from "./stores.js";

export const [CELL_USED, CELL_SHARED, CELL_STORED, CELL_WRITTEN] = [1 << 8, 1 << 9, 1 << 10, 1 << 11];

/** The owner of a cell, as it is packed: 0 for none, else the sequence number modulo 65,535, plus one. */
export function ownerOf(cell) {
  return cell >>> 16;
}

/** Which of `count` series colours a cell has. Nobody's has the last, as kv.py has it: it was stored before anybody
 * watched. */
export function seriesOf(cell, count) {
  return (ownerOf(cell) + count - 1) % count;
}

export function packedOwner(sequence) {
  return (sequence % 65535) + 1;
}

/** What a cell says, in words. */
export function cellWords(cell, blockSize) {
  const words = [cell & CELL_USED ? "in use" : "free"];
  if (cell & CELL_SHARED) words.push("shared");
  if (cell & CELL_STORED) words.push("in the prefix cache");
  if (cell & CELL_WRITTEN) words.push("just written");
  if (cell & (CELL_USED | CELL_STORED)) words.push(`${cell & 0xff} of ${blockSize} tokens`);
  return words.join(", ");
}

/** Columns and side of a cell in pixels: `count` cells half as high as wide, or as small as can be seen. */
export function cellLayout(count, width) {
  let side = 26;
  const fits = () => Math.ceil(count / Math.floor(width / side)) * side <= width / 2;
  while (side > 4 && !fits()) side -= 1;
  const columns = Math.max(Math.floor(width / side), 1);
  return { columns, side, rows: Math.ceil(count / columns) };
}

/** The block under a point, or null. */
export function blockAt({ columns, side }, count, x, y) {
  const [column, row] = [Math.floor(x / side), Math.floor(y / side)];
  const block = row * columns + column;
  return column >= 0 && column < columns && row >= 0 && block < count ? block : null;
}

/** Where a key leads from a block, or null for a key that leads nowhere. */
export function blockAfterKey(key, block, count, columns) {
  const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[key];
  if (key === "Home") return 0;
  if (key === "End") return count - 1;
  if (by === undefined) return null;
  const target = (block ?? 0) + (block === null ? 0 : by);
  return target < 0 || target >= count ? block : target;
}

/** The numbers in a buffer, whatever it is a part of: uint32, little-endian. */
export function numbersIn(buffer) {
  const bytes = new Uint8Array(buffer.buffer ?? buffer, buffer.byteOffset ?? 0, buffer.byteLength);
  return new Uint32Array(bytes.slice().buffer);
}

/**
 * The cells of a panel, kept up to date by messages, for all of its views. `listen` is called with the blocks that have
 * changed; `ask` when some have been missed.
 */
export function cellStore(initial, ask) {
  const { listen, tell } = listeners();
  const store = {
    cells: numbersIn(initial.view),
    frame: initial.frame,
    listen,
    take({ frame, previous }, [blocks, values]) {
      const [changed, cells] = [numbersIn(blocks), numbersIn(values)];
      if (previous > store.frame && changed.length < store.cells.length) ask();
      changed.forEach((block, i) => (store.cells[block] = cells[i]));
      store.frame = frame;
      tell(changed);
    },
  };
  return store;
}
