"""The KV cache's bookkeeping: who holds which block, and which blocks can be found again by their content.

A block is free (no sequence holds it) or used. A full block whose content is known by hash is *stored*; stored blocks
that are free keep their content until they are taken, so the free list is the prefix cache's LRU list.
Paging: Kwon et al. 2023 (PagedAttention). Prefix cache: a keyed hash chain over full blocks.
"""

import hashlib
import secrets
from collections import Counter, OrderedDict
from collections.abc import Iterable

from vllm_nb.engine.events import EventLog
from vllm_nb.engine.sequence import Sequence
from vllm_nb.events import BlockEvicted, BlocksAllocated, BlocksFreed, BlocksReused, BlockStored

ROOT = b""
StoredBlock = tuple[bytes, bytes, bytes]  # hash, parent's hash, token bytes


class BlockManager:
    """Hands out `num_blocks` blocks of `block_size` tokens.

    max_stored_blocks bounds the prefix cache; 0 turns it off.
    """

    def __init__(self, num_blocks: int, block_size: int, max_stored_blocks: int, events: EventLog):
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.max_stored_blocks = max_stored_blocks
        self._events = events
        self._key = secrets.token_bytes(16)  # keyed: nobody outside can make two prompts collide
        self._references = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))  # first taken first
        self._stored: dict[bytes, int] = {}  # hash -> block
        self._content: dict[int, StoredBlock] = {}
        self.evictions = 0

    @property
    def num_free(self) -> int:
        """Blocks a sequence can take, stored ones included."""
        return len(self._free)

    @property
    def num_stored(self) -> int:
        """Blocks in the prefix cache, whether held or free."""
        return len(self._stored)

    def stored(self) -> dict[int, StoredBlock]:
        """The prefix cache's content, a copy: block -> (hash, parent's hash, token bytes)."""
        return self._content.copy()

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    # Prefix cache

    def find_prefix(self, seq: Sequence) -> list[int]:
        """The stored blocks that hold the start of `seq`. At least one token is left over: its logits are needed."""
        found: list[int] = []
        if not self.max_stored_blocks or _needs_every_position(seq):
            return found
        parent = ROOT
        for i in range((len(seq) - 1) // self.block_size):
            digest = self._hash(seq, i)
            block = self._stored.get(digest)
            if block is None or self._content[block] != (digest, parent, self._token_bytes(seq, i)):
                break
            found.append(block)
            parent = digest
        return found

    def store_full_blocks(self, seq: Sequence, computed_before: int) -> None:
        """Enter the blocks of `seq` that filled since it had `computed_before` computed tokens."""
        if not self.max_stored_blocks:
            return
        for i in range(computed_before // self.block_size, seq.num_computed // self.block_size):
            block, digest = seq.blocks[i], self._hash(seq, i)
            if digest in self._stored or not self._make_room_to_store():
                continue
            parent = seq.block_hashes[i - 1] if i else ROOT
            self._stored[digest] = block
            self._content[block] = (digest, parent, self._token_bytes(seq, i))
            if self._events.enabled:
                tokens = seq.tokens[i * self.block_size : (i + 1) * self.block_size]
                self._events.emit(BlockStored(block, digest.hex(), parent.hex(), tokens.tolist()))

    def _hash(self, seq: Sequence, i: int) -> bytes:
        """Hash of full block `i`, chained over its predecessors; computed once per sequence."""
        while len(seq.block_hashes) <= i:
            known = len(seq.block_hashes)
            parent = seq.block_hashes[-1] if known else seq.cache_salt
            data = parent + self._token_bytes(seq, known)
            seq.block_hashes.append(hashlib.blake2b(data, digest_size=16, key=self._key).digest())
        return seq.block_hashes[i]

    def _token_bytes(self, seq: Sequence, i: int) -> bytes:
        return seq.tokens[i * self.block_size : (i + 1) * self.block_size].tobytes()

    def _make_room_to_store(self) -> bool:
        if len(self._stored) < self.max_stored_blocks:
            return True
        oldest = next((block for block in self._free if block in self._content), None)
        if oldest is None:
            return False
        self._forget(oldest)
        self._free.move_to_end(oldest, last=False)
        return True

    def _forget(self, block: int) -> None:
        digest, _, _ = self._content.pop(block)
        del self._stored[digest]
        self.evictions += 1
        if self._events.enabled:
            self._events.emit(BlockEvicted(block, digest.hex()))

    # Allocation

    def num_needed(self, seq: Sequence, prefix: list[int], num_tokens: int) -> int:
        """Blocks that leave the free list when `seq` takes `prefix` and grows to `num_tokens`."""
        revived = sum(self._references[block] == 0 for block in prefix)
        return self.blocks_for(num_tokens) - len(prefix) + revived

    def admit(self, seq: Sequence, prefix: list[int], num_tokens: int) -> None:
        """Give a waiting sequence its cached `prefix` and fresh blocks up to `num_tokens`."""
        assert not seq.blocks
        for block in prefix:
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1
        seq.blocks.extend(prefix)
        seq.num_computed = len(prefix) * self.block_size
        if prefix and self._events.enabled:
            self._events.emit(BlocksReused(seq.arrival, prefix))
        self.grow(seq, num_tokens)

    def grow(self, seq: Sequence, num_tokens: int) -> bool:
        """Make room for `num_tokens` tokens in all; False, and nothing changed, when too few blocks are free."""
        missing = self.blocks_for(num_tokens) - len(seq.blocks)
        if missing > len(self._free):
            return False
        if missing > 0:
            fresh = [self._take() for _ in range(missing)]
            seq.blocks.extend(fresh)
            if self._events.enabled:
                self._events.emit(BlocksAllocated(seq.arrival, fresh))
        return True

    def _take(self) -> int:
        block, _ = self._free.popitem(last=False)
        if block in self._content:
            self._forget(block)
        self._references[block] = 1
        return block

    def free(self, seq: Sequence) -> None:
        """Give up all blocks. The tail is freed first, so that shared beginnings outlive it; unstored blocks lead the
        free list, since nothing is lost by taking them."""
        for block in reversed(seq.blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
                if block not in self._content:
                    self._free.move_to_end(block, last=False)
        if seq.blocks and self._events.enabled:
            self._events.emit(BlocksFreed(seq.arrival, seq.blocks.copy()))
        seq.blocks.clear()
        seq.num_computed = 0

    def check_integrity(self, holders: Iterable[Sequence]) -> None:
        """Compare the books with the sequences that hold blocks. Raises RuntimeError saying what does not add up."""
        held = Counter(block for seq in holders for block in seq.blocks)
        for block, references in enumerate(self._references):
            if references != held[block]:
                raise RuntimeError(f"block {block}: {references} references, but {held[block]} sequences hold it")
            if (block in self._free) != (references == 0):
                raise RuntimeError(f"block {block}: {references} references, free: {block in self._free}")
        if len(self._free) + len(held) != self.num_blocks:
            raise RuntimeError(f"{len(self._free)} free + {len(held)} used blocks are not {self.num_blocks}")
        if {digest: block for block, (digest, _, _) in self._content.items()} != self._stored:
            raise RuntimeError("the prefix cache's two directions disagree")
        if len(self._stored) > self.max_stored_blocks:
            raise RuntimeError(f"{len(self._stored)} blocks stored, the limit is {self.max_stored_blocks}")


def _needs_every_position(seq: Sequence) -> bool:
    """Log-probabilities and means are made of what a cached block does not hold: logits and hidden states."""
    return seq.params.prompt_logprobs is not None or seq.pooling == "mean"
