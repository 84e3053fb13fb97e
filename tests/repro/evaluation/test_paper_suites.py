"""The papers' tasks: lm-eval's prompts, data from a mirror, outcomes by item."""

from __future__ import annotations

import copy
import json
import random

import pytest
import torch
from hydra import compose
from hydra.utils import instantiate
from wisparse.method.errors import UserError
from wisparse.repro.configuration import composing
from wisparse.repro.evaluation.harness_suite import (
    HarnessSuite,
    WikitextApartSuite,
    WikitextSuite,
    choose_items,
)
from wisparse.repro.evaluation.harness_tasks import harness_tasks, load_tasks
from wisparse.repro.text.calibration_mix import TextSource
from wisparse.repro.text.data_sets import load_split

from ..benchmark_data import MIRROR, isolated, with_real_data, write_made_up_mirror, write_split

PAPER = ("siqa", "gsm8k", "wic", "humaneval", "mmlu", "commonsense_qa")
ZEROSHOT = (
    *("piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande"),
    *("openbookqa", "boolq", "siqa", "sciq", "lambada"),
)
CHAT = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    root = tmp_path_factory.mktemp("mirror")
    write_made_up_mirror(root)
    return str(root)


def configured(choice: str, *overrides: str):
    with composing():
        return instantiate(compose("config", overrides=[f"suite={choice}", *overrides]).suite)


def suite(root: str | None, tasks: list[str], **settings: object) -> HarnessSuite:
    shots = dict.fromkeys(tasks, 0) | settings.pop("shots", {})
    return HarnessSuite("test", tasks, shots, root, **settings)


def likelihood(model, tokenizer, context: str, continuation: str) -> float:
    """Likelihood by hand: bos, context, continuation, one forward pass."""
    prompt = [0, *tokenizer.encode(context)]
    whole = [0, *tokenizer.encode(context + continuation)]
    with torch.inference_mode():
        scores = model(torch.tensor([whole])).logits[0].log_softmax(dim=-1)
    return sum(float(scores[place - 1, whole[place]]) for place in range(len(prompt), len(whole)))


@with_real_data
@pytest.mark.parametrize("task", PAPER)
def test_every_task_of_the_paper_runs_on_real_items(task, model, tokenizer):
    limits = ["suite.limit=3", "suite.longest_answer=8", "suite.execute_code=true"]
    evaluation = configured("paper", f"data.root={MIRROR}", f"suite.tasks=[{task}]", *limits).run(
        model, tokenizer, None
    )
    result = evaluation.tasks[task]
    assert result.n == len(evaluation.items[task]) == 3
    assert set(evaluation.items[task]) <= {0.0, 1.0}
    assert result.value == pytest.approx(sum(evaluation.items[task]) / 3)
    assert result.settings["shots"] == (5 if task == "gsm8k" else 0)
    assert evaluation.average == pytest.approx(100 * result.value)


@with_real_data
def test_answers_of_one_letter_are_judged_as_by_hand(model, tokenizer):
    found = suite(str(MIRROR), ["commonsense_qa"], limit=4).run(model, tokenizer, None)
    rows = load_split(harness_tasks()["commonsense_qa"].source, "validation", str(MIRROR))
    parts = {"commonsense_qa": type("Task", (), {"eval_docs": rows})}
    (indices,) = choose_items("commonsense_qa", parts, 4).values()
    for index, outcome in zip(indices, found.items["commonsense_qa"], strict=True):
        row = rows[index]
        choices = "\n".join(
            f"{letter}. {text}" for letter, text in zip("ABCDE", row["choices"]["text"], strict=True)
        )
        prompt = f"Question: {row['question'].strip()}\n{choices}\nAnswer:"
        scores = {letter: likelihood(model, tokenizer, prompt, f" {letter}") for letter in "ABCDE"}
        assert outcome == float(max(scores, key=scores.get) == row["answerKey"])


@with_real_data
def test_mmlu_is_all_subjects_in_one_with_their_own_headings():
    loaded = load_tasks(
        [harness_tasks()["mmlu"]], {"mmlu": 5}, str(MIRROR), chat=False, seed=0, longest_answer=None
    )["mmlu"]
    assert len(loaded) == 57
    assert sum(len(task.eval_docs) for task in loaded.values()) == 14_042
    anatomy = loaded["mmlu_anatomy"]
    prompt = anatomy.fewshot_context(anatomy.eval_docs[0], num_fewshot=5)
    assert prompt.startswith("The following are multiple choice questions (with answers) about anatomy.")
    assert prompt.count("\nAnswer:") == 6
    assert {row["subject"] for row in anatomy.eval_docs} == {"anatomy"}


def test_a_sample_of_a_task_of_many_parts_is_spread_over_them():
    parts = {f"part{number}": type("Task", (), {"eval_docs": range(50)}) for number in range(20)}
    chosen = choose_items("many", parts, 40)
    assert sum(len(indices) for indices in chosen.values()) == 40
    assert len(chosen) > 10
    assert chosen == choose_items("many", parts, 40)
    assert chosen != choose_items("others", parts, 40)
    assert choose_items("many", parts, None) == {part: list(range(50)) for part in parts}


@pytest.mark.slow
def test_made_up_items_are_judged_as_by_hand(model, tokenizer, mirror):
    found = suite(mirror, ["siqa", "wic"]).run(model, tokenizer, None)
    rows = load_split(harness_tasks()["siqa"].source, "validation", mirror)
    for row, outcome in zip(rows, found.items["siqa"], strict=True):
        answers = [row["answerA"], row["answerB"], row["answerC"]]
        prompt = f"Q: {row['context']} {row['question']}\nA:"
        scores = [likelihood(model, tokenizer, prompt, f" {answer}") for answer in answers]
        assert outcome == float(scores.index(max(scores)) == int(row["label"]) - 1)
    assert found.tasks["wic"].n == 3
    assert found.items["wic"] in ([0.0] * 3, [1.0] * 3)


def test_shots_are_the_same_every_time_and_the_seed_chooses_them(mirror):
    def prompts(seed: int) -> list[str]:
        (task,) = load_tasks(
            [harness_tasks()["gsm8k"]], {"gsm8k": 2}, mirror, chat=False, seed=seed, longest_answer=None
        )["gsm8k"].values()
        return [task.fewshot_context(row, num_fewshot=2) for row in task.eval_docs]

    assert prompts(0) == prompts(0) != prompts(1)
    assert all(prompt.count("Question:") == 3 and prompt.endswith("Answer:") for prompt in prompts(0))


@pytest.mark.slow
def test_the_same_model_gives_the_same_digits(model, tokenizer, mirror):
    asked = suite(mirror, ["gsm8k", "siqa"], shots={"gsm8k": 2}, limit=3, longest_answer=4)
    first, again = (asked.run(model, tokenizer, None) for _ in range(2))
    assert json.dumps(first.to_dict()) == json.dumps(again.to_dict())
    assert json.dumps(first.items_to_dict()) == json.dumps(again.items_to_dict())
    assert len(first.items["gsm8k"]) == 3


@pytest.fixture
def chat_tokenizer(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = CHAT
    return tokenizer


def test_a_chat_template_is_used_where_there_is_one_and_bos_stands_once(model, chat_tokenizer, mirror):
    texts = []

    def note(_module, _arguments, keywords):
        cache = keywords.get("past_key_values")
        if cache is None or cache.get_seq_length() == 0:
            tokens = keywords["input_ids"]
            mask = keywords.get("attention_mask")  # generate() leaves it out where nothing is padded
            rows = zip(tokens, torch.ones_like(tokens) if mask is None else mask, strict=True)
            texts.extend(chat_tokenizer.decode(row[real.bool()]) for row, real in rows)

    handle = model.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        asked = suite(mirror, ["siqa", "gsm8k"], shots={"gsm8k": 2}, limit=2, longest_answer=2)
        found = asked.run(model, chat_tokenizer, None)
    finally:
        handle.remove()
    assert all(result.settings["chat_template"] for result in found.tasks.values())
    bos = chat_tokenizer.bos_token
    assert all(text.startswith(f"{bos}[user]") and text.count(bos) == 1 for text in texts)
    assert any(text.count("[user]") == 3 for text in texts), "shots are turns"


def test_a_chat_template_that_is_not_there_cannot_be_asked_for(model, tokenizer, mirror):
    with pytest.raises(UserError, match="tokenizer has none; use false or auto"):
        suite(mirror, ["siqa"], chat_template=True).run(model, tokenizer, None)


@isolated
def test_programs_that_the_model_finished_are_run_against_their_tests(model, tokenizer, mirror):
    """Both problems are solved in the prompt, and the model only ends a comment; one expects something else."""
    found = suite(mirror, ["humaneval"], execute_code=True, longest_answer=2).run(model, tokenizer, None)
    assert found.items["humaneval"] == [1.0, 0.0]
    assert found.tasks["humaneval"].metric == "pass_at_1"


def test_code_is_not_executed_unless_asked_for(model, tokenizer, mirror, caplog):
    asked = suite(mirror, ["siqa", "humaneval"], limit=1)
    assert list(asked.run(model, tokenizer, None).tasks) == ["siqa"]
    assert "suite.execute_code=true" in caplog.text
    with pytest.raises(UserError, match="no task is left"):
        suite(mirror, ["humaneval"]).run(model, tokenizer, None)


@pytest.mark.parametrize(
    ("tasks", "settings", "message"),
    [
        (
            ["siqa", "mmlu-pro"],
            {},
            "no task mmlu-pro; there are arc_challenge, arc_easy, boolq, commonsense_qa",
        ),
        (["humaneval"], {}, "no task is left to run"),
        (["siqa"], {"chat_template": "yes"}, "none of auto, true, false"),
        (["hellaswag"], {}, r"lacks .*hellaswag/validation\.parquet"),
        (["arc_challenge"], {}, r"lacks .*arc_challenge/test\.parquet"),
        (["commonsense_qa"], {}, r"lacks .*commonsense_qa/validation\.parquet"),
    ],
)
def test_mistakes_are_one_line_before_anything_runs(mirror, tasks, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        suite(mirror, tasks, **settings)
    assert "\n" not in str(caught.value)


def test_a_damaged_file_of_a_mirror_is_one_line(mirror, tmp_path):
    (tmp_path / "social_iqa").mkdir()
    (tmp_path / "social_iqa" / "validation.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"validation\.parquet is not a readable parquet file"):
        list(suite(str(tmp_path), ["siqa"]).texts())


def test_every_task_names_a_configuration_of_the_installed_harness():
    tasks = harness_tasks()
    assert set(PAPER) | set(ZEROSHOT) == set(tasks)
    for task in tasks.values():
        assert task.configurations(chat=False)
        assert task.configurations(chat=True)
        assert 0 <= task.chance < 1
        assert task.source.hub.count("/") == 1
    assert tasks["humaneval"].configurations(True) != tasks["humaneval"].configurations(False)


@pytest.mark.parametrize("choice", ["paper", "wina", "zeroshot"])
def test_suites_are_configured_with_shots_for_each_task(choice):
    configured_suite = configured(choice)
    assert set(configured_suite.tasks) <= set(configured_suite.shots)
    assert not configured_suite.execute_code
    assert configured_suite.name == choice


@with_real_data
def test_zero_shot_tasks_run_on_what_the_mirror_has(model, tokenizer):
    found = configured("zeroshot", f"data.root={MIRROR}", "suite.skip_missing=true", "suite.limit=2").run(
        model, tokenizer, None
    )
    assert {"piqa", "arc_easy", "arc_challenge", "winogrande", "openbookqa", "boolq", "siqa"} <= set(
        found.tasks
    )
    assert all(result.n == 2 for result in found.tasks.values())


def test_wikitext_is_the_same_text_with_any_line_ends(model, tokenizer, mirror):
    asked = WikitextSuite("wikitext", mirror, length=64, windows=3)
    assert asked.text() == " = Beans = \n Beans grow on poles and need water . \n" * 200
    evaluation = asked.run(model, tokenizer, None)
    assert (evaluation.n_documents, evaluation.n_tokens) == (3, 192)
    assert evaluation.perplexity > 1


def test_articles_are_calibrated_on_or_chosen_on(tmp_path, tokenizer):
    lines = [line for number in range(7) for line in (f" = Article {number} = ", "", f" text {number} ")]
    write_split(tmp_path, "wikitext2_tokenised", "validation", [{"text": line} for line in lines])
    asked = WikitextApartSuite("wikitext_apart", str(tmp_path), apart_every=3)
    apart = [paragraph for _, paragraph in asked.texts() if paragraph.startswith("text")]
    assert apart == ["text 0", "text 3", "text 6"]
    source = TextSource(
        "org/x", "wikitext2_tokenised", "validation", 1, "{text}", lines=True, apart_every=asked.apart_every
    )
    documents = source.documents(str(tmp_path), random.Random(0))
    assert sorted(document[-6:] for document in documents) == ["text 1", "text 2", "text 4", "text 5"]


@with_real_data
def test_wikitext_has_as_many_lines_as_on_the_hub():
    assert len(WikitextSuite("wikitext", str(MIRROR)).text().splitlines()) == 2891
