"""The hub: what is fetched, and the one line that says what to do. A folder stands in for a data set there."""

from __future__ import annotations

from urllib.error import HTTPError, URLError

import datasets
import httpx
import huggingface_hub
import pytest
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import RemoteEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from wisparse.method.errors import UserError
from wisparse.repro import prefetch
from wisparse.repro.configuration import CONFIGURATION, composing
from wisparse.repro.models.hub import fetch_dataset_file, fetch_model, go_offline_without_hub, load_hub_split
from wisparse.repro.text import data_sets
from wisparse.repro.text.data_sets import DataSource, load_split, row_text

from ..benchmark_data import write_split


@pytest.fixture
def configuration():
    with composing():
        yield


def test_a_split_is_loaded_as_the_hub_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr(data_sets, "check_hub_name", lambda name: None)  # a folder stands for the hub
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_split(tmp_path, "set", "train", [{"text": "one"}])
    write_split(tmp_path, "set", "test", [{"text": "two"}, {"text": "three"}])
    source = DataSource(str(tmp_path / "set"), None, "elsewhere")
    assert load_split(source, "test", None)["text"] == ["two", "three"]
    with pytest.raises(UserError, match="is not what was expected"):
        load_split(source, "validation", None)


def test_data_that_cannot_be_reached_name_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for ask in (
        lambda: load_hub_split("org/set", None, "test"),
        lambda: fetch_dataset_file("org/set", "a.jsonl"),
    ):
        with pytest.raises(
            UserError, match=r"prefetch PROFILE=paper` \(PROFILE=real: .*data.root=DIR"
        ) as caught:
            ask()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("failure", "offline"),
    [(URLError("no name"), True), (TimeoutError(), True), (HTTPError("url", 403, "no", {}, None), False)],
)
def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch, failure, offline):
    """Its clients would try every file five times; any answer, a refusal too, leaves them as they are."""
    asked = []

    def urlopen(*arguments: object, **_: object) -> None:
        asked.append(arguments)
        raise failure

    monkeypatch.setattr("wisparse.repro.models.hub.urlopen", urlopen)
    for place in ("huggingface_hub.constants", "datasets.config"):
        monkeypatch.setattr(f"{place}.HF_HUB_OFFLINE", False)
    go_offline_without_hub.cache_clear()
    for _ in range(2):
        go_offline_without_hub()
    go_offline_without_hub.cache_clear()
    assert len(asked) == 1
    assert huggingface_hub.constants.HF_HUB_OFFLINE == datasets.config.HF_HUB_OFFLINE == offline


def test_gated_or_absent_data_name_the_page(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise DatasetNotFoundError("Dataset 'org/set' is a gated dataset on the Hub.")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(UserError, match=r"https://huggingface\.co/datasets/org/set, then run `hf auth login`"):
        load_hub_split("org/set", None, "test")


def test_a_file_that_a_data_set_lacks_is_named(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        response = httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co"))
        raise RemoteEntryNotFoundError("absent", response=response)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(UserError, match=r"org/set has no file a\.jsonl"):
        fetch_dataset_file("org/set", "a.jsonl")


@pytest.mark.slow
def test_prefetch_asks_for_everything_once(configuration):
    names = [name for name, _ in prefetch.steps(prefetch.PROFILES["paper"])]
    assert len(names) == len(set(names))
    assert [name for name in names if name.startswith("model ")] == [
        "model meta-llama/Llama-3.1-8B-Instruct",
        "model mistralai/Mistral-7B-Instruct-v0.3",
        "model Qwen/Qwen2.5-7B-Instruct",
    ]
    for needed in (
        "openai/gsm8k main train", "openai/openai_humaneval test", "cais/mmlu all test",
        "Rowan/hellaswag validation", "Salesforce/wikitext wikitext-2-raw-v1 test",
        "Salesforce/wikitext wikitext-2-raw-v1 train", "mit-han-lab/pile-val-backup validation",
        "meta-math/MetaMathQA train", "sahil2801/CodeAlpaca-20k train", "allenai/c4 train",
    ):  # fmt: skip
        assert f"data {needed}" in names


@pytest.mark.slow
def test_whoever_wants_the_real_model_fetches_no_other(configuration):
    names = [name for name, _ in prefetch.steps(prefetch.PROFILES["real"])]
    assert [name for name in names if name.startswith("model ")] == ["model smollm2-135m"]
    for needed in (
        "Salesforce/wikitext wikitext-2-raw-v1 test",
        "EleutherAI/lambada_openai default test",
        "allenai/sciq test",
    ):
        assert f"data {needed}" in names
    paper = [name for name, _ in prefetch.steps(prefetch.PROFILES["paper"])]
    assert set(names) - {"model smollm2-135m"} <= set(paper)


@pytest.mark.slow
def test_prefetch_goes_on_after_what_it_cannot_have_and_counts_it(configuration, monkeypatch, capsys):
    def fetch(name: str, _revision: str | None) -> None:
        if "Mistral" in name:
            raise UserError("no network")

    monkeypatch.setattr(prefetch, "fetch_model", fetch)
    monkeypatch.setattr(prefetch, "load_split", lambda *_: None)
    assert prefetch.prefetch("paper") == 1
    captured = capsys.readouterr()
    assert captured.err == "error: model mistralai/Mistral-7B-Instruct-v0.3: no network\n"
    assert captured.out.count(": here\n") == len(list(prefetch.steps(prefetch.PROFILES["paper"]))) - 1


def test_there_is_nothing_to_fetch_for_the_embedded_models(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["prefetch", "quick"])
    with pytest.raises(SystemExit) as stopped:
        prefetch.main()
    assert stopped.value.code == 2
    assert "choose paper" in capsys.readouterr().err


def test_the_text_of_a_row_is_all_its_strings():
    row = {"question": "Why?", "label": 3, "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "none": None}
    assert row_text(row) == "Why?\na\nb\nA\nB"


def test_one_copy_of_the_weights_is_fetched(monkeypatch, tmp_path):
    published = [
        "config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors.index.json",
        "model-00001-of-00002.safetensors", "consolidated.safetensors", "original/consolidated.00.pth",
        "original/params.json", "pytorch_model.bin", "README.md",
    ]  # fmt: skip

    def snapshot(name, *, revision, allow_patterns, ignore_patterns):
        assert (name, revision) == ("org/model", "main")
        wanted = filter_repo_objects(published, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        assert list(wanted) == published[:5]
        return tmp_path

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert fetch_model("org/model", "main") == tmp_path


@pytest.mark.parametrize("name", ["/", ".", "..", "a/b/c", "", "~", "repro"])
def test_a_data_set_is_no_folder(name, monkeypatch):
    """`datasets` would walk through a folder of that name, the whole disk under "/"."""
    monkeypatch.chdir(CONFIGURATION.parent)
    with pytest.raises(UserError, match="is no data set of the hub"):
        load_split(DataSource(name, None, "nowhere"), "train", None)
