"""Study files nobody would write, and some that somebody would: `python tests/generated.py 1000 [seed]` reads so many and counts.

Each starts from a good study and gets up to four changes: a value of another type, a huge, negative or missing number, odd text, a
path, a setting that is gone or that there is not, or a value that is only unusual.
"""
import copy
import datetime
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

import tomli_w

NAN, INF = float('nan'), float('inf')
NUMBERS = [0, 1, 2, 3, 7, -1, -3, 0., .5, .3, 1., 2.5, -.5, -0., 1e-300, 1e300, 1e39, 10**400, 2**31, 2**32-1, 2**32, 2**63, -2**63, 10**18,
           NAN, INF, -INF]
TEXTS = ['', ' ', '0', '-1', 'nan', 'None', 'true', 'auto', 'a\0b', 'a\0b.csv', '\x1b[31m', '\r', '\n', '\t', 'ä', '日本語', '🙂',
         'e\u0301',
         '\u202etxt.csv', '${HOME}', '$HOME/x.csv', '~', '~nobody/x.csv', '~/x', '../..', '/', '/etc/passwd', '/dev/null', '.',
         './x.csv', 'x'*5000,
         'C:\\x.csv', 'file:///x.csv', 'http://localhost/x.csv', '<script>', '{text}', '{', '%s', "'", '"', '"""', '=1+1', 'bbc_news',
         'minilm',
         'residual.0', 'residual.-1', 'residual.1', 'mlp.0', 'mlp.1', 'attention.1', 'residual.٣', 'residual.1e0', 'residual.99', 'mlp.-0',
         'dprime', 'random', 'probe', 'mean', 'zero', 'full', 'scale(0.5)', 'scale(1e300)', 'shift(1e39)', 'transport(1e300)', 'scale(nan)',
         'scale(0x1p3)', 'scale(1_0)', 'shift(-1)', 'gaussian(1)', 'gaussian(-1)', 'gaussian(1e400)', 'quantile(.5)', 'quantile(2)',
         'posterior(0.3)',
         'kmeans(4)', 'kmeans(4.5)', 'density', 'tolerance', 'gaussian()', 'gaussian (2)', 'GAUSSIAN', 'paper', 'recommended', 'first',
         'last',
         'readout', 'tokens', 'all', 'prompt', 'generated', 'float16', 'bfloat16', 'float64', 'cpu', 'cuda', 'cuda:-1', 'cpu:0', 'meta']
OTHER = [True, False, [], [[]], [0], [''], ['a', 'a'], [1, 'a'], [NAN], [[1, 2]], [True], {}, {'a': 1}, [{}], ['dprime', 'dprime'], [.5,
         .5],
         ['dprime', 'random'], [.5, 1], [1e-9], [.5, '0.5'], ['animal', 'food', 'tool'], ['tool', 'food', 'animal'], ['x', 'y', 'z'],
         datetime.datetime(1979, 5, 27, 7, 32), datetime.date(1979, 5, 27), datetime.time(7, 32)]
SETTINGS = {'data': ['train', 'test', 'test_share', 'text', 'label', 'most', 'skip_empty'],
            'model': ['classifier', 'encoder', 'causal', 'classes', 'readout', 'max_length', 'device', 'device_map', 'dtype',
            'trust_remote_code'],
            'prompt': ['template', 'shots', 'verbalizers', 'separator', 'instruction', 'calibrate', 'scoring'],
            'training': ['epochs', 'lr', 'batch_size'],
            'method': ['site', 'ranking', 'fraction', 'preset', 'range', 'tau', 'q', 'edit', 'vote', 'positions', 'covers', 'scope',
                       'fitted_at', 'correct_only', 'layers']}
PLAUSIBLE = {'site': ['residual.0', 'mlp.1', 'mlp.-1'], 'ranking': [['probe'], ['max_activation'], ['random', 'dprime'], ['probeless']],
             'fraction': [[.3], [1.], [.05, .9], [1]], 'preset': ['paper', 'gaussian', 'recommended'], 'edit': ['zero', 'dampen',
             'scale(0.5)'],
             'range': ['quantile', 'gaussian(1)', 'full', 'posterior', 'kmeans(2)', 'density'], 'tau': [0, .1, 1, 1e9], 'q': [1., .5, 1e-9],
             'vote': [0, .5, 1], 'positions': ['readout', 'prompt'], 'covers': ['salient'], 'scope': ['text'], 'fitted_at': ['tokens'],
             'correct_only': [True], 'layers': [True],
             'most': [1, 10, 30, 10**6], 'skip_empty': [True], 'max_length': [3, 8, 48, 49], 'readout': ['first', 'last', 'mean'],
             'dtype': ['float64', 'bfloat16', 'auto'], 'device': ['cpu'], 'text': ['label'], 'label': ['text'], 'seed': [1, 2**32-1]}


def changed(rng, study):
    "One change, in place."
    table, what = rng.choice(list(SETTINGS)), rng.random()
    key = rng.choice(SETTINGS[table])
    where = study.setdefault(table, {})
    if not isinstance(where, dict): return
    if what < .35 and key in PLAUSIBLE: where[key] = copy.deepcopy(rng.choice(PLAUSIBLE[key]))
    elif what < .75: where[key] = copy.deepcopy(rng.choice(rng.choice([NUMBERS, TEXTS, TEXTS, OTHER])))
    elif what < .82: where.pop(rng.choice([*where, key]), None)
    elif what < .86: study.pop(table)
    elif what < .90: where[rng.choice([*TEXTS[:20], 'tua', 'Site', key.upper(), key+' '])] = 1
    elif what < .94: study[rng.choice(['seed', 'title', 'method', table, 'sed'])] = copy.deepcopy(rng.choice(NUMBERS+TEXTS+OTHER))
    else: study[rng.choice(['seed', 'title'])] = rng.choice([1, 2**32-1, 'Study', '=1+1', '日本語'])


def generated(n, seed, good):
    "`n` studies made of a good one, as plain values; the same for the same seed."
    rng = random.Random(seed)
    for _ in range(n):
        study = copy.deepcopy(good)
        for _ in range(rng.choice([1, 1, 1, 2, 3, 4])): changed(rng, study)
        yield study


def one_sentence(said):
    "Whether this is one line that a terminal can show."
    return bool(said.strip()) and all(c.isprintable() for c in said)


def read_all(n, seed, good, folder):
    "Reads `n` studies as values and as files: how many were taken and refused; anything but a sentence is raised."
    from neuronlens.ground.core import InputError
    from neuronlens.studies.spec import parse_study, read_study, write_study
    count = Counter()
    for i, study in enumerate(generated(n, seed, good)):
        path, got = folder/'study.toml', []
        path.write_text(tomli_w.dumps(study), encoding='utf-8', newline='')
        for read in (lambda: parse_study(study), lambda: read_study(path)): # noqa: B023
            try: got.append(read())
            except InputError as e:
                assert one_sentence(str(e)), (i, study, str(e))
                got.append(None)
            except Exception as e: raise AssertionError((i, seed, study)) from e
        assert (got[0] is None) <= (got[1] is None), (i, study) # What values are refused, a file of them is, too
        if got[1] is not None:
            write_study(got[1], folder/'again.toml')
            assert read_study(folder/'again.toml') == got[1], (i, study)
        count['taken' if got[1] is not None else 'refused'] += 1
    return count


if __name__ == '__main__':
    n, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    good = dict(data=dict(train='train.csv', test='test.csv'), model=dict(classifier='model'), method=dict(ranking=['dprime'],
    fraction=[.5]))
    with tempfile.TemporaryDirectory() as folder: print(dict(read_all(n, seed, good, Path(folder))))
