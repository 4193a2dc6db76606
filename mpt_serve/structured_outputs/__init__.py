"""Output that must match a schema, a regular expression or a grammar."""
