"""Controls of edits: planted effects that a control must show, nulls that it must not, and the same for the same text."""
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from neuronlens.edits import partners
from neuronlens.edits.ablation import edited_acts
from neuronlens.edits.controls import _basis, placebo, rotated, unrelated
from neuronlens.edits.edit import linear_edit
from neuronlens.edits.erasure import remains
from neuronlens.edits.sweeps import grid
from neuronlens.ground.core import InputError
from neuronlens.records.given import recording

pytestmark = pytest.mark.usefixtures("one_thread")
HOW = dict(range="posterior", vote=.5, covers="salient", fraction=1., concept=["1"])


def planted(loud=1., step=1., told=32, seed=0, N=800, D=32):
    "The concept moves the first neurons in a direction drawn at random; the others are loud and know nothing of it."
    rng, y = np.random.default_rng(seed), np.arange(N) % 2
    x = rng.normal(size=(N, D))*np.where(np.arange(D) < told, 1, loud)
    x[y == 1, :told] += step*np.random.default_rng(told).normal(size=told)
    return recording(x.astype(np.float32), y, classes=["0", "1"])


def ranges_of(rec, **how): return [iv for iv in grid(rec, **(HOW | how)) if iv.condition == "range"]


def gap(f, rec):
    "How much more often rows of the concept are edited than others."
    hit = (f(rec.acts) != rec.acts).any(1)
    return hit[rec.labels == 1].mean()-hit[rec.labels == 0].mean()


def test_a_basis_is_orthogonal_and_like_any_other():
    a, b = _basis(20, 0), _basis(20, 1)
    np.testing.assert_allclose(a@a.T, np.eye(20), atol=1e-12)
    assert (a == _basis(20, 0)).all() and abs(a-b).max() > .1
    first = np.stack([_basis(6, s)[0] for s in range(400)]) # Every direction is as likely: mean 0, the same spread everywhere
    assert abs(first.mean(0)).max() < .1 and abs((first**2).mean(0)-1/6).max() < .04


@pytest.mark.parametrize("edit", ["mean", "exchange", "partner"])
def test_rotation_hurts_what_lies_along_neurons_and_nothing_else(edit):
    "Quiet neurons tell the concept among loud ones: in any other basis all are loud. Where all are alike, no basis is better."
    rec, new = planted(8, 3, 8), planted(8, 3, 8, seed=1)
    ivs = ranges_of(rec, edit=edit)
    there = gap(partial(edited_acts, ivs[0]), new)
    assert there > .6 and max(gap(rotated(ivs, rec, s)[0], new) for s in range(5)) < there-.2
    rec, new = planted(), planted(seed=1)
    ivs = ranges_of(rec, edit=edit)
    turned = [gap(rotated(ivs, rec, s)[0], new) for s in range(5)]
    assert min(turned)-.05 < gap(partial(edited_acts, ivs[0]), new) < max(turned)+.05


def test_the_basis_of_the_neurons_changes_nothing(monkeypatch):
    "Turned by the identity the control is the edit, to the last digit; what no gate edits comes back as it was under any basis."
    from neuronlens.edits import controls
    rec, new = planted(), planted(seed=1).acts
    ivs = ranges_of(rec, edit="mean", concept=["0", "1"])
    for iv, f in zip(ivs, rotated(ivs, rec, 3), strict=True):
        still = (f(new) == new).all(1)
        assert .3 < still.mean() < .7 and np.isfinite(f(new)).all() and f(new).dtype == np.float32
        np.testing.assert_allclose(f(new)[~still].mean(0), iv.state.rest_mean, atol=1e-4) # The mean is the same in every basis
    monkeypatch.setattr(controls, "_basis", lambda D, seed: np.eye(D))
    for iv, f in zip(ivs, rotated(ivs, rec), strict=True): np.testing.assert_array_equal(f(new), edited_acts(iv, new))


@pytest.mark.parametrize("how", [{}, dict(covers="range", fraction=.5)])
def test_a_placebo_moves_as_far_and_nowhere(how):
    "The same length at the same neurons, another direction for every text; the same for the same text in any order and batch."
    rec, new = planted(), planted(seed=1).acts
    ivs = ranges_of(rec, edit="exchange", **how)
    f, was = placebo(ivs)[0], edited_acts(ivs[0], new)
    out = f(new)
    np.testing.assert_allclose(np.linalg.norm(out-new, axis=1), np.linalg.norm(was-new, axis=1), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal((out != new).any(0) | (was == new).all(0), True)
    np.testing.assert_array_equal(f(new[::-1].copy())[::-1], out)
    np.testing.assert_array_equal(f(new[5:9]), out[5:9])
    moved = (was != new).any(1)
    steps = ((out-new)/np.linalg.norm(out-new, axis=1, keepdims=True).clip(1e-9))[moved]
    assert abs(steps.mean(0)).max() < .06 # Of 400 directions
    assert (placebo(ivs, 1)[0](new) != out)[moved].any(1).all()


def test_an_unrelated_gate_opens_as_often_for_anyone():
    rec, new = planted(), planted(seed=1)
    ivs = ranges_of(rec, edit="mean")
    f, was = unrelated(ivs)[0], edited_acts(ivs[0], new.acts)
    hit, open_ = (f(new.acts) != new.acts).any(1), (was != new.acts).any(1)
    assert hit.sum() == open_.sum() and gap(partial(edited_acts, ivs[0]), new) > .7
    assert np.mean([gap(unrelated(ivs, s)[0], new) for s in range(10)]) == pytest.approx(0, abs=.04)
    np.testing.assert_allclose(f(new.acts)[hit], np.tile(ivs[0].state.rest_mean, (hit.sum(), 1)), atol=1e-6)
    np.testing.assert_array_equal(f(new.acts[::-1].copy())[::-1], f(new.acts))
    never = replace(ivs[0], lo=ivs[0].lo+1e6, hi=ivs[0].hi+1e6)
    for control in (unrelated, placebo): np.testing.assert_array_equal(control([never])[0](new.acts), new.acts)


def test_only_the_edit_erases():
    "Planted: exchanged rows are read by no one, placebos, other texts and half of the neurons leave the concept where it was."
    rec, new = planted(step=.8), planted(step=.8, seed=1)
    ivs = ranges_of(rec, edit="exchange")
    half = ranges_of(rec, edit="exchange", fraction=.5)
    ways = dict(exchange=partial(edited_acts, ivs[0]), placebo=placebo(ivs), unrelated=unrelated(ivs), rotated=rotated(ivs, rec),
                half=partial(edited_acts, half[0]))
    left = remains(ways, new.acts, new.labels, concept=[1], readers=("linear", "svm"), draws=20, floors=False)
    best = left.macro().set_index("edit")[["auc_linear", "auc_svm"]].max(axis=1)
    assert best["exchange"] < .66 and best["rotated"] < .66 and best["unrelated"] > best["exchange"]+.05 # Half of the texts are other ones
    assert min(best[["placebo", "half"]]) > .75
    readers = left.frame.measure.str.startswith(("auc", "balanced"))
    assert left.frame.floor[readers].isna().all() and left.frame.floor[~readers].notna().all()


def test_repeated_rows_are_looked_up_once():
    "Partners found by the rows as they differ are those found by all of them; rows changed in place are looked at again."
    rec, new = planted(), torch.as_tensor(planted(seed=1).acts)
    (iv,) = ranges_of(rec[np.r_[0:800:2, 1:200:2]], edit="partner") # 400 of the others for 100 of the concept
    about = iv.state
    rows, at, size = partners._once(about.near, partners._apart)
    assert len(rows) == 100 and len(at) == 400
    np.testing.assert_array_equal(rows[at], about.near)
    whole = partners._drawn(new, about, 0, lambda away: 2*(away@about.along.T)@about.near.T-about.near.square().sum(-1))
    found = partners.partner(new, about)
    np.testing.assert_allclose(found, whole, atol=1e-2) # Where two rows are nearly as high as each other rounding shows
    assert (found == whole).all(1).float().mean() > .95
    about.near.add_(1)
    np.testing.assert_array_equal(partners._once(about.near, partners._apart)[0], rows+1)
    with torch.inference_mode():
        copy = about.near.clone()
        np.testing.assert_array_equal(partners._once(copy, partners._apart)[1], at)


def test_what_is_no_list_of_one_site_is_refused():
    rec = planted(N=60)
    (iv,) = ranges_of(rec)
    for control in (placebo, unrelated, lambda ivs: rotated(ivs, rec)):
        with pytest.raises(InputError, match="takes a list of interventions"): control(iv)
        with pytest.raises(InputError, match="an intervention is needed, got str"): control(["mean"])
    assert placebo([]) == unrelated([]) == []
    with pytest.raises(InputError, match="one basis is of one site, got none"): rotated([], rec)
    with pytest.raises(InputError, match="one basis is of one site, got given.0, residual.1"):
        rotated([iv, replace(iv, site="residual.1")], rec)
    with pytest.raises(InputError, match="for .examples, 32. activations, got"): placebo([iv])[0](rec.acts[:, :3])
    with pytest.raises(InputError, match="condition"): rotated([linear_edit("1", "map", iv.site, np.eye(32), np.zeros(32))], rec)
    with pytest.raises(InputError, match="seed -1 must be"): rotated([iv], rec, -1)
