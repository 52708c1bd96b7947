"""Probes against scikit-learn, controls against what they must and must not find, paths, counts, and bad input."""
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from neuronlens import probing as pb
from neuronlens.core import InputError


def made(n=400, D=12, C=4, seed=0, shift=1.5, shared=0.):
    "acts [n, D] with one neuron a class raised, all neurons sharing noise; labels [n]."
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % C)
    x = rng.normal(size=(n, D))+shared*rng.normal(size=(n, 1))
    x[:, :C] += shift*np.eye(C)[y]
    return x.astype(np.float32), y


def standard(x): return ((x-x.mean(0, dtype=float))/x.std(0, dtype=float)).astype(np.float32)


@pytest.mark.parametrize("C", [2, 4])
@pytest.mark.parametrize(("l1", "l2"), [(.001, .001), (.02, .01), (.05, 0.)])
@pytest.mark.parametrize("shared", [0., 3.])
def test_objective_is_that_of_saga(C, l1, l2, shared):
    "Both solvers come at least as low as scikit-learn's multinomial elastic net, also where neurons are correlated."
    x, y = made(300, 10, C, shared=shared)
    x = standard(x)
    ridge = l2/2 if C == 2 else l2 # Two classes have one weight vector there; halved to both sides it costs half the squares
    other = LogisticRegression(C=1/(300*(l1+ridge)), l1_ratio=l1/(l1+ridge), solver='saga', tol=1e-6, max_iter=5000,
                               random_state=0).fit(x, y)
    coef, bias = (np.stack([-w/2, w/2]) for w in (other.coef_[0], other.intercept_[0])) if C == 2 else (other.coef_, other.intercept_)
    theirs = pb._price(np.c_[coef, bias], x, y, l1, l2)
    assert pb._price(pb.elastic_net(x, y, C, l1, l2), x, y, l1, l2) <= theirs+1e-5
    w, done = pb.descend(x, y[None], C, l1, l2, tol=1e-4)
    assert done.all() and pb._price(w[0], x, y, l1, l2) <= theirs+1e-4


def test_balance_at_the_solution():
    "Slopes are the price where there is weight and below it where there is none: the definition of the minimum."
    x, y = made(shared=2.)
    x = standard(x)
    w, done = pb.solve(x, y, 4, .01, .003)
    z = x.astype(float)@w[:, :-1].T+w[:, -1]
    p = np.exp(z-z.max(1, keepdims=True))
    gap = p/p.sum(1, keepdims=True)-np.eye(4)[y]
    slope = gap.T@x/len(x)+.003*w[:, :-1]
    used = w[:, :-1] != 0
    assert done and 4 <= used.sum() < 48
    np.testing.assert_allclose(slope[used], -.01*np.sign(w[:, :-1][used]), atol=5e-5)
    assert (abs(slope[~used]) <= .01+5e-5).all() and abs(gap.mean(0)).max() < 5e-5


def test_neurons_missed_at_first_are_found():
    "More than the first 32 neurons get weight: the working set grows until none is missed."
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 500)
    x = standard(rng.normal(size=(500, 90))+.5*y[:, None])
    w = pb.elastic_net(x, y, 2, .004, .01)
    assert (w[:, :-1] != 0).any(0).sum() > 64
    slow, _ = pb.descend(x, y[None], 2, .004, .01, tol=1e-5, steps=20000)
    np.testing.assert_allclose(w, slow[0], atol=2e-3)


def test_label_sets_do_not_touch_each_other():
    "A set ends the same alone, among others, and in any order."
    x, y = made()
    x, rng = standard(x), np.random.default_rng(1)
    sets = np.stack([y, rng.permutation(y), rng.permutation(y)])
    together = pb.descend(x, sets, 4, .01, .01, tol=1e-5)[0]
    np.testing.assert_allclose(pb.descend(x, sets[::-1], 4, .01, .01, tol=1e-5)[0][::-1], together, atol=1e-4)
    for labels, w in zip(sets, together, strict=True):
        np.testing.assert_allclose(pb.descend(x, labels[None], 4, .01, .01, tol=1e-5)[0][0], w, atol=1e-4)


def test_curvature_of_many_neurons():
    "Lanczos, for wide sites, is an upper bound within a percent of the exact value."
    x = standard(np.random.default_rng(0).normal(size=(300, 600))+np.random.default_rng(1).normal(size=(300, 1)))
    exact = .5*np.linalg.norm(np.c_[x, np.ones(300)], 2)**2/300
    assert exact <= pb.curvature(x) <= 1.01*exact


def test_step_limit_is_confessed(monkeypatch):
    x, y = made()
    assert pb.fit_probe(x, y).converged and 'limit' not in repr(pb.fit_probe(x, y))
    monkeypatch.setitem(pb.solve.__kwdefaults__, 'steps', 2)
    stopped = pb.fit_probe(x, y)
    assert not stopped.converged and 'stopped at its step limit' in repr(stopped)
    assert not pb.elastic_net_path(x, y, points=3).converged.all()
    assert not pb.probe_layers({'a': x}, y, {'a': x}, y, progress=False).converged[0]


def test_constant_and_nearly_constant_neurons():
    "No weight, no warning, whatever the constant; rounding noise is a constant, too."
    x, y = made()
    x[:, 5] = 1e4
    x[:, 6] = np.float32(7)+np.where(y == 0, np.spacing(np.float32(7)), 0)
    p = pb.fit_probe(x, y)
    assert (p.weights[:, 5:7] == 0).all() and (p.scale[5:7] == 1).all() and np.isfinite(p.scores(x)).all()
    assert np.isfinite(pb.probe_by_count(np.arange(12), x, y, x, y).auc).all()
    still = np.full_like(x, 3)
    r = pb.readability(still, y, still, y, 1)
    assert (r.auc, r.balanced_accuracy, r.accuracy) == (.5, .5, r.majority)


def test_selectivity_of_nothing_and_of_memory():
    "Real labels beat the shuffled control; types that a site shows are remembered, and unknown types are left out."
    x, y = made(800)
    types = np.random.default_rng(2).integers(0, 6, 800)
    x = np.hstack([x, 6*np.eye(6)[types]]).astype(np.float32)
    types = np.array([f"t{t}" for t in types], object)
    types[700:] = [f"new{i}" for i in range(100)]
    a, b = slice(0, 400), slice(400, 800)
    plain = pb.probe_layers({'s': x[a]}, y[a], {'s': x[b]}, y[b], shuffles=8, progress=False)
    known = pb.probe_layers({'s': x[a]}, y[a], {'s': x[b]}, y[b], shuffles=8, control='type', types=(types[a], types[b]),
                            progress=False)
    assert abs(plain.control[0]-.25) < .06 and plain.selectivity[0] > .3 and plain.n_control == 400
    assert known.control[0] > .95 and known.n_control == 300 and known.control_majority < .6
    assert known.accuracy == plain.accuracy and 'known type' in known._repr_html_()
    assert list(plain.to_frame()) == ['site', 'accuracy', 'control', 'majority', 'selectivity', 'low', 'high']


def test_control_task_shares_types_out():
    "Classes get types in proportion to their examples; order and multiplicity of types do not matter; the seed does."
    labels = np.repeat([0, 1], [750, 250])
    task = pb.control_task([f"w{i % 100}" for i in range(1000)], labels, 2, seed=3)
    assert sum(task.values()) == 25
    assert task == pb.control_task([f"w{i % 100}" for i in reversed(range(1000))], labels[::-1], 2, seed=3)
    assert task != pb.control_task([f"w{i % 100}" for i in range(1000)], labels, 2, seed=4)


def test_bootstrap_interval_covers():
    "The 95 % interval holds the true accuracy in about 95 of 100 samples, and pairing narrows differences."
    rng = np.random.default_rng(0)
    held = 0
    for i in range(200):
        low, high = np.quantile(pb.accuracy_draws(rng.random((1, 300)) < .8, draws=500, seed=i), [.025, .975])
        held += low <= .8 <= high
    assert 180 <= held <= 198
    one = rng.random(400) < .8
    drawn = pb.accuracy_draws(np.stack([one, one ^ (np.arange(400) < 8)]))
    assert np.diff(drawn).std() < .5*drawn[:, 0].std()
    assert np.array_equal(drawn, pb.accuracy_draws(np.stack([one, one ^ (np.arange(400) < 8)])))


def test_differences_by_hand():
    right = np.array([[1]*8+[0]*2, [1]*2+[0]*6+[1]*1+[0]*1], bool)
    acc = right.mean(1)
    p = pb.LayerProbes(('a', 'b'), acc, acc, .5, 9, 10, ('x', 'y'), 0, right=right)
    row = p.differences().iloc[0]
    assert (row.site, row.against) == ('b', 'a') and row.difference == pytest.approx(-.5)
    assert row.p == pytest.approx(2*(1+7)/2**7) # six lost, one won
    assert row.low < -.5 < row.high
    with pytest.raises(InputError, match="do not know"):
        pb.LayerProbes(('a',), acc[:1], acc[:1], .5, 9, 10, ('x', 'y'), 0).differences()


def test_path_starts_at_silence_and_agrees_with_single_fits():
    x, y = made(shared=1.)
    path = pb.elastic_net_path(x, y, validation=(x, y), points=8)
    assert path.neurons[0] == 0 and path.converged.all() and (np.diff(path.l1) < 0).all()
    top = pb.silencing_l1(standard(x), y, 4)
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
    kept, aside = pb.set_aside(y, tuple('abcd'), seed=1)
    assert not set(kept) & set(aside) and len(kept)+len(aside) == 400 and (np.bincount(y[aside]) == 25).all()
    assert not np.array_equal(aside, pb.set_aside(y, tuple('abcd'), seed=2)[1])
    path = pb.elastic_net_path(x, y, points=5, seed=1)
    same = pb.elastic_net_path(x[kept], y[kept], validation=(x[aside], y[aside]), points=5)
    np.testing.assert_array_equal(path.weights, same.weights)
    np.testing.assert_array_equal(path.accuracy, same.accuracy)


def test_class_without_validation_examples():
    x, y = made()
    path = pb.elastic_net_path(x, y, validation=(x[y > 0], y[y > 0]), points=4)
    assert np.isnan(path.recall[:, 0]).all() and np.isfinite(path.accuracy).all()


def test_sparsest_probe_chooses_on_validation_only():
    "Test labels do not move the choice; the choice is the fewest neurons that reach the target."
    x, y = made(800, 30)
    path = pb.elastic_net_path(x[:400], y[:400])
    a, b = (pb.sparsest_probe(path, x[400:], labels) for labels in (y[400:], np.roll(y[400:], 7)))
    assert a.probe.l1 == b.probe.l1 and a.test_accuracy > b.test_accuracy
    good = path.accuracy >= a.target-1e-12
    assert len(a.neurons) == path.neurons[good].min() and a.validation_accuracy >= a.target
    assert set(a.neurons) == {0, 1, 2, 3}
    assert len(a.to_frame()) == (a.probe.weights != 0).sum() and '<table' in a._repr_html_()
    with pytest.raises(InputError, match=r"no probe on this path reaches accuracy 0\.999: the best has 0\.\d+, with \d+ neurons"):
        pb.sparsest_probe(path, x[400:], y[400:], accuracy=.999)


@pytest.mark.parametrize("balanced", [False, True])
def test_logistic_is_that_of_sklearn(balanced):
    x, y = made()
    x, y = standard(x), y == 1
    other = LogisticRegression(C=1/(len(x)*.01), class_weight='balanced' if balanced else None, tol=1e-8).fit(x, y)
    np.testing.assert_allclose(pb.logistic(x, y, .01, balanced=balanced), np.r_[other.coef_[0], other.intercept_], atol=3e-3)


def test_scores_are_those_of_sklearn():
    rng = np.random.default_rng(0)
    s, y = rng.normal(size=200).round(1), rng.random(200) < .2
    accuracy, f1, balanced, auc = pb._sides(s, y, .5)
    assert accuracy == pytest.approx(((s > .5) == y).mean()) and f1 == pytest.approx(f1_score(y, s > .5))
    assert balanced == pytest.approx(balanced_accuracy_score(y, s > .5)) and auc == pytest.approx(roc_auc_score(y, s))
    assert np.isnan(pb.area_under_curve(s, np.ones(200, bool)))


def test_count_probes_read_only_the_first_neurons():
    "What stands behind place k in the order cannot matter to the probe of k neurons; a ranking per class is its own."
    x, y = made(600)
    a, b = slice(0, 300), slice(300, 600)
    per_class = np.array([[c, *(j for j in range(12) if j != c)] for c in range(4)])
    good = pb.probe_by_count(per_class, x[a], y[a], x[b], y[b], counts=[1, 12])
    spoiled = x.copy()
    spoiled[:, 4:] = 0
    same = pb.probe_by_count(per_class, spoiled[a], y[a], spoiled[b], y[b], counts=[1])
    np.testing.assert_array_equal(good.auc[0], same.auc[0])
    assert good.auc[0].min() > .75 and (pb.probe_by_count(per_class[:, 5:], x[a], y[a], x[b], y[b]).auc < .65).all()
    assert list(pb.probe_by_count(np.arange(12), x[a], y[a], x[b], y[b]).counts) == [1, 2, 4, 8, 12]
    assert len(good.to_frame()) == 8 and list(good.macro().neurons) == [1, 12]
    absent = pb.probe_by_count(per_class, x[a], y[a], x[b][y[b] > 0], y[b][y[b] > 0], counts=[2])
    assert np.isnan(absent.auc[0, 0]) and np.isnan(absent.f1[0, 0]) and np.isfinite(absent.auc[0, 1:]).all()


def test_readability_against_sklearn_and_after_erasure():
    x, y = made(600)
    a, b = slice(0, 300), slice(300, 600)
    r = pb.readability(x[a], y[a], x[b], y[b], 'c2', classes=['c0', 'c1', 'c2', 'c3'])
    m, s = x[a].mean(0), x[a].std(0)
    other = LogisticRegression(C=1/(300*.01), tol=1e-8).fit((x[a]-m)/s, y[a] == 2)
    z = other.decision_function((x[b]-m)/s)
    assert r.auc == pytest.approx(roc_auc_score(y[b] == 2, z), abs=1e-3)
    assert r.accuracy == pytest.approx(((z > 0) == (y[b] == 2)).mean(), abs=.01)
    assert (r.concept, r.n, r.n_concept, r.n_train) == ('c2', 300, (y[b] == 2).sum(), 300) and r.majority == pytest.approx(.75, abs=.05)
    gone = x.copy()
    gone[:, :4] = 0
    assert abs(pb.readability(gone[a], y[a], gone[b], y[b], 2).auc-.5) < .12 < r.auc-.5
    assert isinstance(r.to_frame(), pd.DataFrame) and 'c2' in repr(r)


@pytest.mark.parametrize(("call", "says"), [
    (lambda x, y: pb.fit_probe(x[:3], y[:3]*0+[0, 1, 2]), "has 1 example"),
    (lambda x, y: pb.fit_probe(x, y, l1=np.nan), "l1=nan"),
    (lambda x, y: pb.elastic_net_path(x, y, l1s=[]), "l1s must be a list of one price or more"),
    (lambda x, y: pb.elastic_net_path(x, y, l1s=[.1, -1]), "l1=-1"),
    (lambda x, y: pb.elastic_net_path(x, y, share=1.), "share=1"),
    (lambda x, y: pb.elastic_net_path(x, y, validation=(x[:0], y[:0])), "no validation"),
    (lambda x, y: pb.sparsest_probe(pb.elastic_net_path(x, y, points=2), x[:0], y[:0]), "no test"),
    (lambda x, y: pb.probe_by_count(np.arange(12.), x, y, x, y), "neuron numbers"),
    (lambda x, y: pb.probe_by_count(np.arange(12), x, y, x[:0], y[:0]), "no held-out"),
    (lambda x, y: pb.readability(x, y, x[:, :3], y, 0), "12 neurons in train but 3"),
    (lambda x, y: pb.readability(x, y, x, y, 4), "no class 4"),
    (lambda x, y: pb.readability(x, y, x, y, 0, l2=0), "l2=0"),
    (lambda x, y: pb.probe_layers({'a': x}, y, {'a': x}, y, control='type', progress=False), "needs types="),
    (lambda x, y: pb.probe_layers({'a': x}, y, {'a': x}, y, control='x', progress=False), "none of 'shuffled'"),
    (lambda x, y: pb.probe_layers({'a': x}, y, {'a': x}, y, control='type', types=(y, y[:9]), progress=False), "9 types"),
])
def test_bad_input_is_named(call, says):
    with pytest.raises(InputError, match=says): call(*made())


def test_names_are_escaped():
    x, y = made(200, 6, 2)
    names = ['<b>', 'x']
    path = pb.elastic_net_path(x, y, points=8, classes=names)
    few = pb.sparsest_probe(path, x, y)
    for result in (path, few, pb.probe_by_count([0, 1], x, y, x, y, classes=names)): assert '<b>' not in result._repr_html_()


def test_unseen_of_one_text_and_of_none():
    "1 - .025 ** (1/n), where none counts as one."
    np.testing.assert_allclose(pb.unseen([0, 1, 2]), [.975, .975, 1-.025**.5])


def test_readability_at_the_edge_of_what_is_taken():
    "Two examples on either side are enough, one is not; a price of 0 or without end, and a class that is none, are refused."
    x, y = made(40)
    two = np.r_[np.flatnonzero(y == 1)[:2], np.flatnonzero(y == 0)]
    classes = ['c0', 'c1', 'c2', 'c3']
    assert pb.readability(x[two], y[two], x, y, 1, classes=classes).n_train == len(two)
    with pytest.raises(InputError, match="'c1' has 1 of"): pb.readability(x[two[1:]], y[two[1:]], x, y, 1, classes=classes)
    for l2 in (0, np.inf):
        with pytest.raises(InputError, match='l2='): pb.readability(x, y, x, y, 1, l2=l2, classes=classes)
    for none in (4, -1, 'c4'):
        with pytest.raises(InputError, match='no class'): pb.readability(x, y, x, y, none, classes=classes)
