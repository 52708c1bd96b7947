"""Diagnostics of the neighbours: ranges on scrambled texts, the monosemantic scale, the vocabulary lens."""
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from models import WORDS, word_tokenizer
from scipy.stats import binomtest, ks_2samp, kurtosis
from tiny import OWN, WIDTHS, shaken, tiny_model, touched
from transformers import AutoConfig, AutoModelForCausalLM

from neuronlens.arrays.ranges import Ranges, fit_ranges
from neuronlens.arrays.scale import MonosemanticScale, monosemantic_scale
from neuronlens.arrays.scrambling import ScrambledFiring, paired_ks, scrambled, scrambled_firing
from neuronlens.arrays.testing import unseen
from neuronlens.edits.lens import VocabularyLens, vocabulary_lens
from neuronlens.ground.core import InputError
from neuronlens.ground.data import make_texts
from neuronlens.ground.rounding import agree
from neuronlens.models.model import make_classifier
from neuronlens.records.recording import record


def some_texts(n=24, seed=0):
    rng = np.random.default_rng(seed)
    return [' '.join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(n)]


# --- scrambled texts

def test_words_and_gaps_stay():
    "Every text keeps its words and gaps; alone and beside others, in any order, it comes out the same; another seed is another order."
    texts = [*some_texts(), '  a\tb  c\n', 'x', '   ', 'é ü\u00a0ß', '']
    got = scrambled(texts)
    for a, b in zip(texts, got, strict=True):
        assert sorted(a.split()) == sorted(b.split()) and re.findall(r'\s+', a) == re.findall(r'\s+', b)
    assert got != texts and scrambled(texts) == got and scrambled(texts[::-1]) == got[::-1]
    assert [scrambled([t])[0] for t in texts] == got
    assert scrambled(texts, seed=1) != got


def test_words_of_others():
    "As many words as before, from the pool, no place of it twice in a text; the pool decides, not its order, nor what is beside."
    texts = some_texts()
    got, every = scrambled(texts, pool=texts), ' '.join(texts).split()
    for a, b in zip(texts, got, strict=True):
        own = b.split()
        assert len(own) == len(a.split()) and all(own.count(w) <= every.count(w) for w in own)
    assert scrambled(texts[3:5], pool=texts[::-1]) == got[3:5]
    drawn = ' '.join(' '.join(scrambled(texts, pool=texts, seed=s)) for s in range(60)).split()
    common = max(WORDS, key=every.count)
    assert abs(drawn.count(common)/len(drawn)-every.count(common)/len(every)) < .02
    with pytest.raises(InputError, match='a text has 3 words and all texts of pool= together 2'): scrambled(['a b c'], pool=['a b'])
    for bad in ('a text', 7, [7]):
        with pytest.raises(InputError): scrambled(bad)


def test_every_permutation_is_as_likely():
    "Of three words each of the six orders comes about a sixth of the time, whatever the text."
    seen = [tuple(scrambled([f'a{i} b c'])[0].replace(f'a{i}', 'a').split()) for i in range(1200)]
    counts = [seen.count(o) for o in {*seen}]
    assert len(counts) == 6 and min(counts) > 140 and max(counts) < 260


def test_tokens_keep_their_places():
    "Special tokens stay where they are and labels too; the tokens between are those of the text; a prompt is never seen."
    tok, texts = word_tokenizer(brackets=True), make_texts(some_texts(), [*'ab']*12)
    other = scrambled(texts)
    for a, b in zip(*(tok(t.texts)['input_ids'] for t in (texts, other)), strict=True):
        assert (a[0], a[-1]) == (b[0], b[-1]) == (2, 3) and sorted(a) == sorted(b)
    assert (other.labels == texts.labels).all() and other.classes == texts.classes and other.digest != texts.digest
    assert other.source == 'given, scrambled'


def test_a_model_without_positions_is_all_or():
    "Where no position is told from another the mean over a text hears nothing of the order: every ratio is 1. With positions it does."
    clf = make_classifier(tiny_model('bert', vocab_size=120), word_tokenizer(), ('a', 'b', 'c'))
    texts = make_texts(some_texts(60), [*'abc']*20)

    def both():
        recs = [record(clf, t, 'residual.-1', readout='mean', answers=False, progress=False) for t in (texts, scrambled(texts))]
        lo, hi = np.quantile(recs[0].acts, [.3, .7], axis=0)+1e-3 # No end on a value
        ranges = Ranges(np.float32([lo])[..., None].repeat(3, 0), np.float32([hi])[..., None].repeat(3, 0), 'hand', None, clf.classes)
        return recs, scrambled_firing(*recs, ranges, draws=20, shuffles=5).arrays
    _, got = both()
    assert (got['ratio'] != 1).any() and got['ks'].max() > 0
    with torch.no_grad(): clf.model.bert.embeddings.position_embeddings.weight.zero_()
    recs, got = both()
    agree(recs[1].acts, recs[0].acts, clf)
    assert (got['ratio'] == 1).all() and (got['kept'] == 1).all() and (got['p'] == 1).all()


# --- firing on both

def test_firing_by_hand():
    "Counted in loops, text by text; scipy says the same of the tests; order of texts and neurons changes no count."
    rng = np.random.default_rng(0)
    a, b, y = np.round(rng.normal(size=(70, 5)), 1), np.round(rng.normal(size=(70, 5)), 1), np.arange(70) % 3
    ranges = fit_ranges(a, y, 'gaussian(.5)')
    out = scrambled_firing(a, b, ranges, draws=50, shuffles=20)
    rows = out.to_frame()
    assert len(rows) == 15 and list(rows.neuron) == [0, 1, 2, 3, 4]*3
    for r in rows.itertuples():
        c = int(r.concept)
        lo, hi = ranges.lo[c, r.neuron, 0], ranges.hi[c, r.neuron, 0]
        x, z = ([bool(lo <= np.float32(v) <= hi) for v in m[:, r.neuron]] for m in (a, b))
        up, down = sum(q and not p for p, q in zip(x, z, strict=True)), sum(p and not q for p, q in zip(x, z, strict=True))
        assert (r.real, r.scrambled) == (sum(x)/70, sum(z)/70) and r.ratio == pytest.approx(sum(z)/sum(x))
        assert r.kept == pytest.approx(1-down/sum(x)) and r.p == pytest.approx(binomtest(up, up+down).pvalue)
        assert r.ratio_low <= r.ratio <= r.ratio_high and r.chance_low <= 1 <= r.chance_high
        assert r.ks == pytest.approx(ks_2samp(a[:, r.neuron], b[:, r.neuron]).statistic)
    order, swap = rng.permutation(70), [3, 1]
    again = scrambled_firing(a[order], b[order], ranges, neurons=swap, draws=5, shuffles=20)
    for k in ('real', 'scrambled', 'kept', 'ratio', 'chance_low', 'p'): assert (again.arrays[k] == out.arrays[k][:, swap]).all(), k
    np.testing.assert_array_equal(again.arrays['ks'], out.arrays['ks'][swap])


def test_firing_at_the_ends():
    "No text in range: nothing is known. No copy in range, or all: the interval is what so many texts leave open."
    a = np.r_[np.ones((8, 3)), np.zeros((12, 3))]
    b = np.column_stack([np.zeros(20), a[:, 1], a[:, 2]])
    ranges = Ranges(np.float32([[[.5], [.5], [5]]]), np.float32([[[2], [2], [6]]]), 'hand', None, ('x',))
    out = scrambled_firing(a, b, ranges, draws=40).to_frame()
    assert out.ratio.tolist()[:2] == [0, 1] and np.isnan(out.ratio[2]) and np.isnan(out.ratio_low[2]) and np.isnan(out.kept[2])
    assert (out.ratio_low[0], out.ratio_high[0]) == (0, unseen(8))
    assert (out.ratio_low[1], out.ratio_high[1]) == (1-unseen(8), 1+unseen(8))
    assert out.p.tolist() == [pytest.approx(2/2**8), 1, 1]


def test_swapped_pairs_are_chance():
    "Where text and copy are alike in distribution, p is uniform, and the ratios lie in the ends of chance; a planted loss does not."
    rng = np.random.default_rng(3)
    both = rng.normal(size=(200, 400, 1))+rng.normal(size=(200, 400, 2)) # Of one text the two go together
    ranges = Ranges(np.zeros((1, 400, 1), np.float32), np.full((1, 400, 1), 9, np.float32), 'hand', None, ('x',))
    t = scrambled_firing(both[..., 0], both[..., 1], ranges, draws=1, shuffles=60).to_frame()
    assert .9 < ((t.ratio >= t.chance_low) & (t.ratio <= t.chance_high)).mean() <= 1
    assert (t.p < .05).mean() < .08 and .02 < (t.ks_p < .05).mean() < .09 and abs(t.ks.mean()-t.ks_chance.mean()) < .01
    less = scrambled_firing(both[..., 0], both[..., 1]-1, ranges, draws=1, shuffles=60).to_frame()
    assert (less.ratio < less.chance_low).mean() > .9 and (less.ks_p < .05).mean() > .9


def test_intervals_cover():
    "The interval of a ratio holds the true one about as often as it says."
    rng, held = np.random.default_rng(0), []
    for _ in range(12):
        u = rng.random((150, 40))
        ranges = Ranges(np.full((1, 40, 1), .5, np.float32), np.full((1, 40, 1), 2, np.float32), 'hand', None, ('x',))
        t = scrambled_firing(u < .4, (u < .4) & (rng.random(u.shape) < .6) | (rng.random(u.shape) < .05), ranges, draws=200, shuffles=1)
        t, true = t.to_frame(), (.4*(1-.4*.95)+.6*.05)/.4
        held += [*((t.ratio_low <= true) & (true <= t.ratio_high))]
    assert .9 < np.mean(held) < .99


@pytest.mark.parametrize('n, values', [(1, 2), (2, 2), (9, 3), (60, 5), (61, 1000)])
def test_ks_is_scipys(n, values):
    rng = np.random.default_rng(n)
    a, b = rng.integers(0, values, (2, n, 4))
    far, by_chance, p = paired_ks(a, b, rng.choice([-1, 1], (30, n)))
    np.testing.assert_allclose(far, [ks_2samp(*x).statistic for x in zip(a.T, b.T, strict=True)])
    assert (by_chance >= 0).all() and (p > 0).all() and (p <= 1).all()


def test_firing_refuses_and_comes_back(tmp_path):
    rng = np.random.default_rng(0)
    a, y = rng.normal(size=(30, 4)), np.arange(30) % 2
    ranges = fit_ranges(a, y, classes=('<b>', 'x'))
    out = scrambled_firing(a, a[::-1], ranges, draws=9)
    assert '<b>' not in out._repr_html_() and '&lt;b&gt;' in out._repr_html_() and repr(out).startswith('ScrambledFiring(gaussian')
    again = ScrambledFiring.load(out.save(tmp_path/'f.safetensors'))
    assert again.to_frame().equals(out.to_frame()) and again.classes == out.classes and again.seed == 0
    for bad, said in ((dict(scrambled=a[1:]), 'same texts and neurons'), (dict(scrambled=a[:, :2]), 'same texts and neurons'),
                      (dict(scrambled=a[0]), r'scrambled must be \[examples, neurons\]'), (dict(real=a*np.nan), 'neuron 0 is nan in row 0'),
                      (dict(level=1), 'level=1 must lie'), (dict(draws=0), 'draws=0'), (dict(shuffles=0), 'shuffles=0'),
                      (dict(neurons=[9]), 'holds neuron 9'), (dict(seed=-1), 'seed -1')):
        with pytest.raises(InputError, match=said): scrambled_firing(**dict(real=a, scrambled=a, ranges=ranges) | bad)
    with pytest.raises(InputError, match='holds no ScrambledFiring|is a'): ScrambledFiring.load(ranges.save(tmp_path/'r.safetensors'))


def test_recordings_of_other_texts_are_refused():
    clf = make_classifier(tiny_model('bert', vocab_size=120), word_tokenizer(), ('a', 'b', 'c'))
    texts = make_texts(some_texts(12), [*'abc']*4)
    rec = record(clf, texts, ['residual.1', 'mlp.0'], progress=False)
    ranges = fit_ranges(rec)
    turned = replace(rec, activations=dict(reversed(rec.activations.items())))
    with pytest.raises(InputError, match="have site 'residual.1' and the scrambled 'mlp.0'"): scrambled_firing(rec, turned, ranges)
    with pytest.raises(InputError, match='other labels'): scrambled_firing(rec, rec[::-1], ranges)
    assert (scrambled_firing(rec, rec, ranges, draws=3).arrays['ks'] == 0).all()


# --- monosemantic scale

def test_scale_by_hand_and_scipy():
    "phi in loops; kurtosis as scipy has it; moving or scaling a neuron changes nothing, its order neither."
    rng = np.random.default_rng(0)
    acts, y = rng.standard_t(4, (90, 3)).astype(np.float32), np.arange(90) % 3
    ranges = fit_ranges(acts, y, 'gaussian(1)')
    s, held = monosemantic_scale(acts, y, ranges=ranges, above=4), [ranges.contains(acts, c) for c in range(3)]
    for j in range(3):
        z = acts[:, j].astype(float)
        phi = [(v-z.mean())**2/z.var() for v in z]
        assert np.mean(phi) == pytest.approx(1)
        assert s.kurtosis[j] == pytest.approx(kurtosis(z, fisher=False)) and s.top[j] == pytest.approx(np.quantile(phi, .99))
        assert s.far[j] == np.mean([p > 4 for p in phi])
        for c in range(3):
            assert s.by_concept[c, j] == pytest.approx(np.mean([p for p, k in zip(phi, y, strict=True) if k == c]))
            assert s.by_range[c, j] == pytest.approx(np.mean([p for p, h in zip(phi, held[c][:, j], strict=True) if h]))
    moved = monosemantic_scale(acts*-8+2, y, above=4)
    np.testing.assert_allclose(moved.kurtosis, s.kurtosis, rtol=1e-4)
    order = rng.permutation(90)
    np.testing.assert_allclose(monosemantic_scale(acts[order], y[order]).by_concept, s.by_concept)
    assert np.isnan(monosemantic_scale(acts, y).by_range).all()


def test_scale_of_the_dead_and_the_seldom(tmp_path):
    "A neuron that never changes has no phi; one that fires once in n has a kurtosis near n; labels that say nothing are chance."
    rng = np.random.default_rng(0)
    acts = np.column_stack([np.full(500, .1), np.arange(500) == 3, rng.normal(size=(500, 200))])
    s = monosemantic_scale(acts, rng.integers(0, 4, 500))
    t = s.to_frame()
    assert t.loc[0, ['kurtosis', 'far', 'top', 'phi', 'chance']].isna().all() and t[['concept']].isna().all(axis=1)[0]
    assert s.kurtosis[1] == pytest.approx(1/(1/500*(1-1/500))-3) and s.far[1] == 1/500
    inside = ((s.kurtosis[2:] > s.normal[2, 1]) & (s.kurtosis[2:] < s.normal[2, 2])).mean()
    assert .88 < inside < .99 and s.normal[:, 0] == pytest.approx([.0026998, 6.6349, 3], rel=1e-4)
    assert abs((t.phi-t.chance)[2:].mean()) < .02 and '1 never change' in repr(s)
    again = MonosemanticScale.load(s.save(tmp_path/'s.safetensors'))
    assert again.to_frame().equals(t) and repr(again) == repr(s)
    assert '<i>' not in replace(s, classes=('<i>', 'b', 'c', 'd'))._repr_html_()
    dead = monosemantic_scale(np.ones((6, 2)), [0, 1]*3)
    assert np.isnan(dead.kurtosis).all() and 'all still' in repr(dead)
    for bad in (dict(above=0), dict(above=np.inf), dict(shuffles=0), dict(seed=None), dict(ranges=fit_ranges(acts, np.arange(500) % 2))):
        with pytest.raises(InputError): monosemantic_scale(acts, np.arange(500) % 3, **bad)


# --- vocabulary lens

class Numbers:
    "A tokenizer that has a number for a word."
    def __len__(self): return 99
    def decode(self, ids): return f'<w{ids[0]}>'


def causal(kind, **kw): return shaken(AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **WIDTHS | OWN.get(kind, {}) | kw)))


def parts(model):
    "By name, of GPT-2 and of Llama: what writes of each block, the final norm."
    if hasattr(model, 'transformer'): return [b.mlp.c_proj for b in model.transformer.h], model.transformer.ln_f
    return [b.mlp.down_proj for b in model.model.layers], model.model.norm


def column(m, j): return m.weight[j] if type(m).__name__ == 'Conv1D' else m.weight[:, j]


@pytest.mark.parametrize('kind', ['gpt2', 'llama'])
@pytest.mark.parametrize('tied', [True, False])
def test_lens_by_the_names_of_the_weights(kind, tied):
    "Whatever the layout, tied or not: the scores are those of the weights, multiplied by hand; the model is as it was."
    model = causal(kind, tie_word_embeddings=tied)
    if tied: assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    down, norm = parts(model)
    for site, of in (('mlp.1', lambda j: column(down[1], j)), ('mlp.-1', lambda j: column(down[2], j)),
                     ('residual.0', lambda j: torch.eye(16)[j])):
        lens = vocabulary_lens(model, Numbers(), site, [3, 0], k=99, directions=5)
        for i, j in enumerate((3, 0)):
            v = of(j).detach()
            want = (model.lm_head.weight@(norm.weight*(v-v.mean() if kind == 'gpt2' else v))).detach()
            for k, sign in (('promoted', 1), ('suppressed', -1)):
                got, ids = torch.tensor(lens.arrays[f'{k}_score'][i]), torch.tensor(lens.arrays[k][i])
                assert torch.allclose(got, want[ids], atol=1e-4*want.abs().max().item())
                assert (sign*got).diff().max() <= 0 and sorted(ids.tolist()) == list(range(99))
            assert lens.arrays['norm'][i] == pytest.approx(float(v.norm()), rel=1e-5)
    assert lens.final_norm == {'gpt2':'LayerNorm', 'llama':'RMS'}[kind] and not touched(model)


@pytest.mark.parametrize('kind', ['gpt2', 'llama'])
def test_lens_is_what_a_pass_does(kind):
    "A unit raised by z in a running model, all above it at zero: the scores move by z times the lens, over the size of the state."
    model, z = causal(kind), .7
    down, norm = parts(model)
    with torch.no_grad():
        for b in (model.transformer.h if kind == 'gpt2' else model.model.layers)[1:]:
            for n, p in b.named_parameters():
                if 'c_proj' in n or 'o_proj' in n or 'down_proj' in n: p.zero_()
    lens = vocabulary_lens(model, Numbers(), 'mlp.0', [5], k=99, directions=5)
    want = torch.empty(99)
    want[torch.tensor(lens.arrays['promoted'][0])] = torch.tensor(lens.arrays['promoted_score'][0])
    states, ids = [], torch.tensor([[5, 6, 7, 8]])
    hooks = [norm.register_forward_pre_hook(lambda m, args: states.append(args[0]))]
    with torch.no_grad():
        plain = model(ids).logits
        def raised(m, args): return (args[0]+z*(torch.arange(args[0].shape[-1]) == 5),)
        hooks.append(down[0].register_forward_pre_hook(raised))
        model(ids)
        a, b = states[0].double(), states[1].double()
        for h in hooks: h.remove()
    size = (a-a.mean(-1, keepdim=True) if kind == 'gpt2' else a).pow(2).mean(-1, keepdim=True).add(1e-5 if kind == 'gpt2' else 1e-6).sqrt()
    with torch.no_grad(): # The final norm with its scale frozen at the plain pass's
        c = (lambda x: x-x.mean(-1, keepdim=True)) if kind == 'gpt2' else lambda x: x
        shift = norm.bias if kind == 'gpt2' else 0
        def scores(h): return model.lm_head((c(h)/size*norm.weight+shift).float())
        agree(scores(a), plain, model)
        moved = scores(b)-scores(a)
    assert torch.allclose(moved, z*want/size.float(), atol=2e-4*float(moved.abs().max()))


def test_lens_without_a_norm():
    "With nothing between the last block and the unembedding the scores move by exactly that."
    model = causal('llama')
    model.model.norm = torch.nn.Identity()
    lens = vocabulary_lens(model, Numbers(), 'mlp.2', [4], k=99, directions=5)
    assert lens.final_norm == 'none'
    want, ids = torch.empty(99), torch.tensor([[5, 6, 7]])
    want[torch.tensor(lens.arrays['promoted'][0])] = torch.tensor(lens.arrays['promoted_score'][0])
    with torch.no_grad():
        plain = model(ids).logits
        h = model.model.layers[2].mlp.down_proj.register_forward_pre_hook(lambda m, a: (a[0]+2.*(torch.arange(24) == 4),))
        moved = model(ids).logits
        h.remove()
    assert torch.allclose(moved-plain, 2*want.expand(1, 3, 99), atol=1e-4)


def test_lens_of_attention_and_of_half_precision():
    model = causal('llama')
    lens = vocabulary_lens(model, Numbers(), 'attention.1', [2], k=3, directions=5)
    want = (model.lm_head.weight@(model.model.norm.weight*model.model.layers[1].self_attn.o_proj.weight[:, 2])).topk(3)
    assert lens.arrays['promoted'][0].tolist() == want.indices.tolist()
    half = vocabulary_lens(model.bfloat16(), Numbers(), 'mlp.1', [2], k=1, directions=5)
    full = vocabulary_lens(model.float(), Numbers(), 'mlp.1', [2], k=1, directions=5)
    assert half.arrays['promoted_score'][0, 0] == pytest.approx(full.arrays['promoted_score'][0, 0], rel=.02)


def test_lens_chance_and_planted():
    "Units of random weights are as far out as random directions; one that writes a token is far beyond; a dead one is not."
    model = causal('llama', intermediate_size=200)
    with torch.no_grad():
        m = model.model.layers[0].mlp.down_proj.weight
        m[:, 0], m[:, 1] = 5*model.lm_head.weight[7]/model.model.norm.weight.clamp(min=.3), 0
        model.lm_head.weight[7] *= 3 # No other token is as far out
    lens = vocabulary_lens(model, Numbers(), 'mlp.0', k=4, directions=400)
    f = lens.to_frame()
    assert lens.words('promoted', 0)[0] == '<w7>' and f.p_promotes[0] < .02
    assert (f.p_promotes[2:] < .05).mean() < .12 and (f.p_suppresses[2:] < .05).mean() < .12
    assert f.p_promotes[1] == f.p_suppresses[1] == 1 and f.promotes[1] == 0
    again = vocabulary_lens(model, Numbers(), 'mlp.0', [3, 2], k=4, directions=400)
    pd.testing.assert_frame_equal(again.to_frame(), f.iloc[[3, 2]].reset_index(drop=True), rtol=1e-4)


def test_lens_comes_back(tmp_path):
    lens = vocabulary_lens(causal('gpt2'), Numbers(), 'mlp.0', k=2, directions=20)
    assert len(lens.neurons) == 24 and '<w' not in lens._repr_html_().replace('<w>', '')
    assert '\\toprule' in lens.to_latex()
    again = VocabularyLens.load(lens.save(tmp_path/'l.safetensors'))
    assert again.to_frame().equals(lens.to_frame()) and repr(again) == repr(lens)
    assert again.words('suppressed', 3) == lens.words('suppressed', 3)


class Packed(torch.nn.Linear):
    "A projection of another kind, as of quantised weights."


def test_lens_refuses_what_does_not_add_up():
    "A norm behind the MLP, a factor, a cap, experts, another kind of matrix, no vocabulary, a norm in the stream: one sentence each."
    ask = lambda model, site='mlp.0', **kw: vocabulary_lens(model, Numbers(), site, **dict(neurons=[0, 1], k=2, directions=3) | kw)
    for kind, more, site, said in (
            ('gemma2', {}, 'mlp.0', 'as where they are capped or scaled'), ('olmo2', {}, 'mlp.0', 'does not hand on what its units write'),
            ('granite', dict(residual_multiplier=.2), 'mlp.0', 'does not hand on what its units write'),
            ('mixtral', dict(num_local_experts=2), 'mlp.0', 'as where there are experts'),
            ('openai-gpt', {}, 'residual.0', 'do not only add to what it hands on'),
            ('bert', dict(is_decoder=True), 'residual.-1', 'is more than a norm')):
        with pytest.raises(InputError, match=said): ask(causal(kind, **more), site)
    with pytest.raises(InputError, match='has no language-modelling head'): ask(tiny_model('gpt2'))
    model = causal('llama')
    for path in ('model.layers.0.mlp.down_proj', 'lm_head'):
        kept = model.get_submodule(path)
        new = Packed(kept.in_features, kept.out_features, bias=False)
        new.weight = kept.weight
        model.set_submodule(path, new)
        with pytest.raises(InputError, match=r'no plain matrix \(Packed\)'): ask(model)
        model.set_submodule(path, kept)
    for bad, said in ((dict(site='mlp.9'), 'beyond the model'), (dict(site='lm_head:in'), 'it is a module'),
                      (dict(neurons=[24]), 'holds neuron 24'), (dict(neurons=[]), 'no neuron to look at'), (dict(k=0), 'k=0'),
                      (dict(k=100), 'k=100'), (dict(directions=0), 'directions=0'), (dict(seed=-1), 'seed -1')):
        with pytest.raises(InputError, match=said): ask(model, **bad)
    with torch.no_grad(): model.model.layers[0].mlp.down_proj.weight[:, :2] = 0
    with pytest.raises(InputError, match='its units write nothing'): ask(model)
    assert not touched(model)


def test_lens_hears_of_an_adapter():
    "An adapter beside the projection is not in its weight: refused; once it is merged, the lens is that of the merged weights."
    peft = pytest.importorskip('peft')
    model = causal('llama')
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=['down_proj'], init_lora_weights=False))
    with pytest.raises(InputError, match='does not hand on what its units write|no plain matrix|merge them'):
        vocabulary_lens(wrapped, Numbers(), 'mlp.1', [0, 1], k=2, directions=3)
    merged = wrapped.merge_and_unload()
    lens = vocabulary_lens(merged, Numbers(), 'mlp.1', [0], k=2, directions=3)
    want = merged.lm_head.weight@(merged.model.norm.weight*merged.model.layers[1].mlp.down_proj.weight[:, 0])
    assert lens.arrays['promoted'][0].tolist() == want.topk(2).indices.tolist()
