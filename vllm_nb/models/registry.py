"""The architectures there are. Adding one: a file beside this one, and a line in _ARCHITECTURES."""

from collections.abc import Callable

import torch

from vllm_nb import progress
from vllm_nb.errors import ModelLoadError
from vllm_nb.kernels.backend import Backend
from vllm_nb.models import gemma3, llama, qwen2, qwen3
from vllm_nb.models.decoder import Decoder
from vllm_nb.models.loader import WeightLoader
from vllm_nb.weights.checkpoint import Checkpoint

_ARCHITECTURES: dict[str, Callable[[WeightLoader], Decoder]] = {
    "llama": llama.load,
    "qwen2": qwen2.load,
    "qwen3": qwen3.load,
    "gemma3": gemma3.load,
}
SUPPORTED = tuple(_ARCHITECTURES)


def build(
    checkpoint: Checkpoint,
    kernels: Backend,
    *,
    dtype: torch.dtype,
    weight_dtype: torch.dtype | None = None,
    device: torch.device,
    max_len: int,
) -> Decoder:
    """Load the model of a checkpoint, for contexts of up to `max_len` tokens, with activations of `dtype`.

    weight_dtype: of weights that the backend does not keep quantised; None: as the activations.

    Raises ModelLoadError: unknown architecture; a tensor missing, of the wrong shape, or in a layer without use.
    """
    architecture = checkpoint.config.architecture
    if architecture not in _ARCHITECTURES:
        raise ModelLoadError(
            f"The architecture {architecture!r} of {checkpoint.path} is not supported; supported are "
            f"{', '.join(SUPPORTED)}."
        )
    with progress.task("Loading weights", total=len(checkpoint.names()), unit="tensors") as advance:
        loader = WeightLoader(checkpoint, kernels, dtype, weight_dtype or dtype, device, max_len, advance)
        model = _ARCHITECTURES[architecture](loader)
    _check_unread(loader)
    return model


def _check_unread(loader: WeightLoader) -> None:
    """Refuse layers with more in them than was used (a bias, an adapter): the answers would be wrong, silently."""
    unread = [
        name
        for name in loader.unread()
        if name.startswith("model.layers.") and not name.endswith("rotary_emb.inv_freq")
    ]
    if unread:
        listed = ", ".join(unread[:3]) + (f" and {len(unread) - 3} more" if len(unread) > 3 else "")
        raise ModelLoadError(
            f"{loader.checkpoint.path} holds tensors that the architecture {loader.config.architecture!r} has no use "
            f"for: {listed}. The model would not answer as its makers meant."
        )
