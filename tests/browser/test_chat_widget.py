"""vllm_nb.chat() in JupyterLab: what is clicked is in Python, what Python does is on the page."""

from pathlib import Path

import nbformat
from playwright.sync_api import Locator, expect

SETUP = "import vllm_nb\ntalk = vllm_nb.chat(temperature=0, max_tokens=6)\ntalk"


def message(chat: Locator) -> Locator:
    return chat.get_by_label("Message the model")


def ask(chat: Locator, text: str) -> None:
    message(chat).fill(text)
    message(chat).press("Control+Enter")


def is_ready(chat: Locator) -> None:
    expect(chat.get_by_role("button", name="Send (Ctrl+Enter)")).to_be_visible()


def test_the_chat_and_its_object_are_one(lab, page, engine):
    notebook = lab.open(
        page,
        [
            SETUP,
            "print(talk.conversation.last.text)",
            "talk.conversation.system = 'Be brief.'",
            "_ = talk.send('And of Italy?')\ntalk.wait()",
            "talk",
        ],
    )
    chat = notebook.run(0).locator(".vn-chat")
    ask(chat, "Name the capital of France.")
    expect(chat.locator(".vn-facts").last).to_contain_text("tok/s")
    is_ready(chat)
    answer = chat.locator(".vn-text").last.inner_text()
    reference = engine.client.chat("Name the capital of France.", temperature=0, max_tokens=6)
    assert answer == reference.text.strip()
    expect(notebook.run(1)).to_have_text(reference.text)

    notebook.run(2)
    chat.get_by_role("button", name="Parameters").click()
    expect(chat.get_by_label("System message")).to_have_value("Be brief.")
    notebook.run(3)
    expect(chat.locator(".vn-turn")).to_have_count(4)
    chat.locator(".vn-turn").nth(3).get_by_role("button", name="Answer again").click()
    expect(chat.get_by_label("version 2 of 2")).to_be_visible()
    is_ready(chat)

    again = notebook.run(4).locator(".vn-chat")
    expect(again.locator(".vn-turn")).to_have_count(4)
    expect(again.get_by_label("version 2 of 2")).to_be_visible()


def test_it_answers_and_stops_while_a_cell_runs(lab, page):
    wait = "import time\nwhile not (talk.conversation.last and talk.conversation.last.finish_reason): time.sleep(0.02)"
    notebook = lab.open(page, [SETUP.replace("max_tokens=6", "max_tokens=1000"), wait])
    chat = notebook.run(0).locator(".vn-chat")
    notebook.start(1)
    expect(notebook.cell(1).locator(".jp-InputPrompt")).to_have_text("[*]:")
    ask(chat, "Tell me a very long story.")
    expect(chat.locator(".vn-facts").last).to_contain_text("tok/s")
    page.keyboard.press("Escape")
    expect(chat.locator(".vn-facts").last).to_contain_text("stopped")
    expect(notebook.cell(1).locator(".jp-InputPrompt")).to_have_text("[2]:")


def test_where_a_cell_keeps_the_kernel_busy_the_chat_says_so(lab, page):
    with lab.setting("apputils", "kernels-settings", {"commsOverSubshells": "disabled"}):
        notebook = lab.open(page, [SETUP, "import time\nwhile True: time.sleep(0.02)"])
        chat = notebook.run(0).locator(".vn-chat")
        notebook.start(1)
        expect(notebook.cell(1).locator(".jp-InputPrompt")).to_have_text("[*]:")
        ask(chat, "Hello")
        expect(chat.locator(".vn-notice")).to_contain_text("The kernel is busy with a cell")
        page.locator("jp-button[data-command='notebook:interrupt-kernel']").click()
        expect(chat.locator(".vn-facts").last).to_contain_text("tok/s")
        expect(chat.locator(".vn-notice")).to_be_hidden()


def test_after_a_restart_the_chat_says_that_its_kernel_is_gone(lab, page):
    notebook = lab.open(page, [SETUP])
    chat = notebook.run(0).locator(".vn-chat")
    notebook.restart_kernel()
    expect(chat.locator(".vn-notice")).to_contain_text("The kernel was restarted: run the cell again")
    expect(chat.get_by_role("button", name="Send (Ctrl+Enter)")).to_be_disabled()


def test_a_reload_in_the_middle_of_an_answer_shows_all_of_it(lab, page):
    notebook = lab.open(page, [SETUP.replace("max_tokens=6", "max_tokens=100, ignore_eos=True")])
    chat = notebook.run(0).locator(".vn-chat")
    ask(chat, "Count.")
    expect(chat.locator(".vn-facts").last).to_contain_text("tok/s")
    page.keyboard.press("Control+s")
    expect(page.locator(".lm-TabBar-tab.jp-mod-dirty")).to_have_count(0)
    page.reload()
    chat = notebook.output(0).locator(".vn-chat")
    expect(chat.locator(".vn-facts").last).to_contain_text("100 tokens")
    expect(chat.locator(".vn-text").first).to_have_text("Count.")


def test_export_to_a_notebook_and_keys_that_are_not_jupyters(lab, page):
    notebook = lab.open(page, [SETUP, "1"])
    chat = notebook.run(0).locator(".vn-chat")
    ask(chat, "Say {{ this }};")
    expect(chat.locator(".vn-facts").last).to_contain_text("tok/s")
    is_ready(chat)
    message(chat).focus()
    page.keyboard.press("Tab")
    page.keyboard.press("d")
    page.keyboard.press("d")
    expect(page.locator(".jp-CodeCell")).to_have_count(2)
    chat.get_by_role("button", name="Export", exact=True).click()
    with page.expect_download() as saved:
        chat.get_by_role("menuitem", name="Notebook").click()
    exported = nbformat.read(Path(saved.value.path()), as_version=4)
    nbformat.validate(exported)
    assert exported.cells[2].source == (
        "%%vllm --chat chat --temperature 0 --max-tokens 6\nSay {{ \"{{\" }} this }}{{ ';' }}"
    )
    assert exported.cells[2].outputs[0].data["text/markdown"]
