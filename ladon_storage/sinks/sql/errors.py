"""A database's error as text, without SQL, parameters, records or passwords, and a next step."""

from __future__ import annotations

from sqlalchemy.exc import SQLAlchemyError

_REACH = "see that the server can be reached with this address, and run again"
_REPAIR = "repair the database, and run again"
_NEXT = {
    # PostgreSQL's classes of errors, and the codes with another next step than their class.
    "08": _REACH,
    "40": "run again; another program was in the way",
    "42501": "grant that to the sink's user",
    "53": "make room, and run again",
    "55P03": "end the program that holds the table, and run again",
    "57": _REACH,
    "SQLITE_BUSY": "end the program that holds the file, and run again",
    "SQLITE_FULL": "make room, and run again",
    "SQLITE_READONLY": "let the run write to the file and its folder",
}


def describe(error: SQLAlchemyError) -> tuple[str, str, Exception]:
    """Return the database's message, the next step, and the error to chain.

    A database may repeat the content of a row in the details of its error. The chained error has
    the same class, and only the first sentence.
    """
    original = getattr(error, "orig", None)
    if not isinstance(original, Exception):
        return type(error).__name__, _REPAIR, error
    primary = getattr(getattr(original, "diag", None), "message_primary", None)
    said = str(primary or original).strip().partition("\n")[0] or type(original).__name__
    code = getattr(original, "sqlstate", None) or getattr(original, "sqlite_errorname", None)
    if code is None:  # of psycopg, if there was no connection to ask
        step = _REACH if type(original).__name__ == "OperationalError" else _REPAIR
    else:
        step = _NEXT.get(code) or _NEXT.get(code[:2]) or _REPAIR
    return said, step, type(original)(said)
