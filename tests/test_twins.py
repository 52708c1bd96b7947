"""Twins of the tutorials: the code of the page, its headings and its questions, nothing that helps."""
import importlib.util
import json
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("twins", TOP/"site/twins.py")
SPEC.loader.exec_module(twins := importlib.util.module_from_spec(SPEC))
PAGES = sorted(twins.PAGES.glob("*.ipynb"))


def read(path): return json.loads(path.read_text(encoding="utf-8"))


def sources(nb, kind): return ["".join(c["source"]) for c in nb["cells"] if c["cell_type"] == kind]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_twin(page):
    "All of the code and none of its outputs; headings and questions, no other prose, no solution, no link."
    nb = read(page)
    made = twins.twin(nb)
    assert sources(made, "code") == sources(nb, "code")
    assert not [c for c in made["cells"] if c.get("outputs") or c.get("execution_count")]
    text, whole = "\n".join(sources(made, "markdown")), "\n".join(sources(nb, "markdown"))
    assert "Solution" not in text and "](" not in text and len(text) < len(whole)/3
    assert text.count("### Exercise") == whole.count("### Exercise") and text.startswith("# ")
    for cell in sources(made, "markdown"): assert cell.startswith("#")


def test_a_twin_in_which_someone_has_worked_stays(tmp_path):
    "What nobody touched is made anew, also after it was run; an answer is kept."
    for _ in range(2): twins.write_twins(tmp_path)
    first, second = tmp_path/PAGES[0].name, tmp_path/PAGES[1].name
    ran = read(second)
    ran["cells"][1] |= dict(execution_count=5)
    second.write_text(json.dumps(ran))
    answer = read(first)
    cell = next(c for c in answer["cells"] if "".join(c["source"]) == "answer_1 = ...")
    cell["source"] = "answer_1 = 5"
    first.write_text(json.dumps(answer))
    twins.write_twins(tmp_path)
    assert read(first) == answer and read(second)["cells"][1].get("execution_count") is None
    assert sorted(p.name for p in tmp_path.iterdir()) == [p.name for p in PAGES]
