"""A study is killed at a random moment and run again: its files are those of an undisturbed run to the last byte, and nothing else is left.

`python tests/kills.py 100 7` kills a hundred with the seed 7. Three studies take turns: of a classifier; of an encoder that is trained
first; with ranges fitted on tokens. About a third of the runs that go on after a kill are killed again.
"""
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from conftest import make_folder, make_frame, study_text

STUDIES = {'classifier': {}, 'encoder': {}, 'tokens': dict(method=dict(fitted_at='tokens', range='posterior', vote=.5))}


def started(study, out, cache):
    "Process of one run, without figures, which take most of its time."
    if pid := os.fork(): return pid
    status = 1
    try:
        os.environ['NEURONLENS_CACHE'] = str(cache)
        null = os.open(os.devnull, os.O_RDWR)
        for f in range(3): os.dup2(null, f)
        import torch

        from neuronlens import report
        from neuronlens.studies.cli import app
        torch.set_num_threads(1)
        report.write_figures = lambda *args, **kw: []
        try: app(['run', str(study), '--out', str(out), '--quiet'])
        except SystemExit as e: status = e.code or 0
    finally: os._exit(status)


def ended(pid, after=None):
    "The status of a process, or 'killed' after so many seconds."
    if after is not None:
        end = time.monotonic()+after
        while time.monotonic() < end and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None: time.sleep(.002)
        with suppress(ProcessLookupError): os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    return 'killed' if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def held(folder):
    "Bytes of every file by name, and nothing for a folder: an empty one may be left, too."
    return {str(p.relative_to(folder)): None if p.is_dir() else p.read_bytes() for p in sorted(folder.rglob('*'))}


def named(folder): return {name for name in held(folder) if Path(name).parts[0] != 'used'} # But the marks of use


def prepared(home):
    "A study file for each kind."
    from transformers import BertModel
    from transformers.utils import logging
    logging.set_verbosity_error() # The head that the encoder leaves out
    frames = {'train': make_frame(20, 1), 'test': make_frame(12, 2)}
    for name, df in frames.items(): df.to_csv(home/f'{name}.csv', index=False)
    make_folder(home/'bert', 'bert', frames['train'])
    shutil.copytree(home/'bert', home/'encoder')
    BertModel.from_pretrained(home/'bert').save_pretrained(home/'encoder')
    data = dict(data=dict(train=str(home/'train.csv'), test=str(home/'test.csv')))
    for name, more in STUDIES.items():
        model = dict(encoder=str(home/'encoder'), max_length=32) if name == 'encoder' else dict(classifier=str(home/'bert'))
        also = dict(training=dict(epochs=1)) if name == 'encoder' else {}
        (home/f'{name}.toml').write_text(study_text(**data, model=model, **also, **more), encoding='utf-8')
    return [home/f'{name}.toml' for name in STUDIES]


def kills(n, seed, home):
    "Kill `n` runs; (how many were hit while they ran, what was wrong)."
    rng, wrong, hit, whole = np.random.default_rng(seed), [], 0, {}
    studies = prepared(home)
    for s in studies:
        start = time.monotonic()
        assert ended(started(s, home/f'{s.stem}-out', home/f'{s.stem}-cache')) == 0, s
        whole[s] = held(home/f'{s.stem}-out'), named(home/f'{s.stem}-cache'), time.monotonic()-start
    done = 0
    while done < n:
        s = studies[done % len(studies)]
        files, kept, took = whole[s]
        out, cache = home/'out', home/'cache'
        for f in (out, cache): shutil.rmtree(f, ignore_errors=True)
        while True:
            status = ended(started(s, out, cache), rng.uniform(0, took))
            done, hit = done+1, hit+(status == 'killed')
            if status not in ('killed', 0): wrong.append(f'kill {done} of {s.stem}: status {status}')
            if status == 0 or rng.random() > .3: break
        if (status := ended(started(s, out, cache))) != 0: wrong.append(f'after kill {done} of {s.stem}: status {status}')
        now = held(out)
        wrong += [f'after kill {done} of {s.stem}: {f} is not what it was' for f in files if now.get(f, '') != files[f]]
        wrong += [f'after kill {done} of {s.stem}: {f} is left' for f in {*now} - {*files}]
        if (there := named(cache)) != kept: wrong.append(f'after kill {done} of {s.stem}: the cache holds {sorted(there ^ kept)}')
    return hit, wrong


if __name__ == '__main__':
    n, seed = (int(a) for a in (*sys.argv[1:], *('100', '0')[len(sys.argv)-1:]))
    with tempfile.TemporaryDirectory() as home: hit, wrong = kills(n, seed, Path(home))
    print(*wrong, f'{hit} of {n} runs were killed while they ran; {len(wrong)} things are wrong afterwards', sep='\n')
    sys.exit(bool(wrong))
