"""Classes go by number: what is combined must be of the same classes in the same order, and of the same neurons."""
import numpy as np
import pandas as pd
import pytest

import neuronlens as nl
from neuronlens.arrays.firing import members, normal_rates, predicted_collateral
from neuronlens.arrays.matching import family_overlap
from neuronlens.arrays.overlap import set_overlap
from neuronlens.arrays.quantiles import batch_quantiles, quantiles_from_arrays
from neuronlens.arrays.ranges import fit_ranges
from neuronlens.arrays.saliency import Ranking, rank
from neuronlens.arrays.statistics import class_statistics, need_alike
from neuronlens.ground.core import InputError
from neuronlens.ground.data import make_texts

X, Y = np.random.default_rng(0).normal(size=(60, 6)), np.arange(60) % 3
X[:, 0] += Y
A, B = ('a', 'b', 'c'), ('c', 'b', 'a')
OF = {c: (class_statistics(X, Y, c), rank(X, Y, classes=c), fit_ranges(X, Y, classes=c)) for c in (A, B)}
NARROW = class_statistics(X[:, :2], Y, A), rank(X[:, :2], Y, classes=A), fit_ranges(X[:, :2], Y, classes=A)
SETS = OF[A][1].salient(.5)


@pytest.mark.parametrize('other, said', [(OF[B], r"of classes \('a', .* but .* of \('c', "), (NARROW, 'of 6 neurons but .* of 2')])
@pytest.mark.parametrize('combine', [
    lambda s, k, r: nl.matching.ranking_agreement({'1': OF[A][1], '2': k}), lambda s, k, r: predicted_collateral(OF[A][2], s, SETS),
    lambda s, k, r: predicted_collateral(OF[A][2], s, SETS, rates=np.zeros((3, 3, 6))), lambda s, k, r: normal_rates(OF[A][2], s),
    lambda s, k, r: need_alike(one=OF[A][2], nothing=None, two=r)])
def test_results_of_other_classes_or_neurons_are_not_combined(combine, other, said):
    combine(*OF[A])
    with pytest.raises(InputError, match=said): combine(*other)


@pytest.mark.parametrize('rename', [
    lambda c: nl.firing_matrix(X, Y, OF[A][2], SETS, c), lambda c: nl.matching.ranking_agreement({'1': OF[A][1], '2': OF[A][1]}, c),
    lambda c: nl.firing_matrix(X, Y, OF[A][2], dict(zip(c, SETS, strict=True))),
    lambda c: set_overlap(dict(zip(c, SETS, strict=True)), 6, A),
    lambda c: rank(X, Y, classes=c, statistics=OF[A][0]), lambda c: rank(X, Y, 'random', classes=c, statistics=OF[A][0]),
    lambda c: fit_ranges(X, Y, classes=c, statistics=OF[A][0]), lambda c: fit_ranges(X, Y, 'density', classes=c, statistics=OF[A][0]),
    lambda c: fit_ranges(None, None, 'quantile', classes=c, quantiles=batch_quantiles(X, Y, A))])
def test_names_do_not_rename(rename):
    "Names given beside what has names are those, or a contradiction."
    rename(A)
    with pytest.raises(InputError, match=r"of classes .* but .* of \('"): rename(B)


@pytest.mark.parametrize('acts, labels', [(X[:, :2], Y), (X[:30], Y[:30]), (X, (Y*2) % 3 % 2), (None, Y[:30]), (X[:, :2], None)])
@pytest.mark.parametrize('fit', [rank, fit_ranges, lambda x, y, **kw: rank(x, y, 'random', **kw),
                                 lambda x, y, **kw: fit_ranges(x, y, 'density', **kw)])
def test_statistics_are_of_what_they_stand_beside(fit, acts, labels):
    with pytest.raises(InputError, match='statistics of .* but'): fit(acts, labels, statistics=OF[A][0])


def test_statistics_beside_their_own_activations():
    s, k, r = OF[A]
    for acts, labels in ((X, Y), (None, None), (None, Y), (X, None), (X.tolist(), Y.tolist())):
        np.testing.assert_array_equal(rank(acts, labels, statistics=s).scores, k.scores)
        np.testing.assert_array_equal(fit_ranges(acts, labels, statistics=s, classes=A).lo, r.lo)


@pytest.mark.parametrize('names', [{'a', 'b', 'c'}, 'abc', ('a', 'b', 'b'), [None]*3, np.array([['a'], ['b'], ['c']]), (1, 2, '1'), 5,
                                   b'abc', dict.fromkeys('abc'), ('a', 'b', float('nan')), [b'a', b'b', b'c']])
@pytest.mark.parametrize('of', [
    lambda c: class_statistics(X, Y, c), lambda c: rank(X, Y, classes=c), lambda c: fit_ranges(X, Y, classes=c),
    lambda c: Ranking(X[:3], 'x', c),
    lambda c: members(SETS, 6, c), lambda c: family_overlap({'1': SETS, '2': SETS}, 6, c), lambda c: nl.probing.fit_probe(X, Y, classes=c),
    lambda c: quantiles_from_arrays(batch_quantiles(X, Y, A).to_arrays(), c),
    lambda c: nl.matching.ranking_agreement({'1': X[:3], '2': X[3:6]}, c)])
def test_classes_are_different_names_in_order(of, names):
    with pytest.raises(InputError, match='^classes='): of(names)


@pytest.mark.parametrize('names, want', [(range(3), '012'), (np.array([*'xyz']), 'xyz'), (iter(A), 'abc'), (pd.Series([*'xyz']), 'xyz')])
def test_whatever_lists_names_will_do(names, want): assert class_statistics(X, Y, names).classes == tuple(want)


@pytest.mark.parametrize('given', [dict(texts={'a', 'b', 'c', 'd'}), dict(labels=frozenset('abcd')), dict(texts=dict.fromkeys('abcd'))])
def test_a_set_of_texts_has_no_order(given):
    with pytest.raises(InputError, match='must be a list, got'): make_texts(**dict(texts=[*'abcd'], labels=[*'xxyy']) | given)
