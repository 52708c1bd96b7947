"""Statistics by workers of Ray are those of one machine, whoever dies on the way."""
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_frame

from neuronlens import cluster, shards, store, summary
from neuronlens.ground.core import InputError
from neuronlens.ground.data import read_chunks
from neuronlens.models.model import load_classifier
from neuronlens.records.cluster import Rows, cluster_cost, spans, summarise_on_ray
from neuronlens.records.summary import summarise, summary_arrays

pytestmark = pytest.mark.usefixtures('one_thread')
SITES = ['residual.0', 'mlp.1']


def equal(a, b):
    x, y = summary_arrays(a), summary_arrays(b)
    return x.keys() == y.keys() and all(np.array_equal(x[k], y[k], equal_nan=x[k].dtype.kind == 'f') for k in x)


def jsonl(df, path): path.write_text(''.join(json.dumps(r)+'\n' for r in df.to_dict('records')))


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "600 texts in three files of two formats."
    df, folder = make_frame(200, 5), tmp_path_factory.mktemp('texts')
    jsonl(df[:250], folder/'0.jsonl')
    pq.write_table(pa.Table.from_pandas(df[250:530], preserve_index=False), folder/'1.parquet')
    jsonl(df[530:], folder/'2.jsonl')
    return folder


@pytest.fixture(scope='module')
def alone(bert, files):
    return summarise(load_classifier(bert, device='cpu'), read_chunks(files), SITES, size=4, progress=False)


@pytest.fixture(scope='module')
def ray():
    "Ray on this machine, shared by the tests that need it."
    pytest.importorskip('ray', reason='ray is not installed; `pip install .[ray]` brings it')
    pytest.importorskip('ray.data')
    for tries in range(3): # On a machine with much else to do Ray may not start in time
        try:
            with cluster.ray_session(None, 2) as (ray, _):
                yield ray
                return
        except InputError as e:
            if 'timed out' not in str(e) or tries == 2: raise


def descendants(pid):
    "Processes below one, as {pid: command line}; read from /proc."
    parents, said = {}, {}
    for p in Path('/proc').glob('[0-9]*'):
        try:
            parents[int(p.name)] = int((p/'stat').read_text().rpartition(')')[2].split()[1])
            said[int(p.name)] = (p/'cmdline').read_bytes().replace(b'\0', b' ').decode(errors='replace')
        except (OSError, ValueError): continue
    below, todo = {}, [pid]
    while todo:
        at = todo.pop()
        for child in [c for c, parent in parents.items() if parent == at]:
            below[child] = said.get(child, '')
            todo.append(child)
    return below


def actors(): return {p for p, line in descendants(os.getpid()).items() if 'ShardWorker' in line}


# --- without Ray

def test_spans_hold_every_text_once():
    for runs, size in (([['a', 5], ['b', 1], ['c', 4]], 4), ([['a', 10]], 3), ([['a', 1], ['b', 1], ['a', 1]], 2), ([['a', 4]], 4)):
        got = spans(runs, size)
        assert [sum(n for _, _, n in s) for s in got[:-1]] == [size]*(len(got)-1) and sum(n for _, _, n in got[-1]) <= size
        flat = [(f, i) for s in got for f, at, n in s for i in range(at, at+n)]
        assert flat == [(f, i) for f, n in runs for i in range(n)]


def test_rows_of_a_file_by_their_place(files):
    for file in sorted(files.iterdir()):
        all_texts = [t for c in read_chunks(file) for t in c.texts]
        rng, rows = np.random.default_rng(0), Rows(skip_empty=True)
        for _ in range(20):
            start = int(rng.integers(0, len(all_texts)))
            n = int(rng.integers(1, len(all_texts)-start+1))
            assert [t for c in rows(str(file), start, n) for t in c.texts] == all_texts[start:start+n]
        with pytest.raises(InputError, match='has only'): rows(str(file), len(all_texts)-1, 2)


def test_rows_are_read_on(files, monkeypatch):
    "Later places of a file do not open it again."
    opened, real = [], cluster.read_chunks
    monkeypatch.setattr(cluster, 'read_chunks', lambda *a, **kw: opened.append(a) or real(*a, **kw))
    rows = Rows()
    for start in (0, 3, 20, 200): rows(str(files/'0.jsonl'), start, 3)
    assert len(opened) == 1
    rows(str(files/'0.jsonl'), 5, 3)
    assert len(opened) == 2


def test_ray_that_is_not_there_is_one_sentence(bert, files, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(InputError, match=r"^ray is not installed; `pip install '\.\[ray\]'` in the checkout brings it(?m:$)"):
        summarise_on_ray(bert, files)


def test_ray_is_loaded_last():
    code = "import sys, neuronlens.records.cluster; print('ray' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == 'False\n'


def test_cost(): assert cluster_cost(1e9, 1e4, [1, 100]) == {1: 1e5/3600, 100: 1e3/3600}


def test_the_reason_is_the_first_error():
    said = "ray::Map()\nTraceback (most recent call last):\n  File \"x.py\", line 1, in f\nKeyError: 'a'\n\nThe above exception\n" \
           "ray.exceptions.UserCodeException: UDF failed\nTo change retry attempts, backoff"
    assert cluster._reason(said) == "KeyError: 'a'"
    assert cluster._reason('\nThe actor died unexpectedly.\n class_name: x') == 'The actor died unexpectedly.'


@pytest.mark.parametrize('error', [Exception('The current node timed out.'), RuntimeError('x\ny'), OSError(28, 'full')])
def test_ray_that_does_not_start_is_one_sentence(error, monkeypatch):
    "Ray raises a bare Exception where a node is late; nothing of it stays."
    from types import SimpleNamespace
    ended = []
    def init(**kw): raise error
    fake = SimpleNamespace(is_initialized=lambda: False, init=init, shutdown=lambda: ended.append(1))
    monkeypatch.setattr(cluster, 'load_ray', lambda: (fake, None))
    monkeypatch.setattr(cluster, 'loopback', nullcontext)
    monkeypatch.delenv('RAY_ADDRESS', raising=False)
    with pytest.raises(InputError, match=r'^Ray could not be started here: [^\n]+(?m:$)'):
        with cluster.ray_session(None, 1): pass
    assert ended == [1]


def test_ray_that_would_listen_everywhere_is_not_used(monkeypatch):
    from types import SimpleNamespace
    ended = []
    fake = SimpleNamespace(is_initialized=lambda: False, init=lambda **kw: None, shutdown=lambda: ended.append(1),
                           util=SimpleNamespace(get_node_ip_address=lambda: '192.0.2.7'))
    monkeypatch.setattr(cluster, 'load_ray', lambda: (fake, None))
    monkeypatch.setattr(cluster, 'loopback', nullcontext)
    monkeypatch.delenv('RAY_ADDRESS', raising=False)
    with pytest.raises(InputError, match='192.0.2.7'):
        with cluster.ray_session(None, 1): pass
    assert ended == [1]


# --- with Ray

def listening(pids):
    "Addresses on which processes listen, as hexadecimal digits of /proc/net."
    held, found = set(), set()
    for pid in pids:
        for fd in Path(f'/proc/{pid}/fd').glob('*'):
            try: held.add(os.readlink(fd))
            except OSError: continue
    for family in ('tcp', 'tcp6'):
        for line in Path(f'/proc/net/{family}').read_text().splitlines()[1:]:
            cells = line.split()
            if cells[3] == '0A' and f'socket:[{cells[9]}]' in held: found.add(cells[1].partition(':')[0])
    return found


@pytest.mark.skipif(not Path('/proc/net/tcp').is_file(), reason='no /proc')
def test_ray_listens_on_loopback_alone(ray):
    "Control: a socket of this process on all interfaces is seen."
    import socket

    @ray.remote
    def who(): return os.getpid()
    worker = ray.get(who.remote())
    below = {os.getpid(), *descendants(os.getpid())}
    assert worker in below
    here = {'0100007F', '0000000000000000FFFF00000100007F', '00000000000000000000000001000000'}
    assert listening(below) and listening(below) <= here
    with socket.create_server(('', 0)): assert not listening(below) <= here



def test_two_workers_and_one_of_them_killed(ray, bert, files, alone, tmp_path, monkeypatch):
    """An actor dies by SIGKILL when the first part has come: another takes its place, and nothing is lost or counted twice.
    Of the shards that one machine had made before, the workers make only the damaged one again; in the end the files are the same."""
    def kill_one(store, i, *args):
        real(store, i, *args)
        made.append(i)
        if not killed:
            killed.append(min(actors()))
            os.kill(killed[0], signal.SIGKILL)
    def watch():
        while not over.wait(.05): seen.update(actors())
    summarise(load_classifier(bert, device='cpu'), read_chunks(files), SITES, size=4, folder=tmp_path, progress=False)
    whole = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for i in range(3, 150): (tmp_path/f'shard-{i:05}.safetensors').unlink()
    (tmp_path/'recording.json').unlink() # As if it had never been finished
    (tmp_path/'shard-00001.safetensors').write_bytes(whole['shard-00001.safetensors'][:-1])
    seen, killed, made, over, real = set(), [], [], threading.Event(), store.Store.keep
    monkeypatch.setattr(store.Store, 'keep', kill_one)
    (watcher := threading.Thread(target=watch)).start()
    try:
        with pytest.warns(UserWarning, match='shard-00001.safetensors cannot be read'):
            res = summarise_on_ray(bert, files, SITES, workers=2, size=4, folder=tmp_path, progress=False)
    finally:
        over.set()
        watcher.join()
    assert killed and len(seen) == 3, (killed, seen)
    assert equal(res, alone) and sorted(made) == [1, *range(3, 150)]
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == whole
    for k in ('texts_sha256', 'n_texts', 'model_sha256', 'truncated'): assert res.provenance[k] == alone.provenance[k], k
    monkeypatch.setattr(cluster, 'ray_session', None) # All is finished: Ray is not even asked
    assert equal(summarise_on_ray(bert, files, SITES, size=4, folder=tmp_path, progress=False), alone)


def test_a_shard_that_kills_its_worker_is_given_up(ray, bert, files, alone, tmp_path, monkeypatch):
    "A shard whose worker dies each time is named in the end, instead of being tried for ever; the next call makes it."
    class Deadly(cluster.ShardWorker):
        def __init__(self, begin, **kw): self.begin, self.ask, self.error = begin, None, ''
        def texts(self, work): os.kill(os.getpid(), signal.SIGKILL)
    def go(): return summarise(load_classifier(bert, device='cpu'), read_chunks(files), SITES, size=60, folder=tmp_path, progress=False)
    whole = go()
    for name in ('shard-00003.safetensors', 'recording.json'): (tmp_path/name).unlink()
    with monkeypatch.context() as mp:
        mp.setattr(cluster, 'ShardWorker', Deadly)
        with pytest.raises(InputError, match=r'^[^\n]*: shard 3 was begun 1 times, and its worker died each time(?m:$)'):
            summarise_on_ray(bert, files, SITES, workers=1, retries=0, size=60, folder=tmp_path, progress=False)
    assert len(list(tmp_path.glob('shard-*'))) == 9
    assert equal(go(), whole)


def a_worker(bert, **kw):
    "A worker whose driver has the tiny BERT."
    clf, how = load_classifier(bert, device='cpu'), dict(size=600, keeps='statistics')
    return cluster.ShardWorker(dict(source=bert, device='cpu') | kw, shards.reading_about(shards.make_reading(clf, **how)), how,
                               list(clf.classes), {})


def test_complaints_of_workers_are_one_sentence(bert, files, tmp_path):
    "A worker that has another model, or breaks on a text, says so with the name of its machine."
    from neuronlens.models.training import save_classifier
    clf, work = load_classifier(bert, device='cpu'), json.dumps(dict(shard=0, digest='', spans=[[str(files/'2.jsonl'), 0, 5]]))
    host = os.uname().nodename
    assert a_worker(bert).one(work)['error'] == f"{host}: {files/'2.jsonl'}: not the file that the driver has read"
    assert a_worker(bert, dtype='float16').one(work)['error'].startswith(f'{host}: the worker has another model (dtype ')
    with torch.no_grad(): clf.model.bert.encoder.layer[0].output.dense.bias[3] = torch.nan
    worker = a_worker(bert, source=save_classifier(clf, tmp_path/'broken'))
    assert worker.error.startswith('the worker has another model (model ')
    worker.error, own = '', next(shards.shards(read_chunks(files/'2.jsonl'), clf, 5))
    assert 'residual.1: neuron 0 is not finite for 5 rows' in worker.one(json.dumps(json.loads(work) | dict(digest=own.digest)))['error']


def test_what_makes_no_sense_is_refused(bert, files, tmp_path):
    for kw, said in ((dict(workers=0), '0 workers'), (dict(sites='mlp.9'), 'block 9 is beyond'), (dict(readout='max'), "readout 'max'")):
        with pytest.raises(InputError, match=said): summarise_on_ray(bert, files, progress=False, **kw)
    with pytest.raises(InputError, match='no such file'): summarise_on_ray(bert, files/'x.jsonl', progress=False)
    jsonl(make_frame(4, 1).assign(label='plant'), tmp_path/'t.jsonl')
    with pytest.raises(InputError, match="class 'plant' is none of the model's"):
        summarise_on_ray(bert, tmp_path/'t.jsonl', progress=False)


DRIVER = """
import sys
from neuronlens.records.cluster import summarise_on_ray
summarise_on_ray(*sys.argv[1:3], ['residual.0', 'mlp.1'], workers=2, size=4, folder=sys.argv[3], address=sys.argv[4], progress=False)
"""


def test_a_wrong_address_is_refused_at_once(bert, files, monkeypatch):
    "Ray itself would try to reach it for minutes."
    pytest.importorskip('ray', reason='ray is not installed; `pip install .[ray]` brings it')
    monkeypatch.setattr('ray.is_initialized', lambda: False)
    begun = time.monotonic()
    for address in ('127.0.0.1:1', 'ray://127.0.0.1:1'):
        with pytest.raises(InputError, match=f"^no Ray at '{address}' .Connection refused.(?m:$)"):
            summarise_on_ray(bert, files, address=address, progress=False)
    monkeypatch.setenv('RAY_ADDRESS', '127.0.0.1:1')
    with pytest.raises(InputError, match='no Ray at'): summarise_on_ray(bert, files, progress=False)
    assert time.monotonic()-begun < 20


def test_a_killed_driver_goes_on(ray, bert, files, alone, tmp_path):
    "SIGKILL of the driver of a running cluster when ten shards are there: the next call makes what is missing, and only that."
    where = ray.get_runtime_context().gcs_address
    p = subprocess.Popen([sys.executable, '-c', DRIVER, bert, files, tmp_path/'run', where], stderr=subprocess.DEVNULL)
    end = time.monotonic()+120
    while not (tmp_path/'run/shard-00009.safetensors').exists() and p.poll() is None and time.monotonic() < end: time.sleep(.005)
    p.kill()
    assert p.wait() == -signal.SIGKILL
    made = len(list((tmp_path/'run').glob('shard-*')))
    assert 9 <= made < 150
    clf, made_here, real = load_classifier(bert, device='cpu'), [], shards.read_shard
    with pytest.MonkeyPatch.context() as mp:
        mp.setattr(summary, 'read_shard', lambda *a: made_here.append(1) or real(*a))
        assert equal(summarise(clf, read_chunks(files), SITES, size=4, tokens=2048, folder=tmp_path/'run', progress=False), alone)
    assert len(made_here) == 150-made
