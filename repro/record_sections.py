"""The sections of a record as types, in the order of the file: what was run, with what, and what came out.

Records of before a thing was measured lack its field, which is LATER then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .typed_json import LATER, Absent


@dataclass(frozen=True)
class CellName:
    """Name of a cell for people, and the key that it is found again by."""

    name: str
    key: str


@dataclass(frozen=True)
class ModelFacts:
    """The model as it was loaded, and the machine that it ran on."""

    name: str
    family: str
    parameters: int
    dtype: str
    device: str
    device_name: str
    threads: int
    processes: int | None = field(default=None, kw_only=True, metadata=LATER)
    fingerprint: str
    companions: str | None = field(default=None, kw_only=True, metadata=LATER)
    """sha256 over the files beside the weights that were read; see `Checkpoint`."""
    attention: str | None = field(default=None, kw_only=True, metadata=LATER)
    """Implementation of attention."""
    origin: dict[str, Any] | None = field(default=None, kw_only=True, metadata=LATER)
    """The GGUF file that the weights come from, and how they were rounded in it; see `Origin`."""


@dataclass(frozen=True)
class Configured:
    """A method or a suite by its name, with its configuration."""

    name: str
    config: dict[str, Any]


@dataclass(frozen=True)
class ProtocolFacts:
    """Which tokens were sparse."""

    name: str
    description: str


@dataclass(frozen=True)
class QuantisationFacts:
    """What the model's linears were quantised to; see `Quantiser`."""

    name: str
    config: dict[str, Any]
    description: str
    bytes: int
    """Size of all quantised weights with their scales and zero points."""
    bits_per_weight: float
    """The same for each of those weights."""
    relative_error: float | None = field(default=None, kw_only=True, metadata=LATER)
    """‖Ŵ − W‖ / ‖W‖ of the stored weights Ŵ and the model's own; records of before do not know it."""


@dataclass(frozen=True)
class HeadFacts:
    """Which key-value groups attention looked at; see `PolarHeads`."""

    name: str
    config: dict[str, Any]
    groups: int
    """Key-value groups of the model."""
    kept: int
    """Groups that a sparse token looked at."""
    dense_blocks: int
    """First blocks that looked at all."""


@dataclass(frozen=True)
class CalibrationFacts:
    """Calibration text: its size, the hash of its token ids, and what of the tasks it holds."""

    name: str
    sequences: int
    length: int
    tokens: int
    sha256: str
    overlap: dict[str, Any] | None = field(default=None, kw_only=True, metadata=LATER)


@dataclass(frozen=True)
class Realised:
    """What was left out, and bytes and operations a token; see `TrafficCounter`."""

    realised_sparsity: float
    realised_sparsity_all_tokens: float
    sparse_token_share: float
    by_projection: dict[str, float]
    by_block: list[float]
    low_rank_share: float
    rotation_share: float | None = field(default=None, kw_only=True, metadata=LATER)
    key_value_share: float | None = field(default=None, kw_only=True, metadata=LATER)
    """Share of the key-value groups that sparse tokens looked at; not there where they looked at all."""
    router_share: float | None = field(default=None, kw_only=True, metadata=LATER)
    """Size of the routers of heads, as `low_rank_share`."""
    proxy_share: float | None = field(default=None, kw_only=True, metadata=LATER)
    """What is read of proxies in 4 bits, as `low_rank_share`; not there where there are none."""
    neuron_router_share: float | None = field(default=None, kw_only=True, metadata=LATER)
    """Size of the routers of neurons, as `low_rank_share`; not there where there are none."""
    bytes_per_token: float
    dense_bytes_per_token: float
    flops_per_token: float | None = field(default=None, kw_only=True, metadata=LATER)
    dense_flops_per_token: float | None = field(default=None, kw_only=True, metadata=LATER)
    tokens: int
    sparse_tokens: int


@dataclass(frozen=True)
class TaskScore:
    """Score of a task; see `TaskResult`."""

    metric: str
    value: float
    stderr: float
    n: int
    chance: float
    settings: dict[str, Any] | None = field(default=None, kw_only=True, metadata=LATER)


@dataclass(frozen=True)
class Scores:
    """Scores of the tasks, their average in percent, and the likelihood of the held-out text."""

    tasks: dict[str, TaskScore]
    average: float | None
    perplexity: float | None
    bits_per_byte: float | None
    n_documents: int
    n_tokens: int
    conventions: dict[str, Any] | None = field(default=None, kw_only=True, metadata=LATER)
    """How texts became tokens, and where answers ended; see `conventions`."""


@dataclass(frozen=True)
class TimingFacts:
    """Speed of one decoder: median, slowest and fastest repeat."""

    tok_s: float
    tok_s_lowest: float
    tok_s_highest: float
    prefill_seconds: float
    repeats: int


@dataclass(frozen=True)
class Latency:
    """Decode speed beside other decoders; see `DecodeLatency`. Bandwidth in bytes a second."""

    batch: int
    prompt: int
    new_tokens: int
    threads: int
    kernels: str | dict[str, str]
    """What the engine ran, by part of a step; older records name a constant, of a GPU a wrong one."""
    nominal_sparsity: float
    read_bandwidth: float
    traffic: Realised
    byte_limit_speedup: float
    timings: dict[str, TimingFacts]
    tok_s: float
    best_transformers: str | Absent | None = field(default=Absent.ABSENT, kw_only=True, metadata=LATER)
    fastest_baseline: str | Absent | None = field(default=Absent.ABSENT, kw_only=True, metadata=LATER)
    """The fastest of the decoders that are not this project's; before, transformers alone was timed."""
    speedups: dict[str, float]
    bandwidth_reached: float
    share_of_bandwidth: float
    tflops_128_tokens: float
    dense_tflops_128_tokens: float
    unmeasured: list[str] | None = field(default=None, kw_only=True, metadata=LATER)
    """Baselines that were still to be timed when this was written; None: all were."""


@dataclass(frozen=True)
class PlanFacts:
    """The plan and what making it took, whether that was now or, from the cache, before."""

    key: str
    sha256: str
    from_cache: bool
    seconds_by_stage: dict[str, float]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Memory:
    """Peaks in bytes."""

    rss_bytes: int
    cuda_bytes: int | None = field(default=None, kw_only=True, metadata=LATER)


@dataclass(frozen=True)
class GitState:
    """Commit of the sources, and whether they differed from it."""

    commit: str
    dirty: bool


@dataclass(frozen=True)
class Surroundings:
    """Where and when a record was made."""

    versions: dict[str, str | None]
    git: GitState | None
    command: str
    utc: str
