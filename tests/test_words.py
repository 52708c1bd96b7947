"""The page of words: every entry of a list and every column of a table is explained there, once."""
import json
import re
from pathlib import Path

import pytest
import yaml
from exercises import prose as unfolded

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


@pytest.mark.parametrize("word", ["readout", "residual", "macro", "chance", "standard deviation", "verbalizer", "LEACE", "salient",
                                  "joint gate", "disturbance", "broken", "tau", "Lilliefors", "hypergeometric",
                                  "density of each class", "perplexity", "kurtosis"])
def test_words_of_the_tutorials(word):
    "Each is used by a tutorial and explained here."
    assert any(word.lower() in prose(f"tutorials/{p.name}").lower() for p in (PAGES/"tutorials").glob("*.ipynb")), word
    assert any(word.lower() in w.lower() for w in WORDS), word


# --- in the order of the tutorials

"""A word of the page of words stands in bold where the tutorials explain it, and is not met before, neither in prose nor in an output.
A name that is typed (`dprime`, `target_accuracy`) stands in prose, in code or in bold, whole or in its parts, before an output has it.
What the lists of a live view hold is explained by a link to the page of words above the view."""
CONFIG = yaml.safe_load((PAGES.parent/"_quarto.yml").read_text(encoding="utf-8"))
ORDER = next(s["contents"] for s in CONFIG["website"]["sidebar"]["contents"] if isinstance(s, dict) and s["section"] == "Tutorials")
EVERYDAY = {"in range", "firing", "matched", "overlap", "specific", "prompt", "probe"} # Also said without the meaning explained


def said(nb):
    "(number of the cell, prose, output or view, text) of a page as it is read: without code, headings, and what is folded."
    for i, c in enumerate(nb["cells"]):
        if c["cell_type"] == "markdown": yield i, "prose", re.sub(r"^[#>].*$", "", unfolded("".join(c["source"])), flags=re.M)
        for o in c.get("outputs", []):
            html = re.sub(r"<style.*?</style>", "", "".join(o.get("data", {}).get("text/html", "")), flags=re.S)
            plain = "".join(o.get("text") or o.get("data", {}).get("text/plain", ""))
            yield (i, "view", "") if "nl-view" in html else (i, "output", plain+re.sub(r"<[^>]+>", " ", html))


def told():
    "What the tutorials say, in their order, as (page, number of the cell, kind, text)."
    return [(p, *piece) for p in ORDER for piece in said(json.loads((PAGES/p).read_text(encoding="utf-8")))]


def first(pattern, pieces, kinds=("prose", "output")):
    "Where a pattern is met first, as (which piece, where in it); None if nowhere."
    for n, (*_, kind, text) in enumerate(pieces):
        if kind in kinds and (m := re.search(pattern, re.sub(r"\]\([^)]*\)", "]", text), re.I)): return n, m.start()
    return None


def word(w): return rf"(?<![\w./-]){re.escape(w)}(?:s|es|ed|d)?(?!\w|[.-]\w)"
def bold(w): return rf"\*\*[^*]*{word(w)}[^*]*\*\*"
def typed(w): return rf"`{re.escape(w)}[(`]"


def unexplained(words, pieces):
    "Words that are met before they are explained, and how many are met at all."
    bad, met = [], 0
    for w in words:
        name, w = w.startswith("`"), w.strip("`")
        at = first(word(w), pieces, ("output",) if name else ("prose", "output"))
        if at is None or w in EVERYDAY: continue
        met += 1
        ways = [[w], w.split("_")] if name else [[w]]
        places = [[first(f"{bold(x)}|{typed(x)}" if name else bold(x), pieces, ("prose",)) for x in way] for way in ways]
        if not any(all(p and p <= at for p in way) for way in places): bad.append(w)
    return bad, met


def test_no_word_before_it_is_explained():
    "In the order of the tutorials; and a word that is not in bold any more is noticed."
    pieces = told()
    bad, met = unexplained(WORDS, pieces)
    assert not bad and met > 55
    plain = [(*at, text.replace("**readout**", "readout").replace("**Disturbance**", "Disturbance")) for *at, text in pieces]
    assert unexplained(WORDS, plain)[0] == ["readout", "disturbance"]


def test_one_word_for_one_thing():
    "Standard deviation, never spread, deviation alone or d-prime beside `dprime`."
    text = "\n".join(t for *_, kind, t in told() if kind == "prose")
    assert not re.findall(r"\bspreads?\b|(?<!standard )deviations?|d-prime", text)


def test_views_lead_to_the_page_of_words():
    "Above every live view of a tutorial stands a link to what the entries of its lists mean."
    pieces = told()
    views = [(p, i) for p, i, kind, _ in pieces if kind == "view"]
    assert len(views) > 3
    for p, i in views: assert any(q == p and j < i and "](../glossary.ipynb)" in t for q, j, kind, t in pieces if kind == "prose"), (p, i)
