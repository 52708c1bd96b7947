"""Calls of the public array functions with whatever one might hand them: right, or one sentence.

`python tests/calls.py --n 2000 --seed 0` makes so many calls, prints those that end in anything but a result or an
`InputError`, and those whose table is not what float64 numpy makes of the same numbers.
"""
import argparse
import traceback
import warnings
from fractions import Fraction

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from neuronlens import (
    bins,
    density,
    distributions,
    effects,
    erasure,
    firing,
    matching,
    overlap,
    probing,
    quantiles,
    ranges,
    regions,
    saliency,
    separation,
    sparsity,
    statistics,
    testing,
)
from neuronlens.edits.edit import rest_quantiles
from neuronlens.edits.planning import plan
from neuronlens.ground.core import InputError
from neuronlens.ground.data import make_texts

PLAIN = [lambda x: x, np.ndarray.tolist, lambda x: x.astype(np.float32), lambda x: x.astype(np.float64), torch.as_tensor,
         lambda x: torch.as_tensor(x).double().requires_grad_(), pd.DataFrame, lambda x: pd.DataFrame(x).astype('Float64'),
         lambda x: x.astype(object), np.asfortranarray, lambda x: x[::-1][::-1], lambda x: np.ma.masked_array(x, mask=False)]
HALF = [lambda x: x.astype(np.float16), lambda x: torch.as_tensor(x).bfloat16(), lambda x: (x > 0), lambda x: np.round(x).astype(np.int8)]


def spoilt(x, at, value):
    "A copy with one other value."
    x = x.copy()
    x.flat[at % max(1, x.size)] = value
    return x


STRANGE = [lambda x: np.ma.masked_array(x, mask=x > np.median(x)), lambda x: x.astype(str), lambda x: x.astype('M8[s]'), lambda x: x+0j,
           lambda x: x.astype('m8[s]'), lambda x: sparse.csr_matrix(x), lambda x: torch.as_tensor(x).to_sparse(),
           lambda x: torch.as_tensor(x).to('meta'), lambda x: spoilt(x, 3, np.nan), lambda x: spoilt(x, 5, np.inf),
           lambda x: spoilt(x.astype(object), 2, None), lambda x: spoilt(x.astype(object), 2, 'a'), lambda x: x[:, 0], lambda x: x[None],
           lambda x: x[:0], lambda x: x[:, :0], lambda x: None, lambda x: 3., lambda x: 'acts', lambda x: [[1.], [1., 2.]],
           lambda x: x.astype(bytes), lambda x: spoilt(x, 1, 1e300), lambda x: x[:-1], lambda x: iter(x), lambda x: {'a': 1},
           lambda x: pd.DataFrame(x).astype('Float64').mask(x > 1), lambda x: spoilt(x.astype(object), 0, Fraction(1, 3)),
           lambda x: np.zeros(3, [('a', float)]), lambda x: torch.as_tensor(x)+0j, lambda x: [None]*len(x)]
LABELS = [lambda y: y, np.ndarray.tolist, torch.as_tensor, pd.Series, lambda y: pd.Series(y, dtype='Int64'), lambda y: y.astype(np.uint8),
          lambda y: y.astype(object), lambda y: y % 2 == 1]
STRANGE_LABELS = [lambda y: spoilt(y, 0, 2**40), lambda y: spoilt(y, 0, -1), lambda y: y.astype(float), lambda y: y.astype(str),
                  lambda y: y[:-1], lambda y: y[:, None],
                  lambda y: None, lambda y: y*0, lambda y: y+7, lambda y: np.ma.masked_array(y, mask=y == 0),
                  lambda y: pd.Series(y, dtype='Int64').mask(y == 1), lambda y: spoilt(y.astype(np.uint64), 0, 2**64-1), lambda y: 'labels',
                  lambda y: y.astype('M8[s]'), lambda y: spoilt(y.astype(object), 1, 'x'), lambda y: 1, lambda y: y[:0],
                  lambda y: spoilt(y.astype(object), 0, 2**80), lambda y: torch.as_tensor(y).to('meta')]
NUMBERS = [None, 'x', -1, 0, .5, 1, 2, 2.5, 7, np.nan, np.inf, -np.inf, 10**9, 1e300, [1], True, np.float32(.3), np.int8(3)]


class Maker:
    "Arguments, drawn from a seed: mostly good ones, and now and then one that is not."
    def __init__(self, seed):
        self.rng, self.strange = np.random.default_rng(seed), .25
        self.C, self.D = int(self.rng.integers(2, 5)), int(self.rng.integers(1, 7))
        self.y = self.rng.permutation(np.r_[np.repeat(np.arange(self.C), 2), self.rng.integers(0, self.C, self.rng.integers(0, 40))])
        self.x = self.rng.normal(0, 10.**self.rng.integers(-6, 7), (len(self.y), self.D))*self.rng.choice([0, 1], self.D, p=[.1, .9])
        self.good = True # Until something strange was handed out
    def pick(self, kinds): return kinds[self.rng.integers(len(kinds))]
    def one(self, good, strange, x):
        if self.rng.random() < self.strange:
            self.good = False
            good = strange
        return self.pick(good)(x)
    def acts(self): return self.one(PLAIN, STRANGE+HALF, self.x)
    def labels(self): return self.one(LABELS[:-1], STRANGE_LABELS+LABELS[-1:], self.y)
    def number(self, *good):
        if self.rng.random() < self.strange: return self.pick(NUMBERS)
        return self.pick(good)
    def classes(self): return self.pick([None, None, [f'c{i}' for i in range(self.C)], ('a',), 5, [None]*self.C, range(self.C)])
    def seed(self): return self.number(0, 1, 12345)
    def statistics(self): return statistics.class_statistics(self.x, self.y)
    def ranges(self): return ranges.fit_ranges(self.x, self.y, 'quantile(0.8)')
    def ranking(self): return saliency.rank(self.x, self.y, self.pick(['dprime', 'max_activation', 'random', 'f_statistic']))
    def sets(self):
        own = [self.rng.permutation(self.D)[:self.rng.integers(0, self.D+1)] for _ in range(self.C)]
        return self.one([lambda s: s, lambda s: [i.tolist() for i in s], lambda s: dict(zip('abcdef', s, strict=False))],
                        [lambda s: [*s, [0, 0]], lambda s: [*s, [99]], lambda s: None, lambda s: [*s, 'ab'], lambda s: [], lambda s: 3,
                         lambda s: [*s, [.5]], lambda s: [*s, np.ma.masked_array([0], mask=True)], lambda s: [*s, [-1]]], own)
    def prob(self): return (lambda p: p/p.sum(-1, keepdims=True))(self.rng.random((len(self.y), self.C)))


def same(got, want, what, tol=1e-5):
    "The table is what numpy makes of the numbers."
    got, want = np.asarray(got, float), np.asarray(want, float)
    size = np.abs(np.where(np.isfinite(want), want, 0)).max(initial=0)
    assert got.shape == want.shape and np.allclose(got, want, rtol=tol, atol=tol*size, equal_nan=True), f'wrong {what}: {got} is not {want}'


def by_class(m, fn): return [fn(m.x[m.y == c]) for c in range(m.C)]


def check_statistics(m, s):
    same(s.mean, by_class(m, lambda a: a.mean(0)), 'mean')
    same(s.sd, by_class(m, lambda a: a.std(0)), 'sd')
    same(s.rest_mean, [m.x[m.y != c].mean(0) for c in range(m.C)], 'mean of the others')


def check_ranking(m, r):
    if r.name == 'max_activation': same(r.scores, by_class(m, lambda a: abs(a).mean(0)), r.name)
    if r.name == 'dprime':
        own, rest = ([m.x[k(m.y, c)] for c in range(m.C)] for k in (np.equal, np.not_equal))
        with np.errstate(all='ignore'):
            d = [abs(a.mean(0)-b.mean(0))/np.sqrt((a.var(0)+b.var(0))/2) for a, b in zip(own, rest, strict=True)]
        same(r.scores, np.where(np.ptp(m.x, axis=0) > 0, d, 0), r.name, 1e-3)


def check_sets(m, o): assert (o.count.diagonal() == o.size).all() and (o.count <= np.minimum.outer(o.size, o.size)).all()


CALLS = { # Name to (a call with what a `Maker` gives, a check of its result where everything given was good)
    'class_statistics': (lambda m: statistics.class_statistics(m.acts(), m.labels(), m.classes()), check_statistics),
    'batch_statistics': (lambda m: statistics.batch_statistics(m.acts(), m.labels(), m.classes() or range(m.C)), None),
    'batch_quantiles': (lambda m: quantiles.batch_quantiles(m.acts(), m.labels(), range(m.C), k=m.number(10, 100)), None),
    'quantile of sketch': (lambda m: quantiles.batch_quantiles(m.x, m.y, range(m.C)).quantile(m.number(.1, .5, 1)), None),
    'rank': (lambda m: saliency.rank(m.acts(), m.labels(), m.pick([*saliency.FROM_STATISTICS, 'random', 'average_precision', 'x', None]),
                                     classes=m.pick([None, m.classes()]), seed=m.seed()), check_ranking),
    'probe ranking': (lambda m: saliency.rank(m.acts(), m.labels(), m.pick(['probe', 'probe_mass', 'mutual_information'])), None),
    'random': (lambda m: saliency.random(m.acts(), m.labels(), m.seed()), None),
    'salient': (lambda m: m.ranking().salient(m.number(.5, 1)), None),
    'by_mass': (lambda m: m.ranking().by_mass(m.number(.5, 1)), None),
    'to_frame': (lambda m: m.ranking().to_frame(m.number(None, 1, 3)), None),
    'mass_left': (lambda m: sparsity.mass_left(m.acts()), None),
    'fit_ranges': (lambda m: ranges.fit_ranges(m.acts(), m.labels(), f"{m.pick(ranges.RANGES)}({m.number(.5, 2, .9, 3)})"), None),
    'gaussian': (lambda m: ranges.gaussian(m.statistics(), m.number(1, 2.5)), None),
    'tolerance': (lambda m: ranges.tolerance(m.statistics(), m.number(1, 2.5)), None),
    'posterior': (lambda m: regions.posterior(m.statistics(), m.number(.3, .5)), None),
    'quantile': (lambda m: ranges.quantile(m.acts(), m.labels(), m.number(.8, .95)), None),
    'density': (lambda m: density.density(m.acts(), m.labels(), m.number(.8, .95)), None),
    'kmeans': (lambda m: bins.kmeans(m.acts(), m.labels(), m.number(2, 3)), None),
    'clusters': (lambda m: bins.clusters(m.acts(), m.number(2, 3)), None),
    'contains': (lambda m: m.ranges().contains(m.acts(), m.number(0, 1), m.pick([None, [0], [0., .5], [99], 'x', [-1]])), None),
    'members': (lambda m: firing.members(m.sets(), m.number(m.D)), None),
    'set_overlap': (lambda m: overlap.set_overlap(m.sets(), m.number(m.D, m.D, 10**9)), check_sets),
    'polysemantic': (lambda m: overlap.polysemantic_counts(m.sets(), m.number(m.D+1)), None),
    'histogram_overlap': (lambda m: separation.histogram_overlap(m.acts(), m.labels(), bins=m.number(5, 20)), None),
    'ks_between': (lambda m: separation.ks_between(m.acts(), m.labels(), m.classes()), None),
    'share_inside': (lambda m: firing.share_inside(m.acts(), m.labels(), [0.], [1.]), None),
    'range_overlap': (lambda m: overlap.range_overlap(m.ranges(), m.acts()), None),
    'firing_matrix': (lambda m: firing.firing_matrix(m.acts(), m.labels(), m.ranges(), m.sets(), vote=m.number(0, .5, 1)), None),
    'range_purity': (lambda m: firing.range_purity(m.pick([firing.firing_rates(m.x, m.y, m.ranges()), m.acts()]),
                                                    m.pick([None, [1], [3]*m.C, 'x', m.labels(), [-1]*m.C])), None),
    'over_common': (lambda m: overlap.over_common(m.pick([overlap.range_overlap(m.ranges(), m.x), m.acts()]),
                                                  m.pick([None, m.sets()])), None),
    'ranking_agreement': (lambda m: matching.ranking_agreement({'a': m.ranking(), 'b': m.pick([m.ranking(), m.acts()])},
                                                              fractions=(m.number(.5, 1),)), None),
    'matched_neurons': (lambda m: matching.matched_neurons(m.acts(), m.acts(), seed=m.seed()), None),
    'cka': (lambda m: matching.cka(m.acts(), m.pick([m.acts(), 3.])), None),
    'fit_distributions': (lambda m: distributions.fit_distributions(m.acts(), m.labels(), m.classes()), None),
    'compare_fits': (lambda m: distributions.compare_fits(m.acts(), m.labels(), seed=m.seed()), None),
    'fit_mixture': (lambda m: distributions.fit_mixture(m.acts(), m.number(1, 2, 3)), None),
    'histogram_logpdf': (lambda m: distributions.histogram_logpdf(m.acts(), m.acts()), None),
    'fit_probe': (lambda m: probing.fit_probe(m.acts(), m.labels(), l1=m.number(1e-3), l2=m.number(1e-3), seed=m.seed(),
                                              control=m.pick([False, 'shuffled', 'type', 'x'])), None),
    'probe_layers': (lambda m: probing.probe_layers({'a': m.acts()}, m.labels(), {'a': m.acts()}, m.labels(), shuffles=m.number(1, 2),
                                                    seed=m.seed(), progress=False), None),
    'probe_by_count': (lambda m: sparsity.probe_by_count(m.pick([m.ranking().order, m.acts(), [0]]), m.acts(), m.labels(),
                                                        m.pick([m.acts(), m.x[:, :1], np.c_[m.x, m.x]]), m.labels(),
                                                        l2=m.number(.01, .1)), None),
    'sparsest_probe': (lambda m: sparsity.sparsest_probe(sparsity.elastic_net_path(np.vstack([m.x]*3), np.tile(m.y, 3), points=3), m.acts(),
                                                        m.labels(), relative=m.number(.9), accuracy=m.pick([None, m.number(.4)])), None),
    'elastic_net_path': (lambda m: sparsity.elastic_net_path(m.acts(), m.labels(), points=m.pick([1, 3, 0, 'x', None]), floor=m.number(.1),
                                                            share=m.number(.3), seed=m.seed()), None),
    'area_under_curve': (lambda m: testing.area_under_curve(m.pick([m.x[:, 0], m.acts()]), m.labels()), None),
    'leace': (lambda m: erasure.leace(m.acts(), m.labels(), m.number(None, 0, 1)), None),
    'mean_projection': (lambda m: erasure.mean_projection(m.acts(), m.labels(), m.number(0, 1)), None),
    'information_left': (lambda m: erasure.information_left(erasure.leace(m.x, m.y, 0), m.acts(), m.labels(), m.acts(), m.labels(),
                                                            m.number(0, 1), draws=m.number(10), level=m.number(.95), seed=m.seed()), None),
    'measure': (lambda m: effects.measure(m.labels(), m.number(0, 1), m.pick([m.prob(), m.acts()]), m.pick([m.prob(), m.acts()]),
                                          m.pick([np.zeros(len(m.y)), m.labels()])), None),
    'disturbance': (lambda m: effects.disturbance(m.pick([m.prob(), m.acts()]), m.pick([m.prob(), m.acts()])), None),
    'draw_texts': (lambda m: testing.draw_texts(m.labels(), m.number(1, 5), m.seed()), None),
    'make_texts': (lambda m: make_texts(m.pick([[f't{i}' for i in range(len(m.y))], None, 3, 'text', [None]*len(m.y)]), m.labels()), None),
    'rest_quantiles': (lambda m: rest_quantiles(m.acts(), m.labels(), m.number(0, 1), seed=m.seed()), None),
    'plan': (lambda m: plan(m.statistics(), [m.ranking()], m.ranges(), 'residual.0', fraction=[m.number(1)], vote=m.number(0, .5),
                            seed=m.seed(), concept=m.pick([None, [0], [9], 'x'])), None),
}


def call(seed):
    "One call: what went wrong with it, or None; the name of the function."
    m = Maker(seed)
    name = sorted(CALLS)[seed % len(CALLS)]
    fn, check = CALLS[name]
    if m.rng.random() < .2: m.strange = 0
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            res = fn(m)
            if check and m.good: check(m, res)
        except InputError as e: return name, None if str(e).count('\n') == 0 and len(str(e)) < 400 else f'no sentence: {e}'
        except Exception: return name, traceback.format_exc(limit=-3)
    return name, None


def calls(n, seed=0):
    "(seed, name, what went wrong) of all calls that went wrong."
    found = ((i, *call(i)) for i in range(seed*10**6, seed*10**6+n))
    return [f for f in found if f[2]]


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--n', type=int, default=2000)
    p.add_argument('--seed', type=int, default=0)
    args = p.parse_args()
    wrong = calls(args.n, args.seed)
    for i, name, what in wrong: print(f'--- {name} (seed {i})\n{what}')
    print(f'{len(wrong)} of {args.n} calls went wrong')
    raise SystemExit(bool(wrong))
