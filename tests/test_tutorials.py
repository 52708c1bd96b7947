"""What the tutorials tell a reader: they only use the package, their links lead somewhere, and what their prose claims is so.
Their exercises are whole here; `test_notebooks.py` answers them.

Another processor may train another model: a claim holds for any of its quality (`tests/masks.py` trains some), a digit does not.
"""
import ast
import json
import re
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from exercises import FOLD, exercises, prose

import neuronlens as nl
from neuronlens.arrays.firing import firing_rates
from neuronlens.edits.ablation import edited_acts
from neuronlens.models.training import example_classifier, example_texts
from neuronlens.records.recording import example_recordings

PAGES = sorted((Path(__file__).resolve().parents[1] / "nbs/tutorials").glob("*.ipynb"))
POLITICS = 2


def cells(page, kind):
    "Sources of the cells of one kind."
    return ["".join(c["source"]) for c in json.loads(page.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_page_reads(page):
    "A title with its promise, nothing exported, and links to pages that exist."
    prose, code = cells(page, "markdown"), cells(page, "code")
    assert re.match(r"# .+\n\n> .+", prose[0])
    assert not [c for c in code if c.startswith(("#| export", "#| default_exp"))]
    for target in re.findall(r"\]\(([^)#]+\.ipynb)", "\n".join(prose)):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_page_is_short(page):
    "A thousand words at most; links and code count as nothing, nor do solutions, which are folded."
    text = re.sub(r"\]\([^)]*\)", "]", prose("\n".join(cells(page, "markdown"))))
    assert 200 < len(re.findall(r"\S*\w\S*", text)) <= 1000


PLAIN = {"numpy", "pandas", "matplotlib", *sys.stdlib_module_names}
THEIRS = {"your_own": {"transformers", "IPython"}, "emotion": {"IPython"}, # A model of the reader's own; a file shown in colour
          "put_it_to_work": {"transformers", "httpx"}} # A pipeline; who asks a server


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_page_imports(page):
    "One name for the package, `nl`; what is not in it is in its rooms, `nl.plots.plot_neuron`. Nothing is hidden from the reader."
    code = cells(page, "code")
    whole = [n for c in code for n in ast.walk(ast.parse(c))]
    assert not [n.module for n in whole if isinstance(n, ast.ImportFrom) and n.module.startswith("neuronlens")]
    names = [(a.name, a.asname) for n in whole if isinstance(n, ast.Import) for a in n.names]
    names += [(n.module, None) for n in whole if isinstance(n, ast.ImportFrom)]
    assert {n.split(".")[0] for n, _ in names} <= PLAIN | {"neuronlens"} | THEIRS.get(page.stem, set())
    assert {a for n, a in names if n == "neuronlens"} <= {"nl"}
    assert not [c for c in code if c.startswith("#|")]


def bound(code):
    "Names that a cell leaves behind: assigned or defined outside of functions and comprehensions."
    body = ast.parse(code).body
    targets = [t for n in body if isinstance(n, ast.Assign) for t in n.targets]
    names = {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    return names | {n.name for n in body if isinstance(n, ast.FunctionDef)}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_exercises(page):
    "Two or three, each whole, unanswered as stored; a solution binds names of its own, so that the page goes on as before."
    whole = json.loads(page.read_text(encoding="utf-8"))["cells"]
    found = exercises(whole)
    assert [e.n for e in found] == [*range(1, len(found)+1)] and len(found) in (2, 3)
    assert sum("<details>" in c for c in cells(page, "markdown")) == len(found)
    used = set().union(*(bound(c) for c in cells(page, "code")))
    for e in found:
        assert [o.get("text") for o in whole[e.at+2]["outputs"]] == [["Not answered yet.\n"]]
        assert bound(e.solution) & used <= {f"answer_{e.n}", "_"}, (e.n, bound(e.solution) & used)


def test_an_exercise_that_is_not_whole_is_noticed():
    "No fold, no check, no place."
    def page(*sources): return [dict(cell_type=k, source=s) for k, s in zip(("markdown", "code", "code", "markdown"), sources, strict=True)]
    parts = ("### Exercise 1: x\n\n*How many?*", "answer_1 = ...", "def check_1(n): return 'Right'\n\nprint(check_1(answer_1))",
             "<details>\n<summary>Solution</summary>\n\n```python\nanswer_1 = 1\n```\n\nOne.\n\n</details>")
    assert exercises(page(*parts))[0].solution == "answer_1 = 1\n" and re.match(FOLD, parts[3], re.S)
    for i, wrong in ((1, "answer_1 = 1"), (2, "print(answer_1)"), (3, "The answer is 1.")):
        with pytest.raises(AssertionError, match="exercise 1"): exercises(page(*parts[:i], wrong, *parts[i+1:]))


@pytest.fixture(scope="module")
def bbc():
    "The model, both recordings, statistics, ranking and ranges that the pages use."
    clf, (train, test) = example_classifier(progress=False), example_recordings(progress=False)
    s = nl.class_statistics(train.acts, train.labels, train.classes)
    return clf, train, test, s, nl.rank(None, None, "dprime", statistics=s), nl.fit_ranges(None, None, "gaussian(2.5)", statistics=s)


def measured(clf, test, edits):
    "Effects on the test articles by condition and fraction."
    out = nl.ablate(clf, example_texts()[1], edits, recording=test, progress=False)
    return nl.measure_effects(out).frame.set_index(["condition", "fraction"])


def test_first_concept(bbc):
    "One neuron does nothing; half of them, in range, suppress as whole neurons do for a fraction of the price; random ones do not."
    clf, train, test, s, ranking, ranges = bbc
    assert test.classes[POLITICS] == "politics"
    tidy = (np.diff(np.sort(s.mean, 0), axis=0).min(0) / s.sd.max(0)).argmax()
    assert tidy not in ranking.order[POLITICS][:10] # Far down, and yet every topic has a place of its own on it
    assert nl.range_purity(firing_rates(test.acts, test.labels, ranges))[:, tidy].min() > .75
    t = measured(clf, test, nl.plan(s, [ranking], ranges, train.site, fraction=[.003, .3, .5], concept=[POLITICS]))
    base = t.target_accuracy["base", .5]
    assert base > .9 and abs(t.target_accuracy["full", .003] - base) < .01
    assert t.target_accuracy["full", .3] > .7
    assert max(t.target_accuracy["full", .5], t.target_accuracy["range", .5]) < .05
    assert t.disturbance["range", .5] < t.disturbance["full", .5] / 4
    assert t.target_accuracy["random", .5] > base - .02


def test_reading_a_neuron(bbc):
    "The purest neuron is pure; the nearest neighbour foretells purity, the ranking does not; the gate is tight with any neurons."
    _, train, test, s, ranking, ranges = bbc
    purity = nl.range_purity(firing_rates(train.acts, train.labels, ranges))
    assert purity.min(0).max() > .9 > np.median(purity)
    tested = nl.range_purity(firing_rates(test.acts, test.labels, ranges))
    overlap = nl.separation.bhattacharyya(s)
    overlap[range(5), range(5)] = 0
    near, far = ([pd.Series(x).corr(pd.Series(p), method="spearman") for x, p in zip(score, tested, strict=True)]
                 for score in (-overlap.max(1), ranking.scores))
    assert min(near) > .75 and min(n - f for n, f in zip(near, far, strict=True)) > .15
    chosen, drawn = ranking.salient(.5), nl.rank(train.acts, train.labels, "random").salient(.5)
    leak = {(k, v): nl.firing_matrix(test.acts, test.labels, ranges, n, vote=v).auxiliary.max()
            for k, n in dict(chosen=chosen, drawn=drawn).items() for v in (0, .5)}
    assert min(leak["chosen", 0], leak["drawn", 0]) > .08 and max(leak["chosen", .5], leak["drawn", .5]) < .03
    sets = nl.polysemantic_counts(chosen, 384)
    assert (sets.neurons[4:] < sets.expected[4:]).all()


@pytest.mark.slow
def test_erasing(bbc):
    """Accuracy of the others does not see what whole neurons do to them; the ranking suppresses, the gate spares; a probe reads what is
    suppressed, and not what LEACE erased."""
    clf, _, test, *_ = bbc
    parts = nl.split(example_texts()[0], .4)
    fit, held = (nl.record(clf, t, progress=False, cache=True) for t in parts)
    seen = nl.measure_effects(nl.ablate(clf, parts[1], nl.grid(fit, fraction=.5), recording=held, progress=False)).macro()
    seen = seen.set_index("condition")
    assert abs(seen.auxiliary_accuracy["full"] - seen.auxiliary_accuracy["base"]) < .01 and seen.target_accuracy["full"] < .05
    assert seen.disturbance["full"] > 4*seen.disturbance["range"]
    assert seen.target_accuracy["random"] > .85 > .1 > seen.target_accuracy["range"]
    edits = [e for p in ("full", "recommended", "random") for e in nl.preset_grid(fit, p, fraction=[.6])]
    edits = [replace(e, condition="gated") if e.condition == "range" else e for e in edits if e.edit == "mean" and e.vote in (0, .4)]
    rows = nl.measure_effects(nl.ablate(clf, example_texts()[1], [e for e in edits if e.ranking == "dprime"], recording=test,
                                        progress=False)).macro().set_index("condition")
    assert rows.target_accuracy["gated"] < .05 and rows.target_accuracy["random"] > .85
    assert 4*max(rows.disturbance["gated"], rows.disturbance["random"]) < rows.disturbance["full"]
    data = held.acts, held.labels, test.acts, test.labels, POLITICS
    gated = next(e for e in edits if e.condition == "gated" and e.concept == "politics")
    suppressed = nl.information_left(partial(edited_acts, gated), *data)
    erased = nl.information_left(nl.leace(fit.acts, fit.labels, POLITICS), *data)
    assert suppressed.information > .7 > .2 > erased.information
