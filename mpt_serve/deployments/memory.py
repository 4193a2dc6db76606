"""How much memory a process has."""

import os
from pathlib import Path

__all__ = ["device_bytes", "memory_text", "resident_bytes"]


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


def memory_text() -> str:
    """Return both as a text in MiB; the devices' only where there are any."""
    on_devices = device_bytes()
    text = f"{resident_bytes() / 2**20:.0f} MiB resident"
    return f"{text}, {on_devices / 2**20:.0f} MiB on devices" if on_devices else text
