"""`%vllm ui`: the web page of an engine."""

import argparse
import html
from typing import Any

from vllm_nb.notebook.commands import Action
from vllm_nb.notebook.parser import Parser
from vllm_nb.notebook.session import Session


class PageLink:
    """A link that logs in: the key is behind the '#', which a browser sends to nobody."""

    def __init__(self, url: str, token: str | None):
        self.address = f"{url}/#key={token}" if token else f"{url}/"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        address = html.escape(self.address)
        note = "It works on this machine, and holds the engine's key as long as the engine runs."
        link = f'<a href="{address}" target="_blank" rel="noopener">Open the chat page</a>'
        return {"text/plain": f"{self.address}\n{note}", "text/html": f"{link} <small>{note}</small>"}


def _arguments(parser: Parser) -> None:
    name = parser.add_argument("name", nargs="?", help="as %%vllm ps names it; the default is the engine in use")
    parser.completes(name, "engines")


def _ui(session: Session, options: argparse.Namespace) -> PageLink:
    if options.name:
        engine = session.engines.ready(options.name, session.view(silent=True))
    else:
        engine = session.engine_in_use(silent=True)
    return PageLink(engine.client.url, engine.client.token)


UI = Action("A link to the engine's web page: chat in a browser.", _arguments, _ui)
