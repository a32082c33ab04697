"""The workload of `vllm-nb bench gpu --parts throughput` by transformers' continuous batching, on the same GPU.

python scripts/bench_transformers.py [SHAPES] [REQUESTS]

Without a GPU, `tiny 3` checks that it runs to its end.
"""

import json
import sys

import torch
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from vllm_nb.bench.gpu_steps import rate, workload
from vllm_nb.bench.synthetic import SHAPES


def main(shapes: str = "qwen3-0.6b", requests: str = "256") -> None:
    """Every request runs to the mean length: generate_batch takes one length for all. Timed from the first request's
    start to the last one's end, since each call captures its graphs anew before."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    prompts, outputs = workload(shapes, int(requests), (100, 1024) if device == "cuda" else (2, 4))
    c = SHAPES[shapes]
    config = Qwen3Config(
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        intermediate_size=c.intermediate_size,
        num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads,
        num_key_value_heads=c.num_kv_heads,
        head_dim=c.head_dim,
        max_position_embeddings=c.max_position,
        tie_word_embeddings=c.tie_word_embeddings,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = Qwen3ForCausalLM(config).eval()
    mean = int(outputs.mean())
    for asked, tokens in ((prompts[:8], 8), (prompts, mean)):  # the first to warm up
        settings = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
        found = model.generate_batch(inputs=[prompt.tolist() for prompt in asked], generation_config=settings).values()
    if errors := {each.error for each in found if each.error}:
        sys.exit(f"transformers failed: {'; '.join(errors)}")
    seconds = max(each.lifespan[1] for each in found) - min(each.lifespan[0] for each in found)
    print(json.dumps(rate("transformers", sum(len(each.generated_tokens) for each in found), seconds)))


if __name__ == "__main__":
    main(*sys.argv[1:])
