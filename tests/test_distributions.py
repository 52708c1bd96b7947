"""Shapes of single neurons against other implementations, on planted and on null activations."""
import numpy as np
import pytest
from scipy.stats import false_discovery_control
from statsmodels.stats.diagnostic import lilliefors as lilliefors_elsewhere

from neuronlens.arrays.distributions import (
    FITS,
    compare_fits,
    fit_distributions,
    fit_mixture,
    histogram_logpdf,
    lilliefors,
    mixture_logpdf,
    second_mode,
)
from neuronlens.ground.core import InputError


@pytest.mark.parametrize('n', [5, 12, 60, 100])
def test_small_p_values_are_those_of_statsmodels(n):
    x = np.random.default_rng(n).exponential(size=(n, 60))
    found = fit_distributions(np.r_[x, x+1], np.repeat([0, 1], n)).p[0]
    other = np.array([lilliefors_elsewhere(c, pvalmethod='approx')[1] for c in x.astype(np.float32).astype(float).T])
    assert (other < .09).sum() >= 3
    np.testing.assert_allclose(found[other < .09], other[other < .09], rtol=1e-4)


@pytest.mark.parametrize('n', [10, 100, 400, 3000])
def test_p_values_are_uniform_on_normal_draws(n):
    acts = np.random.default_rng(1).normal(size=(2*n, 700))
    p = fit_distributions(acts, np.arange(2*n)%2).p
    for q in (.05, .2, .5, .8): assert abs((p < q).mean()-q) < 4*(q*(1-q)/p.size)**.5+.012


def test_larger_distances_have_smaller_p_values():
    for n in (5, 30, 100, 101, 1000, 10**5):
        p = lilliefors(np.linspace(0, min(1, 6/n**.5), 400), n)
        assert (np.diff(p) <= .003).all() and p[0] == 1 and p[-1] < .05 and np.isfinite(p).all()


def test_false_discoveries_are_controlled_over_all_classes_and_neurons():
    rng = np.random.default_rng(0)
    acts = rng.normal(size=(600, 200))
    acts[:300, :20] = rng.exponential(size=(300, 20)) # 20 of 400 (class, neuron) are not normal
    acts[:, 21] = 3
    d = fit_distributions(acts, np.repeat([0, 1], 300))
    known = np.isfinite(d.p)
    np.testing.assert_allclose(d.adjusted[known], false_discovery_control(d.p[known]))
    assert np.isnan(d.p[:, 21]).all() and not d.gaussian[:, 21].any()
    assert not d.gaussian[0, :20].any() and d.gaussian[1, :20].mean() > .9
    assert d.gaussian[:, 22:].mean() > .98
    assert (d.summary()['gaussian'] > .88).all() # The constant neuron is in no share


def test_with_many_examples_a_small_deviation_is_rejected_and_still_close():
    rng = np.random.default_rng(2)
    acts = rng.gamma(40, size=(40000, 4))
    d = fit_distributions(acts, np.arange(40000)%2)
    assert not d.gaussian.any() and d.close.all() and d.unimodal.all() and not d.separable.any()


def test_modes_do_not_see_scale_place_sign_or_order():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(300, 40))+5*(rng.random((300, 40)) < np.linspace(0, 1, 40))
    found = second_mode(x)
    assert found[0] < .1 and found[20] > .5
    for same in (x*1e-5, x*1e6+3e6, -x, x[rng.permutation(300)]): np.testing.assert_allclose(second_mode(same), found, atol=2e-3)


def test_mixtures_do_not_see_scale_place_or_neighbours():
    x = np.random.default_rng(5).standard_t(4, (150, 70))
    w, m, s = fit_mixture(x, 2)
    for k, (a, b) in {'scaled': (1e4, 0), 'moved': (1, 50)}.items():
        w2, m2, s2 = fit_mixture(x*a+b, 2)
        np.testing.assert_allclose((w2, (m2-b)/a, s2/a), (w, m, s), rtol=1e-4, atol=1e-4, err_msg=k)
    alone = fit_mixture(x[:, 65:66], 2)
    np.testing.assert_allclose(np.array(alone)[:, :, 0], np.array((w, m, s))[:, :, 65], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(w.sum(0), 1)


def test_steps_never_lose_likelihood():
    x = np.random.default_rng(6).exponential(size=(200, 5))
    best = [mixture_logpdf(x, *fit_mixture(x, 3, most=k)).mean(0) for k in (12, 30, 80, 300)]
    assert (np.diff(best, axis=0) > -1e-3).all() # 1e-4 of variance is added at every step


def test_histogram_is_never_surprised():
    fitted = np.random.default_rng(7).normal(size=(50, 3))
    far = histogram_logpdf(np.array([[-9.]*3, [0]*3, [9]*3]), fitted)
    assert np.isfinite(far).all() and (far[1] > far[0]).all() and (far[1] > far[2]).all()


def test_every_fit_wins_where_it_is_the_truth():
    rng = np.random.default_rng(8)
    n, D = 3000, 12
    labels = np.repeat(np.arange(4), n)
    two = rng.normal(size=(n, D))*.5+4*(rng.random((n, D)) < .4)
    three = rng.normal(size=(n, D))*.5+np.array([-5, 0, 7])[rng.integers(0, 3, (n, D))]
    steps = np.array([0, 1, 5, 6, 12, 20])[rng.integers(0, 6, (n, D))]+.8*rng.random((n, D)) # Six boxes: no three humps
    c = compare_fits(np.r_[rng.normal(size=(n, D)), two, three, steps], labels, ['one', 'two', 'three', 'boxes'])
    shares = c.summary().set_index('class')[list(FITS)]
    assert shares.loc['one', 'gaussian'] > .4 and shares.loc['two', ['gaussian', 'histogram']].sum() == 0
    assert shares.loc['three', 'mixture(3)'] == 1 and shares.loc['boxes', 'histogram'] > .9
    assert c.summary()['surely not'].tolist()[1:] == [1, 1, 1]


def test_halves_are_the_seeds_and_refusals_name_the_class():
    rng = np.random.default_rng(9)
    acts, labels = rng.normal(size=(60, 3)), np.repeat([0, 1], 30)
    a, b, other = (compare_fits(acts, labels, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(a.score, b.score)
    assert (a.score != other.score).any() and a.seed == 0
    with pytest.raises(InputError, match="class 'water' has 0 example"): compare_fits(acts, labels, ['tea', 'milk', 'water'])
    with pytest.raises(InputError, match="no classes"): compare_fits(acts[:0], labels[:0])
    risky = compare_fits(acts, labels, ['<b>', 'x'])._repr_html_()
    assert '<b>' not in risky and '&lt;b&gt;' in risky
