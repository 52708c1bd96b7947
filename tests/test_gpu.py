"""The same numbers on a graphics processor, in float32, bfloat16 and spread by `device_map`, within what rounding explains.

Every test runs in four places: on the processor, as a check of the test itself; on a processor that says it is a graphics processor and
refuses two devices in one operation (`tests/pretend.py`), so that mistakes about devices are found where there is none; on two such; and
on a real one, marked `gpu`, where there is one. `make test-gpu` runs those on the real one alone.
"""
from dataclasses import replace

import numpy as np
import pytest
import torch
from pretend import MixedDevices, Pretend, at, spread
from test_architectures import LABELLED, TEXTS, classifier
from test_prompt import SHOTS, byte_tokenizer, language_model
from test_prompt import TEXTS as WORDS
from tiny import clear, everywhere, intervention, same_answers

from neuronlens.arrays.statistics import class_statistics
from neuronlens.edits.ablation import ablate, answers_to
from neuronlens.edits.attribution import attribute
from neuronlens.edits.edit import linear_edit
from neuronlens.edits.effects import MEASURES
from neuronlens.edits.language import editing, firing_by_position, generate
from neuronlens.edits.live import edit_text
from neuronlens.edits.reading import perplexity
from neuronlens.edits.sweeps import changes_on, effects_on, estimate, grid
from neuronlens.ground.data import make_texts
from neuronlens.ground.rounding import agree, rounding, score_size, steps_of
from neuronlens.models.anatomy import anatomy
from neuronlens.models.batches import token_budget
from neuronlens.models.model import load_classifier
from neuronlens.models.prompt import Prompt
from neuronlens.models.prompted import make_prompted
from neuronlens.models.writing import generated_answers
from neuronlens.records.recording import record, vocabulary_confidence
from neuronlens.records.summary import summarise
from neuronlens.records.tokens import record_tokens

pytestmark = pytest.mark.usefixtures("one_thread")
REAL = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no graphics processor that torch can use here")]
SLOW = pytest.mark.slow
PLACES = [pytest.param("cpu", marks=SLOW), "pretended", pytest.param("two pretended", marks=SLOW),
          pytest.param("cuda", marks=REAL), pytest.param("cuda, spread", marks=REAL)]
DTYPES = [torch.float32, torch.bfloat16]
NAMES = ["bert", *(pytest.param(n, marks=SLOW) for n in ("gpt2", "llama", "modernbert"))]
TOPICS = make_texts([*WORDS, "a red apple on the mat"], ["animal", "food", "tool", "tool", "animal", "food"])
SITES = ["residual.2", "residual.0", "mlp.1", "attention.2"]


@pytest.fixture(params=PLACES)
def place(request):
    "Where a model is to be; while it lasts, what is pretended is."
    if "pretended" not in request.param: yield request.param
    else:
        with Pretend(): yield request.param


def there(model, place):
    "The model there: in one place, or its blocks on two devices and its head where it begins."
    if place == "cpu": return model
    if place in ("pretended", "cuda"): return model.to("cuda")
    blocks, n = anatomy(model).blocks, torch.cuda.device_count() if place.startswith("cuda") else 2
    other = "cuda:1" if n > 1 else "cpu" # One real device alone: the upper blocks stay where they are
    return spread(model, blocks, ["cuda:0"]+[other]*(len(blocks)-1))


def both(name, place, dtype=torch.float32):
    "The same classifier twice: on the processor, and in its place."
    plain, other = classifier(name), classifier(name)
    for clf in (plain, other): clf.model.to(dtype)
    there(other.model, place)
    return plain, other


def edits(plain, acts):
    "Interventions of many kinds, none of whose ends lies near a value."
    at, D = everywhere(plain, TEXTS, SITES), 16
    ivs = [intervention(at[s], str(s), edit, positions, seed, vote) for s, edit, positions, seed, vote in zip(
        at, ("mean", "zero", "shift", "transport"), ("all", "readout", "prompt", "all"), range(4), (0., .2, 0., .3), strict=True)]
    ivs += [replace(ivs[0], scope="text"), replace(ivs[1], scope="text", fitted_at="tokens"), replace(ivs[2], positions="generated")]
    gen = torch.Generator().manual_seed(0)
    ivs.append(linear_edit("1", "map", "residual.1", torch.eye(D)+.1*torch.randn(D, D, generator=gen), torch.randn(D, generator=gen)))
    return ivs + [clear(iv, at[iv.site]) for iv in grid(acts, fraction=.5, edit=["adaptive(2)", "resample"], site=SITES[:2], concept=1)]


def close(got, want, clf, what=""):
    "Activations within rounding."
    agree(got, want, clf, what=what)


# --- the pretended device

def test_what_is_pretended_refuses_what_a_device_refuses():
    "The check of the check: each of these would be an error of torch on a real one."
    here = torch.arange(6.).reshape(2, 3)
    with Pretend():
        there = here.to("cuda")
        assert at(there).type == "cuda" and there.device == torch.device("cuda:0") and there.is_cuda and here.device.type == "cpu"
        assert (there+1).device == there.new_zeros(2).device == torch.zeros(2, device=there.device).device == there.device
        assert there[torch.tensor([1])].device == there.device and there.cpu().numpy().sum() == 15 and float(there.sum()) == 15
        assert torch.equal((there*torch.tensor(2.)).cpu(), here*2) # A number from elsewhere is no array
        for wrong in (lambda: there+here, lambda: there.numpy(), lambda: np.asarray(there), lambda: torch.cat([here, there]),
                      lambda: here[there[:, 0].long()], lambda: torch.where(there > 1, there, here), lambda: there.copy_(here)+here,
                      lambda: torch.randn(3, device="cuda", generator=torch.Generator()), lambda: there.to("cuda:1")+there,
                      lambda: torch.nn.Linear(3, 1)(there)):
            with pytest.raises(MixedDevices): wrong()
        layer = torch.nn.Linear(3, 1).to("cuda")
        assert layer(there).device == there.device and layer.weight.device == there.device
    assert here.device.type == there.device.type == "cpu"


# --- one model, two places

@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_record(place, name, dtype):
    "Readouts, tokens, answers and statistics."
    plain, other = both(name, place, dtype)
    want, got = (record(clf, LABELLED, SITES, progress=False) for clf in (plain, other))
    for s in SITES: close(got.at(s), want.at(s), plain, s)
    same_answers(got.probabilities, want.probabilities, plain)
    want, got = (record_tokens(clf, LABELLED, SITES[:2], most=4, progress=False) for clf in (plain, other))
    for s in SITES[:2]: close(got.at(s), want.at(s), plain, s)
    if dtype != torch.float32: return
    want, got = (summarise(clf, LABELLED, SITES[0], progress=False) for clf in (plain, other))
    for k in ("mean", "low", "high"):
        close(getattr(got.statistics[SITES[0]], k), getattr(want.statistics[SITES[0]], k), plain, k)
    want, got = (record(clf, LABELLED, "residual.0", readout="mean", answers=False, progress=False).acts for clf in (plain, other))
    close(got, want, plain)


@pytest.mark.parametrize("name", NAMES)
def test_edits(place, name):
    "Every kind of edit, gate and position, at every stream."
    plain, other = both(name, place)
    ivs = edits(plain, record(plain, LABELLED, SITES, progress=False))
    want, got = (ablate(clf, LABELLED, ivs, progress=False) for clf in (plain, other))
    same_answers(got.before, want.before, plain)
    for iv, a, b in zip(ivs, got.after, want.after, strict=True): same_answers(a, b, plain, iv)
    assert np.abs(got.fires-want.fires).max() <= 1e-6
    rec = record(other, LABELLED, SITES, progress=False)
    fast = ablate(other, LABELLED, ivs, recording=rec, progress=False)
    for iv, a, b in zip(ivs, fast.after, want.after, strict=True): same_answers(a, b, plain, iv)
    same_answers(answers_to(other, rec.at("residual.2")), want.before, plain)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES[:3:2])
def test_sweep(place, name, dtype):
    "A grid and its table; in bfloat16 whole neurons alone, since there a last place decides what is in range."
    plain, other = both(name, place, dtype)
    train = record(plain, LABELLED, SITES, progress=False)
    ivs = grid(train, fraction=[.25, .5], edit=["zero", "mean"], range=["gaussian(1)", "quantile(0.8)"])
    near = everywhere(plain, TEXTS, SITES)
    ivs = [clear(iv, near[iv.site].float()) for iv in ivs] if dtype == torch.float32 else [iv for iv in ivs if iv.condition == "full"]
    want, got = (changes_on(clf, LABELLED, ivs, progress=False) for clf in (plain, other))
    size = score_size(want.gold)
    agree(np.log(got.gold), np.log(want.gold), plain, size=size)
    bound = rounding(size, steps_of(plain), plain.model.dtype)
    assert np.abs(got.moved-want.moved).max() <= bound # A probability moves by less than its logarithm
    frames = [effects_on(clf, LABELLED, ivs, progress=False).frame for clf in (plain, other)]
    for k in MEASURES:
        if "accuracy" not in k and k != "broken": assert np.nanmax(np.abs(frames[0][k]-frames[1][k])) <= bound, k
    assert estimate(other, LABELLED, ivs).interventions == len(ivs)


def test_attribution_and_views(place):
    "Slopes, and one text by itself."
    plain, other = both("bert", place)
    for site in ("residual.2", "mlp.1"):
        want, got = (attribute(clf, LABELLED, site, "integrated_gradients", steps=4, progress=False).scores for clf in (plain, other))
        agree(got, want, 40*steps_of(plain), size=np.abs(want).max())
    iv = edits(plain, record(plain, LABELLED, SITES, progress=False))[0]
    want, got = (edit_text(clf, TEXTS[0], [iv]) for clf in (plain, other))
    same_answers(got.answers["range"], want.answers["range"], plain)
    assert (got.neurons.neuron == want.neurons.neuron).all()


def prompted(place, dtype=torch.float32):
    "A prompted model twice, as `both`."
    prompt = Prompt("Text: {text}\nTopic:", ("animal", "food", "tool"), (), SHOTS)
    plain, other = (language_model("llama").to(dtype) for _ in range(2))
    there(other, place)
    return [make_prompted(m, byte_tokenizer(), prompt) for m in (plain, other)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_prompted(place, dtype):
    "Shots that are computed once, and again for edits that reach them; the answer in the whole vocabulary."
    plain, other = prompted(place, dtype)
    want, got = (record(clf, TOPICS, ["residual.2", "residual.0"], progress=False) for clf in (plain, other))
    close(got.acts, want.acts, plain)
    same_answers(got.probabilities, want.probabilities, plain)
    a, b = (vocabulary_confidence(clf, want.acts, want.labels) for clf in (plain, other))
    same_answers(b, a, plain)
    if dtype != torch.float32: return
    near = everywhere(plain.whole(), TOPICS.texts, ["residual.0"])
    ivs = [intervention(v, "residual.0", "mean", p) for v in near.values() for p in ("all", "prompt", "readout")]
    want, got = (ablate(clf, TOPICS, ivs, progress=False) for clf in (plain, other))
    for iv, x, y in zip(ivs, got.after, want.after, strict=True): same_answers(x, y, plain, iv)
    assert (generated_answers(other, TOPICS, new_tokens=3) == generated_answers(plain, TOPICS, new_tokens=3)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_generate(place, dtype):
    "What is written under edits, token by token, and how well plain text is predicted."
    plain, other = (language_model("llama").to(dtype) for _ in range(2))
    there(other, place)
    tok, words = byte_tokenizer(), TOPICS.texts[:4]
    clf, _ = prompted("cpu", dtype)
    v = everywhere(clf.whole(), TOPICS.texts, ["residual.1", "mlp.1"])
    kinds = zip(v.items(), ("mean", "zero"), ("all", "prompt"), strict=True)
    ivs = [intervention(x.float(), str(s), e, p, least=1e-3 if dtype == torch.float32 else -1) for (s, x), e, p in kinds]
    if dtype != torch.float32:
        ivs = [replace(iv, lo=torch.full_like(iv.lo, -torch.inf), hi=torch.full_like(iv.hi, torch.inf)) for iv in ivs]
    with torch.inference_mode():
        ids = torch.tensor([[5, 9, 14, 7, 22]])
        scores = []
        for model in (plain, other):
            with editing(model, ivs): scores.append(model(ids.to(model.device)).logits.float().cpu())
    agree(scores[1], scores[0], plain)
    want, got = (generate(m, tok, words, ivs, new_tokens=6) for m in (plain, other))
    assert len(got) == 4 and (got == want or dtype != torch.float32)
    want, got = (perplexity(m, tok, words, ivs[1:], window=16).losses for m in (plain, other))
    agree(got, want, plain, size=max(score_size(np.exp(-want)), abs(want).max()))


def test_firing_by_position(place):
    plain, other = prompted(place)
    ivs = [intervention(v, "residual.0") for v in everywhere(plain.whole(), TOPICS.texts, ["residual.0"]).values()]
    want, got = (firing_by_position(clf, TOPICS, ivs) for clf in (plain, other))
    assert np.abs(got.fires_at_readout-want.fires_at_readout).max() < 1e-6


def test_interventions_stay_where_they_were(place):
    "What a run moves to a device is a copy: the same list serves the next model."
    plain, other = both("bert", place)
    ivs = edits(plain, record(plain, LABELLED, SITES, progress=False))
    ablate(other, LABELLED, ivs, progress=False)
    assert {at(t).type for iv in ivs for t in (iv.neurons, iv.lo, iv.hi)} == {"cpu"}
    assert class_statistics(record(other, LABELLED, SITES, progress=False).acts, LABELLED.labels).mean.shape[1] == 16


# --- the real one alone

@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no graphics processor that torch can use here")
@pytest.mark.parametrize("how", [dict(device="cuda"), dict(device_map="auto"), dict(dtype="auto")], ids=str)
def test_loading(bert, test_frame, how):
    "By device, by map and by type, from a folder."
    texts, plain = make_texts(test_frame.text.tolist(), test_frame.label.tolist()), load_classifier(bert, device="cpu")
    clf = load_classifier(bert, **how)
    assert clf.device.type == "cuda" and token_budget(clf.device) >= 1024
    got, want = (record(c, texts, progress=False) for c in (clf, plain))
    agree(got.acts, want.acts, clf)
    same_answers(got.probabilities, want.probabilities, clf)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no graphics processor that torch can use here")
def test_batches_halve_where_its_memory_runs_out(bert, test_frame, monkeypatch):
    "The error of the real device is known for what it is."
    from neuronlens.models import batches
    assert batches.out_of_memory(pytest.raises(torch.OutOfMemoryError, torch.empty, 1 << 50, device="cuda").value)
    texts, clf = make_texts(test_frame.text.tolist(), test_frame.label.tolist()), load_classifier(bert, device="cuda")
    whole, real = record(clf, texts, progress=False).acts, type(clf).inputs
    def small(self, batch):
        if batch.ids.numel() > 100: torch.empty(1 << 50, device="cuda")
        return real(self, batch)
    monkeypatch.setattr(type(clf), "inputs", small)
    agree(record(clf, texts, progress=False).acts, whole, clf)
