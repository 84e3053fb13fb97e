"""Tables of decode speed for the README and docs/speed.md, from the records of results/speed.csv."""

from __future__ import annotations

from functools import partial
from typing import Any

from ...configuration import REPOSITORY
from ...measured.cells import method_rank
from ...record_facts import hardware
from ...tables.speed.speed_data import (
    COMPILED_DECODER,
    ENGINE_DENSE,
    FEW_BITS,
    PlainPyTorch,
    SpeedData,
    baselines,
    plain_pytorch,
    read_speed,
    setting_of,
    weights_of,
)
from ...tables.text import NOT_MEASURED, in_order, table_row

RECORDS = REPOSITORY / "results" / "records" / "speed"
RECORDS_BY_BITS = REPOSITORY / "results" / "records" / "speed_few_bits"
DEVICE, DTYPE = "NVIDIA H200", "bfloat16"
DENSE, METHOD, SPARSITY, PROMPT = "dense", "teal_uniform", 0.5, 5
"""The methods shown at every sparsity, and the one at which everything else is, behind this short prompt."""
MODEL_HEADS = (
    "tok/s", "transformers, compiled", "compiled-decoder", "engine, dense", "engine, 50 % sparse",
    "over the faster of the two", "over engine, dense", "byte limit",
)  # fmt: skip
SETTING_HEADS = (
    "", "sparsity", "engine, dense, tok/s", "engine, sparse",
    "over dense", "over `torch.compile`", "over `compiled-decoder`", "byte limit",
)  # fmt: skip

SAME_BITS = dict(zip((None, "int8", "int4"), (COMPILED_DECODER, *FEW_BITS), strict=True))
"""The baseline with weights of the same bits, by how the engine's are quantised."""
BITS_HEADS = (
    "weights", "compiled-decoder, 16 bits", "plain PyTorch, same bits", "engine, dense", "engine, 50 % sparse",
    "50 % over 16 bits", "dense over same bits", "50 % over same bits", "byte limit of 50 %",
)  # fmt: skip


def speed_by_model(data: SpeedData | None = None) -> str:
    """Every model at half sparsity beside compiled PyTorch and the engine's dense path; below, a caption."""
    data = data or read_speed(RECORDS)
    plain = plain_pytorch(data)
    shown = [record for record in _measured(data) if _is_front(record)]
    lines = [table_row(MODEL_HEADS), "|---|" + "---:|" * (len(MODEL_HEADS) - 1)]
    for record in sorted(shown, key=_by_sparsity):
        lines.append(table_row(_model_row(record, plain[setting_of(record)])))
    return "\n".join([*lines, "", *(_caption(shown) if shown else ())])


def _is_front(record: dict[str, Any]) -> bool:
    return _is_short(record) and (record["method"]["name"], record["sparsity"]) == (METHOD, SPARSITY)


def _model_row(record: dict[str, Any], plain: PlainPyTorch) -> list[str]:
    latency = record["latency"]
    dense, sparse = latency["timings"][ENGINE_DENSE]["tok_s"], latency["tok_s"]
    return [
        _named(record).split(",")[0],
        *(NOT_MEASURED if one is None else f"{one.tok_s:.0f}" for one in (plain.transformers, plain.decoder)),
        f"{dense:.0f}",
        f"{sparse:.0f}",
        NOT_MEASURED if plain.faster is None else f"**{sparse / plain.faster.tok_s:.2f}×**",
        f"{sparse / dense:.2f}×",
        f"{latency['byte_limit_speedup']:.2f}×",
    ]


def _caption(records: list[dict[str, Any]]) -> list[str]:
    """Caption with what the rows were measured with; a setting that differs is listed with all its values."""
    distinct = partial(in_order, records)
    weights = distinct(lambda record: record["config"]["model"].get("weights", "trained"))
    versions = ", ".join(
        f"{name} {distinct(lambda record, name=name: record['versions'][name])}"
        for name in ("torch", "triton", "transformers")
    )
    return [
        f"*{DEVICE}, {DTYPE}, batch {distinct(lambda record: record['latency']['batch'])}, a prompt of "
        f"{distinct(lambda record: record['latency']['prompt'])} tokens and "
        f"{distinct(lambda record: record['latency']['new_tokens'])} new ones, greedy; {weights} weights "
        f"of the full size; method `{METHOD}`; {versions}.*"
    ]


def speed_by_setting(data: SpeedData | None = None) -> str:
    """Every model by sparsity, then methods, contexts and batches at half sparsity, of one device and dtype."""
    data = data or read_speed(RECORDS)
    plain = plain_pytorch(data)
    records = _measured(data)
    first = [record for record in records if _is_short(record) and record["method"]["name"] in (DENSE, METHOD)]
    others = [record for record in records if record["sparsity"] == SPARSITY and record not in first]
    lines = [table_row(SETTING_HEADS), "|---|" + "---:|" * (len(SETTING_HEADS) - 1)]
    for record in [*sorted(first, key=_by_sparsity), *sorted(others, key=_by_setting)]:
        lines.append(table_row(_shown(record, plain[setting_of(record)])))
    return "\n".join(lines)


def _measured(data: SpeedData) -> list[dict[str, Any]]:
    records = [cell.record for cell in data.sorted_cells()]
    return [
        record
        for record in records
        if hardware(record["model"]) == DEVICE
        and record["model"]["dtype"] == DTYPE
        and weights_of(record) is None
    ]


def _is_short(record: dict[str, Any]) -> bool:
    return (record["latency"]["batch"], record["latency"]["prompt"]) == (1, PROMPT)


def _by_sparsity(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["model"]["name"], record["sparsity"]


def _by_setting(record: dict[str, Any]) -> tuple[Any, ...]:
    latency = record["latency"]
    rank = method_rank(record["method"]["name"])
    return record["model"]["name"], latency["batch"], latency["prompt"], *rank


def _shown(record: dict[str, Any], plain: PlainPyTorch) -> list[str]:
    """A row: tokens a second dense and sparse, and over what each baseline reached."""
    latency = record["latency"]
    dense, sparse = latency["timings"][ENGINE_DENSE]["tok_s"], latency["tok_s"]
    return [
        _named(record),
        f"{100 * record['sparsity']:g} %",
        f"{dense:.0f}",
        f"{sparse:.0f}",
        f"{sparse / dense:.2f}×",
        *(
            NOT_MEASURED if one is None else f"{sparse / one.tok_s:.2f}×"
            for one in (plain.transformers, plain.decoder)
        ),
        f"{latency['byte_limit_speedup']:.2f}×",
    ]


def _named(record: dict[str, Any]) -> str:
    latency = record["latency"]
    parts = [record["model"]["name"].removesuffix("-random"), record["method"]["name"]]
    if latency["batch"] > 1:
        parts.append(f"batch of {latency['batch']}")
    if latency["prompt"] > PROMPT:
        parts.append(f"behind {latency['prompt']:,} tokens")
    return ", ".join(parts)


def speed_by_bits(data: SpeedData | None = None) -> str:
    """Tokens a second, one line for each format, beside `compiled-decoder` in 16 bits and in the same bits."""
    records = [cell.record for cell in (data or read_speed(RECORDS_BY_BITS)).sorted_cells()]
    plain: dict[str, float] = {}
    for record in records:
        for name, _, timing in baselines(record["latency"]):
            plain[name] = max(plain.get(name, 0.0), timing["tok_s"])
    of_16_bits = plain.get(COMPILED_DECODER)
    lines = [table_row(BITS_HEADS), "|---|" + "---:|" * (len(BITS_HEADS) - 1)]
    for weights, name in SAME_BITS.items():
        lines += [
            table_row(_bits_row(record, of_16_bits, plain.get(name)))
            for record in records
            if weights_of(record) == weights
        ]
    return "\n".join(lines)


def _bits_row(record: dict[str, Any], of_16_bits: float | None, same_bits: float | None) -> list[str]:
    latency = record["latency"]
    dense, half = latency["timings"][ENGINE_DENSE]["tok_s"], latency["tok_s"]
    return [
        weights_of(record) or record["model"]["dtype"],
        *(NOT_MEASURED if rate is None else f"{rate:.0f}" for rate in (of_16_bits, same_bits)),
        f"{dense:.0f}",
        f"{half:.0f}",
        _over(half, of_16_bits),
        _over(dense, same_bits),
        _over(half, same_bits),
        f"{latency['byte_limit_speedup']:.2f}×",
    ]


def _over(rate: float, baseline: float | None) -> str:
    return NOT_MEASURED if baseline is None else f"{rate / baseline:.2f}×"
