"""What a CPU allows: the floors below a step's and a product's time."""

from dataclasses import dataclass
from typing import Any

import torch

from vllm_nb.engine.bandwidth import read_rate
from vllm_nb.kernels import cpu
from vllm_nb.kernels.cpu.rates import multiplied_as, product_rates


@dataclass(frozen=True)
class Machine:
    """read_rate: bytes a second of summing a large array; rates: operations a second of the variant's own instructions
    (for bytes, pairs of bfloat16, float32) on registers alone."""

    read_rate: float
    rates: dict[str, float]

    def product_seconds(self, operations: dict[str, int]) -> float:
        """operations: two for each weight and row, by packed format."""
        return sum(count / self.rates[multiplied_as(kind)] for kind, count in operations.items())

    def row(self) -> dict[str, Any]:
        """For `report.show`."""
        described = cpu.describe()
        return {
            "variant": described["variant"],
            "threads": described["threads"],
            "read_gb_per_second": round(self.read_rate / 1e9, 1),
            **{f"{kind}_gop_per_second": round(rate / 1e9, 1) for kind, rate in self.rates.items()},
        }


def measure() -> Machine:
    """Takes about a second, on the threads that the kernels use."""
    torch.set_num_threads(int(str(cpu.describe()["threads"])))
    return Machine(read_rate(torch.device("cpu")), product_rates())
