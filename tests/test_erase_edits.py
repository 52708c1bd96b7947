"""Edits that put in what other texts hold: formulas by hand, laws, and the same values for the same text whichever way it is read."""
from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_tokenizer
from sklearn.metrics import roc_auc_score
from test_architectures import LABELLED, TEXTS, classifier
from test_language import ENDLESS, PROMPTS, VOCABULARY, left_padded, states_at, tiny_lm
from test_prompt import firing, prompted, texts
from tiny import BEYOND, answers_apart, clear, everywhere, same_answers

import neuronlens as nl
from neuronlens.arrays.ranges import fit_ranges
from neuronlens.arrays.saliency import rank
from neuronlens.arrays.statistics import class_statistics
from neuronlens.edits import edit as room
from neuronlens.edits.ablation import ablate, answers_to, edited_acts
from neuronlens.edits.edit import EDITS, FROM_ACTS, LOOKED_UP, Intervention, Neurons, aura, exchange, load_intervention, partner
from neuronlens.edits.language import editing
from neuronlens.edits.live import edit_text
from neuronlens.edits.partners import _picked, auroc_of, auxiliary_rows, partner_rows, within_sd
from neuronlens.edits.planning import Parts, plan
from neuronlens.edits.presets import Preset, preset_grid
from neuronlens.edits.reading import perplexities
from neuronlens.edits.sweeps import effects_on, grid, interventions
from neuronlens.ground.core import InputError
from neuronlens.ground.data import take
from neuronlens.ground.rounding import agree
from neuronlens.ground.setting import Setting
from neuronlens.models.batches import batches, encode, pad
from neuronlens.models.hooks import logits, run
from neuronlens.records.recording import record
from neuronlens.records.tokens import record_tokens

pytestmark = pytest.mark.usefixtures("one_thread")
NEW = ["exchange", "partner", "aura"]


@pytest.fixture(scope="module")
def two():
    "A class of 300 and one of 900 in eight neurons that go together, the last one constant in the first class."
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [300, 900])
    x = rng.normal(size=(1200, 8))@np.random.default_rng(1).normal(size=(8, 8))+np.where(y[:, None] == 0, 2., -1.)
    x[y == 0, 7] = 3
    x = x.astype(np.float32)
    st = class_statistics(x, y)
    return SimpleNamespace(x=x, y=y, own=x[y == 0], rest=x[y == 1], st=st, ranking=rank(x, y, "dprime", statistics=st))


def one(d, edit, seed=0, x=None):
    "An intervention on all neurons for class 0."
    x = d.x if x is None else x
    st = class_statistics(x, d.y)
    return plan(st, [d.ranking], fit_ranges(x, d.y, "full", statistics=st), "residual.0", fraction=[1.], edit=edit, concept=[0], acts=x,
                labels=d.y, seed=seed)[1]


# --- exchange

def test_exchange_gives_whole_rows_of_others(two):
    "Nearly every text takes one auxiliary row as it stands; each row as often as any other; other rows for another seed."
    out = edited_acts(one(two, "exchange"), two.own)
    at = np.abs(out[:, None]-two.rest).max(-1)
    assert (at.min(1) == 0).mean() > .9
    counts = np.bincount(at.argmin(1), minlength=900)
    assert counts.max() <= 5 and (counts > 0).sum() > 900*(1-np.exp(-1/3))-40 # As many as 300 draws with replacement find
    other = edited_acts(one(two, "exchange", 1), two.own)
    assert (other == out).all(1).mean() < .02
    np.testing.assert_array_equal(edited_acts(one(two, "exchange"), two.own[::-1].copy())[::-1], out)


def test_exchange_says_nothing_of_the_text(two):
    "No neuron of what is put in goes with any neuron of what it replaces; mixtures of two rows vary as one does."
    out = edited_acts(one(two, "exchange"), two.own)
    r = np.corrcoef(np.hstack([two.own[:, :7], out]).T)[:7, 7:]
    assert np.abs(r).max() < 4/300**.5
    at = np.abs(out[:, None]-two.rest).max(-1).min(1)
    z = (out[at > 0]-two.rest.mean(0))/two.rest.std(0)
    assert len(z) and .3 < np.square(z).mean() < 2.5
    rows = torch.as_tensor(two.rest)
    scores = torch.full((400, 900), -9.)
    for i in range(400): scores[i, [i, i+300]] = torch.tensor([0., -.0005]) # Every draw a mixture
    mixed = (_picked(scores, rows)-rows.mean(0))/rows.std(0)
    assert .85 < mixed.square().mean() < 1.15


def test_exchange_is_continuous(two):
    "Rounding of an activation moves what is put in by little, also between two rows."
    about = one(two, "exchange").state
    x = torch.as_tensor(two.own)
    start, step = x[:1], (x[1:2]-x[:1])/40000
    path = start+torch.arange(20000)[:, None]*step # Half of the way from one text to another
    out = exchange(path, about)
    moved = out.diff(dim=0).norm(dim=1)
    assert moved.max() > 0 and moved.max() < .2*float(np.linalg.norm(two.rest-two.rest.mean(0), axis=1).mean())


@pytest.mark.parametrize("edit", NEW)
def test_another_unit_is_the_same_edit(two, edit):
    "Activations a thousand times as large give what is a thousand times as large; with another zero exchange and partner move along."
    out = edited_acts(one(two, edit), two.own)
    size = np.abs(two.x).max()
    agree(edited_acts(one(two, edit, x=two.x*1024), two.own*1024)/1024, out, 8, size=size)
    moved = edited_acts(one(two, edit, x=two.x+8), two.own+8)-8
    if edit != "aura": assert (np.abs(moved-out).max(1) < .01*size).mean() > .97 # But where two rows are as good as each other


def test_equal_activations_draw_alike_where_nothing_varies():
    about = Neurons(*torch.tensor([[1., 2.], [0., 0.], [0., 0.], [1., 1.]]), rows=torch.randn(5, 2))
    out = exchange(torch.tensor([[1., 2.], [1., 2.], [1., 2.]]), about)
    assert (out == out[0]).all()


def test_rows_are_chosen_by_seed(two):
    few = auxiliary_rows(two.x, two.y, 0, most=50, seed=3)["rows"]
    assert len(few) == 50 and all((two.rest == r).all(1).any() for r in few)
    assert (auxiliary_rows(two.x, two.y, 0, most=50, seed=4)["rows"] != few).any()
    np.testing.assert_array_equal(auxiliary_rows(two.x, two.y, 0)["rows"], two.rest)


# --- partner

def test_partners_are_the_least_sum_of_squares():
    "Against every permutation, as Mahalanobis has it (within both sides alike); a constant neuron has no say."
    rng = np.random.default_rng(3)
    own, rest = (rng.normal(size=(6, 3))@[[1, 50, 0], [0, 100, 0], [0, 0, 1]]+m for m in (0, 5))
    sd = np.array([1., 100., 0.])
    got = partner_rows(np.vstack([own, rest]), np.repeat([0, 1], 6), 0, np.array([0., 0, 1]), sd)
    inverse = np.linalg.inv((np.cov(own[:, :2].T)+np.cov(rest[:, :2].T))/2)
    def cost(pairs): return sum(d@inverse@d for d in (own[i, :2]-rest[j, :2] for i, j in pairs))
    best = min((list(enumerate(p)) for p in permutations(range(6))), key=cost)
    place = (own-[0, 0, 1])@got["along"].T
    found = sorted((int(np.abs(got["near"][k]-place).sum(1).argmin()), int(np.abs(got["rows"][k]-rest).sum(1).argmin())) for k in range(6))
    assert found == best and got["along"].shape == (2, 3) and not got["along"][:, 2].any()


def test_what_twenty_neurons_say_counts_once():
    "Copies of a neuron change no pair: along directions that count alike they are one."
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(90, 3)), np.repeat([0, 1], 45)
    def pairs(x):
        got = partner_rows(x, y, 0, x[:45].mean(0), within_sd(x[:45].std(0), x[45:].std(0)))
        return got["near"]@got["near"].T, got["rows"][:, :3]
    (apart, rows), (as_far, same) = pairs(x), pairs(np.hstack([x, np.repeat(x[:, :1], 20, 1)]))
    np.testing.assert_array_equal(rows, same)
    np.testing.assert_allclose(apart, as_far, atol=1e-3*np.abs(apart).max())


def test_partners_without_their_places_are_refused(two):
    iv = one(two, "partner")
    for odd in (dict(near=iv.state.near[1:]), dict(along=None), dict(along=iv.state.along[1:])):
        with pytest.raises(InputError, match="the places of its partners do not fit their rows and directions"):
            room.check_interventions([replace(iv, state=iv.state._replace(**odd))])


def test_every_other_text_is_a_partner_once(two):
    sd = within_sd(two.st.sd[0], two.st.rest_sd[0])
    got = partner_rows(two.x, two.y, 0, two.st.mean[0], sd)
    assert sorted(map(tuple, got["rows"].tolist())) == sorted(map(tuple, two.rest.tolist()))
    _, n = np.unique(got["near"].round(3), axis=0, return_counts=True)
    assert (n == 3).all() # Three others for each of the class
    few = partner_rows(two.x, two.y, 0, two.st.mean[0], sd, most=120, seed=2)
    assert len(few["rows"]) == 120 and len(np.unique(few["near"], axis=0)) == 120


def test_many_rows_are_matched_in_parts(two, monkeypatch):
    "In parts the sum of squares is a little larger, never smaller, and far below that of chance."
    from neuronlens.edits import partners
    sd = within_sd(two.st.sd[0], two.st.rest_sd[0])
    def cost():
        g = partner_rows(two.x, two.y, 0, two.st.mean[0], sd, seed=1)
        a, b = g["near"], (g["rows"]-two.st.mean[0])@g["along"].T
        return np.square(a-b).sum(), np.square(a-np.roll(b, 5, 0)).sum()
    whole, chance = cost()
    monkeypatch.setattr(partners, "BLOCK", 300)
    parts, _ = cost()
    assert whole <= parts < .5*(whole+chance)


def test_a_text_gets_the_partner_of_a_row_near_to_it(two):
    "What is put in goes with what it replaces, and stands for a near row; rows far away are never asked."
    iv = one(two, "partner")
    out, s = edited_acts(iv, two.own), iv.state
    d = (((torch.as_tensor(two.own)-s.mean)@s.along.T)[:, None]-s.near).square().sum(-1)
    at = (torch.as_tensor(out)[:, None]-s.rows).abs().amax(-1)
    whole = at.amin(1) == 0
    assert whole.float().mean() > .9
    place = (d < d.gather(1, at.argmin(1)[:, None])).sum(1)[whole] # How many rows are nearer
    assert place.float().median() < 10 and place.max() < 100
    r = [np.corrcoef(two.own[:, j], out[:, j])[0, 1] for j in range(7)]
    drawn = edited_acts(one(two, "exchange"), two.own)
    assert min(r) > .5 and max(abs(np.corrcoef(two.own[:, j], drawn[:, j])[0, 1]) for j in range(7)) < .3


# --- aura

def test_aura_by_hand(two):
    "Each neuron times 1 - 2 (AUROC - .5), sklearn's, where that is above .5; the same at any unit."
    x = np.round(two.x, 1) # Ties
    auc = [roc_auc_score(two.y == 0, x[:, j]) for j in range(8)]
    np.testing.assert_allclose(auroc_of(x, two.y, 0)["auroc"], auc, atol=1e-12)
    want = x[:50]*np.array([1-2*(a-.5) if a > .5 else 1. for a in auc])
    agree(edited_acts(one(two, "aura", x=x), x[:50]), want, 8)
    assert min(auc) < .9 < max(auc)
    low = auroc_of(x, 1-two.y, 0)["auroc"]
    np.testing.assert_array_equal(aura(torch.ones(1, 8), SimpleNamespace(auroc=torch.tensor([.2, .5, .5, 1, 1, 1, 1, 1])))[0, :4],
                                  [1, 1, 1, 0])
    np.testing.assert_allclose(low, 1-np.array(auc), atol=1e-12)


# --- of any

@pytest.mark.parametrize("edit", NEW)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_reads_the_same(two, edit, dtype):
    "What a half-precision activation gets is what the same number in float32 gets, rounded once."
    iv, x = one(two, edit), torch.as_tensor(two.own[:40]).to(dtype)
    out = iv(x)[0]
    assert out.dtype == dtype and torch.equal(out, iv(x.float())[0].to(dtype))


@pytest.mark.parametrize("edit", NEW)
def test_states_are_saved_flat(two, edit, tmp_path):
    "A flat set of named tensors, which comes back as it was and edits as before."
    iv = one(two, edit, 3)
    more = dict(exchange={"rows"}, partner={"rows", "near", "along"}, aura={"auroc"})[edit]
    assert {k for k, t in iv.state._asdict().items() if t is not None} == {"mean", "sd", "rest_mean", "rest_sd"} | more
    back = nl.load(iv.save(tmp_path/"iv.safetensors"))
    assert isinstance(back, Intervention) and back.setting == iv.setting
    np.testing.assert_array_equal(edited_acts(back, two.own), edited_acts(iv, two.own))
    assert load_intervention(tmp_path/"iv.safetensors").edit == edit


def test_what_cannot_be_done_is_said(two, monkeypatch):
    r, none = fit_ranges(two.x, two.y, "full", statistics=two.st), torch.zeros(1, 2)
    for e in FROM_ACTS:
        with pytest.raises(InputError, match=f"edit '{e}' draws from activations: give plan acts= and labels="):
            plan(two.st, [two.ranking], r, "residual.0", edit=e)
    for f, why in ((exchange, "about.rows"), (partner, "about.near"), (aura, "about.auroc")):
        with pytest.raises(InputError, match=why): f(none, Neurons(*torch.ones(4, 2)))
    for f in (auxiliary_rows, lambda *a: partner_rows(*a, two.st.mean[0], two.st.sd[0]), auroc_of):
        with pytest.raises(InputError, match="nothing to put in: every example is of class 0"): f(two.own, np.zeros(300, int), 0)
    for f in (lambda *a: partner_rows(*a, two.st.mean[0], two.st.sd[0]), auroc_of):
        with pytest.raises(InputError, match="nothing to learn from: no example is of class 1"): f(two.x, 2*two.y, 1)
    from neuronlens.ground import machine
    monkeypatch.setattr(machine, "free_memory", lambda *a: 1000)
    for e in LOOKED_UP:
        with pytest.raises(InputError, match="would take .* of memory"): one(two, e)


def test_the_cost_is_said_before(two, monkeypatch):
    from neuronlens.edits import partners
    told = []
    monkeypatch.setattr(partners, "say", told.append)
    one(two, "partner")
    assert len(told) == 1 and told[0].startswith("matching 900 rows one to one: about ")


@pytest.mark.parametrize("edit", LOOKED_UP)
def test_only_open_gates_are_looked_up(two, edit, monkeypatch):
    "Rows whose gate is closed cost no product and stay as they are."
    iv = replace(one(two, edit), lo=torch.full((8, 1), 0.), hi=torch.full((8, 1), 1e9), vote=.6, covers="salient")
    seen, plain = [], room.EDITS[edit]
    monkeypatch.setitem(room.EDITS, edit, lambda x, *a: seen.append(x) or plain(x, *a))
    x = torch.as_tensor(two.x[::20])
    out, gate = iv(x)
    rows = gate.any(-1)
    assert 0 < rows.sum() < len(x) and len(seen) == 1 and torch.equal(seen[0], x[rows])
    assert torch.equal(out[~rows], x[~rows]) and gate[rows].all() and (out[rows] != x[rows]).any(-1).all()


# --- a running model

SITES = ["residual.2", "residual.0", "mlp.1"]


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def case(request):
    clf = classifier(request.param)
    return clf, record(clf, LABELLED, SITES, progress=False)


def every(clf, rec, **kw):
    at = everywhere(clf, TEXTS, SITES)
    ivs = grid(rec, edit=NEW, range="gaussian(1.3)", concept=[1], fraction=1., **kw)
    return [clear(iv, at[iv.site]) for iv in ivs if iv.condition != "random"]


def alone(clf, iv):
    "Probabilities with a plain hook, text by text, unpadded; all positions of a text take what its readout draws."
    out = np.empty((len(TEXTS), 3), np.float32)
    def change(h):
        of = h[:, :1] if clf.readout == "first" else h[:, -1:]
        open_ = torch.stack([iv(row)[1] for row in h[0]])
        new = EDITS[iv.edit](of if iv.edit == "exchange" else h, iv.state, *([] if iv.edit == "aura" else [iv.seed]))
        return torch.where(open_[None], new.expand_as(h).to(h), h)
    with torch.inference_mode():
        for b in batches(encode(clf, TEXTS), tokens=1, fill=clf.pad_id):
            out[b.rows] = logits(clf, b, edits={iv.site: change}).softmax(-1).numpy()
    return out


STEEP = 300 # How many times what is put in may move more than what it is drawn by


def near(got, want, clf, what=""): same_answers(got, want, clf, what, STEEP)


@pytest.mark.parametrize("how", [dict(), dict(vote=.5, covers="salient")], ids=["range", "salient"])
def test_a_text_takes_the_same_however_it_is_read(case, how):
    "Alone and in a batch, padded, from a recording and anew: what a hook on each text alone gives."
    clf, rec = case
    ivs = every(clf, rec, **how)
    want = [alone(clf, iv) for iv in ivs]
    order = np.array([3, 0, 5, 1, 4, 2])
    for given, tokens in ((None, 1), (None, 4096), (rec, 40)):
        out = ablate(clf, LABELLED, ivs, recording=given, tokens=tokens, progress=False)
        for iv, after, hooked in zip(ivs, out.after, want, strict=True): near(after, hooked, clf, (iv, iv.site, given, tokens))
    assert np.mean([answers_apart(after, out.before, clf) > BEYOND for after in out.after]) > .6
    mixed = ablate(clf, take(LABELLED, order), ivs, tokens=30, progress=False)
    for iv, after, hooked in zip(ivs, mixed.after, want, strict=True): near(after, hooked[order], clf, iv)


def test_a_text_draws_once(case):
    "At the first site all positions of a text hold the values of one and the same other row; other texts hold others."
    clf, rec = case
    iv = next(iv for iv in every(clf, rec, site="residual.0") if iv.edit == "exchange" and iv.range == "full")
    enc = encode(clf, TEXTS)
    wide = pad(enc.ids, enc.special, np.arange(len(TEXTS)), fill=clf.pad_id, length=max(map(len, enc.ids))+3)
    with torch.inference_mode():
        h = run(clf, wide, [iv.site])[iv.site]
        at = torch.zeros(len(TEXTS), dtype=int) if clf.readout == "first" else wide.mask.shape[1]-1-wide.mask.flip(1).argmax(1)
        new = iv(h, of=h[torch.arange(len(h)), at][:, None])[0]
        want = exchange(h[torch.arange(len(h)), at], iv.state)
    assert torch.equal(new, want[:, None].expand_as(new)) and len(want.unique(dim=0)) > 1


def test_arrays_alone(case):
    clf, rec = case
    ivs = every(clf, rec, site="residual.2")
    out = ablate(clf, LABELLED, ivs, recording=rec, progress=False)
    for iv, after in zip(ivs, out.after, strict=True): near(answers_to(clf, edited_acts(iv, rec.acts)), after, clf, iv)


@pytest.mark.parametrize("scope", ["position", "text"])
def test_a_text_that_is_looked_at(case, scope):
    "The view of one text puts in what a run of all of them does."
    clf, rec = case
    ivs = [iv for iv in grid(rec, site="residual.0", edit="exchange", range="gaussian(1.3)", concept=[1], fraction=1., scope=scope)]
    out = ablate(clf, LABELLED, ivs, progress=False)
    for k, text in enumerate(TEXTS):
        seen = edit_text(clf, text, ivs)
        near(seen.answers["range"], out.after[1, k], clf)
        if len(seen.neurons):
            row = exchange(torch.as_tensor(rec.at("residual.0")[k:k+1]), ivs[1].state)[0].numpy()
            agree(seen.neurons.new, row[seen.neurons.neuron], clf.model, size=STEEP*np.abs(row).max())


def test_fitted_at_tokens(case):
    "Other tokens' values; in plans, sweeps, settings and a preset of one's own, by name."
    clf, rec = case
    tok = record_tokens(clf, LABELLED, SITES, most=None, progress=False)
    ivs = grid(rec, site="residual.0", edit=NEW, vote=.5, covers="salient", fitted_at="tokens", tokens=tok)
    x = tok.at("residual.0")
    for iv in ivs:
        if iv.edit == "exchange": assert len(iv.state.rows) == (tok.labels != tok.classes.index(iv.concept)).sum()
        if iv.edit != "aura": assert all((np.abs(x-r).max(1) == 0).any() for r in iv.state.rows.numpy())
    assert set(effects_on(clf, LABELLED, ivs, progress=False).frame.edit) >= set(NEW)
    said = [Setting("a", site="residual.0", edit=e, vote=.5, covers="salient", seed=2) for e in NEW]
    for s, iv in zip(said, interventions(rec, said), strict=True): assert iv.setting.edit == s.edit and iv.seed == 2
    own = Preset("swap", "range", ("dprime",), ("posterior",), tuple(NEW), (.5,), (1.,))
    assert [iv.edit for iv in preset_grid(rec, own, site="residual.0", concept=[0])] == NEW


def test_states_are_shared(case):
    "Interventions that differ in fraction, ranking or vote hold the same tables; those of other seeds their own."
    clf, rec = case
    ivs = grid(rec, site="residual.0", edit="partner", vote=[0., .5], fraction=[.5, 1.], concept=[0])
    assert len({id(iv.state.rows) for iv in ivs}) == 1
    parts = Parts(class_statistics(rec.at("residual.0"), rec.labels), [rank(rec.at("residual.0"), rec.labels, "dprime")], [],
                  rec.at("residual.0"), rec.labels)
    a, b = (parts(Setting("0", "full", "residual.0", range="full", edit="exchange", seed=s)) for s in (0, 1))
    assert a.state.rows is not b.state.rows


# --- while it writes

def written(model, ids, iv, n=5):
    "Greedy continuation and scores of one prompt, whole text, no cache: all steps take the row that the end of the prompt draws."
    out, scores, P = list(ids), [], len(ids)
    def change(h):
        of = h[:, P-1:P] if iv.edit == "exchange" else h
        allow = torch.tensor([t in dict(all=range(len(out)), prompt=range(P), generated=range(P, len(out)), readout=[P-1])[iv.positions]
                              for t in range(len(out))])
        gate = iv(h)[1] & allow[:, None]
        return torch.where(gate, EDITS[iv.edit](of, iv.state, *([] if iv.edit == "aura" else [iv.seed])).to(h).expand_as(h), h)
    for _ in range(n):
        with nl.hooks.hooked(model, {iv.site: change}): scores.append(model(torch.tensor([out]), use_cache=False).logits[0, -1])
        out.append(int(scores[-1].argmax()))
    return out[P:], torch.stack(scores)


@pytest.mark.parametrize("positions", ["all", "prompt", "generated", "readout"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("edit", NEW)
def test_generation_is_exact(name, positions, edit):
    "A left-padded batch with a cache and without one writes what every row writes alone; beams and steps keep the row of their prompt."
    model = tiny_lm(name)
    acts = torch.cat([states_at(model, ("residual", 0), [(i+k) % 99 for i in p*3]) for p in PROMPTS for k in (0, 20, 40)]).detach()
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=len(acts))
    st = class_statistics(acts.numpy(), y)
    made = Parts(st, [rank(acts.numpy(), y, "dprime", statistics=st)], [fit_ranges(acts.numpy(), y, "gaussian(1.2)", statistics=st)],
                 acts.numpy(), y)
    how = dict(range="gaussian(1.2)", vote=.5, covers="salient", fraction=1.)
    iv = made(Setting("0", site="residual.0", edit=edit, positions=positions, **how))
    ids, mask = left_padded(PROMPTS)
    wanted = [written(model, p, iv) for p in PROMPTS]
    for kw, cache in ((dict(mask=mask), True), (dict(prompt_length=ids.shape[1]), True), (dict(mask=mask), False)):
        with editing(model, [iv], **kw):
            out = model.generate(ids, attention_mask=mask, pad_token_id=1, use_cache=cache, **ENDLESS)
        for row, (tokens, scores) in enumerate(wanted):
            agree(torch.stack(out.logits)[:, row], scores, model, size=STEEP*scores.abs().max().item(), what=kw)
            assert out.sequences[row, ids.shape[1]:].tolist() == tokens, kw
    if edit == "exchange" and positions == "all":
        with editing(model, [iv], mask=mask), pytest.raises(InputError, match="edit 'exchange' asks at the end of the prompt"):
            model(ids[:, :3], attention_mask=mask[:, :3], use_cache=True)


def test_plain_text_is_read_alike():
    "Perplexity of windows in a batch is that of each alone."
    model, tok = tiny_lm("llama"), make_tokenizer(brackets=False)
    acts = torch.cat([states_at(model, ("residual", 1), [(i+k) % 99 for i in p*3]) for p in PROMPTS for k in (0, 20)]).detach().numpy()
    y = np.arange(len(acts)) % 2
    st = class_statistics(acts, y)
    iv = Parts(st, [rank(acts, y, "dprime", statistics=st)], [], acts, y)(Setting("0", "full", "residual.1", range="full", fraction=1.,
                                                                                  edit="exchange"))
    texts = [" ".join(VOCABULARY[i:i+n]) for i, n in ((0, 9), (3, 20), (11, 5))]
    def losses(t): return perplexities(model, tok, t, {"one": [iv]}, window=16, stride=8)["one"].losses
    agree(losses(texts), np.concatenate([losses([t]) for t in texts]), model, size=STEEP*20)
    assert np.abs(losses(texts)-perplexities(model, tok, texts, {"one": []}, window=16, stride=8)["one"].losses).max() > .1


def test_shots_cannot_wait_for_the_text():
    "Shots that were read before are edited by no row that the text decides; at the readout, and with the shots in every text, it works."
    clf = prompted()
    iv = firing(clf, "residual.1")
    iv = replace(iv, edit="exchange", state=iv.state._replace(rows=torch.randn(7, iv.width)))
    with pytest.raises(InputError, match="shots are read before the text that edit 'exchange' asks; edit positions 'readout'"):
        ablate(clf, texts(), [iv], progress=False)
    whole = ablate(clf.whole(), texts(), [replace(iv, positions="readout")], progress=False)
    kept = ablate(clf, texts(), [replace(iv, positions="readout")], progress=False)
    agree(kept.after, whole.after, clf, size=STEEP)
    one_by_one = ablate(clf.whole(), texts(), [iv], tokens=1, progress=False)
    agree(ablate(clf.whole(), texts(), [iv], progress=False).after, one_by_one.after, clf, size=STEEP)
