"""Effects by shards are those of one machine, whoever adds them up and whoever dies on the way."""
import json
import os
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import make_frame
from test_cluster import descendants, jsonl, ray  # noqa: F401

from neuronlens import cluster, farm, store
from neuronlens.edits.edit import linear_edit, register_edit
from neuronlens.edits.effects import MEASURES
from neuronlens.edits.farm import EditWorker, effects_on_ray, packed, tally_arrays, unpacked
from neuronlens.edits.sweeps import effects_on, grid
from neuronlens.ground.core import InputError
from neuronlens.ground.data import read_chunks, read_texts
from neuronlens.ground.rounding import rounding, steps_of
from neuronlens.models.model import load_classifier
from neuronlens.records.recording import record
from neuronlens.records.shards import make_reading, reading_about, shards

pytestmark = pytest.mark.usefixtures('one_thread')
COUNTED = ['target_accuracy', 'auxiliary_accuracy', 'broken']
SIZE = 6


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "60 texts in two files."
    df, folder = make_frame(20, 5), tmp_path_factory.mktemp('texts')
    jsonl(df[:25], folder/'0.jsonl')
    df[25:].to_csv(folder/'1.csv', index=False)
    return folder


@pytest.fixture(scope='module')
def clf(bert): return load_classifier(bert, device='cpu')


@pytest.fixture(scope='module')
def ivs(clf, data):
    "Interventions at three sites, of ranges, a map and draws."
    import torch
    train = record(clf, read_texts(data.train), ['residual.1', 'residual.0', 'mlp.1'], progress=False)
    maps = [linear_edit(c, 'map', 'residual.0', torch.eye(32)*.5, torch.zeros(32)) for c in clf.classes]
    return grid(train, fraction=[.2, .6], edit=['mean', 'resample'], vote=[0, .3]) + maps


@pytest.fixture(scope='module')
def alone(bert, files, ivs):
    "In this process, and the folder where it was kept."
    return effects_on_ray(bert, files, ivs, workers=0, size=SIZE, progress=False)


def test_shards_are_one_go(clf, files, ivs, alone):
    "What is counted is equal; what is summed of probabilities is, but for rounding: batches are others."
    texts = [*read_chunks(files)]
    from dataclasses import replace
    whole = replace(texts[0], texts=[t for c in texts for t in c.texts],
                    labels=np.concatenate([[texts[0].classes.index(c.classes[i]) for i in c.labels] for c in texts]),
                    rows=np.arange(1, 61))
    want = effects_on(clf, whole, ivs, progress=False).frame
    got = alone.frame
    assert len(got) == len(want) and got.drop(columns=[*MEASURES]).equals(want.drop(columns=[*MEASURES]))
    bound = rounding(3., steps_of(clf))
    for k in MEASURES: assert np.nanmax(np.abs(got[k]-want[k])) <= (bound if k not in COUNTED else 0), k


def test_tallies_of_any_cut_are_the_same_counts(clf, files, ivs):
    ask, texts = make_reading(clf), [*read_chunks(files)]
    parts = {size: [tally_arrays(ask, t, interventions=ivs[::7])[0] for t in shards(texts, clf, size)] for size in (7, 60)}
    a, b = ({k: sum(p[k] for p in ps) for k in ps[0]} for ps in parts.values())
    whole = [MEASURES.index(k) for k in COUNTED]
    assert len(parts[7]) == 9 and (a['counts'] == b['counts']).all() and (a['sums'][:, whole] == b['sums'][:, whole]).all()
    assert (a['counts'] == np.round(a['counts'])).all()


def test_packed_interventions_come_out_as_they_were(ivs):
    "Settings to the digit, tensors to the bit, and shared as before."
    again = unpacked(packed(ivs))
    for a, b in zip(again, ivs, strict=True):
        assert a.setting == b.setting and type(a.state) is type(b.state)
        for x, y in zip((a.neurons, a.lo, a.hi, *a.state), (b.neurons, b.lo, b.hi, *b.state), strict=True):
            assert (x is None) == (y is None) and (x is None or x.dtype == y.dtype and x.equal(y))
    assert len({id(iv.lo) for iv in again}) == len({id(iv.lo) for iv in ivs}) and packed(again) == packed(ivs)
    assert packed(ivs[1:]) != packed(ivs)


def test_a_folder_is_gone_on_from(bert, files, ivs, alone, tmp_path, monkeypatch):
    "A missing and a damaged shard are made again, no other; other interventions are refused."
    def go(some=ivs, **kw): return effects_on_ray(bert, files, some, workers=0, size=SIZE, folder=tmp_path/'run', progress=False, **kw)
    go()
    whole = {p.name: p.read_bytes() for p in (tmp_path/'run').iterdir()}
    assert len(whole) == 11
    (tmp_path/'run/shard-00003.safetensors').unlink()
    (tmp_path/'run/shard-00005.safetensors').write_bytes(whole['shard-00005.safetensors'][:-1])
    (tmp_path/'run/recording.json').unlink()
    made, real = [], farm.tally_arrays
    monkeypatch.setattr(farm, 'tally_arrays', lambda ask, texts, *a, **kw: (made.append(len(texts)), real(ask, texts, *a, **kw))[1])
    with pytest.warns(UserWarning, match='shard-00005.safetensors cannot be read'): assert go().frame.equals(alone.frame)
    assert made == [SIZE]*2 and {p.name: p.read_bytes() for p in (tmp_path/'run').iterdir()} == whole
    with pytest.raises(InputError, match=r'holds another recording \(contents .effects of interventions'): go(ivs[1:])
    with pytest.raises(InputError, match='shard size'):
        effects_on_ray(bert, files, ivs, workers=0, size=7, folder=tmp_path/'run', progress=False)


def test_a_worker_adds_up(bert, clf, files, ivs):
    "Without Ray: what a worker sends is what this process makes, and what it does not like is a sentence."
    how = dict(size=SIZE, keeps='effects of these')
    ask = make_reading(clf, **how)
    worker = EditWorker(packed(ivs), load=dict(source=bert, device='cpu'), about=reading_about(ask), ask=how, names=[*clf.classes], read={})
    own = next(shards(read_chunks(files/'0.jsonl'), clf, SIZE))
    work = dict(shard=0, digest=own.digest, spans=[[str(files/'0.jsonl'), 0, SIZE]])
    done = worker({'work': [json.dumps(work)]})
    want, _ = tally_arrays(ask, own, interventions=ivs)
    got = cluster.load(done['part'][0])
    assert done['error'] == [''] and got.keys() == want.keys() and all((got[k] == want[k]).all() for k in want)
    assert 'not the file that the driver has read' in worker.one(json.dumps(work | dict(digest='x')))['error']


def test_what_makes_no_sense_is_refused(bert, files, ivs, monkeypatch):
    for kw, said in ((dict(workers=-1), '-1 workers'), (dict(size=0), 'a shard of 0'), (dict(cpus=0, workers=0), 'of 0 processors')):
        with pytest.raises(InputError, match=said): effects_on_ray(bert, files, ivs, progress=False, **kw)
    with pytest.raises(InputError, match='interventions are a list'): effects_on_ray(bert, files, ivs[0], workers=0, progress=False)
    @register_edit
    def tanh(x, about): return x.tanh()
    from dataclasses import replace
    own = [replace(ivs[0], edit='tanh')]
    monkeypatch.setattr(farm, 'load_ray', lambda: None)
    with pytest.raises(InputError, match="edit 'tanh' is one of your own, which workers do not know"):
        effects_on_ray(bert, files, own, progress=False)
    assert len(effects_on_ray(bert, files, own, workers=0, progress=False).frame) == 2
    from neuronlens.edits import edit
    edit.EDITS.pop('tanh')


def test_ray_that_is_not_there_is_one_sentence(bert, files, ivs, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(InputError, match=r"^ray is not installed; `pip install '\.\[ray\]'` in the checkout brings it(?m:$)"):
        effects_on_ray(bert, files, ivs, progress=False)


# --- with Ray

def workers(): return {p for p, line in descendants(os.getpid()).items() if 'EditWorker' in line}


def test_two_workers_and_one_of_them_killed(ray, bert, files, ivs, alone, tmp_path, monkeypatch): # noqa: F811
    "An actor dies by SIGKILL when the first sums have come: its shard is asked again, and the table is the same to the bit."
    def kill_one(kept, i, *args):
        real(kept, i, *args)
        made.append(i)
        if not killed:
            killed.append(min(workers()))
            os.kill(killed[0], signal.SIGKILL)
    def watch():
        while not over.wait(.05): seen.update(workers())
    seen, killed, made, over, real = set(), [], [], threading.Event(), store.Store.keep
    monkeypatch.setattr(store.Store, 'keep', kill_one)
    (watcher := threading.Thread(target=watch)).start()
    try: res = effects_on_ray(bert, files, ivs, workers=2, size=SIZE, folder=tmp_path, progress=False)
    finally:
        over.set()
        watcher.join()
    assert killed and killed[0] in seen and len(seen) >= 2, (killed, seen)
    assert sorted(made) == [*range(10)] and res.frame.equals(alone.frame)
    monkeypatch.setattr(cluster, 'ray_session', None) # All is finished: Ray is not even asked
    assert effects_on_ray(bert, files, ivs, size=SIZE, folder=tmp_path, progress=False).frame.equals(alone.frame)


def test_a_wrong_address_is_refused_at_once(bert, files, ivs, monkeypatch):
    pytest.importorskip('ray', reason='ray is not installed; `pip install .[ray]` brings it')
    monkeypatch.setattr('ray.is_initialized', lambda: False)
    with pytest.raises(InputError, match=r"^no Ray at '127.0.0.1:1' .Connection refused.(?m:$)"):
        effects_on_ray(bert, files, ivs, address='127.0.0.1:1', progress=False)
    assert Path(files).is_dir()
