"""What the bodies of all dialects share: strict types, unknown fields that are ignored, bounds that are told."""

import logging
from typing import Any

from pydantic import BaseModel, ConfigDict

from vllm_nb.sampling import BOUNDS

logger = logging.getLogger(__name__)


def _tell_bounds(schema: dict[str, Any]) -> None:
    """The limits of SamplingParams, which checks them, in the JSON schema of a body that has its fields."""
    for name, low, high, _ in BOUNDS:
        options = schema.get("properties", {}).get(name, {}).get("anyOf", ())
        for option in options:
            if option.get("type") in ("integer", "number"):
                option |= {"minimum": low, "maximum": high}


class RequestModel(BaseModel):
    """A body. Unknown fields are ignored, as OpenAI does; the debug log lists them."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra=_tell_bounds)

    def model_post_init(self, _: Any) -> None:
        if self.model_extra and logger.isEnabledFor(logging.DEBUG):
            names = ", ".join(sorted(name[:100] for name in self.model_extra))
            logger.debug("%s: ignored fields: %s", type(self).__name__, names)
