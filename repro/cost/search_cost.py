"""Cost of making plans at full size, stage by stage.

python -m wisparse.repro.cost.search_cost model=llama3.1-8b      # settings: conf/search_cost.yaml

Each stage is one line of JSON on stdout and a row of the table, written as soon as it is measured. Beside torch
and transformers this needs Hydra alone.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import torch
from hydra import compose
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ...method.base import Method
from ...method.calibration import Calibration
from ...method.errors import UserError
from ..configuration import composing, mistakes_in_one_line
from ..models.checkpoint import find_checkpoint, load_model
from ..record_facts import hardware
from ..records import git_state, versions
from ..tables.csv_rows import Row, csv_path
from ..tables.text import NOT_MEASURED
from .cost_bench import Bench, Measurement, Watch
from .cost_stages import STAGES
from .search_cost_table import merged, read_costs, write_costs


def compose_cost(*overrides: str) -> DictConfig:
    """The configuration of a measurement; raises what Hydra raises for overrides that it does not take."""
    with composing():
        return compose("search_cost", overrides=list(overrides))


def measure(overrides: list[str]) -> int:
    """Measure every stage that the configuration names; returns how many failed or were not begun."""
    config = compose_cost(*overrides)
    output = Path(config.cost.output)
    rows = read_costs(csv_path(output))
    chosen = list(_stages(config, overrides))
    bench, about = _bench(config)
    started, lacking = time.perf_counter(), 0
    for method, name in chosen:
        torch.cuda.empty_cache()
        elapsed = time.perf_counter() - started
        print(f"{elapsed:.0f} s: {method.name} {name}", file=sys.stderr, flush=True)
        found = _tried(bench, method, name) if elapsed < config.cost.seconds else []
        lacking += not found
        found = [about | _columns(method.name, bench, one) for one in found]
        said = found or [{"method": method.name, "stage": name, "result": NOT_MEASURED}]
        print("\n".join(json.dumps(row) for row in said), flush=True)
        rows = merged(rows, found)
        write_costs(output, rows)
    return lacking


def _tried(bench: Bench, method: Method, stage: str) -> list[Measurement]:
    """A stage's measurements; none where it fails, as the other stages are worth their time all the same."""
    try:
        return STAGES[stage](bench, method)
    except Exception as error:
        traceback.print_exception(error)
        return []


def _stages(config: DictConfig, overrides: list[str]) -> Iterator[tuple[Method, str]]:
    """Every method with every stage of it; raises UserError for a stage that there is none of."""
    for name, stages in config.cost.stages.items():
        if unknown := sorted(set(stages) - set(STAGES)):
            raise UserError(f"cost.stages.{name}: no stage {unknown[0]}; there are {', '.join(STAGES)}")
        method = instantiate(compose_cost(*overrides, f"method={name}").method)
        yield from ((method, stage) for stage in stages)


def _bench(config: DictConfig) -> tuple[Bench, Row]:
    """The model on its device, and what all rows say about it."""
    with Watch() as watch:
        loaded = load_model(find_checkpoint(OmegaConf.to_container(config.model, resolve=True)))
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    device = loaded.checkpoint.device
    print(f"{loaded.checkpoint.name} on {device} in {watch.seconds:.0f} s", file=sys.stderr, flush=True)
    generator = torch.Generator().manual_seed(config.seed)
    shape = (config.cost.sequences, config.cost.length)
    ids = torch.randint(loaded.model.config.vocab_size, shape, generator=generator)
    calibration = Calibration(loaded.model, ids, config.cost.batch_size)
    found = versions()
    about = {
        "device": hardware(
            {
                "device": device,
                "device_name": torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU",
                "threads": torch.get_num_threads(),
            }
        ),
        "model": loaded.checkpoint.name,
        "parameters": str(parameters),
        "dtype": loaded.checkpoint.dtype,
        "torch": str(found["torch"]),
        "transformers": str(found["transformers"]),
        "commit": git.commit[:10] if (git := git_state()) else "unknown",
    }
    return Bench(loaded.model, calibration, float(config.sparsity), config.cost), about


def _columns(method: str, bench: Bench, one: Measurement) -> Row:
    each = one.seconds / one.measured
    whole = None if one.total is None else one.setup_seconds + each * one.total
    return {
        "method": method,
        "stage": one.stage,
        "sparsity": f"{0.0 if method == 'dense' else bench.sparsity:g}",
        "unit": one.unit,
        "tokens": str(one.tokens),
        "measured": str(one.measured),
        "seconds": f"{one.seconds:.4f}",
        "setup_seconds": f"{one.setup_seconds:.4f}",
        "seconds_an_evaluation": f"{each:.9f}",
        "total": "" if one.total is None else str(one.total),
        "minutes": "" if whole is None else f"{whole / 60:.4f}",
        "extrapolated": "no" if one.total in (None, one.measured) else "yes",
        "peak_gpu_bytes": "" if one.peak_bytes is None else str(one.peak_bytes),
        "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


@mistakes_in_one_line()
def main() -> None:
    """Command line: overrides of the configuration. Exits with 2 for a mistake, 1 where a stage is lacking."""
    lacking = measure(sys.argv[1:])
    if lacking:
        print(f"{lacking} stages were not measured", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
