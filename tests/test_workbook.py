"""The live views of effects, overlap and layers, and the workbook: what they show is what the library computes, on tiny models."""
import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import neuronlens as nl
from neuronlens import live
from neuronlens import workbook as wb
from neuronlens.ground.core import InputError
from neuronlens.ground.rounding import agree, score_size
from neuronlens.views.charts import _PANELS
from neuronlens.views.erase_view import EraseView
from neuronlens.views.overlap_view import _PAIR, INK, OverlapView, shade
from neuronlens.views.plots import CONDITIONS

BAD = '<img src=x onerror=alert(1)>'


@pytest.fixture(scope='module')
def folder(tmp_path_factory, bert, frame, test_frame):
    "Texts whose first class is named like markup, and a tiny BERT that knows it by that name."
    import json
    import shutil
    out = tmp_path_factory.mktemp('bad')
    shutil.copytree(bert, out/'bert')
    config = json.loads((out/'bert/config.json').read_text())
    config |= dict(id2label={'0': BAD, '1': 'food', '2': 'tool'}, label2id={BAD: 0, 'food': 1, 'tool': 2})
    (out/'bert/config.json').write_text(json.dumps(config))
    for name, df in dict(train=frame, test=test_frame).items():
        df.replace({'label': {'animal': BAD}}).to_csv(out/f'{name}.csv', index=False)
    return out


def run(folder, **method):
    "A study of the tiny BERT."
    from neuronlens.studies.spec import parse_study
    usual = dict(ranking=['dprime'], fraction=[.5, .25], layers=True)
    spec = parse_study(dict(data=dict(train='train.csv', test='test.csv'), model=dict(classifier='bert'), method=usual | method),
                       folder=folder)
    return nl.run_study(spec, progress=False)


@pytest.fixture(scope='module')
def study(folder, one_thread):
    return run(folder)


@pytest.fixture(scope='module')
def middle(folder, one_thread):
    "The same below the last block."
    return run(folder, site='residual.0', layers=False)


def direct(study, concepts=None, ranking='dprime', fraction=.5, kind='gaussian(2.5)', edit='mean', vote=0., covers='range', texts=None,
           recording=None):
    "The outcome of a setting, from the library alone."
    r = nl.rank(study.train.acts, study.train.labels, ranking, classes=study.classes)
    ranges = nl.fit_ranges(study.train.acts, study.train.labels, kind, classes=study.classes)
    st = nl.class_statistics(study.train.acts, study.train.labels, study.classes)
    ivs = nl.plan(st, [r], ranges, study.train.site, fraction=[fraction], edit=edit, vote=vote, concept=concepts,
                  covers=covers)
    return nl.ablate(study.clf, texts or study.texts[1], ivs, recording=recording, progress=False)


SETTINGS = [dict(), dict(concept='tool', range='gaussian(1.2)'), dict(concept='food', fraction=.25, vote=.5, edit='zero'),
            dict(range='posterior', ranking='max_activation'), dict(concept=BAD, range='quantile', edit='shift'),
            dict(concept='tool', vote=.6, covers='salient')]


@pytest.mark.parametrize('values', SETTINGS, ids=str)
def test_bars_are_the_librarys_numbers(study, values):
    "Every bar, with its interval, is what planning, ablating and measuring from scratch give."
    view = EraseView(study)
    view.set(**values)
    v = view.values
    concepts = None if v['concept'] == live.EVERY else [study.classes.index(v['concept'])]
    outcome = direct(study, concepts, v['ranking'], v['fraction'], v['range'], v['edit'], v['vote'], v['covers'])
    macro = nl.measure_effects(outcome).macro().set_index('condition')
    sure = nl.intervals(outcome, draws=200).only(concept='macro').frame.set_index(['measure', 'condition'])
    bars = view.live.sizes(view.setting(**v))[0]
    for m in _PANELS:
        for c in CONDITIONS:
            agree(bars[m][c], [macro[m][c], *sure.loc[(m, c), ['low', 'high']]], study.clf, size=score_size(outcome.before), what=(m, c))
    drawn = re.findall(r'>disturbance</text>.*?</svg>', view.picture.value, re.S)[0]
    widths = [float(x) for x in re.findall(r'<rect x="62" y="\d+" width="([\d.]+)"', drawn)]
    top = float(re.search(r'opacity=".75">([\d.]+)<', drawn)[1])
    np.testing.assert_allclose(widths, [122*macro.disturbance[c]/top for c in CONDITIONS], atol=.02)
    for c in CONDITIONS: assert f"{macro.disturbance[c]:.4f} [" in drawn


def test_what_makes_no_difference_is_not_offered(study, middle):
    "At the last block only the head runs, so no other position counts; below it scope and positions are controls, and honoured."
    assert not {'scope', 'positions', 'fitted_at'} & set(EraseView(study).controls)
    view = EraseView(middle, most=9).set(concept='tool', scope='text', vote=.3, covers='salient', positions='readout')
    x = view.setting(**view.values)
    assert (x.scope, x.covers, x.positions, x.vote, x.site) == ('text', 'salient', 'readout', .3, 'residual.0')
    ivs = [iv for iv in view.live.plan((x,)) if iv.condition == 'range']
    assert {(iv.scope, iv.covers, iv.positions) for iv in ivs} == {('text', 'salient', 'readout')}
    assert 'asked once per text, all of them' in view.html() and 'scope: <b>text</b>' in view.static()
    assert view.setting(**view.values | dict(vote=0.)).covers == 'range'
    assert view.set(vote=0).controls['covers'].disabled and 'covers' not in view.static()


def test_the_curve_goes_through_the_present(study):
    "Points of the trade-off are those of the library; the rings are the present setting, at its place."
    view = EraseView(study).set(concept='tool', fraction=.25)
    points = live.curve(view.live, view.setting(**view.values), view.fractions)
    for f in (.25, 1.):
        macro = nl.measure_effects(direct(study, [2], fraction=f)).macro().set_index('condition')
        for r in points[points.fraction == f].itertuples():
            agree([r.target_accuracy, r.disturbance], macro.loc[r.condition, ['target_accuracy', 'disturbance']], study.clf,
                  size=score_size(study.test.probabilities))
    rings = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="8" [^>]*data-ring="(\w+)"', view.html())
    now = points[points.fraction == .25].set_index('condition').target_accuracy
    assert [k for *_, k in rings] == ['full', 'range', 'random']
    for x, _, k in rings: assert abs(float(x)-(52+348*now[k])) < .02


def test_only_what_moved_is_computed(study, monkeypatch):
    "Another tau leaves the whole-neuron edit alone; going back computes nothing."
    view, asked = EraseView(study), []
    real = live.ablate
    def watched(clf, texts, ivs, **kw):
        asked.append([iv.condition for iv in ivs])
        return real(clf, texts, ivs, **kw)
    monkeypatch.setattr(live, 'ablate', watched)
    view.set(range='gaussian(1)')
    assert asked == [['range', 'random']*3]
    view.set(range='gaussian(2.5)')
    assert len(asked) == 1


def test_answers_are_forgotten_where_room_is_short(study):
    "With room for little, the results stay the same."
    small = live.LiveEffects(study, room=1)
    small.most = 4
    s = replace(live.usual(study), concept=study.classes[1])
    before = small.outcome(s).after
    for t in (1., 2.): small.outcome(replace(s, range=f'gaussian({t})'))
    assert len(small.answers) == 4
    np.testing.assert_array_equal(small.outcome(s).after, before)


def test_the_curve_fills_in_while_the_loop_turns(study):
    "At once there is the present point; the rest follows in one more picture, and a move in between starts anew."
    drawn = []
    async def go():
        view = EraseView(study)
        view.fill()
        view.picture.observe(lambda change: drawn.append(change.new), 'value')
        view.set(concept='food', range='gaussian(1.7)')
        first, left = view.picture.value, len(view.missing())
        view.set(concept='food', range='gaussian(1.8)')
        for _ in range(200):
            await asyncio.sleep(.05)
            if not view.missing() and len(drawn) > 2: break
        await asyncio.sleep(.3)
        return view, first, left
    with ThreadPoolExecutor(1) as own: # A browser of another test may hold the loop of this thread
        view, first, left = own.submit(asyncio.run, go()).result()
    assert left == len(view.fractions)-1 and not view.missing()
    assert view.picture.value == view.html() != first
    assert ['of the setting before' in p for p in drawn] == [True, True, False], 'a change draws at once, and once more'
    old = view.setting(**view.values | dict(range='gaussian(1.7)'))
    assert len(view.live.known(old, view.fractions)) == 1, 'the first move went on behind the second'


def test_below_the_last_block_a_sample_is_measured(middle):
    "The fixed sample is named, holds every class, and its numbers are the library's."
    view = EraseView(middle, most=9)
    view.set(concept='tool')
    assert not view.live.quick and '9 of 36 test texts' in view.html()
    assert set(middle.test.labels[view.live.rows]) == {0, 1, 2}
    texts = nl.data.take(middle.texts[1], view.live.rows)
    macro = nl.measure_effects(direct(middle, [2], fraction=.25, texts=texts)).macro().set_index('condition')
    bars = view.live.sizes(view.setting(**view.values))[0]
    for m in ('target_accuracy', 'auxiliary_confidence', 'disturbance'):
        agree([bars[m][c][0] for c in macro.index], macro[m], middle.clf, size=score_size(middle.test.probabilities))
    assert re.fullmatch(r'<small>measured and drawn in \d+ ms</small>', view.note.value)
    assert view.fractions == [.25, .5]


@pytest.mark.parametrize('sizes,most', [((30, 3), 11), ((5, 5, 50), 12), ((1, 1, 1), 3)])
def test_even_sample(sizes, most):
    "No class is left out, shares are kept to one text, the order is that of the texts."
    y = np.random.default_rng(0).permutation(np.repeat(range(len(sizes)), sizes))
    rows = live.even_sample(y, most, seed=3)
    n = np.bincount(y[rows], minlength=len(sizes))
    assert len(rows) == most and (np.diff(rows) > 0).all() and n.min() >= 1
    assert (abs(n-most*np.array(sizes)/sum(sizes)) <= 1.001).all()


def test_maps_and_shared_neurons(study):
    "Maps and lists against loops over sets."
    view = OverlapView(study).set(fraction=.25, a='food', b='tool')
    order, ranges, acts = study.ranking.order, study.ranges, study.test.acts
    sets = [set(o[:8]) for o in order]
    maps = live.overlap_maps(study, study.ranking, .25)
    for i in range(3):
        for j in range(3):
            both = sets[i] & sets[j]
            assert np.isclose(maps['salient sets'][i, j], len(both)/len(sets[i] | sets[j]))
            held = []
            for n in both:
                a, b = ((acts[:, n] >= ranges.lo[c, n, 0]) & (acts[:, n] <= ranges.hi[c, n, 0]) for c in (i, j))
                if (a | b).any(): held.append((a & b).sum()/(a | b).sum())
            if held: assert np.isclose(maps['ranges'][i, j], np.mean(held))
            else: assert np.isnan(maps['ranges'][i, j])
    shared = view.shared(*(view.values[k] for k in _PAIR))
    assert set(shared.neuron) == sets[1] & sets[2]
    for r in shared.itertuples():
        assert (order[1][r.rank_a-1], order[2][r.rank_b-1]) == (r.neuron, r.neuron)
        assert np.isclose(r.bhattacharyya, nl.separation.bhattacharyya(study.statistics)[1, 2, r.neuron])
        assert f'{r.bhattacharyya:.3f}' in view.picture.value


def test_a_click_and_the_lists_choose_the_same(study):
    "A button shows what the lists show; the chosen neuron is handed on."
    asked = []
    view = OverlapView(study, lambda *neuron: asked.append(neuron)).set(fraction=.8)
    view.grid.buttons[2][1].click()
    by_click = view.values, view.picture.value
    view.set(a=BAD, b=BAD)
    view.set(a='tool', b='food')
    assert (view.values, view.picture.value) == by_click
    assert view.grid.buttons[2][1].layout.border.startswith('3px solid #d')
    view.go.click()
    assert asked == [('tool', view.values['neuron'])]
    assert OverlapView(study).go.disabled


def test_without_shared_neurons(study):
    "A pair that shares nothing says so, offers nothing, and the button does nothing."
    scores = np.zeros((3, 32))
    for c in range(3): scores[c, 4*c:4*c+4] = 1
    apart = replace(study, rankings=[nl.saliency.Ranking(scores, 'dprime', study.classes)])
    view = OverlapView(apart, lambda *_: 1/0).set(map='ranges', fraction=.1)
    view.set(a='food', b='tool')
    assert 'share no salient neuron' in view.picture.value and view.values['neuron'] is None
    view.open()
    assert '–\nchance –' in [b.description for b in view.grid.buttons[1]]


def test_layers(study, tmp_path):
    "Numbers of the table, what is said without probes; the probes of a saved study are there again."
    frame = study.probes.to_frame()
    view = wb.LayersView(study)
    assert view.values == {} and view.html() == wb.layers_html(frame, view.texts)
    assert all(f'{v:.3f}' in view.html() for k in ('accuracy', 'selectivity') for v in frame[k])
    back = nl.load_study(nl.study.save_study(study, tmp_path/'out'))
    assert wb.LayersView(back).html() == view.html()
    assert 'no probes' in wb.LayersView(replace(study, probes=None)).html()
    odd = wb.layers_html(frame.assign(site=['emb<b>', 'top']))
    assert 'emb&lt;b&gt;' in odd and 'emb<b>' not in odd


def test_heat_is_legible():
    "Text and ground contrast by 7 at least, wherever the number lies."
    def light(c):
        v = [int(c[i:i+2], 16)/255 for i in (1, 3, 5)]
        return np.dot([.2126, .7152, .0722], [x/12.92 if x <= .03928 else ((x+.055)/1.055)**2.4 for x in v])
    for v in [*np.linspace(0, 1, 101), np.nan]:
        a, b = sorted(map(light, (shade(v), INK)))
        assert (b+.05)/(a+.05) >= 7, v


@pytest.fixture(scope='module')
def book(study):
    return wb.explore(study)


def test_tabs_are_made_when_shown(study):
    "Only the first is there at first; a selected one appears, and its values can be read."
    book = wb.explore(study)
    assert list(book.values) == ['neuron'] and book.tabs.titles == ('Neuron', 'Erase', 'Text', 'Overlap', 'Layers', 'Meaning')
    book.tabs.selected_index = 3
    assert list(book.values) == ['neuron', 'overlap'] and book.tabs.children[3].children == (book.overlap.box,)
    book.erase.set(concept='tool', range='gaussian(1.5)')
    assert book.values['erase']['range'] == 'gaussian(1.5)'
    book.overlap.set(fraction=.8, a='food', b='tool')
    chosen = book.overlap.values['neuron']
    book.overlap.go.click()
    assert book.tabs.selected_index == 0
    assert (book.values['neuron']['neuron'], book.values['neuron']['concept']) == (chosen, 'food')


def test_one_selection(study):
    "What one tab is set to holds in all that have such a control; the neuron is the strongest of the concept, or the one chosen."
    book = wb.explore(study)
    def strongest(concept, ranking='dprime'): return int(nl.rank(study.train.acts, study.train.labels, ranking, classes=study.classes)
                                                          .order[study.classes.index(concept), 0])
    assert book.erase.values['concept'] == book.text.values['concept'] == book.overlap.values['a'] == book.neuron.values['concept'] == BAD
    book.neuron.controls['concept'].value = 'tool' # As a reader does
    book.neuron.controls['range'].kind.value = 'posterior'
    assert book.neuron.values['neuron'] == strongest('tool')
    for view in (book.erase, book.text): assert (view.values['concept'], view.values['range']) == ('tool', 'posterior')
    book.text.set(fraction=.4, vote=.5, covers='salient', edit='zero', ranking='max_activation')
    assert {k: book.erase.values[k] for k in ('fraction', 'vote', 'covers', 'edit', 'ranking')} == dict(
        fraction=.4, vote=.5, covers='salient', edit='zero', ranking='max_activation')
    assert (book.overlap.values['fraction'], book.neuron.values['neuron']) == (.4, strongest('tool', 'max_activation'))
    book.overlap.set(a='food', b='tool', ranking='dprime', fraction=.8)
    other = book.overlap.controls['neuron'].options[-1][1]
    book.overlap.controls['neuron'].value = other
    assert (book.neuron.values['concept'], book.neuron.values['neuron']) == ('food', other)
    book.erase.set(concept=live.EVERY)
    assert book.neuron.values['concept'] == 'food' # One neuron cannot be of every concept
    book.text.set(edit='resample') # Nor has Erase this edit
    assert book.erase.values['edit'] == 'zero' and book.text.values['edit'] == 'resample'


def test_what_is_hidden_is_not_drawn(study):
    "A change draws the tab that is seen, once; another catches up with one picture when it is looked at."
    book, drawn = wb.explore(study), []
    for k in ('text', 'overlap'): book.view(k).picture.observe(lambda _, k=k: drawn.append(k), 'value')
    book.neuron.picture.observe(lambda _: drawn.append('neuron'), 'value')
    book.neuron.controls['concept'].value = 'tool'
    book.neuron.controls['concept'].value = 'food'
    assert drawn == ['neuron', 'neuron']
    book.show('text')
    assert drawn == ['neuron', 'neuron', 'text'] and book.values['text']['concept'] == 'food'


def test_chance_by_hand(study):
    "Beside every number of the maps: against sums over the sets and the texts."
    order, ranges, acts, y = study.ranking.order, study.ranges, study.test.acts, study.test.labels
    chance, k, D = live.overlap_chance(study, study.ranking, .25), 8, 32
    np.testing.assert_allclose(chance['salient sets'], k*k/D/(2*k-k*k/D))
    held = np.stack([ranges.contains(acts, c) for c in range(3)])
    np.testing.assert_allclose(chance['firing'][1], [held[c][:, order[c][:k]].mean() for c in range(3)])
    for i, j in ((0, 1), (1, 2)):
        a, b = (held[c].mean(0) for c in (i, j))
        both = [n for n in order[i][:k] if n in order[j][:k] and a[n]+b[n] > 0]
        if both: np.testing.assert_allclose(chance['ranges'][i, j], np.mean([a[n]*b[n]/(a[n]+b[n]-a[n]*b[n]) for n in both]))
    view = OverlapView(study).set(fraction=.25, a='food', b='tool')
    for name in live.MAPS:
        view.set(map=name)
        shown = [[b.description.split('chance ')[1] for b in row] for row in view.grid.buttons]
        assert shown == [[f'{v:.2f}' if np.isfinite(v) else '–' for v in row] for row in chance[name]] and name
        assert all(f'chance {v:.2f}' in view.static() for v in chance[name].ravel() if np.isfinite(v))
    assert f'chance: {k*k/D:.1f}' in view.picture.value
    assert len(y) == 36


def test_no_study_is_refused():
    "One sentence that names what was given."
    for given in ([], 'study.toml', None):
        for make in (wb.explore, EraseView, OverlapView, wb.LayersView):
            with pytest.raises(InputError, match=f'finished study.*not {type(given).__name__}'): make(given)
    with pytest.raises(InputError, match='no tab'): wb.Workbook.show(SimpleNamespace(_make=dict(neuron=1)), 'heads')


def test_every_control_is_labelled(book):
    "Controls have a description and a tooltip; buttons of the map say which pair they are."
    for k in book._make:
        for c in book.view(k).controls.values(): assert c.description and c.tooltip, (k, c)
    assert all(b.tooltip for row in book.overlap.grid.buttons for b in row) and book.overlap.go.tooltip


def test_names_from_data_are_harmless(book, tmp_path, offline, pictures):
    "A class named like markup is text in every picture; nothing is fetched, nothing runs; legible on light and dark."
    book.erase.set(concept=BAD)
    book.overlap.set(a=BAD)
    for k in book._make:
        assert '<img src=x' not in book.view(k).static() and '<img src=x' not in book.view(k).picture.value
    (tmp_path/'book.html').write_text('<!doctype html><html lang="en"><head><meta charset="utf-8"><title>book</title>'
        '<meta name="color-scheme" content="light dark"></head><body>'+book.static()+'</body></html>', encoding='utf-8')
    for scheme in ('light', 'dark'):
        page, trouble = offline(tmp_path/'book.html', viewport=dict(width=1000, height=800), color_scheme=scheme)
        page.screenshot(path=pictures/f'workbook-{scheme}.png', full_page=True)
        assert trouble == [] and page.locator('h3').all_inner_texts() == [*book.tabs.titles]
        assert page.get_by_text(BAD).count() and not page.locator('img[src="x"]').count()
        ink, ground = page.evaluate("""() => { const s = document.querySelector('svg text'), c = getComputedStyle(s).fill;
            let e = s.parentElement; while (getComputedStyle(e).backgroundColor === 'rgba(0, 0, 0, 0)') e = e.parentElement;
            return [c, getComputedStyle(e).backgroundColor].map(x => x.match(/\\d+/g).slice(0, 3).reduce((a, b) => a+ +b, 0)) }""")
        assert abs(ink-ground) > 380, scheme
    page, _ = offline(tmp_path/'book.html', viewport=dict(width=380, height=800))
    assert page.evaluate('document.documentElement.scrollWidth') <= 400
