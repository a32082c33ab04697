"""How quantised weights lie in memory once packed: one table for the packer, the kernels and the tests.

Sixteen output rows form a tile, and a tile is a row of blocks, each covering 32 inputs. A block holds, for its 16 rows,

    planes   of `low` and then of `high` bits (low bits first); a plane of p bits takes p vectors of 64 bytes
    scales   float16 [16], twice when the group is 16 (first half of the inputs, second half)
    minima   float16 [16], likewise, when `has_min`

The 32 inputs of a block make 8 quads of 4 neighbours. Byte 4 * row + j of a vector belongs to input j of a quad, so one
vector feeds `vpdpbusd` as it is; vector v of a p-bit plane holds quads v, v + p, v + 2p ..., from its lowest bits up.
With q the unsigned number put together from the planes, the weight is scale * (q - zero), plus the minimum if there is
one, or scale * (CODEBOOK[q]) for IQ4_NL.
"""

from dataclasses import dataclass

TILE = 16  # output rows interleaved in a tile = lanes of a vector
BLOCK = 32  # inputs that share one activation scale
QUADS = BLOCK // 4
VECTOR_BYTES = 4 * TILE

# IQ4_NL's values. Source: ggml-common.h, kvalues_iq4nl.
CODEBOOK = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class Format:
    """Layout of one block; see the module's text. zero: what is subtracted from q."""

    name: str
    low: int
    high: int
    group: int
    has_min: bool
    zero: int
    codebook: bool = False

    @property
    def groups(self) -> int:
        """Scale groups in a block: 1 or 2."""
        return BLOCK // self.group

    @property
    def scales_at(self) -> int:
        """Byte offset of the scales in a block."""
        return VECTOR_BYTES * (self.low + self.high)

    @property
    def minima_at(self) -> int:
        return self.scales_at + 2 * TILE * self.groups

    @property
    def block_bytes(self) -> int:
        return self.minima_at + 2 * TILE * self.groups * self.has_min


Q2 = Format("q2", 2, 0, 16, True, 0)
Q3 = Format("q3", 2, 1, 16, False, 4)
Q4 = Format("q4", 4, 0, 32, False, 8)
Q4_MIN = Format("q4_min", 4, 0, 32, True, 0)
Q4_CODEBOOK = Format("q4_codebook", 4, 0, 32, False, 0, codebook=True)
Q5 = Format("q5", 4, 1, 32, False, 16)
Q5_MIN = Format("q5_min", 4, 1, 32, True, 0)
Q6 = Format("q6", 4, 2, 16, False, 32)
Q8 = Format("q8", 8, 0, 32, False, 128)
FORMATS = {f.name: f for f in (Q2, Q3, Q4, Q4_MIN, Q4_CODEBOOK, Q5, Q5_MIN, Q6, Q8)}

# GGUF type -> packed format
GGUF_FORMATS = {
    "Q2_K": Q2,
    "Q3_K": Q3,
    "Q4_0": Q4,
    "Q4_1": Q4_MIN,
    "Q4_K": Q4_MIN,
    "IQ4_NL": Q4_CODEBOOK,
    "Q5_0": Q5,
    "Q5_1": Q5_MIN,
    "Q5_K": Q5_MIN,
    "Q6_K": Q6,
    "Q8_0": Q8,
}

# floating-point weights: name -> bytes a value. A tile holds, input by input (bf16: pair by pair), its 16 rows.
FLOATS = {"bf16": 2, "f16": 2, "f32": 4}
