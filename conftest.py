"""Keep the tests apart from the user's own Prefect and Storage Service."""

from __future__ import annotations

import os
import tempfile

# Before anything imports Prefect, which reads its settings once.
for name in list(os.environ):
    if name.startswith(("PREFECT_", "STORAGE_")) or name == "ENVIRONMENT":
        del os.environ[name]
_prefect_home = tempfile.TemporaryDirectory(prefix="ladon-storage-prefect-")
os.environ["PREFECT_HOME"] = _prefect_home.name
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["DO_NOT_TRACK"] = "1"
