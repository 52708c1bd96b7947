"""Stores at addresses that fsspec serves: the same files, whole or not at all, and one sentence for whatever goes wrong."""
import sys
import warnings
import zipfile
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from conftest import make_frame
from test_cluster import equal

from neuronlens import remote, shards
from neuronlens.edits.farm import effects_on_ray
from neuronlens.edits.sweeps import grid
from neuronlens.ground.core import InputError
from neuronlens.ground.data import make_texts
from neuronlens.models.model import load_classifier
from neuronlens.records.recording import record
from neuronlens.records.remote import Remote, place_of, sent, swept
from neuronlens.records.store import Store
from neuronlens.records.summary import summarise

fsspec = pytest.importorskip('fsspec', reason='fsspec is not installed')
pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture
def memory():
    "The memory that fsspec serves, empty before and afterwards."
    fs = fsspec.filesystem('memory')
    if fs.exists('/run'): fs.rm('/run', recursive=True)
    yield fs
    if fs.exists('/run'): fs.rm('/run', recursive=True)


@pytest.fixture(scope='module')
def clf(bert): return load_classifier(bert, device='cpu')


@pytest.fixture(scope='module')
def texts():
    df = make_frame(10, 3)
    return make_texts(df.text.tolist(), df.label.tolist())


@pytest.fixture(scope='module')
def local(clf, texts, tmp_path_factory):
    "A recording in a folder of this machine, and its files."
    folder = tmp_path_factory.mktemp('local')/'run'
    rec = record(clf, texts, 'residual.1', size=8, folder=folder, progress=False)
    return rec, {p.name: p.read_bytes() for p in folder.iterdir()}


def same(a, b): return np.array_equal(a.acts, b.acts) and np.array_equal(a.probabilities, b.probabilities)


def flipped(data): return data[:-1]+bytes([data[-1]^1])


def never(*args, **kw): raise AssertionError('the model was asked')


@pytest.mark.parametrize('kind', ['memory', 'file', 'local'])
def test_the_same_files_wherever_they_are(clf, texts, local, memory, tmp_path, monkeypatch, kind):
    "Byte for byte; taken up again without the model, and after a shard was lost with that alone."
    at = dict(memory='memory://run', file=(tmp_path/'a b').as_uri(), local=f'local://{tmp_path}/there')[kind]
    rec, files = local
    assert same(record(clf, texts, 'residual.1', size=8, folder=at, progress=False), rec)
    folder = place_of(at)
    assert isinstance(folder, Path) == (kind == 'file')
    assert {p.name: p.read_bytes() for p in folder.glob('*')} == files
    with monkeypatch.context() as mp:
        mp.setattr(shards, 'read_shard', never)
        assert same(record(clf, texts, 'residual.1', size=8, folder=at, progress=False), rec)
    (folder/'shard-00001.safetensors').unlink()
    (folder/'recording.json').unlink()
    made, real = [], shards.read_shard
    monkeypatch.setattr(shards, 'read_shard', lambda *a: made.append(1) or real(*a))
    assert same(record(clf, texts, 'residual.1', size=8, folder=at, progress=False), rec)
    assert len(made) == 1 and {p.name: p.read_bytes() for p in folder.glob('*')} == files


def test_paths_stay_paths(monkeypatch, tmp_path):
    "Of a folder of this machine nothing is asked of fsspec, whatever it is called."
    monkeypatch.setattr(remote, '_connected', never)
    for folder in (tmp_path, str(tmp_path), 'memory', 'c:/x', tmp_path/'memory:'/'x', 'file:///x'):
        assert isinstance(place_of(folder), Path)
    with pytest.raises(InputError, match='is not the path of a file'): place_of(3)


def test_damage_is_found_and_made_again(clf, texts, local, memory):
    rec, files = local
    record(clf, texts, 'residual.1', size=8, folder='memory://run', progress=False)
    memory.pipe_file('/run/shard-00002.safetensors', flipped(files['shard-00002.safetensors']))
    with pytest.warns(UserWarning, match=r'memory://run/shard-00002.safetensors is damaged .*; this shard is made again'):
        assert same(record(clf, texts, 'residual.1', size=8, folder='memory://run', progress=False), rec)
    assert memory.cat_file('/run/shard-00002.safetensors') == files['shard-00002.safetensors']
    memory.pipe_file('/run/recording.json', files['recording.json'][:-9])
    with pytest.warns(UserWarning, match='memory://run/recording.json cannot be read'):
        record(clf, texts, 'residual.1', size=8, folder='memory://run', progress=False)
    with pytest.raises(InputError, match=r'^memory://run: holds another recording \(sites .*; choose another folder(?m:$)'):
        record(clf, texts, 'residual.0', size=8, folder='memory://run', progress=False)


def test_summaries_and_effects(clf, bert, texts, memory, tmp_path):
    a, b = (summarise(clf, texts, 'residual.1', size=8, folder=f, progress=False) for f in ('memory://run/a', tmp_path/'a'))
    assert equal(a, b) and len(memory.ls('/run/a')) == 5
    rec = record(clf, texts, 'residual.1', progress=False)
    file = tmp_path/'t.csv'
    make_frame(10, 3).to_csv(file, index=False)
    ivs = grid(rec, fraction=.3)
    x, y = (effects_on_ray(bert, file, ivs, workers=0, size=8, folder=f, progress=False) for f in ('memory://run/b', tmp_path/'b'))
    assert x.frame.equals(y.frame) and len(memory.ls('/run/b')) == 5


def test_a_zip_file_is_read_and_not_written(clf, texts, local, tmp_path):
    "A finished recording that was handed over as one file."
    rec, files = local
    with zipfile.ZipFile(tmp_path/'run.zip', 'w') as z:
        for name, data in files.items(): z.writestr(f'run/{name}', data)
    at = f'zip://run::file://{tmp_path}/run.zip'
    assert same(record(clf, texts, 'residual.1', size=8, folder=at, progress=False), rec)
    with zipfile.ZipFile(tmp_path/'half.zip', 'w') as z: z.writestr('run/shard-00000.safetensors', files['shard-00000.safetensors'])
    with pytest.raises(InputError, match=r'^zip://run/recording.json::file://.*half.zip: this address cannot be written \(\w+: .*\)(?m:$)'):
        record(clf, texts, 'residual.1', size=8, folder=f'zip://run::file://{tmp_path}/half.zip', progress=False)


def test_what_is_half_sent_is_not_there(memory, monkeypatch):
    "Neither where sending fails, nor where less arrives than was sent; nothing is left, and what stood there stands."
    run = Remote('memory://run')
    with sent(run/'a.json') as at: at.write_text('tea')
    real = type(memory).put_file
    def half(self, lpath, rpath, *a, **kw): self.pipe_file(rpath, b'c')
    def fails(self, lpath, rpath, *a, **kw):
        real(self, lpath, rpath)
        raise ConnectionResetError('gone')
    for bad, said in ((half, r'OSError: 1 of 6 bytes arrived'), (fails, 'ConnectionResetError: gone')):
        monkeypatch.setattr(type(memory), 'put_file', bad)
        with pytest.raises(InputError, match=rf'^memory://run/a.json: this address cannot be written \({said}\)(?m:$)'):
            with sent(run/'a.json') as at: at.write_text('coffee')
        assert [p.name for p in run.glob('*')] == ['a.json'] and (run/'a.json').read_text() == 'tea'
    with pytest.raises(ZeroDivisionError):
        with sent(run/'a.json') as at: 1/0
    assert (run/'a.json').read_text() == 'tea'


def test_what_killed_processes_left_is_swept(memory):
    "But not what may still be on its way."
    memory.pipe_file('/run/.shard-00000.safetensors.0a1b2c3d.part', b'half')
    memory.pipe_file('/run/recording.json', b'{}')
    swept(Remote('memory://run'))
    assert len(memory.ls('/run')) == 2
    swept(Remote('memory://run'), timedelta(0))
    assert [p.name for p in Remote('memory://run').glob('*')] == ['recording.json']


def test_a_place_that_fails_is_one_sentence(clf, texts, monkeypatch, memory):
    "Unknown, unreachable, or without fsspec: nothing is computed first, and no shard is taken for damaged."
    for at, said in (('nowhere://x', r'ValueError: Protocol not known: nowhere'), ('s3://bucket/x', 'ImportError: ')):
        if at.startswith('s3') and 's3fs' in sys.modules: continue
        with pytest.raises(InputError, match=rf'^{at}: this address cannot be reached \({said}.*\)(?m:$)'):
            record(clf, texts, folder=at, progress=False)
    Store('memory://run', dict(sites=['residual.1'])).tell({})
    def down(*a, **kw): raise TimeoutError('no answer')
    monkeypatch.setattr(type(memory), 'get_file', down)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(InputError, match=r'^memory://run/recording.json: this address cannot be read \(TimeoutError: no answer\)'):
            record(clf, texts, folder='memory://run', progress=False)
    monkeypatch.setitem(sys.modules, 'fsspec', None)
    monkeypatch.setitem(sys.modules, 'fsspec.core', None)
    with pytest.raises(InputError, match=r'^memory://run: fsspec is not installed; `pip install fsspec` brings it(?m:$)'):
        record(clf, texts, folder='memory://run', progress=False)
