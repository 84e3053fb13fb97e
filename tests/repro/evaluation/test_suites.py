"""The suites: from lm-eval's task configurations and text files to one Evaluation."""

import json
import math
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from wisparse.method.errors import UserError
from wisparse.repro.embedded.items import EMBEDDED
from wisparse.repro.evaluation.embedded_suite import EmbeddedSuite
from wisparse.repro.evaluation.language_model import SparseLM
from wisparse.repro.evaluation.suites import (
    DocumentLikelihood,
    Evaluation,
    PerplexitySuite,
    TaskResult,
    text_windows,
)

CONFIGURATIONS = Path(__file__).parents[3] / "conf" / "suite"


@pytest.fixture(scope="module")
def evaluation(model, tokenizer):
    return EmbeddedSuite(limit=6, documents=2).run(model, tokenizer, None)


@pytest.mark.slow
def test_embedded_suite_measures_every_task_and_the_documents(evaluation):
    assert tuple(evaluation.tasks) == EMBEDDED.tasks
    for name, result in evaluation.tasks.items():
        assert result.n == len(evaluation.items[name]) == 6
        assert set(evaluation.items[name]) <= {0.0, 1.0}
        assert result.value == pytest.approx(sum(evaluation.items[name]) / 6)
    assert evaluation.n_documents == 2
    assert 4 < evaluation.perplexity < 30
    assert 0.5 < evaluation.bits_per_byte < 2


@pytest.mark.slow
def test_choice_outcomes_are_those_of_the_normalised_likelihood(evaluation, model, tokenizer):
    for item, outcome in zip(EMBEDDED.load("next_line")[:6], evaluation.items["next_line"], strict=True):
        scores = []
        for choice in item["choices"]:
            context = [0, *tokenizer.encode(item["context"])]
            whole = [*context, *tokenizer.encode(choice)]
            with torch.inference_mode():
                likelihoods = model(torch.tensor([whole])).logits[0].log_softmax(dim=-1)
            positions = range(len(context), len(whole))
            total = sum(float(likelihoods[position - 1, whole[position]]) for position in positions)
            scores.append(total / len(choice))
        assert outcome == float(max(range(4), key=scores.__getitem__) == item["answer"])


@pytest.mark.slow
def test_tokens_of_the_context_do_not_depend_on_the_answer(model, tokenizer):
    language_model = SparseLM(model, tokenizer)
    for task in EMBEDDED.tasks:
        for item in EMBEDDED.load(task)[:200]:
            answers = item.get("choices", [item.get("target")])
            pairs = [language_model._encode_pair(item["context"], answer) for answer in answers]
            assert len({tuple(context) for context, _ in pairs}) == 1
            for answer, (context, continuation) in zip(answers, pairs, strict=True):
                assert (
                    tokenizer.decode(context + continuation, skip_special_tokens=True)
                    == item["context"] + answer
                )


@pytest.mark.slow
def test_evaluation_is_json_able_and_repeats_to_the_last_digit(evaluation, model, tokenizer):
    summary = json.loads(json.dumps(evaluation.to_dict()))
    assert summary["average"] == pytest.approx(
        100 * sum(result["value"] for result in summary["tasks"].values()) / len(EMBEDDED.tasks)
    )
    assert "items" not in summary
    again = EmbeddedSuite(limit=6, documents=2).run(model, tokenizer, None)
    assert json.dumps(again.to_dict()) == json.dumps(evaluation.to_dict())
    assert json.dumps(again.items_to_dict()) == json.dumps(evaluation.items_to_dict())


def test_nothing_is_printed_to_stdout(model, tokenizer, capsys):
    EmbeddedSuite(tasks=["complete_line"], limit=2, documents=0).run(model, tokenizer, None)
    assert capsys.readouterr().out == ""


def test_figures_of_an_evaluation():
    evaluation = Evaluation(
        tasks={"a": TaskResult("acc", 0.5, 0.1, 10, 0.25), "b": TaskResult("acc", 0.7, 0.1, 10, 0.5)},
        documents=[DocumentLikelihood(10.0, 4, 16), DocumentLikelihood(2.0, 2, 8)],
    )
    assert evaluation.average == pytest.approx(60)
    assert evaluation.perplexity == pytest.approx(math.exp(2))
    assert evaluation.bits_per_byte == pytest.approx(0.5 / math.log(2))
    assert (evaluation.n_documents, evaluation.n_tokens) == (2, 6)
    assert Evaluation().to_dict() == {
        "tasks": {}, "average": None, "perplexity": None, "bits_per_byte": None, "n_documents": 0, "n_tokens": 0
    }  # fmt: skip


def test_perplexity_suite_scores_full_windows(model, tokenizer, tmp_path):
    text = "def main():\n    return 'ä → é'\n" * 30
    path = tmp_path / "text.py"
    path.write_text(text, encoding="utf-8")
    evaluation = PerplexitySuite(text=str(path), length=64).run(model, tokenizer, None)
    tokens = tokenizer.encode(text)
    assert evaluation.n_documents == len(tokens) // 64
    assert evaluation.n_tokens == 64 * evaluation.n_documents
    assert evaluation.average is None
    window = torch.tensor([[0, *tokens[:64]]])
    with torch.inference_mode():
        loss = float(model(window, labels=window).loss)
    assert evaluation.documents[0].nats == pytest.approx(64 * loss, rel=1e-5)
    assert PerplexitySuite(str(path), 64, windows=2).run(model, tokenizer, None).n_documents == 2


def test_windows_cover_the_bytes_of_the_text(tokenizer):
    text = "名前 = 'ä → é'\n" * 40
    tokens = tokenizer.encode(text)
    windows, sizes = text_windows(tokenizer, text, 1)
    assert [token for window in windows for token in window] == tokens
    assert sum(sizes) == len(text.encode())


def test_missing_short_and_binary_texts_are_user_errors(model, tokenizer, tmp_path):
    short, binary = tmp_path / "short.txt", tmp_path / "binary.bin"
    short.write_text("too short", encoding="utf-8")
    binary.write_bytes(b"\xff\xfe\x00" * 100)
    zeros = tmp_path / "zeros.txt"
    zeros.write_bytes(b"words and \0 " * 100)
    for path, message in (
        (short, "shorter than one window"),
        (binary, "cannot be read as UTF-8 text"),
        ("/dev/zero", "is a device and no text"),
        (zeros, "no text: it holds NUL characters"),
        (tmp_path / "absent.txt", "cannot be read"),
        (tmp_path, "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            PerplexitySuite(text=str(path)).run(model, tokenizer, None)


@pytest.mark.parametrize("length", [0, 1, 5000])
def test_impossible_window_lengths_are_user_errors(model, tokenizer, tmp_path, length):
    path = tmp_path / "text.txt"
    path.write_text("word " * 100, encoding="utf-8")
    with pytest.raises(UserError, match="from 2 to 2048 tokens"):
        PerplexitySuite(text=str(path), length=length).run(model, tokenizer, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"tasks": ["mmlu"]}, "no task mmlu"), ({"tasks": [], "documents": 0}, "without a task measures nothing")],
)
def test_impossible_settings_are_user_errors(settings, message):
    with pytest.raises(UserError, match=message):
        EmbeddedSuite(**settings)


def test_configurations_build_the_suites():
    suite = instantiate(OmegaConf.load(CONFIGURATIONS / "embedded.yaml"))
    assert isinstance(suite, EmbeddedSuite)
    assert tuple(suite.tasks) == EMBEDDED.tasks
    assert suite.limit is None
    config = OmegaConf.load(CONFIGURATIONS / "perplexity.yaml")
    config.text = __file__
    assert instantiate(config) == PerplexitySuite(text=__file__)
