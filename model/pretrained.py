"""`mpt_from_pretrained`: from a folder's path or a hub id to weights on their devices.

A repository's own Python (`auto_map` in config.json) is never downloaded, imported or run: the config is read as data
and the mathematics is this package's, so loading a model cannot execute what its author wrote.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, SingleDeviceSharding
from jax.typing import DTypeLike

from model.checkpoint.folder import WEIGHT_FILES, find_weights, sharded_advice
from model.checkpoint.load import load_weights
from model.checkpoint.quantized_cache import load_through_cache
from model.checkpoint.stored_tensor import CheckpointError
from model.config.config_files import has_config
from model.config.mpt_config import MptConfig
from model.gguf.header import find_gguf, is_gguf
from model.params.sharding import weight_shardings
from model.params.weight_format import AS_STORED, WeightFormat
from model.params.weights import Weights

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TEXT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
_SAFETENSORS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
_FLAX = ("easydel-model*", "flax_model.msgpack")
_PICKLES = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")

LAYOUT = (
    f"a folder with config.json, tokenizer.json and one of {', '.join(WEIGHT_FILES)} (an index with its shards), a GGUF"
    " file, or another format of docs/formats.md"
)


def mpt_from_pretrained(
    path_or_id: str | Path,
    device: jax.Device | str | None = None,
    dtype: DTypeLike | None = None,
    mesh: Mesh | None = None,
    fsdp: bool = True,
    revision: str | None = None,
    progress: bool | None = None,
    format: WeightFormat = AS_STORED,
    cache_dir: str | Path | None = None,
) -> tuple[Weights, MptConfig]:
    """Load a model: `path_or_id` is a checkpoint folder, a GGUF file or a hub id such as "owner/name".

    device: a JAX device, "cpu", "gpu" or "tpu"; None is JAX's default. Excludes `mesh`.
    dtype: bfloat16, float16 or float32 for every parameter; None keeps the checkpoint's.
    mesh: lays the weights over several devices (`sharding.make_mesh`); with `fsdp`, over both of its axes.
    revision: a branch, tag or commit of the hub repository.
    progress: whether to show a bar on stderr; None shows it on a terminal only.
    format: how matrices are kept: as arrays in the checkpoint's order, in that of the CPU kernels, or quantised.
    cache_dir: a folder that keeps packed weights between loads (`checkpoint.quantized_cache`); None keeps none.

    Raises CheckpointError (no such checkpoint, or one that is damaged or does not fit), ConfigError (a config.json that
    this package does not run), ValueError (device or mesh).
    """
    if device is not None and mesh is not None:
        raise ValueError("give a device or a mesh, not both: a mesh names its devices itself")
    folder = resolve_checkpoint(path_or_id, revision)
    config = MptConfig.from_file(folder)
    if mesh is not None:
        if format.quantization != "none":
            raise ValueError(f"quantization '{format.quantization}' takes one device; with a mesh it must be 'none'")
        if format.packed:
            raise ValueError("packed weights take one device; with a mesh the format must not be packed")
        return load_weights(folder, config, dtype, weight_shardings(config, mesh, fsdp), progress), config
    placement = None if device is None else SingleDeviceSharding(find_device(device))
    if cache_dir is not None and format.packs:
        return load_through_cache(cache_dir, folder, config, dtype, placement, progress, format), config
    return load_weights(folder, config, dtype, placement, progress, format), config


def resolve_checkpoint(path_or_id: str | Path, revision: str | None = None) -> Path:
    """Return the GGUF file or the local folder of a checkpoint.

    It is the path itself, a folder's only GGUF file, or where the hub's cache keeps the repository's files.

    Downloads config, tokenizer and safetensors; pickled weights only where there are no safetensors, and Flax's only
    where there are neither; never code.
    Raises CheckpointError saying what the folder must hold.
    """
    folder = Path(path_or_id).expanduser()
    if is_gguf(folder):
        return folder
    if folder.is_dir():
        return _check_folder(folder)
    if folder.exists():
        raise CheckpointError(f"'{path_or_id}' is a file; {LAYOUT} is needed{_composer_advice(folder)}")
    if isinstance(path_or_id, Path) or _HUB_ID.fullmatch(path_or_id) is None:
        raise CheckpointError(f"there is no folder '{path_or_id}'; {LAYOUT} is needed, or a hub id as 'owner/name'")
    return _check_folder(_download(path_or_id, revision))


def _check_folder(folder: Path) -> Path:
    inside = find_gguf(folder)
    if inside is not None and not (folder / "config.json").is_file():
        return inside
    weights = find_weights(folder) is not None
    if weights and has_config(folder):
        return folder
    missing = "weights" if (folder / "config.json").is_file() else "config.json"
    advice = sharded_advice(folder) if missing == "weights" else _composer_advice(find_weights(folder))
    found = sorted(entry.name for entry in folder.iterdir())
    listed = ", ".join(found[:10]) + (", ..." if len(found) > 10 else "") or "nothing"
    raise CheckpointError(f"'{folder}' holds no {missing}: {LAYOUT} is needed; found: {listed}{advice}")


def _composer_advice(file: Path | None) -> str:
    """Return how to use a checkpoint of Composer, which may hold its config; nothing for other files."""
    if file is None or file.suffix != ".pt":
        return ""
    return f". Where Composer has saved the config in it: mpt-serve convert {file} FOLDER"


def _download(hub_id: str, revision: str | None) -> Path:
    import huggingface_hub  # slow to import, and needed for hub ids only

    def fetch(*patterns: str) -> Path:
        return Path(huggingface_hub.snapshot_download(hub_id, revision=revision, allow_patterns=list(patterns)))

    try:
        folder = fetch(*_TEXT_FILES, *_SAFETENSORS)
        for others in (_PICKLES, _FLAX):
            if find_weights(folder) is None:
                folder = fetch(*_TEXT_FILES, *others)
        return folder
    except (OSError, ValueError) as error:  # the hub's errors: unreachable, gone, gated, not a valid id
        raise CheckpointError(_no_download(hub_id, error)) from error


def _no_download(hub_id: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    message = f"'{hub_id}' is neither a local folder nor available from the hub ({type(error).__name__}: {reason})."
    if hub_id.lower().startswith("mosaicml/"):
        message += " The mosaicml/* repositories were removed from the hub; any local copy or mirror of one works."
    return f"{message} Give the path of {LAYOUT}."


def find_device(device: jax.Device | str | None) -> jax.Device:
    """Return a device, the first of a platform, or JAX's default. Raises ValueError where there is none."""
    if device is None:
        return jnp.zeros(()).devices().pop()
    if not isinstance(device, str):
        return device
    try:
        return jax.local_devices(backend=device)[0]
    except RuntimeError:
        names = sorted({available.platform for available in jax.local_devices()} | {"cpu"})
        raise ValueError(f"device '{device}' is not there; this machine has {', '.join(names)}") from None
