"""Mixes of public data sets: counts, order, seeds, and what is missing. The data are made up here."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import replace

import pyarrow
import pytest
import torch
from hydra import compose
from hydra.utils import instantiate
from wisparse.method.errors import UserError
from wisparse.repro.configuration import composing
from wisparse.repro.text.calibration_mix import MixedText, TextSource
from wisparse.repro.text.data_sets import read_json_lines

from ..benchmark_data import MIRROR, with_real_data, write_split

MIXES = ("paper", "alpaca", "c4", "wikitext")


@pytest.fixture
def mirror(tmp_path):
    write_split(
        tmp_path, "prose", "train", [{"text": f"sentence {number} of prose. " * 9} for number in range(40)]
    )
    write_split(tmp_path, "sums", "train", [{"q": f"{n}+{n}", "a": f"{2 * n}"} for n in range(400)])
    lines = [
        "",
        " = One = \n",
        " first line \n",
        " = = Part = = \n",
        " more \n",
        " = Two = \n",
        " other line \n",
    ]
    write_split(tmp_path, "lines", "train", [{"text": line} for line in lines])
    return tmp_path


def mix(root, seed: int = 0, **sources: TextSource) -> MixedText:
    return MixedText("mix", sources, length=16, batch_size=2, seed=seed, data_root=str(root))


PROSE = TextSource("org/prose", "prose", "train", 4, "{text}")
SUMS = TextSource("org/sums", "sums", "train", 2, "{q}={a}")


def test_rows_of_the_sources_take_turns_and_are_as_many_as_asked(mirror, tokenizer):
    ids = mix(mirror, prose=PROSE, sums=SUMS).input_ids(tokenizer)
    assert ids.shape == (6, 16)
    assert (ids[:, 0] == tokenizer.bos_token_id).all()
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    kinds = ["sums" if "=" in text else "prose" for text in texts]
    assert kinds == ["prose", "sums", "prose", "prose", "sums", "prose"]


def test_the_seed_decides_which_documents(mirror, tokenizer):
    first, again, other = (mix(mirror, seed, prose=PROSE).input_ids(tokenizer) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_source_does_not_change_with_its_neighbours(mirror, tokenizer):
    alone = mix(mirror, sums=SUMS).input_ids(tokenizer)
    together = mix(mirror, prose=PROSE, sums=SUMS).input_ids(tokenizer)
    assert torch.equal(alone, together[[1, 4]])


def test_documents_kept_apart_are_in_no_text(mirror):
    source = replace(SUMS, apart_every=4)
    found = list(source.documents(str(mirror), random.Random(0)))
    assert len(found) == 300
    assert all(int(text.split("+")[0]) % 4 for text in found)
    with pytest.raises(UserError, match="apart_every=1 leaves no document"):
        list(replace(SUMS, apart_every=1).documents(str(mirror), random.Random(0)))


def test_lines_become_articles(mirror):
    source = TextSource("org/lines", "lines", "train", 1, "{text}", lines=True)
    generator = random.Random(0)
    assert set(source.documents(str(mirror), generator)) == {
        "= One =\nfirst line\n= = Part = =\nmore", "= Two =\nother line",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            TextSource("org/gone", "gone", "train", 1, "{text}"),
            r"the mirror lacks .*gone/train\.parquet .*org/gone",
        ),
        (TextSource("org/prose", "prose", "train", 0, "{text}"), "at least 1 sequence"),
        (
            TextSource("org/prose", "prose", "train", 999, "{text}"),
            r"calibration\.sources\.only has \d+ tokens",
        ),
        (TextSource("org/prose", "prose", "train", 1, "{question}"), "no column 'question'; they have text"),
    ],
)
def test_what_is_missing_is_one_line(mirror, tokenizer, source, message):
    with pytest.raises(UserError, match=message):
        mix(mirror, only=source).input_ids(tokenizer)


@pytest.mark.parametrize("suffix", ["jsonl", "json.gz", "jsonl.zst"])
def test_files_of_json_lines_are_read_packed_or_not(tmp_path, suffix):
    path = tmp_path / f"file.{suffix}"
    lines = "".join(json.dumps({"text": f"ä {number}", "meta": {"n": number}}) + "\n" for number in range(5))
    if suffix.endswith("zst"):
        with pyarrow.output_stream(str(path), compression="zstd") as stream:
            stream.write(lines.encode())
    else:
        path.write_bytes(gzip.compress(lines.encode()) if suffix.endswith("gz") else lines.encode())
    assert read_json_lines(path, 3).to_list() == [{"text": f"ä {number}"} for number in range(3)]
    assert len(read_json_lines(path, None)) == 5
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="is truncated; fetch it again"):
        read_json_lines(path, None)


@pytest.mark.parametrize("choice", MIXES)
def test_configured_mixes_are_built_and_say_how_much_of_what(choice):
    with composing():
        built = instantiate(compose("config", overrides=[f"calibration={choice}", "seed=3"]).calibration)
    assert built.name == choice
    assert built.seed == 3
    assert all(isinstance(source, TextSource) for source in built.sources.values())
    assert sum(source.sequences for source in built.sources.values()) * built.length >= 8192


def test_the_papers_mix_has_its_three_sources():
    with composing():
        built = instantiate(compose("config", overrides=["calibration=paper"]).calibration)
    assert list(built.sources) == ["pile", "code", "mathematics"]


@with_real_data
def test_real_lines_of_wikitext_become_articles(tokenizer):
    source = TextSource("Salesforce/wikitext", "wikitext2_raw", "test", 4, "{text}", lines=True)
    articles = list(source.documents(str(MIRROR), random.Random(0)))
    assert 55 < len(articles) < 70
    assert mix(MIRROR, wikitext=source).input_ids(tokenizer).shape == (4, 16)
