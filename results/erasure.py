"""What erases a concept and what is kept beside it: `python results/erasure.py` (BBC News, which the package brings), or
`NEURONLENS_DATA=folder python results/erasure.py results/emotion.toml` for a study file of an encoder; some minutes each.

Last block, all neurons, posterior(0.2) ranges, half of all neurons must be in range together, and then all of them take: the auxiliary
mean, another text's values, the values of a partner, AURA's factors, or go through the affine map that gives the concept's texts mean
and covariance of the others. Beside them LEACE and whole neurons. Ranges, partners and maps are learned on training texts, nothing is
chosen on test texts, and they are read once. The rows replace those of the data set in results/erasure.csv.
"""
import argparse
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from neuronlens.edits.ablation import answers_to, edited_acts
from neuronlens.edits.edit import linear_edit
from neuronlens.edits.erasure import leace, remains, unedited
from neuronlens.edits.sweeps import grid
from neuronlens.ground.data import balance
from neuronlens.models.model import align
from neuronlens.models.training import example_classifier, example_texts
from neuronlens.records.recording import example_recordings, record
from neuronlens.studies.spec import read_study
from neuronlens.studies.study import study_model, study_texts

HERE = Path(__file__).resolve().parent
READERS = ("linear", "forest", "svm", "mlp")
VOTE = .5
EDITS = ("mean", "exchange", "partner", "aura")


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


def data_of(study):
    "(name, classifier, training and test texts)."
    if study is None: return "bbc", example_classifier(), *example_texts()
    train, test, _ = study_texts(spec := read_study(study))
    return Path(study).stem, study_model(spec, train, progress=False), train, balance(test, 500, seed=0)


def through(clf, acts, labels, c, change):
    "Target accuracy, disturbance and broken of one concept."
    before, after = answers_to(clf, acts), answers_to(clf, change(acts))
    own, right = labels == c, (before.argmax(1) == labels) & (labels != c)
    return dict(target_accuracy=(after[own].argmax(1) == c).mean(), disturbance=abs(after-before)[right].sum(1).mean()/2,
                broken=(after[right].argmax(1) != labels[right]).mean())


def ways(train):
    "Every edit, a function for each concept."
    how = dict(range="posterior(0.2)", vote=VOTE, covers="salient", fraction=1., site=train.site)
    ivs = [iv for iv in grid(train, edit=list(EDITS), **how) if iv.condition == "range"]
    out = {e: [partial(edited_acts, iv) for iv in ivs if iv.edit == e] for e in EDITS}
    gates = [iv for iv in ivs if iv.edit == "mean"]
    maps = [affine_map(train.acts[train.labels == c], train.acts[train.labels != c]) for c in range(len(train.classes))]
    def moved(iv, m, acts):
        gate = iv(torch.as_tensor(acts))[1].numpy()
        return np.where(gate, (acts@m[0].T+m[1]).astype(np.float32), acts)
    return out | {"affine": [partial(moved, iv, m) for iv, m in zip(gates, maps, strict=True)]}


def main(study):
    name, clf, *texts = data_of(study)
    train, test = example_recordings() if study is None else (record(clf, t, progress=False, cache=True) for t in texts)
    C, every = len(train.classes), ways(train)
    whole = [iv for iv in grid(train, edit="mean", fraction=1., site=train.site) if iv.condition == "full"]
    every |= {"whole neurons": [partial(edited_acts, iv) for iv in whole], "none": [unedited]*C}
    lines = [leace(train.acts, train.labels, c) for c in range(C)]
    every["leace"] = [partial(edited_acts, linear_edit(train.classes[m.concept], "leace", train.site, m.matrix, m.bias)) for m in lines]
    length = [len(t.split()) for t in align(texts[1], clf).texts]
    left = remains(every, test.acts, test.labels, classes=test.classes, others=dict(length=length))
    told = pd.DataFrame([dict(edit=e, concept=test.classes[c]) | through(clf, test.acts, test.labels, c, f)
                         for e, fs in every.items() for c, f in enumerate(fs)])
    table = told.merge(left.per_class(), on=["edit", "concept"]).rename(columns={f"auc_{k}": f"information_{k}" for k in READERS})
    table = table.rename(columns={"kept_length": "kept_other"}).drop(columns=[f"balanced_{k}" for k in READERS])
    table.insert(0, "dataset", name)
    table.insert(3, "vote", [VOTE if e in (*EDITS, "affine") else 0. for e in table.edit])
    path = HERE/"erasure.csv"
    if path.exists():
        old = pd.read_csv(path)
        table = pd.concat([old[old.dataset != name], table], ignore_index=True)
    table.round(5).to_csv(path, index=False)
    print(table[table.dataset == name].drop(columns=["dataset", "concept", "vote"]).groupby("edit", sort=False).mean().round(4).to_string())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition(";")[0])
    parser.add_argument("study", nargs="?")
    main(parser.parse_args().study)
