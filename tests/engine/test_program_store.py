"""Compiled programs on disk: an engine like one before loads them, and anything else compiles its own."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from engine_helpers import compiled_in, generate
from small_engine import SETTINGS, VOCAB_LIMIT

from model.config.mpt_config import MptConfig
from model.params.weights import Weights
from mpt_serve.engine import Engine, SamplingParams
from mpt_serve.engine import program_store as program_store_module
from mpt_serve.engine.program_store import ProgramStore, compiled_afresh, program_store

FEW = SETTINGS.replace(max_num_seqs=2, max_num_batched_tokens=4, speculation="none")


def compiled(times: float) -> jax.stages.Compiled:
    return jax.jit(lambda x: {"result": x * times}).lower(jax.ShapeDtypeStruct((3,), np.float32)).compile()


def test_stored_programs_compute_the_same(tmp_path: Path) -> None:
    store = ProgramStore[str](tmp_path / "programs", ["a model"])
    assert store.load(["double"]) is None
    store.save({"double": compiled(2), "triple": compiled(3)})
    programs = ProgramStore[str](tmp_path / "programs", ["a model"]).load(["triple", "double"])
    assert programs is not None
    for name, factor in (("double", 2), ("triple", 3)):
        np.testing.assert_array_equal(programs[name](np.arange(3, dtype=np.float32))["result"], [0, factor, 2 * factor])


@pytest.mark.parametrize("changed", ["model", "source", "flags"])
def test_programs_of_something_else_are_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    ProgramStore[str](tmp_path, ["a model"]).save({"double": compiled(2)})
    identity: Sequence[Any] = ["a model"]
    if changed == "model":
        identity = ["another"]
    elif changed == "source":
        monkeypatch.setattr(program_store_module, "_source_digest", lambda: "edited")
    else:
        monkeypatch.setenv("XLA_FLAGS", "--another")
    assert ProgramStore[str](tmp_path, identity).load(["double"]) is None


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: b"", lambda raw: raw[:40] + b"?" + raw[41:]])
def test_a_damaged_file_warns_and_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any) -> None:
    store = ProgramStore[str](tmp_path, ["a model"])
    store.save({"double": compiled(2)})
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert store.load(["double"]) is None
    assert [str(file) in record.message for record in caplog.records] == [True]
    store.save({"double": compiled(2)})
    assert store.load(["double"]) is not None


def belongs_to_another(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        os.chown(file, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: file.stat().st_uid + 1)


@pytest.mark.parametrize("change", [lambda file, _: file.chmod(0o664), belongs_to_another], ids=["group", "owner"])
def test_what_another_user_may_have_written_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, change: Any
) -> None:
    store = ProgramStore[str](tmp_path, ["a model"])
    store.save({"double": compiled(2)})
    (file,) = tmp_path.iterdir()
    change(file, monkeypatch)
    assert store.load(["double"]) is None
    assert ["another user may have written it" in record.message for record in caplog.records] == [True]


def test_a_folder_that_cannot_be_written_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("not a folder")
    ProgramStore[str](tmp_path / "file", []).save({"double": compiled(2)})
    assert ["cannot be stored in" in record.message for record in caplog.records] == [True]


def test_files_that_nobody_uses_are_removed(tmp_path: Path) -> None:
    stores = [ProgramStore[str](tmp_path, [number]) for number in range(3)]
    for store in stores[:2]:
        store.save({"double": compiled(2)})
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    assert stores[0].load(["double"]) is not None  # uses it
    stores[2].save({"double": compiled(2)})
    assert [store.load(["double"]) is not None for store in stores] == [True, False, True]


def test_without_a_folder_nothing_is_stored(tmp_path: Path) -> None:
    with compiled_in(tmp_path):
        assert program_store([]) is not None
        jax.config.update("jax_compilation_cache_dir", None)
        assert program_store([]) is None


def test_what_is_compiled_afresh_does_not_come_from_jaxs_cache(tmp_path: Path) -> None:
    """XLA cannot serialise again what it has deserialised: it loses functions that the program calls."""
    hits: list[str] = []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if "cache_hits" in event else None)
    with compiled_in(tmp_path):
        jax.clear_caches()
        compiled(5)
        jax.clear_caches()
        compiled(5)
        assert len(hits) == 1
        with compiled_afresh():
            jax.clear_caches()
            compiled(5)
        assert len(hits) == 1
        jax.clear_caches()
        compiled(5)
        assert len(hits) == 2


def test_a_second_engine_loads_the_programs_of_the_first(
    weights: Weights, config: MptConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    params = SamplingParams(max_tokens=5, seed=3, logprobs=2, prompt_logprobs=1)
    outputs = []
    with compiled_in(tmp_path), caplog.at_level(logging.INFO, logger="mpt_serve.engine.programs"):
        for blocks in (33, 61):  # other numbers of blocks, of the same programs where memory is taken as it is used
            with Engine(weights, config, FEW.replace(num_blocks=blocks), VOCAB_LIMIT) as engine:
                outputs.append(generate(engine, [[1, 2, 3, 4, 5, 6], [7]], params))
    kinds = [record.message.split()[0] for record in caplog.records if " programs in " in record.message]
    assert kinds == ["compiled", "loaded"]
    assert outputs[0] == outputs[1]
