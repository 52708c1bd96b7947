"""A model is asked once: what a study recorded serves the notebook, the same study again, and whoever opens its folder."""
import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_prompt import byte_tokenizer, language_model

import neuronlens as nl
from neuronlens.ground.core import InputError
from neuronlens.ground.data import make_texts, read_texts
from neuronlens.models.model import align
from neuronlens.models.prompt import Prompt, make_prompt
from neuronlens.models.prompted import class_probabilities, load_prompted, make_prompted
from neuronlens.records import recording
from neuronlens.records.calibration import answered_by, calibrated
from neuronlens.records.recording import record
from neuronlens.records.shards import make_reading, open_store

ASKED = dict(template='Text: {text}\nTopic:', shots=1, calibrate=True, scoring='first')
TRIED = 2 # Texts that the library reads once more, to see that it reads a model rightly
pytestmark = pytest.mark.usefixtures('one_thread', 'own_cache')


@pytest.fixture(scope='module')
def speaker(tmp_path_factory):
    "Folder of a tiny causal language model with a tokenizer of bytes."
    folder = tmp_path_factory.mktemp('speaker')
    language_model('llama').save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@contextmanager
def rows():
    "Tells how often texts were read by any model: rows of an embedding that hold their tokens; what a model is tried on does not count."
    seen = []

    def look(module, args, out):
        if not isinstance(module, torch.nn.Embedding) or args[0].ndim != 2: return
        seen.extend((module.num_embeddings, ids) for ids in args[0].tolist())
    handle = torch.nn.modules.module.register_module_forward_hook(look)

    def read(clf, *several):
        wanted = {tuple(ids) for texts in several for ids in clf.tokens(texts.texts)[0]}
        own = clf.model.get_input_embeddings().num_embeddings
        return sum(n == own and tuple(i for i in ids if i != clf.pad_id) in wanted for n, ids in seen)
    try: yield read
    finally: handle.remove()


def test_the_study_the_notebook_and_the_folder_ask_once(speaker, make_study, data, tmp_path, no_figures):
    "Texts are read by the study alone; the constant is the same to the last digit; opening the folder tries the model and reads no text."
    spec = nl.read_study(make_study(model=dict(causal=str(speaker)), prompt=ASKED))
    with rows() as read: study = nl.run_study(spec, tmp_path/'out', progress=False)
    prompt, train = make_prompt(read_texts(data.train), ASKED['template'], shots=1)
    test = replace(read_texts(data.test), classes=train.classes)
    assert len(study.train)+len(study.test) == len(train)+36
    assert 0 <= read(study.clf, train, test)-len(train)-36 <= TRIED
    with rows() as read:
        clf = nl.calibrated(load_prompted(speaker, prompt, scoring='first'), train)
        mine = [nl.record(clf, t, cache=True, progress=False) for t in (train, test)]
    assert read(clf, train, test) == 0
    known = json.loads((tmp_path/'out/provenance.json').read_text())['train']['prompt']['calibration']
    assert clf.calibration == tuple(known) == study.clf.calibration
    for a, b in zip(mine, (study.train, study.test), strict=True):
        np.testing.assert_array_equal(a.acts, b.acts)
        np.testing.assert_array_equal(a.probabilities, b.probabilities)
        assert a.provenance['model_sha256'] == b.provenance['model_sha256']
    with rows() as read: book = nl.explore(nl.load_study(tmp_path/'out'))
    assert read(clf, train, test) == 0 and book.study.clf.calibration == clf.calibration
    with rows() as read: nl.run_study(spec, tmp_path/'out', progress=False)
    assert read(clf, train, test) == 0


LABELLED = make_texts([f'a {w} is {k}' for w in ('cat', 'saw', 'soup') for k in ('old', 'new', 'red', 'here')],
                      ['animal']*4+['tool']*4+['food']*4)


def asked(names=LABELLED.classes, verbalizers=None, shots=(('a dog', 0),), **kw):
    prompt = Prompt('{text}\n', tuple(names), verbalizers or tuple(names), shots)
    model = language_model('llama')
    return make_prompted(model, byte_tokenizer(), prompt, **dict(scoring='first', source='tiny', sha256='w') | kw)


def test_names_and_order_touch_no_activation():
    "Other names for the classes, the verbalizers in another order, other labels, a calibration: found, and right."
    clf = asked(verbalizers=('cat', 'rice', 'nail'))
    rec = record(clf, LABELLED, cache=True, progress=False)
    turned = asked(('tool', 'food', 'animal'), ('nail', 'rice', 'cat'), (('a dog', 2),))
    named = asked(('A', 'F', 'T'), ('cat', 'rice', 'nail'))
    renamed = replace(LABELLED, classes=('A', 'F', 'T'))
    moved = replace(LABELLED, labels=np.roll(LABELLED.labels, 4))
    tuned = calibrated(clf, rec)
    with rows() as read:
        for c, t in ((turned, LABELLED), (named, renamed), (clf, moved), (tuned, LABELLED)):
            got = record(c, t, cache=True, progress=False)
            np.testing.assert_array_equal(got.acts, rec.acts)
            assert got.classes == c.classes and got.provenance['model_sha256'] == c.sha256
            np.testing.assert_array_equal(got.labels, align(t, c).labels)
            assert got.provenance['texts_sha256'] == align(t, c).digest and recording.same_texts(got, align(t, c))
    assert read(clf, LABELLED) == 0
    for c, t in ((turned, LABELLED), (named, renamed), (tuned, LABELLED)):
        got = record(c, t, cache=True, progress=False)
        np.testing.assert_allclose(got.probabilities, record(c, t, progress=False).probabilities, atol=1e-5)
    with rows() as read: record(asked(shots=(('a dog', 1),)), LABELLED, cache=True, progress=False)
    assert 0 <= read(clf, LABELLED)-len(LABELLED) <= TRIED # Another prompt is another question


def test_a_classifier_whose_classes_are_called_otherwise(bert, data):
    a, b = (nl.load_classifier(bert, classes=c) for c in (None, ['x', 'y', 'z']))
    texts = read_texts(data.test)
    first = record(a, texts, cache=True, progress=False)
    with rows() as read: again = record(b, replace(texts, classes=('x', 'y', 'z')), cache=True, progress=False)
    assert read(a, texts) == 0 and again.classes == ('x', 'y', 'z')
    np.testing.assert_array_equal(again.probabilities, first.probabilities)


def old_entry(clf, texts, sites='residual.-1'):
    "What version 0.2 kept: under a key with labels, names and calibration."
    ask, texts = make_reading(clf, sites), align(texts, clf)
    folder = recording._place(ask, texts)
    return recording._record(ask, texts, open_store(folder, ask, texts, spare=True), False), folder


def test_what_an_older_version_kept_is_found():
    "Also among more sites; where it is damaged it is made anew without an error."
    clf = calibrated(asked(), np.array([[.5, .3, .2]]))
    old, folder = old_entry(clf, LABELLED, ['residual.-1', 'residual.0'])
    with rows() as read:
        one, both = (record(clf, LABELLED, s, cache=True, progress=False) for s in ('residual.0', ['residual.-1', 'residual.0']))
    assert read(clf, LABELLED) == 0
    np.testing.assert_array_equal(one.acts, old.at('residual.0'))
    np.testing.assert_array_equal(both.probabilities, old.probabilities)
    (folder/'recording.json').write_text('{}')
    with rows() as read: again = record(clf, LABELLED, cache=True, progress=False)
    assert read(clf, LABELLED) == len(LABELLED)
    np.testing.assert_allclose(again.acts, old.acts, atol=1e-5)


def test_calibration_is_taken_from_a_recording():
    "From any recording of the texts in the cache; else the model is asked; what is of another model is refused."
    clf = asked()
    plain = class_probabilities(clf, LABELLED)
    with rows() as read: alone = calibrated(clf, LABELLED)
    assert read(clf, LABELLED) == len(LABELLED)
    np.testing.assert_allclose(alone.calibration, plain.mean(0, dtype=np.float64), rtol=1e-5)
    rec = record(clf, LABELLED, ['residual.0', 'residual.-1'], cache=True, progress=False)
    with rows() as read: tuned, same = calibrated(clf, LABELLED), calibrated(alone, rec)
    assert read(clf, LABELLED) == 0 and tuned.calibration == same.calibration and tuned.sha256 == same.sha256
    np.testing.assert_allclose(calibrated(clf, answered_by(tuned, rec)).calibration, tuned.calibration, rtol=1e-6)
    other = asked(sha256='other')
    with pytest.raises(InputError, match="of another model"): calibrated(other, rec)
    with pytest.raises(InputError, match="holds no answers"): calibrated(clf, replace(rec, probabilities=None))
    with pytest.raises(InputError, match="of a prompted model"): calibrated(clf.model, rec)


def test_without_a_hash_nothing_is_taken():
    "A model whose weights have no hash is asked every time."
    clf = asked(sha256='')
    record(clf, LABELLED, cache=True, progress=False)
    with rows() as read: record(clf, LABELLED, cache=True, progress=False), calibrated(clf, LABELLED)
    assert 0 <= read(clf, LABELLED)-2*len(LABELLED) <= TRIED
