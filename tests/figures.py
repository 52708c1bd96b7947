"""Every figure function on small made-up data; as a program: draw and save them all into a folder."""
import inspect
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use('Agg')

from matplotlib import pyplot as plt  # noqa: E402

from neuronlens import (  # noqa: E402  # noqa: E402
    distributions,
    evidence,
    matching,
    overlap,
    plot_effects,
    plot_erasure,
    plot_meaning,
    plot_overlap,
    plot_sweeps,
    plots,
    ranges,
    saliency,
)
from neuronlens import firing as fr  # noqa: E402
from neuronlens import statistics as st  # noqa: E402

PAGES = (plots, plot_overlap, plot_effects, plot_sweeps, plot_erasure, plot_meaning)
ENDS = ('png', 'svg', 'pdf')
CLASSES = ('tea', 'a $coffee$ & <milk>', 'cocoa')


def figure_functions():
    "The public functions of the pages that draw: name to function."
    public = {n: getattr(page, n) for page in PAGES for n in page.__all__}
    return {n: f for n, f in public.items() if inspect.isfunction(f) and n.startswith('plot')}


def every_figure():
    "All names of these pages in one."
    return SimpleNamespace(**{n: v for page in PAGES for n, v in vars(page).items() if not n.startswith('__')})


def table():
    "Effects of three conditions at two fractions and two sites."
    rows = []
    for c, name in enumerate(CLASSES):
        for f in (.2, .6):
            for k, cost in (('base', 0), ('full', .3), ('range', .1), ('random', .02)):
                for site in ('residual.0', 'residual.1'):
                    about = dict(ranking='dprime', range='gaussian(2.5)', edit='mean', site=site, n_target=20, n_auxiliary=40)
                    rows.append(about | dict(concept=name, condition=k, fraction=f, target_accuracy=.9 - 2*cost*f - .01*c,
                                             target_confidence=.8 - cost, auxiliary_accuracy=.9 - cost*f, auxiliary_confidence=.8 - cost*f,
                                             disturbance=cost*f, preset='paper' if k == 'range' else k, dataset='drinks'))
    return pd.DataFrame(rows)


def collateral():
    "A `Collateral` of numbers."
    frame = pd.DataFrame([dict(concept=a, text=b, predicted=i/9, measured=(i % 4)/20) for i, (a, b) in
                          enumerate((a, b) for a in CLASSES for b in CLASSES if a != b)])
    return evidence.Collateral(frame, .5)


@lru_cache
def recipes():
    "Name of the figure function to what it is called with, but for the axes."
    rng, labels = np.random.default_rng(0), np.repeat([0, 1, 2], 24)
    acts = rng.normal(size=(72, 8)).astype(np.float32)
    acts[np.arange(72), labels] += 3
    stats = st.class_statistics(acts, labels, CLASSES)
    order = saliency.rank(acts, labels, 'dprime', statistics=stats)
    fitted, top = ranges.fit_ranges(acts, labels, 'gaussian(2.5)', statistics=stats), order.salient(.5)
    firing, frame = fr.firing_matrix(acts, labels, fitted, top, CLASSES), table()
    here = frame[frame.site == 'residual.1']
    one = here[here.fraction == .6]
    points = pd.concat([one, one.assign(concept='macro')]).assign(cost=one.disturbance.iloc[0] + .01, envelope=True)
    sure = pd.DataFrame([dict(concept=c, condition=k, fraction=.6, measure='disturbance', value=v, low=v - .01, high=v + .02, n=40)
                         for c in (*CLASSES, 'macro') for k, v in (('full', .18), ('range', .06))])
    probes = pd.DataFrame(dict(site=['residual.0', 'residual.1'], accuracy=[.7, .9], control=[.3, .35], majority=1/3))
    remains = pd.DataFrame(dict(edit=['no edit', 'mean', 'a partner'], auc_linear=[.99, .6, .5], auc_forest=[1., .99, .58],
                                kept_r2=[.8, 0., .2]))
    formulas = pd.DataFrame({'range': ['tea, neuron 3', 'a $coffee$ & <milk>'], 'formula': ["'$5' OR 'cup'", "'bean' AND NOT '<b>'"],
                             'iou': [.7, .3], 'iou_low': [.6, .2], 'iou_high': [.8, .45], 'chance_iou': [.2, .22]})
    path = pd.DataFrame(dict(l1=[.3, .1, .01], used=[0, 3, 8], accuracy=[.3, .8, .9]))
    agreement = matching.ranking_agreement({n: saliency.rank(acts, labels, n, statistics=stats) for n in ('dprime', 'probeless')})
    return dict(
        plot_neuron=(acts, labels, CLASSES, 0, fitted.lo[0, 0], fitted.hi[0, 0], 0), plot_neurons=(acts, labels, fitted, top, 0, 4),
        plot_ranking=(order, 3), plot_overlap=(overlap.set_overlap(top, 8, CLASSES),), plot_firing=(firing,),
        plot_range_overlap=(overlap.range_overlap(fitted, acts), CLASSES, top), plot_effects=(one,), plot_fractions=(here,),
        plot_probes=(probes,), plot_mixture=(acts[:, 0], {'normal': ([1.], [0.], [1.]), 'two': ([.5, .5], [0., 2.], [1., 1.])}),
        plot_fits=(distributions.compare_fits(acts, labels, CLASSES),), plot_pair_overlap=(overlap.pair_overlap(acts, labels, CLASSES),),
        plot_polysemantic=(overlap.polysemantic_counts(top, 8),), plot_agreement=(agreement,), plot_trade_off=(points,),
        plot_matched=(one,), plot_sweep=(here,), plot_blocks=(frame[frame.condition != 'random'],), plot_intervals=(sure,),
        plot_predicted=(replace(firing, rate=firing.rate*.9), firing), plot_collateral=(collateral(),),
        plot_probe_path=(path,), plot_remains=(remains,), plot_formulas=(formulas,))


def save_all(folder, *names):
    "Every figure drawn once and saved with every ending, small."
    for name, given in recipes().items():
        if names and name not in names: continue
        drawn = figure_functions()[name](*given)
        for end in ENDS:
            plots.save_figure(drawn, Path(folder)/f'{name}.{end}', dpi=50)
            np.ravel(drawn)[0].figure.set_layout_engine('none') # As it lies now: finding places is most of the time
        plt.close('all')


if __name__ == '__main__': save_all(*sys.argv[1:])
