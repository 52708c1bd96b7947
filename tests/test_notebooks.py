"""Every notebook runs top to bottom in a fresh kernel, here under the runner that counts."""
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NBS = Path(__file__).resolve().parents[1] / "nbs"
PAGES = sorted(p for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(NBS).with_suffix("").as_posix())
def test_page(page, monkeypatch):
    "Restart, run all: no cell fails."
    monkeypatch.setitem(os.environ, "TQDM_DISABLE", "1")
    nb = nbformat.read(page, as_version=4)
    NotebookClient(nb, timeout=1500, resources={"metadata": {"path": str(page.parent)}}).execute()
    assert all(c.execution_count for c in nb.cells if c.cell_type == "code" and c.source.strip())
