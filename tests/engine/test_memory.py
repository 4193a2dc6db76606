"""How many blocks and how long a context: from the settings, from memory, and from the model's positions."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model.config.mpt_config import MptConfig
from mpt_serve.engine import EngineConfig
from mpt_serve.engine.memory import _available_host_memory, available_memory, plan_cache

SETTINGS = EngineConfig(max_num_seqs=4, block_size=16)
GIB = 2**30


def model(**more: Any) -> MptConfig:
    return MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=96, max_seq_len=64, **more)


def test_the_number_of_blocks_is_taken_as_given() -> None:
    plan = plan_cache(SETTINGS.replace(num_blocks=100, kv_cache_memory=1), model(), 1024, available=0)
    assert (plan.num_blocks, plan.num_tokens, plan.max_model_len, plan.concurrency) == (100, 1600, 64, 25.0)


def test_memory_for_the_cache_is_used_in_full() -> None:
    plan = plan_cache(SETTINGS.replace(kv_cache_memory=10 * 16 * 1024 + 5), model(), 1024, available=0)
    assert plan.num_blocks == 10
    with pytest.raises(ValueError, match="kv_cache_memory=100 bytes is less than one cache block of 16384"):
        plan_cache(SETTINGS.replace(kv_cache_memory=100), model(), 1024, available=0)


def test_free_memory_is_used_up_to_what_requests_can_use() -> None:
    assert plan_cache(SETTINGS, model(), 1024, available=GIB).num_blocks == 4 * 4
    assert plan_cache(SETTINGS, model(), 1024, available=5 * 16 * 1024).num_blocks == 5


@pytest.mark.parametrize(("available", "max_model_len"), [(3 * 16 * 1024, 48), (0, 16)])
def test_a_context_that_does_not_fit_is_shortened_and_said_so(available: int, max_model_len: int) -> None:
    plan = plan_cache(SETTINGS, model(), 1024, available)
    assert plan.max_model_len == max_model_len
    assert f"shortened from 64 to {max_model_len} tokens" in plan.notes[0]


def test_a_context_beyond_the_training_length_is_noted_where_positions_extrapolate() -> None:
    plan = plan_cache(SETTINGS.replace(max_model_len=100), model(), 1024, GIB)
    assert plan.max_model_len == 100
    assert "max_model_len=100 is beyond the 64 tokens" in plan.notes[0]
    assert plan_cache(SETTINGS.replace(max_model_len=30), model(), 1024, GIB).notes == ()


def test_a_context_beyond_learned_positions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_model_len=100 is too long.*64"):
        plan_cache(SETTINGS.replace(max_model_len=100), model(alibi=False, learned_positions=True), 1024, GIB)


def test_an_accelerator_gives_what_its_own_statistics_leave() -> None:
    def device(stats: dict[str, int] | None, platform: str = "gpu") -> Any:
        return SimpleNamespace(platform=platform, memory_stats=lambda: stats)

    assert available_memory(device({"bytes_limit": 10 * GIB, "bytes_in_use": 4 * GIB})) == 5 * GIB
    assert available_memory(device({"bytes_limit": 10 * GIB, "bytes_in_use": 10 * GIB})) == 0
    assert 0 < available_memory(device(None, "cpu")) < 2**50


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("--", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MEMINFO = "MemTotal:       33554432 kB\nMemAvailable:   16777216 kB\n"  # 16 GiB


def test_the_host_alone(tmp_path: Path) -> None:
    write(tmp_path, proc__meminfo=MEMINFO)
    assert _available_host_memory(tmp_path) == 16 * GIB


def test_mapped_weights_are_no_free_memory(tmp_path: Path) -> None:
    status = f"Name:   x\nRssAnon:    5 kB\nRssFile:    {3 * GIB // 1024} kB\n"
    write(tmp_path, proc__meminfo=MEMINFO, proc__self__status=status, proc__self__cgroup="0::/own\n")
    assert _available_host_memory(tmp_path) == 13 * GIB
    group = "sys__fs__cgroup__own__memory--"
    write(tmp_path, **{f"{group}max": f"{8 * GIB}", f"{group}current": f"{6 * GIB}"})
    assert _available_host_memory(tmp_path) == 2 * GIB
    write(tmp_path, **{f"{group}stat": f"inactive_file {4 * GIB}\n"})  # 3 GiB of them are mapped
    assert _available_host_memory(tmp_path) == 3 * GIB


@pytest.mark.parametrize("limited", ["pod/container", "pod"])
def test_control_groups_limit_it(tmp_path: Path, limited: str) -> None:
    own = "pod/container"
    write(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup=f"0::/{own}\n")
    folder = tmp_path / "sys/fs/cgroup" / limited
    (tmp_path / "sys/fs/cgroup" / own).mkdir(parents=True)
    (folder / "memory.max").write_text(f"{8 * GIB}\n")
    (folder / "memory.current").write_text(f"{6 * GIB}\n")
    assert _available_host_memory(tmp_path) == 2 * GIB
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {1 * GIB}\n")
    assert _available_host_memory(tmp_path) == 3 * GIB
    (folder / "memory.max").write_text("max\n")
    assert _available_host_memory(tmp_path) == 16 * GIB


def test_control_groups_of_version_1_limit_it(tmp_path: Path) -> None:
    write(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="5:cpu,cpuacct:/a\n4:memory:/docker/1\n")
    folder = tmp_path / "sys/fs/cgroup/memory"  # in a container the group's own path is not visible
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(f"{4 * GIB}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{1 * GIB}\n")
    assert _available_host_memory(tmp_path) == 3 * GIB
