"""How embeddings are asked for and read, for both clients."""

import base64
import sys
from array import array
from collections.abc import Mapping
from typing import Any

PATH = "/v1/embeddings"


def embedding_body(model: str, inputs: Any, pooling: str, dimensions: int | None) -> dict[str, Any]:
    """OpenAI's fields; pooling, which is ours, only where it is not the default."""
    body: dict[str, Any] = {"model": model, "encoding_format": "base64"}
    body["input"] = inputs if isinstance(inputs, str) else list(inputs)
    if pooling != "mean":
        body["pooling"] = pooling
    if dimensions is not None:
        body["dimensions"] = dimensions
    return body


def vectors_of(answer: Mapping[str, Any], inputs: Any) -> Any:
    """The vector of a text, or those of a list."""
    vectors = [_floats(entry["embedding"]) for entry in answer["data"]]
    return vectors[0] if isinstance(inputs, str) else vectors


def _floats(encoded: str | list[float]) -> list[float]:
    """From base64 of little-endian float32; some servers know only numbers."""
    if isinstance(encoded, list):
        return encoded
    numbers = array("f", base64.b64decode(encoded))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()
