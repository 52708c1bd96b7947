"""What the tutorials tell a reader: they only use the package, their links lead somewhere, and what their prose claims is so.

Another processor may train another model: a claim holds for any of its quality (`tests/masks.py` trains some), a digit does not.
"""
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

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
    "The ranking suppresses, the gate spares; a probe reads what is suppressed, and not what LEACE erased."
    clf, _, test, *_ = bbc
    fit, held = (nl.record(clf, t, progress=False, cache=True) for t in nl.split(example_texts()[0], .4))
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
