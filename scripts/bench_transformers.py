"""The workload of `vllm-nb bench gpu --parts throughput` by transformers' continuous batching, on the same GPU.

python scripts/bench_transformers.py [SHAPES] [REQUESTS]
"""

import json
import sys
import time

import torch
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from vllm_nb.bench.gpu_steps import rate, workload
from vllm_nb.bench.synthetic import SHAPES


def main(shapes: str = "qwen3-0.6b", requests: str = "256") -> None:
    """Every request runs to the mean length: generate_batch takes one length for all."""
    prompts, outputs = workload(shapes, int(requests), (100, 1024))
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
    with torch.device("cuda"):
        model = Qwen3ForCausalLM(config).eval()
    mean = int(outputs.mean())
    for asked, tokens in ((prompts[:8], 8), (prompts, mean)):  # the first to warm up
        settings = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
        start = time.perf_counter()
        found = model.generate_batch(inputs=[prompt.tolist() for prompt in asked], generation_config=settings)
        seconds = time.perf_counter() - start
    print(json.dumps(rate("transformers", sum(len(each.generated_tokens) for each in found.values()), seconds)))


if __name__ == "__main__":
    main(*sys.argv[1:])
