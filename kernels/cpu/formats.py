"""How quantised weights lie in memory once packed: one table for the packer, the kernels and the tests.

Sixteen output rows form a tile, and a tile is a row of blocks, each covering 32 inputs. A block holds, for its 16 rows,

    planes   of `low` and then of `high` bits (low bits first); a plane of p bits takes p vectors of 64 bytes
    scales   float16 [16], twice when the group is 16 (first half of the inputs, second half)
    minima   float16 [16], likewise, when `has_min`

The 32 inputs of a block make 8 quads of 4 neighbours. Byte 4 * row + j of a vector belongs to input j of a quad, so one
vector feeds `vpdpbusd` as it is; vector v of a p-bit plane holds quads v, v + p, v + 2p ..., from its lowest bits up.
`kernels.planes` says what planes, scales and minima mean.
"""

from dataclasses import dataclass

from vllm_nb.kernels.planes import BLOCK, CODEBOOK, GGUF_PLANES, PlaneFormat

__all__ = ["BLOCK", "CODEBOOK", "FLOATS", "FORMATS", "GGUF_FORMATS", "QUADS", "TILE", "VECTOR_BYTES", "Format"]

TILE = 16  # output rows interleaved in a tile = lanes of a vector
QUADS = BLOCK // 4
VECTOR_BYTES = 4 * TILE


@dataclass(frozen=True)
class Format(PlaneFormat):
    """Layout of one block; see the module's text."""

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


# GGUF type -> packed format
GGUF_FORMATS = {kind: Format(**vars(planes)) for kind, planes in GGUF_PLANES.items()}
FORMATS = {f.name: f for f in GGUF_FORMATS.values()}

# floating-point weights: name -> bytes a value. A tile holds, input by input (bf16: pair by pair), its 16 rows.
FLOATS = {"bf16": 2, "f16": 2, "f32": 4}
