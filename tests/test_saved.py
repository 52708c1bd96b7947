"""Results as files: what comes back is what was saved, and nothing that was damaged or is something else is accepted in silence."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import neuronlens as nl
from neuronlens.arrays.ranges import Ranges, fit_ranges
from neuronlens.arrays.saliency import Ranking, rank
from neuronlens.arrays.statistics import class_statistics
from neuronlens.edits.edit import Intervention, linear_edit
from neuronlens.edits.effects import Changes, Effects, measure_effects
from neuronlens.edits.evidence import Evidence, intervals
from neuronlens.edits.planning import plan
from neuronlens.ground.core import InputError
from neuronlens.ground.files import read_sealed, sealed
from neuronlens.ground.setting import Setting

CLASSES = ("=tea", "milk, <b>", "räuber\n\"x\"")


@pytest.fixture(scope="module")
def results():
    "One of everything, of random numbers and odd names."
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 8)).astype(np.float32), np.arange(90) % 3
    st = class_statistics(x, y, CLASSES)
    r, k = fit_ranges(x, y, "density(0.8)", classes=CLASSES), rank(x, y, classes=CLASSES, statistics=st)
    ivs = plan(st, [k], r, "residual.2", edit=["mean", "resample", "scale(0.5)"], vote=.4, acts=x, labels=y, covers="salient")
    p = rng.dirichlet(np.ones(3), (len(ivs)+1, 90)).astype(np.float32)
    moved = abs(p[1:]-p[0]).sum(-1)/2
    right, gold = p[1:].argmax(-1) == y, p[1:][:, np.arange(90), y]
    done = Changes(ivs, y, CLASSES, p[0], right, gold, moved.astype(float), rng.random((len(ivs), 90), np.float32))
    line = linear_edit(CLASSES[1], "leace", "mlp.1", torch.eye(8)*.5, torch.ones(8), positions="readout")
    return dict(ranking=k, ranges=r, mean=ivs[1], drawn=ivs[4], line=line, effects=measure_effects(done),
                intervals=intervals(done, draws=20, progress=False))


def saved(x, folder, name, provenance=None):
    return x.save(folder/f"{name}{'.csv' if hasattr(x, 'frame') else '.safetensors'}", provenance)


def parts(x):
    "What a result is made of, comparable."
    if isinstance(x, Intervention): return [x.setting, x.neurons, x.lo, x.hi, *(t for t in x.state if t is not None)]
    if hasattr(x, "frame"): return [x.frame.to_csv(), *(getattr(x, k, None) for k in ("draws", "seed", "level"))]
    return [x.name, x.classes, *(getattr(x, k) for k in ("scores", "seed", "lo", "hi") if hasattr(x, k))]


def same(a, b):
    return type(a) is type(b) and all(np.array_equal(p, q) if isinstance(p, np.ndarray | torch.Tensor) else p == q
                                      for p, q in zip(parts(a), parts(b), strict=True))


def test_what_comes_back_is_what_was_saved(results, tmp_path):
    for name, x in results.items():
        path = saved(x, tmp_path, name, dict(model="a model", n_texts=90))
        assert same(nl.load(path), x) and same(type(x).load(str(path)), x), name
        at = path.with_suffix(".json") if path.suffix == ".csv" else path
        assert b"a model" in at.read_bytes() and nl.__version__.encode() in at.read_bytes() # It says where it is from


@pytest.mark.parametrize("name", ["ranking", "ranges", "mean", "line", "effects", "intervals"])
def test_no_flipped_bit_is_accepted(results, tmp_path, name):
    "60 random flips of each: refused by a sentence, or it changes nothing (white space of the JSON)."
    path, rng = saved(results[name], tmp_path, name), np.random.default_rng(3)
    files = [p for p in tmp_path.iterdir()]
    for _ in range(60):
        file = files[rng.integers(len(files))]
        good = file.read_bytes()
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= 1 << int(rng.integers(8))
        file.write_bytes(bad)
        try:
            got = nl.load(path)
        except InputError as e: assert path.name in str(e) or path.stem in str(e)
        else: assert same(got, results[name]), bad
        file.write_bytes(good)


def test_what_is_something_else_is_refused(results, tmp_path):
    paths = {k: saved(x, tmp_path, k) for k, x in results.items()}
    for of, name, said in ((Ranges, "ranking", "holds no Ranges; it is of kind 'Ranking'"), (Ranking, "mean", "holds no Ranking"),
                           (Intervention, "ranges", "holds no Intervention"), (Effects, "intervals", "holds no Effects"),
                           (Evidence, "effects", "holds no Evidence")):
        with pytest.raises(InputError, match=said): of.load(paths[name])
    (tmp_path/"other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="no column 'concept'"): nl.load(tmp_path/"other.csv")
    (tmp_path/"x.pkl").write_bytes(b"x")
    for bad in ("x.pkl", "none.safetensors"):
        with pytest.raises(InputError): nl.load(tmp_path/bad)
    with pytest.raises(InputError, match="ends in .safetensors"): results["ranking"].save(tmp_path/"r.npz")
    with pytest.raises(InputError, match="no .json beside it"):
        paths["intervals"].with_suffix(".json").unlink()
        Evidence.load(paths["intervals"])


def test_a_later_format_is_refused(results, tmp_path, monkeypatch):
    from neuronlens.ground import files
    monkeypatch.setattr(files, "FORMAT", 2)
    paths = [saved(results[k], tmp_path, k) for k in ("ranking", "effects")]
    monkeypatch.undo()
    for p in paths:
        with pytest.raises(InputError, match="of format 2; this version reads format 1"): nl.load(p)


@pytest.mark.parametrize("change", [dict(seed=-1), dict(level="x"), dict(draws=1, more=2)])
def test_a_word_that_is_not_known_is_refused(results, tmp_path, change):
    path = saved(results["intervals"], tmp_path, "i")
    said = read_sealed(path.with_suffix(".json"))
    path.with_suffix(".json").write_text(sealed(said | dict(about=said["about"] | change)))
    with pytest.raises(InputError, match="is no Evidence"): nl.load(path)


def test_interventions_of_a_file_that_mean_nothing(results, tmp_path):
    "What a file says is checked as what a caller says."
    iv = results["mean"]
    for bad, said in ((replace(iv, neurons=torch.tensor([9])), "neuron 9 is none of 8"),
                      (replace(iv, lo=iv.lo*torch.nan), "an end of a range is no number")):
        path = bad.save(tmp_path/"iv.safetensors")
        with pytest.raises(InputError, match=said): nl.load(path)


def test_tables_of_an_older_version_open_by_the_same_call(results, tmp_path):
    old = results["effects"].frame.drop(columns=["vote", "scope", "covers", "fitted_at", "positions", "seed", "preset"])
    old.to_csv(tmp_path/"old.csv", index=False)
    got = nl.load(tmp_path/"old.csv")
    assert isinstance(got, Effects) and set(got.frame.vote) == {0.}
    pd.testing.assert_series_equal(got.frame.disturbance, results["effects"].frame.disturbance)
    assert Setting(**got.frame[list(Setting.__dataclass_fields__)].iloc[1].to_dict()).range == "full"
