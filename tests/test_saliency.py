"""Rankings beside scikit-learn and NeuroX, on whatever hypothesis can think of, and the ties that decide."""
import sys
from types import ModuleType, SimpleNamespace

import hypothesis
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import f_oneway
from sklearn.feature_selection import f_classif, mutual_info_classif
from sklearn.metrics import average_precision_score

from neuronlens.arrays.saliency import RANKINGS, average_precision, f_statistic, mutual_information, rank
from neuronlens.arrays.sparsity import mass_left, mass_salient
from neuronlens.arrays.statistics import batch_statistics, class_statistics, merge_statistics
from neuronlens.ground.core import InputError

LAWS = settings(max_examples=60, deadline=None, derandomize=True, database=None)
NEW = ('probe_mass', 'average_precision', 'mutual_information', 'f_statistic')


def given(*strategies):
    "The same 60 examples in every run."
    return lambda f: LAWS(hypothesis.given(*strategies)(f))


@st.composite
def labelled_acts(draw, C=3):
    "acts [N, D] float32 of few distinct values, labels [N] with two or more of each class."
    labels = np.array(draw(st.permutations([*range(C)]*2 + draw(st.lists(st.integers(0, C-1), max_size=14)))))
    values = st.sampled_from([-3., -.5, -0., 0., .1, 1., 1.0000001, 2.5, 1e6])
    return draw(arrays(np.float32, (len(labels), draw(st.integers(1, 4))), elements=values)), labels


def made_up(seed, N=200, D=12, C=4):
    rng = np.random.default_rng(seed)
    labels = np.r_[np.repeat(range(C), 2), rng.integers(0, C, N-2*C)]
    return rng.normal(rng.normal(size=(C, D))[labels]).astype(np.float32), labels


def best_of_both(acts, labels, c, j):
    return max(average_precision_score(labels == c, s*acts[:, j]) for s in (1, -1))


# --- average precision

@given(labelled_acts())
def test_average_precision_is_sklearns_also_where_activations_are_equal(data):
    acts, labels = data
    theirs = [[best_of_both(acts, labels, c, j) for j in range(acts.shape[1])] for c in range(3)]
    np.testing.assert_allclose(average_precision(acts, labels), theirs, rtol=1e-9)


def test_average_precision_in_blocks_of_neurons_is_the_same(monkeypatch):
    acts, labels = made_up(0, D=700)
    one = np.hstack([average_precision(acts[:, j:j+1], labels) for j in range(0, 700, 50)])
    many = np.vstack([acts]*30), np.tile(labels, 30) # 6,000 rows: blocks of 349 neurons
    np.testing.assert_array_equal(average_precision(acts, labels)[:, ::50], one)
    np.testing.assert_allclose(average_precision(*many)[1, 699], best_of_both(*many, 1, 699), rtol=1e-9)


@given(labelled_acts())
def test_average_precision_sees_only_the_order(data):
    acts, labels = data
    order = np.unique(acts, return_inverse=True)[1].reshape(acts.shape)
    other = average_precision(-7*order.astype(np.float32), labels)
    np.testing.assert_allclose(average_precision(acts, labels), other, rtol=1e-12)


# --- F

@given(labelled_acts())
def test_f_is_scipys_and_never_nan(data):
    acts, labels = data
    acts = np.minimum(acts, 9)
    ours, wide = f_statistic(class_statistics(acts, labels)), acts.astype(np.float64)
    assert not np.isnan(ours).any() and (ours >= 0).all()
    for c in range(3):
        for j in range(acts.shape[1]):
            own, rest = wide[labels == c, j], wide[labels != c, j]
            if np.ptp(own)+np.ptp(rest) > 1e-3:
                np.testing.assert_allclose(ours[c, j], f_oneway(own, rest).statistic, rtol=1e-6, atol=1e-9)


def test_f_is_sklearns():
    acts, labels = made_up(1)
    ours = f_statistic(class_statistics(acts, labels))
    theirs = [f_classif(acts.astype(np.float64), labels == c)[0] for c in range(4)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_f_of_batches_is_f_of_all():
    acts, labels = made_up(2)
    parts = merge_statistics([batch_statistics(acts[i:i+17], labels[i:i+17], tuple('0123')) for i in range(0, 200, 17)])
    np.testing.assert_allclose(f_statistic(parts), f_statistic(class_statistics(acts, labels)), rtol=1e-9)


def test_a_constant_has_no_f_whatever_its_value():
    acts, labels = made_up(3, D=3)
    acts[:] = [.1, 1e7/3, -np.pi]
    np.testing.assert_array_equal(f_statistic(class_statistics(acts, labels)), 0)


# --- mutual information

def test_mutual_information_is_of_the_class_against_the_rest():
    "One row per class, in the order of the classes, as sklearn has it for that class alone."
    acts, labels = made_up(1)
    theirs = [mutual_info_classif(acts, labels == c, discrete_features=False, random_state=1) for c in range(4)]
    np.testing.assert_array_equal(mutual_information(acts, labels, 1), theirs)
    assert np.max(theirs) > .1


def test_mutual_information_of_a_constant_is_0_and_of_the_label_its_entropy():
    labels = np.repeat([0, 1], [300, 100])
    acts = np.stack([np.ones(400), labels], axis=1)
    scores = mutual_information(acts, labels)
    np.testing.assert_array_equal(scores[:, 0], 0)
    np.testing.assert_allclose(scores[:, 1], -(.25*np.log(.25)+.75*np.log(.75)), atol=.02)


def test_a_sample_is_seeded_holds_every_class_and_agrees():
    acts, labels = made_up(0, N=6000)
    labels[8:][labels[8:] == 3] = 2 # Two texts of class 3 are left
    whole, some = mutual_information(acts, labels, most=6000), mutual_information(acts, labels, 1, most=2000)
    np.testing.assert_array_equal(some, mutual_information(acts, labels, 1, most=2000))
    assert (some != mutual_information(acts, labels, 2, most=2000)).any()
    np.testing.assert_allclose(some[:3], whole[:3], atol=.06)
    assert np.isfinite(some[3]).all()


# --- share of the probe's weight

@pytest.fixture(scope='module')
def top_neurons():
    "NeuroX's own selection; what it imports and never uses there, for balancing classes, may be missing."
    pytest.importorskip('neurox', reason="NeuroX is not installed")
    if (missing := 'imblearn' not in sys.modules):
        fake = ModuleType('imblearn.under_sampling')
        fake.RandomUnderSampler = object
        sys.modules |= {'imblearn': ModuleType('imblearn'), 'imblearn.under_sampling': fake}
    try:
        from neurox.interpretation.linear_probe import get_top_neurons
    except ImportError as e: pytest.skip(str(e))
    finally:
        for k in ('imblearn', 'imblearn.under_sampling')*missing: del sys.modules[k]
    def select(weights, p):
        import torch
        probe = SimpleNamespace(parameters=lambda: [torch.as_tensor(weights)])
        found = get_top_neurons(probe, p, {c: c for c in range(len(weights))})[1]
        return [found[c].tolist() for c in range(len(weights))]
    return select


@pytest.mark.parametrize('p', (.01, .1, .37, .5, .9, .99, 1.1))
def test_mass_is_neuroxs(top_neurons, p):
    weights = np.random.default_rng(0).normal(size=(5, 40))
    assert [s.tolist() for s in mass_salient(weights, p)] == top_neurons(weights, p)


def test_the_cases_of_neurox(top_neurons):
    for weights, p in (([[5., 1, 1], [1, 10, 1]], .5), ([[10., 9, 8], [10, 2, 1]], 1.1)):
        assert [set(s) for s in mass_salient(weights, p)] == [set(s) for s in top_neurons(np.array(weights), p)]


@given(arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 8)), elements=st.sampled_from([-2., 0., .5, 1., 2., 7.])),
       st.sampled_from([.1, .25, .5, .75, .9, 1.]))
def test_mass_is_the_smallest_prefix(weights, p):
    for w, chosen in zip(abs(weights.astype(float)), mass_salient(weights, p), strict=True):
        held = w[chosen]
        assert held.sum() >= p*w.sum()-1e-9
        if len(chosen): assert held[:-1].sum() < p*w.sum()+1e-9
        assert chosen.tolist() == np.argsort(-w, kind='stable')[:len(chosen)].tolist()
        assert set(chosen) <= set(np.flatnonzero(w))


def test_probe_mass_orders_as_probe_and_selects_by_class():
    acts, labels = made_up(4)
    acts[labels == 0, 0] += 9 # One neuron is enough for class 0
    probe, mass = rank(acts, labels, 'probe'), rank(acts, labels, 'probe_mass')
    np.testing.assert_array_equal(probe.order, mass.order)
    np.testing.assert_array_equal(mass.scores, mass_left(probe.scores))
    sizes = [len(s) for s in mass.by_mass(.5)]
    assert sizes[0] == min(sizes) < max(sizes)
    for a, b in zip(probe.by_mass(.5), mass.by_mass(.5), strict=True): np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError, match="p=nan must be above 0"): mass.by_mass(np.nan)


# --- all of them

@pytest.mark.parametrize('name', NEW)
def test_examples_and_neurons_in_another_order(name):
    acts, labels = made_up(5)
    rows, cols = np.random.default_rng(0).permutation(len(acts)), np.random.default_rng(1).permutation(acts.shape[1])
    a, b = rank(acts, labels, name).scores, rank(acts[rows][:, cols], labels[rows], name).scores
    np.testing.assert_allclose(b, a[:, cols], atol=3e-3 if name == 'mutual_information' else 1e-4, rtol=1e-4)


@pytest.mark.parametrize('name', ('average_precision', 'f_statistic', 'mutual_information'))
def test_scale_free(name):
    acts, labels = made_up(6)
    a, b = (rank(x, labels, name).scores for x in (acts, 1024*acts))
    np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize('name', sorted(set(RANKINGS)-{'random'}))
def test_shuffled_labels_leave_nothing(name):
    acts, labels = made_up(7, N=600)
    acts[:, 0] += 3*(labels == 0)
    null = np.random.default_rng(0).permutation(labels)
    found, chance = rank(acts, labels, name).scores[0], rank(acts, null, name).scores[0]
    assert found.argmax() == 0
    if name not in ('probe_mass', 'max_activation'): assert chance.max() < found.max()/2


@pytest.mark.parametrize('name', NEW)
def test_bad_input_is_refused_first(name):
    acts, labels = made_up(0)
    with pytest.raises(InputError, match="class '1' has 1 example"): rank(acts[:3], [0, 0, 1], name)
    acts[3, 2] = np.inf
    with pytest.raises(InputError, match="neuron 2 is inf in row 3"): rank(acts, labels, name)
