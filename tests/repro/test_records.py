"""Records and plans on disk: whole or not at all, and damaged ones are noticed."""

from __future__ import annotations

import errno
import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from wisparse.kernels.shared_files import replacing
from wisparse.method.errors import UserError
from wisparse.repro.cell.job import outcomes_folder
from wisparse.repro.cell.plan_cache import PlanCache
from wisparse.repro.configuration import REPOSITORY, digest, portable, user_mistake
from wisparse.repro.locks import LOCKS
from wisparse.repro.record import SCHEMA, SECTIONS, RecordError
from wisparse.repro.record_sections import GitState
from wisparse.repro.records import (
    ITEMS,
    RECORD,
    SEAL,
    UNREACHABLE,
    git_state,
    load_note,
    load_record,
    save_record,
    sealed,
    surroundings,
    write_json,
)

from .cell.test_plan_cache import plan

ITEM_OUTCOMES = {
    "items": {"next_line": [1.0, 0.0]},
    "documents": [{"nats": 8 * math.log(4), "tokens": 8, "bytes": 16}],
}
TASK = {"metric": "acc", "value": 0.5, "stderr": 0.5, "n": 2, "chance": 0.25}
SCORES = {
    "tasks": {"next_line": TASK},
    "average": 50.0,
    "perplexity": 4.0,
    "bits_per_byte": 1.0,
    "n_documents": 1,
    "n_tokens": 8,
}
PLAN = {"provenance": {"sparsity": 0.5, "method": "teal"}}
NUMBERS = SCORES | {
    "sparsity": 0.5, "seed": 0, "command": "", "utc": "", "plan": PLAN, "method": {"name": "teal"}
}  # fmt: skip


def finished(folder: Path) -> Path:
    record = dict.fromkeys(SECTIONS) | NUMBERS | {"schema": SCHEMA, "items_sha256": digest(ITEM_OUTCOMES)}
    save_record(folder, record, ITEM_OUTCOMES)
    return folder


def test_a_record_comes_back_as_it_was(tmp_path):
    record = load_record(finished(tmp_path / "cell"))
    assert record.keys() == SECTIONS | {SEAL}
    assert sorted(path.name for path in (tmp_path / "cell").iterdir()) == [ITEMS, RECORD]


def _edit(change):
    def damage(folder: Path) -> None:
        record = json.loads((folder / RECORD).read_text())
        change(record)
        (folder / RECORD).write_text(json.dumps(record))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / RECORD).write_text((folder / RECORD).read_text()[:-20]), "cannot be read"),
        (lambda folder: (folder / RECORD).write_text("[]"), "not a JSON object"),
        (lambda folder: (folder / RECORD).write_bytes(b"\xff\xfe"), "cannot be read"),
        (lambda folder: (folder / ITEMS).unlink(), "cannot be read"),
        (lambda folder: (folder / ITEMS).write_text('{"items": {}, "documents": []}'), "not what the record"),
        (_edit(lambda record: record.pop("realised")), "lacks realised"),
        (_edit(lambda record: record.update(sparsity="half")), "sparsity is 'half', not of type float"),
        (_edit(lambda record: record.update(perplexity="9.5")), "perplexity is '9.5', not of type float"),
        (_edit(lambda record: record.update(perplexity=math.nan)), "NaN is no number of JSON"),
        (_edit(lambda record: record.update(model={"threads": "2"})), "model.threads is '2', not of type int"),
        (_edit(lambda record: record.update(realised={"by_block": ["x"]})), r"realised.by_block\[0\] is 'x'"),
        (_edit(lambda record: record.update(seconds={"plan": None})), "seconds.plan is None"),
        (_edit(lambda record: record.update(schema=SCHEMA + 1)), "has schema"),
        (_edit(lambda record: record.update(perplexity=9.5)), "record.json was edited"),
        (_edit(lambda record: record.update(content_sha256=None)), "record.json was edited"),
        (_edit(lambda record: record.update(command="another")), "record.json was edited"),
    ],
)
def test_a_damaged_record_is_noticed(tmp_path, damage, message):
    folder = finished(tmp_path / "cell")
    damage(folder)
    with pytest.raises(RecordError, match=message):
        load_record(folder)


def test_a_record_of_before_records_had_a_hash_is_read_and_the_order_of_its_keys_is_free(tmp_path):
    folder = finished(tmp_path / "cell")
    content = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps(dict(sorted(content.items())), indent=7))
    assert load_record(folder) == content
    del content[SEAL]
    (folder / RECORD).write_text(json.dumps(content | {"command": "python run.py"}))
    assert load_record(folder)["command"] == "python run.py"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"perplexity": 3.9}, r"perplexity is 3\.9, and its items make 4\.0"),
        ({"perplexity": None}, "perplexity is None"),
        ({"average": 51.0}, "average is 51"),
        ({"bits_per_byte": 0.9}, "bits_per_byte"),
        ({"n_documents": 2}, "n_documents is 2, and its items make 1"),
        ({"n_tokens": 80}, "n_tokens"),
        ({"tasks": {}}, "the number of tasks is 0"),
        ({"tasks": {"next_line": TASK | {"value": 0.6}}}, "the score of next_line is 0.6"),
        ({"tasks": {"next_line": TASK | {"n": 3}}}, "the number of items of next_line"),
        ({"tasks": {"other": TASK}}, "the number of items of next_line is None"),
        ({"sparsity": 0.4}, r"sparsity is 0\.4, and that of its plan 0\.5"),
    ],
)
@pytest.mark.parametrize("resealed", [False, True])
def test_a_score_that_the_items_do_not_make_is_noticed_without_a_hash_too(tmp_path, change, message, resealed):
    folder = finished(tmp_path / "cell")
    content = {name: value for name, value in load_record(folder).items() if name != SEAL} | change
    write_json(folder / RECORD, sealed(content) if resealed else content)
    with pytest.raises(RecordError, match=f"was edited or is of other items: .*{message}"):
        load_record(folder)


def test_an_edited_note_on_a_cell_out_of_reach_is_noticed(tmp_path):
    path = tmp_path / UNREACHABLE
    note = {"model": {"name": "m"}, "method": {"name": "chess"}, "sparsity": 0.7, "maximum": 0.62}
    write_json(path, sealed(note))
    assert load_note(path)["maximum"] == 0.62
    write_json(path, sealed(note) | {"maximum": 0.66})
    with pytest.raises(RecordError, match=r"unreachable\.json was edited"):
        load_note(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "record.json"
    write_json(path, {"value": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"value": float("nan")})
    with pytest.raises(TypeError):
        write_json(path, {"value": object()})
    assert json.loads(path.read_text()) == {"value": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_records_do_not_depend_on_where_the_checkout_lies():
    inside = {"path": str(REPOSITORY / "repro/embedded/models/llama-mini"), "other": ["/tmp/x", 1, None]}
    assert portable(inside) == {"path": "repro/embedded/models/llama-mini", "other": ["/tmp/x", 1, None]}


def test_the_command_names_no_path_of_the_machine(monkeypatch):
    """Where it lies inside the checkout, as a program or as the value of an override."""
    arguments = ["method=teal", f"output_dir={REPOSITORY}/outputs/here", "~a", "b=c=d"]
    monkeypatch.setattr("sys.argv", [f"{REPOSITORY}/repro/run.py", *arguments])
    command = surroundings().command
    assert command == "python repro/run.py method=teal output_dir=outputs/here '~a' b=c=d"


def test_surroundings_say_when_where_and_with_what():
    found = surroundings()
    # A wheel's metadata may leave out the build (+cu130) that torch itself names.
    assert found.versions["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert found.command.startswith("python ")
    assert found.utc.endswith("+00:00")
    state = git_state()
    assert state is None or len(state.commit) == 40


def test_git_state_is_none_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.delenv("GIT_COMMIT", raising=False)
    monkeypatch.setattr("wisparse.repro.records.PACKAGES", tmp_path)
    assert git_state() is None


def test_a_commit_that_is_named_counts_rather_than_the_checkout(monkeypatch):
    monkeypatch.setenv("GIT_COMMIT", "5" * 40)
    assert git_state() == GitState("5" * 40, dirty=False)
    assert surroundings().git == git_state()


def test_a_disk_without_room_is_named(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("wisparse.method.stored.tensor_files.save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        PlanCache(tmp_path / "plans").find_or_make({}, plan)
    assert user_mistake(caught.value).startswith(f"{tmp_path / 'plans'}: No space left on device; choose")


def test_a_write_without_room_names_its_file(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught, replacing(tmp_path / "record.json"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as a write says it, which knows no name
    assert user_mistake(caught.value).startswith(f"{tmp_path / 'record.json'}: No space left on device; choose")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EACCES, "ask for the right to use it, or name another"),  # it may be a file to be read
        (errno.ENOTDIR, "choose a place that can be written and has room"),
        (errno.EEXIST, "choose a place that can be written and has room"),
        (errno.ELOOP, "choose a place that can be written and has room"),
    ],
)
def test_a_place_that_cannot_be_used_is_named_in_one_line(number, remedy):
    line = user_mistake(OSError(number, os.strerror(number), "/some/where"))
    assert line == f"/some/where: {os.strerror(number)}; {remedy}"
    assert user_mistake(OSError(5, "Input/output error", "/some/where")) is None
    assert user_mistake(FileNotFoundError(2, "No such file", "/proc/x")).startswith(
        "/proc/x: No such file; choose"
    )
    assert user_mistake(FileNotFoundError(2, "No such file", "/some/where")) is None


def test_a_record_whose_sections_are_of_another_type_is_damaged(tmp_path):
    folder = finished(tmp_path / "cell")
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(record | {"model": "llama", "config": [1]}))
    with pytest.raises(RecordError, match="is damaged: config, model is no object"):
        load_record(folder)


NOBODY = 65534


@contextmanager
def as_nobody() -> Iterator[None]:
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that everybody may write in, outside of those of pytest, which others cannot enter."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o2777)
        before = os.umask(0o022)
        yield Path(name)
        os.umask(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
@pytest.mark.parametrize("closed", [False, True])
def test_two_users_share_a_folder_and_one_reads_what_the_other_has_closed(shared, closed):
    cache = PlanCache(shared / "run" / "plans")
    cache.find_or_make({"of": "root"}, plan)
    finished(shared / "run" / "cell")
    if closed:  # as versions before left it
        for folder in (shared / "run", shared / "run" / "plans", shared / "run" / "plans" / LOCKS):
            folder.chmod(0o755)
        for lock in (shared / "run" / "plans" / LOCKS).iterdir():
            lock.chmod(0o644)
    with as_nobody():
        assert cache.find_or_make({"of": "root"}, plan).from_cache
        assert load_record(shared / "run" / "cell")["schema"] == SCHEMA
        assert outcomes_folder(shared / "run", "x").is_relative_to(shared) is not closed
        if closed:
            with pytest.raises(UserError, match=r"belongs to another user; ask for the right to write in"):
                cache.find_or_make({"of": "nobody"}, plan)
        else:
            assert not cache.find_or_make({"of": "nobody"}, plan).from_cache
            finished(shared / "run" / "another")
