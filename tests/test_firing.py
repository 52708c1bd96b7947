"""How often ranges are hit: counted one by one, by Bayes and by enumeration."""
import numpy as np
import pytest
from test_separation import Normals, unlike

from neuronlens.arrays.firing import (
    firing_matrix,
    firing_rates,
    needed,
    normal_rates,
    number_inside,
    predicted_collateral,
    range_purity,
)
from neuronlens.arrays.ranges import Ranges, fit_ranges
from neuronlens.arrays.saliency import rank
from neuronlens.arrays.statistics import class_statistics
from neuronlens.ground.core import InputError


@pytest.fixture(scope='module')
def data(): return unlike()


def test_purity_is_bayes_and_its_mean_is_the_firing_matrix(data):
    acts, labels = data
    r, sets = fit_ranges(acts, labels, 'gaussian(1)'), [[1, 5, 60], [0, 2], [69]]
    rates = firing_rates(acts, labels, r)
    n = np.bincount(labels)
    for c, d in ((0, 5), (2, 69), (1, 7)):
        held = r.contains(acts, c, [d])[:, 0]
        assert abs(range_purity(rates, n)[c, d]-(labels[held] == c).mean()) < 1e-6
        equal = np.array([held[labels == t].mean() for t in range(3)])
        assert abs(range_purity(rates)[c, d]-equal[c]/equal.sum()) < 1e-6
    measured = firing_matrix(acts, labels, r, sets)
    np.testing.assert_allclose(measured.rate, np.stack([rates[:, c, s].mean(1) for c, s in enumerate(sets)], axis=1), atol=1e-6)
    empty = Ranges(np.full((3, 70, 1), np.inf, np.float32), np.full((3, 70, 1), -np.inf, np.float32), 'hand', None, r.classes)
    assert np.isnan(range_purity(firing_rates(acts, labels, empty))).all()
    assert (normal_rates(empty, class_statistics(acts, labels)) == 0).all()
    absent = firing_rates(acts[labels < 2], labels[labels < 2], r)
    assert np.isnan(absent[2]).all() and np.isnan(range_purity(absent)[2]).all()


def test_number_inside_is_what_enumeration_gives():
    p = np.random.default_rng(5).random((6, 2))
    direct = np.zeros((7, 2))
    for outcome in np.ndindex(*[2]*6):
        hit = np.array(outcome)[:, None]
        direct[sum(outcome)] += np.where(hit, p, 1-p).prod(0)
    np.testing.assert_allclose(number_inside(p), direct, atol=1e-12)
    np.testing.assert_array_equal(number_inside(np.zeros((0, 2))), [[1, 1]])


@pytest.mark.parametrize('vote', [0., .3, .5, 1.])
def test_predicted_is_measured_where_neurons_are_independent(vote):
    rng = np.random.default_rng(6)
    labels = np.arange(30000)%3
    acts = rng.normal(rng.normal(size=(3, 8))[labels], rng.uniform(.5, 2, (3, 8))[labels])
    s = class_statistics(acts, labels)
    for kind in ('gaussian(1.2)', 'quantile(0.7)', 'full'):
        r = fit_ranges(acts, labels, kind, statistics=s)
        sets = [[0, 1, 2, 3, 4], [5, 6], [7, 0, 3]]
        said, seen = predicted_collateral(r, s, sets, vote=vote), firing_matrix(acts, labels, r, sets, vote=vote)
        np.testing.assert_allclose(said.rate, seen.rate, atol=.02)
        np.testing.assert_allclose(said.gate, seen.gate, atol=.02)
        assert said.vote == seen.vote == vote and said.kind.endswith('predicted')


def test_a_higher_vote_never_counts_more(data):
    acts, labels = data
    s = class_statistics(acts, labels)
    r, sets = fit_ranges(acts, labels, 'gaussian(1)', statistics=s), rank(acts, labels).salient(.3)
    for f in (lambda v: predicted_collateral(r, s, sets, vote=v), lambda v: firing_matrix(acts, labels, r, sets, vote=v)):
        rates = np.stack([[f(v).rate, f(v).gate] for v in (0, .2, .5, .8, 1)])
        assert (np.diff(rates, axis=0) <= 1e-12).all() and (rates[:, 0] <= rates[:, 1]+1e-12).all()
    with pytest.raises(InputError, match="vote=-0.1"): predicted_collateral(r, s, sets, vote=-.1)


def test_the_vote_counts_exactly():
    assert needed([10, 10, 3, 0, 115], .3).tolist() == [3, 3, 1, 0, 35] and needed([10], .31).tolist() == [4]
    assert needed([7, 0], 1).tolist() == [7, 0] and needed([7], 0).tolist() == [0]


def test_mass_of_a_class_without_spread():
    "All of it lies at one point: in a range that ends there, at 0 as elsewhere, and in none beside it."
    def held(lo, hi): return Ranges(np.float32([[[lo]]]), np.float32([[[hi]]]), 'hand', None, ('a',))
    for mean in (0., 2.5, -2.5):
        s = Normals([[mean]], [[0.]])
        inside = [normal_rates(held(*ends), s)[0, 0, 0] for ends in ((mean, mean), (mean, mean+1), (mean-1, mean), (mean+.1, mean+1))]
        assert inside == [1, 1, 1, 0]
