"""Claims of the papers, read from conf/claims, one file a paper."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ...method.errors import UserError
from ..configuration import CONFIGURATION

AVERAGE = "average"


@dataclass(frozen=True)
class Claim:
    """One printed statement with its numbers and where it stands."""

    id: str
    paper: str
    source: str
    kind: str
    sentence: str
    printed: dict[str, float]
    """Numbers by name: a task, `average`, `perplexity`, `tok_s`, `speedup`, ...; accuracies in percent."""
    models: tuple[str, ...]
    """Several where the paper gives the best of its models; none where it names no model."""
    method: str
    sparsity: float
    """Sparsity as a share."""
    section: dict[str, Any]
    """The settings that it shares with others: suite, requirements, tolerance, device, reason, ..."""
    own: dict[str, Any]
    """Settings of this claim alone."""

    @property
    def model(self) -> str:
        """The one model that the claim is about."""
        return self.models[0]

    @property
    def command(self) -> str:
        """Command that would measure it; empty where nothing here does."""
        methods = self.method if self.method == "dense" else f"dense,{self.method}"
        pattern = self.section.get("command", "")
        return pattern.format(model=",".join(self.models), methods=methods, share=f"{self.sparsity:g}")


@dataclass(frozen=True)
class Claims:
    """All claims, in the order in which they are reported."""

    all: tuple[Claim, ...]

    def __iter__(self) -> Iterator[Claim]:
        """Claims in the order of the papers."""
        return iter(self.all)

    def row(self, paper: str, section: str, model: str, method: str, sparsity: float) -> Claim:
        """A printed row of a table. Raises UserError when the table has none such."""
        wanted = (paper, section, (model,), method, sparsity)
        for claim in self.all:
            if (claim.paper, claim.section["id"], claim.models, claim.method, claim.sparsity) == wanted:
                return claim
        raise UserError(f"conf/claims: {paper} {section} has no row of {method} on {model} at {sparsity:g}")


def load_claims(folder: Path = CONFIGURATION / "claims") -> Claims:
    """Read every file of the folder. Raises UserError when one is malformed or an id occurs twice."""
    papers = []
    for path in sorted(folder.glob("*.yaml")):
        try:
            papers.append(yaml.safe_load(path.read_text(encoding="utf-8")))
        except yaml.YAMLError as error:
            raise UserError(f"{path} is no valid YAML ({' '.join(str(error).split())})") from error
    if not papers:
        raise UserError(f"{folder} holds no claims")
    claims: dict[str, Claim] = {}
    for paper in sorted(papers, key=lambda paper: paper["order"]):
        for section in paper["sections"]:
            for claim in _section_claims(paper, section):
                if claim.id in claims:
                    raise UserError(f"conf/claims: the id {claim.id} occurs twice")
                claims[claim.id] = claim
    return Claims(tuple(claims.values()))


def _section_claims(paper: dict[str, Any], section: dict[str, Any]) -> Iterator[Claim]:
    shared = {name: value for name, value in section.items() if name not in ("rows", "claims")}
    columns = [*section.get("columns", []), AVERAGE]
    for model, by_method in section.get("rows", {}).items():
        for method, by_sparsity in by_method.items():
            for percent, values in by_sparsity.items():
                printed = dict(zip(columns, values, strict=True))
                words = {"model": model, "method": method, "sparsity": percent, **printed}
                sentence = section["sentence"].format(**words)
                name = f"{model}-{method}-{percent}"
                yield _claim(paper, shared, name, sentence, printed, [model], method, percent, {})
    for own in section.get("claims", []):
        printed = own["printed"]
        if not isinstance(printed, dict):
            printed = {section["kind"]: printed}
        printed = {str(name): float(value) for name, value in printed.items()}
        models = own.get("model", [])
        models = [models] if isinstance(models, str) else models
        method, percent = own.get("method", ""), own.get("sparsity", 0)
        yield _claim(paper, shared, own["id"], own["sentence"], printed, models, method, percent, own)


def _claim(
    paper: dict[str, Any],
    section: dict[str, Any],
    name: str,
    sentence: str,
    printed: dict[str, float],
    models: list[str],
    method: str,
    percent: float,
    own: dict[str, Any],
) -> Claim:
    return Claim(
        id=f"{paper['paper']}/{section['id']}/{name}".lower().replace(" ", "-"),
        paper=paper["paper"],
        source=section["source"],
        kind=section["kind"],
        sentence=sentence,
        printed=printed,
        models=tuple(models),
        method=method,
        sparsity=percent / 100,
        section=section,
        own=own,
    )
