"""What a neuron means, here and there: its axis in ranges, which ranges mean a word, the tab *Meaning*, and the section of the report."""
import re
from dataclasses import replace
from html import unescape

import numpy as np
import pandas as pd
import pytest
from conftest import WORDS, axe
from scipy.stats import fisher_exact
from test_lab import BAD, VIEWS, lab, server, untrusted, write_notebook  # noqa: F401
from test_workbook import folder, run  # noqa: F401

import neuronlens as nl
from neuronlens.arrays.axis import cut_axis, explain_axis, held_by, part_names, ranges_that_mean
from neuronlens.arrays.corners import range_independence
from neuronlens.arrays.formulas import search_formulas
from neuronlens.arrays.predicates import text_predicates
from neuronlens.arrays.ranges import fit_ranges
from neuronlens.arrays.scores import score_formulas
from neuronlens.edits.live import usual
from neuronlens.edits.meant import MeaningSearch, strongest_meanings, token_values, typical_rows
from neuronlens.ground.core import InputError
from neuronlens.records.given import recording
from neuronlens.studies.fields import MeaningSpec, StudySpec
from neuronlens.studies.findings import meanings
from neuronlens.studies.saved import load_study, save_study
from neuronlens.studies.spec import parse_study
from neuronlens.views.meaning_view import ASK, MeaningView, tokens_html, word_html, words_said


def planted(n, seed):
    "Texts of four words, and a neuron that is low on tea and high on coffee without milk."
    rng = np.random.default_rng(seed)
    words = rng.choice([*'abcdefgh', 'tea', 'coffee', 'milk'], (n, 4))
    tea, coffee, milk = ((words == w).any(1) for w in ('tea', 'coffee', 'milk'))
    return [' '.join(w) for w in words], np.where(coffee & ~milk, 2, np.where(tea, -2, 0))+rng.uniform(-.5, .5, n)


def pair(n=400, m=300, null=False):
    "Two recordings of the planted neuron; of a null its values are shuffled."
    out = []
    for size, seed in ((n, 0), (m, 1)):
        texts, v = planted(size, seed)
        if null: v = np.random.default_rng(9).permutation(v)
        out.append(recording(v[:, None], np.arange(size) % 2, texts=texts))
    return out


@pytest.mark.parametrize('cut', ['quantile(2)', 'quantile(7)', 'kmeans(2)', 'kmeans(6)'])
def test_parts_cover_the_axis(cut):
    "Whatever the values, every number lies in exactly one part, and every part holds a value; names differ."
    rng = np.random.default_rng(0)
    for n in (1, 2, 9, 200):
        for x in (rng.normal(size=n), np.round(rng.normal(size=n)), np.zeros(n), rng.normal(size=n)*1e-4+7):
            lo, hi = cut_axis(x, cut)
            assert lo[0] == -np.inf and hi[-1] == np.inf and (np.nextafter(hi[:-1], np.float32(np.inf)) == lo[1:]).all()
            held = held_by(np.r_[x, rng.normal(size=50)*9, lo[1:], hi[:-1]], lo[:, None], hi[:, None])
            assert (held.sum(1) == 1).all() and held[:n].any(0).all() and len(lo) <= int(re.search(r'\d+', cut)[0])
            assert len(set(part_names(lo, hi))) == len(lo)


def test_quantile_parts_are_even():
    "Of different values every part has as many, to one."
    x = np.random.default_rng(0).permutation(103).astype(float)
    lo, hi = cut_axis(x, 'quantile(5)')
    n = held_by(x, lo[:, None], hi[:, None]).sum(0)
    assert n.max()-n.min() <= 1


def test_a_neuron_that_means_two_things():
    "Both ends have their own formula, on other texts; a null has none that beats chance by much; order of texts changes nothing."
    train, test = pair()
    told = explain_axis(train, test, 0, 'kmeans(3)', draws=100, progress=False)
    s = told.scores
    assert "coffee" in told.to_latex() and "\\toprule" in told.to_latex()
    assert str(s.formulas[2]) == "'coffee' AND NOT 'milk'" and "'tea'" in str(s.formulas[0])
    assert s.value[2, 0] == 1 and (s.low > s.chance)[[0, 2], 0].all() and s.chance[2, 0] < .5
    turned = np.random.default_rng(2).permutation(len(train))
    again = explain_axis(train[turned], test, 0, 'kmeans(3)', draws=100, progress=False)
    assert again.scores.formulas == s.formulas and (again.scores.value == s.value).all()
    null = explain_axis(*pair(null=True), 0, 'kmeans(3)', draws=100, progress=False).scores
    assert (null.value-null.chance)[:, 0].max() < .15
    assert not (null.low > null.chance)[[0, 2], 0].any()


def test_axis_is_search_and_score():
    "Numbers are those of the rooms below, range by range; ranges of classes are the classes' own."
    train, test = pair(200, 150)
    both = text_predicates(train.texts, least=4)
    both = both, text_predicates(test.texts, like=both)
    told = explain_axis(train, test, 0, predicates=both, draws=50, progress=False)
    masks = [held_by(r.acts[:, 0], told.lo, told.hi) for r in (train, test)]
    for k in range(len(told.names)):
        found = search_formulas(both[0], masks[0][:, k], progress=False)
        assert found.formulas[0] == told.scores.formulas[k]
        alone = score_formulas(found, both[1], masks[1][:, k], draws=50)
        np.testing.assert_allclose([alone.value[0], alone.chance[0]], [told.scores.value[k], told.scores.chance[k]])
    assert (told.inside == masks[1]).all() and (told.scores.in_range == masks[1].sum(0)).all()
    ranges = fit_ranges(train, 'gaussian(.5)')
    own = explain_axis(train, test, 0, ranges, predicates=both, draws=50, progress=False)
    assert own.names == ranges.classes and (own.inside == np.stack([ranges.contains(test.acts, c)[:, 0] for c in (0, 1)], 1)).all()
    wide = replace(ranges, hi=ranges.hi+np.float32([[[0]], [[99]]]), lo=ranges.lo-np.float32([[[0]], [[99]]]))
    assert explain_axis(train, test, 0, wide, predicates=both, draws=50, progress=False).left_out == ('1',)


def test_which_ranges_mean_a_word():
    "Counts by hand, p by Fisher's exact test, the formula's ranges first; the interval holds what is true about as often as it says."
    train, test = pair()
    told = explain_axis(train, test, 0, 'kmeans(3)', draws=50, progress=False)
    df = told.about('milk').set_index('range')
    has = np.array(['milk' in t.split() for t in test.texts])
    for k, name in enumerate(told.names):
        r, own = df.loc[name], told.inside[:, k]
        assert (r.texts, r.in_range) == (has.sum(), (has & own).sum())
        np.testing.assert_allclose([r.share, r.lift], [own[has].mean(), own[has].mean()/own.mean()])
        table = [[(has & own).sum(), (has & ~own).sum()], [(~has & own).sum(), (~has & ~own).sum()]]
        np.testing.assert_allclose(r.p, fisher_exact(table, 'greater').pvalue, rtol=1e-6)
        assert r.lift_low <= r.lift <= r.lift_high and r.p <= r.p_adjusted
    assert df.says[told.names[2]] == 'not' and told.about('coffee').says[0] == 'yes'
    assert told.about("'coffee'").equals(told.about('coffee')) and told.about('Coffee').equals(told.about('coffee'))


def test_the_lift_of_what_is_not_there():
    "A word of no test text has no share; an empty range no lift; a word that is none is refused by name."
    texts, masks = ['a b']*10+['b c']*10, np.zeros((20, 2), bool)
    masks[:5, 0] = True
    p = text_predicates(texts, least=2)
    found = search_formulas(p, np.c_[masks[:, 0], ~masks[:, 0]], names=['x', 'y'], progress=False)
    scores = score_formulas(found, p, masks, draws=20)
    df = ranges_that_mean('a', scores, p, masks).set_index('range')
    assert df.lift['x'] == 2 and np.isnan(df.lift['y']) and df.p['y'] == 1
    none = ranges_that_mean('c', scores, p[:10], masks[:10]) if len(p[:10]) else None
    assert np.isnan(none.share).all() and (none.p == 1).all()
    with pytest.raises(InputError, match="no predicate says 'zebra'"): ranges_that_mean('zebra', scores, p, masks)


def test_the_interval_of_the_lift_covers():
    "Drawn anew many times, the true lift lies inside at least nineteen times in twenty, nearly."
    rng, hit, drawn = np.random.default_rng(0), 0, 400
    for share, base, rate in ((.3, .2, .5), (.05, .1, .3)):
        true = rate/(share*rate+(1-share)*base)
        from neuronlens.arrays.margins import wilson
        for _ in range(drawn):
            word = rng.random(300) < share
            own = rng.random(300) < np.where(word, rate, base)
            low, high = wilson((word & own).sum(), word.sum())
            hit += low/own.mean() <= true <= high/own.mean()
    assert hit/(2*drawn) > .93


@pytest.mark.parametrize('cut', ['quantile', 'quantile(1)', 'density(3)', 'kmeans(99)'])
def test_a_cut_that_is_none(cut):
    with pytest.raises(InputError): explain_axis(*pair(60, 60), 0, cut, least=2, progress=False)


def test_a_neuron_that_never_changes():
    flat = [replace(r, activations={r.site: np.zeros_like(r.acts)}) for r in pair(60, 60)]
    with pytest.raises(InputError, match='every range of neuron 0 holds all 60 training texts or none'):
        explain_axis(*flat, 0, least=2, progress=False)


def test_typical_rows_by_hand():
    v = np.array([0, 1, 2, 3, 10., 11])
    assert [r.tolist() for r in typical_rows(v, np.c_[v < 5, v > 5, v > 99], 1)] == [[1], [4], []]


# --- corners of a joint range


def test_corners_by_hand():
    "Cell by cell in a loop; turning an axis turns the corners, and order of examples nothing."
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 150))
    got, n, bins = range_independence(a, b, bins=7, corner=3, shuffles=20), 0, 7
    def cell(v, x): return min(bins-1, int(bins*(v-x.min())/(x.max()-x.min())))
    held = {(cell(v, a), cell(w, b)) for v, w in zip(a, b, strict=True)}
    for i in (*range(3), *range(4, 7)):
        for j in (*range(3), *range(4, 7)): n += (i, j) in held
    assert got.occupied == pytest.approx(n/36)
    other, at = range_independence(-a, b, bins=7, corner=3, shuffles=20), rng.permutation(150)
    np.testing.assert_allclose([other['low, low'], other['high, high']], [got['high, low'], got['low, high']])
    assert range_independence(a[at], b[at], bins=7, corner=3, shuffles=20).occupied == got.occupied


def test_a_bounded_sum_is_found_and_independence_is_not():
    "A corner that is cut off is seen; independent pairs are called so as often as p says."
    rng, seen = np.random.default_rng(1), []
    for _ in range(40): seen.append(range_independence(*rng.normal(size=(2, 200)), shuffles=40).p)
    assert np.mean(np.array(seen) <= .05) <= .15
    x, y = rng.uniform(-1, 1, (2, 800))
    own = range_independence(x[x+y < .8], y[x+y < .8])
    assert own.p < .05 and own['high, high'] < 1 and own['low, low'] == 1 and own.chance > own.occupied
    wrong = {'a has 800 examples and b has 3': (x, y[:3]), 'b has one value throughout': (x, x*0), 'a must be one value': (x[None], y)}
    for said, bad in wrong.items():
        with pytest.raises(InputError, match=said): range_independence(*bad)


# --- the view


@pytest.fixture(scope='module')
def study(folder, one_thread):  # noqa: F811
    return run(folder)


@pytest.fixture(scope='module')
def view(study):
    return MeaningView(study).set(concept='tool').search()


def test_nothing_is_searched_unasked(study):
    "Opened, it says what to do; the button searches, once; another neuron waits for its own."
    v = MeaningView(study)
    assert ASK in unescape(v.picture.value) and v.asked.read is None and v.asked.found == {}
    assert not v.bar.words.children and v.static()
    steps, real = [], v.bar.step
    v.bar.step = lambda what, done: (steps.append((what.split()[0], done)), real(what, done))
    v.bar.go.click()
    assert [s for s, _ in steps] == ['reading', 'reading', 'searching', 'marking'] and [d for _, d in steps] == sorted(d for _, d in steps)
    assert ASK not in unescape(v.picture.value) and v.bar.words.children and v.bar.state.value == '' and not v.bar.go.disabled
    drawn = v.picture.value
    v.set(neuron=v.controls['neuron'].options[1][1])
    assert ASK in unescape(v.picture.value) and not v.bar.words.children
    v.set(neuron=v.controls['neuron'].options[0][1])
    assert v.picture.value == drawn and len(v.asked.found) == 1


def test_the_view_shows_the_librarys_numbers(study, view):
    "Formula, score with ends, chance and counts of every range, from the rooms alone."
    v = view.values
    train, test = study.train, study.test
    both = text_predicates(study.texts[0], least=3, ngrams=1)
    both = both, text_predicates(study.texts[1], like=both, ngrams=1)
    told = explain_axis(train, test, v['neuron'], predicates=both, draws=200, seed=study.spec.seed, progress=False)
    s, shown = told.scores, unescape(view.picture.value)
    for k, name in enumerate(told.names):
        assert name in shown and str(s.formulas[k]) in shown
        assert f'{s.value[k, 0]:.2f} [{s.low[k, 0]:.2f}, {s.high[k, 0]:.2f}]' in shown and f'chance {s.chance[k, 0]:.2f}' in shown
    assert f'Words of {len(train)} training texts searched, scored on {len(test)} test texts' in shown


def test_ranges_of_the_classes(study):
    "They are those that the range control says, fitted on this neuron."
    v = MeaningView(study)
    assert v.controls['range'].kind.disabled
    v.set(cut='classes', range='gaussian(0.7)').search()
    told, _ = v.asked.known(*v.which(**v.values))
    want = fit_ranges(study.train.acts, study.train.labels, 'gaussian(0.7)', classes=study.classes)
    at = [study.classes.index(n) for n in told.names]
    np.testing.assert_array_equal(told.lo[:, 0], want.lo[at, v.values['neuron'], 0])
    assert not v.controls['range'].kind.disabled and len(told.names)+len(told.left_out) == 3
    assert v.set(range='gaussian(3)').values['range'] == 'gaussian(3)' and ASK in unescape(v.picture.value)


def test_a_click_on_a_word_is_the_word_typed(study, view):
    "Buttons are the words of the formulas; pressed twice it is gone; what is no word gets a sentence, and the rest stays."
    told, _ = view.asked.known(*view.which(**view.values))
    words = [b.description for b in view.bar.words.children]
    assert words == words_said(told) and words and all(any(x in str(f) for f in told.scores.formulas) for x in words)
    view.bar.words.children[0].click()
    by_click = view.picture.value
    assert view.values['word'] == words[0] and word_html(told, words[0]) in by_click and 'lift' in by_click
    view.bar.words.children[0].click()
    assert view.values['word'] == '' and 'lift' not in view.picture.value
    view.controls['word'].value = words[0]
    assert view.picture.value == by_click
    view.controls['word'].value = BAD
    assert 'role="alert"' in view.picture.value and BAD not in view.picture.value and '<img src=x' not in view.static()
    view.set(word='')


def test_tokens_are_those_of_the_model(study):
    "A token is marked where its own activation lies in the range; the readout's is the recorded one."
    search = MeaningSearch(study)
    told, contexts = search.axis(study.train.site, 5)
    for k, own in enumerate(contexts):
        for c in own:
            r = study.texts[1].texts.index(c.text)
            tokens, values = token_values(study, study.train.site, 5, [r])[r]
            assert c.tokens == tokens and study.classes[study.test.labels[r]] == c.concept
            assert c.inside == tuple(bool((told.lo[k] <= v).any() and (v <= told.hi[k]).any()) for v in values)
            np.testing.assert_allclose(values[0], study.test.acts[r, 5], rtol=1e-3, atol=1e-4)
            assert told.inside[r, k] and (len(tokens) > 32 or tokens_html(c).count('<mark') == sum(c.inside))


def test_every_control_is_labelled(view):
    for c in view.controls.values(): assert c.description and c.tooltip
    for b in (view.bar.go, *view.bar.words.children): assert b.description and b.tooltip
    assert 'nl-panel' in view.bar.box._dom_classes # Greyed where the kernel is gone
    view.bar.step('<b>reading', .5)
    assert 'role="status"' in view.bar.state.value and 'aria-label' in view.bar.state.value and '<b>' not in view.bar.state.value
    view.bar.state.value = ''


def test_the_tab_shares_the_selection(study):
    "Concept, neuron and range come from the other tabs; what it is set to goes to them."
    book = nl.explore(study)
    book.neuron.set(concept='food', neuron=7, range='gaussian(1.2)')
    assert [book.meaning.values[k] for k in ('concept', 'neuron', 'range')] == ['food', 7, 'gaussian(1.2)']
    book.meaning.set(concept='tool')
    assert book.neuron.values['concept'] == book.erase.values['concept'] == 'tool'
    assert book.show('meaning').tabs.selected_index == 5 and 'Meaning</h3>' in book.static()


def test_markup_in_the_data_stays_text(study, view, offline, tmp_path, pictures):
    "Class names, texts and tokens are text; axe-core finds nothing serious; no page is wider than its window."
    evil = tuple(replace(t, texts=[f'{BAD} {x}' for x in t.texts]) for t in study.texts)
    v = MeaningView(replace(study, texts=evil)).set(concept=BAD).search().set(word='img')
    assert '<img src=x' not in v.static()+v.picture.value and BAD in unescape(v.picture.value)
    said = ('<!doctype html><html lang="en"><head><meta charset="utf-8"><title>m</title><meta name="viewport" content="width=device-width">'
            f'</head><body><main><h1>m</h1><h2>m</h2><h3>m</h3>{v.static()}</main></body></html>')
    (tmp_path/'v.html').write_text(said, encoding='utf-8')
    for width in (1000, 390):
        page, trouble = offline(tmp_path/'v.html', viewport=dict(width=width, height=900))
        assert not trouble and not page.locator('img[src="x"]').count() and not (found := axe(page)), found
        page.screenshot(path=pictures/f'meaning-{width}.png', full_page=True)


def given(texts=True):
    "A study of activations that came from elsewhere, with their texts or without."
    own = [r if texts else replace(r, texts=None) for r in pair(120, 90)]
    acts = [np.c_[r.acts, np.random.default_rng(k).normal(size=(len(r), 3))].astype(np.float32) for k, r in enumerate(own)]
    train, test = (recording(a, np.arange(len(a)) % 2, texts=r.texts, classes=('even', 'odd')) for a, r in zip(acts, own, strict=True))
    return nl.run_study(recordings=(train, test), progress=False)


def test_activations_with_texts_and_without():
    "With texts the view works, without tokens; without texts one sentence says so, in the tab, too; the report has no section."
    s = given()
    v = MeaningView(s).set(neuron=0, cut='kmeans(5)').search()
    assert "'coffee' AND NOT 'milk'" in unescape(v.picture.value) and 'Tokens are not known here' in v.picture.value
    assert len(meanings(s)['meant']) == 2
    bare = given(texts=False)
    with pytest.raises(InputError, match='no texts at hand'): MeaningView(bare)
    assert 'no texts at hand' in nl.explore(bare).meaning.html()
    assert meanings(bare)['meant'] == [] and strongest_meanings(bare) is None and bare.meaning is None


# --- the report


def test_the_report_says_what_is_meant(study, tmp_path):
    "The strongest neuron of each concept in its range, with score, ends and chance; names and formulas from data are escaped."
    from neuronlens.studies.report import report_html
    s = study.meaning
    who = [(study.classes.index(c), int(j)) for c, j in (n.rsplit(', neuron ', 1) for n in s.names)]
    assert [w[1] for w in who] == [int(study.salient[c][0]) for c, _ in who]
    shown = report_html(study, [])
    part = shown.split('<h2 id="meaning">')[1].split('<h2')[0]
    for i, (c, j) in enumerate(who):
        y = study.ranges.contains(study.test.acts, c, [j])[:, 0]
        f = s.formulas[i].holds(text_predicates(study.texts[1], like=MeaningSearch(study).words()[0], ngrams=1))
        assert np.isclose(s.value[i, 0], (y & f).sum()/max(1, (y | f).sum())) or not y.any()
        assert str(s.formulas[i]) in unescape(part)
    assert '<img src=x' not in part and 'href="#meaning"' in shown
    assert report_html(replace(study, texts=None), []).count('id="meaning"') == 1 # What was found is kept
    alone = report_html(replace(study, texts=None, meaning=None), [])
    assert 'id="meaning"' not in alone and 'href="#meaning"' not in alone


def test_a_study_file_says_what_is_explained(tmp_path):
    "How many concepts, neurons and steps; what was found is in the folder, as a table and whole; a changed number is refused."
    s, asked = given(), MeaningSpec(concepts=1, neurons=2, length=1)
    def run(meaning): return nl.run_study(StudySpec(meaning=meaning), recordings=(s.train, s.test), progress=False)
    few, none = run(asked), run(replace(asked, concepts=0))
    assert len(s.meaning.names) == 2 and len(few.meaning.names) == 2
    assert {n.rsplit(', neuron ', 1)[0] for n in few.meaning.names} == {'even'} and max(len(f.steps) for f in few.meaning.formulas) == 1
    save_study(few, tmp_path/'out')
    back = load_study(tmp_path/'out')
    assert back.meaning.to_frame().equals(few.meaning.to_frame()) and back.spec.meaning == asked
    assert len(pd.read_csv(tmp_path/'out/meaning.csv')) == 2 and meanings(replace(back, texts=None))['meant']
    assert none.meaning is None and strongest_meanings(none) is None
    (tmp_path/'out/meaning.csv').write_text('x')
    with pytest.raises(InputError, match='meaning.csv is not the file that this study wrote'): load_study(tmp_path/'out')
    for wrong, says in ((dict(length=6), 'length 6 must lie between 1 and 5'), (dict(neurons=0), 'neurons 0 must be 1 or more'),
                        (dict(concept=3), "no setting is called 'concept'")):
        with pytest.raises(InputError, match=says): parse_study(dict(activations=dict(train='a.npz'), meaning=wrong))


def test_a_search_is_bounded(study):
    "Of many texts a fixed sample is read, every class among them; the usual setting of a study is not touched."
    search = MeaningSearch(study, most=9)
    assert [len(r) for r in search.rows] == [9, 9] and set(study.test.labels[search.rows[1]]) == {0, 1, 2}
    assert usual(study) == usual(study) and WORDS


# --- the tutorial


@pytest.mark.slow
def test_what_the_tutorial_claims():
    "Election belongs to one end; at least two ranges are far above chance and of different topics; so are most neurons drawn at random."
    from neuronlens.models.training import example_texts
    from neuronlens.records.recording import example_recordings
    (train, test), texts = example_recordings(progress=False), example_texts()
    words = text_predicates(texts[0], least=30, ngrams=1)
    words = words, text_predicates(texts[1], like=words, ngrams=1)
    strongest, second = nl.rank(train, 'dprime').order[train.classes.index('politics'), :10], []
    for j in strongest:
        lo, hi = cut_axis(train.acts[:, j], 'quantile(5)')
        inside = held_by(train.acts[:, j], lo[:, None], hi[:, None])
        second.append(np.sort(search_formulas(words[0], inside, shuffles=0, progress=False).iou)[-2])
    def far(j):
        told = explain_axis(train, test, int(j), predicates=words, draws=200, progress=False)
        s = told.scores
        return told, np.flatnonzero(s.low[:, 0] > 2*s.chance[:, 0])
    told, at = far(strongest[np.argmax(second)])
    assert told.about('election').range[0] in (told.names[0], told.names[-1]) and len(at) >= 2
    most = [np.bincount(test.labels[told.inside[:, k]], minlength=5).argmax() for k in at]
    assert len(set(most)) >= 2
    assert np.mean([len(far(j)[1]) >= 2 for j in np.random.default_rng(0).choice(train.acts.shape[1], 10, replace=False)]) > .5


# --- in a browser


@pytest.mark.slow
def test_the_tab_in_jupyterlab(lab, untrusted, pictures):  # noqa: F811
    "The button searches, a word is chosen by click and by keyboard, and nothing serious is found by axe-core."
    write_notebook(untrusted/'meaning.ipynb', VIEWS, 'book = nl.explore(study).show("meaning")\nbook')
    page = lab('meaning.ipynb')
    page.run_all()
    go = page.page.get_by_role('button', name='Search', exact=True).filter(visible=True).first
    go.wait_for(timeout=120_000)
    go.focus()
    page.page.keyboard.press('Enter')
    page.wait_for('Typical texts')
    page.page.screenshot(path=pictures/'lab-meaning.png')
    word = page.page.locator('.nl-panel button[title^="Which ranges fire on"]:visible').first
    word.focus()
    page.page.keyboard.press('Space')
    page.wait_for('Ranges that fire on')
    page.page.screenshot(path=pictures/'lab-meaning-word.png')
    found = axe(page.page, '.nl-live')
    assert not found, found
    page.js('app.shell.collapseLeft()')
    page.page.set_viewport_size(dict(width=390, height=1000))
    page.page.wait_for_timeout(1500)
    page.page.screenshot(path=pictures/'lab-meaning-phone.png')
    assert page.page.locator('.jp-Notebook img[src="x"]').count() == 0 and not page.trouble
