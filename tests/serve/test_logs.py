"""What the logs hold: no text of clients, one line for each request."""

import asyncio
import gc
import logging
import re
from collections.abc import Iterator

import pytest
from ray.exceptions import RayTaskError

from mpt_serve.deployments.logs import ClientTextFilter, traceback_without_messages
from mpt_serve.errors import RequestError

SECRET = "zebra-quilt-harbour"


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """The lines of Serve's logger behind the filter."""
    formatted: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            formatted.append(self.format(record))

    handler = Collector()
    handler.addFilter(ClientTextFilter())
    loggers = [logging.getLogger(name) for name in ("ray.serve", "asyncio")]
    for logger in loggers:
        logger.addHandler(handler)
    yield formatted
    for logger in loggers:
        logger.removeHandler(handler)


def fail(error: Exception) -> None:
    try:
        raise KeyError(SECRET)
    except KeyError:
        raise error from None


def test_tracebacks_have_frames_and_types_without_messages(lines: list[str]) -> None:
    logger = logging.getLogger("ray.serve")
    try:
        fail(ValueError(SECRET))
    except ValueError as error:
        logger.exception("Request failed.")
        try:
            raise RuntimeError(SECRET) from error
        except RuntimeError:
            logger.exception("Again.")
    assert len(lines) == 2
    assert SECRET not in "".join(lines)
    assert re.search(r'test_logs.py", line \d+, in fail\nbuiltins.ValueError\n', lines[0])
    assert lines[1].index("builtins.ValueError") < lines[1].index("builtins.RuntimeError")


def test_errors_of_other_processes_have_their_frames() -> None:
    remote = f'Traceback:\n  File "/srv/engine.py", line 7, in step\n    do("it")\nValueError: {SECRET}'
    error = RayTaskError("step", remote, ValueError(SECRET))
    text = traceback_without_messages(error)
    assert '  File "/srv/engine.py", line 7, in step' in text
    assert SECRET not in text


def test_refusals_and_calls_are_not_logged_by_serve(lines: list[str]) -> None:
    logger = logging.getLogger("ray.serve")
    try:
        fail(RequestError(SECRET))
    except RequestError:
        logger.exception("Request failed.")
    logger.warning("CALL generate OK 3ms", extra={"serve_access_log": True})
    assert lines == []


def test_forgotten_tasks_do_not_show_their_arguments(lines: list[str]) -> None:
    async def scenario() -> None:
        async def task(text: str) -> None:
            raise ValueError(text)

        asyncio.get_running_loop().create_task(task(SECRET))
        await asyncio.sleep(0.01)

    asyncio.run(scenario())
    gc.collect()
    assert any(line.startswith("Task exception was never retrieved") for line in lines)
    assert SECRET not in "".join(lines)
