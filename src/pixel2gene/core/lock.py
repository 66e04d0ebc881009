"""One process at a time."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl


@contextmanager
def locked(lock: Path, what: str) -> Iterator[None]:
    """Hold a lock file; the system frees it when the process ends, however it does.

    Parameters
    ----------
    lock
        File, made and removed.
    what
        That is written to meanwhile, for the error.

    Raises
    ------
    BlockingIOError
        If another holds it.
    """
    if sys.platform == "win32":
        # It has no locks that die with a process, and no names of files that are open and gone.
        yield
        return
    descriptor = _hold(lock, what)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _hold(lock: Path, what: str) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT)
        try:
            _lock(descriptor, what)
            # Who held it may have removed it since.
            if lock.exists() and os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, what: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 20, 0).decode() or "another"
        raise BlockingIOError(
            f"Process {owner} is writing to {what}: wait until it has ended, or end it, and run this again."
        ) from None
    except OSError as error:
        # File systems without locks leave it to the user that one process writes at a time.
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
