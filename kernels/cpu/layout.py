"""The memory that Python and the compiled kernels share: a step's header and the instructions of a program.

Both are arrays of int64. A kernel is called as kernel(args, step, thread, threads): `args` is the address of its
instruction's arguments, `step` that of the header.
"""

INSTRUCTION_WORDS = 24  # kernel address, flags, then the arguments
ARGUMENTS_AT = 2
BARRIER = 1  # flag: all threads wait here before the next instruction

# words of the step header
NUM_TOKENS, NUM_SEQS, NUM_LOGITS = 0, 1, 2  # what a batch holds; also the row kinds of activations
BARRIER_AT = 3  # address of the barrier's two words, a cache line apart
SCRATCH_AT, SCRATCH_BYTES = 4, 5  # one private scratch area a thread, and its size
PROGRAM_AT, PROGRAM_LENGTH = 6, 7
THREAD_NUMBER_AT, THREAD_COUNT_AT = 8, 9  # C functions: omp_get_thread_num, omp_get_num_threads
YIELD_AT = 10  # C function: sched_yield
TICKS_AT = 11  # int64 per instruction where its ticks are added up, or 0
COUNTER_AT = 12  # address of the counter that hands out work items
HEADER_WORDS = 16

CACHE_LINE = 64

# matrix products
GROUP_ROWS = 8  # rows of activations side by side, and in a tile
# 1.5 * 2**23, and its bits: an integer of few bits, added to the bits, is added to the number
ROUNDER, ROUNDER_BITS = 12582912.0, 0x4B400000
# A record of R rows: quads int8 [8, R, 4], scales float32 [R], sums float32 [R], starts int32 [3, R]
RECORD_SCALES, RECORD_SUMS, RECORD_STARTS, RECORD_BYTES = 32, 36, 40, 52  # offsets and size, for each row

GROUPED_ROWS = 16  # at most, that are multiplied with weights as they come from memory
# products of more rows: panels of unpacked weights, and the sums of the rows that share them
PANEL_TILES = 2
PANEL_BLOCKS, FLOAT_PANEL_BLOCKS = 16, 4  # at most, of 32 inputs
PANEL_BYTES = 26624  # the larger of 16 * 2 * (512 + 5 * 64) and 4 * 2 * 32 * 64
ITEM_ROWS = 64
LINEAR_SCRATCH_BYTES = PANEL_BYTES + 2 * 4 * 16 * PANEL_TILES * ITEM_ROWS


# attention: fixed, so that a result does not depend on how the work is cut up
ATTENTION_ROWS = 8  # (query, head) pairs that share the keys of one KV head
ATTENTION_KEYS = 256  # keys of one partition, counted from position 0
MAX_HEAD_DIM = 512
SPLIT_TILES = 8  # fewer row tiles than this per thread: partitions are spread over the threads too


def int8_key_bytes(head_dim: int) -> int:
    """Of 16 tokens' keys of a head in the 8-bit cache, with their scales, in whole cache lines."""
    return (head_dim + 31) // 32 * (16 * 32 + 2 * 16) + 63 & -64


def int8_value_bytes(width: int) -> int:
    """Of 16 tokens' values of a head; width: the head size, rounded up to a multiple of 16."""
    return 16 * width + 64


def attention_slot_bytes(width: int) -> int:
    """Of one row tile's result over some keys: float32 sums [8, width], maxima [16], totals [16] (8 are used)."""
    return 4 * (ATTENTION_ROWS * width + 2 * 16)


def attention_scratch_bytes(width: int) -> int:
    """Private memory of attention: queries, scores, probabilities, two results, one sub-block of values, a table."""
    scores = ATTENTION_ROWS * (4 * ATTENTION_KEYS + 64)
    queries = (4 * MAX_HEAD_DIM + 64) * ATTENTION_ROWS
    return queries + 2 * scores + 2 * attention_slot_bytes(width) + 64 * width + 64 + 4096


# sampling
LOGITS_CHUNK = 8192  # logits of one work item while the greatest is looked for
CUT_BINS = 1024


def sampling_scratch_bytes(vocabulary: int) -> int:
    """Private memory of sampling: a weight for each token, bins, and candidates (value and weight)."""
    return 4 * vocabulary + 16 * CUT_BINS + 8 * vocabulary + 256


# measuring what the processor multiplies
RATE_CHAINS = 12  # independent sums: their latency is hidden, and all fit in registers
