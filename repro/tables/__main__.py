"""Tables from records, as `python -m wisparse.repro.tables`."""

from .make import main

if __name__ == "__main__":
    main()
