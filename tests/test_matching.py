"""Are the same neurons found again: by scipy, through noise, and not in noise."""
import numpy as np
import pytest
from scipy.stats import spearmanr
from test_separation import unlike

from neuronlens.arrays.matching import cka, matched_neurons, ranking_agreement
from neuronlens.arrays.saliency import rank
from neuronlens.ground.core import InputError


@pytest.fixture(scope='module')
def data(): return unlike()


def test_rankings_agree_as_scipy_says(data):
    acts, labels = data
    r = {k: rank(acts, labels, k) for k in ('dprime', 'probeless', 'random')}
    a = ranking_agreement(r, fractions=(.2, 1))
    for i, p in enumerate(r.values()):
        for j, q in enumerate(r.values()):
            own = [spearmanr(p.scores[c], q.scores[c]).statistic for c in range(3)]
            np.testing.assert_allclose(a.spearman[i, j], own, atol=1e-12)
            both = [len({*p.salient(.2)[c]} & {*q.salient(.2)[c]})/14 for c in range(3)]
            np.testing.assert_allclose(a.shared[0, i, j], both)
    assert (a.shared[1] == 1).all() and a.classes == ('0', '1', '2')
    with pytest.raises(InputError, match="two rankings"): ranking_agreement({'dprime': r['dprime']})


def test_matching_finds_neurons_through_noise_and_not_in_noise():
    rng = np.random.default_rng(9)
    a = rng.normal(size=(400, 50))
    p = rng.permutation(50)
    b = -2*a[:, p]+rng.normal(size=a.shape)
    m = matched_neurons(a, b)
    np.testing.assert_array_equal(p[m.neuron], np.arange(50))
    assert (m.r < -.8).all() and m.summary()['above chance'][0] == 1
    wide = matched_neurons(a, np.c_[b, rng.normal(size=(400, 30))])
    np.testing.assert_array_equal(wide.neuron, m.neuron)
    null = matched_neurons(a, rng.normal(size=a.shape))
    assert abs(abs(null.r).mean()-null.chance.mean()) < .01 and null.summary()['above chance'][0] < .1
    assert cka(a, b) > .7 and abs(cka(a, b)-cka(b, a)) < 1e-12 and cka(a, rng.normal(size=a.shape)) < .25
    with pytest.raises(InputError, match="same texts"): cka(a, b[1:])
    with pytest.raises(InputError, match="three texts or more"): matched_neurons(a[:2], b[:2])
