"""The suite on generated text: divergence from the dense model, arithmetic, votes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from wisparse.method.errors import UserError
from wisparse.method.running.apply import applied
from wisparse.repro.evaluation.generation.arithmetic import TASKS, last_number, questions
from wisparse.repro.evaluation.generation.divergence import continuations
from wisparse.repro.evaluation.generation.suite import GenerationSuite, _most_frequent

from ....conftest import make_calibration, make_method, make_protocol

PROMPTS = torch.randint(90, (3, 6), generator=torch.Generator().manual_seed(3))
NEW = 5


@pytest.mark.parametrize("task", TASKS)
def test_questions_are_always_the_same_and_their_workings_are_right(task):
    asked = questions(task, 5)
    assert questions(task, 7)[:5] == asked
    for question in asked:
        *shown, last = question.prompt.split("\n")
        assert len(shown) == 4
        for line in shown:
            left, _, right = (
                (line.split(" Answer: ")[-1] if task == "story" else line).split(". ")[0].partition("=")
            )
            assert eval(left) == int(right)
        if task == "sum":
            assert eval(last.rstrip(" =")) == question.answer
        assert question.is_right(f" so it is {question.answer}")
        assert not question.is_right("none")


def test_the_last_number_of_an_answer_counts():
    assert last_number(" 4 + 5 = 9. 9 - 3 = 6. The answer is 6") == 6
    assert last_number("no number") is None


def test_the_most_frequent_number_wins_and_of_equals_the_first():
    assert _most_frequent(["3", "so 4", "4", "none", "4"]) == (4, 0.6)
    assert _most_frequent(["3", "4"]) == (3, 0.5)


def test_the_dense_model_does_not_diverge_from_itself(llama):
    found = continuations(llama, None, nullcontext, PROMPTS, NEW)
    assert [one.first_difference for one in found] == [NEW] * 3
    assert all(all(one.agreement) for one in found)
    assert max(max(one.divergence) for one in found) < 1e-6


def test_divergence_is_that_of_the_predictions_along_the_dense_continuation(llama):
    plan = make_method("teal_uniform").plan(make_calibration(llama), 0.6)
    with applied(llama, plan, make_protocol("half")) as session:
        found = continuations(llama, session, session.only_blocks, PROMPTS, NEW)
    tokens = llama.generate(PROMPTS, do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW, eos_token_id=None)
    dense = llama(tokens).logits.log_softmax(-1)
    with applied(llama, plan, make_protocol("half")) as session, torch.inference_mode():
        prompt = llama(PROMPTS, use_cache=True)  # its later half is sparse, and all that follows it
        steps, cache = [prompt.logits[:, -1:]], prompt.past_key_values
        steps += [
            llama(tokens[:, [place]], past_key_values=cache, use_cache=True).logits
            for place in range(6, 5 + NEW)
        ]
        sparse = torch.cat(steps, dim=1).log_softmax(-1)
    dense = dense[:, 5:-1]
    expected = (dense.exp() * (dense - sparse)).sum(-1)
    assert expected.max() > 1e-3
    for one, row, logits, own in zip(found, expected, sparse, tokens[:, 6:], strict=True):
        torch.testing.assert_close(torch.tensor(one.divergence), row.detach(), atol=1e-5, rtol=1e-3)
        assert one.agreement == (logits.argmax(-1) == own).tolist()
        # The sparse model's own text is the dense one's as long as its likeliest token is.
        alike = one.agreement.index(False) if False in one.agreement else NEW
        assert one.first_difference == alike


@dataclass
class Lines:
    """A suite of texts alone."""

    count: int

    def texts(self) -> Iterator[tuple[str, str]]:
        for number in range(self.count):
            yield "text", f"def function_{number}(value):\n    return value + {number}\n"


def small(**settings) -> GenerationSuite:
    given = {"prompts": 2, "prompt_tokens": 6, "new_tokens": 3, "questions": 2, "samples": 2, "batch_size": 2}
    return GenerationSuite("generation", Lines(4), **given | settings)


@pytest.mark.slow
def test_tasks_and_details_of_a_suite(model, tokenizer):
    found = small().run(model, tokenizer, None)
    assert set(found.tasks) == {"sum", "sum_vote", "story", "story_vote"}
    assert {len(outcomes) for outcomes in found.items.values()} == {2}
    assert len(found.details["continuations"]) == 2
    assert set(found.details["agreement"]) == set(TASKS)
    again = small().run(model, tokenizer, None)
    assert again.items == found.items
    assert again.details == found.details


def test_too_few_texts_and_too_long_ones_are_refused(model, tokenizer):
    with pytest.raises(UserError, match="4 texts of 6 tokens, too few"):
        small(prompts=5).run(model, tokenizer, None)
    with pytest.raises(UserError, match="this model takes"):
        small(new_tokens=10**6).check(model, tokenizer)
    short = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=64))
    with pytest.raises(UserError, match=r"a story with its answer has \d+ tokens; this model takes 64"):
        small().check(short, tokenizer)
    small().check(model, tokenizer)
    with pytest.raises(UserError, match="temperature above 0"):
        small(temperature=0.0)
