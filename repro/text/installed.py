"""Installed packages as a source of text: their versions and their folders, without importing them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path

from ...method.errors import UserError


def installed_versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Versions of these packages on this machine; None for one that is not installed."""
    versions: dict[str, str | None] = {}
    for package in sorted(packages):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def require_versions(text: str, expected: Mapping[str, str], found: Mapping[str, str | None]) -> None:
    """Raise UserError unless the packages that `text` is made from have the expected versions."""
    wrong = {package: found.get(package) for package in expected if found.get(package) != expected[package]}
    if wrong:
        differences = "; ".join(
            f"{package} {expected[package]} is expected and {version or 'none'} is installed"
            for package, version in sorted(wrong.items())
        )
        needed = pins({package: expected[package] for package in wrong})
        raise UserError(f"{text} need other versions: {differences}: run pip install {needed}")


def pins(versions: Mapping[str, str]) -> str:
    """Arguments of pip that ask for these versions."""
    return " ".join(f"{package}=={version}" for package, version in sorted(versions.items()))


def package_folder(package: str, module: str | None = None) -> Path:
    """Folder of an installed package, found without importing it; `module` where it is imported as another."""
    spec = importlib.util.find_spec(module or package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"package {package} is not installed: pip install {package}")
    return Path(next(iter(spec.submodule_search_locations)))
