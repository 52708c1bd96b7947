"""Figures draw the numbers they are given, on the axes they are given, into the same bytes everywhere, for all eyes."""
import ast
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import figures
import matplotlib
import numpy as np
import pandas as pd
import pytest

from neuronlens.ground.core import InputError

matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402

p = figures.every_figure()


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
            about |= dict(range="gaussian(2.5)", target_accuracy=1 - f - .1*i, disturbance=f/10)
            rows += [dict(about, condition=k, auxiliary_accuracy=.9 - .1*(k == "full")) for k in conditions]
            about |= dict(range="none", target_accuracy=1 - .1*i, disturbance=0.)
            rows.append(dict(about, condition="base", auxiliary_accuracy=.9))
    return pd.DataFrame(rows)


def test_trade_off_is_a_staircase():
    "Below a corner the price is that of the next corner with less target accuracy; the curve never interpolates."
    frame = points(full=[(0., .07), (.2, .04)], recommended=[(.01, .001)], paper=[(.3, .05)])
    ax = p.plot_trade_off(frame.sample(frac=1, random_state=0), at=.05)
    line = labelled(ax)["full"]
    np.testing.assert_allclose(np.c_[line.get_data()], [[0., .07], [.2, .04]])
    assert line.get_drawstyle() == "steps-post"
    said = ["paper\n(not to 5%)", "full\n0.07 at 0.0%", "recommended\n0.001 at 1.0%"]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == said
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
    assert [tuple(p) for c in ax.collections for p in c.get_offsets()] == []  # Above the picture, and counted
    assert "1 setting that costs\nmore, 1 above the picture" in [t.get_text() for t in ax.get_legend().get_texts()]
    frame.loc[(frame.cost == .09), "cost"] = .05
    assert [tuple(q) for c in p.plot_trade_off(frame).collections for q in c.get_offsets()] == [(.2, .05)]
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
    marks = [line for line in ax.lines if line.get_markersize() == 7 and len(line.get_xdata())]
    assert [line.get_markerfacecolor() == "w" for line in marks] == [True, False]*2  # Paper comes first, then the next set
    np.testing.assert_allclose([line.get_xdata()[0] for line in marks], [.01, .05]*2)
    assert [t.get_text() for t in ax.texts] == ["a, m", "0.01", "10.0%", "0.05", "1.0%", "b, m", "0.01", "10.0%", "0.05", "1.0%", "mean",
                                                "target\naccuracy"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["paper", "full"]*2
    places = [line.get_ydata()[0] for line in marks]
    assert sorted(places, reverse=True) == places
    assert len({line.get_marker() for line in marks}) == 2
    many = pd.concat([frame.assign(dataset=f"set {i}") for i in range(20)])
    with pytest.raises(InputError, match="several rows"): p.plot_matched(many)
    wide = pd.concat([frame[frame.dataset == "a"].assign(dataset=f"set {i}") for i in range(20)])
    assert max(p.plot_matched(wide).figure.get_size_inches()) <= 12


def test_sweep_draws_means_and_every_concept():
    "The line is the mean, each concept is behind it, the unedited model is level."
    ax = p.plot_sweep(settings(), "fraction", ("target_accuracy", "disturbance"))
    lines = labelled(ax)
    np.testing.assert_allclose(lines["range: target accuracy"].get_ydata(), [.85, .45])
    np.testing.assert_allclose(lines["full: disturbance"].get_ydata(), [.01, .05])
    np.testing.assert_allclose(lines["base: target accuracy"].get_ydata(), [.95, .95])
    assert sum(line.get_label() == "_" for line in ax.lines) == 2*2*2
    one = p.plot_sweep(settings(conditions=("range",)), measures="target_accuracy", by="ranking")
    assert set(labelled(one)) == {"_", "dprime", "base", "thin: each concept"} and one.get_ylabel() == "target accuracy"


def test_sweep_over_tau_keeps_whole_neurons_level():
    "Where tau is infinite the line does not depend on it; two settings for one place are refused."
    frame = pd.concat([settings(fractions=(.5,)).replace("gaussian(2.5)", f"gaussian({t})") for t in (1., 2.)])
    frame.loc[frame.condition == "full", "range"] = "full"
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
    frame = frame.assign(fitted_at="readout")
    tokens = frame[frame.condition == "range"].assign(fitted_at="tokens", target_accuracy=.2)
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

# --- what holds for every figure function, those to come included

FIGURES = figures.figure_functions()
DESK = "svg.fonttype: none\npdf.fonttype: 3\npdf.compression: 0\nsavefig.bbox: tight\nsavefig.facecolor: red\nsavefig.transparent: True\n" \
       "savefig.dpi: 30\nfont.size: 20\nfont.family: serif\nfigure.dpi: 33\naxes.grid: True\nlines.linewidth: 9\n"


def test_every_figure_function_has_a_recipe():
    "A new figure function needs one in tests/figures.py, or nobody knows whether it keeps the rules."
    assert set(figures.recipes()) == set(FIGURES) and len(FIGURES) > 20


def test_every_figure_is_in_the_gallery():
    "A heading to lead to, a sentence, a picture, at most ten lines that make it, and a thumbnail that says what it shows and leads there."
    page = json.loads((Path(__file__).resolve().parents[1]/"nbs/gallery.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(c["source"]) for c in page]
    top = next("".join(o["data"]["text/html"]) for c in page for o in c.get("outputs", []) if "<img" in str(o.get("data")))
    for name in FIGURES:
        i = next(i for i, s in enumerate(sources) if s.startswith(f'<a id="{name}"></a>\n\n### {name}\n\n'))
        assert sources[i].rstrip()[-1] in ".?", name
        lines = [k for k in sources[i+1].splitlines() if k and not k.startswith("#|")]
        assert re.search(rf" = {name}\(", sources[i+1]) and f"import {name}" in sources[i+1] and len(lines) <= 10, name
        assert [o for o in page[i+1]["outputs"] if "image/png" in o.get("data", {})] and "#| fig-alt: " in sources[i+1], name
        assert re.search(rf'<a href="#{name}"[^>]*><img alt="[^"]{{20,}}" src="data:image/png;base64,', top), name
    assert top.count("<img") == len(FIGURES)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_draw_on_the_axes_they_are_given(name):
    "`ax` or `axes`, None by default; those given are drawn on and come back, and no other figure is made."
    known = inspect.signature(FIGURES[name]).parameters
    which = next(iter({"ax", "axes"} & set(known)), None)
    assert which and known[which].default is None and known["source"].kind is inspect.Parameter.KEYWORD_ONLY
    fig, axes = plt.subplots(2, 2)
    given = axes[0, 0] if which == "ax" else axes.ravel()
    drawn = FIGURES[name](*figures.recipes()[name], **{which: given})
    assert plt.get_fignums() == [fig.number]
    if which == "ax": assert drawn is given and drawn.has_data()
    else: assert [a in axes for a in drawn] == [True]*len(drawn) and all(a.has_data() for a in drawn)
    back = FIGURES[name](*figures.recipes()[name])
    assert np.ravel(back)[0].figure is not fig and len(plt.get_fignums()) == 2


@pytest.mark.slow
def test_figures_are_the_same_bytes_anywhere(tmp_path):
    "Another process, other hashes, another day, another user's settings: PNG, SVG and PDF of every figure are the same."
    (tmp_path/"matplotlibrc").write_text(DESK)
    elsewhere = os.environ | dict(PYTHONHASHSEED="7", SOURCE_DATE_EPOCH="86400", TZ="Asia/Tokyo", MATPLOTLIBRC=str(tmp_path/"matplotlibrc"))
    child = subprocess.Popen([sys.executable, figures.__file__, tmp_path/"there"], env=elsewhere, stderr=subprocess.PIPE, text=True)
    figures.save_all(tmp_path/"here")
    said = child.communicate(timeout=600)[1]
    assert child.returncode == 0, said
    names = sorted(f"{n}.{end}" for n in FIGURES for end in figures.ENDS)
    assert sorted(f.name for f in (tmp_path/"here").iterdir()) == names
    assert not [n for n in names if (tmp_path/"here"/n).read_bytes() != (tmp_path/"there"/n).read_bytes()]
    whole = b"".join((tmp_path/"here"/n).read_bytes() for n in names)
    assert not [word for word in (b"CreationDate", b"/Producer", b"dc:date", b"tEXtSoftware", b"/Type3") if word in whole]


def inside(fig):
    "Texts of a figure that are not whole inside it, after its layout."
    fig.canvas.draw()
    ticks = [(k, t) for ax in fig.axes for k in (ax.xaxis, ax.yaxis) for t in k.get_major_ticks()]
    gone = {t.label1 for k, t in ticks if not min(v := k.get_view_interval()) <= t.get_loc() <= max(v)}
    shown = [t for t in fig.findobj(matplotlib.text.Text) if t.get_visible() and t.get_text().strip() and t not in gone]
    boxes = [(t.get_text(), t.get_window_extent()) for t in shown]
    w, h = fig.bbox.size
    return [(s, b.extents.round(1)) for s, b in boxes if b.x0 < -1 or b.y0 < -1 or b.x1 > w+1 or b.y1 > h+1]


@pytest.mark.parametrize("name", FIGURES)
def test_no_label_is_cut(name, monkeypatch):
    "Every text lies inside its figure, with a long source and long names, too; and a figure is no wider than is legible on a telephone."
    for classes in (figures.CLASSES, ("tea with milk and sugar", "a rather long class name 17", "unterhaltungselektronikgeschaefte_")):
        monkeypatch.setattr(figures, "CLASSES", classes)
        drawn = FIGURES[name](*figures.recipes.__wrapped__()[name], source="MiniLM on BBC News, residual.5, test articles, drawn by hand")
        fig = np.ravel(drawn)[0].figure
        assert not inside(fig) and fig.get_size_inches()[0] <= 6.3, name


def marked(ax):
    "For every line with a label its marks: where, size and whether hollow."
    return {k: [(*q, line.get_markersize(), line.get_markerfacecolor() in ("none", "w")) for q in np.c_[line.get_data()]]
            for k, line in labelled(ax).items() if not k.startswith("_")}


def test_no_mark_hides_another():
    "Where all conditions lie on one spot, each mark is hollow and larger than those before it; stairs at one height are drawn apart."
    frame = settings(("full", "range", "random"), fractions=(.1,)).assign(target_accuracy=.5, disturbance=.1)
    frame.loc[frame.condition == "base", "disturbance"] = 0
    ax = p.plot_fractions(frame, now=.1)
    sizes = [marked(ax)[k][0] for k in ("full", "range", "random")]
    assert all(hollow for *_, hollow in sizes) and np.all(np.diff([s for *_, s, _ in sizes]) >= 2)
    ax.figure.canvas.draw()
    names = {t.get_text(): t.get_window_extent() for t in ax.texts}
    assert set(names) == {f"{k}, fraction 0.1" for k in ("full", "range", "random")}
    assert not [a for a, x in names.items() for b, y in names.items() if a < b and x.overlaps(y)]
    rings = [line for line in ax.lines if line.get_label() == "_now"]
    assert [line.get_markeredgecolor() for line in rings] == [labelled(ax)[k].get_color() for k in ("full", "range", "random")]
    ax = p.plot_trade_off(points(full=[(0., .05)], recommended=[(0., 0.)], random=[(.01, 0.)]).assign(base=.9))
    ax.figure.canvas.draw()
    up = [labelled(ax)[k].get_transform().transform((.5, 0))[1] for k in ("recommended", "random")]
    assert abs(up[0]-up[1]) > 3
    assert {t.get_text() for t in ax.texts} >= {"full", "recommended", "random", " aim: 5%"}


def test_scales_are_said():
    "An axis that is not plain says so; far apart is logarithmic unless one says otherwise."
    frame = settings()
    frame.loc[frame.condition == "range", "disturbance"] /= 100
    assert p.plot_fractions(frame).get_yscale() == "symlog" and p.plot_fractions(settings()).get_yscale() == "linear"
    for name, given in figures.recipes().items():
        for log in (False, True) if "log" in inspect.signature(FIGURES[name]).parameters else (None,):
            for ax in np.ravel(FIGURES[name](*given, **({} if log is None else dict(log=log)))):
                for axis in (ax.xaxis, ax.yaxis):
                    said = axis.get_label().get_text().replace("\n", " ")
                    assert (axis.get_scale() == "symlog") == ("log scale, linear below" in said), name
        plt.close("all")


def test_saving_says_what_it_can():
    "An ending that is none, in one sentence, before anything is written; capitals are an ending too."
    ax = p.plot_effects(figures.table().query("site == 'residual.1' and fraction == .6"))
    with pytest.raises(InputError, match="^c.gif: figures are saved as .png, .svg, .pdf(?m:$)"): p.save_figure(ax, "nowhere/c.gif")
    assert not os.path.exists("nowhere")


# --- colours for all eyes: Machado, Oliveira & Fernandes (2009), full severity; distances in CIE Lab

EYES = dict(normal=np.eye(3),
            deuteranopia=[[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.011820, .042940, .968881]],
            protanopia=[[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]],
            tritanopia=[[1.255528, -.076749, -.178779], [-.078411, .930809, .147602], [.004733, .691367, .303900]])
XYZ = np.array([[.4124564, .3575761, .1804375], [.2126729, .7151522, .0721750], [.0193339, .1191920, .9503041]])


def seen(colors, eye):
    "`[n, 3]` CIE Lab of colours as an eye sees them."
    c = np.array([matplotlib.colors.to_rgb(h) for h in colors])
    light = np.where(c <= .04045, c/12.92, ((c + .055)/1.055)**2.4) @ np.transpose(EYES[eye])
    x = np.clip(light, 0, 1) @ XYZ.T / [.95047, 1, 1.08883]
    f = np.where(x > .008856, np.cbrt(x), 7.787*x + 16/116)
    return np.stack([116*f[:, 1] - 16, 500*(f[:, 0] - f[:, 1]), 200*(f[:, 1] - f[:, 2])], 1)


def nearest(colors, eye):
    "Distance of the two colours that look most alike; 2 is just visible side by side."
    x = seen(colors, eye)
    return np.linalg.norm(x[:, None] - x[None], axis=-1)[~np.eye(len(x), dtype=bool)].min()


@pytest.mark.parametrize("eye", EYES)
def test_conditions_and_presets_look_different_to_every_eye(eye):
    "Conditions by colour alone, as bars are told apart; presets, which also have markers, nearly so."
    assert nearest(["#ff0000", "#ff0000"], eye) == 0 and 50 < nearest(["#000000", "#777777"], eye) < 51
    assert nearest(p.CONDITIONS.values(), eye) > 20
    assert nearest(p.PRESET_COLORS.values(), eye) > 12
    assert nearest([*p.CONDITIONS.values(), "#ffffff"], eye) > 20


def test_lines_differ_by_more_than_colour():
    "Conditions and presets have a marker of their own wherever they are lines or dots."
    frame = figures.table().query("site == 'residual.1'")
    one = figures.recipes()
    drawn = [p.plot_fractions(frame), p.plot_sweep(frame, measures="disturbance"), p.plot_trade_off(*one["plot_trade_off"]),
             p.plot_intervals(*one["plot_intervals"])]
    for ax in drawn:
        named = [line for line in ax.lines if not line.get_label().startswith("_")]
        marks = [line.get_marker() for line in named if line.get_marker() not in ("None", "", None)]
        assert len(marks) >= 2 and len(set(marks)) == len(marks)


# --- what cannot be drawn

def test_other_things_are_refused_in_a_sentence():
    "Every figure says what it draws, where it is given something else."
    plots,odd = p,object()
    for name in ('effects', 'fractions', 'probes', 'blocks', 'matched', 'probe_path', 'sweep'):
        with pytest.raises(InputError, match='a table .DataFrame. with columns .* not object'): getattr(plots, f'plot_{name}')(odd)
    for name, what in dict(ranking='`Ranking`', overlap='`SetOverlap`', firing='`Firing`', intervals='`Evidence`', fits='`FitComparison`',
                           pair_overlap='`PairOverlap`', polysemantic='`PolysemanticCounts`', agreement='`RankingAgreement`',
                           collateral='`Collateral`', trade_off='`TradeOff`').items():
        with pytest.raises(InputError, match=f'{what}.* is drawn here, not object'): getattr(plots, f'plot_{name}')(odd)
    acts, labels = np.zeros((4, 3)), [0, 0, 1, 1]
    with pytest.raises(InputError, match='`Ranges`.* not object'): plots.plot_neurons(acts, labels, odd, [[0], [1]], 0)
    with pytest.raises(InputError, match='`Firing`'): plots.plot_predicted(odd, odd)
    for kw in (dict(k=0), dict(most=0), dict(k=1.5)):
        with pytest.raises(InputError, match=f'{[*kw][0]}={[*kw.values()][0]} draws nothing'): plots.plot_ranking(odd, **kw)
        with pytest.raises(InputError, match='draws nothing'): plots.plot_neurons(acts, labels, odd, [[0], [1]], 0, **kw)
    with pytest.raises(InputError, match='most=0'): plots.plot_neuron(acts, labels, ('a', 'b'), 0, most=0)
    with pytest.raises(InputError, match="neuron 'x' is not one of 0 to 2"): plots.plot_neuron(acts, labels, ('a', 'b'), 'x')


# --- words of others

WORDS = ('a$x^$ \x1b[31m 日本語', r'mo$\frac{$del b\$ नमस्ते', '$$ ab\u202ecd &<b> \0')


def test_words_of_others_are_drawn_as_words(monkeypatch, tmp_path):
    "Names of classes, presets, data sets and models in every figure: no mathematics, no warning, and an SVG is XML."
    import inspect
    import warnings
    from xml.etree import ElementTree

    from matplotlib.cbook import is_math_text
    monkeypatch.setattr(figures, 'CLASSES', WORDS)
    renamed = {'condition': 'full', 'preset': 'paper', 'dataset': 'drinks', 'site': 'x'}
    for name, given in figures.recipes.__wrapped__().items():
        given = [a.replace({c: {v: WORDS[0]} for c, v in renamed.items() if c in a}) if isinstance(a, pd.DataFrame) else a for a in given]
        draw = getattr(p, name)
        more = {k: WORDS[1] for k in ('source',) if k in inspect.signature(draw).parameters}
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            fig = np.ravel(draw(*given, **more))[0].figure
            said = [t.get_text() for t in fig.findobj(matplotlib.text.Text)]
            assert not [s for s in said if is_math_text(s) and 'mathdefault' not in s], name
            assert not more or any('frac' in s for s in said), name
            if name in ('plot_effects', 'plot_firing', 'plot_intervals', 'plot_matched', 'plot_fractions'):
                p.save_figure(fig, tmp_path/'x.svg', dpi=30)
                ElementTree.parse(tmp_path/'x.svg')
        plt.close('all')


@pytest.mark.parametrize('name', ['日本語', '\x1b[31m\0', '\ud800x', 'a$x^$ $\\frac{$'])
def test_a_view_of_odd_classes_is_xml_without_a_warning(name, recwarn):
    "The browser finds a font for what matplotlib has none for; control characters are spelled out."
    import base64
    import re
    from xml.etree import ElementTree

    from neuronlens.arrays.profile import profile_neuron
    from neuronlens.views.inspect import neuron_html
    values, labels, ends = np.random.default_rng(0).normal(size=40).astype('f4'), np.repeat([0, 1], 20), np.array([-1., 1.], 'f4')
    r = profile_neuron(values[:, None], labels, (name, 'b'), 0, ends[:1], ends[1:], 0, range='gaussian', middle=0.)
    svg = base64.b64decode(re.search(r'svg\+xml;base64,([^"]+)', neuron_html(r))[1])
    said = ''.join(ElementTree.fromstring(svg).itertext())
    assert ascii(name)[1:-1].replace('\\\\', '\\') in said or name in said
    assert [str(w.message) for w in recwarn] == []


# --- pages

def test_figures_count_nothing():
    "No page of figures imports a room that counts, but where activations may be given instead of what was made of them."
    lazy = dict(plots={'profile'}, plot_overlap={'overlap'}, plot_effects=set(), plot_sweeps=set(), plot_erasure=set(), plot_meaning=set())
    for page in figures.PAGES:
        tree, name = ast.parse(inspect.getsource(page)), page.__name__.rpartition('.')[2]
        found = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and (n.level or 'neuronlens' in n.module)]
        rooms = {n.module.split('.')[-1]: n in tree.body for n in found}
        assert {r for r, top in rooms.items() if top} <= {'core', 'files', 'setting', 'drawing', 'plots', 'plot_effects'}
        assert {r for r, top in rooms.items() if not top} == lazy[name], name


def test_figures_that_moved_are_found():
    "With a warning that says where; what never was there is not."
    from neuronlens import plots
    for name, draw in FIGURES.items():
        if name in plots.__all__ or name in ('plot_remains', 'plot_formulas'): continue # Which was never there
        with pytest.warns(DeprecationWarning, match=f'is {draw.__module__}.{name} now'): assert getattr(plots, name) is draw
    with pytest.raises(AttributeError, match='plot_nothing'): plots.plot_nothing  # noqa: B018


def test_results_are_drawn_alike():
    "Whatever result has a figure: `plot` takes `ax` and `source`, by these names, and needs neither."
    import neuronlens as nl
    found = {c for room in set(nl._AT) - {'cli'} for c in vars(getattr(nl, room)).values()
             if inspect.isclass(c) and c.__module__.startswith('neuronlens.') and 'plot' in vars(c)}
    assert len(found) >= 13
    for c in found:
        known = inspect.signature(c.plot).parameters
        assert (known['ax'].default, known['source'].default) == (None, ''), c


def test_a_profile_is_all_that_a_neuron_needs():
    "Activations and what was made of them give the same figure."
    from neuronlens.arrays.profile import profile_neuron, profile_neurons
    acts, labels, classes, *more = figures.recipes()['plot_neuron']
    one, two = p.plot_neuron(acts, labels, classes, *more), profile_neuron(acts, labels, classes, *more).plot()
    assert [t.get_text() for t in one.texts] == [t.get_text() for t in two.texts]
    for a, b in zip(one.lines, two.lines, strict=True): np.testing.assert_array_equal(a.get_data(), b.get_data())
    given = figures.recipes()['plot_neurons']
    several = p.plot_neurons(profile_neurons(*given))
    assert [a.get_title(loc='left') for a in several] == [a.get_title(loc='left') for a in p.plot_neurons(*given)]
