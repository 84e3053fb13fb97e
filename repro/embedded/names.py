"""Names of the embedded models."""

from __future__ import annotations

from pathlib import Path

EMBEDDED = frozenset(path.name for path in (Path(__file__).parent / "models").iterdir())
"""Names of the embedded models; measurements on them decide no printed claim."""
