"""Overlap against scipy, numerical integration and brute force; laws; failures."""
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import hypergeom, ks_2samp, norm, spearmanr

from neuronlens.core import InputError
from neuronlens.overlap import (
    bhattacharyya,
    cka,
    family_overlap,
    firing_matrix,
    firing_rates,
    histogram_overlap,
    ks_between,
    matched_neurons,
    members,
    needed,
    normal_rates,
    number_inside,
    overlap_coefficient,
    pair_overlap,
    polysemantic_counts,
    predicted_collateral,
    range_jaccard,
    range_overlap,
    range_purity,
    ranking_agreement,
    set_overlap,
)
from neuronlens.ranges import Ranges, fit_ranges
from neuronlens.saliency import rank
from neuronlens.statistics import class_statistics


class Normals:
    "Means and standard deviations, `[C, D]`."
    def __init__(self, mean, sd): self.mean, self.sd = np.array(mean, float), np.array(sd, float)


@pytest.fixture(scope='module')
def data():
    "900 activations of 3 classes on 70 neurons, unlike in place and spread, with repeated values; one neuron is constant."
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1, 2], [200, 300, 400]))
    acts = rng.normal(rng.normal(size=(3, 70))[labels]*1.5, rng.uniform(.5, 2, (3, 70))[labels]).round(2).astype(np.float32)
    acts[:, 7] = 2
    return acts, labels


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


def test_mass_of_a_class_without_spread():
    "All of it lies at one point: in a range that ends there, at 0 as elsewhere, and in none beside it."
    def held(lo, hi): return Ranges(np.float32([[[lo]]]), np.float32([[[hi]]]), 'hand', None, ('a',))
    for mean in (0., 2.5, -2.5):
        s = Normals([[mean]], [[0.]])
        inside = [normal_rates(held(*ends), s)[0, 0, 0] for ends in ((mean, mean), (mean, mean+1), (mean-1, mean), (mean+.1, mean+1))]
        assert inside == [1, 1, 1, 0]
