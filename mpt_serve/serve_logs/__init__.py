"""The log files that Ray Serve writes on this machine, read without Ray."""
