"""What a database's error says, without SQL, parameters, records or passwords, and what to do."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

_NEXT = {
    # PostgreSQL's classes of errors, and the codes that need another step than their class.
    "08": "see that the server can be reached, and run again",
    "28": "correct the user or the password in the address",
    "3D": "make the database, or correct the address",
    "40": "run again; another program was in the way",
    "42501": "grant that to the sink's user",
    "53": "make room, and run again",
    "55P03": "end the program that holds the table, and run again",
    "57": "see that the server can be reached, and run again",
    "SQLITE_BUSY": "end the program that holds the file, and run again",
    "SQLITE_FULL": "make room, and run again",
    "SQLITE_READONLY": "let the run write to the file and its folder",
}


def told(error: SQLAlchemyError) -> tuple[str, str, Exception]:
    """Return what the database said, the next step, and the error to chain.

    A database may repeat the content of a row in the details of its error; the chained error is of
    the same class, and has the first sentence alone.
    """
    original = getattr(error, "orig", None)
    if not isinstance(original, Exception):
        return type(error).__name__, "repair the database, and run again", error
    primary = getattr(getattr(original, "diag", None), "message_primary", None)
    said = str(primary or original).strip().partition("\n")[0] or type(original).__name__
    code = getattr(original, "sqlstate", None) or getattr(original, "sqlite_errorname", None) or ""
    step = _NEXT.get(code) or _NEXT.get(code[:2])
    if step is None and isinstance(error, DBAPIError) and error.connection_invalidated:
        step = _NEXT["08"]
    return said, step or "repair the database, and run again", type(original)(said)
