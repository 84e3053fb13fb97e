"""A language model for lm-eval that says, with every pass, what is padding and where the prompt ends.

Which tokens are computed sparsely depends on both, and lm-eval's own Hugging Face model passes neither.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...method.errors import UserError
from ...method.projections import decoder_of
from ...method.tokens import begin_tokens, stop_tokens
from .passes.batches import by_length, computed, padded
from .passes.chat import CHAT_SETTINGS
from .passes.context import (
    Session,
    announced,
    name_of,
    naming,
    quiet_lm_eval,
    reproducible_attention,
    weights_as_they_are,
)
from .passes.generation import AnswerSettings, decoded_answers
from .passes.scoring import NO_TARGET, ScoredRow, require_finite, row_scores, sharing_a_pass

ScoringRequest = tuple[tuple[str, str] | None, list[int], list[int]]
"""Request of lm-eval: (strings or None, context tokens, continuation tokens)."""

DEFAULT_MAX_LENGTH = 1024


def longest_sequence(model: PreTrainedModel) -> int:
    """Tokens of the longest sequence that the model's positions allow."""
    return int(model.config.max_position_embeddings)


class SparseLM(HFLM):
    """A causal model under lm-eval whose every sequence begins with the tokenizer's bos token, if it has one.

    A checkpoint whose tokenizer_config.json sets `add_bos_token: false` gets none; see `begin_tokens`.

    `session.prompt_lengths` holds, for each row, how many of its real tokens are prompt (the bos token counts);
    the other real tokens are continuation. `session=None` is the dense model. Scoring pads on the right,
    generation on the left; both pass an attention mask. `batch_tokens` bounds rows × longest row of a scoring
    batch, `batch_size` the rows of a generation batch; neither changes a result beyond rounding.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        session: Session | None = None,
        *,
        batch_tokens: int = 4096,
        batch_size: int = 32,
        max_length: int | None = None,
    ) -> None:
        with quiet_lm_eval(), weights_as_they_are(model):
            super().__init__(
                pretrained=model,
                tokenizer=tokenizer if tokenizer.pad_token else _own_copy(tokenizer),
                backend="causal",
                batch_size=batch_size,
                max_length=min(longest_sequence(model), max_length or DEFAULT_MAX_LENGTH),
                add_bos_token=True,
                chat_template_args=CHAT_SETTINGS,
            )
        self.session = session
        self.batch_tokens = batch_tokens
        self.requests_cut = 0
        """How many requests were too long, so that the beginning of their text was left out."""
        self.start_tokens: list[int] = begin_tokens(tokenizer)

    def _batches(self, lengths: Sequence[int], rows: int | None = None) -> Iterator[list[int]]:
        """Batches of rows of these lengths; see `by_length`. Rows that stand for a batch share a pass.

        Raises UserError for fewer rows than such a batch has: what they share would go by its name.
        """
        together = 1 if self.session is None else self.session.rows_sharing
        if 0 < len(lengths) < together:
            raise UserError(
                f"protocol.rows_sharing={together} rows stand for a batch, and the suite has {len(lengths)} to "
                "read together; lower it, or raise suite.limit or suite.documents"
            )
        return by_length(lengths, self.batch_tokens, rows, together)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """Tokens of a string behind one bos token; without it where `add_special_tokens` is False.

        Most chat templates write the bos token themselves; it is not put there twice.
        """
        tokens = list(_token_ids(self.tokenizer, string))
        start = [] if add_special_tokens is False else self.start_tokens
        return tokens if start and tokens[:1] == start else start + tokens

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of the joined text, split where they leave those of the context alone.

        lm-eval appends the rest to the context's own tokens, which loses text where the tokenizer merges across
        the seam (`)` and a newline are one token in most code tokenizers).
        """
        whole, alone = self.tok_encode(context + continuation), self.tok_encode(context)
        shared = next(
            (index for index, (left, right) in enumerate(zip(whole, alone, strict=False)) if left != right),
            min(len(whole), len(alone)),
        )
        # Without a bos token the very first token can differ, and a token must stand before the first scored.
        return (whole[:shared], whole[shared:]) if shared else ([self.prefix_token_id], whole)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """See `_loglikelihood_tokens`."""
        with naming(lambda row: name_of(requests[row])):
            return super().loglikelihood(requests, disable_tqdm)

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text which has none: bos, or eos where there is no bos."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return token
        raise UserError("this tokenizer names neither a bos nor an eos token: nothing can stand before a text")

    def _loglikelihood_tokens(
        self,
        requests: list[ScoringRequest],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation and whether greedy decoding would produce it, in order.

        Raises NotFiniteError at the first batch that has one that is no number, and UserError for a
        continuation without tokens or longer than a sequence may be.
        """
        rows = []
        for _, context, continuation in requests:
            if not continuation:
                raise UserError("a continuation has no token of its own: the tokenizer joins it to its context")
            room = self.max_length + 1 - len(continuation)
            if room < 1:
                raise UserError(
                    f"an answer of {len(continuation)} tokens exceeds {self.max_length} for a sequence"
                )
            rows.append((self._cut(context, room), continuation))
        groups = sharing_a_pass(rows)
        scores: list[tuple[float, bool]] = [(0.0, False)] * len(rows)
        lengths = [len(rows[group[0]][0]) + len(rows[group[0]][1]) - 1 for group in groups]

        def score(batch: list[int]) -> list[tuple[float, bool]]:
            found = self._score([[rows[index] for index in groups[number]] for number in batch])
            indices = [index for number in batch for index in groups[number]]
            with naming(lambda row: f"request {indices[row]}", lambda row: indices[row]):
                require_finite(self.model, [nats for nats, _ in found])
            return found

        batches = self._batches(lengths, override_bs)
        for batch, found in computed(batches, score, "Scoring", disable_tqdm):
            indices = [index for number in batch for index in groups[number]]
            for index, result in zip(indices, found, strict=True):
                scores[index] = result
        return scores

    def _cut(self, tokens: list[int], room: int) -> list[int]:
        """A text's tokens without those at its beginning that are too many; bos stays."""
        surplus, kept = len(tokens) - room, len(self.start_tokens)
        if surplus <= 0:
            return tokens
        self.requests_cut += 1
        return tokens[:kept] + tokens[kept + surplus :]

    @torch.inference_mode()
    def _score(self, groups: list[list[ScoredRow]]) -> list[tuple[float, bool]]:
        """Scores of all rows, group by group; the rows of a group are read as one."""
        # The last token is only predicted, never read.
        read = [(group[0][0] + group[0][1])[:-1] for group in groups]
        tokens, mask = padded(read, self.tokenizer.pad_token_id)
        prompt_lengths = torch.tensor([len(group[0][0]) for group in groups])
        hidden = self._hidden(tokens, mask, prompt_lengths)
        passes = [number for number, group in enumerate(groups) for _ in group]
        targets = torch.full((len(passes), hidden.shape[1]), NO_TARGET)
        for index, (context, continuation) in enumerate(row for group in groups for row in group):
            begin = len(context) - 1
            targets[index, begin : begin + len(continuation)] = torch.tensor(continuation)
        nats, greedy = row_scores(self.model, hidden, targets, torch.tensor(passes))
        return [(-value, hit) for value, hit in zip(nats, greedy, strict=True)]

    def _hidden(self, tokens: torch.Tensor, mask: torch.Tensor, prompt_lengths: torch.Tensor) -> torch.Tensor:
        """What lm_head is given: (batch, positions, hidden size)."""
        with announced(self.session, prompt_lengths.to(self.device)), reproducible_attention():
            return (
                decoder_of(self.model)
                .inner(input_ids=tokens.to(self.device), attention_mask=mask.to(self.device), use_cache=False)
                .last_hidden_state
            )

    def document_nats(self, documents: Sequence[list[int]], disable_tqdm: bool = False) -> list[float]:
        """Negative log-likelihood in nats of token lists without bos, each scored behind bos alone.

        Longer documents are cut into windows of `max_length` tokens; each window begins with bos, and all of
        it counts as prompt.
        """
        start = self.start_tokens or [self.prefix_token_id]
        windows = [
            (index, document[begin : begin + self.max_length])
            for index, document in enumerate(documents)
            for begin in range(0, len(document), self.max_length)
        ]
        nats = [0.0] * len(documents)

        def measure(batch: list[int]) -> list[float]:
            found = self._window_nats(start, [windows[index][1] for index in batch])
            with naming(lambda row: f"document {windows[batch[row]][0]}"):
                require_finite(self.model, found)
            return found

        batches = self._batches([len(window) for _, window in windows])
        for batch, found in computed(batches, measure, "Perplexity", disable_tqdm):
            for index, value in zip(batch, found, strict=True):
                nats[windows[index][0]] += value
        return nats

    @torch.inference_mode()
    def _window_nats(self, start: list[int], windows: list[list[int]]) -> list[float]:
        tokens, mask = padded([(start + window)[:-1] for window in windows], self.tokenizer.pad_token_id)
        targets, _ = padded(windows, self.tokenizer.pad_token_id)
        targets[mask == 0] = NO_TARGET  # the mask is right for the targets too: as many tokens are read
        hidden = self._hidden(tokens, mask, mask.sum(dim=1))
        return row_scores(self.model, hidden, targets, torch.arange(len(windows)))[0]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, windows as in `document_nats`."""
        documents = [self.tok_encode(request.args[0], add_special_tokens=False) for request in requests]
        return [-nats for nats in self.document_nats(documents, disable_tqdm)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The model's greedy answers, in order: what follows the prompt, its first space kept."""
        asked = [AnswerSettings.of_task(request.args[1], self.tokenizer.eos_token) for request in requests]
        answers = [""] * len(requests)
        by_settings: dict[AnswerSettings, list[int]] = {}
        for index, settings in enumerate(asked):
            by_settings.setdefault(settings, []).append(index)
        for settings, alike in by_settings.items():
            prompts = {index: self._prompt(requests[index].args[0], settings) for index in alike}
            generate = partial(self._generate, requests, prompts, settings)
            batches = self._batches([len(prompts[index]) for index in alike], self.batch_size)
            batches = [[alike[number] for number in batch] for batch in batches]
            for batch, found in computed(batches, generate, "Generating", disable_tqdm):
                for index, answer in zip(batch, found, strict=True):
                    answers[index] = answer
        return answers

    def _prompt(self, text: str, settings: AnswerSettings) -> list[int]:
        """Tokens of a prompt, its left cut off where the answer would not fit into the model."""
        room = self.max_length - settings.new_tokens
        if room <= len(self.start_tokens):
            raise UserError(
                f"answers of {settings.new_tokens} tokens leave no room for a prompt within {self.max_length}: "
                "raise suite.max_length, or lower suite.longest_answer, where this suite and model allow it"
            )
        return self._cut(self.tok_encode(text), room) or [self.prefix_token_id]

    def _generate(
        self,
        requests: list[Instance],
        prompts: Mapping[int, list[int]],
        settings: AnswerSettings,
        batch: list[int],
    ) -> list[str]:
        tokens, mask = padded([prompts[index] for index in batch], self.tokenizer.pad_token_id, "left")
        with naming(lambda row: name_of(requests[batch[row]])):
            return self._answers(tokens.to(self.device), mask.to(self.device), settings)

    def _answers(self, tokens: torch.Tensor, mask: torch.Tensor, settings: AnswerSettings) -> list[str]:
        """Answers to the prompts of a batch, padded on the left."""
        ends = stop_tokens(self.model, self.tokenizer)
        with announced(self.session, mask.sum(dim=1)), reproducible_attention():
            return decoded_answers(self.model, self.tokenizer, tokens, mask, settings, ends)


@lru_cache(maxsize=1 << 15)  # a sweep asks the same again: to tokenise takes longer than the model on a GPU
def _token_ids(tokenizer: PreTrainedTokenizerBase, string: str) -> tuple[int, ...]:
    # A special token that a text spells is that token, whatever the tokenizer's settings say.
    return tuple(tokenizer.encode(string, add_special_tokens=False, split_special_tokens=False))


@lru_cache(maxsize=1)  # one for all cells of a sweep, for what it has read is kept
def _own_copy(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer without a padding token, copied: lm-eval gives it one, and the model's own stays as it is."""
    return copy.deepcopy(tokenizer)
