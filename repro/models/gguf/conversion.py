"""GGUF files: one is turned once into an ordinary checkpoint folder, which every later run loads.

The `gguf` package dequantises the weights, transformers reads the tokenizer. Transformers' own loader is not
used: it takes 20 to 50 seconds for a model of 135 M, leaves out the frequencies of a Llama 3, and fills what it
does not find. Here a file comes over whole or is refused in one line.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....method.errors import UserError
from ..content_hash import file_sha256
from ..model_cache import made_once

if TYPE_CHECKING:
    from .header import Header

MAGIC = b"GGUF"
ORIGIN = "gguf.json"
"""File of a converted folder that says what it was made of."""

SUMS = "sha256.json"
"""File of a converted folder with the hash of every other one, against which they are checked."""

CONVERSION = 2
"""Raised whenever the same file becomes another checkpoint: older folders of the cache are then left alone."""

SPLIT = re.compile(r"-\d{5}-of-(?!00001)\d{5}\.gguf$")
TRANSFORMERS = (5, 20)
"""First release whose GGUF reader knows how each vocabulary splits text."""


@dataclass(frozen=True)
class Origin:
    """The GGUF file that a checkpoint was made of."""

    file: str
    bytes: int
    sha256: str
    quantisation: str
    """Type that holds most of the weights, such as Q4_1."""
    types: tuple[tuple[str, int], ...]
    """Types of the tensors and how many there are of each, the most frequent first."""
    readers: tuple[tuple[str, str], ...]
    """Packages that read it, and their versions."""
    package: str = field(default="", kw_only=True)
    """Package that carried the file, and its version and hash; empty for a file of one's own."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, as records have it."""
        content = asdict(self) | {"types": dict(self.types), "readers": dict(self.readers)}
        return content if self.package else {key: content[key] for key in content if key != "package"}


def is_gguf(path: Path) -> bool:
    """Whether a path is a file that calls itself GGUF, by its name or by its first bytes."""
    return path.is_file() and (path.suffix == ".gguf" or is_gguf_content(path))


def is_gguf_content(path: Path) -> bool:
    """Whether a file begins as GGUF does."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def only_gguf(folder: Path) -> Path | None:
    """The GGUF file of a folder without a config.json; None where it has none.

    Raises UserError where there are several.
    """
    if (folder / "config.json").exists():
        return None
    found = sorted(folder.glob("*.gguf"))
    if len(found) > 1:
        raise UserError(
            f"{folder} holds {len(found)} GGUF files; name one: model=gguf model.path={found[0]} for example"
        )
    return found[0] if found else None


def converted(file: Path) -> tuple[Path, Origin]:
    """A checkpoint folder made of a GGUF file, and where it came from; makes it where the cache has none.

    Raises UserError for what is no whole GGUF file of a supported family, or does not come over unchanged.
    """
    _check_file(file)
    _check_packages()
    sha256 = file_sha256(file)
    readers = _readers()
    key = hashlib.sha256(json.dumps([sha256, CONVERSION, readers]).encode()).hexdigest()[:32]
    folder = made_once(f"gguf/{key}", lambda unfinished: _convert(file, sha256, unfinished), _is_whole)
    content = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    pairs = {name: tuple(content[name].items()) for name in ("types", "readers")}
    # A copy of the file under another name is the same checkpoint; the record names the one that was asked for.
    return folder, Origin(**content | pairs | {"file": file.name})


def _is_whole(folder: Path) -> bool:
    """Whether every file of a converted folder is as it was written."""
    try:
        return bool(json.loads((folder / SUMS).read_text(encoding="utf-8")) == _sums(folder))
    except (OSError, ValueError):
        return False


def _sums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / SUMS
    }


def _readers() -> dict[str, str]:
    return {name: version(name) for name in ("gguf", "transformers")}


def _check_packages() -> None:
    try:
        found = _readers()
    except ImportError as error:
        raise UserError(
            f"reading GGUF needs the package {error.name}: pip install 'wisparse[suite]'"
        ) from error
    if tuple(int(part) for part in found["transformers"].split(".")[:2]) < TRANSFORMERS:
        wanted = ".".join(map(str, TRANSFORMERS))
        raise UserError(
            f"reading GGUF needs transformers {wanted} or later, and {found['transformers']} is installed; "
            f"pip install 'transformers>={wanted}'"
        )


def _check_file(file: Path) -> None:
    """Refuse what must not be hashed or converted first: a missing file, one of another kind, a part."""
    if not file.is_file():
        raise UserError(f"model.path={file} is not there; give a GGUF file or a folder with a checkpoint")
    if not is_gguf_content(file):
        raise UserError(f"{file} is no GGUF file: it does not begin with GGUF; fetch it again")
    if SPLIT.search(file.name):
        raise _split(file)


def _split(file: Path) -> UserError:
    return UserError(f"{file} is one part of several; join them first: llama-gguf-split --merge FIRST WHOLE")


def _convert(file: Path, sha256: str, folder: Path) -> None:
    from .config import configuration
    from .header import read_header
    from .tokenizer import save_tokenizer
    from .values import INDEX
    from .weights import checked_names, save_weights

    header = read_header(file)
    if header.value("split.count", INDEX, 0) > 1:
        raise _split(file)
    config = configuration(header)
    names = checked_names(header, config)
    save_tokenizer(header, folder)
    print(
        f"{file.name}: {header.bytes / 1e6:.0f} MB are dequantised once, into {folder.parent}", file=sys.stderr
    )
    save_weights(header, config, names, folder)
    config.save_pretrained(folder)
    _generation(header, config, folder)
    types = _types(header)
    origin = Origin(
        file.name, header.bytes, sha256, _quantisation(header), tuple(types.items()), tuple(_readers().items())
    )
    (folder / ORIGIN).write_text(json.dumps(origin.to_dict(), indent=1) + "\n", encoding="utf-8")
    (folder / SUMS).write_text(json.dumps(_sums(folder), indent=1) + "\n", encoding="utf-8")


def _types(header: Header) -> dict[str, int]:
    return dict(Counter(tensor.type.name for tensor in header.tensors.values()).most_common())


def _quantisation(header: Header) -> str:
    weights: Counter[str] = Counter()
    for tensor in header.tensors.values():
        weights[tensor.type.name] += tensor.weights
    return weights.most_common(1)[0][0]


def _generation(header: Header, config: Any, folder: Path) -> None:
    """Write generation_config.json: a turn's end ends a text, too."""
    from transformers import GenerationConfig

    from .config import token_id

    ends = [config.eos_token_id, token_id(header, "eot")]
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=ends if len(ends) > 1 else config.eos_token_id,
        pad_token_id=config.pad_token_id,
    ).save_pretrained(folder)
