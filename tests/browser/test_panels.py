"""Panels in JupyterLab: all of them on a dashboard, and one that lives through a restart of its kernel."""

import re

from playwright.sync_api import Locator, Page, expect

from vllm_nb.notebook.panels import PANELS

NAMES = list(PANELS)
TITLES = {"kv": "KV cache", "paging": "Attention paging"}  # the others are called after their names


def panel_in(output: Locator, name: str) -> Locator:
    return output.get_by_role("region", name=TITLES.get(name, name.capitalize()))


def test_kernel_restart(lab, engine, page: Page) -> None:
    """The panel says that its kernel is gone; its cell, run again, shows the engine, which has gone on."""
    ask = "%%vllm --max-tokens 20 --ignore-eos\nTell me a story."
    notebook = lab.open(page, ["%load_ext vllm_nb\nimport vllm_nb", "vllm_nb.panel('throughput')", ask])
    notebook.run(0)
    status = notebook.run(1).locator(".vn-status")
    play = notebook.output(1).get_by_role("button", name="halt the picture")
    expect(status).to_have_text(re.compile("^step "))
    expect(play).to_be_enabled()

    notebook.restart_kernel()
    expect(status).to_have_text("the kernel was restarted: run the cell again, and the panel goes on")
    expect(play).to_be_disabled()

    notebook.run(0)
    notebook.run(1)
    expect(play).to_be_enabled()
    notebook.run(2)
    expect(status).to_have_text(re.compile("^step [1-9]"))
    assert engine.client.health()["pid"] == engine.info.pid


def test_dashboard(lab, page: Page) -> None:
    """All panels below one another, none wider than there is room, and one bar for all."""
    notebook = lab.open(page, ["import vllm_nb\nvllm_nb.dashboard()"])
    output = notebook.run(0)
    for name in NAMES:
        expect(panel_in(output, name)).to_be_visible()
        picture = panel_in(output, name).locator(".vn-body")
        assert picture.evaluate("body => body.clientHeight > 50 && body.scrollWidth <= body.clientWidth"), name
    expect(output.locator(".vn-transport:visible")).to_have_count(1)
    expect(output.locator(".vn-status").first).to_have_text(re.compile("^step "))
    swatches = panel_in(output, "schedule").locator(".vn-legend").first.locator(".vn-swatch").all()
    assert len({swatch.evaluate("swatch => swatch.offsetTop") for swatch in swatches}) == 1  # no style of another panel
