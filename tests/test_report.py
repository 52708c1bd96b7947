"""The report of a study: on a desk, on a phone, in the dark and on paper; what it says, and what it does not let through."""
import re
from dataclasses import replace
from html import unescape

import numpy as np
import pandas as pd
import pytest
from conftest import CLASSES, FILLER, WORDS, make_tokenizer

BAD = '<img src=x onerror=alert(1)>'


@pytest.fixture(scope='module')
def study(tmp_path_factory, data, bert):
    "A study of the tiny BERT, its layers probed, kept in memory with its texts."
    from neuronlens.studies.spec import DataSpec, MethodSpec, ModelSpec, StudySpec
    from neuronlens.studies.study import run_study
    spec = StudySpec(title='Three kinds of words', data=DataSpec(str(data.train), str(data.test)), model=ModelSpec(str(bert)),
                     method=MethodSpec(ranking=['dprime'], fraction=[.5, .25]))
    with pytest.MonkeyPatch.context() as mp:
        mp.setenv('NEURONLENS_CACHE', str(tmp_path_factory.mktemp('cache')))
        return run_study(spec, progress=False)


@pytest.fixture(scope='module')
def figures(study, tmp_path_factory):
    "Its figures, drawn once."
    from neuronlens.studies.report import write_figures
    return write_figures(study, tmp_path_factory.mktemp('report'), progress=False)


@pytest.fixture(scope='module')
def hostile(study):
    "The same study with markup wherever data can bring it: title, class names, texts, model."
    names = (BAD, *study.classes[1:])
    texts = [replace(t, texts=[f'{BAD} {x}' for x in t.texts], classes=names) for t in study.texts]
    def own(rec): return replace(rec, classes=names, provenance=rec.provenance | dict(model=f'<b>{BAD}</b>'))
    found = {k: replace(getattr(study, k), classes=names) for k in ('statistics', 'ranges')}
    return replace(study, train=own(study.train), test=own(study.test), texts=tuple(texts), **found, meaning=None,
                   rankings=[replace(r, classes=names) for r in study.rankings],
                   spec=replace(study.spec, title=f'</title><script>alert(1)</script>{BAD}'))


@pytest.fixture(scope='module')
def page(hostile, figures, tmp_path_factory):
    "The report of the hostile study as a file: whatever is looked at below is looked at in it."
    from neuronlens.studies.report import report_html
    path = tmp_path_factory.mktemp('page')/'report.html'
    path.write_text(report_html(hostile, figures), encoding='utf-8')
    return path


LIGHT = """s => {const look = getComputedStyle(document.querySelector(s));
    const c = t => look.getPropertyValue(t).match(/[\\d.]+/g).slice(0, 3).map(v => v/255)
    .map(v => v <= .04045 ? v/12.92 : ((v+.055)/1.055)**2.4); const y = t => {const [r, g, b] = c(t); return .2126*r+.7152*g+.0722*b};
    return [y('color'), y('background-color')]}"""


def contrast(page, selector):
    "Contrast of text and ground, 1 to 21, and how light the ground is."
    ink, ground = page.evaluate(LIGHT, selector)
    return (max(ink, ground)+.05)/(min(ink, ground)+.05), ground


@pytest.mark.parametrize('name, how', dict(
    desk=dict(viewport=dict(width=1200, height=900)), dark=dict(viewport=dict(width=1200, height=900), color_scheme='dark'),
    phone=dict(viewport=dict(width=390, height=844), is_mobile=True, has_touch=True, device_scale_factor=2)).items())
def test_the_page_is_legible(name, how, page, offline, pictures, figures):
    "Nothing is asked for, nothing complains; only boxes scroll sideways; every figure is there and explained; links lead somewhere."
    shown, trouble = offline(page, **how)
    shown.screenshot(path=pictures/f'report-{name}.png', full_page=True, scale='css') # A long page on a fine screen is too large to take
    assert not trouble
    assert shown.evaluate('document.documentElement.scrollWidth <= document.documentElement.clientWidth')
    images = shown.evaluate('[...document.images].map(i => [i.naturalWidth, i.clientWidth, i.width, i.alt, i.getAttribute("width")])')
    assert len(images) == len(figures) and all(i[0] > 300 and i[3].strip() for i in images)
    if name == 'phone': assert all(i[1] == int(i[4]) for i in images) # Letters keep their size, the box scrolls
    links = shown.evaluate('[...document.querySelectorAll("a")].map(a => !!document.querySelector(a.getAttribute("href")))')
    assert links == [True]*9
    assert shown.evaluate('parseFloat(getComputedStyle(document.body).fontSize)') >= 16
    body, ground = contrast(shown, 'body')
    assert body > 7 and (ground < .05 if name == 'dark' else ground > .9)
    assert contrast(shown, '.found')[0] > 7 and contrast(shown, 'tr.range td')[0] > 7
    boxes = shown.evaluate('[...document.querySelectorAll(".wide")].map(b => [b.tabIndex, b.getAttribute("aria-label")])')
    assert all(tab == 0 and label for tab, label in boxes)


def test_nothing_from_the_data_acts(page, offline):
    "Markup in title, model, classes and texts is shown as it is."
    asked = []
    shown, trouble = offline(page)
    shown.on('dialog', lambda d: (asked.append(d.message), d.dismiss()))
    shown.wait_for_timeout(200)
    assert not asked and not trouble
    assert shown.evaluate('document.querySelectorAll("img[src=x], b b, main h1 img").length') == 0
    assert shown.evaluate('[...document.scripts].map(s => s.type)') == ['application/json', ''] # The explorer's data, and what shows it
    assert shown.title().startswith('</title><script>') and shown.inner_text('h3[id] >> nth=0') == BAD
    assert BAD in shown.inner_text('td.long >> nth=0')


def test_the_explorer_lives_in_it(study, figures, tmp_path, offline):
    "Under the policy of the page, opened as a file; it stands for the same texts and edits as the tables."
    from neuronlens.studies.report import report_html
    (tmp_path/'report.html').write_text(report_html(study, figures), encoding='utf-8')
    shown, trouble = offline(tmp_path/'report.html', viewport=dict(width=1300, height=900))
    assert shown.locator('#explore ~ .nlx[data-on]').count() == 1 and not trouble
    shown.get_by_label('Concept', exact=True).select_option(CLASSES[2])
    shown.get_by_label('Share of the neurons that is edited').fill('4')
    own = study.headline().only(concept=CLASSES[2], condition='range').frame.iloc[0]
    assert f'{own.target_accuracy:.3f}' in shown.inner_text('.nlx-measures tr.nlx-own') and not trouble
    wide = shown.evaluate('[...document.querySelectorAll(".wide:has(> table)")].filter(b => b.offsetParent)'
                          '.map(b => [b.scrollWidth > b.clientWidth, b.getAttribute("aria-label")])')
    assert not [label for over, label in wide[:2] if over] # The two main tables need no scroll bar


def test_a_bullet_says_one_thing(study, tmp_path):
    "Few numbers a line; the verdict on the control first; where texts were cut it is said in a box, at the headline and at the texts."
    from neuronlens.studies.findings import headline, noticed
    from neuronlens.studies.report import report_html
    lines = noticed(study)
    assert len(lines) == 7 and all(len(re.findall(r'\d+\.?\d*', said)) <= 3 for _, said in lines)
    html = words(report_html(study, []))
    assert all(said in html for _, said in lines) and 'Texts were cut' not in html
    def cut(rec, n): return replace(rec, provenance=rec.provenance | dict(truncated=n))
    n = len(study.train)+len(study.test)
    some = replace(study, train=cut(study.train, n-5), test=cut(study.test, 5), notes=study.notes | dict(truncated_texts=n, max_length=8))
    said = words(report_html(some, []))
    assert f'Texts were cut. All {n} texts are longer than the 8 tokens' in said and 'A larger max_length under [model]' in said
    assert ', 5 of them cut to their first 8 tokens' in headline(some)[1] and 'The model reads how they begin.' in said


def test_the_page_prints(page, offline, pictures):
    "On A4 every table fits, what was folded is there or said, figures stay whole, and dark screens print on white."
    shown, _ = offline(page, viewport=dict(width=687, height=1000), color_scheme='dark') # 210 mm less two margins of 14
    shown.emulate_media(media='print')
    wide = shown.evaluate('[...document.querySelectorAll(".wide")].filter(b => b.offsetParent && b.scrollWidth > b.clientWidth+1)'
                          '.map(b => b.getAttribute("aria-label"))')
    assert wide == []
    assert contrast(shown, 'body')[1] > .9
    seen = shown.evaluate('[...document.querySelectorAll("details")].map(d => d.querySelector("pre, table").checkVisibility())')
    assert seen == [False, True] and 'rows are in effects.csv' in shown.inner_text('.print')
    assert shown.evaluate('getComputedStyle(document.querySelector("figure")).breakInside') == 'avoid'
    pdf = shown.pdf(path=pictures/'report.pdf', format='A4', print_background=True)
    assert pdf[:5] == b'%PDF-' and 4 <= len(re.findall(rb'/Type\s*/Page\b', pdf)) <= 30


# --- what it says

def words(html): return ' '.join(unescape(re.sub(r'<[^>]+>', ' ', html)).split())


def planted(study, target, disturbed, control=(-.4, .4), width=.01):
    "The study as if range, full and random had these effects on every concept; the base is right nine times of ten."
    from neuronlens.edits.effects import Effects
    from neuronlens.edits.evidence import Evidence
    kinds = ('base', 'range', 'full', 'random')
    df, sure = study.effects.frame.copy(), study.intervals.frame.copy()
    for m, values in (('target_accuracy', (.9, *target)), ('disturbance', (0., *disturbed))):
        df[m] = df.condition.map(dict(zip(kinds, values, strict=True)))
        at = sure.measure == m
        sure.loc[at, 'value'] = sure[at].condition.map(dict(zip(kinds, values, strict=True)))
        sure.loc[at, 'low'], sure.loc[at, 'high'] = sure[at].value-width, sure[at].value+width
    c = {m: dict(difference=d, low=d-.05, high=d+.05, p=.5) for m, d in zip(('target_accuracy', 'disturbance'), control, strict=True)}
    return replace(study, effects=Effects(df), intervals=Evidence(sure, 100, 0, .95), notes=study.notes | dict(control=c))


@pytest.mark.parametrize('target, disturbed, control, said', [
    ((.02, .01, .8), (.02, .3, .01), (-.7, .01), 'suppresses their concept and disturbs the other concepts less than editing whole neurons,'
     ' at about the same suppression. As many neurons drawn at random suppress less.'),
    ((.3, .01, .3), (.02, .3, .02), (0., 0.), 'for the most part and disturbs the other concepts less than editing whole neurons, which'
     ' suppresses more. As many neurons drawn at random do as well, so this is no evidence for the ranking.'),
    ((.6, .9, .6), (.3, .3, .4), (0., -.1), 'in part and disturbs the other concepts about as much as editing whole neurons, which'
     ' suppresses less. As many neurons drawn at random suppress as much and disturb more.'),
    ((.895, .5, .7), (.4, .1, .1), (.2, .3), 'Editing the ranges does not suppress their concept and disturbs the other concepts more than'
     ' editing whole neurons, which suppresses more.')])
def test_the_headline_claims_what_the_numbers_say(study, target, disturbed, control, said):
    "A planted outcome is found, and a null is called one."
    from neuronlens.studies.findings import headline
    from neuronlens.studies.report import report_html
    made = planted(study, target, disturbed, control)
    first, numbers = headline(made)
    assert said in first
    for n in (.9, *target): assert f'{n:.3f} [{n-.01:.3f}, {n+.01:.3f}]' in numbers
    assert f'{len(study.test)} test texts' in numbers
    html = report_html(made, [])
    assert first in words(html) and 'Suppressed is not erased' in words(html)


def test_wide_intervals_are_no_difference(study):
    "The same averages, less sure: neither suppression nor a gain is claimed."
    from neuronlens.studies.findings import headline
    first = headline(planted(study, (.7, .7, .8), (.2, .3, .2), (0., 0.), width=.3))[0]
    assert 'does not suppress' in first and 'about as much as' in first and 'no evidence' in first


def test_texts_stand_on_the_side_they_are_said_to(study):
    "Activations of the texts listed as in range are in it, the others are not; the shares are those of the firing."
    from neuronlens.studies.report import _near
    for c, name in enumerate(CLASSES):
        near = _near(study, c)
        j, rows = near['neuron'], pd.DataFrame(near['texts'])
        assert j == study.ranking.order[c, 0]
        held = study.ranges.contains(study.test.acts, c, [j])[:, 0]
        at = {t: i for i, t in enumerate(study.texts[1].texts)}
        for r in rows.itertuples():
            i = at[r.text]
            assert held[i] == r.where.startswith('in range') and study.test.acts[i, j] == np.float32(r.activation)
            assert ('other' in r.where) == (held[i] and study.test.labels[i] != c)
        assert dict(near['shares']) == pytest.approx({n: held[study.test.labels == d].mean() for d, n in enumerate(CLASSES)})
        assert near['shares'][0][0] == name


def test_a_study_from_its_folder_has_a_report_too(study, figures, tmp_path):
    "It has the same parts but for the texts; a study without probes has no such part, and its contents do not name it."
    from neuronlens.studies.report import report_html
    from neuronlens.studies.saved import load_study, save_study
    save_study(study, tmp_path/'out')
    said, whole = (report_html(s, []) for s in (load_study(tmp_path/'out'), study))
    assert 'href="#layers"' in whole and 'href="#layers"' in said
    assert 'href="#layers"' not in report_html(replace(study, probes=None), [])
    def texts(html): return html.partition('<h2 id="meaning">')[0] # What was found of meaning is kept, texts are not
    assert 'td class="t long"' in texts(whole) and 'td class="t long"' not in texts(said) and 'id="meaning"' in said
    assert 'selectivity' in whole and '<img' not in said


# --- size

FOURTEEN = [w for c in CLASSES for w in WORDS[c]][:14]


@pytest.fixture(scope='module')
def many(tmp_path_factory):
    "A study of fourteen classes, each one word, by a random BERT whose head is fitted by least squares."
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from neuronlens.studies.spec import DataSpec, MethodSpec, ModelSpec, StudySpec
    from neuronlens.studies.study import run_study
    folder, rng = tmp_path_factory.mktemp('many'), np.random.default_rng(0)
    def frame(n):
        rows = [(' '.join([w, *rng.choice(FILLER, 9), w]), f'a class about {w}') for _ in range(n) for w in FOURTEEN]
        return pd.DataFrame(rows, columns=['text', 'label']).drop_duplicates()
    for name, n in (('train', 8), ('test', 8)): frame(n).to_csv(folder/f'{name}.csv', index=False)
    df, tok = pd.read_csv(folder/'train.csv'), make_tokenizer(brackets=True)
    names = sorted(set(df.label))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cfg = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, max_position_embeddings=48,
                         vocab_size=len(tok), initializer_range=.2, pad_token_id=0, id2label=dict(enumerate(names)),
                         label2id={c: i for i, c in enumerate(names)})
        model = BertForSequenceClassification(cfg).eval()
    with torch.no_grad():
        x = torch.cat([model.bert(**tok(t, return_tensors='pt')).pooler_output for t in df.text])
        gold = torch.eye(14)[[names.index(c) for c in df.label]]*6
        model.classifier.weight.copy_(torch.linalg.lstsq(x, gold-gold.mean()).solution.T)
    model.save_pretrained(folder/'model')
    tok.save_pretrained(folder/'model')
    spec = StudySpec(data=DataSpec(str(folder/'train.csv'), str(folder/'test.csv')), model=ModelSpec(str(folder/'model')),
                     method=MethodSpec(ranking=['dprime'], layers=False))
    with pytest.MonkeyPatch.context() as mp:
        mp.setenv('NEURONLENS_CACHE', str(folder/'cache'))
        return run_study(spec, progress=False)


@pytest.mark.slow
def test_fourteen_classes_are_under_five_megabytes(many, tmp_path, offline, pictures):
    "All their figures are inside, and the page still fits a phone."
    from neuronlens.studies.report import write_report
    path = write_report(many, tmp_path, progress=False)
    assert len(many.classes) == 14 and 500_000 < path.stat().st_size < 5_000_000
    assert path.read_text().count('<img ') == 14+5
    shown, trouble = offline(path, viewport=dict(width=390, height=844), is_mobile=True)
    assert not trouble and shown.evaluate('document.documentElement.scrollWidth <= 390')
    shown.screenshot(path=pictures/'report-fourteen.png', full_page=True)


def test_a_page_of_too_many_figures_says_where_they_are(study, figures, tmp_path):
    "Concepts' figures give way first, with a word; the page stays under five megabytes."
    from neuronlens.studies.report import report_html
    big = []
    for name, caption, path in figures:
        (tmp_path/path.name).write_bytes(path.read_bytes()+bytes(2_000_000 if name.startswith('neurons') else 0))
        big.append((name, caption, tmp_path/path.name))
    html = report_html(study, big)
    assert len(html) < 5_000_000 and html.count('Too many figures for one page') == 2
    assert html.count('<img ') == len(figures)-2 and 'Too many' not in report_html(study, figures)


def test_of_many_concepts_the_first_are_drawn(study, tmp_path, monkeypatch):
    "Beyond so many a sentence stands in the place of the figure, and the numbers stay."
    from neuronlens import report
    monkeypatch.setattr(report, 'FIGURES', 1)
    drawn = report.write_figures(study, tmp_path, progress=False)
    assert [n for n, *_ in drawn if n.startswith('neurons')] == ['neurons-00-animal']
    html = report.report_html(study, drawn)
    assert html.count('Of 3 concepts only the first 1 have a figure') == 2 and 'Too many figures' not in html
    assert html.count('the strongest, has the range') == 3


@pytest.fixture(scope='module')
def crowd(hostile, figures, tmp_path_factory):
    "The report of the hostile study as if three concepts were many, and a table of 20 rows a long one."
    from neuronlens import report
    path, real = tmp_path_factory.mktemp('crowd')/'report.html', report._HEAD
    with pytest.MonkeyPatch.context() as mp:
        mp.setattr(report, 'FIGURES', 1)
        mp.setattr(report, '_HEAD', real.replace('rows|length > 40', 'rows|length > 10'))
        assert report._HEAD != real
        path.write_text(report.report_html(hostile, figures), encoding='utf-8')
    return path


SHOWN = '(s => [...document.querySelectorAll(s)].filter(r => !r.hidden).map(r => r.querySelector("summary, td").innerText))'


def test_of_many_concepts_tables_are_sorted_and_searched(crowd, offline):
    "By a click on a column, there and back; by a word of the row or of the concept's line, not of what is folded below it."
    shown, trouble = offline(crowd)
    table, rows = '.tall > table', '.tall > table tbody tr'
    find = shown.locator('input[type=search]')
    assert shown.evaluate(f'document.querySelectorAll("{table}").length') == 2 and find.count() == 3
    rows_of = 'i => [...document.querySelector(".tall > table").tBodies[0].rows].map(r => r.cells[i].innerText)'
    def column(i): return shown.evaluate(rows_of, i)
    was, button = column(5), shown.locator(f'{table} >> nth=0').locator('thead button')
    number = [float(x.split()[0]) for x in was]
    assert len(set(number)) > 3
    for order in (False, True):
        button.nth(5).click()
        assert [float(x.split()[0]) for x in column(5)] == sorted(number, reverse=order)
        assert shown.get_attribute('[aria-sort]', 'aria-sort') == ('descending' if order else 'ascending')
    button.nth(1).click()
    assert column(1) == sorted(column(1)) and shown.locator('[aria-sort]').count() == 1
    find.first.fill('RANGE')
    assert shown.evaluate('[...document.querySelectorAll(".tall")][0].querySelectorAll("tr.range:not([hidden])").length') == 3
    assert len(shown.evaluate(f'{SHOWN}("{rows}")')) == 3+24 # Of the other table, all
    name = CLASSES[1]
    find.last.fill(name)
    found = shown.evaluate(f'{SHOWN}(".tall > details")')
    assert len(found) == 1 and found[0].startswith(name)
    assert not trouble


def test_of_many_concepts_nothing_from_the_data_acts(crowd, offline):
    "The two scripts are the page's own, named by their hashes; markup stays text, also where a script touches it."
    import base64
    import hashlib
    from html import unescape
    asked = []
    shown, trouble = offline(crowd)
    shown.on('dialog', lambda d: (asked.append(d.message), d.dismiss()))
    shown.locator('input[type=search]').last.fill('<img')
    shown.wait_for_timeout(200)
    html = crowd.read_text()
    scripts = re.findall('<script>(.*?)</script>', html, re.S)
    assert html.count('<script') == len(scripts)+1 == 3 and not [s for s in scripts if 'innerHTML' in s]
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts]
    assert f'script-src {" ".join(hashes)}"' in unescape(html)
    assert not asked and not trouble and shown.evaluate('document.querySelectorAll("img[src=x], b b").length') == 0
    assert shown.evaluate(f'{SHOWN}(".tall > details")')[0].startswith(BAD)


def test_of_many_concepts_all_is_there_without_a_script(crowd, offline):
    shown, trouble = offline(crowd, java_script_enabled=False)
    assert not trouble and shown.locator('input').count() == 0
    shown.locator('summary >> nth=1').click()
    assert shown.locator('.tall > details[open]').count() == 1 and shown.locator('.tall tbody tr').count() >= 24


@pytest.mark.slow
def test_a_page_of_many_concepts_is_short_and_light(many, tmp_path, offline, monkeypatch):
    "Folded, of fourteen concepts it is less than half as high and the figures take what tables leave; on paper all unfolds."
    from neuronlens import report
    drawn = report.write_figures(many, tmp_path, progress=False)
    high = []
    for figures in (14, 13):
        monkeypatch.setattr(report, 'FIGURES', figures)
        (tmp_path/'report.html').write_text(report.report_html(many, drawn), encoding='utf-8')
        shown, trouble = offline(tmp_path/'report.html')
        high.append(shown.evaluate('document.documentElement.scrollHeight'))
        assert not trouble
    assert high[1] < high[0]/2
    assert shown.evaluate('[...document.querySelectorAll(".tall")].every(b => b.clientHeight < 800)')
    assert 'and 1 more' in shown.inner_text('#done + p')
    shown.emulate_media(media='print')
    assert shown.evaluate('document.documentElement.scrollHeight') > high[0]/2 and not shown.locator('input >> nth=0').is_visible()
    room = (tmp_path/'report.html').stat().st_size
    monkeypatch.setattr(report, '_SCRIPT', report._SCRIPT+'/*'+'x'*4_000_000+'*/')
    assert len(report.report_html(many, drawn)) < 5_000_000 < room+4_000_000
