"""Any value of any setting ends in a record or in one line: no traceback, no hang, no record of nothing."""

from __future__ import annotations

import math
import shlex
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
from hydra import compose
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from wisparse.repro.cell.cell import Cell, prepare
from wisparse.repro.cell.job import FAILURE, failure
from wisparse.repro.cell.measure import measure
from wisparse.repro.cell.overrides import as_meant
from wisparse.repro.cell.settings import check_settings
from wisparse.repro.configuration import composing

from ..conftest import CONFIGURATION, last_of_each
from .conftest import examples

pytestmark = pytest.mark.slow

GROUPS = (
    "allocation", "calibration", "heads", "latency", "logger", "method", "model", "protocol", "reading",
    "search", "suite",
)  # fmt: skip
CHOICES = sorted((group, path.stem) for group in GROUPS for path in (CONFIGURATION / group).glob("*.yaml"))
ELSEWHERE = {"hydra", "output_dir", "cache_dir", "experiment", "debug"}
"""Settings that decide where a test writes, or what Hydra does."""

TINY = (
    "model.device=cpu", "method=teal_uniform", "search=minimal", "sparsity=0.4", "calibration.sequences=1",
    "calibration.length=32", "suite=heldout", "suite.documents=1", "logger=none",
)  # fmt: skip

NUMBERS = ("-1", "0", "1", "2", "0.5", "-0.0", "1e-320", "1e308", "4294967296", "10000000000000000000000")
ODD = (
    "nan",
    "inf",
    "-inf",
    "true",
    "null",
    "''",
    "[]",
    "{}",
    "[1]",
    "[a,b]",
    "{a:1}",
    "abc",
    "../..",
    "/nowhere",
)
WORDS = ("ä – 字 🙂", r"it\'s", '"q"', "a=b", "a b", "~", "${seed}", "1e3", "\\", "a\nb", "x" * 300)
SMALL = ("0", "1", "2", "3", "0.25", "0.5", "1.0", "true", "false", "null")
"""Values that ask for little work: a cell that takes one of them is run."""


@pytest.fixture(scope="module", autouse=True)
def hydra():
    with composing():
        yield


@cache
def settings_of(group: str, choice: str) -> tuple[str, ...]:
    """Every setting of a choice, whatever is nested in it, and the settings above all groups."""
    config = OmegaConf.to_container(compose("config", overrides=[f"{group}={choice}"]))
    above = {key: value for key, value in config.items() if key not in {*GROUPS, *ELSEWHERE}}
    return (group, *_leaves({group: config.get(group, {})}), *_leaves(above))


def _leaves(section: Any, place: str = "") -> Iterator[str]:
    if isinstance(section, dict) and section:
        for key, value in section.items():
            yield from _leaves(value, f"{place}.{key}" if place else str(key))
    elif place and not place.rpartition(".")[2].startswith("_"):
        yield place


@st.composite
def mistaken(draw: st.DrawFn) -> list[str]:
    """A choice of a group and one of its settings at any value."""
    group, choice = draw(st.sampled_from(CHOICES))
    setting = draw(st.sampled_from(settings_of(group, choice)))
    value = draw(st.sampled_from((*NUMBERS, *ODD, *WORDS)))
    return last_of_each([f"{group}={choice}", f"{setting}={value}"])


def command(overrides: list[str]) -> str:
    return f"python repro/run.py {shlex.join(overrides)}"


@contextmanager
def ends_within(seconds: int, what: str) -> Iterator[None]:
    """Context that fails where it does not end."""

    def stop(*_: object) -> None:
        pytest.fail(f"does not end: {what}")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def checked(overrides: list[str]) -> Cell | None:
    """The cell, as a job prepares it, or None where it is refused in one line."""
    try:
        config = compose("config", overrides=as_meant(overrides))
        check_settings(config)
        instantiate(config.logger)
        return prepare(config)
    except Exception as error:
        _check_refusal(error, overrides)
        return None


def _check_refusal(error: Exception, overrides: list[str]) -> None:
    code, line = failure(error, debug=False)
    assert code != FAILURE, f"{command(overrides)}\nends with exit code {code}: {line}"
    assert line.strip(), f"{command(overrides)}\nsays nothing"
    assert "\n" not in line, f"{command(overrides)}\nsays more than a line: {line}"


@examples(40)
@given(overrides=mistaken())
def test_a_setting_of_any_value_is_a_cell_or_one_line(overrides):
    with ends_within(30, command(overrides)):
        checked(overrides)


def runnable() -> tuple[str, ...]:
    """Settings of the tiny cell that decide what is computed."""
    sections = ("calibration", "method", "protocol", "search", "suite", "latency", "model")
    config = OmegaConf.to_container(compose("config", overrides=list(TINY)))
    return tuple(_leaves({name: config[name] for name in sections}))


@examples(3)
@given(
    data=st.data(),
    method=st.sampled_from(
        ("teal_uniform", "wina", "cats", "equal_loss", "teal", "rsparse", "wisparse", "chess")
    ),
)
def test_a_tiny_cell_with_any_setting_ends_in_a_record_or_one_line(data, method):
    setting = data.draw(st.sampled_from(runnable()))
    value = data.draw(st.sampled_from(SMALL))
    with tempfile.TemporaryDirectory() as folder:
        folders = f"output_dir={folder}/o", f"cache_dir={folder}/c"
        overrides = last_of_each([*TINY, f"method={method}", f"{setting}={value}", *folders])
        cell = checked(overrides)
        if cell is None:
            return
        try:
            with ends_within(120, command(overrides)):
                record = measure(cell)
        except Exception as error:
            _check_refusal(error, overrides)
            return
    assert record["realised"]["tokens"] > 0, f"{command(overrides)}\nmeasured nothing"
    assert math.isfinite(record["perplexity"]), f"{command(overrides)}\n{record['perplexity']}"
