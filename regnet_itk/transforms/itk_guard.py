"""ITK's transform files tried in a process of its own: some damaged ones make ITK hang, crash or take all memory.

Run as a program with a file's path, it reads the file and says on standard output why that fails, if it does.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

_SECONDS = 10
_SECONDS_PER_GB = 30
_PATIENCE = 6  # on a busy machine a second of the processor takes so long
_MEMORY = 2 << 30  # bytes; what Python and SimpleITK take is a fraction of it
_MEMORY_PER_BYTE = 12  # of the file: packed fields unpack to several times their size, and are copied
_LARGEST_RATIO = 1100  # deflate packs no better


def try_itk_file(path: Path) -> str | None:
    """Read an ITK transform file in a process with a limit of memory and time.

    Returns
    -------
    str or None
        Why the file cannot be read; None if it can.
    """
    size = path.stat().st_size
    seconds = _SECONDS + _SECONDS_PER_GB * size / 2**30
    memory = _MEMORY + _MEMORY_PER_BYTE * min(size * _LARGEST_RATIO, 1 << 31) + _MEMORY_PER_BYTE * size
    command = [sys.executable, "-P", __file__, str(path.resolve()), str(memory), str(int(seconds) + 1)]
    try:
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE * seconds, check=False
        )  # it is killed, not asked: ITK's readers do not listen
    except subprocess.TimeoutExpired:
        return f"it is damaged: reading it did not end within {seconds:.0f} s"
    if ended.returncode == 0:
        return None
    if ended.returncode == -getattr(signal, "SIGXCPU", 0):  # the limit of the processor's time
        return f"it is damaged: reading it did not end within {seconds:.0f} s"
    told = ended.stdout.decode(errors="replace").strip().splitlines()
    return told[-1] if ended.returncode == 1 and told else "it is damaged: reading it takes ITK down"


def _limit(memory: int, seconds: int) -> None:
    with contextlib.suppress(
        ImportError, ValueError, OSError
    ):  # Windows has no such limits; the caller's clock remains
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def _main(path: str, memory: str, seconds: str) -> int:
    import SimpleITK as sitk

    _limit(int(memory), int(seconds))
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        sitk.ReadTransform(path)
    except KeyError:
        return 0  # a class that SimpleITK has no name for: reading itself went well
    except MemoryError:
        print("it is damaged: it asks for more memory than its size can need")
    except UnicodeError:
        print("it is damaged: its text is not UTF-8")
    except Exception as error:  # whatever ITK throws, a line of it is the answer
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        told = lines[-1] if lines else type(error).__name__
        out_of_memory = "bad_alloc" in told or "memory" in told.lower()
        print("it is damaged: it asks for more memory than its size can need" if out_of_memory else told)
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
