"""Laws of the array rooms, on whatever activations hypothesis can think of."""
import hypothesis
import numpy as np
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from neuronlens.distributions import fit_distributions, normal_mass
from neuronlens.ranges import fit_ranges
from neuronlens.saliency import FROM_STATISTICS, Ranking, rank
from neuronlens.statistics import batch_statistics, class_statistics

LAWS = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def given(*strategies):
    "The same 60 examples in every run."
    return lambda f: LAWS(hypothesis.given(*strategies)(f))


SMALL = st.floats(-1000, 1000, width=32).map(lambda x: 0. if abs(x) < 2**-10 else x)


@st.composite
def labelled_acts(draw, values=SMALL, C=3, most=20):
    "acts [N, D] float32 with some constant and some repeated values, labels [N] with two or more of each class."
    extra = draw(st.lists(st.integers(0, C-1), max_size=most-2*C))
    labels = np.array(draw(st.permutations([*range(C), *range(C), *extra])))
    acts = draw(arrays(np.float32, (len(labels), draw(st.integers(1, 5))), elements=values))
    for j in draw(st.sets(st.integers(0, acts.shape[1]-1), max_size=2)): acts[:, j] = acts[0, j]
    return acts, labels


taus = st.floats(0, 10) | st.just(np.inf)


def inside(acts, labels, tau):
    r = fit_ranges(acts, labels, f'gaussian({tau!r})')
    return np.stack([r.contains(acts, c) for c in range(3)])


# --- ranges

@given(labelled_acts())
def test_tau_0_holds_only_the_mean(data):
    acts, labels = data
    mean = class_statistics(acts, labels).mean.astype(np.float32)
    np.testing.assert_array_equal(inside(acts, labels, 0.), acts == mean[:, None])


@given(labelled_acts(), taus, taus)
def test_a_wider_range_holds_no_less(data, a, b):
    narrow, wide = inside(*data, min(a, b)), inside(*data, max(a, b))
    assert (narrow <= wide).all()


@given(labelled_acts())
def test_tau_inf_holds_everything_also_where_nothing_varies(data):
    acts, labels = data
    acts[:, 0] = 7
    huge = np.vstack([acts, np.full_like(acts[:1], np.finfo(np.float32).max)])
    for kind in ('gaussian(inf)', 'full'):
        r = fit_ranges(acts, labels, kind)
        assert np.isneginf(r.lo).all() and np.isposinf(r.hi).all()
        assert all(r.contains(huge, c).all() for c in range(3))


@given(labelled_acts(), taus)
def test_a_constant_neuron_is_inside_its_own_range(data, tau):
    acts, labels = data
    acts[:, 0] = .1
    assert inside(acts, labels, tau)[:, :, 0].all()


@given(labelled_acts(), st.floats(.01, 1))
def test_quantile_holds_its_share_of_every_class(data, q):
    acts, labels = data
    r = fit_ranges(acts, labels, f'quantile({q!r})')
    for c in range(3):
        own = acts[labels == c]
        assert (r.contains(own, c).sum(0) >= q*len(own)-1e-6).all()


@given(labelled_acts(), st.floats(.01, 1))
def test_quantile_mirrors(data, q):
    acts, labels = data
    a, b = (fit_ranges(x, labels, f'quantile({q!r})') for x in (acts, -acts))
    np.testing.assert_array_equal(a.lo, -b.hi)


def test_mass_of_normal_activations():
    rng = np.random.default_rng(0)
    acts, labels = rng.normal(5, 3, (30000, 2)).astype(np.float32), np.repeat([0, 1], 15000)
    for tau in (.5, 1, 2, 2.5):
        held = fit_ranges(acts, labels, f'gaussian({tau})').contains(acts[labels == 0], 0).mean(0)
        np.testing.assert_allclose(held, normal_mass(tau), atol=.015)


# --- order of samples and neurons

@given(labelled_acts(), st.randoms(use_true_random=False))
def test_order_of_samples_changes_nothing(data, random):
    acts, labels = data
    p = list(range(len(labels)))
    random.shuffle(p)
    a, b = class_statistics(acts, labels), class_statistics(acts[p], labels[p])
    for name in ('mean', 'sd', 'abs_mean', 'rest_mean', 'rest_sd'):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-9, atol=1e-9)
    for name in ('n', 'low', 'high'): np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    quantiles = [fit_ranges(x, y, 'quantile(0.7)') for x, y in ((acts, labels), (acts[p], labels[p]))]
    np.testing.assert_array_equal(quantiles[0].lo, quantiles[1].lo)


@given(labelled_acts(), st.randoms(use_true_random=False))
def test_order_of_neurons_permutes_results(data, random):
    acts, labels = data
    p = list(range(acts.shape[1]))
    random.shuffle(p)
    for name in FROM_STATISTICS:
        np.testing.assert_array_equal(rank(acts[:, p], labels, name).scores, rank(acts, labels, name).scores[:, p])
    for kind in ('gaussian(2)', 'quantile(0.7)', 'full'):
        a, b = fit_ranges(acts, labels, kind), fit_ranges(acts[:, p], labels, kind)
        np.testing.assert_array_equal(a.lo[:, p], b.lo)
        np.testing.assert_array_equal(a.contains(acts, 1, p), b.contains(acts[:, p], 1))


@given(labelled_acts(), st.permutations(range(3)))
def test_order_of_classes_permutes_results(data, p):
    acts, labels = data
    for name in FROM_STATISTICS: # Class p[c] is now called c
        renamed = rank(acts, np.argsort(p)[labels], name).scores
        np.testing.assert_allclose(renamed, rank(acts, labels, name).scores[list(p)], rtol=1e-7, atol=1e-7)


# --- scale

@given(labelled_acts(), st.sampled_from([2**-6, .25, 2, 1024]))
def test_scaling_scales_means_and_spreads(data, s):
    acts, labels = data
    a, b = class_statistics(acts, labels), class_statistics(acts*np.float32(s), labels)
    for name in ('mean', 'sd', 'abs_mean', 'rest_mean', 'rest_sd'):
        np.testing.assert_allclose(getattr(b, name), s*getattr(a, name), rtol=1e-12, atol=0)
    for name in ('skew', 'kurtosis'): np.testing.assert_allclose(getattr(b, name), getattr(a, name), rtol=1e-9)
    for kind in ('gaussian(1.5)', 'quantile(0.7)'):
        low = [fit_ranges(x, labels, kind).contains(x, 1) for x in (acts, acts*np.float32(s))]
        np.testing.assert_array_equal(low[0], low[1])
    for name in ('max_activation', 'probeless'):
        np.testing.assert_array_equal(rank(acts*np.float32(s), labels, name).order, rank(acts, labels, name).order)


@given(st.integers(0, 10**6), st.sampled_from([.1, .5, 3, 100]))
def test_dprime_does_not_see_the_scale_of_single_neurons(seed, s):
    rng = np.random.default_rng(seed)
    acts, labels = rng.normal(rng.normal(size=6), 1, (60, 6)), np.arange(60)%3
    each = np.r_[s, 1, 1/s, s, 1, 1/s]
    np.testing.assert_allclose(rank(acts*each, labels).scores, rank(acts, labels).scores, rtol=2e-3, atol=1e-5)


# --- splits

@given(labelled_acts(), st.data())
def test_any_split_is_one_pass(data, draw):
    acts, labels = data
    part = np.array(draw.draw(st.lists(st.integers(0, 3), min_size=len(labels), max_size=len(labels))))
    one = class_statistics(acts, labels)
    parts = [batch_statistics(acts[part == i], labels[part == i], one.classes) for i in range(4)]
    both = parts[0].merge(parts[1]).merge(parts[2].merge(parts[3]))
    for name in ('n', 'low', 'high'): np.testing.assert_array_equal(getattr(both, name), getattr(one, name))
    np.testing.assert_array_equal(both.sd == 0, one.sd == 0)
    size = np.abs(acts).max()
    for name, power in (('mean', 1), ('abs_mean', 1), ('m2', 2), ('m3', 3), ('m4', 4), ('rest_mean', 1)):
        np.testing.assert_allclose(getattr(both, name), getattr(one, name), rtol=1e-9, atol=1e-11*size**power)


@given(labelled_acts())
def test_merging_does_not_depend_on_the_order(data):
    acts, labels = data
    a, b = (batch_statistics(acts[i::2], labels[i::2], ('0', '1', '2')) for i in (0, 1))
    for name in ('mean', 'abs_mean', 'm2', 'm3', 'm4'):
        np.testing.assert_allclose(getattr(a.merge(b), name), getattr(b.merge(a), name), rtol=1e-9, atol=1e-4)


# --- ties, and shares of a salient set

@given(arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 30)), elements=st.sampled_from([0., 1., 2.])))
def test_ties_go_to_the_lower_index(scores):
    order = Ranking(scores, 'hand', tuple(map(str, range(len(scores))))).order
    for o, s in zip(order, scores, strict=True):
        assert o.tolist() == sorted(range(len(s)), key=lambda j: (-s[j], j))


def test_size_of_the_salient_set():
    for D in range(1, 201):
        ranking = Ranking(np.arange(D, dtype=float)[None], 'hand', ('0',))
        for percent in range(1, 101): assert ranking.salient(percent/100).shape == (1, percent*D//100)


@given(labelled_acts(), st.floats(0, 1, exclude_min=True), st.floats(0, 1, exclude_min=True))
def test_salient_sets_grow_by_appending(data, a, b):
    ranking = rank(*data)
    small, large = ranking.salient(min(a, b)), ranking.salient(max(a, b))
    np.testing.assert_array_equal(small, large[:, :small.shape[1]])


# --- distributions

@given(labelled_acts(), st.sampled_from([2**-4, 8]))
def test_shape_does_not_see_scale_or_sign(data, s):
    acts, labels = data
    a, b = fit_distributions(acts, labels), fit_distributions(-acts*np.float32(s), labels)
    np.testing.assert_allclose(a.ks, b.ks, atol=1e-9)
    np.testing.assert_array_equal(a.inside, b.inside)
    assert np.isnan(a.ks[a.statistics.sd == 0]).all()


@given(labelled_acts())
def test_inside_agrees_with_the_range_it_stands_for(data):
    acts, labels = data
    a, r = fit_distributions(acts, labels), fit_ranges(acts, labels, 'gaussian(2.5)')
    edge = np.abs(np.abs(acts-a.statistics.mean[labels])-2.5*a.statistics.sd[labels])
    assume((edge[a.statistics.sd[labels] > 0] > 1e-3).all()) # Bounds are float32, `inside` is not
    for c in range(3):
        np.testing.assert_allclose(r.contains(acts[labels == c], c).mean(0), a.inside[c], atol=1e-12)
