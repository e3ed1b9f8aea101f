"""A checkpoint's settings beside those that its module computes by: kept with the module, and written back."""

import dataclasses
import json
from typing import Any

from arch_jax.fields import component


@component("checkpoint_facts", kind="facts")
@dataclasses.dataclass(frozen=True, repr=False)
class CheckpointFacts:
    """The settings files of a checkpoint: context length, special tokens, names of classes, settings of generation ...

    They change nothing that the module computes, and modules that differ in them alone are equal. Where a field of the
    module says otherwise by now, the module counts.

    Attributes:
      library: whose checkpoint it was, such as "transformers".
      kind: the type's name there, such as "llama".
      configuration: the content of config.json, as text.
      generation: the content of generation_config.json, as text; None where there is none.
    """

    library: str = "transformers"
    kind: str = ""
    configuration: str = "{}"
    generation: str | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.library} {self.kind})"

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of config.json."""
        return json.loads(self.configuration)


def facts_field() -> Any:
    """The field `facts` of a module that may be a checkpoint's; it takes no part in comparisons."""
    return dataclasses.field(default=None, compare=False, kw_only=True)
