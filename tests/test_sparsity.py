"""Paths and probes of few neurons: planted, null, and against scikit-learn."""
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score
from test_probing import made, standard

from neuronlens import probing as pb
from neuronlens import sparsity as sp
from neuronlens.arrays.probing import logistic
from neuronlens.ground.core import InputError


def test_path_starts_at_silence_and_agrees_with_single_fits():
    x, y = made(shared=1.)
    path = sp.elastic_net_path(x, y, validation=(x, y), points=8)
    assert path.neurons[0] == 0 and path.converged.all() and (np.diff(path.l1) < 0).all()
    top = sp.silencing_l1(standard(x), y, 4)
    assert pb.fit_probe(x, y, l1=top*1.001).weights.any() == 0 != pb.fit_probe(x, y, l1=top*.97).weights.any()
    for i in (3, 7):
        alone = pb.fit_probe(x, y, l1=path.l1[i])
        np.testing.assert_allclose(path.weights[i], alone.weights, atol=3e-3)
        assert path.accuracy[i] == pytest.approx(path.probe(i).accuracy(x, y))
    np.testing.assert_allclose((path.recall*np.bincount(y)/len(y)).sum(1), path.accuracy)
    frame = path.per_class()
    assert len(frame) == 8*4 and frame.neurons.sum() == path.used.sum()
    assert path.weights.dtype == np.float32 and path.weights.shape == (8, 4, 12)
    assert '<table' in path._repr_html_() and '8 prices' in repr(path)


def test_path_sets_aside_by_class_and_seed():
    x, y = made()
    kept, aside = sp.set_aside(y, tuple('abcd'), seed=1)
    assert not set(kept) & set(aside) and len(kept)+len(aside) == 400 and (np.bincount(y[aside]) == 25).all()
    assert not np.array_equal(aside, sp.set_aside(y, tuple('abcd'), seed=2)[1])
    path = sp.elastic_net_path(x, y, points=5, seed=1)
    same = sp.elastic_net_path(x[kept], y[kept], validation=(x[aside], y[aside]), points=5)
    np.testing.assert_array_equal(path.weights, same.weights)
    np.testing.assert_array_equal(path.accuracy, same.accuracy)


def test_class_without_validation_examples():
    x, y = made()
    path = sp.elastic_net_path(x, y, validation=(x[y > 0], y[y > 0]), points=4)
    assert np.isnan(path.recall[:, 0]).all() and np.isfinite(path.accuracy).all()


def test_sparsest_probe_chooses_on_validation_only():
    "Test labels do not move the choice; the choice is the fewest neurons that reach the target."
    x, y = made(800, 30)
    path = sp.elastic_net_path(x[:400], y[:400])
    a, b = (sp.sparsest_probe(path, x[400:], labels) for labels in (y[400:], np.roll(y[400:], 7)))
    assert a.probe.l1 == b.probe.l1 and a.test_accuracy > b.test_accuracy
    good = path.accuracy >= a.target-1e-12
    assert len(a.neurons) == path.neurons[good].min() and a.validation_accuracy >= a.target
    assert set(a.neurons) == {0, 1, 2, 3}
    assert len(a.to_frame()) == (a.probe.weights != 0).sum() and '<table' in a._repr_html_()
    with pytest.raises(InputError, match=r"no probe on this path reaches accuracy 0\.999: the best has 0\.\d+, with \d+ neurons"):
        sp.sparsest_probe(path, x[400:], y[400:], accuracy=.999)


@pytest.mark.parametrize("balanced", [False, True])
def test_logistic_is_that_of_sklearn(balanced):
    x, y = made()
    x, y = standard(x), y == 1
    other = LogisticRegression(C=1/(len(x)*.01), class_weight='balanced' if balanced else None, tol=1e-8).fit(x, y)
    np.testing.assert_allclose(logistic(x, y, .01, balanced=balanced), np.r_[other.coef_[0], other.intercept_], atol=3e-3)


def test_scores_are_those_of_sklearn():
    rng = np.random.default_rng(0)
    s, y = rng.normal(size=200).round(1), rng.random(200) < .2
    accuracy, f1, balanced, auc = sp.detection(s, y, .5)
    assert accuracy == pytest.approx(((s > .5) == y).mean()) and f1 == pytest.approx(f1_score(y, s > .5))
    assert balanced == pytest.approx(balanced_accuracy_score(y, s > .5)) and auc == pytest.approx(roc_auc_score(y, s))


def test_count_probes_read_only_the_first_neurons():
    "What stands behind place k in the order cannot matter to the probe of k neurons; a ranking per class is its own."
    x, y = made(600)
    a, b = slice(0, 300), slice(300, 600)
    per_class = np.array([[c, *(j for j in range(12) if j != c)] for c in range(4)])
    good = sp.probe_by_count(per_class, x[a], y[a], x[b], y[b], counts=[1, 12])
    spoiled = x.copy()
    spoiled[:, 4:] = 0
    same = sp.probe_by_count(per_class, spoiled[a], y[a], spoiled[b], y[b], counts=[1])
    np.testing.assert_array_equal(good.auc[0], same.auc[0])
    assert good.auc[0].min() > .75 and (sp.probe_by_count(per_class[:, 5:], x[a], y[a], x[b], y[b]).auc < .65).all()
    assert list(sp.probe_by_count(np.arange(12), x[a], y[a], x[b], y[b]).counts) == [1, 2, 4, 8, 12]
    assert len(good.to_frame()) == 8 and list(good.macro().neurons) == [1, 12]
    absent = sp.probe_by_count(per_class, x[a], y[a], x[b][y[b] > 0], y[b][y[b] > 0], counts=[2])
    assert np.isnan(absent.auc[0, 0]) and np.isnan(absent.f1[0, 0]) and np.isfinite(absent.auc[0, 1:]).all()


def test_names_are_escaped():
    x, y = made(200, 6, 2)
    names = ['<b>', 'x']
    path = sp.elastic_net_path(x, y, points=8, classes=names)
    few = sp.sparsest_probe(path, x, y)
    for result in (path, few, sp.probe_by_count([0, 1], x, y, x, y, classes=names)): assert '<b>' not in result._repr_html_()


def test_step_limit_of_the_path_is_confessed(monkeypatch):
    x, y = made()
    monkeypatch.setitem(pb.solve.__kwdefaults__, 'steps', 2)
    assert not sp.elastic_net_path(x, y, points=3).converged.all()


def test_constant_and_nearly_constant_neurons_do_not_count():
    "Rounding noise is a constant, too."
    x, y = made()
    x[:, 5] = 1e4
    x[:, 6] = np.float32(7)+np.where(y == 0, np.spacing(np.float32(7)), 0)
    assert np.isfinite(sp.probe_by_count(np.arange(12), x, y, x, y).auc).all()


@pytest.mark.parametrize(("call", "says"), [
    (lambda x, y: sp.elastic_net_path(x, y, l1s=[]), "l1s must be a list of one price or more"),
    (lambda x, y: sp.elastic_net_path(x, y, l1s=[.1, -1]), "l1=-1"),
    (lambda x, y: sp.elastic_net_path(x, y, share=1.), "share=1"),
    (lambda x, y: sp.elastic_net_path(x, y, validation=(x[:0], y[:0])), "no validation"),
    (lambda x, y: sp.sparsest_probe(sp.elastic_net_path(x, y, points=2), x[:0], y[:0]), "no test"),
    (lambda x, y: sp.probe_by_count(np.arange(12.), x, y, x, y), "neuron numbers"),
    (lambda x, y: sp.probe_by_count(np.arange(12), x, y, x[:0], y[:0]), "no held-out"),
])
def test_bad_input_is_named(call, says):
    with pytest.raises(InputError, match=says): call(*made())
