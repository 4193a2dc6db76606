"""The `mpt-serve` command line: one module for each command, which imports what it needs only when it runs."""
