"""A database's error as text, without SQL, parameters, records or passwords, and a next step."""

from __future__ import annotations

from ladon_storage.databases import driver_error

_REACH = "Check that the server can be reached at this address, and run again"
_REPAIR = "Repair the database, and run again"
_FREE = "Free some disk space, and run again"
_CHECK = "Check the file, its folder and the space on the disk, and run again"

_SYSTEM = {
    "no space left on device": _FREE,
    "file too large": "Raise the limit of a file's size, as of `ulimit -f`, and run again",
}
"""Texts of the operating system, which DuckDB reports as a failed transaction."""

_NEXT = {
    # PostgreSQL's classes of errors, and the codes with another next step than their class.
    "08": _REACH,
    "40": "Run again, as another program was in the way",
    "42501": "Grant that to the sink's user, and run again",
    "53": "Free resources of the server, such as disk space or connections, and run again",
    "54": "Set id to a shorter field, as an index of PostgreSQL takes 2,700 bytes, and run again",
    "55P03": "Stop the program that holds the table, and run again",
    "57": _REACH,
    # Classes of DuckDB's errors, which have no codes.
    "IOException": _CHECK,
    "TransactionException": "Run again, as another program was in the way",
    "SQLITE_BUSY": "Stop the program that holds the file, and run again",
    "SQLITE_FULL": _FREE,
    "SQLITE_IOERR": _CHECK,
    "SQLITE_NOTADB": "Set the sink to a database of SQLite, or to a new file, and run again",
    "SQLITE_READONLY": "Let the run write to the file and its folder, and run again",
}


def describe(error: Exception) -> tuple[str, str, Exception]:
    """Return the database's message, the next step, and the error to chain.

    A database may repeat the content of a row in the details of its error. The chained error has
    the same class, and only the first sentence.
    """
    original = getattr(error, "orig", None)
    if not isinstance(original, Exception):
        return type(error).__name__, _REPAIR, error
    code, said = driver_error(error)
    if code is None:  # of psycopg, if there was no connection to ask
        name = type(original).__name__
        step = _NEXT.get(name) or (_REACH if name == "OperationalError" else _REPAIR)
    else:
        kind = "_".join(str(code).split("_")[:2])  # SQLITE_IOERR of SQLITE_IOERR_WRITE
        step = _NEXT.get(kind) or _NEXT.get(str(code)[:2]) or _REPAIR
    for text, next_step in _SYSTEM.items():
        if text in said.lower():
            step = next_step
    return said, step, type(original)(said)
