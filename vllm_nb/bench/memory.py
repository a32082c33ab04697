"""`vllm-nb memory MODEL`: what memory an engine would take, predicted from the headers of the model's files."""

import json
from contextlib import closing
from typing import Any

from vllm_nb.config import EngineConfig


def run(model: str, settings: dict[str, Any], *, as_json: bool) -> int:
    """Print the plan: for people, or as one line of JSON. Raises ModelLoadError, ValueError."""
    config = EngineConfig.from_dict(settings)
    from vllm_nb.engine.build import predict_memory
    from vllm_nb.weights.checkpoint import open_checkpoint
    from vllm_nb.weights.hub import ModelRepo, resolve

    with closing(open_checkpoint(resolve(ModelRepo.parse(model)))) as checkpoint:
        plan = predict_memory(checkpoint, config)
    if as_json:
        print(json.dumps(plan.to_dict()))
        return 0
    device, use = plan.device, plan.use
    taken = use.weights + use.kv + use.activations + device.runtime
    rows = {
        f"weights ({plan.dtype} where not quantised)": use.weights,
        f"KV cache, {plan.num_blocks:,} block{'s' * (plan.num_blocks != 1)} of {plan.block_size} tokens": use.kv,
        "activations (estimated)": use.activations,
        "Python, PyTorch and kernels": device.runtime,
        "others on this machine": device.others,
        "left": device.total - device.others - taken,
    }
    print(f"{plan.model} on {device.name}, {device.total / 2**20:,.0f} MiB")
    for name, size in rows.items():
        print(f"{size / 2**20:>12,.1f} MiB  {name}")
    return 0
