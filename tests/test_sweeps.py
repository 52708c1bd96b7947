"""Sweeps: the same numbers as hook and rerun, everything planned once, and what is said before it starts."""
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from test_architectures import LABELLED, NAMES, SHARES, TEXTS, classifier
from tiny import clear, everywhere, same_answers

from neuronlens import ablation, machine, sweeps
from neuronlens.edits.ablation import ablate
from neuronlens.edits.edit import within
from neuronlens.edits.effects import COLUMNS, MEASURES, measure, measure_effects
from neuronlens.edits.sweeps import changes_on, effects_on, estimate, grid, sweep
from neuronlens.ground.core import InputError
from neuronlens.ground.data import Texts
from neuronlens.ground.rounding import agree, score_size
from neuronlens.ground.setting import Setting, class_number
from neuronlens.models.batches import batches, encode
from neuronlens.models.hooks import logits
from neuronlens.records.recording import record

pytestmark = pytest.mark.usefixtures("one_thread")
SITES = ["residual.2", "residual.0", "mlp.1", "attention.2"]
WIDE = dict(ranking=["dprime", "random"], fraction=[.25, .5, 1.], range=["gaussian(0.7)", "gaussian(1.3)"], edit=["zero", "mean"],
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
    ivs = grid(rec, site="residual.2", vote=.5, range="gaussian(1.3)")
    table = effects_on(clf, LABELLED, ivs, recording=rec, progress=False).only(condition=["full", "range", "random"]).frame
    base = record(clf, LABELLED, progress=False).probabilities
    for i, iv in enumerate(ivs):
        if rec.readout != "mean":
            x = torch.as_tensor(rec.at("residual.2"))
            inside = within(x, iv.lo, iv.hi)[:, iv.neurons].sum(1).numpy()
            fires = np.where(inside >= .5*len(iv.neurons), inside/len(iv.neurons), 0.) if iv.vote else inside/len(iv.neurons)
            want = measure(LABELLED.labels, class_number(iv.concept, LABELLED.classes), base, rerun(clf, iv), fires)
            agree(table.loc[i, list(MEASURES)], list(want.values()), clf, size=score_size(base))
        assert table.concept[i] == iv.concept


def test_gates_are_computed_once(case, monkeypatch):
    "One gate per concept and range for each batch, however many rankings, fractions, edits, votes and controls use it."
    clf, rec = case
    ivs, calls = grid(rec, site="residual.2", **WIDE), []
    monkeypatch.setattr(ablation, "within", lambda *a: calls.append(1) or within(*a))
    ablate(clf, LABELLED, ivs, recording=rec, progress=False)
    if rec.readout == "mean": return
    assert len(calls) <= 3*(1+2)*2 # Once more where a stack ends


def test_what_does_the_same_runs_once(case, monkeypatch):
    "Rankings share their control, and at all neurons every set is the same; each still has the answers that it has alone."
    clf, rec = case
    ivs, run, above = grid(rec, site="residual.2", ranking=["dprime", "probeless"], fraction=[.5, 1.]), [], ablation._above
    monkeypatch.setattr(ablation, "_above", lambda clf, b, site, stack, below: run.append(len(stack)) or above(clf, b, site, stack, below))
    together = ablate(clf, LABELLED, ivs, recording=rec, tokens=4096, progress=False)
    assert len(ivs) == 3*2*2*3 and sum(run) == len({(iv.concept, iv.lo.data_ptr(), *sorted(iv.neurons.tolist())) for iv in ivs})
    assert sum(run) <= 3*((2+2+1)+(1+1)) # Half: full and range of both, one control; all: full, any range
    apart = [ablate(clf, LABELLED, [iv], recording=rec, progress=False) for iv in ivs]
    same_answers(together.after, np.concatenate([o.after for o in apart]), clf)
    agree(together.fires, np.concatenate([o.fires for o in apart]), SHARES)
    for other in (dict(seed=1), dict(vote=.5), dict(edit="zero"), dict(positions="readout")):
        run.clear()
        ablate(clf, LABELLED, [ivs[1], replace(ivs[1], **other)], recording=rec, tokens=4096, progress=False)
        assert sum(run) == 2


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
    ablate(clf, LABELLED, grid(rec, site="residual.0", **WIDE), tokens=200, progress=False)
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
    ivs = [clear(iv, at[iv.site]) for iv in grid(rec, site="residual.0", fraction=[.5])]
    want = ablate(clf, LABELLED, ivs, progress=False)
    monkeypatch.setattr(ablation, "_above", tight)
    got = ablate(clf, LABELLED, ivs, progress=False)
    assert refused
    same_answers(got.after, want.after, clf)
    agree(got.fires, want.fires, SHARES)


def test_estimate_is_said_before(case, caplog, monkeypatch):
    "Number, time and memory are logged before anything runs; nothing is tried for it without progress, or where nobody listens."
    clf, rec = case
    monkeypatch.setenv("TQDM_DISABLE", "0")
    monkeypatch.setattr(sweeps, "interventions_on", lambda *a, **kw: pytest.fail("started") if not caplog.messages or not
        caplog.messages[-1].startswith(f"{3*3:,} interventions at 1 site on 6 texts: about ") else iter(()))
    with caplog.at_level("INFO", "neuronlens"): sweep(clf, rec, LABELLED, site="residual.0")
    monkeypatch.setattr(sweeps, "interventions_on", lambda *a, **kw: iter(()))
    monkeypatch.setattr(sweeps, "estimate", lambda *a, **kw: pytest.fail("tried"))
    sweep(clf, rec, LABELLED, site="residual.0")
    with caplog.at_level("INFO", "neuronlens"): sweep(clf, rec, LABELLED, site="residual.0", progress=False)
    assert len(caplog.messages) == 1


def test_estimate_counts_sites_and_texts(case):
    clf, rec = case
    said = estimate(clf, LABELLED, ivs := grid(rec, **WIDE), recording=rec)
    assert (said.interventions, said.sites, said.texts) == (len(ivs), 4, 6) and said.seconds > 0
    more = estimate(clf, LABELLED, [replace(iv, seed=i) for i in range(20) for iv in ivs], recording=rec)
    assert more.seconds > 3*said.seconds and more.memory > said.memory


def test_strange_grids_are_refused(case):
    "Each by name, before anything runs."
    clf, rec = case
    for kw, why in ((dict(ranking="best"), "no ranking is called 'best'"), (dict(range="wide"), "no range is called 'wide'"),
                    (dict(edit="erase"), "edit 'erase'"), (dict(vote=1.5), "vote 1.5"), (dict(fraction=0.), "fraction 0.0"),
                    (dict(fraction=[.5, 1.2]), "fraction 1.2"), (dict(site="residual.1"), "site 'residual.1' was not recorded"),
                    (dict(concept=["d"]), "concept 'd'"), (dict(positions="some"), "positions 'some'")):
        with pytest.raises(InputError, match=why): sweep(clf, rec, LABELLED, progress=False, **kw)
    other = replace(rec, provenance=rec.provenance | {"model_sha256": "another"})
    with pytest.raises(InputError, match="recording is of another model"):
        sweep(clf, rec, LABELLED, recording=other, progress=False)


def test_nothing_to_do():
    "An empty list of interventions gives an empty table."
    clf = classifier("bert")
    assert len(effects_on(clf, LABELLED, [], progress=False).frame) == 0
    assert len(measure_effects(ablate(clf, LABELLED, [], progress=False)).frame) == 0


def test_changes_are_those_of_all_answers(case):
    "Whether pieces come from texts or from a recording, what is kept of the answers is what the answers say."
    clf, rec = case
    ivs = grid(rec, ranking="dprime", fraction=[.5], site=SITES[:2])
    for r in (rec, None):
        whole, kept = (f(clf, LABELLED, ivs, recording=r, progress=False) for f in (ablate, changes_on))
        for a, b in ((kept.right, whole.after.argmax(-1) == whole.labels), (kept.fires, whole.fires), (kept.before, whole.before),
                     (kept.gold, whole.after[:, np.arange(len(LABELLED)), whole.labels])): np.testing.assert_array_equal(a, b)
        pd.testing.assert_frame_equal(measure_effects(kept).frame, measure_effects(whole).frame)


def pieces(C, N, I, rng):
    "What `interventions_on` gives, a few interventions at a time."
    yield None, np.arange(N), rng.random((N, C), np.float32), None
    for i in range(0, I, 5): yield np.arange(i, i+5), np.arange(N), rng.random((5, N, C), np.float32), rng.random((5, N), np.float32)


def test_memory_does_not_grow_with_the_classes(monkeypatch):
    "Of 200 interventions, texts and classes: answers in one array are 32 MB, what is kept of them 0.7."
    texts = Texts(["a"]*200, np.arange(200), tuple(map(str, range(200))))
    ivs = [Setting(str(i), "range", "residual.0", "r", .5, "full") for i in range(200)]
    monkeypatch.setattr(sweeps, "stood_for", lambda *given: given)
    monkeypatch.setattr(sweeps, "interventions_on", lambda *_, **__: pieces(200, 200, 200, np.random.default_rng(0)))
    for run in (changes_on, effects_on):
        tracemalloc.start()
        run(SimpleNamespace(classes=texts.classes), texts, ivs, progress=False)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 25e6


def test_what_does_not_fit_is_refused_before(case, monkeypatch):
    clf, rec = case
    ivs = grid(rec, ranking="dprime", fraction=[.5], site=SITES[0])
    monkeypatch.setattr(machine, "free_memory", lambda: 100)
    monkeypatch.setattr(ablation, "_placed", None)
    for run, said in ((ablate, "the answers of"), (changes_on, "what is kept of")):
        with pytest.raises(InputError, match=f"^{said}.*would take .*100 bytes is free; `"): run(clf, LABELLED, ivs, progress=False)
