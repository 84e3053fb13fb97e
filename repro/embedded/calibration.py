"""Calibration text from installed packages: what the embedded models' cells are calibrated on.

`python -m wisparse.repro.embedded.calibration --write-manifest` renews the manifest.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...method.errors import UserError
from ...method.tokens import docstrings, pack
from ..configuration import mistakes_in_one_line
from ..records import write_json
from ..text.calibration_text import ShuffledTexts
from ..text.overlap import apart_from
from .corpus import package_sources
from .items import EMBEDDED
from .sources import long_texts

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

PACKAGE = "datasets"
"""Its sources are the calibration text: pinned by the lock, and no part of the held-out text."""

MANIFEST = Path(__file__).with_name("calibration_manifest.json")


@dataclass(frozen=True)
class InstalledPackageText(ShuffledTexts):
    """Python files of the installed `datasets` package."""

    source: ClassVar[str] = f"the sources of `{PACKAGE}`"

    def files(self) -> list[Path]:
        """The manifest that the text is checked against."""
        return [MANIFEST]

    def texts(self) -> list[str]:
        """The package's usable sources; raises UserError when it is not the expected one."""
        return expected_package_texts()


@dataclass(frozen=True)
class DocstringText(InstalledPackageText):
    """English instead of code: the docstrings of those files alone."""

    def input_ids(self, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """(sequences, length) token ids."""
        texts = [docstrings(text) for text in expected_package_texts()]
        random.Random(self.seed).shuffle(texts)
        return pack(
            filter(None, texts), tokenizer, self.sequences, self.length, f"the docstrings of `{PACKAGE}`"
        )


@dataclass(frozen=True)
class UnseenText(InstalledPackageText):
    """Code that the embedded models were not trained on, of files that no evaluation item is made from."""

    piece: int
    """Characters of one file, at most."""

    def input_ids(self, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """(sequences, length) token ids; raises UserError when the packages are not the expected ones."""
        texts = unseen_texts(self.seed, self.piece)
        return pack(texts, tokenizer, self.sequences, self.length, "the long files of sympy and networkx")


@lru_cache(maxsize=8)
def unseen_texts(seed: int, characters: int) -> tuple[str, ...]:
    """A piece of every such file in an order shuffled by `seed`, found once a process."""
    items = list(EMBEDDED.texts())  # checks the versions of the packages
    generator = random.Random(seed)
    texts = apart_from([piece(text, characters, generator) for text in long_texts()], items)
    generator.shuffle(texts)
    return tuple(texts)


def piece(text: str, characters: int, generator: random.Random) -> str:
    """So many characters from the beginning of a line, so that no single file rules the calibration."""
    start = generator.randrange(max(1, len(text) - characters))
    return text[text.find("\n", start) + 1 :][:characters]


def expected_package_texts() -> list[str]:
    """The package's usable sources by path; raises UserError when version or text are not the expected ones."""
    found, texts = installed_package()
    expected = json.loads(MANIFEST.read_text(encoding="utf-8"))
    if found != expected:
        raise UserError(
            f"calibration text: expected {PACKAGE} {expected['version']} (sha256 {expected['sha256'][:12]}), "
            f"found {found['version']} (sha256 {found['sha256'][:12]}); run `pip install --force-reinstall "
            f"{PACKAGE}=={expected['version']}`, or use calibration=file calibration.path=FILE"
        )
    return texts


def installed_package() -> tuple[dict[str, Any], list[str]]:
    """Manifest entry of the installed package, and its texts; the package is not imported."""
    specification = importlib.util.find_spec(PACKAGE)
    if specification is None or specification.origin is None:
        raise UserError(f"the package {PACKAGE} is not installed; run `make setup`")
    folder = Path(specification.origin).parent
    sources = list(package_sources(folder))
    hasher = hashlib.sha256()
    for path, text in sources:
        hasher.update(f"{path.relative_to(folder).as_posix()}\0{text}\0".encode())
    manifest = {
        "package": PACKAGE,
        "version": importlib.metadata.version(PACKAGE),
        "files": len(sources),
        "sha256": hasher.hexdigest(),
    }
    return manifest, [text for _, text in sources]


@mistakes_in_one_line()
def main() -> None:
    """Show what is installed; with --write-manifest, make it what is expected."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--write-manifest", action="store_true")
    arguments = parser.parse_args()
    found, _ = installed_package()
    print(json.dumps(found))
    if arguments.write_manifest:
        write_json(MANIFEST, found)


if __name__ == "__main__":
    main()
