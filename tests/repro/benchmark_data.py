"""What tests of benchmarks need: the real data, a small mirror made up here, a machine that isolates."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from wisparse.method.errors import UserError
from wisparse.repro.configuration import REPOSITORY
from wisparse.repro.evaluation.code_execution import CodeRunner

MIRROR = Path(os.environ.get("BENCHMARK_DATA", REPOSITORY.parent / "shared" / "data"))
with_real_data = pytest.mark.skipif(
    not MIRROR.is_dir(), reason=f"no benchmark data at {MIRROR}; BENCHMARK_DATA=DIR names another place"
)


def can_isolate() -> bool:
    try:
        CodeRunner().require_isolation()
    except UserError:
        return False
    return True


isolated = pytest.mark.skipif(
    not can_isolate(), reason="this machine allows no namespaces, in which programs are shut in"
)

ONE = "def check(candidate):\n    assert candidate() == {}\n"


def write_split(root: Path, folder: str, split: str, rows: list[dict[str, object]]) -> Path:
    """One parquet file of a mirror."""
    path = root / folder / f"{split}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def write_made_up_mirror(root: Path) -> None:
    """Rows of our own with the hub's columns: enough for siqa, wic, gsm8k, humaneval and wikitext."""
    siqa = [
        {
            "context": f"Kim planted {number} beans.",
            "question": "What will Kim do next?",
            "answerA": "water them",
            "answerB": "sell the car",
            "answerC": "write a poem about winter",
            "label": str(1 + number % 3),
        }
        for number in range(9)
    ]
    write_split(root, "social_iqa", "validation", siqa)
    wic = {"word": "bank", "sentence1": "The bank is wet.", "sentence2": "A bank lends.", "label": 0, "idx": 0}
    write_split(root, "wic", "validation", [wic | {"start1": 4, "end1": 8, "start2": 2, "end2": 6}] * 3)
    gsm8k = [
        {
            "question": f"Kim has {n} beans and gets {n} more. How many now?",
            "answer": f"{n}+{n}={2 * n}\n#### {2 * n}",
        }
        for n in range(2, 12)
    ]
    write_split(root, "gsm8k", "test", gsm8k[:4])
    write_split(root, "gsm8k", "train", gsm8k[4:])
    humaneval = [
        {
            "prompt": "def one():\n    return 1\n\n\n# ",
            "entry_point": "one",
            "test": ONE.format(right),
            "task_id": right,
        }
        for right in ("1", "2")
    ]
    write_split(root, "humaneval", "test", humaneval)
    lines = ["", " = Beans = \n", "", " Beans grow on poles and need water . \r\n"] * 200
    write_split(root, "wikitext2_raw", "test", [{"text": line} for line in lines])
