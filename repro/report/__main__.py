"""The page of all results, as `python -m wisparse.repro.report`."""

from .page import main

if __name__ == "__main__":
    main()
