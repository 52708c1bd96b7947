"""The page of words: every entry of a list and every column of a table is explained there, once."""
import json
import re
from pathlib import Path

import pytest

from neuronlens.arrays.ranges import RANGES
from neuronlens.edits.attribution import model_rankings
from neuronlens.edits.edit import EDITS
from neuronlens.edits.effects import COLUMNS
from neuronlens.edits.presets import PRESETS
from neuronlens.ground.setting import COVERS, FITTED, POSITIONS, SCOPES

PAGES = Path(__file__).resolve().parents[1]/"nbs"


def prose(name):
    "Markdown of a page."
    cells = json.loads((PAGES/name).read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


ROWS = [r for r in re.findall(r"^\| (.+?) \| (.+?) \| (.*?) \|$", prose("glossary.ipynb"), re.M) if r[0] != "word"]
WORDS = [w.strip() for r in ROWS for w in r[0].split(",")]


def test_every_word_once():
    assert len(WORDS) == len(set(WORDS)) > 70
    assert all(meaning.strip() for _, meaning, _ in ROWS)


@pytest.mark.parametrize("names", [model_rankings(), RANGES, EDITS, PRESETS, POSITIONS, FITTED, SCOPES, COVERS,
                                   ("base", "full", "range", "random"), [c for c in COLUMNS if not c.startswith(("n_", "seed"))]],
                         ids=lambda x: ",".join(x)[:20])
def test_what_can_be_chosen_is_explained(names):
    "As a word of its own, or inside the meaning of the setting whose value it is."
    said = {m for r in ROWS for m in re.findall(r"`([\w.-]+)`", f"{r[0]} {r[1]}")} | set(WORDS)
    assert not [n for n in names if n not in said]


@pytest.mark.parametrize("word", ["readout", "residual", "macro", "chance", "spread", "verbalizer", "LEACE", "salient",
                                  "joint gate", "disturbance", "broken", "tau"])
def test_words_of_the_tutorials(word):
    "Each is used by a tutorial and explained here."
    assert any(word.lower() in prose(f"tutorials/{p.name}").lower() for p in (PAGES/"tutorials").glob("*.ipynb")), word
    assert any(word.lower() in w.lower() for w in WORDS), word
