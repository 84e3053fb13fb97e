"""What is not a number is an error at the first batch that names what was asked; it never becomes a score."""

import copy

import pytest
import torch
from lm_eval.api.instance import Instance
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.kernels.errors import KernelError
from wisparse.method.plan import SparsityPlan
from wisparse.method.projections import projection_shapes
from wisparse.method.running.apply import applied
from wisparse.repro.evaluation.channel_suite import ChannelSuite
from wisparse.repro.evaluation.language_model import SparseLM
from wisparse.repro.evaluation.massive_suite import MassiveSuite
from wisparse.repro.evaluation.passes.scoring import NotFiniteError

from ...conftest import make_protocol

TEXTS = ["import os", "def add(a, b):", "class Node:"]
BROKEN = 1
"""Which of the texts holds the token whose embedding is not a number."""


@pytest.fixture(scope="module")
def broken(model, tokenizer):
    """A model that gives numbers for all texts but one, which holds a token that is nan where it is read."""
    others = {token for index, text in enumerate(TEXTS) if index != BROKEN for token in tokenizer.encode(text)}
    token = next(token for token in tokenizer.encode(TEXTS[BROKEN]) if token not in others)
    found = copy.deepcopy(model)
    found.config.tie_word_embeddings = False
    found.lm_head.weight = torch.nn.Parameter(found.lm_head.weight.detach().clone())
    with torch.no_grad():
        found.model.embed_tokens.weight[token] = float("nan")
    return found


class Ids:
    """Two sequences; the second holds the text that is broken."""

    batch_size = 1

    def input_ids(self, tokenizer):
        return torch.tensor([tokenizer.encode(TEXTS[0] * 3)[:4], (tokenizer.encode(TEXTS[BROKEN]) * 3)[:4]])


def instances(kind, arguments):
    return [
        Instance(kind, {}, argument, 0, metadata=("some_task", 10 + index, 1))
        for index, argument in enumerate(arguments)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_a_scored_item_that_is_no_number_is_named(broken, tokenizer, batch_tokens):
    language_model = SparseLM(broken, tokenizer, batch_tokens=batch_tokens)
    asked = instances("loglikelihood", [(text, answer) for text in TEXTS for answer in (" = 1", " in x")])
    with pytest.raises(NotFiniteError, match=r"^some_task, item 1[23]: .*in float32; the checkpoint"):
        language_model.loglikelihood(asked, disable_tqdm=True)
    assert language_model.loglikelihood(asked[:2], disable_tqdm=True)


def test_a_document_that_is_no_number_is_named(broken, tokenizer):
    documents = [tokenizer.encode(text + "\n") for text in TEXTS]
    with pytest.raises(NotFiniteError, match=r"^document 1: "):
        SparseLM(broken, tokenizer).document_nats(documents, disable_tqdm=True)


def test_an_answer_that_is_no_number_is_named(broken, tokenizer):
    asked = instances("generate_until", [(text, {"max_gen_toks": 2}) for text in TEXTS])
    with pytest.raises(NotFiniteError, match=r"^some_task, item 11: "):
        SparseLM(broken, tokenizer).generate_until(asked, disable_tqdm=True)


def test_float32_is_advised_where_it_is_not_used_yet(broken):
    half = copy.deepcopy(broken).to(torch.bfloat16)
    assert "try model.dtype=float32" in str(NotFiniteError(half, 0))
    assert "try" not in str(NotFiniteError(broken, 0))


@pytest.mark.slow
def test_suites_that_look_inside_refuse_it_too(broken, tokenizer):
    plan = SparsityPlan(projection_shapes(broken))
    with (
        applied(broken, plan, make_protocol("all")) as session,
        pytest.raises(NotFiniteError, match=r"^sequence 1, dense: "),
    ):
        MassiveSuite("massive", Ids()).run(broken, tokenizer, session)
    with pytest.raises(NotFiniteError, match=r"^inputs of q in block 4: "):
        ChannelSuite("channels", Ids(), None, ["q"]).run(broken, tokenizer, None)


def test_the_engine_says_so_of_prompts_and_of_later_tokens(llama):
    prompt = torch.tensor([[5, 6, 7]])
    with DecodeEngine(llama, capacity=16) as engine:
        first, *_ = engine.generate(prompt, new_tokens=6)[0, 3:].tolist()
    for token, what in ((7, "prompt"), (first, "generated")):
        bad = copy.deepcopy(llama)
        bad.model.embed_tokens.weight[token] = float("nan")
        with DecodeEngine(bad, capacity=16) as engine, pytest.raises(KernelError, match=f"{what}.* not finite"):
            engine.generate(prompt, new_tokens=6)
