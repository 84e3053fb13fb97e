"""Safetensors files as they are written here: as open to others as their folder, errors as the system's."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ...kernels.shared_files import file_mode


def write_tensors(
    tensors: Mapping[str, Tensor],
    file: Path,
    metadata: dict[str, str] | None = None,
    named: Path | None = None,
) -> None:
    """Write contiguous tensors of a CPU, and text beside them.

    named: what an error names, the file's folder unless told otherwise. Raises OSError for what the system
    refuses, such as a full disk.
    """
    try:
        save_file(dict(tensors), file, metadata)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        # As other writes fail: a full disk and a bound on file sizes are told apart by their number alone.
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(named or file.parent)) from error
    file.chmod(file_mode(file.parent))  # safetensors lets nobody else read what it writes
