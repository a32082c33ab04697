"""The web page in Chromium, against a real engine: what a user does, and what must be there afterwards."""

import base64
import json
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

SCREENSHOTS = Path(__file__).parent / "screenshots"


@dataclass
class Chat:
    """The page, logged in."""

    page: Page

    @property
    def input(self) -> Locator:
        return self.page.get_by_label("Message the model")

    @property
    def turns(self) -> Locator:
        return self.page.locator(".vn-turn")

    @property
    def last(self) -> Locator:
        return self.turns.last

    def set(self, **parameters: object) -> None:
        self.page.get_by_role("button", name="Parameters").click()
        for label, value in parameters.items():
            self.page.get_by_label(label.replace("_", " "), exact=False).fill(str(value))
        self.page.get_by_role("button", name="Parameters").click()

    def ask(self, text: str, tokens: int = 8) -> str:
        """Send, wait for the end, and return the answer."""
        if self.turns.count() == 0:
            self.set(Temperature=0, Max_tokens=tokens)
        self.input.fill(text)
        self.input.press("Control+Enter")
        return self.answer()

    def answer(self) -> str:
        expect(self.last.locator(".vn-facts")).to_contain_text("tok")
        expect(self.page.get_by_role("button", name="Send (Ctrl+Enter)")).to_be_visible()
        return self.last.locator(".vn-text").inner_text()

    def do(self, turn: Locator, name: str) -> None:
        turn.get_by_role("button", name=re.compile(name)).click()


@pytest.fixture
def chat(page: Page, engine) -> Chat:
    page.goto(f"{engine.client.url}/#key={engine.client.token}")
    expect(page.get_by_label("Message the model")).to_be_focused()
    return Chat(page)


def test_an_answer_streams_and_says_what_it_cost(chat, engine):
    answer = chat.ask("Name the capital of France.", tokens=5)
    reference = engine.client.chat("Name the capital of France.", temperature=0, max_tokens=5)
    assert answer == reference.text.strip()
    facts = chat.last.locator(".vn-facts")
    expect(facts).to_have_text(re.compile(r"^5 tokens · [\d.]+ tok/s · first token [\d.]+ s.* · cut off"))
    again = chat.ask("And of Italy?")
    assert again
    expect(facts.last).to_contain_text("prompt tokens from cache")
    expect(chat.page.locator(".vn-model")).to_have_text("SmolLM2-135M-Instruct · 4,096 tokens")


def test_escape_stops_and_the_engine_stops_too(chat, engine):
    chat.set(Temperature=0, Max_tokens=3000)
    chat.input.fill("Tell me a very long story about a river.")
    chat.input.press("Enter")
    expect(chat.last.locator(".vn-facts")).to_contain_text("tok/s")
    chat.page.keyboard.press("Escape")
    expect(chat.last.locator(".vn-facts")).to_have_text("stopped")
    assert chat.last.locator(".vn-text").inner_text()
    expect(chat.page.get_by_role("status")).to_have_text("Stopped.")
    while engine.client.state()["running"]:  # the test's own time limit ends this
        chat.page.wait_for_timeout(20)


def test_regenerate_edit_and_branch_keep_everything_across_a_reload(chat):
    first = chat.ask("Say one word.", tokens=4)
    chat.set(Temperature=1, Seed=5)
    chat.do(chat.last, "Answer again")
    chat.answer()
    expect(chat.last.get_by_label("version 2 of 2")).to_be_visible()

    chat.do(chat.turns.first, "Edit")
    chat.page.get_by_label("Text of this turn").fill("Say another word.")
    chat.page.keyboard.press("Control+Enter")
    expect(chat.turns.first.locator(".vn-text")).to_have_text("Say another word.")
    chat.answer()

    chat.page.reload()
    expect(chat.turns).to_have_count(2)
    expect(chat.turns.first.get_by_label("version 2 of 2")).to_be_visible()
    chat.do(chat.turns.first, "Previous version")
    expect(chat.turns.first.locator(".vn-text")).to_have_text("Say one word.")
    expect(chat.last.get_by_label("version 2 of 2")).to_be_visible()
    chat.do(chat.last, "Previous version")
    expect(chat.last.locator(".vn-text")).to_have_text(first)


def test_history_is_renamed_deleted_exported_and_imported(chat, tmp_path):
    page = chat.page
    answer = chat.ask("Hello", tokens=3)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Export JSON").click()
    exported = json.loads(Path(saved.value.path()).read_text())
    assert [turn["role"] for turn in exported["turns"]] == ["user", "assistant"]
    assert exported["params"] == {"temperature": 0, "max_tokens": 3}
    with page.expect_download() as saved:
        page.get_by_role("button", name="Export Markdown").click()
    assert Path(saved.value.path()).read_text() == f"# Hello\n\n**You**\n\nHello\n\n**Model**\n\n{answer}\n"

    page.get_by_role("button", name="Rename Hello").click()
    page.get_by_label("Name of the conversation").fill("Greetings")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Greetings")).to_be_visible()
    page.get_by_role("button", name="Delete Greetings").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(chat.turns).to_have_count(0)
    expect(page.get_by_role("navigation").get_by_role("listitem")).to_have_count(0)

    file = tmp_path / "chat.json"
    file.write_text(json.dumps(exported))
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Import").click()
    chooser.value.set_files(file)
    expect(chat.turns).to_have_count(2)
    file.write_text("{}")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Import").click()
    chooser.value.set_files(file)
    expect(page.locator(".vn-notice")).to_have_text(
        "This file cannot be imported: this is no conversation that was exported here"
    )


def png(side: int) -> bytes:
    """A grey square."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress((b"\0" + b"\x80" * side) * side)
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_an_image_is_sent_and_a_text_model_says_so(chat):
    picture = png(16)
    chat.page.locator("input[type=file]").set_input_files(
        [
            {"name": "a.png", "mimeType": "image/png", "buffer": picture},
            {"name": "a.txt", "mimeType": "text/plain", "buffer": b"x"},
        ]
    )
    expect(chat.page.locator(".vn-notice")).to_have_text("a.txt is no image")
    expect(chat.page.get_by_alt_text("image 1 to send")).to_be_visible()
    with chat.page.expect_request("**/v1/chat/completions") as sent:
        chat.input.fill("What is this?")
        chat.input.press("Enter")
    address = sent.value.post_data_json["messages"][0]["content"][0]["image_url"]["url"]
    assert base64.b64decode(address.removeprefix("data:image/png;base64,")) == picture
    expect(chat.last.get_by_role("alert")).to_contain_text("This model takes text only")
    expect(chat.turns.first.get_by_alt_text("attached image")).to_be_visible()


def test_what_a_model_writes_is_text_and_never_markup(chat):
    """The answer comes from the engine's parser of messages; here from a saved conversation, the other way in."""
    evil = '<img src=x onerror="document.title=1"> [a](javascript:alert(1)) ![b](https://evil.example/x.png)\n\n```html\n<script>alert(1)</script>'
    turns = [
        {"id": 1, "parent": None, "role": "user", "content": evil},
        {"id": 2, "parent": 1, "role": "assistant", "content": evil, "reasoning": evil},
    ]
    saved = {"format": "vllm_nb.conversation", "version": 1, "title": evil, "turns": turns, "current": 2}
    requests: list[str] = []
    chat.page.on("request", lambda request: requests.append(request.url))
    with chat.page.expect_file_chooser() as chooser:
        chat.page.get_by_role("button", name="Import").click()
    chooser.value.set_files([{"name": "x.json", "mimeType": "application/json", "buffer": json.dumps(saved).encode()}])
    expect(chat.turns).to_have_count(2)
    chat.last.get_by_text("Reasoning").click()
    assert chat.turns.locator("img, script").count() == 0
    assert [link.get_attribute("href") for link in chat.turns.locator("a").all()] == ["https://evil.example/x.png"] * 2
    assert chat.last.locator("code").last.inner_text() == "<script>alert(1)</script>"
    assert not [url for url in requests if "evil" in url]


def test_everything_by_keyboard(chat):
    page = chat.page
    page.keyboard.type("One line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("and another")
    expect(chat.input).to_have_value("One line\nand another")
    page.keyboard.press("Alt+p")
    expect(page.get_by_label("System message")).to_be_focused()
    for _ in range(5):
        page.keyboard.press("Tab")
    expect(page.get_by_label("Max tokens")).to_be_focused()
    page.keyboard.type("4")
    page.keyboard.press("Alt+p")
    expect(page.get_by_label("System message")).to_be_hidden()
    chat.input.press("Enter")
    chat.answer()
    assert chat.turns.first.locator(".vn-text").inner_text() == "One line\nand another"
    order = []
    for _ in range(6):
        page.keyboard.press("Shift+Tab")
        order.append(page.locator(":focus").get_attribute("aria-label"))
    assert order[0] == "Attach images"
    assert {"Answer again: makes a new branch", "Edit: makes a new branch", "Copy text"} <= set(order)
    page.keyboard.press("Alt+n")
    expect(chat.turns).to_have_count(0)
    expect(chat.input).to_be_focused()


def brightness(colour: str) -> float:
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3


@pytest.mark.parametrize("system", ["light", "dark"])
def test_light_and_dark(page, engine, system):
    page.emulate_media(color_scheme=system)
    page.goto(f"{engine.client.url}/#key={engine.client.token}")
    background = "getComputedStyle(document.body).backgroundColor"
    expect(page.get_by_label("Message the model")).to_be_focused()
    assert (brightness(page.evaluate(background)) < 128) == (system == "dark")
    page.get_by_role("button", name="Dark or light").click()
    assert (brightness(page.evaluate(background)) < 128) == (system == "light")
    page.reload()
    expect(page.get_by_label("Message the model")).to_be_focused()
    assert (brightness(page.evaluate(background)) < 128) == (system == "light"), "the choice stays"


def test_a_phone_has_all_of_it(chat):
    page = chat.page
    page.set_viewport_size({"width": 390, "height": 700})
    chat.ask("Hello", tokens=3)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    expect(page.get_by_role("button", name="Export JSON")).to_be_hidden()
    page.get_by_role("button", name="Conversations").click()
    expect(page.get_by_role("button", name="Export JSON")).to_be_visible()
    page.get_by_role("navigation").get_by_role("button", name="Hello", exact=True).click()
    expect(page.get_by_role("button", name="Export JSON")).to_be_hidden()
