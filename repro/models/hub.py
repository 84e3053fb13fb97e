"""The Hugging Face hub: fetch a model or a data set, or say in one line what to do where that fails.

Everything fetched stays in the hub's own cache; with it filled, all of this works with HF_HUB_OFFLINE=1.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.request import urlopen

from ...method.errors import UserError

if TYPE_CHECKING:
    import datasets

MODEL_PATTERNS = ["*.json", "*.safetensors", "tokenizer.model", "merges.txt", "vocab.txt", "*.jinja"]
"""A checkpoint and its tokenizer."""

SECOND_COPIES = ["original/*", "consolidated*"]
"""The same weights under other names, which some repositories hold besides: another 14 to 16 GB."""

HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
"""NAME or OWNER/NAME."""
PREFETCH = "`make prefetch PROFILE=paper` (PROFILE=real: without the 7-8B models)"
PATIENCE = 10.0
"""Seconds in which the hub has to answer at all."""


@cache
def go_offline_without_hub() -> None:
    """Work as with HF_HUB_OFFLINE=1 if the hub does not answer: its clients would ask half a minute each."""
    import datasets
    import huggingface_hub.constants as hub

    try:
        if not hub.HF_HUB_OFFLINE:
            urlopen(hub.ENDPOINT, timeout=PATIENCE).close()
    except HTTPError:
        pass  # an answer
    except OSError:
        hub.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True


def fetch_model(name: str, revision: str | None) -> Path:
    """The model's snapshot on this disk, downloaded where it is not; never tries a second source."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    go_offline_without_hub()
    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=MODEL_PATTERNS, ignore_patterns=SECOND_COPIES
            )
        )
    except HFValidationError as error:
        raise UserError(f"model.id={name} is no hub name; it looks like ORG/NAME") from error
    except GatedRepoError as error:
        raise UserError(
            f"{name} is gated: ask for access at https://huggingface.co/{name}, then run `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"{name} has no revision '{revision}'; leave model.revision out for the default"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"the hub has no model {name}, or it is private: check the name or run `hf auth login`"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"{name} is not on this disk and the hub cannot be reached: run `hf download {name}` on a machine "
            "with a network and use model.path=DIR (model=local for other models)"
        ) from error


def check_hub_name(name: str) -> None:
    """Raises UserError for what is no name of a data set: `datasets` would walk through a folder, even "/"."""
    if not HUB_NAME.fullmatch(name) or Path(name).exists():
        raise UserError(f"'{name}' is no data set of the hub (OWNER/NAME); data.root=DIR reads from a folder")


def load_hub_split(name: str, config: str | None, split: str) -> datasets.Dataset:
    """A split of a data set on the hub, through `datasets`' own cache."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    go_offline_without_hub()
    try:
        return datasets.load_dataset(name, config, split=split)
    except DatasetNotFoundError as error:
        raise UserError(
            f"the hub has no data set {name}, or it is private or gated: look at "
            f"https://huggingface.co/datasets/{name}, then run `hf auth login`"
        ) from error
    except ConnectionError as error:
        raise _unreachable(name) from error
    except ValueError as error:  # an unknown configuration or split
        brief = " ".join(str(error).split())[:160]
        raise UserError(f"the hub's data set {name} is not what was expected ({brief})") from error


def fetch_dataset_file(name: str, file: str) -> Path:
    """One file of a data set's repository, downloaded where it is not on this disk."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RemoteEntryNotFoundError

    go_offline_without_hub()
    try:
        return Path(hf_hub_download(name, file, repo_type="dataset"))
    except RemoteEntryNotFoundError as error:
        raise UserError(f"the hub's data set {name} has no file {file}; name another one") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise _unreachable(name) from error


def _unreachable(name: str) -> UserError:
    return UserError(
        f"the data set {name} is not on this disk and the hub cannot be reached: run {PREFETCH} where there is "
        "a network, or read a local mirror with data.root=DIR"
    )
