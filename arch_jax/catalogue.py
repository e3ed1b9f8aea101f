"""The facts of every registered model, stored, so that listing them needs neither JAX nor time.

`catalogue.json` beside this file is written by `python -m arch_jax.catalogue` from the registry; a test keeps the two
equal.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arch_jax.errors import UsageError, unknown

if TYPE_CHECKING:
    from arch_jax.registry import Entry

FILE = Path(__file__).with_name("catalogue.json")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """One model in the output of `arch-jax list`.

    Attributes:
      name: registered name.
      family: of the model.
      paper: title.
      authors: as the registration gives them.
      year: of the paper.
      arxiv: identifier; None without one.
      parameters: their number, less those that the publication does not count.
      parameters_published: the published number; None if none was published.
      reference: the reference implementation, and how closely the model equals it.
      difference: the largest difference seen, as a fraction of the largest output; None without such a reference.
      reproduces: the published result that an experiment here reproduces.
    """

    name: str
    family: str
    paper: str
    authors: str
    year: int
    arxiv: str | None
    parameters: int
    parameters_published: int | None
    reference: str
    difference: float | None
    reproduces: str

    def mentions(self, word: str, whole: bool = False) -> bool:
        """True if name, family, paper, authors or reference have a word, in any case; if `whole`, as a word alone."""
        texts = (self.name, self.family, self.paper, self.authors, self.arxiv or "", self.reference)
        edge = r"\b" if whole else ""
        return any(re.search(f"{edge}{re.escape(word)}{edge}", text, re.IGNORECASE) for text in texts)


def stored() -> list[ModelFacts]:
    """All rows as they were stored, in the registry's order."""
    return [ModelFacts(**facts_of) for facts_of in json.loads(FILE.read_text(encoding="utf-8"))]


def list_models(*words: str, family: str | None = None, parameters: str | None = None) -> list[ModelFacts]:
    """The models that `arch-jax list` lists, without importing JAX.

        for model in arch_jax.list_models("mamba", parameters="100M:1B"):
            print(model.name, model.parameters)

    Args and errors are those of `select`.
    """
    return select(stored(), words, family, parameters)


def facts_of(entry: "Entry") -> ModelFacts:
    """The row of a registry's entry; its parameters are counted, which takes up to 10 s for a deep model."""
    return ModelFacts(**registered_facts(entry), parameters=entry.count())


def registered_facts(entry: "Entry") -> dict[str, Any]:
    """Everything in an entry's row that its registration says: all but the count."""
    return {
        "name": entry.name,
        "family": entry.family,
        "paper": entry.paper.title,
        "authors": entry.paper.authors,
        "year": entry.paper.year,
        "arxiv": entry.paper.arxiv,
        "parameters_published": entry.parameters,
        "reference": entry.reference,
        "difference": entry.difference,
        "reproduces": entry.reproduces,
    }


def write_catalogue(entries: Mapping[str, "Entry"]) -> None:
    """Writes the rows of a registry, one a line."""
    rows = (json.dumps(dataclasses.asdict(facts_of(entry)), ensure_ascii=False) for entry in entries.values())
    FILE.write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")


def select(
    rows: Iterable[ModelFacts], words: Sequence[str] = (), family: str | None = None, parameters: str | None = None
) -> list[ModelFacts]:
    """The rows of a family and a range of sizes that mention all of some words; first those that do as whole words.

    Args:
      rows: to select from.
      words: each must occur in the name, family, paper, authors or reference.
      family: e.g. "ssm".
      parameters: from and to, such as "100M:1B", "1e6:" or ":7B"; both ends belong to it.

    Raises:
      UsageError: no such family; not a range; no row left, with the nearest names.
    """
    rows = list(rows)
    families = sorted({facts_of.family for facts_of in rows})
    if family is not None and family not in families:
        raise UsageError(f"{unknown('family', family, families)}; families are {', '.join(families)}")
    least, most = (0, float("inf")) if parameters is None else _range(parameters)
    for word in words:
        if not any(facts_of.mentions(word) for facts_of in rows):
            sizes = "; sizes are asked for by --parameters, such as --parameters 100M:1B" if word[:1].isdigit() else ""
            raise UsageError(f"{unknown('model', word, [facts_of.name for facts_of in rows])}{sizes}")
    found = [
        facts_of
        for facts_of in rows
        if family in (None, facts_of.family)
        and least <= facts_of.parameters <= most
        and all(facts_of.mentions(word) for word in words)
    ]
    if not found:
        asked = [*map(repr, words)]
        asked += [f"family {family!r}"] if family else []
        asked += [f"parameters {parameters}"] if parameters else []
        raise UsageError(f"no model has {' and '.join(asked)} together; leave one of them out")
    # Whole words first: "graph" is a part of "photograph", too.
    return sorted(found, key=lambda facts_of: -sum(facts_of.mentions(word, whole=True) for word in words))


def _range(text: str) -> tuple[float, float]:
    least, colon, most = text.partition(":")
    if not colon or not (least or most):
        raise UsageError(f"parameters is {text!r}; expected a range such as 100M:1B, 1B: or :7B")
    low, high = (_number(least) if least else 0.0), (_number(most) if most else float("inf"))
    if low > high:
        raise UsageError(f"parameters is {text!r}, which is empty; expected {most}:{least}")
    return low, high


def _number(text: str) -> float:
    match = re.fullmatch(r"(\d[\d_,]*(?:\.\d+)?(?:e\d+)?)([kmbt]?)", text.strip().casefold())
    if match is None:
        raise UsageError(f"{text!r} is not a number of parameters; expected one such as 124439808, 100M or 1.5B")
    return float(re.sub("[_,]", "", match[1])) * _UNITS[match[2]]


if __name__ == "__main__":
    from arch_jax import registry

    write_catalogue(registry.models())
