"""`vllm-nb bench`: quick (to compare engines), latency, throughput, kernels."""

import argparse

from vllm_nb.config import BACKENDS, DTYPES

EXAMPLES = """examples:
  vllm-nb bench quick smollm2 --json
  vllm-nb bench latency smollm2 --phases --batch 1 16
  vllm-nb bench throughput smollm2 --requests 64 --input 32 256 --output 16 128
  vllm-nb bench kernels smollm2 --rows 1 4 16 --context 1024
  vllm-nb bench compile --only "head 128"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Called by vllm_nb.cli with the parser of `bench`."""
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    benches = parser.add_subparsers(required=True, metavar="BENCH")
    _add_quick(benches.add_parser("quick", help="prefill, one stream, 16 streams: three numbers to compare engines by"))
    _add_latency(benches.add_parser("latency", help="time to first token and between tokens, by batch size"))
    _add_throughput(benches.add_parser("throughput", help="many requests at once: tokens a second and percentiles"))
    _add_kernels(benches.add_parser("kernels", help="a step on the CPU: time by kernel, and what the machine allows"))
    _add_compile(benches.add_parser("compile", help="the Triton kernels, compiled for GPUs that need not be there"))


def _add_quick(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="lines to print (default 3)")
    parser.set_defaults(handler=_quick)


def _add_latency(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16], metavar="N", help="requests at once")
    parser.add_argument("--input", type=int, default=128, metavar="TOKENS", help="prompt length (default 128)")
    parser.add_argument("--output", type=int, default=64, metavar="TOKENS", help="answer length (default 64)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="runs of each batch size (default 3)")
    parser.add_argument("--phases", action="store_true", help="what a decode step spends where")
    parser.set_defaults(handler=_latency)


def _add_throughput(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument("--requests", type=int, default=64, metavar="N")
    parser.add_argument("--input", type=int, nargs=2, default=[32, 256], metavar=("LEAST", "MOST"))
    parser.add_argument("--output", type=int, nargs=2, default=[16, 128], metavar=("LEAST", "MOST"))
    parser.add_argument("--seed", type=int, default=0, help="of the lengths and prompts (default 0)")
    parser.set_defaults(handler=_throughput)


def _add_kernels(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument(
        "--rows", type=_count, nargs="+", default=[1, 16], metavar="N", help="requests that decode at once"
    )
    parser.add_argument("--context", type=_count, default=64, metavar="TOKENS", help="of each of them (default 64)")
    parser.add_argument("--prefill", type=_count, default=512, metavar="TOKENS", help="of one prompt (default 512)")
    parser.add_argument("--repeats", type=_count, default=20, metavar="N", help="replays of each step (default 20)")
    parser.set_defaults(handler=_kernels)


def _add_compile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="TEXT", help="only cases whose name holds one of these"
    )
    parser.set_defaults(handler=_compile)


def _add_common(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--backend", choices=BACKENDS, default="auto")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: physical cores)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")


def _count(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"a whole number above 0 is needed, not {text!r}")


def _quick(args: argparse.Namespace) -> int:
    from vllm_nb.bench.quick import run

    return run(args)


def _latency(args: argparse.Namespace) -> int:
    from vllm_nb.bench.latency import run

    return run(args)


def _throughput(args: argparse.Namespace) -> int:
    from vllm_nb.bench.throughput import run

    return run(args)


def _kernels(args: argparse.Namespace) -> int:
    from vllm_nb.bench.kernels import run

    return run(args)


def _compile(args: argparse.Namespace) -> int:
    from vllm_nb.bench.gpu_resources import run

    return run(args)
