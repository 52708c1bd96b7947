"""What erases a concept and what is kept beside it: `python results/erasure.py` (BBC News, which the package brings), or
`NEURONLENS_DATA=folder python results/erasure.py results/emotion.toml` for a study file; ten to forty minutes each.

Last block, all neurons, posterior(0.2) ranges, half of all neurons must be in range together, and then all of them take: the auxiliary
mean, another text's values, the values of a partner, AURA's factors, or go through the affine map that gives the concept's texts mean
and covariance of the others. Beside them LEACE and whole neurons. Ranges, partners and maps are learned on training texts, nothing is
chosen on test texts, and they are read once. The rows replace those of the data set in results/erasure.csv.

Column `condition` says which rows are controls of `exchange` and `partner`: `half` of the neurons, the salient ones by d-prime,
beside `random half` (all neurons are the same set, drawn or not); `rotated`, in five bases; `placebo`; `unrelated`, for whom the gate
opens; `random model`, the same model with weights drawn anew, whose answers mean nothing and are left empty; and `floor`, what readers
found that learned on shuffled labels. Those of the condition `weighted` are of gates whose votes count by weight, learned on training texts
(logistic, L1), in the place of half of all neurons, with a placebo and an unrelated gate beside. Those of `bins` are of gates with a weight
for each of eight bins of every neuron, open from a probability of one half, which recommend.py found best on validation texts of SST-2 and
IMDB; gates, rows and partners are learned from the training texts that the model answers right, and the same two controls stand beside.
`--only weighted` and `--only bins` make these alone, `--only partner` all rows of that edit.
`--most N` reads that many test texts of each class at most, `--bases N` turns N times, 0 leaves out all controls.
"""
import argparse
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from neuronlens.edits.ablation import answers_to, edited_acts
from neuronlens.edits.controls import placebo, rotated, unrelated
from neuronlens.edits.edit import linear_edit
from neuronlens.edits.erasure import leace, remains, unedited
from neuronlens.edits.sweeps import grid
from neuronlens.ground.data import balance
from neuronlens.models.model import align
from neuronlens.models.training import example_classifier, example_texts
from neuronlens.records.calibration import answered_by, calibrated
from neuronlens.records.given import correct_only
from neuronlens.records.recording import example_recordings, record
from neuronlens.records.untrained import random_copy
from neuronlens.studies.spec import read_study
from neuronlens.studies.study import study_model, study_prompt, study_texts

HERE = Path(__file__).resolve().parent
READERS = ("linear", "forest", "svm", "mlp")
VOTE = .5
EDITS = ("mean", "exchange", "partner", "aura")
HELD = ("exchange", "partner") # Against controls
WEIGHTED = ("mean", "exchange", "partner")
HOW = dict(range="posterior(0.2)", vote=VOTE, covers="salient")
BINNED = dict(range="bins(8)", vote="weighted(0.5)")


def affine_map(own, rest, ridge=1e-3):
    "Mean and covariance of the concept's texts onto those of the others, the map that moves least (Gaussian optimal transport)."
    def root(m, power):
        values, axes = np.linalg.eigh(m)
        return (axes*np.clip(values, 1e-12, None)**power)@axes.T
    (a, mean), (b, to) = ((np.cov(x.T.astype(np.float64))+ridge*x.var(0).mean()*np.eye(x.shape[1]), x.mean(0, dtype=np.float64))
                          for x in (own, rest))
    half, back = root(a, .5), root(a, -.5)
    A = back@root(half@b@half, .5)@back
    return A, to-A@mean


def data_of(study, most=500):
    "(name, model under study, training and test texts, their recordings); of a language model those that the study fits on."
    if study is None: return "bbc", example_classifier(), example_texts(), example_recordings()
    train, test, _ = study_texts(spec := read_study(study))
    prompt, train = study_prompt(spec, train)
    clf = study_model(spec, train, progress=False, prompt=prompt)
    fit = record(clf, train, progress=False, cache=True)
    if spec.prompt.calibrate: fit = answered_by(clf := calibrated(clf, fit), fit)
    test = balance(test, most, seed=0)
    seen = record(clf, test, progress=False, cache=True)
    return Path(study).stem, clf, (train, test), (correct_only(fit) if spec.method.correct_only else fit, seen)


def through(clf, acts, labels, c, change):
    "Target accuracy, disturbance and broken of one concept."
    before, after = answers_to(clf, acts), answers_to(clf, change(acts))
    own, right = labels == c, (before.argmax(1) == labels) & (labels != c)
    return dict(target_accuracy=(after[own].argmax(1) == c).mean(), disturbance=abs(after-before)[right].sum(1).mean()/2,
                broken=(after[right].argmax(1) != labels[right]).mean())


def by_edit(ivs, edits=HELD):
    "Interventions of each edit, one for each concept."
    return {e: [iv for iv in ivs if iv.edit == e] for e in edits}


def applied(ivs): return [partial(edited_acts, iv) for iv in ivs]


def ways(train):
    "Every edit, (edit, condition, draw) to a function for each concept; and the interventions that have controls."
    C = len(train.classes)
    of = by_edit([iv for iv in grid(train, edit=list(EDITS), fraction=1., site=train.site, **HOW) if iv.condition == "range"], EDITS)
    maps = [affine_map(train.acts[train.labels == c], train.acts[train.labels != c]) for c in range(C)]
    def moved(iv, m, acts):
        gate = iv(torch.as_tensor(acts))[1].numpy()
        return np.where(gate, (acts@m[0].T+m[1]).astype(np.float32), acts)
    out = {(e, "range", 0): applied(ivs) for e, ivs in of.items()}
    out["affine", "range", 0] = [partial(moved, iv, m) for iv, m in zip(of["mean"], maps, strict=True)]
    out["whole neurons", "full", 0] = applied(iv for iv in grid(train, edit="mean", fraction=1., site=train.site) if iv.condition == "full")
    out["none", "base", 0] = [unedited]*C
    lines = [leace(train.acts, train.labels, c) for c in range(C)]
    out["leace", "leace", 0] = applied(linear_edit(train.classes[m.concept], "leace", train.site, m.matrix, m.bias) for m in lines)
    return out, {e: of[e] for e in HELD}


def weighted(train, held=True):
    "The edits whose gate is learned, and controls: a direction left to chance, and a gate that opens as often for other texts."
    ivs = grid(train, edit=list(WEIGHTED), fraction=1., site=train.site, **HOW | dict(vote="weighted"))
    of = by_edit([iv for iv in ivs if iv.condition == "range"], WEIGHTED)
    out = {(e, "weighted", 0): applied(own) for e, own in of.items()}
    return out | (by_chance(of, "weighted ") if held else {})


def by_chance(of, before=""):
    "A direction left to chance, and a gate that opens for as many texts whoever they are."
    return {(e, before+name, 0): f(of[e]) for e in HELD for name, f in (("placebo", placebo), ("unrelated", unrelated))}


def binned(train, held=True):
    "The edits whose gate weighs every bin of every neuron, and opens where the concept is the likelier answer; learned where it was right."
    ivs = grid(correct_only(train), edit=list(HELD), fraction=1., site=train.site, **HOW | BINNED)
    of = by_edit([iv for iv in ivs if iv.condition == "range"])
    return {(e, "bins", 0): applied(own) for e, own in of.items()} | (by_chance(of, "bins ") if held else {})


def controls(train, of, bases):
    "The same, with neurons, axes, direction or texts left to chance."
    half = grid(train, edit=list(HELD), fraction=.5, site=train.site, **HOW)
    out = by_chance(of)
    for condition, name in (("range", "half"), ("random", "random half")):
        out |= {(e, name, 0): applied(ivs) for e, ivs in by_edit([iv for iv in half if iv.condition == condition]).items()}
    for e, ivs in of.items():
        out |= {(e, "rotated", s): rotated(ivs, train, s) for s in range(bases)}
    return out


def drawn_model(clf, texts, most=1000):
    "Recordings of the same model with weights drawn anew, fewer texts to learn from."
    few = balance(texts[0], most//len(clf.classes), seed=0)
    return [record(random_copy(clf), t, progress=False) for t in (few, texts[1])]


def table_of(every, test, length, clf=None, **kw):
    "A row for each edit, condition, draw and concept; with `floors` those of readers that learned on shuffled labels, too."
    keys = {f"{e}|{condition}|{draw}": (e, condition, draw) for e, condition, draw in every}
    fs = dict(zip(keys, every.values(), strict=True))
    left = remains(fs, test.acts, test.labels, classes=test.classes, others=dict(length=length), **kw)
    rows = []
    for key, fs in zip(keys, every.values(), strict=True):
        for c, f in enumerate(fs):
            hit, own = (f(test.acts) != test.acts).any(1), test.labels == c
            rows.append(dict(edit=key, concept=test.classes[c], opens=hit[own].mean(), opens_others=hit[~own].mean())
                        | (through(clf, test.acts, test.labels, c, f) if clf else {}))
    table = pd.DataFrame(rows).merge(left.per_class(), on=["edit", "concept"])
    if kw.get("floors", True):
        floor = left.per_class("floor")
        floor["edit"] = floor.edit.str.replace("|range|", "|floor|").str.replace("|base|", "|floor|")
        table = pd.concat([table, floor[floor.edit.str.contains(r"^(?:none|exchange|partner)\|floor", regex=True)]])
    table = table.rename(columns={f"auc_{k}": f"information_{k}" for k in READERS} | {"kept_length": "kept_other"})
    told = pd.DataFrame([keys.get(k, (k.partition("|")[0], "floor", 0)) for k in table.edit], columns=["edit", "condition", "draw"])
    return pd.concat([told, table.drop(columns=["edit", *(f"balanced_{k}" for k in READERS)]).reset_index(drop=True)], axis=1)


def tables(clf, texts, train, test, bases, only):
    "Every part of the table that is asked for."
    length = [len(t.split()) for t in align(texts[1], clf).texts]
    def part(every, seen=test, clf=clf, **kw): return table_of(few(every, only), seen, length, clf, **dict(floors=False) | kw)
    yield part(binned(train, bases > 0))
    if only != "bins": yield part(weighted(train, bases > 0))
    if only in ("bins", "weighted"): return
    every, of = ways(train)
    yield part(every, floors=bases > 0)
    if not bases: return
    yield part(controls(train, of, bases))
    small, seen = drawn_model(clf, texts)
    chance = {(e, "random model", 0): applied(ivs) for e, ivs in ways(small)[1].items()}
    yield part({("none", "random model", 0): [unedited]*len(train.classes)} | chance, seen, None)


def few(every, only): return {k: f for k, f in every.items() if k[0] == only} if only == "partner" else every


def main(study, most, bases, only):
    name, clf, texts, (train, test) = data_of(study, most)
    table = pd.concat(tables(clf, texts, train, test, bases, only), ignore_index=True)
    table.insert(0, "dataset", name)
    def vote(edit, condition):
        if condition.startswith("bins"): return BINNED["vote"]
        return "weighted" if condition.startswith("weighted") else VOTE if edit in (*EDITS, "affine") else 0.
    table.insert(5, "vote", [vote(e, c) for e, c in zip(table.edit, table.condition, strict=True)])
    path = HERE/"erasure.csv"
    if path.exists():
        old = pd.read_csv(path)
        kept = False if not only else old.edit != only if only == "partner" else ~old.condition.str.startswith(only)
        table = pd.concat([old[(old.dataset != name) | kept], table], ignore_index=True)
    table.round(5).to_csv(path, index=False)
    told = table[table.dataset == name].drop(columns=["dataset", "concept", "vote", "draw"])
    print(told.groupby(["edit", "condition"], sort=False).mean().round(3).to_string())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition(";")[0])
    parser.add_argument("study", nargs="?")
    parser.add_argument("--most", type=int, default=500)
    parser.add_argument("--bases", type=int, default=5)
    parser.add_argument("--only", choices=["weighted", "bins", "partner"])
    main(**vars(parser.parse_args()))
