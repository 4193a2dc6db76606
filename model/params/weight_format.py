"""Which parameter is kept in which format.

The embedding and the head stay int8 beside int4 blocks: they are few of a large model's bytes, and their errors reach
the logits directly.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

Quantization = Literal["none", "int8", "int4"]
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)


@dataclass(frozen=True)
class WeightFormat:
    """How matrices are kept: quantised or not, and in the CPU kernels' order (`packed`) or the checkpoint's.

    group: inputs that share a scale where weights are int4; a multiple of 4. Raises ValueError for a wrong field.
    """

    quantization: str = "none"
    packed: bool = False
    group: int = 64

    def __post_init__(self) -> None:
        if self.quantization not in QUANTIZATIONS:
            raise ValueError(f"quantization must be one of {', '.join(QUANTIZATIONS)}, got {self.quantization!r}")
        if self.group < 4 or self.group % 4:
            raise ValueError(f"group must be a multiple of 4, got {self.group}")

    @property
    def packs(self) -> bool:
        """Whether any parameter is packed."""
        return self.packed or self.quantization != "none"

    def of(self, path: str, dtype: Any, tied_head: bool) -> str | None:
        """Return the packed format of the parameter at `path` (`WeightSpec.path`), or None: an array as it is."""
        head = path == "lm_head" or (path == "wte" and tied_head)
        linear = path.endswith(("wqkv/weight", "_proj/weight"))
        if not head and not linear:
            return None
        if self.quantization != "none":
            return "int8" if head else self.quantization
        name = np.dtype(dtype).name
        return name if self.packed and name in ("float32", "bfloat16") else None

    def kept_dtype(self, stored: np.dtype[Any]) -> np.dtype[Any]:
        """Return the dtype in memory of a parameter stored as `stored`, where the caller names none."""
        widened = stored == np.float64 or (stored == np.float16 and self.packed)  # no kernel reads float16
        return np.dtype(np.float32) if widened else stored


AS_STORED = WeightFormat()
"""Arrays in the checkpoint's order and dtype."""
