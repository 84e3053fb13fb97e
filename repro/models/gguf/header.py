"""What a GGUF file says about itself: its keys and values, and its table of tensors.

The format is llama.cpp's, versions 2 and 3, little-endian. Transformers' reader knows fewer types of tensors;
that of the `gguf` package takes seconds, for it makes an array of every word of the vocabulary.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from ....method.errors import UserError
from .values import COUNT, TEXT, Kind

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Types of values by their number, as `struct` has them."""

STRING, ARRAY = 8, 9
LONGEST_ARRAY = 1024
"""Elements of an array that is kept; of longer ones, which are the vocabulary's, the length is."""

EXACT = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types that safetensors has as well; all others become float32, which holds their values exactly."""


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in its file, and of which type it is."""

    shape: tuple[int, ...]
    """Sizes in torch's order: rows are outputs."""
    type: GGMLQuantizationType
    start: int
    bytes: int

    @property
    def weights(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Type that its values are kept in."""
        return EXACT.get(self.type.name, torch.float32)


@dataclass(frozen=True)
class Header:
    """All that a GGUF file says about itself."""

    file: Path
    bytes: int
    metadata: dict[str, Any]
    """Its keys and values; of long arrays the length."""
    tensors: dict[str, Tensor]

    @property
    def architecture(self) -> str:
        """Name of the architecture, as llama.cpp has it."""
        return str(self.value("general.architecture", TEXT))

    def value(self, key: str, kind: Kind, default: Any = None) -> Any:
        """Value of a key, or the default where it is absent; raises UserError where it is of another kind."""
        value = self.metadata.get(key)
        return default if value is None else kind.check(self.file, key, value)

    def values(self, name: str) -> np.ndarray:
        """Values of a tensor, dequantised where it is quantised, of its shape."""
        tensor = self.tensors[name]
        raw = np.asarray(np.memmap(self.file, np.uint8, "r", tensor.start, (tensor.bytes,)))
        return dequantize(raw.reshape(*tensor.shape[:-1], -1), tensor.type).reshape(tensor.shape)


def read_header(file: Path) -> Header:
    """Read it; raises UserError for a file that is none, damaged or truncated, or has unknown types."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        reader = _Reader(file, stream, size)
        reader.check_version()
        with reader.damage():
            n_tensors, n_keys = reader.numbers("QQ")
            metadata = dict(reader.entry() for _ in range(n_keys))
            table = [reader.tensor() for _ in range(n_tensors)]
            alignment = COUNT.check(file, "general.alignment", metadata.get("general.alignment", 32))
            start = -(-stream.tell() // alignment) * alignment
    tensors = {name: _tensor(file, name, shape, kind, start + offset) for name, shape, kind, offset in table}
    end = max((tensor.start + tensor.bytes for tensor in tensors.values()), default=0)
    if not tensors or end > size:
        raise UserError(f"{file} is truncated: it has {size} bytes, its header says {end}; fetch it again")
    in_order = sorted((tensor.start, tensor.start + tensor.bytes, name) for name, tensor in tensors.items())
    for (_, stop, name), (begin, _, other) in pairwise(in_order):
        if begin < stop:
            raise UserError(f"{file} is damaged: {name} and {other} share bytes; fetch it again")
    return Header(file, size, metadata, tensors)


class _Reader:
    """Values of a header, one after the other."""

    def __init__(self, file: Path, stream: BinaryIO, size: int) -> None:
        self.file, self.stream, self.size = file, stream, size

    @contextmanager
    def damage(self) -> Iterator[None]:
        """What is no header in here becomes one line."""
        try:
            yield
        except (struct.error, ValueError, TypeError, ArithmeticError) as error:
            raise UserError(
                f"{self.file} is truncated or damaged: its header cannot be read; fetch it again"
            ) from error

    def check_version(self) -> None:
        """Raises UserError for what is no GGUF file of a version and byte order that is read here."""
        with self.damage():
            magic, version = self.numbers("4sI")
        if magic != MAGIC:
            raise UserError(f"{self.file} is no GGUF file: it does not begin with GGUF; fetch it again")
        if version % (1 << 16) == 0:
            raise UserError(f"{self.file} is written for big-endian machines; take the little-endian file")
        if version not in VERSIONS:
            raise UserError(f"{self.file} is GGUF of version {version}; versions 2 and 3 are supported")

    def bytes(self, count: int) -> bytes:
        """The next bytes; raises ValueError where the file ends before."""
        self._check(count)
        return self.stream.read(count)

    def skip(self, count: int) -> None:
        """Pass over bytes; raises ValueError where the file ends before."""
        self._check(count)
        self.stream.seek(count, os.SEEK_CUR)

    def _check(self, count: int) -> None:
        if count > self.size - self.stream.tell():
            raise ValueError("the file ends")

    def numbers(self, kinds: str) -> tuple[Any, ...]:
        """The next numbers of such kinds."""
        return struct.unpack(f"<{kinds}", self.stream.read(struct.calcsize(f"<{kinds}")))

    def string(self) -> str:
        """The next string."""
        return self.bytes(self.numbers("Q")[0]).decode("utf-8")

    def entry(self) -> tuple[str, Any]:
        """The next key with its value."""
        return self.string(), self.value(self.numbers("I")[0])

    def value(self, kind: int) -> Any:
        """The next value of a kind; of a long array its length."""
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.numbers(self._scalar(kind))[0]
        inner, count = self.numbers("IQ")
        if inner == ARRAY:
            raise ValueError("arrays of arrays are in no file that llama.cpp reads")
        if count <= LONGEST_ARRAY:
            return [self.value(inner) for _ in range(count)]
        if inner != STRING:
            self.skip(count * struct.calcsize(self._scalar(inner)))
        else:
            for _ in range(count):
                self.skip(self.numbers("Q")[0])
        return count

    def _scalar(self, kind: int) -> str:
        if kind not in SCALARS:
            raise ValueError(f"there is no type {kind} of values")
        return SCALARS[kind]

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """The next tensor: its name, shape in torch's order, number of its type, and offset."""
        name = self.string()
        (dimensions,) = self.numbers("I")
        if dimensions > 4:
            raise ValueError(f"{name} has {dimensions} dimensions")
        shape = self.numbers(f"{dimensions}Q")
        kind, offset = self.numbers("IQ")
        return name, tuple(reversed(shape)), kind, offset


def _tensor(file: Path, name: str, shape: tuple[int, ...], number: int, start: int) -> Tensor:
    if number not in _types():
        raise UserError(f"{file}: {name} is of type {number}, which the gguf package cannot dequantise")
    kind = GGMLQuantizationType(number)
    block, size = GGML_QUANT_SIZES[kind]
    if not shape or shape[-1] % block:
        raise UserError(f"{file} is damaged: {name} of shape {list(shape)} cannot be of type {kind.name}")
    return Tensor(shape, kind, start, math.prod(shape) // block * size)


@cache
def _types() -> set[int]:
    """Numbers of the types that can be dequantised; the `gguf` package has no list of them."""
    found = set()
    for kind, (_, size) in GGML_QUANT_SIZES.items():
        with suppress(NotImplementedError):
            dequantize(np.zeros((1, size), dtype=np.uint8), kind)
            found.add(int(kind))
    return found
