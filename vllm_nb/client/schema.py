"""What an answer is to be, said in Python: a class, a type, a JSON schema, some texts; and its text as such a value."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_nb.errors import RequestError
from vllm_nb.sampling import StructuredOutputs


class AnswerError(RequestError):
    """An answer that is not what was asked for: cut off, or of a server that does not hold to schemas. It tells where
    the text is for who has the Completion; who shows it elsewhere takes the `reason` alone."""

    @property
    def reason(self) -> str:
        return str(self.args[0])

    def __str__(self) -> str:
        return f"{self.reason}; its text is in .text"


@dataclass(frozen=True)
class Shape:
    """What the engine holds the answer to, and how its text becomes a value."""

    outputs: StructuredOutputs
    parse: Callable[[str], Any]

    @classmethod
    def of(cls, schema: Any) -> "Shape":
        """schema: a pydantic model, a dataclass, a TypedDict or another type that pydantic knows (`list[int]`), or a
        JSON schema as a dictionary. Raises TypeError for anything else, ValueError for a schema that can't be one."""
        if isinstance(schema, Shape):
            return schema
        if isinstance(schema, Mapping):
            return cls(StructuredOutputs(json=schema), lambda text: _checked(schema, json.loads(text)))
        if isinstance(schema, str):  # pydantic would take it for a type's name
            raise TypeError(f"schema must be a type that pydantic knows or a JSON schema, not the text {schema[:60]!r}")
        from pydantic import PydanticUserError, TypeAdapter
        from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError

        try:
            adapter = TypeAdapter(schema)
            wanted = adapter.json_schema()
        except (PydanticUserError, PydanticInvalidForJsonSchema, PydanticSchemaGenerationError, NameError) as error:
            raise TypeError(
                f"schema must be a type that pydantic knows or a JSON schema, not {schema!r}{_culprit(schema, error)}"
            ) from None
        return cls(StructuredOutputs(json=wanted), adapter.validate_json)

    @classmethod
    def choice(cls, *texts: str) -> "Shape":
        """One of these texts."""
        return cls(StructuredOutputs(choice=texts), lambda text: _one_of(texts, text.strip()))

    @classmethod
    def regex(cls, pattern: str) -> "Shape":
        """A text that a regular expression matches as a whole."""
        return cls(StructuredOutputs(regex=pattern), str)

    @classmethod
    def grammar(cls, lark: str) -> "Shape":
        """A text of a grammar in Lark's syntax."""
        return cls(StructuredOutputs(grammar=lark), str)

    def value(self, text: str) -> Any:
        """Raises AnswerError."""
        try:
            return self.parse(text)
        except ValueError as error:  # pydantic's and json's are ones
            raise AnswerError(f"the answer is not what was asked for: {problems(error)}") from None


def _culprit(schema: Any, error: Exception) -> str:
    """What of a schema is wrong, where it isn't the schema itself: the first sentence that pydantic has on it."""
    sentence = str(error).splitlines()[0].partition(". ")[0].rstrip(".")
    return "" if repr(schema) in sentence else f": {sentence}"


def problems(error: ValueError) -> str:
    """On one line, and of pydantic without its links: "people: Input should be an integer; name: Field required"."""
    if not hasattr(error, "errors"):
        return str(error)
    return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'all of it'}: {each['msg']}" for each in error.errors())


def _checked(schema: Mapping[str, Any], value: Any) -> Any:
    """The engine holds its answers to the schema; of other servers not all do, so look again where that is possible."""
    try:
        from jsonschema import ValidationError, validate
    except ImportError:
        return value
    try:
        validate(value, schema)
    except ValidationError as error:
        raise ValueError(f"{error.json_path}: {error.message}") from None
    return value


def _one_of(texts: tuple[str, ...], text: str) -> str:
    if text not in texts:
        raise ValueError(f"{text[:60]!r} is none of {', '.join(texts)}")
    return text
