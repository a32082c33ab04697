"""SmolLM2 and Gemma 3 from their GGUF files: greedy tokens against transformers on the dequantised weights."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from vllm_nb.weights.checkpoint import open_checkpoint

NEW_TOKENS = 24
NEAR_TIE = 0.05  # of a logit
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "Q: What is 12 times 12?\nA:",
    "Die drei wichtigsten Regeln beim Kochen sind",
    "1, 1, 2, 3, 5, 8,",
    "In physics, entropy is a measure of",
    "東京は",
    "SELECT name, age FROM users WHERE",
    # Longer than Gemma's window of 512 tokens.
    " ".join(f"Item {number} of the list costs {number * 7 % 50} euros." for number in range(60)) + " The cheapest",
]
CONFIGS = {
    "smollm2_path": LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    ),
    "gemma3_path": Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        max_position_embeddings=32768,
        sliding_window=512,
    ),
}


def transformers_model(path: Path, config: PreTrainedConfig, quick_gguf) -> PreTrainedModel:
    """The file read by transformers itself, with every weight as float32."""
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with quick_gguf():
        weights = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    missing = model.load_state_dict(weights, strict=False, assign=True)
    assert missing.missing_keys == ["lm_head.weight"]  # tied
    assert not missing.unexpected_keys
    model.tie_weights()
    return model.eval()


def greedy(model, prompts: list[list[int]], paged_run) -> list[list[int]]:
    """NEW_TOKENS for each prompt, all in one batch, the prompts in chunks of 128 while others decode."""
    run = paged_run(model, [len(ids) + NEW_TOKENS for ids in prompts])
    tokens = [list(ids) for ids in prompts]
    while chunks := {
        row: ids[run.lengths[row] :][:128]
        for row, ids in enumerate(tokens)
        if len(ids) < len(prompts[row]) + NEW_TOKENS
    }:
        for row, logits in run.step(chunks, last_only=True).items():
            if run.lengths[row] == len(tokens[row]):
                tokens[row].append(int(logits[-1].argmax()))
    return tokens


@pytest.fixture(scope="module", params=CONFIGS)
def answers(request, open_model, paged_run, quick_gguf):
    """(the oracle, its tokenizer, the prompts' lengths, prompts with our tokens after them)."""
    path = request.getfixturevalue(request.param)
    checkpoint = open_checkpoint(path)
    tokenizer = checkpoint.load_tokenizer()
    checkpoint.close()
    prompts = [tokenizer.encode(prompt, add_special=True) for prompt in PROMPTS]
    tokens = greedy(open_model(path, max_len=1024), prompts, paged_run)
    theirs = transformers_model(path, CONFIGS[request.param], quick_gguf)
    return theirs, tokenizer, [len(ids) for ids in prompts], tokens


@pytest.mark.timeout(900)  # a loaded machine is slow
@torch.inference_mode()
def test_greedy_tokens_equal_those_of_transformers(answers):
    """After our tokens so far, transformers chooses the same next one; from a near-tie on, the texts may part."""
    theirs, tokenizer, prompt_lens, tokens = answers
    for prompt, start, ids in zip(PROMPTS, prompt_lens, tokens, strict=True):
        logits = theirs(torch.tensor([ids[:-1]]), logits_to_keep=NEW_TOKENS).logits[0]
        ours = torch.tensor(ids[start:])
        differing = (logits.argmax(-1) != ours).nonzero().flatten().tolist()
        if differing:
            at = differing[0]
            best = int(logits[at].argmax())
            gap = (logits[at, best] - logits[at, ours[at]]).item()
            shown = f"{prompt!r}: token {at} is {tokenizer.token_text(int(ours[at]))!r}, transformers has "
            shown += f"{tokenizer.token_text(best)!r}, {gap:.4f} logits ahead"
            print(shown)
            assert gap < NEAR_TIE, shown
