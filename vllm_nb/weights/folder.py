"""Which files of a Hugging Face folder hold the weights."""

from pathlib import Path

from vllm_nb.errors import ModelLoadError
from vllm_nb.weights.fields import Fields, read_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth")


def weight_files(folder: Path) -> list[str]:
    """Names of the safetensors files with the model. Raises ModelLoadError if there are none, or not all."""
    if not (folder / INDEX).is_file():
        if (folder / WEIGHTS).is_file():
            return [WEIGHTS]
        raise ModelLoadError(f"{folder} has no weights: neither {WEIGHTS} nor {INDEX}.{_hint(folder)}")
    index = Fields(read_json(folder / INDEX), folder / INDEX)
    files = sorted({str(file) for file in index.mapping("weight_map").values.values()})
    for file in files:
        if Path(file).name != file:
            raise index.error("weight_map", f"must hold the names of files in its folder, not {file!r}")
    missing = [file for file in files if not (folder / file).is_file()]
    if missing or not files:
        listed = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        raise ModelLoadError(f"{folder} lacks {len(missing)} of {len(files)} files of weights: {listed}.")
    return files


def _hint(folder: Path) -> str:
    if any((folder / name).exists() for name in _PICKLES):
        return " Pickled weights (.bin, .pth) can run code when loaded and are not read; convert them to safetensors."
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    return f" There is {others[0]}, under a name that is not looked for." if others else ""
