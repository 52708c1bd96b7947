"""How far apart classes are: against scipy, numerical integration and brute force."""
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import ks_2samp, norm

from neuronlens.arrays.separation import bhattacharyya, histogram_overlap, ks_between, overlap_coefficient, separation


class Normals:
    "Means and standard deviations, `[C, D]`."
    def __init__(self, mean, sd): self.mean, self.sd = np.array(mean, float), np.array(sd, float)


def unlike():
    "900 activations of 3 classes on 70 neurons, unlike in place and spread, with repeated values; one neuron is constant."
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1, 2], [200, 300, 400]))
    acts = rng.normal(rng.normal(size=(3, 70))[labels]*1.5, rng.uniform(.5, 2, (3, 70))[labels]).round(2).astype(np.float32)
    acts[:, 7] = 2
    return acts, labels


@pytest.fixture(scope='module')
def data(): return unlike()


def test_area_under_both_normals_is_the_integral():
    rng = np.random.default_rng(1)
    m, s = rng.normal(size=(2, 40))*2, np.exp(rng.normal(size=(2, 40)))
    s[1, :10] = s[0, :10]*(1+np.logspace(-16, -2, 10)) # Nearly equal spreads: the quadratic nearly degenerates
    found = overlap_coefficient(Normals(m, s))[0, 1]
    for j in range(40):
        (a, b), (p, q) = m[:, j], s[:, j]
        ends = min(a-9*p, b-9*q), max(a+9*p, b+9*q)
        def both(x, a=a, b=b, p=p, q=q): return min(norm.pdf(x, a, p), norm.pdf(x, b, q))
        assert abs(found[j]-quad(both, *ends, limit=800, points=sorted({a, b}))[0]) < 1e-5, j


def test_area_at_the_edges():
    m, s = [[0, 0, 0, 0, 1, 0], [0, 0, 1, 5, 1, 1e9]], [[1, 0, 0, 0, 3, 1], [1, 0, 0, 1, 3, 1]]
    found = overlap_coefficient(Normals(m, s))
    np.testing.assert_allclose(found[0, 1], [1, 1, 0, 0, 1, 0], atol=1e-12)
    np.testing.assert_array_equal(found, found.transpose(1, 0, 2))
    np.testing.assert_array_equal(found[0, 0], 1)
    tiny = overlap_coefficient(Normals([[0.], [0.]], [[1e-12], [1.]]))[0, 1, 0]
    assert 0 <= tiny < 1e-9


def test_area_and_bhattacharyya_bound_each_other():
    rng = np.random.default_rng(2)
    s = Normals(rng.normal(size=(4, 300))*2, np.exp(rng.normal(size=(4, 300))))
    area, bc = overlap_coefficient(s), bhattacharyya(s)
    assert (area <= bc+1e-9).all() and (area >= 1-np.sqrt(1-np.minimum(bc, 1)**2)-1e-7).all() # Hellinger bounds


def test_ks_between_is_scipys_and_order_free(data):
    acts, labels = data
    found = ks_between(acts, labels)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        own = [ks_2samp(c[labels == i], c[labels == j]).statistic for c in acts.T]
        np.testing.assert_allclose(found[i, j], own, atol=1e-12)
    np.testing.assert_array_equal(found, found.transpose(1, 0, 2))
    assert (found[:, :, 7] == 0).all()
    p = np.random.default_rng(3).permutation(len(labels))
    np.testing.assert_allclose(ks_between(acts[p][:, ::-1], labels[p])[:, :, ::-1], found)
    np.testing.assert_array_equal(histogram_overlap(acts[p][:, ::-1], labels[p])[:, :, ::-1], histogram_overlap(acts, labels))


def test_histogram_area_never_exceeds_what_the_distance_allows(data):
    area, gap = histogram_overlap(*data), ks_between(*data)
    assert (area <= 1+1e-12).all() and (area[:, :, 7] == 1).all()
    for b in (2, 20, 200): assert (histogram_overlap(*data, bins=b) >= 1e-3).any()
    rng = np.random.default_rng(4)
    x = rng.normal(size=(60000, 2))+np.array([0, 1.5])*(np.arange(60000)%2)[:, None]
    np.testing.assert_allclose(histogram_overlap(x, np.arange(60000)%2)[0, 1], [1, 2*norm.cdf(-.75)], atol=.02)
    assert (1-gap+1e-9 >= histogram_overlap(*data, bins=900)).all() # Total variation is no less than the distance


def test_separation_by_hand_and_by_scipy():
    rng = np.random.default_rng(4)
    labels = rng.permutation(np.repeat([0, 1, 3], [40, 25, 35]))
    x = np.round(rng.normal(size=(100, 70))*2+labels[:, None]).astype(np.float32)
    threshold, interval = separation(x, labels, 4)
    for c in (0, 1, 3):
        other = [ks_2samp(v[labels == c], v[labels != c]).statistic for v in x.T]
        np.testing.assert_allclose(threshold[c], other, atol=1e-12)
    assert np.isnan(threshold[2]).all() and np.isnan(interval[2]).all()
    known = ~np.isnan(threshold)
    assert (interval[known] >= threshold[known]-1e-12).all() and (interval[known] <= np.minimum(1, 2*threshold[known])+1e-12).all()
    best = [abs(np.subtract(*(((x[k, 3] >= lo) & (x[k, 3] <= hi)).mean() for k in (labels == 0, labels != 0))))
            for lo in x[:, 3] for hi in x[:, 3]]
    assert abs(interval[0, 3]-max(best)) < 1e-12
    again = separation(np.exp(-x/4), labels, 4) # Any monotone map leaves order alone, or turns it round
    np.testing.assert_allclose(again, (threshold, interval), atol=1e-12)
