"""The numbers as they were frozen before the house was rebuilt: `python tests/frozen.py` writes tests/golden anew.

A table is read through one adapter, `canonical`, whatever its columns are called: settings become text, measures stay numbers. So a change
of names shows nothing, and a change of numbers shows at once. Only a change that is meant may write the tables anew, with the reason in the
commit.
"""
import json
import tempfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
from conftest import make_folder, make_frame

TOP = Path(__file__).resolve().parents[1]
GOLDEN = TOP/'tests/golden'
SETTINGS = ['concept', 'condition', 'site', 'ranking', 'fraction', 'range', 'vote', 'positions', 'fitted_at', 'edit', 'seed']

# What is kept of every combination: all rankings, ranges and edits, gates, places and origins of the ranges
GRIDS = [dict(ranking=['dprime', 'max_activation', 'probeless', 'f_statistic', 'average_precision', 'mutual_information', 'random'],
              fraction=[.25, .75]),
         dict(ranges=['gaussian(1)', 'quantile(0.9)', 'posterior', 'posterior(0.25)', 'kmeans(3)', 'density'], vote=[0., .5]),
         dict(edit=['zero', 'mean', 'dampen', 'adaptive(2)', 'scale(0.5)', 'shift', 'transport', 'resample'], seed=3),
         dict(positions='readout', edit=['zero', 'shift(1)']),
         dict(fitted_at='tokens', ranges=['gaussian(2)', 'posterior'], vote=[.4])]


def canonical(frame):
    "Settings spelled in one way, whatever the columns are; the rest as it is."
    df = frame.rename(columns=dict(fitted='fitted_at'))
    if 'range' not in df: return df
    plain, _, gates = zip(*(str(k).partition('+') for k in df.range), strict=True)
    tau = df.pop('tau') if 'tau' in df else [np.nan]*len(df)
    df['range'] = [f'gaussian({t:g})' if p == 'gaussian' and t == t else p for p, t in zip(plain, tau, strict=True)]
    if 'vote' not in df: df['vote'] = [float(g.partition('vote(')[2].partition(')')[0] or 0) for g in gates]
    if 'fitted_at' not in df: df['fitted_at'] = ['tokens' if 'tokens' in g else 'readout' for g in gates]
    return df


def interventions_frame(ivs):
    "The settings of interventions, one row each."
    def one(iv):
        return [iv.concept, iv.condition, str(iv.site), iv.ranking, iv.fraction, iv.range, iv.vote, iv.positions, iv.fitted_at,
                iv.edit, iv.seed]
    return pd.DataFrame([one(iv) for iv in ivs], columns=SETTINGS)


def swept(clf, train, test, tokens):
    "Every grid on one model, measured; a row an intervention."
    from neuronlens.edits.effects import MEASURES, measure_effects
    from neuronlens.edits.sweeps import changes_on, grid
    ivs = [iv for g in GRIDS for iv in grid(train, tokens=tokens if 'fitted_at' in g else None, **g)]
    done = changes_on(clf, test, ivs, progress=False)
    measured = measure_effects(done).frame
    rows = measured[measured.condition != 'base'].reset_index(drop=True)
    return pd.concat([interventions_frame(ivs), rows[list(MEASURES)]], axis=1), done


def tables(folder):
    "Every frozen table of the tiny models."
    import torch

    from neuronlens.arrays.firing import firing_matrix
    from neuronlens.arrays.overlap import set_overlap
    from neuronlens.arrays.ranges import fit_ranges
    from neuronlens.arrays.saliency import rank
    from neuronlens.edits.evidence import intervals
    from neuronlens.ground.data import make_texts
    from neuronlens.models.model import load_classifier
    from neuronlens.records.recording import record
    from neuronlens.records.tokens import record_tokens
    torch.set_num_threads(1)
    fit, other = make_frame(20, 1), make_frame(12, 2)
    train, test = (make_texts(df.text.tolist(), df.label.tolist()) for df in (fit, other))
    out = {}
    for kind in ('bert', 'gpt2'):
        clf = load_classifier(make_folder(Path(folder)/kind, kind, fit), device='cpu')
        rec = record(clf, train, ['residual.1', 'mlp.0'], progress=False)
        seen = record(clf, test, ['residual.1', 'mlp.0'], progress=False)
        tokens = record_tokens(clf, train, ['residual.1', 'mlp.0'], progress=False)
        out[f'{kind}-effects'], done = swept(clf, rec, test, tokens)
        sure = intervals(done, draws=50, seed=1).frame
        out[f'{kind}-intervals'] = canonical(sure[(sure.condition == 'range') & (sure.measure == 'disturbance')]).iloc[::7]
        salient = rank(rec.acts, rec.labels, 'dprime', classes=rec.classes).salient(.5)
        ranges = fit_ranges(rec.acts, rec.labels, 'gaussian(2.5)', classes=rec.classes)
        out[f'{kind}-overlap'] = set_overlap(salient, rec.acts.shape[1], rec.classes).to_frame()
        out[f'{kind}-firing'] = firing_matrix(seen.acts, seen.labels, ranges, salient).to_frame()
    return {k: canonical(df) for k, df in out.items()}


def stored():
    "What the stored results say, whatever their columns are called: the rows, and a hash of settings and numbers, of every table."
    out = {}
    for p in sorted((TOP/'results').glob('*.csv')):
        if p.stem in ('runs', 'models'): continue # A log, and a table that every release of transformers makes anew
        df = canonical(pd.read_csv(p, keep_default_na=False, na_values={'tau': ['']}))
        keys = [k for k in ('dataset', *SETTINGS[:7], *SETTINGS[8:10]) if k in df]
        rest = sorted(c for c in df if c not in (*keys, *SETTINGS, 'covers', 'preset', 'scope'))
        out[p.stem] = dict(rows=len(df), sha256=sha256(df[keys+rest].to_csv(index=False, float_format='%.6g').encode()).hexdigest())
    return out


def write():
    "Write the golden tables anew."
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, df in tables(folder).items(): df.round(7).to_csv(GOLDEN/f'{name}.csv', index=False)
    (GOLDEN/'results.json').write_text(json.dumps(stored(), indent=1)+'\n', encoding='utf-8')


if __name__ == '__main__': write()
