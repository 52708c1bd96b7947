"""The store: whatever is killed, damaged or asked again, the numbers are those of one undisturbed run."""
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CLASSES, make_frame

from neuronlens import files, store, summary
from neuronlens import shards as shard_room
from neuronlens.arrays.statistics import batch_statistics, class_statistics, merge_statistics
from neuronlens.ground.core import InputError
from neuronlens.ground.data import Texts, make_texts, take
from neuronlens.ground.rounding import agree
from neuronlens.models.model import load_classifier
from neuronlens.records import recording
from neuronlens.records.recording import record, recorded
from neuronlens.records.shards import disk_need, make_reading, shards
from neuronlens.records.summary import Summary, merge_summaries, summarise, summary_arrays

pytestmark = pytest.mark.usefixtures('one_thread')
SITES = ['residual.0', 'mlp.1']


@pytest.fixture(scope='module')
def clf(bert): return load_classifier(bert, device='cpu')


@pytest.fixture(scope='module')
def texts():
    df = make_frame(20, 5)
    return make_texts(df.text.tolist(), df.label.tolist())


@pytest.fixture(scope='module')
def whole(clf, texts): return record(clf, texts, SITES, size=8, progress=False)


@pytest.fixture(scope='module')
def total(clf, texts): return summarise(clf, texts, SITES, size=8, progress=False)


@pytest.fixture
def passes(monkeypatch):
    "Counts the shards that went through the model."
    made, real = [], shard_room.read_shard
    def counted(ask, own, bar=None): return made.append(len(own)) or real(ask, own, bar)
    for room in (shard_room, summary): monkeypatch.setattr(room, 'read_shard', counted)
    return made


def equal(a, b):
    "Whether two recordings or two summaries hold the same bits."
    if isinstance(a, Summary): x, y = summary_arrays(a), summary_arrays(b)
    else: x, y = (r.activations | dict(labels=r.labels, p=r.probabilities) for r in (a, b))
    return x.keys() == y.keys() and all(np.array_equal(x[k], y[k], equal_nan=x[k].dtype.kind == 'f') for k in x)


def names(folder): return sorted(p.name for p in folder.iterdir())


# --- killed

VICTIM = """
import os, signal, sys
os.environ |= dict(TQDM_DISABLE='1', HF_HUB_OFFLINE='1', TOKENIZERS_PARALLELISM='false')
from pathlib import Path
import torch
torch.set_num_threads(1)
from conftest import make_frame
from neuronlens import files, store, summary
from neuronlens.records import recording
from neuronlens import shards as shard_room
from neuronlens.ground.data import make_texts
from neuronlens.models.model import load_classifier
df = make_frame(20, 5)
texts = make_texts(df.text.tolist(), df.label.tolist())
clf, home, what = load_classifier(sys.argv[1], device='cpu'), Path(sys.argv[2]), sys.argv[3]
room = dict(record=recording, summarise=summary)[what]
work = getattr(room, what)
def die(): os.kill(os.getpid(), signal.SIGKILL)
def go(folder): return work(clf, texts, ['residual.0', 'mlp.1'], size=8, folder=folder, progress=False)
"""

MOMENTS = VICTIM + """
def at(owner, name, n, before=lambda *a: None, after=False):
    "The process dies in the nth call of a function: after `before`, or when the call is done."
    real, seen = getattr(owner, name), []
    def patched(*args, **kw):
        seen.append(1)
        if len(seen) < n: return real(*args, **kw)
        before(*args)
        if after: real(*args, **kw)
        die()
    setattr(owner, name, patched)
def half(arrays, part, **kw): Path(part).write_bytes(b'half of a shard')
moments = {'before anything': lambda: at(room, 'open_store', 1),
           'recording.json half written': lambda: at(Path, 'write_text', 1, lambda path, *a: path.write_bytes(b'{"half')),
           'recording.json written, no shard': lambda: at(store, 'write_arrays', 1),
           'in the pass of the fourth shard': lambda: at(shard_room, '_read_batch', 4),
           'shard half written': lambda: at(files, 'save_file', 3, half),
           'shard written, not on the disk': lambda: at(os, 'fsync', 7),
           'shard on the disk, not renamed': lambda: at(os, 'replace', 4),
           'shard renamed': lambda: at(os, 'replace', 4, after=True),
           'all shards there, not finished': lambda: at(room, 'finish', 1)}
for i, (name, arm) in enumerate(moments.items()):
    folder = home/f'{i}'
    if not (child := os.fork()):
        try:
            arm()
            go(folder)
        finally: os._exit(9)
    status = os.waitpid(child, 0)[1]
    print(name, os.WTERMSIG(status) if os.WIFSIGNALED(status) else f'status {status}', flush=True)
"""


def script(code, *args, **kw):
    env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=os.path.dirname(__file__))
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], stdout=subprocess.PIPE, text=True, env=env, **kw)


@pytest.mark.slow
@pytest.mark.parametrize('what', ['record', 'summarise'])
def test_killed_at_any_moment(what, bert, clf, texts, whole, total, tmp_path, passes):
    "SIGKILL at nine moments: the next call finishes, with the same numbers, the same files and no litter."
    work, expected = dict(record=(record, whole), summarise=(summarise, total))[what]
    (home := tmp_path/'killed').mkdir()
    p = script(MOMENTS, bert, home, what)
    said = p.communicate(timeout=240)[0].splitlines()
    assert p.returncode == 0 and len(said) == 9 and all(s.endswith(f' {signal.SIGKILL.value}') for s in said), said
    work(clf, texts, SITES, size=8, folder=tmp_path/'clean', progress=False)
    litter, files = 0, {q.name: q.read_bytes() for q in (tmp_path/'clean').iterdir()}
    for i, moment in enumerate(said):
        folder = home/f'{i}'
        there = names(folder) if folder.exists() else []
        litter += sum(n.startswith('.') for n in there)
        passes.clear()
        assert equal(work(clf, texts, SITES, size=8, folder=folder, progress=False), expected), moment
        assert len(passes) == 8-sum(n.startswith('shard') for n in there), moment
        assert {q.name: q.read_bytes() for q in folder.iterdir()} == files, moment
    assert litter >= 3


@pytest.mark.slow
def test_killed_from_outside(bert, clf, texts, whole, tmp_path):
    "A real process is killed as soon as its second shard is there."
    code = VICTIM+"import time\nreal = shard_room.read_shard\n" \
                  "shard_room.read_shard = lambda *a: time.sleep(.2) or real(*a)\ngo(home)"
    p = script(code, bert, tmp_path/'run', 'record')
    end = time.monotonic()+120
    while not (tmp_path/'run/shard-00001.safetensors').exists() and p.poll() is None and time.monotonic() < end: time.sleep(.02)
    p.kill()
    assert p.wait() == -signal.SIGKILL
    assert 2 <= sum(n.startswith('shard') for n in names(tmp_path/'run')) < 8
    assert equal(record(clf, texts, SITES, size=8, folder=tmp_path/'run', progress=False), whole)


def test_a_name_with_nul_is_refused_before_anything_runs(clf, texts, passes):
    with pytest.raises(InputError, match='cannot hold a NUL'): record(clf, texts, folder='a\0b', progress=False)
    assert not passes


def test_ctrl_c_leaves_no_temporary_file(clf, texts, whole, tmp_path, monkeypatch, passes):
    real = files.save_file
    def struck(arrays, part, **kw):
        part.write_bytes(b'half')
        raise KeyboardInterrupt
    with monkeypatch.context() as mp:
        mp.setattr(files, 'save_file', lambda *a, **kw: (real if len(passes) < 3 else struck)(*a, **kw))
        with pytest.raises(KeyboardInterrupt): record(clf, texts, SITES, size=8, folder=tmp_path, progress=False)
    assert names(tmp_path) == ['recording.json', 'shard-00000.safetensors', 'shard-00001.safetensors']
    assert equal(record(clf, texts, SITES, size=8, folder=tmp_path, progress=False), whole)


def test_litter_of_the_living_stays(clf, texts, tmp_path):
    "Temporary files of dead processes go, those of living ones and of other machines stay for an hour."
    host, dead = socket.gethostname(), 2**22+1
    old, new = (tmp_path/f'.shard-0000{i}.safetensors.7@elsewhere.example' for i in (1, 2))
    own, living = (tmp_path/f'.shard-00000.safetensors.{pid}@{host}' for pid in (dead, os.getppid()))
    for p in (old, new, own, living, tmp_path/'.notes@home'): p.write_bytes(b'half')
    os.utime(old, (time.time()-4000,)*2)
    record(clf, texts, folder=tmp_path, progress=False)
    assert [n for n in names(tmp_path) if n.startswith('.')] == sorted(p.name for p in (new, living, tmp_path/'.notes@home'))


def test_recorded_is_record_with_a_cache(clf, texts, own_cache, passes):
    "Until 0.4, with a warning that says what to write instead."
    first = record(clf, texts, progress=False, cache=True)
    n = len(passes)
    with pytest.warns(DeprecationWarning, match=r'record\(.., cache=True\) since 0.3'): again = recorded(clf, texts, progress=False)
    assert equal(again, first) and len(passes) == n


def test_recorded_goes_on(clf, texts, own_cache, monkeypatch, passes):
    monkeypatch.setattr(shard_room, 'SHARD_TEXTS', 8)
    real = store.write_arrays
    def third(path, *args):
        if '00002' in path.name: raise KeyboardInterrupt
        real(path, *args)
    with monkeypatch.context() as mp:
        mp.setattr(store, 'write_arrays', third)
        with pytest.raises(KeyboardInterrupt): record(clf, texts, SITES, progress=False, cache=True)
    passes.clear()
    first = record(clf, texts, SITES, progress=False, cache=True)
    assert len(passes) == 6
    assert equal(record(clf, texts, SITES, progress=False, cache=True), first) and len(passes) == 6


def test_sites_are_taken_from_a_recording_of_more(clf, bert, texts, passes, own_cache):
    "Without a pass; a model that was changed, other texts, another readout and what was interrupted are not taken for it."
    whole = record(clf, texts, [*SITES, 'attention.0'], progress=False, cache=True)
    for sites in ('mlp.1', ['attention.0', 'residual.0']):
        passes.clear()
        got = record(clf, texts, sites, progress=False, cache=True)
        assert not passes
        want = record(clf, texts, sites, progress=False)
        assert equal(got, want) and got.provenance == want.provenance and got.sites == want.sites
    passes.clear()
    assert equal(record(clf, texts, [*SITES, 'attention.0'], progress=False, cache=True), whole) and not passes
    other = load_classifier(bert, device='cpu')
    with torch.no_grad(): other.model.classifier.weight.mul_(1.5)
    for args, kw in (((other, texts), {}), ((clf, take(texts, range(40))), {}), ((clf, texts), dict(readout='mean'))):
        n = len(passes)
        record(*args, 'mlp.1', progress=False, **kw, cache=True)
        assert len(passes) == n+1
    about = next(f for f in own_cache.glob('recordings/*/recording.json') if len(json.loads(f.read_text())['sites']) == 3)
    about.write_text(about.read_text().replace('"finished"', '"begun"'))
    n = len(passes)
    record(clf, texts, 'residual.0', progress=False, cache=True)
    assert len(passes) == n+1


def test_batches_of_a_store_stay_as_they_were_begun(clf, texts, tmp_path, monkeypatch):
    "Where batches are as large as the device allows, a run that goes on elsewhere keeps those it was begun with: bits depend on them."
    seen, real = [], shard_room._read_batch
    monkeypatch.setattr(shard_room, '_read_batch', lambda ask, batch: seen.append(len(batch)) or real(ask, batch))
    whole = record(clf, texts, SITES, size=8, tokens=30, progress=False)
    begun = list(seen)
    record(clf, texts, SITES, size=8, tokens=30, folder=tmp_path, progress=False)
    for i in range(2, 8): (tmp_path/f'shard-0000{i}.safetensors').unlink()
    said = json.loads((tmp_path/'recording.json').read_text()) | dict(finished=False)
    (tmp_path/'recording.json').write_text(json.dumps({k: v for k, v in said.items() if k != 'sha256'})) # As older versions wrote it
    seen.clear()
    assert equal(record(clf, texts, SITES, size=8, folder=tmp_path, progress=False), whole)
    assert max(begun) < 8 and seen == begun[-len(seen):] and len(seen) > 6


# --- damaged

def flip(data, i): return data[:i]+bytes([data[i]^16])+data[i+1:]


DAMAGE = {'header': lambda d: flip(d, 20), 'provenance': lambda d: flip(d, d.index(b'max_length')+2),
          'version': lambda d: flip(d, d.index(b'numpy')+12), 'labels': lambda d: flip(d, len(d)-9),
          'activation': lambda d: flip(d, len(d)//2), 'length': lambda d: flip(d, 1), 'short': lambda d: d[:-1],
          'empty': lambda d: b'', 'long': lambda d: d+b'x', 'gone': None}


@pytest.mark.parametrize('where', DAMAGE)
def test_only_the_damaged_shard_is_made_again(where, clf, texts, whole, tmp_path, passes, recwarn, monkeypatch):
    go = lambda: record(clf, texts, SITES, size=8, folder=tmp_path, progress=False)
    go()
    path = tmp_path/'shard-00005.safetensors'
    good = path.read_bytes()
    path.write_bytes(DAMAGE[where](good)) if DAMAGE[where] else path.unlink()
    passes.clear()
    calls, forward = [], type(clf.model).forward # Not by a hook: a model with one is another
    recwarn.clear()
    with monkeypatch.context() as m:
        m.setattr(type(clf.model), 'forward', wraps(forward)(lambda *a, **kw: calls.append(1) or forward(*a, **kw)))
        assert equal(go(), whole)
    assert passes == [8] and len(calls) == 2 # One batch of eight texts, and its head
    assert [str(w.message) for w in recwarn if str(path) in str(w.message) and 'this shard is made again' in str(w.message)]
    assert len(recwarn) == 1 and path.read_bytes() == good
    assert equal(go(), whole) and passes == [8]


def test_a_damaged_part_of_a_summary(clf, texts, total, tmp_path, passes):
    go = lambda: summarise(clf, texts, SITES, size=8, folder=tmp_path, progress=False)
    go()
    path = tmp_path/'shard-00002.safetensors'
    path.write_bytes(flip(path.read_bytes(), path.stat().st_size-100))
    passes.clear()
    with pytest.warns(UserWarning, match='shard-00002.safetensors is damaged'): assert equal(go(), total)
    assert passes == [8]


@pytest.mark.parametrize('said', [None, b'', b'{"half', b'[1]', b'\xff'])
def test_recording_json_can_be_lost(said, clf, texts, whole, tmp_path, passes):
    "The shards know themselves what they are of."
    record(clf, texts, SITES, size=8, folder=tmp_path, progress=False)
    before = json.loads((tmp_path/'recording.json').read_text())
    (tmp_path/'recording.json').unlink() if said is None else (tmp_path/'recording.json').write_bytes(said)
    passes.clear()
    with pytest.raises(InputError, match="holds another recording"):
        record(clf, texts, 'residual.1', size=8, folder=tmp_path, progress=False)
    assert equal(record(clf, texts, SITES, size=8, folder=tmp_path, progress=False), whole) and not passes
    assert json.loads((tmp_path/'recording.json').read_text()) == before


# --- refused

def other_model(clf, bert, tmp_path):
    from neuronlens.models.training import save_classifier
    new = load_classifier(bert, device='cpu')
    with torch.no_grad(): new.model.base_model.encoder.layer[0].output.dense.bias += 1
    return load_classifier(save_classifier(new, tmp_path/'other'), device='cpu')


def other_tokenizer(clf, bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path/'other')
    said = (folder/'tokenizer.json').read_text()
    (folder/'tokenizer.json').write_text(said.replace('"cat"', '"tac"'))
    return load_classifier(folder, device='cpu')


def relabelled(t): return replace(t, labels=np.roll(t.labels, 1))


ANOTHER = {'model': (dict(clf=other_model), ['model ', ' there, ']), 'tokenizer': (dict(clf=other_tokenizer), ['tokenizer (']),
           'text': (dict(texts=lambda t: replace(t, texts=[*t.texts[:-1], 'the cat'])), ['texts given (']),
           'label': (dict(texts=relabelled), ['texts given (']),
           'order': (dict(texts=lambda t: take(t, np.arange(len(t))[::-1])), ['texts given (']),
           'fewer texts': (dict(texts=lambda t: take(t, np.arange(48))), ['texts given (']),
           'site': (dict(sites=['residual.0', 'mlp.0']), ["sites ['residual.0', 'mlp.1'] there, ['residual.0', 'mlp.0'] here"]),
           'readout': (dict(readout='mean'), ["readout 'first' there, 'mean' here"]),
           'max_length': (dict(clf=lambda c, *a: replace(c, max_length=9)), ['max_length 48 there, 9 here']),
           'dtype': (dict(clf=lambda c, bert, _: load_classifier(bert, device='cpu', dtype='bfloat16')), ["'torch.float32' there"]),
           'shard size': (dict(size=9), ['shard size 8 there, 9 here']),
           'answers': (dict(answers=False), ['answers True there, False here']),
           'statistics': (dict(work=summarise), ["contents 'activations' there, 'statistics' here"])}


@pytest.mark.parametrize('what', ANOTHER)
@pytest.mark.parametrize('begun', ['finished', 'one shard', 'no recording.json'])
def test_another_recording_is_refused_before_it_runs(what, begun, clf, bert, texts, tmp_path, passes):
    change, said = ANOTHER[what]
    folder = tmp_path/'run'
    record(clf, texts, SITES, size=8, folder=folder, progress=False)
    if begun != 'finished':
        for p in list(folder.glob('shard-*'))[1 if begun == 'one shard' else 8:]: p.unlink()
    if begun == 'no recording.json': (folder/'recording.json').unlink()
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    passes.clear()
    new = change.get('clf', lambda c, *a: c)(clf, bert, tmp_path)
    kw = dict(readout=None, size=8) | {k: v for k, v in change.items() if k in ('readout', 'size', 'answers')}
    with pytest.raises(InputError) as e:
        change.get('work', record)(new, change.get('texts', lambda t: t)(texts), change.get('sites', SITES), folder=folder,
                                   progress=False, **kw)
    assert str(e.value).startswith(f'{folder}: holds another recording (') and '\n' not in str(e.value)
    assert all(s in str(e.value) for s in said), str(e.value)
    assert not passes and {p.name: p.read_bytes() for p in folder.iterdir()} == files


def test_a_changed_model_without_files_is_refused(clf, texts, tmp_path, bert):
    "A model from memory is known by its parameters."
    new = replace(load_classifier(bert, device='cpu'), sha256='')
    record(new, texts, SITES, folder=tmp_path, progress=False)
    record(new, texts, SITES, folder=tmp_path, progress=False)
    with torch.no_grad(): new.model.classifier.bias += 1e-3
    with pytest.raises(InputError, match='holds another recording .model '): record(new, texts, SITES, folder=tmp_path, progress=False)


def test_moved_and_renamed_is_the_same(clf, bert, texts, whole, tmp_path, passes):
    "Neither the folder of the model nor the name of the file of texts counts."
    record(clf, texts, SITES, size=8, folder=tmp_path/'run', progress=False)
    passes.clear()
    moved = load_classifier(shutil.copytree(bert, tmp_path/'moved'), device='cpu')
    rec = record(moved, replace(texts, source='new.csv'), SITES, size=8, folder=(tmp_path/'run').rename(tmp_path/'away'), progress=False)
    assert equal(rec, whole) and not passes
    assert rec.provenance['texts'] == 'new.csv' and rec.provenance['model'] == str(tmp_path/'moved')


def test_a_file_in_the_way(clf, texts, tmp_path):
    (tmp_path/'run').write_text('')
    with pytest.raises(InputError, match='a file is in the way'): record(clf, texts, folder=tmp_path/'run', progress=False)


# --- disk

@pytest.mark.parametrize('work', [record, summarise])
def test_too_little_disk_is_refused_with_both_numbers(work, clf, texts, tmp_path, monkeypatch, passes):
    keeps = 'activations' if work is record else 'statistics'
    need = disk_need(make_reading(clf, SITES, size=8, keeps=keeps, quantiles=work is summarise), len(texts))
    free = SimpleNamespace(free=need-1)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: free)
    with pytest.raises(InputError) as e: work(clf, texts, SITES, size=8, folder=tmp_path/'a', progress=False)
    numbers = files.said_size(need), files.said_size(need-1)
    assert str(e.value) == f'{tmp_path}/a: what is to be kept takes {numbers[0]} of disk and {numbers[1]} are free'
    assert not passes and not (tmp_path/'a').exists()
    free.free = need
    work(clf, texts, SITES, size=8, folder=tmp_path/'a', progress=False)
    took = sum(p.stat().st_size for p in (tmp_path/'a').glob('shard-*'))
    assert took <= need < 2*took
    free.free = 0 # All is there: nothing more is needed
    work(clf, texts, SITES, size=8, folder=tmp_path/'a', progress=False)


def test_the_disk_is_said_where_something_is_kept(clf, texts, tmp_path, monkeypatch, caplog, capsys):
    "To whoever listens, and not where all is kept already or `TQDM_DISABLE` is set; nothing is printed."
    def said(**kw):
        caplog.clear()
        record(clf, texts, progress=False, **kw)
        return [r.getMessage() for r in caplog.records]
    caplog.set_level('INFO', 'neuronlens')
    assert said(folder=tmp_path/'a') == []
    monkeypatch.setenv('TQDM_DISABLE', '0')
    assert said() == said(folder=tmp_path/'a') == []
    line, = said(folder=tmp_path/'b')
    assert line.startswith('what is to be kept takes ') and ' kB of ' in line
    assert capsys.readouterr() == ('', '')


@contextmanager
def full_disk(monkeypatch, passes):
    "No room is left after two batches."
    real = files.save_file
    def full(*args, **kw):
        if len(passes) < 3: return real(*args, **kw)
        raise OSError(errno.ENOSPC, 'No space left on device')
    with monkeypatch.context() as mp:
        mp.setattr(files, 'save_file', full)
        yield


def test_a_full_disk_is_one_sentence(clf, texts, whole, tmp_path, monkeypatch, passes):
    with full_disk(monkeypatch, passes):
        with pytest.raises(InputError, match='the disk is full; make room and call again'):
            record(clf, texts, SITES, size=8, folder=tmp_path, progress=False)
    passes.clear()
    assert equal(record(clf, texts, SITES, size=8, folder=tmp_path, progress=False), whole) and len(passes) == 6


# --- what is recorded

def test_without_answers_the_pass_ends_at_the_highest_site(clf, texts, whole, monkeypatch):
    ran, real = [], shard_room.answer
    monkeypatch.setattr(shard_room, 'answer', lambda *a: ran.append('head') or real(*a))
    handles = [m.register_forward_hook(lambda *a, n=n: ran.append(n)) for n, m in clf.model.named_modules()
               if n in ('classifier', 'bert.encoder.layer.1', 'bert.encoder.layer.0')]
    rec = record(clf, texts, 'residual.0', answers=False, size=8, progress=False)
    assert ran == ['bert.encoder.layer.0']*8
    assert rec.probabilities is None and np.array_equal(rec.acts, whole.acts)
    ran.clear()
    record(clf, texts, 'residual.0', size=8, progress=False)
    assert sorted(set(ran)) == ['bert.encoder.layer.0', 'bert.encoder.layer.1', 'classifier', 'head']
    for h in handles: h.remove()
    for f in (lambda: rec.predicted, lambda: rec.confidence, rec.answers):
        with pytest.raises(InputError, match='holds no answers; record with answers=True'): f()
    assert list(rec.to_frame()) == ['class', 'texts'] and 'Recording(60 texts' in rec._repr_html_()


def test_size_of_shards_changes_nothing_but_rounding(clf, texts, whole):
    for size in (1, 7, 60, 100):
        rec = record(clf, texts, SITES, size=size, progress=False)
        for s in rec.sites: agree(rec.at(s), whole.at(s), clf, what=(s, size))
    assert make_reading(clf, SITES).size == 2048
    wide = make_reading(clf, [f'{s}.{b}' for s in ('residual', 'mlp', 'attention') for b in (0, 1)])
    assert wide.size == 2048 and shard_room.SHARD_BYTES//(4*224) > 2048
    with pytest.raises(InputError, match='a shard of 0 texts'): record(clf, texts, size=0, progress=False)


def test_shards_shrink_with_wide_models(clf, monkeypatch):
    monkeypatch.setattr(shard_room, 'SHARD_BYTES', 4*(32+48)*100+5)
    assert make_reading(clf, SITES).size == 100
    monkeypatch.setattr(shard_room, 'SHARD_BYTES', 10)
    assert make_reading(clf, SITES).size == 1


# --- summaries

def test_a_summary_is_the_statistics_of_the_recording(clf, texts, whole, total):
    for s in SITES:
        parts = [batch_statistics(whole.at(s)[i:i+8], whole.labels[i:i+8], CLASSES) for i in range(0, 60, 8)]
        plain, folded = class_statistics(whole.at(s), whole.labels, CLASSES), parts[0]
        for i in range(1, len(parts), 4): folded = merge_statistics([folded, *parts[i:i+4]]) # As many at a time as are held
        for k in ('n', 'mean', 'm2', 'm3', 'm4', 'abs_mean', 'low', 'high'):
            assert np.array_equal(getattr(total.statistics[s], k), getattr(folded, k)), (s, k)
            np.testing.assert_allclose(getattr(total.statistics[s], k), getattr(plain, k), rtol=1e-9, atol=1e-12)
        for q in (0, .12, .52, .88, 1): # Twenty examples of a class are all kept
            exact = [np.quantile(whole.at(s)[whole.labels == c], q, axis=0, method='inverted_cdf') for c in range(3)]
            assert np.array_equal(total.quantiles[s].quantile(q), np.stack(exact)), q
    right = whole.predicted == whole.labels
    assert np.array_equal(total.n, np.bincount(whole.labels)) and 0 < total.right.sum() < 60
    assert np.array_equal(total.right, np.bincount(whole.labels[right], minlength=3))
    np.testing.assert_allclose(total.confidence, [whole.confidence[whole.labels == c].mean() for c in range(3)], rtol=1e-6)
    assert total.provenance['texts_sha256'] == whole.provenance['texts_sha256'] and total.provenance['n_texts'] == 60


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_is_summed_in_double(dtype, bert, texts, tmp_path):
    "Activations of a half-precision model are kept as float32, and its summary is that of its recording, to the last bit."
    half = load_classifier(bert, device='cpu', dtype=dtype)
    rec, res = (f(half, texts, SITES, progress=False) for f in (record, summarise))
    for s in SITES:
        own = class_statistics(rec.at(s), rec.labels, rec.classes)
        assert rec.at(s).dtype == np.float32 and np.array_equal(rec.at(s), torch.tensor(rec.at(s)).to(getattr(torch, dtype)).float())
        for k in ('n', 'mean', 'm2', 'm3', 'm4', 'abs_mean', 'low', 'high'):
            assert np.array_equal(getattr(res.statistics[s], k), getattr(own, k))
            assert getattr(own, k).dtype == {'n': np.int64, 'low': np.float32, 'high': np.float32}.get(k, np.float64)
    assert res.provenance['dtype'] == f'torch.{dtype}'


@pytest.mark.parametrize('lengths', [[60], [1]*60, [7]*9, [8]*8, [50, 10], [3, 30, 27]])
def test_however_a_stream_is_cut(lengths, clf, texts, total, tmp_path):
    "Chunks of any length, with classes of their own, alone or stopped in between: always the same bits."
    at = np.cumsum([0, *lengths])
    def chunks():
        for a, b in zip(at, at[1:], strict=False):
            part = take(texts, np.arange(a, min(b, 60)))
            own = sorted({CLASSES[i] for i in part.labels}, reverse=True)
            yield replace(part, labels=np.array([own.index(CLASSES[i]) for i in part.labels]), classes=tuple(own), source=f'part {a}')
    assert equal(summarise(clf, chunks(), SITES, size=8, progress=False), total)
    def stopped():
        yield from islice(chunks(), 1+len(lengths)//2)
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): summarise(clf, stopped(), SITES, size=8, folder=tmp_path, progress=False)
    res = summarise(clf, chunks(), SITES, size=8, folder=tmp_path, progress=False)
    assert equal(res, total) and res.provenance['texts_sha256'] == total.provenance['texts_sha256']
    assert equal(summarise(clf, texts, SITES, size=8, folder=tmp_path, progress=False), total)


def test_a_stream_is_never_held(clf, texts):
    "A shard goes through the model before texts beyond it are asked for."
    asked, seen = [], []
    def chunks():
        for i in range(60):
            asked.append(i)
            yield take(texts, np.array([i]))
    for own in shards(chunks(), clf, 8): seen.append((len(own), len(asked)))
    assert seen == [(8, n) for n in range(8, 57, 8)]+[(4, 60)]


def test_streams_that_make_no_sense(clf, texts, tmp_path):
    def kept(t): return summarise(clf, t, SITES, size=8, folder=tmp_path, progress=False)
    with pytest.raises(InputError, match='no texts were given'): summarise(clf, iter([]), progress=False)
    with pytest.raises(InputError, match='not str'): summarise(clf, ['a text'], progress=False)
    strange = Texts(['cat'], np.array([0]), ('plant',), 'x.csv')
    with pytest.raises(InputError, match="x.csv: class 'plant' is none of the model's"): summarise(clf, iter([strange]), progress=False)
    kept(iter([texts]))
    with pytest.raises(InputError, match='other texts .at least 8 shards there, 7 here'): kept(iter([take(texts, np.arange(56))]))
    with pytest.raises(InputError, match='other texts .those of shard 7, given from row 57'): kept(iter([take(texts, np.arange(59))]))
    with pytest.raises(InputError, match='other texts .those of shard 0'): kept(iter([take(texts, np.arange(60)[::-1])]))


def test_only_correct_answers(clf, texts, whole):
    res = summarise(clf, texts, SITES, correct_only=True, size=8, progress=False)
    right = whole.predicted == whole.labels
    for s in SITES:
        own = class_statistics(whole.at(s)[right], whole.labels[right], CLASSES)
        np.testing.assert_allclose(res.statistics[s].mean, own.mean, rtol=1e-9, atol=1e-12)
        assert np.array_equal(res.statistics[s].n, res.right)
    assert res.n.sum() == 60 and list(res.to_frame()) == ['class', 'texts', 'accuracy', 'confidence', 'counted']


def test_a_class_without_texts(clf, texts):
    "A stream may lack a class altogether: it counts nothing, and nothing is divided by zero."
    two = take(texts, texts.labels != 1)
    res = summarise(clf, iter([two]), SITES, progress=False)
    assert res.n.tolist() == [20, 0, 20] and np.isnan(res.confidence[1]) and np.isnan(res.to_frame().accuracy[1])
    assert np.isnan(res.quantiles['mlp.1'].quantile(.5)[1]).all() and 'Summary(40 texts' in repr(res)


def test_summaries_merge_and_keep(clf, texts, total, tmp_path):
    halves = [summarise(clf, iter([take(texts, rows)]), SITES, size=8, progress=False) for rows in (np.arange(32), np.arange(32, 60))]
    both = halves[0].merge(halves[1])
    for s in SITES:
        for k in ('mean', 'm2', 'm4', 'low'): np.testing.assert_allclose(getattr(both.statistics[s], k), getattr(total.statistics[s], k))
    assert np.array_equal(both.n, total.n) and both.provenance['n_texts'] == 60
    assert equal(Summary.load(total.save(tmp_path/'s.safetensors')), total)
    assert total.site == 'residual.0' and Summary.load(tmp_path/'s.safetensors').sites == SITES
    for other in (dict(readout='mean'), dict(sites='mlp.1'), dict(correct_only=True), dict(quantiles=False)):
        new = summarise(clf, texts, **dict(sites=SITES) | other, progress=False)
        with pytest.raises(InputError, match='cannot merge summaries'): total.merge(new)
    with pytest.raises(InputError, match='no summary'): merge_summaries([])
    record(clf, texts, folder=tmp_path/'run', progress=False)
    with pytest.raises(InputError, match='holds no summary'): Summary.load(tmp_path/'run/shard-00000.safetensors')


MANY = VICTIM + """
import resource
from dataclasses import replace
import numpy as np
from neuronlens.ground.data import Texts
def chunks(n):
    for i in range(n//500): yield Texts(['cat saw', 'apple pie', 'old drill']*166+['cat', 'soup'], np.arange(500)%3, texts.classes, 'many')
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
summary.summarise(clf, chunks(500), ['residual.0', 'mlp.1'], progress=False)
before, kept = peak(), home if what == 'record' else None
for n in (2000, 20000):
    res = summary.summarise(clf, chunks(n), ['residual.0', 'mlp.1'], folder=kept and kept/str(n), progress=False)
    print(len(res), round(peak()-before))
"""


@pytest.mark.slow
@pytest.mark.parametrize('what', ['record', 'summarise'])
def test_memory_does_not_grow(what, bert, tmp_path):
    "20,000 texts take no more memory than 2,000, with a store and without; MiB above a run of 500."
    p = script(MANY, bert, tmp_path, what)
    said = p.communicate(timeout=280)[0].split()
    assert p.returncode == 0 and said[::2] == ['2000', '20000'], said
    few, many = map(int, said[1::2])
    assert many < 300 and many-few < 60, said


# --- what changed, what is full, what was swapped

def settings_changed(clf, bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path/'settings')
    said = json.loads((folder/'config.json').read_text()) | dict(layer_norm_eps=1e-2)
    (folder/'config.json').write_text(json.dumps(said))
    return load_classifier(folder, device='cpu')


def edited(clf, bert, tmp_path):
    new = load_classifier(bert, device='cpu')
    new.model.classifier.weight.data[0, 0] += 1 # Of which torch itself counts no version
    return new


@pytest.mark.parametrize('change', [settings_changed, edited])
def test_a_changed_model_is_not_read_from_the_store(change, clf, bert, texts, own_cache, tmp_path, passes):
    "Neither the cache nor a folder takes a recording of other settings or weights for one of this model."
    first, new = record(clf, texts, progress=False, cache=True), change(clf, bert, tmp_path)
    passes.clear()
    second = record(new, texts, progress=False, cache=True)
    assert passes and not np.array_equal(second.probabilities, first.probabilities)
    passes.clear()
    for c, rec in ((clf, first), (new, second)): assert equal(record(c, texts, progress=False, cache=True), rec)
    assert not passes
    record(clf, texts, folder=tmp_path/'run', progress=False)
    with pytest.raises(InputError, match='holds another recording'): record(new, texts, folder=tmp_path/'run', progress=False)


def test_a_store_of_an_older_version_goes_on(clf, bert, texts, own_cache, tmp_path, passes):
    "One that does not say of which settings it is stays valid, and says so from then on."
    first = record(clf, texts, SITES, progress=False, cache=True)
    path = next(own_cache.glob('recordings/*/recording.json'))
    said = path.read_text()
    path.write_text(json.dumps({k: v for k, v in json.loads(said).items() if k != 'settings_sha256'}))
    passes.clear()
    assert equal(record(clf, texts, SITES, progress=False, cache=True), first) and not passes
    assert json.loads(path.read_text()) == json.loads(said)


def test_a_full_cache_loses_nothing(clf, texts, own_cache, monkeypatch, passes):
    "What was computed is given with a warning, and what could be kept is there the next time."
    monkeypatch.setattr(shard_room, 'SHARD_TEXTS', 8)
    with full_disk(monkeypatch, passes):
        with pytest.warns(UserWarning, match='the disk is full.* goes on without') as said:
            first = record(clf, texts, SITES, progress=False, cache=True)
    assert len(passes) == 8 and len([w for w in said if 'disk is full' in str(w.message)]) == 1
    passes.clear()
    assert equal(record(clf, texts, SITES, progress=False, cache=True), first) and len(passes) == 6
    shutil.rmtree(own_cache)
    monkeypatch.setattr(shutil, 'disk_usage', lambda at: SimpleNamespace(free=0))
    with pytest.warns(UserWarning, match='0 bytes are free'): assert equal(record(clf, texts, SITES, progress=False, cache=True), first)
    assert not own_cache.exists()


def test_training_mode_is_not_recorded(bert, clf, texts, whole, total):
    "Dropout is off in every pass, and every part is in the mode it was in afterwards."
    noisy = load_classifier(bert, device='cpu')
    noisy.model.train().base_model.encoder.eval()
    modes = [m.training for m in noisy.model.modules()]
    assert equal(record(noisy, texts, SITES, size=8, progress=False), whole)
    assert equal(summarise(noisy, texts, SITES, size=8, progress=False), total)
    assert [m.training for m in noisy.model.modules()] == modes


def test_a_recording_file_knows_when_it_is_damaged(whole, tmp_path):
    path = recording.save_recording(whole, tmp_path/'a.safetensors')
    assert equal(recording.load_recording(path), whole)
    path.write_bytes(flip(path.read_bytes(), path.stat().st_size-9))
    with pytest.raises(InputError, match='is damaged'): recording.load_recording(path)
    for name in ('a.json', 'a', 'a.train'):
        with pytest.raises(InputError, match='ends in .safetensors'): recording.save_recording(whole, tmp_path/name)
    assert names(tmp_path) == ['a.json', 'a.safetensors']
