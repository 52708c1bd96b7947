"""An edit as a file, and on models that someone else calls: `ablate`'s numbers everywhere, refused where anything differs, no trace."""
import copy
import io
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from conftest import CLASSES, make_frame, make_tokenizer
from test_language import tiny_lm as make_lm
from tiny import answers_apart, intervention, same_answers, tiny_model, touched
from transformers import TextStreamer

import neuronlens as nl
from neuronlens.edits import portable
from neuronlens.edits.ablation import ablate
from neuronlens.edits.edit import linear_edit, tensors_of
from neuronlens.edits.language import editing
from neuronlens.edits.portable import Edit, load_edit, make_edit
from neuronlens.ground.core import InputError
from neuronlens.ground.data import make_texts
from neuronlens.ground.rounding import agree, apart
from neuronlens.ground.setting import POSITIONS
from neuronlens.models.anatomy import parse_site
from neuronlens.models.hooks import hooked
from neuronlens.models.model import Classifier, make_classifier
from neuronlens.records.recording import record

pytestmark = pytest.mark.usefixtures("one_thread")
ENCODERS = ("bert", "distilbert", "modernbert")
LINES = make_frame(8, 4)
TEXTS = make_texts([" ".join(t.split()[:4+i % 7]) for i, t in enumerate(LINES.text)], LINES.label)


def classifier(name="bert", readout="auto", **kw):
    "A tiny random classifier whose tokenizer knows the words of the texts; both pad with token 0."
    tok = make_tokenizer(name in ENCODERS)
    tok.model_input_names = ["input_ids", "attention_mask"]
    return make_classifier(tiny_model(name, pad_token_id=0, **kw), tok, list(CLASSES), readout=readout, source="tiny")


def found(clf, site="residual.1", edit="mean", seed=0, **setting):
    "An intervention whose ends lie away from what texts have where it asks; each of several seeds is tried."
    fitted = setting.get("fitted_at", "readout")
    rec = record(clf, TEXTS, site, readout="mean" if fitted == "tokens" else clf.readout, answers=False, progress=False)
    for s in range(seed, seed+40):
        try: iv = intervention(torch.tensor(rec.acts), site, edit, seed=s)
        except AssertionError: continue
        return replace(iv, **setting)


def raw(model, tok, size=5, side="right", call=None):
    "Class probabilities as anyone would ask for them."
    out, call = [], model if call is None else call
    for i in range(0, len(TEXTS), size):
        tok.padding_side = side
        seen = tok(TEXTS.texts[i:i+size], padding=True, return_tensors="pt")
        with torch.inference_mode(): out.append(call(**seen).logits.float().softmax(-1).numpy())
    return np.concatenate(out)


def piped(model, tok, size):
    "The same through a pipeline."
    pipe = transformers.pipeline("text-classification", model, tokenizer=tok, device="cpu")
    names = list(model.config.id2label.values())
    return [[{r["label"]: r["score"] for r in row}[n] for n in names] for row in pipe(TEXTS.texts, top_k=None, batch_size=size)]


CASES = [("bert", "first", dict()), ("bert", "first", dict(positions="readout", site="mlp.1")), ("bert", "mean", dict(positions="readout")),
         ("bert", "first", dict(scope="text", vote=.3)), ("bert", "mean", dict(scope="text", site="attention.2")),
         ("bert", "first", dict(scope="text", fitted_at="tokens", site="mlp.0")), ("modernbert", "first", dict(scope="text")),
         ("llama", "last", dict(positions="readout", vote=.2)), ("llama", "last", dict(scope="text", site="mlp.1")),
         ("llama", "last", dict(scope="text", fitted_at="tokens")), ("gpt2", "last", dict(scope="text", positions="readout")),
         ("bert", "first", dict(positions="generated"))]


@pytest.mark.parametrize("name, readout, setting", CASES, ids=[f"{n}-{r}-{'-'.join(map(str, s.values()))}" for n, r, s in CASES])
def test_numbers_hold(name, readout, setting, tmp_path):
    "After a file: as `ablate` has it in other batches, on either side of padding, in a pipeline, and through our own passes."
    clf = classifier(name, readout)
    iv = found(clf, **setting)
    want = ablate(clf, TEXTS, [iv], progress=False)
    edit = load_edit(make_edit(clf, [iv]).save(tmp_path/"e.safetensors"))
    model, tok = copy.deepcopy(clf.model), copy.deepcopy(clf.tokenizer)
    with edit.on(model, tokenizer=tok) as running:
        for size in (1, 5): same_answers(raw(model, tok, size), want.after[0], clf, what=size)
        if name == "llama": same_answers(raw(model, tok, 7, "left"), want.after[0], clf)
    report = running.report().iloc[0]
    if setting.get("positions") != "generated":
        assert answers_apart(want.after[0], want.before, clf) > 10
        assert report.asked > 0 and 0 < report.opened <= report.asked
    with edit.on(transformers.pipeline("text-classification", model, tokenizer=tok)):
        tok.padding_side = "right"
        same_answers(piped(model, tok, 4), want.after[0], clf)
    own = replace(clf, model=model)
    same_answers(record(own, TEXTS, "residual.-1", progress=False).probabilities, want.before, clf)
    with edit.on(own): same_answers(record(own, TEXTS, "residual.-1", progress=False).probabilities, want.after[0], clf)
    same_answers(raw(model, tok), want.before, clf)
    assert not touched(model) and "generate" not in model.__dict__


def test_report_counts():
    "Tokens and texts, by hand."
    clf = classifier()
    iv = found(clf)
    rec, kept = [], []
    with torch.inference_mode():
        for t in TEXTS.texts:
            ids = clf.tokenizer(t, return_tensors="pt").input_ids
            with hooked(clf.model, {iv.site: lambda h: kept.append(iv(h)[1][0])}): clf.model(ids)
            rec.append(kept.pop().sum(-1))
    with make_edit(clf, [iv, replace(iv, scope="text", positions="readout")]).on(clf.model) as running: raw(clf.model, clf.tokenizer)
    first, second = running.report().to_dict("records")
    rows = torch.cat(rec)
    assert first["asked"] == len(rows) and first["opened"] == int((rows > 0).sum()) and second["asked"] == len(TEXTS)
    assert first["edited"] == pytest.approx(rows.sum().item()/len(rows)/len(iv.neurons))
    assert (first["asks"], second["asks"]) == ("token", "text")
    assert first["share"] == first["opened"]/first["asked"]


def test_several_edits_in_their_order():
    "In one edit and in several, each undone in any order, the last without a trace."
    clf = classifier()
    a, b = found(clf, edit="scale(2)", covers="range"), linear_edit("food", "turn", "residual.1", torch.eye(16).flip(0)*.5, torch.ones(16))
    both, other = raw_under(clf, [a, b]), raw_under(clf, [b, a])
    assert answers_apart(both, other, clf) > 10
    one, two = make_edit(clf, [a]).attach(clf.model), make_edit(clf, [b]).attach(clf.model)
    same_answers(raw(clf.model, clf.tokenizer), both, clf)
    one.detach()
    one.detach()
    same_answers(raw(clf.model, clf.tokenizer), raw_under(clf, [b], clf.model, two), clf)
    three = make_edit(clf, [a]).attach(clf.model)
    same_answers(raw(clf.model, clf.tokenizer), other, clf)
    for r in (two, three): r.detach()
    assert not touched(clf.model) and "detached" in repr(two)


def raw_under(clf, ivs, model=None, on=None):
    "Answers under these edits alone; on a copy of the model."
    model = copy.deepcopy(clf.model) if on is None else tiny_copy(clf)
    with make_edit(clf, ivs).on(model): return raw(model, clf.tokenizer)


def tiny_copy(clf):
    "The same weights in a model of its own, whatever hangs on the first."
    new = type(clf.model)(clf.model.config).eval()
    new.load_state_dict(clf.model.state_dict())
    return new


def test_errors_leave_no_trace():
    clf = classifier()
    iv = found(clf)
    edit = make_edit(clf, [iv])
    with pytest.raises(IndexError), edit.on(clf.model): clf.model(torch.tensor([[5, 9999]]))
    with pytest.raises(ZeroDivisionError), edit.on(clf.model): 1/0
    assert not touched(clf.model)
    with edit.on(clf.model):
        with pytest.raises(IndexError): clf.model(torch.tensor([[5, 9999]]))
        same_answers(raw(clf.model, clf.tokenizer), ablate_of(clf, iv), clf)
    with make_edit(clf, [replace(iv, edit="scale(1e300)")]).on(clf.model), pytest.raises(InputError, match="leaves the range of float32"):
        raw(clf.model, clf.tokenizer)
    assert not touched(clf.model)


def ablate_of(clf, iv): return ablate(replace(clf, model=tiny_copy(clf)), TEXTS, [iv], progress=False).after[0]


def test_editing_does_classifiers():
    "With what a model alone says; the rest names `make_edit`."
    clf = classifier()
    iv = found(clf, "mlp.1")
    with nl.editing(clf.model, [iv]): same_answers(raw(clf.model, clf.tokenizer), ablate_of(clf, iv), clf)
    assert not touched(clf.model)
    for odd in (replace(iv, scope="text"), replace(iv, positions="readout")):
        with pytest.raises(InputError, match=r"which a model alone does not say; put `nl.make_edit"), nl.editing(clf.model, [odd]): pass
    with pytest.raises(InputError, match="reads no prompt"), nl.editing(clf.model, [iv], prompt_length=3): pass


# --- other models

def test_another_model_is_refused():
    "Weights, tokenizer, configuration: one sentence says what differs; `anyway` warns and goes on."
    clf = classifier()
    edit = make_edit(clf, [found(clf)])
    other = tiny_copy(clf)
    with torch.no_grad(): other.classifier.bias[0].view(torch.int32).bitwise_xor_(1)
    with pytest.raises(InputError, match=r"another model: it has another 'classifier.bias' \(`anyway"): edit.attach(other)
    with pytest.warns(UserWarning, match="it has another 'classifier.bias'"), edit.on(other, anyway=True): raw(other, clf.tokenizer)
    with pytest.raises(InputError, match="another model: it has another 'bert.embeddings.word_embeddings.weight' and"):
        edit.attach(tiny_model("bert", seed=5, pad_token_id=0))
    with pytest.raises(InputError, match="hidden_act 'relu', not 'gelu'"):
        config = copy.deepcopy(clf.model.config)
        config.hidden_act = "relu"
        made = type(clf.model)(config).eval()
        made.load_state_dict(clf.model.state_dict())
        edit.attach(made)
    with pytest.raises(InputError, match=r"its tokenizer is another \("): edit.attach(clf.model, tokenizer=make_tokenizer(False))
    pipe = transformers.pipeline("text-classification", clf.model, tokenizer=make_tokenizer(False))
    with pytest.raises(InputError, match="its tokenizer is another"), edit.on(pipe): pass
    with pytest.raises(InputError, match="it is a LlamaForSequenceClassification, no BertFor.*it lacks 'bert"):
        edit.attach(classifier("llama").model)
    with pytest.raises(InputError, match="training mode"): edit.attach(tiny_copy(clf).train())
    with pytest.raises(InputError, match="not on str"): edit.attach("tiny")
    with pytest.raises(InputError, match="not on Linear"): edit.attach(torch.nn.Linear(2, 2))
    assert not touched(clf.model)


def test_half_precision_is_the_same_model():
    "In bf16 the answers are those of an edit of bf16 activations; fp16 is known as well; other rounding is another model."
    clf = classifier()
    iv = found(clf)
    edit, half = make_edit(clf, [iv]), tiny_copy(clf).to(torch.bfloat16)
    own = replace(clf, model=half)
    with edit.on(half): got = raw(half, clf.tokenizer, size=1)
    same = ablate(own, TEXTS, [iv], progress=False).after[0]
    agree(np.log(got), np.log(same), half, size=max(1, -np.log(same).min()))
    for kind in (torch.float16, torch.float64): edit.attach(tiny_copy(clf).to(kind)).detach()
    back = make_edit(own, [iv])
    back.attach(half).detach()
    with pytest.raises(InputError, match="it has another"): back.attach(clf.model) # What was rounded is not what it was rounded from
    back.attach(copy.deepcopy(half).float()).detach()


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_peft(name):
    "Adapters are weights: on the base they are another model, switched off they are none; a wrapped model is edited by any door."
    peft = pytest.importorskip("peft", reason="peft is not installed")
    clf = classifier(name)
    iv = found(clf)
    edit, base = make_edit(clf, [iv]), raw_under(clf, [iv])
    modules = ["q_proj", "v_proj"] if name == "llama" else ["query", "value"]
    kw = dict(task_type="SEQ_CLS", r=4, target_modules=modules, init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wrapped = peft.get_peft_model(tiny_copy(clf), peft.LoraConfig(**kw)).eval()
    with pytest.raises(InputError, match="it has besides .*lora_A"): edit.attach(wrapped)
    with wrapped.disable_adapter(), edit.on(wrapped):
        same_answers(raw(wrapped, clf.tokenizer), base, clf)
    own = make_classifier(wrapped, clf.tokenizer, list(CLASSES), source="tiny")
    mine = make_edit(own, [iv])
    want = ablate(own, TEXTS, [iv], progress=False).after[0]
    assert answers_apart(want, base, clf) > 10
    for put, call in ((wrapped, wrapped), (wrapped, own.model), (own.model, wrapped), (own.model, own.model)):
        with mine.on(put): same_answers(raw(call, clf.tokenizer), want, clf)
    assert not touched(wrapped)
    wrapped.set_adapter("default")
    with pytest.raises(InputError, match="it lacks"): mine.attach(tiny_copy(clf))


def test_device_map(tmp_path):
    "Accelerate's hooks move activations around the edit; weights that are kept elsewhere cannot be looked at."
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    clf = classifier("llama")
    iv = found(clf)
    edit, want = make_edit(clf, [iv]), raw_under(clf, [iv])
    spread = accelerate.dispatch_model(tiny_copy(clf), {"model": "cpu", "score": "cpu"}, main_device="cpu", force_hooks=True)
    before = dict(spread.__dict__)
    with edit.on(spread): same_answers(raw(spread, clf.tokenizer), want, clf)
    assert spread.__dict__.keys() == before.keys() and spread.forward is before["forward"]
    clf.model.save_pretrained(tmp_path)
    loaded = type(clf.model).from_pretrained(tmp_path, device_map="cpu").eval()
    with edit.on(loaded): same_answers(raw(loaded, clf.tokenizer), want, clf)
    away = accelerate.cpu_offload(tiny_copy(clf))
    with pytest.raises(InputError, match="kept elsewhere until they are needed"): edit.attach(away)
    with pytest.warns(UserWarning), edit.on(away, anyway=True): same_answers(raw(away, clf.tokenizer), want, clf)


def test_compiled():
    "Compiled before, while, or after an edit is on, in place or not: edited then, and not afterwards."
    clf = classifier("llama")
    iv = found(clf)
    edit, want, plain = make_edit(clf, [iv]), raw_under(clf, [iv]), raw(clf.model, clf.tokenizer)
    model = tiny_copy(clf)
    early = torch.compile(model, backend="eager")
    ask = lambda call: raw(model, clf.tokenizer, 24, call=call)
    same_answers(ask(early), plain, clf)
    for put in (early, model):
        with edit.on(put):
            same_answers(ask(early), want, clf)
            same_answers(ask(model), want, clf)
        same_answers(ask(early), plain, clf)
    with edit.on(model):
        late = torch.compile(model, backend="eager")
        same_answers(ask(late), want, clf)
    same_answers(ask(late), plain, clf)
    model.compile(backend="eager")
    same_answers(ask(model), plain, clf)
    with edit.on(model): same_answers(ask(model), want, clf)
    same_answers(ask(model), plain, clf)
    assert not touched(model) and not touched(early._orig_mod)


def test_threads():
    "Two threads in one model, each with texts of its own: what each would get alone."
    clf = classifier()
    ivs = [found(clf, "mlp.1"), found(clf, scope="text")]
    sets = [TEXTS.texts[:7], TEXTS.texts[7:20]]
    def ask(texts):
        seen = clf.tokenizer(texts, padding=True, return_tensors="pt")
        with torch.inference_mode(): return clf.model(**seen).logits.softmax(-1).numpy()
    with make_edit(clf, ivs).on(clf.model) as running:
        alone = [ask(s) for s in sets]
        with ThreadPoolExecutor(2) as pool: seen = [*pool.map(ask, sets*20)]
    for got, want in zip(seen, alone*20, strict=True): same_answers(got, want, clf)
    assert (running.report().asked == [21*sum(len(clf.tokenizer(t).input_ids) for s in sets for t in s), 21*20]).all()


# --- where a text is read

def test_what_cannot_be_known_is_refused():
    clf, llama = classifier(), classifier("llama")
    asks = make_edit(clf, [found(clf, scope="text")])
    ids = torch.tensor([[2, 5, 6, 3, 0, 0], [2, 7, 8, 9, 11, 3]])
    mask = (ids != 0).long()
    with asks.on(clf.model):
        with pytest.raises(InputError, match="cannot be known: row 1: a token that pads stands there"): clf.model(ids)
        clf.model(ids, mask)
        clf.model(ids[1:])
        with pytest.raises(InputError, match="one row a text and one column a token"):
            clf.model(ids, mask[:, None, None].expand(2, 1, 6, 6).bool())
        with pytest.raises(InputError, match="row 1: no token is attended"): clf.model(ids, mask*torch.tensor([[0], [1]]))
    with make_edit(clf, [found(clf)]).on(clf.model): clf.model(ids) # At every position: no matter where a text ends
    tokens = make_edit(clf, [found(clf, scope="text", fitted_at="tokens")])
    with tokens.on(clf.model):
        with pytest.raises(InputError, match="row 2 has not the special tokens"): clf.model(torch.tensor([[2, 5, 3], [5, 6, 3]]))
        with pytest.raises(InputError, match="row 1 has not the special tokens"): clf.model(torch.tensor([[2, 5, 3, 6, 3]]))
    last = make_edit(llama, [found(llama, positions="readout")])
    with last.on(llama.model):
        with pytest.raises(InputError, match="row 1: the head reads at another token"):
            llama.model(torch.tensor([[5, 6, 0]]), attention_mask=torch.tensor([[1, 1, 1]]))
        out = llama.model(torch.tensor([[5, 6, 7]]))
        with pytest.raises(InputError, match="goes on from a cache"): llama.model(torch.tensor([[5]]), past_key_values=out.past_key_values)


# --- language models

def tiny_lm(name="llama", seed=1):
    model = make_lm(name, seed)
    model.generation_config.pad_token_id = 1
    return model


def speaker(model): return Classifier(model, make_tokenizer(False), CLASSES, "last", 32, "tiny")


def spoken(model, positions="all", scope="position", seed=0):
    "Two edits with ends away from what a prompt has."
    out = []
    for site, edit in (("residual.1", "zero"), ("mlp.2", "mean")):
        kept = []
        with hooked(model, {parse_site(site): lambda h, kept=kept: kept.append(h.flatten(0, 1))}), torch.no_grad():
            for s in range(4): model(torch.randint(4, 60, (1, 12), generator=torch.Generator().manual_seed(s)))
        for s in range(seed, seed+40):
            try: out.append(replace(intervention(torch.cat(kept), site, edit, positions, s), scope=scope))
            except AssertionError: continue
            break
    return out


PROMPT, LEFT = torch.tensor([[5, 9, 14, 7, 22], [1, 1, 61, 30, 44]]), torch.tensor([[1]*5, [0, 0, 1, 1, 1]])
WAYS = dict(greedy=dict(do_sample=False), sampled=dict(do_sample=True, top_k=0, temperature=1.5), beams=dict(num_beams=3, do_sample=False),
            static=dict(do_sample=False, cache_implementation="static"), uncached=dict(do_sample=False, use_cache=False),
            chunks=dict(do_sample=False, prefill_chunk_size=2), lookup=dict(do_sample=False, prompt_lookup_num_tokens=2))


def write(model, **kw):
    torch.manual_seed(3)
    rows = slice(0, 1) if "prompt_lookup_num_tokens" in kw else slice(None)
    return model.generate(PROMPT[rows], attention_mask=LEFT[rows], max_new_tokens=6, eos_token_id=None, return_dict_in_generate=True,
                          output_logits=True, **kw)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("positions, scope", [(p, "position") for p in POSITIONS]+[("all", "text"), ("generated", "text")])
def test_generate(how, positions, scope):
    "However it is written, it is what `editing` gives, which is checked against whole passes."
    model = tiny_lm()
    ivs = spoken(model, positions, scope)
    with editing(model, ivs, mask=LEFT): want = write(model, **WAYS["greedy" if how in ("static", "uncached", "chunks", "lookup") else how])
    with make_edit(speaker(model), ivs).on(model) as running:
        if how == "chunks" and (positions, scope) == ("all", "text"):
            with pytest.raises(InputError, match="scope 'text' asks at the end of the prompt"): write(model, **WAYS[how])
            return
        got = write(model, **WAYS[how])
    n = 1 if how == "lookup" else 2
    assert (got.sequences[:n] == want.sequences[:n]).all()
    if how not in ("beams", "lookup"):
        agree(torch.stack(got.logits), torch.stack(want.logits), model)
        if how != "sampled": assert apart(torch.stack(got.logits), torch.stack(write(model, do_sample=False).logits), model) > 10
    assert not touched(model) and "generate" not in model.__dict__
    report = running.report()
    assert (report.asked > 0).all() and set(report.asks) == {"token" if scope == "position" else "text"}


def test_generated_tokens_are_counted():
    "Prompts of five and three tokens, six new ones of which the last is not read; a text is asked once, at the end of its prompt."
    model = tiny_lm()
    counts = {}
    for positions, scope in [(p, "position") for p in ("all", "prompt", "readout", "generated")]+[("all", "text")]:
        with make_edit(speaker(model), spoken(model, positions, scope)[:1]).on(model) as running: write(model, do_sample=False)
        counts[positions, scope] = int(running.report().asked.item())
    assert [*counts.values()] == [8+10, 8, 2, 10, 2]


def test_streaming_and_a_pipeline():
    model, tok = tiny_lm(), make_tokenizer(False)
    tok.model_input_names = ["input_ids", "attention_mask"]
    ivs, prompt = spoken(model, "generated"), "cat dog bread soup"
    ids = tok(prompt, return_tensors="pt")
    kw = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)
    with editing(model, ivs, prompt_length=4): want = model.generate(**ids, **kw)[0]
    edit = make_edit(speaker(model), ivs)
    with edit.on(model), redirect_stdout(io.StringIO()) as said: model.generate(**ids, **kw, streamer=TextStreamer(tok, skip_prompt=True))
    assert said.getvalue().split() == tok.decode(want[4:]).split()
    pipe = transformers.pipeline("text-generation", model, tokenizer=tok, device="cpu")
    with edit.on(pipe): got = pipe(prompt, return_tensors=True, **kw)[0]["generated_token_ids"]
    assert list(got) == want.tolist()


def test_two_threads_generate():
    "Each with its own cache and prompt, interleaved as they come."
    model = tiny_lm()
    prompts = [torch.tensor([[5, 9, 14, 7, 22]]), torch.tensor([[61, 30]])]
    def go(x): return model.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=8, do_sample=False, eos_token_id=None)[0].tolist()
    with make_edit(speaker(model), spoken(model, "generated", "text")).on(model):
        alone = [go(p) for p in prompts]
        with ThreadPoolExecutor(2) as pool: seen = [*pool.map(go, prompts*8)]
    assert seen == alone*8


def test_by_hand():
    "A loop of one's own, token by token on a cache, and what cannot be known of one."
    model = tiny_lm()
    for positions in ("all", "readout", "prompt", "generated"):
        ivs = spoken(model, positions)
        with editing(model, ivs, prompt_length=5), torch.no_grad():
            want = model.generate(PROMPT[:1], attention_mask=LEFT[:1], max_new_tokens=4, do_sample=False, eos_token_id=None)[0, 5:]
        with make_edit(speaker(model), ivs).on(model), torch.no_grad():
            out, got = model(PROMPT[:1], use_cache=True), []
            for _ in range(4):
                got.append(out.logits[:, -1:].argmax(-1))
                out = model(got[-1], past_key_values=out.past_key_values)
        assert torch.cat(got, 1)[0].tolist() == want.tolist(), positions
    before = model(PROMPT[:1], use_cache=True).past_key_values
    with make_edit(speaker(model), spoken(model, "prompt")).on(model), torch.no_grad():
        with pytest.raises(InputError, match="a cache of passes without this edit"): model(PROMPT[:1, :1], past_key_values=before)
        mine = model(PROMPT[:1], use_cache=True).past_key_values
        with pytest.raises(InputError, match="2 tokens upon a cache may be prompt or generated"):
            model(PROMPT[:1, :2], past_key_values=mine)
    with make_edit(speaker(model), spoken(model)).on(model), torch.no_grad():
        mine = model(PROMPT[:1], use_cache=True).past_key_values
        two = model(PROMPT[:1, :2], past_key_values=mine).logits[0]
        agree(two, model(torch.cat([PROMPT[:1], PROMPT[:1, :2]], 1)).logits[0, 5:], model)


# --- the file

def some_edit(**kw):
    clf = classifier()
    return clf, make_edit(clf, [found(clf, **kw), linear_edit("food", "turn", "residual.1", torch.eye(16)*.5, torch.ones(16))])


def flips(path, n, seed):
    "Every one of `n` random bits, and those at the places that matter most, is found."
    data, bad = path.read_bytes(), path.with_name("bad.safetensors")
    rng, head = np.random.default_rng(seed), int.from_bytes(path.read_bytes()[:8], "little")
    for bit in [*range(64), *rng.integers(64, 8*head, n//2), *rng.integers(0, 8*len(data), n//2)]:
        changed = bytearray(data)
        changed[bit//8] ^= 1 << int(bit) % 8
        bad.write_bytes(changed)
        with pytest.raises(InputError): load_edit(bad)


def test_a_flipped_bit_is_refused(tmp_path): flips(some_edit()[1].save(tmp_path/"e.safetensors"), 60, 0)


@pytest.mark.slow
def test_any_flipped_bit_is_refused(tmp_path): flips(some_edit()[1].save(tmp_path/"e.safetensors"), 3000, 1)


def test_the_file_holds_all_of_it(tmp_path):
    "Everything comes back to the last bit; equal edits have equal bytes; what interventions share is there once, and shared again."
    clf, edit = some_edit(vote=.25, scope="text")
    path = edit.save(tmp_path/"e.safetensors")
    again = nl.load(path)
    assert isinstance(again, Edit) and again.to_frame().equals(edit.to_frame()) and again.model == edit.model and repr(again) == repr(edit)
    for a, b in zip(edit.interventions, again.interventions, strict=True):
        assert a.setting == b.setting and all(x.equal(y) for x, y in zip(tensors_of(a), tensors_of(b), strict=True))
    assert make_edit(clf, list(edit.interventions)).save(tmp_path/"f.safetensors").read_bytes() == path.read_bytes()
    iv = edit.interventions[0]
    two = make_edit(clf, [iv, replace(iv, edit="zero")])
    back = load_edit(two.save(tmp_path/"two.safetensors")).interventions
    assert back[0].lo is back[1].lo and "<table" in two._repr_html_()
    assert nl.load_edit is load_edit and nl.make_edit is make_edit


def test_what_an_edit_cannot_be_made_of():
    clf = classifier()
    iv = found(clf)
    for args, says in (((clf.model, [iv]), "made on a `Classifier`, not on BertFor"), ((clf, []), "an edit of no intervention"),
                       ((clf, iv), "interventions are a list"), ((clf, [replace(iv, site="residual.9")]), "beyond the model"),
                       ((clf, [replace(iv, lo=iv.lo.double())]), "lo is no float32 of 2 axes"),
                       ((clf, [replace(iv, state=iv.state._replace(mean=iv.state.mean/0))]), "mean is not finite"),
                       ((clf, [replace(iv, edit="resample")]), "what the edit needs to know is not there")):
        with pytest.raises(InputError, match=says): make_edit(*args)
    with pytest.raises(InputError, match="ends in .safetensors"): make_edit(clf, [iv]).save("edit.bin")


def forged(path, change):
    "A file with a fitting checksum in which something was changed: (arrays, what the header says)."
    said, arrays = portable._unpacked(path)
    arrays = {k: a.copy() for k, a in arrays.items()}
    change(arrays, said)
    bad = path.with_name("bad.safetensors")
    bad.write_bytes(portable._packed(arrays, said))
    return bad


def put(where, key, value):
    def change(arrays, said):
        at = dict(arrays=arrays, said=said, about=said["about"], model=said["about"]["model"], one=said["about"]["interventions"][0],
                  setting=said["about"]["interventions"][0]["setting"])[where]
        at[key] = value
    return change


def scale_ends(arrays, said): arrays[said["about"]["interventions"][0]["lo"]][0] = np.nan
def wrong_type(arrays, said): arrays[k] = arrays[k := said["about"]["interventions"][0]["neurons"]].astype(np.float32)
def short_ends(arrays, said): arrays[k] = arrays[k := said["about"]["interventions"][0]["lo"]][:-1]
def infinite(arrays, said): arrays[said["about"]["interventions"][0]["state"]["mean"]][0] = np.inf
def too_far(arrays, said): arrays[said["about"]["interventions"][0]["neurons"]][0] = 1 << 40


HOSTILE = {
    "NaN ends": (scale_ends, "an end of a range is no number"),
    "neurons of another type": (wrong_type, "neurons are torch.float32"),
    "ends too short": (short_ends, "are not `\\[D, K\\]`|of 2 axes"),
    "state": (infinite, "mean is not finite"),
    "neuron beyond": (too_far, "is none of 16"),
    "unknown edit": (put("setting", "edit", "evil"), "edit 'evil' is none of"),
    "edit of a path": (put("setting", "edit", "../../etc/passwd"), "is not a name with"),
    "site": (put("setting", "site", "/etc/passwd"), "the stream must be one of"),
    "block": (put("setting", "site", "residual.-1"), "from 0"),
    "seed": (put("setting", "seed", -1), "needs to know is not there"),
    "vote": (put("setting", "vote", 7), "vote 7 is outside"),
    "a list for a name": (put("setting", "concept", ["x"]), "concept \\['x'\\] means nothing"),
    "a long name": (put("setting", "concept", "x"*2000), "means nothing"),
    "field": (put("setting", "more", 1), "has the fields"),
    "array of a path": (put("one", "lo", "../x"), "names an array '../x'"),
    "array beside": (put("arrays", "more", np.zeros(3, np.uint8)), "it holds an array 'more'"),
    "nothing": (put("about", "interventions", []), "describes no interventions"),
    "no list": (put("about", "interventions", {"a": 1}), "no interventions"),
    "many": (put("about", "interventions", [{}]*5000), "or too many"),
    "format": (put("said", "format", 99), "is of format 99"),
    "kind": (put("said", "kind", "Pickle"), "holds no Edit; it is of kind 'Pickle'"),
    "model": (put("about", "model", {}), "which model it is for"),
    "readout": (put("model", "readout", "all"), "says of its model"),
    "classes": (put("model", "classes", [1, 2]), "says of its model"),
    "around": (put("model", "around", [["a"], []]), "says of its model"),
    "configuration": (put("model", "configuration", "rm"), "configuration 'rm' says nothing"),
    "marks": (put("arrays", "weights.marks", np.zeros((1, 3, 8), np.uint8)), "marks of the weights"),
    "a state of another kind": (put("one", "state", {"evil": "t0"}), "TypeError")}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files(what, tmp_path):
    "Made by someone who knows the checksum: one sentence each."
    change, says = HOSTILE[what]
    bad = forged(some_edit()[1].save(tmp_path/"e.safetensors"), change)
    with pytest.raises(InputError, match=says) as e: load_edit(bad)
    assert str(e.value).startswith(str(bad)) and "\n" not in str(e.value)


def test_what_is_no_edit(tmp_path):
    "A header of exabytes, other files, nothing at all."
    clf, edit = some_edit()
    path = edit.save(tmp_path/"e.safetensors")
    data = path.read_bytes()
    for bytes_, says in ((b"\xff"*8+data[8:], "no edit needs so many"), (b"", "cannot be read"), (b"PK\x03\x04"*9, "no edit|cannot be"),
                         (data[:300], "is damaged|cannot be read"), (data+b"\0", "is damaged"),
                         ((1 << 21).to_bytes(8, "little")+data[8:], "no edit needs")):
        (bad := tmp_path/"bad.safetensors").write_bytes(bytes_)
        with pytest.raises(InputError, match=says): load_edit(bad)
    edit.interventions[0].save(other := tmp_path/"iv.safetensors")
    with pytest.raises(InputError, match="holds no Edit; it is of kind 'Intervention'"): load_edit(other)
    for missing in (tmp_path/"none.safetensors", tmp_path):
        with pytest.raises(InputError, match="cannot be read"): load_edit(missing)
    deep = forged(path, put("about", "interventions", json.loads("["*400+"]"*400)))
    with pytest.raises(InputError): load_edit(deep)


@pytest.mark.slow
def test_a_fresh_process(tmp_path):
    "The same logits where nothing but the folder of the model and the file are known."
    clf = classifier("llama")
    iv = found(clf, scope="text", positions="readout")
    want = raw_under(clf, [iv])
    clf.model.save_pretrained(tmp_path/"model")
    clf.tokenizer.save_pretrained(tmp_path/"model")
    make_edit(clf, [iv]).save(tmp_path/"e.safetensors")
    (tmp_path/"texts.json").write_text(json.dumps(TEXTS.texts))
    code = """
import json, sys
import numpy as np, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
import neuronlens as nl
model, tok = AutoModelForSequenceClassification.from_pretrained('model').eval(), AutoTokenizer.from_pretrained('model')
tok.padding_side = 'left'
seen = tok(json.load(open('texts.json')), padding=True, return_tensors='pt')
with nl.load_edit('e.safetensors').on(model, tokenizer=tok), torch.inference_mode():
    out = model(input_ids=seen.input_ids, attention_mask=seen.attention_mask).logits.softmax(-1)
np.save('out.npy', out.numpy())
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    same_answers(np.load(tmp_path/"out.npy"), want, clf)
