"""Every notebook runs top to bottom in a fresh kernel, here under the runner that counts."""
import shutil
from pathlib import Path

import forked
import nbformat
import pytest
from exercises import answered
from nbclient import NotebookClient

TOP = Path(__file__).resolve().parents[1]
NBS = TOP / "nbs"
PAGES = sorted(p for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(NBS).with_suffix("").as_posix())
def test_page(page, tmp_path, monkeypatch):
    "Restart, run all: no cell fails. In a copy of the checkout, so that what a page writes beside itself changes nothing here."
    for name in ("results", "benchmarks"): (tmp_path / name).symlink_to(TOP / name)
    shutil.copytree(NBS / "images", tmp_path / "nbs/images")
    (here := (tmp_path / page.relative_to(TOP)).parent).mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr("jupyter_client.provisioning.local_provisioner.launch_kernel", forked.launch)
    nb = answered(nbformat.read(page, as_version=4)) # Exercises of tutorials with their solutions, too
    NotebookClient(nb, timeout=1500, startup_timeout=300, resources={"metadata": {"path": str(here)}}).execute()
    assert all(c.execution_count for c in nb.cells if c.cell_type == "code" and c.source.strip())
