"""Quantize a GGUF file: SOURCE TARGET q8_0|q4_0. Runs in llama.cpp's environment."""

import ctypes
import os
import sys

import llama_cpp

FILE_TYPES = {"q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}


def main() -> None:
    source, target, dtype = sys.argv[1:]
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = FILE_TYPES[dtype]
    parameters.nthread = os.cpu_count() or 1
    status = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(parameters))
    if status:
        raise SystemExit(f"llama.cpp could not quantize {source} (status {status})")


if __name__ == "__main__":
    main()
