"""Tiny random models and what goes with them, for the tests of the rooms that run a model."""
from dataclasses import replace

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from neuronlens.edits.edit import Intervention, Neurons
from neuronlens.ground.rounding import agree, apart, score_size
from neuronlens.ground.setting import Setting
from neuronlens.models.anatomy import parse_site
from neuronlens.models.batches import batches, encode
from neuronlens.models.hooks import run

BEYOND = 30 # How many times what rounding may make a mistake, or an edit, has to move what is compared at least

WIDTHS = dict(vocab_size=99, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2,
              intermediate_size=24, max_position_embeddings=64, pad_token_id=1, bos_token_id=2, eos_token_id=3,
              cls_token_id=2, sep_token_id=3, num_labels=3)
OWN = {"distilbert": dict(hidden_dim=24), "gpt2": dict(n_inner=24), "modernbert": dict(local_attention=4),
       "llama": dict(num_key_value_heads=1, head_dim=12), "qwen3": dict(num_key_value_heads=1, head_dim=12)}


def shaken(model, seed=0, scale=.35):
    "The model with seeded weights large enough that every mistake moves its answer, in eval mode."
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1: p.copy_(scale*torch.randn(p.shape, generator=gen))
            else: p.add_(.2*torch.randn(p.shape, generator=gen))
    return model.eval()


def tiny_model(name, seed=0, **kw):
    "A random classifier whose weights are large enough that every mistake moves its answer; its pad token is not zero."
    config = AutoConfig.for_model(name, **WIDTHS | OWN.get(name, {}) | kw)
    return shaken(AutoModelForSequenceClassification.from_config(config), seed)


def logs(answers):
    "Probabilities as logarithms, which are as far apart as the scores behind them: near 0 and 1 they would hide a difference."
    p = np.asarray(answers, np.float64)
    return np.log(p.clip(1e-30)) if (p > 0).any() else p


def same_answers(got, want, of, what="", size=None):
    "Probabilities, or logarithms of some, agree but for the rounding of the scores that they are made of."
    agree(logs(got), logs(want), of, size=size or score_size(want), what=what)


def answers_apart(a, b, of):
    "How far they are apart, in what rounding may make."
    return apart(logs(a), logs(b), of, size=max(score_size(a), score_size(b)))


def gap(values, q, near=3, least=1e-3):
    "A number near quantile `q` and away from every value, so that rounding moves nothing across it."
    v = sorted(values)
    i = round(q*(len(v)-2))
    n = max(range(max(0, i-near), min(len(v)-1, i+near+1)), key=lambda n: v[n+1]-v[n])
    assert v[n+1]-v[n] > least
    return (v[n]+v[n+1])/2


def everywhere(clf, texts, sites):
    "What a model has at sites, `[n, D]` each, at every position of all texts."
    sites = [parse_site(s) for s in sites]
    with torch.inference_mode():
        seen = [(b.mask == 1, run(clf, b, sites)) for b in batches(encode(clf, texts), fill=clf.pad_id)]
    return {s: torch.cat([h[s][mask] for mask, h in seen]) for s in sites}


def clear(iv, values):
    "The intervention with every end of its ranges halfway between the two values `[n, D]` around it, so that rounding moves none across."
    if not hasattr(iv, "lo"): return iv
    v = values.T.sort().values.contiguous()

    def halfway(ends):
        i = torch.searchsorted(v, ends.contiguous())
        around = [v.gather(1, (i+k).clamp(0, v.shape[1]-1)) for k in (-1, 0)]
        new = torch.where(i == 0, around[1]-1, torch.where(i == v.shape[1], around[1]+1, sum(around)/2))
        return torch.where(ends.isfinite(), new, ends)
    return replace(iv, lo=halfway(iv.lo), hi=halfway(iv.hi))


def intervention(acts, site, edit="mean", positions="all", seed=0, vote=0., **kw):
    "Edit a few neurons of activations [n, D] in one or two ranges that hold half of them."
    gen = torch.Generator().manual_seed(seed)
    neurons = torch.randperm(acts.shape[1], generator=gen)[:6]
    ends = torch.zeros(acts.shape[1], 4)
    for j in neurons.tolist(): ends[j] = torch.tensor([gap(acts[:, j].tolist(), q, **kw) for q in (.1, .3, .6, .9)])
    lo, hi = ends[:, ::2].clone(), ends[:, 1::2].clone()
    lo[neurons[0], 1], hi[neurons[0], 1] = torch.inf, -torch.inf
    about = Neurons(*torch.randn(4, acts.shape[1], generator=gen))
    said = Setting("1", "range", str(parse_site(site)), "hand", .3, "hand", vote, positions=positions, edit=edit)
    return Intervention(said, neurons, lo, hi, about)


def by_hand(iv, x, places):
    "What an intervention makes of one text's [T, D] if it edits only `places`, and the share of it in range at each."
    out, share = x.clone(), []
    lows, highs, values = iv.lo.tolist(), iv.hi.tolist(), iv.state.rest_mean.tolist()
    for t, row in enumerate(x.tolist()):
        inside = [j for j in iv.neurons.tolist() if any(a <= row[j] <= b for a, b in zip(lows[j], highs[j], strict=True))]
        if len(inside) < iv.vote*len(iv.neurons): inside = []
        for j in inside if t in places else []: out[t, j] = 0. if iv.edit == "zero" else values[j]
        share.append(len(inside)/len(iv.neurons))
    return out, share


def readout_places(readout, special):
    "Which positions of an unpadded text a readout looks at."
    everything = list(range(len(special)))
    if readout == "mean": return [t for t in everything if not special[t]] or everything
    return everything[:1] if readout == "first" else everything[-1:]


def touched(model):
    "Whether hooks or replaced methods are left in a model."
    return [n for n, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__]
