"""The heart of the engine. All of it needs torch, whose import is the largest part of a warm start."""

from vllm_nb.engine.collector import collector_paused

with collector_paused():
    import torch  # noqa: F401
