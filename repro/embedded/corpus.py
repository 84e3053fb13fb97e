"""Training and held-out text: the Python sources installed on this machine."""

from __future__ import annotations

import hashlib
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

HELD_OUT_PACKAGES = ("networkx", "sympy")
"""Never trained on: the embedded tasks and the held-out perplexity are made from these."""

SHORTEST_FILE, LONGEST_FILE = 200, 200_000
"""Characters; shorter files say nothing, longer ones are generated tables."""


def read_source(path: Path) -> str | None:
    """Text of one source file, or None when it is not UTF-8 or outside the length limits."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return text if SHORTEST_FILE < len(text) < LONGEST_FILE else None


def package_sources(package_folder: Path) -> Iterator[tuple[Path, str]]:
    """Usable Python files below a folder with their texts, sorted by path."""
    for path in sorted(package_folder.rglob("*.py")):
        text = read_source(path)
        if text is not None:
            yield path, text


def _is_held_out(path: Path, site_packages: Path) -> bool:
    return path.is_relative_to(site_packages) and any(
        part in HELD_OUT_PACKAGES for part in path.relative_to(site_packages).parts
    )


def training_and_held_out_texts(seed: int = 0) -> tuple[list[str], list[str]]:
    """All installed sources, split: (training texts shuffled by `seed`, held-out texts by path).

    Exact copies are dropped, and so is any training file that equals a held-out one.
    """
    site_packages = Path(sysconfig.get_paths()["purelib"])
    standard_library = Path(sysconfig.get_paths()["stdlib"])
    # Where site-packages lies inside the standard library's folder, the second walk meets it again.
    found = dict(package_sources(site_packages)) | dict(package_sources(standard_library))
    held_out = [text for path, text in sorted(found.items()) if _is_held_out(path, site_packages)]
    seen = {hashlib.sha256(text.encode()).digest() for text in held_out}
    training = []
    for path, text in sorted(found.items()):
        digest = hashlib.sha256(text.encode()).digest()
        if not _is_held_out(path, site_packages) and digest not in seen:
            seen.add(digest)
            training.append(text)
    random.Random(seed).shuffle(training)
    return training, held_out
