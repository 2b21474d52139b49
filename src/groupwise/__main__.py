"""`python -m groupwise`: the command, where it is not on the path."""

import sys

from groupwise.cli import main

if __name__ == "__main__":
    sys.exit(main())
