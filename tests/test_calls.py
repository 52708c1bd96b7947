"""The public array functions, called with whatever one might hand them: a right table, or one sentence."""
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from calls import CALLS, STRANGE, Maker, call, calls

from neuronlens import bins, density, ranges, regions
from neuronlens.arrays.distributions import compare_fits
from neuronlens.arrays.firing import (
    firing_rates,
    members,
    predicted_collateral,
    range_purity,
    share_inside,
)
from neuronlens.arrays.matching import (
    cka,
    family_overlap,
    ranking_agreement,
)
from neuronlens.arrays.overlap import (
    over_common,
    pair_overlap,
    set_overlap,
)
from neuronlens.arrays.probing import (
    fit_probe,
    probe_layers,
)
from neuronlens.arrays.quantiles import batch_quantiles, quantiles_from_arrays
from neuronlens.arrays.ranges import fit_ranges
from neuronlens.arrays.saliency import Ranking, average_precision, mutual_information, random, rank
from neuronlens.arrays.separation import separation
from neuronlens.arrays.sparsity import (
    elastic_net_path,
    probe_by_count,
    sparsest_probe,
)
from neuronlens.arrays.statistics import class_statistics
from neuronlens.arrays.testing import (
    accuracy_draws,
    accuracy_interval,
    holm,
    sign_flips,
    unseen,
)
from neuronlens.edits.choice import (
    choose,
    matched,
    trade_off,
)
from neuronlens.edits.effects import changes_of, measure, measure_effects
from neuronlens.edits.erasure import information_left, leace, unedited
from neuronlens.edits.evidence import (
    compare,
    contributions,
    intervals,
    over_seeds,
    random_ranges,
    shuffled_labels,
)
from neuronlens.ground.core import InputError, labelled
from neuronlens.ground.data import balance, make_texts, read_chunks, read_texts, take
from neuronlens.ground.setting import Setting

X = np.random.default_rng(0).normal(size=(12, 3))
Y = np.repeat([0, 1, 2], 4)


def test_three_calls_of_every_function():
    assert not calls(3*len(CALLS))


@pytest.mark.slow
@pytest.mark.parametrize('seed', [2, 3])
def test_two_thousand_calls(seed):
    assert not calls(2000, seed)


def test_a_wrong_table_is_seen(monkeypatch):
    "The calls are no good if they pass whatever comes."
    monkeypatch.setitem(CALLS, 'class_statistics', (lambda m: class_statistics(m.x+.1*abs(m.x).max()+1, m.y), CALLS['class_statistics'][1]))
    monkeypatch.setitem(CALLS, 'cka', (lambda m: 1/0, None))
    said = [what for i in range(4*len(CALLS)) for name, what in [call(i)] if name in ('class_statistics', 'cka')]
    assert any('wrong mean' in (s or '') for s in said) and any('ZeroDivisionError' in (s or '') for s in said)


@pytest.mark.parametrize('given,said', [
    (np.ma.masked_array(X, mask=X > 1), 'masked array: . values are hidden'), (X.astype(str), 'got text'), (X.astype('M8[s]'), 'got dates'),
    (X.astype('m8[s]'), 'got times'), (X+0j, 'got complex numbers'), (torch.as_tensor(X).to_sparse(), 'sparse tensor'),
    (torch.as_tensor(X).to('meta'), 'meta tensor'), (X.astype(bytes), 'got bytes'), ([[1.], [1., 2.]], 'no array'),
    (np.array([[None]*3]*12), 'got NoneType'), (X*1e300, 'not a finite number of float32'), ({}, 'got dict'),
    (pd.DataFrame(X).astype('Float64').mask(X > 1), 'is nan in row')])
def test_one_door_for_activations(given, said):
    "Every room refuses the same, and says what is wrong."
    for fn in (class_statistics, rank, fit_ranges, compare_fits, elastic_net_path, labelled):
        with pytest.raises(InputError, match=said): fn(given, Y)


@pytest.mark.parametrize('same', [X.tolist(), torch.as_tensor(X), pd.DataFrame(X), pd.DataFrame(X).astype('Float64'), X.astype(object),
                                  np.ma.masked_array(X, mask=False)])
def test_what_holds_numbers_is_taken(same):
    np.testing.assert_allclose(class_statistics(same, Y).mean, [X[Y == c].mean(0) for c in range(3)], atol=1e-7)
    for y in (pd.Series(Y, dtype='Int64'), Y.astype(object), torch.as_tensor(Y), Y.astype(np.uint8)):
        np.testing.assert_array_equal(labelled(same, y)[1], Y)
    np.testing.assert_array_equal(class_statistics(X > 0, Y).mean, [(X > 0)[Y == c].mean(0) for c in range(3)])


@pytest.mark.parametrize('large', [10**3, 2**40, 2**62, 2**64-1])
def test_a_large_label_allocates_nothing(large):
    y = np.array([*Y[:-1], large], np.uint64 if large > 2**63 else np.int64)
    for fn in (class_statistics, rank, fit_ranges, elastic_net_path, random):
        with pytest.raises(InputError, match=f'label {large} among 12 examples'): fn(X, y)
    with pytest.raises(InputError, match=f'label {large} is outside the 3 classes'): class_statistics(X, y, tuple('abc'))


def test_sets_among_a_thousand_million_neurons():
    "Overlap needs the neurons that are in a set, not all there could be."
    o = set_overlap([[0, 10**9-1, 5], [5, 7]], 10**9)
    assert o.count.tolist() == [[3, 1], [1, 2]] and o.jaccard[0, 1] == .25 and o.expected[0, 1] == 3*2/10**9
    for D in (-1, 2.5, 0, None, 'x', np.nan):
        for fn in (set_overlap, members):
            with pytest.raises(InputError, match='D='): fn([[0], [1]], D)


def test_numbers_that_are_none():
    "Named, with what was given."
    r = Ranking(np.ones((2, 3)), 'hand', ('a', 'b'))
    for bad in ('x', None):
        with pytest.raises(InputError, match=f'fraction={bad!r} must be a number'): r.salient(bad)
        with pytest.raises(InputError, match=f'k={bad!r} must be a whole number'): batch_quantiles(X, Y, 'abc', k=bad)
        with pytest.raises(InputError, match=f'seed {bad!r} must be a whole number'): rank(X, Y, 'random', seed=bad)
    path = elastic_net_path(np.vstack([X]*3), np.tile(Y, 3), points=3)
    with pytest.raises(InputError, match='relative=None must be a number'): sparsest_probe(path, X, Y, relative=None)
    with pytest.raises(InputError, match='texts must be a list, got NoneType'): make_texts(None, [1, 2])
    with pytest.raises(InputError, match=r'three texts or more, got \(\)'): cka(3., X)
    with pytest.raises(InputError, match='3 neurons in train but 2 in test'): probe_by_count([0], X, Y, X[:, :2], Y)
    rates = firing_rates(X, Y, fit_ranges(X, Y))
    for n in ([1], [1, 2, -1], [[1, 2, 3]]):
        with pytest.raises(InputError, match='n must be 3 numbers of texts'): range_purity(rates, n)


def test_strange_things_are_strange():
    "What the calls hand out now and then is refused, or read as the numbers that it holds."
    m = Maker(3)
    for i, fn in enumerate(STRANGE):
        try: got = class_statistics(fn(m.x), m.y)
        except InputError: continue
        assert np.isfinite(got.mean).all(), i


@pytest.mark.parametrize('hide', [list, lambda x: [[*r] for r in x], lambda x: tuple([r] for r in x)])
def test_what_is_hidden_inside_a_list_is_seen(hide):
    with pytest.raises(InputError, match='acts are a masked array: 1 values are hidden'):
        class_statistics(hide(np.ma.masked_array(X, mask=X == X.max())), Y)
    masked = np.ma.masked_array([0.], mask=True)
    for ends in ((masked, [1.]), ([0.], masked), ([0.], [np.nan]), ([0., 1], [1.])):
        with pytest.raises(InputError, match='(lo|hi)'): share_inside(X[:, 0], Y, *ends)


@pytest.mark.parametrize('kind', [torch.float32, torch.float64, torch.bfloat16])
def test_a_list_of_tensors_is_read_one_by_one(kind):
    rows = [torch.as_tensor(r).to(kind).requires_grad_() for r in X]
    want = torch.as_tensor(X).to(kind).float().numpy()
    np.testing.assert_array_equal(labelled(rows, Y)[0], want)
    np.testing.assert_array_equal(labelled([list(r) for r in rows], list(torch.as_tensor(Y)))[0], want)


S, R = class_statistics(X, Y), fit_ranges(X, Y)
NAN, TEXTS = X*np.nan, make_texts([*'abcdef'], [*'xxxyyy'])
OUT = SimpleNamespace(classes=('a', 'b', 'c'), labels=Y, before=np.eye(3)[Y], after=np.eye(3)[Y[::-1]][None], fires=np.ones((1, 12)),
    interventions=[Setting('0', 'full', 's', 'r', 1., 'full', edit='zero')])
PROB, FIRES = OUT.before, np.ones(12)
SEEDED = [lambda s: pair_overlap(X, Y, seed=s), lambda s: shuffled_labels(Y, s), lambda s: random_ranges(R, s),
          lambda s: random_ranges(R, s, acts=X), lambda s: sign_flips(X, 9, s)]
REFUSED = [ # What is called, and what the sentence says
    (lambda: measure(Y, 1, PROB*np.nan, PROB, FIRES), 'before, the answers without an edit, are not finite'),
    (lambda: changes_of(SimpleNamespace(**vars(OUT) | dict(before=PROB*np.inf))), 'before, .* not finite'),
    (lambda: fit_probe(X, Y).predict(NAN), 'neuron 0 is nan in row 0'),
    (lambda: fit_probe(X, Y).scores(X/0), 'neuron . is .*inf in row 0'),
    (lambda: sign_flips(NAN, 9), 'parts must be .* finite'),
    (lambda: sign_flips(X[0], 9), r'parts must be .* got shape \(3,\)'),
    (lambda: accuracy_interval(np.full((2, 5), np.nan)), 'right must be'),
    (lambda: accuracy_interval(np.zeros((2, 0), bool)), 'right must be'),
    (lambda: accuracy_draws(X > 0, draws=0), 'draws=0'),
    (lambda: leace(X, Y, 0, tol=2), 'tol=2'),
    (lambda: leace(X, Y, 0, tol=np.nan), 'tol=nan'),
    (lambda: mutual_information(X, Y, most=0), 'most=0'),
    (lambda: mutual_information(X, Y, most=-3), 'most=-3'),
    (lambda: Ranking(X, 'x', range(12)).to_frame(-1), 'k=-1'),
    (lambda: predicted_collateral(R, S, [[0]]*3, rates=7), r'rates .* got shape \(\)'),
    (lambda: predicted_collateral(R, S, [[0]]*3, rates=np.full((3, 3, 3), 2.)), 'rates must be .* between 0 and 1'),
    (lambda: matched(measure_effects(OUT), at=np.nan), 'at=nan'),
    (lambda: matched(measure_effects(OUT), at='x'), "at='x' must be a number"),
    (lambda: choose(measure_effects(OUT), at='x'), "at='x' must be a number"),
    (lambda: choose(measure_effects(OUT), margin=None), 'margin=None'),
    (lambda: unseen(-1), 'n=-1 must be 0 or more'),
    (lambda: unseen([3, np.nan]), 'must be 0 or more'),
    (lambda: fit_ranges(X, Y, 'gaussian(\u0662)'), 'is not a number'),
    (lambda: fit_ranges(X, Y, 'gaussian(1_0)'), 'is not a number'),
    (lambda: probe_layers({'a': X}, Y, {'a': X}, Y, shuffles=10**9), 'shuffles=1000000000 must be a whole number from 1 to 10,000'),
    (lambda: balance(TEXTS, 0), 'most=0 must be a whole number, 1 or more'),
    (lambda: read_chunks('x.csv', size=.5), 'size=0.5'),
    (lambda: read_texts(None), 'path=None is not the path of a file'),
    (lambda: list(read_chunks(7)), 'path=7 is not'),
    (lambda: list(read_chunks([None])), 'path=None is not'),
    (lambda: read_texts('x'*5000), 'cannot be looked up .File name too long'),
    (lambda: list(read_chunks('x'*5000)), 'cannot be looked up .File name too long'),
    (lambda: R.contains(X, True), 'concept True is none of'),
    (lambda: R.to_frame(True), 'concept True is none of'),
    *[(lambda f=f: f(X[:, :0], Y), r'acts must be \[examples, neurons\], got shape \(12, 0\)') for f in (
        elastic_net_path, density.density, average_precision, mutual_information, class_statistics, rank, fit_probe,
        lambda x, y: leace(x, y, 0), lambda x, y: bins.posterior_histogram(x, y, .5))],
    (lambda: over_common([2, 3, 4]), r'shares must be .* got shape \(3,\)'),
    (lambda: over_common(np.zeros((2, 3, 4))), r'shares must be .* got shape \(2, 3, 4\)'),
    (lambda: separation(X, Y, 2), 'label 2 is outside the 2 classes'),
    *[(lambda at=at: take(TEXTS, at), 'index=.* must be positions of the 6 texts') for at in ([9], [True], [.5], [[0]], 'x', 3)],
    (lambda: family_overlap({'1': [[0], [1]], '2': [[0], [1]]}, 3, ['a']), 'must be 2 names'),
    (lambda: ranking_agreement({'1': X, '2': X}, ['a']), 'must be 12 names'),
    (lambda: ranking_agreement({'1': X, '2': X}, fractions=.5), 'fractions=0.5 must be a list'),
    (lambda: make_texts([*'abcd'], [*'xxyy'], rows=5), 'rows must be a list, got int'),
    (lambda: compare(OUT, 'full', 'base', flips='x'), "flips='x'"),
    (lambda: compare(OUT, 'full', 'base', on=['x']), "names 'x'"),
    (lambda: compare(OUT, 'full', 'base', measures=[]), r'measures=\[\] are none'),
    (lambda: compare(OUT, 3, 'base'), '3 is neither a condition nor'),
    (lambda: intervals(OUT, draws='x'), "draws='x'"),
    (lambda: intervals(OUT, level='x'), "level='x'"),
    (lambda: trade_off(measure_effects(OUT), presets={}), r'presets=\{\} must be a dict'),
    (lambda: trade_off(measure_effects(OUT), presets=['full']), r"presets=\['full'\] must be a dict"),
    (lambda: over_seeds([measure_effects(OUT)], measures=['x']), "'x' is none of target_accuracy"),
    (lambda: contributions(OUT, 'x'), "'x' is none of target_accuracy"),
    (lambda: information_left(unedited, X, Y, X, Y, 0, probe=lambda a, t, b: b[:3, 0]), r'12 finite scores, .* got shape \(3,\)'),
    (lambda: information_left(unedited, X, Y, X, Y, 0, probe=lambda a, t, b: b[:, 0]*np.nan), '12 finite scores'),
    (lambda: elastic_net_path(X, Y, l1s=.1), r'l1s must be a list .* got shape \(\)'),
    (lambda: quantiles_from_arrays({}, 'ab'), "no array 'n'"),
    (lambda: holm([[.1]]), 'p must be a list'),
    (lambda: holm([.1, np.nan]), 'p must be a list'),
    (lambda: fit_probe(X, Y, control='type', types=[[1]]*12), 'types must be words')]


@pytest.mark.parametrize('fn, said', REFUSED)
def test_what_is_no_answer_or_out_of_range_is_refused(fn, said):
    with np.errstate(all='ignore'), pytest.raises(InputError, match=said): fn()


@pytest.mark.parametrize('drawn', SEEDED)
@pytest.mark.parametrize('seed', [None, 'x', -1, .5])
def test_a_seed_is_a_whole_number(drawn, seed):
    drawn(1)
    with pytest.raises(InputError, match='^seed '): drawn(seed)


def test_whole_floats_are_whole_numbers(tmp_path):
    "And a fraction is a number."
    (tmp_path/'t.csv').write_text('text,label\na,x\nb,y\nc,x\nd,y\n')
    assert [len(t) for t in read_chunks(tmp_path/'t.csv', size=2.)] == [2, 2] and len(balance(TEXTS, 2.)) == 4
    assert len(elastic_net_path(np.vstack([X]*3), np.tile(Y, 3), points=3.).l1) == 3
    np.testing.assert_array_equal(sign_flips(X, 9.), sign_flips(X, 9))
    assert len(Ranking(X.T, 'x', tuple('abc')).to_frame(2.)) == 6
    np.testing.assert_array_equal(ranges.gaussian(S, Fraction(5, 2)), ranges.gaussian(S, 2.5))
    np.testing.assert_array_equal(regions.posterior(S, Fraction(1, 2)), regions.posterior(S, .5))
    assert unseen(0) == unseen(1) == pytest.approx(.975) and unseen([3]).shape == (1,)
