"""Panels in JupyterLab: they render, follow a running cell, and live through re-display, reload and restarts.

Screenshots are compared by people: `SCREENSHOTS=1 pytest tests/browser/test_panels.py` writes them anew.
"""

import os
import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from vllm_nb.notebook.chat_widget import UI
from vllm_nb.notebook.panels import PANELS
from vllm_nb.notebook.panels.bundle import STATIC
from vllm_nb.notebook.panels.palette import COLOURS

NAMES = list(PANELS)
CELLS = {name: place for place, name in enumerate(NAMES, 1)}
ASK, AGAIN, SHORT = range(len(NAMES) + 1, len(NAMES) + 4)
FOLDER = Path(__file__).parent / "screenshots"
TITLES = {"kv": "KV cache", "paging": "Attention paging"}  # the others are called after their names
WRITE = bool(os.environ.get("SCREENSHOTS"))
RESTARTED = "the kernel was restarted: run the cell again, and the panel goes on"
LONG = "%%vllm --temperature 0.9 --seed 1 --max-tokens 3000 --logprobs 8 --ignore-eos -n 2\nTell me a story."
BRIEF = "%%vllm --temperature 0.9 --seed 1 --max-tokens 60 --logprobs 8 --ignore-eos -n 3\nTell me a story of the sea."


def panel_in(output: Locator, name: str) -> Locator:
    return output.get_by_role("region", name=TITLES.get(name, name.capitalize()))


def statuses(output: Locator) -> list[Locator]:
    return [panel_in(output, name).locator(".vn-status") for name in NAMES]


def choose_theme(page: Page, name: str) -> None:
    page.locator(".lm-MenuBar-itemLabel", has_text="Settings").click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Theme$")).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{name}$")).click()
    expect(page.locator("body")).to_have_attribute("data-jp-theme-name", name)


def free_cell(output: Locator) -> str:
    """The colour of a block in the last row of the KV map, which is free."""
    return output.locator(".vn-map canvas").first.evaluate("""canvas => {
        const { data } = canvas.getContext("2d").getImageData(3, canvas.height - 8, 1, 1);
        return "#" + [...data.slice(0, 3)].map((part) => part.toString(16).padStart(2, "0")).join("");
    }""")


def photograph(output: Locator, name: str, theme: str) -> None:
    output.scroll_into_view_if_needed()
    picture = output.locator(".vllm-nb").first.screenshot()
    assert len(picture) > 4000, f"{name} is blank"
    if WRITE:
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{name}-{theme}.png").write_bytes(picture)


# What has the focus first, a key, and what then says something else.
BY_KEYBOARD = {
    "kv": ("canvas", "ArrowRight", ".vn-words"),
    "throughput": ("select", "ArrowDown", ".vn-actions select"),
    "schedule": (".vn-lanes", "ArrowLeft", ".vn-words"),
    "paging": ("[role=listbox]", "ArrowDown", ".vn-words"),
    "tokens": (".vn-token[tabindex='0']", "ArrowRight", "[role=status]"),
    "memory": ("input[name=sequences]", "PageUp", ".vn-verdict"),
}
WORDS = "element => element.value ?? element.textContent"


def operate_by_keyboard(page: Page, panel: Locator, name: str) -> None:
    """What a panel has of its own, its numbers and its bar; the notebook stays at its cell meanwhile."""
    prompt = page.locator(".jp-Notebook .jp-mod-active .jp-InputPrompt")
    target, key, result = BY_KEYBOARD[name]
    body = panel.locator(".vn-body")
    before = body.locator(result).first.evaluate(WORDS)
    body.locator(target).first.focus()
    active = prompt.text_content()
    page.keyboard.press(key)
    changed = f"([body, selector, before]) => ({WORDS})(body.querySelector(selector)) !== before"
    page.wait_for_function(changed, arg=[body.element_handle(), result, before])
    if name != "memory":  # whose numbers are always there
        body.locator("summary").focus()
        page.keyboard.press("Enter")
        expect(body.locator("details")).to_have_attribute("open", "")
    has_text_for_all(panel, name)
    if name != "memory":
        page.keyboard.press("Enter")  # else the page is long, and jumps when there is nothing to tell
    if panel.locator(".vn-transport").is_visible():
        status = panel.locator(".vn-status")
        panel.get_by_role("button", name="show what happens now").focus()
        page.keyboard.press("Enter")
        expect(status).to_have_text(re.compile(r"^step [1-9]\d*$"))
        for control, keys in ((("button", "one step back"), ("Enter", "Space")), (("slider", "step"), ("Home", "End"))):
            panel.get_by_role(control[0], name=control[1], exact=True).focus()
            for key in keys:
                before = status.text_content() or ""
                page.keyboard.press(key)
                status.scroll_into_view_if_needed()
                expect(status).not_to_have_text(before)
    assert prompt.text_content() == active


def has_text_for_all(panel: Locator, name: str) -> None:
    """Every picture has a name or is hidden from those who cannot see it, every control a name, the numbers rows."""
    nameless = panel.evaluate("""panel => [...panel.querySelectorAll("svg, canvas, button, select, input")]
        .filter((each) => each.getClientRects().length && !each.closest("[aria-hidden=true], [role=img] *"))
        .filter((each) => !each.ariaLabel && !(each.matches("button") && each.textContent) && !each.labels?.length)
        .map((each) => each.outerHTML.slice(0, 80))""")
    assert nameless == [], name
    roleless = panel.evaluate("""panel => [...panel.querySelectorAll(":is(svg, canvas):not([aria-hidden=true])")]
        .filter((each) => !each.role).map((each) => each.outerHTML.slice(0, 80))""")
    assert roleless == [], name
    rows = panel.locator(".vn-body table").last.locator("tbody tr")
    assert rows.count() > 0, name
    assert all(cell.strip() for cell in rows.first.locator("td, th").all_inner_texts()[1:]), name


def matching(part: Locator, css: str) -> list[str]:
    """Selectors of a style sheet that choose something in a part of the page."""
    return part.evaluate("""(part, css) => {
        const sheet = new CSSStyleSheet();
        sheet.replaceSync(css);
        const rules = [...sheet.cssRules].flatMap((rule) => (rule.selectorText ? [rule] : [...(rule.cssRules ?? [])]));
        const inside = [part, ...part.querySelectorAll("*")];
        return rules.map((rule) => rule.selectorText).filter((one) => one && inside.some((each) => each.matches(one)));
    }""", css)  # fmt: skip


def restarted(notebook, first: dict[str, Locator]) -> None:
    """Each panel says that its kernel is gone, comes back when its cell is run again, and follows what comes then."""
    notebook.restart_kernel()
    for panel in first.values():
        expect(panel.locator(".vn-status")).to_have_text(RESTARTED)
    notebook.start(0)
    for name, panel in first.items():
        notebook.start(CELLS[name])
        expect(panel.locator(".vn-status")).to_have_text(re.compile(r"^step \d+$"))
        expect(panel.get_by_role("button", name="one step back")).to_be_enabled()
    notebook.run(SHORT)  # and all of them follow what comes then
    last = settled(first["schedule"].locator(".vn-status"))
    assert re.match("step [1-9]", last)
    for panel in first.values():
        panel.scroll_into_view_if_needed()
        expect(panel.locator(".vn-status")).to_have_text(last)


@pytest.fixture
def notebook(lab, page: Page):
    """A notebook with a cell for each panel, all shown."""
    page.set_viewport_size({"width": 1280, "height": 1000})
    cells = ["%load_ext vllm_nb\nimport vllm_nb\nclient = vllm_nb.connect()"]
    cells += [f"vllm_nb.panel({name!r})" for name in NAMES]
    cells += [LONG, f"for name in {NAMES}:\n    display(client.panel(name))", BRIEF]
    notebook = lab.open(page, cells)
    notebook.run(0)
    for name, place in CELLS.items():
        expect(panel_in(notebook.run(place), name)).to_be_visible()
    return notebook


def settled(status: Locator) -> str:
    """Its text when it has not changed for a second: the last events may come after the cell's answer."""
    status.scroll_into_view_if_needed()
    quiet = """(status) => {
        const now = performance.now(), text = status.textContent;
        if (text !== window.statusText) [window.statusText, window.statusSince] = [text, now];
        return now - window.statusSince > 1000;
    }"""
    status.page.wait_for_function(quiet, arg=status.element_handle(), polling=100)
    return status.text_content() or ""


def test_every_panel(notebook, page: Page) -> None:
    first = {name: panel_in(notebook.output(place), name) for name, place in CELLS.items()}

    notebook.start(ASK)  # it runs for longer than this takes, on any machine
    expect(notebook.output(ASK)).to_contain_text("tok/s")
    for panel in first.values():  # each is followed while the cell runs, when it is seen
        panel.scroll_into_view_if_needed()
        status = panel.locator(".vn-status")
        expect(status).to_have_text(re.compile(r"step [1-9]"))
        before = status.text_content() or ""
        expect(status).not_to_have_text(before)
    count = first["tokens"].locator(".vn-token").count()
    first["tokens"].locator(".vn-token").first.scroll_into_view_if_needed()
    expect(first["tokens"].locator(".vn-token")).not_to_have_count(count)
    expect(notebook.cell(ASK).locator(".jp-InputPrompt")).to_have_text("[*]:")
    page.locator("jp-button[data-command='notebook:interrupt-kernel']").click()
    expect(notebook.cell(ASK).locator(".jp-InputPrompt")).to_have_text(re.compile(r"\[\d+\]:"))

    again = notebook.run(AGAIN)  # all of them a second time, which then go on with the first
    notebook.run(SHORT)
    panel_in(again, "tokens").scroll_into_view_if_needed()
    expect(again.locator(".vn-token")).to_have_count(60)
    last = settled(first["schedule"].locator(".vn-status"))
    assert re.match(r"step \d+$", last)
    for status in statuses(again):
        status.scroll_into_view_if_needed()
        expect(status).to_have_text(last)

    first["tokens"].locator(".vn-token").first.scroll_into_view_if_needed()
    before = first["tokens"].locator(".vn-tree li").count()
    first["tokens"].get_by_role("button", name="fork with").first.click()
    expect(first["tokens"].locator(".vn-tree li")).to_have_count(before + 1)

    for theme in ("Light", "Dark"):
        choose_theme(page, f"JupyterLab {theme}")
        assert free_cell(first["kv"]) == COLOURS["surface"][theme == "Dark"]
        for name, place in CELLS.items():
            photograph(notebook.output(place), name, theme.lower())
    choose_theme(page, "JupyterLab Light")

    for name, panel in first.items():
        operate_by_keyboard(page, panel, name)
        assert matching(panel, (UI / "chat.css").read_text()) == [], name
    first["kv"].get_by_role("button", name="show what happens now").click()

    page.keyboard.press("Control+s")
    expect(page.locator(".jp-mod-dirty")).to_have_count(0)
    page.reload()  # the kernel still has the panels
    for panel in first.values():
        panel.scroll_into_view_if_needed()
        expect(panel.locator(".vn-status")).to_have_text(re.compile(r"step [1-9]"))
    first["kv"].scroll_into_view_if_needed()
    first["kv"].get_by_role("button", name="one step back").click()
    for panel in first.values():
        panel.scroll_into_view_if_needed()
        expect(panel.locator(".vn-status")).to_have_text(re.compile(r"step \d+ · of"))

    restarted(notebook, first)


def test_without_its_kernel(lab, page: Page) -> None:
    """A notebook that JupyterLab has saved and opens again without the widget's state: the picture is there instead."""
    notebook = lab.open(page, ["import vllm_nb\nvllm_nb.panel('throughput')"])
    picture = notebook.run(0).locator("figure")
    expect(notebook.output(0).locator(".vn-status")).to_have_text(re.compile("^step "))
    expect(picture).to_have_count(1)
    expect(picture).to_be_hidden()
    page.keyboard.press("Control+s")
    expect(page.locator(".jp-mod-dirty")).to_have_count(0)
    lab.restart_kernel(page)
    page.reload()
    expect(picture).to_be_visible()
    expect(picture.locator("svg")).to_be_visible()


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
    expect(status).to_have_text(RESTARTED)
    expect(play).to_be_disabled()

    notebook.run(0)
    notebook.run(1)
    expect(play).to_be_enabled()
    notebook.run(2)
    expect(status).to_have_text(re.compile("^step [1-9]"))
    assert engine.client.health()["pid"] == engine.info.pid

    lab.restart_kernel(page)  # as another page or a script does
    page.mouse.move(0, 0)
    status.hover()
    expect(status).to_have_text(RESTARTED)


def test_dashboard(lab, page: Page) -> None:
    """All panels below one another, none wider than there is room, and one bar for all."""
    notebook = lab.open(page, ["import vllm_nb\nvllm_nb.dashboard()", "vllm_nb.chat()"])
    output = notebook.run(0)
    for name in NAMES:
        expect(panel_in(output, name)).to_be_visible()
        picture = panel_in(output, name).locator(".vn-body")
        assert picture.evaluate("body => body.clientHeight > 50 && body.scrollWidth <= body.clientWidth"), name
    expect(output.locator(".vn-transport:visible")).to_have_count(1)
    expect(output.locator(".vn-status").first).to_have_text(re.compile("^step "))
    swatches = panel_in(output, "schedule").locator(".vn-legend").first.locator(".vn-swatch").all()
    assert len({swatch.evaluate("swatch => swatch.offsetTop") for swatch in swatches}) == 1  # no style of another panel
    chat = notebook.run(1).locator(".vn-widget")
    expect(chat.get_by_label("Message the model")).to_be_visible()
    for file in STATIC.glob("*.css"):
        assert matching(chat, file.read_text()) == []
