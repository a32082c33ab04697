"""`vllm-nb bench`: quick (to compare engines), latency, throughput, kernels; serve and overhead for servers."""

import argparse
import math
import os
from typing import Any

from vllm_nb.config import BACKENDS, DTYPES

GPU_PARTS = ("kernels", "attention", "elementwise", "products", "sampling", "steps", "throughput")
GPU_SIZES = [(seqs, context) for seqs in (1, 4, 16, 64) for context in (1024, 4096, 8192, 32768)]
GPU_SHAPES = ("qwen3-8b", "qwen3-0.6b", "tiny")

EXAMPLES = """examples:
  vllm-nb bench quick smollm2 --json
  vllm-nb bench latency smollm2 --phases --batch 1 16
  vllm-nb bench latency smollm2 --context 64 1024 4096
  vllm-nb bench throughput smollm2 --requests 64 --input 32 256 --output 16 128
  vllm-nb bench kernels smollm2 --rows 1 4 16 --context 1024
  vllm-nb bench kernels --plot gpu.svg
  vllm-nb bench kernels --formats q4_min q6 --rows 1 16 512
  vllm-nb bench compile --only "head 128"
  vllm-nb bench serve --url http://127.0.0.1:8000 --rate 1 4 inf --slo ttft=500 tpot=60
  vllm-nb bench serve --concurrency 64 --duration 60
  vllm-nb bench overhead smollm2 --concurrency 64 --requests 256
  vllm-nb bench notebook smollm2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Called by vllm_nb.cli with the parser of `bench`."""
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    benches = parser.add_subparsers(required=True, metavar="BENCH")
    _add_quick(benches.add_parser("quick", help="prefill, one stream, 16 streams: three numbers to compare engines by"))
    _add_latency(benches.add_parser("latency", help="time to first token and between tokens, by batch size"))
    _add_throughput(benches.add_parser("throughput", help="many requests at once: tokens a second and percentiles"))
    _add_serve(benches.add_parser("serve", help="load on any server with OpenAI's routes: what its clients see"))
    _add_overhead(benches.add_parser("overhead", help="what HTTP and streaming cost, beside the engine alone"))
    _add_notebook(benches.add_parser("notebook", help="what a notebook waits for: %%load_ext, start, reuse, a cell"))
    _add_events(benches.add_parser("events", help="what it costs when the engine's events are read"))
    _add_kernels(benches.add_parser("kernels", help="time by kernel, and what the machine allows"))
    _add_gpu(benches.add_parser("gpu", help="a GPU's kernels, steps and throughput, beside floors and PyTorch"))
    _add_compile(benches.add_parser("compile", help="the Triton kernels, compiled for GPUs that need not be there"))


def _add_quick(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument("--repeats", type=_count, default=3, metavar="N", help="lines to print (default 3)")
    parser.set_defaults(handler=_quick)


def _add_latency(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument("--batch", type=_count, nargs="+", default=[1, 4, 16], metavar="N", help="requests at once")
    parser.add_argument("--input", type=_count, default=128, metavar="TOKENS", help="prompt length (default 128)")
    parser.add_argument("--output", type=_count, default=64, metavar="TOKENS", help="answer length (default 64)")
    parser.add_argument("--repeats", type=_count, default=3, metavar="N", help="runs of each size (default 3)")
    parser.add_argument(
        "--context",
        type=_count,
        nargs="+",
        metavar="TOKENS",
        help="instead: one request, after prompts of these lengths",
    )
    parser.add_argument("--phases", action="store_true", help="what a decode step spends where")
    parser.set_defaults(handler=_latency)


def _add_throughput(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument("--requests", type=_count, default=64, metavar="N")
    parser.add_argument("--input", type=_count, nargs=2, default=[32, 256], metavar=("LEAST", "MOST"))
    parser.add_argument("--output", type=_count, nargs=2, default=[16, 128], metavar=("LEAST", "MOST"))
    parser.add_argument("--seed", type=int, default=0, help="of the lengths and prompts (default 0)")
    parser.set_defaults(handler=_throughput)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default http://127.0.0.1:8000)")
    parser.add_argument("--api-key", metavar="KEY", default=os.environ.get("VLLM_NB_API_KEY"), help="its key, if any")
    parser.add_argument("--model", metavar="NAME", help="default: the first that the server names")
    parser.add_argument("--endpoint", choices=("completions", "chat"), default="completions")
    parser.add_argument(
        "--rate",
        type=_positive,
        nargs="+",
        default=[math.inf],
        metavar="R",
        help="requests a second, a row each; inf",
    )
    parser.add_argument("--duration", type=_positive, metavar="SECONDS", help="for so long, instead of --requests")
    parser.add_argument("--slo", type=_slo, action=_Slos, nargs="+", help="ttft=, tpot=, e2e=MILLISECONDS, for goodput")
    parser.add_argument("--timeout", type=_positive, default=600.0, metavar="SECONDS", help="for an answer (600)")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    _add_load(parser)
    parser.set_defaults(handler=_serve)


def _add_overhead(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    _add_load(parser)
    parser.add_argument("--rounds", type=_count, default=2, metavar="N", help="of either, in turns (default 2)")
    parser.set_defaults(handler=_overhead)


def _add_load(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=_count, default=128, metavar="N", help="default 128")
    parser.add_argument("--concurrency", type=_count, default=64, metavar="N", help="most at once (default 64)")
    parser.add_argument("--input", type=_count, nargs=2, default=[16, 64], metavar=("LEAST", "MOST"), help="tokens")
    parser.add_argument("--output", type=_count, nargs=2, default=[32, 96], metavar=("LEAST", "MOST"), help="tokens")
    parser.add_argument("--seed", type=int, default=0, help="of lengths, prompts and arrivals (default 0)")


def _slo(text: str) -> tuple[str, float]:
    from vllm_nb.bench.serve import slo  # and with it the HTTP client's libraries

    return slo(text)


class _Slos(argparse.Action):
    """The pairs of --slo as a dictionary."""

    def __call__(self, _: Any, namespace: argparse.Namespace, values: Any, __: Any = None) -> None:
        setattr(namespace, self.dest, dict(values))


def _add_notebook(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default="smollm2", metavar="MODEL")
    parser.add_argument("--requests", type=_count, default=50, metavar="N", help="cells beside HTTP (default 50)")
    parser.set_defaults(handler=_notebook)


def _notebook(args: argparse.Namespace) -> int:
    from vllm_nb.bench.notebook import run

    return run(args.model, args.requests)


def _add_events(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument("--batch", type=_count, nargs="+", default=[1, 16, 64], metavar="N", help="requests at once")
    parser.add_argument("--output", type=_count, default=64, metavar="TOKENS", help="answer length (default 64)")
    parser.add_argument("--repeats", type=_count, default=30, metavar="N", help="pairs of each batch size (default 30)")
    parser.set_defaults(handler=_events)


def _add_kernels(parser: argparse.ArgumentParser) -> None:
    _add_model(parser, required=False)
    parser.add_argument(
        "--rows",
        type=_count,
        nargs="+",
        metavar="N",
        help="requests that decode at once (default 1 16); with --formats, of activations (default 1 4 16 64 512)",
    )
    parser.add_argument("--context", type=_count, default=64, metavar="TOKENS", help="of each of them (default 64)")
    parser.add_argument("--prefill", type=_count, default=512, metavar="TOKENS", help="of one prompt (default 512)")
    parser.add_argument("--repeats", type=_count, default=20, metavar="N", help="replays of each step (default 20)")
    parser.add_argument(
        "--formats",
        nargs="*",
        metavar="FORMAT",
        help="products with made-up weights in these packed formats (default: all) instead of a model's step",
    )
    parser.add_argument(
        "--shapes",
        type=_size,
        nargs="+",
        default=[(4096, 4096), (1536, 576)],
        metavar="OUTPUTSxINPUTS",
        help="of those products (default 4096x4096 1536x576)",
    )
    parser.add_argument("--plot", metavar="FILE", help="with neither MODEL nor --formats: draw a GPU's kernels")
    parser.set_defaults(handler=_kernels)


def _add_gpu(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=GPU_PARTS,
        default=["kernels", "steps", "throughput"],
        help="kernels: the next four",
    )
    parser.add_argument("--shapes", choices=GPU_SHAPES, default="qwen3-8b", help="of kernels and steps")
    parser.add_argument("--throughput-shapes", choices=GPU_SHAPES, default="qwen3-0.6b")
    parser.add_argument("--requests", type=_count, default=256, metavar="N", help="of the throughput (default 256)")
    parser.add_argument(
        "--overlap", action=argparse.BooleanOptionalAction, help="steps of the throughput (default: on a GPU)"
    )
    parser.add_argument(
        "--sizes",
        type=_size,
        nargs="+",
        default=GPU_SIZES,
        metavar="SEQSxCONTEXT",
        help="of decode attention (default 1x1024 to 64x32768)",
    )
    parser.add_argument("--plot", metavar="FILE", help="draw the kernels' fractions of their floors")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    parser.set_defaults(handler=_gpu)


def _size(text: str) -> tuple[int, int]:
    first, _, second = text.partition("x")
    return _count(first), _count(second)


def _add_compile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="TEXT", help="only cases whose name holds one of these"
    )
    parser.set_defaults(handler=_compile)


def _add_common(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--backend", choices=BACKENDS, default="auto")


def _add_model(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument("model", metavar="MODEL", nargs=None if required else "?")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: physical cores)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")


def _count(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"a whole number above 0 is needed, not {text!r}")


def _positive(text: str) -> float:
    """A number above 0, also inf."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if value > 0:
        return value
    raise argparse.ArgumentTypeError(f"a number above 0 is needed, not {text!r}")


def _quick(args: argparse.Namespace) -> int:
    from vllm_nb.bench.quick import run

    return run(args)


def _latency(args: argparse.Namespace) -> int:
    from vllm_nb.bench.latency import run

    return run(args)


def _throughput(args: argparse.Namespace) -> int:
    from vllm_nb.bench.throughput import run

    return run(args)


def _serve(args: argparse.Namespace) -> int:
    from vllm_nb.bench.serve import run

    return run(args)


def _overhead(args: argparse.Namespace) -> int:
    from vllm_nb.bench.overhead import run

    return run(args)


def _events(args: argparse.Namespace) -> int:
    from vllm_nb.bench.events import run

    return run(args)


def _kernels(args: argparse.Namespace) -> int:
    if args.model is None and args.formats is None:
        return _gpu_kernels(args)
    if args.plot or (args.model and args.formats is not None):
        raise ValueError(
            "vllm-nb bench kernels takes a MODEL, or --formats, or neither: a GPU's kernels, which alone --plot draws"
        )
    if args.formats is None:
        from vllm_nb.bench.kernels import run

        args.rows = args.rows or [1, 16]
    else:
        from vllm_nb.bench.formats import run

        args.rows = args.rows or [1, 4, 16, 64, 512]
    return run(args)


def _gpu_kernels(args: argparse.Namespace) -> int:
    import torch

    if not torch.cuda.is_available():
        raise ValueError(
            "vllm-nb bench kernels needs a MODEL, or --formats and no model; without either it measures a GPU's "
            "kernels, and PyTorch sees no GPU here"
        )
    from vllm_nb.bench.gpu import run

    args.parts, args.shapes, args.sizes = ["kernels"], GPU_SHAPES[0], GPU_SIZES
    return run(args)


def _gpu(args: argparse.Namespace) -> int:
    from vllm_nb.bench.gpu import run

    return run(args)


def _compile(args: argparse.Namespace) -> int:
    from vllm_nb.bench.gpu_launches import run

    return run(args)
