"""The cache is the user's: what is in it is seen and removed, it keeps to its limit, and nothing goes that is in use or not ours."""
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from functools import partial
from threading import Thread
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from conftest import make_frame
from flips_cache import flips, held, numbers, same

from neuronlens import cache, files, provenance, shards
from neuronlens.ground.cache import cache_folder, clear, entries, hold, in_use, size_limit, trim
from neuronlens.ground.core import InputError
from neuronlens.ground.data import make_texts
from neuronlens.ground.files import DiskFull, atomic, neighbour, sweep, write_arrays
from neuronlens.models.model import load_classifier
from neuronlens.models.training import fine_tune, save_classifier
from neuronlens.records.recording import Recording, record, save_recording
from neuronlens.records.store import Store

pytestmark = pytest.mark.usefixtures('one_thread', 'own_cache')
DEAD = 2**22+1


@pytest.fixture(scope='module')
def clf(bert): return load_classifier(bert, device='cpu')


def some(seed, n=6, source='words.csv'):
    df = make_frame(n, seed)
    return make_texts(df.text.tolist(), df.label.tolist(), source=source)


def tune(encoder, texts, **kw): return fine_tune(encoder, texts, epochs=1, max_length=16, device='cpu', progress=False, **kw)


def keep(kind, key, size=100, age=0, **about):
    "An entry of so many bytes and days since its last use."
    (folder := cache_folder(kind, key)).mkdir(parents=True)
    (folder/{'models': 'training.json', 'recordings': 'recording.json'}[kind]).write_text(json.dumps(about))
    (folder/'shard-00000.safetensors').write_bytes(bytes(size-len(json.dumps(about))))
    with in_use(folder): pass
    os.utime(cache._mark(folder), (time.time()-age*86400,)*2)
    return folder


def tree(folder): return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*'))


@contextmanager
def child(work):
    "Another process that does `work(say)`; `said()` waits for what it says next. Killed at the end, if it is still there."
    (out, into), (get, put) = os.pipe(), os.pipe()
    if not (pid := os.fork()):
        try:
            os.close(put)
            work(lambda *said: os.write(into, b' '.join(str(s).encode() for s in said)+b'\n'), lambda: os.read(get, 1))
            os._exit(0)
        except BaseException as e: os.write(into, f'{e!r}\n'.encode())
        finally: os._exit(9)
    os.close(into)
    os.close(get)
    with os.fdopen(out) as lines:
        try: yield SimpleNamespace(pid=pid, said=lambda: lines.readline().strip(), end=lambda: os.close(put))
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


# --- in use

@pytest.mark.parametrize('end', ['done', 'killed'])
def test_an_entry_in_use_stays(end):
    "Nothing removes what another process uses; when that is done, or killed, no lock is left."
    used, free = keep('models', '0'*16, age=9), keep('models', '1'*16)
    def use(say, wait):
        with in_use(used):
            say('there')
            wait()
        say('done')
    with child(use) as other:
        assert other.said() == 'there'
        assert [e.in_use for e in entries()] == [True, False]
        with pytest.warns(UserWarning, match='more than the limit of 1 bytes'): assert [e.folder for e in trim(1)] == [free]
        assert [e.folder for e in clear()[1]] == [used] and used.is_dir()
        if end == 'done':
            other.end()
            assert other.said() == 'done'
    assert [e.in_use for e in entries()] == [False] and entries()[0].last_use > time.time()-60
    assert [e.folder for e in clear()[0]] == [used] and clear() == ([], [])


def test_users_and_removers_at_once():
    "Two processes make and use an entry while this one removes it as often as it can: never under their hands."
    folder, removed = cache_folder('models', '0'*16), 0
    def use(say, wait):
        for _ in range(200):
            with in_use(folder):
                folder.mkdir(parents=True, exist_ok=True)
                (folder/'training.json').write_text('{}')
                for _ in range(9): assert (folder/'training.json').exists(), 'gone while in use'
            time.sleep(.001)
        say('done')
    with child(use) as one, child(use) as other:
        said = []
        hear = Thread(target=lambda: said.extend([one.said(), other.said()]))
        hear.start()
        while hear.is_alive(): removed += len(clear()[0])
    assert said == ['done', 'done'] and removed > 3
    clear()
    assert entries() == []


def test_what_is_handed_out_is_held():
    folder = keep('models', 'smollm2-'+'0'*16)
    (folder/'config.json').write_text('{}')
    hold(folder)
    hold(folder)
    assert clear()[0] == [] and [e.folder for e in clear()[1]] == [folder]
    os.close(cache._HELD.pop(folder))
    assert len(clear()[0]) == 1


def test_without_locks_a_day_counts(monkeypatch):
    "Where files cannot be locked, what was used within a day stays."
    monkeypatch.setattr(cache, 'fcntl', None)
    new, old = keep('models', '0'*16, age=.9), keep('models', '1'*16, age=1.1)
    assert [e.in_use for e in entries()] == [True, False]
    assert [[e.folder for e in part] for part in clear()] == [[old], [new]]


def test_a_disk_without_locks(monkeypatch):
    def none(fd, how): raise OSError(37, 'No locks available')
    monkeypatch.setattr(cache.fcntl, 'flock', none)
    new, old = keep('models', '0'*16, age=.9), keep('models', '1'*16, age=1.1)
    with in_use(new): assert [[e.folder for e in part] for part in clear()] == [[old], [new]]


# --- what is there

def test_listed_in_the_users_words(encoder, clf, cli, own_cache):
    tune(encoder, some(1, source='data/mail.csv'), name='Tiny on mail')
    tune(encoder, some(2, source='news.csv'))
    record(clf, some(3, 40, source='test.csv'), progress=False, cache=True)
    there = entries()
    assert [(e.kind, e.model, e.texts) for e in there] == [
        ('recording', clf.source, 'test.csv (120)'), ('model', 'encoder fine-tuned on news.csv', 'news.csv (18)'),
        ('model', 'Tiny on mail', 'data/mail.csv (18)')]
    for e in there: assert e.size == sum(p.stat().st_size for p in e.folder.rglob('*') if p.is_file()) > 0 and not e.in_use
    first = there[-1]
    tune(encoder, some(1, source='elsewhere/mail.csv'), name='another name') # The same texts: used, not made
    assert entries()[0].folder == first.folder and entries()[0].last_use > there[0].last_use
    r = cli('cache')
    assert r.exit_code == 0 and r.stderr == '' and r.stdout.startswith(f'{own_cache}: ')
    today = time.strftime('%Y-%m-%d')
    for said in ('Tiny on mail', 'data/mail.csv (18)', 'test.csv (120)', today, 'at most 10.0 GB'): assert said in r.stdout
    assert files.said_size(sum(e.size for e in there)) in r.stdout.splitlines()[0]


def test_an_interrupted_recording_is_listed_as_what_it_is(clf, monkeypatch):
    from neuronlens import store
    monkeypatch.setattr(shards, 'SHARD_TEXTS', 8)
    real = store.write_arrays
    def second(path, *args):
        if '00001' in path.name: raise KeyboardInterrupt
        real(path, *args)
    monkeypatch.setattr(store, 'write_arrays', second)
    with pytest.raises(KeyboardInterrupt): record(clf, some(1), progress=False, cache=True)
    assert [(e.kind, e.model) for e in entries()] == [('unfinished recording', clf.source)]


DAMAGE = [b'', b'{"name": "x', b'[1]', b'\xff', b'['*100_000,
          b'{"name": {"a": [1]}, "texts_name": [], "n_texts": "many", "model": 3, "texts": true}',
          b'{"name": "\\u001b[31m[bold]x[/bold]\\n\\u202e", "model": "\\u001b[2Jy", "texts_name": "[/]"}']


@pytest.mark.parametrize('said', DAMAGE)
def test_a_damaged_entry_is_listed_and_removed(said, cli, own_cache):
    for kind, file in (('models', 'training.json'), ('recordings', 'recording.json')): (keep(kind, '0'*16)/file).write_bytes(said)
    r = cli('cache')
    assert r.exit_code == 0 and r.stderr == '' and not re.search('[\x1b\u202e]', r.stdout) and '2 ' not in r.stdout.splitlines()[0][:2]
    assert len(entries()) == 2
    r = cli('cache', '--clear')
    assert r.exit_code == 0 and not re.search('[\x1b\u202e]', r.stdout) and entries() == [] and not tree(own_cache/'models')


def mine(own_cache, tmp_path):
    "What a user may have in the folder that is named as the cache, and what links in it lead to."
    (far := tmp_path/'far').mkdir()
    (far/'training.json').write_text('mine')
    (far/'recording.json').write_text('mine')
    zero, two, three, nine, caps = (c*16 for c in '0239A')
    for name in ('letters/training.json', 'models/mine/training.json', f'models/{zero[1:]}/training.json', f'models/{caps}/training.json',
                 f'models/{two}/notes.txt', f'recordings/{two}/training.json', 'recordings/x.lock', 'used/models/mine',
                 f'used/models/{nine}', '.models-abcdefgh/x', f'models/.{zero}/x', 'models/.mine-abcdefgh/x',
                 f'recordings/{three}'): # The last is a file
        (own_cache/name).parent.mkdir(parents=True, exist_ok=True)
        (own_cache/name).write_text('mine')
    (own_cache/'models'/('4'*16)).symlink_to(far)
    (own_cache/'recordings'/('5'*16)).symlink_to(far)
    for p in own_cache.rglob('*'): os.utime(p, (0, 0), follow_symlinks=False)
    return tree(own_cache), far


def test_what_is_not_an_entry_is_never_touched(own_cache, tmp_path):
    before, far = mine(own_cache, tmp_path)
    folder = keep('models', '0'*16)
    (folder/'link').symlink_to(far)
    (folder/'sub').mkdir()
    (folder/'sub/link').symlink_to(far/'training.json')
    assert [e.folder for e in clear()[0]] == [folder] and trim(1) == [] and clear(0) == ([], [])
    assert tree(own_cache) == before and tree(far) == ['recording.json', 'training.json']


def test_a_folder_of_entries_that_is_a_link_is_left_alone(own_cache, tmp_path):
    keep('models', '0'*16)
    (own_cache/'models').rename(tmp_path/'far')
    (own_cache/'models').symlink_to(tmp_path/'far')
    assert entries() == [] and clear() == ([], []) and (tmp_path/'far'/('0'*16)/'training.json').exists()


# --- the limit

@pytest.mark.parametrize('said, size', [('10 GB', 10**10), ('500 MB', 5*10**8), ('1.5 kB', 1500), ('3KiB', 3072), ('20 bytes', 20),
                                        ('0', None), ('none', None), ('None', None), ('', 10**10)])
def test_sizes(said, size, monkeypatch):
    monkeypatch.setenv('NEURONLENS_CACHE_LIMIT', said)
    assert size_limit() == size


@pytest.mark.parametrize('said', ['10', 'lots', '-1 GB', 'nan', 'inf GB', '1 GB 2', '٣ GB', '1e3 MB', '9'*400+' GB'])
def test_what_is_no_size_is_refused_before_anything_runs(said, clf, encoder, cli, monkeypatch, own_cache):
    monkeypatch.setenv('NEURONLENS_CACHE_LIMIT', said)
    for name in ('training.load_model', 'shards.read_shard'):
        monkeypatch.setattr(f'neuronlens.{name}', lambda *a, **kw: pytest.fail('something slow was started'))
    for work in (lambda: record(clf, some(1), progress=False, cache=True), lambda: tune(encoder, some(1))):
        with pytest.raises(InputError, match='^NEURONLENS_CACHE_LIMIT .* is no size; give one as in'): work()
    r = cli('cache')
    assert r.exit_code == 2 and r.stderr.startswith('neuronlens: NEURONLENS_CACHE_LIMIT ') and r.stderr.count('\n') == 1
    assert not own_cache.exists()


def test_what_was_used_least_recently_goes_first(clf, encoder, monkeypatch):
    a, b = some(1), some(2)
    record(clf, a, progress=False, cache=True)
    tune(encoder, b)
    record(clf, b, progress=False, cache=True)
    rec_a, model, rec_b = (e.folder for e in reversed(entries()))
    record(clf, a, progress=False, cache=True) # Used again, so it is no longer the oldest
    monkeypatch.setenv('NEURONLENS_CACHE_LIMIT', f'{sum(e.size for e in entries())} bytes')
    record(clf, some(3), progress=False, cache=True)
    assert {e.folder for e in entries()} >= {rec_a, rec_b} and not model.exists()
    record(clf, b, progress=False, cache=True)
    assert len(entries()) == 3 # Reading removes nothing
    monkeypatch.setenv('NEURONLENS_CACHE_LIMIT', 'none')
    tune(encoder, b)
    assert len(entries()) == 4


def test_an_entry_above_the_limit_stays_while_it_is_used(clf, encoder, monkeypatch, recwarn):
    monkeypatch.setenv('NEURONLENS_CACHE_LIMIT', '1 kB')
    record(clf, some(1), progress=False, cache=True)
    kept, = entries()
    assert [str(w.message) for w in recwarn if 'more than the limit of 1.0 kB; they stay until they are no longer used' in str(w.message)]
    with pytest.warns(UserWarning, match='more than the limit'): assert tune(encoder, some(2)).classes
    assert not kept.folder.exists() and [e.kind for e in entries()] == ['model'] # The other was in use no longer


# --- removing

def test_older_than(cli):
    old, new = keep('models', '0'*16, age=30.5, name='Old', texts_name='a.csv'), keep('models', '1'*16, age=29.5)
    r = cli('cache', '--clear', '--older-than', '30')
    assert r.exit_code == 0 and not old.exists() and new.exists()
    assert f'{cache_folder()}: removed, 100 bytes:\n  - model Old, a.csv, 100 bytes (models/{"0"*16})\n' == r.stdout
    with in_use(new): r = cli('cache', '--clear', '--older-than', '0')
    left = f'{cache_folder()}: left because in use, 100 bytes:\n  - model not known, 100 bytes (models/{"1"*16})\n'
    assert r.exit_code == 0 and new.exists() and r.stdout == left
    assert cli('cache', '--clear', '--older-than', '.5').stdout == f'{cache_folder()}: nothing to remove\n' # It was used just now
    os.utime(cache._mark(new), (2e10, 2e10)) # A clock that was wrong
    assert len(clear(0)[0]) == 1
    assert cli('cache').stdout == f'{cache_folder()}: nothing is kept (at most 10.0 GB; NEURONLENS_CACHE_LIMIT changes that)\n'


NO_DAYS = 'is no number of days since the last use; give 0 or more'


@pytest.mark.parametrize('args, said', [(['--older-than', '3'], '--older-than says what to remove; give --clear with it'),
                                        (['--clear', '--older-than', 'nan'], f'nan {NO_DAYS}'),
                                        (['--clear', '--older-than', '-1'], f'-1.0 {NO_DAYS}'),
                                        (['--clear', '--older-than', 'inf'], f'inf {NO_DAYS}')])
def test_wrong_options_are_refused(args, said, cli):
    folder = keep('models', '0'*16, age=99)
    r = cli('cache', *args)
    assert (r.exit_code, r.stdout, r.stderr) == (2, '', f'neuronlens: {said} (neuronlens explain NL122)\n') and folder.exists()


def test_killed_while_removing(own_cache):
    "What is half removed looks like nothing, and goes with the next."
    folder = keep('models', '0'*16)
    (folder/'sub').mkdir()
    def die(say, wait):
        shutil.rmtree = lambda *args, **kw: (say('dead'), os.kill(os.getpid(), signal.SIGKILL))
        clear()
    with child(die) as other: assert other.said() == 'dead'
    left, = (own_cache/'models').iterdir()
    assert left.name.startswith('.') and entries() == [] and (left/('0'*16)/'training.json').exists()
    assert clear() == ([], []) and not own_cache.exists() or tree(own_cache) == ['models']


def test_what_dead_processes_left_is_swept(own_cache):
    host, key = socket.gethostname(), '0'*16
    folder = keep('recordings', key)
    gone = [f'.{key}-abcdefgh.{DEAD}@{host}', f'.{key}-abcdefg1.7@elsewhere', f'.{key}-abcdefg2', f'{"9"*16}.lock']
    stay = [f'.{key}-abcdefg3.{os.getppid()}@{host}', f'.{key}-abcdefg4.7@elsewhere', f'.{key}-abcdefg5']
    for name in gone[:3]+stay:
        (folder.parent/name).mkdir()
        (folder.parent/name/'half').write_text('half')
    (folder.parent/gone[3]).write_text('')
    for name in gone[1:3]: os.utime(folder.parent/name, (time.time()-3700,)*2)
    (stale := own_cache/'used/models'/('8'*16)).parent.mkdir()
    stale.write_text('')
    with neighbour(folder) as work: # This very process is at work there
        trim(10**9)
        assert {p.name for p in folder.parent.iterdir()} == {key, work.name, *stay} and not stale.exists()


def test_removed_while_it_is_read_is_made_again(clf):
    "A run whose entry went before it began makes it again."
    texts = some(1)
    first = record(clf, texts, progress=False, cache=True)
    clear()
    again = record(clf, texts, progress=False, cache=True)
    assert (again.acts == first.acts).all() and len(entries()) == 1
    assert (record(clf, texts, progress=False).acts == first.acts).all()


def test_two_removers():
    "What one removes the other need not; neither fails."
    for i in range(10): keep('models', f'{i}'*16)
    def remove(say, wait): say(len(clear()[0]))
    with child(remove) as one, child(remove) as other: assert int(one.said())+int(other.said()) >= 10 and entries() == []


# --- damaged

def again(work):
    "What a call gives, and the sentences of its warnings."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        return work(), [str(w.message) for w in said]


def turn(path, at=None, more=0):
    "Flip a bit of a file: in its middle, at a byte from its end, or so many bytes after some text."
    data = bytearray(path.read_bytes())
    data[at if isinstance(at, int) else len(data)//2 if at is None else data.index(at)+more] ^= 1
    path.write_bytes(data)


def swap(folder, other):
    folder.rename(spare := folder.with_name('spare'))
    other.rename(folder)
    spare.rename(other)


def instead(path):
    "A folder in the place of a file."
    path.unlink()
    (path/'sub').mkdir(parents=True)


def without(path, *keys):
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in keys}, indent=1))


MODEL = {'weights': (lambda f, _: turn(f/'model.safetensors'), 'model.safetensors is damaged'),
         'a class name': (lambda f, _: turn(f/'config.json', b'animal'), 'config.json is damaged'),
         'a word': (lambda f, _: turn(f/'tokenizer.json', b'"cat"', 1), 'tokenizer.json is damaged'),
         'cut': (lambda f, _: os.truncate(f/'model.safetensors', 99), 'model.safetensors is damaged'),
         'gone': (lambda f, _: (f/'tokenizer_config.json').unlink(), 'tokenizer_config.json is damaged'),
         'one more': (lambda f, _: (f/'added_tokens.json').write_text('{}'), 'added_tokens.json is damaged'),
         'a folder': (lambda f, _: instead(f/'config.json'), 'config.json is damaged'),
         'another': (swap, 'holds another model'),
         'an older version': (lambda f, _: without(f/'training.json', 'files', 'sha256'), 'training.json has no checksum'),
         'the checksums': (lambda f, _: without(f/'training.json', 'files'), 'training.json is damaged'),
         'no training.json': (lambda f, _: (f/'training.json').unlink(), 'training.json cannot be read'),
         'empty': (lambda f, _: (f/'training.json').write_bytes(b''), 'training.json cannot be read'),
         'nested': (lambda f, _: (f/'training.json').write_text('['*100_000), 'training.json cannot be read (RecursionError)'),
         'a folder for training.json': (lambda f, _: instead(f/'training.json'), 'training.json cannot be read'),
         'nothing left': (lambda f, _: (shutil.rmtree(f), f.mkdir()), 'training.json cannot be read')}


@pytest.fixture(scope='module')
def tuned(encoder, tmp_path_factory):
    "A cache with two fine-tuned models, and what the first is."
    home = tmp_path_factory.mktemp('tuned')
    with patch.dict(os.environ, NEURONLENS_CACHE=str(home)):
        what = numbers(tune(encoder, some(1)))
        first = entries()[0].folder.name
        tune(encoder, some(2))
    return SimpleNamespace(home=home, what=what, first=first)


@pytest.mark.parametrize('how', MODEL)
def test_a_damaged_model_is_trained_again(how, tuned, encoder, own_cache):
    "With a warning that names the file; the numbers are those it had, and the next call only loads."
    shutil.copytree(tuned.home, own_cache)
    spoil, said = MODEL[how]
    first = cache_folder('models', tuned.first)
    files = {p.name: p.read_bytes() for p in first.iterdir()}
    spoil(first, next(p for p in first.parent.iterdir() if p != first))
    clf, told = again(lambda: tune(encoder, some(1)))
    assert same(numbers(clf), tuned.what) and len(told) == 1
    assert str(first) in told[0] and said in told[0] and told[0].endswith('; it is made again')
    assert {p.name: p.read_bytes() for p in first.iterdir()} == files
    with patch('neuronlens.models.training._train', lambda *a: pytest.fail('trained again')):
        assert again(lambda: tune(encoder, some(1)))[1] == []


def test_a_damaged_conversion_is_made_again(bert, monkeypatch, tmp_path):
    "The packaged language model, here a tiny one, is converted again where its files are not what was written."
    from transformers import AutoModel, AutoTokenizer

    from neuronlens import model
    (tmp_path/'SmolLM2-135M-Instruct.Q4_1.gguf').write_bytes(b'weights')
    made = []
    def load(file, device):
        made.append(file)
        with model.quiet(): return AutoModel.from_pretrained(bert), AutoTokenizer.from_pretrained(bert)
    monkeypatch.setattr(model, 'package_folder', lambda name: tmp_path)
    monkeypatch.setattr(model, 'load_language_model', load)
    monkeypatch.setattr(model, '_SMOLLM2', model.sha256([tmp_path/'SmolLM2-135M-Instruct.Q4_1.gguf']))
    monkeypatch.setattr(model, '_SPARE', [])
    home = model.smollm2()
    assert model.smollm2() == home and len(made) == 1 and [e.model for e in entries()] == ['SmolLM2-135M-Instruct'] and entries()[0].in_use
    files = {p.name: p.read_bytes() for p in home.iterdir()}
    turn(home/'model.safetensors')
    folder, told = again(model.smollm2)
    assert folder == home and len(made) == 2 and 'model.safetensors is damaged' in told[0] and len(told) == 1
    assert {p.name: p.read_bytes() for p in home.iterdir()} == files
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('NEURONLENS_CACHE', str(tmp_path/'file'))
    spare, told = again(model.smollm2)
    assert len(made) == 4 and len(told) == 1 and str(tmp_path/'file') in told[0] # It cannot be kept, and is written elsewhere for a while
    assert {p.name: p.read_bytes() for p in spare.iterdir()} == files and model.smollm2() == spare
    for fd in filter(None, cache._HELD.values()): os.close(fd)
    cache._HELD.clear()


def shard(folder, i): return folder/f'shard-0000{i}.safetensors'


RECORDING = {'a key': (lambda f, _: turn(f/'recording.json', b'tokenizer_sha256'), 'recording.json is damaged'),
             'a value': (lambda f, _: turn(f/'recording.json', b'texts_sha256', 50), 'recording.json is damaged'),
             'a version': (lambda f, _: turn(f/'recording.json', b'numpy', 10), 'recording.json is damaged'),
             'an older version': (lambda f, _: without(f/'recording.json', 'sha256'), 'recording.json has no checksum'),
             'empty': (lambda f, _: (f/'recording.json').write_bytes(b''), 'recording.json cannot be read'),
             'nested': (lambda f, _: (f/'recording.json').write_text('['*100_000), 'recording.json cannot be read (RecursionError)'),
             'no recording.json': (lambda f, _: (f/'recording.json').unlink(), 'recording.json cannot be read'),
             'a folder for recording.json': (lambda f, _: instead(f/'recording.json'), 'recording.json: a folder is in the way'),
             'a bit of a shard': (lambda f, _: turn(shard(f, 1), -9), 'shard-00001.safetensors is damaged'),
             'a shard cut': (lambda f, _: os.truncate(shard(f, 1), 99), 'shard-00001.safetensors cannot be read'),
             'a shard gone': (lambda f, _: shard(f, 1).unlink(), 'shard-00001.safetensors cannot be read'),
             'a folder for a shard': (lambda f, _: instead(shard(f, 1)), 'shard-00001.safetensors: a folder is in the way'),
             'shards swapped': (lambda f, _: swap(shard(f, 0), shard(f, 1)), 'of other texts (those of shard 0'),
             'a shard of another': (lambda f, g: shutil.copy(shard(g, 1), shard(f, 1)), 'holds another recording (texts'),
             'a shard too many': (lambda f, _: shutil.copy(shard(f, 1), shard(f, 5)), 'shard-00005.safetensors is removed'),
             'another': (swap, 'holds another recording (texts')}


@pytest.fixture(scope='module')
def seen(clf, tmp_path_factory):
    "A cache with two recordings of three shards, and what the first is."
    home = tmp_path_factory.mktemp('seen')
    with patch.dict(os.environ, NEURONLENS_CACHE=str(home)), patch.object(shards, 'SHARD_TEXTS', 8):
        what = held(record(clf, some(1), progress=False, cache=True))
        first = entries()[0].folder.name
        record(clf, some(2), progress=False, cache=True)
    return SimpleNamespace(home=home, what=what, first=first)


@pytest.mark.parametrize('how', RECORDING)
def test_a_damaged_recording_is_made_again(how, seen, clf, own_cache, monkeypatch):
    "With a warning that names file or folder; the numbers are those it had, and the next call only reads."
    monkeypatch.setattr(shards, 'SHARD_TEXTS', 8)
    shutil.copytree(seen.home, own_cache)
    spoil, said = RECORDING[how]
    first = cache_folder('recordings', seen.first)
    files = {p.name: p.read_bytes() for p in first.iterdir()}
    spoil(first, next(p for p in first.parent.iterdir() if p != first))
    rec, told = again(lambda: record(clf, some(1), progress=False, cache=True))
    assert same(held(rec), seen.what) and told and all(str(first) in t for t in told) and said in told[0]
    assert {p.name: p.read_bytes() for p in first.iterdir()} == files
    monkeypatch.setattr(shards, 'read_shard', lambda *a: pytest.fail('recorded again'))
    rec, told = again(lambda: record(clf, some(1), progress=False, cache=True))
    assert same(held(rec), seen.what) and told == []


def test_who_made_a_recording_is_known_without_recording_json(seen, clf, own_cache, monkeypatch):
    "The shards say with which versions they were made."
    monkeypatch.setattr(shards, 'SHARD_TEXTS', 8)
    monkeypatch.setattr(provenance, 'versions', lambda: {'numpy': '1.0'})
    first = record(clf, some(1), progress=False, cache=True)
    monkeypatch.undo()
    monkeypatch.setenv('NEURONLENS_CACHE', str(own_cache))
    monkeypatch.setattr(shards, 'SHARD_TEXTS', 8)
    path, = own_cache.glob('recordings/*/recording.json')
    other = cache_folder('recordings', seen.first) # The key of this version's
    path.unlink()
    path.parent.rename(other)
    rec, told = again(lambda: record(clf, some(1), progress=False, cache=True))
    assert 'recording.json cannot be read' in told[0] and rec.provenance['versions'] == first.provenance['versions'] == {'numpy': '1.0'}


OWN = {'a key': lambda p: turn(p, b'tokenizer_sha256'), 'a value': lambda p: turn(p, b'texts_sha256', 50),
       'a number': lambda p: turn(p, b'"max_length": ', 14)}


@pytest.mark.parametrize('how', OWN)
def test_damage_in_a_folder_of_ones_own_is_refused(how, clf, tmp_path, monkeypatch):
    "One sentence says what to do; when it is done, nothing has to be recorded again."
    first = record(clf, some(1), size=8, folder=tmp_path/'own', progress=False)
    OWN[how](path := tmp_path/'own/recording.json')
    with pytest.raises(InputError) as e: record(clf, some(1), size=8, folder=tmp_path/'own', progress=False)
    what = 'is damaged (its checksum does not fit); delete it and call again, the shards beside it say what they are of'
    assert str(e.value) == f'{path} {what}'
    path.unlink()
    monkeypatch.setattr(shards, 'read_shard', lambda *a: pytest.fail('recorded again'))
    assert same(held(record(clf, some(1), size=8, folder=tmp_path/'own', progress=False)), held(first))


def test_a_folder_in_the_place_of_a_file_is_refused(clf, tmp_path):
    record(clf, some(1), size=8, folder=tmp_path/'own', progress=False)
    for path in (tmp_path/'own/recording.json', shard(tmp_path/'own', 1)):
        data = path.read_bytes()
        instead(path)
        with pytest.raises(InputError) as e: record(clf, some(1), size=8, folder=tmp_path/'own', progress=False)
        assert str(e.value) == f'{path}: a folder is in the way of the file; move it away and call again' and (path/'sub').is_dir()
        shutil.rmtree(path)
        path.write_bytes(data)


def test_what_cannot_be_read_in_a_folder_of_ones_own_comes_from_the_shards(clf, tmp_path):
    first = record(clf, some(1), size=8, folder=tmp_path/'own', progress=False)
    for said in ('['*100_000, '{"half'):
        (tmp_path/'own/recording.json').write_text(said)
        rec, told = again(lambda: record(clf, some(1), size=8, folder=tmp_path/'own', progress=False))
        assert same(held(rec), held(first)) and len(told) == 1 and 'it is made again from the shards beside it' in told[0]


def test_flipped_bits(tmp_path, encoder):
    "A few of many: `python tests/flips_cache.py 500` flips more."
    assert flips(12, 0, tmp_path/'cache', encoder) == []


# --- disks

@pytest.fixture
def disk(tmp_path):
    "Mounts a small disk of its own: `disk(size)`, where the machine allows it."
    mounted = []
    def mount(size):
        (at := tmp_path/f'disk{len(mounted)}').mkdir()
        if not shutil.which('mount'): pytest.skip('no disk can be mounted here: there is no mount')
        r = subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', at], capture_output=True, text=True)
        if r.returncode: pytest.skip(f'no disk can be mounted here: {r.stderr.strip()}')
        mounted.append(at)
        return at
    yield mount
    for at in mounted: subprocess.run(['umount', '-l', at], check=True)


def remount(at, option): subprocess.run(['mount', '-o', f'remount,{option}', at], check=True)


BIG = {'a': np.zeros(100_000, np.float32)}


def fill(at, monkeypatch, clf, encoder, said):
    "Everything that is written on a disk without room says so, leaves nothing, and stops only what was asked for."
    with pytest.raises(DiskFull, match=f'/x.safetensors: {said}'): write_arrays(at/'x.safetensors', BIG, {})
    big = Recording(BIG | {'a': np.zeros((6, 20_000), np.float32)}, np.array([0, 1]*3), None, ('a', 'b'), 'first')
    with pytest.raises(DiskFull, match=f'/rec.safetensors: {said}'): save_recording(big, at/'rec.safetensors')
    with pytest.raises(DiskFull, match=f'/table.csv: {said}'), atomic(at/'table.csv') as part: pd.DataFrame(BIG).to_csv(part)
    with pytest.raises(DiskFull, match=f'/clf: {said}'): save_classifier(clf, at/'clf')
    store = Store(at/'s', {'keeps': 'activations'}, spare=True)
    _, told = again(lambda: [store.keep(i, 'd', BIG, {}) for i in range(3)])
    assert len(told) == 1 and re.search(f'/s: {said}', told[0]) and told[0].endswith('this run goes on without keeping more')
    assert [n for n in tree(at) if n not in ('s', 's/recording.json')] == []
    monkeypatch.setenv('NEURONLENS_CACHE', str(at/'cache'))
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: SimpleNamespace(free=10**9)) # What fits before may no longer fit then
    made, told = again(lambda: run(clf, encoder))
    assert len(told) == 1 and re.search(f'/cache: {said}', told[0])
    assert not [n for n in tree(at) if '.' in n and not n.endswith('recording.json')]
    monkeypatch.undo()
    return made


def run(clf, encoder):
    "What a study needs of the cache."
    sites = ['residual.0', 'residual.1', 'mlp.0', 'mlp.1']
    return numbers(tune(encoder, some(1))), [held(record(clf, t, sites, progress=False, cache=True)) for t in (some(1, 40), some(2, 40))]


@pytest.fixture(scope='module')
def fits(clf, encoder, tmp_path_factory, one_thread):
    "The same where there is room."
    with patch.dict(os.environ, NEURONLENS_CACHE=str(tmp_path_factory.mktemp('room'))): return run(clf, encoder)


def alike(made, wanted):
    (a, recs), (b, others) = made, wanted
    a, b = ({k: v for k, v in x.items() if k != 'about'} for x in (a, b)) # Its hash says that it was never kept
    return same(a, b) and all(map(same, recs, others))


def test_a_really_full_disk(disk, clf, encoder, monkeypatch, fits):
    made = fill(disk('24k'), monkeypatch, clf, encoder, 'the disk is full')
    assert alike(made, fits)


def test_a_limit_on_the_size_of_files(clf, encoder, monkeypatch, tmp_path, fits):
    "As `ulimit -f` sets it; the same as a full disk."
    resource = pytest.importorskip('resource')
    (at := tmp_path/'limited').mkdir()
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN # Python sees to it
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, was[1]))
    try: made = fill(at, monkeypatch, clf, encoder, r'the disk takes no more \(File too large\)')
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, was)
    assert alike(made, fits)


def test_a_full_disk_for_the_results_is_one_sentence(disk, cli, make_study, no_figures):
    at = disk('60k')
    r = cli('run', make_study(), '--out', at/'out')
    said = f'neuronlens: {at}/out/[a-z/.]+: the disk is full; make room and call again, what is finished stays'
    assert r.exit_code == 2 and re.fullmatch(said+r' \(neuronlens explain NL119\)\n', r.stderr), (r.exit_code, r.stderr, r.exception)
    assert not [n for n in tree(at) if '/.' in n]
    remount(at, 'size=9m')
    assert cli('run', make_study(), '--out', at/'out').exit_code == 0


def read_only(home, disk, make, monkeypatch):
    home.symlink_to(disk('1m'))
    remount(home.resolve(), 'ro')


def a_file(home, *args): home.write_text('mine')


def files_inside(home, *args):
    home.mkdir()
    for kind in ('models', 'recordings', 'used'): (home/kind).write_text('mine')


def files_for_entries(home, disk, make, monkeypatch):
    with patch.dict(os.environ, NEURONLENS_CACHE=str(home)): make()
    for p in [*home.glob('[mr]*/*')]:
        shutil.rmtree(p)
        p.write_text('mine')


def no_permission(home, disk, make, monkeypatch):
    "As for a user who is not root."
    for name in ('mkdir', 'open'):
        def guarded(real, path, *args, **kw):
            if str(path).startswith(str(home)): raise PermissionError(13, 'Permission denied', str(path))
            return real(path, *args, **kw)
        monkeypatch.setattr(os, name, partial(guarded, getattr(os, name)))


@pytest.mark.parametrize('how', [read_only, a_file, files_inside, files_for_entries, no_permission])
def test_a_cache_that_cannot_be_written_stops_nothing(how, request, clf, encoder, tmp_path, monkeypatch, fits):
    "One warning names the folder, and the run gives what it gives with a cache."
    home = tmp_path/'cache'
    how(home, lambda size: request.getfixturevalue('disk')(size), lambda: run(clf, encoder), monkeypatch)
    def mine(): return {p: p.read_text() for p in [home, *home.glob('*'), *home.glob('*/*')] if p.is_file()}
    before = mine()
    monkeypatch.setenv('NEURONLENS_CACHE', str(home))
    made, told = again(lambda: run(clf, encoder))
    assert len(told) == 1 and str(home) in told[0] and 'cannot be written (' in told[0], told
    monkeypatch.undo()
    assert mine().items() >= before.items() and alike(made, fits)


def test_a_cache_that_can_only_be_read_is_read(disk, clf, encoder, monkeypatch):
    at = disk('9m')
    monkeypatch.setenv('NEURONLENS_CACHE', str(at))
    first = numbers(tune(encoder, some(1))), held(record(clf, some(1), progress=False, cache=True))
    remount(at, 'ro')
    monkeypatch.setattr('neuronlens.models.training._train', lambda *a: pytest.fail('trained again'))
    monkeypatch.setattr(shards, 'read_shard', lambda *a: pytest.fail('recorded again'))
    second, told = again(lambda: (numbers(tune(encoder, some(1))), held(record(clf, some(1), progress=False, cache=True))))
    assert told == [] and all(map(same, first, second))
    with pytest.raises(OSError, match='Read-only file system'): clear()


def test_nobody_at_home(monkeypatch, cli):
    def none(): raise RuntimeError('Could not determine home directory.')
    for k in ('NEURONLENS_CACHE', 'XDG_CACHE_HOME'): monkeypatch.delenv(k, raising=False)
    monkeypatch.setattr('pathlib.Path.home', none)
    r = cli('cache')
    said = 'neuronlens: models and recordings have no home: set NEURONLENS_CACHE to a folder (neuronlens explain NL121)\n'
    assert (r.exit_code, r.stderr) == (2, said)


# --- killed, ended, unheard

def test_what_a_kill_leaves_in_the_results_is_swept(cli, make_study, tmp_path, no_figures):
    "The next run into the folder takes what dead processes left, of this version and the last, and nothing else."
    out, host = tmp_path/'out', socket.gethostname()
    assert cli('run', make_study(), '--out', out).exit_code == 0
    files = tree(out)
    gone = [f'.effects.csv-abcdefgh.{DEAD}@{host}', '.report.html-abcdefgh', f'recording/.test.safetensors-abcdefgh.{DEAD}@{host}']
    stay = [f'.study.toml-abcdefgh.{os.getppid()}@{host}', '.provenance.json-abcdefgh.7@elsewhere', '.mine-abcdefgh', '.effects.csv']
    for name in gone+stay: (out/name).mkdir()
    for name in gone[1:2]+stay[2:]: os.utime(out/name, (0, 0))
    assert cli('run', make_study(), '--out', out).exit_code == 0
    assert tree(out) == sorted(files+stay)


def test_killed_while_a_folder_is_exchanged(tmp_path):
    "Neither the old folder nor the new one is lost: the new one takes its place."
    with atomic(tmp_path/'a', folder=True) as part: (part/'old').write_text('old')
    real = os.replace
    def die(say, wait):
        def replace(a, b):
            if b == tmp_path/'a': say('dead'), os.kill(os.getpid(), signal.SIGKILL)
            real(a, b)
        os.replace = replace
        with atomic(tmp_path/'a', folder=True) as part: (part/'new').write_text('new')
    with child(die) as other: assert other.said() == 'dead'
    assert not (tmp_path/'a').exists()
    sweep(tmp_path, 'a')
    assert tree(tmp_path) == ['a', 'a/new']


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize('when', ['training', 'a result'])
def test_told_to_end(number, when, cli, make_study, tmp_path, encoder, own_cache, monkeypatch, no_figures):
    "One sentence and the signal's status; nothing is half written, and the next run goes on."
    study = make_study(model=dict(encoder=str(encoder), max_length=32), training=dict(epochs=1))
    from neuronlens import training
    owner, name = (training, 'logits') if when == 'training' else (pd.DataFrame, 'to_csv')
    real, calls, was = getattr(owner, name), [], signal.signal(number, signal.SIG_DFL) # These tests may run under `nohup`
    def ended(*args, **kw):
        calls.append(1)
        if len(calls) == 2: os.kill(os.getpid(), number)
        return real(*args, **kw)
    try:
        with monkeypatch.context() as mp:
            mp.setattr(owner, name, ended)
            r = cli('run', study, '--out', tmp_path/'out')
        assert signal.getsignal(number) == signal.SIG_DFL
    finally: signal.signal(number, was)
    said = f'neuronlens: ended by {number.name}; finished files are whole, run the same command again to go on\n'
    assert (r.exit_code, r.stderr) == (128+number, said)
    assert not [n for f in (tmp_path/'out', own_cache) if f.exists() for n in tree(f) if '/.' in f'/{n}' or n.endswith('.lock')]
    assert cli('run', study, '--out', tmp_path/'out').exit_code == 0


def test_an_ignored_signal_stays_ignored(cli, own_cache, monkeypatch):
    "As `nohup` has it."
    was = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    monkeypatch.setattr(cache, 'entries', lambda: (os.kill(os.getpid(), signal.SIGHUP), [])[1])
    try: assert cli('cache').exit_code == 0 and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally: signal.signal(signal.SIGHUP, was)


@pytest.mark.parametrize('to, status, said', [
    ('>/dev/full', 2, 'neuronlens: standard output cannot be written (No space left on device); finished files are whole'
                      ' (neuronlens explain NL120)\n'),
    ('>&-', 0, ''), ('>&- 2>&- <&-', 0, ''), ('| true', 1, '')])
def test_nobody_listens(to, status, said, own_cache, tmp_path):
    "A closed or full standard output, and a reader that has gone, end it with a sentence or without a word."
    keep('models', '0'*16)
    code = 'from neuronlens.studies.cli import main; main()'
    call = f'{shlex.join([sys.executable, "-c", code, "cache"])} {to if to.startswith(">") else ""}; echo $? > status'
    p = subprocess.run(['bash', '-c', f'({call}) {to}' if to.startswith('|') else call], capture_output=True, text=True, cwd=tmp_path,
                       env=os.environ | dict(PYTHONPATH=os.pathsep.join(sys.path)))
    assert (p.stderr, int((tmp_path/'status').read_text())) == (said, status)
