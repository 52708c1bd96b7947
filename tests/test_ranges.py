"""Kinds of range against independent implementations, and their laws on whatever activations hypothesis can think of."""

import numpy as np
import pytest
from hypothesis import strategies as st
from test_laws import given, labelled_acts

from neuronlens.arrays.ranges import DEFAULTS, FROM_ACTIVATIONS, FROM_STATISTICS, RANGES, fit_ranges
from neuronlens.arrays.statistics import class_statistics
from neuronlens.ground.core import InputError
from neuronlens.ground.setting import format_kind, parse_kind

NUMBERS = {'gaussian': 1.5, 'full': None, 'tolerance': 20., 'posterior': .4, 'posterior_prior': .4, 'quantile': .7,
           'density': .7, 'posterior_histogram': .4, 'kmeans': 3., 'bins': 4.}
KINDS = [format_kind(*pair) for pair in NUMBERS.items()]
POSTERIORS = ['posterior', 'posterior_prior', 'posterior_histogram']


def held(ranges, acts):
    "`[C, N, D]` bool."
    return np.stack([ranges.contains(acts, c) for c in range(len(ranges.classes))])


# --- registration

def test_every_kind_is_tested_here():
    assert set(NUMBERS) == set(RANGES) == set(DEFAULTS) == {*FROM_STATISTICS, *FROM_ACTIVATIONS}


@pytest.mark.parametrize('kind', KINDS)
def test_names_and_shapes(kind):
    rng = np.random.default_rng(0)
    acts, labels = rng.normal(size=(60, 4)).astype(np.float32), np.arange(60) % 3
    r = fit_ranges(acts, labels, kind, classes=['a', 'b', 'c'])
    assert r.name == kind and parse_kind(r.name) == (r.kind, r.param) and r.classes == ('a', 'b', 'c')
    assert r.lo.shape == r.hi.shape == (3, 4, r.lo.shape[2]) and r.lo.dtype == r.hi.dtype == np.float32
    assert fit_ranges(acts, labels, kind.partition('(')[0]).kind == r.kind
    if r.kind in FROM_STATISTICS:
        other = fit_ranges(None, None, kind, statistics=class_statistics(acts, labels))
        np.testing.assert_array_equal(other.lo, r.lo)
    else:
        with pytest.raises(InputError, match=f"{r.kind}.* needs acts and labels"):
            fit_ranges(None, None, kind, statistics=class_statistics(acts, labels))


@pytest.mark.parametrize('kind', POSTERIORS)
def test_the_default_posterior_is_one_in_the_number_of_classes(kind):
    for C in (2, 3, 7):
        acts = np.random.default_rng(C).normal(size=(8*C, 2))
        assert fit_ranges(acts, np.arange(8*C) % C, kind).param == 1/C


@pytest.mark.parametrize('kind', ['posterior(-0.1)', 'posterior(1.5)', 'posterior_prior(inf)', 'posterior_histogram(2)', 'density(0)',
                                  'density(1.1)', 'kmeans(1)', 'kmeans(2.5)', 'kmeans(inf)', 'bins(1)', 'bins(2.5)',
                                  'tolerance(-1)', 'full(1)'])
def test_numbers_out_of_bounds(kind):
    with pytest.raises(InputError, match=r"must be|takes no number"): fit_ranges([[0.], [1.], [2.], [3.]], [0, 0, 1, 1], kind)


# --- what holds for all kinds

@pytest.mark.parametrize('kind', KINDS)
@given(labelled_acts())
def test_intervals_are_ordered_apart_and_unused_ones_empty(kind, data):
    r = fit_ranges(*data, kind)
    used = r.lo <= r.hi
    assert (used[..., :-1] >= used[..., 1:]).all()
    assert np.isposinf(r.lo[~used]).all() and np.isneginf(r.hi[~used]).all()
    assert (r.lo[..., 1:] > r.hi[..., :-1])[used[..., 1:]].all()
    np.testing.assert_array_equal(r.empty(), ~used.any(-1))
    assert used[..., -1].any() or r.lo.shape[2] == 1
    assert ('empty' in repr(r)) == r.empty().any()


@pytest.mark.parametrize('kind', KINDS)
@given(labelled_acts(), st.randoms(use_true_random=False))
def test_order_of_samples_and_neurons(kind, data, random):
    acts, labels = data
    p, q = list(range(len(labels))), list(range(acts.shape[1]))
    random.shuffle(q)
    moved, stayed = held(fit_ranges(acts[:, q], labels, kind), acts[:, q]), held(fit_ranges(acts, labels, kind), acts)
    np.testing.assert_array_equal(moved, stayed[..., q])
    if kind.partition('(')[0] in FROM_STATISTICS: return # Sums in another order: `test_laws` compares those
    random.shuffle(p)
    a, b = fit_ranges(acts, labels, kind), fit_ranges(acts[p], labels[p], kind)
    np.testing.assert_array_equal(a.lo, b.lo)
    np.testing.assert_array_equal(a.hi, b.hi)


@pytest.mark.parametrize('kind', [k for k in KINDS if 'tolerance' not in k])
@given(labelled_acts(), st.sampled_from([2**-6, .25, 2, 1024]))
def test_scale(kind, data, s):
    acts, labels = data
    a, b = (fit_ranges(x, labels, kind) for x in (acts, acts*np.float32(s)))
    assert a.lo.shape == b.lo.shape
    size = max(float(abs(acts).max()), 1e-3)
    np.testing.assert_allclose(b.lo/s, a.lo, rtol=1e-5, atol=1e-6*size)
    np.testing.assert_allclose(b.hi/s, a.hi, rtol=1e-5, atol=1e-6*size)


def test_tolerance_does_not_scale_but_shifts():
    acts, labels = np.float32([[0], [1], [5], [6]]), [0, 0, 1, 1]
    a, b = fit_ranges(acts, labels, 'tolerance(2)'), fit_ranges(acts+3, labels, 'tolerance(2)')
    np.testing.assert_array_equal(a.hi-a.lo, np.full((2, 1, 1), 4))
    np.testing.assert_array_equal(b.lo, a.lo+3)


# --- monotone in the number

@pytest.mark.parametrize('kind', ['gaussian', 'tolerance'])
@given(labelled_acts(), st.floats(0, 100), st.floats(0, 100))
def test_wider_holds_no_less(kind, data, a, b):
    few, many = (held(fit_ranges(*data, format_kind(kind, t)), data[0]) for t in sorted([a, b]))
    assert (few <= many).all()


@given(labelled_acts(), st.floats(.01, 1), st.floats(.01, 1))
def test_density_is_nested_and_holds_its_share(data, a, b):
    acts, labels = data
    few, many = (held(fit_ranges(acts, labels, f'density({q!r})'), acts) for q in sorted([a, b]))
    assert (few <= many).all()
    for c in range(3):
        own = labels == c
        for f, q in ((few, min(a, b)), (many, max(a, b))): assert (f[c][own].sum(0) >= q*own.sum()-1e-6).all()


@pytest.mark.parametrize('kind', POSTERIORS)
@given(labelled_acts(), st.floats(0, 1), st.floats(0, 1))
def test_posterior_is_nested(kind, data, a, b):
    acts, labels = data
    many, few = (held(fit_ranges(acts, labels, format_kind(kind, t)), acts) for t in sorted([a, b]))
    edge = abs(a-b) < 1e-9
    assert edge or (few <= many).all()


@pytest.mark.parametrize('kind', POSTERIORS)
@given(labelled_acts())
def test_every_activation_has_a_class_at_one_in_three_and_at_0_all(kind, data):
    acts, labels = data
    assert held(fit_ranges(acts, labels, f'{kind}(0)'), acts).all()
    if kind != 'posterior_prior': assert held(fit_ranges(acts, labels, kind), acts).any(0).mean() > .9 # Borders are float32
