"""Golden numbers: NeuroX probeless scores and the ranges that follow, from the project's reference list."""
import numpy as np
import pytest

from neuronlens.arrays.ranges import fit_ranges
from neuronlens.arrays.saliency import max_activation, probeless, rank
from neuronlens.arrays.statistics import class_statistics

OVERALL = [0.591933, 1.055202, 0.460731, 8.710702, 0.275826, 4.690765, 0.709233, 2.957472]
CLASS_0 = [0.588882, 0.660755, 0.442891, 7.559209, 0.204339, 2.472136, 0.646184, 1.478736]
ACTIVE_0 = [0.9799, 0.9552, 0.5625, 3.2966, 1.1584, 0.7526, 0.6838, 0.7010]


@pytest.fixture(scope='module')
def data():
    rs = np.random.RandomState(0)
    acts, labels = rs.randn(60, 8), np.repeat([0, 1, 2], 20)
    acts[labels == 0, 3] += 3
    acts[labels == 1, 5] -= 2
    acts[labels == 2, 3] -= 1
    acts[labels == 2, 7] += 1.5
    return acts, labels, class_statistics(acts, labels)


def test_probeless_of_one_class(data):
    np.testing.assert_allclose(probeless(data[2])[0], CLASS_0, atol=2e-6)


def test_probeless_of_all_classes_counts_every_pair_twice(data):
    np.testing.assert_allclose(probeless(data[2]).sum(0)/2, OVERALL, atol=2e-6)


def test_max_activation(data):
    np.testing.assert_allclose(max_activation(data[2])[0], ACTIVE_0, atol=5.1e-5)


def test_salient_set(data):
    acts, labels, _ = data
    assert set(rank(acts, labels, 'max_activation').salient(.3)[0]) == {3, 4}


def test_share_of_each_class_in_the_range_of_class_0(data):
    acts, labels, s = data
    inside = fit_ranges(acts, labels, 'gaussian(2)', statistics=s).contains(acts, 0, [3, 4])
    np.testing.assert_allclose([inside[labels == c].mean() for c in range(3)], [.975, .525, .5], rtol=0, atol=1e-12)
