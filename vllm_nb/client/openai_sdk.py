"""Clients of OpenAI's own library, made for one server."""

from typing import Any

from vllm_nb.client.base import BaseClient
from vllm_nb.errors import VllmNbError


def make_client(server: BaseClient, kind: str, transport: str, options: dict[str, Any]) -> Any:
    """kind, transport: classes of the `openai` package. Raises VllmNbError where it is not installed."""
    try:
        import openai
    except ImportError:
        raise VllmNbError("the package `openai` is not installed: pip install 'vllm-nb[openai]'") from None
    defaults = {
        "base_url": f"{server.url}/v1",
        "api_key": server.token or "unused",  # it refuses to be without one
        "http_client": getattr(openai, transport)(trust_env=False),  # no proxy between us and loopback
    }
    return getattr(openai, kind)(**defaults | options)
