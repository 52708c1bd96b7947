"""Overlap against scipy, numerical integration and brute force; laws; failures."""
import numpy as np
import pytest
from scipy.stats import hypergeom
from test_separation import unlike

from neuronlens.arrays.firing import (
    members,
)
from neuronlens.arrays.matching import (
    family_overlap,
)
from neuronlens.arrays.overlap import (
    pair_overlap,
    polysemantic_counts,
    range_jaccard,
    range_overlap,
    set_overlap,
)
from neuronlens.arrays.ranges import fit_ranges
from neuronlens.ground.core import InputError


@pytest.fixture(scope='module')
def data(): return unlike()


def test_ranges_overlap_as_counted_one_by_one(data):
    acts, labels = data
    r = fit_ranges(acts, labels, 'quantile(0.8)')
    found, by_length = range_overlap(r, acts), range_jaccard(r)
    for i, j, d in ((0, 1, 3), (1, 2, 69), (2, 0, 7)):
        a, b = ((acts[:, d] >= r.lo[c, d, 0]) & (acts[:, d] <= r.hi[c, d, 0]) for c in (i, j))
        assert found[i, j, d] == (a & b).sum()/(a | b).sum()
        (p, q), (s, t) = ((float(r.lo[c, d, 0]), float(r.hi[c, d, 0])) for c in (i, j))
        common = max(0, min(q, t)-max(p, s))
        if d != 7: assert abs(by_length[i, j, d]-common/((q-p)+(t-s)-common)) < 1e-9
    assert np.isnan(by_length[:, :, 7]).all() and (found[:, :, 7] == 1).all()


def test_sets_with_names_and_their_chance():
    o = set_overlap({'a': range(30), 'b': range(20, 60), '<i>': []}, D=100)
    assert o.classes == ('a', 'b', '<i>') and '<i>' not in o._repr_html_()
    m, v = hypergeom(100, 30, 40).stats('mv')
    np.testing.assert_allclose([o.expected[0, 1], o.z[0, 1]], [m, (10-m)/v**.5])
    assert members([[1]], 3, ['x'])[1] == members({'x': [1]}, 3, ['x'])[1] == ('x',)
    f = family_overlap({'r': [[0, 1], [2]], 's': [[1, 2], [2]], 't': [[], [0]]}, 4, ['tea', 'milk'])
    assert f.to_frame()['count'].tolist() == [1, 0, 0, 1, 0, 0] and len(f.summary()) == 3
    np.testing.assert_allclose(f.summary()['jaccard'][0], (1/3+1)/2)


def test_polysemanticity_of_one_set_in_all_classes_is_far_from_chance():
    same, rng = polysemantic_counts([range(30)]*4, 100), np.random.default_rng(7)
    assert same.neurons.tolist() == [70, 0, 0, 0, 30] and same.z[4] > 10
    np.testing.assert_allclose(same.expected.sum(), 100)
    z = np.stack([polysemantic_counts([rng.permutation(60)[:k] for k in (10, 20, 30)], 60).z for _ in range(300)])
    assert (abs(z.mean(0)) < .25).all() and (abs(z.std(0)-1) < .2).all()


def test_pairs_are_their_chance_when_labels_are_noise(data):
    acts, labels = data
    noise = np.random.default_rng(8).permutation(labels)
    null, real = pair_overlap(acts, noise).summary(), pair_overlap(acts, labels).summary()
    assert (abs(null['mean']-null['chance']) < .03).all() and (abs(real['mean']-real['chance']) > .15).all()
    p = pair_overlap(acts, labels, seed=1)
    assert (p.null != pair_overlap(acts, labels, seed=2).null).any() and p.to_frame([[0], [0, 1], [2]])['neurons'].max() == 1
    with pytest.raises(InputError, match="class '3' has 0"): pair_overlap(acts, labels, ['0', '1', '2', '3'])
