"""The code of `docs/how-to/test-your-own.md` runs where nothing but the package is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import ROOT, examples

SOURCE, SINK, LOOP, MISTAKE, DOUBLES = (
    code for _, code in examples(ROOT / "docs" / "how-to" / "test-your-own.md")
)


def run_python(folder: Path, *arguments: str) -> str:
    """Run Python in a folder that is no checkout, and return its output."""
    ended = subprocess.run(
        [sys.executable, *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_contracts_of_the_document_pass_in_a_folder_of_ones_own(tmp_path: Path) -> None:
    """No plugin for asyncio is needed, and warnings are errors."""
    (tmp_path / "test_source.py").write_text(SOURCE)
    (tmp_path / "test_sink.py").write_text(SINK)
    plugins = ["asyncio", "randomly", "xdist", "cacheprovider"]
    without = [word for name in plugins for word in ("-p", f"no:{name}")]
    printed = run_python(
        tmp_path, "-m", "pytest", "-q", *without, "-W", "error", "-c", os.devnull,
        "--rootdir", str(tmp_path), "test_source.py", "test_sink.py",
    )  # fmt: skip
    assert " passed, " in printed
    assert "failed" not in printed


@pytest.mark.slow
def test_judge_of_the_document_finds_the_mistake_and_nothing_else(tmp_path: Path) -> None:
    """The loop has fewer than fifty lines; the one without an overlap loses late records."""
    loop = LOOP[LOOP.index("class Loop") : LOOP.index("\n\nverdict")]
    assert len(loop.strip().splitlines()) < 50
    (tmp_path / "judged.py").write_text(LOOP + MISTAKE)
    printed = run_python(tmp_path, "judged.py")
    assert "late       lost (seed " in printed


def test_doubles_of_the_document_run(tmp_path: Path) -> None:
    """A run that fails, and the next one."""
    body = "".join(f"    {line}" for line in DOUBLES.splitlines(keepends=True))
    (tmp_path / "doubles.py").write_text(
        f"import asyncio\n\nasync def main():\n{body}\nasyncio.run(main())\n"
    )
    run_python(tmp_path, "doubles.py")
