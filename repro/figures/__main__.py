"""Figures from records, as `python -m wisparse.repro.figures`."""

from .make import main

if __name__ == "__main__":
    main()
