"""LEACE against the authors' own package, linear guardedness, and a fresh probe that cannot be fooled."""
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from test_probing import made

from neuronlens.edits.erasure import (
    READERS,
    fresh_scores,
    halves,
    information_left,
    leace,
    mean_projection,
    readability,
    remains,
    unedited,
)
from neuronlens.ground.core import InputError


def planted(N=600, D=12, C=3, seed=0, strength=1.):
    "Correlated activations whose class means differ."
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(5).normal(size=(D, D))
    means = np.random.default_rng(6).normal(size=(C, D))*strength
    y = np.arange(N) % C
    return (rng.normal(size=(N, D))@mix + means[y] + 3).astype(np.float32), y


@pytest.mark.parametrize("concept", [None, 0, 2])
def test_leace_is_that_of_its_authors(concept):
    "The same map as concept-erasure without its shrinkage and trace constraint, one-vs-rest and for all classes."
    from concept_erasure import LeaceEraser
    x, y = planted()
    z = np.eye(3)[y] if concept is None else (y == concept).astype(float)[:, None]
    theirs = LeaceEraser.fit(torch.as_tensor(x, dtype=torch.float64), torch.as_tensor(z), shrinkage=False, constrain_cov_trace=False,
                             svd_tol=1e-6)
    ours = leace(x, y, concept)
    np.testing.assert_allclose(ours.matrix, theirs.P.numpy(), atol=1e-8)
    np.testing.assert_allclose(ours(x), theirs(torch.as_tensor(x, dtype=torch.float64)).numpy(), atol=1e-4)
    assert np.linalg.matrix_rank(ours.matrix) == 12-(2 if concept is None else 1)


def test_leace_moves_least():
    "Among affine maps that make the means equal it is the cheapest: the projection and random oblique ones cost more."
    x, y = planted()
    m = leace(x, y, 1)
    cost = lambda f: ((f(x)-x)**2).sum(1).mean()
    assert cost(m) < cost(mean_projection(x, y, 1))
    rng, d = np.random.default_rng(0), x[y == 1].mean(0)-x[y != 1].mean(0)
    u = (np.eye(12)-m.matrix)
    row = np.linalg.svd(u)[2][0]
    for _ in range(20):
        v = row + .1*rng.normal(size=12)
        other = np.eye(12)-np.outer(d, v)/(v@d)
        f = lambda a, other=other: a@other.T + x.mean(0)@(np.eye(12)-other).T
        np.testing.assert_allclose(f(x)[y == 1].mean(0), f(x)[y != 1].mean(0), atol=1e-4)
        assert cost(f) > cost(m)


@pytest.mark.parametrize("fit", [leace, mean_projection])
def test_linear_probe_is_at_chance(fit):
    "After the map an unpenalised probe has no weights and no better loss than the class rate; means agree, all are kept."
    x, y = planted()
    m = fit(x, y, 1)
    out = m(x).astype(np.float64)
    np.testing.assert_allclose(out[y == 1].mean(0), out[y != 1].mean(0), atol=1e-4)
    np.testing.assert_allclose(out.mean(0), x.mean(0), atol=1e-4)
    np.testing.assert_allclose(m(m(x)), m(x), atol=1e-3)
    p = LogisticRegression(C=1e6, max_iter=5000).fit((out-out.mean(0))/out.std(0), y == 1).predict_proba((out-out.mean(0))/out.std(0))[:, 1]
    assert abs(p-1/3).max() < .01
    before = LogisticRegression(C=1e6, max_iter=5000).fit(x, y == 1).score(x, y == 1)
    assert before > .75


@pytest.mark.parametrize("N", [600, 9])
def test_redundant_activations(N):
    "Constant and repeated neurons, and fewer texts than neurons: finite, means equal, empty directions untouched."
    x, y = planted(N)
    x = np.c_[x, x[:, :2], np.full(N, 7.), x[:, 3]*2].astype(np.float32)
    for concept in (0, None):
        m = leace(x, y, concept)
        out = m(x)
        assert np.isfinite(m.matrix).all() and np.isfinite(out).all()
        np.testing.assert_allclose(out[:, 14], 7, atol=1e-4)
        np.testing.assert_allclose(out[:, :2], out[:, 12:14], atol=1e-3)
        np.testing.assert_allclose(out[y == 0].mean(0), out[y != 0].mean(0), atol=1e-3)


def test_maps_refuse():
    "A class that is not there, a class of one, equal means, activations of another width."
    x, y = planted(30)
    for f in (leace, mean_projection):
        with pytest.raises(InputError, match="concept 9"):
            f(x, y, 9)
        with pytest.raises(InputError, match="not a finite"):
            f(np.where(x == x[0, 0], np.nan, x), y, 0)
    with pytest.raises(InputError, match="needs two"):
        leace(x[:3], [0, 0, 1], 0)
    with pytest.raises(InputError, match="same mean"):
        mean_projection(np.tile([[1., 2.], [3., 4.]], (3, 1)), [0, 0, 1, 1, 2, 2], 0)
    with pytest.raises(InputError, match="12 neurons"):
        leace(x, y, 0)(x[:, :3])
    assert "removes 2 of 12" in repr(leace(x, y, None))


def test_information_left():
    "Read before, gone after the map, still read after an invertible edit and after an edit that only hides part."
    (x, y), (a, z) = planted(900, seed=1), planted(600, seed=2)
    before = information_left(unedited, x, y, a, z, 1, draws=200)
    gone = information_left(leace(x, y, 1), x, y, a, z, 1, draws=200)
    scaled = information_left(lambda v: v*np.float32(.01)-5, x, y, a, z, 1, draws=200)
    assert before.auc > .9 and before.auc_interval[0] <= before.auc <= before.auc_interval[1] and before.information > .3
    assert gone.auc == pytest.approx(.5, abs=.01) and abs(gone.information) < .01 and gone.accuracy == pytest.approx(gone.majority)
    assert scaled.auc == pytest.approx(before.auc, abs=1e-3) and scaled.accuracy == pytest.approx(before.accuracy, abs=.01)
    blank = information_left(lambda v: np.zeros_like(v), x, y, a, z, 1, draws=20)
    assert blank.auc == .5 and blank.information == pytest.approx(0, abs=1e-3)
    null = information_left(unedited, x, np.random.default_rng(0).permutation(y), a, z, 1, draws=200)
    assert null.information < .02 # Its area may be anything: a direction picked by chance tells clusters apart
    rng = np.random.default_rng(0)
    noise = information_left(lambda v: rng.normal(size=v.shape), x, y, a, z, 1, draws=200)
    assert noise.information < .02 and abs(noise.auc-.5) < .08


def test_information_left_takes_another_probe():
    "The probe is a function; what it sees is edited, and the target a bool."
    (x, y), (a, z) = planted(60, seed=1), planted(30, seed=2)
    seen = []
    def probe(train, target, test):
        seen.append((train, target, test))
        return np.where(z == 1, 9., -9.)
    found = information_left(lambda v: v+1, x, y, a, z, 1, probe=probe, draws=10)
    np.testing.assert_array_equal(seen[0][0], x+1)
    np.testing.assert_array_equal(seen[0][2], a+1)
    assert seen[0][1].dtype == bool and (found.auc, found.accuracy) == (1., 1.) and found.information > .99
    with pytest.raises(InputError, match="all of class"):
        information_left(unedited, x, y, a, np.zeros(30, int), 1)
    with pytest.raises(InputError, match="not a finite"):
        information_left(lambda v: v*np.nan, x, y, a, z, 1)


def test_a_probe_that_knows_the_share_alone_has_no_information():
    "Its loss is that of guessing by the share of the concept in training: nothing is left, whatever the share."
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 3)), np.repeat([0, 1, 2], [10, 30, 50])
    def knows(a, own, b): return np.full(len(b), np.log(own.mean()/(1-own.mean())))
    for concept in range(3):
        left = information_left(unedited, x, y, x, y, concept, probe=knows)
        assert left.information == pytest.approx(0, abs=1e-9) and left.auc == pytest.approx(.5)


def test_information_left_against_sklearn_and_after_erasure():
    x, y = made(600)
    a, b = slice(0, 300), slice(300, 600)
    r = information_left(unedited, x[a], y[a], x[b], y[b], 2, classes=['c0', 'c1', 'c2', 'c3'], draws=20)
    m, s = x[a].mean(0), x[a].std(0)
    z = LogisticRegression(C=1, tol=1e-8).fit((x[a]-m)/s, y[a] == 2).decision_function((x[b]-m)/s)
    assert r.auc == pytest.approx(roc_auc_score(y[b] == 2, z), abs=1e-3)
    assert r.accuracy == pytest.approx(((z > 0) == (y[b] == 2)).mean(), abs=.01)
    assert (r.concept, r.n, r.n_train) == ('c2', 300, 300) and r.majority == pytest.approx(.75, abs=.05)
    gone = x.copy()
    gone[:, :4] = 0
    assert abs(information_left(unedited, gone[a], y[a], gone[b], y[b], 2, draws=20).auc-.5) < .12 < r.auc-.5
    assert isinstance(r.to_frame(), pd.DataFrame) and 'c2' in repr(r)


def test_nothing_is_read_from_constant_neurons():
    x, y = made()
    still = np.full_like(x, 3)
    r = information_left(unedited, still, y, still, y, 1, draws=20)
    assert (r.auc, r.accuracy) == (.5, r.majority) and r.information == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("call", "says"), [
    (lambda x, y: information_left(unedited, x, y, x[:, :3], y, 0), "12 neurons in train but 3"),
    (lambda x, y: information_left(unedited, x, y, x, y, 4), "concept 4"),
    (lambda x, y: fresh_scores(x, y == 0, x, 0), "l2=0"),
    (lambda x, y: fresh_scores(x, y == 0, x, np.inf), "l2=inf"),
])
def test_bad_input_is_named(call, says):
    with pytest.raises(InputError, match=says): call(*made())


def test_readability_goes_on():
    "Until 0.4, with a warning: the same probe, at its own price, and NaN where nothing can be compared."
    x, y = made(600)
    a, b = slice(0, 300), slice(300, 600)
    def old(*args, **kw):
        with pytest.warns(DeprecationWarning, match='information_left since 0.3'): return readability(*args, **kw)
    r = old(x[a], y[a], x[b], y[b], 'c2', classes=['c0', 'c1', 'c2', 'c3'])
    new = information_left(unedited, x[a], y[a], x[b], y[b], 2, draws=1, probe=lambda *of: fresh_scores(*of, .01))
    assert (r.accuracy, r.majority, r.auc, r.n, r.n_train) == (new.accuracy, new.majority, new.auc, new.n, new.n_train)
    assert (r.concept, r.n_concept) == ('c2', (y[b] == 2).sum()) and .5 < r.balanced_accuracy <= 1 and len(r.to_frame()) == 1
    assert np.isnan(old(x[a], y[a], x[b][y[b] > 0], y[b][y[b] > 0], 0).auc)
    with pytest.raises(InputError, match='has 0 of'): old(x[a], 3*(y[a] > 1), x[b], y[b], 1)


# --- four readers, and what is kept

FAST = ("linear", "svm")


def test_halves_are_of_every_class():
    y = np.repeat([0, 1, 2], [7, 20, 33])
    a, b = halves(y), halves(y, 1)
    assert [a[y == c].sum() for c in range(3)] == [4, 10, 17] and (a != b).any() and (a == halves(y)).all()


def test_readers_are_read_as_sklearn_reads_them():
    "AUC and balanced accuracy of each reader are those of scikit-learn on the half that it did not learn on."
    x, y = planted(N=300, strength=.6)
    found = remains(dict(none=unedited), x, y, concept=[1], draws=50, seed=2).frame.set_index("measure")
    learn, own = halves(y, 2), y == 1
    a, b = x[learn].astype(float), x[~learn].astype(float)
    mean, sd = a.mean(0), a.std(0)
    for k, reader in READERS.items():
        scores = reader(((a-mean)/sd).astype(np.float32), own[learn], ((b-mean)/sd).astype(np.float32), 2)
        assert found.value[f"auc_{k}"] == pytest.approx(roc_auc_score(own[~learn], scores), abs=.01)
        assert found.value[f"balanced_{k}"] == pytest.approx(balanced_accuracy_score(own[~learn], scores > 0), abs=.01)
        assert found.low[f"auc_{k}"] < found.value[f"auc_{k}"] < found.high[f"auc_{k}"] and abs(found.floor[f"auc_{k}"]-.5) < .2
        assert found.n[f"auc_{k}"] == (~learn).sum()
    assert found.value["auc_linear"] > .7 # What was planted is linear


def test_a_circle_is_seen_by_all_but_the_linear_reader():
    "The class that lies further out has the same mean: only the linear reader is blind. Constant for one class: the same."
    rng = np.random.default_rng(0)
    y = np.arange(600) % 2
    x = (rng.normal(size=(600, 6))*np.where(y, 2.5, 1)[:, None]).astype(np.float32)
    still = np.where((y == 1)[:, None], x[y == 0].mean(0), x).astype(np.float32)
    for data in (x, still):
        found = remains(dict(none=unedited), data, y, concept=[1], draws=20).macro().iloc[0]
        assert found.auc_linear < .65 and min(found[f"auc_{k}"] for k in READERS if k != "linear") > .9
    gone = remains(dict(gone=lambda a: 0*a), x, y, concept=[1], draws=20).macro().iloc[0]
    assert [gone[f"auc_{k}"] for k in READERS] == [.5]*4 and gone.kept_r2 < .05


def test_noise_leaves_nothing_and_the_floor_says_so():
    "Where nothing was there to know, values and floors lie about one half, and their intervals hold it as often as they should."
    rng = np.random.default_rng(0)
    held = []
    for seed in range(12):
        x = rng.normal(size=(240, 10)).astype(np.float32)
        f = remains(dict(none=unedited), x, np.arange(240) % 3, readers=FAST, draws=200, seed=seed, level=.9)
        f = f.only(measure=["auc_linear", "auc_svm"])
        held += list((f.frame.low <= .5) & (f.frame.high >= .5))
        assert (f.frame[["value", "floor"]]-.5).abs().max(axis=None) < .25
    assert np.mean(held) > .75


def test_kept_is_the_share_of_the_variance():
    "As much noise as there is signal keeps half of it, three neurons of twelve a quarter; in another unit it is the same."
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2000, 12)).astype(np.float32), np.arange(2000) % 2
    noise = rng.normal(size=x.shape).astype(np.float32)
    ways = dict(none=unedited, half=lambda a: a+noise, three=lambda a: np.where(np.arange(12) < 3, a, 0), nothing=lambda a: noise,
                units=lambda a: 1000*(a+noise)+5)
    kept = remains(ways, x, y, readers=("linear",), draws=200).only(measure="kept_r2").frame
    value = kept.groupby("edit").value.mean()
    assert abs(value["none"]-1) < .01 and abs(value["half"]-.5) < .05 and abs(value["three"]-.25) < .03 and abs(value["nothing"]) < .04
    assert value["units"] == pytest.approx(value["half"], abs=1e-3) and kept.floor.max() < .02
    assert (kept.low <= kept.value).all() and (kept.value <= kept.high).all()


def test_other_properties_are_asked_of_the_concept_alone():
    "A label that only texts of the concept show is found by its probe before the edit, and not after; a number is cut at its median."
    rng = np.random.default_rng(0)
    y, style, length = np.arange(1200) % 2, rng.integers(3, size=1200), rng.normal(size=1200)
    x = rng.normal(size=(1200, 8)).astype(np.float32)
    x[:, 0] += 6*style*(y == 1)
    x[:, 1] += 3*length
    ways = dict(none=unedited, first=lambda a: np.where(np.arange(8) == 0, 0, a))
    names = np.array(["plain", "odd", "new"])[style]
    f = remains(ways, x, y, readers=("linear",), others=dict(style=names, length=length), draws=100).per_class()
    f = f.set_index(["edit", "concept"])
    assert f.kept_style["none", "1"] > .9 and f.kept_style["none", "0"] < .5 and f.kept_style["first", "1"] < .5
    assert f.kept_length.min() > .8


def test_what_remains_is_repeatable_and_has_rows_for_everything():
    x, y = planted(N=120, strength=.5)
    ways = dict(none=unedited, leace=[leace(x, y, c) for c in range(3)])
    a, b = (remains(ways, x, y, readers=FAST, others=dict(k=y % 2), classes=list("abc"), draws=30, seed=4) for _ in range(2))
    pd.testing.assert_frame_equal(a.frame, b.frame)
    assert len(a.frame) == 2*3*(2*2+2) and list(a.per_class().columns[:2]) == ["edit", "concept"] and len(a.macro()) == 2
    assert a.macro().set_index("edit").auc_linear["leace"] < a.macro().set_index("edit").auc_linear["none"]
    assert repr(a) == "Remains(2 edits, 3 concepts, n=60)" and "means over concepts" in a._repr_html_()
    with pytest.raises(InputError, match="4 of 8 texts|each half needs two"): remains(ways, x[:8], y[:8] % 2 * 0 + (np.arange(8) < 3))
    with pytest.raises(InputError, match="level=2 must lie between 0 and 1"): remains(ways, x, y, level=2)
    with pytest.raises(InputError, match="bad, for concept 'a': neuron 0 is nan in row 0"):
        remains(dict(bad=lambda v: v*np.nan), x, y, classes=list("abc"))
