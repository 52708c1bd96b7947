"""Every architecture: results are the stock model's, one text at a time, however the texts are batched and padded."""
import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import BEYOND, answers_apart, by_hand, intervention, readout_places, same_answers, tiny_model, touched
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from neuronlens import batches as batches_room
from neuronlens.edits.ablation import ablate
from neuronlens.ground.core import InputError
from neuronlens.ground.data import make_texts, take
from neuronlens.ground.rounding import agree, apart
from neuronlens.models.anatomy import Site, anatomy, parse_site
from neuronlens.models.batches import Batch, batches, encode, pad
from neuronlens.models.hooks import EMBEDDING, answer, before, logits, run
from neuronlens.models.model import make_classifier
from neuronlens.records.recording import record

pytestmark = pytest.mark.usefixtures("one_thread")

# Names that the library has no table of: list of blocks, attention's output, MLP's way down and up
BERT = ("encoder.layer", "attention.output.dense", "output.dense", "intermediate.dense")
NAMES = {
    "bert": BERT, "roberta": BERT,
    "distilbert": ("transformer.layer", "attention.out_lin", "ffn.lin2", "ffn.lin1"),
    "mpnet": ("encoder.layer", "attention.attn.o", "output.dense", "intermediate.dense"),
    "modernbert": ("layers", "attn.Wo", "mlp.Wo", "mlp.Wi"),
    "gpt2": ("h", "attn.c_proj", "mlp.c_proj", "mlp.c_fc"),
    "llama": ("layers", "self_attn.o_proj", "mlp.down_proj", "mlp.up_proj"),
    "qwen3": ("layers", "self_attn.o_proj", "mlp.down_proj", "mlp.up_proj"),
}
DECODERS = ("gpt2", "llama", "qwen3")
READ = ("residual.1", "mlp.1", "attention.2")
EDITED = ("residual.1", "mlp.1", "attention.1", "residual.2")
READOUTS = ("first", "last", "mean")
TEXTS = ["w1 w2 w3 w4 w5", "w6", "w7 strange w8", "w9 w10 w11 w12 w13 w14 w15 w16 w17", "w18 w3",
         "w19 w20 w21 w22 w1 w2"]
LABELLED = make_texts(TEXTS, list("abcabc"))
ANY = torch.randn(99, 16, generator=torch.Generator().manual_seed(0)) # Activations to fit a range to, of no model


def tokenizer(kind, pad_token="[PAD]", eos=False):
    "A word tokenizer: encoders get [CLS] and [SEP], decoders nothing, or <eos> at the end."
    words = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "<eos>", *(f"w{i}" for i in range(94))]
    tok = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tok.pre_tokenizer = WhitespaceSplit()
    around = "$A <eos>" if eos else "$A" if kind in DECODERS else "[CLS] $A [SEP]"
    tok.post_processor = TemplateProcessing(single=around, special_tokens=[(w, words.index(w)) for w in words[2:5]])
    return PreTrainedTokenizerFast(tokenizer_object=tok, pad_token=pad_token, unk_token="[UNK]", cls_token="[CLS]",
                                   sep_token="[SEP]", eos_token="<eos>", model_max_length=40)


def classifier(name, **kw):
    "A tiny classifier; 'modernbert mean' pools over all tokens."
    kind, _, pooling = name.partition(" ")
    extra = {"classifier_pooling": pooling} if pooling else {}
    return make_classifier(tiny_model(kind, **extra | kw), tokenizer(kind), ["a", "b", "c"])


def places(model, site):
    "The module whose output or input a site is."
    blocks, attention, down, _ = NAMES[model.config.model_type]
    inner = {"residual": "", "attention": f".{attention}", "mlp": f".{down}"}[site.stream]
    return model.base_model.get_submodule(f"{blocks}.{site.block}{inner}")


def stock(model, ids, sites=(), edit=None):
    "The stock model on one text: probabilities [C] and every site's [T, D]; `edit` is {site: [T, D] to [T, D]}."
    seen, handles, edit = {}, [], edit or {}
    for s in {*sites, *edit}:
        def visit(x, s=s):
            seen[s] = edit[s](x[0])[None] if s in edit else x
            return seen[s]

        def after(mod, args, out, visit=visit):
            return (visit(out[0]), *out[1:]) if isinstance(out, tuple) else visit(out)

        def ahead(mod, args, visit=visit): return (visit(args[0]), *args[1:])
        site = parse_site(s)
        module = places(model, site)
        residual = site.stream == "residual"
        handles.append(module.register_forward_hook(after) if residual else module.register_forward_pre_hook(ahead))
    with torch.inference_mode(): out = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    for h in handles: h.remove()
    return SimpleNamespace(probs=out.logits[0].softmax(-1), seen={s: x[0] for s, x in seen.items()},
                           hidden=[h[0] for h in out.hidden_states])


def oracle(clf, model=None, texts=TEXTS):
    "What the stock model does with each text alone."
    encoded, sites = encode(clf, texts), {*READ, *EDITED}
    model = copy.deepcopy(model or clf.model)
    one = [stock(model, ids, sites) for ids in encoded.ids]
    return SimpleNamespace(model=model, ids=encoded.ids, special=encoded.special, one=one,
                           probs=torch.stack([o.probs for o in one]))


def read_by_hand(known, site, readout):
    "Activations [N, D] at a readout."
    both = zip(known.one, known.special, strict=True)
    return torch.stack([o.seen[site][readout_places(readout, special)].mean(0) for o, special in both])


def ablated_by_hand(known, iv, readout):
    "Probabilities [N, C] of the stock model under an intervention, and firing [N]."
    probs, fires, site = [], [], str(iv.site)
    for ids, special, o in zip(known.ids, known.special, known.one, strict=True):
        where = readout_places(readout, special)
        edited, share = by_hand(iv, o.seen[site], where if iv.positions == "readout" else range(len(ids)))
        probs.append(stock(known.model, ids, edit={site: lambda x, e=edited: e}).probs)
        fires.append(sum(share[t] for t in where)/len(where))
    return torch.stack(probs), np.array(fires)


# Most tokens in a batch, order of texts, padding side, length of every batch, whether padding is random tokens
DELIVERIES = {"one by one": (1, [0, 1, 2, 3, 4, 5], "right", None, False),
              "together": (4096, [0, 1, 2, 3, 4, 5], "right", None, False),
              "shuffled": (25, [4, 2, 5, 0, 3, 1], "right", None, False),
              "left": (4096, [5, 4, 3, 2, 1, 0], "left", None, False),
              "long": (4096, [1, 0, 3, 2, 5, 4], "right", 31, True),
              "long left": (40, [2, 3, 4, 5, 0, 1], "left", 31, True)}


@pytest.fixture(params=DELIVERIES)
def delivery(request, monkeypatch):
    "The same texts in other batches: `texts`, `back` (row of each text) and `tokens`; checked to be as announced."
    tokens, order, side, length, junk = DELIVERIES[request.param]
    gen, made, plain = torch.Generator().manual_seed(0), [], pad

    def deliver(ids, special, rows, *, fill=0, **kw):
        b = plain(ids, special, rows, fill=fill, side=side, length=length)
        if junk and fill_is_free(request): # RoBERTa and MPNet derive positions from the pad token
            noise = torch.randint(5, 99, b.ids.shape, generator=gen)
            b = Batch(torch.where(b.mask == 1, b.ids, noise), b.mask, b.special, b.rows)
        made.append(b)
        return b
    monkeypatch.setattr(batches_room, "pad", deliver)
    yield SimpleNamespace(texts=take(LABELLED, np.array(order)), back=np.argsort(order), tokens=tokens)
    assert made and all(len(b) == 1 for b in made) == (tokens == 1)
    assert length is None or all(b.ids.shape[1] == length for b in made)
    if tokens == 4096: assert any((b.mask[:, 0 if side == "left" else -1] == 0).any() for b in made)


def fill_is_free(request): return request.getfixturevalue("case").name not in ("roberta", "mpnet")


SHARES = 4 # Roundings behind a share of neurons and its mean over positions


@pytest.fixture(scope="module", params=[*NAMES, "modernbert mean"])
def case(request):
    "A classifier, what the stock model does, interventions and what they do by hand."
    clf = classifier(request.param)
    known = oracle(clf)
    acts = {s: torch.cat([o.seen[s] for o in known.one]) for s in EDITED}
    ivs = [intervention(acts[s], s, ("zero", "mean")[i % 2], p, i, vote=v)
           for i, s in enumerate(EDITED) for p, v in (("all", 0.), ("readout", 0.), ("all", .5))]
    asked = [(r, iv) for r in READOUTS for iv in ivs if r == clf.readout or iv.positions == "readout"]
    ablated = {r: [(iv, *ablated_by_hand(known, iv, r)) for s, iv in asked if s == r] for r in READOUTS}
    return SimpleNamespace(name=request.param, clf=clf, known=known, ivs=ivs, ablated=ablated)


# --- against the stock model


def test_recording(case, delivery):
    "Probabilities and activations are the stock model's, in every batch and padding, at every readout."
    for readout in READOUTS:
        rec = record(case.clf, delivery.texts, list(READ), readout=readout, tokens=delivery.tokens, progress=False)
        same_answers(rec.probabilities[delivery.back], case.known.probs, case.clf)
        np.testing.assert_array_equal(rec.labels[delivery.back], LABELLED.labels)
        for site in READ: agree(rec.at(site)[delivery.back], read_by_hand(case.known, site, readout), case.clf, what=(site, readout))


def test_ablation(case, delivery):
    "So are the probabilities after an intervention, and how often it fires."
    for readout, want in case.ablated.items():
        ivs = [iv for iv, *_ in want]
        got = ablate(case.clf, delivery.texts, ivs, readout=readout, tokens=delivery.tokens, progress=False)
        same_answers(got.before[delivery.back], case.known.probs, case.clf)
        for after, fires, (iv, probs, share) in zip(got.after, got.fires, want, strict=True):
            same_answers(after[delivery.back], probs, case.clf, (iv.site, iv.positions, readout))
            agree(fires[delivery.back], share, SHARES, what=(iv.site, iv.positions, readout))


def test_oracle(case):
    "What the tests above compare with is not trivial: it moves with every edit and differs between readouts and texts."
    hidden = 2 # The last of `output_hidden_states` may be after a final norm
    for o in case.known.one: agree(o.seen["residual.1"], o.hidden[hidden], case.clf)
    for readout, ablated in case.ablated.items():
        for iv, probs, share in ablated:
            if iv.positions == "all": assert answers_apart(probs, case.known.probs, case.clf) > BEYOND, (iv.site, readout)
            assert .05 < share.mean() < .95
    for site in READ:
        first, last, mean = (read_by_hand(case.known, site, r) for r in READOUTS)
        longer = torch.tensor([len(i) > 1 for i in case.known.ids])
        for a, b in ((first, last), (first, mean), (last, mean)):
            assert min(apart(x, y, case.clf, size=float(first.abs().max())) for x, y in zip(a[longer], b[longer], strict=True)) > BEYOND
    ps = case.known.probs
    assert min(answers_apart(p, q, case.clf) for i, p in enumerate(ps) for q in ps[:i]) > BEYOND


def test_last_block_is_before_the_final_norm(case):
    "`residual.-1` is what the last block returns, whatever the model does with it afterwards."
    rec = record(case.clf, LABELLED, ["residual.-1", "residual.2"], progress=False)
    assert rec.sites == ["residual.2"]
    agree(rec.acts, read_by_hand(case.known, "residual.2", case.clf.readout), case.clf)
    normed = case.name.split()[0] in ("modernbert", *DECODERS)
    where = {"first": 0, "last": -1}[case.clf.readout]
    off = apart(rec.acts, torch.stack([o.hidden[-1][where] for o in case.known.one]), case.clf)
    assert off > BEYOND if normed else off <= 1


# --- structure


def test_sites(case):
    "Sites are the modules that the architecture's names say, as wide as its configuration says; the head is known."
    c, a = case.clf.model.config, anatomy(case.clf.model)
    head = getattr(c, "head_dim", None) or c.hidden_size//c.num_attention_heads
    mlp = {"distilbert": "hidden_dim", "gpt2": "n_inner"}.get(c.model_type, "intermediate_size")
    widths = {"residual": c.hidden_size, "mlp": getattr(c, mlp), "attention": head*c.num_attention_heads}
    assert widths["mlp"] == 24 and a.widths == widths and len(a) == c.num_hidden_layers == 3
    for b in range(3):
        assert a.blocks[b] is places(case.clf.model, Site("residual", b))
        for s in ("mlp", "attention"): assert a.inner[Site(s, b)] is places(case.clf.model, Site(s, b))
    every = [f"{s}.{b}" for s in widths for b in range(3)]
    rec = record(case.clf, LABELLED, every, progress=False)
    assert {s: rec.at(s).shape for s in every} == {s: (6, widths[s.split(".")[0]]) for s in every}
    decoder = case.name in DECODERS
    assert case.clf.readout == ("last" if decoder else "first")
    assert a.head == ("last" if decoder else "all" if case.name == "modernbert mean" else "first")


@pytest.mark.parametrize("site, why", [
    ("head.1", "stream must be one of"), ("1.residual", "stream must be one of"), ("", "stream must be one of"),
    ("residual", "write a stream and a block"), ("mlp.x", "write a stream and a block"), ("mlp.1.2", "write a stream"),
    ("residual.3", "block 3 is beyond the model, which has blocks 0 to 2"), ("mlp.-4", "block -4 is beyond the model")])
def test_strange_sites_are_refused(case, site, why):
    "An unknown stream, a site without a block and a block beyond the model are refused by name."
    with pytest.raises(InputError, match=why) as e: record(case.clf, LABELLED, ["residual.0", site], progress=False)
    assert repr(site) in str(e.value)


# --- nothing is left behind


class Interrupt(BaseException):
    "Like Ctrl-C."


def test_hooks_are_gone(case, monkeypatch):
    "Hooks and replaced methods are gone after use, after an error and after an interrupt; the user's own hooks stay."
    model, calls = copy.deepcopy(case.clf.model), []
    clf, block = make_classifier(model, case.clf.tokenizer, ["a", "b", "c"]), places(model, Site("residual", 1))
    batch = next(batches(encode(clf, TEXTS)))
    assert not touched(model)
    handle = block.register_forward_hook(lambda *_: calls.append(1))

    def only_mine():
        found = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__]
        assert found == [block] and list(block._forward_hooks) == [handle.id] and not block._forward_pre_hooks
        assert "forward" not in block.__dict__
    record(clf, LABELLED, list(READ), progress=False)
    only_mine()
    ablate(clf, LABELLED, case.ivs, progress=False)
    only_mine()
    assert calls

    def broken(*args): raise Interrupt
    with torch.inference_mode():
        for s in (*READ, "mlp.0"):
            with pytest.raises(Interrupt): run(clf, batch, [Site("residual", 2)], edits={parse_site(s): broken})
            only_mine()
            start = before(parse_site(s))
            state = run(clf, batch, [start])[start]
            with pytest.raises(Interrupt): logits(clf, batch, start=(start, state), edits={parse_site(s): broken})
            only_mine()
        for start in (EMBEDDING, Site("residual", 1)):
            with pytest.raises(RuntimeError): logits(clf, batch, start=(start, torch.zeros(6, 3, 7)))
            only_mine()
        with pytest.raises(RuntimeError): answer(clf, torch.zeros(6, 7))
        only_mine()
    monkeypatch.setattr("neuronlens.edits.ablation.replacement", broken)
    with pytest.raises(Interrupt): ablate(clf, LABELLED, case.ivs, progress=False)
    only_mine()
    handle.remove()
    same_answers(record(clf, LABELLED, progress=False).probabilities, case.known.probs, clf)


# --- weights that are not numbers


def spoiled(case, weight, index):
    "The classifier with NaN in one place of one weight."
    model = copy.deepcopy(case.clf.model)
    with torch.no_grad(): model.get_parameter(weight)[index] = torch.nan
    return make_classifier(model, case.clf.tokenizer, ["a", "b", "c"])


def test_nan_names_the_neuron(case):
    "NaN in the weight of one MLP unit is refused by the unit's number, with the rows of all texts."
    blocks, *_, up = NAMES[case.clf.model.config.model_type]
    module = f"{blocks}.1.{up}"
    base = next(n for n, m in case.clf.model.named_modules() if m is case.clf.model.base_model)
    clf = spoiled(case, f"{base}.{module}.weight", (3, 17) if case.name == "gpt2" else (17, 3))
    with pytest.raises(InputError) as e: record(clf, LABELLED, "mlp.1", progress=False)
    assert "mlp.1: neuron 17 is not finite for 6 rows (1, 2, 3, 4, 5, ...) (6 values in 1 neurons)" in str(e.value)
    assert not touched(clf.model)


@pytest.mark.parametrize("tokens", [1, 4096])
def test_nan_names_the_row(case, tokens):
    "NaN in the vector of one word is refused by the row in the source of the one text that has it."
    name = next(n for n, p in case.clf.model.named_parameters() if p is case.clf.model.get_input_embeddings().weight)
    clf = spoiled(case, name, (encode(case.clf, ["w7"]).ids[0][case.name not in DECODERS], 2))
    chosen = take(LABELLED, np.array([5, 2, 0, 4, 3, 1]))
    for site in ("residual.0", *READ):
        with pytest.raises(InputError, match=rf"^{site}: neuron 0 is not finite for row 3 "):
            record(clf, chosen, site, readout="last", tokens=tokens, progress=False)
    others = [0, 1, 3, 4, 5] # Texts without the word are as before
    batch = next(batches(encode(clf, [TEXTS[i] for i in others])))
    with torch.inference_mode(): probs = logits(clf, batch).softmax(-1)
    same_answers(probs, case.known.probs[others][batch.rows], clf)


# --- padding with the end of text


@pytest.fixture(scope="module", params=[(n, how) for n in DECODERS for how in ("added", "written")],
                ids=lambda p: " ".join(p))
def ending(request):
    "A decoder that pads with <eos>, texts that end with it, and the stock model told to read the very last token."
    name, how = request.param
    texts = TEXTS if how == "added" else [f"{t} <eos>" if i % 2 else f"{t} <eos> <eos>" for i, t in enumerate(TEXTS)]
    clf = make_classifier(tiny_model(name, pad_token_id=4), tokenizer(name, "<eos>", how == "added"), ["a", "b", "c"])
    told = copy.deepcopy(clf.model)
    told.config.pad_token_id = None
    known = oracle(clf, told, texts)
    acts = {s: torch.cat([o.seen[s] for o in known.one]) for s in EDITED}
    ivs = [intervention(acts[s], s, "mean", p, 7) for s in EDITED for p in ("all", "readout")]
    return SimpleNamespace(clf=clf, known=known, texts=make_texts(texts, list("abcabc")), ivs=ivs,
                           ablated=[ablated_by_hand(known, iv, "last") for iv in ivs])


def test_texts_end_with_the_padding(ending):
    "The stock model, left to itself, takes the end of these texts for padding and reads an earlier token."
    assert ending.clf.pad_id == 4 and all(ids[-1] == 4 for ids in ending.known.ids)
    assert ending.clf.readout == anatomy(ending.clf.model).head == "last"
    alone = torch.stack([stock(ending.clf.model, ids).probs for ids in ending.known.ids])
    assert min(answers_apart(a, b, ending.clf) for a, b in zip(alone, ending.known.probs, strict=True)) > BEYOND


@pytest.mark.parametrize("tokens", [1, 4096])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_with_eos(ending, side, tokens, monkeypatch):
    "The last attended token is read and edited, also where it is the token that pads."
    plain = pad
    monkeypatch.setattr(batches_room, "pad", lambda *args, **kw: plain(*args, **kw | {"side": side, "length": 14}))
    rec = record(ending.clf, ending.texts, [*READ, "residual.2"], tokens=tokens, progress=False)
    same_answers(rec.probabilities, ending.known.probs, ending.clf)
    for site in rec.sites: agree(rec.at(site), read_by_hand(ending.known, site, "last"), ending.clf, what=site)
    got = ablate(ending.clf, ending.texts, ending.ivs, tokens=tokens, progress=False)
    same_answers(got.before, ending.known.probs, ending.clf)
    for iv, after, fires, (probs, share) in zip(ending.ivs, got.after, got.fires, ending.ablated, strict=True):
        same_answers(after, probs, ending.clf, (iv.site, iv.positions))
        agree(fires, share, SHARES, what=(iv.site, iv.positions))


# --- found by trying to break it


@pytest.mark.parametrize("weight", ["bert.encoder.layer.2.output.dense.weight", "classifier.weight"])
def test_nan_above_the_site_is_refused(weight):
    "Probabilities that are not finite are refused by row, wherever the model breaks."
    clf = classifier("bert")
    site = intervention(ANY, "residual.0")
    with torch.no_grad(): clf.model.get_parameter(weight)[0, 0] = torch.nan
    for call in (lambda: record(clf, LABELLED, "residual.0", progress=False),
                 lambda: ablate(clf, LABELLED, [site], progress=False)):
        with pytest.raises(InputError, match="not finite for 6 rows"): call()


@pytest.mark.parametrize("name", DECODERS)
def test_decoder_without_a_pad_token(name):
    "A decoder whose configuration names no pad token (GPT-2's own) is recorded like any other."
    clf = make_classifier(tiny_model(name, pad_token_id=None), tokenizer(name, "<eos>"), ["a", "b", "c"])
    same_answers(record(clf, LABELLED, progress=False).probabilities, oracle(clf).probs, clf)


@pytest.mark.parametrize("site, why", [(Site("residual", -1), None), (Site("mlp", -1), None),
                                       (Site("residual", 3), "beyond the model"), (Site("mlp", 3), "beyond the model"),
                                       (Site("head", 1), "stream must be one of")], ids=str)
def test_site_of_an_intervention(site, why):
    "`ablate` counts blocks from the end as `record` does, and refuses what it refuses."
    acts = ANY if site.stream != "mlp" else torch.cat([ANY, ANY[:, :8]], 1)
    clf, iv = classifier("gpt2"), replace(intervention(acts, "residual.2"), site=site)
    if why:
        with pytest.raises(InputError, match=why): ablate(clf, LABELLED, [iv], progress=False)
    else:
        last = replace(iv, site=Site(site.stream, 2))
        one, two = (ablate(clf, LABELLED, [v], progress=False) for v in (iv, last))
        same_answers(one.after, two.after, clf)


def test_ranges_of_another_site_are_refused():
    "Ranges fitted at a site of another width are refused with both widths."
    iv = replace(intervention(ANY, "residual.2"), site=Site("mlp", 1))
    with pytest.raises(InputError, match="mlp.1 has ranges of 16 neurons, the site has 24"):
        ablate(classifier("gpt2"), LABELLED, [iv], progress=False)


def test_recording_of_another_readout_is_not_used():
    "With a recording, edits at the readout and firing are as without."
    clf = replace(classifier("bert"), readout="mean")
    rec = record(clf, LABELLED, readout="first", progress=False)
    iv = intervention(rec.acts, "residual.2", positions="readout")
    one, two = (ablate(clf, LABELLED, [iv], recording=r, progress=False) for r in (None, rec))
    same_answers(one.after, two.after, clf)
    agree(one.fires, two.fires, SHARES)


def test_recording_of_other_texts_is_refused():
    "A recording of other texts is refused even if the labels agree."
    clf, iv = classifier("bert"), intervention(ANY, "residual.2")
    other = make_texts(TEXTS[::-1], list("abcabc"))
    with pytest.raises(InputError, match="recording is of other texts"):
        ablate(clf, LABELLED, [iv], recording=record(clf, other, progress=False), progress=False)


def test_a_forward_of_the_users_own_stays():
    "A block whose `forward` was replaced (as accelerate does) keeps it."
    clf = classifier("bert")
    block = places(clf.model, Site("residual", 0))
    mine = block.forward
    block.forward = mine
    record(clf, LABELLED, progress=False)
    assert block.__dict__.get("forward") is mine


def test_edit_below_the_start_is_refused():
    "A site that a resumed pass does not reach is refused."
    clf, start, low = classifier("gpt2"), Site("residual", 1), Site("mlp", 1)
    batch = next(batches(encode(clf, TEXTS)))
    with torch.inference_mode():
        state = run(clf, batch, [start])[start]
        with pytest.raises(InputError): logits(clf, batch, start=(start, state), edits={low: torch.zeros_like})
        with pytest.raises(InputError): run(clf, batch, [low], start=(start, state))


def test_deberta():
    "DeBERTa's sites are found, and its answer in a batch is the stock model's."
    model = tiny_model("deberta-v2", relative_attention=True, pos_att_type=["p2c", "c2p"], share_att_key=True,
                       position_buckets=8)
    clf = make_classifier(model, tokenizer("deberta-v2"), ["a", "b", "c"])
    block, inner = clf.model.deberta.encoder.layer[1], anatomy(clf.model).inner
    assert inner[Site("attention", 1)] is block.attention.output.dense and inner[Site("mlp", 1)] is block.output.dense
    with torch.inference_mode():
        alone = [clf.model(input_ids=torch.tensor([ids])).logits[0].softmax(-1) for ids in encode(clf, TEXTS).ids]
    same_answers(record(clf, LABELLED, progress=False).probabilities, torch.stack(alone), clf)


@pytest.mark.parametrize("name", ["gpt2", "distilbert"])
def test_readout_of_a_model_in_training_mode(name):
    "Dropout would hide that a decoder reads from left to right; the model is in eval mode before it is asked."
    model = copy.deepcopy(classifier(name).model)
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout): m.p = .5
    clf = make_classifier(model.train(), tokenizer(name), ["a", "b", "c"])
    assert not model.training
    assert clf.readout == ("last" if name in DECODERS else "first")


# --- what cannot be studied is refused in a sentence

def odd(name, **kw):
    "A tiny random classifier of an architecture that is no stack of blocks, or whose blocks do not stand alone."
    own = {"t5": dict(d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=1),
           "bart": dict(d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
                        encoder_ffn_dim=24, decoder_ffn_dim=24),
           "convbert": dict(embedding_size=16, head_ratio=1, conv_kernel_size=3), "longformer": dict(attention_window=[4, 4, 4]),
           "nystromformer": dict(num_landmarks=4, segment_means_seq_len=4), "mobilebert": dict(
               embedding_size=16, true_hidden_size=16, intra_bottleneck_size=16), "yoso": {}, "albert": dict(embedding_size=8),
           "canine": dict(local_transformer_stride=8, num_hash_functions=4, num_hash_buckets=64), "squeezebert": dict(embedding_size=16)}
    return tiny_model(name, **own.get(name, {}) | kw)


AT_LOAD = {"t5": "encoder-decoder (t5)", "bart": "encoder-decoder (bart)", "canine": "(CanineForSequenceClassification) cannot be studied",
           "lilt": "(LiltForSequenceClassification) cannot be studied", "convbert": "reads a text differently",
           "mobilebert": "reads a text differently", "yoso": "reads a text differently", "fnet": "reads a text differently",
           "nystromformer": "(NystromformerForSequenceClassification)"}


@pytest.mark.parametrize("name", AT_LOAD)
def test_refused_at_load(name):
    "Encoder-decoders, models that read no tokens, and those whose reading of a text depends on the padding."
    with pytest.raises(InputError) as e: make_classifier(odd(name), tokenizer(name), ["a", "b", "c"])
    assert AT_LOAD[name] in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["longformer", "albert", "squeezebert", "xlm"])
def test_refused_at_first_use(name):
    "Models whose blocks or projections cannot be told apart; the name of the architecture is said."
    clf = make_classifier(odd(name), tokenizer(name), ["a", "b", "c"])
    with pytest.raises(InputError) as e: record(clf, LABELLED, progress=False)
    assert type(clf.model).__name__ in str(e.value) and "\n" not in str(e.value)
    assert not clf.model.training and not touched(clf.model)


MORE = {"electra": dict(embedding_size=16), "deberta": {}, "roformer": {}, "opt": dict(word_embed_proj_dim=16, ffn_dim=24),
        "openai-gpt": {}, "xlm-roberta": {}, "mistral": {}, "gemma": dict(head_dim=8), "phi3": {}, "bloom": {}}


@pytest.mark.parametrize("name", MORE)
def test_other_architectures(name):
    "A few more: the answer in a batch is the stock model's."
    clf = make_classifier(tiny_model(name, **MORE[name]), tokenizer(name), ["a", "b", "c"])
    with torch.inference_mode():
        alone = [clf.model(input_ids=torch.tensor([ids])).logits[0].softmax(-1) for ids in encode(clf, TEXTS).ids]
    same_answers(record(clf, LABELLED, progress=False).probabilities, torch.stack(alone), clf)


def test_an_answer_of_more_than_the_last_block():
    "A head that looks past the last block would give another answer than the model; it is refused."
    clf = classifier("bert")
    clf.model.bert.pooler.register_forward_hook(lambda mod, args, out: out+clf.model.bert.embeddings.word_embeddings.weight[5].sum())
    same_answers(record(clf, LABELLED, progress=False).probabilities, oracle(clf).probs, clf) # A constant is no look past it
    seen = []
    clf = classifier("bert")
    clf.model.bert.encoder.layer[0].register_forward_hook(lambda mod, args, out: seen.append(out))
    clf.model.bert.pooler.register_forward_hook(lambda mod, args, out: out+seen.pop()[:, 0] if seen else out)
    with pytest.raises(InputError, match="not made of the output of its last block alone"): record(clf, LABELLED, progress=False)
