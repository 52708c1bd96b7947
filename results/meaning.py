"""Are ranges better explained than whole neurons? `python results/meaning.py` (BBC News, which the package brings), or
`NEURONLENS_DATA=folder python results/meaning.py results/emotion.toml` for a study file of an encoder; some minutes each. With `wikitext2`
in the place of the study file: MLP units of SmolLM2 at the tokens of WikiText-2, 12 a block of three, searched on one half of the articles
and scored on the other; predicates of tokens, and no classes.

24 neurons a site, drawn once, of the residual and the mlp site of three blocks. Every row of the table is one set of texts in which a
neuron lies, cut by its activations on training texts; a formula of words, of at most three predicates, is searched for it on training texts
and scored on test texts. The kinds of set:

    above             the highest 5 % of its activations: the whole neuron, as the field has it
    class             the posterior range of the class that the neuron separates best (d-prime)
    above like class  as many of its highest activations as that range has: the whole neuron at equal support
    end like class    as many of its highest or of its lowest ones, whichever the training texts explain better
    bin               the best of ten bins of equal mass, chosen on training texts
    inner bin         the best of the eight bins that are no end, chosen likewise
    above like bin    the highest bin; end like bin: the highest or the lowest, whichever the training texts explain better
    chance            the best of ten bins of a neuron whose rows were shuffled

chance_iou is the IoU of the formula of the same search on shuffled rows, on shuffled test rows; random_model_iou that of the same search
on a randomly initialised copy of the model, its neuron in range on as many texts at the same ranks. pearson is the correlation of formula
and being in range. The rows replace those of the data set in results/meaning.csv.
"""
import argparse
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from neuronlens.arrays.formulas import search_formulas
from neuronlens.arrays.predicates import text_predicates, token_predicates
from neuronlens.arrays.ranges import fit_ranges, inside
from neuronlens.arrays.saliency import rank
from neuronlens.arrays.scores import score_formulas
from neuronlens.edits.language import _speaker
from neuronlens.ground.data import balance
from neuronlens.models.anatomy import anatomy, parse_site
from neuronlens.models.batches import pad
from neuronlens.models.hooks import run
from neuronlens.models.model import align, load_language_model, smollm2
from neuronlens.models.training import example_classifier, example_texts
from neuronlens.records.recording import record
from neuronlens.records.untrained import untrained_recording
from neuronlens.studies.spec import read_study
from neuronlens.studies.study import study_model, study_texts

HERE = Path(__file__).resolve().parent
BLOCKS, EACH, BINS, LENGTH, LEAST, SEED = (1, 3, 5), 24, 10, 3, 20, 0
MOST = dict(train=3000, test=1500) # Texts at most


def data_of(study):
    "(name, classifier, training and test texts)."
    if study is None: return "bbc", example_classifier(), *example_texts()
    train, test, _ = study_texts(spec := read_study(study))
    clf = study_model(spec, train, progress=False)
    return Path(study).stem, clf, *(balance(t, n//len(t.classes), seed=SEED) for t, n in zip((train, test), MOST.values(), strict=True))


def sets_of(x, y, lo, hi):
    "Dict of kind to (lo, hi `[K]`) of the sets of one neuron `x [N]` that is in the range lo, hi of its class."
    order = np.sort(x)
    inf, own, N = np.float32([np.inf]), int(inside(x[:, None], lo[None], hi[None]).sum()), len(x)
    def top(n): return order[[N-n]], inf
    out = {"above": top(round(N/20))}
    if 0 < own < N:
        used = lo <= hi
        out |= {"class": (lo[used], hi[used]), "above like class": top(own), "below like class": (-inf, order[[own-1]])}
    cuts = [order[[b*N//BINS]] for b in range(1, BINS)]
    lows, highs = [-inf, *cuts], [*(np.nextafter(c, -inf) for c in cuts), inf]
    return out | {f"bin {b}": ends for b, ends in enumerate(zip(lows, highs, strict=True))}


def masks_of(acts, ends):
    "`[N, M]` which activations lie in which set; `ends` are (neuron, kind, lo, hi)."
    return np.stack([inside(acts[:, [j]], lo[None], hi[None])[:, 0] for j, _, lo, hi in ends], 1)


def searched(recs, predicates, site, ends):
    "Formulas found on training texts and their scores on test texts."
    masks = [masks_of(r.at(site), ends) for r in recs]
    found = search_formulas(predicates[0], masks[0], length=LENGTH, seed=SEED, progress=False)
    return found, score_formulas(found, predicates[1], masks[1], metrics=("iou", "pearson"), draws=1, seed=SEED).to_frame()


def picked(table, iou):
    "Of the sets of one neuron, those that are told: bins and ends by what the training texts say (`iou`)."
    at = dict(zip(table.kind, iou, strict=True))
    def best(kinds): return max(kinds, key=at.get)
    bins = [f"bin {b}" for b in range(BINS)]
    out = {"above": "above"} if "above" in at else {}
    if all(b in at for b in bins): # Not for a unit that is the same on many texts
        out |= {"bin": best(bins), "inner bin": best(bins[1:-1]), "above like bin": bins[-1], "end like bin": best([bins[0], bins[-1]])}
    if {"class", "above like class", "below like class"} <= {*at}:
        out |= {"class": "class", "above like class": "above like class",
                "end like class": best(["above like class", "below like class"])}
    return {kind: np.flatnonzero(table.kind == of)[0] for kind, of in out.items()}


def site_rows(site, recs, null, predicates, name, model):
    "All rows of one site."
    train = recs[0].at(site)
    scores, ranges = rank(train, recs[0].labels, "dprime").scores, fit_ranges(train, recs[0].labels, "posterior")
    drawn = np.sort(np.random.default_rng(SEED).choice(train.shape[1], EACH, replace=False))
    ends = []
    for j in drawn:
        c = scores[:, j].argmax()
        ends += [(j, kind, lo, hi) for kind, (lo, hi) in sets_of(train[:, j], recs[0].labels, ranges.lo[c, j], ranges.hi[c, j]).items()]
    return told_rows(site, recs, null, predicates, ends, name, model, np.arange(train.shape[1]))


def told_rows(site, recs, null, predicates, ends, name, model, which):
    "The rows of sets at a site; `which[j]` is the name of neuron j."
    train = recs[0].at(site)
    masks = [masks_of(r.at(site), ends) for r in (*recs, *null)]
    ok = np.all([m.any(0) & ~m.all(0) for m in masks], 0)
    ends = [e for e, fine in zip(ends, ok, strict=True) if fine]
    (found, table), (other, untrained) = (searched(r, predicates, site, ends) for r in (recs, null))
    table["kind"], table["neuron"], table["searched"] = [e[1] for e in ends], [e[0] for e in ends], found.iou
    table["lo"], table["hi"] = (["|".join(f"{v:.5g}" for v in e[i]) for e in ends] for i in (2, 3))
    table["support"], rows = found.in_range/len(train), []
    for j in dict.fromkeys(e[0] for e in ends):
        own = np.flatnonzero(table.neuron == j)
        mine, theirs, by_chance = (picked(table.iloc[own], x[own]) for x in (found.iou, other.iou, found.chance_iou[:, 0]))
        for kind, i in mine.items():
            rows.append(table.iloc[own[i]].to_dict() | dict(kind=kind, random_model_iou=untrained.iou.iloc[own[theirs[kind]]]))
        if "bin" not in by_chance: continue
        i = own[by_chance["bin"]]
        shuffled = score_formulas(found_chance(found, i), predicates[1], masks_of(recs[1].at(site), [ends[i]])[turn(len(predicates[1]))],
                                  metrics=("iou", "pearson"), draws=1, seed=SEED).to_frame().iloc[0]
        rows.append(table.iloc[i].to_dict() | shuffled.to_dict() | dict(kind="chance", lo="", hi="", random_model_iou=np.nan))
    rows = pd.DataFrame(rows).assign(dataset=name, model=model, site=site, neuron=lambda t: which[t.neuron])
    return rows[["dataset", "model", "site", "neuron", "kind", "lo", "hi", "support", "formula", "length", "iou", "pearson", "precision",
                 "recall", "chance_iou", "random_model_iou"]]


def turn(n): return np.random.default_rng(SEED+1).permutation(n)


def found_chance(found, i):
    "What was found for one shuffled set, as if it were one."
    return replace(found, names=("chance",), formulas=(found.chance[i][0],), chance=(found.chance[i],), iou=found.chance_iou[i],
                   chance_iou=found.chance_iou[[i]], in_range=found.in_range[[i]])


def ranked_like(null, acts):
    "The values of a model at the ranks of its untrained copy, neuron by neuron; both `[N, K]`."
    return np.take_along_axis(np.sort(acts, 0), null.argsort(0).argsort(0), 0)


def held(acts): return SimpleNamespace(at=lambda site: acts) # As a recording of one site


def articles():
    "Two lists of paragraphs of WikiText-2: of every other article."
    text, parts, k = (Path(os.environ["NEURONLENS_DATA"])/"wikitext2/raw_wiki.test.raw").read_text(encoding="utf-8"), ([], []), 0
    for line in map(str.strip, text.splitlines()):
        if re.fullmatch(r"= [^=].* =", line): k += 1
        elif len(line.split()) >= 20 and not line.startswith("="): parts[k % 2].append(line)
    return parts


@torch.inference_mode()
def units_of(model, tok, ids, drawn):
    "Dict of site to `[N, K]` what drawn units of its block put out at every token but the first of a text, which every model treats apart."
    clf, kept = _speaker(model, tok), {s: [] for s in drawn}
    at = {s: parse_site(s, len(anatomy(model))) for s in drawn}
    for row in ids:
        seen = run(clf, pad([row], [[0]*len(row)], np.arange(1), fill=clf.pad_id), set(at.values()))
        for s, site in at.items(): kept[s].append(seen[site][0, 1:, drawn[s]].float().numpy())
    return {s: np.concatenate(x) for s, x in kept.items()}


def of_tokens(blocks=(5, 15, 25), units=12, most=(24_000, 12_000), length=64):
    "The rows of SmolLM2 on WikiText-2."
    model, tok = load_language_model(smollm2(), device="cpu")
    torch.manual_seed(SEED)
    null = type(model)(model.config).eval()
    ids = [[] for _ in most]
    for part, n, out in zip(articles(), most, ids, strict=True):
        for t in part:
            if sum(len(i)-1 for i in out) < n: out.append(tok(t).input_ids[:length])
    tokens = [[tok.convert_ids_to_tokens(i[1:]) for i in part] for part in ids]
    made = token_predicates(tokens[0], least=LEAST)
    predicates, rows = (made, token_predicates(tokens[1], like=made)), []
    def some(b): return np.sort(np.random.default_rng(b).choice(model.config.intermediate_size, units, replace=False))
    drawn = {f"mlp.{b}": some(b) for b in blocks}
    print("wikitext2", [len(p) for p in predicates], len(made.names), "predicates", flush=True)
    acts, other = ([units_of(m, tok, part, drawn) for part in ids] for m in (model, null))
    for site, which in drawn.items():
        of = [held(a[site]) for a in acts]
        copies = [held(ranked_like(n[site], a[site])) for n, a in zip(other, acts, strict=True)]
        x = acts[0][site]
        nothing = np.float32([np.inf]), np.float32([-np.inf]) # No class, so no range of one
        ends = [(j, kind, lo, hi) for j in range(units) for kind, (lo, hi) in sets_of(x[:, j], None, *nothing).items()]
        rows.append(told_rows(site, of, copies, predicates, ends, "wikitext2", "SmolLM2", which))
        print(site, rows[-1].groupby("kind", sort=False)[["iou", "chance_iou", "random_model_iou"]].mean().round(3).to_string(), flush=True)
    return "wikitext2", rows


def main(study):
    write(*(of_tokens() if study == "wikitext2" else of_texts(study)))


def of_texts(study):
    "The rows of a classifier."
    name, clf, *texts = data_of(study)
    sites = [f"{part}.{b}" for b in BLOCKS for part in ("residual", "mlp")]
    recs = [record(clf, t, sites, progress=False, cache=True) for t in texts]
    null = [untrained_recording(clf, t, r, seed=SEED, progress=False) for t, r in zip(texts, recs, strict=True)]
    texts = [align(t, clf) for t in texts]
    made = text_predicates(texts[0], least=LEAST)
    predicates = made, text_predicates(texts[1], like=made)
    print(name, [len(t) for t in texts], len(made.names), "predicates", flush=True)
    model = "MiniLM" if study is None else read_study(study).title.partition(" on ")[0]
    table = []
    for site in sites:
        table.append(site_rows(site, recs, null, predicates, name, model))
        means = table[-1].groupby("kind", sort=False)[["iou", "chance_iou", "random_model_iou"]].mean()
        print(site, means.round(3).to_string(), flush=True)
    return name, table


def write(name, table):
    "In the place of the rows of the same data set."
    table = pd.concat(table, ignore_index=True)
    path = HERE/"meaning.csv"
    if path.exists():
        old = pd.read_csv(path, dtype=dict(lo=str, hi=str))
        table = pd.concat([old[old.dataset != name], table], ignore_index=True)
        table = table.sort_values("dataset", key=lambda c: c != "bbc", kind="stable")
    floats = table.select_dtypes("float").columns
    table[floats] = table[floats].round(4)
    table.to_csv(path, index=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition(";")[0])
    parser.add_argument("study", nargs="?")
    main(parser.parse_args().study)
