"""Laws of the array rooms, on whatever activations hypothesis can think of."""
import hypothesis
import numpy as np
import pytest
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from neuronlens.arrays.distributions import compare_fits, fit_distributions, normal_mass
from neuronlens.arrays.matching import cka, matched_neurons
from neuronlens.arrays.ranges import fit_ranges
from neuronlens.arrays.saliency import FROM_STATISTICS, Ranking, rank
from neuronlens.arrays.separation import bhattacharyya, histogram_overlap, ks_between, overlap_coefficient
from neuronlens.arrays.statistics import batch_statistics, class_statistics
from neuronlens.edits.ablation import edited_acts, firing
from neuronlens.edits.erasure import leace, mean_projection
from neuronlens.edits.planning import plan
from neuronlens.ground.core import InputError

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


# --- units

POWERS = st.integers(-20, 20).map(lambda k: 2.**k) # A millionth to a million; scaling by them rounds nothing
UNITS = st.floats(-6, 6).map(lambda x: 10**x)
UNITLESS = ('dprime', 'f_statistic', 'average_precision', 'mutual_information', 'probe', 'probe_mass')


def overlapping(seed, N=90, D=5, C=3):
    "Classes of normal activations that differ a little, one neuron far from 0."
    rng = np.random.default_rng(seed)
    labels = np.arange(N) % C
    return (rng.normal(rng.normal(size=(C, D))[labels], 1)+20*(np.arange(D) == D-1)).astype(np.float32), labels


@given(labelled_acts(), POWERS)
def test_rankings_have_no_unit(data, s):
    "Scores in another unit are the same to the bit, or as much larger as the unit is smaller."
    acts, labels = data
    each = np.float32(s)**(np.arange(acts.shape[1]) % 2) # Every second neuron
    for name in ('dprime', 'f_statistic', 'average_precision'):
        np.testing.assert_array_equal(rank(acts*each, labels, name).scores, rank(acts, labels, name).scores, name)
    for name in ('max_activation', 'probeless'):
        np.testing.assert_array_equal(rank(acts*np.float32(s), labels, name).scores, s*rank(acts, labels, name).scores, name)


@given(st.integers(0, 10**6), UNITS)
def test_rankings_in_any_unit(seed, s):
    "The same where scaling rounds, with the probe and mutual information, too."
    acts, labels = overlapping(seed, D=4)
    for name in UNITLESS:
        a, b = (rank(x, labels, name) for x in (acts, (acts*s).astype(np.float32)))
        np.testing.assert_allclose(b.scores, a.scores, rtol=1e-3, atol=1e-3, err_msg=name)
    for name in ('max_activation', 'probeless'):
        a, b = (rank(x, labels, name) for x in (acts, (acts*s).astype(np.float32)))
        np.testing.assert_allclose(b.scores, s*a.scores, rtol=1e-5)
        np.testing.assert_array_equal(b.order, a.order)


def test_a_small_neuron_is_not_pushed_down():
    "Whatever the unit of the best neuron is, it stays the best, by the formula."
    rng = np.random.default_rng(0)
    labels, acts = np.arange(400) % 2, rng.normal(size=(400, 6))
    acts[labels == 0, :3] += [3, 1.5, .5]
    for s in (1, 1e-3, 1e-5, 1e-8, 1e-20, 1e8):
        x = (acts*[s, 1, 1, 1, 1, 1]).astype(np.float32)
        a, b = x[labels == 0].astype(float), x[labels == 1].astype(float)
        true = abs(a.mean(0)-b.mean(0))/np.sqrt((a.var(0)+b.var(0))/2)
        np.testing.assert_allclose(rank(x, labels, 'dprime').scores[0], true, rtol=1e-9)
        assert rank(x, labels, 'dprime').order[0, 0] == 0


@pytest.mark.parametrize('value', [0., .1, -3e-30, 12345.678, 3e38])
def test_constant_neurons_say_nothing(value):
    "Nor does the last bit of a constant; two constants that differ part the classes for good, and first of all."
    rng = np.random.default_rng(0)
    labels, acts = np.repeat([0, 1, 2], [3, 5, 9]), rng.normal(size=(17, 4)).astype(np.float32)
    acts[:, 0] = acts[:, 1] = value
    acts[::3, 1] = np.nextafter(np.float32(value), np.float32(0))
    acts[:, 2] = np.where(labels == 1, value, np.float32(.9*value) if value else 1)
    for name in ('dprime', 'f_statistic'):
        r = rank(acts, labels, name)
        assert (r.scores[:, :2] == 0).all() and r.scores[1, 2] == np.inf and r.order[1, 0] == 2, name
        assert np.isfinite(r.scores[[0, 2]]).all()
        assert [m.tolist() for m in r.by_mass(.9)][1] == [2]


KINDS = ('gaussian(1.5)', 'quantile(0.7)', 'density(0.8)', 'kmeans(3)', 'posterior_histogram(0.4)', 'posterior(0.5)',
         'posterior_prior(0.5)')


@given(labelled_acts(), POWERS)
def test_ranges_have_the_unit_of_the_activations(data, s):
    acts, labels = data
    for kind in KINDS[:5]:
        a, b = fit_ranges(acts, labels, kind), fit_ranges(acts*np.float32(s), labels, kind)
        np.testing.assert_array_equal(b.lo, s*a.lo, kind)
        np.testing.assert_array_equal(b.hi, s*a.hi, kind)
    a, b = fit_ranges(acts, labels, 'tolerance(0.5)'), fit_ranges(acts*np.float32(s), labels, f'tolerance({.5*s!r})')
    np.testing.assert_array_equal(b.hi, s*a.hi)


@given(st.integers(0, 10**6), UNITS)
def test_ranges_in_any_unit(seed, s):
    acts, labels = overlapping(seed)
    x = (acts*s).astype(np.float32)
    for kind in KINDS:
        a, b = fit_ranges(acts, labels, kind), fit_ranges(x, labels, kind)
        assert (np.stack([a.contains(acts, c) for c in range(3)]) != np.stack([b.contains(x, c) for c in range(3)])).mean() < .005, kind


EVERY = ('zero', 'mean', 'scale(0.3)', 'dampen', 'adaptive(0.8)', 'adaptive(inf)', 'adaptive(0)', 'shift(0.7)', 'transport(0.7)',
         'resample')


@given(labelled_acts(), POWERS)
def test_edits_have_the_unit_of_the_activations(data, s):
    "An edit of scaled activations is the scaled edit, and fires where it did."
    acts, labels = data
    s = np.float32(s)
    def edits(x):
        stats = class_statistics(x, labels)
        return plan(stats, [rank(x, labels, statistics=stats)], fit_ranges(x, labels, 'gaussian(1.1)', statistics=stats), 'residual.0',
                    fraction=[1.], edit=list(EVERY), acts=x, labels=labels)
    for a, b in zip(edits(acts), edits(acts*s), strict=True):
        np.testing.assert_array_equal(firing(b, acts*s), firing(a, acts), repr(a))
        np.testing.assert_array_equal(edited_acts(b, acts*s), s*edited_acts(a, acts), repr(a))


@pytest.mark.parametrize('s', [2.**-20, 2.**-3, 2.**20])
def test_shapes_overlaps_and_maps_have_no_unit(s):
    "Distributions, overlaps, linear maps, matchings: the unit leaves them as they are."
    acts, labels = overlapping(0)
    x, (st_a, st_b) = acts*np.float32(s), (class_statistics(y, labels) for y in (acts, acts*np.float32(s)))
    a, b = fit_distributions(acts, labels), fit_distributions(x, labels)
    for k in ('ks', 'inside', 'p', 'second', 'threshold', 'interval'):
        np.testing.assert_allclose(getattr(b, k), getattr(a, k), rtol=1e-6, atol=1e-9, err_msg=k)
    np.testing.assert_allclose(compare_fits(x, labels).score+np.log(s), compare_fits(acts, labels).score, atol=1e-6)
    for fn in (bhattacharyya, overlap_coefficient): np.testing.assert_allclose(fn(st_b), fn(st_a), rtol=1e-7, atol=1e-9)
    for fn in (histogram_overlap, ks_between): np.testing.assert_array_equal(fn(x, labels), fn(acts, labels))
    for fn in (leace, mean_projection):
        ours, theirs = fn(acts, labels, 1), fn(x, labels, 1)
        np.testing.assert_allclose(theirs.matrix, ours.matrix, atol=1e-9)
        np.testing.assert_allclose(theirs.bias, s*ours.bias, atol=1e-8*s)
    other = acts[:, ::-1]**2
    assert cka(x, other) == pytest.approx(cka(acts, other), rel=1e-9)
    np.testing.assert_allclose(matched_neurons(x, other).r, matched_neurons(acts, other).r, atol=1e-9)


@pytest.mark.parametrize('s', [1e-200, 1e-160, 1, 1e150, 1e300])
def test_matching_in_the_smallest_and_the_largest_numbers(s):
    "Squares of float64 vanish or overflow long before the numbers do."
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 4)), rng.normal(size=(50, 4))
    np.testing.assert_allclose(matched_neurons(s*a, b).r, matched_neurons(a, b).r, atol=1e-12)
    assert cka(s*a, b) == pytest.approx(cka(a, b), rel=1e-9)
    assert np.isnan(cka(np.full((9, 3), .1*s), b[:9]))


def test_adaptive_is_the_papers_mask_at_ordinary_scales():
    "Within a millionth of the formula with its 1e-6 in the width."
    acts, labels = overlapping(3)
    stats = class_statistics(acts, labels)
    iv = plan(stats, [rank(acts, labels, statistics=stats)], fit_ranges(None, None, 'full', statistics=stats), 'residual.0',
              fraction=[1.], edit='adaptive(1.3)', concept=[1])[0]
    x, m, sd = acts.astype(float), stats.mean[1], stats.sd[1]
    papers = .125*np.clip(abs(x-m)/(1.3*sd+1e-6), 0, 1)*x
    np.testing.assert_allclose(edited_acts(iv, acts), papers, atol=1e-5)


@pytest.mark.parametrize('fit', [leace, mean_projection])
def test_a_concept_without_a_direction(fit):
    "Equal means leave rounding, which is no direction: nothing is erased, or the user is told."
    rng = np.random.default_rng(0)
    half = rng.normal(7, 1, (40, 5)).astype(np.float32)
    acts, labels = np.vstack([half, half[::-1]]), np.repeat([0, 1], 40)
    if fit is leace: np.testing.assert_array_equal(leace(acts, labels, 1).matrix, np.eye(5))
    else:
        with pytest.raises(InputError, match='same mean'): mean_projection(acts, labels, 1)


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
