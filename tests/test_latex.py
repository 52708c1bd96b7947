"""Every result as a table that LaTeX takes, rounded by its intervals; figures as wide as a column, with letters that can be read."""
import re
from contextlib import nullcontext
from dataclasses import replace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_evidence import outcome

import neuronlens as nl
from neuronlens.arrays.distributions import compare_fits, fit_distributions
from neuronlens.arrays.firing import firing_matrix
from neuronlens.arrays.formulas import search_formulas
from neuronlens.arrays.gates import learn_gate
from neuronlens.arrays.margins import error_margins
from neuronlens.arrays.matching import ranking_agreement
from neuronlens.arrays.overlap import pair_overlap, polysemantic_counts, set_overlap
from neuronlens.arrays.predicates import text_predicates
from neuronlens.arrays.probing import probe_layers
from neuronlens.arrays.ranges import fit_ranges
from neuronlens.arrays.saliency import rank
from neuronlens.arrays.scores import score_formulas
from neuronlens.arrays.sparsity import elastic_net_path, probe_by_count, sparsest_probe
from neuronlens.arrays.statistics import class_statistics
from neuronlens.edits.choice import apply, choose, matched, matched_table, trade_off
from neuronlens.edits.effects import Changes, Effects, changes_of, measure_effects
from neuronlens.edits.evidence import compare, intervals
from neuronlens.ground.core import InputError
from neuronlens.ground.tables import Tabled, between, decimals, escaped, latex, said
from neuronlens.views.drawing import column
from neuronlens.views.plot_effects import plot_effects, plot_fractions, plot_intervals, plot_matched, plot_trade_off
from neuronlens.views.plots import save_figure


def table(tex):
    "The cells of a tabular, read as LaTeX would: every row has as many as the head, nothing in them is a command that was not meant."
    lines = tex.splitlines()
    at = next(i for i, x in enumerate(lines) if x.startswith(r'\begin{tabular}'))
    sides = re.fullmatch(r'\\begin\{tabular\}\{([lr]+)\}', lines[at])[1]
    assert lines[at+1] == r'\toprule' and lines[at+3] == r'\midrule'
    end = lines.index(r'\bottomrule')
    assert lines[end+1] == r'\end{tabular}'
    rows = [lines[at+2], *lines[at+4:end]]
    cells = [re.split(r'(?<!\\) & ', re.fullmatch(r'(.*) \\\\', row)[1]) for row in rows]
    assert {len(c) for c in cells} == {len(sides)}
    for c in (c for row in cells for c in row):
        left = re.sub(r'\\text(backslash|asciitilde|asciicircum|less|greater|bar)\{\}|\\[&%$#_{}]|^\{\}', '', c)
        left = re.sub(r'\$(-|<|-?\\infty|-?\d\.\d\\times10\^\{-?\d+\})\$', '', left)
        assert not re.search(r'[\\&%$#_{}~^<>|]', left), c
    assert not any(row[0].startswith(('[', '*')) for row in cells) # They would belong to what is before
    return cells


@pytest.mark.parametrize('x, low, high, want', [
    (.83417, .8012, .8623, '0.834 [0.801, 0.862]'), (.5, .2, .81, '0.50 [0.20, 0.81]'), (0., 0., .0041, '0.0000 [0.0000, 0.0041]'),
    (-.031, -.061, -.0009, '$-$0.031 [$-$0.061, $-$0.001]'), (.3, .3, .3, '0.300 [0.300, 0.300]'), (.3, np.nan, np.nan, '0.300'),
    (412., 380., 455., '412 [380, 455]'),
    (np.nan, np.nan, np.nan, '--'), (.99999, .99, 1., '1.000 [0.990, 1.000]'), (1e-6, 0, 3e-6, '0.0000010 [0.0000000, 0.0000030]')])
def test_rounding_by_the_interval(x, low, high, want):
    assert between(x, low, high) == want


@settings(max_examples=200, deadline=None)
@given(st.floats(-10, 10), st.floats(1e-6, 5), st.floats(1e-6, 5))
def test_digits_tell_the_width(x, down, up):
    "The printed ends are as far apart as the interval, to five percent; the number lies between them."
    text = between(x, x-down, x+up).replace('$-$', '-')
    v, a, b = (float(t) for t in re.findall(r'-?\d+\.?\d*', text))
    assert abs((b-a)-(down+up)) <= .1*(down+up) and a <= v+1e-9 and v <= b+1e-9 and 0 <= decimals(down+up) <= 9


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_whatever_a_class_is_called(name):
    assert len(table(latex(pd.DataFrame({'class': [name, 'b'], name+'x': [1, 2]})))) == 3
    assert '\n' not in escaped(name)


def test_kinds_of_cells():
    df = pd.DataFrame(dict(name=['a_b', '100%'], n=[12345, -3], p=[.0002, .04], fraction=[.5, .25], reached=[True, False],
                           x=[np.nan, 1e-5]))
    got = table(latex(df))
    assert got[1:] == [[r'a\_b', '12,345', '$<$0.001', '0.5', 'yes', '--'],
                       [r'100\%', '$-$3', '0.040', '0.25', 'no', r'$1.0\times10^{-5}$']]
    assert said(-.0001, 3) == r'$-1.0\times10^{-4}$' and said(-.0001, 3, False) == '0.000'
    whole = latex(df, caption='50% of {all}', label='tab:a_1', names=dict(n='texts'), places=1)
    assert whole.startswith('\\begin{table}\n\\centering\n\\caption{50\\% of \\{all\\}}\n\\label{tab:a_1}\n')
    assert whole.endswith('\\end{tabular}\n\\end{table}\n')
    assert table(whole)[0][1] == 'texts'
    for how, said_ in ((dict(label='x'), 'needs a caption'), (dict(caption='a', label='a b'), "label 'a b'"),
                       (dict(most=1), 'a table of 2 rows')):
        with pytest.raises(InputError, match=said_): latex(df, **how)


@pytest.fixture(scope='module')
def acts():
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    return rng.normal(size=(120, 8))+np.eye(3)[y]@rng.normal(size=(3, 8)), y


def changes(**kw):
    o = outcome(**kw)
    names = 'interventions labels classes before right gold moved fires'.split()
    return Changes(*(getattr(changes_of(o), k) for k in names))


def results(acts):
    "One of every kind of result that has a table."
    a, y = acts
    r, s = rank(a, y), fit_ranges(a, y)
    o = outcome(N=300, fractions=(.5, 1.))
    e = measure_effects(o)
    three, sets = a[:, :3], r.salient(.5)
    yield from (r, class_statistics(three, y), fit_distributions(three, y), compare_fits(three, y), firing_matrix(a, y, s, sets))
    yield from (set_overlap(sets, 8), polysemantic_counts(sets, 8), pair_overlap(a, y))
    yield ranking_agreement(dict(dprime=r, maximum=rank(a, y, 'max_activation')), fractions=(.5,))
    path = elastic_net_path(a, y, points=4)
    yield from (path, sparsest_probe(path, a, y, accuracy=.4), probe_by_count(r.order, a, y, a, y, counts=[1, 2]))
    yield probe_layers({'residual.0': a}, y, {'residual.0': a[::-1]}, y[::-1], progress=False)
    yield from (e, intervals(o, draws=20, progress=False), compare(o, 'range', 'full', draws=20, flips=99), trade_off(e), choose(e))
    yield matched_table(choose(e), changes(N=300, fractions=(.5, 1.)), draws=20, flips=99)
    p = text_predicates([f'text {i % 2} {i % 3}' for i in range(120)])
    found = search_formulas(p, y == 1, progress=False)
    yield from (p, found, score_formulas(found, p, y == 1, draws=20), error_margins(a, y, s), learn_gate(a, y, s, sets[1], 1))


def test_every_result(acts):
    "Each gives a table that LaTeX takes, with its names and numbers."
    seen = set()
    for r in results(acts):
        assert isinstance(r, Tabled)
        table(r.to_latex(most=400))
        seen.add(type(r).__name__)
    assert len(seen) >= 22
    assert table(fit_ranges(*acts).to_latex('1', range(3)))[0] == ['class', 'neuron', 'low', 'high']
    tabled = {c.__name__ for c in Tabled.__subclasses__()}
    left = {'Summary', 'Recording', 'Matching', 'FamilyOverlap', 'InformationLeft', 'Readability', 'MultipleChoice', 'Perplexity',
            'LanguageEffects', 'AxisMeaning', 'Modes', 'Explanation', # These and the next in tests of their rooms
            'ScrambledFiring', 'MonosemanticScale', 'VocabularyLens'}
    assert tabled-seen <= left, tabled-seen-left


def test_evidence_and_effects(acts):
    o = outcome(N=300, fractions=(.5, 1.))
    sure = intervals(o, draws=50, progress=False)
    got = table(sure.to_latex())
    assert got[0][-4:] == ['target accuracy', 'auxiliary accuracy', 'disturbance', 'broken']
    assert all('[' in c for row in got[1:] for c in row[-4:]) and len(got)-1 == len(sure.table())
    assert table(sure.to_latex(measures='disturbance', concept='a'))[0][-1] == 'disturbance'
    assert table(measure_effects(o).to_latex(places=2))[1][-1].count('.') == 1


def test_the_mean_is_chosen_by_one_word_everywhere():
    "`only(concept='macro')` of effects, evidence, comparisons and matched tables; a value that is not there is named, not passed over."
    o = changes(N=300, fractions=(.5, 1.))
    e, sure, pair = measure_effects(o), intervals(o, draws=20, progress=False), compare(o, 'range', 'full', draws=20, flips=9)
    told = matched_table(choose(e), o, draws=20, flips=9)
    for r in (e, sure, pair, told):
        assert set(r.only(concept='macro').frame.concept) == {'macro'} and len(r.only(concept='macro').frame)
        with pytest.raises(InputError, match="no row has concept 'all'; there are a, b, c"): r.only(concept='all')
        with pytest.raises(InputError, match="no column 'colour'"): r.only(colour='red')
    want, got = e.macro(), e.only(concept='macro').frame
    pd.testing.assert_frame_equal(got[['condition', 'fraction', 'disturbance']], want[['condition', 'fraction', 'disturbance']])
    m = sure.only(concept='macro', measure='auxiliary_accuracy').frame
    assert got.n_target.eq(300).all() and got.n_auxiliary.eq(m.n.iloc[0]).all()
    assert len(e.only(concept=['macro', 'a'], condition='full').frame) == 4
    alone = e.only(concept='a').only(concept='macro').frame
    assert (alone.n_auxiliary == e.only(concept='a').frame.n_auxiliary.to_numpy()).all()
    with pytest.raises(InputError, match="no row has fraction 0.3; there are 0.5, 1"): e.only(fraction=[.5, .3])
    assert not len(e.only(condition='base', range='gaussian').frame) # Both are known; no row has both
    assert len(Effects(e.frame[:0]).only(concept='a').frame) == 0


# --- matched erasure in one table

def test_matched_table_is_what_its_parts_say():
    "Numbers of `apply`, ends of `intervals`, differences and p-values of `compare`, on the settings that were chosen."
    seen = measure_effects(outcome(N=300, fractions=(.5, .75, 1.), seed=1, shift=dict(full=3., range=2.5)))
    o = changes(N=600, fractions=(.5, .75, 1.), shift=dict(full=3., range=2.5), harm=dict(full=.6, range=.1))
    choice = choose(seen, at=.3)
    got = matched_table(choice, o, draws=100, flips=199, seed=3, dataset='D', model='M')
    assert got.against == choice.frame.preset[0] and got.at == .3
    told = apply(choice, measure_effects(o))
    sure = intervals(o, draws=100, seed=3, progress=False)
    for preset, row in choice.frame.set_index('preset').iterrows():
        own = got.frame[got.frame.preset == preset].set_index('concept')
        known = told[told.preset == preset].set_index('concept').disturbance
        np.testing.assert_allclose(own.disturbance[[*'abc']], known[[*'abc']], rtol=1e-5)
        ends = sure.only(condition=row.condition, fraction=row.fraction, concept='macro', measure='target_accuracy').frame.iloc[0]
        assert (own.target_accuracy_low['macro'], own.target_accuracy_high['macro']) == (ends.low, ends.high)
    a, b = (dict(condition=c, fraction=choice.frame.set_index('preset').fraction[c]) for c in ('range', 'full'))
    want = compare(o, a, b, measures='disturbance', on=[], draws=100, flips=199, seed=3).macro().iloc[0]
    row = got.frame[(got.frame.preset == 'range') & (got.frame.concept == 'macro')].iloc[0]
    assert (row.difference, row.difference_low, row.p) == (want.difference, want.low, want.p) and row.p_adjusted == row.p
    assert got.frame[got.frame.preset == 'full'].p.isna().all()
    cells = table(got.to_latex(caption='Matched', label='tab:m'))
    assert cells[0] == ['preset', 'target accuracy', 'disturbance', 'broken', 'auxiliary accuracy', 'disturbance minus full', 'p']
    assert cells[1][-2:] == ['--', '--']
    bare = matched_table(choice, o, against='', draws=20)
    assert 'p' not in bare.frame and len(table(bare.to_latex())[0]) == 5
    with pytest.raises(InputError, match="preset 'leace' was not chosen; there are"): matched_table(choice, o, against='leace')
    with pytest.raises(InputError, match="not measured on the test texts"): matched_table(choice, changes(fractions=(.5,)))


def test_the_aim_is_drawn_where_it_was_chosen():
    "What `apply` gives knows the aim; its figure marks what reached that, and says so."
    o = outcome(N=300, fractions=(.5, 1.))
    e = measure_effects(o)
    told = apply(choose(e, at=.6), e, dataset='D')
    assert told.attrs == dict(at=.6) and told.groupby('preset').target_accuracy.mean().between(.05, .6).all()
    ax = plot_matched(told)
    marks = [line for line in ax.lines if line.get_markersize() == 7 and len(line.get_xdata())]
    assert len(marks) == 2 and all(m.get_markerfacecolor() != 'w' for m in marks)
    assert 'not to 60%' in ax.get_legend().get_texts()[1].get_text() and '60%' in ax.get_title(loc='left')
    plt.close(ax.figure)
    ax = plot_matched(told, at=.05)
    assert sum(line.get_markerfacecolor() == 'w' for line in ax.lines if line.get_markersize() == 7 and len(line.get_xdata())) == 2
    plt.close(ax.figure)
    ax = matched_table(choose(e, at=.6), changes(N=300, fractions=(.5, 1.)), draws=10, flips=9).plot()
    assert '60%' in ax.get_title(loc='left')
    plt.close(ax.figure)


def test_what_a_limit_is():
    "A choice says by its heading what was compared with the aim."
    e = measure_effects(outcome(N=300))
    assert 'target accuracy + 0.01' in choose(e)._repr_html_() and 'limit' not in choose(e)._repr_html_()
    sure = intervals(outcome(N=300), draws=20, progress=False)
    assert 'target accuracy, upper end' in choose(e, bounds=sure)._repr_html_()
    assert 'limit' in choose(e).frame and 'limit' in matched(e)


# --- figures as wide as a column

def figures():
    "Figures of effects, each made by a call."
    o = outcome(N=300, fractions=(.5, 1.))
    e, sure = measure_effects(o), intervals(o, draws=20, progress=False)
    one = replace(sure, frame=sure.frame[sure.frame.fraction == 1.])
    told = apply(choose(e, at=.6), e, dataset='AG News', model='SmolLM2')
    return dict(effects=lambda: plot_effects(e.only(fraction=1.).frame, source='MiniLM on BBC News'),
                fractions=lambda: plot_fractions(e.frame), matched=lambda: plot_matched(told),
                trade=lambda: plot_trade_off(trade_off(e)), intervals=lambda: plot_intervals(one))


@pytest.mark.parametrize('width', [3.3, 6.9])
@pytest.mark.parametrize('name', ['effects', 'fractions', 'matched', 'trade', 'intervals'])
def test_a_column(name, width, tmp_path):
    "As wide as asked for, nothing outside, no letter under 6.5 points, no two labels of an axis on each other, the same bytes twice."
    with column(width): ax = figures()[name]()
    fig, first = ax.figure, save_figure(ax, tmp_path/'a.pdf').read_bytes()
    assert fig.get_figwidth() == width
    fig.draw_without_rendering()
    box = fig.get_tightbbox()
    assert box.x0 > -.03 and box.x1 < width+.03 and box.y0 > -.03 and box.y1 < fig.get_figheight()+.03, box
    for t in fig.findobj(mpl.text.Text):
        if t.get_visible() and t.get_text().strip(): assert t.get_fontsize() >= 6.5, t
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        boxes = [t.get_window_extent() for t in labels if t.get_text()]
        turned = any(t.get_rotation() % 180 for t in labels)
        assert turned or not any(a.overlaps(b) and min(a.x1, b.x1)-max(a.x0, b.x0) > 2 and min(a.y1, b.y1)-max(a.y0, b.y0) > 2
                                 for i, a in enumerate(boxes) for b in boxes[:i])
    with column(width): again = figures()[name]()
    assert save_figure(again, tmp_path/'b.pdf').read_bytes() == first
    plt.close('all')


def test_outside_a_column_nothing_changes():
    before = dict(mpl.rcParams)
    with column(3.3), pytest.raises(InputError, match="must be from 2.5 to 12 inches"), column(30): pass
    ax = figures()['intervals']()
    assert ax.figure.get_figwidth() == 5.8 and dict(mpl.rcParams) == before
    plt.close('all')
    with column(3.3, height=2): assert plot_intervals_size() == (3.3, 2)


def test_panels_in_a_column():
    "Panels of neurons stand below each other where a column has room for one."
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    a = rng.normal(size=(60, 8))+np.eye(3)[y]@rng.normal(size=(3, 8))
    r, g = rank(a, y), fit_ranges(a, y)
    for width, columns in ((3.3, 1), (6.9, 2), (None, 3)):
        with column(width) if width else nullcontext(): axes = np.ravel(nl.plots.plot_neurons(a, y, g, r.salient(1.), '1'))
        assert len({round(ax.get_subplotspec().colspan.start) for ax in axes}) == columns
        assert width is None or axes[0].figure.get_figwidth() == width
    plt.close('all')


def plot_intervals_size():
    ax = figures()['intervals']()
    size = tuple(ax.figure.get_size_inches())
    plt.close('all')
    return size


def test_many_random_controls():
    "`controls=` draws the random neurons anew, each with a seed of its own; the first is that of one draw."
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    a = (rng.normal(size=(90, 10))+np.eye(3)[y]@rng.normal(size=(3, 10))).astype(np.float32)
    st_, r, g = class_statistics(a, y), rank(a, y), fit_ranges(a, y)
    one, five = (nl.plan(st_, r, g, 'residual.0', controls=n, seed=4) for n in (1, 5))
    own = [i for i in five if i.condition == 'random' and i.setting.concept == '0']
    assert [i.setting.seed for i in own] == [4, 5, 6, 7, 8] and len({tuple(i.neurons.tolist()) for i in own}) > 1
    assert [i for i in map(repr, five) if 'random' not in i] == [i for i in map(repr, one) if 'random' not in i]
    first = next(i for i in one if i.condition == 'random')
    assert first.neurons.tolist() == own[0].neurons.tolist() and first.setting == own[0].setting
    for wrong in (0, 1.5, 'two'):
        with pytest.raises(InputError, match="controls="): nl.plan(st_, r, g, 'residual.0', controls=wrong)
