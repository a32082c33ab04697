"""A tokenizer from a Hugging Face folder: tokenizer.json, and the files beside it that add to it."""

import json
from pathlib import Path
from typing import Any, TypedDict

from tokenizers import AddedToken, Tokenizer

from vllm_nb.errors import ModelLoadError

_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


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
    _mark_special(backend, config)
    bos_id, eos_id = (_token_id(backend, config.get(name)) for name in ("bos_token", "eos_token"))
    eos_ids = () if eos_id is None else (eos_id,)
    # add_bos_token of tokenizer_config.json says nothing beside a tokenizer.json: so it is in transformers 5.
    return {"backend": backend, "bos_id": bos_id, "eos_ids": eos_ids, "prefix": _prefix(backend)}


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
    try:
        tokens = {int(i): AddedToken(**{name: of[name] for name in _FIELDS if name in of}) for i, of in listed.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelLoadError(f"{path / 'tokenizer_config.json'}: added_tokens_decoder is damaged: {error}") from error
    for token_id, token in sorted(tokens.items()):
        if token.content in known:
            continue
        backend.add_tokens([token])
        if (given := backend.token_to_id(token.content)) != token_id:
            raise ModelLoadError(
                f"{path / 'tokenizer_config.json'} says in added_tokens_decoder that token {token.content!r} has id "
                f"{token_id}, but with tokenizer.json it gets id {given}; the two files do not belong together"
            )


def _mark_special(backend: Tokenizer, config: dict[str, Any]) -> None:
    """Tokens with a role are special, also where tokenizer.json does not say so."""
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    for role in _ROLES:
        name = _name(config.get(role))
        if name is not None and name not in special and backend.token_to_id(name) is not None:
            backend.add_special_tokens([AddedToken(name, normalized=False, special=True)])


def _token_id(backend: Tokenizer, token: Any) -> int | None:
    name = _name(token)
    return None if name is None else backend.token_to_id(name)


def _name(token: Any) -> str | None:
    """Of a token given by name or as {"content": name}."""
    name = token.get("content") if isinstance(token, dict) else token
    return name if isinstance(name, str) else None


def _prefix(backend: Tokenizer) -> tuple[int, ...]:
    """What tokenizer.json's post-processor puts before a text."""
    bare = backend.encode("a", add_special_tokens=False).ids
    ids = backend.encode("a", add_special_tokens=True).ids
    return next((tuple(ids[:i]) for i in range(len(ids)) if ids[i : i + len(bare)] == bare), ())
