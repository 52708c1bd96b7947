"""Sweeps: the same numbers as hook and rerun, everything planned once, and what is said before it starts."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_architectures import LABELLED, NAMES, SHARES, TEXTS, classifier
from tiny import clear, everywhere, same_answers

from neuronlens import ablation, sweeps
from neuronlens.ablation import ablate, within
from neuronlens.data import InputError
from neuronlens.effects import COLUMNS, MEASURES, measure, measure_effects
from neuronlens.hooks import logits
from neuronlens.model import batches, encode
from neuronlens.recording import record
from neuronlens.rounding import agree, score_size
from neuronlens.sweeps import effects_on, estimate, grid, sweep

pytestmark = pytest.mark.usefixtures("one_thread")
SITES = ["residual.2", "residual.0", "mlp.1", "attention.2"]
WIDE = dict(rankings=["dprime", "random"], fractions=[.25, .5, 1.], ranges=["gaussian(0.7)", "gaussian(1.3)"], edit=["zero", "mean"],
            vote=[0., .5])


@pytest.fixture(scope="module", params=[*NAMES, "modernbert mean"])
def case(request):
    clf = classifier(request.param)
    return clf, record(clf, LABELLED, SITES, progress=False)


def rerun(clf, iv):
    "Probabilities with a plain hook and the whole model, text by text."
    out = np.empty((len(TEXTS), 3), np.float32)
    with torch.inference_mode():
        for batch in batches(encode(clf, TEXTS), tokens=1, fill=clf.pad_id):
            out[batch.rows] = logits(clf, batch, edits={iv.site: lambda h: iv(h)[0]}).softmax(-1).numpy()
    return out


def test_sweep_is_hook_and_rerun(case):
    "Every row of a sweep over several sites, from texts or a recording, is what a hook on the whole model gives."
    clf, rec = case
    ivs = grid(rec, **WIDE)
    assert len(ivs) == 4*3*2*3*2*(1+2*2*2) and {str(iv.site) for iv in ivs} == set(SITES)
    at = everywhere(clf, TEXTS, SITES)
    chosen = [clear(iv, at[iv.site]) for iv in ivs[::59]]
    want = [rerun(clf, iv) for iv in chosen]
    for given, tokens in ((None, 1), (None, 40), (None, 4096), (rec, 40)):
        out = ablate(clf, LABELLED, chosen, recording=given, tokens=tokens, progress=False)
        for iv, after, hooked in zip(chosen, out.after, want, strict=True):
            same_answers(after, hooked, clf, (iv, given, tokens))
        streamed = effects_on(clf, LABELLED, chosen, recording=given, tokens=tokens, progress=False).frame
        kept = measure_effects(out).frame
        assert streamed[list(COLUMNS[:10])].equals(kept[list(COLUMNS[:10])])
        agree(streamed[list(MEASURES)], kept[list(MEASURES)], SHARES, size=1) # Of the same answers


def test_rows_by_hand(case):
    "A row's measures are those of its own answers: concept and firing included."
    clf, rec = case
    ivs = grid(rec, sites="residual.2", vote=.5, ranges="gaussian(1.3)")
    table = effects_on(clf, LABELLED, ivs, recording=rec, progress=False).only(condition=["full", "range", "random"]).frame
    base = record(clf, LABELLED, progress=False).probabilities
    for i, iv in enumerate(ivs):
        if rec.readout != "mean":
            x = torch.as_tensor(rec.at("residual.2"))
            inside = within(x, iv.lo, iv.hi)[:, iv.neurons].sum(1).numpy()
            fires = np.where(inside >= .5*len(iv.neurons), inside/len(iv.neurons), 0.) if iv.vote else inside/len(iv.neurons)
            want = measure(LABELLED.labels, iv.concept, base, rerun(clf, iv), fires)
            agree(table.loc[i, list(MEASURES)], list(want.values()), clf, size=score_size(base))
        assert table.concept[i] == LABELLED.classes[iv.concept]


def test_gates_are_computed_once(case, monkeypatch):
    "One gate per concept and range for each batch, however many rankings, fractions, edits, votes and controls use it."
    clf, rec = case
    ivs, calls = grid(rec, sites="residual.2", **WIDE), []
    monkeypatch.setattr(ablation, "within", lambda *a: calls.append(1) or within(*a))
    ablate(clf, LABELLED, ivs, recording=rec, progress=False)
    if rec.readout == "mean": return
    assert len(calls) <= 3*(1+2)*2 # Once more where a stack ends


def test_prefix_runs_once(monkeypatch):
    "Interventions at several sites share the pass below them: block 0 runs once per batch."
    clf = classifier("bert")
    rec, calls = record(clf, LABELLED, SITES, progress=False), []
    inside = clf.model.bert.encoder.layer[0].attention
    handle = inside.register_forward_hook(lambda *_: calls.append(1))
    ablate(clf, LABELLED, grid(rec, **WIDE), tokens=4096, progress=False)
    handle.remove()
    assert len(calls) == 1


def test_stacks_are_bounded(monkeypatch):
    "No stack holds more positions than a batch may."
    clf = classifier("llama")
    rec, sizes, above = record(clf, LABELLED, SITES, progress=False), [], ablation._above
    monkeypatch.setattr(ablation, "_above", lambda clf, b, site, stack, below: sizes.append(stack.shape[:3].numel())
                        or above(clf, b, site, stack, below))
    ablate(clf, LABELLED, grid(rec, sites="residual.0", **WIDE), tokens=200, progress=False)
    assert max(sizes) <= 200 and len([s for s in sizes if s > 100]) > len(sizes)/2


def test_memory_runs_out(monkeypatch):
    "Where a stack does not fit, the batch is halved and every text still gets its answer, once."
    clf = classifier("distilbert")
    rec, above, refused = record(clf, LABELLED, SITES, progress=False), ablation._above, []

    def tight(clf, batch, site, stack, below):
        if batch is not None and len(batch) > 2:
            refused.append(len(batch))
            raise torch.OutOfMemoryError("out of memory")
        return above(clf, batch, site, stack, below)
    at = everywhere(clf, TEXTS, ["residual.0"])
    ivs = [clear(iv, at[iv.site]) for iv in grid(rec, sites="residual.0", fractions=[.5])]
    want = ablate(clf, LABELLED, ivs, progress=False)
    monkeypatch.setattr(ablation, "_above", tight)
    got = ablate(clf, LABELLED, ivs, progress=False)
    assert refused
    same_answers(got.after, want.after, clf)
    agree(got.fires, want.fires, SHARES)


def test_estimate_is_said_before(case, capfd, monkeypatch):
    "Number, time and memory are said before anything runs; nothing is said when no progress is wanted."
    clf, rec = case
    monkeypatch.setenv("TQDM_DISABLE", "0")
    monkeypatch.setattr(sweeps, "interventions_on", lambda *a, **kw: pytest.fail("started") if not capfd.readouterr().err.startswith(
        f"{3*3:,} interventions at 1 site on 6 texts: about ") else iter(()))
    sweep(clf, rec, LABELLED, sites="residual.0")
    monkeypatch.undo()
    sweep(clf, rec, LABELLED, sites="residual.0", progress=False)
    assert capfd.readouterr().err == ""


def test_estimate_counts_sites_and_texts(case):
    clf, rec = case
    said = estimate(clf, LABELLED, grid(rec, **WIDE), recording=rec)
    assert (said.interventions, said.sites, said.texts) == (len(grid(rec, **WIDE)), 4, 6) and said.seconds > 0
    more = estimate(clf, LABELLED, grid(rec, **WIDE)*20, recording=rec)
    assert more.seconds > 3*said.seconds and more.memory > said.memory


def test_strange_grids_are_refused(case):
    "Each by name, before anything runs."
    clf, rec = case
    for kw, why in ((dict(rankings="best"), "no ranking is called 'best'"), (dict(ranges="wide"), "no range is called 'wide'"),
                    (dict(edit="erase"), "edit 'erase'"), (dict(vote=1.5), "vote 1.5"), (dict(fractions=0.), "fraction 0.0"),
                    (dict(fractions=[.5, 1.2]), "fraction 1.2"), (dict(sites="residual.1"), "site 'residual.1' was not recorded"),
                    (dict(concepts=["d"]), "concept 'd'"), (dict(positions="some"), "positions 'some'")):
        with pytest.raises(InputError, match=why): sweep(clf, rec, LABELLED, progress=False, **kw)
    other = replace(rec, provenance=rec.provenance | {"model_sha256": "another"})
    with pytest.raises(InputError, match="recording is of another model"):
        sweep(clf, rec, LABELLED, recording=other, progress=False)


def test_nothing_to_do():
    "An empty list of interventions gives an empty table."
    clf = classifier("bert")
    assert len(effects_on(clf, LABELLED, [], progress=False).frame) == 0
    assert len(measure_effects(ablate(clf, LABELLED, [], progress=False)).frame) == 0
