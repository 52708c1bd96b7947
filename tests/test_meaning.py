"What a range means: predicates, formulas, their scores and margins, against brute force, other libraries, plants and nulls."
from dataclasses import fields, is_dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.stats import binomtest, mannwhitneyu, pearsonr
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    jaccard_score,
    precision_score,
    recall_score,
    roc_auc_score,
)
from sklearn.metrics.pairwise import cosine_similarity
from statsmodels.stats.multitest import multipletests

import neuronlens as nl
from neuronlens.arrays.axis import explain_axis
from neuronlens.arrays.formulas import JOIN, OPERATORS, Formula, common, packed, search_formulas
from neuronlens.arrays.margins import error_margins, wilson
from neuronlens.arrays.meaning import explain_ranges
from neuronlens.arrays.modes import find_modes
from neuronlens.arrays.predicates import Predicates, text_predicates, token_predicates
from neuronlens.arrays.ranges import Ranges, fit_ranges
from neuronlens.arrays.scores import METRICS, REFUSED, FormulaScores, drawn_rows, metric_values, need_metrics, score_formulas
from neuronlens.edits.explaining import explain_texts
from neuronlens.ground.core import InputError
from neuronlens.ground.files import read_arrays, write_arrays


def of(columns, unit='text'):
    "Predicates of any columns."
    P = columns.shape[1]
    return Predicates(tuple(f'p{j:03}' for j in range(P)), csr_array(columns), (('word', ''),)*P, unit)


def iou(a, b): return (a & b).sum()/max(1, (a | b).sum())


def exhaustive(columns, y, length):
    "The highest IoU of all formulas, by trying each."
    best = 0
    for steps in product(range(columns.shape[1]), repeat=length):
        for ops in product(OPERATORS, repeat=length-1):
            f = columns[:, steps[0]]
            best = max(best, iou(f, y))
            for op, j in zip(ops, steps[1:], strict=True):
                f = JOIN[op](f, columns[:, j])
                best = max(best, iou(f, y))
    return best


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(5, 150), st.floats(.1, .9), st.integers(1, 3))
def test_brute_force_agrees(seed, P, N, share, length):
    "With room in the beam for all formulas the best is found, and holds of as many rows as it says; packing does not hang on N."
    rng = np.random.default_rng(seed)
    columns, y = rng.random((N, P)) < share, rng.random(N) < .4
    y[:2] = True, False
    found = search_formulas(of(columns), y, length=length, beam=1000, shuffles=0, progress=False)
    assert found.iou[0] == pytest.approx(exhaustive(columns, y, length), abs=1e-12)
    assert found.iou[0] == pytest.approx(iou(found.formulas[0].holds(of(columns)), y), abs=1e-12)
    assert len(found.formulas[0]) <= length
    assert (common(packed(columns).T, packed(csr_array(columns))) == columns.T.astype(int)@columns).all()


def plain_beam(columns, y, length, beam):
    "The published procedure on arrays of bool, without bounds: best IoU of a beam in which formulas differ in their rows."
    def best(ways): # The first of those that are alike stays
        distinct = {}
        for f, n in ways: distinct.setdefault(f.tobytes(), (f, n, iou(f, y)))
        return sorted(distinct.values(), key=lambda w: (-w[2], w[1]))[:beam]
    leaves = [(f, 1) for f in columns.T]
    kept = best(leaves)
    for _ in range(length-1):
        old = [(f, n) for f, n, _ in kept]
        kept = best([*old, *((JOIN[op](f, p), n+1) for f, n in old for op in OPERATORS for p, _ in leaves)])
    return kept[0][2]


def test_bounds_change_nothing():
    "Leaving out what cannot enter the beam, and what was tried before, comes to what the whole search comes to."
    for seed in range(6):
        rng = np.random.default_rng(seed)
        columns = rng.random((200, 30)) < rng.uniform(.02, .5, 30)
        y = (columns[:, 0] | columns[:, 1]) & ~columns[:, 2] ^ (rng.random(200) < .1)
        got = search_formulas(of(columns), y, length=4, beam=6, shuffles=0, progress=False).iou[0]
        assert got == pytest.approx(plain_beam(columns, y, 4, 6), abs=1e-12)


def test_order_changes_nothing():
    "Texts, predicates and ranges in another order, equal predicates among them: the same formulas."
    rng = np.random.default_rng(3)
    columns = np.repeat(rng.random((130, 12)) < .2, 2, axis=1)
    y = np.stack([columns[:, 1] & ~columns[:, 5], rng.random(130) < .3, columns[:, 3] | (rng.random(130) < .1)], 1)
    p = of(columns)
    want = search_formulas(p, y, names=[*'abc'], length=4, beam=5, shuffles=0, progress=False)
    assert str(want.formulas[0]) == 'p000 AND NOT p004'
    rows, cols, ranges = (rng.permutation(n) for n in (130, 24, 3))
    other = Predicates(tuple(p.names[j] for j in cols), csr_array(columns[rows][:, cols]), p.leaves)
    got = search_formulas(other, y[rows][:, ranges], names=[*'abc'], length=4, beam=5, shuffles=0, progress=False)
    assert [got.formulas[list(ranges).index(m)] for m in range(3)] == [*want.formulas]


def test_planted_is_found_and_a_null_is_not():
    "x AND NOT y comes back exactly among a hundred others, and holds on other rows; a coin's formula is worth what chance is."
    rng = np.random.default_rng(4)
    columns = rng.random((600, 100)) < rng.uniform(.05, .4, 100)
    coins = rng.random((600, 20)) < .3
    y = np.c_[columns[:, 7] & ~columns[:, 42], coins]
    p = of(columns)
    found = search_formulas(p[:300], y[:300], shuffles=2, progress=False)
    assert str(found.formulas[0]) == 'p007 AND NOT p042' and found.iou[0] == 1
    s = score_formulas(found, p[300:], y[300:], draws=200)
    assert np.allclose(s.value[0], 1) and s.chance[0, 0] < .5
    excess = s.value[1:]-s.chance[1:]
    assert (abs(excess.mean(0)) < 3*excess.std(0)/20**.5+1e-9).all() # Mean over the coins
    assert (found.iou[1:] > s.value[1:, 0]).mean() > .9 # What was searched on flatters


SPOILS = {'missing': lambda n: n//2, 'extra': lambda n: 2*n}
OTHERS = dict(recall=lambda f, y, v: recall_score(y, f), precision=lambda f, y, v: precision_score(y, f),
              accuracy=lambda f, y, v: accuracy_score(y, f), auroc=lambda f, y, v: roc_auc_score(f, v),
              balanced_accuracy=lambda f, y, v: balanced_accuracy_score(y, f))


def test_sanity_of_scores():
    "Missing and extra labels lower every score that is offered, from common to rare concepts; each that is refused fails the test named."
    N = 10_000
    rows = np.arange(N)
    failed = {m: set() for m in OTHERS}
    for frequency in (.499, .01, .0002):
        n = max(2, round(frequency*N))
        y = rows < n
        for test, spoil in SPOILS.items():
            f = rows < spoil(n)
            good, bad = (metric_values(g[None].astype(float), np.ones((1, N)), y, y.astype(float))[0] for g in (y, f))
            assert (bad < good-5e-4).all(), (frequency, test)
            for m, score in OTHERS.items():
                if score(f, y, y*1.) > score(y, y, y*1.)-5e-4: failed[m].add(test)
    assert {*REFUSED} == {*OTHERS} and all(REFUSED[m] in failed[m] for m in REFUSED)
    for m in REFUSED:
        with pytest.raises(InputError, match=f"metric '{m}' is no score"): need_metrics([m])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(5, 60))
def test_scores_of_other_libraries(seed, N):
    "Every score is that of scikit-learn and scipy, also with weights and equal values."
    rng = np.random.default_rng(seed)
    f, y, v, w = rng.random(N) < .5, rng.random(N) < .5, rng.integers(0, 6, N)-1., rng.integers(0, 4, N)
    f[:2], y[:2], w[:2], v[:2] = (True, False), (True, False), 1, (0, 1)
    at = np.repeat(np.arange(N), w)
    got = metric_values((w*f)[None].astype(float), w[None].astype(float), y, v)[0]
    F, Y, V = f[at], y[at], v[at]
    want = [jaccard_score(Y, F), f1_score(Y, F), pearsonr(F, V)[0], cosine_similarity(F[None], V[None])[0, 0],
            average_precision_score(F, V)]
    np.testing.assert_allclose(got, want, atol=1e-9)


def test_ends_and_edges():
    "Tokens of a text are drawn together; a score of 0 or 1 has an exact end; a range without a held-out row has no score."
    w, = drawn_rows(6, [4, 4, 4, 9, 9, 9], 50, 0)
    np.testing.assert_array_equal(np.concatenate([*drawn_rows(6, [4, 4, 4, 9, 9, 9], 50, 0, most=20)]), w) # However few at a time
    assert (w[:, 0] == w[:, 2]).all() and (w[:, 3] == w[:, 5]).all() and (w.sum(1) == 6).all()
    rng = np.random.default_rng(5)
    columns = rng.random((200, 8)) < .4
    y = columns[:, :3].copy()
    found = search_formulas(of(columns)[:100], y[:100], progress=False)
    held = y[100:].copy()
    held[:, 1], held[:, 2] = False, ~columns[100:, 2]
    s = score_formulas(found, of(columns)[100:], held, groups=np.arange(100)//2, draws=100)
    assert (s.value[0, 0], s.high[0, 0]) == (1, 1) and .9 < s.low[0, 0] < 1
    assert np.isnan(s.value[1]).all() and np.isnan(s.chance[1]).all()
    assert (s.value[2, 0], s.low[2, 0]) == (0, 0) and 0 < s.high[2, 0] < .1
    frame = s.to_frame()
    assert len(frame) == 3 and 'chance_auprc' in frame and 'tabular' in s.to_latex() and 'chance_iou' in s._repr_html_()
    for wrong, said in ((dict(values=np.ones((3, 1))), 'values must be of shape'), (dict(groups=[1]), 'groups must be one number')):
        with pytest.raises(InputError, match=said): score_formulas(found, of(columns)[100:], held, **wrong)


def test_words_are_counted_as_by_scikit_learn():
    "Columns of words and pairs are those of CountVectorizer; support and share are those of the columns; sparse stays sparse."
    rng = np.random.default_rng(6)
    texts = [' '.join(rng.choice(['alpha', 'Beta', 'gamma', 'a', '12', 'x?'], 5)) for _ in range(60)]
    p = text_predicates(texts, least=4)
    count = CountVectorizer(token_pattern=r'\w+', ngram_range=(1, 2), binary=True)
    held = pd.DataFrame(count.fit_transform(texts).toarray(), columns=count.get_feature_names_out())
    for w in held:
        if 4 <= held[w].sum() < 60: assert (p.column(f"'{w}'") == held[w]).all(), w
    frame = p.to_frame()
    assert (frame.support == p.columns.toarray().sum(0)).all() and frame.support.between(4, 59).all() and p.names == tuple(sorted(p.names))
    at = rng.permutation(60)
    assert (text_predicates([texts[i] for i in at], least=4).columns != p[at].columns).nnz == 0


def test_same_predicates_of_other_rows():
    "`like=` makes every kind again by its key, not by what the other rows have; what it is made of must be there."
    rng = np.random.default_rng(7)
    texts = [' '.join(rng.choice(['One', 'two', 'three 3', 'FOUR!'], 4)) for _ in range(80)]
    more = dict(labels=rng.integers(0, 2, 80), classes=['a', 'b'], own={'long': lambda t: len(t) > 16},
                table=dict(x=rng.normal(size=80).round(2), kind=rng.choice(['u', 'v'], 80), late=rng.random(80) < .5))
    def part(rows):
        return more | dict(labels=more['labels'][rows], table={k: v[rows] for k, v in more['table'].items()})
    p = text_predicates(texts, **more)
    assert {*p.to_frame().kind} == {'word', 'first', 'sign', 'has', 'length', 'value', 'number', 'truth', 'own'}
    rows = np.arange(80)[::3]
    again = text_predicates([texts[i] for i in rows], **part(rows), like=p)
    assert again.names == p.names and (again.columns != p[rows].columns).nnz == 0
    for left_out, name in (('own', 'long'), ('labels', 'class'), ('table', 'x')):
        with pytest.raises(InputError, match=f"made of '{name}'"):
            text_predicates([texts[i] for i in rows], **{k: v for k, v in part(rows).items() if k != left_out}, like=p)
    tokens = [t.split() for t in texts]
    t = token_predicates(tokens, least=3)
    again = token_predicates(tokens[:20], like=t)
    assert (again.columns != t[:sum(map(len, tokens[:20]))].columns).nnz == 0
    byte = token_predicates([['The', 'Ġcup', 'board', 'Ġis'], ['New', 'er']], least=1)
    assert byte.column('continues a word').tolist() == [False, False, True, False, False, True]
    assert byte.column("after 'cup'").tolist() == [False, False, True, False, False, False]


def test_formulas_are_read_from_the_left():
    "Brackets are where the operator changes, and the text says what the rows are."
    p = of(np.array([[1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 1, 0]], bool))
    f = Formula((('', 'p000'), ('OR', 'p001'), ('OR', 'p002'), ('AND NOT', 'p003')))
    assert str(f) == '(p000 OR p001 OR p002) AND NOT p003' and f.holds(p).tolist() == [True, False, True]
    with pytest.raises(InputError, match="no predicate is called 'q'"): Formula((('', 'q'),)).holds(p)
    y = np.array([True, False, True])
    for wrong, said in ((y & False, 'no row of 3'), (y | True, 'every row of 3'), (y[:2], 'masks must be'), (y*2, 'masks must be')):
        with pytest.raises(InputError, match=said): search_formulas(p, wrong)
    with pytest.raises(InputError, match='no range to explain'): search_formulas(p, np.zeros((3, 0), bool))


def test_margins_of_other_libraries():
    "Rates are counted one by one; intervals are those of scipy, p-values those of scipy adjusted by statsmodels."
    rng = np.random.default_rng(8)
    y = rng.integers(0, 3, 120)
    acts = (rng.normal(size=(120, 4))+.5*y[:, None]*[1, 0, 1, 0]).astype(np.float32)
    acts[:, 3] = 2
    ranges = fit_ranges(acts, y, 'gaussian(1)')
    m = error_margins(acts, y, ranges).to_frame()
    assert len(m) == 12
    for r in m.itertuples():
        c, x = int(r.concept), acts[:, r.neuron]
        inside = (ranges.lo[c, r.neuron] <= x[:, None]).any(1) & (x[:, None] <= ranges.hi[c, r.neuron]).any(1)
        own = y == c
        assert r.tpr == pytest.approx(inside[own].mean()) and r.fpr == pytest.approx(inside[~own].mean())
        ends = binomtest(int((inside & own).sum()), int(own.sum())).proportion_ci(.95, 'wilson')
        assert (r.tpr_low, r.tpr_high) == pytest.approx(tuple(ends))
        want = 1 if r.neuron == 3 else mannwhitneyu(x[own], x[~own], method='asymptotic').pvalue
        assert r.p == pytest.approx(want)
    assert m.p_adjusted.to_numpy() == pytest.approx(multipletests(m.p, method='holm')[1])
    crossed = error_margins(acts, y, ranges, concepts=dict(half=np.arange(120) < 60), neurons=[2, 0])
    assert crossed.to_frame().shape[0] == 6 and 'tabular' in crossed.to_latex() and 'half' in crossed._repr_html_()
    assert wilson(0, 10)[0] == pytest.approx(0) and wilson(10, 10)[1] == pytest.approx(1)
    assert METRICS[0] == 'iou'


def test_sets_are_predicates_of_their_values():
    "A column of sets holds of each value that stands in them, in any order; the same values for other texts."
    rng = np.random.default_rng(4)
    texts, genres = [f'{w} day' for w in rng.choice(['a', 'one', 'that'], 60)], ['drama', 'crime', 'war', 3]
    held = rng.random((60, 4)) < .4
    column = [frozenset(g for g, h in zip(genres, row, strict=True) if h) for row in held]
    p = text_predicates(texts, table=dict(genre=column))
    for g, own in zip(genres, held.T, strict=True): assert (p.column(f'genre {g}') == own).all()
    assert p.to_frame().set_index('predicate').kind[['genre 3', 'genre war']].tolist() == ['many']*2
    at = rng.permutation(60)
    turned = text_predicates([texts[i] for i in at], table=dict(genre=[column[i] for i in at]))
    assert turned.names == p.names and (turned.columns.toarray() == p.columns.toarray()[at]).all()
    other = text_predicates(texts[:3], table=dict(genre=[{'war', 'love'}, None, set()]), like=p)
    assert other.names == p.names and other.column('genre war').tolist() == [True, False, False]
    with pytest.raises(InputError, match="like= has predicates made of 'genre'"): text_predicates(texts, like=p)
    with pytest.raises(InputError, match="column 'genre' of the table has sets and 'war'"):
        text_predicates(texts[:2], table=dict(genre=[{'war'}, 'war']))


def test_saved_scores_are_refused_when_they_do_not_fit(tmp_path):
    "What was saved comes back; a file of something else, or of parts that do not belong together, does not."
    rng = np.random.default_rng(9)
    columns = rng.random((90, 6)) < .4
    found = search_formulas(of(columns)[:50], columns[:50, :2], names=['a', 'b'], progress=False)
    s = score_formulas(found, of(columns)[50:], columns[50:, :2], draws=50)
    back = nl.load(s.save(tmp_path/'s.safetensors', dict(model='m')))
    pd.testing.assert_frame_equal(back.to_frame(), s.to_frame())
    assert back.formulas == s.formulas and (back.n, back.draws, back.level, back.seed) == (40, 50, .95, 0)
    replace(s, formulas=s.formulas[:1]).save(tmp_path/'t.safetensors')
    with pytest.raises(InputError, match='its parts do not fit together'): FormulaScores.load(tmp_path/'t.safetensors')
    with pytest.raises(InputError, match='give a name that ends in'): s.save(tmp_path/'s.csv')


@pytest.fixture(scope='module')
def results():
    "One of every result about meaning, of random texts with odd words."
    rng = np.random.default_rng(6)
    words = ['=tea', 'räuber', '<b>', '\U0001f600', 'cup', 'milk', 'sea', 'ship']
    texts = [[' '.join(rng.choice(words, 5)) for _ in range(n)] for n in (90, 60)]
    table = dict(age=rng.normal(size=90), kind=rng.choice(['a', 'b'], 90), old=rng.random(90) < .5, has=[{'x'}, {'y', 'z'}, set()]*30)
    acts = [np.array(['cup' in t for t in ts])+rng.random(len(ts)) for ts in texts]
    recs = [nl.recording(a[:, None].repeat(2, 1), np.arange(len(a)) % 2, texts=t) for a, t in zip(acts, texts, strict=True)]
    p, y = text_predicates(texts[0], table=table, own={'is long': lambda t: len(t) > 20}, least=3), acts[0] > 1
    def counts(ts): return np.array([[t.count(c) for c in 'aeiprtu<= '] for t in ts])+.1
    def longest(inside, just_outside, far_outside): return max(inside, key=len)
    how = dict(encoder=counts, draws=20)
    return dict(predicates=p, tokens=token_predicates([t.split() for t in texts[0]], least=3),
        axis=explain_axis(*recs, 0, least=3, draws=20, progress=False),
        formulas=search_formulas(p, np.stack([y, ~y], 1), names=['<i>', 'räuber'], shuffles=2, progress=False),
        bare=search_formulas(p, y, shuffles=0, progress=False), modes=find_modes(texts, [a > 1 for a in acts], least=3, draws=20, length=2),
        said=explain_texts(texts, acts, 1, 9, by=longest, **how), found=explain_texts(texts, acts, 1, 9, **how, least=3),
        margins=error_margins(recs[1], fit_ranges(recs[0], 'gaussian(1)'), concepts={'<b>': y[:60]}))


def parts(x):
    "What a result is made of: plain values, and bytes, type and shape of arrays."
    if is_dataclass(x) and not isinstance(x, Formula): return type(x).__name__, [parts(getattr(x, f.name)) for f in fields(x)]
    if isinstance(x, pd.DataFrame): return [(c, str(x[c].dtype), x[c].tolist()) for c in x]
    if hasattr(x, 'toarray'): x = x.toarray()
    if isinstance(x, np.ndarray): return str(x.dtype), x.shape, x.tobytes()
    return tuple(map(parts, x)) if isinstance(x, tuple | list) else x


KEPT = ['predicates', 'tokens', 'axis', 'formulas', 'bare', 'modes', 'said', 'found', 'margins']


@pytest.mark.parametrize('name', KEPT)
def test_results_about_meaning_come_back_or_are_refused(results, tmp_path, name):
    "What was saved comes back, byte by byte; no flipped bit is accepted; a file of something else is refused, and says what it is."
    x = results[name]
    path = x.save(tmp_path/'x.safetensors', dict(model='a model'))
    good, rng = path.read_bytes(), np.random.default_rng(8)
    for back in (nl.load(path), type(x).load(str(path))):
        assert parts(back) == parts(x) and repr(back) == repr(x)
        pd.testing.assert_frame_equal(back.to_frame(), x.to_frame())
    assert b'a model' in good and nl.__version__.encode() in good and b'pickle' not in good
    for at in rng.integers(len(good), size=25):
        bad = bytearray(good)
        bad[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad)
        try: assert parts(nl.load(path)) == parts(x)
        except InputError as e: assert 'x.safetensors' in str(e)
    path.write_bytes(good)
    for other in {type(r) for r in results.values()}-{type(x)}:
        with pytest.raises(InputError, match=f"holds no {other.__name__}; it is of kind '{type(x).__name__}'"): other.load(path)
    with pytest.raises(InputError, match='give a name that ends in'): x.save(tmp_path/'x.csv')


@pytest.mark.parametrize('name', KEPT)
def test_files_whose_parts_do_not_fit_are_refused(results, tmp_path, name):
    "A file with a good checksum, of which one part was left out, or is of something else."
    path = results[name].save(tmp_path/'x.safetensors')
    arrays, said = read_arrays(path)
    for k in said['about']:
        for about in ({n: v for n, v in said['about'].items() if n != k}, said['about'] | {k: None}):
            if about == said['about']: continue # An explanation without a formula
            write_arrays(path, arrays, said | dict(about=about))
            with pytest.raises(InputError): nl.load(path)
    for k in arrays:
        for less in ({n: a for n, a in arrays.items() if n != k}, arrays | {k: arrays[k][:-1]}):
            write_arrays(path, less, said)
            if (name, k) == ('modes', 'chance') and k in less: continue # Fewer deals are deals
            with pytest.raises(InputError): nl.load(path)


def test_what_comes_back_can_be_asked_as_before(results, tmp_path):
    "Predicates of other texts by those that were loaded; a word, of an axis that was loaded."
    p, axis = (nl.load(results[k].save(tmp_path/f'{k}.safetensors')) for k in ('tokens', 'axis'))
    other = [['cup', 'of', '=tea'], ['<b>', 'milk']]
    assert parts(token_predicates(other, like=p)) == parts(token_predicates(other, like=results['tokens']))
    pd.testing.assert_frame_equal(axis.about('cup'), results['axis'].about('cup'))


def test_a_joint_gate_is_explained():
    "Three planted voters: what the gate means follows the vote; by weight only those are heard that tell the class; nobody is asked by 0."
    rng = np.random.default_rng(3)
    def side(n):
        texts = [' '.join(rng.choice([*'abcdefgh'], 4)) for _ in range(n)]
        acts = np.array([['a' in t, 'b' in t, False] for t in texts], float)
        return nl.recording(acts, (acts[:, 0] == 0).astype(int), texts=texts)
    own, other = side(240), side(160)
    ends = (np.full((2, 3, 1), v, np.float32) for v in (.5, 2))
    high, how = Ranges(*ends, 'given', None, own.classes), dict(draws=50, progress=False, least=10)
    def said(vote, neurons=(0, 1, 2)):
        s = explain_ranges(own, other, high, 0, neurons, vote=vote, **how)
        assert len(s.names) == 1 and s.value[0, 0] == 1 and s.low[0, 0] > s.chance[0, 0]
        return {*str(s.formulas[0]).split()}
    assert said(.6) == said(2/3) == said(.5) == {"'a'", 'AND', "'b'"}
    assert said(.3) == said(1/3) == {"'a'", 'OR', "'b'"}
    assert said('weighted') == said(1, [0]) == {"'a'"}
    each = explain_ranges(own, other, high, 0, [0, 1], **how)
    assert each.names == ('0, neuron 0', '0, neuron 1')
    for vote, why in ((1.5, 'must be between 0 and 1'), (-1, 'must be between 0 and 1'), ('half', 'vote'), ('', 'vote'), (np.nan, 'vote'),
                      (1, 'no row of 240 lies in range'), ('weighted(2)', 'its probability lies between 0 and 1')):
        with pytest.raises(InputError, match=why): explain_ranges(own, other, high, 0, range(3), vote=vote, **how)
    at = rng.permutation(240)
    turned = explain_ranges(own[at], other, high, 0, [2, 1, 0], vote=.6, **how)
    assert turned.formulas == explain_ranges(own, other, high, 0, range(3), vote=.6, **how).formulas


def test_stored_results_are_complete():
    "results/meaning.csv: every set as large as the one it stands beside, scores that belong together, and what the page says of them."
    df = pd.read_csv(Path(__file__).resolve().parents[1]/'results'/'meaning.csv', dtype=dict(lo=str, hi=str))
    assert [*df] == ('dataset model site neuron kind lo hi support formula length iou pearson precision recall chance_iou'
                     ' random_model_iou').split()
    assert not df.duplicated(['dataset', 'site', 'neuron', 'kind']).any()
    told, tokens = df.groupby(['dataset', 'site']).neuron.nunique(), df.dataset == 'wikitext2'
    assert told.drop('wikitext2').between(23, 24).all() and told['wikitext2'].eq(12).all() # One unit is the same on most texts
    assert df.groupby('dataset').site.nunique().to_dict() == dict(bbc=6, ag_news=6, emotion=6, wikitext2=3)
    assert not df[tokens].kind.str.contains('class').any() and df.dataset.unique()[0] == 'bbc' and df.length.between(1, 3).all()
    wide = df.pivot(index=['dataset', 'site', 'neuron'], columns='kind')
    own = wide['support']
    for like, kind in (('above like class', 'class'), ('end like class', 'class'), ('end like bin', 'bin'), ('chance', 'bin')):
        assert (abs(own[like]-own[kind]).dropna() < 1e-3).mean() > .99 # But for that unit
    both = df[(df.precision > 0) & (df.recall > 0)]
    assert abs(both.iou-1/(1/both.precision+1/both.recall-1)).max() < .01
    assert df.random_model_iou.isna().eq(df.kind == 'chance').all()
    mean = df.groupby(['dataset', 'kind']).iou.mean().unstack()
    assert (abs(mean['chance']-df[df.kind == 'chance'].groupby('dataset').chance_iou.mean()) < .01).all()
    own = mean.drop('wikitext2')
    assert (own['inner bin'] < own['end like bin']).all() and (own['class'] < own['end like class']+.01).all()
    bins = df[tokens & df.kind.isin(['bin', 'end like bin'])].pivot(index=['site', 'neuron'], columns='kind', values='iou')
    ahead = (bins['bin']-bins['end like bin']).groupby('site').mean()
    between = df[tokens & (df.kind == 'bin') & (df.lo != '-inf') & (df.hi != 'inf')].groupby('site').size()
    assert ahead['mlp.5'] > .06 > .02 > ahead[['mlp.15', 'mlp.25']].max() and between.to_dict() == {'mlp.5': 11, 'mlp.25': 2}
