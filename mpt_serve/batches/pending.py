"""What is left to do of a batch."""

from collections.abc import Iterator
from pathlib import Path

from mpt_serve.batches.input_lines import BadLineError, BatchLine, parse_line, read_lines
from mpt_serve.batches.result_files import ResultFiles
from mpt_serve.batches.results import Result

__all__ = ["pending"]


def pending(file: Path, results: ResultFiles, endpoint: str | None = None) -> Iterator[BatchLine | Result]:
    """Yield the requests of an input file without a result, and results for lines that are no requests, in order.

    Of several lines with one custom_id the first counts, so that none has two results. endpoint: of all requests; None
    for any. Raises OSError.
    """
    seen: set[str] = set()
    for number, line in read_lines(file):
        try:
            request = parse_line(number, line, endpoint)
            if request.custom_id in seen:
                message = f"Line {number}: an earlier line has the same 'custom_id'."
                raise BadLineError("duplicate_custom_id", message)
            seen.add(request.custom_id)
            if request.custom_id not in results.finished:
                yield request
        except BadLineError as error:
            if error.custom_id in seen:
                error.custom_id = None
            elif error.custom_id is not None:
                seen.add(error.custom_id)
            if number not in results.bad_lines:
                yield Result.of_bad_line(number, error)
