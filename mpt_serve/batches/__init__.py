"""Batches: files of requests, and the files of their results. Without HTTP and without Ray."""
