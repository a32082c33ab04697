"""A conversation outside the chat: as cells that have it again, as a notebook, as a picture in HTML."""

import html
from typing import Any

from vllm_nb.client.conversation import Conversation, Turn

_FLAGS = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "seed")
_PENALTIES = ("repetition_penalty", "frequency_penalty", "presence_penalty")


def cells(conversation: Conversation, name: str = "chat") -> list[str]:
    """The sources of code cells: the extension, what flags refer to, a `%%vllm --chat NAME` for each user's turn."""
    turns = [turn for turn in conversation.branch if turn.role == "user"]
    images = [url for turn in turns for url in turn.images]
    setup = ["%load_ext vllm_nb"]
    setup += [f"system = {conversation.system!r}"] if conversation.system else []
    setup += [f"images = {images!r}"] if images else []
    sources, used = ["\n".join(setup)], 0
    for number, turn in enumerate(turns):
        flags = [f"--chat {name}"]
        flags += ["--system {{ system }}"] if conversation.system and number == 0 else []
        flags += [f"--image {{{{ images[{used + at}] }}}}" for at in range(len(turn.images))]
        used += len(turn.images)
        sources.append(f"%%vllm {' '.join([*flags, *_sampling_flags(conversation)])}\n{_literal(turn.text)}")
    return sources


def _sampling_flags(conversation: Conversation) -> list[str]:
    params = conversation.params
    flags = [f"--{name.replace('_', '-')} {params[name]}" for name in (*_FLAGS, *_PENALTIES) if name in params]
    stop = params.get("stop") or []
    return flags + [f"--stop {{{{ {text!r} }}}}" for text in ([stop] if isinstance(stop, str) else stop)]


def _literal(text: str) -> str:
    """A text that `%%vllm` reads as it stands: no expression in it, no ';' at its end that would silence the cell."""
    text = text.replace("{{", '{{ "{{" }}')
    return f"{text[:-1]}{{{{ ';' }}}}" if text.rstrip().endswith(";") and text.endswith(";") else text


def notebook(conversation: Conversation, name: str = "chat") -> dict[str, Any]:
    """nbformat 4.5, with the answers as outputs: it can be read before it is run."""
    first, *asked = cells(conversation, name)
    answers = _answers(conversation)
    code = [_cell(0, first, None)]
    code += [_cell(number, source, answers[number - 1]) for number, source in enumerate(asked, 1)]
    title = {"cell_type": "markdown", "id": "title", "metadata": {}, "source": f"# {conversation.title or 'A chat'}"}
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": [title, *code]}


def _answers(conversation: Conversation) -> list[str]:
    """What was said after each user's turn."""
    answers: list[str] = []
    for turn in conversation.branch:
        if turn.role == "user":
            answers.append("")
        elif answers:
            answers[-1] = f"{answers[-1]}\n\n{turn.text}".strip()
    return answers


def _cell(number: int, source: str, answer: str | None) -> dict[str, Any]:
    data = {"text/markdown": answer, "text/plain": answer}
    outputs = [{"output_type": "display_data", "data": data, "metadata": {}}] if answer else []
    cell = {"cell_type": "code", "id": f"chat-{number}", "metadata": {}, "source": source}
    return cell | {"execution_count": None, "outputs": outputs}


_FRAME = "max-width:46rem;font-family:system-ui,sans-serif;line-height:1.5;overflow-wrap:anywhere"
_WHO = "font-size:80%;font-weight:600;opacity:.7"
_NOTE = "font-size:80%;opacity:.7"
_BUBBLE = "background:rgba(127,127,127,.12);border-radius:12px;padding:.5rem .8rem"


def picture(conversation: Conversation) -> str:
    """The current branch as HTML without scripts or style sheets, for readers without a kernel."""
    parts = [f"<p><strong>{html.escape(conversation.title)}</strong></p>"] if conversation.title else []
    if conversation.system:
        parts.append(f'<p style="{_NOTE}">System: {html.escape(conversation.system)}</p>')
    parts += [_turn(turn) for turn in conversation.branch]
    if not conversation.branch:
        parts.append(f'<p style="{_NOTE}">A chat in which nothing has been said yet.</p>')
    return f'<div style="{_FRAME}">{"".join(parts)}</div>'


def _turn(turn: Turn) -> str:
    images = "".join(
        f'<img src="{html.escape(url)}" alt="attached image" style="max-width:20rem;max-height:16rem;display:block">'
        for url in turn.images
        if url.startswith("data:image/")  # one elsewhere would tell its server about the reader
    )
    thought = f"<details><summary>Reasoning</summary>{_text(turn.reasoning)}</details>" if turn.reasoning else ""
    failure = f'<p style="{_NOTE}">Error: {html.escape(turn.error)}</p>' if turn.error else ""
    who = {"user": "You", "assistant": turn.model or "Model"}.get(turn.role, turn.role)
    frame = _BUBBLE if turn.role == "user" else "padding:.2rem 0"
    return (
        f'<div style="margin:.6rem 0"><div style="{_WHO}">{html.escape(who)}</div>'
        f'<div style="{frame}">{images}{thought}{_text(turn.text)}{failure}</div></div>'
    )


def _text(text: str) -> str:
    return f'<div style="white-space:pre-wrap">{html.escape(text)}</div>'
