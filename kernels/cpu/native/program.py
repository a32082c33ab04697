"""The interpreter of a program: every thread runs all instructions, taking its share of each."""

from vllm_nb.kernels.cpu import layout
from vllm_nb.kernels.cpu.native.kernel import KERNELS, header, helper, wait_for_all
from vllm_nb.kernels.cpu.native.simd import load_i64, store_i64
from vllm_nb.kernels.cpu.native.sync import call_int, call_kernel, clock


@helper
def _run(step: int, thread: int, threads: int) -> None:
    ticks = header(step, layout.TICKS_AT)
    instruction = header(step, layout.PROGRAM_AT)
    last = clock()
    for _ in range(header(step, layout.PROGRAM_LENGTH)):
        call_kernel(load_i64(instruction), instruction + 8 * layout.ARGUMENTS_AT, step, thread, threads)
        if load_i64(instruction + 8) & layout.BARRIER:
            wait_for_all(step, threads)
        if ticks != 0 and thread == 0:
            now = clock()
            store_i64(ticks, load_i64(ticks) + now - last)
            last, ticks = now, ticks + 8
        instruction += 8 * layout.INSTRUCTION_WORDS


def region(step: int) -> None:
    """The body of the parallel region: asks how many threads there really are, so a smaller team is no deadlock."""
    thread = call_int(header(step, layout.THREAD_NUMBER_AT))
    threads = call_int(header(step, layout.THREAD_COUNT_AT))
    _run(step, thread, threads)


def alone(step: int) -> None:
    """The same on the calling thread only."""
    _run(step, 0, 1)


KERNELS["region"] = lambda: region
KERNELS["alone"] = lambda: alone
