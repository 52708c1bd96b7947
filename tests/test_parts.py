"""Recordings, texts and outcomes are divided in the same words, stay together, and stand wherever activations and labels do."""
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import neuronlens as nl
from neuronlens.arrays.distributions import fit_distributions
from neuronlens.arrays.firing import firing_matrix
from neuronlens.arrays.probing import fit_probe
from neuronlens.arrays.ranges import fit_ranges
from neuronlens.arrays.saliency import rank
from neuronlens.arrays.statistics import class_statistics
from neuronlens.edits.ablation import ablate
from neuronlens.edits.effects import Effects, changes_of, measure_effects
from neuronlens.edits.evidence import compare, intervals, some_texts
from neuronlens.edits.sweeps import grid
from neuronlens.ground.core import InputError
from neuronlens.ground.data import read_texts, take
from neuronlens.records.recording import load_recording, record, save_recording
from neuronlens.studies import saved
from neuronlens.studies.study import reopened

pytestmark = pytest.mark.usefixtures('one_thread')
ROWS = {'slice': slice(1, 30, 2), 'mask': np.arange(36) % 3 != 1, 'list': [5, 0, 35, 7, 8, 20], 'array': np.array([-1, 4, 4, 9, 12])}


@pytest.fixture(scope='module')
def clf(bert): return nl.load_classifier(bert)


@pytest.fixture(scope='module')
def parts(clf, data):
    "Training recording, test texts, their recording, edits, and what the edits did."
    train = record(clf, read_texts(data.train), ['residual.-1', 'residual.0'], progress=False)
    texts = read_texts(data.test)
    rec = record(clf, texts, ['residual.-1', 'residual.0'], progress=False)
    edits = grid(train, site='residual.1', range='posterior', fraction=[.3, .6])
    return train, texts, rec, edits, ablate(clf, texts, edits, recording=rec, progress=False)


@pytest.mark.parametrize('rows', ROWS.values(), ids=ROWS)
def test_rows(parts, rows):
    "Texts, recording and outcome give the same rows, and a part of a part is one of the whole."
    _, texts, rec, _, outcome = parts
    at = np.arange(36)[rows]
    assert texts[rows].texts == [texts.texts[i] for i in at] == take(texts, at).texts
    part = rec[rows]
    for s in rec.sites: np.testing.assert_array_equal(part.at(s), rec.at(s)[at])
    np.testing.assert_array_equal(part.probabilities, rec.probabilities[at])
    np.testing.assert_array_equal(part.labels, texts[rows].labels)
    for o in (outcome[rows], changes_of(outcome)[rows], some_texts(outcome, rows)):
        np.testing.assert_array_equal(o.fires, outcome.fires[:, at])
        np.testing.assert_array_equal(o.before, outcome.before[at])
    assert part.provenance['part']['of_texts'] == 36 and part.provenance['n_texts'] == len(at)
    assert part.provenance['texts_sha256'] != rec.provenance['texts_sha256'] == part.provenance['part']['of_texts_sha256']
    np.testing.assert_array_equal(part[::-1].acts, rec[at[::-1]].acts)


def test_a_part_goes_with_its_texts(clf, parts):
    "`ablate` takes the same rows of both, however they were chosen, and no others."
    _, texts, rec, edits, outcome = parts
    half, other = np.arange(0, 36, 2), np.arange(1, 36, 2)
    got = ablate(clf, texts[half], edits, recording=rec[half], progress=False)
    np.testing.assert_allclose(got.after, outcome.after[:, half], atol=1e-6)
    np.testing.assert_array_equal(got.before, outcome.before[half])
    for t, r in ((take(texts, half), rec[::2]), (texts[6:][::2], rec[::2][3:]), (texts, rec[:])):
        ablate(clf, t, edits[:1], recording=r, progress=False)
    for t, r in ((texts[half], rec[other]), (texts[half], rec), (texts, rec[half]), (texts[half], rec[half[::-1]])):
        with pytest.raises(InputError, match="of other texts"): ablate(clf, t, edits[:1], recording=r, progress=False)
    moved = replace(texts[half], texts=[t+'.' for t in texts[half].texts])
    with pytest.raises(InputError, match="of other texts"): ablate(clf, moved, edits[:1], recording=rec[half], progress=False)


def test_a_part_survives_a_file(clf, parts, tmp_path):
    _, texts, rec, edits, _ = parts
    back = load_recording(save_recording(rec[::2], tmp_path/'part.safetensors'))
    assert back.provenance['part']['of_texts'] == 36
    ablate(clf, texts[::2][3:], edits[:1], recording=back[3:], progress=False)
    with pytest.raises(InputError, match="of other texts"):
        ablate(clf, texts[::2], edits[:1], recording=replace(back, hashes=None), progress=False)


@pytest.mark.parametrize('rows, said', [
    ('animal', "not by 'animal'"), (['animal', 'food'], "not by 'animal'"), (3, "rows=3 choose nothing of 36"), (36, "choose nothing"),
    ([36], "choose nothing"), ([True, False], "choose nothing of 36"), ([.5], "choose nothing"), (None, "choose nothing"),
    ([[1, 2]], "choose nothing"), ([[1], [1, 2]], "choose nothing"),
    ({1, 2}, "choose nothing"), (pd.Series(['a']), "not by 'a'"), (np.array([-37]), "choose nothing")])
def test_what_chooses_nothing_is_refused(parts, rows, said):
    for one in (parts[1], parts[2], parts[4], changes_of(parts[4])):
        with pytest.raises(InputError, match=said): one[rows]


def test_parts_are_no_lists(parts):
    "A recording is not walked through by chance."
    for one in parts[1:3]:
        with pytest.raises(TypeError): iter(one)
        assert not np.iterable(one)


def test_a_recording_stands_for_its_activations_and_labels(parts):
    train, _, rec, _, _ = parts
    a, y, c = train.acts, train.labels, train.classes
    np.testing.assert_array_equal(class_statistics(train).mean, class_statistics(a, y, c).mean)
    assert class_statistics(acts=train).classes == c
    for name in ('dprime', 'probe', 'random'):
        want = rank(a, y, name, classes=c, seed=3)
        for got in (rank(train, name, seed=3), rank(train, ranking=name, seed=3), rank(acts=train, ranking=name, seed=3)):
            np.testing.assert_array_equal(got.scores, want.scores)
            assert got.classes == c
    for kind in ('gaussian(2)', 'posterior', 'quantile'):
        np.testing.assert_array_equal(fit_ranges(train, kind).lo, fit_ranges(a, y, kind).lo)
    np.testing.assert_array_equal(fit_distributions(train).ks, fit_distributions(a, y).ks)
    np.testing.assert_array_equal(fit_probe(train).weights, fit_probe(a, y).weights)
    r, s = fit_ranges(train), rank(train).salient(.5)
    np.testing.assert_array_equal(firing_matrix(rec, r, s).rate, firing_matrix(rec.acts, rec.labels, r, s).rate)
    assert firing_matrix(rec, ranges=r, salient=s).classes == c
    assert rank(train, statistics=class_statistics(train)).classes == c
    assert rank(train, classes=['p', 'q', 'r']).classes == ('p', 'q', 'r')
    for call in (lambda: rank(train, train.labels), lambda: fit_ranges(train, y.tolist()), lambda: class_statistics(train, y)):
        with pytest.raises(InputError, match="a recording has its own labels"): call()
    with pytest.raises(InputError, match="labels"): rank(a)
    assert rank.__name__ == 'rank' and 'ranking' in rank.__wrapped__.__annotations__


# --- a study keeps its outcome

@pytest.fixture
def study(make_study, tmp_path, no_figures):
    return nl.run_study(nl.read_study(make_study()), tmp_path/'out', progress=False)


def test_paired_tests_from_a_folder(study, tmp_path):
    "Differences, p-values and intervals of a study that was opened are those of the study that ran, digit by digit."
    back = nl.load_study(tmp_path/'out')
    assert back.outcome is not None and 'recording/outcome.safetensors' in json.loads((tmp_path/'out/provenance.json').read_text())['files']
    for s in (back, back.outcome):
        a, b = (compare(x, 'range', 'random', draws=50, flips=99).frame for x in (s, study))
        pd.testing.assert_frame_equal(a, b)
        a, b = (intervals(x, draws=50, progress=False).frame for x in (s, study))
        pd.testing.assert_frame_equal(a, b)
    pd.testing.assert_frame_equal(measure_effects(back).frame, study.effects.frame, rtol=1e-6)
    half = back.outcome[::2]
    assert len(half.labels) == 18
    pd.testing.assert_frame_equal(intervals(back, seed=back.spec.seed, progress=False).frame, study.intervals.frame)
    nl.saved.save_study(back, tmp_path/'again')
    a, b = (compare(x, 'range', 'full', flips=9).frame for x in (nl.load_study(tmp_path/'again'), study))
    pd.testing.assert_frame_equal(a, b)


def test_how_large_an_outcome_is(study, tmp_path):
    "Twelve bytes and a bit for every edit and text."
    size = (tmp_path/'out/recording/outcome.safetensors').stat().st_size
    I, N = study.outcome.right.shape
    assert abs(size-I*(12*N+-(-N//8))) < 1000


def test_an_outcome_that_is_not_the_one_it_was(study, tmp_path):
    "A flipped bit, or an outcome of another study, is refused."
    path = tmp_path/'out/recording/outcome.safetensors'
    data = path.read_bytes()
    path.write_bytes(data[:-9]+bytes([data[-9]^16])+data[-8:])
    with pytest.raises(InputError, match="is not the file that this study wrote"): nl.load_study(tmp_path/'out')
    path.unlink()
    with pytest.raises(InputError, match="is missing"): nl.load_study(tmp_path/'out')
    path.write_bytes(data)
    with pytest.raises(InputError, match="of another study"): saved.read_outcome(path, study.effects, study.test[:30])
    with pytest.raises(InputError, match="of another study"):
        saved.read_outcome(path, Effects(study.effects.frame[:-1]), study.test)


def test_studies_without_an_outcome(study, tmp_path, monkeypatch):
    "One that is too large, or whose effects are others, is not kept; what needs it says so."
    bare = replace(study, outcome=None)
    for call in (lambda: intervals(bare), lambda: compare(bare, 'range', 'full'), lambda: measure_effects(bare)):
        with pytest.raises(InputError, match="this study keeps no outcome"): call()
    nl.saved.save_study(replace(study, effects=study.effects.only(condition=['base', 'full'])), tmp_path/'other')
    assert nl.load_study(tmp_path/'other').outcome is None
    monkeypatch.setattr(saved, 'MOST_OUTCOMES', 100)
    nl.saved.save_study(study, tmp_path/'large')
    back = nl.load_study(tmp_path/'large')
    assert back.outcome is None and not (tmp_path/'large/recording/outcome.safetensors').exists()
    with pytest.raises(InputError, match="what `ablate` gives"): intervals(study.effects)
    shutil.rmtree(tmp_path/'large')


def test_an_older_recording_knows_its_texts_once_the_study_is_open(study):
    old = replace(study, train=replace(study.train, hashes=None), test=replace(study.test, hashes=None), clf=None, texts=None)
    now = reopened(old, progress=False)
    edits = grid(now.train, concept=0)
    ablate(now.clf, now.texts[1][::2], edits, recording=now.test[::2], progress=False)
