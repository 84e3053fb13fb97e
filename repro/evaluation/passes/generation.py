"""Answers to a batch of prompts, decoded under nothing but the model: no default of its checkpoint acts.

transformers' `generate` fills whatever a caller leaves open from the checkpoint's generation_config.json, a
repetition penalty or a number of beams as well. Hence a loop of our own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.models.utils import normalize_gen_kwargs
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ....method.errors import UserError
from ....method.tokens import continuation_text
from .scoring import require_finite

LONGEST_ANSWER = 256
"""Tokens of an answer where a task names no bound, as in lm-eval."""


@dataclass(frozen=True)
class AnswerSettings:
    """How a task wants its answers: at most so many tokens, cut before the first of the stop strings."""

    new_tokens: int
    stop_strings: tuple[str, ...]

    @classmethod
    def of_task(cls, asked: dict[str, Any], eos: str | None) -> AnswerSettings:
        """Settings of a request of lm-eval; the text of the eos token stops too, as in lm-eval.

        Raises UserError for anything but greedy decoding.
        """
        settings = normalize_gen_kwargs(asked, LONGEST_ANSWER)
        new_tokens, until = settings.pop("max_gen_toks"), settings.pop("until", None) or []
        sampled, temperature = settings.pop("do_sample", False), settings.pop("temperature", 0.0)
        if settings or sampled or temperature:
            wanted = ", ".join(settings) or "sampling"
            raise UserError(f"a task asks for {wanted} in its generation_kwargs; answers here are greedy")
        stops = [until] if isinstance(until, str) else list(until)
        return cls(new_tokens, tuple(dict.fromkeys(stop for stop in [*stops, eos] if stop)))

    def cut(self, text: str) -> str:
        """The text before the first stop string."""
        return min((text.partition(stop)[0] for stop in self.stop_strings), key=len, default=text)


@torch.inference_mode()
def decoded_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    settings: AnswerSettings,
    end_tokens: Collection[int],
    draw: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> list[str]:
    """Answers to prompts (rows, length) padded on the left; greedy ones do not depend on other rows.

    draw: as in `continued_tokens`. An answer ends before its first end token. What follows it in the batch's
    later passes is padding, which the mask says. Raises NotFiniteError that names the row.
    """
    prompts = [row[real.bool()].tolist() for row, real in zip(tokens, mask, strict=True)]

    def stopped(answer: list[int]) -> bool:
        return _stopped(tokenizer, answer, settings.stop_strings)

    answers = continued_tokens(model, tokens, mask, settings.new_tokens, end_tokens, stopped, draw)
    return [
        settings.cut(continuation_text(tokenizer, prompt, answer))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


@torch.inference_mode()
def continued_tokens(
    model: PreTrainedModel,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    new_tokens: int,
    end_tokens: Collection[int] = (),
    stopped: Callable[[list[int]], bool] = lambda answer: False,
    draw: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> list[list[int]]:
    """Continuations of prompts (rows, length) padded on the left, without their end tokens.

    stopped: whether an answer ends with its last token. draw: the next tokens (rows,) out of float32 logits
    (rows, vocabulary); None takes the likeliest. Raises NotFiniteError that names the row.
    """
    answers: list[list[int]] = [[] for _ in tokens]
    running = set(range(len(answers)))
    inputs, positions, cache = tokens, (mask.cumsum(dim=1) - 1).clamp_min(0), None
    for _ in range(new_tokens):
        output = model(
            input_ids=inputs,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits = output.logits[:, -1].float()
        largest, chosen = logits.max(dim=-1)  # the largest is nan where any logit is
        largest, chosen = torch.stack([largest.double(), chosen.double()]).cpu()
        require_finite(model, [float(largest[row]) if row in running else 0.0 for row in range(len(answers))])
        if draw is not None:
            chosen = draw(logits).cpu()
        for row in sorted(running):
            token = int(chosen[row])
            if token not in end_tokens:
                answers[row].append(token)
            if token in end_tokens or stopped(answers[row]):
                running.remove(row)
        if not running:
            break
        goes_on = torch.tensor([[row in running] for row in range(len(answers))], device=mask.device)
        mask = torch.cat([mask, goes_on.to(mask.dtype)], dim=1)
        inputs = torch.where(goes_on, chosen.long().to(mask.device)[:, None], inputs[:, -1:])
        positions, cache = positions[:, -1:] + 1, output.past_key_values
    return answers


def _stopped(tokenizer: PreTrainedTokenizerBase, answer: list[int], stop_strings: Sequence[str]) -> bool:
    """Whether an answer ends with a stop string; one that is missed only costs time, for the text is cut."""
    bytes_back = max((len(stop.encode()) for stop in stop_strings), default=0)
    # One token more: some tokenizers leave out the space that a text begins with.
    end = tokenizer.decode(answer[-bytes_back - 1 :], skip_special_tokens=True) if bytes_back else ""
    return any(stop in end for stop in stop_strings)
