"""Any module as a site, and latents: what is read and edited there is what plain transformers has there, one text at a time."""
import copy
import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import LABELLED, TEXTS, Plainly, plain, tiny, word_tokenizer, written
from tiny import by_hand, clear, intervention, readout_places, same_answers, tiny_model, touched
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import neuronlens as nl
from neuronlens.edits.ablation import ablate
from neuronlens.edits.edit import linear_edit
from neuronlens.edits.language import editing, generate
from neuronlens.ground.core import InputError
from neuronlens.ground.rounding import agree, apart, score_size
from neuronlens.models.anatomy import Site, anatomy, parse_site
from neuronlens.models.batches import batches, encode
from neuronlens.models.hooks import START, before, logits, run
from neuronlens.models.latents import with_latents
from neuronlens.models.model import make_classifier
from neuronlens.models.prompt import Prompt
from neuronlens.models.prompted import make_prompted
from neuronlens.models.sites import find_site
from neuronlens.records.recording import load_recording, record, save_recording
from neuronlens.records.tokens import record_tokens

pytestmark = pytest.mark.usefixtures("one_thread")

SITES = { # Architecture: paths, and where a pass resumes to reach them
    "bert": {"bert.encoder.layer.1.output.LayerNorm": "residual.0", "bert.encoder.layer.0.attention.self": "embedding.0",
             "bert.encoder.layer.2.intermediate:in": "residual.1", "bert.encoder.layer.1": "residual.1",
             "bert.encoder.layer.1:in": "residual.0", "bert.encoder": "residual.2", "bert.encoder:in": "start.-2",
             "bert.embeddings.LayerNorm": "start.-2", "bert.pooler": "residual.2",
             "bert.pooler.dense:in": "residual.2", "classifier": "residual.2"},
    "roberta": {"classifier.dense": "residual.2", "roberta.encoder.layer.1.output.dense": "residual.0"},
    "distilbert": {"pre_classifier": "residual.2", "distilbert.transformer.layer.1.sa_layer_norm": "residual.0"},
    "gpt2": {"transformer.ln_f": "residual.2", "transformer.h.1.ln_2": "residual.0", "transformer.h.1.mlp.act": "residual.0",
             "transformer.drop": "start.-2", "score": "residual.2"},
    "llama": {"model.norm": "residual.2", "model.layers.1.self_attn.q_proj": "residual.0", "model.embed_tokens": "start.-2",
              "model.layers.0.mlp.up_proj": "embedding.0", "model.layers.2.self_attn": "residual.1", "score:in": "residual.2"},
    "qwen3": {"model.layers.1.self_attn.q_norm": "residual.0", "model.layers.1.self_attn.k_norm:in": "residual.0"},
    "modernbert": {"model.final_norm": "residual.2", "head": "residual.2", "model.layers.1.mlp_norm": "residual.0"},
    "opt": {"model.decoder.layers.1.fc1": "residual.0", "model.decoder.final_layer_norm": "residual.2"}}
CASES = [(name, site) for name, sites in SITES.items() for site in sites]
MADE = {}


def made(name):
    "A tiny classifier with a copy of its model that nothing has touched."
    if name not in MADE:
        model = tiny(name, AutoModelForSequenceClassification)
        fresh = copy.deepcopy(model)
        decoder = name in ("gpt2", "llama", "qwen3", "opt")
        MADE[name] = make_classifier(model, word_tokenizer(brackets=not decoder), ["a", "b", "c"]), fresh
    return MADE[name]


def seen(fresh, ids, site):
    "What one text has at a module of the plain model, `[T, D]`, or `[1, D]` for one vector."
    path, _, side = site.partition(":")
    kept = []

    def keep(x):
        kept.append(x.detach().clone())
        return x
    plain(fresh, ids, {path: (side == "in", on(keep))})
    x, = kept
    if x.ndim == 4: x = x.flatten(2) # Heads
    return x.reshape(-1, x.shape[-1])


def on(fn):
    "A function of what a module gives, also where that has names."
    def first(x):
        if not isinstance(x, dict): return fn(x)
        x = copy.copy(x)
        x[next(iter(x))] = fn(x[next(iter(x))])
        return x
    return first


def ids_of(clf): return [list(x) for x in encode(clf, TEXTS).ids]


def halve(h): return torch.where(torch.arange(h.shape[-1]) % 3 == 0, h/2-.3, h)


@pytest.mark.parametrize("name, site", CASES)
def test_reading(name, site):
    "What is recorded is what the module of the plain model has of each text alone, at every readout, however the texts are batched."
    clf, fresh = made(name)
    special = encode(clf, TEXTS).special
    want = [seen(fresh, ids, site) for ids in ids_of(clf)]
    for readout in ("first", "last", "mean"):
        for tokens in (None, 60):
            rec = record(clf, LABELLED, ["residual.1", site], readout=readout, tokens=tokens, progress=False)
            assert rec.sites == ["residual.1", site] and parse_site(site) == find_site(clf.model, site) and str(parse_site(site)) == site
            by = [w[readout_places(readout, s)].mean(0) if len(w) > 1 or len(s) == 1 else w[0] for w, s in zip(want, special, strict=True)]
            agree(rec.at(site), torch.stack(by), clf)
    assert not touched(clf.model)


@pytest.mark.parametrize("name, site", CASES)
def test_edits(name, site):
    "An edit does what it does to the plain model, in a whole pass, in one that resumes where it says, and in `ablate`."
    clf, fresh = made(name)
    path, _, side = site.partition(":")
    s, ids = find_site(clf.model, site), ids_of(clf)

    def edited(m, fn): return torch.stack([plain(m, x, {path: (side == "in", on(fn))})[:3] for x in ids])
    want = Plainly(fresh, lambda m: edited(m, lambda h: laid(h, halve)))
    at = before(s, anatomy(clf.model))
    assert str(at) == SITES[name][site]
    with torch.inference_mode():
        for batch in batches(encode(clf, TEXTS), tokens=150, fill=clf.pad_id):
            state = run(clf, batch, [at])[at]
            for kw in (dict(edits={s: halve}), dict(start=(at, state), edits={s: halve})):
                agree(logits(clf, batch, **kw), want.values[batch.rows], clf)
            assert apart(logits(clf, batch), want.values[batch.rows], clf) > 30
    rec = record(clf, LABELLED, site, progress=False)
    iv = clear(replace(intervention(torch.as_tensor(rec.acts), "residual.0", least=-1), site=site), everything(fresh, ids, site))
    out = ablate(clf, LABELLED, [iv], progress=False)
    by = torch.stack([plain(fresh, x, {path: (side == "in", on(lambda h: laid(h, lambda y: iv(y)[0])))})[:3].softmax(-1) for x in ids])
    same_answers(out.after[0], by, clf)
    assert not touched(clf.model) and str(iv.site) == site


def laid(h, fn):
    "An edit of `[.., D]` where heads, or texts and positions, have axes of their own."
    if h.ndim < 4: return fn(h)
    return fn(h.flatten(2)).reshape(h.shape)


def everything(fresh, ids, site): return torch.cat([seen(fresh, x, site) for x in ids])


def test_positions_of_one_vector():
    "At a pooler an edit is of the text, whatever its positions; of generated positions there are none; tokens cannot be recorded there."
    clf, fresh = made("bert")
    rec = record(clf, LABELLED, "bert.pooler", progress=False)
    iv = replace(intervention(torch.as_tensor(rec.acts), "residual.0"), site="bert.pooler")
    ivs = [replace(iv, positions=p) for p in ("all", "readout", "generated")]
    every, readout, none = ablate(clf, LABELLED, ivs, progress=False).after
    np.testing.assert_array_equal(every, readout)
    same_answers(none, rec.probabilities, clf)
    once = ablate(clf, LABELLED, [iv, replace(iv, scope="text"), replace(iv, scope="text", fitted_at="tokens")], progress=False)
    np.testing.assert_array_equal(once.after[0], once.after[1])
    np.testing.assert_array_equal(once.after[0], once.after[2])
    np.testing.assert_array_equal(once.fires[0], nl.ablation.firing(iv, rec.acts))
    with pytest.raises(InputError, match="one vector a text and none for each of its tokens"):
        record_tokens(clf, LABELLED, "bert.pooler", progress=False)
    with editing_on(clf, iv): said = torch.stack([plain_logits(clf.model, x) for x in ids_of(clf)])
    same_answers(every, said.softmax(-1), clf)


def editing_on(clf, iv):
    from neuronlens.models.hooks import hooked
    return hooked(clf.model, {iv.site: lambda h: iv(h)[0]})


def plain_logits(model, ids):
    with torch.no_grad(): return model(torch.tensor([ids])).logits[0]


def test_rest_of_the_library():
    "Tables, files, sweeps, attribution and estimates take such a site as any other."
    clf, _ = made("bert")
    site = "bert.encoder.layer.1.output.LayerNorm"
    rec = record(clf, LABELLED, site, progress=False)
    effects = nl.sweep(clf, rec, LABELLED, progress=False, site=site, fraction=[.5], ranking=["dprime"]).to_frame()
    assert {*effects.site} == {site} and len(effects) > 3
    for s in (site, "bert.pooler"):
        for method in ("gradient_x_activation", "integrated_gradients"):
            a = nl.attribution.attributions(clf, LABELLED, s, method, progress=False)
            assert np.isfinite(a.values).all() and a.site == s and (method[0] == "g" or np.abs(a.gap).max() < .1)


def test_saved(tmp_path):
    clf, _ = made("bert")
    rec = record(clf, LABELLED, ["bert.pooler:in", "bert.pooler"], progress=False)
    again = load_recording(save_recording(rec, tmp_path/"a.safetensors"))
    assert again.sites == rec.sites
    np.testing.assert_array_equal(again.acts, rec.acts)
    one = record(clf, LABELLED, ["bert.pooler:in", "bert.pooler"], progress=False, folder=tmp_path/"shards", size=2)
    two = record(clf, LABELLED, "bert.pooler", progress=False, folder=tmp_path/"s", size=2)
    np.testing.assert_array_equal(one.at("bert.pooler"), two.acts)


@pytest.mark.parametrize("site, why", [
    ("bert.encoder.layer.7.output", "the stream must be one of .* or a module of BertForSequenceClassification by its path"),
    ("pooler", "by its path, such as bert.pooler"), ("bert", "the answer does not hang on it"),
    ("bert.embeddings.word_embeddings:in", "what goes in first is no tensor of numbers"),
    ("bert.embeddings.position_embeddings", "it has not one row a text"), ("bert.encoder.layer", "runs 0 times"),
    ("dropout:out:in", "stream must be one of"), ("1.bert", "stream must be one of"), ("bert.", "stream must be one of")])
def test_refused(site, why):
    clf, _ = made("bert")
    for _ in range(2):
        with pytest.raises(InputError, match=why) as e: record(clf, LABELLED, ["residual.0", site], progress=False)
        assert repr(site) in str(e.value)
    assert not touched(clf.model)


class Odd(torch.nn.Module):
    "A layer norm of ours, with a fault."
    def __init__(self, own, fault):
        super().__init__()
        self.own, self.inner, self.fault, self.n = own, torch.nn.Identity(), fault, 0

    def forward(self, x):
        x = self.own(x)
        if self.fault == "twice": return self.inner(self.inner(x))
        if self.fault == "beside": return x+0*self.inner(x-x.mean(0, keepdim=True))+.1*self.inner_(x)
        if self.fault == "random": return x+1e-9*self.inner(torch.randn(x.shape))
        if self.fault == "unused": return x+0*self.inner(x)
        return self.inner(x)

    def inner_(self, x): return 0*x


@pytest.mark.parametrize("fault, why", [("twice", "runs 2 times in a pass"), ("beside", "the texts beside it"),
                                        ("random", "cannot be studied"), ("unused", "the answer does not hang on it"), ("", "")])
def test_faults_are_refused(fault, why):
    "A module that runs twice, mixes texts, draws, or of which nothing comes, is refused by its path."
    model = tiny_model("bert", vocab_size=120)
    norm = model.bert.encoder.layer[1].output
    norm.LayerNorm = Odd(norm.LayerNorm, fault)
    model.eval()
    clf, site = make_classifier(model, word_tokenizer(brackets=True), ["a", "b", "c"]), "bert.encoder.layer.1.output.LayerNorm.inner"
    if not fault: assert record(clf, LABELLED, site, progress=False).acts.shape == (6, 16)
    else:
        with pytest.raises(InputError, match=why) as e: record(clf, LABELLED, site, progress=False)
        assert site in str(e.value)


def test_what_lies_above_is_not_edited_in_vain():
    "Where nothing above a site is read, an edit there is refused; below where a pass resumes there is nothing."
    clf, _ = made("llama")
    batch = next(batches(encode(clf, TEXTS), fill=clf.pad_id))
    norm, low = find_site(clf.model, "model.norm"), find_site(clf.model, "model.layers.1.mlp")
    with torch.inference_mode():
        with pytest.raises(InputError, match="'model.norm' lies above all that is read"):
            run(clf, batch, [Site("residual", 2)], edits={norm: halve})
        state = run(clf, batch, [Site("residual", 1)])[Site("residual", 1)]
        with pytest.raises(InputError, match="'model.layers.1.mlp' lies below residual.1"):
            run(clf, batch, [low], start=(Site("residual", 1), state))
        assert run(clf, batch, [START])[START].shape == (*batch.ids.shape, 0)
        with pytest.raises(InputError, match=r"gives \[.*\] activations for"): logits(clf, batch, edits={norm: lambda h: h[..., :4]})
    assert not touched(clf.model)


def test_a_model_is_let_go():
    "What is known of sites does not keep a model alive."
    model = tiny_model("bert", vocab_size=120)
    clf = make_classifier(model, word_tokenizer(brackets=True), ["a", "b", "c"])
    record(clf, LABELLED, "bert.pooler", progress=False)
    gone = weakref.ref(model)
    del model, clf
    gc.collect()
    assert gone() is None


# --- language models


def speaker(name): return tiny(name, AutoModelForCausalLM)


@pytest.mark.parametrize("name, site", [("llama", "model.norm"), ("llama", "model.layers.1.self_attn.q_proj"),
                                        ("gpt2", "transformer.h.1.mlp"), ("gpt2", "transformer.h.0.ln_1:in"),
                                        ("qwen3", "model.layers.1.post_attention_layernorm")])
def test_generate(name, site):
    "An edit at a module holds in every step of writing, batches padded on the left included."
    model, tok = speaker(name), word_tokenizer()
    fresh, prompts = copy.deepcopy(model), TEXTS[1:4]
    path, _, side = site.partition(":")
    find_site(model, site)
    acts = everything(fresh, [tok(p).input_ids for p in prompts], site)
    iv = clear(replace(intervention(acts, "residual.0", "zero", least=-1), site=site), acts)
    want = [written(fresh, tok(p).input_ids, 4, {path: (side == "in", lambda h: iv(h)[0])}) for p in prompts]
    assert generate(model, tok, prompts, [iv], 4) == [tok.decode(w, skip_special_tokens=True) for w in want]
    ids = torch.tensor([tok(prompts[1]).input_ids])
    with torch.no_grad(), editing(model, [replace(iv, positions="readout")]): got = model(ids).logits[0]
    last = by_hand_at(fresh, ids[0].tolist(), path, side, iv)
    agree(got, last, model)


def by_hand_at(fresh, ids, path, side, iv):
    return plain(fresh, ids, {path: (side == "in", lambda h: by_hand(iv, h[0], {len(ids)-1})[0][None])})


@pytest.mark.parametrize("scoring, verbalizers", [("first", (" river", " stone")), ("sum", (" river lamp music", " river cloud"))])
def test_prompted(scoring, verbalizers):
    "Behind computed shots, and with scores of several tokens: as the same model that reads its prompts whole."
    model, tok = speaker("llama"), word_tokenizer()
    labelled = nl.make_texts(TEXTS, ["x", "y"]*3)
    shots = (("lamp green", 0), ("bread tiger salt", 1))
    clf = make_prompted(model, tok, Prompt("Text: {text}\nTopic:", ("x", "y"), verbalizers, shots=shots))
    assert clf.past and clf.scoring == scoring
    for site in ("model.norm", "model.layers.1.mlp", "model.embed_tokens"):
        rec, whole = (record(c, labelled, site, progress=False) for c in (clf, clf.whole()))
        agree(rec.acts, whole.acts, clf)
        iv = replace(intervention(torch.as_tensor(rec.acts), "residual.0", least=-1), site=site)
        both = [ablate(c, labelled, [iv, replace(iv, positions="readout")], progress=False).after for c in (clf, clf.whole())]
        same_answers(*both, clf)
        assert np.abs(both[0]-rec.probabilities).max() > 1e-4


# --- latents


class Autoencoder(torch.nn.Module):
    def __init__(self, D=16, K=40, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.into, self.back = torch.nn.Linear(D, K), torch.nn.Linear(K, D)

    def encode(self, h): return self.into(h).relu()

    def decode(self, z): return self.back(z)


BASES = {"bert": ["residual.2", "residual.0", "mlp.1", "bert.encoder.layer.1.attention.output.LayerNorm", "bert.pooler", "bert.embeddings"],
         "llama": ["residual.-1", "attention.1", "model.norm"]}


@pytest.mark.parametrize("name, base", [(n, b) for n, bases in BASES.items() for b in bases])
def test_latents(name, base):
    "Latents of a random pair: read as the pair makes them, unedited nothing moves, edited the activations move by the decoder alone."
    model = tiny(name, AutoModelForSequenceClassification)
    plainly = make_classifier(model, word_tokenizer(brackets=name == "bert"), ["a", "b", "c"], sha256="of files")
    site = str(find_site(model, base))
    rec = record(plainly, LABELLED, base, progress=False)
    sae = Autoencoder(rec.acts.shape[1])
    clf = with_latents(plainly, base, sae.encode, sae.decode, "sae")
    own = record(clf, LABELLED, ["sae", site], progress=False)
    with torch.no_grad():
        agree(own.at("sae"), sae.encode(torch.as_tensor(own.at(site))), clf)
    np.testing.assert_array_equal(own.probabilities, rec.probabilities)
    assert own.provenance["model_sha256"] == clf.sha256 != "of files" and own.provenance["latents"]
    acts = torch.as_tensor(own.at("sae"))
    noise = torch.randn(acts.shape, generator=torch.Generator().manual_seed(1))*1e-3
    iv = replace(intervention(acts+noise, "residual.0", least=-1), site="sae")
    never = replace(iv, lo=torch.full_like(iv.lo, 1e6), hi=torch.full_like(iv.hi, 2e6))
    out = ablate(clf, LABELLED, [iv, never, replace(iv, positions="readout")], progress=False)

    def moved(h, keep=None):
        z = sae.encode(h)
        new = h+sae.decode(iv(z)[0])-sae.decode(z)
        return new if keep is None else torch.where(keep[..., None], new, h)
    with torch.inference_mode():
        for batch in batches(encode(clf, TEXTS), tokens=150, fill=clf.pad_id):
            s = find_site(model, base)
            same_answers(out.after[0][batch.rows], logits(plainly, batch, edits={s: moved}).softmax(-1), clf)
            same = logits(clf, batch, edits={Site("sae"): lambda z: z.clone()})
            np.testing.assert_array_equal(same, logits(clf, batch, edits={s: lambda h: h.clone()}))
    same_answers(out.after[1], out.before, clf)
    assert np.abs(out.after[0]-out.before).max() > 1e-4 and not touched(model)


def test_exact_pair():
    "In turned coordinates, setting one to its value everywhere is the affine map of the residual stream that does it."
    clf, _ = made("bert")
    Q = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0]
    turned = with_latents(clf, "residual.1", lambda h: h@Q, lambda z: z@Q.T, "turned_exact")
    D = 16
    iv = replace(intervention(torch.randn(50, D), "residual.0", "zero"), site="turned_exact")
    iv = replace(iv, neurons=torch.tensor([3]), lo=torch.full((D, 1), -torch.inf), hi=torch.full((D, 1), torch.inf))
    line = Q[:, 3]
    by = linear_edit("a", "projected", "residual.1", torch.eye(D)-torch.outer(line, line), torch.zeros(D))
    one, = ablate(turned, LABELLED, [iv], progress=False).after
    two, = ablate(clf, LABELLED, [by], progress=False).after
    same_answers(one, two, clf)
    np.testing.assert_array_equal(record(turned, LABELLED, "residual.1", progress=False).probabilities,
                                  record(clf, LABELLED, "residual.1", progress=False).probabilities)


@pytest.mark.parametrize("readout", ["first", "mean"])
def test_latents_of_what_the_head_reads(readout):
    "At the last block only the position that the head reads is edited; that is the same as editing all."
    clf = make_classifier(tiny_model("bert", vocab_size=120), word_tokenizer(brackets=True), ["a", "b", "c"])
    sae = Autoencoder()
    clf = with_latents(clf, "residual.-1", sae.encode, sae.decode, "sae")
    acts = torch.as_tensor(record(clf, LABELLED, "sae", progress=False).acts)
    iv = replace(intervention(acts+1e-3*torch.randn(acts.shape), "residual.0", least=-1), site="sae")
    a, b = (ablate(clf, LABELLED, [iv, iv], readout=r, progress=False).after for r in (readout, "mean"))
    same_answers(a, b, clf)


def test_latents_have_an_identity(tmp_path):
    "Other weights are another model to whoever keeps results; a classifier without the latents does not read them."
    model = tiny_model("bert", vocab_size=120)
    clf = make_classifier(model, word_tokenizer(brackets=True), ["a", "b", "c"], sha256="of files")
    one, two = Autoencoder(seed=1), Autoencoder(seed=2)
    a, b = (with_latents(clf, "residual.1", s.encode, s.decode, n) for s, n in ((one, "one"), (two, "two")))
    again = with_latents(clf, "residual.1", copy.deepcopy(one).encode, one.decode, "one")
    assert len({clf.sha256, a.sha256, b.sha256}) == 3 and again.sha256 == a.sha256
    before_ = record(a, LABELLED, "one", progress=False)
    with torch.no_grad(): one.into.weight.mul_(2)
    np.testing.assert_array_equal(record(a, LABELLED, "one", progress=False).acts, before_.acts)
    with pytest.raises(InputError, match="other latents of that name"): with_latents(clf, "residual.1", one.encode, one.decode, "one")
    for other in (clf, b):
        with pytest.raises(InputError, match="'one' is of latents that another classifier"): record(other, LABELLED, "one", progress=False)
    record(a, LABELLED, "one", progress=False, folder=tmp_path/"kept")
    with pytest.raises(InputError, match="model"): record(b, LABELLED, "two", progress=False, folder=tmp_path/"kept")
    f = with_latents(clf, "residual.1", lambda h: h*2, lambda z: z/2, "f")
    assert f.sha256 not in (clf.sha256, a.sha256)


@pytest.mark.parametrize("encode_, decode_, why", [
    (lambda h: h.cumsum(1), lambda z: z, "of a position alone than beside others"),
    (lambda h: h, lambda z: z.cumsum(1), "decode makes something else"),
    (lambda h: h, lambda z: z[..., :3], r"decode makes \[2, 5, 3\]"), (lambda h: h.mean(1), lambda z: z, r"encode makes \[2, 16\]"),
    (lambda h: h/0, lambda z: z, "not one finite row"), (lambda h: h, lambda z: z*0, "the answer does not hang on it"),
    (lambda h: h+torch.randn(h.shape), lambda z: z, "or the second time"), (lambda h: h@torch.ones(3, 3), lambda z: z, "cannot be studied"),
    ("encode", lambda z: z, "latents need two functions")])
def test_pairs_that_are_none(encode_, decode_, why):
    clf, _ = made("bert")
    with pytest.raises(InputError, match=why): with_latents(clf, "residual.1", encode_, decode_, "odd")
    for name in ("mlp", "labels", "a.b", "", "bert", "two words"):
        with pytest.raises(InputError, match="name"): with_latents(clf, "residual.1", lambda h: h, lambda z: z, name)


def test_latents_while_it_writes():
    "Latents of a language model hold in generate(), and of a prompted one behind its shots."
    model, tok = speaker("llama"), word_tokenizer()
    fresh, sae = copy.deepcopy(model), Autoencoder()
    labelled = nl.make_texts(TEXTS, ["x", "y"]*3)
    clf = make_prompted(model, tok, Prompt("Text: {text}\nTopic:", ("x", "y"), (" river", " stone"), shots=(("lamp", 0), ("salt", 1))))
    clf = with_latents(clf, "residual.1", sae.encode, sae.decode, "sae")
    acts = torch.as_tensor(record(clf, labelled, "sae", progress=False).acts)
    noise = 1e-2*torch.randn(acts.shape, generator=torch.Generator().manual_seed(3))
    iv = replace(intervention(acts+noise, "residual.0", "zero", least=-1), site="sae")
    both = [ablate(c, labelled, [iv], progress=False).after for c in (clf, clf.whole())]
    same_answers(*both, clf)

    def moved(h): return h+sae.decode(iv(sae.encode(h))[0])-sae.decode(sae.encode(h))
    with torch.no_grad():
        want = [written(fresh, tok(p).input_ids, 4, {"model.layers.1": (False, moved)}) for p in TEXTS[1:4]]
        assert generate(model, tok, TEXTS[1:4], [iv], 4) == [tok.decode(w, skip_special_tokens=True) for w in want]


# --- one label of several, and labels that are numbers


def test_multi_label():
    "One label of a multi-label model: its sigmoid, texts with and without it, and effects as of any two classes."
    model = tiny_model("bert", vocab_size=120, problem_type="multi_label_classification", id2label={0: "rude", 1: "long", 2: "old"},
                       label2id={"rude": 0, "long": 1, "old": 2})
    tok, fresh = word_tokenizer(brackets=True), copy.deepcopy(model)
    sets = [{"rude"}, {"long", "old"}, {"rude", "old"}, [], {"rude"}, {"long"}]
    with pytest.raises(InputError, match="study one of its labels at a time by label=: rude, long, old"): make_classifier(model, tok)
    want = torch.stack([plain(fresh, tok(t).input_ids) for t in TEXTS]).sigmoid()
    matrix = np.array([[n in s for n in ("rude", "long", "old")] for s in sets]).astype(int)
    for k, label in enumerate(("rude", "long", "old")):
        clf = make_classifier(model, tok, label=label)
        texts = nl.model.one_label(TEXTS, sets, label)
        assert texts.digest == nl.model.one_label(TEXTS, matrix, label, names=["rude", "long", "old"]).digest
        rec = record(clf, texts, progress=False)
        assert rec.classes == (f"not {label}", label) and [rec.classes[i] == label for i in rec.labels] == [label in s for s in sets]
        same_answers(rec.probabilities, torch.stack([1-want[:, k], want[:, k]], 1), clf, size=score_size(want))
        iv = replace(intervention(torch.as_tensor(rec.acts), "residual.2"), concept=label)
        out = ablate(clf, texts, [iv], progress=False)
        there = {"bert.encoder.layer.2": (False, lambda h, iv=iv: iv(h)[0])}
        by = torch.stack([plain(fresh, tok(t).input_ids, there)[k] for t in TEXTS]).sigmoid()
        same_answers(out.after[0][:, 1], by, clf, size=score_size(by))
        frame = nl.measure_effects(out).only(condition="range").frame
        y, right = np.array([label in s for s in sets]), (out.after[0].argmax(1) == rec.labels)
        assert frame.target_accuracy.iloc[0] == pytest.approx(right[y].mean())


def test_numbers_are_said_to_be_the_models():
    "Labels that are numbers are refused where the model has names, until it is said what they are called; its own LABEL_0 are numbers."
    clf, _ = made("bert")
    texts = nl.make_texts(TEXTS, [0, 1, 2, 0, 1, 2])
    for given in (texts, nl.make_texts(TEXTS, list("012012"))):
        with pytest.raises(InputError, match="say so by numbered"): record(clf, given, progress=False)
    said = record(clf, nl.model.numbered(texts, clf.classes), progress=False)
    np.testing.assert_array_equal(said.labels, [0, 1, 2, 0, 1, 2])
    other = record(clf, nl.model.numbered(texts, ["c", "b", "a"]), progress=False)
    np.testing.assert_array_equal(other.labels, [2, 1, 0, 2, 1, 0])
    own = make_classifier(tiny_model("bert", vocab_size=120), word_tokenizer(brackets=True))
    assert own.classes[0] == "LABEL_0"
    np.testing.assert_array_equal(record(own, texts, progress=False).labels, [0, 1, 2, 0, 1, 2])
