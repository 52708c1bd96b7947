"""Activations that something else made: every form of them, what is refused, and everything that works on them without a model."""
import json
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file as save_torch

import neuronlens as nl
from neuronlens.ground.core import InputError
from neuronlens.records.given import Head, part_of, recording
from neuronlens.studies.findings import next_steps
from neuronlens.studies.saved import load_study
from neuronlens.studies.spec import MethodSpec, StudySpec, parse_study, read_study

N, D, C = 240, 12, 3
NAMES = ("ant", "bee", "cat")


def planted(seed=0, n=N, d=D):
    "Activations in which the first neurons of every class are high, and labels."
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % C
    acts = rng.normal(size=(n, d)).astype(np.float32)
    for c in range(C): acts[labels == c, 3*c:3*c+3] += 2
    return acts, labels


ACTS, LABELS = planted()
W = np.random.default_rng(1).normal(size=(D, C))*.1
for k in range(C): W[3*k:3*k+3, k] += 1
def head(x): return x@W
def softmax(z): return (e := np.exp(z-z.max(-1, keepdims=True)))/e.sum(-1, keepdims=True)


def pair(**kw):
    "Two recordings with a head, to fit on and to measure on."
    kw = dict(head=head, classes=NAMES) | kw
    return recording(ACTS, LABELS, **kw), recording(*planted(5), **kw)


class Dataset:
    "As much of a `datasets.Dataset` as is asked of one."
    def __init__(self, df): self.df, self.column_names = df, [*df.columns]
    def with_format(self, kind): return self
    def __len__(self): return len(self.df)

    def __getitem__(self, rows):
        import pyarrow
        return pyarrow.Table.from_pandas(self.df)


class Cells:
    "As much of an `AnnData`."
    def __init__(self, x, obs, names): self.X, self.obs, self.var_names = x, obs, pd.Index(names)


def test_every_form_is_the_same_recording(tmp_path):
    words, columns = np.array(NAMES)[LABELS], [f"unit {j}" for j in range(D)]
    df = pd.DataFrame(ACTS, columns=columns).assign(kind=words)
    np.save(tmp_path/"a.npy", ACTS)
    np.savez_compressed(tmp_path/"a.npz", acts=ACTS, labels=words)
    np.savez(tmp_path/"other.npz", x=ACTS, y=LABELS, more=np.ones(3))
    df.to_parquet(tmp_path/"a.parquet")
    pd.DataFrame(dict(v=list(ACTS), kind=words)).to_parquet(tmp_path/"lists.parquet")
    save_torch(dict(acts=torch.tensor(ACTS), labels=torch.tensor(LABELS)), tmp_path/"a.safetensors")
    sparse = pytest.importorskip("scipy.sparse")
    forms = dict(array=(ACTS, words), double=(ACTS.astype(float), words), lists=(ACTS.tolist(), words.tolist()), numbers=(ACTS, LABELS),
                 tensor=(torch.tensor(ACTS, requires_grad=True), torch.tensor(LABELS)), npy=(tmp_path/"a.npy", words),
                 mapped=(np.load(tmp_path/"a.npy", mmap_mode="r"), pd.Series(words, index=range(5, N+5))), npz=(tmp_path/"a.npz", None),
                 safetensors=(str(tmp_path/"a.safetensors"), None), parquet=(tmp_path/"a.parquet", "kind"), frame=(df, "kind"),
                 categories=(df.assign(kind=pd.Categorical(words, NAMES)), "kind"), dataset=(Dataset(df), "kind"),
                 cells=(Cells(sparse.csr_matrix(ACTS), df[["kind"]], columns), "kind"))
    made = {k: nl.recording(*given) for k, given in forms.items()}
    made["columns"] = nl.recording(tmp_path/"lists.parquet", "kind", columns="v")
    made["named"] = nl.recording(tmp_path/"other.npz", "y", columns="x")
    for k, rec in made.items():
        assert np.array_equal(rec.acts, ACTS) and np.array_equal(rec.labels, LABELS), k
        assert rec.classes == (("0", "1", "2") if k in ("numbers", "tensor", "safetensors", "named") else NAMES), k
        assert (rec.names == tuple(columns)) == (k in ("parquet", "frame", "categories", "dataset", "cells")), k
    assert all(isinstance(made[k].acts, np.memmap) for k in ("npy", "mapped", "safetensors"))
    half = torch.tensor(ACTS).bfloat16()
    save_torch(dict(acts=half, labels=torch.tensor(LABELS)), tmp_path/"half.safetensors")
    for rec in (nl.recording(half, LABELS), nl.recording(tmp_path/"half.safetensors")):
        assert np.array_equal(rec.acts, half.float().numpy())


def test_several_sites(tmp_path):
    "The first is under study; all are divided, kept, found in a file and probed; the head answers at the first alone."
    few = np.tanh(ACTS[:, :5])
    rec, later = (recording(dict(late=a, early=np.tanh(a[:, :5])), y, head=head, classes=NAMES) for a, y in (planted(), planted(5)))
    assert rec.sites == ["given.late", "given.early"] == rec.provenance["sites"] and rec.acts is rec.at("late") is rec.at("given.late")
    assert np.array_equal(rec.at("early"), few) and rec.head.site == "given.late" and rec.at("early").shape == (N, 5)
    half = rec[::2]
    assert np.array_equal(half.at("early"), few[::2]) and half.head is rec.head and len(half) == N//2
    back = nl.load(nl.records.recording.save_recording(half, tmp_path/"half.safetensors"))
    assert back.sites == rec.sites and all(np.array_equal(back.at(s), half.at(s)) for s in rec.sites)
    probes = nl.probe_layers(rec.activations, rec.labels, later.activations, later.labels, classes=NAMES, progress=False)
    assert probes.sites == ("given.late", "given.early")
    ranked = nl.rank(rec.at("early"), rec.labels, classes=NAMES)
    ranges = nl.fit_ranges(rec.at("early"), rec.labels, classes=NAMES)
    ivs = nl.plan(nl.class_statistics(rec.at("early"), rec.labels, NAMES), [ranked], ranges, "given.early", fraction=[.5])
    with pytest.raises(InputError, match=r"the head reads given\.late, so an edit at given\.early has no answer"): nl.ablate(rec, ivs)
    assert nl.summarise(rec, progress=False).statistics["given.early"].mean.shape == (C, 5)
    study = nl.run_study(recordings=(rec, later), out=tmp_path/"out", progress=False)
    alone = nl.run_study(recordings=pair(site="late"), progress=False)
    assert study.effects.frame.equals(alone.effects.frame) and load_study(tmp_path/"out").probes.sites == ("given.late", "given.early")
    with pytest.raises(InputError, match="the recordings are of 5 neurons at given.early and of 0 at no other site"):
        nl.run_study(recordings=(rec, pair(site="late")[1]), progress=False)


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_several_sites_of_a_file(kind, tmp_path):
    "Arrays that columns= names, each a site; in a study file, too."
    for part, seed in (("train", 0), ("test", 5)):
        acts, labels = planted(seed)
        held = dict(early=np.tanh(acts[:, :5]), late=acts, labels=labels)
        if kind == "npz": np.savez(tmp_path/f"{part}.npz", **held)
        else: save_torch({k: torch.tensor(v) for k, v in held.items()}, tmp_path/f"{part}.safetensors")
    rec = recording(tmp_path/f"train.{kind}", columns=["late", "early"], classes=NAMES)
    assert rec.sites == ["given.late", "given.early"] and np.array_equal(rec.acts, ACTS)
    with pytest.raises(InputError, match="nothing is called 'middle'"): recording(tmp_path/f"train.{kind}", columns=["late", "middle"])
    (tmp_path/"study.toml").write_text(f'[activations]\ntrain = "train.{kind}"\ntest = "test.{kind}"\ncolumns = ["late", "early"]\n'
                                       '[method]\nranking = ["dprime"]\nfraction = [0.5]\n')
    study = nl.run_study(read_study(tmp_path/"study.toml"), tmp_path/"out", progress=False)
    assert study.probes.sites == ("given.late", "given.early") and study.train.site == "given.late"
    nl.run_study(read_study(tmp_path/"study.toml"), tmp_path/"out", progress=False) # The same study, into its folder


def test_a_column_of_class_labels_brings_their_names():
    "As a `Dataset` has it; a number without a name is refused, and so is what is no data set of its own."
    class Names: names = ["cat", "bee", "ant"]
    made = Dataset(pd.DataFrame(ACTS, columns=[f"unit {j}" for j in range(D)]).assign(label=LABELS))
    made.features = {"label": Names}
    rec = recording(made)
    assert rec.classes == ("cat", "bee", "ant") and np.array_equal(rec.labels, LABELS)
    made.df.loc[3, "label"] = -1
    with pytest.raises(InputError, match="the label in row 3 is nan, no name"): recording(made)
    class Many(dict): column_names = {}
    with pytest.raises(InputError, match="acts are several data sets: give one of train, test"): recording(Many(train=made, test=made))
    class Once: column_names = ["label"]
    with pytest.raises(InputError, match=r"acts are read once, from their beginning \(Once\)"): recording(Once())


def test_layers_of_cells():
    class File:
        def to_memory(self): return pytest.importorskip("scipy.sparse").csr_matrix(ACTS*2)
    cells = Cells(None, pd.DataFrame(dict(kind=np.array(NAMES)[LABELS])), range(D))
    cells.layers = dict(twice=File())
    assert np.array_equal(recording(cells, "kind", columns="twice").acts, ACTS*2)
    with pytest.raises(InputError, match="the AnnData has no X"): recording(cells, "kind")
    with pytest.raises(InputError, match="columns='pca' is no layer of the AnnData; it has 'twice'"):
        recording(cells, "kind", columns="pca")


def test_a_real_dataset(tmp_path):
    "Where it is installed: columns, lists, class labels, formats, chosen rows, and what is no table."
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    df = pd.DataFrame(ACTS).rename(columns=str).assign(label=np.array(NAMES)[LABELS])
    made = datasets.Dataset.from_pandas(df)
    turned = made.select(range(N-1, -1, -1))
    kinds = datasets.Features(dict(acts=datasets.List(datasets.Value("float32"), length=D), label=datasets.ClassLabel(names=list(NAMES))))
    lists = datasets.Dataset.from_dict(dict(acts=ACTS.tolist(), label=LABELS.tolist()), features=kinds)
    for held in (made, turned.select(range(N-1, -1, -1)), lists, lists.with_format("torch"), lists.with_format("numpy")):
        rec = nl.recording(held)
        assert np.array_equal(rec.acts, ACTS) and np.array_equal(rec.labels, LABELS) and rec.classes == NAMES
    assert np.array_equal(nl.recording(turned).acts, ACTS[::-1])
    with pytest.raises(InputError, match="give one of train, test"): nl.recording(datasets.DatasetDict(train=made, test=made))
    with pytest.raises(InputError, match="IterableDataset"): nl.recording(made.to_iterable_dataset())


@pytest.mark.filterwarnings("ignore")
def test_a_real_anndata(tmp_path):
    "Where it is installed: dense and sparse, in memory and in a file, a view, a layer."
    anndata = pytest.importorskip("anndata", reason="anndata is not installed")
    sparse = pytest.importorskip("scipy.sparse")
    def names(own): return pd.Index(own, dtype=object) # A type of text that its files know
    kinds = pd.Categorical(np.array(NAMES)[LABELS], NAMES[::-1]).rename_categories(names(NAMES[::-1]))
    obs = pd.DataFrame(dict(kind=kinds), index=names([f"c{i}" for i in range(N)]))
    var = pd.DataFrame(index=names([f"g{j}" for j in range(D)]))
    for i, x in enumerate((ACTS, sparse.csr_matrix(ACTS), sparse.csc_matrix(ACTS))):
        made = anndata.AnnData(x, obs=obs, var=var, layers=dict(twice=2*x))
        made.write_h5ad(at := tmp_path/f"{i}.h5ad")
        for held in (made, made[:, ::-1][:, ::-1], anndata.read_h5ad(at), anndata.read_h5ad(at, backed="r")):
            rec = nl.recording(held, "kind")
            assert np.array_equal(rec.acts, ACTS) and rec.classes == NAMES[::-1] and np.array_equal(rec.labels, 2-LABELS)
            assert rec.names == tuple(var.index)
        assert np.array_equal(nl.recording(made, "kind", columns="twice").acts, 2*ACTS)


def test_a_mapped_file_is_never_copied(tmp_path):
    "Recording, ranking by statistics, summarising: less memory than a tenth of the file."
    n = 60_000
    at = np.lib.format.open_memmap(tmp_path/"big.npy", "w+", np.float32, (n, 256)) # 61 MB
    rng = np.random.default_rng(0)
    for i in range(0, n, 4000): at[i:i+4000] = rng.normal(size=(4000, 256))
    at.flush()
    labels = np.arange(n) % 4
    tracemalloc.start()
    rec = nl.recording(tmp_path/"big.npy", labels)
    peak = tracemalloc.get_traced_memory()[1]
    total = nl.summarise(rec, quantiles=False, progress=False)
    ranked = nl.rank(None, None, statistics=total.statistics[rec.site])
    later = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6 and later < 40e6 and isinstance(rec.acts, np.memmap)
    assert np.allclose(total.statistics[rec.site].mean[1], np.asarray(at[1::4], np.float64).mean(0), atol=1e-9)
    assert ranked.scores.shape == (4, 256) and np.isnan(total.to_frame().accuracy).all()


@pytest.mark.parametrize("says, call", [
    ("neuron 2 is nan in row 7", lambda a, y: recording(np.where(np.arange(N*D).reshape(N, D) == 7*D+2, np.nan, a), y)),
    ("neuron 0 is inf in row 0", lambda a, y: recording(np.full((N, D), 1e300), y)),
    ("240 rows of acts but labels of shape (239,)", lambda a, y: recording(a, y[1:])),
    ("an array of objects", lambda a, y: recording(a.astype(object), y)),
    ("acts must be numbers, got text", lambda a, y: recording(a.astype(str), y)),
    ("acts must be [examples, neurons], got shape (240,)", lambda a, y: recording(a[:, 0], y)),
    ("acts hold no example", lambda a, y: recording(a[:0], y[:0])),
    ("label 3 is outside the 3 classes", lambda a, y: recording(a, y+1, classes=NAMES)),
    ("label 'ant' is none of", lambda a, y: recording(a, np.array(NAMES)[y], classes=("a", "b"))),
    ("no example has the label 1", lambda a, y: recording(a, y*2)),
    ("labels must be whole numbers", lambda a, y: recording(a, y+.5)),
    ("labels are numbers, and so are the names", lambda a, y: recording(a, y, classes=("1", "2", "3"))),
    ("the label in row 0 is", lambda a, y: recording(a, [float("nan"), *map(str, y[1:])])),
    ("in which order the answers are", lambda a, y: recording(a, np.array(NAMES)[y], head=head)),
    ("240 rows of acts but answers of shape (2, 3)", lambda a, y: recording(a, y, answers=np.ones((2, 3)))),
    ("its rows are no shares of 1", lambda a, y: recording(a, y, answers=a[:, :3], scores="probabilities")),
    ("scores 'odds' is none of", lambda a, y: recording(a, y, head=head, scores="odds")),
    ("not one for each of the 4 classes", lambda a, y: recording(a, y, head=head, classes="abcd"[:4].replace("", " ").split())),
    ("the scores of head are of shape (7,)", lambda a, y: recording(a, y, head=lambda x: x[:, 0], classes=NAMES)),
    ("head is a function of activations, not ndarray", lambda a, y: recording(a, y, head=W, classes=NAMES)),
    ("head fails on activations", lambda a, y: recording(a, y, head=lambda x: x@W.T, classes=NAMES)),
    ("says two things of the same row", lambda a, y: recording(a, y, head=lambda x: torch.dropout(x, .5, True)[:, :3], classes=NAMES)),
    ("where others stand beside it", lambda a, y: recording(a, y, head=lambda x: x[:, :3]/np.abs(x).max(), classes=NAMES)),
    ("head and answers differ in row", lambda a, y: recording(a, y, head=head, answers=-head(a), classes=NAMES)),
    ("240 rows of acts but 3 texts", lambda a, y: recording(a, y, ["a", "b", "c"])),
    ("the text in row 1 is of type int", lambda a, y: recording(a, y, ["a", 1, *["b"]*238])),
    ("12 neurons but 2 names", lambda a, y: recording(a, y, names=["a", "b"])),
    ("240 rows of acts but rest of shape (3, 1)", lambda a, y: recording(a, y, head=head, rest=np.ones((3, 1)))),
    ("a name of letters, digits and dots", lambda a, y: recording(a, y, site="a b")),
    ("acts hold no site", lambda a, y: recording({}, y)),
    ("site 'b': neuron 0 is nan in row 0", lambda a, y: recording(dict(a=a, b=a*np.nan), y)),
    ("site 'given.b' has 239 examples, and 'given.a' has 240", lambda a, y: recording(dict(a=a, b=a[1:]), y)),
    ("site 'b': give the array of its activations, not DataFrame", lambda a, y: recording(dict(a=a, b=pd.DataFrame(a)), y)),
    ("two sites are called '1'", lambda a, y: recording({"1": a, 1: a}, y)),
    ("site 'x' is one name, but acts have sites of their own: 'a', 'b'", lambda a, y: recording(dict(a=a, b=a), y, site="x")),
    ("site 'b c': a name of letters", lambda a, y: recording({"a": a, "b c": a}, y)),
    ("acts: give labels=", lambda a, y: recording(dict(a=a))),
    ("acts: columns='x' names a part of a table", lambda a, y: recording(a, y, columns="x")),
    ("in which nothing is called 'kind'", lambda a, y: recording(a, "kind")),
    ("give labels=", lambda a, y: recording(a)),
    ("column 'said' holds no numbers", lambda a, y: recording(pd.DataFrame(a).assign(said="x"), y)),
    ("nothing is called 'kind'", lambda a, y: recording(pd.DataFrame(a).rename(columns=str), "kind")),
    ("has no head", lambda a, y: nl.ablate(recording(a, y), nl.grid(recording(a, y)))),
    ("a head answers to activations", lambda a, y: nl.ablate(pair()[0].head, None, nl.grid(pair()[0]))),
    ("stands for model and texts", lambda a, y: nl.ablate(pair()[0], ["a"], nl.grid(pair()[0]))),
    ("the head reads given.0", lambda a, y: nl.ablate(pair()[0], nl.grid(pair(site="x")[0]))),
])
def test_one_sentence_each(says, call):
    with pytest.raises(InputError) as e: call(ACTS, LABELS)
    assert says in str(e.value) and "\n" not in str(e.value), str(e.value)
    assert e.value.code, str(e.value)


def test_files_that_are_none(tmp_path):
    np.save(tmp_path/"objects.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    np.savez(tmp_path/"objects.npz", acts=np.array([{}, 1], dtype=object))
    (tmp_path/"broken.safetensors").write_bytes(b"abc")
    (tmp_path/"broken.npz").write_bytes(b"abc")
    (tmp_path/"a.txt").write_text("1 2")
    pd.DataFrame(dict(v=[[1, 2], [1]], label=["a", "b"])).to_parquet(tmp_path/"ragged.parquet")
    pd.DataFrame(dict(v=[1., None], label=["a", "b"])).to_parquet(tmp_path/"hole.parquet")
    np.savez(tmp_path/"two.npz", a=ACTS, b=ACTS)
    for name, says in {"objects.npy": "cannot be read", "objects.npz": "cannot be read", "broken.safetensors": "cannot be read",
                       "broken.npz": "cannot be read", "a.txt": "not from '.txt'", "ragged.parquet": "has not a list of one length",
                       "hole.parquet": "1 rows without a value", "two.npz": "Name them by columns=", "none.npy": "no such file"}.items():
        with pytest.raises(InputError) as e: nl.recording(tmp_path/name, ["a", "b"] if "npz" in name or "npy" in name else None)
        assert says in str(e.value) and name in str(e.value) and e.value.code, str(e.value)


def by_hand(iv, acts, head, rest=None):
    "Probabilities and firing after an intervention, in numpy."
    s, own = iv.setting, iv.neurons.numpy()
    lo, hi = iv.lo.numpy()[own], iv.hi.numpy()[own]
    inside = ((acts[:, own, None] >= lo) & (acts[:, own, None] <= hi)).any(-1)
    gate = inside & (inside.sum(1, keepdims=True) >= np.ceil(s.vote*len(own)-1e-9)) if s.vote else inside
    new = dict(zero=0*acts[:, own], mean=np.broadcast_to(iv.state.rest_mean.numpy()[own], gate.shape), scale=.5*acts[:, own])
    out = acts.astype(np.float64)
    out[:, own] = np.where(gate, new[s.edit.partition("(")[0]], acts[:, own])
    return softmax(head(out) if rest is None else head(out, rest)), gate.mean(1)


@pytest.mark.parametrize("kind", ["numpy", "torch", "module", "probabilities"])
def test_effects_are_those_of_numpy(kind):
    linear = torch.nn.Linear(D, C, bias=False)
    with torch.no_grad(): linear.weight.copy_(torch.tensor(W.T))
    heads = dict(numpy=head, torch=lambda x: torch.matmul(x, torch.tensor(W, dtype=torch.float32)), module=linear.train(),
                 probabilities=lambda x: softmax(x@W))
    train, test = pair(head=heads[kind])
    assert linear.training and test.head.logits == (kind != "probabilities")
    assert np.allclose(test.probabilities, softmax(head(test.acts)), atol=1e-6)
    ivs = nl.grid(train, fraction=[.25, .6], edit=["zero", "mean", "scale(0.5)"], vote=[0., .5])
    out = nl.ablate(test, ivs, progress=False)
    for iv, after, fires in zip(ivs, out.after, out.fires, strict=True):
        p, share = by_hand(iv, test.acts, head)
        assert np.allclose(after, p, atol=2e-6) and np.allclose(fires, share, atol=1e-6), iv
    e, y, c = nl.measure_effects(out).frame, test.labels, NAMES.index(ivs[1].concept)
    row = e[(e.condition == ivs[1].condition) & (e.concept == ivs[1].concept)].iloc[0]
    kept = (y != c) & (out.before.argmax(1) == y)
    assert row.target_accuracy == (out.after[1].argmax(1) == y)[y == c].mean()
    assert np.isclose(row.disturbance, (abs(out.after[1]-out.before).sum(1)/2)[kept].mean())
    told = nl.sweep(train, test, fraction=[.25, .6], edit=["zero", "mean", "scale(0.5)"], vote=[0., .5], progress=False).frame
    pd.testing.assert_frame_equal(told, e, rtol=1e-6)


def test_what_the_head_wants_beside_is_never_edited():
    "Latents with an error that belongs to each row: no edit, no change; in any block and order the same."
    rest = np.random.default_rng(3).normal(size=(N, C))
    def both(x, error): return x@W+error
    train, test = (recording(ACTS, LABELS, head=both, rest=rest, classes=NAMES) for _ in range(2))
    ivs = nl.grid(train, fraction=.5)
    out = nl.ablate(test, ivs, progress=False)
    for iv, after in zip(ivs, out.after, strict=True): assert np.allclose(after, by_hand(iv, ACTS, both, rest)[0], atol=2e-6)
    rows = np.random.default_rng(4).permutation(N)
    mixed = nl.ablate(part_of(test, rows), ivs[::-1], progress=False)
    assert np.allclose(mixed.after[::-1], out.after[:, rows], atol=1e-6)
    alone = nl.ablate(part_of(test, np.array([17])), ivs, progress=False)
    assert np.allclose(alone.after[:, 0], out.after[:, 17], atol=1e-6)


def test_the_classes_of_scikit_learn_are_known():
    from sklearn.linear_model import LogisticRegression
    words = np.array(NAMES)[LABELS]
    model = LogisticRegression().fit(ACTS, words)
    rec = nl.recording(ACTS, words, head=model.predict_proba)
    assert rec.classes == NAMES and not rec.head.logits and (rec.predicted == rec.labels).mean() > .9
    left = nl.information_left(lambda x: x*0, rec.acts, rec.labels, rec.acts, rec.labels, "bee", classes=rec.classes, draws=20)
    assert left.auc == .5


@pytest.fixture(scope="module")
def studies():
    "With a head and texts, and with neither."
    spec = StudySpec(method=MethodSpec(fraction=[.5, .25]))
    bare = recording(ACTS, LABELS, names=[f"unit {j}" for j in range(D)]), recording(*planted(5), names=[f"unit {j}" for j in range(D)])
    said = [f"insect {i}" for i in range(N)]
    return nl.run_study(spec, recordings=pair(texts=said), progress=False), nl.run_study(spec, recordings=bare, progress=False)


def test_views_say_what_they_cannot_show(studies):
    full, bare = map(nl.explore, studies)
    assert "insect " in full.neuron.html() and "Trade-off" in full.erase.html()
    assert "no text can be typed" in full.text.html()
    shown = bare.neuron.html()
    assert "rows of the recording" in shown and "example " in shown and "unit " in bare.neuron.controls["neuron"].options[0][0]
    assert "came without a head" in bare.erase.html() and "no text can be typed" in bare.text.html()
    for book in (full, bare):
        assert "Jaccard" in book.overlap.html() and "given.0" in book.layers.html()
        assert book.static().count("<h3>") >= 5
        book.overlap.set(a=book.study.classes[1])
        book.neuron.set(concept=book.study.classes[2], range="gaussian(1)")
    full.erase.set(concept="bee", edit="zero")
    assert "edit zero" in full.erase.html()


@pytest.mark.parametrize("which", [0, 1])
def test_report_and_folder(studies, which, tmp_path, monkeypatch):
    from neuronlens.studies import report
    from neuronlens.studies.saved import save_study
    study = studies[which]
    monkeypatch.setattr(report, "write_figures", lambda *a, **kw: [])
    page = nl.write_report(study, tmp_path, progress=False).read_text()
    assert ("Concept by concept" in page) == (which == 0) and "test examples" in page
    assert ("came without a head" in page) == (which == 1) and "in memory" in page
    save_study(study, tmp_path/"kept")
    back = load_study(tmp_path/"kept")
    assert np.array_equal(back.test.acts, study.test.acts) and back.test.names == study.test.names and back.test.texts == study.test.texts
    assert (back.effects is None) == (which == 1) and back.open() is back
    if which == 0: pd.testing.assert_frame_equal(back.effects.frame, study.effects.frame)
    assert "came without a head" in nl.explore(back).erase.html()
    nl.write_report(back, tmp_path, progress=False)
    with pytest.raises(InputError, match="were in memory"): nl.run_study(read_study(tmp_path/"kept/study.toml"))
    assert next_steps(study) and repr(study) and study._repr_html_()


def test_figures_of_a_study_are_drawn(studies, tmp_path):
    from neuronlens.studies.report import write_figures
    names = [n for n, _, _ in write_figures(studies[1], tmp_path, progress=False)]
    assert "overlap" in names and "effects" not in names


def write_files(folder):
    "Activations of both halves and a head, as files."
    for name, seed in (("train", 0), ("test", 5)):
        acts, labels = planted(seed)
        np.savez(folder/f"{name}.npz", acts=acts, kind=np.array(NAMES)[labels])
    np.save(folder/"w.npy", W)
    (folder/"heads.py").write_text("import numpy as np\nfrom pathlib import Path\n"
                                   "Path(__file__).with_name('ran').write_text('yes')\n"
                                   "W = np.load(Path(__file__).with_name('w.npy'))\ndef last(acts): return acts@W\n")


def test_a_study_file_of_activations(tmp_path, monkeypatch):
    from neuronlens.studies import report
    write_files(tmp_path)
    (tmp_path/"study.toml").write_text("[activations]\ntrain='train.npz'\ntest='test.npz'\nlabels='kind'\nhead='heads.py:last'\n"
                                       "classes=['ant', 'bee', 'cat']\n[method]\nfraction=[0.5]\n")
    spec = read_study(tmp_path/"study.toml")
    with pytest.raises(InputError, match="names code as its head"): nl.run_study(spec, tmp_path/"out", progress=False)
    assert not (tmp_path/"ran").exists()
    study = nl.run_study(spec, tmp_path/"out", progress=False, trust_remote_code=True)
    assert {"study.toml", "effects.csv", "intervals.csv", "layers.csv", "provenance.json"} <= {p.name for p in (tmp_path/"out").iterdir()}
    same = nl.run_study(StudySpec(method=MethodSpec(fraction=[.5])), recordings=pair(), progress=False)
    pd.testing.assert_frame_equal(study.effects.frame, same.effects.frame)
    (tmp_path/"ran").unlink()
    back = load_study(tmp_path/"out")
    monkeypatch.setattr(report, "write_figures", lambda *a, **kw: [])
    nl.write_report(back, tmp_path/"out", progress=False)
    with pytest.raises(InputError, match="names code as its head"): back.open()
    assert not (tmp_path/"ran").exists()
    opened = back.open(trust_remote_code=True)
    assert (tmp_path/"ran").exists() and isinstance(opened.clf, Head)
    assert "Trade-off" in nl.explore(opened).erase.html()
    (tmp_path/"ran").unlink()
    (tmp_path/"heads.py").write_text((tmp_path/"heads.py").read_text()+"# changed\n")
    with pytest.raises(InputError, match="no longer the head"): load_study(tmp_path/"out").open(trust_remote_code=True)
    assert not (tmp_path/"ran").exists()


def test_a_study_file_without_a_head(tmp_path):
    write_files(tmp_path)
    acts, labels = planted()
    np.save(tmp_path/"acts.npy", acts)
    np.save(tmp_path/"labels.npy", np.array(NAMES)[labels])
    (tmp_path/"study.toml").write_text("[activations]\ntrain='acts.npy'\ntrain_labels='labels.npy'\n[method]\nfraction=[0.5]\n")
    study = nl.run_study(read_study(tmp_path/"study.toml"), tmp_path/"out", progress=False)
    assert (len(study.train), len(study.test), study.effects) == (144, 96, None)
    assert load_study(tmp_path/"out").effects is None and not (tmp_path/"out/effects.csv").exists()
    moved = acts.copy()
    moved[0, 0] += 1
    np.save(tmp_path/"acts.npy", moved)
    with pytest.raises(InputError, match="holds results of other training texts"):
        nl.run_study(read_study(tmp_path/"study.toml"), tmp_path/"out", progress=False)


@pytest.mark.parametrize("given, says", [
    (dict(model=dict(encoder="minilm")), "is for a model that reads texts"), (dict(method=dict(site="mlp.2")), "site is that of a model"),
    (dict(method=dict(ranking=["integrated_gradients"])), "runs the model"), (dict(method=dict(fitted_at="tokens")), "needs tokens"),
    (dict(activations=dict(head="os")), "is not written as"), (dict(activations=dict(test_share=2.)), "test_share"),
    (dict(activations=dict(scores="odds")), "scores"), (dict(activations=dict(train="")), "names no train file")])
def test_study_files_that_mean_nothing(given, says):
    own = {"activations": dict(train="a.npy", labels="y")} | given
    own["activations"] = dict(train="a.npy", labels="y") | own["activations"]
    with pytest.raises(InputError) as e: parse_study(own)
    assert says in str(e.value) and e.value.code, str(e.value)


def test_recordings_that_do_not_belong_together():
    train, test = pair()
    for wrong, says in ((recording(ACTS, LABELS), "are of classes"), (recording(ACTS, LABELS, classes=NAMES, site="x"), "neurons at"),
                        (part_of(test, LABELS != 1), "no example of class"), (ACTS, "are two that")):
        with pytest.raises(InputError, match=says): nl.run_study(recordings=(train, wrong), progress=False)


def test_the_name_and_the_room():
    "`nl.recording` is the function, whatever was imported before; the room is on its floor."
    code = ("import warnings\nwarnings.simplefilter('ignore')\nimport neuronlens as nl\nfrom neuronlens.recording import record\n"
            "import neuronlens.records.recording as room\nassert callable(nl.recording) and nl.records.recording is room\n"
            "assert room.Recording is nl.given.Recording and room.record is record and nl.Recording is room.Recording\n"
            "from neuronlens.records.recording import correct_only, part_of, load_recording")
    subprocess.run([sys.executable, "-c", code], check=True)


ALONE = ("import sys\nimport numpy as np\nimport neuronlens as nl\nrng = np.random.default_rng(0)\ny = np.arange(90) % 3\n"
         "x = rng.normal(size=(90, 8)).astype(np.float32)+y[:, None]\nfit = nl.recording(x, y)\n"
         "st = nl.class_statistics(fit.acts, fit.labels)\nr = nl.rank(fit.acts, fit.labels)\nd = nl.fit_ranges(fit.acts, fit.labels)\n"
         "nl.fit_distributions(fit.acts, fit.labels)\nnl.firing_matrix(fit.acts, fit.labels, d, r.salient(.5))\n"
         "nl.set_overlap(r.salient(.5), 8)\nnl.probe_layers({'a': x}, y, {'a': x}, y, progress=False)\n"
         "assert 'torch' not in sys.modules\n"
         "W = rng.normal(size=(8, 3))\nboth = [nl.recording(x, y, head=lambda x: x@W) for _ in range(2)]\n"
         "out = nl.ablate(both[1], nl.grid(both[0], fraction=.5), progress=False)\nnl.measure_effects(out)\n")
SHOWN = ("nl.intervals(out, draws=20)\n"
         "study = nl.run_study(nl.spec.StudySpec(method=nl.spec.MethodSpec(fraction=[.5])), recordings=both, progress=False)\n"
         "nl.explore(study).static()\nnl.write_report(study, sys.argv[1], progress=False)\n")


@pytest.mark.parametrize("code", [ALONE, pytest.param(ALONE+SHOWN, marks=pytest.mark.slow)], ids=["measured", "shown"])
def test_arrays_alone_import_no_model_library(code, tmp_path):
    "Not for rankings, ranges, edits, a study, its views or its report; what edits nothing needs no torch either."
    code += "print([m for m in ('transformers', 'tokenizers', 'accelerate') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip() == "[]"


def test_saved_alone(tmp_path):
    from neuronlens.records.recording import load_recording, save_recording
    rec = pair(texts=[str(i) for i in range(N)])[0]
    rec = replace(rec, rest=np.ones((N, 2), np.float32), names=tuple(map(str, range(D))))
    back = nl.load(save_recording(rec, tmp_path/"r.safetensors"))
    assert (back.texts, back.names, back.head, back.readout) == (rec.texts, rec.names, None, "given")
    assert np.array_equal(back.rest, rec.rest) and load_recording(tmp_path/"r.safetensors").site == "given.0"
    assert json.loads(Path(tmp_path/"r.json").read_text())["model"] == "given"
