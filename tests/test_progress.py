"How far it is: a bar where somebody watches, a few lines of a log elsewhere, and nothing unasked."
import logging
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from neuronlens import progress
from neuronlens.ground.progress import ProgressLog, progress_bar, say

MAIN = ('from neuronlens.studies import report as r; f = r._figures; r._figures = lambda s: f(s)[:2]; '
        'from neuronlens.studies.cli import main; main()')


class Clock:
    "Seconds that pass only when told to."
    def __init__(self): self.now = 1000.
    def __call__(self): return self.now


@pytest.fixture
def clock(): return Clock()


@pytest.fixture
def on(monkeypatch):
    "As a user has it: the bars of the tests are not switched off, and standard error is no terminal."
    monkeypatch.delenv('TQDM_DISABLE')


@pytest.fixture
def said(caplog):
    "What the library has said so far, as a list of lines; a call empties it."
    caplog.set_level(logging.INFO, 'neuronlens')
    def lines():
        assert {r.name for r in caplog.records} <= {'neuronlens'}
        out = [r.getMessage() for r in caplog.records]
        caplog.clear()
        return out
    return lines


def steps(bar, clock, seconds, n=1):
    "Move a bar on, one step for every number of seconds."
    for s in seconds:
        clock.now += s
        bar.update(n)


# --- when there is a line

def test_a_line_for_every_tenth_of_something_long(clock, said):
    with ProgressLog(what='recording', total=1000, unit='text', clock=clock) as bar: steps(bar, clock, [3.]*100, 10)
    between = [f'recording: {k}00 of 1,000 texts ({k}0%) after {progress.said_time(30*k)}, {progress.said_time(300-30*k)} left'
               for k in range(1, 10)]
    assert said() == ['recording: 1,000 texts', *between, 'recording: 1,000 texts in 5.0 minutes (3.3 a second)']


@pytest.mark.parametrize('seconds', [1e-3, .5, 20, 100, 1000, 1e5])
@pytest.mark.parametrize('total', [1, 7, 10, 77, 2500])
def test_few_lines_whatever_the_work(total, seconds, clock, said):
    "Between the first and the last: nine lines at most, half a minute apart, and none for what is over before."
    times, pace = [], np.random.default_rng(total).exponential(size=total)
    with ProgressLog(range(total), 'probing', unit='site', clock=clock) as bar:
        said()
        for s in pace/pace.sum()*seconds:
            steps(bar, clock, [s])
            times += [clock.now]*len(said())
    assert len(said()) == 1
    assert len(times) <= min(9, seconds/30) and (np.diff([1000, *times]) >= 30).all()
    if seconds >= 1000: assert len(times) >= min(4, total//2) # And not silent for long


def test_an_unknown_total_is_said_ever_more_rarely(clock, said):
    with ProgressLog((i for i in range(9)), 'summarising', unit='text', clock=clock) as bar:
        assert bar.total is None and said() == ['summarising']
        times = []
        for _ in range(36_000):
            steps(bar, clock, [1], 64)
            if line := said(): times.append((clock.now-1000, *line))
    assert [t for t, _ in times[:11]] == [30*k for k in range(1, 12)]
    gaps = np.diff([t for t, _ in times[11:]])
    assert (gaps >= 30).all() and (np.diff(gaps) >= -1).all() and 50 < len(times) < 70 # A tenth more each time
    assert times[0][1] == 'summarising: 1,920 texts after 30 s'
    assert said() == ['summarising: 2,304,000 texts in 10.0 hours (64 a second)']


def test_a_total_that_is_known_later(clock, said):
    "As on a cluster: what is finished is counted while the total is still being found out."
    with ProgressLog(what='summarising', unit='text', clock=clock) as bar:
        steps(bar, clock, [40], 100)
        bar.total = 400
        steps(bar, clock, [40, 40, 40], 100)
    assert said() == ['summarising', 'summarising: 100 texts after 40 s',
                      'summarising: 200 of 400 texts (50%) after 1.3 minutes, 1.3 minutes left',
                      'summarising: 300 of 400 texts (75%) after 2.0 minutes, 40 s left',
                      'summarising: 400 texts in 2.7 minutes (2.5 a second)']


def test_more_than_the_total(clock, said):
    with ProgressLog(what='asking', total=2, unit='question', clock=clock) as bar: steps(bar, clock, [31]*4)
    assert said() == ['asking: 2 questions', 'asking: 1 of 2 questions (50%) after 31 s, 31 s left', # None at 100%: the end follows
                      'asking: 3 questions after 1.6 minutes', 'asking: 4 questions after 2.1 minutes',
                      'asking: 4 questions in 2.1 minutes (0.032 a second)']


def test_nothing_to_do(clock, said):
    assert list(ProgressLog([], 'drawing', unit='figure', clock=clock)) == []
    with ProgressLog(what='ablating', total=0., clock=clock) as bar: steps(bar, clock, [31])
    assert said() == ['drawing: 0 figures', 'drawing: 0 figures in 0 s', 'ablating', 'ablating: 1 after 31 s', 'ablating: done in 31 s']


# --- how it ends

def test_an_error_says_where(clock, said):
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), ProgressLog(what='recording', total=8, unit='text', clock=clock) as bar:
            steps(bar, clock, [3, 3, 3])
            raise error
        assert said() == ['recording: 8 texts', 'recording: stopped at 3 of 8 texts (37%) after 9 s']


def test_a_loop_left_early_and_one_that_fails(clock, said):
    for site in ProgressLog({'a': 1, 'b': 2, 'c': 3}, 'probing', unit='site', clock=clock):
        if site == 'b': break
    assert said() == ['probing: 3 sites', 'probing: stopped at 1 of 3 sites (33%) after 0 s']
    with pytest.raises(KeyError), ProgressLog('abc', 'probing', unit='site', clock=clock) as bar:
        for site in bar: {'a': 1}[site]
    assert said() == ['probing: 3 sites', 'probing: stopped at 1 of 3 sites (33%) after 0 s'] # Before the error arrives, once


def test_the_end_is_said_once(clock, said):
    with ProgressLog('ab', 'probing', unit='site', clock=clock) as bar: assert list(bar) == ['a', 'b']
    bar.close()
    steps(bar, clock, [100])
    assert said() == ['probing: 2 sites', 'probing: 2 sites in 0 s']


def test_bars_in_bars(clock, said):
    for k in ProgressLog('ab', 'probing', unit='site', clock=clock):
        with ProgressLog(what=f'reading {k}', total=1, unit='text', clock=clock) as bar: steps(bar, clock, [35])
    assert said() == ['probing: 2 sites', 'reading a: 1 text', 'reading a: 1 text in 35 s (0.029 a second)',
                      'probing: 1 of 2 sites (50%) after 35 s, 35 s left', 'reading b: 1 text',
                      'reading b: 1 text in 35 s (0.029 a second)', 'probing: 2 sites in 1.2 minutes (0.029 a second)']


def test_the_parts_make_the_whole(data, bert, monkeypatch):
    "Passes of the model are counted in fractions; whatever the sites and batches, the end is the total, to the last bit."
    from neuronlens import ablation
    from neuronlens.edits.sweeps import grid
    from neuronlens.ground.data import read_texts
    from neuronlens.models.model import load_classifier
    from neuronlens.records.recording import record
    clf, texts, bars, sites = load_classifier(bert, device='cpu'), read_texts(data.test), [], ['residual.1', 'residual.0', 'mlp.1']
    rec = record(clf, texts, sites, progress=False)
    monkeypatch.setattr(ablation, 'progress_bar', lambda *args, show, bar_format, **kw: bars.append(ProgressLog(*args, **kw)) or bars[-1])
    for given in (rec, None):
        for s in (sites, sites[:1]): ablation.ablate(clf, texts, grid(rec, site=s, fraction=[.5]), recording=given, tokens=100)
    assert len(bars) == 4 and all(b.n == b.total > 0 for b in bars)


# --- a bar or lines, and for whom

class Screen:
    "A stand-in for a terminal."
    def write(self, s): pass
    def flush(self): pass
    def isatty(self): return True


def test_who_sees_a_bar(on, monkeypatch):
    from tqdm import tqdm
    def kind(): return type(progress_bar([1], 'x', unit='site'))
    assert kind() is ProgressLog
    monkeypatch.setitem(sys.modules, 'IPython', SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1)))
    assert issubclass(kind(), tqdm)
    for shell in (None, SimpleNamespace()): # Imported by a script; IPython itself with its output in a file
        monkeypatch.setitem(sys.modules, 'IPython', SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert kind() is ProgressLog
    monkeypatch.setattr(sys, 'stderr', Screen())
    assert issubclass(kind(), tqdm)
    monkeypatch.setattr(sys, 'stderr', None) # A program without a console
    assert kind() is ProgressLog


def test_switched_off(on, said, monkeypatch):
    def use():
        with progress_bar('ab', 'probing', unit='site', show=show) as bar: return list(bar), bar.disable
    show = False
    assert use() == (['a', 'b'], True)
    show = True
    monkeypatch.setenv('TQDM_DISABLE', '1')
    assert use() == (['a', 'b'], True)
    assert said() == []
    monkeypatch.setenv('TQDM_DISABLE', '0')
    for value in ('0', 'false', 'Off', ' no '):
        monkeypatch.setenv('NEURONLENS_PROGRESS', value)
        assert use() == (['a', 'b'], True)
    assert said() == []
    monkeypatch.setenv('NEURONLENS_PROGRESS', '1')
    with progress_bar('ab', 'probing', unit='site') as bar: list(bar)
    assert len(said()) == 2


def test_nothing_is_made_for_nobody(capfd):
    "Without a listener a message is not even put into words, and nothing is printed; logging as a whole stays as it is."
    class Dear:
        def __str__(self): raise AssertionError('asked for')
    say(Dear())
    assert capfd.readouterr() == ('', '') and progress.log.level == logging.NOTSET and progress.log.propagate
    assert any(isinstance(h, logging.NullHandler) for h in progress.log.handlers)


def test_a_message_is_written_by_whoever_listens(on, monkeypatch):
    "A bar steps aside for handlers that know nothing of it."
    class Paper(Screen):
        def __init__(self): self.text = ''
        def write(self, s): self.text += s
    paper = Paper()
    monkeypatch.setattr(sys, 'stderr', paper)
    handler = logging.StreamHandler(paper)
    progress.log.addHandler(handler)
    monkeypatch.setattr(progress.log, 'level', logging.INFO)
    progress.log.manager._clear_cache()
    try:
        with progress_bar(what='recording', total=4, unit='text') as bar:
            bar.update(2)
            say('a message')
            before = paper.text
            with monkeypatch.context() as m:
                m.setattr(progress.log, 'disabled', True)
                progress.log.manager._clear_cache()
                say('to nobody')
            assert paper.text == before # The bar is not even redrawn
    finally:
        progress.log.removeHandler(handler)
        progress.log.manager._clear_cache()
    rows = seen(paper.text)
    assert rows[0] == 'a message' and rows[1].startswith('recording:  50%|') and len(rows) == 2


def seen(raw):
    "The rows of a terminal after all that was written to it: a carriage return goes back, what follows covers what was there."
    assert '\x1b' not in raw
    rows = []
    for line in raw.replace('\r\n', '\n').split('\n'):
        row = ''
        for part in line.split('\r'): row = part+row[len(part):]
        rows.append(row.rstrip())
    return rows[:-1]


# --- the command line

@pytest.fixture
def bare(tmp_path, own_cache, one_thread):
    "The environment of a user's process."
    return {k: v for k, v in os.environ.items() if k not in ('TQDM_DISABLE', 'NEURONLENS_PROGRESS')} | {'OMP_NUM_THREADS': '1'}


LINES = [r'recording: 60 texts', r'what is to be kept takes [\d.]+ kB of [\d.]+ .B disk', r'recording: 60 texts in .*',
         r'recording: 36 texts', r'what is to be kept takes [\d.]+ kB of [\d.]+ .B disk', r'recording: 36 texts in .*',
         r'9 interventions at 1 site on 36 texts: about \d+ s and .*', r'ablating', r'ablating: done in .*', r'intervals: 8 measures',
         r'intervals: 8 measures in .*']


def matching(lines, patterns):
    assert len(lines) == len(patterns), lines
    for line, p in zip(lines, patterns, strict=True): assert re.fullmatch(p, line), (line, p)


@pytest.mark.slow
def test_a_log_file(make_study, tmp_path, bare):
    "As under nohup or in CI: a line where something begins and one where it ends. Two figures are drawn, which take most of the time."
    with open(tmp_path/'log', 'wb') as log:
        subprocess.run([sys.executable, '-c', MAIN, 'run', make_study(), '--out', tmp_path/'out'], stdin=subprocess.DEVNULL, stdout=log,
                       stderr=log, env=bare, check=True, timeout=300)
    raw = (tmp_path/'log').read_text()
    assert '\r' not in raw and '\x1b' not in raw and '%|' not in raw
    lines = raw.splitlines()
    own = [*LINES, 'drawing: 2 figures', 'drawing: 2 figures in .*']
    matching(lines[:len(own)], own)
    assert 'dprime, 50%' in lines[len(own)] # Results


@pytest.mark.skipif(sys.platform == 'win32', reason='pseudo-terminals are of Unix')
@pytest.mark.slow
def test_a_terminal(make_study, tmp_path, bare):
    "Bars are drawn, and every message stands in a row of its own."
    import pty
    import termios
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    p = subprocess.Popen([sys.executable, '-c', MAIN, 'run', make_study(), '--out', tmp_path/'out'], stdin=subprocess.DEVNULL,
                         stdout=subprocess.DEVNULL, stderr=theirs, env=bare)
    os.close(theirs)
    raw = b''
    try:
        while part := os.read(ours, 4096): raw += part
    except OSError: pass # Linux: the other end is closed
    finally: os.close(ours)
    assert p.wait(timeout=300) == 0
    bar = r'{}: +100%\|█+\| .*'.format
    bars = [bar(what) for what in ('recording', 'recording', 'ablating', 'intervals', 'drawing')]
    matching(seen(raw.decode()), [LINES[1], bars[0], LINES[4], bars[1], LINES[6], *bars[2:]])


def test_quiet_and_no_progress(on, cli, make_study, tmp_path, own_cache, no_figures, monkeypatch):
    "Results are the same; `--no-progress` still says what it will cost, `--quiet` says nothing."
    study, before = make_study(), (progress.log.level, list(progress.log.handlers))
    def run(*how):
        r = cli('run', study, '--out', tmp_path/'out', *how)
        assert r.exit_code == 0, (r.stderr, r.exception)
        assert (progress.log.level, progress.log.handlers) == before
        return re.sub(r'\(\d+ s, ', '(0 s, ', r.stdout), r.stderr.splitlines()
    results, lines = run('--no-progress')
    matching(lines, [LINES[1], LINES[4], LINES[6]])
    for how in ('--quiet', '-q'): assert run(how) == (results, [])
    again, lines = run()
    assert again == results
    matching(lines, [p for p in LINES if 'kept' not in p]) # All is kept by now
    monkeypatch.setattr(progress, 'watched', lambda *a: True) # In a terminal there are bars, and with `--quiet` there are none
    assert '100%' in ' '.join(run()[1]) and run('--quiet') == (results, [])


def test_a_bar_ends_before_the_error_is_said(on, cli, make_study, tmp_path, own_cache, encoder, monkeypatch):
    from neuronlens import training
    batches = []
    def tired(*args):
        batches.append(args)
        if len(batches) == 4: raise KeyboardInterrupt
        return real(*args)
    real = training.logits
    monkeypatch.setattr(training, 'logits', tired)
    study = make_study(model=dict(encoder=str(encoder), max_length=32), training=dict(epochs=2, batch_size=12))
    said = cli('run', study, '--out', tmp_path/'out').stderr.splitlines()
    matching(said, ['fine-tuning: 10 steps', r'fine-tuning: stopped at 3 of 10 steps \(30%\) after .*', r'neuronlens: interrupted;.*'])


def test_a_mistake_is_said_in_quiet(on, cli, tmp_path):
    r = cli('run', tmp_path/'none.toml', '--out', tmp_path/'out', '--quiet')
    said = f'neuronlens: {tmp_path}/none.toml: no such study file (neuronlens explain NL601)\n'
    assert (r.exit_code, r.stdout, r.stderr) == (2, '', said)


# --- the library in somebody's program

SCRIPT = """
import neuronlens as nl
study = nl.run_study(nl.read_study({study!r}))
nl.sweep(study.clf, study.train, study.texts[1], recording=study.test)
nl.record(study.clf, study.texts[1], folder={folder!r})
"""


@pytest.mark.slow
def test_a_library_is_silent_until_asked(make_study, tmp_path, bare):
    "One process, twice: no logging configured, then logging configured."
    code = SCRIPT.format(study=str(make_study()), folder=str(tmp_path/'a'))
    listen = "import logging, sys\nprint('---', file=sys.stderr)\nlogging.basicConfig(level=logging.INFO, format='%(name)s: %(message)s')\n"
    code += listen + SCRIPT.format(study=str(make_study()), folder=str(tmp_path/'b'))
    p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=bare, timeout=300)
    assert (p.returncode, p.stdout) == (0, ''), p.stderr
    first, lines = p.stderr.split('---\n')
    assert first == ''
    lines = [line.removeprefix('neuronlens: ') for line in lines.splitlines()]
    mine = [q for q in LINES if 'kept' not in q]
    matching(lines, [*mine, *mine[-5:-2], LINES[3], LINES[4], LINES[5]])


def test_a_notebook_has_its_bar(bare, tmp_path):
    "In a kernel standard error is no terminal, and there is a bar all the same; messages go to whoever listens."
    client, v4 = pytest.importorskip('nbclient'), pytest.importorskip('nbformat.v4')
    code = ["from neuronlens.ground.progress import progress_bar, say\n"
            "with progress_bar([1, 2], 'counting') as bar: list(bar)\ntype(bar).__mro__[1].__module__",
            "say('unheard')", "import logging\nlogging.basicConfig(level=logging.INFO, format='%(message)s')\nsay('heard')"]
    nb = v4.new_notebook(cells=[v4.new_code_cell(c) for c in code])
    with pytest.MonkeyPatch.context() as mp:
        mp.delenv('TQDM_DISABLE')
        client.NotebookClient(nb, timeout=120, kernel_name='python3', resources=dict(metadata=dict(path=str(tmp_path)))).execute()
    first, second, third = (c.outputs for c in nb.cells)
    assert [o.output_type for o in first] == ['display_data', 'execute_result'] and first[1].data['text/plain'] == "'tqdm.notebook'"
    assert second == [] and [(o.name, o.text) for o in third] == [('stderr', 'heard\n')]
