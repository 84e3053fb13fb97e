"""Decode speed of a model under a plan, beside the engine's dense path and plain PyTorch, in one process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ...kernels.bench.parts.bandwidth import read_bandwidth
from ...kernels.cpu import build
from ...kernels.cuda import compiled
from ...kernels.engine.backends import check_decodable
from ...kernels.engine.decode_engine import DecodeEngine
from ...kernels.plan.mechanism import Mechanism
from ...method.errors import UserError
from ...method.plan import SparsityPlan
from ...method.quantised_model import quantisation_of
from ...method.rotation import in_own_bases
from ...method.running.apply import applied
from ...method.token_policy import GENERATED
from .compiled_decoder import COMPILED_DECODER, PRODUCTS, CompiledDecoder
from .speed_card import print_card
from .timing import Decoder, Timing, interleaved
from .transformers_decode import COMPILE_MODES, EAGER, TransformersDecode, finds_compiler

log = logging.getLogger(__name__)

KERNELS = (build.FOLDER, compiled.FOLDER)
SOURCES = (".cpp", ".cu", ".h")
"""Endings of those of the kernels' sources that are no Python."""

MATCHING_ROUNDS = 6
PlanAt = Callable[[float], SparsityPlan]
Keep = Callable[[dict[str, Any]], None]
"""Takes what is measured so far, as a section of a record that names what is not."""


@dataclass(frozen=True)
class DecodeLatency:
    """Greedy decoding of `new_tokens` behind a prompt of random tokens, in `batch` rows."""

    name: str
    batch: int
    prompt: int
    new_tokens: int
    repeats: int
    baselines: Sequence[str] | None
    """`eager`, modes of torch.compile and compiled decoders; None: all that the device has, those in few bits
    beside a quantised model alone."""
    tune: bool
    """Tune a GPU's launches by shape and sparsity; minutes for a new one, then found on disk."""
    realised_tolerance: float | None
    """How far the realised sparsity may lie from the nominal one; None: as the method's plan makes it."""
    seed: int

    def __post_init__(self) -> None:
        known = {EAGER, *PRODUCTS}.union(*COMPILE_MODES.values())
        if unknown := sorted(set(self.baselines or ()) - known):
            raise UserError(
                f"latency.baselines: there is no {', '.join(unknown)}; take of {', '.join(sorted(known))}"
            )

    def files(self) -> list[Path]:
        """The kernels' C++ and CUDA sources."""
        return sorted(path for folder in KERNELS for path in folder.rglob("*") if path.suffix in SOURCES)

    def check(self, model: nn.Module, mechanisms: Collection[Mechanism], formats: Mapping[str, int]) -> None:
        """Raise KernelError for what `measure` would refuse, before any plan is made.

        mechanisms: what the method's plans are made of, as far as is known; formats: see
        `check_decodable`.
        """
        check_decodable(model, self.batch, self.prompt + self.new_tokens, mechanisms, formats)

    def measure(
        self, model: nn.Module, plan: SparsityPlan, plan_at: PlanAt, keep: Keep = lambda _: None
    ) -> dict[str, Any]:
        """Time the plan, the engine's dense path and then the baselines on the same model.

        `plan_at` makes the method's plan at another nominal sparsity. A baseline may take minutes to compile:
        before each of them `keep` is given what is measured by then.
        """
        device = next(model.parameters()).device
        generator = torch.Generator().manual_seed(self.seed)
        vocabulary = model.config.vocab_size
        prompt = torch.randint(vocabulary, (self.batch, self.prompt), generator=generator).to(device)
        bandwidth = read_bandwidth(device)
        print_card(model, torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU", bandwidth)
        plan, nominal = self._matched(model, plan, plan_at, prompt)
        plans = {"engine-dense": None} if plan.is_dense else {"engine-dense": None, "engine-sparse": plan}
        with ExitStack() as stack:
            # The sparse one first: where its plan has folded bases, the dense one decodes in them as well.
            beside = in_own_bases(model, plan.rotations)
            made = {
                name: stack.enter_context(self._engine(beside if own is None else model, own))
                for name, own in [*plans.items()][::-1]
            }
            engines = {name: made[name] for name in plans}
            timings, sequences = interleaved(engines, prompt, self.new_tokens, self.repeats)
            measured = list(engines)[-1]
            ran = engines[measured].ran()
            executed = plan.without(engines[measured].dense)
            traffic = _traffic(model, executed, sequences[measured], self.prompt, self.batch)
        facts = {
            "batch": self.batch,
            "prompt": self.prompt,
            "new_tokens": self.new_tokens,
            "threads": torch.get_num_threads(),
            "kernels": ran,
            "nominal_sparsity": nominal,
            "read_bandwidth": bandwidth,
            "traffic": traffic,
            "byte_limit_speedup": traffic["dense_bytes_per_token"] / traffic["bytes_per_token"],
        }
        baselines = self._baseline_names(device.type, quantisation_of(model) is not None)
        for place, name in enumerate(baselines):
            keep(_section(facts, timings) | {"unmeasured": list(baselines[place:])})
            timings |= self._baseline(model, name, prompt)
        return _section(facts, timings)

    def _engine(self, model: nn.Module, plan: SparsityPlan | None) -> DecodeEngine:
        sparsity = 0.0 if plan is None else plan.provenance.sparsity
        return DecodeEngine(
            model,
            plan,
            quantised=quantisation_of(model),
            batch=self.batch,
            capacity=self.prompt + self.new_tokens,
            tuned_for=sparsity if self.tune else None,
        )

    def _baseline(self, model: nn.Module, name: str, prompt: Tensor) -> dict[str, Timing]:
        """Timing of a decoder that is not the engine, once a process for one model and setting."""
        known = _BASELINES.setdefault(model, {})
        setting = (self.batch, self.prompt, self.new_tokens, name)
        if setting not in known:
            decoder = self._decoder(model, name)
            known[setting] = interleaved(decoder, prompt, self.new_tokens, self.repeats)[0]
            del decoder
            torch._dynamo.reset()  # what was compiled holds weights, and memory of its graphs
        return known[setting]

    def _baseline_names(self, device: str, quantised: bool) -> tuple[str, ...]:
        """Names of what is timed; without a compiler what needs one is left out, with a line."""
        names = self.baselines
        if names is None:
            few_bits = set(PRODUCTS) if device == "cuda" and quantised else {COMPILED_DECODER}
            names = (EAGER, *COMPILE_MODES[device], *(name for name in PRODUCTS if name in few_bits))
        compiled = [name for name in names if name != EAGER]
        if compiled and not finds_compiler(device):
            log.warning(
                "there is no C compiler: %s are not timed; install one, such as gcc and g++",
                ", ".join(compiled),
            )
            return tuple(name for name in names if name == EAGER)
        return tuple(names)

    def _decoder(self, model: nn.Module, name: str) -> dict[str, Decoder]:
        """The decoder of a baseline by its name in records."""
        capacity = self.prompt + self.new_tokens
        if name in PRODUCTS:
            return {name: CompiledDecoder(model, self.batch, capacity, name=name)}
        label = name if name == EAGER else f"torch.compile {name}"
        return {label: TransformersDecode(model, name, capacity)}

    def _matched(
        self, model: nn.Module, plan: SparsityPlan, plan_at: PlanAt, prompt: Tensor
    ) -> tuple[SparsityPlan, float]:
        """The plan whose realised sparsity on what it generates is the one asked for, and its nominal one.

        Of each row by itself: what the rows of a batch leave out together is less, and is what is measured.
        """
        if plan.is_dense:
            return plan, 0.0
        wanted = nominal = plan.provenance.sparsity
        if self.realised_tolerance is None or plan.heads:  # what heads leave out is no part of the sparsity
            return plan, nominal
        for _ in range(MATCHING_ROUNDS):
            with self._engine(model, plan) as engine:
                sequences = engine.generate(prompt, new_tokens=self.new_tokens)
            realised = _traffic(model, plan, sequences, self.prompt, 1)["realised_sparsity"]
            if abs(realised - wanted) <= self.realised_tolerance:
                return plan, nominal
            nominal += wanted - realised
            plan = plan_at(nominal)
        raise UserError(
            f"no nominal sparsity realises {wanted} within {self.realised_tolerance} (last {realised:.3f}); "
            "give latency.realised_tolerance more room, or null for the plan as it is"
        )


_BASELINES: WeakKeyDictionary[nn.Module, dict[tuple[int | str, ...], dict[str, Timing]]] = WeakKeyDictionary()


@torch.inference_mode()
def _traffic(
    model: nn.Module, plan: SparsityPlan, sequences: Tensor, prompt: int, together: int
) -> dict[str, Any]:
    """Realised sparsity and bytes over these sequences (batch, length), of a step of so many rows together."""
    with applied(model, plan, replace(GENERATED, rows_sharing=together)) as session:
        session.prompt_lengths = torch.full((sequences.shape[0],), prompt, device=sequences.device)
        # The last token was never read; no cache, so that the pass counts as a prompt with its continuation.
        model(input_ids=sequences[:, :-1], use_cache=False, logits_to_keep=1)
        return session.report()


def _section(facts: dict[str, Any], timings: dict[str, Timing]) -> dict[str, Any]:
    """Section of a record: what was decoded, all that was timed, and how these compare."""
    comparison = _comparison(timings, facts["traffic"], facts["read_bandwidth"], facts["batch"])
    return facts | {"timings": {name: timing.to_dict() for name, timing in timings.items()}} | comparison


def _comparison(
    timings: dict[str, Timing], traffic: dict[str, Any], bandwidth: float, batch: int
) -> dict[str, Any]:
    """Speed-ups of the measured path over every other, and how near to the byte limit it comes."""
    measured = timings.get("engine-sparse", timings["engine-dense"])
    others = {name: timing for name, timing in timings.items() if timing is not measured}
    plain = {name: timing for name, timing in others.items() if not name.startswith("engine")}
    best = max(plain, key=lambda name: plain[name].tok_s, default=None)
    # All rows of a batch share one reading of the weights; with one row this is what a token reads.
    reached = measured.tok_s / batch * traffic["bytes_per_token"]
    return {
        "tok_s": measured.tok_s,
        "fastest_baseline": best,
        "speedups": {name: measured.tok_s / timing.tok_s for name, timing in others.items()},
        "bandwidth_reached": reached,
        "share_of_bandwidth": reached / bandwidth,
        "tflops_128_tokens": 128 * traffic["flops_per_token"] / 1e12,
        "dense_tflops_128_tokens": 128 * traffic["dense_flops_per_token"] / 1e12,
    }
