"""The stored tables of the paper's page: complete, of one shape, and what the page says of them."""
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neuronlens.edits.choice import MATCHED

RESULTS = Path(__file__).resolve().parents[1]/'results'
SETS = ('ag_news', 'emotion', 'dbpedia14', 'sst2', 'imdb')
PRESETS = ('paper', 'full', 'gaussian', 'recommended', 'random', 'leace')


def read(table): return pd.read_csv(RESULTS/f'{table}.csv', keep_default_na=False)


def test_matched_has_every_preset_and_concept():
    "Columns as promised, a row per concept of every preset, none twice."
    df, base = read('matched'), read('base')
    assert tuple(df.columns) == MATCHED
    assert set(df.dataset) == {*SETS, 'smollm2'} and set(df.preset) == set(PRESETS)
    classes = base[base.texts_of == 'test'].groupby('dataset')['class'].nunique()
    for (d, _), rows in df.groupby(['dataset', 'preset']):
        assert rows.concept.is_unique and len(rows) == classes[d]


@pytest.mark.parametrize('name', SETS)
def test_recommended_keeps_its_promise(name):
    "At 5 % or less of the target: a disturbance of .01 and a tenth of whole neurons at most, 1 % broken, a point of accuracy."
    df = read('matched')
    m = df[df.dataset == name].groupby('preset')[list(MATCHED[4:12])].mean()
    own, full = m.loc['recommended'], m.loc['full']
    assert own.target_accuracy <= .05 and full.target_accuracy <= .05
    assert own.disturbance <= min(.01, full.disturbance/10) and own.broken <= .01
    assert own.base_auxiliary_accuracy-own.auxiliary_accuracy <= .01


def test_language_model_keeps_a_third():
    m = read('matched').query("dataset == 'smollm2'").groupby('preset')[['target_accuracy', 'disturbance']].mean()
    assert m.target_accuracy['recommended'] <= .05 and m.disturbance['recommended'] <= m.disturbance['full']/3


def test_controls_are_five_draws():
    "Every macro control lies between its least and most; the strongest half leaves less of the target than any draw."
    c = read('controls')
    assert set(c.seeds) == {5} and set(c.dataset) == {*SETS, 'smollm2'}
    assert (c['min'] <= c['mean']+1e-5).all() and (c['mean'] <= c['max']+1e-5).all()
    half = c[(c.concept == 'macro') & (c.fraction == .5) & (c.vote > 0) & (c.measure == 'target_accuracy')]
    f = read('fractions')
    own = f[(f.fraction == .5) & (f.vote > 0)].groupby('dataset').target_accuracy.mean()
    assert (own < half.set_index('dataset')['min'][own.index]).all() and len(half) == 6
    blocks = read('blocks')
    drawn = blocks[blocks.preset == 'random'].groupby(['dataset', 'site']).draw.unique()
    assert len(drawn) == 5*5+2 and all(set(d) == set(range(5)) for d in drawn)
    tests = read('control_tests')
    assert set(tests.draw) == set(range(5)) and (tests.low <= tests.high).all()
    shares = tests[tests.measure.isin(['target_accuracy', 'broken'])]
    assert (shares.low < shares.high).all() # No share is known exactly


def test_probes_say_suppressed_not_erased():
    "A forest reads the target after every edit of neurons; a probe of shuffled labels reads nothing before or after."
    df = read('information')
    m = df.groupby(['probe', 'dataset', 'preset']).auc.mean()
    assert set(df.probe) == {'linear', 'forest', 'shuffled'}
    neurons = [p for p in PRESETS if p != 'leace']
    assert all(m['forest', d, p] > m['forest', d, 'base']-.04 for d in (*SETS, 'smollm2') for p in neurons)
    assert (abs(m['shuffled']-.5) < .1).all()
    assert (m['linear'].xs('leace', level='preset') < m['linear'].xs('base', level='preset')-.2).all()
    assert (df.auc_low <= df.auc_high).all() and np.isfinite(df[['auc', 'information']]).all(axis=None)


def test_learned_gates_below_the_last_block():
    "Each classifier at each block, a row per concept of both ways; what the page says of the upper half, and beside the best probe."
    b, classes = read('blocks'), read('base').query("texts_of == 'test'").groupby('dataset')['class'].nunique()
    b = b[b.preset.isin(['learned', 'probe'])]
    for d in SETS:
        for site in (f'residual.{k}' for k in range(5)):
            for _, rows in b[(b.dataset == d) & (b.site == site)].groupby('preset'):
                assert rows.concept.is_unique and len(rows) == classes[d]
    assert set(zip(b.dataset, b.site, b.preset, strict=True)) >= {(d, f'residual.{k}', p) for d in SETS for k in range(5)
                                                                  for p in ('learned', 'probe')}
    m = b[b.dataset.isin(SETS)].groupby(['dataset', 'site', 'preset'])[['target_accuracy', 'disturbance']].mean()
    upper = m.loc[pd.IndexSlice[:, ['residual.3', 'residual.4'], 'learned'], :]
    assert len(upper) == 10 and (upper.disturbance <= .03).all() and (upper.target_accuracy <= .06).all()
