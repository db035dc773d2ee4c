"""``ladon.toml``: the one file that a user edits to add a feed.

::

    project.py            the file as an object: its sources, its sinks, its storage
    reading.py            from the text to the tables, or to one sentence about the fault
    tables.py             the tables as models
    schema.py             the JSON schema of the file, for editors
    ladon.schema.json     the same, as it is shipped
    ladon.example.toml    what `init` writes
"""

from ladon_storage.project.project import FILE_NAME, FILE_VARIABLE, Project, example
from ladon_storage.project.tables import Freshness, Schedule, SinkTable, SourceTable, StorageTable

__all__ = [
    "FILE_NAME",
    "FILE_VARIABLE",
    "Freshness",
    "Project",
    "Schedule",
    "SinkTable",
    "SourceTable",
    "StorageTable",
    "example",
]
