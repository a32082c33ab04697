"""A tokenizer from a Hugging Face folder: tokenizer.json, and the files beside it that add to it."""

import json
from pathlib import Path
from typing import Any, TypedDict

from tokenizers import AddedToken, Tokenizer

from vllm_nb.errors import ModelLoadError


class FolderTokenizer(TypedDict):
    backend: Tokenizer
    bos_id: int | None
    eos_ids: tuple[int, ...]
    prefix: tuple[int, ...]


def read_folder(path: Path) -> FolderTokenizer:
    """Raises ModelLoadError when tokenizer.json is missing, damaged, or at odds with tokenizer_config.json."""
    backend = _load(path)
    backend.no_truncation()
    backend.no_padding()
    config = {**_read_json(path / "special_tokens_map.json"), **_read_json(path / "tokenizer_config.json")}
    _add_tokens(backend, config, path)
    bos_id, eos_id = (_token_id(backend, config.get(name)) for name in ("bos_token", "eos_token"))
    prefix = _prefix(backend)
    add_bos = config.get("add_bos_token")
    if add_bos is not None:  # as in transformers, this goes before what tokenizer.json does
        prefix = (bos_id,) if add_bos and bos_id is not None else ()
    return {"backend": backend, "bos_id": bos_id, "eos_ids": () if eos_id is None else (eos_id,), "prefix": prefix}


def _load(path: Path) -> Tokenizer:
    file = path / "tokenizer.json"
    if not file.is_file():
        others = [name for name in ("tokenizer.model", "tekken.json", "vocab.json") if (path / name).is_file()]
        raise ModelLoadError(
            f"{path} has no tokenizer.json"
            + (f", only {others[0]}, which this engine does not read" if others else "")
            + ". Save one with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ModelLoadError(f"{file} cannot be read as a tokenizer: {error}") from error


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelLoadError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{file} must hold a JSON object")
    return content


def _add_tokens(backend: Tokenizer, config: dict[str, Any], path: Path) -> None:
    """What tokenizer_config.json adds to tokenizer.json, each token under the id it states."""
    listed = config.get("added_tokens_decoder") or {}
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for token_id, fields in sorted((int(i), fields) for i, fields in listed.items()):
        if fields["content"] in known:
            continue
        backend.add_tokens([AddedToken(**{name: fields[name] for name in _ADDED_FIELDS if name in fields})])
        if (given := backend.token_to_id(fields["content"])) != token_id:
            raise ModelLoadError(
                f"{path / 'tokenizer_config.json'} says that token {fields['content']!r} has id {token_id}, but with "
                f"tokenizer.json it gets id {given}; the two files do not belong together"
            )


_ADDED_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


def _token_id(backend: Tokenizer, token: Any) -> int | None:
    """Of a token given by name or as {"content": name}."""
    name = token.get("content") if isinstance(token, dict) else token
    return None if name is None else backend.token_to_id(name)


def _prefix(backend: Tokenizer) -> tuple[int, ...]:
    """What tokenizer.json's post-processor puts before a text."""
    bare = backend.encode("a", add_special_tokens=False).ids
    ids = backend.encode("a", add_special_tokens=True).ids
    return next((tuple(ids[:i]) for i in range(len(ids)) if ids[i : i + len(bare)] == bare), ())
