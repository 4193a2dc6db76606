"""Settings: strict names, typed values, a reference page that cannot drift."""

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpt_serve.configuration.access import AccessSettings
from mpt_serve.configuration.engine_config import EngineSettings
from mpt_serve.configuration.limits import Limits
from mpt_serve.configuration.problems import ConfigurationError
from mpt_serve.configuration.reference import settings_reference
from mpt_serve.configuration.settings import MeshSettings, Settings

ROOT = Path(__file__).parents[2]
GROUPS = {"": Settings, "access": AccessSettings, "engine": EngineSettings, "limits": Limits, "mesh": MeshSettings}
NAMES = [(group, name) for group, model in GROUPS.items() for name in model.model_fields]


def refused(args: object) -> str:
    with pytest.raises(ConfigurationError) as error:
        Settings.from_mapping(args)
    return str(error.value)


def test_every_setting_has_a_default_and_a_description() -> None:
    assert Settings.from_mapping({}) == Settings()
    assert all(field.description for model in GROUPS.values() for field in model.model_fields.values())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"max_modle_len": 1}, "unknown setting 'max_modle_len'; did you mean 'max_model_len'?"),
        ({"engine": {"blok_size": 1}}, "engine: unknown setting 'blok_size'; did you mean 'block_size'?"),
        ({"max_num_seqs": 1}, "unknown setting 'max_num_seqs'; it belongs under 'engine'"),
        ({"zzz": 1}, "unknown setting 'zzz'; valid here: access, batches, chat_special_tokens,"),
    ],
)
def test_unknown_names_come_with_the_nearest_valid_one(args: dict, message: str) -> None:
    assert message in refused(args)


@given(st.sampled_from(NAMES), st.integers(0, 40), st.sampled_from(string.ascii_lowercase))
def test_one_wrong_letter_anywhere_is_refused_by_name(place: tuple[str, str], at: int, letter: str) -> None:
    group, name = place
    typo = name[: at % len(name)] + letter + name[at % len(name) + 1 :]
    if typo in GROUPS[group].model_fields:
        return
    args = {group: {typo: 1}} if group else {typo: 1}
    assert f"unknown setting '{typo}'; did you mean '" in refused(args) or len(name) < 6


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"dtype": "fp8"}, "dtype must be 'auto', 'float32', 'bfloat16' or 'float16'; got 'fp8' (a string)"),
        ({"max_model_len": "long"}, "max_model_len must be an integer; got 'long' (a string)"),
        ({"max_model_len": 0}, "max_model_len must be at least 2; got 0"),
        ({"mesh": {"tensor": True}}, "mesh.tensor must be an integer; got true"),
        ({"limits": {"request_timeout_s": True}}, "limits.request_timeout_s must be a number; got true"),
        (
            {"limits": {"max_body_bytes": True}},
            "limits.max_body_bytes must be a size such as 512MiB or 4GiB; got true",
        ),
        ({"engine": None}, "engine must be a mapping of settings; got null"),
        ({"engine": {"kv_cache_memory": "lots"}}, "engine.kv_cache_memory must be a size such as 512MiB or 4GiB"),
        ({"limits": {"request_timeout_s": float("nan")}}, "limits.request_timeout_s must be"),
        ({"engine": {"max_num_seqs": 600}}, "max_num_batched_tokens (512) must be above max_num_seqs (600)"),
        (
            {"engine": {"cache_dtype": "int4"}},
            "engine.cache_dtype must be 'auto', 'float32', 'bfloat16', 'float16' or",
        ),
        ({"engine": {"speculation": "draft"}}, "speculation 'draft' needs a draft_model"),
        ({"engine": {"draft_model": "x"}}, "speculation 'ngram' uses no draft_model"),
        ({"quantization": "int3"}, "quantization must be 'none', 'int8' or 'int4'; got 'int3' (a string)"),
        (
            {"quantization": "int8", "mesh": {"tensor": 2}},
            "quantization 'int8' needs a single device, but mesh has fsdp 1",
        ),
    ],
)
def test_wrong_values_are_reported_with_name_kind_and_fix(args: dict, message: str) -> None:
    assert message in refused(args)


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(ConfigurationError) as error:
        Settings.from_mapping({"dtype": "fp8", "max_model_len": -1, "engine": {"block_size": "x"}})
    assert [problem.path for problem in error.value.problems] == [
        ("dtype",),
        ("max_model_len",),
        ("engine", "block_size"),
    ]


@pytest.mark.parametrize(("text", "size"), [("4GiB", 4 * 2**30), ("512MiB", 2**29), ("1GB", 10**9), (4096, 4096)])
def test_sizes_take_units(text: object, size: int) -> None:
    assert Settings.from_mapping({"engine": {"kv_cache_memory": text}}).engine.kv_cache_memory == size


def test_numbers_may_come_from_a_command_line() -> None:
    assert Settings.from_mapping({"max_model_len": "2048"}).max_model_len == 2048


def test_model_name(tmp_path: Path) -> None:
    (tmp_path / "my-mpt").mkdir()
    assert Settings(model=str(tmp_path / "my-mpt")).model_name == "my-mpt"
    assert Settings(model="mosaicml/mpt-7b-chat").model_name == "mosaicml/mpt-7b-chat"
    assert Settings(model="mosaicml/mpt-7b-chat", served_model_name="chat").model_name == "chat"
    assert Settings().model_name == "embedded"


def test_the_reference_page_is_current() -> None:
    written = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert written == settings_reference(), "run: mpt-serve docs settings > docs/settings.md"
