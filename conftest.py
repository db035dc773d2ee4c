"""Keep the tests apart from the user's own Prefect and Storage Service, and what starts them."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from pathlib import Path

import certifi

# Thousands of small folders and databases, in memory where a machine has enough of it: tests end
# processes and never the power, and to wait for a disk takes a third of their time.
_MEMORY = "/dev/shm"  # noqa: S108
if (
    "TMPDIR" not in os.environ
    and os.access(_MEMORY, os.W_OK | os.X_OK)
    and not os.statvfs(_MEMORY).f_flag & os.ST_NOEXEC
    and shutil.disk_usage(_MEMORY).free > 4 * 2**30
):
    tempfile.tempdir = os.environ["TMPDIR"] = _MEMORY

# What was imported and collected is half a million objects, which each search for garbage goes
# through. Less often, as a long-lived server does.
gc.set_threshold(5_000, 20, 50)

# Before anything imports Prefect, which reads its settings once.
for name in list(os.environ):
    if name.startswith(("PREFECT_", "STORAGE_")) or name == "ENVIRONMENT":
        del os.environ[name]
_prefect_home = tempfile.TemporaryDirectory(prefix="ladon-storage-prefect-")
os.environ["PREFECT_HOME"] = _prefect_home.name
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["DO_NOT_TRACK"] = "1"

# Some tests run pytest in a process of their own, which needs no options of this one's.
os.environ.pop("PYTEST_ADDOPTS", None)

# A job in the background ignores SIGINT, and one of nohup SIGHUP; processes that tests start and
# signal would inherit that, which they do of no handler.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

# Each client of HTTP reads all certificates that it is to trust, which takes longer than a request.
# The servers of the tests are on loopback, and those with TLS have certificates of their own.
_first, _end, _ = (
    Path(certifi.where()).read_text("ascii", "ignore").partition("-----END CERTIFICATE-----")
)
_certificate = Path(_prefect_home.name, "certificate.pem")
_certificate.write_text(f"{_first}{_end}\n", "ascii")
os.environ["SSL_CERT_FILE"] = os.environ["PREFECT_API_SSL_CERT_FILE"] = str(_certificate)
