"""Calibration text: pinned, seeded, packed behind the begin-of-text token."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoTokenizer
from wisparse.method.errors import UserError
from wisparse.method.tokens import pack
from wisparse.repro.configuration import REPOSITORY
from wisparse.repro.embedded import calibration as calibration_text
from wisparse.repro.embedded.calibration import InstalledPackageText, UnseenText, installed_package
from wisparse.repro.embedded.corpus import HELD_OUT_PACKAGES
from wisparse.repro.evaluation.embedded_suite import EmbeddedSuite
from wisparse.repro.text.calibration_text import FileText
from wisparse.repro.text.overlap import measure_overlap

LLAMA_MINI = REPOSITORY / "repro/embedded/models/llama-mini"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(LLAMA_MINI)


def embedded(seed: int = 0) -> InstalledPackageText:
    return InstalledPackageText("embedded", sequences=4, length=64, batch_size=4, seed=seed)


def test_the_installed_package_is_the_expected_one_and_not_held_out():
    found, texts = installed_package()
    assert found == json.loads(calibration_text.MANIFEST.read_text())
    assert found["files"] == len(texts) > 50
    assert calibration_text.PACKAGE not in HELD_OUT_PACKAGES


def test_the_seed_decides_the_text_and_nothing_else_does(tokenizer):
    first, again, other = (embedded(seed).input_ids(tokenizer) for seed in (0, 0, 1))
    assert first.shape == (4, 64)
    assert first.dtype == torch.int64
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first[:, 0] == tokenizer.bos_token_id).all()


@pytest.mark.slow
def test_unseen_text_is_apart_from_every_evaluation_item_and_from_many_files(tokenizer):
    unseen = [UnseenText("unseen", 64, 512, 4, seed, 8000).input_ids(tokenizer) for seed in (0, 0, 1)]
    assert torch.equal(unseen[0], unseen[1])
    assert not torch.equal(unseen[0], unseen[2])
    assert (unseen[0] == tokenizer.bos_token_id).sum() >= 64 + 12  # a row or another file's piece begins
    texts = tokenizer.batch_decode(torch.cat(unseen[1:]), skip_special_tokens=True)
    overlap = measure_overlap(texts, EmbeddedSuite().texts())
    assert sum(overlap.items.values()) > 6000
    assert overlap.overlapping == {}


def test_another_version_names_what_was_expected_and_found(tmp_path, monkeypatch, tokenizer):
    expected = json.loads(calibration_text.MANIFEST.read_text())
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(expected | {"version": "1.2.3"}))
    monkeypatch.setattr(calibration_text, "MANIFEST", manifest)
    with pytest.raises(
        UserError, match=rf"expected datasets 1\.2\.3 .* found {expected['version']} .*==1\.2\.3"
    ):
        embedded().input_ids(tokenizer)


def test_packing_by_hand(tokenizer):
    begin = tokenizer.bos_token_id
    one, two = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("import os\n", "x = 1\n"))
    stream = [*one, begin, *two]
    packed = pack(["import os\n", "x = 1\n"], tokenizer, 1, len(stream) + 1, "text")
    assert packed.tolist() == [[begin, *stream]]


def test_a_tokenizer_without_begin_of_text_gets_none():
    tokenizer = AutoTokenizer.from_pretrained(LLAMA_MINI)
    tokenizer.bos_token = None
    ids = tokenizer("import os\n" * 8, add_special_tokens=False)["input_ids"]
    assert pack(["import os\n" * 8], tokenizer, 2, 3, "text").tolist() == [ids[:3], ids[3:6]]


def test_a_text_too_short_says_so(tokenizer, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("import os\n")
    text = FileText("file", str(path), sequences=2, length=64, batch_size=2)
    with pytest.raises(UserError, match=r"short\.txt has \d+ tokens, too few for 2 sequences of 64"):
        text.input_ids(tokenizer)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), (b"\xff\xfe\x00", "cannot be read as UTF-8")]
)
def test_an_unreadable_file_is_refused_at_once(tmp_path, content, message):
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        FileText("file", str(path), 1, 8, 1)


def test_no_file_at_all_names_the_setting():
    with pytest.raises(UserError, match=r"calibration\.path=FILE"):
        FileText("file", None, 1, 8, 1)
