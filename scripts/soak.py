"""Load on a real server for a long time: do its memory, its threads and its open files grow?

    .venv/bin/python scripts/soak.py --minutes 30

Starts `vllm-nb serve` and keeps requests of all kinds on it over HTTP: whole answers, streams, streams that are left
in the middle, several prompts in one request, several answers to one, log-probabilities, embeddings; and a reader of
the engine's events that comes and goes. After each minute the load rests, and what the server then holds is noted.
Status 1 if that has grown after the warm-up, a third of the time, by more than BOUNDS, or if a request went wrong.
"""

import argparse
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import httpx
import psutil

CLIENTS = 6
WARM_UP = 1 / 3  # of the time: until the longest step has been made, and malloc has what it keeps
WORDS = ["the", "engine", "reads", "a", "page", "and", "writes", "of", "rivers", "stars", "bread", "the", "sea"]


class Held(NamedTuple):
    """What a server holds at rest. memory: resident, MiB."""

    memory: float
    threads: int
    files: int


BOUNDS = Held(memory=32, threads=4, files=4)  # growth that is allowed: what comes and goes


class Server:
    """`vllm-nb serve` on a free port."""

    def __init__(self, model: str, options: list[str]):
        program = Path(sys.executable).with_name("vllm-nb")
        command = [str(program), "serve", model, "--port", "0", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        line = next((line for line in self.process.stderr if " is served at " in line), "")
        if not line:
            sys.exit(f"the server does not start, status {self.process.wait()}")
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        self.url = line.partition(" is served at ")[2].partition("/v1")[0]

    def held(self) -> Held:
        process = psutil.Process(self.process.pid)
        return Held(round(process.memory_info().rss / 2**20, 1), process.num_threads(), process.num_fds())

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(60)


class Load:
    """Clients on threads of their own, until `stop`. answers: how many of each kind; failures: what went wrong."""

    def __init__(self, url: str, seed: int):
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self._url = url
        self._over = threading.Event()
        jobs = [(self._ask, seed + i) for i in range(CLIENTS)] + [(self._watch, seed)]
        self._threads = [threading.Thread(target=self._run, args=job) for job in jobs]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, work: Callable[[httpx.Client, random.Random], None], seed: int) -> None:
        rng = random.Random(seed)
        with httpx.Client(base_url=self._url, timeout=120, trust_env=False, verify=False) as http:
            while not self._over.is_set():
                try:
                    work(http, rng)
                except Exception as error:
                    self.failures.append(f"{type(error).__name__}: {error}")

    def _ask(self, http: httpx.Client, rng: random.Random) -> None:
        """One request."""
        text = " ".join(rng.choices(WORDS, k=rng.randint(3, 120)))
        chat = {"messages": [{"role": "user", "content": text}], "max_tokens": rng.randint(1, 40)}
        kind = rng.choice(["whole", "choices", "logprobs", "prompts", "embeddings", "stream", "left", "left"])
        match kind:
            case "choices":
                chat |= {"n": 3, "temperature": 1}
            case "logprobs":
                chat |= {"logprobs": True, "top_logprobs": 5}
            case "prompts":
                texts = [text[i:] for i in range(rng.randint(2, 6))]
                _post(http, "/v1/completions", {"prompt": texts, "max_tokens": 8})
            case "embeddings":
                _post(http, "/v1/embeddings", {"input": [text, text[1:]]})
            case "stream" | "left":
                most = 10_000 if kind == "stream" else rng.randint(1, 30)
                _stream(http, chat | {"stream": True, "max_tokens": 300 if kind == "left" else 40}, most)
        if "messages" in chat and kind in ("whole", "choices", "logprobs"):
            _post(http, "/v1/chat/completions", chat)
        self.answers[kind] += 1

    def _watch(self, http: httpx.Client, rng: random.Random) -> None:
        """Read events for some seconds, and leave."""
        until = time.monotonic() + rng.uniform(1, 10)
        with http.stream("GET", "/inspect/events") as response:
            response.raise_for_status()
            for _ in response.iter_lines():
                if time.monotonic() > until or self._over.is_set():
                    break
        self.answers["watched"] += 1


def _post(http: httpx.Client, path: str, body: dict[str, object]) -> None:
    answer = http.post(path, json=body)
    if answer.status_code != 200:
        raise ValueError(f"{path}: {answer.status_code} {answer.text[:200]}")


def _stream(http: httpx.Client, body: dict[str, object], most: int) -> None:
    """Take `most` lines of an answer, and leave."""
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        for number, line in enumerate(response.iter_lines()):
            if line.startswith("data: {") and "error" in json.loads(line[6:]):
                raise ValueError(line)
            if number >= most:
                break


def soak(server: Server, minutes: float, load_s: float, rest_s: float) -> tuple[list[Held], list[str]]:
    """What was held at each rest, and the failures."""
    held: list[Held] = []
    failures: list[str] = []
    end = time.monotonic() + minutes * 60
    print(f"{'minute':>7} {'MiB':>8} {'threads':>8} {'files':>6}  requests", flush=True)
    while time.monotonic() < end:
        load = Load(server.url, seed=100 * len(held))
        time.sleep(load_s)
        load.stop()
        time.sleep(rest_s)
        held.append(server.held())
        failures += load.failures
        now, (memory, threads, files) = minutes - (end - time.monotonic()) / 60, held[-1]
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(load.answers.items()))
        print(f"{now:7.1f} {memory:8.1f} {threads:8} {files:6}  {kinds}", flush=True)
        state = httpx.get(f"{server.url}/inspect/state", trust_env=False).json()
        if (state["running"], state["waiting"], state["kv_blocks"]["used"], state["integrity"]) != (0, 0, 0, "ok"):
            failures.append(f"at rest the engine still has {state}")
    return held, failures


def growth(held: list[Held]) -> Held:
    """The last rests beside the first after the warm-up, each by the median of a quarter of them."""
    rests = held[int(len(held) * WARM_UP) :]
    count = max(1, len(rests) // 4)
    first, last = ([median(values) for values in zip(*part, strict=True)] for part in (rests[:count], rests[-count:]))
    return Held(*(round(b - a, 1) for a, b in zip(first, last, strict=True)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--load", type=float, default=60, metavar="SECONDS", help="of each round (default 60)")
    without = "after it (default 33: 30 s after its last reader an engine forgets its events)"
    parser.add_argument("--rest", type=float, default=33, metavar="SECONDS", help=without)
    arguments, options = parser.parse_known_args()  # options of `vllm-nb serve`
    server = Server(arguments.model, options)
    try:
        held, failures = soak(server, arguments.minutes, arguments.load, arguments.rest)
    finally:
        status = server.end()
    grown = growth(held)
    over = [name for name in Held._fields if getattr(grown, name) > getattr(BOUNDS, name)]
    failures += [f"the server ended with status {status}"] if status else []
    print(f"grown after the warm-up: {grown}; allowed: {BOUNDS}")
    print("\n".join(failures[:20]) or "no request failed")
    return 1 if over or failures else 0


if __name__ == "__main__":
    sys.exit(main())
