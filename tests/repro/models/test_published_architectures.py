"""conf/model against the published checkpoints' config.json, value by value, and their parameter counts."""

from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM
from wisparse.repro.models.architecture import architecture

PUBLISHED = yaml.safe_load(Path(__file__).with_name("published_architectures.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_architecture_is_that_of_the_published_checkpoint(model):
    expected, described = dict(PUBLISHED[model]), architecture(model)
    rope = {"rope_type": "default", "rope_theta": expected.pop("rope_theta")} | expected.pop("rope", {})
    expected.pop("parameters")
    assert described["rope_parameters"] == rope
    assert {name: described.get(name) for name in expected} == expected


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_model_has_as_many_parameters_as_are_published(model):
    settings = dict(architecture(model))
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
    assert sum(parameter.numel() for parameter in made.parameters()) == PUBLISHED[model]["parameters"]
