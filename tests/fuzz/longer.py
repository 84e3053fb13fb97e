"""Fuzzing with new seeds until the minutes are over or an example fails: `make fuzz MINUTES=10`."""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def main(minutes: float) -> int:
    """Rounds of all tests, each with its seed; returns the exit code of the last."""
    os.environ["WISPARSE_FUZZ"] = "1"
    end, rounds = time.monotonic() + 60 * minutes, 0
    while time.monotonic() < end:
        seed, rounds = random.SystemRandom().randrange(2**32), rounds + 1
        print(f"round {rounds}: --hypothesis-seed={seed}", flush=True)
        arguments = ["-q", "-n0", "-x", "--show-capture=no", "--tb=short", f"--hypothesis-seed={seed}"]
        if code := pytest.main([*arguments, str(HERE)]):
            return int(code)
    print(f"{rounds} rounds, and no example failed")
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
