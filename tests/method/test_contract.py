"""What a newcomer writes to add a method: `_plan` alone. It runs through a whole cell like any other."""

from dataclasses import dataclass

import pytest
import torch
from hydra import compose
from omegaconf import OmegaConf
from wisparse.method.base import Method
from wisparse.method.plan import ProjectionRule, SparsityPlan
from wisparse.repro.cell.cell import finished_record, prepare
from wisparse.repro.cell.measure import measure
from wisparse.repro.configuration import composing

from ..conftest import ROOT


@dataclass(frozen=True)
class EveryOtherChannel(Method):
    """The k largest inputs of each token, all channels weighed alike."""

    name: str = "toy"

    def _plan(self, calibration, sparsity, cost):
        rules = {
            name: ProjectionRule(top_k=round(inner * (1.0 - sparsity)), weights=torch.ones(inner))
            for name, (_, inner) in calibration.shapes.items()
        }
        return SparsityPlan(calibration.shapes, rules)


@pytest.fixture
def cell(tmp_path):
    overrides = [
        *("method=dense", "sparsity=0.5", "protocol=all", "model.device=cpu", "logger=none"),
        *("calibration.sequences=2", "calibration.length=32"),
        *("suite=perplexity", f"suite.text={ROOT / 'repro' / 'run.py'}", "suite.length=32", "suite.windows=2"),
        *(f"output_dir={tmp_path / 'outputs'}", f"cache_dir={tmp_path / 'plans'}"),
    ]
    with composing():
        config = compose("config", overrides=overrides)
    config.method = OmegaConf.create({"_target_": f"{__name__}.EveryOtherChannel", "name": "toy"})
    return prepare(config)


@pytest.mark.slow
def test_plan_alone_makes_a_method_that_a_cell_can_measure(cell):
    record = measure(cell)
    assert record["realised"]["realised_sparsity"] == pytest.approx(0.5, abs=0.01)
    assert record["perplexity"] > 1.0
    provenance = record["plan"]["provenance"]
    assert (provenance["method"], provenance["sparsity"], provenance["evaluations"]) == ("toy", 0.5, 0)
    assert list(record["plan"]["seconds_by_stage"]) == list(provenance["stages"]) == ["calibration"]
    assert finished_record(cell) == record
