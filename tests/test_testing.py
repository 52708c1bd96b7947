"""Intervals cover, and tests agree with those of scipy and statsmodels."""
import numpy as np
import pytest
from scipy.stats import binomtest, rankdata, wilcoxon
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests

from neuronlens import testing as ts
from neuronlens.arrays.testing import holm, mcnemar, sign_flips


def test_bootstrap_interval_covers():
    "The 95 % interval holds the true accuracy in about 95 of 100 samples, and pairing narrows differences."
    rng = np.random.default_rng(0)
    held = 0
    for i in range(200):
        low, high = np.quantile(ts.accuracy_draws(rng.random((1, 300)) < .8, draws=500, seed=i), [.025, .975])
        held += low <= .8 <= high
    assert 180 <= held <= 198
    one = rng.random(400) < .8
    drawn = ts.accuracy_draws(np.stack([one, one ^ (np.arange(400) < 8)]))
    assert np.diff(drawn).std() < .5*drawn[:, 0].std()
    assert np.array_equal(drawn, ts.accuracy_draws(np.stack([one, one ^ (np.arange(400) < 8)])))


def test_unseen_of_one_text_and_of_none():
    "1 - .025 ** (1/n), where none counts as one."
    np.testing.assert_allclose(ts.unseen([0, 1, 2]), [.975, .975, 1-.025**.5])


def test_tests_agree_with_others():
    "McNemar with scipy's binomial test, Holm with statsmodels, the sign flip with full enumeration and with Wilcoxon."
    rng = np.random.default_rng(0)
    for a, b in rng.integers(0, 40, (30, 2)):
        if a+b:
            np.testing.assert_allclose(mcnemar(a, b), binomtest(int(a), int(a+b)).pvalue)
    p = rng.random(9)**3
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])
    x = rng.normal(.5, 1, 10)
    signs = 2*((np.arange(1024)[:, None] >> np.arange(10)) & 1)-1
    exact = (abs(signs@x) >= abs(x.sum())-1e-9).mean()
    assert abs(sign_flips(x[None], 20000)[0] - exact) < .015
    y = rng.normal(.4, 1, (1, 50))
    assert abs(np.log10(sign_flips(y, 20000)[0]) - np.log10(wilcoxon(y[0]).pvalue)) < .7


def test_area_under_the_curve_is_that_of_sklearn():
    rng = np.random.default_rng(0)
    s, y = rng.normal(size=200).round(1), rng.random(200) < .2
    assert ts.area_under_curve(s, y) == pytest.approx(roc_auc_score(y, s))
    assert np.isnan(ts.area_under_curve(s, np.ones(200, bool)))
    w = rng.integers(0, 4, (5, 200)).astype(float)
    np.testing.assert_allclose(ts.area_under_curve(s, y, w), [roc_auc_score(y, s, sample_weight=v) for v in w])
    assert ts.area_under_curve(np.zeros(200), y, w).tolist() == [.5]*5
    assert ts.area_under_curve(s, y) == (rankdata(s)[y].sum()-y.sum()*(y.sum()+1)/2)/(y.sum()*(~y).sum()) # To the last bit
