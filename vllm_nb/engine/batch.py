"""A step's input as flat tensors, and the rows it is gathered from.

A running request keeps one row for life; a step gathers rows into buffers that are allocated once, so that a graph
captured over them can be replayed. No per-token Python.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from vllm_nb.engine.scheduler import Plan
from vllm_nb.engine.sequence import Sequence
from vllm_nb.engine.transfer import upload


@dataclass(slots=True)
class Batch:
    """T tokens of S sequences, of which R positions give logits. All tensors are int32 views of the step buffers."""

    token_ids: torch.Tensor  # [T]; on a device of its own they are looked up there, see Rows
    token_rows: torch.Tensor  # [T] the row that each token is of
    positions: torch.Tensor  # [T]
    slot_mapping: torch.Tensor  # [T] where each token's key and value go: block * block_size + offset
    query_start_loc: torch.Tensor  # [S + 1] sequence s has tokens query_start_loc[s]:query_start_loc[s + 1]
    seq_lens: torch.Tensor  # [S] context length, this step's tokens included
    block_tables: torch.Tensor  # [S, max_blocks]
    logits_indices: torch.Tensor  # [R] positions in T
    num_tokens: int
    num_seqs: int
    num_logits: int
    max_query_len: int
    max_seq_len: int

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on `device`."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        names = [name for name, value in values.items() if isinstance(value, torch.Tensor)]
        moved = upload([values[name].numpy() for name in names], device)
        return Batch(**{**values, **dict(zip(names, moved, strict=True))})


class Rows:
    """What the runner knows of each running request, by row: tokens and block table.

    tokens int32 [max_num_seqs, max_model_len + 1] lie where the model is: the sampler adds to them and the next step
    reads them there, so a token need not have been on the host in between. On the CPU token_ids is the same memory;
    otherwise None.
    """

    def __init__(self, max_num_seqs: int, max_model_len: int, block_size: int, device: torch.device):
        self.block_size = block_size
        shape = max_num_seqs, max_model_len + 1
        on_host = device.type == "cpu"
        self.token_ids = np.empty(shape, np.int32) if on_host else None  # memory is touched as it is used
        self.tokens = (
            torch.zeros(shape, dtype=torch.int32, device=device)
            if self.token_ids is None
            else torch.from_numpy(self.token_ids)
        )
        self.block_tables = np.zeros((max_num_seqs, -(-max_model_len // block_size)), np.int32)

    def follow(self, plan: Plan) -> None:
        """Take over admitted sequences and new blocks. Not per token: most steps have none of either."""
        if plan.admitted:
            prompts = upload([seq.tokens for seq in plan.admitted], self.tokens.device)
            for seq, prompt in zip(plan.admitted, prompts, strict=True):
                self.tokens[seq.row, : len(seq)] = prompt
                self.block_tables[seq.row, : len(seq.blocks)] = seq.blocks
        for seq in plan.grown:
            self.block_tables[seq.row, len(seq.blocks) - 1] = seq.blocks[-1]

    def append(self, rows: Any, lengths: Any, tokens: torch.Tensor) -> None:
        """tokens[i] follows the lengths[i] that rows[i] has: int64 [S], on the CPU as NumPy's. While a prefill goes on
        it lands behind the prompt, to be overwritten. A row with NaN logits has -1, which no embedding has: it becomes
        0."""
        if self.token_ids is None:
            self.tokens.index_put_((rows, lengths), tokens.clamp(min=0))
        else:  # the same with less ado: a tenth of what sampling one row costs
            self.token_ids[rows, lengths] = np.maximum(tokens.numpy(), 0)


class BatchBuffers:
    """The static input of every step, as NumPy for filling and as torch for the model (the same memory)."""

    def __init__(self, max_tokens: int, max_seqs: int, max_logits: int, max_blocks: int):
        sizes = {
            "token_ids": (max_tokens,),
            "token_rows": (max_tokens,),
            "positions": (max_tokens,),
            "slot_mapping": (max_tokens,),
            "query_start_loc": (max_seqs + 1,),
            "seq_lens": (max_seqs,),
            "block_tables": (max_seqs, max_blocks),
            "logits_indices": (max_logits,),
        }
        self.arrays = {name: np.zeros(size, np.int32) for name, size in sizes.items()}
        self.tensors = {name: torch.from_numpy(array) for name, array in self.arrays.items()}
        self._last: _Gathered | None = None

    def full(self, block_size: int) -> Batch:
        """Everything at its largest: what a graph is captured over."""
        max_tokens, (max_seqs, max_blocks) = len(self.arrays["token_ids"]), self.arrays["block_tables"].shape
        return Batch(
            **self.tensors,
            num_tokens=max_tokens,
            num_seqs=max_seqs,
            num_logits=len(self.arrays["logits_indices"]),
            max_query_len=max_tokens,
            max_seq_len=max_blocks * block_size,
        )

    def gather(self, plan: Plan, rows: Rows) -> tuple[Batch, np.ndarray]:
        """Fill the buffers for `plan`. Returns the batch, and the logits row of each sequence's last token: [S]."""
        last = self._last
        if last is not None and last.goes_on(plan):
            self._advance(last, plan, rows)
        else:
            last = self._last = self._fill(plan, rows)
        return last.batch, last.logits_row

    def _advance(self, last: "_Gathered", plan: Plan, rows: Rows) -> None:
        """The step before over again, one position on: most steps are such, and this is a third of the work."""
        a, batch, num_seqs = self.arrays, last.batch, len(plan.seqs)
        positions = a["positions"][:num_seqs]
        positions += 1
        a["seq_lens"][:num_seqs] += 1
        batch.max_seq_len += 1
        num_blocks = -(-batch.max_seq_len // rows.block_size)
        if plan.grown or num_blocks > batch.block_tables.shape[1]:  # the blocks of a prompt are there before its tokens
            a["block_tables"][:num_seqs, :num_blocks] = rows.block_tables[last.row, :num_blocks]
            batch.block_tables = self.tensors["block_tables"][:num_seqs, :num_blocks]
        if rows.token_ids is not None:
            a["token_ids"][:num_seqs] = rows.token_ids[last.row, positions]
        block, offset = np.divmod(positions, rows.block_size)
        a["slot_mapping"][:num_seqs] = rows.block_tables[last.row, block] * rows.block_size + offset

    def _fill(self, plan: Plan, rows: Rows) -> "_Gathered":
        a, num_seqs = self.arrays, len(plan.seqs)
        counts = np.array(plan.num_tokens, np.int32)
        computed = np.array(plan.starts, np.int32)
        row = np.array([seq.row for seq in plan.seqs], np.int32)

        starts = a["query_start_loc"][: num_seqs + 1]
        np.cumsum(counts, out=starts[1:])
        num_tokens = int(starts[-1])
        seq_lens = np.add(computed, counts, out=a["seq_lens"][:num_seqs])
        max_query_len, max_seq_len = int(counts.max()), int(seq_lens.max())
        num_blocks = -(-max_seq_len // rows.block_size)
        a["block_tables"][:num_seqs, :num_blocks] = rows.block_tables[row, :num_blocks]

        token_row = a["token_rows"][:num_tokens]
        token_row[:] = np.repeat(row, counts)
        positions = a["positions"][:num_tokens]
        positions[:] = np.arange(num_tokens, dtype=np.int32) + np.repeat(computed - starts[:-1], counts)
        if rows.token_ids is not None:
            a["token_ids"][:num_tokens] = rows.token_ids[token_row, positions]
        block, offset = np.divmod(positions, rows.block_size)
        a["slot_mapping"][:num_tokens] = rows.block_tables[token_row, block] * rows.block_size + offset

        last = starts[1:] - 1
        if plan.prompt_logits:
            wanted, logits_row = _with_prompt_logits(plan, starts, last)
        else:
            wanted, logits_row = last, np.arange(num_seqs)
        a["logits_indices"][: len(wanted)] = wanted
        sizes = num_tokens, num_seqs, len(wanted)
        batch = self._view(*sizes, num_blocks, max_query_len, max_seq_len)
        return _Gathered(plan.seqs, plan.num_tokens, row, batch, logits_row)

    def _view(self, t: int, s: int, r: int, num_blocks: int, max_query_len: int, max_seq_len: int) -> Batch:
        x = self.tensors
        return Batch(
            x["token_ids"][:t],
            x["token_rows"][:t],
            x["positions"][:t],
            x["slot_mapping"][:t],
            x["query_start_loc"][: s + 1],
            x["seq_lens"][:s],
            x["block_tables"][:s, :num_blocks],
            x["logits_indices"][:r],
            t,
            s,
            r,
            max_query_len,
            max_seq_len,
        )


@dataclass(slots=True)
class _Gathered:
    """What lies in the buffers."""

    seqs: list[Sequence]
    num_tokens: list[int]
    row: np.ndarray  # [S] of `Rows`
    batch: Batch
    logits_row: np.ndarray

    def goes_on(self, plan: Plan) -> bool:
        """Whether `plan` is the next token of the same sequences, each on the row and in the place it had."""
        ones = [1] * len(plan.seqs)
        return plan.seqs == self.seqs and plan.num_tokens == ones == self.num_tokens and not plan.admitted


def wants_prompt_logits(seq: Sequence, start: int) -> bool:
    """Whether every position of a step's chunk that begins at `start` needs logits."""
    return seq.params.prompt_logprobs is not None and start < seq.prompt_len


def _with_prompt_logits(plan: Plan, starts: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions that give logits when some sequences want them all, and each sequence's last among them."""
    pieces = [
        np.arange(starts[i], starts[i + 1]) if wants_prompt_logits(seq, plan.starts[i]) else last[i : i + 1]
        for i, seq in enumerate(plan.seqs)
    ]
    ends = np.cumsum([len(piece) for piece in pieces])
    return np.concatenate(pieces), ends - 1
