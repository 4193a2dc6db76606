"""How much memory a process has."""

import os
from pathlib import Path

__all__ = ["device_bytes", "resident_bytes"]


def resident_bytes() -> int:
    """Return the resident memory of this process; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def device_bytes() -> int:
    """Return the memory in use on this process's accelerators; 0 where there is none."""
    import jax

    return sum((device.memory_stats() or {}).get("bytes_in_use", 0) for device in jax.local_devices())
