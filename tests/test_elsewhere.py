"""Gates that are read at other sites, and gates of several concepts: what they say is what a forward written by hand says."""
import copy
from dataclasses import replace
from itertools import product
from math import ceil, fsum

import numpy as np
import pytest
import torch
from test_architectures import LABELLED, TEXTS, classifier, places
from test_language import ENDLESS, PROMPTS, left_padded, states_at, tiny_lm
from test_portable import TEXTS as LINES
from test_portable import classifier as for_files
from test_portable import raw
from tiny import BEYOND, answers_apart, everywhere, intervention, same_answers, touched

import neuronlens as nl
from neuronlens.edits.ablation import ablate, edited_acts, firing
from neuronlens.edits.asks import Ask, Votes
from neuronlens.edits.edit import load_intervention, tensors_of
from neuronlens.edits.effects import load_effects, measure_effects
from neuronlens.edits.farm import packed, unpacked
from neuronlens.edits.language import editing, firing_by_position
from neuronlens.edits.live import LiveEffects, asks_of, edit_text, scopes_of, usual
from neuronlens.edits.portable import load_edit, make_edit
from neuronlens.edits.reading import perplexity
from neuronlens.edits.sweeps import estimate, grid, interventions, sweep
from neuronlens.ground.core import InputError
from neuronlens.ground.rounding import agree
from neuronlens.ground.scopes import leaves
from neuronlens.ground.setting import Setting
from neuronlens.models.anatomy import parse_site
from neuronlens.models.batches import encode, pad
from neuronlens.models.hooks import hooked
from neuronlens.records.given import recording
from neuronlens.records.recording import record
from neuronlens.views.erase_view import EraseView, words_of

pytestmark = pytest.mark.usefixtures("one_thread")
JOINED = dict(alone="{who} at {far}", own="{who}: own and not b at {far}", both="{who}: own at {far} or not (b at {far} or c at {middle})")


def hand_gate(acts, seed, q=.5, weighted=False):
    "A gate of a few neurons whose ends, and whose threshold, lie away from what a model has there; and its vote."
    for s in range(seed, seed+40):
        try: iv = intervention(acts, "residual.0", seed=s, near=0, least=1e-5)
        except AssertionError: continue
        if not weighted: return Ask(iv.neurons, iv.lo, iv.hi)
        w = torch.zeros(iv.width)
        w[iv.neurons] = torch.randn(len(iv.neurons), generator=torch.Generator().manual_seed(s))
        ask = Ask(iv.neurons, iv.lo, iv.hi, Votes(w, torch.zeros(1)))
        sums = sorted({fsum(w[found(ask, r)].tolist()) for r in acts.tolist()})
        i = min(max(1, round(q*len(sums))), len(sums)-1)
        return ask._replace(votes=Votes(w, torch.tensor([(sums[i-1]+sums[i])/2])))


def found(ask, row):
    "Neurons that are asked and in range, one after the other."
    return [j for j in ask.neurons.tolist() if any(a <= row[j] <= b for a, b in zip(ask.lo[j].tolist(), ask.hi[j].tolist(), strict=True))]


def is_open(ask, row, vote):
    own = found(ask, row)
    if ask.votes is not None: return fsum(ask.votes.weights[own].tolist()) >= ask.votes.least.item()
    return len(own) >= ceil(vote*len(ask.neurons)-1e-9)


def decided(kind, own): # What the scopes of `JOINED` say, of what each gate says in its order
    return dict(alone=lambda a: a, own=lambda a, b: a and not b, both=lambda a, b, c: a or not (b or c))[kind](*own)


def made(clf, texts, kind, at="residual.2", far="residual.0", middle="mlp.1", who="position", positions="all", vote=.5, seed=0):
    "An edit with such a scope, its gates fitted by hand to what the model has."
    acts = {str(s): a for s, a in everywhere(clf, texts, {at, far, middle}).items()}
    if who == "text": acts = {s: torch.tensor(record(clf, texts_of(texts), s, answers=False, progress=False).at(s)) for s in acts}
    scope = JOINED[kind].format(who=who, far=far, middle=middle)
    asks = tuple(hand_gate(acts[leaf.site or at], seed+i, .4, vote == "weighted") for i, leaf in enumerate(leaves(scope)))
    iv = intervention(everywhere(clf, texts, [at]).popitem()[1], at, "mean", positions, seed=seed+7, near=0, least=1e-5)
    return replace(iv, vote=vote, covers="salient", scope=scope, asks=asks, concept=clf.classes[0])


def texts_of(texts): return LABELLED if texts is TEXTS else LINES


def forward(clf, iv, kind, ids, mask):
    "One pass with plain hooks of torch: one keeps what stands at every site where a gate is read, one edits row by row."
    seen, handles = {}, []
    at = {leaf.site or str(iv.site) for leaf in leaves(iv.setting.scope)}
    read = torch.zeros(mask.shape)
    ends = mask.argmax(1) if clf.readout == "first" else mask.shape[1]-1-mask.flip(1).argmax(1)
    read[range(len(mask)), ends] = 1

    def keep(site):
        def out(mod, args, out): seen[site] = (out[0] if isinstance(out, tuple) else out).clone()
        def into(mod, args): seen[site] = args[0].clone()
        return (out, "register_forward_hook") if site.startswith("residual") else (into, "register_forward_pre_hook")

    def edit(mod, args, out=None):
        h = (args[0] if out is None else out[0] if isinstance(out, tuple) else out).clone()
        seen[str(iv.site)] = h.clone()
        for n, t in product(range(h.shape[0]), range(h.shape[1])):
            if iv.positions == "readout" and not read[n, t]: continue
            asked = t if iv.scope == "position" else int(ends[n])
            rows = [seen[leaf.site or str(iv.site)][n, asked].tolist() for leaf in leaves(iv.setting.scope)]
            if decided(kind, [is_open(a, row, iv.vote) for a, row in zip(iv.asks, rows, strict=True)]):
                h[n, t, iv.neurons] = iv.state.rest_mean[iv.neurons]
        if out is None: return (h, *args[1:])
        return (h, *out[1:]) if isinstance(out, tuple) else h

    for site in sorted(at-{str(iv.site)}):
        hook, how = keep(site)
        handles.append(getattr(places(clf.model, parse_site(site)), how)(hook))
    handles.append(getattr(places(clf.model, iv.site), "register_forward_hook" if iv.site.stream == "residual" else
                           "register_forward_pre_hook")(edit))
    try:
        with torch.inference_mode(): return clf.model(input_ids=ids, attention_mask=mask).logits.float().softmax(-1).numpy()
    finally:
        for h in handles: h.remove()


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def clf(request): return classifier(request.param)


WAYS = [("bert", "alone", "position", "all", dict()), ("gpt2", "alone", "position", "all", dict(at="mlp.2", far="residual.1")),
        ("bert", "alone", "text", "all", dict(far="attention.0", at="residual.1")), ("gpt2", "alone", "text", "readout", dict()),
        ("bert", "alone", "position", "readout", dict(at="mlp.2", far="mlp.0")), ("gpt2", "own", "position", "all", dict(seed=1)),
        ("bert", "own", "text", "all", dict(at="mlp.1", seed=2)), ("bert", "both", "position", "all", dict(at="attention.2")),
        ("gpt2", "both", "text", "all", dict()), ("bert", "both", "position", "readout", dict(vote="weighted")),
        ("gpt2", "both", "text", "all", dict(vote="weighted"))]


@pytest.mark.parametrize("name, kind, who, positions, how", WAYS, ids=["-".join(map(str, [*w[:4], *w[4].values()])) for w in WAYS])
def test_a_pass_is_what_is_written_by_hand(name, kind, who, positions, how):
    "Texts alone and in a padded batch; from texts and where a recording spares what it holds."
    clf = classifier(name)
    iv = made(clf, TEXTS, kind, who=who, positions=positions, **how)
    ids = encode(clf, TEXTS)
    want = np.concatenate([forward(clf, iv, kind, torch.tensor([list(x)]), torch.ones(1, len(x), dtype=int)) for x in ids.ids])
    batch = pad(ids.ids, ids.special, np.arange(len(TEXTS)), fill=clf.pad_id)
    same_answers(forward(clf, iv, kind, batch.ids, batch.mask), want, clf)
    rec = nl.record(clf, LABELLED, str(iv.site), progress=False)
    for kw in (dict(), dict(tokens=1), dict(recording=rec)):
        out = ablate(clf, LABELLED, [replace(iv, edit="zero"), iv, replace(iv, condition="random")], progress=False, **kw)
        same_answers(out.after[1], want, clf, what=kw)
        np.testing.assert_array_equal(out.after[1], out.after[2]) # They do the same, and run once
    assert set(out.fires[1].tolist()) <= {0., 1.} and answers_apart(want, out.before, clf) > BEYOND
    assert not touched(clf.model)


def test_what_the_test_above_would_miss():
    "Another site, another joint, other neurons: each opens for other texts."
    clf = classifier("bert")
    fires = [ablate(clf, LABELLED, [made(clf, TEXTS, k, seed=s)], progress=False).fires[0].tolist()
             for k, s in (("both", 0), ("own", 0), ("alone", 0), ("both", 3))]
    assert len({*map(tuple, fires)}) > 2 and all(0 < sum(f) < len(TEXTS) for f in fires)


# --- an edit that left, and a model that writes

@pytest.mark.parametrize("kind, who", [("alone", "position"), ("both", "text"), ("own", "text")])
def test_an_edit_that_left(kind, who, tmp_path):
    "After a file, on a model that someone else calls: what `ablate` has, alone and in batches."
    clf = for_files()
    iv = made(clf, LINES.texts, kind, who=who, vote="weighted" if kind == "both" else .5)
    want = ablate(clf, LINES, [iv], progress=False)
    edit = load_edit(make_edit(clf, [iv, replace(iv, positions="generated")]).save(tmp_path/"e.safetensors"))
    assert all(map(torch.equal, tensors_of(edit.interventions[0]), tensors_of(iv)))
    model = copy.deepcopy(clf.model)
    with edit.on(model, tokenizer=clf.tokenizer) as running:
        for size in (1, 5): same_answers(raw(model, clf.tokenizer, size), want.after[0], clf, what=size)
    assert answers_apart(want.after[0], want.before, clf) > BEYOND and not touched(model)
    assert running.report().opened[0] > 0


def test_an_edit_below_moves_what_a_gate_reads():
    "Two edits on one model: the gate sees what stands at its site then."
    clf = for_files()
    iv = made(clf, LINES.texts, "alone", who="position")
    first = intervention(everywhere(clf, LINES.texts, ["residual.0"]).popitem()[1], "residual.0", "zero", seed=3, near=0, least=1e-5)
    edit = make_edit(clf, [iv, first])
    with edit.on(clf.model, tokenizer=clf.tokenizer): got = raw(clf.model, clf.tokenizer, 1)
    want = []
    with torch.inference_mode():
        for x in encode(clf, LINES.texts).ids:
            seen = {}
            def below(h, seen=seen): return seen.setdefault("residual.0", first(h)[0])
            with hooked(clf.model, {first.site: below, iv.site: lambda h, seen=seen: iv(h, seen=seen)[0]}):
                want.append(clf.model(input_ids=torch.tensor([list(x)])).logits.softmax(-1).numpy())
    same_answers(got, np.concatenate(want), clf)


@pytest.mark.parametrize("who", ["position", "text"])
def test_while_it_writes(who):
    "A left-padded batch with a cache writes what each prompt writes alone, without one; and its perplexity is that of a plain pass."
    model = tiny_lm("llama")
    acts = [torch.cat([states_at(model, ("residual", b), [(i+k) % 99 for i in p*3]) for p in PROMPTS for k in (0, 20, 40)]).detach()
            for b in (0, 1)]
    iv = intervention(acts[1], "residual.1", "zero", near=0, least=1e-5)
    asks = hand_gate(acts[1], 3), hand_gate(acts[0], 5)
    iv = replace(iv, vote=.5, covers="salient", scope=f"{who}: own or not own at residual.0", asks=asks)

    def plain(said, P, n):
        "Scores of the next token at every one, row by row."
        kept = []
        def edit(h):
            new = h.clone()
            for t in range(h.shape[1]):
                a, b = (is_open(k, x[0, t if who == "position" else P-1].tolist(), .5) for k, x in zip(iv.asks, (h, kept[-1]), strict=True))
                if a or not b: new[0, t, iv.neurons] = 0.
            return new
        with torch.inference_mode(), hooked(model, {parse_site("residual.0"): kept.append, iv.site: edit}):
            return model(torch.tensor([said]), use_cache=False).logits[0]

    ids, mask = left_padded(PROMPTS)
    with editing(model, [iv], mask=mask): out = model.generate(ids, attention_mask=mask, pad_token_id=1, **ENDLESS)
    for row, p in enumerate(PROMPTS):
        said, scores = list(p), []
        for _ in range(5):
            scores.append(plain(said, len(p), len(said))[-1])
            said.append(int(scores[-1].argmax()))
        agree(torch.stack(out.logits)[:, row], torch.stack(scores), model)
        assert out.sequences[row, ids.shape[1]:].tolist() == said[len(p):]
    assert not touched(model)


# --- planned, in tables, out of files

@pytest.fixture(scope="module")
def two():
    "A classifier, and recordings of its texts at three sites, many times over, so that something can be learned."
    clf = classifier("bert")
    rec = record(clf, LABELLED, ["residual.0", "mlp.1", "residual.2"], progress=False)
    many = {k: np.concatenate([a+.01*i for i in range(12)]) for k, a in rec.activations.items()}
    return clf, replace(rec, activations=many, labels=np.tile(rec.labels, 12), probabilities=np.tile(rec.probabilities, (12, 1)))


def same(a, b): return a.setting == b.setting and all(map(torch.equal, tensors_of(a), tensors_of(b)))


@pytest.mark.parametrize("vote", [.4, "weighted"])
def test_a_grid_asks_where_it_is_told(two, vote):
    "The gate at the other site is the one that an edit there would have; random neurons ask and are edited in its control."
    clf, rec = two
    how = dict(fraction=.5, range="gaussian(1)", vote=vote, covers="salient", concept=["a", "b"])
    there = grid(rec, site="residual.0", **how)
    ivs = grid(rec, site=["mlp.1", "residual.2"], gate_site="residual.0", **how)
    assert [iv.condition for iv in ivs] == ["full", "range", "random"]*4
    for iv, own in zip(ivs, there*2, strict=True):
        assert iv.concept == own.concept and (not iv.asks) == (iv.condition == "full")
        if not iv.asks: continue
        assert iv.setting.scope == "position at residual.0" and iv.scope == "position" and iv.votes is None
        assert torch.equal(iv.asks[0].neurons, own.neurons) and torch.equal(iv.asks[0].lo, own.lo)
        assert vote == .4 or torch.equal(iv.asks[0].votes.weights, own.votes.weights)
        h = rec.at("residual.0")
        np.testing.assert_array_equal(firing(iv, rec.at(iv.setting.site), {"residual.0": h}) == 1, firing(own, h) > 0)
    again = interventions(rec, [iv.setting for iv in ivs])
    assert all(map(same, again, ivs))
    joined = grid(rec, site="residual.2", gates="own at mlp.1 and not c", **how | dict(concept=["a"], scope="text"))[1]
    assert joined.setting.scope == "text: own at mlp.1 and not c" and len(joined.asks) == 2
    assert torch.equal(joined.asks[1].lo, grid(rec, site="residual.2", **how | dict(concept=["c"]))[1].lo)


def test_tables_and_files(two, tmp_path):
    "A column says it; it is chosen, measured, planned again, kept and sent."
    clf, rec = two
    how = dict(fraction=.5, range="gaussian(1)", vote=.4, covers="salient")
    ivs = grid(rec, site="residual.2", gate_site="residual.0", **how)
    out = ablate(clf, LABELLED, ivs, progress=False)
    effects = measure_effects(out)
    assert {*effects.frame.scope} == {"position", "position at residual.0"} and set(effects.frame) == set(measure_effects(ablate(
        clf, LABELLED, grid(rec, site="residual.2", **how), progress=False)).frame)
    kept = load_effects(effects.save(tmp_path/"e.csv"))
    assert kept.frame.scope.tolist() == effects.frame.scope.tolist() and len(kept.only(scope="position at residual.0").macro()) > 1
    swept = sweep(clf, rec, LABELLED, site="residual.2", gate_site="residual.0", progress=False, **how)
    np.testing.assert_allclose(swept.frame.target_accuracy, effects.frame.target_accuracy)
    assert estimate(clf, LABELLED, ivs, recording=record(clf, LABELLED, "residual.2", progress=False)).interventions == len(ivs)
    for iv in ivs[:3]: assert same(load_intervention(iv.save(tmp_path/"i.safetensors")), iv)
    weighed = grid(rec, site="residual.2", gates="own at mlp.1 or not b", **how | dict(vote="weighted"))
    assert all(map(same, unpacked(packed(ivs+weighed)), ivs+weighed))
    assert same(nl.load(weighed[1].save(tmp_path/"w.safetensors")), weighed[1])
    plain = grid(rec, site="residual.2", **how)
    assert b"asks" not in packed(plain) and "asks" not in str(plain[1].setting)


def test_what_is_read_of_rows_and_of_one_text(two):
    "Recorded rows, one text in a view, shares by position, and perplexity: all by the same gate."
    clf, rec = two
    iv = replace(made(clf, TEXTS, "both", who="position"), positions="readout")
    one = record(clf, LABELLED, ["residual.0", "mlp.1", "residual.2"], progress=False)
    out = ablate(clf, LABELLED, [iv], progress=False)
    left, share = edited_acts(iv, one.at("residual.2"), one.activations), firing(iv, one.at("residual.2"), one.activations)
    np.testing.assert_array_equal(share, out.fires[0])
    np.testing.assert_array_equal((left != one.at("residual.2")).any(1), share > 0)
    view = edit_text(clf, TEXTS[0], [iv])
    np.testing.assert_allclose(view.answers["range"], out.after[0, 0], atol=1e-5)
    assert bool(view.edited[0]) == bool(share[0])
    by = firing_by_position(clf, LABELLED, [iv])
    agree(by.fires_at_readout.to_numpy(), [share[LABELLED.labels == c].mean() for c in range(3)], 4)


def test_perplexity_is_that_of_a_plain_pass():
    lm = tiny_lm("llama")
    acts = [torch.cat([states_at(lm, ("residual", b), p*4) for p in PROMPTS]).detach() for b in (0, 1)]
    iv = intervention(acts[1], "residual.1", "zero", near=0, least=1e-5)
    iv = replace(iv, vote=.5, covers="salient", scope="position at residual.0", asks=(hand_gate(acts[0], 5),))

    class Words: # Of a tokenizer what is asked of one
        bos_token_id = eos_token_id = None
        def __call__(self, texts, **kw): return dict(input_ids=[[int(w) for w in t.split()] for t in texts])
    words = [5, 9, 14, 7, 22, 61, 30, 44]
    got = perplexity(lm, Words(), " ".join(map(str, words)), [iv], window=8, stride=4)
    kept, far = [], "residual.0"
    with torch.inference_mode(), hooked(lm, {parse_site(far): kept.append, iv.site: lambda h: iv(h, seen={far: kept[-1]})[0]}):
        z = lm(torch.tensor([words])).logits[0].double().log_softmax(-1)
    agree(got.losses.sum(), -sum(z[t, w] for t, w in enumerate(words[1:])).item(), lm, size=20.)


# --- refused, in one sentence, before anything slow

def test_what_cannot_be_done_is_refused(two):
    clf, rec = two
    how = dict(fraction=.5, range="gaussian(1)", vote=.4, covers="salient", concept=["a"])
    for wrong, why in ((dict(site="residual.0", gate_site="residual.2"), "asks at residual.2, which is not below residual.0"),
                       (dict(site="residual.2", gate_site="residual.1"), "asks at residual.1, where nothing is known: give `grid`"),
                       (dict(site="residual.2", gate_site="residual.0", covers="range"), "give covers 'salient'"),
                       (dict(site="residual.2", gates="own and not d"), "concept 'd' is none of a, b, c"),
                       (dict(site="residual.2", gates="own and"), "its end stands where a gate is named"),
                       (dict(site="residual.2", scope="text at residual.0", gates="own or b"), "says itself which gates are asked"),
                       (dict(site="residual.2", gate_site="residual.0", fraction=.01), "of the 16 neurons of residual")):
        with pytest.raises(InputError, match=why): grid(rec, **how | wrong)
    for s in (Setting("a", site="residual.2", scope="text at residual.1", vote=.4, covers="salient"),
              Setting("a", site="residual.0", scope="text at residual.2", vote=.4, covers="salient")):
        with pytest.raises(InputError, match="nothing is known|not below"): interventions(rec, s)
    iv = grid(rec, site="residual.2", gate_site="residual.0", **how)[1]
    x, few = rec.at("residual.2"), torch.zeros(9, 1)
    for call, why in ((lambda: iv(torch.tensor(x)), "a gate is read at residual.0, which is not at hand here"),
                      (lambda: edited_acts(iv, x), "which is not at hand here"),
                      (lambda: firing(iv, x, {"residual.0": x[:3]}), r"\[3, 16\] activations at residual.0 are not of the 72 rows"),
                      (lambda: replace(iv, asks=()), "asks 1 gates, which `grid` plans, not 0"),
                      (lambda: replace(iv, covers="range"), "give covers 'salient'"),
                      (lambda: ablate(clf, LABELLED, [replace(iv, scope="text at residual.2", site="residual.0")]), "not below residual.0"),
                      (lambda: ablate(clf, LABELLED, [replace(iv, asks=(Ask(torch.arange(3), few, few),))]), "ranges of 9 neurons, not"),
                      (lambda: make_edit(clf, [replace(iv, asks=(iv.asks[0]._replace(lo=iv.asks[0].lo.double()),))]), "are no float32")):
        with pytest.raises(InputError, match=why): call()
    assert replace(iv, scope="text").asks == () and "position at residual.0" in repr(iv)


def test_given_activations_and_studies():
    "A head knows of its own site alone: gates of several concepts are joined there, and one that is read elsewhere is refused."
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 8)).astype(np.float32), np.arange(90) % 3
    x[np.arange(90), y] += 4
    rec = recording(x, y, classes=["a", "b", "c"], head=lambda a: a[:, :3], scores="logits")
    how = dict(fraction=.5, range="gaussian(2)", vote=.75, covers="salient", concept=["a"])
    a, b = (grid(rec, **how | dict(concept=[c]))[1] for c in "ab")
    iv = grid(rec, gates="own and not b", **how)[1]
    want = (firing(a, x) > 0) & ~(firing(b, x) > 0)
    np.testing.assert_array_equal(ablate(rec, [iv], progress=False).fires[0], want)
    with pytest.raises(InputError, match="asks at residual.0, where|sites of blocks alone"): grid(rec, gate_site="residual.0", **how)
    with pytest.raises(InputError, match="scope 'text at residual.0' is none of position, text"):
        nl.spec.parse_study(dict(method=dict(scope="text at residual.0", vote=.5, covers="salient"), data=dict(train="a.csv"),
                                 model=dict(classifier="a")))


METHOD = dict(site="residual.-1", gate_site="residual.0", gates="own and not food", vote=.5, covers="salient", range="gaussian(1)",
              ranking=["dprime"], fraction=[.5], layers=False)


@pytest.mark.parametrize("more", [{}, dict(vote="weighted", scope="text"), dict(fitted_at="tokens", gates="")])
def test_a_study_asks_elsewhere(more, make_study, tmp_path):
    "By its file: what comes out is what `grid` plans; it is said, kept and loaded."
    study = nl.run_study(nl.read_study(make_study(method=METHOD | more)), progress=False)
    m, (texts, test) = study.spec.method, study.texts
    sites = [study.train.site, "residual.0"]
    train, tokens = record(study.clf, texts, sites, progress=False), nl.tokens.record_tokens(study.clf, texts, sites, progress=False)
    ivs = grid(train, tokens=tokens, site=study.train.site, **{k: getattr(m, k) for k in (
        "range", "ranking", "fraction", "vote", "covers", "scope", "gate_site", "gates", "fitted_at")})
    want = measure_effects(ablate(study.clf, test, ivs, progress=False)).frame
    got = study.effects.frame
    assert "residual.0" in got.scope[got.condition == "range"].iloc[0] and got.scope.tolist() == want.scope.tolist()
    for k in ("target_accuracy", "disturbance"): np.testing.assert_allclose(got[k], want[k], atol=1e-5)
    nl.saved.save_study(study, tmp_path/"kept")
    back = nl.load_study(tmp_path/"kept")
    assert back.spec.method == m and back.effects.frame.scope.tolist() == got.scope.tolist()


@pytest.mark.parametrize("more_gates", [dict(), dict(gates="", scope="text"), dict(fitted_at="tokens", gates="", scope="text")])
def test_views_ask_where_the_study_asks(more_gates, make_study):
    "What a view shows at the settings of the study is what its table has; other recorded blocks below are on offer, and ask there."
    study = nl.run_study(nl.read_study(make_study(method=METHOD | more_gates)), progress=False)
    own = study.effects.frame.query("condition == 'range'")
    assert asks_of(study) == usual(study).scope == own.scope.iloc[0] and scopes_of(study)[:3] == ["position", "text", own.scope.iloc[0]]
    x = replace(usual(study), concept="food", fraction=float(study.spec.method.fraction[0]))
    live = LiveEffects(study, len(study.test))
    got = measure_effects(live.outcome(x)).frame.query("condition == 'range' and concept == 'food'").iloc[0]
    want = own[(own.concept == "food") & (own.fraction == x.fraction) & (own.ranking == x.ranking)].iloc[0]
    assert not live.quick
    for k in ("target_accuracy", "disturbance", "fires_on_target"): np.testing.assert_allclose(got[k], want[k], atol=1e-5)
    there = replace(x, scope="text at residual.0")
    assert there.scope in scopes_of(study)
    tokens = study.tokens
    direct = next(iv for iv in grid(study.train, tokens=tokens, site=study.train.site, concept=["food"], ranking=x.ranking, seed=x.seed,
                                    fraction=x.fraction, range=x.range, vote=x.vote, edit=x.edit, covers="salient", scope="text",
                                    gate_site="residual.0", fitted_at=x.fitted_at) if iv.condition == "range")
    iv = next(iv for iv in live.plan((there,)) if iv.condition == "range")
    assert iv.setting == direct.setting and torch.equal(iv.asks[0].lo, direct.asks[0].lo)
    view, words = EraseView(study), words_of(x, 3, study.train.acts.shape[1])
    assert view.values["scope"] == x.scope and f"asked by the gate {x.scope!r}" in words
    assert "asked by the gate &#x27;text at residual.0&#x27;" in view.set(scope="text at residual.0").html()
    assert "give covers &#x27;salient&#x27;" in view.set(covers="range").html()


@pytest.mark.parametrize("more, says", [
    (dict(site="residual.0", gate_site="residual.1"), "not below"), (dict(gate_site="residual.9"), "block"),
    (dict(covers="range"), "give covers 'salient'"), (dict(gates="own and not foo"), "'foo'"),
    (dict(ranking=["gradient_x_activation"]), "with a gate_site, take rankings of activations"),
    (dict(gates="own and and"), "gate"), (dict(gate_site="latents"), "latents")])
def test_a_study_that_cannot_ask_is_refused(more, says, make_study, monkeypatch):
    "Before anything is recorded."
    monkeypatch.setattr("neuronlens.studies.study.record", lambda *a, **k: pytest.fail("it was recorded"))
    with pytest.raises(InputError, match=says): nl.run_study(nl.read_study(make_study(method=METHOD | more)), progress=False)
    with pytest.raises(InputError, match="activations are of one place"):
        nl.spec.parse_study(dict(activations=dict(train="a.npz"), method=dict(gate_site="residual.0", vote=.5, covers="salient")))


def test_shots_are_gated_as_the_text_is():
    "A prompted model whose shots were computed before: a gate below opens at their positions, too; a text is asked too late for them."
    from test_prompt import byte_tokenizer, language_model

    from neuronlens.models.prompt import Prompt
    from neuronlens.models.prompted import make_prompted
    prompt = Prompt("{text}\n", ("a", "b", "c"), ("cat", "rice", "nail"), (("a dog", 0),))
    asked = make_prompted(language_model("llama"), byte_tokenizer(), prompt, scoring="first", source="tiny", sha256="w")
    whole, texts = asked.whole(), replace(LABELLED, texts=["a cat", "b", "some soup", "old nail", "rice", "red"])
    rec = record(asked, texts, ["residual.0", "residual.1"], progress=False)
    iv = grid(rec, site="residual.1", gate_site="residual.0", fraction=.5, range="quantile(0.5)", vote=.3, covers="salient", edit="zero")[1]
    got, want = (ablate(c, texts, [iv], progress=False) for c in (asked, whole))
    assert asked.past and answers_apart(want.after, want.before[None], asked) > BEYOND
    same_answers(got.after, want.after, asked)
    with pytest.raises(InputError, match="shots are read before the text"): ablate(asked, texts, [replace(iv, scope="text at residual.0")])
