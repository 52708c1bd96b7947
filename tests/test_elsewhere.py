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
from neuronlens.edits.live import edit_text
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
    return replace(iv, vote=vote, covers="salient", scope=scope, asks=asks, concept="a")


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


WAYS = [("alone", dict()), ("alone", dict(at="mlp.2", far="residual.1")), ("alone", dict(far="attention.0", at="residual.1")), ("own", dict()),
        ("both", dict()), ("both", dict(vote="weighted"))]


@pytest.mark.parametrize("who, positions", product(["position", "text"], ["all", "readout"]))
@pytest.mark.parametrize("kind, how", WAYS, ids=[f"{k}-{'-'.join(h.values())}" for k, h in WAYS])
def test_a_pass_is_what_is_written_by_hand(clf, kind, how, who, positions):
    "Texts alone and in a padded batch; from texts and where a recording spares what it holds."
    iv = made(clf, TEXTS, kind, who=who, positions=positions, **how)
    ids = encode(clf, TEXTS)
    want = np.concatenate([forward(clf, iv, kind, torch.tensor([list(x)]), torch.ones(1, len(x), dtype=int)) for x in ids.ids])
    batch = pad(ids.ids, ids.special, np.arange(len(TEXTS)), fill=clf.pad_id)
    same_answers(forward(clf, iv, kind, batch.ids, batch.mask), want, clf)
    rec = nl.record(clf, LABELLED, str(iv.site), progress=False)
    for kw in (dict(), dict(tokens=1), dict(recording=rec)):
        out = ablate(clf, LABELLED, [replace(iv, scope=who), iv, replace(iv, condition="random")], progress=False, **kw) if how.get(
            "vote") is None else ablate(clf, LABELLED, [iv], progress=False, **kw)
        same_answers(out.after[min(1, len(out.after)-1)], want, clf, what=kw)
    assert 0 < out.fires[-1].mean() < 1 and set(out.fires[-1].tolist()) == {0., 1.}
    if len(out.after) > 1: np.testing.assert_array_equal(out.after[1], out.after[2])
    assert answers_apart(want, out.before, clf) > BEYOND or iv.site.block == 2 and positions == "all" and who == "position"
    assert not touched(clf.model)


def test_what_the_tests_above_would_miss(clf):
    "Another gate, another site, another joint: each moves the answers."
    iv = made(clf, TEXTS, "both")
    a, b = (ablate(clf, LABELLED, [x], progress=False).fires[0] for x in (iv, replace(iv, asks=iv.asks[::-1])))
    others = [made(clf, TEXTS, k, seed=s) for k, s in (("own", 0), ("alone", 0), ("both", 3))]
    assert (a != b).any() and all((ablate(clf, LABELLED, [x], progress=False).fires[0] != a).any() for x in others)
