"""What can be known of a deployment before any of its replicas starts, without reading weights.

`mpt-serve check`, `mpt-serve run` and the application's builder share it. Serve calls the builder before it touches a
running application's replicas, so what is found here never replaces one that runs.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from model.checkpoint.folder import find_tensors, find_weights
from model.checkpoint.match import match_tensors
from model.checkpoint.stored_tensor import CheckpointError
from model.config.mpt_config import MptConfig
from model.config.strict_reader import ConfigError
from mpt_serve.access.access_control import AccessControl
from mpt_serve.configuration.config_file import ConfigFile
from mpt_serve.configuration.model_folder import folder_problem, model_path, tokenizer_folder
from mpt_serve.configuration.problems import ConfigurationError, Problem
from mpt_serve.configuration.problems import Path as SettingPath
from mpt_serve.configuration.serve_schema import check_file, check_serve_config, own_applications
from mpt_serve.configuration.settings import Settings
from mpt_serve.engine.memory import plan_cache
from mpt_serve.engine.memory_need import MemoryNeed, StoredDtypes, memory_need
from mpt_serve.resources import Machine, resource_problems
from mpt_serve.text.chat_template import ChatTemplate, ChatTemplateError
from mpt_serve.text.tokenizer import TextTokenizer, TokenizerError

__all__ = ["ModelReport", "check_config_file", "check_deployment", "check_model"]


@dataclass
class ModelReport:
    """What is known of an application's model. problems: by path in the settings. notes: what else to know.

    need: of a Generator replica's memory.
    """

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    need: MemoryNeed = field(default_factory=MemoryNeed)


def check_config_file(path: str, models: bool = True, machine: Machine | None = None) -> list[str]:
    """Validate a Serve configuration file and the models it names, and return notes about them.

    models: their folders are here. machine: where the applications are going to run; None for a cluster.
    Raises ConfigurationError with file, line, setting and the nearest valid name or value.
    """
    file = ConfigFile(path)
    problems = check_serve_config(file.data)
    notes: list[str] = []
    if models and not problems:
        for index, application, settings in own_applications(file.data):
            report = check_model(settings)
            place: SettingPath = ("applications", index)
            problems += [Problem((*place, "args", *p.path), p.message, p.key) for p in report.problems]
            notes += report.notes
            if machine is not None and not report.problems:
                problems += resource_problems(application, place, machine, report.need.problem(machine.memory))
                notes += report.need.notes(machine.memory, machine.available)
    if problems:
        raise file.error(problems)
    return notes


def check_deployment(args: Mapping[str, Any], file: Path | None) -> tuple[Settings, ModelReport]:
    """Check what Serve is about to start, and return its settings and what is known of its model.

    args: of the application. file: the Serve configuration that they come from, if it is known.
    Raises ConfigurationError.
    """
    if file is not None:
        check_file(str(file))
    settings = Settings.from_mapping(args)
    report = check_model(settings, download=True)
    if report.problems:
        raise ConfigurationError(report.problems)
    return settings, report


def check_model(settings: Settings, download: bool = False) -> ModelReport:
    """Check a model's folder: config, tokenizer, chat template, weights' headers, the settings' fit, and keys.

    download: for a replica: get the small files of a Hugging Face id, which otherwise is checked only by its name, and
        do not require weights, which may be on the Generator's node alone.
    """
    report = ModelReport()
    if not download:
        _check_keys(settings, report)
        _check_batches(settings, report)
    folder = _folder_of(settings.model, ("model",), report, download)
    if folder is None:
        return report
    config, stored = _check_config(folder, ("model",), report, weights=not download)
    _check_text(folder, settings, report)
    if config is not None:
        _check_fit(config, settings, report, stored)
        _check_draft(config, settings, report, download)
    return report


def _check_keys(settings: Settings, report: ModelReport) -> None:
    """Check the key file; the environment of a node is known to its replicas alone."""
    try:
        AccessControl.of(settings.access.replace(key_variable=None), settings.limits)
    except ConfigurationError as error:
        report.problems += error.problems


def _check_batches(settings: Settings, report: ModelReport) -> None:
    """Check that there is, or can be, a folder for files and batches."""
    if settings.batches.folder is None:
        return
    folder = Path(settings.batches.folder).expanduser()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        message = f"cannot be made: '{existing}' is not a folder that this user may write to"
        report.problems.append(Problem(("batches", "folder"), message))


def _folder_of(model: str, path: SettingPath, report: ModelReport, download: bool) -> Path | None:
    problem = folder_problem(model)
    if problem is not None:
        report.problems.append(Problem(path, problem))
        return None
    if Path(model_path(model)).exists():
        return Path(model_path(model))
    if not download:
        report.notes.append(f"'{model}' is a Hugging Face id: its files are checked when it is deployed")
        return None
    try:
        return tokenizer_folder(model)
    except ConfigurationError as error:
        report.problems += [Problem(path, problem.message) for problem in error.problems]
        return None


def _check_config(
    folder: Path, path: SettingPath, report: ModelReport, weights: bool
) -> tuple[MptConfig | None, StoredDtypes | None]:
    """Return the config, and the dtypes of the parameters (`WeightSpec.path`) in the file where that is there."""
    stored = None
    try:
        config = MptConfig.from_file(folder)
        if weights or find_weights(folder) is not None:
            sources = match_tensors(folder, find_tensors(folder), config)
            stored = {source.spec.path: source.parts[0].dtype for source in sources}
    except (ConfigError, CheckpointError) as error:
        report.problems.append(Problem(path, str(error)))
        return None, None
    except OSError as error:
        report.problems.append(Problem(path, f"the folder '{folder}' cannot be read: {error}"))
        return None, None
    return config, stored


def _check_text(folder: Path, settings: Settings, report: ModelReport) -> None:
    try:
        tokenizer = TextTokenizer.from_folder(folder)
    except TokenizerError as error:
        report.problems.append(Problem(("model",), str(error)))
        return
    try:
        ChatTemplate.from_folder(folder, settings.chat_template, tokenizer).close()
    except (ChatTemplateError, TokenizerError, OSError, UnicodeDecodeError) as error:
        if settings.chat_template is None:  # the model completes text nevertheless
            report.notes.append(f"chat is not available: {error}")
        elif settings.chat_template != "none":
            report.problems.append(Problem(("chat_template",), str(error)))


def _check_fit(config: MptConfig, settings: Settings, report: ModelReport, stored: StoredDtypes | None) -> None:
    engine = settings.engine_config
    need = memory_need(config, settings, engine.max_model_len or config.max_seq_len, stored)
    try:
        plan = plan_cache(engine, config, need.per_token, available=2**62)
    except ValueError as error:
        setting = "max_model_len" if "max_model_len" in str(error) else "engine"
        report.problems.append(Problem((setting,), f"does not fit the model: {error}"))
        return
    if config.n_heads % settings.mesh.tensor:
        message = f"must divide the model's number of attention heads ({config.n_heads}); got {settings.mesh.tensor}"
        report.problems.append(Problem(("mesh", "tensor"), message))
    report.need = replace(need, context=plan.max_model_len)
    report.notes += [*plan.notes, report.need.text()]


def _check_draft(config: MptConfig, settings: Settings, report: ModelReport, download: bool) -> None:
    if settings.engine.draft_model is None:
        return
    path: SettingPath = ("engine", "draft_model")
    folder = _folder_of(settings.engine.draft_model, path, report, download)
    draft = None if folder is None else _check_config(folder, path, report, weights=not download)[0]
    if draft is not None and draft.vocab_size != config.vocab_size:
        report.problems.append(
            Problem(path, f"must have the model's vocabulary of {config.vocab_size} ids; it has {draft.vocab_size}")
        )
