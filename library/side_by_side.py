"""Two answers to one prompt, dense and sparse, as they come: what a person wants to see first."""

from __future__ import annotations

import shutil
import statistics
import textwrap
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TextIO

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .catalogue import token_policy
from .kernels.engine.backends import check_decodable
from .kernels.engine.decode_engine import DecodeEngine
from .kernels.engine.sampling import require_finite
from .kernels.plan.mechanism import Mechanism
from .method.errors import UserError
from .method.plan import SparsityPlan
from .method.rotation import in_own_bases
from .method.running.apply import applied
from .method.token_policy import GENERATED
from .method.tokens import continuation_text, stop_tokens

SEPARATOR = " │ "


@dataclass(frozen=True)
class Request:
    """What is asked: the prompt, the most new tokens, the token policy of the prompt, and whether as it is."""

    prompt: str
    new_tokens: int
    tokens: str = "half"
    raw: bool = False

    def __post_init__(self) -> None:
        token_policy(self.tokens)  # raises UserError for an unknown name

    def token_ids(self, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """(1, length) int64; a chat template makes the prompt a user's message unless it is to stay raw."""
        if tokenizer.chat_template and not self.raw:
            message = [{"role": "user", "content": self.prompt}]
            text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]  # the template has written them
        else:
            ids = tokenizer(self.prompt)["input_ids"]
        if not ids:
            raise UserError("the prompt has no tokens; give some text")
        return torch.tensor([ids])


def check_answerable(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    request: Request,
    mechanisms: Collection[Mechanism] = (),
) -> None:
    """Raise, before a plan is made, what `Answers` would raise after it: KernelError or UserError.

    mechanisms: what the plan will be made of, as far as is known.
    """
    capacity = request.token_ids(tokenizer).shape[1] + request.new_tokens
    check_decodable(model, 1, capacity, mechanisms)


@dataclass
class Answer:
    """One answer as it grows."""

    title: str
    engine: DecodeEngine
    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Time of each decode step; the prompt's pass is left out."""
    finished: bool = False

    @property
    def rate(self) -> float | None:
        """Tokens a second of the median decode step; None before the first.

        A mean would be what the other jobs of the machine, or a first step, make of it: one step that waits for
        a core is as long as a hundred of a small model.
        """
        return 1 / statistics.median(self.seconds) if self.seconds else None


class Answers:
    """The dense and the sparse answer of one model to one request."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        plan: SparsityPlan,
        request: Request,
    ) -> None:
        self._model, self._tokenizer, self._plan = model, tokenizer, plan
        self._policy = token_policy(request.tokens)
        self._new_tokens = request.new_tokens
        self._ids = request.token_ids(tokenizer).to(next(model.parameters()).device)
        self._stops = stop_tokens(model, tokenizer)

    def stream(self, out: TextIO) -> None:
        """Write both answers side by side while they are decoded, and then what each read and how fast.

        Raises KernelError for a plan that the decode engine cannot execute.
        """
        capacity = self._ids.shape[1] + self._new_tokens
        prompts = partial(applied, self._model, self._plan, self._policy)
        beside = in_own_bases(self._model, self._plan.rotations)
        with (
            # The sparse one first: where its plan has folded bases, the dense one decodes in them as well.
            DecodeEngine(self._model, self._plan, capacity=capacity, reading_prompts=prompts) as sparse_engine,
            DecodeEngine(beside, capacity=capacity) as dense_engine,
            torch.inference_mode(),
        ):
            dense = Answer("dense", dense_engine)
            sparse = Answer(str(self._plan.provenance.method or "sparse"), sparse_engine)
            screen = Screen(out)
            for _ in self._decoded(dense, sparse):
                screen.show([self._column(answer) for answer in (dense, sparse)])
            screen.finish([self._column(answer) for answer in (dense, sparse)])
            out.write(self._summary(dense, sparse))

    def _decoded(self, dense: Answer, sparse: Answer) -> Iterator[None]:
        """Decode both in turn, a token each; yields after every token."""
        for answer in (dense, sparse):
            self._append(answer, answer.engine.prefill(self._ids))
            yield
        for _ in range(self._new_tokens - 1):
            for answer in (dense, sparse):
                if answer.finished:
                    continue
                started = time.perf_counter()
                logits = answer.engine.step(torch.tensor(answer.tokens[-1:], device=self._ids.device))
                self._append(answer, logits)  # reading the token waits for the device
                answer.seconds.append(time.perf_counter() - started)
                yield

    def _append(self, answer: Answer, logits: Tensor) -> None:
        largest, token = logits.max(dim=-1)
        require_finite(largest, f"a logit of the {answer.title} answer")
        answer.tokens.append(int(token))
        answer.finished = answer.tokens[-1] in self._stops

    def _column(self, answer: Answer) -> tuple[str, str]:
        rate = "" if answer.rate is None else f"  {answer.rate:.1f} tok/s"
        text = continuation_text(self._tokenizer, self._ids[0].tolist(), answer.tokens)
        return f"{answer.title}{rate}", text

    def _summary(self, dense: Answer, sparse: Answer) -> str:
        """What was measured: rates, bytes a token, realised sparsity."""
        tokens = torch.tensor([[*self._ids[0].tolist(), *sparse.tokens]], device=self._ids.device)
        with applied(self._model, self._plan, GENERATED) as session:
            session.prompt_lengths = torch.tensor([self._ids.shape[1]], device=tokens.device)
            self._model(input_ids=tokens[:, :-1], use_cache=False, logits_to_keep=1)
            report = session.report()
        same = next(
            (n for n, pair in enumerate(zip(dense.tokens, sparse.tokens, strict=False)) if pair[0] != pair[1]),
            None,
        )
        lines = [
            ("tokens a second", *(_rate(answer.rate) for answer in (dense, sparse))),
            (
                "MB read a token",
                f"{report['dense_bytes_per_token'] / 1e6:.1f}",
                f"{report['bytes_per_token'] / 1e6:.1f}",
            ),
            ("block weights not read", "0.0 %", f"{100 * report['realised_sparsity']:.1f} %"),
        ]
        if len(sparse.tokens) < 2:
            lines = lines[:1]  # no decode step ran: there is nothing that was read
        rows = [f"{name:<24}{first:>14}{second:>14}" for name, first, second in lines]
        heading = f"{'':<24}{dense.title:>14}{sparse.title:>14}"
        if dense.rate and sparse.rate:
            rows.append(f"{'speed-up':<24}{'':>14}{sparse.rate / dense.rate:>13.2f}x")
        alike = "both answers are the same" if same is None else f"the answers part at token {same + 1}"
        return "\n".join(["", heading, *rows, alike, ""])


def _rate(rate: float | None) -> str:
    return "not measured" if rate is None else f"{rate:.1f}"


class Screen:
    """Two columns of text that are drawn anew at each change on a terminal, and once in a file."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._live = out.isatty()
        self._drawn = 0

    def show(self, columns: list[tuple[str, str]]) -> None:
        """Draw the columns, each a title and a text, over what was drawn before; nothing where no one looks."""
        if self._live:
            self._draw(columns, shutil.get_terminal_size().lines - 2)

    def finish(self, columns: list[tuple[str, str]]) -> None:
        """Draw the columns for good, at full length."""
        self._draw(columns, None)

    def _draw(self, columns: list[tuple[str, str]], height: int | None) -> None:
        lines = side_by_side(columns, shutil.get_terminal_size().columns)
        lines = lines if height is None else lines[:2] + lines[2:][-max(1, height - 2) :]
        back = f"\x1b[{self._drawn}F\x1b[J" if self._drawn else ""
        self._out.write(back + "\n".join(lines) + "\n")
        self._out.flush()
        self._drawn = len(lines) if self._live else 0


def side_by_side(columns: list[tuple[str, str]], width: int) -> list[str]:
    """Lines of texts under their titles, in columns that share `width` characters."""
    each = max(20, (width - len(SEPARATOR) * (len(columns) - 1)) // len(columns))
    wrapped = []
    for title, text in columns:
        body = [
            line
            for paragraph in text.expandtabs(4).split("\n")
            for line in textwrap.wrap(paragraph, each, drop_whitespace=False, replace_whitespace=False) or [""]
        ]
        wrapped.append([title[:each], "─" * each, *body])
    height = max(map(len, wrapped))
    rows = zip(*([*column, *[""] * (height - len(column))] for column in wrapped), strict=True)
    return [SEPARATOR.join(f"{cell:<{each}}" for cell in row).rstrip() for row in rows]
