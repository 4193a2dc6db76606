"""The keys that a server accepts: found in files and the environment, verified once, replaced while it runs."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mpt_serve.access.api_key import ApiKey, KeyLineError, new_key
from mpt_serve.access.key_store import KeyStore
from mpt_serve.errors import BusyError

ALICE, ALICES = new_key("alice")
BOB, BOBS = new_key("bob", ["api", "admin"])


class CountedKey:
    """Stands for `ApiKey.matches`: counts the calls, and waits for `go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.go = threading.Event()
        original = ApiKey.matches

        def matches(key: ApiKey, presented: str) -> bool:
            self.calls += 1
            self.go.wait(60)
            return original(key, presented)

        monkeypatch.setattr(ApiKey, "matches", matches)


@pytest.fixture
def slow_hash(monkeypatch: pytest.MonkeyPatch) -> CountedKey:
    return CountedKey(monkeypatch)


def write(file: Path, *keys: ApiKey) -> Path:
    """Write a key file as editors do: under another name first, so that its inode changes."""
    temporary = file.with_suffix(".new")
    temporary.write_text("".join(f"{key.line()}\n" for key in keys))
    temporary.rename(file)
    return file


def wrong(key: str, number: int = 0) -> str:
    return f"{key[:20]}{number:064x}"


def run(story: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(story())  # type: ignore[arg-type]


def test_keys_of_a_file_and_of_the_environment(tmp_path: Path) -> None:
    file = write(tmp_path / "keys", ALICES)
    store = KeyStore(file, "KEYS", {"KEYS": f"# bob's;{BOBS.line()};"})

    async def story() -> None:
        assert await store.verify(ALICE) == ALICES
        assert await store.verify(BOB) == BOBS
        assert await store.verify(wrong(ALICE)) is None
        assert await store.verify(new_key("carol")[0]) is None
        assert await store.verify("anything") is None

    run(story)
    only = KeyStore(None, "KEYS", {"KEYS": BOBS.line()})
    only.refresh()
    assert asyncio.run(only.verify(BOB)) == BOBS


def test_the_slow_hash_is_computed_once_for_each_key(tmp_path: Path, slow_hash: CountedKey) -> None:
    store = KeyStore(write(tmp_path / "keys", ALICES))
    slow_hash.go.set()

    async def story() -> None:
        together = await asyncio.gather(*(store.verify(ALICE) for _ in range(50)))
        assert together == [ALICES] * 50
        assert slow_hash.calls == 1
        for _ in range(3):
            assert await store.verify(wrong(ALICE)) is None
        assert slow_hash.calls == 2

    run(story)


def test_wrong_keys_delay_no_known_ones_and_are_bounded(
    tmp_path: Path, slow_hash: CountedKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpt_serve.access.key_store._MAX_REMEMBERED", 4)
    monkeypatch.setattr("mpt_serve.access.key_store._PAUSE_FACTOR", 0)
    store = KeyStore(write(tmp_path / "keys", ALICES, BOBS))

    async def story() -> None:
        slow_hash.go.set()
        assert await store.verify(ALICE) == ALICES
        slow_hash.go.clear()
        guesses = [asyncio.create_task(store.verify(wrong(ALICE, number))) for number in range(16)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="too many new API keys"):
            await store.verify(BOB)
        assert await store.verify(ALICE) == ALICES
        slow_hash.go.set()
        assert await asyncio.gather(*guesses) == [None] * 16
        assert await store.verify(BOB) == BOBS
        calls = slow_hash.calls
        assert await store.verify(wrong(ALICE, 15)) is None  # remembered
        assert await store.verify(wrong(ALICE, 0)) is None  # forgotten
        assert slow_hash.calls == calls + 1

    run(story)


def test_a_request_that_leaves_does_not_end_the_verification_for_others(tmp_path: Path, slow_hash: CountedKey) -> None:
    store = KeyStore(write(tmp_path / "keys", ALICES))

    async def story() -> None:
        first = asyncio.create_task(store.verify(ALICE))
        second = asyncio.create_task(store.verify(ALICE))
        await asyncio.sleep(0)
        first.cancel()
        slow_hash.go.set()
        assert await second == ALICES
        assert first.cancelled()

    run(story)


def test_a_changed_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpt_serve.access.key_store._CHECK_PERIOD_S", 0.001)
    file = write(tmp_path / "keys", ALICES)
    store = KeyStore(file)

    async def until(key: str, expected: ApiKey | None) -> None:
        while await store.verify(key) != expected:
            await asyncio.sleep(0.001)

    async def story() -> None:
        watch = asyncio.create_task(store.watch())
        assert await store.verify(ALICE) == ALICES
        assert await store.verify(BOB) is None
        write(file, BOBS, ALICES)
        await until(BOB, BOBS)
        assert await store.verify(ALICE) == ALICES
        write(file, BOBS)
        await until(ALICE, None)
        assert await store.verify(BOB) == BOBS
        watch.cancel()

    run(story)


def test_other_scopes_hold_at_once(tmp_path: Path, slow_hash: CountedKey) -> None:
    file = write(tmp_path / "keys", ALICES)
    store = KeyStore(file)
    slow_hash.go.set()

    async def story() -> None:
        assert await store.verify(ALICE) == ALICES
        other = ApiKey(**{**vars(ALICES), "scopes": frozenset({"admin"})})
        write(file, other)
        store.refresh()
        assert await store.verify(ALICE) == other

    run(story)


@pytest.mark.parametrize("change", ["broken", "removed", "binary"])
def test_a_file_that_cannot_be_used_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    file = write(tmp_path / "keys", ALICES)
    store = KeyStore(file)
    if change == "removed":
        file.unlink()
    else:
        file.write_bytes(b"nonsense" if change == "broken" else b"\xff\xfe")
    with caplog.at_level(logging.ERROR):
        store.refresh()
        store.refresh()
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["The API keys stay as they were"]
    assert asyncio.run(store.verify(ALICE)) == ALICES


def test_without_keys_everything_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = KeyStore(write(tmp_path / "keys"))
    assert "every request will be refused" in caplog.text
    assert asyncio.run(store.verify(ALICE)) is None


def test_what_cannot_be_read_at_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        KeyStore(tmp_path / "keys")
    with pytest.raises(KeyLineError, match=r"access\.key_variable names 'KEYS', which this node's environment"):
        KeyStore(None, "KEYS", {})
    with pytest.raises(KeyLineError, match="the variable KEYS, line 1: a key has"):
        KeyStore(None, "KEYS", {"KEYS": "x"})


def test_two_lines_of_one_id_and_two_options_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(KeyLineError, match=f"two lines have the id {BOBS.id}"):
        KeyStore(write(tmp_path / "keys", BOBS, BOBS))
    _, limited = new_key("bob", requests_per_minute=1)
    with pytest.raises(KeyLineError, match="the keys of 'bob' must have the same options"):
        KeyStore(write(tmp_path / "keys", BOBS, limited))
