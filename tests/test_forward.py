"""Hooks reach the right tensor: forward passes written out by hand, one unpadded text at a time, in float64."""
import math

import numpy as np
import pytest
import torch
from tiny import BEYOND, answers_apart, by_hand, intervention, readout_places, same_answers, tiny_model

from neuronlens.edits.ablation import ablate, reads_recording
from neuronlens.ground.data import make_texts
from neuronlens.ground.rounding import agree, rounding, steps_of
from neuronlens.models.anatomy import Site, parse_site
from neuronlens.models.batches import batches, encode, pad
from neuronlens.models.hooks import EMBEDDING, before, logits, run
from neuronlens.models.model import Classifier
from neuronlens.records.recording import record

pytestmark = pytest.mark.usefixtures("one_thread")

BLOCKS = 3
SITES = [f"{s}.{b}" for s in ("residual", "mlp", "attention") for b in range(BLOCKS)]
TEXTS = ["5 6 7 8 9 10 11", "12 13 14", "15 16 17 18", "19 20", "21 5 22 6 23 7 24 8 25", "26 14 13 27 28"]
IDS = [[int(w) for w in t.split()] for t in TEXTS]
ENCODERS = ("bert",)
SHARES = 4 # Roundings behind a share of neurons and its mean over positions

# --- the pieces


def linear(x, w, b=None):
    return x @ w.T if b is None else x @ w.T + b


def layernorm(x, w, b, eps):
    d = x-x.mean(-1, keepdim=True)
    return d/((d*d).mean(-1, keepdim=True)+eps).sqrt()*w+b


def rmsnorm(x, w, eps):
    return x/((x*x).mean(-1, keepdim=True)+eps).sqrt()*w


def gelu(x):
    return x*(1+torch.erf(x/math.sqrt(2)))/2


def gelu_tanh(x):
    return x*(1+torch.tanh(math.sqrt(2/math.pi)*(x+.044715*x**3)))/2


def silu(x):
    return x/(1+torch.exp(-x))


def heads(x, n):
    "[T, n*d] to [n, T, d]"
    return x.reshape(len(x), n, -1).transpose(0, 1)


def rotate(x, theta):
    "Rotary positions from 0 on [n, T, d]: coordinates i and i+d/2 are one plane."
    half = x.shape[-1]//2
    angle = torch.arange(x.shape[1])[:, None].double()*theta**(-torch.arange(half).double()/half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a*angle.cos()-b*angle.sin(), b*angle.cos()+a*angle.sin()], -1)


def attend(q, k, v, causal):
    "Attention of [n, T, d] queries on as many or fewer heads of keys and values; heads side by side, [T, n*d]."
    k, v = (x.repeat_interleave(len(q)//len(x), 0) for x in (k, v))
    score = q @ k.transpose(1, 2)/math.sqrt(q.shape[-1])
    if causal: score = score.masked_fill(torch.ones(score.shape[1:]).triu(1).bool(), -math.inf)
    e = torch.exp(score-score.max(-1, keepdim=True).values)
    return (e/e.sum(-1, keepdim=True) @ v).transpose(0, 1).flatten(1)


# --- three classifiers; `at(site, x)` returns what goes on from a site


def bert(w, c, ids, at):
    x = w["bert.embeddings.word_embeddings.weight"][ids] + w["bert.embeddings.token_type_embeddings.weight"][0]
    x = x + w["bert.embeddings.position_embeddings.weight"][:len(ids)]

    def lin(name, x): return linear(x, w[f"{name}.weight"], w[f"{name}.bias"])
    def norm(name, x): return layernorm(x, w[f"{name}.LayerNorm.weight"], w[f"{name}.LayerNorm.bias"], c.layer_norm_eps)
    x = at("embedding.0", norm("bert.embeddings", x))
    for b in range(BLOCKS):
        p = f"bert.encoder.layer.{b}"
        q, k, v = (heads(lin(f"{p}.attention.self.{n}", x), c.num_attention_heads) for n in ("query", "key", "value"))
        y = lin(f"{p}.attention.output.dense", at(f"attention.{b}", attend(q, k, v, False)))
        x = norm(f"{p}.attention.output", y + x)
        h = at(f"mlp.{b}", gelu(lin(f"{p}.intermediate.dense", x)))
        x = at(f"residual.{b}", norm(f"{p}.output", lin(f"{p}.output.dense", h) + x))
    return lin("classifier", torch.tanh(lin("bert.pooler.dense", x[0])))


def gpt2(w, c, ids, at):
    def lin(name, x): return linear(x, w[f"{name}.weight"].T, w[f"{name}.bias"])
    def norm(name, x): return layernorm(x, w[f"{name}.weight"], w[f"{name}.bias"], c.layer_norm_epsilon)
    x = at("embedding.0", w["transformer.wte.weight"][ids] + w["transformer.wpe.weight"][:len(ids)])
    for b in range(BLOCKS):
        p = f"transformer.h.{b}"
        q, k, v = (heads(y, c.n_head) for y in lin(f"{p}.attn.c_attn", norm(f"{p}.ln_1", x)).chunk(3, -1))
        x = x + lin(f"{p}.attn.c_proj", at(f"attention.{b}", attend(q, k, v, True)))
        h = at(f"mlp.{b}", gelu_tanh(lin(f"{p}.mlp.c_fc", norm(f"{p}.ln_2", x))))
        x = at(f"residual.{b}", x + lin(f"{p}.mlp.c_proj", h))
    return linear(norm("transformer.ln_f", x)[-1], w["score.weight"])


def llama(w, c, ids, at):
    def lin(name, x): return linear(x, w[f"{name}.weight"])
    def norm(name, x): return rmsnorm(x, w[f"{name}.weight"], c.rms_norm_eps)
    x, theta = at("embedding.0", w["model.embed_tokens.weight"][ids]), c.rope_parameters["rope_theta"]
    for b in range(BLOCKS):
        p = f"model.layers.{b}"
        y = norm(f"{p}.input_layernorm", x)
        q, k, v = (heads(lin(f"{p}.self_attn.{n}_proj", y), h) for n, h in (("q", 2), ("k", 1), ("v", 1)))
        x = x + lin(f"{p}.self_attn.o_proj", at(f"attention.{b}", attend(rotate(q, theta), rotate(k, theta), v, True)))
        y = norm(f"{p}.post_attention_layernorm", x)
        h = at(f"mlp.{b}", silu(lin(f"{p}.mlp.gate_proj", y))*lin(f"{p}.mlp.up_proj", y))
        x = at(f"residual.{b}", x + lin(f"{p}.mlp.down_proj", h))
    return linear(norm("model.norm", x)[-1], w["score.weight"])


# --- the model under study and its double


class Numbers:
    "A tokenizer for texts that are written as token ids; the first and the last count as special."
    def get_vocab(self): return {str(i): i for i in range(99)}

    def __call__(self, texts, **kw):
        ids = [[int(w) for w in t.split()] for t in texts]
        special = [[int(t in (0, len(i)-1)) for t in range(len(i))] for i in ids]
        return {"input_ids": ids, "special_tokens_mask": special}


class Double:
    "A tiny classifier of the library, and the same by hand."
    def __init__(self, name):
        model = tiny_model(name)
        self.clf = Classifier(model, Numbers(), ("a", "b", "c"), "first" if name in ENCODERS else "last", 32)
        self.weights, self.forward = {k: v.double() for k, v in model.state_dict().items()}, globals()[name]
        answers, self.seen = zip(*map(self.one, IDS), strict=True)
        self.size = float(torch.stack(answers).abs().max()) # Of logits: those of one text may all be small

    def one(self, ids, edits=None):
        "Logits [C] of one text and every site's [T, D], after edits {site: [T, D] to [T, D]}."
        seen = {}

        def at(site, x):
            seen[site] = (edits or {}).get(site, lambda x: x)(x)
            return seen[site]
        with torch.no_grad(): return self.forward(self.weights, self.clf.model.config, ids, at), seen

    def logits(self, batch, edits=None):
        return torch.stack([self.one(IDS[r], edits)[0] for r in batch.rows])

    def same(self, got, want, what=""):
        "Logits agree, whatever those of a few texts happen to be."
        agree(got, want, self.clf, size=max(self.size, float(want.abs().max())), what=what)

    def moved(self, batch, edits):
        "The logits after edits, which are far from those before in every class of some text."
        want, plain = self.logits(batch, edits), self.logits(batch)
        assert (want-plain).abs().min(1).values.max() > BEYOND*rounding(self.size, steps_of(self.clf))
        return want

    def acts(self, site):
        "Activations [n, D] of all positions of all texts."
        return torch.cat([s[site] for s in self.seen])


@pytest.fixture(scope="module", params=["bert", "gpt2", "llama"])
def double(request):
    return Double(request.param)


def some(rows, **kw):
    "A batch of some texts."
    return pad([IDS[r] for r in rows], [[0]*len(IDS[r]) for r in rows], np.array(rows), fill=1, **kw)


BATCHES = {"single": some([4]), "right": some([0, 1, 2, 3, 4, 5]), "left": some([3, 0, 5, 1], side="left"),
           "longer right": some([5, 1], length=13), "longer left": some([5, 1, 2], length=13, side="left")}



def halve(h):
    "An edit of every third neuron, different at every value."
    return torch.where(torch.arange(h.shape[-1]) % 3 == 0, h/2-.3, h)


def negate(h):
    "An edit of the others."
    return torch.where(torch.arange(h.shape[-1]) % 3 == 1, -h, h)


def resumed(clf, batch, edits, start):
    "The library's logits with edits, resumed from the unedited state at `start`."
    return logits(clf, batch, start=(start, run(clf, batch, [start])[start]), edits=edits)


# --- the tests


@pytest.mark.parametrize("kind", BATCHES)
def test_reading(double, kind):
    "Every site holds what the hand-written pass has there, and the answer is the same."
    batch, sites = BATCHES[kind], [parse_site(s) for s in SITES]
    with torch.inference_mode():
        read, answer = run(double.clf, batch, sites), logits(double.clf, batch)
    double.same(answer, double.logits(batch))
    for site in sites:
        for got, mask, r in zip(read[site], batch.mask, batch.rows, strict=True):
            agree(got[mask == 1], double.seen[r][str(site)], double.clf, what=site)


def test_stock_model(double):
    "The hand-written pass is the stock model's, text by text."
    for r, ids in enumerate(IDS):
        with torch.inference_mode(): stock = double.clf.model(input_ids=torch.tensor([ids])).logits[0]
        double.same(stock, double.one(ids)[0], r)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("kind", BATCHES)
def test_edit(double, kind, site):
    "An edit moves the logits as it does by hand, in a whole run and in a run resumed from below."
    clf, batch, site = double.clf, BATCHES[kind], parse_site(site)
    want, lower = double.moved(batch, {str(site): halve}), before(site)
    with torch.inference_mode():
        double.same(logits(clf, batch, edits={site: halve}), want, "hooked")
        state = run(clf, batch, [lower])[lower]
        given = (lower, halve(state)) if lower == site else (lower, state)
        double.same(logits(clf, batch, start=given, edits={} if lower == site else {site: halve}), want, "resumed")
        for start in {EMBEDDING, Site("residual", 0)} if site.block == 2 else {EMBEDDING}:
            double.same(resumed(clf, batch, {site: halve}, start), want, f"resumed from {start}")


@pytest.mark.parametrize("kind", BATCHES)
def test_embedding(double, kind):
    "What goes into block 0 can be read, edited and given like any site."
    clf, batch = double.clf, BATCHES[kind]
    want = double.moved(batch, {"embedding.0": halve})
    with torch.inference_mode():
        state = run(clf, batch, [EMBEDDING])[EMBEDDING]
        double.same(logits(clf, batch, edits={EMBEDDING: halve}), want, "hooked")
        double.same(logits(clf, batch, start=(EMBEDDING, halve(state))), want, "resumed")
    for got, mask, r in zip(state, batch.mask, batch.rows, strict=True):
        agree(got[mask == 1], double.seen[r]["embedding.0"], double.clf)


@pytest.mark.parametrize("kind", BATCHES)
def test_two_edits(double, kind):
    "Edits at two sites of one pass are both made, and reading sees them."
    clf, batch, last = double.clf, BATCHES[kind], Site("residual", BLOCKS-1)
    for one, two in (("mlp.1", "residual.2"), ("attention.1", "mlp.1"), ("residual.1", "attention.2")):
        by_name = {one: halve, two: negate}
        edits = {parse_site(s): f for s, f in by_name.items()}
        with torch.inference_mode():
            double.same(logits(clf, batch, edits=edits), double.logits(batch, by_name), (one, two))
            double.same(resumed(clf, batch, edits, Site("residual", 0)), double.logits(batch, by_name), (one, two))
            read = run(clf, batch, [*edits, last], edits=edits)
        for i, (mask, r) in enumerate(zip(batch.mask, batch.rows, strict=True)):
            seen = double.one(IDS[r], by_name)[1]
            for site in read: agree(read[site][i][mask == 1], seen[str(site)], double.clf, what=site)


def hand_ablated(double, iv, readout):
    "Probabilities [N, C] and firing [N] by hand."
    probs, fires = [], []
    for ids, seen, special in zip(IDS, double.seen, Numbers()(TEXTS)["special_tokens_mask"], strict=True):
        read = readout_places(readout, special)
        edited, share = by_hand(iv, seen[str(iv.site)], read if iv.positions == "readout" else range(len(ids)))
        probs.append(double.one(ids, {str(iv.site): lambda x, e=edited: e})[0].softmax(-1))
        fires.append(sum(share[t] for t in read)/len(read))
    return torch.stack(probs), fires


LABELLED = make_texts(TEXTS, list("abcabc"))


@pytest.mark.parametrize("readout", ["first", "last", "mean"])
@pytest.mark.parametrize("positions", ["all", "readout"])
def test_intervention(double, positions, readout):
    "`ablate` answers as by hand at every site, text by text and in padded batches."
    ivs = [intervention(double.acts(s), s, ("zero", "mean")[i % 2], positions, i) for i, s in enumerate(SITES)]
    want, unedited = [hand_ablated(double, iv, readout) for iv in ivs], double.logits(BATCHES["right"]).softmax(-1)
    for tokens, n in ((1, 6), (20, 2), (4096, 1)):
        assert len(list(batches(encode(double.clf, TEXTS), tokens=tokens))) == n
        got = ablate(double.clf, LABELLED, ivs, readout=readout, tokens=tokens, progress=False)
        same_answers(got.before, unedited, double.clf)
        for iv, after, fires, (probs, share) in zip(ivs, got.after, got.fires, want, strict=True):
            same_answers(after, probs, double.clf, (iv.site, tokens))
            agree(fires, share, SHARES, what=(iv.site, tokens))
            if positions == "all" or readout == double.clf.readout: assert answers_apart(probs, unedited, double.clf) > BEYOND, iv.site


@pytest.mark.parametrize("positions", ["all", "readout"])
def test_intervention_on_a_recording(double, positions):
    "Spared passes change nothing: at the last block, what was recorded is enough."
    clf, site = double.clf, f"residual.{BLOCKS-1}"
    ivs = [intervention(double.acts(site), site, e, positions, s) for s in range(3) for e in ("zero", "mean")]
    rec = record(clf, LABELLED, site, progress=False)
    assert reads_recording(clf, rec, ivs)
    got = ablate(clf, LABELLED, ivs, recording=rec, progress=False)
    for i, iv in enumerate(ivs):
        probs, fires = hand_ablated(double, iv, clf.readout)
        same_answers(got.after[i], probs, clf, (iv.edit, i))
        agree(got.fires[i], fires, SHARES, what=(iv.edit, i))
