"""`python -m mpt_serve`: the same as `mpt-serve`."""

import sys

from mpt_serve.commands.app import main

if __name__ == "__main__":
    sys.exit(main())
