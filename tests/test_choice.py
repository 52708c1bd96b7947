"""The trade-off is what its definition says, and a setting chosen on some texts is reported on others."""
import numpy as np
import pandas as pd
import pytest
from test_evidence import effects, outcome

from neuronlens.edits.choice import MATCHED, apply, choose, matched, staircase, trade_off
from neuronlens.edits.effects import Effects, load_effects, measure_effects
from neuronlens.edits.evidence import intervals
from neuronlens.ground.core import InputError

ROWS = [("full", .1, .5, .1), ("full", .3, .04, .4), ("full", .5, .0, .6), ("full", .7, .2, .7), ("range", .1, .6, .05),
        ("range", .3, .1, .2)]


def test_trade_off():
    "The staircase against a sum on a fine grid; dominated settings are not on the curve."
    e = effects(ROWS)
    t = trade_off(e)
    grid = (np.arange(90000)+.5)/1e5
    for preset, row in t.areas[t.areas.concept == "macro"].set_index("preset").iterrows():
        points = np.array([(a, d) for k, _, a, d in ROWS if k == preset])
        cost = [min([d for a, d in points if a <= x], default=1.) for x in grid[::50]]
        assert abs(np.mean(cost)-row.area) < 2e-3
        assert row.lowest == pytest.approx(points[:, 0].min())
    assert t.curve("full").target_accuracy.tolist() == [.0, .04, .5, .9]
    assert t.areas.set_index(["preset", "concept"]).unreached["full", "macro"] == 0
    pd.testing.assert_series_equal(t.areas[t.areas.concept == "macro"].area, t.areas[t.areas.concept == "b"].area, check_index=False)
    lost = trade_off(e, cost="auxiliary_accuracy")
    np.testing.assert_allclose(lost.areas.area, t.areas.area)
    assert np.isnan(staircase([0.], [.1], 0.)[1])
    with pytest.raises(InputError, match="no curve"):
        t.curve("leace")


def test_matched_and_chosen():
    "The cheapest that reaches, else the closest; a margin or a bound asks for more."
    e = effects([*ROWS, ("range", .5, .045, .3), ("range", .7, .02, .5)])
    m = matched(e).set_index("preset")
    assert m.fraction.to_dict() == {"full": .3, "range": .5} and m.reached.all()
    m = matched(e, at=.01).set_index("preset")
    assert m.fraction.to_dict() == {"full": .5, "range": .7} and m.reached.to_dict() == {"full": True, "range": False}
    c = choose(e, margin=.01)
    assert c.frame.set_index("preset").fraction.to_dict() == {"full": .3, "range": .7}
    assert matched(e, cost="auxiliary_accuracy").fraction.tolist() == matched(e).fraction.tolist()
    named = matched(e, presets=dict(mild=dict(fraction=[.1]), all={})).set_index("preset")
    assert list(named.index) == ["mild", "all"] and named.fraction.to_dict() == {"mild": .1, "all": .5}
    with pytest.raises(InputError, match="margin"):
        choose(e, margin=.2)


def test_choice_by_interval():
    "A bound refuses the setting whose interval crosses, and test rows are those of the chosen setting."
    o = outcome(N=600, shift=dict(full=2.5, range=2.5), fractions=(.5, .75, 1.))
    e, sure = measure_effects(o), intervals(o, draws=200)
    x = e.macro().query("condition == 'range'").target_accuracy
    top = sure.only(concept="macro", condition="range", measure="target_accuracy").frame.high
    at = float((x.iloc[1]+top.iloc[1])/2)
    assert x.iloc[2] < x.iloc[1] < at < top.iloc[1] and top.iloc[2] < at
    assert matched(e, at=at, presets=dict(r=dict(condition="range"))).fraction.iloc[0] == .75
    c = choose(e, at=at, bounds=sure, presets=dict(r=dict(condition="range")))
    assert c.frame.fraction.iloc[0] == 1. and c.frame.reached.iloc[0]
    other = measure_effects(outcome(N=600, shift=dict(full=2.5, range=2.5), fractions=(.5, .75, 1.), seed=1))
    told = apply(c, other, dataset="D", model="M")
    assert tuple(told.columns) == MATCHED and len(told) == 3 and set(told.dataset) == {"D"}
    want = other.frame.query("condition == 'range' and fraction == 1.")
    np.testing.assert_array_equal(told.disturbance, want.disturbance)
    base = other.frame.query("condition == 'base' and fraction == 1.")
    np.testing.assert_array_equal(told.base_auxiliary_accuracy, base.auxiliary_accuracy)
    with pytest.raises(InputError, match="not measured"):
        apply(c, measure_effects(outcome(fractions=(.5,))))
    with pytest.raises(InputError, match="twice"):
        apply(c, Effects(pd.concat([other.frame, other.frame])))
    with pytest.raises(InputError, match="intervals"):
        choose(e, bounds=intervals(outcome(fractions=(.5,)), draws=5))


def test_choice_survives_a_file(tmp_path):
    "A table that was written and read again has the same settings, infinite tau and all."
    o = outcome(N=600, shift=dict(full=4., range=4.), fractions=(.5, 1.))
    e = measure_effects(o)
    read = load_effects(e.save(tmp_path/"e.csv"))
    pd.testing.assert_frame_equal(apply(choose(e), read), apply(choose(read), e))


def test_tables_that_do_not_fit():
    "Base rows that differ, none at all, and concepts that are missing are refused."
    e = effects(ROWS)
    with pytest.raises(InputError, match="several models"):
        trade_off(Effects(pd.concat([e.frame, effects(ROWS, base=.8).frame])))
    with pytest.raises(InputError, match="no base row"):
        matched(e.only(condition=["full", "range"]))
    with pytest.raises(InputError, match="cannot be compared"):
        matched(Effects(e.frame.drop(index=1)))
    with pytest.raises(InputError, match="belongs to preset"):
        matched(e, presets=dict(paper=dict(condition="zero")))
