"""Edits, positions and linear edits: formulas by hand, laws, and the same answers whichever way a model is run."""
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from test_architectures import LABELLED, TEXTS, classifier
from tiny import BEYOND, answers_apart, clear, everywhere, same_answers

from neuronlens.arrays.ranges import fit_ranges
from neuronlens.arrays.saliency import rank
from neuronlens.arrays.statistics import class_statistics
from neuronlens.edits.ablation import ablate, answers_to, edited_acts, firing
from neuronlens.edits.edit import EDITS, Neurons, linear_edit, parse_edit, resample, rest_quantiles
from neuronlens.edits.effects import MEASURES, measure_effects
from neuronlens.edits.evidence import intervals
from neuronlens.edits.live import edit_text
from neuronlens.edits.planning import plan
from neuronlens.edits.sweeps import effects_on, estimate, grid
from neuronlens.ground.core import InputError
from neuronlens.ground.data import take
from neuronlens.ground.rounding import agree, apart, rounding, score_size
from neuronlens.ground.setting import SETTINGS
from neuronlens.models.anatomy import anatomy, parse_site
from neuronlens.models.batches import batches, encode, pad
from neuronlens.models.hooks import logits, run
from neuronlens.records.recording import record
from neuronlens.records.tokens import record_tokens

pytestmark = pytest.mark.usefixtures("one_thread")
EVERY = ["zero", "mean", "dampen", "dampen(0.3)", "adaptive", "adaptive(0.7)", "scale(1.5)", "shift", "shift(0.4)", "transport",
         "transport(0.6)", "resample"]


@pytest.fixture(scope="module")
def gauss():
    "Two Gaussian classes of five neurons, the last one constant in class 0, and their statistics."
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [4000, 6000])
    acts = np.where(labels[:, None] == 0, rng.normal([1, -2, 0, 5, 0], [1, .5, 3, 2, 0], (10000, 5)),
                    rng.normal([-1, 2, 1, 5, 4], [2, 1.5, .2, 2, 1], (10000, 5))).astype(np.float32)
    st = class_statistics(acts, labels)
    return SimpleNamespace(acts=acts, labels=labels, own=acts[labels == 0], rest=acts[labels == 1], st=st,
                           ranking=rank(acts, labels, "dprime", statistics=st))


MANY = 100 # √10000 roundings behind a mean over the examples; fewer behind an edit of one
FEW = 8


def one(gauss, edit, kind="full", **kw):
    "An intervention on all neurons for class 0."
    r = fit_ranges(gauss.acts, gauss.labels, kind, statistics=gauss.st)
    return plan(gauss.st, [gauss.ranking], r, "residual.0", fraction=[1.], edit=edit, concept=[0], acts=gauss.acts,
                labels=gauss.labels, **kw)[1]


# --- formulas

def test_adaptive_by_hand(gauss):
    "0.125 d x with d = clamp(|x - mu| / (tau sd), 0, 1), one number after the other."
    iv = one(gauss, "adaptive(1.7)", "gaussian(1.7)")
    mu, sd = gauss.own.astype(float).mean(0), gauss.own.astype(float).std(0)
    got = edited_acts(iv, gauss.acts[::97])
    for row, out in zip(gauss.acts[::97].astype(float), got, strict=True):
        for j in range(4):
            if abs(abs(row[j]-mu[j])-1.7*sd[j]) < rounding(abs(row[j])+abs(mu[j]), FEW): continue # On the end of the range
            d = min(max(abs(row[j]-mu[j])/(1.7*sd[j]), 0.), 1.)
            agree(out[j], .125*d*row[j] if abs(row[j]-mu[j]) <= 1.7*sd[j] else row[j], FEW, size=np.abs(gauss.acts[:, j]).max())


def test_transport_maps_moments(gauss):
    "The class gets mean and spread of the others, neuron by neuron; half of it goes half the way."
    moved = edited_acts(one(gauss, "transport"), gauss.own)
    agree(moved.mean(0), gauss.rest.mean(0), MANY)
    agree(moved.std(0)[:4], gauss.rest.std(0)[:4], MANY)
    agree(moved[:, 4], gauss.rest[:, 4].mean(), MANY) # Where the class does not vary
    half = edited_acts(one(gauss, "transport(0.5)"), gauss.own)
    agree(half, (gauss.own+moved)/2, FEW)


def test_shift_moves_the_mean(gauss):
    moved = edited_acts(one(gauss, "shift(1)"), gauss.own)
    agree(moved.mean(0), gauss.rest.mean(0), MANY)
    agree(moved.std(0), gauss.own.std(0), MANY)
    agree(edited_acts(one(gauss, "shift(0)"), gauss.own), gauss.own, FEW)


def test_scale_dampen_zero_mean(gauss):
    for edit, want in (("scale(1.5)", 1.5*gauss.own), ("dampen", .12*gauss.own), ("dampen(0.3)", .3*gauss.own), ("zero", 0*gauss.own),
                       ("mean", gauss.rest.mean(0)+0*gauss.own)):
        agree(edited_acts(one(gauss, edit), gauss.own), want, MANY if edit == "mean" else FEW, what=edit)


def test_resample_draws_from_the_others(gauss):
    "Distributed as the auxiliary activations, blind to what it replaces, other draws for another seed, the same for the same."
    iv = one(gauss, "resample", seed=3)
    drawn = edited_acts(iv, gauss.own)[:, :4]
    assert min(ks_2samp(drawn[:, j], gauss.rest[:, j]).pvalue for j in range(4)) > .01
    low, high = gauss.rest.min(0)[:4], gauss.rest.max(0)[:4]
    room = rounding(np.abs(gauss.rest).max(), FEW)
    assert (drawn >= low-room).all() and (drawn <= high+room).all()
    other = edited_acts(one(gauss, "resample", seed=4), gauss.own)[:, :4]
    r = np.corrcoef(np.hstack([gauss.own[:, :4], drawn, other]).T)
    assert np.abs(r[:4, 4:]).max() < .06 and np.abs(np.triu(r[4:8, 4:8], 1)).max() < .06
    assert np.median(np.abs(np.diag(r[4:8, 8:]))) < .06 # A few neurons may get nearly the same wave by both seeds
    np.testing.assert_array_equal(drawn, edited_acts(one(gauss, "resample", seed=3), gauss.own)[:, :4])
    order = np.random.default_rng(1).permutation(len(gauss.own))
    np.testing.assert_array_equal(edited_acts(iv, gauss.own[order])[:, :4], drawn[order])


def steepest_draw(about):
    "How far a draw moves at most, for each neuron, where the activation that it is drawn by moves by 1."
    return about.rest.diff(dim=0).max(0).values*256*32/torch.where(about.sd > 0, about.sd, about.rest_sd)


def test_resample_is_continuous(gauss):
    "Rounding of an activation moves its draw by no more than the steepest part of the table."
    about = one(gauss, "resample").state
    x = torch.as_tensor(gauss.own[:500])
    step = (resample(x+1e-6, about, 0)-resample(x, about, 0)).abs()
    size = x.abs().max().item()
    assert (step <= (1e-6+rounding(size, FEW))*steepest_draw(about)+rounding(size, FEW)).all() and step[:, :4].max() > 0


def test_rest_quantiles(gauss):
    q = rest_quantiles(gauss.acts, gauss.labels, 0)
    np.testing.assert_array_equal(q[[0, 128, -1]], np.quantile(gauss.rest, [0, .5, 1], axis=0).astype(np.float32))
    few = rest_quantiles(gauss.acts, gauss.labels, 0, most=2000, seed=1)
    np.testing.assert_array_equal(few, rest_quantiles(gauss.acts, gauss.labels, 0, most=2000, seed=1))
    assert (few != q).any() and np.abs(few[128]-q[128]).max() < .3
    with pytest.raises(InputError, match="every example is of class 0"): rest_quantiles(gauss.own, np.zeros(4000, int), 0)


# --- laws

@pytest.mark.parametrize("edit", EVERY)
def test_ranges_nest(gauss, edit):
    "tau = 0 edits only x == mu; the edited set grows with tau and edits alike; tau = inf is the whole neuron, sd = 0 included."
    acts = np.vstack([gauss.acts[::50], gauss.st.mean[:1].astype(np.float32)])
    x, last = torch.as_tensor(acts), None
    for tau in (0, .5, 1.3, 2.5, 9, np.inf):
        out, gate = one(gauss, edit, f"gaussian({tau})")(x)
        assert torch.isfinite(out).all() and (out[~gate] == x[~gate]).all()
        if tau == 0: assert (gate == (x == torch.as_tensor(gauss.st.mean[0].astype(np.float32)))).all() and gate[-1].all()
        if last is not None:
            assert (last[1] <= gate).all() and (last[0] == out)[last[1]].all()
        last = out, gate
    full = one(gauss, edit)(x)
    assert full[1].all() and (full[0] == last[0]).all() and last[1].all()


@pytest.mark.parametrize("edit", EVERY)
def test_identities(gauss, edit):
    "No salient neuron, a range that no example enters, positions that are not there: nothing changes and nothing fires."
    iv, own = one(gauss, edit, "gaussian(1)"), gauss.own[:50]
    nothing = torch.full_like(iv.lo, torch.inf)
    for same in (replace(iv, neurons=torch.empty(0, dtype=torch.int64)), replace(iv, lo=nothing, hi=-nothing),
                 replace(iv, lo=0*iv.lo+1e6, hi=0*iv.hi+2e6, vote=.5)):
        np.testing.assert_array_equal(edited_acts(same, own), own)
        assert not firing(same, own).any()
    np.testing.assert_array_equal(edited_acts(replace(iv, positions="generated"), own), own)
    assert (edited_acts(iv, own) != own).any()


@pytest.mark.parametrize("edit", [*EVERY, "adaptive(0)", "adaptive(inf)"])
def test_constant_neurons_give_numbers(edit):
    "A neuron that is the same in a class, in the others, in all, near 0 or far from it: finite wherever it is edited."
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 20)
    acts = rng.normal(size=(40, 6)).astype(np.float32)
    acts[:20, 0], acts[20:, 1], acts[:, 2], acts[:, 3], acts[:20, 4] = .1, .3, 0., 12345.678, -3e4
    st = class_statistics(acts, labels)
    ranges = [fit_ranges(acts, labels, k, statistics=st) for k in ("gaussian(0)", "gaussian(2.5)", "gaussian(inf)", "quantile(0.9)")]
    ranking = rank(acts, labels, "dprime", statistics=st)
    for iv in plan(st, [ranking], ranges, "residual.0", fraction=[1.], edit=edit, acts=acts, labels=labels):
        x = np.vstack([acts, acts*0, acts*1.5])
        assert np.isfinite(edited_acts(iv, x)).all(), iv
        assert np.abs(edited_acts(iv, x)).max() < 1e7, iv


@pytest.mark.parametrize("vote", [.4, .8, 1.])
def test_all_salient_neurons_where_enough_agree(gauss, vote):
    "`covers` 'salient': where the vote is reached, whole rows of salient neurons are edited, and nothing anywhere else."
    narrow = one(gauss, "zero", "gaussian(1)")
    iv, x = replace(narrow, vote=vote, covers="salient"), gauss.acts[::7]
    inside = ((x >= iv.lo[:, 0].numpy()) & (x <= iv.hi[:, 0].numpy()))[:, iv.neurons]
    enough = inside.sum(1) >= np.ceil(vote*inside.shape[1]-1e-9)
    assert 0 < enough.mean() < 1 and (enough & ~inside.all(1)).any() == (vote < 1)
    wanted = x.copy()
    wanted[np.ix_(enough, iv.neurons)] = 0
    np.testing.assert_array_equal(edited_acts(iv, x), wanted)
    np.testing.assert_array_equal(firing(iv, x), enough.astype(np.float32))
    same = replace(narrow, vote=vote)
    assert (edited_acts(same, x) != wanted).any() == (vote < 1) # At 1 all are in range wherever they are edited


def test_covers_in_a_grid(case):
    "Told apart in the table, the same however it is run, and refused without a vote."
    clf, rec = case
    ivs = [iv for c in ("range", "salient") for iv in grid(rec, site="residual.2", vote=.5, covers=c)]
    kept, run_anew = (effects_on(clf, LABELLED, ivs, recording=r, progress=False).frame for r in (rec, None))
    assert kept[list(SETTINGS)].equals(run_anew[list(SETTINGS)])
    assert not kept[kept.condition != "full"].drop_duplicates().duplicated(list(SETTINGS)).any()
    agree(kept[kept.condition != "base"].disturbance, run_anew[run_anew.condition != "base"].disturbance, clf.model, size=1)
    own = kept[kept.condition == "range"].groupby("covers").disturbance.mean()
    assert own["salient"] > own["range"]
    with pytest.raises(InputError, match="covers 'salient' edits all salient neurons once enough are in range: give a vote above 0"):
        grid(rec, site="residual.2", covers="salient")
    with pytest.raises(InputError, match="covers 'all' is none of range, salient"): grid(rec, site="residual.2", vote=.5, covers="all")


def test_numbers_are_refused():
    assert parse_edit("adaptive(inf)") == ("adaptive", np.inf) and parse_edit(" scale( .25 )") == ("scale", .25)
    for text, why in (("erase", "'erase' is none of zero"), ("zero(1)", "takes no number"), ("resample(1)", "takes no number"),
                      ("scale(inf)", "must be finite"), ("adaptive(-0.1)", "tau must be 0 or more"), ("shift()", "is not a name")):
        with pytest.raises(InputError, match=why): parse_edit(text)


def test_an_edit_has_one_name(gauss):
    "With its number or without, an edit stands in the table with it."
    r = fit_ranges(None, None, "full", statistics=gauss.st)
    ivs = plan(gauss.st, [gauss.ranking], r, "residual.0", edit=["shift", "shift(1.0)", "zero"])
    assert {iv.edit for iv in ivs} == {"shift(1)", "zero"}
    for e in EDITS: assert parse_edit(e)[0] == e
    with pytest.raises(InputError, match="give plan acts= and labels="): plan(gauss.st, [gauss.ranking], r, "residual.0", edit="resample")
    for f in (.1, 0, 1.5):
        with pytest.raises(InputError, match=f"fraction {f} of the 5 neurons of residual.0 is not one neuron"):
            plan(gauss.st, [gauss.ranking], r, "residual.0", fraction=[.5, f])
    with pytest.raises(InputError, match="fitted_at 'words'"): plan(gauss.st, [gauss.ranking], r, "residual.0", fitted_at="words")


# --- a running model

SITES = ["residual.2", "residual.0", "mlp.1"]


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def case(request):
    clf = classifier(request.param)
    return clf, record(clf, LABELLED, SITES, progress=False)


def linear(clf, site, **kw):
    "A random affine map, not far from the identity."
    site, gen = parse_site(site), torch.Generator().manual_seed(5)
    D = anatomy(clf.model).widths[site.stream]
    return linear_edit("1", "leace", site, torch.eye(D)+.3*torch.randn(D, D, generator=gen), torch.randn(D, generator=gen), **kw)


def rerun(clf, iv):
    "Probabilities with a plain hook and the whole model, text by text."
    out = np.empty((len(TEXTS), 3), np.float32)
    with torch.inference_mode():
        for b in batches(encode(clf, TEXTS), tokens=1, fill=clf.pad_id):
            where = torch.zeros_like(b.mask, dtype=torch.bool)
            if iv.positions in ("all", "prompt"): where |= True
            if iv.positions == "readout": where[:, 0 if clf.readout == "first" else -1] = True
            out[b.rows] = logits(clf, b, edits={iv.site: lambda h, w=where: iv(h, w)[0]}).softmax(-1).numpy()
    return out


def steepness(iv):
    "How many times an edit makes an error of what it replaces larger, 1 or more."
    if iv.edit == "affine": return max(1., float(torch.linalg.matrix_norm(iv.state.matrix, 2)))
    name, a, varies = parse_edit(iv.edit)[0], iv.state, iv.neurons[iv.state.sd[iv.neurons] > 0]
    slope = steepest_draw(a) if name == "resample" else a.rest_sd/a.sd if name == "transport" else 2+0*a.sd
    return max(1., float(slope[varies].max()))


def same_after(got, want, clf, iv, what=""):
    "Probabilities after an edit agree, errors of what it replaces included."
    same_answers(got, want, clf, what, score_size(want)*steepness(iv))


def every(clf, rec, **kw):
    at, ivs = everywhere(clf, TEXTS, SITES), grid(rec, edit=EVERY, range="gaussian(1.3)", concept=[1], fraction=.75, **kw)
    return [clear(iv, at[iv.site]) for iv in ivs if iv.condition != "random"]


@pytest.mark.parametrize("positions", ["all", "readout", "prompt", "generated"])
def test_resumed_is_hooked(case, positions):
    "Every edit, and a linear one, at three sites: from any batch and from a recording, what a hook on the whole model gives."
    clf, rec = case
    ivs = every(clf, rec, positions=positions)+[linear(clf, s, positions=positions) for s in SITES]
    want = [rerun(clf, iv) for iv in ivs]
    for given, tokens in ((None, 1), (None, 4096), (rec, 40)):
        out = ablate(clf, LABELLED, ivs, recording=given, tokens=tokens, progress=False)
        for iv, after, hooked, fires in zip(ivs, out.after, want, out.fires, strict=True):
            same_after(after, hooked, clf, iv, (iv, iv.site, given, tokens))
            if iv.edit == "affine": assert (fires == 1).all()
            elif iv.range == "full": agree(fires, 1, FEW)
        moved = np.array([answers_apart(after, out.before, clf) for after in out.after])
        assert (moved <= 1).all() if positions == "generated" else (moved > BEYOND).mean() > .6


def test_order_and_padding_change_nothing(case):
    "Texts in another order, alone or together, padded on either side."
    clf, rec = case
    ivs = every(clf, rec, site="residual.0")+[linear(clf, "residual.0")]
    order = np.array([3, 0, 5, 1, 4, 2])
    a = ablate(clf, LABELLED, ivs, progress=False)
    b = ablate(clf, take(LABELLED, order), ivs, tokens=30, progress=False)
    for iv, one, other in zip(ivs, a.after[:, order], b.after, strict=True): same_after(other, one, clf, iv, iv)
    agree(b.fires, a.fires[:, order], FEW)
    enc = encode(clf, TEXTS)
    wide = pad(enc.ids, enc.special, np.arange(len(TEXTS)), fill=clf.pad_id, length=max(map(len, enc.ids))+3)
    with torch.inference_mode():
        for iv, after in zip(ivs, a.after, strict=True):
            got = logits(clf, wide, edits={iv.site: lambda h, iv=iv: iv(h)[0]}).softmax(-1)
            same_after(got, after, clf, iv, iv)


def test_replacements_are_made_once(case, monkeypatch):
    "What an edit puts in is worked out once for all fractions, rankings and votes on a gate."
    from neuronlens import ablation
    clf, rec = case
    ivs, calls, plain = grid(rec, site="residual.2", ranking=["dprime", "random"], fraction=[.25, .5, 1.], vote=[0., .5],
                             edit=["resample", "mean"]), [], ablation.replacement
    monkeypatch.setattr(ablation, "replacement", lambda *a: calls.append(1) or plain(*a))
    ablate(clf, LABELLED, ivs, recording=rec, progress=False)
    assert len(ivs) == 3*2*3*2*(1+2*2) and len(calls) == 3*2*(1+1)


def test_linear_edits_stand_in_the_table(case):
    "One list, one table; kept and streamed alike, costed, and each with a base row of its own."
    clf, rec = case
    ivs = grid(rec, site="residual.2")+[linear(clf, "residual.2"), linear(clf, "residual.0")]
    for given in (rec, None):
        t = effects_on(clf, LABELLED, ivs, recording=given, progress=False).frame
        k = measure_effects(ablate(clf, LABELLED, ivs, recording=given, progress=False)).frame
        assert t[list(SETTINGS)].equals(k[list(SETTINGS)])
        own = t[t.condition == "leace"]
        assert own.site.tolist() == ["residual.2", "residual.0"] and (own.fires_on_auxiliary == 1).all() and set(own.range) == {"none"}
        assert (t[t.ranking == "none"].condition.tolist()) == ["base", "leace"]*2
    assert estimate(clf, LABELLED, ivs, recording=rec).interventions == len(ivs)


def test_bad_linear_edits_are_refused(case):
    clf, rec = case
    with pytest.raises(InputError, match=r"needs a matrix \[3, 3\]"): linear_edit("0", "x", "residual.0", np.eye(4), np.zeros(3))
    with pytest.raises(InputError, match="not finite"): linear_edit("0", "x", "residual.0", np.eye(3)*np.nan, np.zeros(3))
    with pytest.raises(InputError, match="positions 'odd'"): linear_edit("0", "x", "residual.0", np.eye(3), np.zeros(3), positions="odd")
    small = linear_edit("0", "x", "residual.0", np.eye(3), np.zeros(3))
    with pytest.raises(InputError, match="has ranges of 3 neurons"): ablate(clf, LABELLED, [small], progress=False)


def test_arrays_alone(case):
    "Edited activations through the head are what ablating gives; others are refused."
    clf, rec = case
    ivs = every(clf, rec, site="residual.2")+[linear(clf, "residual.2")]
    out = ablate(clf, LABELLED, ivs, recording=rec, progress=False)
    for iv, after, fires in zip(ivs, out.after, out.fires, strict=True):
        same_answers(answers_to(clf, edited_acts(iv, rec.acts)), after, clf, iv)
        agree(firing(iv, rec.acts), fires, FEW)
    same_answers(answers_to(clf, rec.acts), rec.probabilities, clf)
    assert answers_to(clf, rec.acts[:0]).shape == (0, 3)
    with pytest.raises(InputError, match=r"the head reads \[texts, 16\]"): answers_to(clf, rec.acts[:, :5])
    with pytest.raises(InputError, match="activations, got"): edited_acts(ivs[0], rec.acts[:, :5])
    with pytest.raises(InputError, match="reads every position"): answers_to(classifier("modernbert mean"), rec.acts)


# --- tokens

def test_tokens_are_recorded(case):
    "Every attended token that is not special, in order, as a pass over the text alone shows it."
    clf, rec = case
    tok = record_tokens(clf, LABELLED, SITES, most=None, tokens=30, progress=False)
    enc, at = encode(clf, TEXTS), 0
    with torch.inference_mode():
        for b in sorted(batches(enc, tokens=1, fill=clf.pad_id), key=lambda b: b.rows[0]):
            keep = [t for t, s in enumerate(enc.special[b.rows[0]]) if not s]
            for s, h in run(clf, b, {parse_site(s) for s in SITES}).items():
                agree(tok.at(str(s))[at:at+len(keep)], h[0, keep], clf, what=s)
            assert (tok.labels[at:at+len(keep)] == LABELLED.labels[b.rows[0]]).all()
            at += len(keep)
    assert at == len(tok) and tok.readout == "tokens" and tok.probabilities is None
    some = record_tokens(clf, LABELLED, "residual.0", most=2, seed=1, progress=False)
    assert np.bincount(some.labels).sum() == sum(min(2, len(e)-sum(e)) for e in map(list, enc.special))
    whole = tok.at("residual.0")
    agree(some.acts, whole[np.abs(some.acts[:, None]-whole).max(-1).argmin(1)], clf) # Each is one of them
    other = record_tokens(clf, take(LABELLED, np.arange(6)[::-1]), "residual.0", most=2, seed=1, tokens=20, progress=False)
    n = [min(2, len(e)-sum(e)) for e in map(list, enc.special)]
    mirrored = np.concatenate(np.split(other.acts, np.cumsum(n[::-1])[:-1])[::-1])
    agree(mirrored, some.acts, clf)
    with pytest.raises(InputError, match="most=0"): record_tokens(clf, LABELLED, most=0, progress=False)


def test_dropout_is_off(case):
    "A model left in training mode, with dropout, is read without noise by whatever reads it, and is in training mode again afterwards."
    clf, rec = case
    for m in clf.model.modules():
        if isinstance(m, torch.nn.Dropout): m.p = .5
    ivs = grid(rec, site="residual.0", fraction=.75)
    last = record(clf, LABELLED, f"residual.{len(anatomy(clf.model))-1}", progress=False).acts
    for look in (lambda: ablate(clf, LABELLED, ivs, progress=False).after,
                 lambda: effects_on(clf, LABELLED, ivs, progress=False).frame[list(MEASURES)].to_numpy(float),
                 lambda: record_tokens(clf, LABELLED, progress=False).acts, lambda: answers_to(clf, last),
                 lambda: estimate(clf, LABELLED, ivs).interventions):
        clf.model.eval()
        still = look()
        clf.model.train()
        np.testing.assert_array_equal(look(), still)
        assert clf.model.training
    batch = next(batches(encode(clf, TEXTS)))
    a, b = (run(clf, batch, {parse_site("residual.0")})[parse_site("residual.0")] for _ in range(2))
    clf.model.eval()
    assert not torch.equal(a, b) # It would be noisy


def test_grid_fitted_at_tokens(case):
    "Ranges and statistics of tokens, salient neurons of the readout; told apart in the table."
    clf, rec = case
    tok = record_tokens(clf, LABELLED, SITES, most=None, progress=False)
    ivs = grid(rec, site="residual.0", edit=["mean", "resample"], vote=[0., .5], fitted_at=["readout", "tokens"], tokens=tok)
    at = {f: [iv for iv in ivs if iv.fitted_at == f] for f in ("readout", "tokens")}
    assert len(at["readout"]) == len(at["tokens"]) == 3*2*(1+2*2)
    for a, b in zip(at["readout"], at["tokens"], strict=True):
        assert (b.range, b.vote) == (a.range, a.vote) and torch.equal(a.neurons, b.neurons)
        x = tok.at("residual.0")[tok.labels == tok.classes.index(b.concept)].astype(float)
        agree(b.state.mean, x.mean(0), FEW)
        if b.range.startswith("gaussian"): agree(b.hi[:, 0], x.mean(0)+2.5*x.std(0), FEW)
    shown = effects_on(clf, LABELLED, ivs, progress=False)
    assert set(shown.frame.range) == {"none", "full", "gaussian(2.5)"}
    assert set(shown.only(range="gaussian", fitted_at="tokens").frame.vote) == {0, .5}
    assert shown.macro().groupby(["condition", "range", "vote", "fitted_at", "edit"]).size().max() == 1
    with pytest.raises(InputError, match="needs tokens="): grid(rec, site="residual.0", fitted_at="tokens")
    with pytest.raises(InputError, match="'words'"): grid(rec, site="residual.0", fitted_at="words", tokens=tok)
    with pytest.raises(InputError, match="other classes"):
        grid(rec, site="residual.0", fitted_at="tokens", tokens=replace(tok, classes=("x", "y", "z")))


def test_neurons_need_no_table():
    with pytest.raises(InputError, match="about.rest"): resample(torch.zeros(1, 2), Neurons(*torch.ones(4, 2)))


# --- answers that are no numbers

def broken(rec, edit, site):
    "An edit of the whole neurons for class 1 beside a harmless one."
    return [iv for iv in grid(rec, edit=["mean", edit], concept=[1], site=site) if iv.condition == "full"]


@pytest.mark.parametrize("edit", ["scale(1e300)", "shift(1e39)", "transport(1e300)"])
@pytest.mark.parametrize("site", SITES)
def test_an_edit_that_overflows_is_refused(case, edit, site):
    "By every way of running it: no table is made of NaN, and the sentence names edit and class."
    clf, rec = case
    ivs, name = broken(rec, edit, site), edit.replace("(1e", "(1e+")
    said = re.escape(f"edit {name!r} for concept 'b' (full, {site})")
    for fn in (ablate, effects_on):
        for r in (None, rec):
            with pytest.raises(InputError, match=said): fn(clf, LABELLED, ivs, recording=r, progress=False)
    with pytest.raises(InputError, match=re.escape(f"edit {name!r} for concept 'b'")): edited_acts(ivs[1], rec.at(site))
    assert np.isfinite(ablate(clf, LABELLED, ivs[:1], progress=False).after).all()


def test_an_edit_within_its_type_that_breaks_the_answer(case):
    "The activation is finite, what the blocks above make of it is not; of how many texts depends on how a norm sums what overflows."
    clf, rec = case
    ivs = broken(rec, "scale(1e30)", "residual.0")
    said = r"edit 'scale\(1.*\)' for concept 'b' \(full, residual.0\): the answer is not finite for \d rows \("
    for fn in (ablate, effects_on):
        with pytest.raises(InputError, match=said): fn(clf, LABELLED, ivs, progress=False)
    if clf.model.config.model_type == "gpt2": # BERT's tanh takes any number
        for r in (None, rec):
            with pytest.raises(InputError, match="residual.2.*the answer is not finite"):
                effects_on(clf, LABELLED, broken(rec, "scale(1e30)", "residual.2"), recording=r, progress=False)


def test_a_linear_edit_that_overflows(case):
    clf, rec = case
    D = rec.at("residual.2").shape[1]
    huge = linear_edit("1", "leace", "residual.2", 1e38*torch.ones(D, D), torch.zeros(D))
    for r in (None, rec):
        with pytest.raises(InputError, match=r"edit 'affine' for concept '1' \(leace, residual.2\) leaves the range of float32"):
            ablate(clf, LABELLED, [huge], recording=r, progress=False)


@pytest.mark.parametrize("edit", ["scale(1e5)", "shift(1e6)"])
def test_half_precision_overflows_sooner(edit):
    "65,504 is the largest number of float16, also where activations come from a recording."
    clf = classifier("gpt2")
    clf.model.half()
    rec = record(clf, LABELLED, ["residual.2", "residual.0"], progress=False)
    for site in rec.sites:
        for r in (None, rec):
            with pytest.raises(InputError, match=rf"edit '{edit[:5]}\(1.*\)' for concept 'b' \(full, {site}\) leaves the range of float16"):
                effects_on(clf, LABELLED, broken(rec, edit, site), recording=r, progress=False)


def test_a_view_of_an_edit_that_overflows(case):
    clf, rec = case
    ivs = [iv for iv in grid(rec, edit="scale(1e300)", concept=[1], site="residual.2")]
    with pytest.raises(InputError, match="for concept 'b'"): edit_text(clf, TEXTS[0], ivs)


def test_an_outcome_that_is_not_finite_is_refused(case):
    "However it came about."
    clf, rec = case
    out = ablate(clf, LABELLED, broken(rec, "zero", "residual.2"), recording=rec, progress=False)
    out.after[1, 2] = np.nan
    for fn in (measure_effects, intervals):
        with pytest.raises(InputError, match="edit 'zero' for concept 'b': the answers are not finite"): fn(out)


# --- what means nothing

def column(value): return torch.full((24, 1), value)


@pytest.mark.parametrize("other, why", [
    (dict(neurons=torch.tensor([0, 0, 1])), "a neuron is named twice"), (dict(neurons=torch.tensor([3, 99])), "neuron 99 is none of"),
    (dict(neurons=torch.tensor([-1])), "neuron -1 is none of"), (dict(neurons=torch.tensor([0], dtype=torch.int32)), "not whole numbers"),
    (dict(neurons=torch.arange(24) < 6), "not whole numbers"), (dict(vote=2.), "vote 2.0 is outside 0 to 1"),
    (dict(vote=float("nan")), "vote nan is outside"), (dict(positions="last"), "positions 'last' is none of"),
    (dict(lo=column(float("nan"))), "an end of a range is no number"), (dict(lo=torch.zeros(24), hi=torch.ones(24)), "are not `.D, K.`"),
    (dict(state=Neurons(*torch.zeros(4, 8))), "what it knows is of 8 neurons"), (dict(concept=9), "aimed at none of the 3 classes"),
    (dict(concept=-1), "aimed at none of the 3 classes")])
def test_interventions_that_mean_nothing_are_refused(other, why):
    "Before anything runs, by what is wrong with them."
    clf = classifier("bert")
    rec = record(clf, LABELLED, "mlp.1", progress=False)
    good = grid(rec, site="mlp.1", fraction=.5)[1]
    assert good.width == 24 and len(ablate(clf, LABELLED, [good], progress=False).after) == 1
    with pytest.raises(InputError, match=why): ablate(clf, LABELLED, [good, replace(good, **other)], progress=False)
    for odd in (good, None, [None], "x"):
        with pytest.raises(InputError, match="are a list|an intervention is needed"): ablate(clf, LABELLED, odd, progress=False)


def test_a_map_for_every_class_has_no_text_to_spare():
    clf = classifier("bert")
    every = linear_edit("", "leace", "residual.2", np.eye(16), np.zeros(16))
    with pytest.raises(InputError, match="aimed at none of the 3 classes"): ablate(clf, LABELLED, [every], progress=False)


def test_plans_of_other_classes_are_refused():
    "Rankings and ranges go with statistics of the same classes in the same order, and of as many neurons."
    x, y = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32), np.arange(60) % 3
    s = class_statistics(x, y, ("a", "b", "c"))
    k, r = rank(x, y, statistics=s), fit_ranges(x, y, "gaussian", statistics=s)
    assert len(plan(s, k, r, "residual.0", fraction=.5)) == 9
    turned = class_statistics(x, (y+1) % 3, ("c", "a", "b"))
    narrow = rank(x[:, :4], y, classes=("a", "b", "c"))
    for args in ((turned, [k], r), (s, [rank(x, y, classes=("c", "b", "a"))], r), (s, [narrow], r),
                 (s, [k], fit_ranges(x[:, :4], y, "gaussian", classes=("a", "b", "c")))):
        with pytest.raises(InputError, match="the statistics are of"): plan(*args, "residual.0")


def test_one_number_that_is_none_is_enough(gauss):
    "An edit that overflows for a single activation among many is refused, wherever it is made."
    iv = one(gauss, "scale(1e38)")
    x = np.zeros((50, 5), np.float32)
    np.testing.assert_array_equal(edited_acts(iv, x), x)
    x[17, 3] = 9
    with pytest.raises(InputError, match="leaves the range of float32: neuron 3 would be inf"):
        edited_acts(iv, x)


def test_former_names_warn(gauss):
    "`kind` and `fitted` of 0.2 do what `range` and `fitted_at` do, and say so."
    r = fit_ranges(None, None, "gaussian(2)", statistics=gauss.st)
    with pytest.warns(DeprecationWarning, match=r"plan\(fitted=\) is called fitted_at="):
        iv = plan(gauss.st, [gauss.ranking], r, "residual.0", fitted="tokens")[1]
    with pytest.warns(DeprecationWarning, match="is called range"): assert iv.kind == iv.range == "gaussian(2)"
    with pytest.warns(DeprecationWarning, match="is called fitted_at"): assert iv.fitted == iv.fitted_at == "tokens"


# --- a text that is asked once

def asked_alone(clf, iv):
    "Probabilities where the gate is asked once of a text by hand, a plain hook and the whole model, text by text; and what fires."
    out, fires = np.empty((len(TEXTS), 3), np.float32), np.empty(len(TEXTS))
    rows = iv.neurons.numpy()
    with torch.inference_mode():
        for b in batches(encode(clf, TEXTS), tokens=1, fill=clf.pad_id):
            x = run(clf, b, {iv.site})[iv.site][0].numpy()
            kept = (b.mask[0] == 1).numpy() & (~b.special[0].numpy() if iv.fitted_at == "tokens" else True)
            if iv.fitted_at == "readout": kept = np.flatnonzero(kept)[[0 if clf.readout == "first" else -1]]
            own = x[kept].mean(0)
            found = ((own[:, None] >= iv.lo.numpy()) & (own[:, None] <= iv.hi.numpy())).any(1)[rows]
            gate = np.zeros(x.shape[1], bool)
            if found.sum() >= np.ceil(iv.vote*len(rows)-1e-9): gate[rows] = True if iv.covers == "salient" else found
            at = np.zeros(len(x), bool)
            at[np.flatnonzero(b.mask[0])[[0 if clf.readout == "first" else -1]] if iv.positions == "readout" else slice(None)] = True
            edit = lambda h, gate=gate, at=at: torch.where(torch.as_tensor(at[:, None] & gate), 0., h)
            out[b.rows] = logits(clf, b, edits={iv.site: edit}).softmax(-1).numpy()
            fires[b.rows] = gate.sum()/len(rows)
    return out, fires


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("how", [dict(), dict(fitted_at="tokens"), dict(positions="readout", vote=.4), dict(vote=.4, covers="salient")],
                         ids=["readout", "tokens", "at the readout", "all salient"])
def test_a_text_is_asked_once(case, site, how):
    "Gate by hand, on one text at a time without padding; in a batch, from a recording and anew."
    clf, rec = case
    tok = record_tokens(clf, LABELLED, site, most=None, progress=False) if "fitted_at" in how else None
    every = grid(rec, site=site, edit="zero", scope="text", tokens=tok, range="gaussian(1.3)", **how)
    ivs = [iv for iv in every if iv.condition == "range"]
    plain = [replace(iv, scope="position") for iv in ivs]
    a, b, c = (ablate(clf, LABELLED, i, recording=r, progress=False) for i, r in ((ivs, rec), (ivs, None), (plain, None)))
    for k, iv in enumerate(ivs):
        wanted, fires = asked_alone(clf, iv)
        for o in (a, b):
            agree(o.after[k], wanted, clf.model, size=1)
            agree(o.fires[k], fires, FEW)
    if site == "residual.2" and "fitted_at" not in how or how.get("positions") == "readout": # It is the same there
        agree(b.after, c.after, clf.model, size=1)
    else: assert apart(b.after, c.after, clf.model, size=1) > 10


@pytest.mark.parametrize("fitted_at", ["readout", "tokens"])
def test_a_text_that_is_looked_at_is_asked_once(case, fitted_at):
    "The view of one text: the same neurons at all positions, as many as the gate by hand says, and the answer of a plain run."
    clf, rec = case
    tok = record_tokens(clf, LABELLED, "residual.0", most=None, progress=False)
    ivs = grid(rec, site="residual.0", edit="zero", scope="text", fitted_at=fitted_at, tokens=tok, range="gaussian(1.3)", concept=[0])
    iv = next(iv for iv in ivs if iv.condition == "range")
    wanted, fires = asked_alone(clf, iv)
    for k, text in enumerate(TEXTS):
        seen = edit_text(clf, text, ivs)
        assert set(seen.edited.tolist()) == {round(fires[k]*len(iv.neurons))}
        agree(seen.answers["range"], wanted[k], clf.model, size=1)
    assert len(set(fires)) > 1


def test_scope_is_refused_where_it_means_nothing(case):
    clf, rec = case
    with pytest.raises(InputError, match="scope 'word' is none of position, text"): grid(rec, scope="word")
