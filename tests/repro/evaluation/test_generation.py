"""Answers: greedy whatever the checkpoint's defaults are, ended by every end token, joined to their prompts."""

import copy
import json
from itertools import pairwise

import pytest
import torch
from lm_eval.api.instance import Instance
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from wisparse.method.errors import UserError
from wisparse.method.tokens import continuation_text, stop_tokens
from wisparse.repro.evaluation.code_execution import humaneval_problem
from wisparse.repro.evaluation.language_model import SparseLM

PROMPTS = [
    "def add(a, b):",
    "import os\nimport sys\n\n\ndef main():",
    "class Node:\n    def __init__(self, value):",
    "for index in range(10):\n    total = total +",
]


def answers(language_model, prompts=PROMPTS, **settings):
    settings = {"until": [], "do_sample": False, "max_gen_toks": 12} | settings
    asked = [
        Instance("generate_until", {}, (prompt, settings), 0, metadata=("some_task", index, 1))
        for index, prompt in enumerate(prompts)
    ]
    return language_model.generate_until(asked, disable_tqdm=True)


@pytest.fixture
def own(model):
    """A copy of the model with configurations of its own on the same weights."""
    found = copy.copy(model)
    found.config = copy.deepcopy(model.config)
    found.generation_config = copy.deepcopy(model.generation_config)
    return found


def continued(model, tokenizer, prompt, new_tokens):
    """Tokens that greedy decoding adds, by transformers' own means and an untouched configuration."""
    ids = torch.tensor([[0, *tokenizer.encode(prompt)]])
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return made[0, ids.shape[1] :].tolist()


@pytest.mark.slow
def test_no_default_of_the_checkpoint_acts(own, tokenizer):
    expected = tokenizer.decode(continued(own, tokenizer, PROMPTS[0], 6))
    for name, value in {
        "repetition_penalty": 5.0, "max_new_tokens": 2, "num_beams": 3, "do_sample": True, "temperature": 9.0,
        "min_new_tokens": 12, "no_repeat_ngram_size": 1, "stop_strings": ["e"],
    }.items():  # fmt: skip
        setattr(own.generation_config, name, value)
    own.config.temperature = 0.7
    assert answers(SparseLM(own, tokenizer), PROMPTS[:1], max_gen_toks=6) == [expected]


@pytest.mark.slow
@pytest.mark.parametrize("owner", ["tokenizer", "config", "generation_config"])
def test_an_answer_ends_at_every_end_token_whatever_batch_it_is_in(own, tokenizer, owner):
    free = continued(own, tokenizer, PROMPTS[0], 4)
    end = free[2]
    assert end not in free[:2]
    tokenizer = copy.deepcopy(tokenizer)
    if owner == "tokenizer":
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    else:
        getattr(own, owner).eos_token_id = [0, end]
    assert end in stop_tokens(own, tokenizer)
    alone, together = (answers(SparseLM(own, tokenizer, batch_size=batch), max_gen_toks=6) for batch in (1, 4))
    assert alone[0] == tokenizer.decode(free[:2])
    assert together == alone
    assert any(len(tokenizer.encode(answer)) > 2 for answer in together[1:]), "others went on"


def test_text_is_cut_before_the_first_stop_string(model, tokenizer):
    (free,) = answers(SparseLM(model, tokenizer), PROMPTS[:1], max_gen_toks=6)
    later, first = free[8:11], free[5:7]
    assert first not in free[:6]
    assert answers(SparseLM(model, tokenizer), PROMPTS[:1], max_gen_toks=6, until=[later, first]) == [free[:5]]


@pytest.mark.slow
def test_passes_behind_the_end_of_an_answer_are_not_counted(model, tokenizer):
    """What a row computes while others go on is padding, so that counts do not depend on the batch."""
    seen = []
    handle = model.model.register_forward_pre_hook(
        lambda _, __, keywords: seen.append(keywords["attention_mask"][:, -keywords["input_ids"].shape[1] :]),
        with_kwargs=True,
    )
    counts = []
    for batch in (1, 2):
        seen.clear()
        found = answers(
            SparseLM(model, tokenizer, batch_size=batch), PROMPTS[:2], until=["noq"], max_gen_toks=6
        )
        counts.append(sum(int(mask.sum()) for mask in seen))
    handle.remove()
    assert len(set(map(len, map(tokenizer.encode, found)))) > 1, "one answer ends before the other"
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("asked", "message"),
    [({"do_sample": True, "temperature": 0.2}, "sampling"), ({"num_beams": 3}, "num_beams"),
     ({"max_gen_toks": 1024}, "no room")],
)  # fmt: skip
def test_what_is_not_greedy_or_does_not_fit_is_refused(model, tokenizer, asked, message):
    asked = {"do_sample": False} | asked
    with pytest.raises(UserError, match=message):
        answers(SparseLM(model, tokenizer), PROMPTS[:1], **asked)


@pytest.fixture(scope="module")
def metaspace():
    """A SentencePiece-like tokenizer, whose decoder takes the first space of a text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    text = ["    y", "    return x", " count", " y", "):", "def f(x):\n", "total ="]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special + byte_tokens)
    tokenizer.train_from_iterator(text, trainer)
    description = json.loads(tokenizer.to_str())
    description["added_tokens"] = description["added_tokens"][: len(special)]  # bytes are ordinary tokens
    tokenizer = Tokenizer.from_str(json.dumps(description))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def saying(tokenizer, prompt, answer):
    """A Llama whose next token follows from the last alone, and is that of the answer; then eos."""
    before, whole = (tokenizer.encode(text, add_special_tokens=False) for text in (prompt, prompt + answer))
    said = [before[-1], *whole[len(before) :], tokenizer.eos_token_id]
    assert whole[: len(before)] == before
    assert len(set(said)) == len(said)
    size = len(tokenizer)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=size, hidden_size=size + size % 2, intermediate_size=8, num_hidden_layers=1,
                    num_attention_heads=1, max_position_embeddings=64, eos_token_id=None, bos_token_id=None)
    ).eval()  # fmt: skip
    with torch.no_grad():
        for weight in (
            model.model.layers[0].self_attn.o_proj.weight,
            model.model.layers[0].mlp.down_proj.weight,
        ):
            weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size, size + size % 2))
        model.lm_head.weight.zero_()
        for token, following in pairwise(said):
            model.lm_head.weight[following, token] = 1.0
    return model


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [("total =", " count"), ("def f(x):\n", "    y"), ("def f(x", "):"), ("def f(x):\n", " y")],
)
def test_an_answer_keeps_the_space_it_begins_with(metaspace, prompt, answer):
    model = saying(metaspace, prompt, answer)
    assert answers(SparseLM(model, metaspace), [prompt]) == [answer]


def test_a_function_and_its_body_are_a_program(metaspace):
    prompt, body = "def f(x):\n", "    return x"
    found = answers(SparseLM(saying(metaspace, prompt, body), metaspace), [prompt])[0]
    problem = {"prompt": prompt, "test": "def check(f):\n    assert f(3) == 3", "entry_point": "f"}
    made, namespace = humaneval_problem(problem, found, fenced=False), {}
    exec(made.prompt + made.answer + made.test + "\ncheck(f)", namespace)


def test_a_continuation_completes_a_character(metaspace):
    begin, end = metaspace.convert_tokens_to_ids(["<0xC3>", "<0xA9>"])
    prompt = metaspace.encode("x", add_special_tokens=False)
    assert continuation_text(metaspace, [*prompt, begin], [end]) == "é"


def test_spaces_are_not_tidied(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.clean_up_tokenization_spaces = True
    ids = tokenizer.encode("x = [1 , 2 , 3 ]")
    assert continuation_text(tokenizer, ids[:2], ids[2:]) == " [1 , 2 , 3 ]"
