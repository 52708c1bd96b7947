"""Figures of the results draw the numbers they are given: by hand, from plain tables, and in the corners of the data."""
import matplotlib
import numpy as np
import pandas as pd
import pytest

from neuronlens.data import InputError

matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402

from neuronlens import plots as p  # noqa: E402


@pytest.fixture(autouse=True)
def closed():
    "No figure outlives its test."
    yield
    plt.close("all")


def labelled(ax):
    "Lines by their label."
    return {line.get_label().split("\n")[0]: line for line in ax.lines}


def points(**accuracies):
    "A trade-off table: preset to pairs (target accuracy, cost), each on the curve; the mean and one concept."
    rows = [dict(preset=k, concept=c, target_accuracy=a, cost=v, envelope=True) for k, pairs in accuracies.items() for a, v in pairs
            for c in ("macro", "tea")]
    return pd.DataFrame(rows)


def settings(conditions=("full", "range"), fractions=(.1, .5), concepts=("tea", "milk"), site="residual.5", **more):
    "An effects table with a base row each; target accuracy is 1 - fraction - .1 for the second concept."
    rows = []
    for i, c in enumerate(concepts):
        for f in fractions:
            about = dict(concept=c, fraction=f, ranking="dprime", site=site, edit="mean", n_target=10, n_auxiliary=30, **more)
            about |= dict(range="gaussian", tau=2.5, target_accuracy=1 - f - .1*i, disturbance=f/10)
            rows += [dict(about, condition=k, auxiliary_accuracy=.9 - .1*(k == "full")) for k in conditions]
            about |= dict(range="none", tau=np.nan, target_accuracy=1 - .1*i, disturbance=0.)
            rows.append(dict(about, condition="base", auxiliary_accuracy=.9))
    return pd.DataFrame(rows)


def test_trade_off_is_a_staircase():
    "Below a corner the price is that of the next corner with less target accuracy; the curve never interpolates."
    frame = points(full=[(0., .07), (.2, .04)], recommended=[(.01, .001)], paper=[(.3, .05)])
    ax = p.plot_trade_off(frame.sample(frac=1, random_state=0), at=.05)
    line = labelled(ax)["full"]
    np.testing.assert_allclose(np.c_[line.get_data()], [[0., .07], [.2, .04]])
    assert line.get_drawstyle() == "steps-post"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["paper\n(not to 5%)", "full", "recommended"]
    assert labelled(ax)["paper"].get_markerfacecolor() == "w"
    assert any(set(line.get_xdata()) == {.05} for line in ax.lines)
    based = p.plot_trade_off(frame.assign(base=.9))
    np.testing.assert_allclose(np.c_[labelled(based)["full"].get_data()], [[0., .07], [.2, .04], [.9, .04]])


def test_trade_off_keeps_settings_off_the_curve_and_refuses_mixtures():
    "A dominated setting is a dot, not a corner; several data sets in one curve are an error."
    frame = points(full=[(0., .07), (.2, .04)])
    frame.loc[(frame.cost == .04), ["cost", "envelope"]] = [.09, False]
    ax = p.plot_trade_off(frame)
    assert len(labelled(ax)["full"].get_xdata()) == 1
    assert any(line.get_ydata()[0] == .09 and line.get_linestyle() == "None" for line in ax.lines if len(line.get_ydata()))
    two = pd.concat([frame.assign(dataset=d) for d in ("a", "b")])
    with pytest.raises(InputError, match="several datasets"): p.plot_trade_off(two)
    with pytest.raises(InputError, match="no curve of 'rum'; there are macro, tea"): p.plot_trade_off(frame, "rum")
    with pytest.raises(InputError, match="no column 'envelope'"): p.plot_trade_off(frame.drop(columns="envelope"))


def test_matched_marks_who_did_not_get_there():
    "Hollow exactly where the mean target accuracy is above the aim, also when single concepts are below it."
    rows = [dict(dataset=d, model="m", preset=k, concept=c, target_accuracy=a, disturbance=x) for d in ("a", "b")
            for k, a, x in (("full", .01, .05), ("paper", .2, .01)) for c in ("tea", "milk")]
    frame = pd.DataFrame(rows)
    frame.loc[(frame.preset == "paper") & (frame.concept == "tea"), "target_accuracy"] = 0
    ax = p.plot_matched(frame)
    marks = [line for line in ax.lines if line.get_markersize() == 7]
    assert [line.get_markerfacecolor() == "w" for line in marks] == [True, True, False, False]  # Paper comes first
    np.testing.assert_allclose([line.get_ydata()[0] for line in marks], [.01, .01, .05, .05])
    assert [t.get_text() for t in ax.texts] == ["10.0%", "10.0%", "1.0%", "1.0%"]
    places = [line.get_xdata()[0] for line in marks]
    assert max(places[0], places[2]) < .5 < min(places[1], places[3])
    assert len({line.get_marker() for line in marks}) == 2
    many = pd.concat([frame.assign(dataset=f"set {i}") for i in range(20)])
    with pytest.raises(InputError, match="several rows"): p.plot_matched(many)
    wide = pd.concat([frame[frame.dataset == "a"].assign(dataset=f"set {i}") for i in range(20)])
    assert p.plot_matched(wide).figure.get_size_inches()[0] <= 12


def test_sweep_draws_means_and_every_concept():
    "The line is the mean, each concept is behind it, the unedited model is level."
    ax = p.plot_sweep(settings(), "fraction", ("target_accuracy", "disturbance"))
    lines = labelled(ax)
    np.testing.assert_allclose(lines["range: target accuracy"].get_ydata(), [.85, .45])
    np.testing.assert_allclose(lines["full: disturbance"].get_ydata(), [.01, .05])
    np.testing.assert_allclose(lines["base: target accuracy"].get_ydata(), [.95, .95])
    assert sum(line.get_label() == "_" for line in ax.lines) == 2*2*2
    one = p.plot_sweep(settings(conditions=("range",)), measures="target_accuracy", by="ranking")
    assert set(labelled(one)) == {"_", "dprime", "base"} and one.get_ylabel() == "target accuracy"


def test_sweep_over_tau_keeps_whole_neurons_level():
    "Where tau is infinite the line does not depend on it; two settings for one place are refused."
    frame = pd.concat([settings(fractions=(.5,)).assign(tau=t) for t in (1., 2.)])
    frame.loc[frame.condition == "full", "tau"] = np.inf
    frame = frame.drop_duplicates()
    lines = labelled(p.plot_sweep(frame, "tau", "target_accuracy"))
    np.testing.assert_allclose(lines["full"].get_ydata(), [.45, .45])
    assert list(lines["range"].get_xdata()) == [1, 2]
    with pytest.raises(InputError, match="several rows for one tau; keep one setting .*edit"):
        p.plot_sweep(pd.concat([frame, frame.assign(edit="zero")]), "tau")
    lots = pd.concat([frame.assign(ranking=f"r{i}") for i in range(9)])
    with pytest.raises(InputError, match="too many to tell apart"): p.plot_sweep(lots[lots.condition == "range"], "tau", by="ranking")


def test_blocks_take_the_lowest_mean():
    "The setting is chosen by the mean over concepts; its own disturbance stands beside it; a tie goes to the gentler one."
    frame = pd.concat([settings(conditions=("range",), site=f"residual.{b}") for b in (2, 0)])
    worse = frame[frame.condition == "range"].assign(edit="adaptive", disturbance=.7)
    left, right = p.plot_blocks(pd.concat([worse, frame]))
    line = labelled(left)["range"]
    assert list(line.get_xdata()) == [0, 2]
    np.testing.assert_allclose(line.get_ydata(), [.45, .45])
    np.testing.assert_allclose(labelled(right)["range"].get_ydata(), [.05, .05])
    np.testing.assert_allclose(labelled(left)["base"].get_ydata(), [.95, .95])
    tokens = frame[frame.condition == "range"].assign(range="gaussian(2.5)+tokens", target_accuracy=.2)
    left, _ = p.plot_blocks(pd.concat([frame, tokens]))
    assert labelled(left)["range, every token"].get_markerfacecolor() == "w"
    np.testing.assert_allclose(labelled(left)["range"].get_ydata(), [.45, .45])
    with pytest.raises(InputError, match="cannot be compared"): p.plot_blocks(frame[1:])


def test_intervals_put_the_mean_first():
    "Dots and bars are the table; undefined ends draw no bar; two settings are refused."
    rows = [dict(concept=c, condition=k, fraction=.5, measure="broken", value=v, low=v-.01, high=v+.02, n=40)
            for c, v in (("tea", .1), ("milk", .3), ("macro", .2)) for k in ("full", "range")]
    frame = pd.DataFrame(rows)
    frame.loc[0, ["value", "low", "high"]] = np.nan
    ax = p.plot_intervals(frame, "broken")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["milk", "tea", "mean"]
    np.testing.assert_allclose(labelled(ax)["range"].get_xdata(), [.2, .1, .3])
    np.testing.assert_allclose(np.stack(ax.collections[1].get_segments())[:, :, 0], [[.19, .22], [.09, .12], [.29, .32]])
    assert np.isnan(labelled(ax)["full"].get_xdata()[1])
    with pytest.raises(InputError, match="several rows for 'milk': keep one setting .*fraction"):
        p.plot_intervals(pd.concat([frame, frame[frame.concept == "milk"].assign(fraction=.1)]), "broken")
    many = pd.concat([frame[2:3].assign(concept=f"c{i}") for i in range(99)])
    ax = p.plot_intervals(many, "broken")
    assert ax.figure.get_size_inches()[1] <= 12 and "83 of 99 not drawn" in ax.get_xlabel()


def test_probe_path_orders_by_price():
    "The line runs from the dearest weights to the cheapest, whatever the order of the rows."
    frame = pd.DataFrame(dict(l1=[.01, .3, .1], neurons=[200, 0, 5], accuracy=[.9, .2, .7]))
    ax = p.plot_probe_path(frame, majority=.2)
    np.testing.assert_allclose(np.c_[ax.lines[0].get_data()], [[0, .2], [5, .7], [200, .9]])
    assert {t.get_text() for t in ax.texts} == {"l1=0.3", "l1=0.01"}
    with pytest.raises(InputError, match="no column 'accuracy'"): p.plot_probe_path(frame.drop(columns="accuracy"))


def test_colours_do_not_depend_on_what_else_is_drawn():
    "A known preset keeps its colour, and an unknown one never takes that of a known one that is drawn."
    known = p._conditions(pd.DataFrame(dict(preset=["leace", "mine", "full", "another"])), "preset")
    assert known["leace"] == p.PRESET_COLORS["leace"] and len(set(known.values())) == 4
    assert list(known) == ["full", "leace", "another", "mine"]
    assert list(p._conditions(pd.DataFrame(dict(condition=["range", "base", "full"])))) == ["base", "full", "range"]
