"""The embedded llama-mini, loaded once."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..conftest import ROOT

LLAMA_MINI = ROOT / "repro" / "embedded" / "models" / "llama-mini"


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(LLAMA_MINI)


@pytest.fixture(scope="session")
def model():
    return AutoModelForCausalLM.from_pretrained(LLAMA_MINI, dtype=torch.float32).eval()
