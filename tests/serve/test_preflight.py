"""What `check`, `run` and the builder find before anything starts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import yaml
from ray.serve.exceptions import RayServeException
from server import serve_config

from model.checkpoint.save import save_checkpoint
from model.params.weight_format import WeightFormat
from model.params.weights import weight_bytes
from model.pretrained import mpt_from_pretrained
from mpt_serve import app, cli
from mpt_serve.configuration.access import AccessSettings
from mpt_serve.configuration.batches import BatchSettings
from mpt_serve.configuration.problems import ConfigurationError
from mpt_serve.configuration.settings import Settings
from mpt_serve.preflight import check_config_file, check_deployment, check_model
from mpt_serve.resources import Machine

SMALL = Machine({"CPU": 2.0, "GPU": 0.0, "memory": 2.0**33}, 2**33)


@pytest.fixture
def folder(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def problems(folder: Path, **settings: Any) -> list[str]:
    return [str(problem) for problem in check_model(Settings(model=str(folder), **settings)).problems]


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def truncate(name: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return cut


def change_config(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def test_a_good_model_has_no_problem_and_its_memory_is_known(folder: Path) -> None:
    report = check_model(Settings(model=str(folder), chat_template="dolly"))
    assert report.problems == []
    assert report.need.cache > 0
    for quantization in ("none", "int8", "int4"):
        need = check_model(Settings(model=str(folder), quantization=quantization)).need
        format = WeightFormat(quantization, packed=True)
        assert need.weights == weight_bytes(mpt_from_pretrained(folder, format=format)[0])
    assert check_model(Settings()).problems == []  # the embedded model


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "model: there is no folder"),
        (remove("config.json"), "has no config.json, so it is not a checkpoint"),
        (write("config.json", "{"), "model: config.json is not JSON"),
        (change_config(model_type="llama"), "'model_type' is 'llama'"),
        (change_config(d_model=64), "the tensors do not fit the config"),
        (remove("model.safetensors"), "no weights: one of model.safetensors"),
        (truncate("model.safetensors"), "model.safetensors"),
        (truncate("tokenizer.json"), "tokenizer.json in"),
    ],
)
def test_a_damaged_folder_is_named(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    assert message in "\n".join(problems(folder))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chat_template": "chatml"}, "chat_template: the chat template writes <|im_start|> and <|im_end|>, but"),
        ({"chat_template": "{% if %}"}, "chat_template: the chat template failed"),
        ({"chat_template": "/no/such.jinja"}, "must be chatml, dolly, none, the path of a template file or"),
        ({"engine": {"kv_cache_memory": 16}}, "engine: does not fit the model: kv_cache_memory=16"),
        ({"mesh": {"tensor": 3}}, "mesh.tensor must divide the model's number of attention heads (4); got 3"),
        ({"engine": {"speculation": "draft", "draft_model": "/no/draft"}}, "engine.draft_model: there is no folder"),
        (
            {"engine": {"speculation": "draft", "draft_model": "embedded"}},
            "engine.draft_model must have the model's vocabulary of 320 ids",
        ),
    ],
)
def test_settings_that_do_not_fit_the_model(folder: Path, settings: dict[str, Any], message: str) -> None:
    (problem,) = problems(folder, **settings)
    assert message in problem


def test_a_model_whose_own_template_is_faulty_completes_text(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% if %}")
    report = check_model(Settings(model=str(folder)))
    assert report.problems == []
    assert any("chat is not available: the chat template failed" in note for note in report.notes)


def test_a_folder_of_batches_that_cannot_be_made_is_named(folder: Path, tmp_path: Path) -> None:
    batches = BatchSettings(folder=str(tmp_path / "new" / "batches"))
    assert problems(folder, batches=batches) == []
    (tmp_path / "new").write_text("a file")
    assert problems(folder, batches=batches) == [
        f"batches.folder: cannot be made: '{tmp_path / 'new'}' is not a folder that this user may write to"
    ]


def test_a_key_file_that_cannot_be_used_is_named(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    access = AccessSettings(key_file=str(file), key_variable="ONLY_ON_ANOTHER_NODE")
    assert problems(folder, access=access) == [
        "access.key_file: cannot be read (FileNotFoundError); it must be a UTF-8 file on every node of an Ingress"
    ]
    file.write_text("# no keys yet\n")
    assert problems(folder, access=access) == []
    file.write_text("sk-mpt-1\n")
    (problem,) = problems(folder, access=access)
    assert "line 1: a key has an id" in problem
    file.unlink()
    assert check_model(Settings(model=str(folder), access=access), download=True).problems == []


def test_a_node_without_the_weights_may_build(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    settings, _ = check_deployment({"model": str(folder)}, None)
    assert settings.model == str(folder)


def config_file(tmp_path: Path, folder: Path, generator: dict[str, Any], **args: Any) -> str:
    file = tmp_path / "serve.yaml"
    config = serve_config({"model": str(folder), **args}, 8000, [{"name": "Generator", **generator}])
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return str(file)


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        ({"num_replicas": 3}, "3 replicas of {CPU: 1} do not fit on this machine, which has {CPU: 2}"),
        ({"ray_actor_options": {"num_gpus": 1}}, "1 replicas of {CPU: 1, GPU: 1} do not fit on this machine"),
        ({"autoscaling_config": {"min_replicas": 4, "max_replicas": 5}}, "4 replicas of"),
    ],
)
def test_resources_are_compared_with_the_machine(
    tmp_path: Path, folder: Path, generator: dict[str, Any], message: str
) -> None:
    file = config_file(tmp_path, folder, generator)
    with pytest.raises(ConfigurationError) as error:
        check_config_file(file, machine=SMALL)
    assert "applications[0].deployments[0]" in str(error.value)
    assert message in str(error.value)
    check_config_file(file)  # a cluster may have them


def test_a_model_beyond_the_machines_memory_is_refused_and_what_fits_is_named(tmp_path: Path, folder: Path) -> None:
    file = config_file(tmp_path, folder, {})
    need = check_model(Settings(model=str(folder))).need
    message = r"line \d+: applications\[0\].args.model: a Generator replica needs at least .* GiB for weights, and this"
    with pytest.raises(ConfigurationError, match=message + ".*no setting makes it fit"):
        check_config_file(file, machine=Machine(SMALL.resources, 1000))
    with pytest.raises(ConfigurationError, match=r"'quantization: int8' needs .*; 'quantization: int4' needs"):
        check_config_file(file, machine=Machine(SMALL.resources, need.weights - 1))
    assert check_config_file(file, machine=Machine(SMALL.resources, 2 * (need.weights + need.cache)))


def test_a_context_that_was_asked_for_must_fit_and_another_is_shortened(tmp_path: Path, folder: Path) -> None:
    need = check_model(Settings(model=str(folder))).need
    machine = Machine(SMALL.resources, need.weights + need.cache // 2)
    notes = check_config_file(config_file(tmp_path, folder, {}), machine=machine)
    assert any("the context will be shortened to" in note for note in notes)
    asked = config_file(tmp_path, folder, {}, max_model_len=need.context)
    with pytest.raises(ConfigurationError, match=r"a request of \d+ tokens, and .*'max_model_len: \d+' fits"):
        check_config_file(asked, machine=machine)


def test_memory_that_others_use_is_a_note(tmp_path: Path, folder: Path) -> None:
    file = config_file(tmp_path, folder, {})
    assert any(
        "available now" in note for note in check_config_file(file, machine=Machine(SMALL.resources, 2**33, 1000))
    )
    assert not any("available now" in note for note in check_config_file(file, machine=SMALL))


@pytest.mark.parametrize("stored", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_the_memory_is_that_of_the_files_dtype(folder: Path, stored: Any) -> None:
    """Whatever config.json says; no CPU kernel reads float16."""
    weights, _ = mpt_from_pretrained(folder)
    data = json.loads((folder / "config.json").read_text())
    save_checkpoint(weights, data, folder / "other", dtype=stored)
    shutil.copy(folder / "tokenizer.json", folder / "other")
    change_config(torch_dtype="bfloat16")(folder / "other")
    loaded, _ = mpt_from_pretrained(folder / "other", format=WeightFormat(packed=True))
    assert check_model(Settings(model=str(folder / "other"))).need.weights == weight_bytes(loaded)


def test_the_builder_refuses_what_check_refuses(folder: Path) -> None:
    """Serve calls it before it touches the replicas of the running application."""
    with pytest.raises(RayServeException, match="chat_template: the chat template writes"):
        app.build({"model": str(folder), "chat_template": "chatml"})
    with pytest.raises(RayServeException, match="there is no folder"):
        app.build({"model": "/no/such/folder"})


def test_check_finds_it_and_run_does_not_start(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = config_file(tmp_path, folder, {}, chat_template="chatml")
    for command in ("check", "run"):
        assert cli.main([command, file]) == 2
        assert "line 13: applications[0].args.chat_template: the chat template writes" in capsys.readouterr().err
    assert cli.main(["check", "--for-cluster", file]) == 0
