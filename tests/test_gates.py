"""Votes that count by weight: learned on what is planted, exact in every pass, the same out of files, in tables and by name."""
from dataclasses import replace
from math import fsum

import numpy as np
import pytest
import torch
from test_architectures import LABELLED, TEXTS, classifier
from test_language import ENDLESS, PROMPTS, left_padded, states_at, tiny_lm
from test_portable import TEXTS as LINES
from test_portable import classifier as for_files
from test_portable import found, raw
from tiny import BEYOND, answers_apart, everywhere, intervention, readout_places, same_answers

import neuronlens as nl
from neuronlens.arrays.gates import exact_votes, learn_gate
from neuronlens.arrays.ranges import Ranges, fit_ranges
from neuronlens.arrays.saliency import rank
from neuronlens.arrays.statistics import class_statistics
from neuronlens.edits.ablation import ablate, edited_acts, firing
from neuronlens.edits.edit import Intervention, Votes, load_intervention
from neuronlens.edits.effects import load_effects, measure_effects
from neuronlens.edits.evidence import compare, intervals
from neuronlens.edits.farm import packed, unpacked
from neuronlens.edits.language import editing
from neuronlens.edits.planning import plan
from neuronlens.edits.portable import load_edit, make_edit
from neuronlens.edits.presets import Preset, preset_grid
from neuronlens.edits.sweeps import grid, interventions
from neuronlens.ground.core import InputError
from neuronlens.ground.rounding import agree
from neuronlens.ground.setting import Setting
from neuronlens.models.batches import batches, encode
from neuronlens.models.hooks import hooked, logits, run
from neuronlens.records.given import recording
from neuronlens.records.tokens import record_tokens
from neuronlens.studies.cli import _how
from neuronlens.studies.report import _how as _clauses
from neuronlens.studies.saved import load_study, save_study
from neuronlens.studies.spec import MethodSpec, StudySpec, parse_study, read_study, write_study
from neuronlens.views.erase_view import EraseView, words_of
from neuronlens.views.plot_effects import _named

pytestmark = pytest.mark.usefixtures("one_thread")


def weighed(iv, q=.5, seed=0, acts=None, **kw):
    "An intervention whose neurons vote with random weights; enough is a number between the sums of two activations."
    w = torch.zeros(iv.width)
    w[iv.neurons] = torch.randn(len(iv.neurons), generator=torch.Generator().manual_seed(seed))
    sums = sorted({fsum(w[inside(iv, row)].tolist()) for row in acts.tolist()})
    n = min(max(1, round(q*len(sums))), len(sums)-1)
    return replace(iv, votes=Votes(w, torch.tensor([(sums[n-1]+sums[n])/2])), vote="weighted", **kw)


def inside(iv, row):
    "Salient neurons of one position that are in range, one after the other."
    return [j for j in iv.neurons.tolist() if any(a <= row[j] <= b for a, b in zip(iv.lo[j].tolist(), iv.hi[j].tolist(), strict=True))]


def opened(iv, row):
    "The neurons that are edited at one position, by hand."
    found = inside(iv, row)
    if fsum(iv.votes.weights[found].tolist()) < iv.votes.least.item(): return []
    return iv.neurons.tolist() if iv.covers == "salient" else found


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def clf(request): return classifier(request.param)


@pytest.mark.parametrize("covers", ["range", "salient"])
@pytest.mark.parametrize("site", ["residual.0", "mlp.1", "residual.2"])
def test_a_pass_is_what_is_written_by_hand(clf, site, covers):
    "Every position weighed by a loop, in the whole model on one text at a time: in batches and, at the top, from a recording."
    acts = next(iter(everywhere(clf, TEXTS, [site]).values()))
    iv = intervention(acts, site, "zero", near=0, least=1e-5)
    iv = weighed(iv, acts=acts, covers=covers)
    want, fires = np.empty((len(TEXTS), 3), np.float32), np.empty(len(TEXTS))
    with torch.inference_mode():
        for b in batches(encode(clf, TEXTS), tokens=1, fill=clf.pad_id):
            x = run(clf, b, {iv.site})[iv.site][0]
            own, new = [opened(iv, row) for row in x.tolist()], x.clone()
            for row, js in zip(new, own, strict=True): row[js] = 0.
            want[b.rows] = logits(clf, b, edits={iv.site: lambda h, new=new: new[None]}).softmax(-1).numpy()
            fires[b.rows] = len(own[readout_places(clf.readout, b.special[0].tolist())[0]])/len(iv.neurons)
    rec = nl.record(clf, LABELLED, site, progress=False)
    for kw in (dict(), dict(tokens=1), dict(recording=rec)):
        out = ablate(clf, LABELLED, [iv, replace(iv, vote=.5), iv], progress=False, **kw)
        same_answers(out.after[0], want, clf)
        agree(out.fires[0], fires, 4)
        np.testing.assert_array_equal(out.after[0], out.after[2])
    same = [bool(opened(iv, row)) == (len(inside(iv, row)) >= 3) for row in acts.tolist()]
    assert not all(same) # Another gate than that of half of them
    if site != "residual.2": assert answers_apart(want, out.before, clf) > BEYOND


def edited_rows(iv, row): return [0. if j in opened(iv, row.tolist()) else v for j, v in enumerate(row.tolist())]


def test_a_text_is_weighed_once(clf):
    "With scope 'text' the readout alone is asked, and what it says holds everywhere."
    acts = next(iter(everywhere(clf, TEXTS, ["residual.0"]).values()))
    iv = weighed(intervention(acts, "residual.0", "zero", near=0, least=1e-5), acts=acts, scope="text", covers="salient")
    out = ablate(clf, LABELLED, [iv], progress=False)
    with torch.inference_mode():
        for b in batches(encode(clf, TEXTS), tokens=1, fill=clf.pad_id):
            at = readout_places(clf.readout, b.special[0].tolist())[0]
            js = opened(iv, run(clf, b, {iv.site})[iv.site][0, at].tolist())
            edit = lambda h, js=js: h.index_fill(-1, torch.tensor(js, dtype=int), 0.)
            same_answers(out.after[0][b.rows], logits(clf, b, edits={iv.site: edit}).softmax(-1).numpy(), clf)


@pytest.mark.parametrize("vote", [1/6, .4, .5, .51, 5/6, 1.])
def test_equal_weights_are_a_share(clf, vote):
    acts = next(iter(everywhere(clf, TEXTS, ["mlp.1"]).values()))
    iv = intervention(acts, "mlp.1", "mean", vote=vote, near=0, least=1e-5)
    for each in (1/6, 1., 1/3): # However they are scaled
        w, least = exact_votes(np.full(6, each), vote*6*each)
        full = torch.zeros(iv.width).index_put((iv.neurons,), torch.from_numpy(w))
        by = replace(iv, votes=Votes(full, torch.tensor([least])), vote="weighted")
        for a, b in zip(by(acts), iv(acts), strict=True): assert torch.equal(a, b)
        np.testing.assert_array_equal(*(ablate(clf, LABELLED, [i], progress=False).after for i in (by, iv)))


def test_sums_do_not_depend_on_order():
    rng = np.random.default_rng(0)
    for k, size in ((5, 1.), (384, 1e-3), (4096, 30.)):
        w, _ = exact_votes(rng.normal(size=k)*size, 0.)
        x = torch.from_numpy(rng.permuted(np.tile(w, (40, 1)), axis=1))
        assert len({*x.sum(1).tolist(), fsum(w.tolist()), float(np.cumsum(w)[-1])}) == 1


@pytest.mark.parametrize("vote, opens", [("weighted(0.3)", True), ("weighted(0.7)", False), ("weighted", False)])
def test_a_gate_that_learned_nothing_goes_by_its_probability(vote, opens):
    "No neuron tells half of the texts from the other half: all of them or none."
    y = np.arange(200) % 2
    r = Ranges(np.full((2, 3, 1), -1, np.float32), np.full((2, 3, 1), 1, np.float32), "given", None, ("a", "b"))
    gate = learn_gate(np.zeros((200, 3)), y, r, [0, 1, 2], "a", vote=vote)
    assert abs(gate.probability([[0, 0, 0]])[0]-.5) < .01 and not gate.weights.any()
    assert gate.opens([[0, 0, 0], [9, 9, 9]]).tolist() == [opens]*2


def test_half_precision_opens_alike():
    "Weights stay float32 when the model runs in bfloat16, and under autocast."
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(1))
    iv = weighed(intervention(x, "residual.0", "zero"), acts=x, covers="salient")
    with torch.autocast("cpu", torch.bfloat16): assert torch.equal(iv(x)[1], torch.tensor(np.array([edited_rows(iv, r) for r in x])) != x)
    low = x.bfloat16()
    assert iv(low)[1].any(1).tolist() == [bool(opened(iv, r)) for r in low.float().tolist()]


# --- learned, and planned

@pytest.fixture(scope="module")
def planted():
    "Three topics; neurons 0 to 2 tell topic 0, the other nine lie in its range on all texts."
    rng = np.random.default_rng(1)
    y = np.arange(600) % 3
    x = np.where(rng.random((600, 12)) < .95, rng.uniform(-.9, .9, (600, 12)), 5.)
    x[:, :3] = np.where(rng.random((600, 3)) < np.where(y == 0, .9, .1)[:, None], 0., 5.)+rng.uniform(-.5, .5, (600, 3))
    def head(a): return np.c_[a[:, :3].mean(1) < 2.5, a[:, 3:5]]
    return recording(x.astype(np.float32), y, classes=["a", "b", "c"], head=head, scores="logits")


def ones(classes): return Ranges(np.full((3, 12, 1), -1, np.float32), np.full((3, 12, 1), 1, np.float32), "full", None, classes)


def planned(rec, **kw):
    st = class_statistics(rec.acts, rec.labels, rec.classes)
    ranking, how = rank(rec.acts, rec.labels, "dprime", statistics=st), dict(acts=rec.acts, labels=rec.labels)
    return plan(st, [ranking], ones(rec.classes), "given.0", fraction=[1.], **how, **kw)


def test_equal_votes_open_for_others_and_weighted_ones_do_not(planted):
    ivs = [iv for iv in planned(planted, vote=[.5, "weighted"], concept=["a"], covers="salient") if iv.condition == "range"]
    own, (equal, by) = planted.labels == 0, [firing(iv, planted.acts) for iv in ivs]
    assert equal[~own].mean() > .9 and by[~own].mean() < .1 and by[own].mean() > .85
    gate = learn_gate(planted, ones(planted.classes), ivs[1].neurons.numpy(), "a")
    np.testing.assert_array_equal(gate.opens(planted.acts), by > 0) # What is shown is what acts
    np.testing.assert_array_equal(ivs[1].votes.weights[ivs[1].neurons], gate.weights)
    assert abs(gate.own-by[own].mean()) < .15 and abs(gate.other-by[~own].mean()) < .1


def test_the_same_seed_learns_the_same_and_shares_it(planted):
    "Interventions that differ in edit share their weights, so that what is the same runs once; another seed parts texts otherwise."
    a, b = (planned(planted, vote="weighted", edit=["mean", "zero"], seed=s) for s in (0, 0))
    for x, y in zip(a, b, strict=True): assert x.votes is y.votes is None or torch.equal(x.votes.weights, y.votes.weights)
    assert len({id(iv.votes) for iv in a if iv.votes}) == 3*2 # Range and random of each class, for both edits
    other = planned(planted, vote="weighted", edit=["mean", "zero"], seed=3)
    assert any(not torch.equal(x.votes.weights, y.votes.weights) for x, y in zip(a, other, strict=True) if x.votes)


def test_tables_and_settings(planted, tmp_path):
    "A column of shares and words: kept, chosen from, compared, and planned from again."
    ivs = planned(planted, vote=[0., .5, "weighted", "weighted(0.8)"])
    out = ablate(planted, ivs)
    effects = measure_effects(out)
    assert {*effects.frame.vote} == {0., .5, "weighted", "weighted(0.8)"}
    assert all(i.setting.vote == 0. for i in ivs if i.condition == "full")
    kept = load_effects(effects.save(tmp_path/"e.csv"))
    assert kept.frame.vote.tolist() == effects.frame.vote.tolist() and kept.macro().vote.tolist() == effects.macro().vote.tolist()
    assert {*effects.only(vote="weighted", condition="range").frame.vote} == {"weighted", "weighted(0.8)"}
    assert {*effects.only(vote=.5).frame.vote} == {.5}
    sure = intervals(out, draws=20, progress=False)
    assert len(sure.table()) == len(effects.macro())
    assert type(sure).load(sure.save(tmp_path/"i.csv")).frame.vote.tolist() == sure.frame.vote.tolist()
    assert len(compare(out, dict(condition="range", vote="weighted(0.8)"), dict(condition="range", vote=.5), flips=99, draws=20).frame)
    assert "vote weighted(0.8)" in " ".join(_named(effects.frame).range) and effects.to_latex()
    assert nl.trade_off(effects).areas.preset.nunique() == 3
    chosen = nl.choose(effects, presets={"mixed": {}, "half": dict(vote=.5)})
    for shown in (effects, sure, chosen): assert "<table" in shown._repr_html_() # Numbers and words in one column
    own = Preset("heard", "range", ("dprime",), ("gaussian(1)",), ("mean",), ("weighted", .5), (1.,))
    assert [iv.vote for iv in preset_grid(planted, own, concept=["a"])] == ["weighted", .5]
    settings = [iv.setting for iv in ivs if iv.condition != "full"]
    again = interventions(planted, [replace(s, range="gaussian(1)") for s in settings])
    direct = grid(planted, fraction=1., range="gaussian(1)", vote=[0., .5, "weighted", "weighted(0.8)"])
    for x, y in zip(again, [d for d in direct if d.condition != "full"], strict=True):
        assert x.setting == y.setting and (x.votes is y.votes is None or all(map(torch.equal, x.votes, y.votes)))


def test_files(planted, tmp_path):
    "An intervention, what workers are sent, and tensors that are shared."
    ivs = planned(planted, vote=["weighted", .5])
    for iv in ivs[:4]:
        same = load_intervention(iv.save(tmp_path/"i.safetensors"))
        assert same.setting == iv.setting and torch.equal(same(torch.tensor(planted.acts))[0], iv(torch.tensor(planted.acts))[0])
    there = unpacked(packed(ivs))
    assert packed(there) == packed(ivs)
    for x, y in zip(there, ivs, strict=True): np.testing.assert_array_equal(edited_acts(x, planted.acts), edited_acts(y, planted.acts))
    plain = planned(planted, vote=.5)
    assert packed(plain) == packed([replace(iv, vote=iv.vote) for iv in plain]) and b"votes" not in packed(plain)


@pytest.mark.parametrize("setting", [dict(), dict(scope="text"), dict(positions="readout"), dict(covers="salient", site="mlp.0")])
def test_an_edit_that_left(setting, tmp_path):
    "After a file, on a model that someone else calls: what `ablate` has."
    clf = for_files()
    site = setting.get("site", "residual.1")
    rec = nl.record(clf, LINES, site, answers=False, progress=False)
    iv = weighed(found(clf, site), acts=torch.tensor(rec.acts), **{k: v for k, v in setting.items() if k != "site"})
    want = ablate(clf, LINES, [iv], progress=False)
    edit = load_edit(make_edit(clf, [iv, replace(iv, vote=.5, positions="generated")]).save(tmp_path/"e.safetensors"))
    assert torch.equal(edit.interventions[0].votes.weights, iv.votes.weights) and edit.interventions[1].votes is None
    with edit.on(clf.model, tokenizer=clf.tokenizer): same_answers(raw(clf.model, clf.tokenizer), want.after[0], clf)
    assert answers_apart(want.after[0], want.before, clf) > BEYOND
    bad = replace(iv, votes=iv.votes._replace(weights=iv.votes.weights.double()))
    with pytest.raises(InputError, match="weights is no float32 of 1 axes"): make_edit(clf, [bad])


def test_while_it_writes():
    "A left-padded batch with a cache writes what each prompt writes alone, without one."
    model = tiny_lm("llama")
    acts = torch.cat([states_at(model, ("residual", 0), [(i+k) % 99 for i in p*3]) for p in PROMPTS for k in (0, 20, 40)]).detach()
    iv = weighed(intervention(acts, "residual.0", "zero", near=0, least=1e-5), acts=acts, covers="salient")
    ids, mask = left_padded(PROMPTS)
    with editing(model, [iv], mask=mask): out = model.generate(ids, attention_mask=mask, pad_token_id=1, **ENDLESS)
    for row, p in enumerate(PROMPTS):
        said = list(p)
        for _ in range(5):
            change = lambda h: torch.stack([torch.tensor(edited_rows(iv, r)) for r in h[0]])[None]
            with torch.inference_mode(), hooked(model, {iv.site: change}): z = model(torch.tensor([said])).logits[0, -1]
            said.append(int(z.argmax()))
        assert out.sequences[row, ids.shape[1]:].tolist() == said[len(p):]


def many(rec): return recording(np.tile(rec.acts, (8, 1)), np.tile(rec.labels, 8), classes=rec.classes) # Enough to learn from


def test_at_tokens(clf):
    "Ranges of tokens: weights are learned on tokens where a token is asked, and on means where a text is asked at its mean."
    tok = record_tokens(clf, LABELLED, "residual.0", most=None, progress=False)
    mean = nl.record(clf, LABELLED, "residual.0", readout="mean", answers=False, progress=False)
    rec, st = many(tok), class_statistics(tok.acts, tok.labels, tok.classes)
    r, k = fit_ranges(tok.acts, tok.labels, "gaussian(1)", statistics=st), [rank(tok.acts, tok.labels, "dprime", statistics=st)]
    how = dict(acts=rec.acts, labels=rec.labels, vote="weighted", fitted_at="tokens", concept=[0], covers="salient", edit="zero")
    means = many(mean).acts, many(mean).labels
    token, text = (plan(st, k, r, "residual.0", means=means, scope=s, **how)[1] for s in ("position", "text"))
    for iv, of in ((token, rec), (text, many(mean))):
        gate = learn_gate(of, r, iv.neurons.numpy(), 0)
        np.testing.assert_array_equal(iv.votes.weights[iv.neurons], gate.weights)
    out = ablate(clf, LABELLED, [text, token], progress=False)
    opens = learn_gate(many(mean), r, text.neurons.numpy(), 0).opens(mean.acts)
    np.testing.assert_array_equal(out.fires[0], opens.astype(np.float32)) # A text is asked at the mean over its tokens
    with pytest.raises(InputError, match="learns from the mean over the tokens"): plan(st, k, r, "residual.0", scope="text", **how)


# --- refused, and said

def test_what_means_nothing(planted):
    ivs = planned(planted, vote="weighted")
    iv = ivs[1]
    for wrong, why in ((dict(votes=None), "vote 'weighted' needs weights, which `plan` learns"), (dict(votes=3), "needs weights"),
                       (dict(vote="weighted(2)"), "lies between 0 and 1"), (dict(vote="weighed"), "must be a number")):
        with pytest.raises(InputError, match=why): replace(iv, **wrong)
    for votes, why in ((iv.votes._replace(weights=torch.zeros(3)), r"are \[\[3\], \[1\]\], not \[\[12\], \[1\]\]"),
                       (iv.votes._replace(least=torch.tensor([torch.nan])), "no finite number")):
        with pytest.raises(InputError, match=why): ablate(planted, [replace(iv, votes=votes)])
    st = class_statistics(planted.acts, planted.labels, planted.classes)
    with pytest.raises(InputError, match="vote 'weighted' learns from activations: give plan acts= and labels="):
        plan(st, [], fit_ranges(None, None, statistics=st), "given.0", vote=["weighted"])
    with pytest.raises(InputError, match="10 texts of it and 10 others or more, not from 5 and 10"): planned(planted[:15], vote="weighted")
    assert replace(iv, vote=.5).votes is None and "vote weighted" in repr(iv)


def test_a_study(planted, tmp_path):
    "By name in its file, its table, its views and its report; a vote that is none is refused with the file's name."
    spec = StudySpec(method=MethodSpec(vote="weighted", range="gaussian(1)", fraction=[.5, 1.], ranking=["dprime"], covers="salient"))
    study = nl.run_study(spec, recordings=(planted[:400], planted[400:]), progress=False)
    assert {*study.effects.frame.vote} == {0., "weighted"} and _how(study.spec.method) == ", vote weighted, covers salient"
    write_study(study.spec, tmp_path/"s.toml")
    assert read_study(tmp_path/"s.toml").method.vote == "weighted" and "by weighted votes, lie in range together" in _clauses(study)
    save_study(study, tmp_path/"kept")
    back = load_study(tmp_path/"kept")
    assert back.effects.frame.vote.tolist() == study.effects.frame.vote.tolist() and back.spec.method.vote == "weighted"
    view = EraseView(study)
    assert view.values["vote"] == "weighted" and "where enough lie in range together (weighted)" in view.html()
    assert "where 50% lie in range" in view.set(vote=.5).html() and "'weighted'" in repr(view.set(vote="weighted"))
    for vote in ("most", "weighted(3)", "weighted(", [.5], True):
        with pytest.raises(InputError, match="^study: "): parse_study(dict(method=dict(vote=vote), data=dict(train="a.csv")))


def test_it_is_said(planted):
    assert MethodSpec(vote="weighted(0.9)").vote == "weighted(0.9)"
    assert "where enough lie in range together (weighted(0.9))" in words_of(Setting("a", vote="weighted(0.9)"), 3, 12)
    assert isinstance(planned(planted, vote="weighted")[1], Intervention)


def test_a_study_says_before_it_reads_that_a_vote_has_nothing_to_learn_from(bert, data, monkeypatch):
    "At the mean over tokens votes learn from a recording of means, which a study makes that reads these."
    monkeypatch.setattr("neuronlens.studies.study.record", lambda *a, **k: pytest.fail("it was recorded"))
    method = dict(vote="weighted", scope="text", fitted_at="tokens", layers=False)
    given = dict(data=dict(train=str(data.train), test=str(data.test)), model=dict(classifier=str(bert)), method=method)
    with pytest.raises(InputError, match="give means=, or a recording that keeps it"): nl.run_study(nl.spec.parse_study(given))
    with pytest.raises(pytest.fail.Exception, match="it was recorded"):
        nl.run_study(nl.spec.parse_study(given | dict(model=dict(classifier=str(bert), readout="mean"))))
