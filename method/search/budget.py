"""How much the searches inside methods may evaluate: the presets that `conf/search/*.yaml` document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import UserError
from ..settings import Settings


@dataclass(frozen=True)
class SearchBudget(Settings):
    """Sizes of all searches; each method takes those of its own."""

    name: str
    """Name in tables and records."""
    generations: int
    """Generations of the evolutionary search over blocks."""
    offspring: int
    """Candidates in each generation."""
    evolution_step: float
    """Sparsity that one mutation moves."""
    divergence_tokens: int
    """Calibration tokens on which candidates are compared by the model's predictions."""
    block_tokens: int
    """Calibration tokens for block-output errors, in the greedy and the α search."""
    greedy_step: float
    """Parameters that one greedy step removes, relative to the size of q."""
    wina_greedy_step: float
    """The same for WINA, whose paper has a finer one."""
    alpha_step: float
    """Spacing of the α grid."""
    share_population: int
    """Individuals of R-Sparse's search over ρ."""
    share_generations: int
    """Generations of R-Sparse's search over ρ."""
    batch_tokens: int
    """Tokens a forward pass of a search; candidates are batched up to this."""
    sparse_tokens: Literal["all", "protocol"] = "all"
    """Which tokens are sparse while a method searches: all, or protocol for those that are in evaluation."""

    @classmethod
    def minimal(cls) -> SearchBudget:
        """One step of every search: for speed at full size, where how much is sparse counts and not what."""
        return cls(
            name="minimal",
            generations=1,
            offspring=1,
            evolution_step=0.01,
            divergence_tokens=64,
            block_tokens=64,
            greedy_step=1.0,
            wina_greedy_step=1.0,
            alpha_step=0.5,
            share_population=2,
            share_generations=1,
            batch_tokens=4096,
        )

    @classmethod
    def quick(cls) -> SearchBudget:
        """Every stage with far fewer evaluations than the papers': for two CPU cores. The methods' defaults."""
        return cls(
            name="quick",
            generations=10,
            offspring=6,
            evolution_step=0.02,
            divergence_tokens=256,
            block_tokens=256,
            greedy_step=0.3,
            wina_greedy_step=0.3,
            alpha_step=0.15,
            share_population=6,
            share_generations=2,
            batch_tokens=8192,
        )

    @classmethod
    def medium(cls) -> SearchBudget:
        """A budget between quick and paper: for small models seconds on a GPU, minutes on two cores."""
        return cls(
            name="medium",
            generations=100,
            offspring=32,
            evolution_step=0.01,
            divergence_tokens=512,
            block_tokens=512,
            greedy_step=0.2,
            wina_greedy_step=0.2,
            alpha_step=0.05,
            share_population=12,
            share_generations=3,
            batch_tokens=32768,
        )

    @classmethod
    def paper(cls) -> SearchBudget:
        """The papers' own budgets, where they state them."""
        return cls(
            name="paper",
            generations=400,
            offspring=64,
            evolution_step=0.005,
            divergence_tokens=1024,
            block_tokens=2048,
            greedy_step=0.05,
            wina_greedy_step=0.025,
            alpha_step=0.05,
            share_population=32,
            share_generations=5,
            batch_tokens=65536,
        )

    @classmethod
    def named(cls, name: str) -> SearchBudget:
        """The preset of that name. Raises UserError for a name that none has."""
        presets = {preset.name: preset for preset in (cls.minimal(), cls.quick(), cls.medium(), cls.paper())}
        if name not in presets:
            raise UserError(f"no search is called '{name}'; choose from {', '.join(sorted(presets))}")
        return presets[name]


QUICK = SearchBudget.quick()
"""The budget of methods that were given no other."""
