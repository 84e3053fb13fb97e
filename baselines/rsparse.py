"""R-Sparse (arXiv 2504.19449): large channels through W, the rest through a low-rank truncation of W."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..method.base import Method
from ..method.calibration import Calibration
from ..method.errors import UserError
from ..method.plan import ProjectionRule, SparsityPlan
from ..method.projections import model_projections
from ..method.provenance import PlanProvenance, SearchCost
from ..method.rules import RuleBuilder, StaticThreshold
from ..method.running.projection_hooks import sparse_projections
from ..method.search.budget import QUICK

Shares = tuple[float, ...]
"""Share ρ of each projection's budget that goes to its channels; the rest goes to its low-rank path."""


def low_rank_factors(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Factors left (out, n) and right (n, in) of weight (out, in), n being its smaller side.

    The first r columns of left times the first r rows of right are the best approximation of rank r. From the
    eigenvectors of the smaller Gram matrix in float64, which are the singular directions.
    """
    exact = weight.detach().double()
    out, inner = exact.shape
    if out <= inner:
        left = torch.linalg.eigh(exact @ exact.T).eigenvectors.flip(1)
        right = left.T @ exact
    else:
        right = torch.linalg.eigh(exact.T @ exact).eigenvectors.flip(1).T
        left = exact @ right.T
    return left.to(weight.dtype), right.to(weight.dtype)


@dataclass
class BudgetedRules:
    """Rules of single projections at one sparsity, by share ρ; every rule reads the same kept fraction."""

    calibration: Calibration
    sparsity: float
    score: str
    factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """`low_rank_factors` up to the largest rank that the budget buys, by key; made when first needed."""
    _rules: dict[tuple[str, float], ProjectionRule] = field(default_factory=dict)

    def rank(self, name: str, share: float) -> int:
        """Rank that the rest of the budget buys: (1 − ρ)·C·mn/(m + n), rounded down."""
        out, inner = self.calibration.shapes[name]
        return int((1.0 - share) * (1.0 - self.sparsity) * out * inner / (out + inner) + 1e-9)

    def kept_channels(self, name: str, share: float) -> float:
        """Share of the channels kept: what the low-rank path leaves of the budget, ρ·C up to its rounding."""
        out, inner = self.calibration.shapes[name]
        return 1.0 - self.sparsity - self.rank(name, share) * (out + inner) / (out * inner)

    def rule(self, name: str, share: float) -> ProjectionRule:
        """The rule of one projection: a threshold for its channels, plus the low-rank path."""
        if (name, share) not in self._rules:
            # The published code weighs |x| by column norms where there is a low-rank path; the paper does not.
            alpha = 1.0 if self.score == "code" and share < 1.0 else 0.0
            builder = RuleBuilder(self.calibration, StaticThreshold(), {name: alpha})
            rule = builder.one(name, 1.0 - self.kept_channels(name, share)).only()
            rank = self.rank(name, share)
            if rank:
                if name not in self.factors:
                    weight = model_projections(self.calibration.model)[name].weight.to(self.calibration.device)
                    left, right = low_rank_factors(weight)
                    largest = self.rank(name, 0.0)
                    # Copies: views would keep all ranks, which together are larger than the model.
                    self.factors[name] = left[:, :largest].clone(), right[:largest].clone()
                left, right = self.factors[name]
                rule = replace(rule, left=left[:, :rank].contiguous(), right=right[:rank].contiguous())
            self._rules[name, share] = rule
        return self._rules[name, share]

    def rules(self, shares: Shares) -> dict[str, ProjectionRule]:
        """Rules of all projections for one ρ each, in order of execution."""
        return {
            name: self.rule(name, share) for name, share in zip(self.calibration.shapes, shares, strict=True)
        }


@torch.inference_mode()
def calibration_loss(calibration: Calibration, input_ids: Tensor, rules: dict[str, ProjectionRule]) -> float:
    """Cross entropy in nats a token of calibration text (sequences, length) under rules by key."""
    linears, positions = model_projections(calibration.model), calibration.search_positions(input_ids)
    with sparse_projections(linears, rules, positions):
        logits = calibration.model(input_ids=input_ids, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1).float(), input_ids[:, 1:].flatten()).item()


def step_loss(
    calibration: Calibration, input_ids: Tensor, budgeted: BudgetedRules, shares: Shares, cost: SearchCost
) -> float:
    """Calibration loss under one ρ for each projection, as a step of a search."""

    def measured() -> float:
        cost.count("share search", 1)
        return calibration_loss(calibration, input_ids, budgeted.rules(shares))

    return cost.step("share search", str(shares), measured)


@dataclass(frozen=True)
class RSparse(Method):
    """y = σ(x)·Wᵀ + (x − σ(x))·(A·B)ᵀ, with σ keeping |x_i| ≥ t, at one kept fraction for every projection."""

    name: str = "rsparse"
    score: str = "paper"
    """`paper`: |x|; `code`: |x|·c wherever there is a low-rank path."""
    search: bool = True
    """Search ρ of each projection; without it all have `share`."""
    share: float = 0.95
    """ρ of every projection without a search."""
    choices: tuple[float, ...] = (1.0, 0.95, 0.9, 0.8, 0.7)
    """Values of ρ that the search may take."""
    population: int = QUICK.share_population
    """Individuals of the search."""
    generations: int = QUICK.share_generations
    mutation: float = 0.1
    """Probability that an offspring's ρ is drawn anew, for each projection."""
    search_tokens: int = QUICK.block_tokens
    """Calibration tokens whose cross entropy is the fitness."""
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score not in ("paper", "code"):
            raise UserError(f"method.score must be paper or code, not '{self.score}'")
        if not self.choices:
            raise UserError("method.choices is empty; give one share at least")
        object.__setattr__(self, "choices", tuple(self.choices))  # a configuration file gives a list

    def _plan(self, calibration: Calibration, sparsity: float, cost: SearchCost) -> SparsityPlan:
        budgeted = BudgetedRules(calibration, sparsity, self.score)
        shares: Shares = (self.share,) * len(calibration.shapes)
        if sparsity == 0.0:
            shares = (1.0,) * len(shares)  # every channel is kept: there is nothing to approximate
        elif self.search:
            with cost.stage("share search"):
                shares = self._search(calibration, budgeted, cost)
        with cost.stage("thresholds"):
            rules = budgeted.rules(shares)
        found = PlanProvenance(details={"shares": dict(zip(calibration.shapes, shares, strict=True))})
        return SparsityPlan(calibration.shapes, rules, provenance=found)

    def _search(self, calibration: Calibration, budgeted: BudgetedRules, cost: SearchCost) -> Shares:
        """Evolutionary search of ρ by calibration perplexity.

        The paper gives population and generations; selection of the better half, uniform crossover and the
        mutation are ours. The first population holds the uniform choices.
        """
        generator = random.Random(self.seed)
        genes = len(calibration.shapes)
        input_ids = calibration.search_tokens(self.search_tokens)
        known: dict[Shares, float] = {}

        def loss(individual: Shares) -> float:
            if individual not in known:
                known[individual] = step_loss(calibration, input_ids, budgeted, individual, cost)
            return known[individual]

        population: list[Shares] = [(choice,) * genes for choice in self.choices][: self.population]
        while len(population) < self.population:
            population.append(tuple(generator.choice(self.choices) for _ in range(genes)))
        for _ in tqdm(range(self.generations), desc="share search", unit="generation", leave=False):
            parents = sorted(population, key=loss)[: max(2, self.population // 2)]
            offspring = []
            while len(parents) + len(offspring) < self.population:
                one, other = generator.sample(parents, 2)
                offspring.append(
                    tuple(
                        generator.choice(self.choices)
                        if generator.random() < self.mutation
                        else generator.choice(pair)
                        for pair in zip(one, other, strict=True)
                    )
                )
            population = parents + offspring
        return min(population, key=loss)


@dataclass(frozen=True)
class RSparseByCoordinates(RSparse):
    """R-Sparse with ρ searched one projection at a time, all others as they are; a control of the evolution.

    An offspring of the evolution changes a tenth of all projections at once: where few of them gain from a
    low-rank path it hardly ever meets those alone. This search would find each of them.
    """

    name: str = "rsparse_coordinates"

    def _search(self, calibration: Calibration, budgeted: BudgetedRules, cost: SearchCost) -> Shares:
        input_ids = calibration.search_tokens(self.search_tokens)
        shares = [1.0] * len(calibration.shapes)
        least = calibration_loss(calibration, input_ids, budgeted.rules(tuple(shares)))
        names = tqdm(calibration.shapes, desc="share search", unit="projection", leave=False)
        for index, _ in enumerate(names):
            for choice in self.choices:
                changed = (*shares[:index], choice, *shares[index + 1 :])
                if choice != 1.0:
                    loss = step_loss(calibration, input_ids, budgeted, changed, cost)
                    if loss < least:
                        least, shares = loss, list(changed)
        return tuple(shares)
