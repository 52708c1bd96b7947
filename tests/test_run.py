"""`neuronlens run` from a study file to a finished folder: what it writes, and that the numbers are the model's own."""
import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import CLASSES, study_text, tiny_config
from safetensors.numpy import load_file

from neuronlens import rounding

pytestmark = pytest.mark.usefixtures('one_thread', 'own_cache')

HEADER = ('concept,condition,site,ranking,fraction,range,vote,scope,fitted_at,positions,edit,covers,preset,seed,n_target,n_auxiliary,'
          'target_accuracy,target_confidence,auxiliary_accuracy,auxiliary_confidence,disturbance,broken,fires_on_target,fires_on_auxiliary')
MEASURES = HEADER.split(',')[16:]
CONDITIONS = ['base', 'full', 'range', 'random']
FIGURES = {'effects', 'tradeoff', 'overlap', 'ranges', 'firing', 'layers',
           'neurons-00-animal', 'neurons-01-food', 'neurons-02-tool'}


def tree(folder):
    "Every file below a folder, hidden ones too."
    return {p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file()}


def effects(out):
    return pd.read_csv(out/'effects.csv', keep_default_na=False, na_values={c: [''] for c in MEASURES})


def kinds(df):
    "What the columns range and edit hold for each condition."
    return {k: set(zip(g.range, g.edit, strict=True)) for k, g in df.groupby('condition')}


def finish(result):
    "A run that must have worked; its standard output."
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert result.stderr == ''
    return result.stdout


@pytest.fixture(scope='module')
def finished(tmp_path_factory, cli, data, bert, one_thread):
    "(folder, standard output) of one study with everything in it, figures included."
    home = tmp_path_factory.mktemp('finished')
    spec = study_text(title='Three kinds of words', data=dict(train=str(data.train), test=str(data.test)),
                      model=dict(classifier=str(bert)),
                      method=dict(ranking=['dprime', 'max_activation'], fraction=[.75, .5], layers=True))
    (home/'given.toml').write_text(spec)
    with pytest.MonkeyPatch.context() as mp:
        mp.setenv('NEURONLENS_CACHE', str(home/'cache'))
        said = finish(cli('run', home/'given.toml', '--out', home/'out'))
    return home/'out', said


# --- what a run writes

def test_writes_what_it_promises_and_nothing_else(finished):
    out, _ = finished
    recordings = {f'recording/{part}.{kind}' for part in ('train', 'test') for kind in ('safetensors', 'json')}
    recordings |= {'recording/outcome.safetensors', 'recording/meaning.safetensors', 'meaning.csv'}
    assert tree(out) == {'effects.csv', 'intervals.csv', 'layers.csv', 'provenance.json', 'report.html', 'study.toml', *recordings,
                         *(f'figures/{f}.png' for f in FIGURES)}


def test_figures_are_pictures_with_something_on_them(finished):
    from matplotlib.image import imread
    for f in FIGURES:
        pixels = imread(BytesIO((finished[0]/f'figures/{f}.png').read_bytes()), format='png')
        assert min(pixels.shape[:2]) > 100 and pixels[..., :3].std() > .01, f


def test_effects_have_the_promised_columns_and_one_row_each(finished):
    out, _ = finished
    assert (out/'effects.csv').read_text().splitlines()[0] == HEADER
    df = effects(out)
    keys = df[['concept', 'condition', 'ranking', 'fraction']]
    assert set(keys.itertuples(index=False, name=None)) == {
        (c, k, r, f) for c in CLASSES for k in CONDITIONS for r in ('dprime', 'max_activation') for f in (.75, .5)}
    assert len(df) == 3*4*2*2
    assert set(df.site) == {'residual.1'} and set(df.n_target) == {12} and set(df.n_auxiliary) == {24}
    assert kinds(df) == {'base': {('none', 'none')}, 'full': {('full', 'mean')},
                         'range': {('gaussian(2.5)', 'mean')}, 'random': {('gaussian(2.5)', 'mean')}}
    values = df[MEASURES].to_numpy()
    assert np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1


def test_conditions_are_what_they_are_called(finished):
    df = effects(finished[0]).set_index('condition')
    assert (df.loc['base', ['disturbance', 'broken', 'fires_on_target', 'fires_on_auxiliary']] == 0).all(axis=None)
    assert (df.loc['full', ['fires_on_target', 'fires_on_auxiliary']] == 1).all(axis=None)
    inside = df.loc['range', ['fires_on_target', 'fires_on_auxiliary']].mean()
    assert .9 < inside.fires_on_target < 1 and inside.fires_on_auxiliary < inside.fires_on_target
    assert df.loc['full'].target_accuracy.mean() < df.loc['base'].target_accuracy.mean()
    assert df.loc['random'].drop_duplicates(MEASURES).shape[0] == 6 # The same control for both rankings


def test_recording_holds_what_plain_transformers_gives(finished, bert, test_frame, frame):
    for part, df in (('train', frame), ('test', test_frame)):
        rec = load_file(finished[0]/f'recording/{part}.safetensors')
        assert {'acts', 'labels', 'predicted', 'confidence'} <= set(rec)
        probs, hidden = answers(bert, df.text, hidden=True)
        gold = np.array([CLASSES.index(c) for c in df.label])
        assert rec['acts'].shape == (len(df), 32)
        assert rec['acts'].dtype == np.float32 and rec['labels'].dtype == np.int64
        rounding.agree(rec['acts'], [h[-1][0] for h in hidden], steps())
        np.testing.assert_array_equal(rec['labels'], gold)
        np.testing.assert_array_equal(rec['predicted'], probs.argmax(1))
        rounding.agree(rec['confidence'], probs[np.arange(len(gold)), gold], steps(), size=rounding.score_size(probs))


def test_provenance_says_where_a_recording_is_from(finished, bert, frame, test_frame):
    weights = bert/'model.safetensors'
    model_hash = hashlib.sha256(weights.name.encode()+b'\0'+weights.read_bytes()).hexdigest()
    for part, df in (('train', frame), ('test', test_frame)):
        about = json.loads((finished[0]/f'recording/{part}.json').read_text())
        lines = ''.join(json.dumps([t, c])+'\n' for t, c in zip(df.text, df.label, strict=True))
        assert about['model'] == str(bert) and about['model_sha256'] == model_hash
        assert about['texts'].endswith(f'{part}.csv') and about['n_texts'] == len(df)
        assert about['texts_sha256'] == hashlib.sha256(lines.encode()).hexdigest()
        assert (about['site'], about['readout'], about['classes']) == ('residual.1', 'first', list(CLASSES))
        assert {'python', 'neuronlens', 'torch', 'transformers', 'numpy'} <= set(about['versions'])
        assert about['seed'] == 0
        stored = (finished[0]/f'recording/{part}.safetensors').read_bytes()
        assert about['sha256'] == hashlib.sha256(stored).hexdigest()
    whole = json.loads((finished[0]/'provenance.json').read_text())
    assert whole['seed'] == 0 and whole['train']['model_sha256'] == model_hash and 'torch' in whole['versions']


def test_layers_are_probed_with_their_control(finished):
    df = pd.read_csv(finished[0]/'layers.csv')
    assert list(df.site) == ['residual.0', 'residual.1'] and {'accuracy', 'control', 'majority'} <= set(df)
    assert np.allclose(df.majority, 1/3) and (df.accuracy > df.majority).all() and (df.accuracy > df.control).all()


class Page(HTMLParser):
    "Tags and attributes of a page, and its text."
    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.rows = [], [], 0
        self.feed(html)
    def handle_starttag(self, tag, attrs): self.tags.append((tag, dict(attrs)))
    def handle_data(self, data): self.text.append(data)


def test_report_is_one_self_contained_page(finished):
    html = (finished[0]/'report.html').read_text(encoding='utf-8')
    page = Page(html)
    tags = [t for t, _ in page.tags]
    assert not {'link', 'iframe', 'object', 'embed', 'form', 'base'} & set(tags)
    assert [a for t, a in page.tags if t == 'script'] == [dict(type='application/json'), {}] # The explorer's data, and what shows it
    assert not re.search(r'https?://(?!www\.w3\.org/2000/svg)', html) and '@import' not in html and 'url(' not in html
    for tag, attrs in page.tags:
        assert not [a for a in attrs if a.startswith('on')], (tag, attrs)
        assert not {'srcset', 'action', 'background'} & set(attrs) and attrs.get('href', '#').startswith('#'), (tag, attrs)
    pictures = [a['src'].removeprefix('data:image/png;base64,') for t, a in page.tags if t == 'img']
    files = {(finished[0]/f'figures/{f}.png').read_bytes() for f in FIGURES}
    assert len(pictures) == len(FIGURES) and {base64.b64decode(p, validate=True) for p in pictures} == files


def test_report_shows_the_table_and_the_study(finished, bert):
    out, _ = finished
    said = ' '.join(Page((out/'report.html').read_text(encoding='utf-8')).text)
    assert 'Three kinds of words' in said and all(c in said for c in CLASSES)
    for n in effects(out)[MEASURES].to_numpy().ravel(): assert f'{n:.3f}' in said or f'{n:g}' in said
    assert (out/'study.toml').read_text().split('[prompt]')[1].strip() in said and f'classifier = "{bert}"' in said
    assert json.loads((out/'recording/train.json').read_text())['model_sha256'] in said


def test_terminal_shows_the_macro_table_and_where_to_look(finished):
    out, said = finished
    df = effects(out)
    first = df[(df.ranking == 'dprime') & (df.fraction == .75)].groupby('condition')[MEASURES[:6]].mean()
    for condition in CONDITIONS:
        line = next(x for x in said.splitlines() if condition in x and '│' in x)
        assert re.findall(r'\d\.\d{3}', line) == [f'{v:.3f}' for v in first.loc[condition]]
    after = said.partition('Where to look next')[2].splitlines()
    assert len([x for x in after if x.startswith('  - ')]) == 4
    assert str(out/'report.html') in said


# --- the same study again

def test_running_again_into_its_folder_gives_the_same_bytes(cli, make_study, tmp_path, no_figures):
    study, out = make_study(), tmp_path/'out'
    finish(cli('run', study, '--out', out))
    bytes_before, files = (out/'effects.csv').read_bytes(), tree(out)
    (out/'effects.csv').write_text('stale')
    finish(cli('run', study, '--out', out)) # From the stored recordings
    assert (out/'effects.csv').read_bytes() == bytes_before and tree(out) == files


def test_a_folder_that_holds_this_very_study_is_only_read(cli, make_study, tmp_path, bert, no_figures, monkeypatch):
    "Anything that decides the results and has changed since, and anything that is missing of them, has it made anew, to the same bytes."
    monkeypatch.setattr('neuronlens.studies.report._figures', lambda study: [])
    own = shutil.copytree(bert, tmp_path/'bert')
    study, out, held = make_study(model=dict(classifier=str(own))), tmp_path/'out', 'holds this very study'
    first = cli('run', study, '--out', out)
    before, table = {n: (out/n).read_bytes() for n in tree(out)}, finish(first).partition('Where to look')[0]
    with monkeypatch.context() as mp:
        mp.setattr('neuronlens.studies.study.run_study', lambda *a, **k: pytest.fail('made anew'))
        r = cli('run', study, '--out', out)
        assert held in (said := finish(r)).partition('\n')[0] and said.partition('\n')[2].partition('Where to look')[0] == table
    def changed(): os.utime(own/'config.json', (1, 1)) # As make sees it
    def damaged(): (out/'effects.csv').write_text('stale')
    def undrawn(): (out/'report.html').unlink()
    def older(): os.utime(out/'report.html', (1, 1)) # Of the run before, when this one was killed
    for spoil in (changed, damaged, undrawn, older):
        spoil()
        assert held not in finish(cli('run', study, '--out', out)), spoil
        made_of = {'provenance.json'} if spoil is changed else set()
        assert {n for n in tree(out) if (out/n).read_bytes() != before[n]} <= made_of
        before = {n: (out/n).read_bytes() for n in tree(out)}
    assert held not in finish(cli('run', study, '--out', out, '--again'))
    monkeypatch.setattr('neuronlens.studies.saved.versions', lambda: dict(neuronlens='another'))
    assert held not in finish(cli('run', study, '--out', out))


def test_a_run_does_not_write_over_what_is_not_its_own(cli, make_study, tmp_path, bert, frame, test_frame):
    "Data that have the names of results, and a study file that someone wrote, stay as they are."
    home = tmp_path/'home'
    home.mkdir()
    for name, data in (('layers.csv', frame), ('test.csv', test_frame), ('intervals.csv', test_frame)): data.to_csv(home/name, index=False)
    for train, test, says in (('layers.csv', 'test.csv', "holds the data"), ('layers.csv', 'intervals.csv', 'holds the data')):
        files = dict(train=str(home/train), test=str(home/test))
        study = shutil.copy(make_study(data=files, model=dict(classifier=str(bert))), home/'given.toml')
        before = {p.name: p.read_bytes() for p in home.iterdir()}
        r = cli('run', study, '--out', home)
        assert r.exit_code == 2 and says in ' '.join(r.stderr.split())
        assert {p.name: p.read_bytes() for p in home.iterdir()} == before
    for p in home.glob('*.csv'): p.unlink()
    study = shutil.copy(make_study(), home/'study.toml')
    (home/'study.toml').write_text('# mine\n'+(home/'study.toml').read_text())
    r = cli('run', study, '--out', home)
    assert r.exit_code == 2 and 'a study.toml of your own' in ' '.join(r.stderr.split())


def test_written_study_reproduces_the_effects(finished, cli, tmp_path, no_figures):
    out, again = finished[0], tmp_path/'again'
    finish(cli('run', out/'study.toml', '--out', again)) # An empty cache: everything is run anew
    assert (again/'effects.csv').read_bytes() == (out/'effects.csv').read_bytes()
    assert (again/'study.toml').read_bytes() == (out/'study.toml').read_bytes()


@pytest.mark.slow
def test_a_real_process_gives_the_same_bytes(finished, tmp_path, own_cache):
    call = [Path(sys.executable).with_name('neuronlens'), 'run', finished[0].parent/'given.toml', '--out', 'results']
    env = os.environ | {'OMP_NUM_THREADS': '1'}
    p = subprocess.run(call, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert p.returncode == 0 and p.stderr == ''
    assert (tmp_path/'results/effects.csv').read_bytes() == (finished[0]/'effects.csv').read_bytes()
    assert tree(tmp_path/'results') == tree(finished[0])
    for f in FIGURES: # Figures too: nothing depends on the process
        assert (tmp_path/f'results/figures/{f}.png').read_bytes() == (finished[0]/f'figures/{f}.png').read_bytes(), f


def test_load_study_gives_back_what_was_saved(finished):
    from neuronlens.studies.saved import load_study
    study = load_study(finished[0])
    pd.testing.assert_frame_equal(study.effects.to_frame(), effects(finished[0]), check_dtype=False)
    assert study.spec.title == 'Three kinds of words' and study.classes == CLASSES
    assert study.salient.shape == (3, 24)


def test_example_prints_a_study_that_can_be_read(cli, tmp_path):
    from neuronlens.studies.spec import demo_study, read_study
    said = finish(cli('example'))
    (tmp_path/'s.toml').write_text(said)
    assert read_study(tmp_path/'s.toml') == demo_study()
    assert set(tomllib.loads(said)) == {'title', 'seed', 'data', 'model', 'prompt', 'training', 'method', 'meaning'}
    assert {'preset', 'vote', 'fitted_at', 'correct_only'} <= set(tomllib.loads(said)['method'])


# --- the user's own texts

def write_texts(df, path):
    match path.suffix:
        case '.csv': df.to_csv(path, index=False)
        case '.tsv': df.to_csv(path, index=False, sep='\t')
        case '.jsonl': df.to_json(path, orient='records', lines=True)
        case '.parquet': df.to_parquet(path)
    return path


@pytest.mark.parametrize('ending', ['csv', 'tsv', 'jsonl', 'parquet'])
def test_formats_give_the_same_numbers(ending, finished, cli, make_study, tmp_path, frame, test_frame, no_figures):
    files = {}
    for part, df in (('train', frame), ('test', test_frame)):
        named = df.rename(columns=dict(text='what was said', label='kind')).assign(other=range(len(df)))
        files[part] = write_texts(named[['other', 'kind', 'what was said']], tmp_path/f'{part}.{ending}').name
    study = make_study(data=files | dict(text='what was said', label='kind')) # Names relative to the study's own folder
    finish(cli('run', study, '--out', tmp_path/'out'))
    same = effects(finished[0]).query('ranking == "dprime" and fraction == .5').reset_index(drop=True)
    pd.testing.assert_frame_equal(effects(tmp_path/'out'), same, check_exact=True)


def test_quoted_commas_line_breaks_and_unicode_arrive(cli, make_study, tmp_path, frame, no_figures):
    df = frame.copy()
    df.loc[:2, 'text'] = ['a "cat", said\nthe dog', 'Käse, bread; soup', 'hammer\tsaw']
    for ending in ('csv', 'tsv', 'jsonl', 'parquet'):
        from neuronlens.ground.data import read_texts
        assert read_texts(write_texts(df, tmp_path/f'odd.{ending}')).texts == df.text.tolist(), ending


def test_a_share_is_set_aside_where_no_test_file_is_named(cli, make_study, tmp_path, data, no_figures):
    finish(cli('run', make_study(data=dict(train=str(data.train), test_share=.25)), '--out', tmp_path/'out'))
    about = [json.loads((tmp_path/f'out/recording/{p}.json').read_text()) for p in ('train', 'test')]
    assert [a['n_texts'] for a in about] == [45, 15] and about[0]['texts_sha256'] != about[1]['texts_sha256']
    train, test = (load_file(tmp_path/f'out/recording/{p}.safetensors') for p in ('train', 'test'))
    assert not {a.tobytes() for a in train['acts']} & {a.tobytes() for a in test['acts']}
    assert list(np.bincount(test['labels'])) == [5, 5, 5]


def test_repeated_and_leaked_texts_are_counted(cli, make_study, tmp_path, frame, test_frame, no_figures):
    pd.concat([frame, frame[:4]]).to_csv(tmp_path/'train.csv', index=False)
    pd.concat([test_frame, frame[10:13]]).to_csv(tmp_path/'test.csv', index=False)
    said = finish(cli('run', make_study(data=dict(train='train.csv', test='test.csv')), '--out', tmp_path/'out'))
    assert '4 repeated texts left out' in said and '3 test texts left out because they are training texts' in said
    assert '4 repeated texts' in (tmp_path/'out/report.html').read_text()
    assert [len(load_file(tmp_path/f'out/recording/{p}.safetensors')['acts']) for p in ('train', 'test')] == [60, 36]


def test_numbers_as_labels_are_refused_where_classes_have_names(cli, make_study, tmp_path, frame, test_frame):
    "Numbers may be the model's or names of their own: another numbering would pass for the model's (`nl.model.numbered` says which)."
    for part, df in (('train', frame), ('test', test_frame)):
        df.assign(label=df.label.map(CLASSES.index)).to_parquet(tmp_path/f'{part}.parquet')
    result = cli('run', make_study(data=dict(train='train.parquet', test='test.parquet')), '--out', tmp_path/'out')
    assert result.exit_code == 2 and "may be a place among the model's classes" in result.stderr and 'NL219' in result.stderr
    assert "in a study file by [data] numbers = 'model'" in result.stderr


@pytest.mark.parametrize('numbers', ['model', ['tool', 'food', 'animal']])
def test_a_study_says_what_numbers_name(numbers, finished, cli, make_study, tmp_path, frame, test_frame, no_figures):
    "The model's own numbers, or names in their order: then as if the names stood in the file; and so it is opened again."
    from neuronlens.studies.check import study_cost
    from neuronlens.studies.saved import load_study
    from neuronlens.studies.spec import read_study
    names = [*CLASSES] if numbers == 'model' else numbers
    for part, df in (('train', frame), ('test', test_frame)):
        df.assign(label=df.label.map(names.index)).to_csv(tmp_path/f'{part}.csv', index=False)
    study = make_study(data=dict(train='train.csv', test='test.csv', numbers=numbers))
    assert study_cost(read_study(study), tmp_path/'out').refusals == ()
    finish(cli('run', study, '--out', tmp_path/'out'))
    same = effects(finished[0]).query('ranking == "dprime" and fraction == .5').reset_index(drop=True)
    pd.testing.assert_frame_equal(effects(tmp_path/'out'), same, check_exact=True)
    assert json.loads((tmp_path/'out/provenance.json').read_text())['decides']['[data] numbers'] == numbers
    back = load_study(tmp_path/'out')
    assert back.spec.data.numbers == numbers and back.open(progress=False).texts[0].classes == CLASSES
    finish(cli('run', study, '--out', tmp_path/'out')) # The same study, into its folder
    for part, df in (('train', frame), ('test', test_frame)): df.to_csv(tmp_path/f'{part}.csv', index=False)
    result = cli('run', study, '--out', tmp_path/'other')
    assert result.exit_code == 2 and "label 'animal' is none of the numbers 0 to 2 that have names" in result.stderr


def test_numbers_name_what_an_encoder_learns(data, encoder, tmp_path, frame):
    "In the order of names, in which a file of names has them, too."
    from neuronlens.studies.spec import DataSpec, ModelSpec, StudySpec
    from neuronlens.studies.study import study_texts
    frame.assign(label=frame.label.map(['tool', 'food', 'animal'].index)).to_csv(tmp_path/'t.csv', index=False)
    model = ModelSpec(encoder=str(encoder))
    own = study_texts(StudySpec(data=DataSpec(str(tmp_path/'t.csv'), numbers=['tool', 'food', 'animal']), model=model))
    named = study_texts(StudySpec(data=DataSpec(str(data.train)), model=model))
    assert own[0].classes == CLASSES and [t.digest for t in own[:2]] == [t.digest for t in named[:2]] and own[2] == named[2]


def test_one_label_of_several_in_a_study(cli, make_study, tmp_path, bert, frame, test_frame, no_figures):
    "A concept is a label: named in [model], its column of 0 and 1 in [data]; as in Python, and opened again."
    from neuronlens.models.model import load_classifier
    from neuronlens.studies.saved import load_study
    shutil.copytree(bert, tmp_path/'many')
    about = json.loads((tmp_path/'many/config.json').read_text()) | dict(problem_type='multi_label_classification')
    (tmp_path/'many/config.json').write_text(json.dumps(about))
    for part, df in (('train', frame), ('test', test_frame)):
        pd.DataFrame({'text': df.text} | {c: (df.label == c).astype(int) for c in CLASSES}).to_csv(tmp_path/f'{part}.csv', index=False)
    files = dict(train='train.csv', test='test.csv', label='food', numbers='model')
    finish(cli('run', make_study(data=files, model=dict(classifier='many', label='food')), '--out', tmp_path/'out'))
    back = load_study(tmp_path/'out')
    assert back.classes == ('not food', 'food') and back.spec.model.label == 'food'
    again = back.open(progress=False)
    assert again.clf.label == 1 and again.clf.classes == load_classifier(tmp_path/'many', label='food').classes
    gold = [int(c == 'food') for c in test_frame.label]
    assert back.test.labels.tolist() == gold == again.texts[1].labels.tolist()
    wrong = cli('check', make_study(data=files, model=dict(classifier='many')))
    assert wrong.exit_code == 2 and 'study one of its labels at a time by label=: animal, food, tool' in ' '.join(wrong.stdout.split())
    wrong = cli('check', make_study(data=files, model=dict(classifier=str(bert), label='food')))
    assert wrong.exit_code == 2 and 'is no multi-label classifier' in wrong.stdout


# --- the numbers, computed without neuronlens

def answers(folder, texts, change=lambda model: None, hidden=False):
    "Class probabilities by plain transformers, one text at a time; with `hidden` also `[T, D]` of every layer."
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    model, tok = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    kw = dict(return_tensors='pt', return_token_type_ids=False)
    with torch.no_grad():
        change(model.eval())
        seen = [model(**tok(t, **kw), output_hidden_states=True) for t in texts]
    probs = np.stack([s.logits[0].softmax(-1).numpy() for s in seen])
    return (probs, [[h[0].numpy() for h in s.hidden_states] for s in seen]) if hidden else probs


def measured(gold, concept, before, after):
    "The six measures that need no gate, from their definitions."
    at, rest = gold == concept, gold != concept
    sure, right = after[np.arange(len(gold)), gold], after.argmax(1) == gold
    kept = rest & (before.argmax(1) == gold)
    moved = abs(after-before).sum(1)/2
    return [right[at].mean(), sure[at].mean(), right[rest].mean(), sure[rest].mean(), moved[kept].mean(),
            (~right[kept]).mean()]


@cache
def steps():
    "Roundings behind what the tiny classifiers say; both kinds are equally deep and wide."
    from transformers import AutoModelForSequenceClassification
    return rounding.steps_of(AutoModelForSequenceClassification.from_config(tiny_config('bert')))


def agree(out, condition, test_frame, before, after, **chosen):
    "Rows of a condition equal the measures of `after` (`[N, C]`, or one for each concept)."
    gold, df = np.array([CLASSES.index(c) for c in test_frame.label]), effects(out)
    for c, name in enumerate(CLASSES):
        rows = df[(df.concept == name) & (df.condition == condition)]
        for k, v in chosen.items(): rows = rows[rows[k] == v]
        assert len(rows)
        want = measured(gold, c, before, after[c] if after.ndim == 3 else after)
        size = max(map(rounding.score_size, (before, after)))
        for row in rows[MEASURES[:6]].to_numpy(): rounding.agree(row, want, steps(), size=size, what=name)


@pytest.mark.parametrize('kind', ['bert', 'gpt2'])
def test_base_rows_are_the_models_own(kind, cli, make_study, tmp_path, request, test_frame, no_figures):
    folder = request.getfixturevalue(kind)
    study = make_study(model=dict(classifier=str(folder)), method=dict(fraction=[.5, 1.]))
    finish(cli('run', study, '--out', tmp_path/'out'))
    plain = answers(folder, test_frame.text)
    share = (plain.argmax(1) == [CLASSES.index(c) for c in test_frame.label]).mean()
    assert .5 < share < 1 # So that an accuracy of 0 or 1 cannot pass by chance
    agree(tmp_path/'out', 'base', test_frame, plain, plain)


def head(folder, states):
    "Class probabilities from states `[N, D]` of the last block at the readout, by plain transformers."
    import torch
    from transformers import AutoModelForSequenceClassification
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        h = torch.as_tensor(np.asarray(states, np.float32))
        if hasattr(model, 'bert'): return model.classifier(model.bert.pooler(h[:, None])).softmax(-1).numpy()
        return model.score(model.transformer.ln_f(h)).softmax(-1).numpy()


def by_hand(folder, out, ranking, fraction, bounds, edit):
    "Probabilities `[C, N, C]` and firing `[C, N]` after an edit at the last block, from method.md and a recording."
    train, test = (load_file(out/f'recording/{p}.safetensors') for p in ('train', 'test'))
    a, y, after, fires = train['acts'].astype(np.float64), train['labels'], [], []
    for c in range(3):
        own, rest = a[y == c], a[y != c]
        score = {'max_activation': abs(own).mean(0),
                 'probeless': sum(abs(own.mean(0)-a[y == k].mean(0)) for k in range(3)),
                 'dprime': abs(own.mean(0)-rest.mean(0))/np.sqrt((own.var(0)+rest.var(0))/2)}[ranking]
        top = np.argsort(-score, kind='stable')[:int(fraction*32)]
        lo, hi = (np.float32(b) for b in bounds(own))
        x = test['acts'].copy()
        gate = (x >= lo) & (x <= hi) & np.isin(np.arange(32), top)
        x = np.where(gate, np.float32(0) if edit == 'zero' else rest.mean(0).astype(np.float32), x)
        after.append(head(folder, x))
        fires.append(gate[:, top].mean(1))
    return np.stack(after), np.stack(fires)


BOUNDS = {'gaussian': lambda own: (own.mean(0)-1.5*own.std(0), own.mean(0)+1.5*own.std(0)),
          'quantile': lambda own: (np.sort(own, 0)[2], np.sort(own, 0)[-3]), # 80 % of 20 texts: two out at either end
          'full': lambda own: (np.full(own.shape[1], -np.inf), np.full(own.shape[1], np.inf))}


@pytest.mark.parametrize('kind,range_,edit', [('bert', 'gaussian', 'mean'), ('bert', 'quantile', 'zero'),
                                              ('gpt2', 'gaussian', 'zero'), ('gpt2', 'full', 'mean')])
def test_last_block_by_hand(kind, range_, edit, cli, make_study, tmp_path, request, test_frame, no_figures):
    folder, out = request.getfixturevalue(kind), tmp_path/'out'
    finish(cli('run', make_study(model=dict(classifier=str(folder)),
                                 method=dict(ranking=['max_activation', 'probeless', 'dprime', 'probe', 'random'],
                                             fraction=[.6], range=range_, tau=1.5, q=.8, edit=edit)), '--out', out))
    before, df = answers(folder, test_frame.text), effects(out)
    gold = np.array([CLASSES.index(c) for c in test_frame.label])
    for ranking in ('max_activation', 'probeless', 'dprime'):
        after, fires = by_hand(folder, out, ranking, .6, BOUNDS[range_], edit)
        assert abs(after-before).max() > .05 # Something happens
        agree(out, 'range', test_frame, before, after, ranking=ranking)
        whole, _ = by_hand(folder, out, ranking, .6, BOUNDS['full'], edit)
        agree(out, 'full', test_frame, before, whole, ranking=ranking)
        for c, name in enumerate(CLASSES):
            row = df[(df.ranking == ranking) & (df.condition == 'range') & (df.concept == name)].iloc[0]
            rounding.agree([row.fires_on_target, row.fires_on_auxiliary],
                           [fires[c][gold == c].mean(), fires[c][gold != c].mean()], len(gold)**.5, size=1)
    named = {'gaussian': 'gaussian(1.5)', 'quantile': 'quantile(0.8)', 'full': 'full'}[range_]
    assert kinds(df)['range'] == kinds(df)['random'] == {(named, edit)}
    assert set(df.ranking) == {'max_activation', 'probeless', 'dprime', 'probe', 'random'}
    tops = df[df.condition == 'full'].groupby('ranking')[MEASURES].mean().round(6)
    assert not tops.duplicated().any() # Five rankings, five different salient sets


def test_unbounded_ranges_edit_whole_neurons(cli, make_study, tmp_path, no_figures):
    finish(cli('run', make_study(method=dict(tau=float('inf'))), '--out', tmp_path/'out'))
    df = effects(tmp_path/'out').set_index('condition')
    assert (df.loc['range', 'range'] == 'gaussian(inf)').all()
    np.testing.assert_array_equal(df.loc['range', MEASURES], df.loc['full', MEASURES])


def down(model, stream, block):
    "The projection that reads a site of the tiny models."
    if hasattr(model, 'bert'):
        layer = model.bert.encoder.layer[block]
        return layer.output.dense if stream == 'mlp' else layer.attention.output.dense
    return (model.transformer.h[block].mlp if stream == 'mlp' else model.transformer.h[block].attn).c_proj


@pytest.mark.parametrize('kind,stream,block', [('bert', 'mlp', 0), ('bert', 'attention', 1), ('gpt2', 'mlp', 1),
                                               ('gpt2', 'attention', 0)])
def test_inner_sites_by_hand(kind, stream, block, cli, make_study, tmp_path, request, test_frame, no_figures):
    "All units of an inner site set to 0 is the same as a projection without weights."
    folder, out = request.getfixturevalue(kind), tmp_path/'out'
    method = dict(site=f'{stream}.{block}', edit='zero', fraction=[1, .5])
    finish(cli('run', make_study(model=dict(classifier=str(folder)), method=method), '--out', out))
    before = answers(folder, test_frame.text)
    after = answers(folder, test_frame.text, lambda m: down(m, stream, block).weight.zero_())
    assert abs(after-before).max() > .05
    agree(out, 'full', test_frame, before, after, fraction=1)
    agree(out, 'base', test_frame, before, before)
    rec = load_file(out/'recording/test.safetensors')
    assert rec['acts'].shape == (36, 48 if stream == 'mlp' else 32)
    assert set(effects(out).site) == {f'{stream}.{block}'}


@pytest.mark.parametrize('kind', ['bert', 'gpt2'])
@pytest.mark.parametrize('positions', ['all', 'readout'])
def test_middle_block_by_hand(kind, positions, cli, make_study, tmp_path, request, test_frame, no_figures):
    folder, out = request.getfixturevalue(kind), tmp_path/'out'
    method = dict(site='residual.0', edit='zero', fraction=[1.], positions=positions)
    finish(cli('run', make_study(model=dict(classifier=str(folder)), method=method), '--out', out))
    where = slice(None) if positions == 'all' else 0 if kind == 'bert' else -1
    def hooked(model):
        def blank(mod, args, res):
            h = (res[0] if isinstance(res, tuple) else res).clone()
            h[:, where] = 0
            return (h, *res[1:]) if isinstance(res, tuple) else h
        (model.bert.encoder.layer if kind == 'bert' else model.transformer.h)[0].register_forward_hook(blank)
    before, after = answers(folder, test_frame.text), answers(folder, test_frame.text, hooked)
    assert abs(after-before).max() > .05
    agree(out, 'full', test_frame, before, after)
    agree(out, 'base', test_frame, before, before)


def test_mean_readout_is_over_words_only(cli, make_study, tmp_path, bert, test_frame, no_figures):
    study = make_study(model=dict(classifier=str(bert), readout='mean'), method=dict(site='residual.0'))
    finish(cli('run', study, '--out', tmp_path/'out'))
    _, hidden = answers(bert, test_frame.text, hidden=True)
    rec = load_file(tmp_path/'out/recording/test.safetensors')
    rounding.agree(rec['acts'], [h[1][1:-1].mean(0) for h in hidden], steps())
    assert json.loads((tmp_path/'out/recording/test.json').read_text())['readout'] == 'mean'


# --- an encoder to fine-tune

def tuned(encoder):
    return dict(model=dict(encoder=str(encoder), max_length=32), training=dict(epochs=40, lr=5e-3, batch_size=16))


def test_encoder_is_fine_tuned_once(cli, make_study, tmp_path, encoder, own_cache, test_frame, no_figures, monkeypatch):
    study = make_study(**tuned(encoder))
    finish(cli('run', study, '--out', tmp_path/'first'))
    (folder,) = (own_cache/'models').iterdir()
    assert {'config.json', 'model.safetensors', 'tokenizer.json', 'training.json'} <= {p.name for p in folder.iterdir()}
    losses = json.loads((folder/'training.json').read_text())['loss']
    assert len(losses) == 40*4 and np.mean(losses[-8:]) < .5*np.mean(losses[:8])
    plain = answers(folder, test_frame.text) # The folder is a plain Hugging Face classifier
    assert (plain.argmax(1) == [CLASSES.index(c) for c in test_frame.label]).mean() > .6
    agree(tmp_path/'first', 'base', test_frame, plain, plain)
    monkeypatch.setattr('neuronlens.models.training._train', lambda *args: pytest.fail('trained again'))
    finish(cli('run', study, '--out', tmp_path/'second'))
    assert (tmp_path/'second/effects.csv').read_bytes() == (tmp_path/'first/effects.csv').read_bytes()


def test_training_is_repeatable_and_follows_the_seed(encoder, own_cache, frame):
    import torch

    from neuronlens.ground.data import make_texts
    from neuronlens.models.training import fine_tune
    texts = make_texts(frame.text.tolist(), frame.label.tolist())
    def weights(seed):
        torch.rand(1) # Whatever was drawn before does not count
        return fine_tune(encoder, texts, epochs=1, max_length=32, seed=seed, cache=False).model.classifier.weight
    assert weights(0).equal(weights(0)) and not weights(0).equal(weights(1))
    torch.rand(1)
    state = torch.get_rng_state()
    fine_tune(encoder, texts, epochs=1, max_length=32, cache=False)
    assert torch.get_rng_state().equal(state) and not own_cache.exists()


def test_fine_tuned_model_is_called_after_what_it_is(encoder, frame):
    from neuronlens.ground.data import make_texts
    from neuronlens.models.training import fine_tune
    texts = make_texts(frame.text.tolist(), frame.label.tolist(), source='folder/words.csv')
    said = [fine_tune(encoder, texts, epochs=1, max_length=32, cache=cache, name=name).source for cache, name in
            ((True, None), (True, 'mine'), (False, 'mine'))]
    assert said == ['encoder fine-tuned on words.csv', 'mine', 'mine']


# --- library use

def in_memory(folder, change=lambda model: None):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from neuronlens.models.model import make_classifier
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad(): change(model)
    return make_classifier(model, AutoTokenizer.from_pretrained(folder))


def test_models_without_a_hash_do_not_share_recordings(bert, test_frame):
    from neuronlens.ground.data import make_texts
    from neuronlens.records.recording import record
    texts = make_texts(test_frame.text.tolist(), test_frame.label.tolist())
    models = (in_memory(bert, c) for c in (lambda m: None, lambda m: down(m, 'mlp', 1).bias.add_(1)))
    a, b = (record(m, texts, cache=True).acts for m in models)
    assert not np.array_equal(a, b)


def test_another_tokenizer_gets_its_own_recording(bert, tmp_path, test_frame):
    import shutil

    from neuronlens.ground.data import make_texts
    from neuronlens.models.model import load_classifier
    from neuronlens.records.recording import record
    texts = make_texts(test_frame.text.tolist(), test_frame.label.tolist())
    folder = shutil.copytree(bert, tmp_path/'model')
    before = record(load_classifier(folder), texts, cache=True).acts
    said = (folder/'tokenizer.json').read_text()
    assert '"cat"' in said
    (folder/'tokenizer.json').write_text(said.replace('"cat"', '"tac"'))
    assert not np.array_equal(before, record(load_classifier(folder), texts, cache=True).acts)


def test_a_study_made_in_python_can_be_run_again(bert, data, tmp_path, monkeypatch):
    from neuronlens.studies.spec import DataSpec, MethodSpec, ModelSpec, StudySpec, read_study
    from neuronlens.studies.study import run_study
    monkeypatch.chdir(data.folder)
    spec = StudySpec(data=DataSpec('train.csv', 'test.csv'), model=ModelSpec(os.path.relpath(bert)),
                     method=MethodSpec(ranking=['dprime'], fraction=[.5], layers=False))
    run_study(spec, tmp_path/'out', progress=False)
    assert Path(read_study(tmp_path/'out/study.toml').data.train).is_file()
    run_study(spec, tmp_path/'out', progress=False)


# --- a folder of another study, a folder elsewhere, texts that changed

def tiny(home, bert, frame, test_frame, **method):
    "A project folder with texts, the tiny BERT and a study file."
    import shutil
    home.mkdir(parents=True)
    for name, df in (('train', frame), ('test', test_frame)): df.to_csv(home/f'{name}.csv', index=False)
    shutil.copytree(bert, home/'model')
    (home/'study.toml').write_text(study_text(data=dict(train='train.csv', test='test.csv'), model=dict(classifier='model'),
                                              method=method))
    return home/'study.toml'


@pytest.fixture
def two(bert, frame, test_frame, tmp_path, cli, no_figures):
    "Two finished studies, at another site each, of the same project."
    study = tiny(tmp_path/'project', bert, frame, test_frame, layers=True)
    finish(cli('run', study, '--out', tmp_path/'project/runs/one'))
    study.write_text(study.read_text().replace('[method]', '[method]\nsite = "residual.0"').replace('0.5', '0.25'))
    finish(cli('run', study, '--out', tmp_path/'two'))
    return tmp_path/'project/runs/one', tmp_path/'two'


def test_files_of_another_study_are_refused_by_name(two, tmp_path):
    import shutil

    from neuronlens.ground.core import InputError
    from neuronlens.studies.saved import load_study
    def refuses(file, says, change):
        shutil.copytree(two[0], tmp_path/'mixed')
        change(tmp_path/'mixed'/file)
        with pytest.raises(InputError, match=says) as e: load_study(tmp_path/'mixed')
        assert str(tmp_path/'mixed'/file) in str(e.value)
        shutil.rmtree(tmp_path/'mixed')
    def put(a, b):
        for end in {a.suffix, '.json' if a.suffix == '.safetensors' else a.suffix}: shutil.copy(a.with_suffix(end), b.with_suffix(end))
    for file, says in {'recording/train.safetensors': 'its site differs', 'recording/test.safetensors': 'its site differs',
                       'effects.csv': 'not the file', 'intervals.csv': 'not the file', 'study.toml': 'site is .residual.0.'}.items():
        refuses(file, says, lambda p, file=file: put(two[1]/file, p))
    for file in ('effects.csv', 'intervals.csv', 'layers.csv'): refuses(file, 'not the file', lambda p: p.write_text(''))
    refuses('recording/train.safetensors', 'its texts differs', lambda p: put(p.with_name('test.safetensors'), p))
    def forgets(p):
        about = json.loads((p.parent/'provenance.json').read_text())
        about = {k: v for k, v in about.items() if k not in ('files', 'decides', 'sha256')}
        (p.parent/'provenance.json').write_text(json.dumps(about | {'versions': about['versions'] | {'neuronlens': '0.1.0'}}))
        p.write_text('')
    for file in ('effects.csv', 'intervals.csv', 'layers.csv'): refuses(file, 'the file is empty', forgets) # Of an older version


def test_a_project_can_be_moved_and_copied(two, tmp_path, cli):
    "Resumed and opened where it is now, from the texts and the model that came with it; a folder that left alone finds what it left."
    import shutil

    from neuronlens.studies.saved import load_study
    from neuronlens.studies.spec import read_study
    from neuronlens.views.workbook import explore
    was = (two[0]/'effects.csv').read_bytes()
    assert tomllib.loads((two[0]/'study.toml').read_text())['data']['train'] == '../../train.csv'
    shutil.copytree(two[0], tmp_path/'far/away/out') # The folder alone
    assert load_study(tmp_path/'far/away/out').open(progress=False).texts[0].source == str(tmp_path/'project/train.csv')
    finish(cli('run', tiny_again(tmp_path/'project'), '--out', tmp_path/'far/away/out'))
    shutil.move(tmp_path/'project', tmp_path/'elsewhere/deep/project') # All of it
    home = tmp_path/'elsewhere/deep/project'
    assert read_study(home/'runs/one/study.toml').data.train == str(home/'train.csv')
    finish(cli('run', tiny_again(home), '--out', home/'runs/one'))
    assert (home/'runs/one/effects.csv').read_bytes() == was
    book = explore(load_study(home/'runs/one'))
    assert book.study.texts[1].source == str(home/'test.csv') and book.study.clf.source == str(home/'model')


def tiny_again(home):
    "The study file of the first of the two studies."
    text = (home/'study.toml').read_text().replace('site = "residual.0"\n', '').replace('0.25', '0.5')
    (home/'study.toml').write_text(text)
    return home/'study.toml'


def test_texts_that_changed_do_not_replace_results(bert, frame, test_frame, tmp_path, cli, no_figures):
    study, out = tiny(tmp_path/'project', bert, frame, test_frame), tmp_path/'project/out'
    finish(cli('run', study, '--out', out))
    was = {p: (out/p).read_bytes() for p in tree(out)}
    for part, df in (('train', frame), ('test', test_frame)):
        df[3:].to_csv(study.with_name(f'{part}.csv'), index=False)
        r = cli('run', study, '--out', out)
        assert r.exit_code == 2 and f'results of other {part}ing texts' in r.stderr and f'{part}.csv' in r.stderr
        assert was == {p: (out/p).read_bytes() for p in tree(out)}
        df.to_csv(study.with_name(f'{part}.csv'), index=False)
    finish(cli('run', study, '--out', out))


def test_odd_texts_and_names_are_said_or_refused(bert, frame, test_frame, tmp_path, cli, no_figures):
    study, out = tiny(tmp_path/'project', bert, frame, test_frame), tmp_path/'project/out'
    twice = frame[:2].assign(label=[frame.label[1], frame.label[1]])
    pd.concat([frame, twice]).to_csv(study.with_name('train.csv'), index=False)
    assert '2 repeated texts left out; 1 of them with another class than the one kept' in finish(cli('run', study, '--out', out))
    assert '1 of them with another class than the one that was kept' in (out/'report.html').read_text()
    for name, says in (('macro', "train.jsonl: class 'macro' has the name of the average"),
                       ('to\rol', "class 'to ol' is none of the model's")):
        for part, df in (('train', frame), ('test', test_frame)):
            df.replace({'label': {'tool': name}}).to_json(study.with_name(f'{part}.jsonl'), orient='records', lines=True)
        study.write_text(study.read_text().replace('.csv', '.jsonl'))
        r = cli('run', study, '--out', tmp_path/'other')
        assert r.exit_code == 2 and says in r.stderr and r.stderr.count('\n') == 1 and not tree(tmp_path/'other')
    frame.to_csv(study.with_name('train.csv'), index=False)
    study.write_text(study.read_text().replace('.jsonl', '.csv').replace('test.csv', 'train.csv'))
    r = cli('run', study, '--out', tmp_path/'other')
    assert r.exit_code == 2 and 'all 60 texts are also training texts' in r.stderr


def test_a_study_says_its_cost_before(bert, data, monkeypatch, caplog):
    "Time and memory, with the answers it keeps, are logged before anything is edited."
    from neuronlens import spec as asked
    from neuronlens import study as room
    from neuronlens import sweeps
    spec = asked.StudySpec(data=asked.DataSpec(str(data.train), str(data.test)), model=asked.ModelSpec(str(bert)),
                           method=asked.MethodSpec(ranking=['dprime'], fraction=[.5], layers=False))
    monkeypatch.setenv('TQDM_DISABLE', '0')
    monkeypatch.setattr(sweeps, 'say_estimate', lambda *a, kept, real=sweeps.say_estimate, **kw: real(*a, kept=kept+5_000_000_000, **kw))
    caplog.set_level('INFO', 'neuronlens')
    def begun(*a, **kw): # Only after the estimate was said
        assert '9 interventions at 1 site on 36 texts: about' in caplog.messages[-1] and '5.1 GB of memory' in caplog.messages[-1]
        raise EOFError
    monkeypatch.setattr(sweeps, 'interventions_on', begun)
    with pytest.raises(EOFError): room.run_study(spec)
