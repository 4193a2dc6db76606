"""The `mpt-serve` program."""

import sys

from mpt_serve.commands.app import main

__all__ = ["main"]


if __name__ == "__main__":
    sys.exit(main())
