"""The budget of a comparison."""

import dataclasses
import math

from arch_jax import fields
from arch_jax.errors import UsageError, unknown

#: Kinds of budget.
KINDS = ("parameters", "flops", "tokens", "seconds")


@dataclasses.dataclass(frozen=True)
class Budget:
    """The cost allowed for every model.

    Attributes:
      kind: "parameters"; "flops" of the whole training, in matrix products; "tokens" seen in training (or examples,
        for data without tokens); or "seconds" of training, without compilation and evaluations.
      amount: of the kind.
    """

    kind: str
    amount: float | int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("budget", self.kind, KINDS)
        if not (math.isfinite(self.amount) and self.amount > 0):
            raise UsageError(f"the budget of {self.kind} is {self.amount}; expected a number above 0, such as 1e6")

    @staticmethod
    def parse(text: str) -> "Budget":
        """Parses a budget: `parameters=1e6`.

        Raises:
          UsageError: another form, an unknown kind, or an amount that is not a positive number.
        """
        kind, separator, amount = text.partition("=")
        if not separator:
            raise UsageError(f"the budget is {text!r}; expected kind=amount, such as parameters=1e6")
        return Budget(kind.strip(), fields.coerce(float, amount.strip(), f"the budget of {kind.strip()}"))
