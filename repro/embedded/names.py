"""Names of the embedded models."""

from __future__ import annotations

from pathlib import Path

EMBEDDED = frozenset(path.name for path in (Path(__file__).parent / "models").iterdir())
"""What is measured on these models decides no printed claim."""
