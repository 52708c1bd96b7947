"""Intervals cover, null hypotheses survive, planted effects do not, and the trade-off is what its definition says."""
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, kstest

from neuronlens import evidence, machine
from neuronlens.arrays.ranges import Ranges
from neuronlens.arrays.testing import (
    draw_texts,
    holm,
    unseen,
)
from neuronlens.edits.effects import COLUMNS, Changes, Effects, changes_of, disturbance, measure_effects
from neuronlens.edits.evidence import (
    RESAMPLED,
    SHARES,
    collateral,
    compare,
    counted,
    intervals,
    over_seeds,
    random_ranges,
    resampled,
    shuffled_labels,
)
from neuronlens.ground.core import InputError
from neuronlens.ground.setting import Setting, setting_keys

CLASSES = ("a", "b", "c")


def iv(concept, condition="range", fraction=.5, kind="gaussian(2.5)", ranking="dprime", edit="mean"):
    return Setting(concept, condition, "residual.5", ranking, fraction, kind, edit=edit)


def softmax(z):
    e = np.exp(z)
    return (e/e.sum(-1, keepdims=True)).astype(np.float32)


def outcome(N=90, shift=None, harm=None, seed=0, fractions=(.5,), noise=.3):
    "Two conditions that push target texts from their class by `shift`, and auxiliary ones by `harm`, each with its own noise."
    shift = shift or dict(full=2., range=2.)
    harm = harm or dict.fromkeys(shift, 0.)
    rng = np.random.default_rng(seed)
    y = np.arange(N) % 3
    z = rng.normal(size=(N, 3)) + 2*np.eye(3)[y]
    ivs, after = [], []
    for f in fractions:
        for k in shift:
            for c in range(3):
                kind = "full" if k == "full" else "gaussian(2.5)"
                ivs.append(iv(c, k, f, kind))
                push = np.where(y == c, shift[k], harm[k])*f*2
                after.append(softmax(z - push[:, None]*np.eye(3)[y] + noise*rng.normal(size=z.shape)))
    return SimpleNamespace(interventions=ivs, labels=y, classes=CLASSES, before=softmax(z), after=np.stack(after),
                           fires=rng.random((len(ivs), N)).astype(np.float32))


def test_intervals_follow_effects():
    "Same rows, same values, ends around them, and both ends from a loop over the same draws."
    o = outcome()
    e, found = measure_effects(o), intervals(o, draws=200)
    for m in RESAMPLED:
        rows = found.only(measure=m).frame
        np.testing.assert_allclose(rows.value[:len(e.frame)], e.frame[m], atol=1e-6)
        assert (rows.low <= rows.value+1e-6).all() and (rows.value <= rows.high+1e-6).all()
    macro = found.only(concept="macro", measure="disturbance").frame
    np.testing.assert_allclose(macro.value, e.macro().disturbance, atol=1e-6)
    assert set(found.only(measure="target_accuracy").frame.n) == {30, 90}
    again = intervals(o, draws=200)
    pd.testing.assert_frame_equal(found.frame, again.frame)
    assert not intervals(o, draws=200, seed=1).frame.low.equals(found.frame.low)


def former_per_text(o):
    y, N, C = o.labels, len(o.labels), len(o.classes)
    values = []
    for p, fires in [*zip(o.after, o.fires, strict=True), (o.before, np.zeros(N))]:
        right = p.argmax(-1) == y
        values.append((right, p[np.arange(N), y], fires, disturbance(o.before, p), ~right))
    right, gold, fires, moved, wrong = (np.array(v, np.float32) for v in zip(*values, strict=True))
    own = dict(zip(RESAMPLED, (right, gold, fires, right, gold, fires, moved, wrong), strict=True))
    return {m: np.concatenate([x[:-1], np.repeat(x[-1:], C, 0)]) for m, x in own.items()}


def former_intervals(o, draws, seed, level):
    "value, low and high of every measure, rows before averages, by whole arrays and a product with a matrix of ones."
    frame, source, own = evidence._sources(o)
    w, rows, groups = draw_texts(o.labels, draws, seed), counted(o), frame.groupby(setting_keys(frame), sort=False).ngroup().to_numpy()
    one = np.eye(groups.max()+1)[groups]
    def ends(x): return np.nanquantile(x, [(1-level)/2, (1+level)/2], axis=0)
    def average(x):
        with np.errstate(invalid="ignore"): return np.nan_to_num(x)@one/(~np.isnan(x)@one)
    for m, x in former_per_text(o).items():
        once, drawn = (resampled(x, rows[m], own, v)[:, source] for v in (np.ones((1, len(o.labels))), w))
        yield m, False, once[0], *ends(drawn), rows[m].sum(1)[own[source]]
        union = np.array([rows[m][own[source[groups == g]]].any(0).sum() for g in range(groups.max()+1)])
        yield m, True, average(once)[0], *ends(average(drawn)), union


@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_intervals_as_before():
    "The numbers of the former way, whole arrays at once, also where a class is hardly ever right and draws are NaN."
    o = outcome(60, fractions=(.2, .5, 1.), shift=dict(full=3., range=1.))
    o.before[o.labels == 1] = [[.9, .05, .05]]
    o.before[1] = [.1, .8, .1] # The only text of its class that was right: not among all draws
    for kind in (o, changes_of(o)):
        df = intervals(kind, draws=50, seed=3, level=.9, progress=False).frame
        for m, macro, value, low, high, n in former_intervals(o, 50, 3, .9):
            own = df[(df.measure == m) & ((df.concept == "macro") == macro)]
            inner = ((value > 0) & (value < 1)) if m in SHARES else np.ones(len(value), bool) # Else the interval is the exact one
            assert inner.sum() > len(value)/4
            np.testing.assert_array_equal(own.n, n)
            for a, b in ((own.value, value), (own.low, low), (own.high, high)):
                np.testing.assert_allclose(a[inner], b[inner], rtol=1e-14, atol=1e-15)
    pd.testing.assert_frame_equal(measure_effects(o).frame, measure_effects(changes_of(o)).frame)
    both = (compare(x, "full", "range", flips=99, draws=50).frame for x in (o, changes_of(o)))
    pd.testing.assert_frame_equal(*both)


def many(C=300, N=300, I=300, seed=0):
    "`Changes` of many classes."
    rng = np.random.default_rng(seed)
    ivs = [iv(i % C, kind=f"gaussian({1+i//C})") for i in range(I)]
    return Changes(ivs, np.arange(N) % C, tuple(f"c{i}" for i in range(C)), rng.dirichlet(np.ones(C), N).astype(np.float32),
                   rng.random((I, N)) < .5, rng.random((I, N), np.float32), rng.random((I, N)), rng.random((I, N), np.float32))


def test_effects_of_many_classes_need_no_answers():
    "Of 300 classes, interventions and texts: the answers alone are 108 MB, in float64 216."
    o = many()
    tracemalloc.start()
    measure_effects(o)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 25e6


def test_averages_cost_what_is_averaged(monkeypatch):
    "Numbers touched by the averages of an interval grow as rows, not as rows times settings."
    touched = {}
    for I in (300, 3000):
        real = np.nan_to_num
        monkeypatch.setattr(np, "nan_to_num", lambda x, I=I, real=real: (touched.__setitem__(I, touched.get(I, 0)+x.size), real(x))[1])
        intervals(many(3, 30, I), draws=10, progress=False)
        monkeypatch.undo()
    assert 0 < touched[3000] <= 10.5*touched[300]


def test_intervals_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr(machine, "free_memory", lambda: 10**5)
    with pytest.raises(InputError, match=r"^intervals of 6 interventions on 90 texts would take .*, 100.0 kB is free; take fewer"):
        intervals(outcome(), progress=False)


def test_intervals_cover():
    "The true macro confidence lies in the 95 % interval in about 95 of 100 samples."
    truth = intervals(outcome(N=60000, seed=99), draws=2).only(concept="macro", measure="target_confidence", condition="range")
    t = truth.frame.value.iloc[0]
    hits = 0
    for s in range(120):
        f = intervals(outcome(N=150, seed=s), draws=200, seed=s).only(concept="macro", measure="target_confidence", condition="range").frame
        hits += f.low.iloc[0] <= t <= f.high.iloc[0]
    assert .87 <= hits/120 <= .995


def test_interval_without_width():
    "0 of n has the exact upper end; a macro 0 that of its smallest class over C, or of all texts where classes share them."
    o = outcome(shift=dict(full=99.), harm=dict(full=0.), noise=0.)
    f = intervals(o, draws=50).only(condition="full", measure=["target_accuracy", "auxiliary_accuracy"]).frame
    zero = f[(f.measure == "target_accuracy") & (f.concept != "macro")]
    np.testing.assert_allclose(zero.high, binomtest(0, 30).proportion_ci().high)
    assert (zero.value == 0).all() and (zero.low == 0).all()
    macro = f[(f.measure == "target_accuracy") & (f.concept == "macro")]
    np.testing.assert_allclose(macro.high, unseen(30)/3)
    broken = intervals(o, draws=50).only(condition="full", measure="broken").frame
    assert (broken.value == 0).all() and (broken.high > 0).all()
    macro = broken[broken.concept == "macro"]
    np.testing.assert_allclose(macro.high, unseen(macro.n)) # Two of three classes share every text, and may break together
    assert (macro.n > broken[broken.concept != "macro"].n.max()).all()
    twice = outcome(shift=dict(full=99., range=99.), harm=dict(full=0., range=0.), noise=0.)
    c = compare(twice, "full", "range", on=["concept"], draws=50, flips=9).frame
    shares = c[c.measure.isin(["target_accuracy", "broken"])]
    own = shares[shares.concept != "macro"]
    np.testing.assert_allclose(own[["low", "high"]], np.c_[-unseen(own.n), unseen(own.n)]) # The same answers: no text differs
    macro = shares[shares.concept == "macro"].set_index("measure")
    np.testing.assert_allclose(macro.high, [unseen(30)/3, unseen(macro.n["broken"])])
    np.testing.assert_allclose(macro.low, -macro.high)
    assert (c[c.measure == "disturbance"].high == 0).all() # A mean of what did not move is no share
    with pytest.raises(InputError, match="level"):
        intervals(o, draws=5, level=95)
    with pytest.raises(InputError, match="draws"):
        intervals(o, draws=0)


def test_null_is_not_found():
    "Two conditions that differ by noise alone: p-values are uniform, or for the discrete McNemar at least not too small."
    p = {m: [] for m in ("disturbance", "target_confidence", "target_accuracy")}
    for s in range(60):
        f = compare(outcome(seed=s), "range", "full", measures=list(p), draws=2, flips=199, seed=s).frame
        for m in p:
            p[m] += f[(f.measure == m) & (f.concept == "a")].p.tolist()
    for m in ("disturbance", "target_confidence"):
        assert kstest(p[m], "uniform").pvalue > .001, m
    assert np.mean(np.array(p["target_accuracy"]) <= .05) <= .1
    same = outcome(shift=dict(range=2., full=2.), noise=0.)
    f = compare(same, "range", "full", draws=20, flips=99).frame
    assert (f.p == 1).all() and (f.difference == 0).all() and (f.low <= 0).all() and (f.high >= 0).all()


def test_planted_difference_is_found():
    "The condition that harms auxiliary texts more disturbs them more, in every class and on average; the sign is right."
    o = outcome(N=300, shift=dict(full=3., range=3.), harm=dict(full=1., range=0.), fractions=(.5, 1.))
    f = compare(o, "range", "full", draws=300, flips=999).frame
    d = f[f.measure == "disturbance"]
    assert len(d) == 2*(3+1) and (d.p_adjusted <= .01).all() and (d.high < 0).all()
    np.testing.assert_allclose(d.difference, d.a-d.b)
    assert (f[f.measure == "auxiliary_confidence"].low > 0).all()
    e = measure_effects(o).frame
    want = e[(e.condition == "range") & (e.fraction == 1.) & (e.concept == "b")].disturbance.iloc[0]
    np.testing.assert_allclose(d[(d.fraction == 1.) & (d.concept == "b")].a, want, atol=1e-6)
    pairs = f[(f.measure == "target_accuracy") & (f.concept != "macro") & (f.fraction == .5)]
    np.testing.assert_allclose(pairs.p_adjusted, holm(pairs.p))


def test_pairs():
    "Full, base and dictionaries find their partners; what is ambiguous or missing is refused."
    o = outcome(fractions=(.5, 1.))
    assert len(compare(o, "full", "base", draws=2, flips=9, measures=["disturbance"]).frame) == 8
    assert len(compare(o, dict(condition="range", fraction=.5), "full", draws=2, flips=9, measures=["broken"]).frame) == 4
    one = compare(o, "range", dict(condition="full", fraction=1.), draws=2, flips=9, measures=["broken"], on=["ranking"])
    assert len(one.frame) == 8
    with pytest.raises(InputError, match="several rows"):
        compare(o, "range", "full", on=["ranking"])
    with pytest.raises(InputError, match="no row"):
        compare(o, "range", "leace")
    for on in (5, "ranking"):
        with pytest.raises(InputError, match=f"on={on!r} is no list of columns"):
            compare(o, "range", "full", on=on)


def effects(rows, base=.9, concepts=CLASSES):
    "Effects with given (condition, fraction, target accuracy, disturbance), the same for every concept."
    nothing = dict(ranking="dprime", edit="mean", site="residual.5", vote=0., scope="position", fitted_at="readout", positions="all",
                   covers="range", preset="", seed=0, n_target=10, n_auxiliary=20, fires_on_target=0.,
                   fires_on_auxiliary=0., target_confidence=.5, auxiliary_confidence=.8, broken=0.)
    out = []
    for c in concepts:
        out.append(dict(nothing, concept=c, condition="base", fraction=.5, range="none", target_accuracy=base,
                        auxiliary_accuracy=.9, disturbance=0.))
        out += [dict(nothing, concept=c, condition=k, fraction=f, range=k, target_accuracy=t, auxiliary_accuracy=.9-d, disturbance=d)
                for k, f, t, d in rows]
    return Effects(pd.DataFrame(out)[list(COLUMNS)])


def test_over_seeds():
    "Mean, sample spread and ends, macro rows from macro tables."
    runs = [effects([("full", .1, x, .1)]) for x in (.1, .2, .6)]
    f = over_seeds(runs)
    row = f.query("concept == 'macro' and condition == 'full' and measure == 'target_accuracy'").iloc[0]
    np.testing.assert_allclose([row["mean"], row.sd, row["min"], row["max"], row.seeds], [.3, np.std([.1, .2, .6], ddof=1), .1, .6, 3])
    assert len(f) == 6*2*4
    with pytest.raises(InputError, match="no effects"):
        over_seeds([])


def test_controls():
    "Shuffled labels keep their counts; moved ranges keep their mass; swapped ones are another class's."
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 200)
    mixed = shuffled_labels(y, seed=1)
    assert (np.bincount(mixed) == np.bincount(y)).all() and (mixed != y).any() and (shuffled_labels(y, seed=1) == mixed).all()
    acts = rng.normal(size=(200, 6)).astype(np.float32)
    lo = rng.normal(size=(3, 6, 2)).astype(np.float32)
    r = Ranges(lo, lo+np.array([.5, .3], np.float32), "density", .5, CLASSES)
    r.lo[0, 0], r.hi[0, 0] = np.inf, -np.inf
    moved, swapped = random_ranges(r, 3, acts=acts), random_ranges(r, 3)
    for c in range(3):
        assert (moved.contains(acts, c).sum(0) == r.contains(acts, c).sum(0)).all()
        for j in range(6):
            assert any(np.array_equal(swapped.lo[c, j], r.lo[k, j]) for k in range(3) if k != c)
    assert (swapped.lo[0] != r.lo[0]).any(1).all() and not np.array_equal(moved.lo, random_ranges(r, 4, acts=acts).lo)
    with pytest.raises(InputError, match="one class"):
        random_ranges(Ranges(lo[:1], lo[:1], "density", .5, ("a",)))


def test_collateral():
    "A prediction that is the damage correlates at 1, its opposite at -1; wrong answers do not count."
    o = outcome(shift=dict(range=1.), harm=dict(range=1.))
    first = collateral(np.zeros((3, 3)), o)
    assert np.isnan(first.spearman) and len(first.frame) == 6
    damage = first.frame.pivot(index="text", columns="concept", values="measured").to_numpy()
    assert collateral(damage, o).spearman == pytest.approx(1) and collateral(-damage, o).spearman == pytest.approx(-1)
    right = (o.before.argmax(1) == o.labels) & (o.labels == 0)
    assert (first.frame.n[first.frame.text == "a"] == right.sum()).all() and right.sum() > 1
    moved = abs(o.after[1]-o.before).sum(1)[right].mean()/2
    assert first.frame.query("text == 'a' and concept == 'b'").measured.iloc[0] == pytest.approx(moved, abs=1e-6)
    with pytest.raises(InputError, match="must be"):
        collateral(np.zeros((2, 2)), o)
