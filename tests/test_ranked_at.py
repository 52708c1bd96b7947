"Rankings taken at the readout, at tokens and at the mean of every text: what is written by hand, from one pass, by name everywhere."
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_architectures import LABELLED, TEXTS, classifier

import neuronlens as nl
from neuronlens.arrays.saliency import rank
from neuronlens.arrays.statistics import class_statistics
from neuronlens.edits.attribution import model_rankings, rank_model
from neuronlens.edits.controls import rotated
from neuronlens.edits.planning import means_of
from neuronlens.edits.sweeps import effects_on, grid, interventions, ranked_by
from neuronlens.ground.core import InputError
from neuronlens.ground.data import make_texts, take
from neuronlens.ground.rounding import agree
from neuronlens.ground.setting import Setting
from neuronlens.records.given import correct_only, recording
from neuronlens.records.recording import load_recording, record, save_recording
from neuronlens.records.summary import summarise
from neuronlens.records.tokens import record_tokens
from neuronlens.studies.check import study_cost
from neuronlens.studies.saved import load_study
from neuronlens.studies.spec import MethodSpec, StudySpec, parse_study, read_study

pytestmark = pytest.mark.usefixtures("one_thread")
SITES = ["residual.1", "mlp.0"]
BOTH = ["text", "tokens"]


@pytest.fixture(scope="module", params=["bert", "gpt2", "llama"])
def clf(request): return classifier(request.param)


@pytest.fixture(scope="module")
def rec(clf): return record(clf, LABELLED, SITES, beside=BOTH, progress=False)


def plainly(clf, text, block=1):
    "What the model has behind a block at every token of one text `[T, D]`, by a hook of one's own, and which tokens are special."
    seen, blocks = [], next(m for m in clf.model.modules() if isinstance(m, torch.nn.ModuleList))
    handle = blocks[block].register_forward_hook(lambda m, i, o: seen.append(o[0] if isinstance(o, tuple) else o))
    ids = clf.tokenizer(text, return_tensors="pt", return_special_tokens_mask=True)
    special = ids.pop("special_tokens_mask")[0].numpy() == 1
    with torch.inference_mode(): clf.model(**{k: v for k, v in ids.items() if k != "token_type_ids"})
    handle.remove()
    return seen[0].reshape(-1, seen[0].shape[-1]).float().numpy(), special


def by_hand(clf):
    "Readouts, tokens, their labels, and means of texts."
    readouts, tokens, labels, means = [], [], [], []
    for text, label in zip(TEXTS, LABELLED.labels, strict=True):
        h, special = plainly(clf, text)
        readouts.append(h[0 if clf.readout == "first" else -1])
        own = h[~special]
        tokens, labels, means = [*tokens, *own], [*labels]+[label]*len(own), [*means, own.mean(0, dtype=np.float64)]
    return np.array(readouts), np.array(tokens), np.array(labels), np.array(means)


@pytest.mark.parametrize("tokens, order", [(None, range(6)), (1, [3, 0, 5, 2, 1, 4]), (20, [5, 4, 3, 2, 1, 0])],
                         ids=["together", "alone", "few"])
def test_every_place_is_what_a_plain_pass_has(clf, tokens, order):
    "Padding and special tokens count nowhere; alone, in batches, in any order."
    order = np.array(order)
    got = record(clf, take(LABELLED, order), "residual.1", beside=BOTH, tokens=tokens, size=4, progress=False)
    readouts, states, labels, means = by_hand(clf)
    agree(got.acts[np.argsort(order)], readouts, clf)
    agree(got.placed("text").acts[np.argsort(order)], means, clf)
    back = got[np.argsort(order)].placed("tokens")
    agree(back.acts, states, clf)
    np.testing.assert_array_equal(back.labels, labels)
    for place, acts, y in (("readout", readouts, LABELLED.labels), ("tokens", states, labels), ("text", means, LABELLED.labels)):
        for name in ("dprime", "max_activation", "average_precision"):
            want = rank(acts, y, name, classes=LABELLED.classes)
            found = rank(got, f"{name}@{place}")
            assert found.name == f"{name}@{place}" and found.classes == LABELLED.classes
            if name != "average_precision": agree(found.scores, want.scores, clf, size=max(1, abs(want.scores).max())*10)
            elif place != "tokens": np.testing.assert_allclose(found.scores, want.scores)
    np.testing.assert_array_equal(rank(got).scores, rank(got, "dprime@readout").scores)


def test_one_pass_a_text(clf):
    "All three places come from one pass, and each text goes through once."
    rows, block = [], next(m for m in clf.model.modules() if isinstance(m, torch.nn.ModuleList))[0]
    handle = block.register_forward_hook(lambda m, i, o: rows.append(len(i[0])))
    full = record(clf, LABELLED, SITES, beside=BOTH, tokens=12, progress=False)
    handle.remove()
    assert sum(rows) == len(TEXTS)
    assert {*full.beside} == {f"{s}@{p}" for s in SITES for p in BOTH} | {"@tokens"}


def test_what_is_kept_is_what_others_record(clf, rec):
    "Means are those of readout 'mean', tokens those of `record_tokens`, bit by bit; nothing else changes."
    plain, mean = (record(clf, LABELLED, SITES, readout=r, progress=False) for r in (None, "mean"))
    tok = record_tokens(clf, LABELLED, SITES, progress=False)
    for s in SITES:
        np.testing.assert_array_equal(rec.at(s), plain.at(s))
        np.testing.assert_array_equal(rec.placed("text").at(s), mean.at(s))
        np.testing.assert_array_equal(rec.placed("tokens").at(s), tok.at(s))
    np.testing.assert_array_equal(rec.placed("tokens").labels, tok.labels)
    np.testing.assert_array_equal(rec.probabilities, plain.probabilities)
    assert plain.beside == {} and "beside" not in plain.provenance and rec.provenance["beside"] == ["tokens", "text"]
    assert mean.placed("text") is mean and tok.placed("tokens") is tok and rec.placed("readout") is rec
    assert record(clf, LABELLED, SITES, readout="mean", beside="text", progress=False).beside == {}


def test_long_texts(clf):
    "Of a long text sixteen tokens are kept, and the mean is over all of them."
    texts = make_texts([" ".join(f"w{i}" for i in range(k, k+24)) for k in (0, 30, 60, 5, 40, 50)], list("abcabc"))
    got = record(clf, texts, "residual.1", beside=BOTH, progress=False)
    assert got.beside["@tokens"].tolist() == [16]*6
    h, special = plainly(clf, texts.texts[2])
    agree(got.placed("text").acts[2], h[~special].mean(0), clf)


def test_some_of_the_texts(rec):
    "A part of a recording, in any order and twice, keeps what belongs to its texts."
    n = rec.beside["@tokens"]
    ends = np.cumsum(n)
    for rows in ([4, 0, 4], [3], slice(1, 5), np.arange(6) % 2 == 0, []):
        part, at = rec[rows], np.arange(6)[rows] if len(np.arange(6)[rows]) else np.arange(0)
        assert part.beside["@tokens"].tolist() == n[at].tolist()
        want = [rec.beside["mlp.0@tokens"][ends[i]-n[i]:ends[i]] for i in at]
        np.testing.assert_array_equal(part.beside["mlp.0@tokens"], np.concatenate([rec.beside["mlp.0@tokens"][:0], *want]))
        np.testing.assert_array_equal(part.placed("text").at("mlp.0"), rec.placed("text").at("mlp.0")[at])
        np.testing.assert_array_equal(part.placed("tokens").labels, np.repeat(part.labels, n[at]))
    own = replace(rec, probabilities=np.eye(3, dtype=np.float32)[rec.labels])
    assert len(correct_only(own).placed("tokens")) == n.sum()


def test_saved_and_loaded(rec, tmp_path):
    back = load_recording(save_recording(rec, tmp_path/"rec.safetensors"))
    assert {*back.beside} == {*rec.beside}
    for k, a in rec.beside.items(): np.testing.assert_array_equal(back.beside[k], a)
    np.testing.assert_array_equal(rank(back, "dprime@text").scores, rank(rec, "dprime@text").scores)
    one = load_recording(save_recording(replace(rec, activations={"mlp.0": rec.at("mlp.0")}), tmp_path/"one.safetensors"))
    assert {*one.beside} == {"mlp.0@text", "mlp.0@tokens", "@tokens"}
    assert load_recording(save_recording(replace(rec, beside={}), tmp_path/"old.safetensors")).beside == {}
    kept = rank(rec, "dprime@tokens")
    kept.save(tmp_path/"ranking.safetensors")
    assert nl.load(tmp_path/"ranking.safetensors").name == "dprime@tokens"


def test_shards_and_the_cache(bert, data, own_cache, tmp_path, monkeypatch):
    "Shards keep it, a recording that holds more is taken for one that wants less, and never the other way round."
    clf = nl.load_classifier(bert)
    texts = take(nl.read_texts(data.train), np.arange(12))
    full = record(clf, texts, ["residual.0", "residual.1"], beside=BOTH, cache=True, progress=False)
    whole = record(clf, texts, ["residual.0", "residual.1"], beside=BOTH, size=5, folder=tmp_path/"shards", progress=False)
    ran = []
    monkeypatch.setattr("neuronlens.records.shards.run", lambda *a, real=nl.shards.run: ran.append(1) or real(*a))
    again = record(clf, texts, ["residual.0", "residual.1"], beside=BOTH, size=5, folder=tmp_path/"shards", progress=False)
    for k, a in whole.beside.items(): np.testing.assert_array_equal(again.beside[k], a)
    for want, keys in (((), set()), ("text", {"residual.1@text"}), (BOTH, {"residual.1@text", "residual.1@tokens", "@tokens"})):
        less = record(clf, texts, "residual.1", beside=want, cache=True, progress=False)
        assert {*less.beside} == keys and less.sites == ["residual.1"]
        assert {*less.provenance.get("beside", [])} == {*([want] if want == "text" else want)}
        for k in keys: np.testing.assert_array_equal(less.beside[k], full.beside[k])
    assert not ran
    other = take(nl.read_texts(data.train), np.arange(12, 24))
    record(clf, other, "residual.1", cache=True, progress=False)
    ran.clear()
    assert record(clf, other, "residual.1", beside="text", cache=True, progress=False).beside and ran
    with pytest.raises(InputError, match="holds another recording"):
        record(clf, texts, ["residual.0", "residual.1"], size=5, folder=tmp_path/"shards", progress=False)


def test_a_summary(clf, rec, tmp_path):
    "Of many texts class statistics are kept at every place asked for, in parts and as a whole, and saved."
    s = summarise(clf, LABELLED, SITES, beside=BOTH, quantiles=False, size=2, progress=False)
    assert s.sites == SITES and {*s.beside} == {f"{x}@{p}" for x in SITES for p in BOTH}
    s.save(tmp_path/"s.safetensors")
    for own in (s, nl.load(tmp_path/"s.safetensors")):
        for p in BOTH:
            want = class_statistics(rec.placed(p).at("mlp.0"), rec.placed(p).labels, rec.classes)
            agree(own.beside[f"mlp.0@{p}"].mean, want.mean, clf)
            found, = ranked_by(rec, None, "mlp.0", [f"dprime@{p}"])
            agree(rank(None, statistics=own.beside[f"mlp.0@{p}"]).scores, found.scores, clf, size=100)
    right = summarise(clf, LABELLED, SITES, beside=BOTH, correct_only=True, quantiles=False, progress=False)
    hit = rec.predicted == rec.labels
    assert right.beside["mlp.0@tokens"].n.sum() == rec.beside["@tokens"][hit].sum()
    assert summarise(clf, LABELLED, SITES, quantiles=False, progress=False).beside == {}
    with pytest.raises(InputError, match="a recording is summarised at its readout"): summarise(rec, beside="text")


def test_grids_and_sweeps_by_name(clf, rec):
    "Names stand in settings and tables, each with its own neurons; ranges are fitted where they were before."
    names = ["dprime", "dprime@tokens", "dprime@text"]
    ivs = grid(rec, site="residual.1", ranking=names, fraction=.25, fitted_at=["readout", "tokens"])
    for n in names:
        want = rank(replace(rec, activations={"residual.1": rec.at("residual.1")}), n).salient(.25)
        for iv in ivs:
            if iv.ranking == n and iv.condition == "range": np.testing.assert_array_equal(iv.neurons, want[rec.classes.index(iv.concept)])
    tok = record_tokens(clf, LABELLED, SITES, most=None, progress=False)
    given = grid(rec, site="residual.1", ranking=names, fraction=.25, fitted_at=["readout", "tokens"], tokens=tok) # Short texts: the same
    assert all(torch.equal(a.neurons, b.neurons) and torch.equal(a.lo, b.lo) for a, b in zip(ivs, given, strict=True))
    shown = effects_on(clf, LABELLED, ivs, progress=False)
    assert {*shown.frame.ranking} == {*names} and len(shown.only(ranking="dprime@text").frame)
    one = Setting("a", "range", "residual.1", "dprime@text", .25, "gaussian(2.5)", fitted_at="tokens")
    made = interventions(rec, [one, replace(one, ranking="dprime@tokens")])
    assert [iv.ranking for iv in made] == ["dprime@text", "dprime@tokens"]
    swept = nl.sweep(clf, rec, LABELLED, site="residual.1", ranking="probeless@text", progress=False)
    assert swept.frame.ranking.eq("probeless@text").all()
    found = rank_model(clf, LABELLED, rec, "dprime@text", site="mlp.0")
    np.testing.assert_array_equal(found.scores, ranked_by(rec, None, "mlp.0", ["dprime@text"])[0].scores)
    assert found.name == "dprime@text" and len(rotated(made[:1], rec)) == 1


def test_shuffled_labels_shuffle_every_place(rec):
    "Labels are those of the recording at every place."
    other = replace(rec, labels=rec.labels[::-1])
    np.testing.assert_array_equal(other.placed("tokens").labels, np.repeat(other.labels, rec.beside["@tokens"]))
    assert not np.array_equal(rank(other, "dprime@text").scores, rank(rec, "dprime@text").scores) or len({*rec.labels}) == 1


def test_votes_of_a_text_learn_from_means_that_are_kept_beside(clf, rec):
    "What a text is asked at is there as soon as means are kept."
    acts, labels = means_of(rec, "residual.1")
    np.testing.assert_array_equal(acts, rec.placed("text").at("residual.1"))
    np.testing.assert_array_equal(labels, rec.labels)
    assert means_of(replace(rec, beside={}), "residual.1") is None
    many = np.tile(np.arange(6), 8)
    how = dict(site="residual.1", range="gaussian(1)", vote="weighted", scope="text", fitted_at="tokens")
    ivs = grid(rec[many], ranking="dprime@text", concept=[0], **how)
    assert ivs[1].votes is not None
    with pytest.raises(InputError, match="learns from the mean over the tokens of every text"):
        tok = rec[many].placed("tokens")
        grid(replace(rec[many], beside={}), tokens=tok, **how)


def test_given_activations():
    "Arrays know no place, but for means that were given."
    rng = np.random.default_rng(0)
    acts, means, y = rng.normal(size=(40, 5)), rng.normal(size=(40, 5)).astype(np.float32), np.arange(40) % 2
    bare, own = recording(acts, y), recording(acts, y, means=means)
    np.testing.assert_array_equal(rank(own, "dprime@text").scores, rank(means, y).scores)
    two = recording(dict(a=acts, b=acts), y, means=dict(a=means, b=means))
    np.testing.assert_array_equal(two[:10].placed("text").at("given.b"), means[:10])
    with pytest.raises(InputError, match=r"nothing of given.0 at place 'text': give recording means="): rank(bare, "dprime@text")
    with pytest.raises(InputError, match=r"nothing of given.0 at place 'tokens': give tokens=, a recording"): rank(own, "dprime@tokens")
    with pytest.raises(InputError, match="means are of shape"): recording(acts, y, means=means[:, :3])
    with pytest.raises(InputError, match="means are of shape"): recording(dict(a=acts, b=acts), y, means=dict(a=means))
    with pytest.raises(InputError, match="of a place that arrays do not tell"): rank(acts, y, "dprime@text")
    spec = StudySpec(method=MethodSpec(ranking=["dprime@text"], fraction=[.4]))
    with pytest.raises(InputError, match="give recording means="): nl.run_study(spec, recordings=(bare, bare), progress=False)
    study = nl.run_study(spec, recordings=(own, own), progress=False)
    np.testing.assert_array_equal(study.ranking.scores, rank(means, y).scores)


def test_a_study(make_study, tmp_path, own_cache):
    "By name in a study file; saved and opened again it is the same."
    spec = read_study(make_study(method=dict(ranking=["dprime@text", "dprime", "probeless@tokens"], fraction=[.5], layers=False)))
    study = nl.run_study(spec, tmp_path/"out", progress=False)
    back = load_study(tmp_path/"out")
    assert [r.name for r in back.rankings] == ["dprime@text", "dprime", "probeless@tokens"]
    assert {*study.effects.frame.ranking} == {*spec.method.ranking}
    for a, b in zip(study.rankings, back.rankings, strict=True): np.testing.assert_array_equal(a.scores, b.scores)
    np.testing.assert_array_equal(study.rankings[0].scores, rank(study.train, "dprime@text").scores)
    assert study.tokens is None and not np.array_equal(study.rankings[0].scores, study.rankings[1].scores)
    at = nl.run_study(replace(spec, method=replace(spec.method, fitted_at="tokens")), progress=False)
    assert "@tokens" not in at.train.beside and len(at.tokens)
    np.testing.assert_array_equal(at.rankings[2].scores, rank(at.tokens, "probeless").scores)


def test_the_check_of_a_study_says_what_it_costs(make_study, own_cache):
    "`check` plans it as a run does."
    cost = study_cost(read_study(make_study(method=dict(ranking=["dprime@text", "dprime@tokens"], fraction=[.5], layers=False))))
    assert not cost.refusals and cost.interventions


# --- refused

def test_what_is_no_place(clf, rec):
    said = "ranking 'dprime@words': place 'words' is none of readout, tokens, text"
    for ask in (lambda: rank(rec, "dprime@words"), lambda: rank(rec.acts, rec.labels, "dprime@words"),
                lambda: grid(rec, ranking=["dprime", "dprime@words"]), lambda: grid(rec, ranking="dprime@")):
        with pytest.raises(InputError, match=said.replace("words", "(words|)")): ask()
    with pytest.raises(InputError, match="no ranking is called 'd'"): grid(rec, ranking="d@text")
    with pytest.raises(InputError, match="beside='words' is none of tokens, text"): record(clf, LABELLED, beside=["text", "words"])
    with pytest.raises(InputError, match="place 'words' is none of"): rec.placed("words")
    with pytest.raises(InputError, match="makes statistics of its own"): rank(rec, "dprime@text", statistics=class_statistics(rec))
    for name in ("dprime@words", "gradient_x_activation@text", "d@text"):
        assert name not in model_rankings()
        with pytest.raises(InputError, match=f"ranking '{name}' is none of average_precision"):
            parse_study(dict(method=dict(ranking=[name]), data=dict(train="a.csv"), model=dict(encoder="minilm")))
    assert all(n in model_rankings() for n in ("dprime", "dprime@text", "probe@tokens", "integrated_gradients"))


def test_what_was_not_recorded(clf, rec):
    "One sentence says how to record it."
    plain = replace(rec, beside={})
    for place in BOTH:
        for ask in (lambda: rank(plain, f"dprime@{place}"), lambda: grid(plain, ranking=f"dprime@{place}"), # noqa: B023
                    lambda: rank_model(clf, LABELLED, plain, f"dprime@{place}")): # noqa: B023
            said = rf"holds nothing of residual.1 at place '{place}': give record\(.., beside='{place}'\)"
            with pytest.raises(InputError, match=said): ask()
