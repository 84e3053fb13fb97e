"""Every printed claim, as `python -m wisparse.repro.claims`."""

from .verify import main

if __name__ == "__main__":
    main()
