"""Quantised checkpoints: packed while they are loaded, and cached on disk where configured."""

import logging
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from tiny_model import TINY, checkpoint_arrays
from torch_writer import write_arrays

from model.checkpoint import digest
from model.checkpoint.load import load_weights, read_parameters
from model.checkpoint.mapped_file import TensorReader, _file_system
from model.checkpoint.pack import pack_weights
from model.checkpoint.safetensors_file import read_safetensors
from model.checkpoint.stored_tensor import CheckpointError
from model.config.mpt_config import MptConfig
from model.params.packed_matrix import PackedMatrix
from model.params.sharding import make_mesh
from model.params.weight_format import WeightFormat
from model.params.weights import Weights, leaf_paths
from model.pretrained import mpt_from_pretrained

CONFIG = MptConfig.from_dict(TINY)
UNTIED = TINY | {"tie_word_embeddings": False, "no_bias": False, "attn_config": {"alibi": False}}
INT8, INT4 = WeightFormat("int8", packed=True), WeightFormat("int4", packed=True, group=8)
PACKED = WeightFormat(packed=True)


def assert_same(actual: Weights, expected: Weights) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)  # formats, shapes and groups too
    pairs = zip(leaf_paths(actual).items(), leaf_paths(expected).values(), strict=True)
    for (path, a), b in pairs:
        assert a.dtype == b.dtype, path
        np.testing.assert_array_equal(a, b, err_msg=path)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[WeightFormat]:
    """The formats of the loads that the cache could not answer, in turn."""
    formats = []

    def counted(*arguments: Any) -> Any:
        formats.append(arguments[-1])
        return read_parameters(*arguments)

    monkeypatch.setattr("model.checkpoint.quantized_cache.read_parameters", counted)
    return formats


def entries(cache: Path) -> list[Path]:
    assert {path.suffix for path in cache.iterdir()} <= {".safetensors", ".sha256"}  # nothing half-written
    return sorted(cache.glob("*.safetensors"))


@pytest.mark.parametrize("options", [{}, {"max_shard_bytes": 4000}, {"dtype": ml_dtypes.bfloat16}])
@pytest.mark.parametrize("format", [INT8, INT4, WeightFormat("int4"), WeightFormat(packed=True)])
def test_a_checkpoint_is_packed_while_it_is_loaded(
    save: Callable[..., Path], options: dict[str, Any], format: WeightFormat
) -> None:
    folder = save(UNTIED, **options)
    config = MptConfig.from_dict(UNTIED)
    plain = load_weights(folder, config)
    assert_same(load_weights(folder, config, format=format), pack_weights(plain, config, format))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_pytorch_files_are_packed_too(tmp_path: Path, dtype: Any) -> None:
    write_arrays(tmp_path / "pytorch_model.bin", checkpoint_arrays(TINY, dtype=dtype))
    plain = load_weights(tmp_path, CONFIG, dtype="float32")  # what a packed format keeps float16 as
    assert_same(load_weights(tmp_path, CONFIG, format=INT4), pack_weights(plain, CONFIG, INT4))
    assert load_weights(tmp_path, CONFIG, format=WeightFormat(packed=True)).wte.dtype == np.float32


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    arrays = checkpoint_arrays(TINY)
    arrays["transformer.blocks.1.ffn.up_proj.weight"][3, 3] = np.nan
    write_arrays(tmp_path / "pytorch_model.bin", arrays)
    with pytest.raises(CheckpointError, match=r"'transformer.blocks.1.ffn.up_proj.weight' holds numbers that are not"):
        load_weights(tmp_path, CONFIG, format=INT8)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("format", [INT8, INT4, PACKED])
def test_the_second_load_reads_the_cache(
    save: Callable[..., Path], tmp_path: Path, loads: list[WeightFormat], format: WeightFormat, dtype: Any
) -> None:
    folder, cache = save(UNTIED, dtype=dtype), tmp_path / "not" / "there"
    first, _ = mpt_from_pretrained(folder, format=format, cache_dir=cache)
    assert loads == [format]
    assert len(entries(cache)) == 1
    second, config = mpt_from_pretrained(folder, format=format, cache_dir=str(cache))
    assert loads == [format]
    assert_same(second, first)
    assert_same(first, load_weights(folder, config, format=format))


def test_other_formats_types_and_checkpoints_have_separate_entries(
    save: Callable[..., Path], tmp_path: Path, loads: list[WeightFormat]
) -> None:
    folder, cache = save(), tmp_path / "cache"
    other_group = WeightFormat("int4", packed=True, group=16)
    for format, dtype in ((INT8, None), (INT4, None), (other_group, None), (INT8, "bfloat16")):
        weights, _ = mpt_from_pretrained(folder, dtype=dtype, format=format, cache_dir=cache)
        assert_same(weights, load_weights(folder, CONFIG, dtype, format=format))
    assert len(loads) == len(entries(cache)) == 4
    file = folder / "model.safetensors"
    status = file.stat()
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1  # the same name, size and time of change
    file.write_bytes(raw)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    weights, _ = mpt_from_pretrained(folder, format=INT8, cache_dir=cache)
    assert_same(weights, load_weights(folder, CONFIG, format=INT8))
    assert len(loads) == len(entries(cache)) == 5


@pytest.mark.parametrize("format", [INT8, INT4, PACKED])
@pytest.mark.parametrize("stored", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_a_dtype_that_is_the_files_has_the_same_entry(
    save: Callable[..., Path], tmp_path: Path, loads: list[WeightFormat], format: WeightFormat, stored: Any
) -> None:
    folder, cache = save(dtype=stored), tmp_path / "cache"
    named = "bfloat16" if stored == ml_dtypes.bfloat16 else "float32"  # float16 is kept as float32
    for dtype in (None, named):
        weights, _ = mpt_from_pretrained(folder, dtype=dtype, format=format, cache_dir=cache)
        assert_same(weights, load_weights(folder, CONFIG, dtype, format=format))
    assert len(loads) == len(entries(cache)) == 1


def change(file: Path, offset: int) -> None:
    """Change one number in a file without changing its name or size."""
    raw = bytearray(file.read_bytes())
    raw[offset] ^= 1
    file.write_bytes(raw)


def test_a_copy_of_a_checkpoint_finds_what_was_made_of_it(
    save: Callable[..., Path], tmp_path: Path, loads: list[WeightFormat]
) -> None:
    folder, cache = save(max_shard_bytes=4000), tmp_path / "cache"
    first, _ = mpt_from_pretrained(folder, format=INT8, cache_dir=cache)
    copy = shutil.copytree(folder, tmp_path / "copy")
    for file in copy.iterdir():
        os.utime(file, (1e9, 1e9))
    second, _ = mpt_from_pretrained(copy, format=INT8, cache_dir=cache)
    assert_same(second, first)
    assert len(loads) == len(entries(cache)) == 1


def test_a_number_that_no_sample_sees_makes_another_checkpoint(
    save: Callable[..., Path], tmp_path: Path, loads: list[WeightFormat], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest, "_SAMPLES", 1)
    monkeypatch.setattr(digest, "_SAMPLE_BYTES", 1)
    folder, cache = save(), tmp_path / "cache"
    mpt_from_pretrained(folder, format=INT8, cache_dir=cache)
    file = folder / "model.safetensors"
    status = file.stat()
    change(file, -100)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    weights, _ = mpt_from_pretrained(folder, format=INT8, cache_dir=cache)
    assert_same(weights, load_weights(folder, CONFIG, format=INT8))
    assert len(loads) == 2


def test_a_checkpoint_is_read_through_once(
    save: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    digest_of = digest._digest_of
    monkeypatch.setattr(digest, "_digest_of", lambda path, count: read.append(path) or digest_of(path, count))
    folder, cache = save(), tmp_path / "cache"
    for format in (INT8, INT4, INT8):
        mpt_from_pretrained(folder, format=format, cache_dir=cache)
    assert len(read) == 1
    (memo,) = cache.glob("*.sha256")
    memo.write_text("no digest")
    mpt_from_pretrained(folder, format=INT8, cache_dir=cache)
    assert len(read) == len(entries(cache)) == 2


def test_what_was_made_of_older_weights_is_removed_once_unused(save: Callable[..., Path], tmp_path: Path) -> None:
    folder, cache = save(), tmp_path / "cache"
    other = shutil.copytree(folder, tmp_path / "other")
    change(other / "model.safetensors", -5)
    kept = {}
    for name, path, format in (("used", folder, INT4), ("unused", folder, INT8), ("of another", other, INT8)):
        before = set(cache.glob("*"))
        mpt_from_pretrained(path, format=format, cache_dir=cache)
        kept[name] = next(path for path in set(cache.glob("*.safetensors")) - before)
    for entry in entries(cache):
        os.utime(entry, (0, 0))
    mpt_from_pretrained(folder, format=INT4, cache_dir=cache)  # uses it
    change(folder / "model.safetensors", -1)
    mpt_from_pretrained(folder, format=INT8, cache_dir=cache)
    assert [name for name, entry in kept.items() if not entry.exists()] == ["unused"]
    assert len(entries(cache)) == 3
    os.utime(kept["used"], (0, 0))
    mpt_from_pretrained(folder, format=INT4, cache_dir=cache)
    assert not kept["used"].exists()
    mpt_from_pretrained(folder, format=INT4, cache_dir=cache)
    assert len(entries(cache)) == 3  # two of the folder now, and the other's
    assert len(list(cache.glob("*.sha256"))) == 2


def test_nothing_is_kept_of_a_checkpoint_that_changes_while_it_is_read(
    save: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, cache = save(), tmp_path / "cache"

    def replaced(*arguments: Any) -> Any:
        change(folder / "model.safetensors", -1)
        return read_parameters(*arguments)

    monkeypatch.setattr("model.checkpoint.quantized_cache.read_parameters", replaced)
    mpt_from_pretrained(folder, format=INT8, cache_dir=cache)
    assert entries(cache) == []
    assert ["changed while it was read" in record.message for record in caplog.records] == [True]


def test_nothing_is_kept_of_weights_that_are_not_packed(save: Callable[..., Path], tmp_path: Path) -> None:
    mpt_from_pretrained(save(), cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def mapped(path: Path) -> list[tuple[int, int]]:
    """Return the addresses at which this process has mapped a file."""
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    ranges = [line.split(" ")[0].split("-") for line in lines]
    return [(int(begin, 16), int(end, 16)) for begin, end in ranges]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads what is mapped from Linux's /proc")
@pytest.mark.parametrize("format", [INT8, INT4, PACKED])
def test_weights_of_an_entry_are_the_file_itself(
    save: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: WeightFormat
) -> None:
    monkeypatch.setattr(
        "model.checkpoint.quantized_cache.TensorReader", lambda path: TensorReader(path, {_file_system(path) or ""})
    )
    folder, cache = save(UNTIED, dtype=ml_dtypes.bfloat16), tmp_path / "cache"
    for _ in range(2):  # the first load too
        weights, config = mpt_from_pretrained(folder, format=format, cache_dir=cache)
        (entry,) = entries(cache)
        places = mapped(entry)
        for path, leaf in leaf_paths(weights).items():
            inside = any(begin <= leaf.unsafe_buffer_pointer() < end for begin, end in places)
            assert inside or leaf.nbytes % 64, path  # what XLA would copy is read
        entry.unlink()  # what is mapped stays
        assert_same(weights, load_weights(folder, config, format=format))
        del weights


def test_an_entry_is_read_where_mapping_is_not_safe(save: Callable[..., Path], tmp_path: Path) -> None:
    folder, cache = save(), tmp_path / "cache"
    expected, _ = mpt_from_pretrained(folder, format=INT8, cache_dir=cache)
    (entry,) = entries(cache)
    reader = TensorReader(entry, file_systems=set())
    assert not reader.make_present(lambda size: None)
    for name, tensor in read_safetensors(entry).items():
        if name.endswith(".data"):
            array = reader.read(tensor)
            assert array.flags.writeable  # not the file
            np.testing.assert_array_equal(array, leaf_paths(expected)[name.replace(".", "/")])


def replaced(entry: Path, raw: bytes) -> None:
    """Replace an entry by another file: one that is mapped must not change in place."""
    other = entry.with_suffix(".other")
    other.write_bytes(raw)
    os.replace(other, entry)


def cut_short(entry: Path) -> None:
    replaced(entry, entry.read_bytes()[:-1])


def not_safetensors(entry: Path) -> None:
    replaced(entry, b"\x00" * 100)


def renamed_tensor(entry: Path) -> None:
    replaced(entry, entry.read_bytes().replace(b"norm_f/weight", b"norm_g/weight"))


def reshaped_tensor(entry: Path) -> None:
    name = b'"norm_f/weight": {"dtype": "%s", "shape": [16]'
    replaced(entry, entry.read_bytes().replace(name % b"F32", name % b"I32"))


@pytest.mark.parametrize("damage", [cut_short, not_safetensors, renamed_tensor, reshaped_tensor])
def test_a_damaged_entry_is_replaced_with_one_warning(
    save: Callable[..., Path],
    tmp_path: Path,
    loads: list[WeightFormat],
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
) -> None:
    folder, cache = save(), tmp_path / "cache"
    expected, _ = mpt_from_pretrained(folder, format=INT4, cache_dir=cache)
    (entry,) = entries(cache)
    whole = entry.read_bytes()
    damage(entry)
    assert entry.read_bytes() != whole
    with caplog.at_level(logging.WARNING):
        again, _ = mpt_from_pretrained(folder, format=INT4, cache_dir=cache)
    assert_same(again, expected)
    assert [str(entry) in record.message for record in caplog.records] == [True]
    assert entry.read_bytes() == whole
    mpt_from_pretrained(folder, format=INT4, cache_dir=cache)
    assert len(loads) == 2


def test_a_folder_that_cannot_be_written_is_not_used(
    save: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    weights, _ = mpt_from_pretrained(save(), format=INT8, cache_dir=tmp_path / "file")
    assert isinstance(weights.wte, PackedMatrix)
    assert ["cannot be cached" in record.message for record in caplog.records] == [True]


def test_a_write_that_fails_halfway_leaves_nothing(
    save: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    mpt_from_pretrained(save(), format=INT8, cache_dir=tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_writes_is_not(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    folder, cache = save(), tmp_path / "cache"
    mpt_from_pretrained(folder, format=INT8, cache_dir=cache)
    (entry,) = entries(cache)
    entry.unlink()
    dead, living = cache / f".{entry.stem}.dead.partial", cache / f".{entry.stem}.living.partial"
    dead.write_bytes(b"")
    living.write_bytes(b"")
    os.utime(dead, (0, 0))
    mpt_from_pretrained(folder, format=INT8, cache_dir=cache)
    assert set(cache.glob("*.safetensors")) | set(cache.glob(".*")) == {entry, living}


def test_several_writers_at_once(save: Callable[..., Path], tmp_path: Path) -> None:
    folder, cache, count = save(), tmp_path / "cache", 4
    start, results = threading.Barrier(count), []

    def load() -> None:
        start.wait()
        results.append(mpt_from_pretrained(folder, format=INT4, cache_dir=cache)[0])

    threads = [threading.Thread(target=load) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == count
    for weights in results[1:]:
        assert_same(weights, results[0])
    (entry,) = entries(cache)
    assert_same(mpt_from_pretrained(folder, format=INT4, cache_dir=cache)[0], results[0])
    assert read_safetensors(entry)  # whole


def test_a_mesh_takes_no_quantised_weights(save: Callable[..., Path]) -> None:
    mesh = make_mesh(1, 1, jax.devices()[:1])
    with pytest.raises(ValueError, match="quantization 'int8' takes one device"):
        mpt_from_pretrained(save(), mesh=mesh, format=INT8)
