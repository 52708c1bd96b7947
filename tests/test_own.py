"""Methods of a user's own: registered in one call, then called by name in sweeps, studies, views and reports."""
import numpy as np
import pytest
import torch
from conftest import make_frame

import neuronlens as nl
from neuronlens import edit, saliency
from neuronlens.ground.core import InputError
from neuronlens.ground.data import make_texts
from neuronlens.models.model import load_classifier
from neuronlens.records.recording import record

pytestmark = pytest.mark.usefixtures("one_thread", "own_cache", "forgotten")


@pytest.fixture
def three():
    "One of each, registered."
    @nl.register_ranking
    def spread(statistics): return statistics.mean.max(0)-statistics.mean.min(0)+0*statistics.mean
    @nl.register_range(needs="activations")
    def hull(acts, labels, margin=.1):
        ends = [(acts[labels == c].min(0)-margin, acts[labels == c].max(0)+margin) for c in range(labels.max()+1)]
        return tuple(np.stack(e) for e in zip(*ends, strict=True))
    @nl.register_edit
    def flip(x, about): return -x
    return spread, hull, flip


@pytest.fixture(scope="module")
def recorded(bert):
    clf = load_classifier(bert, device="cpu")
    train, test = (make_texts(df.text.tolist(), df.label.tolist()) for df in (make_frame(20, 1), make_frame(12, 2)))
    return clf, record(clf, train, progress=False), test


def test_by_name_in_a_sweep(three, recorded):
    "What the functions say, in ranking, range, edit and table; a second class of numbers with the number given."
    clf, train, test = recorded
    e = nl.sweep(clf, train, test, ranking=["spread", "dprime"], range=["hull", "hull(0.5)"], edit="flip", fraction=.5, progress=False)
    assert set(e.frame.ranking) == {"spread", "dprime"} and set(e.frame.edit) == {"none", "flip"}
    assert set(e.frame.range) == {"none", "full", "hull(0.1)", "hull(0.5)"}
    iv = next(i for i in nl.grid(train, ranking="spread", range="hull(0.5)", edit="flip") if i.condition == "range")
    own = train.acts[train.labels == train.classes.index(iv.concept)]
    np.testing.assert_allclose(iv.lo[:, 0], own.min(0)-.5, rtol=1e-6)
    mean = np.stack([train.acts[train.labels == c].mean(0) for c in range(3)])
    assert set(iv.neurons.tolist()) == set(np.argsort(-(mean.max(0)-mean.min(0)), kind="stable")[:16])
    x = torch.as_tensor(own)
    out, gate = iv(x)
    assert gate[:, iv.neurons].all() and torch.equal(out[gate], -x[gate])


def test_by_name_in_a_study(three, make_study, tmp_path):
    "Run, saved, opened, reported; where the name is not known it is refused with what there is."
    spec = nl.read_study(make_study(method=dict(ranking=["spread"], fraction=[.5], range="hull(0.2)", edit="flip", layers=False)))
    study = nl.run_study(spec, tmp_path/"out", progress=False)
    from neuronlens.studies.saved import save_study
    save_study(study, tmp_path/"out")
    page = nl.write_report(study, tmp_path/"out", progress=False).read_text()
    assert all(name in page for name in ("spread", "hull(0.2)", "flip"))
    again = nl.load_study(tmp_path/"out")
    np.testing.assert_array_equal(again.ranking.scores, study.ranking.scores)
    np.testing.assert_array_equal(again.ranges.hi, study.ranges.hi)
    from neuronlens.views.inspect import NeuronView, TextView
    assert "hull(0.2)" in str(NeuronView(study).controls["range"].kind.options)
    assert "flip" in str(TextView(study.open()).controls["edit"].options)
    saliency.FROM_STATISTICS.pop("spread")
    with pytest.raises(InputError, match="'spread'"): nl.load_study(tmp_path/"out")
    with pytest.raises(InputError, match="ranking 'spread' is none of"): nl.run_study(spec, progress=False)


def test_a_notebook_cell_may_run_again(three):
    "The same name again replaces one's own, also with another need; a method of the package is not replaced."
    @nl.register_ranking(needs="activations")
    def spread(acts, labels): return np.ones((labels.max()+1, acts.shape[1]))
    assert "spread" in saliency.FROM_ACTIVATIONS and "spread" not in saliency.FROM_STATISTICS
    @nl.register_edit
    def flip(x, about, alpha=2.): return -alpha*x
    assert edit.parse_edit("flip") == ("flip", 2.)
    for register, name in ((nl.register_ranking, "dprime"), (nl.register_ranking, "integrated_gradients"), (nl.register_range, "full"),
                           (nl.register_edit, "mean")):
        def f(*args): pass
        f.__name__ = name
        with pytest.raises(InputError, match=f"{name!r} is what the package calls one of its own"): register(f)


def named(name, f):
    f.__name__ = name
    return f


@pytest.mark.parametrize("register,f,said", [
    (nl.register_ranking, 5, "a function is registered, not 5"), (nl.register_ranking, lambda s: 0, "'<lambda>' is no name"),
    (nl.register_range, named("wide", lambda s, a, b: 0), "may take one number behind its first 1"),
    (nl.register_edit, named("Loud", lambda x, about: x), "'Loud' is no name"),
    (nl.register_edit, named("loud", lambda x, about, how="much": x), "may take one number")])
def test_what_cannot_be_registered(register, f, said):
    with pytest.raises(InputError, match=said): register(f)
    with pytest.raises(InputError, match="needs='text' is none of"): nl.register_ranking(needs="text")
    with pytest.raises(InputError, match="needs='text' is none of"): nl.register_range(needs="text")


def test_what_a_method_gives_is_checked(recorded):
    "Another shape, no number, no pair: a sentence with the name of the method."
    clf, train, test = recorded
    gives = {}
    nl.register_ranking(named("odd", lambda s: gives["odd"](s)))
    nl.register_range(named("strange", lambda s: gives["strange"](s)))
    nl.register_edit(named("queer", lambda x, about: gives["queer"](x)))
    for f, said in ((lambda s: s.mean[0], "ranking 'odd' gives scores of shape"), (lambda s: s.mean*np.nan, "not finite")):
        gives["odd"] = f
        with pytest.raises(InputError, match=said): nl.rank(train.acts, train.labels, "odd")
    for f, said in ((lambda s: s.mean, "must give two arrays"), (lambda s: (s.mean, s.mean[:1]), "gives ends of shape"),
                    (lambda s: (s.mean*np.nan, s.mean), "an end that is no number")):
        gives["strange"] = f
        with pytest.raises(InputError, match=f"'strange'.*{said}|{said}"): nl.fit_ranges(train.acts, train.labels, "strange")
    for f, said in ((lambda x: x[..., :1], "edit 'queer' gives"), (lambda x: 0, "edit 'queer' gives int")):
        gives["queer"] = f
        with pytest.raises(InputError, match=said): nl.sweep(clf, train, test, edit="queer", progress=False)
    gives["queer"] = lambda x: x*np.inf
    with pytest.raises(InputError, match="edit 'queer' for concept"): nl.sweep(clf, train, test, edit="queer", progress=False)


def test_former_names_of_settings(tmp_path):
    "Until 0.4 what took several values by a plural takes them still, says so, and gives the same; a study file of 0.2 is read as it was."
    with pytest.warns(DeprecationWarning, match=r"^Preset\(rankings=\) is called ranking="):
        p = nl.presets.Preset("mine", "range", rankings=("dprime",), range=("posterior",), edit=("mean",))
    assert p.ranking == p.rankings == ("dprime",)
    file = tmp_path/"study.toml"
    rest = '[data]\ntrain = "a.csv"\ntest = "b.csv"\n[model]\nclassifier = "m"\n[method]\n'
    file.write_text(rest+'rankings = ["probeless"]\nfractions = [0.25]\n')
    old = nl.read_study(file)
    file.write_text(rest+'ranking = ["probeless"]\nfraction = [0.25]\n')
    assert old.method == nl.read_study(file).method and old.method.fractions == [.25]
    file.write_text(rest+'ranking = ["probeless"]\nrankings = ["dprime"]\n')
    with pytest.raises(nl.InputError, match="rankings is what ranking was called before; give one of them"): nl.read_study(file)
