"""Whole tables: a request for each row, all in flight, answers in the rows' order; what is done survives a stop.

Only texts, errors and counts are kept of an answer, and nothing of a row that comes from an iterator.
"""

import html
import json
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_nb.client.aio import AsyncEngineClient
from vllm_nb.client.base import Query
from vllm_nb.client.batch import as_completed, in_turn, iterate_aside
from vllm_nb.client.completion import Completion
from vllm_nb.client.http import EngineClient
from vllm_nb.client.rows import Row, Rows
from vllm_nb.client.schema import AnswerError, Shape
from vllm_nb.errors import RequestError, VllmNbError


@dataclass(frozen=True)
class Question:
    """What is asked of each row. query: raises VllmNbError where a row can't be asked. shape: what answers are to
    be."""

    query: Callable[[Row], Query]
    shape: Shape | None = None

    def about(self, names: Row) -> Query | VllmNbError:
        """The request for a row, or what is wrong with it alone."""
        try:
            return self.query(names)
        except VllmNbError as error:
            return error

    def answer(self, completion: Completion) -> "Answer":
        return Answer.of(completion, self.shape is not None)

    def parse(self, text: str) -> Any:
        return text if self.shape is None else self.shape.value(text)


class BatchStopped(VllmNbError):
    """The engine went away, or somebody interrupted (cause). results: what is done; `results.resume()` goes on."""

    def __init__(self, cause: BaseException, results: "Results"):
        why = "interrupted" if isinstance(cause, KeyboardInterrupt) else str(cause)
        super().__init__(f"stopped after {results.progress}: {why}")
        self.cause, self.results = cause, results


_SHOWN = 10  # rows in a notebook


@dataclass(slots=True)
class Answer:
    """Of one row. text: None where there is none, then `error` says why. value: the parsed text, with a schema."""

    text: str | None = None
    value: Any = None
    error: str | None = None
    tokens: int = 0

    @classmethod
    def of(cls, completion: Completion, shaped: bool) -> "Answer":
        """shaped: a schema says what the value is; else it is the text."""
        if completion.error is not None:
            return cls(error=completion.error)
        tokens = completion.usage.completion_tokens if completion.usage else 0
        if completion.finish_reason == "abort":  # half an answer is none
            return cls(
                completion.text, None, "the answer was cut off: its engine stopped, or somebody ended it", tokens
            )
        if not shaped:
            return cls(completion.text, completion.text, None, tokens)
        try:
            return cls(completion.text, completion.value, None, tokens)
        except AnswerError as error:
            return cls(completion.text, None, error.reason, tokens)


@dataclass
class Progress:
    """How far a table has come. total: None for an iterator."""

    total: int | None
    done: int = 0
    failed: int = 0
    tokens: int = 0  # since `started`
    asked: int = 0  # rows done since `started`
    started: float = field(default_factory=time.monotonic)

    def count(self, answer: Answer) -> None:
        self.done += 1
        self.asked += 1
        self.failed += answer.error is not None
        self.tokens += answer.tokens

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(time.monotonic() - self.started, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """None where nobody can know yet."""
        if self.total is None or not self.asked:
            return None
        return (self.total - self.done) * (time.monotonic() - self.started) / self.asked

    def __str__(self) -> str:
        """ "120 of 500 rows, 2 failed, 812 tok/s, 0:14 left" """
        parts = [f"{self.done:,} rows" if self.total is None else f"{self.done:,} of {self.total:,} rows"]
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        if self.tokens:
            parts.append(f"{self.tokens_per_second:,.0f} tok/s")
        left = self.seconds_left
        if left is not None and self.done != self.total:
            parts.append(f"{int(left) // 60}:{int(left) % 60:02d} left")
        return ", ".join(parts)


Watch = Callable[[Progress], None]


class Journal:
    """Answers in a file as they come, a JSON object a line, so that they outlive the process. Raises RequestError where
    there is no folder for it."""

    def __init__(self, path: Path, question: Question):
        if not path.parent.is_dir():
            raise RequestError(f"cannot write {path}: there is no folder {path.parent}")
        self._path, self._question = path, question

    def read(self) -> dict[int, Answer]:
        """Answers by row; failed rows are left out, to be asked again. Raises RequestError for a line that is none."""
        answers: dict[int, Answer] = {}
        if not self._path.exists():
            return answers
        for number, line in enumerate(self._path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                entry = json.loads(line)
                row, text, tokens = entry["row"], entry["text"], entry["tokens"]
                if entry["error"] is None:
                    answers[row] = Answer(text, self._question.parse(text), None, tokens)
                else:
                    answers.pop(row, None)
            except (ValueError, KeyError, TypeError):
                if number > 1 and not line.endswith("}"):  # the process ended while it wrote: that row is asked again
                    continue
                raise RequestError(f"{self._path}:{number} is not a batch's answer; give `to` another file") from None
        return answers

    def write(self, row: int, answer: Answer) -> None:
        line = {"row": row, "text": answer.text, "error": answer.error, "tokens": answer.tokens}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class Results:
    """The answers of a table's rows, in their order. Iterate for values; `frame` is the table with them."""

    def __init__(self, rows: Rows, question: Question, *, into: str = "answer", journal: Journal | None = None):
        self._rows, self._question, self._into, self._journal = rows, question, into, journal
        self._answers: list[Answer | None] = [None] * len(rows)
        for row, answer in (journal.read() if journal else {}).items():
            if row < len(self._answers):
                self._answers[row] = answer
        self._again: Callable[[], Any] | None = None
        self.progress = self._progress()

    def keep(self, values: Iterable[Any]) -> None:
        """Take values that are not None for rows that are done already."""
        for row, value in enumerate(values):
            if value is not None:
                self._answers[row] = Answer(str(value), value)
        self.progress = self._progress()

    def run(self, client: EngineClient, *, concurrency: int = 64, watch: Watch = lambda progress: None) -> "Results":
        """Ask for every row that has no answer, or a failed one. Raises BatchStopped; what is done stays."""
        self._again = lambda: self.run(client, concurrency=concurrency, watch=watch)
        asked: list[int] = []
        self._answers = [None if answer and answer.error else answer for answer in self._answers]
        self.progress = self._progress()

        def queries() -> Iterator[Query | VllmNbError]:
            for row, names in enumerate(self._rows):
                if self._answers[row] is None:
                    asked.append(row)
                    yield self._question.about(names)

        try:
            for place, completion in iterate_aside(
                client, lambda aio: as_completed(aio, queries(), concurrency), 2 * concurrency
            ):
                self._take(asked[place], self._question.answer(completion))
                watch(self.progress)
        except (KeyboardInterrupt, VllmNbError) as error:
            raise BatchStopped(error, self) from None
        return self

    def resume(self, client: EngineClient | None = None, **options: Any) -> "Results":
        """Go on with the rows that are missing or failed, on the same engine or another. options: as `run` takes."""
        if client is not None:
            return self.run(client, **options)
        if self.complete:
            return self
        if self._again is None:
            raise RequestError("these results were never run: give resume() an engine's client")
        self._again()
        return self

    def _take(self, row: int, answer: Answer) -> None:
        self._answers[row] = answer
        if self._journal:
            self._journal.write(row, answer)
        self.progress.count(answer)

    def _progress(self) -> Progress:
        return Progress(len(self._answers), done=sum(answer is not None for answer in self._answers))

    # Look

    def __len__(self) -> int:
        return len(self._answers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    def __getitem__(self, row: int) -> Any:
        return self.values[row]

    @property
    def values(self) -> list[Any]:
        """A value a row; None for a row that failed or is missing."""
        return [None if answer is None else answer.value for answer in self._answers]

    @property
    def errors(self) -> list[str | None]:
        return [None if answer is None else answer.error for answer in self._answers]

    @property
    def complete(self) -> bool:
        """Whether every row has a value."""
        return all(answer is not None and answer.error is None for answer in self._answers)

    @property
    def frame(self) -> Any:
        """The table with a column of values and one of errors: a DataFrame where it came as one or as a Series."""
        return self._rows.with_columns({self._into: self.values, f"{self._into}_error": self.errors})

    def __repr__(self) -> str:
        missing = sum(answer is None for answer in self._answers)
        failed = sum(bool(error) for error in self.errors)
        rest = [f"{failed:,} failed"] * bool(failed) + [f"{missing:,} missing"] * bool(missing)
        return f"<Results: {', '.join([f'{len(self) - failed - missing:,} of {len(self):,} rows', *rest])}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        frame, line = self.frame, repr(self).strip("<>")
        if not hasattr(frame, "head"):
            return {"text/plain": "\n".join([*map(str, frame[:_SHOWN]), *["..."] * (len(frame) > _SHOWN), line])}
        head = frame.head(_SHOWN)
        return {
            "text/plain": f"{head}\n{line}",
            "text/html": f'{head._repr_html_()}<div style="font-size:85%;opacity:.7">{html.escape(line)}</div>',
        }


def stream(
    client: EngineClient,
    rows: Iterable[Row],
    question: Question,
    *,
    concurrency: int,
    watch: Watch,
    journal: Journal | None = None,
) -> Iterator[Answer]:
    """The answers of an iterator's rows, one after the other, in memory that does not grow. Rows that the journal has
    are not asked again."""
    known = journal.read() if journal else {}
    progress = Progress(None)

    def queries() -> Iterator[Query | VllmNbError]:
        return (question.about(names) for row, names in enumerate(rows) if row not in known)

    def answers(aio: AsyncEngineClient) -> AsyncGenerator[Completion, None]:
        return in_turn(aio, queries(), concurrency)

    row = 0
    for completion in iterate_aside(client, answers, concurrency):
        while row in known:
            yield known.pop(row)
            row += 1
        answer = question.answer(completion)
        if journal:
            journal.write(row, answer)
        progress.count(answer)
        watch(progress)
        yield answer
        row += 1
    while row in known:
        yield known.pop(row)
        row += 1
