"""The console command, for a Python whose scripts are not on the path: `python -m wisparse`."""

from .command_line import main

if __name__ == "__main__":
    main()
