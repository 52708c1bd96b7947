"""Probes against scikit-learn, controls against what they must and must not find, paths, counts, and bad input."""
import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from neuronlens import probing as pb
from neuronlens.ground.core import InputError


def made(n=400, D=12, C=4, seed=0, shift=1.5, shared=0.):
    "acts [n, D] with one neuron a class raised, all neurons sharing noise; labels [n]."
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % C)
    x = rng.normal(size=(n, D))+shared*rng.normal(size=(n, 1))
    x[:, :C] += shift*np.eye(C)[y]
    return x.astype(np.float32), y


def standard(x): return ((x-x.mean(0, dtype=float))/x.std(0, dtype=float)).astype(np.float32)


def price(w, x, y, l1, l2):
    "The elastic-net objective of weights `w [C, D+1]`, nats per example."
    z = log_softmax(x.astype(float)@w[:, :-1].T+w[:, -1], axis=1)
    return -z[np.arange(len(x)), y].mean() + l1*abs(w[:, :-1]).sum() + l2/2*(w[:, :-1]**2).sum()


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
    theirs = price(np.c_[coef, bias], x, y, l1, l2)
    assert price(pb.solve(x, y, C, l1, l2)[0], x, y, l1, l2) <= theirs+1e-5
    w, done = pb.descend(x, y[None], C, l1, l2, tol=1e-4)
    assert done.all() and price(w[0], x, y, l1, l2) <= theirs+1e-4


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
    w, _ = pb.solve(x, y, 2, .004, .01)
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
    assert not pb.probe_layers({'a': x}, y, {'a': x}, y, progress=False).converged[0]


def test_constant_and_nearly_constant_neurons():
    "No weight, no warning, whatever the constant; rounding noise is a constant, too."
    x, y = made()
    x[:, 5] = 1e4
    x[:, 6] = np.float32(7)+np.where(y == 0, np.spacing(np.float32(7)), 0)
    p = pb.fit_probe(x, y)
    assert (p.weights[:, 5:7] == 0).all() and (p.scale[5:7] == 1).all() and np.isfinite(p.scores(x)).all()


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



@pytest.mark.parametrize(("call", "says"), [
    (lambda x, y: pb.fit_probe(x[:3], y[:3]*0+[0, 1, 2]), "has 1 example"),
    (lambda x, y: pb.fit_probe(x, y, l1=np.nan), "l1=nan"),
    (lambda x, y: pb.probe_layers({'a': x}, y, {'a': x}, y, control='type', progress=False), "needs types="),
    (lambda x, y: pb.probe_layers({'a': x}, y, {'a': x}, y, control='x', progress=False), "none of 'shuffled'"),
    (lambda x, y: pb.probe_layers({'a': x}, y, {'a': x}, y, control='type', types=(y, y[:9]), progress=False), "9 types"),
])
def test_bad_input_is_named(call, says):
    with pytest.raises(InputError, match=says): call(*made())
