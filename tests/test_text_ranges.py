"""Ranges of texts: fitted on the mean over the tokens, asked there, in every pass, out of files, in studies; a weight for every bin."""
from dataclasses import replace
from math import fsum

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_architectures import LABELLED, TEXTS, classifier
from test_portable import TEXTS as LINES
from test_portable import classifier as for_files
from test_portable import raw
from tiny import BEYOND, answers_apart, same_answers

import neuronlens as nl
from neuronlens.arrays.gates import exact_votes, learn_gate, of_bins, steps_passed, sums_of
from neuronlens.arrays.ranges import fit_ranges
from neuronlens.edits.ablation import ablate, edited_acts
from neuronlens.edits.asks import Ask, Votes, read_at, summed, wrong_votes
from neuronlens.edits.edit import load_intervention
from neuronlens.edits.farm import packed, unpacked
from neuronlens.edits.live import Planner, places_of_fit, ranged_on, usual
from neuronlens.edits.portable import load_edit, make_edit
from neuronlens.edits.sweeps import grid, interventions
from neuronlens.ground.core import InputError
from neuronlens.ground.setting import Setting
from neuronlens.models.anatomy import parse_site
from neuronlens.models.batches import batches, encode
from neuronlens.models.hooks import logits, run
from neuronlens.models.model import align
from neuronlens.studies.report import _how
from neuronlens.studies.saved import load_study
from neuronlens.studies.spec import parse_study
from neuronlens.views.plot_effects import _named

pytestmark = pytest.mark.usefixtures("one_thread")
SITE = "residual.1"
HOW = dict(ranking="dprime@text", fraction=1., covers="salient", scope="text", fitted_at="text", site=SITE)


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def clf(request): return classifier(request.param)


@pytest.fixture(scope="module")
def rec(clf): # Enough to learn from, each text eight times, with a little noise
    few = nl.record(clf, LABELLED, SITE, beside=("text", "tokens"), progress=False)
    many, rng = few[np.tile(np.arange(len(TEXTS)), 8)], np.random.default_rng(0)
    noisy = {k: a if a.dtype.kind == "i" else (a+rng.normal(0, .02*a.std(), a.shape)).astype(np.float32) for k, a in many.beside.items()}
    return replace(many, beside=noisy)


def means_alone(clf):
    "The mean over the attended tokens that are not special, and the state, of each text alone."
    out = {}
    with torch.inference_mode():
        for b in batches(encode(clf, TEXTS), tokens=1, fill=clf.pad_id):
            h = run(clf, b, [parse_site(SITE)])[parse_site(SITE)][0]
            out[int(b.rows[0])] = b, h, h[~b.special[0] & (b.mask[0] == 1)].double().mean(0).numpy()
    return out


def weight_of(votes, lo, hi, row):
    "What one mean adds up to, neuron by neuron and bin by bin."
    w, found = votes.weights.numpy(), (row[:, None] >= lo.numpy()) & (row[:, None] <= hi.numpy())
    return fsum((found*w).ravel()) if w.ndim == 2 else fsum(w[found.any(1)])


@pytest.mark.parametrize("range", ["bins(4)", "posterior", "gaussian(1)"])
@pytest.mark.parametrize("edit", ["mean", "partner", "exchange"])
def test_a_pass_is_what_is_written_by_hand(clf, rec, range, edit):
    "Asked at the mean of each text alone, in ranges of means; what is put in is known of tokens. In batches and one by one."
    iv = next(i for i in grid(rec, range=range, vote="weighted", edit=edit, **HOW) if i.condition == "range")
    tokens, means = rec.placed("tokens"), rec.placed("text")
    ranges = fit_ranges(means.acts, means.labels, range, classes=rec.classes)
    np.testing.assert_array_equal(iv.lo, ranges.lo[0])
    np.testing.assert_allclose(iv.state.rest_mean, tokens.acts[tokens.labels != 0].mean(0), atol=1e-5)
    alone = means_alone(clf)
    w = torch.randn(iv.votes.weights.shape, generator=torch.Generator().manual_seed(0)) # So few texts may teach none
    iv = replace(iv, votes=iv.votes._replace(weights=w))
    sums = sorted(weight_of(iv.votes, iv.lo, iv.hi, m.astype(np.float32)) for _, _, m in alone.values())
    iv = replace(iv, votes=iv.votes._replace(least=torch.tensor([(sums[2]+sums[3])/2])))
    out = {n: ablate(clf, LABELLED, [iv], progress=False, tokens=n) for n in (1, None)}
    opens = 0
    for row, (b, h, m) in alone.items():
        hit = weight_of(iv.votes, iv.lo, iv.hi, m.astype(np.float32)) >= iv.votes.least.item()
        opens += hit
        at = {"first": 0, "last": int(b.mask[0].sum())-1}.get(clf.readout, 0)
        with torch.inference_mode():
            of = h[None, [at]] if clf.readout != "mean" else h.mean(0)[None, None]
            new = iv(h[None], asked=torch.ones(1, 1, iv.width, dtype=torch.bool), of=of)[0] if hit else h[None]
            want = logits(clf, b, edits={iv.site: lambda _, new=new: new}).softmax(-1)[0].numpy()
        for o in out.values():
            same_answers(o.after[0, row], want, clf)
            assert o.fires[0, row] == float(hit)
    assert 0 < opens < len(TEXTS)


def test_by_settings_and_out_of_files(clf, rec, tmp_path):
    "Planned by a setting, saved, sent to a worker, and shared as before."
    for range in ("bins(4)", "gaussian(1)"):
        ivs = grid(rec, range=range, vote=["weighted", .5], **HOW)
        again = interventions(rec, [iv.setting for iv in ivs])
        for a, b in zip(ivs, again, strict=True):
            assert a.setting == b.setting and torch.equal(a.lo, b.lo) and torch.equal(a.state.mean, b.state.mean)
            assert (a.votes is None) == (b.votes is None) and (a.votes is None or all(map(torch.equal, a.votes, b.votes)))
        assert {(iv.condition, iv.fitted_at) for iv in ivs} == {("full", "tokens"), ("range", "text"), ("random", "text")}
        assert packed(unpacked(packed(ivs))) == packed(ivs)
        iv = ivs[1]
        same = load_intervention(iv.save(tmp_path/"i.safetensors"))
        assert same.setting == iv.setting and all(map(torch.equal, same.votes, iv.votes))
        x = torch.tensor(rec.placed("text").acts)
        assert torch.equal(same(x)[1], iv(x)[1]) and iv.votes.weights.ndim == 1+(range == "bins(4)")


@pytest.mark.parametrize("edit", ["zero", "exchange", "partner", "aura", "resample"])
def test_an_edit_that_left(edit, tmp_path):
    "After a file, on a model that someone else calls: what `ablate` has; also of edits that look up other texts."
    clf = for_files()
    rec = nl.record(clf, align(LINES, clf), SITE, beside=("text", "tokens"), progress=False)
    rec = rec[np.tile(np.arange(len(rec.labels)), 20)]
    iv = next(i for i in grid(rec, range="bins(3)", vote="weighted", edit=edit, concept=[0], **HOW) if i.condition == "range")
    w = torch.randn(iv.votes.weights.shape, generator=torch.Generator().manual_seed(0))
    own = [weight_of(Votes(w, None), iv.lo, iv.hi, m) for m in rec.placed("text").acts[:len(LINES.texts)]]
    iv = replace(iv, votes=Votes(w, torch.tensor([float(np.median(np.unique(own)[:-1])+1e-3)])))
    want = ablate(clf, LINES, [iv], progress=False)
    left = load_edit(make_edit(clf, [iv]).save(tmp_path/"e.safetensors"))
    assert torch.equal(left.interventions[0].votes.weights, w)
    with left.on(clf.model, tokenizer=clf.tokenizer): same_answers(raw(clf.model, clf.tokenizer), want.after[0], clf)
    assert answers_apart(want.after[0], want.before, clf) > BEYOND
    with pytest.raises(InputError, match="weights is no float32 of 2 axes"):
        make_edit(clf, [replace(iv, votes=iv.votes._replace(weights=w.double()))])
    if edit != "zero":
        lost = {k: None for k in ("rest", "rows", "near", "along", "auroc")}
        bare = replace(iv, state=iv.state._replace(**lost))
        with pytest.raises(InputError, match="what the edit needs to know is not there"): make_edit(clf, [bare])


def test_what_means_nothing(rec):
    with pytest.raises(InputError, match="which a position has not: ask the text"): Setting("a", fitted_at="text")
    with pytest.raises(InputError, match="fitted_at 'text' needs the mean over the tokens"):
        grid(replace(rec, beside={}), tokens=rec.placed("tokens"), **HOW | dict(ranking="dprime"))
    with pytest.raises(InputError, match="fitted_at 'text' needs tokens="): grid(replace(rec, beside={}), **HOW | dict(ranking="dprime"))
    iv = next(i for i in grid(rec, range="bins(4)", vote="weighted", **HOW) if i.condition == "range")
    for shape in ((iv.width, 3), (3, 4), (iv.width, 4, 1)):
        votes = iv.votes._replace(weights=torch.zeros(shape))
        assert "weights and threshold of its vote are" in wrong_votes(votes, iv.lo)
        with pytest.raises(InputError, match="weights and threshold"): ablate(classifier("bert"), LABELLED, [replace(iv, votes=votes)])
    method = dict(fitted_at="text", scope="text")
    with pytest.raises(InputError, match="needs tokens, and activations have none"):
        parse_study(dict(activations=dict(train="a.npz"), method=method))


# --- bins, and the weights of each

@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 6))
def test_bins_hold_every_activation_once(seed, n, values):
    "Also where values repeat; about equally many in each where they do not."
    rng = np.random.default_rng(seed)
    x = rng.integers(0, values, (24, 3)).astype(np.float32)
    x[:, 0] = rng.permutation(24)
    r = fit_ranges(x, np.arange(24) % 2, f"bins({n})")
    new = np.concatenate([x, rng.normal(0, 9, (40, 3)).astype(np.float32)])
    held = (new[..., None] >= r.lo[0]) & (new[..., None] <= r.hi[0])
    assert (held.sum(-1) == 1).all() and np.array_equal(r.lo[0], r.lo[1]) and r.contains(new, 0).all()
    counts = held[:24, 0].sum(0)
    assert counts.max()-counts.min() <= 1 and counts.sum() == 24


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_what_is_learned_is_what_acts(seed):
    "Steps, sums over bins in numpy, in torch, in half the order: one number."
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(120, 5)).astype(np.float32), np.arange(120) % 2
    x[:, 0] += 2*y
    r = fit_ranges(x, y, "bins(5)")
    k = rng.permutation(5)[:3]
    steps = rng.normal(size=3*4)
    w = of_bins(steps, 3)
    np.testing.assert_allclose(sums_of(x, r.lo[0], r.hi[0], k, w.astype(np.float32)), steps_passed(x, r.lo[0], k)@steps, atol=1e-5)
    exact, least = exact_votes(w, .3)
    full = np.zeros((5, 5), np.float32)
    full[k] = exact
    ask = Ask(torch.as_tensor(k), torch.tensor(r.lo[0]), torch.tensor(r.hi[0]), Votes(torch.tensor(full), torch.tensor([least])))
    got = summed(torch.tensor(x), ask)[:, 0].numpy()
    np.testing.assert_array_equal(got, sums_of(x, r.lo[0], r.hi[0], k, exact))
    p = rng.permutation(3)
    np.testing.assert_array_equal(got, sums_of(x, r.lo[0], r.hi[0], k[p], exact[p]))
    gate = learn_gate(x, y, r, k, 1, seed=seed)
    assert gate.weights.shape == (3, 5) and (gate.weights[:, 0] == 0).all()
    np.testing.assert_array_equal(gate.opens(x), gate._sums(x) >= np.float32(gate.least))
    shown = gate.to_frame()
    assert set(shown.neuron) <= {*k} and (shown.weight != 0).all()


def test_a_middle_and_two_ends():
    "A topic in the middle of a neuron's values: one range of it, weighed as such, is found; a line through the values finds none."
    rng = np.random.default_rng(0)
    y = np.arange(2000) % 2
    ends = rng.choice([-1, 1], (2000, 6))*rng.normal(1.5, .4, (2000, 6))
    x = np.where(y[:, None] == 1, rng.normal(0, .4, (2000, 6)), ends).astype(np.float32)
    x[:, 3:] = rng.normal(size=(2000, 3))
    gate = learn_gate(x[:1200], y[:1200], fit_ranges(x[:1200], y[:1200], "bins"), np.arange(6), 1)
    opens = gate.opens(x[1200:])
    assert opens[y[1200:] == 1].mean() > .97 and opens[y[1200:] == 0].mean() < .03
    spread = gate.weights.max(1)-gate.weights.min(1)
    assert spread[:3].min() > 3*spread[3:].max()
    noise = learn_gate(x[:1200, 3:], y[:1200], fit_ranges(x[:1200, 3:], y[:1200], "bins"), np.arange(3), 1)
    assert abs(noise.opens(x[1200:, 3:])[y[1200:] == 1].mean()-noise.opens(x[1200:, 3:])[y[1200:] == 0].mean()) < .12


def test_neurons_that_never_move_have_no_say():
    "One bin, no step: the gate goes by its probability."
    y = np.arange(60) % 2
    gate = learn_gate(np.ones((60, 3)), y, fit_ranges(np.ones((60, 3)), y, "bins"), [0, 1, 2], 1, vote="weighted(0.7)")
    assert not gate.opens(np.ones((4, 3))).any() and gate.own == gate.other == 0.


def test_a_share_of_bins_is_the_whole_neuron(rec):
    bins, whole = ([i for i in grid(rec, range=r, vote=.5, edit="zero", **HOW) if i.condition == "range"] for r in ("bins", "full"))
    for a, b in zip(bins, whole, strict=True):
        np.testing.assert_array_equal(edited_acts(replace(a, scope="position", fitted_at="tokens"), rec.acts),
                                      edited_acts(replace(b, scope="position", fitted_at="tokens"), rec.acts))


# --- studies, and what they say

def test_a_study(bert, data, tmp_path):
    "By name in its file: planned, saved and opened again, in its views and report."
    method = dict(ranking=["dprime@text"], fraction=[1.], range="bins(3)", vote=.5, scope="text", fitted_at="text", covers="salient",
                  layers=False, site="residual.0")
    spec = parse_study(dict(data=dict(train=str(data.train), test=str(data.test)), model=dict(classifier=str(bert)), method=method,
                            meaning=dict(concepts=0)))
    study = nl.run_study(spec, tmp_path/"out", progress=False)
    assert {*study.effects.frame.fitted_at} == {"readout", "tokens", "text"} and study.train.beside.keys() == {"residual.0@text"}
    back = load_study(tmp_path/"out")
    for s in (study, back):
        means, labels = ranged_on(s, s.train.site)
        np.testing.assert_array_equal(s.ranges.lo, fit_ranges(means, labels, "bins(3)", classes=s.classes).lo)
        np.testing.assert_array_equal(means, study.train.placed("text").acts)
        assert places_of_fit(s) == ("text", "tokens", "readout")
        iv = next(i for i in Planner(s).plan((usual(s),)) if i.condition == "range")
        np.testing.assert_array_equal(iv.lo, s.ranges.lo[s.classes.index(iv.concept)])
        np.testing.assert_array_equal(iv.state.mean, s.tokens.acts[s.tokens.labels == 0].mean(0, dtype=np.float64).astype(np.float32))
    assert ", fitted on the means over the tokens of a text" in _how(study)
    assert "vote 0.5, of texts" in " ".join(_named(study.effects.frame).range)


def test_a_text_of_one_position_is_read_as_in_a_batch():
    "Alone as beside longer ones, also where its only position has no say."
    x, weights = torch.randn(3, 1, 5), torch.tensor([[1.], [0.], [.5]])
    alone = read_at(x, weights)
    padded = read_at(torch.cat([x, torch.full_like(x, torch.nan)], 1), torch.cat([weights, torch.zeros(3, 1)], 1))
    assert torch.equal(alone, padded) and torch.equal(alone[[0, 2]], x[[0, 2]]) and not alone[1].any()
