"""Reads the pickle in a PyTorch checkpoint as data: no object that the file names is ever imported or called.

A pickle is a program for a small stack machine. The state dict of a model needs about thirty of its instructions and
four of its callables, which `_Machine` interprets itself. That is stricter than pickle.Unpickler with find_class
overridden: the instructions that allocate sizes given by the file, or hash and call objects that it has built, do not
exist here, so the worst outcome of a hostile file is a refusal.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn, cast

import ml_dtypes
import numpy as np

from model.checkpoint.stored_tensor import CheckpointError

MAX_PICKLE_BYTES = 2**20  # about 5,000 tensors; the largest MPT has fewer than 1,000
MAX_TRAINING_PICKLE_BYTES = 2**28  # of a checkpoint of training, which may hold the tokenizer's files too
MAX_INSTRUCTIONS = 2**22  # each may make an object of 64 bytes; 7B on 64 devices with its tokenizer has a quarter
_MAX_STRING = 64 * 2**10
_NAME_LINE = re.compile(rb"[\w.]+\n")

STORAGE_DTYPES: dict[str, np.dtype[Any]] = {
    f"torch.{name}Storage": np.dtype(dtype)
    for name, dtype in {
        "Double": np.float64,
        "Float": np.float32,
        "Half": np.float16,
        "BFloat16": ml_dtypes.bfloat16,
        "Long": np.int64,
        "Int": np.int32,
        "Short": np.int16,
        "Char": np.int8,
        "Byte": np.uint8,
        "Bool": np.bool_,
    }.items()
}


@dataclass(frozen=True)
class Storage:
    """A flat run of numbers that tensors are views of: `key` names it within the file."""

    key: str
    dtype: np.dtype[Any]
    size: int  # elements


@dataclass(frozen=True)
class TensorView:
    """A tensor as the pickle describes it: a strided view of a storage, offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    """A name `module.attribute` in the file; never looked up."""

    name: str


@dataclass(frozen=True)
class Opaque:
    """An object that the pickle makes by calling `name`, which was not called: it has no content."""

    name: str


@dataclass(eq=False)
class Record:
    """An object of torch.distributed.checkpoint's metadata: its class' name, and what the pickle sets on it."""

    name: str
    state: Any = None


def read_pickle(file: BinaryIO, where: str, training: bool = False, records: bool = False) -> Any:
    """Interpret the pickle at the file's position and leave the position behind it.

    Returns plain dicts with str keys, lists, tuples, numbers, strings, None, and TensorView for each tensor.
    Raises CheckpointError, starting with `where`, for anything that a state dict of tensors does not need: it names
    the callable in the file, or the pickle instruction.

    training: the pickle is a checkpoint of training, which holds much beside tensors: what has no plain type becomes
        `Opaque`, and loses what the pickle would do with it. Nothing is imported or called either.
    records: with `training`: the objects of torch.distributed.checkpoint's metadata become `Record`.
    """
    machine = _RecordMachine(where) if records else _TrainingMachine(where) if training else _Machine(where)
    limits = (MAX_TRAINING_PICKLE_BYTES, MAX_TRAINING_PICKLE_BYTES) if training else (MAX_PICKLE_BYTES, _MAX_STRING)
    try:
        program = pickletools.genops(cast(BinaryIO, _Bounded(file, where, *limits)))
        for count, (opcode, argument, _) in enumerate(program):
            if count == MAX_INSTRUCTIONS:
                raise CheckpointError(f"{where}: the pickle has more than {MAX_INSTRUCTIONS} instructions")
            machine.step(opcode.name, argument)
    except CheckpointError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, EOFError, UnicodeError) as error:
        raise CheckpointError(f"{where}: the pickle is damaged: {str(error)[:200]}") from None
    return machine.result


class _Bounded:
    """The file that genops reads, with limits: a pickle or string longer than any checkpoint's is refused."""

    def __init__(self, file: BinaryIO, where: str, most: int, longest: int) -> None:
        self._file, self._where, self._most, self._left, self._longest = file, where, most, most, longest

    def read(self, count: int) -> bytes:
        if count > self._longest:
            raise CheckpointError(f"{self._where}: the pickle contains a value of {count} bytes; only tensors are read")
        return self._spend(self._file.read(count))

    def readline(self) -> bytes:
        line = self._spend(self._file.readline(_MAX_STRING))
        if not _NAME_LINE.fullmatch(line):  # genops would decode any text of the oldest protocol
            raise CheckpointError(f"{self._where}: the file contains text of pickle protocol 0; only tensors are read")
        return line

    def tell(self) -> int:
        return self._file.tell()

    def _spend(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise CheckpointError(f"{self._where}: the pickle is longer than {self._most} bytes")
        return data


_MARK = object()

_PUSH_CONSTANT: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}
_PUSH_ARGUMENT = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE"),
}
_TUPLE_SIZES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NOTHING = {"PROTO", "FRAME"}


class _Machine:
    """The pickle stack machine, reduced to what a state dict needs."""

    def __init__(self, where: str) -> None:
        self.result: Any = None
        self._where = where
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Execute one instruction."""
        stack = self._stack
        if name in _NOTHING:
            return
        if name in _PUSH_CONSTANT:
            stack.append(_PUSH_CONSTANT[name]())
        elif name in _PUSH_ARGUMENT:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name in _TUPLE_SIZES:
            stack.append(self._pop_many(_TUPLE_SIZES[name]))
        elif name == "TUPLE":
            stack.append(tuple(self._pop_to_mark()))
        else:
            self._step_object(name, argument)

    def _step_object(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name == "GLOBAL":
            stack.append(_Global(argument.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            stack.append(_Global(".".join(self._pop_many(2))))
        elif name == "REDUCE":
            function, arguments = self._pop_many(2)
            stack.append(self._call(function, arguments))
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name == "BUILD":
            target, state = self._pop_many(2)
            self._build(target, state)
            stack.append(target)
        elif name in ("APPEND", "APPENDS"):
            items = self._pop_to_mark() if name == "APPENDS" else [stack.pop()]
            self._top(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            self._set_items(self._pop_to_mark() if name == "SETITEMS" else list(self._pop_many(2)))
        elif name == "STOP":
            self.result = stack.pop()
        else:
            self._refuse(f"the pickle instruction {name}")

    def _pop_many(self, count: int) -> tuple[Any, ...]:
        if len(self._stack) < count:
            raise ValueError("its stack runs empty")
        items = tuple(self._stack[-count:])
        del self._stack[-count:]
        return items

    def _pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _build(self, target: Any, state: Any) -> None:
        """Set attributes of an object. Those of a state dict (its `_metadata`) are not needed."""

    def _is_key(self, key: Any) -> bool:
        return type(key) is str

    def _top(self, kind: type) -> Any:
        if type(self._stack[-1]) is not kind:
            raise ValueError(f"a {kind.__name__} expected, found {type(self._stack[-1]).__name__}")
        return self._stack[-1]

    def _set_items(self, items: list[Any]) -> None:
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not self._is_key(key):
                self._refuse(f"a dict with a {type(key).__name__} as key")
            target[key] = value

    def _call(self, function: Any, arguments: Any) -> Any:
        name = _name_of(function)
        if name == "collections.OrderedDict" and arguments == ():
            return {}
        if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
            return self._tensor(*arguments[:4])
        if name == "torch._utils._rebuild_parameter" and arguments and isinstance(arguments[0], TensorView):
            return arguments[0]
        return self._refuse(name)

    def _storage(self, identity: Any) -> Storage:
        kind, tag, key, _location, size, *rest = identity
        if kind != "storage" or any(part is not None for part in rest):
            self._refuse(f"a persistent object of kind {kind!r}" if type(kind) is str else "a persistent object")
        if not isinstance(tag, _Global) or tag.name not in STORAGE_DTYPES:
            self._refuse(tag.name if isinstance(tag, _Global) else type(tag).__name__)
        if type(key) is not str or not _is_size(size):
            raise ValueError("a storage without a name or size")
        return Storage(key, STORAGE_DTYPES[tag.name], size)

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> TensorView:
        if not isinstance(storage, Storage) or type(shape) is not tuple or type(strides) is not tuple:
            raise ValueError("a tensor without storage, shape or strides")
        if not all(map(_is_size, (offset, *shape, *strides))) or len(shape) != len(strides) or len(shape) > 16:
            raise ValueError("a tensor whose offset, shape or strides are not sizes")
        return TensorView(storage, offset, shape, strides)

    def _refuse(self, what: str) -> NoReturn:
        raise CheckpointError(
            f"{self._where}: the file contains {what[:200]}; only tensors are read, nothing else is created or called. "
            f"Save a plain state dict of tensors, best as safetensors"
        )


_OPAQUE = {
    *("EMPTY_SET", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINUNICODE8", "LONG4"),
    *("BINSTRING", "SHORT_BINSTRING"),
}
_TENSORS = {f"torch._utils._rebuild_{kind}" for kind in ("tensor", "tensor_v2", "parameter")}


class _TrainingMachine(_Machine):
    """The machine for checkpoints of training: objects of other kinds exist, and have no content."""

    def _step_object(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in ("NEWOBJ", "NEWOBJ_EX"):
            kind = self._pop_many(2 if name == "NEWOBJ" else 3)[0]
            stack.append(Opaque(_name_of(kind)))
        elif name in _OPAQUE:
            stack.append(Opaque(name))
        elif name in ("FROZENSET", "ADDITEMS", "POP_MARK"):
            self._pop_to_mark()
            if name == "FROZENSET":
                stack.append(Opaque(name))
        elif name == "POP":
            stack.pop()
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            super()._step_object(name, argument)

    def _top(self, kind: type) -> Any:
        if isinstance(self._stack[-1], Opaque):
            return kind()  # takes what the object would be given, and is dropped
        return super()._top(kind)

    def _set_items(self, items: list[Any]) -> None:
        pairs = zip(items[::2], items[1::2], strict=True)
        super()._set_items([part for key, value in pairs if self._is_key(key) for part in (key, value)])

    def _call(self, function: Any, arguments: Any) -> Any:
        name = _name_of(function)
        known = name == "collections.OrderedDict" and arguments == ()
        if known or (name in _TENSORS and _holds_tensor(arguments)):
            return super()._call(function, arguments)
        return Opaque(name)

    def _storage(self, identity: Any) -> Any:
        tag = identity[1] if isinstance(identity, tuple) and len(identity) > 1 else None
        if not isinstance(tag, _Global) or tag.name not in STORAGE_DTYPES:
            return Opaque(_name_of(tag))
        return super()._storage(identity)


_RECORDS = {
    *(f"torch.distributed.checkpoint.metadata.{name}" for name in ("Metadata", "MetadataIndex")),
    *(f"torch.distributed.checkpoint.metadata.{name}StorageMetadata" for name in ("Tensor", "Chunk")),
    "torch.distributed.checkpoint.filesystem._StorageInfo",
}


class _RecordMachine(_TrainingMachine):
    """The machine for torch.distributed.checkpoint's metadata: records have content, and may be keys."""

    def _step_object(self, name: str, argument: Any) -> None:
        super()._step_object(name, argument)
        made = self._stack[-1] if self._stack else None
        if name == "NEWOBJ" and isinstance(made, Opaque) and made.name in _RECORDS:
            self._stack[-1] = Record(made.name)

    def _build(self, target: Any, state: Any) -> None:
        if isinstance(target, Record):
            target.state = state

    def _is_key(self, key: Any) -> bool:
        return isinstance(key, Record) or super()._is_key(key)

    def _call(self, function: Any, arguments: Any) -> Any:
        size = _name_of(function) == "torch.Size" and type(arguments) is tuple and len(arguments) == 1
        return arguments[0] if size else super()._call(function, arguments)


def _name_of(function: Any) -> str:
    return function.name if isinstance(function, (_Global, Opaque)) else type(function).__name__


def _holds_tensor(arguments: Any) -> bool:
    return isinstance(arguments, tuple) and bool(arguments) and isinstance(arguments[0], (Storage, TensorView))


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63
