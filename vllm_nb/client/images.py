"""Images of a request: files and pictures in memory become `data:` URIs, which a server need not be allowed to read."""

import base64
import mimetypes
from io import BytesIO
from pathlib import Path
from typing import Any

from vllm_nb.errors import RequestError

_MAX_BYTES = 32 * 2**20
_SIGNATURES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif", b"RIFF": "image/webp"}


def image_url(image: Any) -> str:
    """image: an http(s) URL or `data:` URI, which stay as they are; a path; bytes of a file; or anything with Pillow's
    `save`. Raises RequestError."""
    if isinstance(image, str) and image.startswith(("http://", "https://", "data:")):
        return image
    if isinstance(image, str | Path):
        return _from_file(Path(image).expanduser())
    if isinstance(image, bytes):
        return _uri(image, _kind(image))
    if hasattr(image, "save"):
        buffer = BytesIO()
        image.save(buffer, format="PNG")
        return _uri(buffer.getvalue(), "image/png")
    raise RequestError(f"an image must be a URL, a path, bytes or a Pillow image, not {type(image).__name__}")


def _from_file(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise RequestError(f"the image {path} is larger than {_MAX_BYTES // 2**20} MiB")
        data = path.read_bytes()
    except OSError as error:
        raise RequestError(f"the image {path} cannot be read: {error.strerror}") from None
    return _uri(data, _kind(data, mimetypes.guess_type(path.name)[0]))


def _kind(data: bytes, guess: str | None = None) -> str:
    kind = next((kind for start, kind in _SIGNATURES.items() if data.startswith(start)), guess)
    if kind is None or not kind.startswith("image/"):
        raise RequestError("this is no image that is known: use PNG, JPEG, GIF or WebP")
    return kind


def _uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
