"""Calibration text out of several texts: their turns, their files, and what Hydra builds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hydra import compose
from hydra.utils import instantiate
from torch import Tensor
from wisparse.method.errors import UserError
from wisparse.method.tokens import in_turn
from wisparse.repro.configuration import composing
from wisparse.repro.text.joined_text import JoinedText


@dataclass(frozen=True)
class Constant:
    """So many sequences of one token."""

    token: int
    sequences: int

    def files(self) -> list[Path]:
        return [Path(str(self.token))]

    def input_ids(self, _: object) -> Tensor:
        return torch.full((self.sequences, 2), self.token)


def test_sequences_of_the_texts_take_turns():
    turns = in_turn([torch.full((2, 1), 7), torch.full((4, 1), 9)])
    # Middles of halves are 1/4 and 3/4, of quarters 1/8, 3/8, 5/8 and 7/8.
    assert turns[:, 0].tolist() == [9, 7, 9, 9, 7, 9]


def test_all_sequences_of_all_texts_and_all_their_files():
    joined = JoinedText("both", {"a": Constant(1, 3), "b": Constant(2, 3)}, 3, 2, 1)
    assert joined.input_ids(None)[:, 0].tolist() == [1, 2, 1, 2, 1, 2]
    assert joined.files() == [Path("1"), Path("2")]


def test_one_text_is_not_joined():
    with pytest.raises(UserError, match="at least two texts"):
        JoinedText("one", {"a": Constant(1, 3)}, 3, 2, 1)


def composed(*overrides):
    with composing():
        return compose("config", list(overrides))


def test_a_reading_mixes_english_code_and_mathematics(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "train.parquet").touch()
    chosen = composed("experiment=readings", "reading=calibration_mix", f"data.root={tmp_path}", "seed=2")
    joined = instantiate(chosen.calibration)
    assert chosen.method.name == "wisparse_calibration_mix"
    assert [type(text).__name__ for text in joined.texts.values()] == [
        "EnglishText", "InstalledPackageText", "MixedText",
    ]  # fmt: skip
    assert {text.seed for text in joined.texts.values()} == {2}
    assert joined.sequences == joined.texts["code"].sequences == 21
    assert len(joined.files()) == 3


def test_each_text_of_the_configuration_has_as_many_sequences():
    overrides = ["calibration=english_wikipedia", "calibration.sequences=5", "calibration.length=32"]
    joined = instantiate(composed(*overrides).calibration)
    assert joined.texts["english"].sequences == 5
    assert joined.texts["wikipedia"].sources["boolq"].sequences == 5
    assert {text.length for text in joined.texts.values()} == {32}
