"""Number agreement: the prompts of the protocol, what an edit does counted by hand, and what the page says of the table."""
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

RESULTS = Path(__file__).resolve().parents[1]/"results"
sys.path.insert(0, str(RESULTS))
number = pytest.importorskip("number")


def test_prompts():
    "192 to fit and 144 to test, half of either number, each noun before a noun of either number, no noun or template in both."
    fit, test = (number.prompts(*of) for of in ((number.FIT_NOUNS, number.FIT), (number.TEST_NOUNS, number.TEST)))
    assert (len(fit), len(test)) == (192, 144) and len({*fit.texts, *test.texts}) == 192+144
    assert np.bincount(fit.labels).tolist() == [96, 96] and np.bincount(test.labels).tolist() == [72, 72]
    assert not {*number.FIT_NOUNS} & {*number.TEST_NOUNS} and not {*number.FIT} & {*number.TEST}
    for text, y in zip(test.texts, test.labels, strict=True):
        noun = next(n for n in number.TEST_NOUNS if f" {n} " in text or f" {n}s " in text)
        assert (f" {noun}s " in text) == (test.classes[y] == "plural")


def test_a_pair_and_a_divergence():
    p = number.of_pair(np.array([[.5, .3, .2], [.9, .02, .08]]))
    np.testing.assert_allclose(p, [[.6, .4], [.2, .8]])
    a, b = np.log([[.5, .5]]), np.log([[.9, .1]])
    assert number.divergence(a, a) == 0 and number.divergence(a, b) == pytest.approx(.5*np.log(.5/.9)+.5*np.log(.5/.1))


def test_the_table_is_of_every_setting_and_says_what_the_page_says():
    d = pd.read_csv(RESULTS/"number.csv")
    assert {*d.setting} == {*number.SETTINGS} and {*d.learned_from} == {"labels", "shuffled"} and {*d.concept} == {"plural", "singular"}
    m = d.groupby(["learned_from", "setting", "condition"])[["flips", "flips_of_right", "others", "kl"]].mean()
    for edit in ("mean", "transport", "exchange", "partner"):
        r = m.loc[("labels", f"{edit}, weighted(0.3)", "range")]
        assert r.flips >= .93 and r.kl <= .046 and r.others < .01
        null = m.loc[("shuffled", f"{edit}, weighted(0.3)", "range")]
        assert null.flips_of_right == null.others == 0
    assert m.loc[("labels", "published", "range")].kl > .5 > m.loc[("labels", "published", "random")].flips
