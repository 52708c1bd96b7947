"""Live views: what they show is what the library computes; their controls, their escaping, their pictures without a kernel."""
import json
import re
from base64 import b64decode
from dataclasses import replace
from functools import partial
from html import unescape

import ipywidgets as ipw
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from stills import LIVE, still, stills
from test_prompt import prompted
from test_words import prose
from tiny import by_hand, readout_places, same_answers

from neuronlens.arrays.firing import share_inside
from neuronlens.arrays.profile import profile_neuron, texts_around
from neuronlens.arrays.ranges import RANGES, fit_ranges
from neuronlens.edits.ablation import ablate, edited_acts
from neuronlens.edits.attribution import model_rankings
from neuronlens.edits.edit import EDITS
from neuronlens.edits.erasure import remains
from neuronlens.edits.further import FURTHER
from neuronlens.edits.left import LEFT
from neuronlens.edits.live import edit_text
from neuronlens.edits.planning import plan
from neuronlens.ground.core import InputError
from neuronlens.ground.data import Texts
from neuronlens.ground.rounding import agree, rounding
from neuronlens.ground.setting import COVERS, FITTED, POSITIONS, SCOPES
from neuronlens.models.batches import batches, encode
from neuronlens.models.hooks import logits, run
from neuronlens.records.recording import record
from neuronlens.studies.saved import Study, fit_study
from neuronlens.studies.spec import StudySpec, parse_study
from neuronlens.studies.study import run_study
from neuronlens.views.cards import card, figure_html, spans
from neuronlens.views.erase_view import EraseView
from neuronlens.views.inspect import NeuronView, TextView, neuron_html, text_html
from neuronlens.views.overlap_view import OverlapView
from neuronlens.views.slider import Slider
from neuronlens.views.widgets import KINDS, MEANINGS, View, both_outputs, choice, offer, slider
from neuronlens.views.workbook import LayersView

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread): "Tiny models are quicker on one thread."


@pytest.fixture(scope="module")
def study(data, bert):
    "A study of the tiny BERT, both blocks recorded."
    return run_study(parse_study(dict(data=dict(train=str(data.train), test=str(data.test)), model=dict(classifier=str(bert)),
                                      method=dict(ranking=["dprime", "probe"], fraction=[.5]))), progress=False)


def causal(site, scoring="first"):
    "A study of a tiny prompted language model, made of its parts."
    words = (" cat", " food", " tool") if scoring == "first" else (" cat", " the old", " the new")
    clf = prompted(verbalizers=words, scoring=scoring)
    rng, vocabulary = np.random.default_rng(0), "cat dog red apple rice old new machine saw drill mat the on".split()
    labels = np.arange(24) % 3
    texts = [Texts([" ".join(rng.choice(vocabulary, 6)) for _ in labels], labels, clf.classes) for _ in range(2)]
    spec = StudySpec(method=replace(StudySpec().method, ranking=["dprime"], fraction=[.5], site=site))
    train, test = (record(clf, t, site, progress=False) for t in texts)
    st, rankings, ranges, _ = fit_study(spec, train)
    return Study(spec, train, test, st, rankings, ranges, None, clf=clf, texts=tuple(texts))


def per_cents(html): return re.findall(r"(\d+\.\d%)", html)


class Toy(View):
    "Two lists, the second depending on the first, and a slider; counts its pictures."
    def __init__(self):
        self.drawn = 0
        super().__init__(dict(kind=choice("kind", ["even", "odd"]), n=choice("n", []), x=slider("x", 0, 1, .5)), self.draw)
    def adapt(self, name):
        if name == "kind": offer(self.controls["n"], [0, 2, 4] if self.controls["kind"].value == "even" else [1, 3, 4])
    def draw(self, kind, n, x):
        self.drawn += 1
        if x == 1: raise InputError(f"no {EVIL}\nat all")
        if x == 0: raise ZeroDivisionError
        return card(f"{kind} {n} {x:g}")


def test_one_change_is_one_picture():
    "However many controls a change touches."
    v = Toy()
    assert (v.drawn, v.values) == (1, dict(kind="even", n=0, x=.5))
    v.controls["kind"].value = "odd" # n must change, too
    assert (v.drawn, v.values["n"]) == (2, 1)
    assert v.set(kind="even", n=4, x=.25) is v and (v.drawn, v.values) == (3, dict(kind="even", n=4, x=.25))
    v.controls["kind"].value = "odd" # 4 is still on offer and stays
    assert v.values["n"] == 4 and "odd 4 0.25" in v.picture.value and v.picture.value == v.html()


@pytest.mark.parametrize("bad, said", [
    (dict(m=1), "'m'; there are kind, n, x"), (dict(kind="odd", n=2), "n 2 is none of 1, 3, 4"), (dict(kind=3), "kind 3 is none"),
    (dict(x=2), "x 2 is no number from 0 to 1"), (dict(x="a"), "x 'a' is no number"), (dict(kind="odd", x=None), "x None")])
def test_a_refused_value_changes_nothing(bad, said):
    "One sentence, and everything as before."
    v = Toy().set(n=4)
    before, drawn, shown = v.values, v.drawn, v.picture.value
    with pytest.raises(InputError, match=re.escape(said)): v.set(**bad)
    assert (v.values, v.drawn, v.picture.value) == (before, drawn, shown)
    v.controls["x"].value = .75 # And controls still work
    assert "even 4 0.75" in v.picture.value


def test_a_picture_that_fails_says_why():
    "A sentence, escaped; the controls keep their values and the next picture is whole."
    v = Toy()
    v.controls["x"].value = 1.
    assert "no &lt;img" in v.picture.value and "<img" not in v.picture.value and "at all" not in v.picture.value
    assert v.set(x=0).values["x"] == 0 and "ZeroDivisionError" in v.picture.value
    assert "even 0 0.5" in v.set(x=.5).picture.value


def test_without_a_kernel_there_is_a_picture():
    "The bundle of a view holds the live widget, a picture with its settings, and the same text every time."
    bundle = Toy().set(n=2)._repr_mimebundle_()
    assert bundle[LIVE]["model_id"] and bundle["text/plain"] == "Toy(kind='even', n=2, x=0.5)"
    assert bundle["text/html"] == Toy().set(n=2)._repr_mimebundle_()["text/html"]
    assert "kind: <b>even</b>" in bundle["text/html"] and "even 2 0.5" in bundle["text/html"]


def test_a_view_is_two_outputs(study):
    "The live one leaves nothing where it cannot live; the picture needs no style sheet, no script and no SVG tag, and stands there once."
    for view in (NeuronView(study), EraseView(study), OverlapView(study), LayersView(study)):
        live, still = both_outputs(view.box, view.static, repr(view))
        assert live[LIVE]["model_id"] == view.box.model_id and "text/plain" not in live and "nl-view" not in live["text/html"]
        assert LIVE not in still and still["text/plain"] == repr(view) and still["text/html"].count('class="nl-still"') == 1
        bare = re.sub(r"<style>.*?</style>", "", still["text/html"], flags=re.S)
        assert "<svg" not in bare and "<script" not in bare and "nl-view" in bare
        assert {re.match(r"[\w/+]+", s)[0] for s in re.findall(r'src="data:([^"]*)', bare)} <= {"image/svg+xml"}


def test_a_converted_page_has_the_picture_once(study):
    "nbconvert shows neither an error nor the picture twice."
    nbconvert = pytest.importorskip("nbconvert")
    from nbformat import v4
    view = EraseView(study)
    outs = [v4.new_output("display_data", b, metadata={}) for b in both_outputs(view.box, view.static, repr(view))]
    nb = v4.new_notebook(cells=[v4.new_code_cell("view", outputs=outs)])
    page = nbconvert.HTMLExporter().from_notebook_node(nb)[0]
    assert page.count('class="nl-still"') == 1 and "Error displaying" not in page and view.box.model_id not in page


def test_what_is_chosen_says_what_it_means(study):
    "Every entry of a list of methods says in the list what it is, and the one chosen says it below."
    for view in (NeuronView(study), TextView(study), EraseView(study), OverlapView(study)):
        lists = [w for box in view.body.children[0].children for w in below(box) if isinstance(w, ipw.Dropdown)]
        told = [w for w in lists if w.description in (*MEANINGS, "site", "map")]
        assert len(told) >= 2
        for w in told:
            assert all(": " in label or w.description == "map" for label, _ in w.options), w.description
            w.index = len(w.options)-1
            assert w.note.value and w.label.split(": ", 1)[-1].split("; chance")[0][:20] in unescape(w.note.value)


def glossary():
    "Words of every row of the page of words, by each name that it explains."
    rows = [r for r in re.findall(r"^\| (.+?) \| (.+?) \| (.*?) \|$", prose("glossary.ipynb"), re.M) if r[0] != "word"]
    return [(f"{a} {b}", set(re.findall(r"[\w./-]+", f"{a} {b}".lower()))) for a, b, _ in rows]


def test_what_is_left_is_asked_for(study):
    "Not before the button; then what readers find by hand in what the interventions leave, remembered; another setting waits for its own."
    view = EraseView(study).set(fraction=.5)
    assert 'fresh readers' in view.picture.value and 'AUC of a forest' not in view.picture.value
    view.bar.go.click()
    setting = view.setting(**view.values)
    bars, each = view.left.found[setting]
    assert 'AUC of a forest' in view.picture.value and not view.bar.go.disabled and view.bar.state.value == ''
    ivs = [iv for iv in view.live.plan((setting,)) if iv.condition == 'range']
    by_hand = remains({'range': [partial(edited_acts, iv) for iv in ivs]}, study.test.acts, study.test.labels, classes=study.classes,
                      readers=('linear', 'forest'), floors=False, seed=setting.seed)
    for m in LEFT:
        assert np.allclose(bars[m]['range'][0], by_hand.macro()[m][0]) and np.allclose(each[m]['range'], by_hand.per_class()[m])
    assert view.look().left.found[setting] is view.left.ask(setting)
    assert 'AUC of a forest' not in view.set(fraction=.3).picture.value and 'AUC of a forest' in view.set(fraction=.5).picture.value


SMALL_WORDS = set("a an the at in on of is are for itself to or and where".split())


@pytest.mark.parametrize("label, name, said", [(k, n, m) for k, own in MEANINGS.items() for n, m in own.items()])
def test_meanings_are_those_of_the_glossary(label, name, said):
    "A list says nothing of an entry that the page of words does not say of it."
    words = set(re.findall(r"[\w./-]+", said.lower()))-SMALL_WORDS-set(name.split("_"))-{"posterior", "asked", "ranges"}
    own = [w for row, w in glossary() if f"`{name}`" in row]
    assert any(words <= w | {x.rstrip(".,:;") for x in w} for w in own), (words, own)


@pytest.mark.parametrize("label, names", [("ranking", model_rankings()), ("range", RANGES), ("edit", EDITS), ("scope", SCOPES),
                                          ("fitted_at", FITTED), ("positions", POSITIONS), ("covers", COVERS), ("also", FURTHER)])
def test_nothing_on_offer_is_left_unsaid(label, names):
    assert set(names) <= set(MEANINGS[label])


def test_stored_pages_hold_the_picture_alone(tmp_path):
    "The live part goes where a picture stands beside it, and only there."
    def page(*outs): return dict(cells=[dict(outputs=[dict(data=d, metadata={LIVE: {}}) for d in outs]), dict(source="")], metadata={})
    live, both = {LIVE: {"model_id": "a"}, "text/plain": "x"}, {LIVE: {"model_id": "a"}, "text/html": "<b>"}
    nothing = {LIVE: {"model_id": "a"}, "text/html": '<span class="nl-nothing"></span>'} # The first of the two outputs of a view
    nb = page(dict(live), dict(both), nothing)
    nb["metadata"]["widgets"] = {"state": {}}
    (tmp_path/"a.ipynb").write_text(json.dumps(nb), encoding="utf-8")
    (tmp_path/"b.ipynb").write_text(json.dumps(page({"text/html": "é"})), encoding="utf-8")
    kept = (tmp_path/"b.ipynb").read_bytes()
    assert stills(tmp_path) == [tmp_path/"a.ipynb"] and stills(tmp_path) == []
    now = json.loads((tmp_path/"a.ipynb").read_text(encoding="utf-8"))
    assert [o["data"] for o in now["cells"][0]["outputs"]] == [live, {"text/html": "<b>"}] and now["metadata"] == {}
    assert (tmp_path/"b.ipynb").read_bytes() == kept and not still(now)


def test_texts_around_a_range_by_brute_force():
    "Nearest to the middle inside, nearest to an end outside, of one or several intervals."
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=60).astype(np.float32), rng.integers(0, 3, 60)
    lo, hi = np.float32([-1, .5, np.inf]), np.float32([-.2, 1, -np.inf])
    got = texts_around(x, y, 1, lo, hi, .3, k=60)
    def held(i): return any(a <= x[i] <= b for a, b in zip(lo, hi, strict=True))
    def gap(i): return min(max(a-x[i], x[i]-b) for a, b in zip(lo[:2], hi[:2], strict=True))
    for what, rows in dict(own=[i for i in range(60) if held(i) and y[i] == 1],
                           others=[i for i in range(60) if held(i) and y[i] != 1]).items():
        assert got[what].tolist() == sorted(rows, key=lambda i: abs(float(x[i])-.3)) and rows
    assert got["outside"].tolist() == sorted((i for i in range(60) if not held(i)), key=gap)


def below(box):
    "A widget, or all those in a box."
    return [w for child in box.children for w in below(child)] if isinstance(box, ipw.Box) else [box]


def test_controls_are_labelled(study):
    "Every control of either view is a widget with a visible label and a tooltip, and says what it is set to."
    for view in (NeuronView(study), TextView(study)):
        for name, w in view.controls.items():
            assert isinstance(w, ipw.Widget) and w.description and w.tooltip, name
            if isinstance(w, Slider): assert w.number.description == w.description # What a screen reader names
        assert view.values == {k: w.value for k, w in view.controls.items()}
        shown = [w.value if isinstance(w, ipw.HTML) else w.description for box in view.body.children[0].children for w in below(box)]
        titles = [re.sub("<[^>]*>", "", s) for s in shown if s.startswith("<h4")]
        assert titles == ["Which neurons", "When", "What then"][:len(titles)] and {"range", "tau"} <= set(shown)
        assert isinstance(view.picture, ipw.HTML) and view.picture.value == view.html() == view.html()


def test_the_slider_moves_range_and_firing(study):
    "Interval and firing rates are those that the library computes for the tau shown."
    view, test, c = NeuronView(study).set(concept="food"), study.test, study.classes.index("food")
    j, seen = view.values["neuron"], set()
    for tau in (.5, 1.3, 2.5, 6.):
        view.controls["range"].tau.value = tau
        r = fit_ranges(study.train.acts, study.train.labels, f"gaussian({tau})", classes=study.classes)
        shares = share_inside(test.acts[:, j], test.labels, r.lo[c, j], r.hi[c, j], study.classes)
        assert spans(r.lo[c, j], r.hi[c, j]) in view.picture.value
        assert sorted(per_cents(view.picture.value)) == sorted(f"{s:.1%}" for s in shares)
        seen.add(re.search(r'base64,([^"]+)"', view.picture.value)[1])
    assert len(seen) == 4 # And the figure with them
    view.set(range="gaussian(2.5)")
    assert spans(study.ranges.lo[c, j], study.ranges.hi[c, j]) in view.html()


def test_a_range_is_one_control(study):
    "List and slider are one value; what it is set to, and how it was set until 0.2, show in both; anything else is refused."
    view = NeuronView(study)
    own = view.controls["range"]
    for want, kind, tau in (("gaussian(1.5)", "gaussian", 1.5), ("posterior", "posterior", 1.5), ("gaussian", "gaussian", 1.5)):
        view.set(range=want)
        assert (own.kind.value, own.tau.value, own.tau.disabled) == (kind, tau, kind != "gaussian")
    with pytest.warns(DeprecationWarning, match="range="): assert view.set(tau=.8).values["range"] == "gaussian(0.8)"
    with pytest.warns(DeprecationWarning): assert view.set(kind="quantile").values["range"] == "quantile"
    refused = [("gaussian(7)", "tau 7 is no number from 0.1 to 6"), ("hull", "none of 'gaussian'"), ("a b", "not a name"), (3, "not a")]
    for bad, said in refused:
        with pytest.raises(InputError, match=said): view.set(range=bad)
        assert (view.values["range"], own.kind.value) == ("quantile", "quantile")
    own.kind.value = "gaussian" # As a reader does
    assert view.values["range"] == "gaussian(0.8)" and "gaussian(0.8)" in view.picture.value


def test_gates_and_covers_are_those_of_plan(study):
    "Scope, covers and positions go into the interventions; a cover rests where there is no vote."
    view = TextView(study)
    assert view.controls["covers"].disabled and "covers" not in view.static()
    view.set(concept="tool", vote=.4, scope="text", covers="salient", positions="readout")
    ivs = view.interventions(**{k: v for k, v in view.values.items() if k != "text"})
    assert {(iv.vote, iv.scope, iv.covers, iv.positions) for iv in ivs if iv.condition == "range"} == {(.4, "text", "salient", "readout")}
    words = "When</span> range", "scope: <b>text", "covers: <b>salient", "asked once per text"
    assert not [word for word in words if word not in view.static()]
    text = view.values["text"]
    assert view.html() == text_html(edit_text(study.clf, text, ivs))


def test_the_shaded_band_is_the_range(study):
    "The figure's band ends where the interval ends, measured on its own axis."
    view = NeuronView(study).set(range="gaussian(.7)")
    r = view.range_of(**{k: v for k, v in view.values.items() if k != "ranking"})
    edges = np.histogram_bin_edges(r.values.astype(np.float64), 40)
    left, right = edges[0]-.04*(edges[-1]-edges[0]), edges[-1]+.04*(edges[-1]-edges[0])
    svg = b64decode(re.search(r'base64,([^"]+)"', view.html())[1]).decode()
    box = re.search(r'<clipPath[^>]*>\s*<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', svg)
    x0, width = float(box[1]), float(box[2])
    band = re.search(r'<g id="patch_\d+">\s*<path d="M ([\d.]+) [\d.]+\s*L [\d.]+ [\d.]+\s*L ([\d.]+) [^"]*"[^>]*opacity: 0.16', svg)
    ends = [left+(float(v)-x0)/width*(right-left) for v in band.groups()]
    assert np.allclose(ends, [r.lo[0], r.hi[0]], atol=1e-3*(right-left))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_every_kind_of_range_at_every_site(study, kind):
    "As the library fits it on all neurons there; the slider rests."
    view = NeuronView(study).set(range=kind)
    for site in study.test.sites:
        v = view.set(site=site).values
        r = fit_ranges(study.train.at(site), study.train.labels, kind, classes=study.classes)
        assert spans(r.lo[0, v["neuron"]], r.hi[0, v["neuron"]]) in unescape(view.html()) and view.controls["range"].tau.disabled
        places = [j for _, j in view.controls["neuron"].options]
        assert sorted(places) == list(range(32)) and v["neuron"] == places[0]
    assert not view.set(range="gaussian").controls["range"].tau.disabled


def test_a_study_without_texts_shows_the_numbers(study, monkeypatch):
    "Where data or model are gone, everything but the texts is there."
    def gone(self, progress=True): raise InputError("gone")
    monkeypatch.setattr(Study, "open", gone)
    shown = NeuronView(replace(study, texts=None, clf=None)).html()
    assert "<h4>Firing</h4>" in shown and "<h4>Texts</h4>" not in shown
    with pytest.raises(InputError, match="gone"): TextView(study)


def test_a_figure_is_closed_and_repeats_itself(study):
    "No figure stays open, drawing fails or not."
    before = plt.get_fignums()
    assert NeuronView(study).html() == NeuronView(study).html()
    fig, ax = plt.subplots()
    ax.set_title("$\\nothing$") # No such formula
    with pytest.raises(ValueError): figure_html(ax, "x")
    assert plt.get_fignums() == before


def test_answers_are_those_of_ablate(study):
    "The same interventions on all test texts give the same probabilities for one."
    view = TextView(study)
    view.set(text=study.texts[1].texts[4], concept="tool", fraction=.75, range="posterior", vote=.25, edit="zero")
    v = view.values
    ivs = view.interventions(**{k: x for k, x in v.items() if k != "text"})
    assert {(iv.concept, iv.fraction, iv.edit, iv.vote) for iv in ivs if iv.condition == "range"} == {("tool", .75, "zero", .25)}
    out = ablate(study.clf, study.texts[1], ivs, progress=False)
    study.clf.model.train() # Left there by someone; it is read without dropout
    res = edit_text(study.clf, v["text"], ivs)
    assert study.clf.model.training
    study.clf.model.eval()
    same_answers(res.answers["base"], out.before[4], study.clf)
    for i, iv in enumerate(ivs): same_answers(res.answers[iv.condition], out.after[i, 4], study.clf, iv)
    shown = per_cents(view.html().split("<h4>Tokens")[0].split("<table>")[1])
    assert sorted(shown) == sorted(f"{p:.1%}" for a in res.answers.values() for p in a)


HOW = [("first", "all", 0.), ("mean", "readout", 0.), ("last", "readout", .6), ("mean", "all", .5)]


@pytest.mark.parametrize("site", ["residual.0", "mlp.1", "residual.1"])
@pytest.mark.parametrize("readout, positions, vote", HOW)
def test_tokens_and_neurons_by_hand(study, site, readout, positions, vote):
    "Share at every token, what was edited where, and the answer, against loops over one text."
    clf, texts = replace(study.clf, readout=readout), study.texts[0]
    train = record(clf, texts, site, progress=False)
    st, rankings, ranges, _ = fit_study(replace(study.spec, method=replace(study.spec.method, ranking=["dprime"])), train)
    iv = next(iv for iv in plan(st, rankings, ranges, site, fraction=[.5], concept=[1], positions=positions, vote=vote)
              if iv.condition == "range")
    text = study.texts[1].texts[1]
    res = edit_text(clf, text, [iv])
    batch = next(batches(encode(clf, [text])))
    with torch.no_grad(): x = run(clf, batch, [iv.site])[iv.site][0]
    where = range(len(x)) if positions == "all" else readout_places(readout, batch.special[0].tolist())
    out, share = by_hand(iv, x, list(where))
    free, _ = by_hand(replace(iv, vote=0.), x, [])
    _, alone = by_hand(replace(iv, vote=0.), x, list(range(len(x))))
    agree(res.share, alone, 4)
    assert torch.equal(free, x)
    assert res.edited.tolist() == [round(s*len(iv.neurons)) if t in where else 0 for t, s in enumerate(share)]
    with torch.no_grad(): want = logits(clf, batch, edits={iv.site: lambda _: out[None]}).softmax(-1)[0]
    same_answers(res.answers["range"], want, clf)
    at = readout_places(readout, batch.special[0].tolist())
    was, now = x[at].mean(0), out[at].mean(0)
    n = res.neurons
    assert set(n.neuron) >= set(np.flatnonzero((was != now).numpy())) and len(res.tokens) == len(x)
    agree(n.activation, was[n.neuron], clf)
    agree(n.new, now[n.neuron], clf)
    assert (abs(n.new-n.activation).diff().dropna() <= rounding(float(x.abs().max()))).all()
    assert iv.neurons[n["rank"].to_numpy()-1].tolist() == n.neuron.tolist()
    held = n.dropna()
    assert ((held.low <= held.activation) & (held.activation <= held.high)).all() and (readout == "mean" or len(held) == len(n))


@pytest.mark.parametrize("scoring", ["first", "sum"])
@pytest.mark.parametrize("site", ["residual.2", "residual.1"])
def test_a_prompted_model_answers(site, scoring):
    "A causal model is asked with its prompt; the answers are those of `ablate` on many texts."
    s = causal(site, scoring)
    view = TextView(s).set(text=s.texts[1].texts[3], concept="food", range="gaussian(1.5)")
    ivs = view.interventions(**{k: x for k, x in view.values.items() if k != "text"})
    out, res = ablate(s.clf, s.texts[1], ivs, progress=False), edit_text(s.clf, view.values["text"], ivs)
    for p in (res.answers["base"], s.test.probabilities[3]): same_answers(p, out.before[3], s.clf)
    for i, iv in enumerate(ivs): same_answers(res.answers[iv.condition], out.after[i, 3], s.clf, iv)
    assert res.readout.tolist() == [0]*(len(res.tokens)-1)+[1] and "".join(res.tokens).endswith("Topic:")
    assert view.html() == text_html(res) and "alert" not in view.html()


def test_a_text_that_cannot_be_read(study):
    "A sentence instead of a picture, and the view goes on."
    view = TextView(study)
    for text in ("", "  \n "):
        assert "there is no text yet" in view.set(text=text).picture.value and view.values["text"] == text
    assert "cat" in view.set(text="the cat").picture.value and "Before the edit" in view.picture.value
    assert "The text goes on" in view.set(text="cat dog "*40).html() and "role=\"alert\"" not in view.html()
    with pytest.raises(InputError, match="condition 'range'"): edit_text(study.clf, "cat", [])
    with pytest.raises(InputError, match="text cannot be 3"): view.set(text=3)


def wicked(study):
    "The study with markup in every text and every class name."
    classes = tuple(f"{EVIL}{c}" for c in study.classes)
    texts = tuple(replace(t, texts=[f"{EVIL} {x}" for x in t.texts], classes=classes) for t in study.texts)
    train, test = (replace(r, classes=classes) for r in (study.train, study.test))
    st, rankings, ranges, _ = fit_study(study.spec, train)
    return replace(study, train=train, test=test, statistics=st, rankings=rankings, ranges=ranges, texts=texts,
                   clf=replace(study.clf, classes=classes, source=EVIL))


def test_markup_in_the_data_stays_text(study):
    "Neither view lets a text or a name become an element."
    s = wicked(study)
    for view in (NeuronView(s), TextView(s).set(text=EVIL)):
        tags = re.findall(r"<img[^>]*>", view.static())
        assert "&lt;img src=x" in view.static() and all(t.startswith("<img alt=") and "data:image" in t for t in tags)
        assert not re.search(r"\s(onerror|onload)=", re.sub(r'"[^"]*"', "", "".join(re.findall(r"<[^>]+>", view.static()))))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_in_a_browser(study, offline, pictures, tmp_path, scheme):
    "Opened as a file: no request, no complaint, nothing runs, text stands out from its ground."
    s = wicked(study)
    shown = [NeuronView(s).static(), TextView(s).set(text=f"{EVIL} cat bread").static(), NeuronView(study).static(),
             TextView(study).static(), Toy().set(x=1).static()]
    head = "<!doctype html><html lang=en><meta charset=utf-8><title>views</title>"
    (tmp_path/"views.html").write_text(head+"".join(shown), encoding="utf-8")
    page, trouble = offline(tmp_path/"views.html", viewport=dict(width=1000, height=700), color_scheme=scheme)
    page.screenshot(path=pictures/f"views-{scheme}.png", full_page=True)
    assert not trouble and page.locator("img").count() == 2
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 300)")
    rgb = "e => (s => [s.color, s.backgroundColor].map(c => c.match(/[\\d.]+/g).slice(0, 3).map(Number)))(getComputedStyle(e))"
    fg, bg = page.locator(".nl-view").first.evaluate(rgb)
    assert abs(sum(fg)-sum(bg)) > 450 and (sum(bg) < 150) == (scheme == "dark")
    page.set_viewport_size(dict(width=360, height=700))
    assert page.evaluate("document.documentElement.scrollWidth <= 360") and not trouble


def test_many_classes_stay_readable():
    "Forty classes: the concept first, some rows, and how many are left out."
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 40
    values, names = (rng.normal(size=400)+labels).astype(np.float32), tuple(f"class {c}" for c in range(40))
    r = profile_neuron(values[:, None], labels, names, 0, np.float32([18]), np.float32([22]), 20, range="hand", middle=20.,
                       texts=[EVIL]*400)
    shown = neuron_html(r)
    assert "28 more classes not shown" in shown and ">class 20</td>" in shown.split("<tbody><tr>")[1][:60] and len(shown) < 80_000
