"""What goes wrong gets one sentence that names the culprit, exit status 2 (Ctrl-C: 130), and leaves nothing."""
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import CLASSES, make_frame
from kills import kills
from safetensors import safe_open

pytestmark = pytest.mark.usefixtures('one_thread', 'own_cache', 'no_figures')

NAN, INF = float('nan'), float('inf')


def files(folder):
    "Every file below a folder with its bytes, hidden ones too."
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def refused(result, out, *named):
    "The run was refused in one sentence that names all of `named`, and nothing is in `out`."
    assert result.exit_code == 2, (result.exit_code, result.exception, result.stderr)
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ''
    assert re.fullmatch(r'neuronlens: [^\n]+\n', result.stderr), result.stderr
    short = re.sub(r"/[^\s']*/", '', result.stderr) # A test's own folder would name the culprit
    for n in named: assert str(n) in (result.stderr if isinstance(n, Path) else short), (n, result.stderr)
    assert not out.is_dir() or files(out) == {}
    return result.stderr


@pytest.fixture
def refuse(cli, make_study, tmp_path):
    "Runs a study that must be refused in a sentence that names all of `named`."
    def go(*named, out=tmp_path/'out', args=(), **tables):
        return refused(cli('run', make_study(**tables), '--out', out, *args), out, *named)
    return go


def finish(result):
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result.stdout


@pytest.fixture
def nothing_slow(monkeypatch):
    "Fails the test as soon as a model is loaded, trained or run."
    def slow(*args, **kw): pytest.fail('something slow was started')
    for name in ('study.load_classifier', 'study.fine_tune', 'study.record', 'study.changes_on', 'records.recording.record',
                 'training._train', 'model.load_model', 'training.load_model'):
        monkeypatch.setattr(f'neuronlens.{name}', slow)


@pytest.fixture
def no_pass(monkeypatch):
    "Fails the test as soon as a model is trained or run; one may be loaded."
    def slow(*args, **kw): pytest.fail('something slow was started')
    for name in ('study.changes_on', 'records.recording.record', 'training._train'): monkeypatch.setattr(f'neuronlens.{name}', slow)


# --- the texts

def csv(df): return df.to_csv(index=False).encode()
def jsonl(rows): return ''.join(json.dumps(r)+'\n' for r in rows).encode()


def with_text(df, rows, value):
    df = df.astype(object)
    df.loc[[r-1 for r in rows], 'text'] = value
    return df


BAD_TEXTS = { # What the file holds, made of a good frame: ending, bytes, what the sentence names
    'empty file': ('csv', lambda df: b'', ['empty']),
    'header only': ('csv', lambda df: b'text,label\n', ['no rows']),
    'blank jsonl': ('jsonl', lambda df: b'\n\n', ['no rows']),
    'no text column': ('csv', lambda df: csv(df.rename(columns={'text': 'body'})), ["'text'", "'body'", "'label'"]),
    'no label column': ('tsv', lambda df: csv(df.rename(columns={'label': 'kind'})).replace(b',', b'\t'),
                        ["'label'", "'kind'"]),
    'no text key': ('jsonl', lambda df: jsonl({'body': t, 'label': c} for t, c in df.values), ["'text'"]),
    'one class': ('csv', lambda df: csv(df[df.label == 'food']), ["'food'", 'two classes']),
    'a class with one example': ('csv', lambda df: csv(df.drop(df.index[df.label == 'tool'][1:])),
                                 ["'tool'", '1 example']),
    'empty texts': ('csv', lambda df: csv(with_text(df, [4, 9], ['', '   '])), ['2 rows (4, 9)', 'empty']),
    'one empty text': ('tsv', lambda df: with_text(df, [7], '').to_csv(index=False, sep='\t').encode(), ['row 7']),
    'many empty texts': ('csv', lambda df: csv(with_text(df, range(2, 20), '')), ['18 rows (2, 3, 4, 5, 6, ...)']),
    'a number for a text': ('jsonl', lambda df: jsonl(with_text(df, [5], 12.5).to_dict('records')), ['row 5']),
    'null for a text': ('jsonl', lambda df: jsonl(with_text(df, [6], None).to_dict('records')), ['row 6']),
    'a list for a text': ('jsonl', lambda df: jsonl({'text': [t], 'label': c} for t, c in df.values), ['60 rows']),
    'a missing text': ('parquet', lambda df: with_text(df, [3], None).to_parquet(), ['row 3']),
    'numbers for texts': ('parquet', lambda df: df.assign(text=range(len(df))).to_parquet(), ['60 rows', 'not text']),
    'a missing label': ('csv', lambda df: csv(df).replace(b',animal\n', b',\n', 1), ['row 1', 'label']),
    'a null label': ('parquet', lambda df: df.assign(label=[*df.label[:-1], None]).to_parquet(), ['row 60', 'label']),
    'broken json': ('jsonl', lambda df: jsonl(df[:4].to_dict('records'))+b'{"text": \n', ['line 5', 'JSON']),
    'json that is no object': ('jsonl', lambda df: jsonl(df[:2].to_dict('records'))+b'[1]\n', ['line 3']),
    'latin-1': ('csv', lambda df: csv(df).replace(b'cat', b'\xe9', 1), ['UTF-8']),
    'no parquet at all': ('parquet', lambda df: b'PAR1 nothing', ['cannot be read']),
    'more cells than columns': ('csv', lambda df: csv(df)+b'a,b,c,d\n', ['cannot be read', '62']),
    'unknown ending': ('xlsx', lambda df: b'x', ['.xlsx', '.csv', '.parquet']),
}


@pytest.mark.parametrize('case', BAD_TEXTS)
def test_bad_texts(case, refuse, tmp_path, frame, data, nothing_slow):
    ending, make, named = BAD_TEXTS[case]
    bad = tmp_path/f'bad.{ending}'
    bad.write_bytes(make(frame))
    for given in (dict(train='bad.'+ending), dict(train=str(data.train), test=str(bad))):
        refuse(bad, *named, data=given)


@pytest.mark.parametrize('part', ['train', 'test'])
def test_missing_file(part, refuse, tmp_path, data, nothing_slow):
    given = dict(train=str(data.train), test=str(data.test)) | {part: 'nowhere/texts.csv'}
    refuse(tmp_path/'nowhere/texts.csv', data=given)
    refuse(tmp_path, data=given | {part: str(tmp_path)})


def test_too_few_for_a_share(refuse, tmp_path, frame, nothing_slow):
    df = frame.drop(frame.index[frame.label == 'tool'][2:])
    df.to_csv(tmp_path/'two.csv', index=False) # Two of a class do, but not where one of them must be set aside
    refuse('two.csv', "'tool'", data=dict(train='two.csv'))


def test_repeats_do_not_count_as_examples(refuse, tmp_path, frame, nothing_slow):
    few = frame.drop(frame.index[frame.label == 'tool'][1:])
    pd.concat([few, few[few.label == 'tool'], few[few.label == 'tool']]).to_csv(tmp_path/'same.csv', index=False)
    refuse('same.csv', "'tool'", data=dict(train='same.csv'))


@pytest.mark.parametrize('ending', ['csv', 'jsonl', 'parquet'])
def test_empty_rows_are_skipped_if_asked_and_counted(ending, cli, make_study, tmp_path, frame, test_frame):
    for part, df, rows in (('train', frame, [2, 30, 31]), ('test', test_frame, [5])):
        df = with_text(df, rows, '' if ending == 'csv' else None)
        if ending == 'parquet': df.to_parquet(tmp_path/f'{part}.parquet')
        else: (tmp_path/f'{part}.{ending}').write_bytes(csv(df) if ending == 'csv' else jsonl(df.to_dict('records')))
    study = make_study(data=dict(train=f'train.{ending}', test=f'test.{ending}'))
    refused(cli('run', study, '--out', tmp_path/'out'), tmp_path/'out', f'train.{ending}', '3 rows (2, 30, 31)')
    said = finish(cli('run', study, '--out', tmp_path/'out', '--skip-empty'))
    assert '4 rows without text skipped' in said
    assert '4 rows without text' in (tmp_path/'out/report.html').read_text()
    counted = [json.loads((tmp_path/f'out/recording/{p}.json').read_text())['n_texts'] for p in ('train', 'test')]
    assert counted == [57, 35]
    again = finish(cli('run', tmp_path/'out/study.toml', '--out', tmp_path/'again')) # The written study remembers
    assert '4 rows without text skipped' in again


def test_skipping_empty_rows_does_not_hide_a_missing_class(cli, make_study, tmp_path, frame, nothing_slow):
    rows = [i+1 for i in np.flatnonzero(frame.label == 'tool')]
    (tmp_path/'t.csv').write_bytes(csv(with_text(frame, rows[1:], '')))
    study = make_study(data=dict(train='t.csv'))
    refused(cli('run', study, '--out', tmp_path/'out', '--skip-empty'), tmp_path/'out', 't.csv', "'tool'")


# --- the study file

def test_study_file_that_is_none(cli, tmp_path, nothing_slow):
    for name, text in (('missing.toml', None), ('broken.toml', '[data\n'), ('latin.toml', b'title = "\xe9"')):
        if isinstance(text, str): (tmp_path/name).write_text(text)
        elif text: (tmp_path/name).write_bytes(text)
        refused(cli('run', tmp_path/name, '--out', tmp_path/'out'), tmp_path/'out', tmp_path/name)
    refused(cli('run', tmp_path, '--out', tmp_path/'out'), tmp_path/'out', tmp_path)


BAD_SETTINGS = {
    'negative tau': (dict(method=dict(tau=-1.)), ['tau -1']),
    'tau that is no number': (dict(method=dict(tau=NAN)), ['tau nan']),
    'fraction 0': (dict(method=dict(fraction=[.5, 0])), ['fraction 0 ']),
    'fraction 1.5': (dict(method=dict(fraction=[1.5])), ['fraction 1.5 ']),
    'negative fraction': (dict(method=dict(fraction=[-.1])), ['fraction -0.1 ']),
    'fraction that is no number': (dict(method=dict(fraction=[NAN])), ['fraction nan ']),
    'fraction in quotes': (dict(method=dict(fraction=['0.5'])), ['fraction', "'0.5'"]),
    'no fraction': (dict(method=dict(fraction=[])), ['fraction']),
    'no ranking': (dict(method=dict(ranking=[])), ['ranking']),
    'unknown ranking': (dict(method=dict(ranking=['dprime', 'loudest'])), ["'loudest'", 'dprime', 'probeless']),
    'unknown range': (dict(method=dict(range='triangle')), ["'triangle'", 'gaussian', 'quantile', 'full']),
    'unknown edit': (dict(method=dict(edit='explode')), ["'explode'", 'zero', 'mean']),
    'unknown positions': (dict(method=dict(positions='odd')), ["'odd'", 'readout']),
    'unknown stream': (dict(method=dict(site='brain.1')), ["'brain'", 'residual']),
    'unknown readout': (dict(model=dict(classifier='x', readout='best')), ["'best'", 'first', 'last', 'mean']),
    'q 0': (dict(method=dict(range='quantile', q=0.)), ['q 0']),
    'q 1.1': (dict(method=dict(range='quantile', q=1.1)), ['q 1.1']),
    'number that a range cannot have': (dict(method=dict(range='kmeans(1)')), ['kmeans(1)', '2 to 64']),
    'number for a range without one': (dict(method=dict(range='full(2)')), ["'full'", 'no number']),
    'range that is no word': (dict(method=dict(range='gaussian(')), ["'gaussian('"]),
    'two numbers for a range': (dict(method=dict(range='gaussian(3)', tau=2.5)), ['tau 2.5', 'gaussian(3)']),
    'two masses for a range': (dict(method=dict(range='quantile(0.9)', q=.8)), ['q 0.8', 'quantile(0.9)']),
    'endless edit': (dict(method=dict(edit='scale(inf)')), ['scale(inf)', 'finite']),
    'edit that takes no number': (dict(method=dict(edit='zero(1)')), ["'zero'", 'no number']),
    'vote above 1': (dict(method=dict(vote=1.5)), ['vote 1.5']),
    'vote that is no number': (dict(method=dict(vote=NAN)), ['vote nan']),
    'unknown fit': (dict(method=dict(fitted_at='words')), ["'words'", 'readout', 'tokens']),
    'unknown preset': (dict(method=dict(preset='papers')), ["'papers'", 'paper', 'recommended']),
    'preset that is a control': (dict(method=dict(preset='random')), ["'random'", 'control']),
    'preset and another ranking': (dict(method=dict(preset='paper', ranking=['dprime'])), ["'dprime'", "'paper'", 'max_activation']),
    'preset and another vote': (dict(method=dict(preset='recommended', ranking=['dprime'], vote=0.)),
                                ['vote 0.0', "'recommended'", '0.5']),
    'preset and another edit': (dict(method=dict(preset='gaussian', ranking=['dprime'], edit='zero')), ["'zero'", "'gaussian'"]),
    'preset and other positions': (dict(method=dict(preset='paper', ranking=['max_activation'], positions='readout')),
                                   ["'readout'", "'paper'"]),
    'prompt for a classifier': (dict(prompt=dict(shots=2)), ['[prompt]', 'causal']),
    'template without a place': (dict(model=dict(causal='x'), prompt=dict(template='Topic:')), ['[prompt]', '{text}']),
    'negative shots': (dict(model=dict(causal='x'), prompt=dict(shots=-1)), ['shots -1']),
    'empty verbalizer': (dict(model=dict(causal='x'), prompt=dict(verbalizers=['a', ' '])), ["verbalizer ' '"]),
    'one verbalizer twice': (dict(model=dict(causal='x'), prompt=dict(verbalizers=['a', ' a'])), ["verbalizer 'a'"]),
    'unknown scoring': (dict(model=dict(causal='x'), prompt=dict(scoring='mean')), ["'mean'", 'first', 'sum']),
    'causal model read at its first token': (dict(model=dict(causal='x', readout='first')), ["'first'", 'last']),
    'classes of a causal model': (dict(model=dict(causal='x', classes=['a', 'b'])), ['classes']),
    'test share 1': (dict(data=dict(train='x.csv', test_share=1.)), ['test_share']),
    'no epoch': (dict(model=dict(encoder='x'), training=dict(epochs=0)), ['epochs']),
    'learning rate that is no number': (dict(model=dict(encoder='x'), training=dict(lr=NAN)), ['lr']),
    'two models': (dict(model=dict(classifier='x', encoder='y')), ['classifier', 'encoder']),
    'no model': (dict(model={}), ['classifier', 'encoder']),
    'no data': (dict(data={}), ['train']),
    'setting that is not one': (dict(method=dict(tua=2.5)), ["'tua'", 'tau']),
    'table that is not one': (dict(methods=dict(tau=2.5)), ["'methods'", '[method]']),
    'number for a text': (dict(data=dict(train=5)), ['train', '5']),
    'text for a number': (dict(method=dict(tau='wide')), ['tau', "'wide'"]),
    'true for a number': (dict(method=dict(tau=True)), ['tau', 'True']),
}


@pytest.mark.parametrize('case', BAD_SETTINGS)
def test_bad_settings(case, cli, make_study, tmp_path, monkeypatch, nothing_slow):
    monkeypatch.setattr('neuronlens.studies.study.study_texts', lambda spec: pytest.fail('texts were read first'))
    tables, named = BAD_SETTINGS[case]
    study = make_study(**tables)
    refused(cli('run', study, '--out', tmp_path/'out'), tmp_path/'out', study, *named)
    assert not (tmp_path/'out').exists()


@pytest.mark.parametrize('site', ['residual.2', 'residual.-3', 'mlp.2', 'attention.99'])
@pytest.mark.parametrize('what', ['classifier', 'encoder'])
def test_block_beyond_the_model(site, what, refuse, bert, encoder, nothing_slow):
    model = {what: str(bert if what == 'classifier' else encoder)}
    block = site.partition('.')[2]
    said = refuse(site, model=model, method=dict(site=site))
    assert re.search(rf'block {block} .*0 to 1', said)


@pytest.mark.parametrize('site', ['residual', 'residual.', 'residual.last', 'residual.1.5'])
def test_site_without_a_block(site, refuse, nothing_slow):
    refuse(f"'{site}'", method=dict(site=site))


# --- the output folder

def test_output_cannot_be_written(cli, make_study, tmp_path, nothing_slow):
    (tmp_path/'file').write_text('mine')
    for out in (tmp_path/'file', tmp_path/'file/below', tmp_path/'file/far/below'):
        refused(cli('run', make_study(), '--out', out), out, out)
    assert (tmp_path/'file').read_text() == 'mine'
    (tmp_path/'link').symlink_to(tmp_path/'nowhere/at/all') # A link to nothing is no folder either
    refused(cli('run', make_study(), '--out', tmp_path/'link'), tmp_path/'link', tmp_path/'link')


def test_output_without_permission(refuse, tmp_path, monkeypatch, nothing_slow):
    import tempfile
    def denied(*args, **kw): raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr(tempfile, 'TemporaryFile', denied) # Tests may run as root, whom no mode bits stop
    refuse(tmp_path/'out', 'Permission denied')


def test_output_holds_another_study(cli, make_study, tmp_path, request):
    finish(cli('run', make_study(), '--out', tmp_path/'out'))
    was = files(tmp_path/'out')
    request.getfixturevalue('nothing_slow')
    (tmp_path/'copy.csv').write_bytes(csv(make_frame(20, 1)))
    for other in (dict(method=dict(tau=2.)), dict(seed=1), dict(title='another'), dict(data=dict(train='copy.csv'))):
        r = cli('run', make_study(**other), '--out', tmp_path/'out')
        assert (r.exit_code, r.stdout, r.stderr.count('\n')) == (2, '', 1)
        assert str(tmp_path/'out') in r.stderr and 'another study' in r.stderr
    assert files(tmp_path/'out') == was


@pytest.mark.parametrize('held', ['effects.csv', 'recording/train.json', 'study.toml', 'report.html'])
def test_output_holds_results_of_something_else(held, cli, make_study, tmp_path, nothing_slow):
    path = tmp_path/'out'/held
    path.parent.mkdir(parents=True)
    path.write_text('precious = "yes"')
    r = cli('run', make_study(), '--out', tmp_path/'out')
    assert r.exit_code == 2 and str(tmp_path/'out') in r.stderr and r.stderr.count('\n') == 1
    assert files(tmp_path/'out') == {held: b'precious = "yes"'}


# --- the model

def test_labels_that_do_not_fit(refuse, tmp_path, frame, no_pass):
    frame.replace({'label': {'tool': 'weapon'}}).to_csv(tmp_path/'t.csv', index=False)
    said = refuse('t.csv', 'class', "model's", data=dict(train='t.csv'))
    assert all(c in said for c in CLASSES)


def test_the_class_that_does_not_fit_is_named(refuse, tmp_path, frame, no_pass):
    frame.replace({'label': {'tool': 'weapon'}}).to_csv(tmp_path/'t.csv', index=False)
    refuse("'weapon'", data=dict(train='t.csv'))


def test_class_of_the_model_without_a_text(refuse, tmp_path, frame, no_pass):
    frame[frame.label != 'tool'].to_csv(tmp_path/'t.csv', index=False)
    refuse("'tool'", 't.csv', data=dict(train='t.csv'))


def test_class_in_the_test_that_training_has_not(refuse, tmp_path, frame, data, nothing_slow):
    frame.replace({'label': {'tool': 'weapon'}}).to_csv(tmp_path/'t.csv', index=False)
    refuse("'weapon'", 't.csv', data=dict(train=str(data.train), test='t.csv'))


def test_wrong_number_of_named_classes(refuse, bert, no_pass):
    refuse(bert, '3 outputs', '2 classes', model=dict(classifier=str(bert), classes=['animal', 'food']))


@pytest.mark.parametrize('length', [2, 49, 10_000])
def test_more_tokens_than_the_model_reads(length, refuse, bert, no_pass):
    refuse(f'max_length {length}', '48', model=dict(classifier=str(bert), max_length=length))


def test_encoder_is_no_classifier(refuse, encoder, no_pass):
    refuse(encoder, 'classification head', model=dict(classifier=str(encoder)))


def test_model_folder_that_is_none(refuse, tmp_path, no_pass):
    (tmp_path/'empty').mkdir()
    (tmp_path/'broken').mkdir()
    (tmp_path/'broken/config.json').write_text('{')
    for name in ('empty', 'broken', 'nowhere'):
        refuse(tmp_path/name, model=dict(classifier=str(tmp_path/name)))


def altered(folder, to, change):
    "A copy of a classifier whose parameters `change` has changed in place."
    import torch
    from safetensors.torch import load_file, save_file
    shutil.copytree(folder, to)
    weights = load_file(to/'model.safetensors')
    with torch.no_grad(): change(weights)
    save_file(weights, to/'model.safetensors', metadata={'format': 'pt'})
    return to


POISON = {('bert', 'one neuron'): ('bert.encoder.layer.1.output.LayerNorm.bias', 5, 'neuron 5 '),
          ('gpt2', 'one neuron'): ('transformer.h.1.mlp.c_proj.bias', 7, 'neuron 7 '),
          ('bert', 'all neurons'): ('bert.encoder.layer.0.output.dense.bias', 3, '32 neurons')}


@pytest.mark.parametrize('value', [NAN, INF])
@pytest.mark.parametrize('kind,spread', POISON)
def test_activations_that_are_not_finite(kind, spread, value, refuse, tmp_path, request, own_cache):
    weight, at, named = POISON[kind, spread]
    def change(w): w[weight][at] = value
    folder = altered(request.getfixturevalue(kind), tmp_path/'bad', change)
    refuse('residual.1', 'neuron', named, '60 rows (1, 2, ', model=dict(classifier=str(folder)))
    assert not own_cache.exists() or files(own_cache) == {}


def test_one_text_with_activations_that_are_not_finite(refuse, tmp_path, bert, frame):
    def change(w): w['bert.embeddings.word_embeddings.weight'][1] = NAN # [UNK], which only one text has
    df = frame.copy()
    df.loc[16, 'text'] = 'the zebra'
    (tmp_path/'t.csv').write_bytes(csv(df))
    folder = altered(bert, tmp_path/'bad', change)
    refuse('residual.1', 'neuron 0', 'row 17 ', model=dict(classifier=str(folder)), data=dict(train='t.csv'))


class Bomb:
    "Leaves a mark where it is unpickled."
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return (Path.touch, (self.mark,))


@pytest.mark.parametrize('what', ['classifier', 'encoder'])
def test_pickled_weights_are_refused_unread(what, refuse, tmp_path, bert):
    folder, mark = shutil.copytree(bert, tmp_path/'pickled'), tmp_path/'unpickled'
    (folder/'model.safetensors').unlink()
    (folder/'pytorch_model.bin').write_bytes(pickle.dumps(Bomb(mark)))
    refuse(folder, 'pickled', model={what: str(folder), 'max_length': 32})
    assert not mark.exists()
    pickle.loads((folder/'pytorch_model.bin').read_bytes())
    assert mark.exists() # The bomb was live


def test_pickled_weights_beside_others_are_not_read(cli, make_study, refuse, tmp_path, bert):
    folder, mark = shutil.copytree(bert, tmp_path/'both'), tmp_path/'unpickled'
    (folder/'pytorch_model.bin').write_bytes(pickle.dumps(Bomb(mark)))
    finish(cli('run', make_study(model=dict(classifier=str(folder))), '--out', tmp_path/'out'))
    (folder/'model.safetensors').rename(folder/'other.safetensors')
    refuse(folder, out=tmp_path/'out2', model=dict(classifier=str(folder)))
    assert not mark.exists()


REMOTE = '''from pathlib import Path
Path({mark!r}).touch()
from transformers import BertConfig, BertForSequenceClassification
class StrangeConfig(BertConfig): model_type = 'strange'
class StrangeForSequenceClassification(BertForSequenceClassification): config_class = StrangeConfig
'''


@pytest.fixture
def strange(tmp_path, bert, monkeypatch):
    "(folder of a model that needs its own code, mark that the code leaves where it runs)."
    monkeypatch.setattr('transformers.dynamic_module_utils.HF_MODULES_CACHE', str(tmp_path/'modules'))
    folder, mark = shutil.copytree(bert, tmp_path/'strange'), tmp_path/'ran'
    (folder/'strange.py').write_text(REMOTE.format(mark=str(mark)))
    cfg = json.loads((folder/'config.json').read_text())
    cfg |= dict(model_type='strange', architectures=['StrangeForSequenceClassification'],
                auto_map=dict(AutoConfig='strange.StrangeConfig',
                              AutoModelForSequenceClassification='strange.StrangeForSequenceClassification'))
    (folder/'config.json').write_text(json.dumps(cfg))
    yield folder, mark
    sys.modules.pop('transformers_modules', None)


@pytest.mark.parametrize('what', ['classifier', 'encoder'])
def test_remote_code_is_not_run(what, refuse, strange):
    folder, mark = strange
    refuse(folder, 'custom code', model={what: str(folder), 'max_length': 32})
    assert not mark.exists()


def test_remote_code_is_run_if_the_user_says_so(cli, make_study, tmp_path, strange, bert):
    folder, mark = strange
    finish(cli('run', make_study(model=dict(classifier=str(folder), trust_remote_code=True)), '--out', tmp_path/'out'))
    assert mark.exists()
    finish(cli('run', make_study(), '--out', tmp_path/'plain'))
    assert (tmp_path/'out/effects.csv').read_bytes() == (tmp_path/'plain/effects.csv').read_bytes()


def test_remote_code_of_a_tokenizer_is_not_run(cli, make_study, tmp_path, strange, bert):
    mark = strange[1]
    folder = shutil.copytree(bert, tmp_path/'tok')
    (folder/'strange.py').write_text(REMOTE.format(mark=str(mark)))
    cfg = json.loads((folder/'tokenizer_config.json').read_text())
    cfg |= dict(tokenizer_class='StrangeTokenizer', auto_map=dict(AutoTokenizer=['strange.StrangeTokenizer', None]))
    (folder/'tokenizer_config.json').write_text(json.dumps(cfg))
    r = cli('run', make_study(model=dict(classifier=str(folder))), '--out', tmp_path/'out')
    assert not mark.exists()
    if r.exit_code: refused(r, tmp_path/'out', folder)


# --- hostile names

def test_hostile_names_are_escaped(cli, make_study, tmp_path, encoder, monkeypatch, no_figures):
    monkeypatch.setattr('neuronlens.studies.report.write_figures', no_figures) # The real one: classes become file names
    bad = ['<img src=x onerror=alert(1)>', '../../x', '$\\frac{$ "\'&\n\x1b[31m']
    df = make_frame(12, 1, bad)
    df.loc[0, 'text'] = '<script>alert("text")</script> cat dog'
    (tmp_path/'<i>t.jsonl').write_bytes(jsonl(df.to_dict('records')))
    folder = shutil.copytree(encoder, tmp_path/'<b>model')
    study = make_study(title='</title><script>alert("title")</script>', data=dict(train='<i>t.jsonl'),
                       model=dict(encoder=str(folder), max_length=32), training=dict(epochs=1))
    def around(): return {p for p in tmp_path.parent.rglob('*') if not p.is_relative_to(tmp_path/'own-cache')}
    before, out = around(), tmp_path/'deep/out'
    said = finish(cli('run', study, '--out', out))
    assert all(p.is_relative_to(tmp_path/'deep') for p in around()-before)
    assert [p.name for p in (tmp_path/'deep').iterdir()] == ['out']
    names = [p.name for p in (out/'figures').iterdir()]
    assert len(names) == 7 and all(re.fullmatch(r'[a-z0-9-]+\.png', n) for n in names)
    html = (out/'report.html').read_text(encoding='utf-8')
    picture = r'img alt="[^"<>]*" src="data:image/png;base64,[A-Za-z0-9+/=]*" width="[0-9]+" height="[0-9]+">'
    assert len(re.findall(f'<{picture}', html)) == 7
    from neuronlens.views.explorer import asset
    own = html.replace(f"<script>{asset('js')}</script>", '').replace('<script type="application/json">', '')
    assert not re.search(r'<(script|b>model|i>t|img (?!alt=))', own)
    assert '&lt;img src=x onerror=alert(1)&gt;' in html and '../../x' in html and '&lt;/title&gt;&lt;script&gt;' in html
    assert '\x1b' not in said # No control sequence of the data reaches the terminal
    assert set(pd.read_csv(out/'effects.csv').concept) == set(bad) # The data stay as they are


# --- Ctrl-C

ROWS = {'effects.csv': [12], 'intervals.csv': [8*(12+4)], 'meaning.csv': [1, 2, 3]} # Ranges that all texts lie in mean nothing


def whole(folder):
    "Every file below a folder can be read to its end, and none is a temporary one."
    for p in folder.rglob('*'):
        assert not p.name.startswith('.') and '.tmp' not in p.name, p
        if p.suffix == '.json': json.loads(p.read_text())
        if p.suffix == '.toml': assert p.read_text().endswith('explainer = "ngrams"\n'), p
        if p.suffix == '.csv': assert len(pd.read_csv(p)) in ROWS[p.name]
        if p.suffix == '.html': assert p.read_text().endswith('</html>')
        if p.suffix == '.png': assert p.read_bytes().endswith(b'IEND\xaeB`\x82')
        if p.suffix == '.safetensors':
            with safe_open(p, 'np') as f: [f.get_tensor(k) for k in f.keys()]


def interrupted(result):
    assert result.exit_code == 130, (result.exit_code, result.exception, result.stderr)
    assert isinstance(result.exception, SystemExit)
    assert re.fullmatch(r'neuronlens: interrupted[^\n]*\n', result.stderr)


@pytest.fixture(scope='module')
def clean(tmp_path_factory, cli, data, bert, one_thread):
    "effects.csv of the usual study, run without interruption."
    from neuronlens.studies.spec import DataSpec, MethodSpec, ModelSpec, StudySpec
    from neuronlens.studies.study import run_study
    out = tmp_path_factory.mktemp('clean')/'out'
    spec = StudySpec(data=DataSpec(str(data.train), str(data.test)), model=ModelSpec(str(bert)),
                     method=MethodSpec(ranking=['dprime'], fraction=[.5], layers=False))
    with pytest.MonkeyPatch.context() as mp:
        mp.setenv('NEURONLENS_CACHE', str(out.parent/'cache'))
        run_study(spec, out, progress=False)
    return (out/'effects.csv').read_bytes()


def strike(mp, owner, attribute, which, hit):
    "Ctrl-C comes when half of the file that `hit` says is on the disk."
    real = getattr(owner, attribute)
    def patched(*args, **kw):
        path = Path(args[which])
        if not hit(path): return real(*args, **kw)
        path.write_bytes(b'{"half": ')
        raise KeyboardInterrupt
    mp.setattr(owner, attribute, patched)


@pytest.mark.parametrize('file', ['study.toml', 'effects.csv', 'intervals.csv', 'recording/train.safetensors', 'recording/test.json',
                                  'provenance.json', 'figures/effects.png', 'report.html'])
def test_ctrl_c_while_a_result_is_written(file, cli, make_study, tmp_path, own_cache, no_figures, clean):
    from matplotlib.figure import Figure

    from neuronlens.records import recording
    from neuronlens.studies import report
    out = tmp_path/'out'
    def hit(path): return path.name == Path(file).name and path.is_relative_to(out)
    with pytest.MonkeyPatch.context() as mp:
        strike(mp, Path, 'write_text', 0, hit)
        strike(mp, pd.DataFrame, 'to_csv', 1, hit)
        strike(mp, recording, 'save_file', 1, hit)
        strike(mp, Figure, 'savefig', 1, hit)
        if file.endswith('.png'): mp.setattr(report, 'write_figures', no_figures)
        interrupted(cli('run', make_study(), '--out', out))
    assert file not in files(out)
    whole(out)
    whole(own_cache)
    finish(cli('run', make_study(), '--out', out))
    assert (out/'effects.csv').read_bytes() == clean
    assert file in files(out) or file.endswith('.png')
    whole(out)


def test_ctrl_c_while_a_finished_study_is_written_again(cli, make_study, tmp_path, clean):
    out = tmp_path/'out'
    finish(cli('run', make_study(), '--out', out))
    before = files(out)
    with pytest.MonkeyPatch.context() as mp:
        strike(mp, pd.DataFrame, 'to_csv', 1, lambda path: path.name == 'effects.csv')
        interrupted(cli('run', make_study(), '--out', out, '--again'))
    assert files(out) == before # The report says how long it took nowhere, so it is the same too


def test_ctrl_c_while_the_store_is_written(cli, make_study, tmp_path, own_cache, clean):
    from neuronlens import files as room
    out, kept = tmp_path/'out', []
    def second(path):
        kept.append(path)
        return len(kept) == 2
    with pytest.MonkeyPatch.context() as mp:
        strike(mp, room, 'save_file', 1, second)
        interrupted(cli('run', make_study(), '--out', out))
    assert len([f for f in files(own_cache) if f.endswith('.safetensors')]) == 1 and not files(out)
    whole(own_cache)
    finish(cli('run', make_study(), '--out', out))
    assert (out/'effects.csv').read_bytes() == clean


@pytest.mark.parametrize('at', ['training', 'saving'])
def test_ctrl_c_while_a_model_is_made(at, cli, make_study, tmp_path, encoder, own_cache):
    from neuronlens import training
    study, batches, logits = make_study(model=dict(encoder=str(encoder), max_length=32)), [], training.logits
    def tired(*args):
        batches.append(args)
        if len(batches) == 5: raise KeyboardInterrupt
        return logits(*args)
    with pytest.MonkeyPatch.context() as mp:
        if at == 'saving': strike(mp, Path, 'write_text', 0, lambda path: path.name == 'training.json')
        else: mp.setattr(training, 'logits', tired)
        interrupted(cli('run', study, '--out', tmp_path/'out'))
    assert not files(tmp_path/'out') and (not own_cache.exists() or not files(own_cache))
    assert not own_cache.exists() or not list(own_cache.glob('models/*'))
    finish(cli('run', study, '--out', tmp_path/'out'))
    whole(tmp_path/'out')


def signalled(args, when, env):
    "Start the real command, send SIGINT as soon as `when` is on standard error; (status, standard error)."
    call = [Path(sys.executable).with_name('neuronlens'), *args]
    env = os.environ | {'TQDM_DISABLE': '0', 'OMP_NUM_THREADS': '1'} | env
    def heed(): signal.signal(signal.SIGINT, signal.SIG_DFL) # A background job inherits that it ignores Ctrl-C
    p = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env, preexec_fn=heed)
    said, end = b'', time.monotonic()+120
    try:
        while when not in said and time.monotonic() < end and (part := os.read(p.stderr.fileno(), 4096)): said += part
        assert when in said, said
        p.send_signal(signal.SIGINT)
        return p.wait(timeout=60), (said+p.stderr.read()).decode()
    finally: p.kill()


@pytest.mark.slow
@pytest.mark.parametrize('when', ['recording', 'fine-tuning'])
def test_ctrl_c_in_a_real_process(when, cli, make_study, tmp_path, own_cache, encoder, bert):
    out = tmp_path/'out'
    make_frame(500, 3).to_csv(tmp_path/'many.csv', index=False)
    model = dict(classifier=str(bert)) if when == 'recording' else dict(encoder=str(encoder), max_length=32)
    study = make_study(data=dict(train='many.csv', test_share=.2), model=model, training=dict(epochs=2))
    status, said = signalled(['run', study, '--out', out], when.encode(), {})
    assert status == 130
    assert 'Traceback' not in said and 'neuronlens: interrupted' in said.splitlines()[-1]
    assert not files(out) and (not own_cache.exists() or not files(own_cache)) # Nothing was finished, nothing is there
    finish(cli('run', study, '--out', out))
    whole(out)


# --- what is cut is said

def test_cut_texts_are_counted(cli, make_study, tmp_path, bert, frame, test_frame):
    lengths = [len(t.split())+2 for t in (*frame.text, *test_frame.text)] # With [CLS] and [SEP]
    study = make_study(model=dict(classifier=str(bert), max_length=10))
    for out in ('out', 'again'): # The second time from the store
        said = finish(cli('run', study, '--out', tmp_path/out))
        assert f'{sum(n > 10 for n in lengths)} of 96 texts cut to 10 tokens' in said
        assert f'{sum(n > 10 for n in lengths)} texts were cut to 10 tokens' in (tmp_path/out/'report.html').read_text()
    assert 0 < sum(n > 10 for n in lengths) < 96
    assert 'cut to' not in finish(cli('run', make_study(), '--out', tmp_path/'whole'))


def test_long_texts_are_cut_to_what_the_model_reads(cli, make_study, tmp_path, frame):
    df = frame.copy()
    df.loc[[3, 8], 'text'] = ['cat '*46+'dog', 'soup '*46] # 49 and 48 tokens; the model reads 48
    (tmp_path/'t.csv').write_bytes(csv(df))
    said = finish(cli('run', make_study(data=dict(train='t.csv')), '--out', tmp_path/'out'))
    assert '1 of 60 texts cut to 48 tokens' in said


# --- a real process

def test_a_real_process_says_one_sentence(make_study, tmp_path):
    study = make_study(data=dict(train='nowhere.csv'))
    call = [Path(sys.executable).with_name('neuronlens'), 'run', study, '--out', 'out']
    p = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (p.returncode, p.stdout, p.stderr) == (2, '', f'neuronlens: {tmp_path}/nowhere.csv: no such file (neuronlens explain NL101)\n')
    assert not (tmp_path/'out').exists()


# --- found by trying to break it

def poisoned(w): w['classifier.weight'][0, 0] = NAN


def test_answers_that_are_not_finite(refuse, tmp_path, bert):
    refuse('not finite', model=dict(classifier=str(altered(bert, tmp_path/'bad', poisoned))))


def test_activations_above_the_site_that_are_not_finite(refuse, tmp_path, bert):
    def change(w): w['bert.encoder.layer.1.output.LayerNorm.bias'][5] = NAN
    folder = altered(bert, tmp_path/'bad', change)
    refuse('not finite', model=dict(classifier=str(folder)), method=dict(site='residual.0'))


def test_classifier_without_weights_of_its_head(refuse, tmp_path, bert):
    folder = altered(bert, tmp_path/'bad', lambda w: w.pop('classifier.weight'))
    refuse('classifier.weight', model=dict(classifier=str(folder)))


@pytest.mark.parametrize('keep', [0, 1000])
def test_damaged_weights(keep, refuse, tmp_path, bert):
    folder = shutil.copytree(bert, tmp_path/'bad')
    (folder/'model.safetensors').write_bytes((folder/'model.safetensors').read_bytes()[:keep])
    refuse(folder, model=dict(classifier=str(folder)))


def test_encoder_with_a_head_of_another_size(cli, make_study, tmp_path, bert, frame):
    frame[frame.label != 'tool'].to_csv(tmp_path/'two.csv', index=False)
    study = make_study(data=dict(train='two.csv'), model=dict(encoder=str(bert), max_length=32))
    r = cli('run', study, '--out', tmp_path/'out')
    if r.exit_code: refused(r, tmp_path/'out', bert)


def test_model_that_is_no_transformer(refuse, tmp_path):
    (tmp_path/'odd').mkdir()
    (tmp_path/'odd/config.json').write_text('{"model_type": "resnet"}')
    refuse(tmp_path/'odd', model=dict(classifier=str(tmp_path/'odd')))


@pytest.mark.parametrize('setting', [dict(dtype='float33'), dict(dtype='save'), dict(device='abacus')])
def test_unknown_device_or_type(setting, refuse, bert, no_pass):
    refuse(*map(repr, setting.values()), model=dict(classifier=str(bert)) | setting)


@pytest.mark.parametrize('site', ['residual.1', 'mlp.0'])
def test_weights_in_bfloat16(site, cli, make_study, tmp_path, bert):
    study = make_study(model=dict(classifier=str(bert), dtype='bfloat16'), method=dict(site=site))
    finish(cli('run', study, '--out', tmp_path/'out'))


def test_negative_seed(refuse, nothing_slow):
    refuse('seed', ' -1', seed=-1)


def test_class_names_that_are_numbers(refuse, bert, no_pass):
    refuse('classes', model=dict(classifier=str(bert), classes=[0, 1, 2]))


def test_a_fraction_given_twice(refuse, nothing_slow):
    refuse('fraction', method=dict(fraction=[1, 1.]))


def test_a_fraction_that_selects_no_neuron(cli, make_study, tmp_path, monkeypatch, no_figures):
    monkeypatch.setattr('neuronlens.studies.report.write_figures', no_figures)
    r = cli('run', make_study(method=dict(fraction=[.01])), '--out', tmp_path/'out')
    if r.exit_code: refused(r, tmp_path/'out', 'fraction')


@pytest.mark.parametrize('name', ['²', '--1'])
def test_odd_class_names(name, tmp_path, frame):
    from neuronlens.ground.data import read_texts
    frame.replace({'label': {'tool': name}}).to_csv(tmp_path/'t.csv', index=False)
    assert set(read_texts(tmp_path/'t.csv').classes) == {'animal', 'food', name}


@pytest.mark.parametrize('kind', ['string', 'Int64'])
def test_missing_label_of_a_nullable_column(kind, refuse, tmp_path, frame, nothing_slow):
    labels = [c if kind == 'string' else CLASSES.index(c) for c in frame.label]
    frame.assign(label=pd.array([*labels[:4], None, *labels[5:]], dtype=kind)).to_parquet(tmp_path/'t.parquet')
    refuse('row 5', 'label', data=dict(train='t.parquet'))


def test_text_that_is_not_unicode(refuse, tmp_path, frame, nothing_slow):
    (tmp_path/'t.jsonl').write_bytes(jsonl([*frame.to_dict('records'), {'text': 'cat \ud800', 'label': 'animal'}]))
    refuse('t.jsonl', 'row 61', data=dict(train='t.jsonl'))


def test_unquoted_commas(refuse, tmp_path, frame, nothing_slow):
    rows = ''.join(f'yes, {t},{c}\n' for t, c in frame.values)
    (tmp_path/'t.csv').write_text('text,label\n'+rows)
    refuse('t.csv', data=dict(train='t.csv'))


def test_text_without_a_token_is_named_by_its_row(cli, make_study, tmp_path, frame, gpt2):
    rows = frame.to_dict('records')
    rows = [rows[0], *rows[:10], {'text': '\u200b', 'label': 'tool'}, *rows[10:]] # Row 12, after a row that is a repeat
    (tmp_path/'t.jsonl').write_bytes(jsonl(rows))
    study = make_study(data=dict(train='t.jsonl', test_share=.05), model=dict(classifier=str(gpt2)))
    r = cli('run', study, '--out', tmp_path/'out')
    assert r.exit_code == 2 and 't.jsonl' in r.stderr and 'row 12:' in r.stderr


def test_classes_that_differ_only_in_case(cli, make_study, tmp_path, frame, encoder, monkeypatch):
    from neuronlens import training
    trained, train = [], training._train
    monkeypatch.setattr(training, '_train', lambda *args: trained.append(args) or train(*args))
    df = frame.copy()
    df.loc[df.index[df.label == 'tool'][:8], 'label'] = 'TOOL'
    df.to_csv(tmp_path/'t.csv', index=False)
    study = make_study(data=dict(train='t.csv'), model=dict(encoder=str(encoder), max_length=32))
    r = cli('run', study, '--out', tmp_path/'out')
    if r.exit_code:
        refused(r, tmp_path/'out', 't.csv', "'TOOL'", "'tool'")
        assert not trained
    else: assert set(pd.read_csv(tmp_path/'out/effects.csv').concept) == {'animal', 'food', 'tool', 'TOOL'}


def test_a_folder_is_no_study_file(cli, make_study, tmp_path, nothing_slow):
    r = cli('run', tmp_path, '--out', tmp_path/'out')
    assert r.exit_code == 2 and r.stderr.startswith(f'neuronlens: {tmp_path} is a folder;') and r.stderr.count('\n') == 1


def test_output_name_that_is_too_long(cli, make_study, tmp_path, nothing_slow):
    r = cli('run', make_study(), '--out', tmp_path/('x'*300))
    assert r.exit_code == 2 and 'xxx' in r.stderr and r.stderr.count('\n') == 1


def test_cache_that_cannot_be_written(cli, make_study, tmp_path, monkeypatch, no_figures, clean):
    "The cache only spares work, so the study runs without it and says so once."
    (tmp_path/'file').write_text('mine')
    monkeypatch.setenv('NEURONLENS_CACHE', str(tmp_path/'file'))
    finish(r := cli('run', make_study(), '--out', tmp_path/'out'))
    said = [line for line in r.stderr.splitlines() if 'goes on without' in line]
    assert len(said) == 1 and said[0].startswith('warning: ') and str(tmp_path/'file') in said[0] # And no line of Python
    assert (tmp_path/'out/effects.csv').read_bytes() == clean and (tmp_path/'file').read_text() == 'mine'


def test_repeats_within_the_test_file_are_left_out(cli, make_study, tmp_path, data, test_frame):
    pd.concat([test_frame, test_frame[:5]]).to_csv(tmp_path/'twice.csv', index=False)
    study = make_study(data=dict(train=str(data.train), test='twice.csv'))
    assert '5 repeated texts left out' in finish(cli('run', study, '--out', tmp_path/'out'))
    assert json.loads((tmp_path/'out/recording/test.json').read_text())['n_texts'] == 36


def test_columns_of_a_table_go_by_position():
    "Texts and labels that are columns of a shuffled or filtered table stay pairs, in their order."
    from neuronlens.ground.core import InputError
    from neuronlens.ground.data import make_texts
    df = pd.DataFrame(dict(text=[f"text {i}" for i in range(12)], label=[CLASSES[i % 3] for i in range(12)]))
    for some in (df.sample(frac=1, random_state=0), df[df.index > 2]):
        for t, l in ((some.text, list(some.label)), (list(some.text), some.label), (some.text, some.label)):
            res = make_texts(t, l)
            assert list(res.texts) == some.text.tolist() and [res.classes[i] for i in res.labels] == some.label.tolist()
    with pytest.raises(InputError, match="12 texts but 3 row numbers"):
        make_texts(df.text, df.label, rows=[1, 2, 3])


# --- folders whose parts do not belong together

def told(folder, to, **config):
    "A copy of a model's folder with other settings."
    shutil.copytree(folder, to)
    said = json.loads((to/'config.json').read_text())
    (to/'config.json').write_text(json.dumps(said | config))
    return to


@pytest.mark.parametrize('kind', ['bert', 'gpt2'])
def test_folder_without_a_tokenizer(kind, refuse, tmp_path, request, no_pass):
    folder = told(request.getfixturevalue(kind), tmp_path/'mute')
    for p in folder.glob('tokenizer*'): p.unlink()
    refuse(folder, 'tokenizer', model=dict(classifier=str(folder)))


def test_tokenizer_with_more_words_than_the_model(refuse, tmp_path, bert, no_pass):
    folder = told(bert, tmp_path/'big')
    tok = json.loads((folder/'tokenizer.json').read_text())
    tok['model']['vocab']['zebra'] = 77
    (folder/'tokenizer.json').write_text(json.dumps(tok))
    refuse(folder, 'embeddings of 34 tokens, but its tokenizer makes 78', model=dict(classifier=str(folder)))


def test_weights_of_another_shape(refuse, tmp_path, bert, no_pass):
    names = dict(id2label={i: f'c{i}' for i in range(5)}, label2id={f'c{i}': i for i in range(5)})
    folder = told(bert, tmp_path/'five', **names)
    refuse(folder, "weight 'classifier.bias' is (3,) in its file, but (5,) is wanted", model=dict(classifier=str(folder)))


def test_a_trained_head_of_another_size(cli, make_study, tmp_path, bert, frame):
    frame[frame.label != 'tool'].to_csv(tmp_path/'two.csv', index=False)
    r = cli('run', make_study(data=dict(train='two.csv'), model=dict(encoder=str(bert), max_length=32)), '--out', tmp_path/'out')
    refused(r, tmp_path/'out', bert, "weight 'classifier.bias' is (3,) in its file, but (2,) is wanted")


def test_two_outputs_of_one_name(refuse, tmp_path, bert, no_pass):
    folder = told(bert, tmp_path/'twice', id2label={0: 'a', 1: 'a', 2: 'b'})
    refuse(folder, "two outputs called 'a'", model=dict(classifier=str(folder)))


@pytest.mark.parametrize('device', ['cuda:77', 'mps', 'meta'])
def test_device_that_is_not_there(device, refuse, bert, no_pass):
    refuse(repr(device), model=dict(classifier=str(bert), device=device))


def test_encoder_decoder(refuse, tmp_path, bert, no_pass):
    from transformers import T5Config
    folder = told(bert, tmp_path/'t5')
    T5Config(architectures=['T5ForSequenceClassification']).save_pretrained(folder)
    refuse(folder, 'encoder-decoder (t5)', model=dict(classifier=str(folder)))


def test_settings_of_a_wrong_kind(refuse, tmp_path, bert, no_pass):
    folder = told(bert, tmp_path/'odd', hidden_size='many')
    refuse(folder, 'cannot be loaded', model=dict(classifier=str(folder)))


def test_an_encoder_that_reads_little(encoder, frame, own_cache):
    "Where nobody says how many tokens, they are as many as the encoder reads, at most 64."
    from neuronlens.ground.core import InputError
    from neuronlens.ground.data import make_texts
    from neuronlens.models.training import fine_tune
    texts = make_texts(frame.text, frame.label)
    assert fine_tune(encoder, texts, epochs=1, cache=False, progress=False).max_length == 48
    with pytest.raises(InputError, match="max_length 64 must be a whole number between 3 and the model's 48"):
        fine_tune(encoder, texts, max_length=64, progress=False)


def test_an_uncached_classifier_knows_its_weights(encoder, frame, own_cache):
    from neuronlens.ground.data import make_texts
    from neuronlens.models.training import fine_tune
    clf = fine_tune(encoder, make_texts(frame.text, frame.label), epochs=1, cache=False, progress=False)
    assert clf.state and clf.changed == {}
    clf.model.classifier.bias.data += 1
    assert list(clf.changed) == ['changed']


@pytest.mark.parametrize('n, seed', [(2, 0), pytest.param(15, 1, marks=pytest.mark.slow), pytest.param(100, 2, marks=pytest.mark.deep)])
def test_a_killed_study_runs_again_to_the_same_bytes(n, seed, tmp_path):
    hit, wrong = kills(n, seed, tmp_path)
    assert wrong == [] and hit > n/2


@pytest.mark.slow
def test_a_terminal_of_another_code_page(make_study, frame, test_frame, bert, tmp_path):
    "What it cannot print stands there as its number; the run is whole."
    names = dict(zip(CLASSES, ('été', '冬', 'outil'), strict=True))
    for df, name in ((frame, 'train'), (test_frame, 'test')): df.replace({'label': names}).to_csv(tmp_path/f'{name}.csv', index=False)
    study = make_study(data=dict(train=str(tmp_path/'train.csv'), test=str(tmp_path/'test.csv')),
                       model=dict(classifier=str(bert), classes=[*names.values()]))
    call = "from neuronlens import report\nreport.write_figures = lambda *a, **kw: []\nfrom neuronlens.studies.cli import main\nmain()"
    p = subprocess.run([sys.executable, '-c', call, 'run', study, '--out', tmp_path/'out', '--quiet'], capture_output=True,
                       env=os.environ | dict(PYTHONIOENCODING='cp1252', OMP_NUM_THREADS='1'))
    assert (p.returncode, p.stderr) == (0, b'')
    assert '\\u51ac' in p.stdout.decode('cp1252') and (tmp_path/'out/report.html').exists()
