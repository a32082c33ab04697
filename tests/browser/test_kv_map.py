"""The KV map of 100,000 blocks in Chromium: `pytest tests/browser/test_kv_map.py -s` says what its paintings take."""

import json
import statistics

from playwright.sync_api import Page, expect

from vllm_nb.notebook.panels.bundle import bundle, style
from vllm_nb.notebook.panels.kv import KvPanel

BLOCKS = 100_000
CHANGED = 4096  # cells of a frame: 64 sequences that are admitted with a thousand tokens each
FRAMES = 60
FRAME = 1 / 10  # seconds that a frame may take, everything included

# A page that hands the panel its states, as anywidget does; each frame's time is what the page is busy for.
PROGRAM = """async ({ source, state, blocks, changed, frames }) => {
  const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const panel = (await import(url)).default;
  const numbers = (values) => new DataView(Uint32Array.from(values).buffer);
  const cell = (block, turn) => (1 + ((block + turn) % 50)) << 16 | 1 << 8 | (block % 3 ? 0 : 1 << 9) | 16;
  const traits = { state, transport: {}, frame: 0, panel_id: "1", block: null, sequence: null };
  traits.cells = { view: numbers(Array.from({ length: blocks }, (_, block) => cell(block, 0))), frame: 0 };
  const heard = {};
  const model = {
    get: (name) => traits[name], set: (name, value) => (traits[name] = value), save_changes() {}, send() {}, off() {},
    on: (names, callback) => names.split(" ").forEach((name) => (heard[name] ??= []).push(callback)),
    widget_manager: {},
  };
  const turn = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  const painted = async () => (await turn(), await turn());
  let start = performance.now();
  panel.render({ model, el: document.body });
  await painted();
  const whole = performance.now() - start;
  const parts = [];
  start = performance.now();
  for (let frame = 1; frame <= frames; frame += 1) {
    const some = Array.from({ length: changed }, (_, i) => (frame * 7919 + i * 23) % blocks);
    const began = performance.now();
    Object.assign(traits, { frame, state: { ...state, step: frame, table: some.slice(0, 64) } });
    heard["change:state"].forEach((tell) => tell());
    const message = { type: "cells", frame, previous: frame - 1 };
    const cells = [numbers(some), numbers(some.map((each) => cell(each, frame)))];
    heard["msg:custom"].forEach((tell) => tell(message, cells));
    await painted();
    parts.push((performance.now() - began) / 1000);
  }
  return { whole: whole / 1000, parts };
}"""


def test_a_large_map_is_fluid(page: Page) -> None:
    counts = ["step", "cached_free", "stored", "shared", "evictions", "preemptions", "prompt_tokens", "cached_tokens"]
    state = dict.fromkeys([*counts, "waiting"], 0) | {
        "num_blocks": BLOCKS,
        "block_size": 16,
        "used": BLOCKS,
        "running": 64,
    }
    state |= {"sequences": [[n, f"req-{n} [0]", 1000, 64] for n in range(64)], "table": [], "chosen": None}
    page.set_content(f"<style>{style('panel.css', 'transport.css', *KvPanel.styles)}</style>")
    given = {"source": bundle(KvPanel.module), "state": state, "blocks": BLOCKS, "changed": CHANGED, "frames": FRAMES}
    took = page.evaluate(PROGRAM, given)
    expect(page.locator(".vn-map canvas").first).to_be_visible()
    median, worst = statistics.median(took["parts"]), max(took["parts"])
    print(
        f"\n{BLOCKS:,} blocks: all painted in {took['whole'] * 1e3:.0f} ms; a frame with {CHANGED:,} changed cells "
        f"takes {median * 1e3:.0f} ms (median of {FRAMES}; the longest {worst * 1e3:.0f} ms)"
    )
    assert median < FRAME / 2, json.dumps(took)
