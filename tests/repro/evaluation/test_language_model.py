"""SparseLM: lm-eval's numbers, with padding and prompts announced to the session."""

from types import SimpleNamespace

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from wisparse.method.errors import UserError
from wisparse.repro.evaluation.language_model import SparseLM
from wisparse.repro.models.tokenizer import load_tokenizer

from ...conftest import make_tiny_model
from ..conftest import LLAMA_MINI

BOS = 0
CONTEXTS = [
    "def add(a, b):",
    "import os\nimport sys\n\n\ndef main():",
    "class Node:\n    def __init__(self, value):",
    "x",
    "for index in range(10):\n    total = total +",
]
CONTINUATIONS = [
    "\n    return a + b\n",
    "\n    sys.exit(0)\n",
    "\n        self.value = value\n",
    " = 1",
    " index",
]


@pytest.fixture
def passes(model):
    """Every forward pass: its tokens, its mask and what the session knew at that moment."""
    session, seen = SimpleNamespace(prompt_lengths=None, rows_sharing=1), []

    def record(_module, _arguments, keywords):
        seen.append((keywords["input_ids"], keywords["attention_mask"], session.prompt_lengths))

    handle = model.model.register_forward_pre_hook(record, with_kwargs=True)
    yield session, seen
    handle.remove()


def instances(kind, arguments):
    return [Instance(kind, {}, argument, index) for index, argument in enumerate(arguments)]


def scoring(language_model):
    return language_model.loglikelihood(
        instances("loglikelihood", list(zip(CONTEXTS, CONTINUATIONS, strict=True))), disable_tqdm=True
    )


def test_scores_agree_with_lm_evals_own_model(model, tokenizer):
    language_model = SparseLM(model, tokenizer)
    requests = [
        (None, *language_model._encode_pair(context, continuation))
        for context, continuation in zip(CONTEXTS, CONTINUATIONS, strict=True)
    ]
    expected = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)._loglikelihood_tokens(
        requests, disable_tqdm=True
    )
    found = language_model._loglikelihood_tokens(requests, disable_tqdm=True)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert scoring(language_model) == found


@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_scores_do_not_depend_on_the_batch(model, tokenizer, batch_tokens):
    alone = [
        SparseLM(model, tokenizer)._loglikelihood_tokens([request], disable_tqdm=True)[0]
        for request in _requests(model, tokenizer)
    ]
    found = SparseLM(model, tokenizer, batch_tokens=batch_tokens)._loglikelihood_tokens(
        _requests(model, tokenizer), disable_tqdm=True
    )
    assert [score for score, _ in found] == pytest.approx([score for score, _ in alone], abs=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in alone]


def _requests(model, tokenizer):
    language_model = SparseLM(model, tokenizer)
    return [
        (None, *language_model._encode_pair(context, continuation))
        for context, continuation in zip(CONTEXTS, CONTINUATIONS, strict=True)
    ]


def test_scoring_announces_prompts_and_padding(model, tokenizer, passes):
    session, seen = passes
    scoring(SparseLM(model, tokenizer, session))
    (tokens, mask, prompt_lengths) = seen[0]
    assert len(seen) == 1
    found = {
        (tuple(row[: int(real.sum())].tolist()), int(prompt))
        for row, real, prompt in zip(tokens, mask, prompt_lengths, strict=True)
    }
    expected = {
        (tuple([*context, *continuation][:-1]), len(context))
        for _, context, continuation in _requests(model, tokenizer)
    }
    assert found == expected
    assert torch.equal(mask, mask.sort(dim=1, descending=True).values), "padding stands on the right"
    assert (tokens[:, 0] == BOS).all()
    assert session.prompt_lengths is None


def test_generation_announces_whole_prompts_with_padding_on_the_left(model, tokenizer, passes):
    session, seen = passes
    _generate(SparseLM(model, tokenizer, session))
    tokens, mask, prompt_lengths = seen[0]
    lengths = [1 + len(tokenizer.encode(context)) for context in CONTEXTS]
    assert sorted(prompt_lengths.tolist()) == sorted(lengths)
    assert torch.equal(mask.sum(dim=1), prompt_lengths)
    assert torch.equal(mask, mask.sort(dim=1).values), "padding stands on the left"
    first = mask.argmax(dim=1)
    assert (tokens[torch.arange(len(first)), first] == BOS).all()
    assert len(seen) > 1
    assert all(torch.equal(known, prompt_lengths) for _, _, known in seen), "decoding knows the prompts too"
    assert session.prompt_lengths is None


def _generate(language_model, contexts=CONTEXTS):
    settings = {"until": ["\n\n"], "do_sample": False, "max_gen_toks": 8}
    return language_model.generate_until(
        instances("generate_until", [(context, settings) for context in contexts]), disable_tqdm=True
    )


@pytest.mark.slow
def test_generation_agrees_with_lm_evals_own_model_and_any_batch(model, tokenizer):
    reference = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    expected = _generate(reference, [tokenizer.bos_token + context for context in CONTEXTS])
    assert any(text.strip() for text in expected)
    assert _generate(SparseLM(model, tokenizer)) == expected
    assert _generate(SparseLM(model, tokenizer, batch_size=2)) == expected


def test_no_pass_takes_cudnns_attention(model, tokenizer):
    """It decodes the same prompts differently every time; who calls finds it allowed as before."""
    allowed = []
    handle = model.model.register_forward_pre_hook(
        lambda *_: allowed.append(torch.backends.cuda.cudnn_sdp_enabled())
    )
    language_model, before = SparseLM(model, tokenizer), torch.backends.cuda.cudnn_sdp_enabled()
    _generate(language_model)
    scoring(language_model)
    handle.remove()
    assert len(allowed) > 2
    assert not any(allowed)
    assert before
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_document_likelihood_is_the_models_own_loss(model, tokenizer):
    documents = [tokenizer.encode(text) for text in (CONTEXTS[1], CONTEXTS[2] * 3)]
    found = SparseLM(model, tokenizer).document_nats(documents, disable_tqdm=True)
    for document, nats in zip(documents, found, strict=True):
        tokens = torch.tensor([[BOS, *document]])
        with torch.inference_mode():
            loss = model(tokens, labels=tokens).loss
        assert nats == pytest.approx(float(loss) * len(document), rel=1e-5)


def test_long_documents_are_cut_into_windows_that_count_as_prompt(model, tokenizer, passes):
    session, seen = passes
    document = tokenizer.encode(CONTEXTS[1] * 5)[:50]
    language_model = SparseLM(model, tokenizer, session, max_length=20)
    found = language_model.document_nats([document], disable_tqdm=True)[0]
    assert [tokens.shape[0] for tokens, _, _ in seen] == [3]
    assert sorted(seen[0][2].tolist()) == [10, 20, 20]
    assert torch.equal(seen[0][1].sum(dim=1), seen[0][2])
    assert (seen[0][0][:, 0] == BOS).all()
    parts = language_model.document_nats([document[:20], document[20:40], document[40:]], disable_tqdm=True)
    assert found == pytest.approx(sum(parts), rel=1e-6)


def test_rolling_likelihood_is_that_of_the_document(model, tokenizer):
    language_model = SparseLM(model, tokenizer)
    rolling = language_model.loglikelihood_rolling(
        instances("loglikelihood_rolling", [(CONTEXTS[1],), (CONTEXTS[2],)]), disable_tqdm=True
    )
    documents = [tokenizer.encode(CONTEXTS[1]), tokenizer.encode(CONTEXTS[2])]
    assert rolling == [-nats for nats in language_model.document_nats(documents, disable_tqdm=True)]


def test_a_long_context_loses_its_left_but_not_bos(model, tokenizer, passes):
    session, seen = passes
    language_model = SparseLM(model, tokenizer, session, max_length=16)
    context = [BOS, *range(100, 140)]
    language_model._loglikelihood_tokens([(None, context, [7, 8, 9])], disable_tqdm=True)
    assert seen[0][0].tolist() == [[BOS, *range(127, 140), 7, 8]]
    assert seen[0][2].tolist() == [14]


def test_rows_that_stand_for_a_batch_share_a_pass(model, tokenizer, passes):
    session, seen = passes
    session.rows_sharing = 3
    language_model = SparseLM(
        model, tokenizer, session, batch_tokens=40
    )  # four rows of ten tokens, or one of 25
    language_model.document_nats([list(range(10, 20))] * 5 + [list(range(100, 125))] * 4, disable_tqdm=True)
    assert [len(tokens) for tokens, _, _ in seen] == [3, 3, 3]
    assert [tokens.shape[1] for tokens, _, _ in seen] == [25, 25, 10]


def test_fewer_rows_than_stand_for_a_batch_are_refused(model, tokenizer, passes):
    session, seen = passes
    session.rows_sharing = 3
    language_model = SparseLM(model, tokenizer, session)
    with pytest.raises(UserError, match="rows_sharing=3 rows stand for a batch, and the suite has 2"):
        language_model.document_nats([[1, 2], [3, 4]], disable_tqdm=True)
    assert not seen
    assert language_model.document_nats([], disable_tqdm=True) == []


def test_the_session_forgets_prompts_when_a_pass_fails(model, tokenizer):
    session = SimpleNamespace(prompt_lengths=None, rows_sharing=1)
    language_model = SparseLM(model, tokenizer, session)
    with pytest.raises(IndexError):
        language_model._loglikelihood_tokens([(None, [BOS, 10**6], [1])], disable_tqdm=True)
    assert session.prompt_lengths is None


def test_text_merged_across_the_seam_is_not_lost(model, tokenizer):
    context, continuation = SparseLM(model, tokenizer)._encode_pair("print(x)", "\n    return x")
    assert tokenizer.decode(context + continuation, skip_special_tokens=True) == "print(x)\n    return x"
    assert tokenizer.decode(context, skip_special_tokens=True) == "print(x"


def test_a_continuation_without_tokens_is_an_error(model, tokenizer):
    with pytest.raises(UserError, match="no token of its own"):
        SparseLM(model, tokenizer)._loglikelihood_tokens([(None, [BOS], [])], disable_tqdm=True)
    with pytest.raises(UserError, match="9 tokens exceeds 8"):
        SparseLM(model, tokenizer, max_length=8)._loglikelihood_tokens(
            [(None, [BOS], [1] * 9)], disable_tqdm=True
        )


def test_one_token_answers_to_one_question_share_a_pass(model, tokenizer, passes):
    session, seen = passes
    question = "def add(a, b):\n    return a"
    answers = ["+", " +", " -", " *", " + b\n", "."]
    pairs = [(question, answer) for answer in answers] + [("x", " ="), ("x", " +")]
    language_model = SparseLM(model, tokenizer, session)
    requests = [(None, *language_model._encode_pair(*pair)) for pair in pairs]
    short = [(tuple(context), len(answer)) for _, context, answer in requests if len(answer) == 1]
    found = language_model._loglikelihood_tokens(requests, disable_tqdm=True)
    rows = sum(tokens.shape[0] for tokens, _, _ in seen)
    assert rows == len(requests) - len(short) + len(set(short)) < len(requests) - 2
    alone = [language_model._loglikelihood_tokens([one], disable_tqdm=True)[0] for one in requests]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in alone], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in alone]


def test_evaluation_ties_no_weights_of_the_model_that_it_is_given(tokenizer):
    """lm-eval ties lm_head to the embedding where config.json says so, whatever the model is."""
    model = make_tiny_model("llama")
    model.config.tie_word_embeddings = True
    head = model.lm_head.weight.clone()
    SparseLM(model, tokenizer)
    assert torch.equal(model.lm_head.weight, head)
    assert "tie_weights" not in vars(model)


def test_evaluation_gives_the_models_own_tokenizer_no_padding_token(model):
    tokenizer = load_tokenizer(LLAMA_MINI)
    tokenizer.pad_token = None
    language_model = SparseLM(model, tokenizer)
    assert tokenizer.pad_token is None
    assert language_model.tokenizer.pad_token_id == 0
    assert SparseLM(model, tokenizer).tokenizer is language_model.tokenizer
