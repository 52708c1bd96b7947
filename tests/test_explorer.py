"""The explorer without a kernel: its numbers are the library's, it answers to hand and keyboard, and text stays text."""
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from conftest import CLASSES

BAD = '</script><img src=x onerror=alert(1)>'
PLAIN = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">' \
        '<title>x</title><style>:root{{color-scheme:light dark}}body{{margin:8px}}</style><body>{}</body></html>'


@pytest.fixture(scope='module')
def study(tmp_path_factory, data, bert, one_thread):
    "A study of the tiny BERT at its last block, kept in memory with its model."
    from neuronlens.studies.spec import DataSpec, MethodSpec, ModelSpec, StudySpec
    from neuronlens.studies.study import run_study
    spec = StudySpec(data=DataSpec(str(data.train), str(data.test)), model=ModelSpec(str(bert)),
                     method=MethodSpec(ranking=['dprime'], fraction=[.5, .25], layers=False))
    with pytest.MonkeyPatch.context() as mp:
        mp.setenv('NEURONLENS_CACHE', str(tmp_path_factory.mktemp('cache')))
        return run_study(spec, progress=False)


@pytest.fixture(scope='module')
def packed(study):
    "What its explorer has."
    from neuronlens.views.explorer import explorer_data
    return explorer_data(study)


def written(data, folder):
    "A page with the explorer and nothing else."
    from neuronlens.views.explorer import explorer_cell
    (folder/'explorer.html').write_text(PLAIN.format(explorer_cell(data)), encoding='utf-8')
    return folder/'explorer.html'


@pytest.fixture(scope='module')
def page(packed, tmp_path_factory):
    "The explorer as a file."
    return written(packed, tmp_path_factory.mktemp('page'))


def choose(shown, **at):
    "Set controls, by the place of the choice, as a hand does."
    for name, i in at.items():
        shown.evaluate("""([name, i]) => {const e = document.querySelector(`.nlx-${name} :is(select, input)`);
            e.value = i; e.dispatchEvent(new Event('input', {bubbles: true}))}""", [name, i])


def cells(shown, table):
    "The texts of a table, row by row."
    return shown.evaluate(f"[...document.querySelectorAll('.{table} tbody tr')].map(r => [...r.cells].map(c => c.innerText.trim()))")


def chosen(packed, kind, number):
    "The kind as the library is asked for it, such as 'gaussian(2.5)', from what the page says."
    k = packed['kinds'][kind]
    return f"{k['name']}({k['labels'][number]})" if k['unit'] else k['name']


CASES = [(0, 0, 0, 5), (0, 3, 0, 0), (1, 1, 0, 7), (2, 11, 1, 4), (1, 5, 2, 3), (2, 0, 3, 1), (0, 2, 4, 0)]


@pytest.fixture(scope='module')
def fitted(study, packed):
    "Ranges of every kind that the cases ask for, by the library alone."
    from neuronlens.arrays.ranges import fit_ranges
    own = {}
    for _, _, kind, number in CASES:
        name = chosen(packed, kind, number)
        exact = f'posterior({1/3})' if name == 'posterior(0.333)' else name
        own[name] = fit_ranges(study.train.acts, study.train.labels, exact, classes=study.classes)
    return own


def test_what_falls_into_a_range_is_what_the_library_counts(study, packed, page, fitted, offline):
    "Ends, counts of every class and lists of texts, for several concepts, neurons, kinds and numbers."
    from neuronlens.arrays.firing import firing_matrix
    from neuronlens.arrays.profile import texts_around
    from neuronlens.views.cards import one_line, spans
    shown, trouble = offline(page)
    acts, labels, n = study.test.acts, study.test.labels, np.bincount(study.test.labels)
    seen = set()
    for concept, rank, kind, number in CASES:
        choose(shown, concept=concept, neuron=rank, kind=kind, number=number)
        j, r = int(study.ranking.order[concept, rank]), fitted[chosen(packed, kind, number)]
        rate = firing_matrix(acts, labels, r, [[j]]*3, study.classes).rate[:, concept]
        held = r.contains(acts, concept, [j])[:, 0]
        wanted = [[name, '', '', f'{100*rate[d]:.0f} %', f'{(held & (labels == d)).sum()} of {n[d]}'] for d, name in enumerate(CLASSES)]
        assert cells(shown, 'nlx-firing') == wanted, (concept, rank, kind, number)
        said = shown.inner_text('.nlx-said')
        assert f'neuron {j} ' in said and f': {spans(r.lo[concept, j], r.hi[concept, j])}. Inside' in said
        middle = float(study.statistics.mean[concept, j])
        near = texts_around(acts[:, j], labels, concept, r.lo[concept, j], r.hi[concept, j], middle, 4)
        lists = shown.evaluate("[...document.querySelectorAll('.nlx-texts > div')].map(d => [...d.querySelectorAll('li')]"
                               ".map(i => i.textContent))")
        text = study.texts[1].texts
        assert lists == [[f'{acts[i, j]:.2f} {CLASSES[labels[i]]} {one_line(text[i], 140)}' for i in rows] for rows in near.values()]
        seen.add(tuple(w[4] for w in wanted))
    assert len(seen) >= 5 and not trouble # The cases differ


def test_effects_are_those_of_the_edit(study, packed, page, offline):
    "Of several numbers, shares and concepts, with the range, at random and of whole neurons: planned and measured anew."
    from neuronlens.arrays.ranges import fit_ranges
    from neuronlens.edits.ablation import ablate
    from neuronlens.edits.effects import measure_effects
    from neuronlens.edits.planning import plan
    shown, trouble = offline(page)
    shares = packed['effects']['fractions']
    assert [s['share'] for s in shares] == [.1, .2, .25, .5, 1] and packed['effects']['at'] == 3
    for concept, number, share in ((0, 1, 3), (1, 5, 1), (2, 3, 4), (1, 15, 0)):
        choose(shown, concept=concept, kind=0, number=number, fraction=share)
        r = fit_ranges(study.train.acts, study.train.labels, chosen(packed, 0, number), classes=study.classes)
        ivs = plan(study.statistics, study.ranking, r, study.train.site, fraction=[shares[share]['share']], concept=[concept])
        rows = measure_effects(ablate(study.clf, study.texts[1], ivs, progress=False)).frame.set_index('condition')
        for (said, *numbers), kind in zip(cells(shown, 'nlx-measures'), ('base', 'range', 'random', 'full'), strict=True):
            assert said == dict(base='no edit', range='ranges', random='random neurons', full='whole neurons')[kind]
            own = rows.loc[kind, ['target_accuracy', 'target_confidence', 'auxiliary_accuracy', 'disturbance', 'broken']]
            np.testing.assert_allclose([float(x) for x in numbers], own.astype(float), atol=6e-4) # Three digits, of other batches
        assert f"the {shares[share]['k']} neurons most salient for {CLASSES[concept]}" in shown.inner_text('.nlx-effect')
    assert shown.locator('.nlx-charts svg').count() == 2 and not trouble
    choose(shown, number=0)
    assert 'Shown is tau 0.5, the nearest that was tried' in shown.inner_text('.nlx-effect')
    study_says = study.headline().frame.set_index(['concept', 'condition'])
    choose(shown, concept=2, number=packed['kinds'][0]['at'], fraction=3)
    numbers = cells(shown, 'nlx-measures')[1][1:]
    assert numbers[0] == f"{study_says.loc[(CLASSES[2], 'range'), 'target_accuracy']:.3f}"
    assert numbers[3] == f"{study_says.loc[(CLASSES[2], 'range'), 'disturbance']:.3f}"


def test_controls_have_names_and_keys(page, packed, offline):
    "Every control is found by its label and moved by keys; a new concept starts at its strongest neuron; what is chosen is said."
    shown, trouble = offline(page)
    for label in ('Concept', 'Neuron', 'Kind of range', 'tau', 'Share of the neurons that is edited'):
        assert shown.get_by_label(label, exact=True).count() == 1
    slider = shown.get_by_label('tau', exact=True)
    assert slider.get_attribute('aria-valuetext') == 'tau 2.5'
    before = cells(shown, 'nlx-firing')
    slider.focus()
    for _ in range(4): shown.keyboard.press('ArrowLeft')
    assert slider.get_attribute('aria-valuetext') == 'tau 1.5' and shown.inner_text('.nlx-number output') == '1.5'
    assert cells(shown, 'nlx-firing') != before
    share = shown.get_by_label('Share of the neurons that is edited', exact=True)
    share.focus()
    for _ in range(2): shown.keyboard.press('ArrowLeft') # It stays where it is, and has the keys, while what is below it changes
    assert shown.inner_text('.nlx-fraction output') == '20 %'
    shown.get_by_label('Neuron', exact=True).select_option(index=4)
    shown.get_by_label('Concept', exact=True).select_option(CLASSES[1])
    neuron = shown.get_by_label('Neuron', exact=True)
    assert neuron.evaluate('s => s.selectedIndex') == 0 and 'the strongest' in neuron.inner_text()
    assert slider.get_attribute('aria-valuetext') == 'tau 1.5' # Stays
    shown.get_by_label('Kind of range', exact=True).select_option(label='full: every value')
    assert not shown.locator('.nlx-number').is_visible() and '(−∞, ∞)' in shown.inner_text('.nlx-said')
    assert [r[3] for r in cells(shown, 'nlx-firing')] == ['100 %']*3 and not trouble


@pytest.mark.parametrize('name, how', dict(desk=dict(viewport=dict(width=1400, height=1000)),
    dark=dict(viewport=dict(width=1400, height=1000), color_scheme='dark'),
    phone=dict(viewport=dict(width=390, height=844), is_mobile=True, has_touch=True)).items())
def test_it_fits(name, how, page, offline, pictures):
    "On a desk, in the dark, on a phone nothing is wider than the window; text stands out from its ground."
    shown, trouble = offline(page, **how)
    shown.screenshot(path=pictures/f'explorer-{name}.png', full_page=True)
    assert shown.evaluate('document.documentElement.scrollWidth <= document.documentElement.clientWidth') and not trouble
    assert shown.evaluate("[...document.querySelectorAll('.nlx :is(select, input)')].every(e => e.offsetHeight >= 24 || !e.offsetParent)")


def test_paper_has_numbers_and_no_controls(page, offline):
    shown, _ = offline(page)
    shown.emulate_media(media='print')
    assert not shown.locator('.nlx select').first.is_visible() and shown.locator('.nlx-firing').is_visible()


def test_without_a_script_a_sentence_stands_there(page, offline):
    shown, trouble = offline(page, java_script_enabled=False)
    assert 'takes JavaScript' in shown.inner_text('.nlx') and not trouble


def test_text_of_the_data_stays_text(packed, tmp_path, offline):
    "Names and texts that look like markup are shown as they are."
    hostile = packed | dict(classes=[BAD, *packed['classes'][1:]], texts=[f'{BAD} {t}' for t in packed['texts']], notes=[BAD])
    shown, trouble = offline(written(hostile, tmp_path))
    assert shown.evaluate("document.querySelectorAll('.nlx img').length") == 0 and not trouble
    assert shown.inner_text('.nlx-said b >> nth=0') == BAD
    assert BAD in shown.inner_text('.nlx-texts') and BAD in shown.inner_text('.nlx > p:last-child')


def test_a_study_without_its_model_shows_what_its_table_has(study, packed, tmp_path, offline):
    "Opened from a folder, or at a site where blocks would have to run: the study's own shares at its own number."
    from neuronlens.studies.saved import load_study, save_study
    from neuronlens.views.explorer import explorer_data
    save_study(study, tmp_path/'out')
    made = explorer_data(load_study(tmp_path/'out'))
    assert made['texts'] is None and [f['share'] for f in made['effects']['fractions']] == [.25, .5] == study.spec.method.fraction[::-1]
    assert made['kinds'] == packed['kinds'] and made['values'] == packed['values']
    at = made['kinds'][0]['at']
    for share in ('0', '1'):
        rows = made['effects']['rows'][f'0,{share}']
        assert [i for i, r in enumerate(rows) if r] == [at]
        whole = packed['effects']['rows'][f'0,{2 if share == "0" else 3}'][at]
        np.testing.assert_allclose(rows[at], whole, atol=.0011)
    shown, trouble = offline(written(made, tmp_path))
    choose(shown, number=0)
    assert 'Shown is tau 2.5, the nearest that was tried' in shown.inner_text('.nlx-effect')
    choose(shown, kind=1)
    assert 'were not tried at this share for this page' in shown.inner_text('.nlx-effect') and len(cells(shown, 'nlx-measures')) == 2
    choose(shown, kind=0, number=at)
    assert len(cells(shown, 'nlx-measures')) == 4 and shown.locator('.nlx-texts').count() == 0 and not trouble


def test_below_the_last_block_the_table_is_what_there_is(study, tmp_path, monkeypatch):
    "Where blocks would have to run for every edit nothing is tried, however many are asked for."
    from neuronlens.studies.study import run_study
    from neuronlens.views.explorer import explorer_data
    monkeypatch.setenv('NEURONLENS_CACHE', str(tmp_path))
    below = run_study(replace(study.spec, method=replace(study.spec.method, site='residual.0')), progress=False)
    made = explorer_data(below, room=10**6)['effects']
    assert list(made['rows']) == ['0,0', '0,1'] and made['at'] == 1 and made['fractions'][1]['share'] == .5
    rows = below.headline().frame.set_index(['condition', 'concept'])
    now = next(r for r in made['rows']['0,1'] if r)[0]
    assert [r[0] for r in now] == [round(rows.target_accuracy['range', c], 3) for c in CLASSES]


def test_of_much_a_part_is_shipped_and_said(study, monkeypatch, tmp_path, offline):
    "Fewer texts, concepts and neurons where there is no room; what is counted is counted on those."
    from neuronlens.edits import states
    from neuronlens.views import explorer
    monkeypatch.setattr(states, 'TEXTS', 20)
    monkeypatch.setattr(states._places, '__defaults__', (400,))
    made = explorer.explorer_data(study, room=12)
    said = ' '.join(made['notes'])
    assert 'Of 3 concepts the first 1 can be chosen, each with its 3 strongest neurons' in said and '20 of the 36 test texts' in said
    rows = made['effects']['rows']
    assert {k: sum(map(bool, r)) for k, r in rows.items()} == {'0,0': 3, '0,1': 3}
    assert 'Measured on 20 test texts' in made['effects']['note'] and len(json.dumps(made)) < 30_000
    shown, trouble = offline(written(made, tmp_path))
    assert sum(int(r[4].split()[2]) for r in cells(shown, 'nlx-firing')) == 20 and not trouble


def test_names_that_are_not_those_of_the_table_leave_the_effects_out(study):
    from neuronlens.views.explorer import explorer_data
    names = ('other', *study.classes[1:])
    parts = {k: replace(getattr(study, k), classes=names) for k in ('train', 'test', 'statistics', 'ranges')}
    assert explorer_data(replace(study, **parts, rankings=[replace(r, classes=names) for r in study.rankings]))['effects'] is None


def test_the_package_brings_script_and_style():
    "They lie beside the module, are packaged, run nothing that a policy would have to allow, and ask for nothing."
    from pathlib import Path

    from neuronlens.views.explorer import asset
    assert not re.search(r'innerHTML|insertAdjacentHTML|\beval\b|Function\(|fetch\(|XMLHttp|import\(', asset('js'))
    assert not re.search(r'url\(|@import', asset('css'))
    assert 'views/*.js' in (Path(__file__).parents[1]/'setup.py').read_text()
