"""The cache is the user's: what is in it is seen and removed, it keeps to its limit, and nothing goes that is in use or not ours."""
import json
import os
import re
import shutil
import signal
import socket
import time
from contextlib import contextmanager
from threading import Thread
from types import SimpleNamespace

import pytest
from conftest import make_frame

from neuronlens import cache
from neuronlens.cache import cache_folder, clear, entries, hold, in_use, size_limit, trim
from neuronlens.data import InputError, make_texts, neighbour
from neuronlens.model import load_classifier
from neuronlens.recording import record, recorded
from neuronlens.training import fine_tune

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
    recorded(clf, some(3, 40, source='test.csv'), progress=False)
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
    assert cache.said_size(sum(e.size for e in there)) in r.stdout.splitlines()[0]


def test_an_interrupted_recording_is_listed_as_what_it_is(clf, monkeypatch):
    from neuronlens import recording, store
    monkeypatch.setattr(recording, 'SHARD_TEXTS', 8)
    real = store.write_arrays
    def second(path, *args):
        if '00001' in path.name: raise KeyboardInterrupt
        real(path, *args)
    monkeypatch.setattr(store, 'write_arrays', second)
    with pytest.raises(KeyboardInterrupt): recorded(clf, some(1), progress=False)
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
    for name in ('training.load_model', 'recording.read_shard'):
        monkeypatch.setattr(f'neuronlens.{name}', lambda *a, **kw: pytest.fail('something slow was started'))
    for work in (lambda: recorded(clf, some(1), progress=False), lambda: tune(encoder, some(1))):
        with pytest.raises(InputError, match='^NEURONLENS_CACHE_LIMIT .* is no size; give one as in'): work()
    r = cli('cache')
    assert r.exit_code == 2 and r.stderr.startswith('neuronlens: NEURONLENS_CACHE_LIMIT ') and r.stderr.count('\n') == 1
    assert not own_cache.exists()


def test_what_was_used_least_recently_goes_first(clf, encoder, monkeypatch):
    a, b = some(1), some(2)
    recorded(clf, a, progress=False)
    tune(encoder, b)
    recorded(clf, b, progress=False)
    rec_a, model, rec_b = (e.folder for e in reversed(entries()))
    recorded(clf, a, progress=False) # Used again, so it is no longer the oldest
    monkeypatch.setenv('NEURONLENS_CACHE_LIMIT', f'{sum(e.size for e in entries())} bytes')
    recorded(clf, some(3), progress=False)
    assert {e.folder for e in entries()} >= {rec_a, rec_b} and not model.exists()
    recorded(clf, b, progress=False)
    assert len(entries()) == 3 # Reading removes nothing
    monkeypatch.setenv('NEURONLENS_CACHE_LIMIT', 'none')
    tune(encoder, b)
    assert len(entries()) == 4


def test_an_entry_above_the_limit_stays_while_it_is_used(clf, encoder, monkeypatch, recwarn):
    monkeypatch.setenv('NEURONLENS_CACHE_LIMIT', '1 kB')
    recorded(clf, some(1), progress=False)
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
    assert (r.exit_code, r.stdout, r.stderr) == (2, '', f'neuronlens: {said}\n') and folder.exists()


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
    first = recorded(clf, texts, progress=False)
    clear()
    again = recorded(clf, texts, progress=False)
    assert (again.acts == first.acts).all() and len(entries()) == 1
    assert (record(clf, texts, progress=False).acts == first.acts).all()


def test_two_removers():
    "What one removes the other need not; neither fails."
    for i in range(10): keep('models', f'{i}'*16)
    def remove(say, wait): say(len(clear()[0]))
    with child(remove) as one, child(remove) as other: assert int(one.said())+int(other.said()) >= 10 and entries() == []
