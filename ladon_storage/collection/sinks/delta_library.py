"""The library ``deltalake``, loaded so that the memory which it frees is given back.

- Its allocator, jemalloc, is set by the environment when the library is loaded, and keeps what was
  freed for ten seconds: a run that commits many times a second grew by tens of MiB.
- So it is imported here and nowhere else. Where a program has loaded it before, or sets the
  allocator itself, that is left alone.
"""

from __future__ import annotations

import os

_ALLOCATOR = "_RJEM_MALLOC_CONF"
_is_set = _ALLOCATOR in os.environ
os.environ.setdefault(_ALLOCATOR, "dirty_decay_ms:0")
try:
    from deltalake import (
        CommitProperties,
        DeltaTable,
        PostCommitHookProperties,
        Schema,
        Transaction,
    )
    from deltalake.exceptions import CommitFailedError, DeltaError
    from deltalake.fs import DeltaStorageHandler
    from deltalake.transaction import AddAction, RemoveAction
finally:
    if not _is_set:
        del os.environ[_ALLOCATOR]  # not for the programs that this one starts

__all__ = [
    "AddAction",
    "CommitFailedError",
    "CommitProperties",
    "DeltaError",
    "DeltaStorageHandler",
    "DeltaTable",
    "PostCommitHookProperties",
    "RemoveAction",
    "Schema",
    "Transaction",
]
