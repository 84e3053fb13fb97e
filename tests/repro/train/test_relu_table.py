"""The table of trained models: shares and ratios by hand, cells beside their model, another recipe refused."""

import json

import pytest
from wisparse.method.errors import UserError
from wisparse.repro.train.relu_table import page, read_models, rows

from ..tables.made_up_cells import CONFIG, write_cell


def card(folder, name, zeros, perplexity, start="llama-mini", **changes):
    path = folder / f"{start}-{name}"
    path.mkdir(parents=True)
    content = {
        "recipe": {"learning_rate": 1e-3}, "tokens_seen": 1000,
        "text": {"training_files": 3, "preparation_seconds": zeros},
        "zeros_by_block": [zeros - 0.1, zeros + 0.1], "held_out_perplexity": perplexity,
        "held_out_perplexity_tokens": 512, "device": "a GPU", **changes,
    }  # fmt: skip
    (path / "training.json").write_text(json.dumps(content))


def test_models_stand_beside_the_control_and_their_cells(tmp_path):
    card(tmp_path / "cards", "dense", 0.1, 8.0)
    card(tmp_path / "cards", "relu", 0.6, 8.8)
    model = {"name": "llama-mini-relu", "device": "cpu", "fingerprint": "f" * 64, "dtype": "float32"}
    write_cell(tmp_path / "records", "relu_zeros", 0.0, 0, model=model)
    data = read_models(tmp_path / "cards", tmp_path / "records")
    control, relu = rows(data)
    assert (control["method"], control["over_control"]) == ("", "1.0000")
    assert [relu[part] for part in ("zeros", "least_zeros", "most_zeros")] == ["0.6000", "0.5000", "0.7000"]
    assert relu["over_control"] == "1.1000"
    assert (relu["method"], relu["realised_sparsity"]) == ("relu_zeros", "0.0010")
    shown = "| llama-mini-relu | 60.0 % (50.0 to 70.0) | 8.800 | 1.100 | embedded | relu_zeros | 0% | 0.1% |"
    assert shown in page(data)


def test_budgets_and_a_recall_that_was_asked_for_are_said(tmp_path):
    card(tmp_path / "cards", "dense", 0.1, 8.0)
    model = {"name": "llama-mini-dense", "device": "cpu", "fingerprint": "f" * 64, "dtype": "float32"}
    told = {"name": "sparseinfer_recall", "config": {"name": "sparseinfer_recall", "recall": 0.99}}
    write_cell(tmp_path / "records", "teal", 0.5, 0, model=model)
    write_cell(
        tmp_path / "records", "sparseinfer_recall", 0.3, 0, model=model, method=told,
        plan={"seconds_by_stage": {}, "provenance": {"evaluations": 0}},
    )  # fmt: skip
    shown = page(read_models(tmp_path / "cards", tmp_path / "records"))
    assert "- Search budget: `quick` for `teal`.\n" in shown
    assert "`sparseinfer_recall`: α by block, at which 99.0% of every block's active neurons are" in shown
    assert "Search budget" not in page(read_models(tmp_path / "cards"))


def test_a_model_that_learnt_more_slowly_than_the_control_says_so(tmp_path):
    card(tmp_path, "dense", 0.1, 8.0)
    assert "control's learning rate" not in page(read_models(tmp_path))
    for name in ("lte", "lte_strong"):
        card(tmp_path, name, 0.8, 9.0, continuation={"routers": {"model_rate": 0.1, "hard_from": 0.6}})
    assert (
        "- `llama-mini-lte`, `llama-mini-lte_strong`: 0.1 of the control's learning rate for the first 60% of "
        in page(read_models(tmp_path))
    )


def test_the_papers_claim_stands_beside_what_was_found(tmp_path):
    card(tmp_path, "dense", 0.1, 8.0)
    assert "claims" not in page(read_models(tmp_path))
    card(tmp_path, "prosparse", 0.85, 8.4)
    assert "has 85.0% at 1.050 of its control's perplexity: not so" in page(read_models(tmp_path))
    card(tmp_path / "better", "dense", 0.1, 8.0)
    card(tmp_path / "better", "prosparse", 0.9, 7.9)
    assert "90.0% at 0.988 of its control's perplexity: so, too" in page(read_models(tmp_path / "better"))


def test_models_trained_on_from_another_stand_beside_what_that_was(tmp_path):
    card(tmp_path / "cards", "dense", 0.1, 8.0)
    card(tmp_path / "others", "dense", 0.1, 8.0, start="smollm2-135m")
    card(tmp_path / "others", "relu", 0.6, 8.8, start="smollm2-135m")
    suite = {"name": "wikitext", "config": {}}
    for name, method in (("smollm2-135m", "dense"), ("smollm2-135m-relu", "relu_zeros")):
        model = {"name": name, "device": "cpu", "fingerprint": name, "dtype": "float32"}
        write_cell(tmp_path / "records", method, 0.0, 0, model=model, suite=suite)
    data = read_models(tmp_path / "others", tmp_path / "records")
    assert [(row["model"], row["method"]) for row in rows(data)] == [
        ("smollm2-135m-dense", ""),
        ("smollm2-135m-relu", "relu_zeros"),
    ]
    shown = page(data)
    assert "of WikiText-2 (`wikitext`), of which `smollm2-135m` itself has 33.333. Realised" in shown
    assert "tokens of more text" not in shown
    embedded = page(read_models(tmp_path / "cards"))
    assert "`llama-mini` itself was 9.600, after 599,916,544 tokens of more text.\n" in embedded


def test_cells_of_two_suites_stand_apart_each_beside_its_own_start(tmp_path):
    card(tmp_path / "cards", "dense", 0.1, 8.0, start="smollm2-135m")
    measured = (
        ("smollm2-135m", "dense"),
        ("smollm2-135m-dense", "teal"),
        ("smollm2-135m-dense", "dense"),
    )
    for broken, suite in enumerate(("wikitext", "embedded")):
        for name, method in measured:
            model = {"name": name, "device": "cpu", "fingerprint": name, "dtype": "float32"}
            asked, suite_of = 0.5 * (method == "teal"), {"name": suite, "config": {}}
            write_cell(tmp_path / suite / name, method, asked, broken, model=model, suite=suite_of)
    data = read_models(tmp_path / "cards", tmp_path / "wikitext", tmp_path / "embedded")
    assert [(row["suite"], row["method"], row["perplexity"]) for row in rows(data)] == [
        ("embedded", "dense", "33.6664"), ("embedded", "teal", "33.6664"),
        ("wikitext", "dense", "33.3331"), ("wikitext", "teal", "33.3331"),
    ]  # fmt: skip
    assert (
        "of the suite's held-out texts (`embedded`), of which `smollm2-135m` itself has 33.666; and of "
        "WikiText-2 (`wikitext`), of which `smollm2-135m` itself has 33.333. Realised"
    ) in page(data)


def test_cards_of_two_starts_are_refused(tmp_path):
    for start in ("llama-mini", "smollm2-135m"):
        card(tmp_path, "dense", 0.1, 8.0, start=start)
    with pytest.raises(UserError, match="has llama-mini-dense, smollm2-135m-dense; keep the one which"):
        read_models(tmp_path)


def test_what_is_not_comparable_is_refused(tmp_path):
    card(tmp_path, "relu", 0.6, 8.8)
    with pytest.raises(UserError, match=r"has no MODEL-dense/training\.json, which"):
        read_models(tmp_path)
    card(tmp_path, "dense", 0.1, 8.0, tokens_seen=999)
    with pytest.raises(UserError, match="llama-mini-relu is of another tokens_seen"):
        read_models(tmp_path)


def test_cells_of_two_trainings_are_refused(tmp_path):
    card(tmp_path / "cards", "dense", 0.1, 8.0)
    for place, method in enumerate(("relu_zeros", "teal")):
        model = {
            "name": "llama-mini-dense",
            "device": "cpu",
            "fingerprint": str(place) * 64,
            "dtype": "float32",
        }
        write_cell(tmp_path / "records", method, 0.0, 0, model=model)
    with pytest.raises(UserError, match="cells of llama-mini-dense are of several trainings"):
        read_models(tmp_path / "cards", tmp_path / "records")


def test_of_a_cell_that_was_measured_again_the_newest_stands(tmp_path):
    card(tmp_path / "cards", "dense", 0.1, 8.0)
    model = {"name": "llama-mini-dense", "device": "cpu", "fingerprint": "f" * 64, "dtype": "float32"}
    for place, broken in (("a", 1), ("b", 0)):
        utc = f"2026-01-0{1 + broken}T00:00:00+00:00"
        write_cell(tmp_path / place, "teal", 0.5, broken, model=model, utc=utc)
    data = read_models(tmp_path / "cards", tmp_path / "a", tmp_path / "b")
    assert [row["perplexity"] for row in rows(data)] == ["33.6664"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 5}, "records of different seed do not belong in one table"),
        ({"config": CONFIG | {"protocol": {"name": "decode_only"}}}, "of different protocol do not belong"),
        ({"quantisation": {"config": {"name": "int8"}}}, "records of different quantisation do not belong"),
    ],
)
@pytest.mark.parametrize("method", ["teal", "wina"])
def test_cells_that_were_measured_otherwise_are_refused(tmp_path, changes, message, method):
    card(tmp_path / "cards", "dense", 0.1, 8.0)
    model = {"name": "llama-mini-dense", "device": "cpu", "fingerprint": "f" * 64, "dtype": "float32"}
    write_cell(tmp_path / "a", "teal", 0.5, 0, model=model)
    write_cell(tmp_path / "b", method, 0.5, 0, model=model, **changes)
    with pytest.raises(UserError, match=message):
        read_models(tmp_path / "cards", tmp_path / "a", tmp_path / "b")


def test_a_folder_without_cells_of_these_models_is_told(tmp_path):
    card(tmp_path / "cards", "dense", 0.1, 8.0)
    with pytest.raises(UserError, match="holds no records of this table; run"):
        read_models(tmp_path / "cards", tmp_path / "nothing")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out_perplexity": float("nan")}, "held_out_perplexity is nan, not a perplexity"),
        ({"held_out_perplexity": 0}, "held_out_perplexity is 0, not a perplexity"),
        ({"held_out_perplexity_tokens": None}, "held_out_perplexity_tokens is None, not a number of tokens"),
        ({"zeros_by_block": []}, r"zeros_by_block is \[\], not shares from 0 to 1"),
        ({"zeros_by_block": [2.0]}, r"zeros_by_block is \[2\.0\], not shares from 0 to 1"),
        ({"tokens_seen": "many"}, "tokens_seen is 'many', not a number of tokens"),
        ({"device": 3}, "device is 3, not the name of a device"),
    ],
)
def test_a_card_with_other_values_is_one_line(tmp_path, changes, message):
    card(tmp_path, "dense", 0.1, 8.0, **changes)
    with pytest.raises(UserError, match=rf"training\.json: {message}; train the model anew"):
        read_models(tmp_path)


@pytest.mark.parametrize("part", ["recipe", "text", "tokens_seen", "device", "held_out_perplexity",
                                  "held_out_perplexity_tokens", "zeros_by_block"])  # fmt: skip
def test_a_card_that_lacks_what_is_shown_is_one_line(tmp_path, part):
    card(tmp_path, "dense", 0.1, 8.0)
    path = tmp_path / "llama-mini-dense" / "training.json"
    content = json.loads(path.read_text())
    del content[part]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"training\.json lacks {part}; train the model anew"):
        read_models(tmp_path)


@pytest.mark.parametrize("written", [b"", b'{"a":', b"\xff\xfe\x00", b"[1]"])
def test_a_damaged_card_is_one_line(tmp_path, written):
    card(tmp_path, "dense", 0.1, 8.0)
    (tmp_path / "llama-mini-dense" / "training.json").write_bytes(written)
    with pytest.raises(UserError, match=r"training\.json (cannot be read|is not a JSON object)"):
        read_models(tmp_path)
