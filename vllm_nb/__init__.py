"""A local LLM engine you can see inside, in a notebook.

The names below are imported when they are first used: `import vllm_nb` and `%load_ext vllm_nb` must answer at once,
and importing torch takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from vllm_nb.api import Engine, EngineBuilder, Prompt
    from vllm_nb.chat_options import ChatOptions, Tool
    from vllm_nb.client.aio import AsyncEngineClient
    from vllm_nb.client.completion import Completion
    from vllm_nb.client.conversation import Conversation
    from vllm_nb.client.http import EngineClient
    from vllm_nb.client.process import attach as connect
    from vllm_nb.client.process import list_engines, start, stop
    from vllm_nb.client.table import BatchStopped, Results
    from vllm_nb.config import EngineConfig
    from vllm_nb.errors import (
        EngineDeadError,
        GenerationError,
        ModelLoadError,
        QueueFullError,
        RequestError,
        VllmNbError,
    )
    from vllm_nb.inspection.recording import replay
    from vllm_nb.messages import ChatMessage, ImagePart, TextPart, ToolCall
    from vllm_nb.notebook.batch import batch
    from vllm_nb.notebook.chat import chat
    from vllm_nb.notebook.panels.entry import dashboard, panel
    from vllm_nb.outputs import GenerationOutput, StreamItem, ToolCallDelta
    from vllm_nb.sampling import SamplingParams, StructuredOutputs
    from vllm_nb.weights.hub import ModelRepo

    __version__: str

__all__ = [
    "AsyncEngineClient",
    "BatchStopped",
    "ChatMessage",
    "ChatOptions",
    "Completion",
    "Conversation",
    "Engine",
    "EngineBuilder",
    "EngineClient",
    "EngineConfig",
    "EngineDeadError",
    "GenerationError",
    "GenerationOutput",
    "ImagePart",
    "ModelLoadError",
    "ModelRepo",
    "Prompt",
    "QueueFullError",
    "RequestError",
    "Results",
    "SamplingParams",
    "StreamItem",
    "StructuredOutputs",
    "TextPart",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "VllmNbError",
    "__version__",
    "batch",
    "chat",
    "connect",
    "dashboard",
    "list_engines",
    "load_ipython_extension",
    "panel",
    "replay",
    "start",
    "stop",
    "unload_ipython_extension",
]

_HOMES = {
    "vllm_nb.api": ("Engine", "EngineBuilder", "Prompt"),
    "vllm_nb.chat_options": ("ChatOptions", "Tool"),
    "vllm_nb.client.aio": ("AsyncEngineClient",),
    "vllm_nb.client.completion": ("Completion",),
    "vllm_nb.client.conversation": ("Conversation",),
    "vllm_nb.client.http": ("EngineClient",),
    "vllm_nb.client.process": ("connect", "list_engines", "start", "stop"),
    "vllm_nb.client.table": ("BatchStopped", "Results"),
    "vllm_nb.config": ("EngineConfig",),
    "vllm_nb.errors": (
        "EngineDeadError",
        "GenerationError",
        "ModelLoadError",
        "QueueFullError",
        "RequestError",
        "VllmNbError",
    ),
    "vllm_nb.inspection.recording": ("replay",),
    "vllm_nb.notebook.chat": ("chat",),
    "vllm_nb.messages": ("ChatMessage", "ImagePart", "TextPart", "ToolCall"),
    "vllm_nb.notebook.batch": ("batch",),
    "vllm_nb.notebook.panels.entry": ("dashboard", "panel"),
    "vllm_nb.outputs": ("GenerationOutput", "StreamItem", "ToolCallDelta"),
    "vllm_nb.sampling": ("SamplingParams", "StructuredOutputs"),
    "vllm_nb.weights.hub": ("ModelRepo",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
_NAMED_THERE = {"connect": "attach"}  # out of its module `attach` says too little


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("vllm-nb")
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), _NAMED_THERE.get(name, name))
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # the next access doesn't come here
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


def load_ipython_extension(shell: "InteractiveShell") -> None:
    """`%load_ext vllm_nb`: the magics `%vllm` and `%%vllm`."""
    from vllm_nb.notebook.magics import VllmMagics

    VllmMagics.load(shell)


def unload_ipython_extension(shell: "InteractiveShell") -> None:
    """`%unload_ext vllm_nb`: the magics go; engines stay, for other notebooks may use them."""
    from vllm_nb.notebook.magics import VllmMagics

    VllmMagics.unload(shell)
