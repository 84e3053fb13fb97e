"""Small real models for all tests: every family with random weights."""

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a hub
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell lets its background jobs ignore Ctrl-C: tests of it have it back, and so have their children.
    signal.signal(signal.SIGINT, signal.default_int_handler)

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Without a GPU the Triton kernels are interpreted; triton must learn it before transformers imports it.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from hydra import compose
from hydra.utils import instantiate
from omegaconf import DictConfig
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from wisparse.kernels.weight_samples import weight_samples
from wisparse.method.calibration import Calibration
from wisparse.method.stored.routers import save_routers
from wisparse.repro.configuration import composing

ROOT = Path(__file__).parent.parent
CONFIGURATION = ROOT / "conf"
METHODS = sorted(path.stem for path in (CONFIGURATION / "method").glob("*.yaml"))
FAMILIES = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
OWN_SETTINGS = {"mistral": {"sliding_window": 16}, "qwen3": {"head_dim": 16, "intermediate_size": 112}}
"""What a family's configuration has besides; Qwen3's heads together are wider than its hidden states, and its
MLP keeps its share of a block."""

# A search budget that runs every stage in a second.
TINY_SEARCH = [
    "search.generations=3",
    "search.offspring=4",
    "search.divergence_tokens=64",
    "search.block_tokens=64",
    "search.greedy_step=1.0",
    "search.wina_greedy_step=1.0",
    "search.alpha_step=0.5",
    "search.share_population=3",
    "search.share_generations=1",
]
BASIS = ["method.inner.basis.steps=2", "method.inner.basis.tokens_a_step=16"]
TINY_METHOD = {
    "equal_loss_folded": ["method.own_sequences=2", *BASIS],
    "equal_loss_folded_given": ["method.basis.steps=2", "method.basis.tokens_a_step=16"],
    "equal_loss_folded_long": ["method.basis.steps=2", "method.basis.tokens_a_step=16"],
    "equal_loss_own_text": ["method.own_sequences=2"],
    "equal_loss_trained": [
        *(
            "method.own_sequences=2",
            "method.inner.inner.training.steps=2",
            "method.inner.inner.training.sequences=2",
        ),
        *BASIS,
    ],
    "equal_loss_trained_given": [
        "method.basis.steps=2",
        "method.basis.tokens_a_step=16",
        "method.inner.training.steps=2",
        "method.inner.training.sequences=2",
    ],
    "equal_loss_trained_long": [
        "method.basis.steps=2",
        "method.basis.tokens_a_step=16",
        "method.inner.training.steps=2",
        "method.inner.training.sequences=2",
    ],
    "spon": ["method.own_sequences=2", "method.inner.training.steps=2", "method.inner.training.sequences=2"],
    "spon_long": ["method.training.steps=2", "method.training.sequences=2"],
    "teal_folded": ["method.basis.steps=2", "method.basis.tokens_a_step=16"],
}
"""Settings of methods whose steps no search budget bounds."""


def make_tiny_model(
    family: str,
    blocks: int = 2,
    seed: int = 0,
    heads: tuple[int, int] = (4, 2),
    sizes: tuple[int, int] = (48, 80),
    activation: str = "silu",
):
    """A random model of a family whose activations can be sparsified.

    heads: of q, of k and v; sizes: hidden and intermediate, where the family's settings leave them open;
    activation: of gate.
    """
    configuration = FAMILIES[family](
        hidden_size=sizes[0],
        num_hidden_layers=blocks,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        vocab_size=128,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        initializer_range=0.2,
        hidden_act=activation,
        **{"intermediate_size": sizes[1]} | OWN_SETTINGS.get(family, {}),
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(configuration, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("_proj.weight"):
                parameter.mul_(torch.empty(parameter.shape[1]).log_normal_(0.0, 0.4))
    return model.requires_grad_(False)


def with_routers(model, folder: Path, size: int = 8):
    """The model as if it came from a folder with random routers for groups of so many neurons."""
    generator = torch.Generator().manual_seed(0)
    groups = [block.mlp.gate_proj.out_features // size for block in model.model.layers]
    drawn = (torch.randn(count, model.config.hidden_size, generator=generator) for count in groups)
    save_routers(folder, dict(enumerate(drawn)), weight_samples(model))
    model.name_or_path = str(folder)
    return model


def make_calibration(model, sequences: int = 8, length: int = 32, seed: int = 1) -> Calibration:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.config.vocab_size, (sequences, length), generator=generator)
    return Calibration(model, ids)


@cache
def composed(*overrides: str, config: str | None = "config") -> DictConfig:
    """A configuration of conf/, composed once: Hydra takes a tenth of a second, and many tests ask for one.

    `instantiate` leaves it as it is; nobody else may change it.
    """
    with composing():
        return compose(config, overrides=list(overrides))


def last_of_each(overrides: Iterable[str]) -> list[str]:
    """Overrides of which every setting is given once: what comes later counts."""
    return list({override.partition("=")[0]: override for override in overrides}.values())


def make_method(name: str, *overrides: str):
    """A method as its configuration describes it, under a tiny search budget."""
    given = last_of_each([f"method={name}", *TINY_SEARCH, *TINY_METHOD.get(name, ()), *overrides])
    return instantiate(composed(*given).method)


def make_protocol(name: str):
    return instantiate(composed(f"+protocol={name}", config=None).protocol)


CORES = len(os.sched_getaffinity(0))
THREADS = max(1, min(2, CORES // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))
"""Threads of torch in a test. Two where there is room, so that sums are shared among threads as in use. Where
there is none, threads wait for each other in busy loops, which took more than half of all time."""


@pytest.fixture(autouse=True)
def _few_threads():
    torch.set_num_threads(THREADS)


@pytest.fixture(params=sorted(FAMILIES))
def tiny_model(request):
    return make_tiny_model(request.param)


@pytest.fixture
def llama():
    return make_tiny_model("llama")
