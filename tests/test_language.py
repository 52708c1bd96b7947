"""Edits of language models: exact in every step of generation, on any padding; perplexity and answers against plain loops."""
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FILLER, SPECIAL, WORDS, make_tokenizer
from tiny import BEYOND, OWN, WIDTHS, by_hand, intervention, touched
from transformers import AutoConfig, AutoModelForCausalLM

from neuronlens.edits.edit import linear_edit
from neuronlens.edits.language import editing, firing_by_position, generate
from neuronlens.edits.questions import MultipleChoice, Question, question_prompt, read_questions
from neuronlens.edits.reading import Perplexity, language_effects, multiple_choice, multiple_choices, perplexities, perplexity
from neuronlens.ground.core import InputError
from neuronlens.ground.data import make_texts
from neuronlens.ground.rounding import agree, apart, score_size
from neuronlens.ground.setting import POSITIONS
from neuronlens.models.anatomy import Site, anatomy, parse_site
from neuronlens.models.hooks import hooked
from neuronlens.models.model import Classifier, load_language_model, smollm2

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("llama", "gpt2", "qwen3")
PROMPTS = [[5, 9, 14, 7, 22], [61, 30], [44, 8, 71]]
VOCABULARY = [*(w for c in WORDS.values() for w in c), *FILLER]
ENDLESS = dict(max_new_tokens=5, do_sample=False, eos_token_id=None, return_dict_in_generate=True, output_logits=True)


def tiny_lm(name, seed=1, **kw):
    "A random language model whose weights are large enough that every mistake moves its answer."
    config = AutoConfig.for_model(name, **WIDTHS | OWN.get(name, {}) | kw)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters(): p.add_(torch.randn(p.shape, generator=gen)*(.35 if p.ndim > 1 else .2))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def models():
    return {name: tiny_lm(name) for name in NAMES}


def states_at(model, site, ids):
    "What a text has at a site, `[T, D]`."
    kept = []
    with hooked(model, {Site(*site): lambda h: kept.append(h[0])}): model(torch.tensor([ids]))
    return kept[0]


def fitted(*args, **kw):
    "An intervention of the first neurons that have ends away from every value."
    for seed in range(30):
        try: return intervention(*args, **kw, seed=seed)
        except AssertionError: pass
    raise AssertionError("no such neurons")


def two_edits(model, positions):
    "Interventions at two sites, one of them inside a block, ranges fitted to what the prompts have there."
    V, sites = model.config.vocab_size, (("residual", 0), ("mlp", 1))
    acts = [torch.cat([states_at(model, s, [i % V for i in p*3]) for p in PROMPTS]) for s in sites]
    return [fitted(acts[0], "residual.0", "zero", positions, vote=.2), fitted(acts[1], "mlp.1", "mean", positions)]


def same_loss(got, want, n, model, what=""):
    "Of a sum over n tokens, whose errors go either way: by the root of n times the mean."
    agree(got, want, model, size=want/n**.5, what=what)


def same_perplexity(got, want, model):
    "A relative error of it is an absolute error of the mean loss."
    agree(got, want, model, size=want*max(1, math.log(want)))


def step_by_hand(model, ids, prompt, ivs):
    "Scores of the next token: the whole text of one row from the start, unpadded, without a cache, edits by a plain loop."
    places = dict(all=range(len(ids)), prompt=range(prompt), generated=range(prompt, len(ids)), readout=[prompt-1])
    edits = {iv.site: lambda h, iv=iv: by_hand(iv, h[0], set(places[iv.positions]))[0][None] for iv in ivs}
    with hooked(model, edits): return model(torch.tensor([ids]), use_cache=False).logits[0, -1]


def written_by_hand(model, ids, ivs, n=5):
    "Greedy continuation of one prompt, and the scores behind every token."
    out, scores = list(ids), []
    for _ in range(n):
        scores.append(step_by_hand(model, out, len(ids), ivs))
        out.append(int(scores[-1].argmax()))
    return out[len(ids):], torch.stack(scores)


def left_padded(prompts, fill=1):
    "Ids and mask of prompts padded on the left."
    T = max(map(len, prompts))
    return (torch.tensor([[fill]*(T-len(p))+p for p in prompts]), torch.tensor([[0]*(T-len(p))+[1]*len(p) for p in prompts]))


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", NAMES)
def test_generation_with_a_cache_is_exact(models, name, positions):
    "A left-padded batch with a cache gives what every row gives alone, without a cache, edited by a plain loop."
    model = models[name]
    ivs = two_edits(model, positions)
    ids, mask = left_padded(PROMPTS)
    wanted = [written_by_hand(model, p, ivs) for p in PROMPTS]
    plain = [written_by_hand(model, p, []) for p in PROMPTS]
    assert max(apart(a[1], b[1], model) for a, b in zip(wanted, plain, strict=True)) > BEYOND
    for kw in (dict(mask=mask), dict(prompt_length=ids.shape[1]), {}):
        with editing(model, ivs, **kw): out = model.generate(ids, attention_mask=mask, pad_token_id=1, **ENDLESS)
        for row, (tokens, scores) in enumerate(wanted):
            assert out.sequences[row, ids.shape[1]:].tolist() == tokens, kw
            agree(torch.stack(out.logits)[:, row], scores, model, what=kw)
    assert not touched(model)


def asked_by_hand(model, ids, ivs, n=5):
    "Greedy continuation and scores where the gate is asked once, of the prompt, and held; whole text, one row, no cache."
    out, scores, P = list(ids), [], len(ids)
    def edit(iv, h):
        own = h[0, :P].mean(0) if iv.fitted_at == "tokens" else h[0, P-1]
        found = iv.salient & ((own[:, None] >= iv.lo) & (own[:, None] <= iv.hi)).any(1)
        gate = found & (found.sum() >= math.ceil(iv.vote*len(iv.neurons)-1e-9))
        at = torch.tensor([t in dict(all=range(len(out)), prompt=range(P), generated=range(P, len(out)), readout=[P-1])[iv.positions]
                           for t in range(len(out))])
        return torch.where(at[:, None] & gate, 0. if iv.edit == "zero" else iv.state.rest_mean, h)
    for _ in range(n):
        with hooked(model, {iv.site: lambda h, iv=iv: edit(iv, h) for iv in ivs}):
            scores.append(model(torch.tensor([out]), use_cache=False).logits[0, -1])
        out.append(int(scores[-1].argmax()))
    return out[P:], torch.stack(scores)


@pytest.mark.parametrize("fitted_at", ["readout", "tokens"])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_prompt_is_asked_once(models, name, positions, fitted_at):
    "`scope` 'text': the gate of the prompt holds while the model writes, in a padded batch with a cache, without one, and for beams."
    model, (ids, mask) = models[name], left_padded(PROMPTS)
    plain = two_edits(model, positions)
    ivs = [replace(iv, scope="text", fitted_at=fitted_at) for iv in plain]
    wanted = [asked_by_hand(model, p, ivs) for p in PROMPTS]
    if positions != "readout" or fitted_at == "tokens":
        assert max(apart(a[1], written_by_hand(model, p, plain)[1], model) for a, p in zip(wanted, PROMPTS, strict=True)) > BEYOND
    for kw, cache in ((dict(mask=mask), True), (dict(prompt_length=ids.shape[1]), True), (dict(mask=mask), False)):
        with editing(model, ivs, **kw):
            out = model.generate(ids, attention_mask=mask, pad_token_id=1, use_cache=cache, **ENDLESS)
        for row, (tokens, scores) in enumerate(wanted):
            assert out.sequences[row, ids.shape[1]:].tolist() == tokens, (kw, cache)
            agree(torch.stack(out.logits)[:, row], scores, model, what=kw)
    with editing(model, ivs, mask=mask):
        beams = [model.generate(ids, attention_mask=mask, pad_token_id=1, max_new_tokens=4, num_beams=3, do_sample=False,
                                eos_token_id=None, use_cache=c) for c in (True, False)]
    assert beams[0].equal(beams[1])


def test_a_prompt_in_parts_is_not_asked_once(models):
    "Its beginning would have to be edited before its end is known."
    model, (ids, mask) = models["llama"], left_padded(PROMPTS)
    ivs = [replace(iv, scope="text") for iv in two_edits(model, "all")]
    with editing(model, ivs, mask=mask), pytest.raises(InputError, match="which this pass does not hold for every row"):
        model(ids[:, :3], attention_mask=mask[:, :3], use_cache=True)


def test_positions_differ(models):
    "The four values give four results, so that the test above tells them apart."
    for name in NAMES:
        scores = [written_by_hand(models[name], PROMPTS[0], two_edits(models[name], p))[1] for p in POSITIONS]
        assert min(apart(a[1:], b[1:], models[name]) for i, a in enumerate(scores) for b in scores[:i]) > BEYOND, name


@pytest.mark.parametrize("positions", POSITIONS)
def test_generation_without_a_cache(models, positions):
    "Without a cache every step sees the whole text; with the prompt's length given that changes nothing."
    model, (ids, mask) = models["llama"], left_padded(PROMPTS)
    ivs = two_edits(model, positions)
    for kw in (dict(mask=mask), dict(prompt_length=ids.shape[1])):
        with editing(model, ivs, **kw):
            out = [model.generate(ids, attention_mask=mask, pad_token_id=1, use_cache=c, **ENDLESS) for c in (True, False)]
        assert out[0].sequences.equal(out[1].sequences)
        agree(torch.stack(out[0].logits), torch.stack(out[1].logits), model)


@pytest.mark.parametrize("positions", POSITIONS)
def test_beams_and_a_prompt_in_chunks(models, positions):
    "Rows that are repeated for beams keep their prompts; a prompt read in two passes is still a prompt."
    model, (ids, mask) = models["llama"], left_padded(PROMPTS[:2])
    ivs = two_edits(model, positions)
    with editing(model, ivs, mask=mask):
        beams = [model.generate(ids, attention_mask=mask, pad_token_id=1, max_new_tokens=4, num_beams=3, do_sample=False,
                                eos_token_id=None, use_cache=c) for c in (True, False)]
        position = (mask.cumsum(1)-1).clamp(min=0)
        first = model(ids[:, :3], attention_mask=mask[:, :3], position_ids=position[:, :3], use_cache=True)
        rest = model(ids[:, 3:], attention_mask=mask, position_ids=position[:, 3:], past_key_values=first.past_key_values)
        whole = model(ids, attention_mask=mask, position_ids=position)
    assert beams[0].equal(beams[1])
    agree(rest.logits[:, -1], whole.logits[:, -1], model)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", ["mamba", "falcon_mamba"])
def test_columns_of_a_state_are_counted(name, positions):
    "A state without keys and values does not say what it has read; a second text begins anew, a state from elsewhere is refused."
    model, V = tiny_lm(name), torch.linspace(-1, 1, 16)
    for ids in PROMPTS[:2]:
        n, out = len(ids), list(ids)
        for _ in range(4):
            places = dict(all=range(len(out)), prompt=range(n), generated=range(n, len(out)), readout=[n-1])[positions]
            on = torch.tensor([[[float(i in places)] for i in range(len(out))]])
            with hooked(model, {Site("residual", 1): lambda h, on=on: h*(1-2*on)+V*on}):
                out.append(int(model(torch.tensor([out]), use_cache=False).logits[0, -1].argmax()))
        for kw in (dict(prompt_length=n), {}):
            with editing(model, [linear_edit("0", "turn", "residual.1", -torch.eye(16), V, positions=positions)], **kw):
                for _ in "ab":
                    got = model.generate(torch.tensor([ids]), max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=1)
                    assert got[0].tolist() == out, kw
    state = model(torch.tensor([ids]), use_cache=True).cache_params
    with editing(model, []), pytest.raises(InputError, match="a state of passes without these edits"):
        model(torch.tensor([[5]]), cache_params=state)


def test_right_padding_and_rows_of_different_prompts(models):
    "Scoring continuations of different prompts in one right-padded batch: the readout is each prompt's own."
    model, rows = models["qwen3"], [p+[12, 13] for p in PROMPTS]
    T = max(map(len, rows))
    ids = torch.tensor([r+[1]*(T-len(r)) for r in rows])
    mask, prompts = (torch.tensor([[1]*len(x)+[0]*(T-len(x)) for x in xs]) for xs in (rows, PROMPTS))
    for positions in POSITIONS:
        ivs = two_edits(model, positions)
        with editing(model, ivs, mask=prompts): z = model(ids, attention_mask=mask).logits
        for i, (row, p) in enumerate(zip(rows, PROMPTS, strict=True)):
            agree(z[i, len(row)-1], step_by_hand(model, row, len(p), ivs), model)


def test_edits_compose_in_their_order(models):
    "Two edits of one site act one after the other; a linear edit is one of them."
    model, D = models["llama"], 16
    double = linear_edit("0", "double", "residual.1", 2*torch.eye(D), torch.zeros(D))
    plus = linear_edit("0", "plus", "residual.1", torch.eye(D), torch.ones(D), positions="readout")
    ids = torch.tensor([PROMPTS[0]])
    def by(fn):
        with hooked(model, {Site("residual", 1): fn}): return model(ids).logits
    last = torch.zeros(5, 1).index_fill(0, torch.tensor([4]), 1.)
    for ivs, fn in (([double, plus], lambda h: 2*h+last), ([plus, double], lambda h: 2*(h+last))):
        wanted = by(fn)
        with editing(model, ivs): agree(model(ids).logits, wanted, model)
    wanted = by(lambda h: 2*h)
    with editing(model, [replace(double, site="residual.-1")]): assert apart(model(ids).logits, wanted, model) > BEYOND
    with editing(model, [replace(double, site="residual.-2")]): agree(model(ids).logits, wanted, model)


def test_editing_refuses_and_undoes(models):
    "What cannot be meant is refused before a hook is set; an error inside leaves the model as it was."
    model = models["gpt2"]
    ivs = two_edits(model, "generated")
    for kw, said in ((dict(prompt_length=0), "0 columns"), (dict(prompt_length=4, mask=torch.ones(1, 5)), "5 columns, the prompt 4")):
        with pytest.raises(InputError, match=said), editing(model, ivs, **kw): pass
    with pytest.raises(InputError, match="3 rows does not belong to 2 prompts"), editing(model, ivs, mask=torch.ones(2, 4)):
        model(torch.ones(3, 4, dtype=torch.long))
    with pytest.raises(InputError, match="has ranges of 16 neurons"), editing(model, [replace(ivs[0], site=Site("mlp", 0))]): pass
    with pytest.raises(KeyError), editing(model, ivs): raise KeyError
    with pytest.raises(InputError, match="training mode"), editing(tiny_lm("gpt2").train(), []): pass
    assert not touched(model)


@pytest.fixture(scope="module")
def words():
    return make_tokenizer(brackets=False)


@pytest.fixture(scope="module")
def speaker(words):
    "A tiny model of the words of the tests, and its tokenizer."
    model = tiny_lm("llama", vocab_size=len(words), pad_token_id=0, max_position_embeddings=48, eos_token_id=7)
    return model, words


def some_words(n, seed):
    "A text of `n` words."
    return " ".join(np.random.default_rng(seed).choice(VOCABULARY, n))


def test_generate_is_generate(speaker):
    "Same texts as by hand, whatever the batches; a row ends at the end token and nothing follows."
    model, tok = speaker
    prompts = [some_words(n, n) for n in (3, 1, 7, 5, 4, 9)]
    ivs = [replace(iv, neurons=iv.neurons[:4]) for iv in two_edits(model, "all")]
    for positions in POSITIONS:
        own = [replace(iv, positions=positions) for iv in ivs]
        wanted = []
        for p in prompts:
            new = written_by_hand(model, tok(p)["input_ids"], own, 8)[0]
            wanted.append(tok.decode(new[:new.index(7)] if 7 in new else new, skip_special_tokens=True))
        for tokens in (1, 25, None): assert generate(model, tok, prompts, own, 8, tokens=tokens) == wanted, (positions, tokens)
    free = [written_by_hand(model, tok(p)["input_ids"], [], 6)[0] for p in prompts]
    row, end = next((i, t) for i, f in enumerate(free) for k, t in enumerate(f) if 0 < k < 5 and f.index(t) == k)
    ender = tiny_lm("llama", vocab_size=len(tok), pad_token_id=0, max_position_embeddings=48, eos_token_id=end)
    wanted = [tok.decode(f[:f.index(end)] if end in f else f, skip_special_tokens=True) for f in free]
    assert generate(ender, tok, prompts, new_tokens=6) == wanted
    assert wanted[row] != tok.decode(free[row], skip_special_tokens=True)
    with pytest.raises(InputError, match="prompt 2 has 45 tokens and 8 to follow, the model reads 48"):
        generate(model, tok, [prompts[0], some_words(45, 0)], [], 8)
    with pytest.raises(InputError, match="must be a list"): generate(model, tok, "cat")


@pytest.mark.parametrize(("call", "said"), [
    (lambda m, t: generate(m, t, ["cat"], new_tokens=2.5), "new_tokens=2.5 must be a whole number"),
    (lambda m, t: generate(m, t, ["cat"], new_tokens=0), "0 new tokens are none"),
    (lambda m, t: generate(m, t, None), "must be a list of texts, not None"),
    (lambda m, t: generate(m, t, ["cat", None]), "prompt 2 is a text, not None"),
    (lambda m, t: generate(m, t, ["cat", "a\ud800"]), "prompt 2 has half a character, '.ud800', at place 2"),
    (lambda m, t: perplexity(m, t, None), "text 1 is a text, not None"),
    (lambda m, t: perplexity(m, t, ["cat dog", "a\udc00 b"]), "text 2 has half a character"),
    (lambda m, t: perplexity(m, t, "cat dog", window=10.5), "window=10.5 must be a whole number"),
    (lambda m, t: perplexity(m, t, "cat dog", window=0), "a window of 0 tokens predicts nothing"),
    (lambda m, t: perplexity(m, t, "cat dog", stride=0), "stride 0 must lie"),
    (lambda m, t: perplexity(m, t, "cat dog", stride="4"), "stride='4' must be a whole number"),
    (lambda m, t: perplexity(m, t, "cat dog", most_tokens=None, seed=-1), "seed -1 must be a whole number"),
    (lambda m, t: perplexity(m, t, "cat dog", most_tokens=2.5), "most_tokens=2.5 must be a whole number"),
    (lambda m, t: read_questions("none", seed=.5), "seed 0.5 must be a whole number"),
    (lambda m, t: read_questions("none", per_subject=2.5), "per_subject=2.5 must be a whole number"),
])
def test_wrong_arguments(speaker, call, said):
    "In one sentence, by the name of the argument."
    with pytest.raises(InputError, match=said): call(*speaker)


def test_settings_of_generation_are_not_followed(words):
    "Always the likeliest token, whatever the model's `generation_config` asks for."
    model = tiny_lm("llama", vocab_size=len(words), pad_token_id=0, max_position_embeddings=48, eos_token_id=7)
    plain, asked = generate(model, words, ["cat dog"]), model.generation_config
    asked.repetition_penalty, asked.num_beams, asked.do_sample, asked.suppress_tokens = 5., 3, True, list(range(8, 40))
    assert generate(model, words, ["cat dog"]) == plain


def plain_loss(model, ids, window, stride):
    "Loss and tokens by the loop of the transformers manual: labels, all but the last `new` of a window ignored."
    loss, tokens, done = 0., 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin+window, len(ids))
        x = torch.tensor([ids[begin:end]])
        labels = x.clone()
        labels[:, :-(end-done)] = -100
        n = int((labels[:, 1:] != -100).sum())
        if n: loss, tokens = loss+float(model(x, labels=labels).loss)*n, tokens+n
        done = end
        if end == len(ids): break
    return loss, tokens


@pytest.mark.parametrize(("window", "stride"), [(48, 24), (10, 3), (9, 8), (2, 1)])
def test_perplexity_by_labels(speaker, window, stride):
    "Against `labels=` of transformers, window by window; every token but the first of a document is scored once."
    model, tok = speaker
    docs = [some_words(n, n) for n in (37, 2, 90, 10)]
    wanted = [plain_loss(model, tok(d)["input_ids"], window, stride) for d in docs]
    loss, n = map(sum, zip(*wanted, strict=True))
    assert n == 37+2+90+10-4
    for tokens in (1, 64, None):
        p = perplexity(model, tok, docs, window=window, stride=stride, tokens=tokens)
        assert p.tokens == n
        same_loss(p.loss, loss, n, model)
        same_perplexity(p.perplexity, math.exp(loss/n), model)


@pytest.mark.parametrize("name", NAMES)
def test_conditions_share_passes_exactly(name, words):
    "Every condition gives what the model gives inside `editing`; an empty salient set and no edit give the base to the bit."
    model = tiny_lm(name, vocab_size=len(words), pad_token_id=0)
    text, deep = some_words(30, 5), [parse_site(s, 3) for s in ("residual.-1", "mlp.2", "attention.0", "residual.1")]
    at = {s: fitted(states_at(model, (s.stream, s.block), words(text)["input_ids"]), str(s), "zero") for s in deep}
    conditions = {str(s): [iv] for s, iv in at.items()} | {"two": [at[deep[3]], at[deep[0]]], "base": [], "same": [at[deep[0]]]*2}
    conditions |= {"nothing": [replace(iv, neurons=iv.neurons[:0]) for iv in at.values()],
                   "later": [replace(at[deep[3]], positions="generated")], "end": [replace(at[deep[3]], positions="readout")]}
    read = perplexities(model, words, text, conditions, window=30)
    for k, ivs in conditions.items():
        with editing(model, ivs): loss = float(model(x := words(text, return_tensors="pt")["input_ids"], labels=x).loss)*29
        same_loss(read[k].loss, loss, 29, model, k)
    for k in ("nothing", "later", "end"): same_loss(read[k].loss, read["base"].loss, 29, model, k)
    assert read["nothing"].losses.tolist() == read["base"].losses.tolist()
    told = [read[k].loss for k in (*map(str, deep), "base")]
    assert min(apart(a, b, model, size=a/29**.5) for i, a in enumerate(told) for b in told[:i]) > BEYOND


def test_perplexity_refuses(speaker):
    "Too short, too long a window, no overlap, other windows."
    model, tok = speaker
    for args, kw, said in ((("cat",), {}, "shorter than two tokens"), (([],), {}, "no text"), (("cat dog",), dict(window=49), "reads 48"),
                           (("cat dog",), dict(window=8, stride=8), "stride 8"), (("cat dog",), dict(most_tokens=1), "most_tokens=1")):
        with pytest.raises(InputError, match=said): perplexity(model, tok, *args, **kw)
    with pytest.raises(InputError, match="condition 'x' must be a list"): perplexities(model, tok, "cat dog", {"x": 1})
    two = Perplexity(np.ones(2), np.array([3, 3]), 4, 2)
    with pytest.raises(InputError, match="different texts"): two.ratio(replace(two, counts=np.array([3, 4])))


def test_bootstrap_covers():
    "Intervals over windows hold the truth about as often as they say; a ratio of paired windows is tighter than its parts."
    rng, hits, tighter = np.random.default_rng(0), 0, 0
    for i in range(200):
        x = rng.gamma(9, 1/3, 40)*10
        p = Perplexity(x, np.full(40, 10), 20, 10, seed=i)
        low, high = p.interval(draws=400)
        hits += low <= math.e**3 <= high
        _, a, b = Perplexity(x+rng.normal(.5, .1, 40), p.counts, 20, 10, seed=i).ratio(p, draws=400)
        tighter += (b-a) < (high-low)/p.perplexity
    assert .87 < hits/200 < .99
    assert tighter == 200


QUESTIONS = [Question("cat dog", ("bread", "soup", "saw", "drill"), 2), Question("the red horse", ("cow", "bird"), 1, "farm_yard"),
             Question("a nail under", ("fish", "rice", "apple"), 0), Question("old cake on", ("cat", "screw", "small", "near"), 3)]


def lettered():
    "A word-level tokenizer that knows the letters."
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    known = [*SPECIAL, *VOCABULARY, *"ABCDEFGH.:,()", "Answer", "The", "multiple", "choice", "questions", "answers", "about"]
    tok = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="[UNK]"))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tok, pad_token="[PAD]", unk_token="[UNK]", model_max_length=200)


@pytest.mark.parametrize("tokens", [1, None])
def test_multiple_choice_by_hand(tokens):
    "Log-probabilities of the letters from one pass per question, in any batch, edited or not; choices of any number."
    tok = lettered()
    model = tiny_lm("qwen3", vocab_size=len(tok), pad_token_id=0, max_position_embeddings=256)
    shots = [Question("dog", ("cat", "saw"), 0, "farm_yard"), Question("saw", ("cat", "saw"), 1)]
    ivs = two_edits(model, "all")
    conditions = {"base": [], "edit": ivs, "readout": [replace(iv, positions="readout") for iv in ivs]}
    res = multiple_choices(model, tok, QUESTIONS, conditions, shots=shots, tokens=tokens)
    letters = tok.convert_tokens_to_ids(list("ABCD"))
    for k, own in conditions.items():
        for i, q in enumerate(QUESTIONS):
            ids = tok(question_prompt(q, shots))["input_ids"]
            lp = step_by_hand(model, ids, len(ids), own).log_softmax(-1)
            agree(res[k].logprobs[i, :len(q.choices)], lp[letters[:len(q.choices)]], model, size=score_size(lp))
            assert np.isneginf(res[k].logprobs[i, len(q.choices):]).all()
    m = res["base"]
    assert m.chance == pytest.approx((1/4+1/2+1/3+1/4)/4)
    p = [np.exp(m.logprobs[i, q.answer]) for i, q in enumerate(QUESTIONS)]
    assert m.confidence == pytest.approx(np.mean(p), rel=1e-5)
    assert m.renormalised == pytest.approx(np.mean([a/np.exp(m.logprobs[i]).sum() for i, a in enumerate(p)]), rel=1e-5)
    assert m.to_frame().right.mean() == m.accuracy == np.mean([m.logprobs[i].argmax() == q.answer for i, q in enumerate(QUESTIONS)])
    assert question_prompt(QUESTIONS[1], shots).startswith(
        "The following are multiple choice questions (with answers) about farm yard.\n\ndog\nA. cat\nB. saw\nAnswer: A\n\nthe red")


def test_multiple_choice_counts_and_refuses(speaker):
    "Wilson interval and McNemar by hand; a tokenizer without letters, no questions, too long a prompt."
    qs = [Question(str(i), ("a", "b", "c", "d"), 0) for i in range(20)]
    def answers(right): return MultipleChoice(qs, np.log([[.4, .3, .2, .1] if r else [.1, .4, .3, .2] for r in right]).astype("f"))
    a, b = answers([True]*12+[False]*8), answers([True]*4+[False]*8+[True]*2+[False]*6)
    assert (a.accuracy, b.accuracy) == (.6, .3)
    z, n, p = 1.959964, 20, .6
    mid, half = (p+z*z/2/n)/(1+z*z/n), z/(1+z*z/n)*math.sqrt(p*(1-p)/n+z*z/4/n/n)
    np.testing.assert_allclose(a.interval(), (mid-half, mid+half), atol=1e-6)
    assert b.against(a) == pytest.approx(2*sum(math.comb(10, k) for k in range(3))/2**10)
    assert a.against(a) == 1
    with pytest.raises(InputError, match="different questions"): a.against(MultipleChoice(qs[::-1], a.logprobs))
    with pytest.raises(InputError, match="one token of its own"): multiple_choice(*speaker, QUESTIONS)
    with pytest.raises(InputError, match="no questions"): multiple_choice(*speaker, [])
    tok = lettered()
    small = tiny_lm("gpt2", vocab_size=len(tok), pad_token_id=0, max_position_embeddings=40)
    with pytest.raises(InputError, match="question 1 has 5. tokens, the model reads 40"):
        multiple_choice(small, tok, [Question(some_words(40, 0), ("a", "b"), 0)])
    for bad, said in ((dict(question=" "), "without text"), (dict(choices=("a",)), "1 choices, not 2"), (dict(answer=-1), "answer -1")):
        with pytest.raises(InputError, match=said): replace(qs[0], **bad)


def test_read_questions(tmp_path):
    "Sampling is seeded by subject alone; empty choices at the end are none; complaints name file and row."
    rng, folder = np.random.default_rng(0), tmp_path/"test"
    folder.mkdir()
    def write(name, n, **kw):
        choices = {f"choice{k}": rng.choice(VOCABULARY, n) for k in range(4)}
        frame = pd.DataFrame({"question": [f"{name} {i}, None" for i in range(n)], **choices, "answer": rng.integers(0, 2, n).astype(str)})
        frame = frame.assign(**kw)
        frame.to_csv(folder/f"{name}.csv", index=False)
        return folder/f"{name}.csv"
    a, b = write("law_test", 30), write("art_dev", 9, choice2="", choice3="", answer="B")
    everything = read_questions(folder)
    assert [q.subject for q in everything] == ["art"]*9+["law"]*30
    assert all(len(q.choices) == 2 and q.answer == 1 for q in everything[:9])
    some = read_questions(folder, per_subject=5)
    assert some == read_questions(folder, per_subject=5) != read_questions(folder, per_subject=5, seed=1)
    assert some[5:] == read_questions([a], per_subject=5)
    assert len(read_questions([b, a], per_subject=20)) == 29
    for kw, said in ((dict(answer="7"), "bad.csv, row 1: .*answer 7 is none"), (dict(answer="x"), "neither a number nor a letter"),
                     (dict(question=""), "row 1: a question without text"), (dict(choice1="", choice2="", choice3=""), "1 choices")):
        with pytest.raises(InputError, match=said): read_questions(write("bad", 2, **kw))
    (folder/"bad.csv").write_text("question,answer\na,0\n")
    with pytest.raises(InputError, match="no column 'choice0'"): read_questions(folder/"bad.csv")
    with pytest.raises(InputError, match="cannot be read"): read_questions(folder/"none.csv")
    with pytest.raises(InputError, match="no .csv file"): read_questions(tmp_path)


def test_language_effects_table():
    "Base first, each number that of its own function; what was not asked for is NaN."
    tok = lettered()
    model = tiny_lm("llama", vocab_size=len(tok), pad_token_id=0, max_position_embeddings=200)
    conditions, text = {"edit": two_edits(model, "all"), "none": []}, some_words(60, 1)
    res = language_effects(model, tok, conditions, text, QUESTIONS, window=20)
    df = res.to_frame().set_index("condition")
    assert df.index.tolist() == ["base", "edit", "none"]
    own = perplexity(model, tok, text, conditions["edit"], window=20)
    same_perplexity(df.perplexity["edit"], own.perplexity, model)
    agree(df.ratio["edit"], own.perplexity/df.perplexity["base"], model, size=df.ratio["edit"]*math.log(own.perplexity))
    assert df.accuracy["edit"] == multiple_choice(model, tok, QUESTIONS, conditions["edit"]).accuracy
    assert df.loc["none"].equals(df.loc["base"].rename("none")) and (df.ratio["base"], df.p["base"]) == (1, 1)
    assert (df.tokens == 59).all() and (df.n == 4).all() and (df.chance == 1/3).all()
    half = language_effects(model, tok, {}, text).frame
    assert half.accuracy.isna().all() and half.n.tolist() == [0]
    with pytest.raises(InputError, match="neither"): language_effects(model, tok, conditions)
    with pytest.raises(InputError, match="'base'"): language_effects(model, tok, {"base": conditions["edit"]}, text)


@pytest.mark.parametrize(("readout", "tokens"), [("last", None), ("first", 1), ("mean", None)])
def test_firing_by_hand(speaker, readout, tokens):
    "Counted token by token in a plain loop, class by class."
    model, tok = speaker
    texts = make_texts([some_words(n, n) for n in (4, 9, 2, 6, 11, 3)], list("aabbcc"))
    clf = Classifier(model, tok, texts.classes, readout, 48)
    ivs = two_edits(model, "all")
    df = firing_by_position(clf, texts, ivs, tokens=tokens)
    for i, iv in enumerate(ivs):
        for c, name in enumerate(texts.classes):
            at, rest = [], []
            for t in np.array(texts.texts)[texts.labels == c]:
                share = by_hand(iv, states_at(model, (iv.site.stream, iv.site.block), tok(t)["input_ids"]), [])[1]
                if readout == "mean": at.append(np.mean(share))
                else: at.append(share.pop(0 if readout == "first" else -1)); rest += share
            row = df[(df.intervention == i) & (df.label == name)].iloc[0]
            agree([row.fires_at_readout, row.fires_elsewhere], [np.mean(at), np.mean(rest) if rest else math.nan], 8, size=1)
            assert (row.texts, row.tokens, row.role) == (len(at), len(rest), "target" if c == 1 else "auxiliary")


@pytest.fixture(scope="module")
def shared():
    "The folder of data sets that development uses."
    import os
    folder = Path(os.environ.get("NEURONLENS_DATA", "../shared/data"))
    if not (folder/"mmlu").is_dir(): pytest.skip(f"no MMLU and WikiText-2 under {folder}")
    return folder


def test_mmlu_is_read(shared):
    "All 57 subjects; a fixed sample; shots of every subject."
    qs = read_questions(shared/"mmlu"/"test", per_subject=3)
    assert len(qs) == 171 and len({q.subject for q in qs}) == 57
    dev = read_questions(shared/"mmlu"/"dev")
    assert len(dev) == 285 and {q.subject for q in dev} == {q.subject for q in qs}
    assert len(read_questions(shared/"mmlu"/"test")) == 14042


@pytest.mark.slow # The whole model on two sets
def test_smollm2(shared):
    "A real model on real text: perplexity as by labels, the last block's edits through the head alone, an accuracy."
    model, tok = load_language_model(smollm2(), device="cpu")
    text = (shared/"wikitext2"/"raw_wiki.test.raw").read_text(encoding="utf-8")[:1500]
    ids, last = tok(text)["input_ids"], len(anatomy(model))-1
    zero = intervention(states_at(model, ("residual", last), ids), f"residual.{last}", "zero")
    read = perplexities(model, tok, text, {"base": [], "zero": [zero]}, window=256, stride=200)
    with torch.inference_mode():
        loss, n = plain_loss(model, ids, 256, 200)
        with editing(model, [zero]): edited, _ = plain_loss(model, ids, 256, 200)
    assert read["base"].tokens == n == len(ids)-1
    same_loss(read["base"].loss, loss, n, model)
    same_loss(read["zero"].loss, edited, n, model)
    assert 5 < read["base"].perplexity < 60
    qs = read_questions(shared/"mmlu"/"test"/"marketing_test.csv", per_subject=4)
    m, letters = multiple_choice(model, tok, qs), [tok(f" {c}")["input_ids"][0] for c in "ABCD"]
    with torch.inference_mode(): z = model(**tok(question_prompt(qs[2]), return_tensors="pt")).logits[0, -1].log_softmax(-1)
    agree(m.logprobs[2], z[letters], model, size=score_size(z))
    assert m.chance == .25


def all_of(model, edit, site=("residual", 1)):
    "An edit of every neuron at a site, whatever its value."
    iv = fitted(states_at(model, site, [5, 9, 14, 7, 22]), str(Site(*site)), edit)
    return replace(iv, neurons=torch.arange(len(iv.lo)), lo=torch.full_like(iv.lo, -torch.inf), hi=torch.full_like(iv.hi, torch.inf))


@pytest.mark.parametrize(("name", "edit"), [("llama", "scale(1e300)"), ("gpt2", "scale(1e30)")])
def test_answers_that_are_no_numbers(name, edit):
    "Refused by every way to read and to write, whether the edit overflows or what comes of it; the model is as before."
    tok = lettered()
    lm = tiny_lm(name, vocab_size=len(tok), pad_token_id=0, max_position_embeddings=256, eos_token_id=7)
    iv, ids, text = all_of(lm, edit), torch.tensor([[5, 9, 14]]), "cat dog horse cow bird"
    plain, said = lm(ids).logits, r"edit 'scale\(1.*\)' for concept '1' \(range, residual.1\)"
    with pytest.raises(InputError, match=said), editing(lm, [iv]): lm(ids)
    with pytest.raises(InputError, match=said), editing(lm, [iv]): lm(ids, return_dict=False)
    with pytest.raises(InputError, match=said), editing(lm, [iv]): lm.generate(ids, max_new_tokens=2, do_sample=False)
    with pytest.raises(InputError, match=said): generate(lm, tok, [text], [iv], 2)
    with pytest.raises(InputError, match=said): perplexity(lm, tok, text, [iv])
    with pytest.raises(InputError, match=said): multiple_choice(lm, tok, QUESTIONS, [iv])
    with pytest.raises(InputError, match=said): language_effects(lm, tok, {"far": [iv]}, text)
    assert lm(ids).logits.equal(plain) and not touched(lm)


def test_padding_that_is_no_number_counts_for_nothing(models):
    "Only what is attended to is an answer."
    model, (ids, mask) = models["gpt2"], left_padded(PROMPTS)
    def broken(h): return h.masked_fill(mask[..., None] == 0, torch.nan)
    with hooked(model, {Site("residual", 2): broken}), editing(model, []): z = model(ids, attention_mask=mask).logits
    assert z.isnan().any() and z[mask == 1].isfinite().all()


def test_a_perplexity_beyond_all_numbers(speaker):
    "A loss of thousands of nats a token is finite, its exponential is not."
    model, tok = speaker
    loud = linear_edit("0", "loud", "residual.2", torch.eye(16), torch.zeros(16))
    head = tiny_lm("llama", vocab_size=len(tok), pad_token_id=0, max_position_embeddings=48)
    head.lm_head.weight.mul_(1e5)
    with pytest.raises(InputError, match="edit 'affine' for concept '0' .loud, residual.2.: the answer is not finite for row 1"):
        perplexity(head, tok, "cat dog horse", [loud])
