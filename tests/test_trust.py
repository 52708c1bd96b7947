"""What nobody vouches for is refused by name or harmless: damaged studies, odd study files, strange models, words that are programs."""
import json
import os
import random
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tomli_w
from conftest import CLASSES, study_text
from generated import generated, one_sentence, read_all
from safetensors.torch import load_file, save_file
from test_failures import REMOTE

from neuronlens.edits.effects import MEASURES, read_table, write_table
from neuronlens.ground.cache import cache_folder
from neuronlens.ground.core import InputError
from neuronlens.ground.data import read_texts
from neuronlens.models.model import load_classifier, load_language_model
from neuronlens.models.weights import weights_hash
from neuronlens.records.recording import record
from neuronlens.studies.findings import next_steps
from neuronlens.studies.saved import load_study
from neuronlens.studies.study import study_model

pytestmark = pytest.mark.usefixtures('one_thread', 'own_cache', 'no_figures')


@pytest.fixture(scope='module')
def kept(tmp_path_factory, cli, data, bert, one_thread):
    "Folder of a study that has every file a study can have, and the study file it was made from."
    home = tmp_path_factory.mktemp('kept')
    (home/'given.toml').write_text(study_text(data=dict(train=str(data.train), test=str(data.test)), model=dict(classifier=str(bert)),
        method=dict(ranking=['dprime', 'gradient_x_activation'], fraction=[.5], layers=True, fitted_at='tokens', edit='zero')))
    with pytest.MonkeyPatch.context() as mp:
        mp.setenv('NEURONLENS_CACHE', str(home/'cache'))
        mp.setattr('neuronlens.studies.report.write_figures', lambda *args, **kw: [])
        r = cli('run', home/'given.toml', '--out', home/'out')
        assert r.exit_code == 0, (r.stderr, r.exception)
    return home/'out'


@pytest.fixture
def own(kept, tmp_path):
    "A copy of that folder."
    return shutil.copytree(kept, tmp_path/'out')


COVERED = {'study.toml', 'effects.csv', 'intervals.csv', 'layers.csv', *(f'recording/{p}.{e}' for p in ('train', 'test', 'tokens')
           for e in ('safetensors', 'json')), 'recording/rankings.safetensors', 'recording/outcome.safetensors'}


# --- a study folder that changed

def test_every_file_is_covered(kept):
    files = {p.relative_to(kept).as_posix() for p in kept.rglob('*') if p.is_file()}
    assert files == COVERED | {'provenance.json', 'report.html'}
    assert set(json.loads((kept/'provenance.json').read_text())['files']) == COVERED


def flips(out, n, seed):
    "Turns `n` random bits, one at a time, in files drawn evenly; which were taken without a word."
    rng, files, taken = random.Random(seed), sorted(p for p in out.rglob('*') if p.is_file() and p.name != 'report.html'), []
    whole = {p: p.read_bytes() for p in files}
    for _ in range(n):
        p = rng.choice(files)
        at, bit = rng.randrange(len(whole[p])), rng.randrange(8)
        turned = bytearray(whole[p])
        turned[at] ^= 1 << bit
        p.write_bytes(turned)
        try: load_study(out)
        except InputError as e:
            assert one_sentence(str(e)) and (p.name in str(e) or p.stem in str(e)), (p, at, bit, str(e))
        else: taken.append((p.name, at, bit))
        finally: p.write_bytes(whole[p])
    return taken


def test_a_single_bit_is_seen(own):
    assert flips(own, 120, 0) == []
    load_study(own)


@pytest.mark.slow
def test_two_thousand_bits_are_seen(own): assert flips(own, 2000, 1) == []


def test_the_minus_of_the_verdict(own):
    "A bit makes the minus of an end a carriage return, which JSON skips."
    path = own/'provenance.json'
    whole = path.read_bytes()
    at, turned = whole.index(b' -'), bytearray(whole)
    turned[at+1] ^= 0x20
    assert json.loads(turned) != json.loads(whole) # It is still JSON
    path.write_bytes(turned)
    with pytest.raises(InputError, match='provenance.json is missing or damaged; run the study again into the same folder'):
        load_study(own)


def edited(change):
    "Rewrites provenance.json as it would be written, without or with another digest."
    def go(path):
        about = json.loads(path.read_text())
        change(about)
        path.write_text(json.dumps(about, indent=1))
    return go


def twice(path): path.write_text(path.read_text().replace('{\n', '{\n "seed": 1,\n', 1))


TAMPERED = {
    'a number of the control': edited(lambda a: a['notes']['control']['target_accuracy'].update(high=-1.)),
    'a note': edited(lambda a: a['notes'].update(repeated_texts=7)),
    'no digest': edited(lambda a: a.pop('sha256')),
    'digest renamed': edited(lambda a: a.update(sha257=a.pop('sha256'))),
    'digest emptied': edited(lambda a: a.update(sha256='')),
    'digest null': edited(lambda a: a.update(sha256=None)),
    'no digest, no files': edited(lambda a: [a.pop(k) for k in ('sha256', 'files', 'decides')]),
    'no digest, older version': edited(lambda a: [a.pop('sha256'), a['versions'].update(neuronlens='0.1.0')]),
    'no digest, newer version': edited(lambda a: [a.pop('sha256'), a.pop('files'), a['versions'].update(neuronlens='0.3.0')]),
    'a key twice': twice,
    'trailing bytes': lambda p: p.write_bytes(p.read_bytes()+b'\n'),
    'leading blank': lambda p: p.write_bytes(b' '+p.read_bytes()),
    'carriage returns': lambda p: p.write_bytes(p.read_bytes().replace(b'\n', b'\r\n')),
    'a byte order mark': lambda p: p.write_bytes(b'\xef\xbb\xbf'+p.read_bytes()),
    'not text': lambda p: p.write_bytes(b'\xff\xfe'), 'empty': lambda p: p.write_bytes(b''), 'nested': lambda p: p.write_text('['*100_000),
    'a list': lambda p: p.write_text('[]'), 'a number': lambda p: p.write_text('1'), 'cut': lambda p: p.write_bytes(p.read_bytes()[:-3]),
    'gone': lambda p: p.unlink(), 'a folder': lambda p: [p.unlink(), p.mkdir()],
}


@pytest.mark.parametrize('case', TAMPERED)
def test_provenance_that_was_changed(case, own):
    TAMPERED[case](own/'provenance.json')
    with pytest.raises(InputError, match=re.escape(f'{own}: provenance.json is missing or damaged; run the study again')):
        load_study(own)


@pytest.mark.parametrize('version', ['0.1.0', '0.2.0'])
def test_studies_without_a_digest_open_with_a_warning(version, own):
    def older(a):
        a.pop('sha256')
        a['versions']['neuronlens'] = version
        if version == '0.1.0': del a['files'], a['decides']
        else: a['files'] = {k: v for k, v in a['files'].items() if k != 'study.toml' and not k.endswith('.json')}
    edited(older)(own/'provenance.json')
    with pytest.warns(UserWarning, match='older version and no checksum covers it'): study = load_study(own)
    assert len(next_steps(study)) == 4


@pytest.mark.parametrize('file', sorted(COVERED))
def test_a_file_that_is_gone_is_named(file, own):
    (own/file).unlink()
    with pytest.raises(InputError, match=re.escape(str(own/file))+r' is missing.*run the study again into the same folder'): load_study(own)


def test_a_table_of_another_hand_is_not_read(own, cli, make_study, tmp_path):
    r = cli('run', make_study(), '--out', tmp_path/'plain')
    assert r.exit_code == 0
    shutil.copy(own/'layers.csv', tmp_path/'plain/layers.csv')
    assert load_study(tmp_path/'plain').probes is None


@pytest.mark.parametrize('file', ['study.toml', 'provenance.json', 'effects.csv', 'recording/train.json'])
@pytest.mark.parametrize('how', ['gone', 'bit'])
def test_a_damaged_study_is_run_again_into_its_folder(file, how, kept, own, cli, monkeypatch):
    monkeypatch.setenv('NEURONLENS_CACHE', str(kept.parent/'cache'))
    monkeypatch.setattr('neuronlens.studies.study.changes_on', lambda *a, **kw: (_ for _ in ()).throw(InputError('it would run')))
    if how == 'gone': (own/file).unlink()
    else:
        turned = bytearray((own/file).read_bytes())
        turned[len(turned)//2] ^= 1
        (own/file).write_bytes(turned)
    r = cli('run', kept.parent/'given.toml', '--out', own)
    assert 'it would run' in r.stderr, r.stderr
    (own/file).write_text('') if file != 'study.toml' else None
    other = kept.parent/'other.toml'
    other.write_text((kept.parent/'given.toml').read_text().replace('zero', 'mean'))
    r = cli('run', other, '--out', own)
    assert 'already holds another study' in r.stderr, r.stderr


# --- study files that nobody would write

def test_generated_study_files_are_read_or_refused(tmp_path, bert, data):
    good = dict(data=dict(train=str(data.train), test=str(data.test)), model=dict(classifier=str(bert)),
                method=dict(ranking=['dprime'], fraction=[.5]))
    count = read_all(250, 0, good, tmp_path)
    assert count['taken'] > 20 and count['refused'] > 100


def through_the_command(cli, bert, data, tmp_path, seeds):
    "Runs generated studies; counts what was done. A table has numbers from 0 to 1, and a refusal is one sentence."
    good = dict(data=dict(train=str(data.train), test=str(data.test)), model=dict(classifier=str(bert)),
                method=dict(ranking=['dprime'], fraction=[.5], layers=False))
    count = {0: 0, 2: 0}
    for i, study in enumerate(generated(seeds[0], seeds[1], good)):
        method = study.get('method')
        if isinstance(method, dict): method.setdefault('layers', False)
        (tmp_path/'study.toml').write_text(tomli_w.dumps(study), encoding='utf-8', newline='')
        r = cli('run', tmp_path/'study.toml', '--out', tmp_path/f'out{i}', '--no-progress')
        assert r.exit_code in (0, 2) and isinstance(r.exception, SystemExit | None), (i, study, r.exception)
        count[r.exit_code] += 1
        if r.exit_code: assert re.fullmatch(r'neuronlens: [^\n]+\n', r.stderr), (i, study, r.stderr)
        else:
            df = load_study(tmp_path/f'out{i}').effects.frame
            numbers = df[list(MEASURES)].to_numpy(float)
            assert ((numbers >= 0) & (numbers <= 1+1e-9) | np.isnan(numbers)).all(), (i, study)
            assert np.isfinite(df[['target_accuracy', 'target_confidence', 'auxiliary_accuracy']].to_numpy(float)).all(), (i, study)
        shutil.rmtree(tmp_path/f'out{i}', ignore_errors=True)
    return count


def test_generated_study_files_through_the_command(cli, bert, data, tmp_path):
    count = through_the_command(cli, bert, data, tmp_path, (25, 3))
    assert count[0] and count[2]


@pytest.mark.deep
def test_a_thousand_generated_study_files(cli, bert, data, tmp_path):
    count = through_the_command(cli, bert, data, tmp_path, (1000, 11))
    assert count[0] > 50 and count[2] > 300


# --- models

def sharded(folder, to, names):
    "A copy of a classifier whose weights lie in files named by an index; the callables put them there."
    shutil.copytree(folder, to)
    weights = load_file(to/'model.safetensors')
    (to/'model.safetensors').unlink()
    keys, parts = sorted(weights), {}
    for i, k in enumerate(keys): parts.setdefault(names[i % len(names)], {})[k] = weights[k]
    for name, part in parts.items():
        (to/name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith('.safetensors'): save_file(part, to/name, metadata={'format': 'pt'})
        else:
            import torch
            torch.save(part, to/name)
    index = dict(metadata={}, weight_map={k: n for n, p in parts.items() for k in p})
    (to/'model.safetensors.index.json').write_text(json.dumps(index))
    return to


def test_weights_in_several_files(bert, tmp_path):
    folder = sharded(bert, tmp_path/'m', ['a.safetensors', 'sub/b.safetensors'])
    clf, was = load_classifier(folder), load_classifier(bert)
    for k, v in was.model.state_dict().items(): assert np.array_equal(v, clf.model.state_dict()[k])
    seen = {clf.sha256}
    for name in ('a.safetensors', 'sub/b.safetensors', 'model.safetensors.index.json'): # Whatever is read is in the hash
        kept = (folder/name).read_bytes()
        (folder/name).write_bytes(kept[:-1]+bytes([kept[-1] ^ 1]))
        try: seen.add(weights_hash(folder, None))
        except InputError: assert name.endswith('.json')
        else: assert not name.endswith('.json')
        (folder/name).write_bytes(kept)
    assert len(seen) == 3 and weights_hash(folder, None) == clf.sha256
    (folder/'model.safetensors.index.json').write_text(json.dumps(json.loads(kept), indent=1))
    assert weights_hash(folder, None) not in seen


def outside(to, name):
    "Names a file beside the folder."
    sharded(to[0], to[1], ['a.safetensors', name])


def linked(to, name):
    sharded(to[0], to[1], ['a.safetensors', 'b.safetensors'])
    (to[1]/'b.safetensors').rename(to[1].parent/'elsewhere.safetensors')
    (to[1]/'b.safetensors').symlink_to(to[1].parent/'elsewhere.safetensors')


def linked_folder(to, name):
    sharded(to[0], to[1], ['a.safetensors', 'sub/b.safetensors'])
    (to[1]/'sub').rename(to[1].parent/'sub')
    (to[1]/'sub').symlink_to(to[1].parent/'sub')


def absolute(to, name):
    sharded(to[0], to[1], ['a.safetensors', 'b.safetensors'])
    p = to[1]/'model.safetensors.index.json'
    p.write_text(p.read_text().replace('"b.safetensors"', json.dumps(str(to[1]/'b.safetensors'))))


def says(text):
    def go(to, name):
        sharded(to[0], to[1], ['a.safetensors'])
        (to[1]/'model.safetensors.index.json').write_text(text)
    return go


def configured(**more):
    def go(to, name):
        shutil.copytree(*to)
        cfg = json.loads((to[1]/'config.json').read_text())
        (to[1]/'config.json').write_text(json.dumps(cfg | more))
    return go


def adapter(to, name):
    shutil.copytree(*to)
    (to[1]/'adapter_config.json').write_text('{"base_model_name_or_path": "../base"}')


def vast(to, name):
    shutil.copytree(*to)
    with open(to[1]/'tokenizer.json', 'r+b') as f: f.truncate(200_000_000)


MODELS = { # How the folder is made, what the sentence names
    'index at a pickle': (outside, 'w.bin', "names 'w.bin'; pickled"), 'index at a .pt': (outside, 'w.pt', "names 'w.pt'; pickled"),
    'index outside': (outside, '../out/x.safetensors', "names '../out/x.safetensors', which lies outside"),
    'index through a folder': (outside, 'a/../../x.safetensors', 'which lies outside'),
    'index at an absolute path': (absolute, '', 'which lies outside'), 'link outside': (linked, '', "'b.safetensors', which lies outside"),
    'linked folder': (linked_folder, '', "'sub/b.safetensors', which lies outside"),
    'index at nothing': (says('{"weight_map": {"a": "x.safetensors"}}'), '', 'which is not there'),
    'index at passwd': (says('{"weight_map": {"a": "/etc/passwd"}}'), '', 'pickled'),
    'index without a map': (says('{}'), '', 'index.json cannot be read'), 'index of a list': (says('[]'), '', 'index.json cannot be read'),
    'index of numbers': (says('{"weight_map": {"a": 1, "b": "x"}}'), '', 'index.json cannot be read'),
    'nested index': (says('['*100_000), '', 'index.json cannot be read'),
    'null byte': (says('{"weight_map": {"a": "\\u0000"}}'), '', 'cannot be read'),
    'many words': (configured(vocab_size=10**10), '', 'asks for'), 'wide': (configured(hidden_size=2**20), '', 'asks for'),
    'long': (configured(max_position_embeddings=10**9), '', 'asks for'), 'overflow': (configured(vocab_size=10**30), '', ''),
    'deep': (configured(num_hidden_layers=10**9), '', 'num_hidden_layers'),
    'many classes': (configured(num_labels=10**9), '', 'num_labels'),
    'other weights': (configured(transformers_weights='../x.safetensors'), '', 'x.safetensors'),
    'adapter': (adapter, '', 'adapter'), 'vast tokenizer': (vast, '', 'tokenizer.json has 200 MB'),
}


@pytest.mark.parametrize('case', MODELS)
def test_model_folders_that_reach_out_or_ask_too_much(case, bert, tmp_path, monkeypatch):
    import torch
    make, name, named = MODELS[case]
    make((bert, tmp_path/'m'), name)
    monkeypatch.setattr(torch, 'load', lambda *a, **kw: pytest.fail('a pickle was read'))
    with pytest.raises(InputError, match=re.escape(str(tmp_path/'m'))) as e: load_classifier(tmp_path/'m')
    assert named in str(e.value) and one_sentence(str(e.value)), str(e.value)
    with pytest.raises(InputError): load_language_model(tmp_path/'m')


def test_a_model_in_the_cache_of_the_hub(bert, tmp_path):
    "There every file is a link to `blobs`, which is a part of it."
    folder = sharded(bert, tmp_path/'models--x/snapshots/123', ['a.safetensors', 'b.safetensors'])
    (tmp_path/'models--x/blobs').mkdir()
    for name in ('a.safetensors', 'b.safetensors'):
        (folder/name).rename(tmp_path/'models--x/blobs'/name)
        (folder/name).symlink_to(f'../../blobs/{name}')
    assert load_classifier(folder).classes == tuple(CLASSES)


def test_a_check_of_size_leaves_random_numbers_alone(bert):
    import torch
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    load_classifier(bert)
    assert torch.equal(torch.rand(3), want)


def test_a_tokenizer_that_panics_is_one_sentence(bert, tmp_path, cli, make_study, frame, capfd):
    "Also past Python: Rust writes a trace of its own."
    folder = shutil.copytree(bert, tmp_path/'m')
    tok = json.loads((folder/'tokenizer.json').read_text())
    tok['pre_tokenizer'] = dict(type='Split', pattern=dict(Regex='(a+)+$'), behavior='Isolated', invert=False)
    (folder/'tokenizer.json').write_text(json.dumps(tok))
    df = frame.copy()
    df.loc[4, 'text'] = 'a'*40+'!'
    df.to_json(tmp_path/'t.jsonl', orient='records', lines=True)
    r = cli('run', make_study(model=dict(classifier=str(folder)), data=dict(train='t.jsonl')), '--out', tmp_path/'out')
    assert r.exit_code == 2 and isinstance(r.exception, SystemExit), r.exception
    assert re.fullmatch(r'neuronlens: [^\n]*tokenizer[^\n]*\n', r.stderr) and str(folder) in r.stderr
    assert capfd.readouterr().err == ''


def test_what_else_is_said_while_tokenizing_is_not_lost(bert, capfd, monkeypatch):
    clf = load_classifier(bert)
    real = type(clf.tokenizer).__call__
    def talks(self, *args, **kw):
        os.write(2, b'a warning')
        return real(self, *args, **kw)
    monkeypatch.setattr(type(clf.tokenizer), '__call__', talks)
    clf.tokens(['cat dog'])
    assert capfd.readouterr().err == 'a warning'


# --- opening is not running

@pytest.fixture
def gift(tmp_path, bert, data, cli, monkeypatch):
    "(folder of a study whose model brings code, mark that the code leaves where it runs, the model)."
    monkeypatch.setattr('transformers.dynamic_module_utils.HF_MODULES_CACHE', str(tmp_path/'modules'))
    folder, mark = shutil.copytree(bert, tmp_path/'gift/model'), tmp_path/'ran'
    (folder/'strange.py').write_text(REMOTE.format(mark=str(mark)))
    cfg = json.loads((folder/'config.json').read_text()) | dict(model_type='strange', architectures=['StrangeForSequenceClassification'])
    cfg |= dict(auto_map=dict(AutoConfig='strange.StrangeConfig',
                              AutoModelForSequenceClassification='strange.StrangeForSequenceClassification'))
    (folder/'config.json').write_text(json.dumps(cfg))
    study = tmp_path/'gift/study.toml'
    study.write_text(study_text(data=dict(train=str(data.train), test=str(data.test)),
                                model=dict(classifier='model', trust_remote_code=True)))
    r = cli('run', study, '--out', tmp_path/'gift/out')
    assert r.exit_code == 0 and mark.exists(), r.stderr # Who runs a study file runs what it says
    mark.unlink()
    yield tmp_path/'gift/out', mark, folder
    sys.modules.pop('transformers_modules', None)


def test_opening_a_study_runs_no_code_unless_told(gift):
    from neuronlens import erase_view, inspect, workbook
    out, mark, folder = gift
    study = load_study(out)
    for open_it in (study.open, lambda: workbook.explore(study), lambda: workbook.Workbook(study), lambda: erase_view.EraseView(study),
                    lambda: inspect.TextView(study)):
        with pytest.raises(InputError, match='trust_remote_code=True'): open_it()
    assert inspect.NeuronView(study).study.clf is None # Shows what it can without the model
    assert not mark.exists()
    (folder/'strange.py').write_text((folder/'strange.py').read_text()+'\n# changed\n')
    with pytest.raises(InputError, match='no longer the model of this study, and its code was not run'): study.open(trust_remote_code=True)
    assert not mark.exists()
    (folder/'strange.py').write_text((folder/'strange.py').read_text().removesuffix('\n# changed\n'))
    assert type(workbook.explore(study, trust_remote_code=True).study.clf.model).__name__ == 'StrangeForSequenceClassification'


def test_code_that_is_run_is_part_of_what_the_model_is(gift, tmp_path, data):
    "Another byte of it, or of what it imports, is another model, of which no recording is there."
    _, mark, folder = gift
    def load(trust=True): return load_classifier(folder, trust_remote_code=trust)
    def kept(): return len([*cache_folder('recordings').glob('*/recording.json')])
    code, texts, clf = folder/'strange.py', read_texts(data.train), load()
    before, first = kept(), record(clf, texts, progress=False, cache=True)
    assert clf.sha256 == load().sha256 and kept() == before # The study made it
    code.write_text(code.read_text().replace('class StrangeForSequenceClassification(BertForSequenceClassification):',
        'class StrangeForSequenceClassification(BertForSequenceClassification):\n    by = 1.\n    def forward(self, *a, **kw):\n'
        '        out = super().forward(*a, **kw)\n        out.logits = out.logits*self.by\n        return out\n   '))
    one = load()
    code.write_text(code.read_text().replace('by = 1.', 'by = 9.'))
    nine = load()
    assert len({clf.sha256, one.sha256, nine.sha256}) == 3
    answers = [record(c, texts, progress=False, cache=True).probabilities for c in (one, nine)]
    assert kept() == before+2
    assert np.array_equal(answers[0], first.probabilities) and abs(answers[1]-answers[0]).max() > .01
    (folder/'deep').mkdir()
    (folder/'deep/more.py').write_text('')
    assert load().sha256 != nine.sha256


def test_code_from_another_folder_is_hashed_too(gift, tmp_path, monkeypatch):
    "An `auto_map` may name another folder, if code is allowed to run."
    _, _, folder = gift
    (tmp_path/'gift/code').mkdir()
    shutil.move(folder/'strange.py', tmp_path/'gift/code/strange.py')
    config = folder/'config.json'
    config.write_text(config.read_text().replace('"strange.Strange', f'"{tmp_path}/gift/code--strange.Strange'))
    seen = [load_classifier(folder, trust_remote_code=True).sha256]
    with open(tmp_path/'gift/code/strange.py', 'a') as f: f.write('\n')
    assert load_classifier(folder, trust_remote_code=True).sha256 not in seen
    assert weights_hash(folder, None) not in seen


def test_code_that_is_not_run_changes_nothing(bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path/'plain')
    clf = load_classifier(folder)
    assert load_classifier(folder, trust_remote_code=True).sha256 == clf.sha256 == weights_hash(folder, None)
    (folder/'train.py').write_text('print(1)')
    assert load_classifier(folder).sha256 == clf.sha256


def test_trust_is_no_more_than_the_study_asked_for(kept, monkeypatch):
    "Saying so when opening does not make a study run code that did not."
    from neuronlens import study as room
    seen = []
    def model(spec, *args):
        seen.append(spec.model.trust_remote_code)
        return study_model(spec, *args)
    monkeypatch.setattr(room, 'study_model', model)
    load_study(kept).open(progress=False, trust_remote_code=True)
    assert seen == [False]


# --- links

@pytest.mark.parametrize('name', ['figures', 'recording'])
def test_output_that_is_a_link(name, own, kept, cli, tmp_path):
    (tmp_path/'mine').mkdir()
    shutil.rmtree(own/name, ignore_errors=True)
    (own/name).symlink_to(tmp_path/'mine')
    r = cli('run', kept.parent/'given.toml', '--out', own)
    assert r.exit_code == 2 and f'{name} is a link to another folder' in r.stderr and not list((tmp_path/'mine').iterdir())


def test_a_lock_that_is_a_link(tmp_path):
    from neuronlens.ground.cache import alone
    (tmp_path/'x.lock').symlink_to(tmp_path/'victim')
    with pytest.raises(InputError, match='x.lock is a link'):
        with alone(tmp_path/'x'): pass
    assert not (tmp_path/'victim').exists()


def test_what_is_kept_follows_the_umask(own, tmp_path):
    from neuronlens.ground.files import write_arrays
    from neuronlens.records.recording import load_recording, save_recording
    rec, old = load_recording(own/'recording/train.safetensors'), os.umask(0o027)
    try:
        save_recording(rec, tmp_path/'kept/r.safetensors')
        write_arrays(tmp_path/'kept/0.safetensors', dict(labels=rec.labels), {}) # A shard
    finally: os.umask(old)
    assert {oct(p.stat().st_mode & 0o777) for p in (tmp_path/'kept').iterdir()} == {'0o640'}


# --- words that are programs

ODD = ['=1+1', "=cmd|' /C calc'!A0", '+1', '-1', '@SUM(A1)', '\tx', "'=x", "''-x", '=HYPERLINK("http://x","y")', 'plain', "it's", "'"]


def test_tables_hold_no_formula_and_come_back(tmp_path):
    import csv
    df = pd.DataFrame(dict(concept=ODD, n=np.arange(len(ODD))-3., edit=ODD[::-1]))
    write_table(df, tmp_path/'t.csv')
    back = read_table(tmp_path/'t.csv', ('concept',), keep_default_na=False, dtype=dict(concept=str, edit=str))
    pd.testing.assert_frame_equal(back, df)
    with open(tmp_path/'t.csv', newline='', encoding='utf-8') as f: rows = list(csv.reader(f))
    assert all(not re.match(r'[=+\-@\t\r\n]', c) or c == r[1] for r in rows for c in r) # Numbers may have a minus


def test_classes_that_are_formulas(cli, make_study, tmp_path, frame, test_frame, bert):
    names = dict(zip(CLASSES, ['=1+1', '-2', '@x'], strict=True))
    for part, df in (('train', frame), ('test', test_frame)): df.replace({'label': names}).to_csv(tmp_path/f'{part}.csv', index=False)
    study = make_study(data=dict(train='train.csv', test='test.csv'), model=dict(classifier=str(bert), classes=[*names.values()]))
    r = cli('run', study, '--out', tmp_path/'out')
    assert r.exit_code == 0, r.stderr
    back = load_study(tmp_path/'out')
    assert set(back.effects.frame.concept) == set(names.values()) == set(back.classes)
    assert set(back.intervals.frame.concept) == {*names.values(), 'macro'}
    for f in ('effects.csv', 'intervals.csv'): assert not re.search(r'(?m)^"?[=@-]', (tmp_path/'out'/f).read_text())


@pytest.mark.slow
def test_a_report_of_odd_names(cli, make_study, tmp_path, frame, test_frame, bert, monkeypatch, no_figures):
    "Dollars in the name of the model, Chinese and control characters in those of classes: a whole report, without a complaint."
    monkeypatch.setattr('neuronlens.studies.report.write_figures', no_figures) # The real one
    folder = shutil.copytree(bert, tmp_path/r'mo$\frac{$del')
    names = dict(zip(CLASSES, ['日本語', 'a$x^$', 'b\x1b[31m'], strict=True))
    for part, df in (('train', frame), ('test', test_frame)):
        df.replace({'label': names}).to_json(tmp_path/f'd$x^${part}.jsonl', orient='records', lines=True)
    study = make_study(data=dict(train='d$x^$train.jsonl', test='d$x^$test.jsonl'),
                       model=dict(classifier=str(folder), classes=[*names.values()]), method=dict(layers=True))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        r = cli('run', study, '--out', tmp_path/'out', '--no-progress')
    assert (r.exit_code, r.stderr) == (0, ''), (r.stderr, r.exception)
    assert '日本語' in (tmp_path/'out/report.html').read_text(encoding='utf-8') and len(list((tmp_path/'out/figures').iterdir())) > 5


# --- versions

@pytest.mark.slow
def test_no_known_hole_in_what_is_installed():
    "pip-audit over the versions that `make` installs, where it is there and its database can be reached."
    pytest.importorskip('pip_audit', reason='pip-audit is not installed; `pip install pip-audit` brings it')
    pins = Path(__file__).parents[1]/'constraints.txt'
    how = ['--requirement', str(pins), '--no-deps', '--disable-pip', '--progress-spinner', 'off', '--timeout', '20']
    r = subprocess.run([sys.executable, '-m', 'pip_audit', *how], capture_output=True, text=True, timeout=600)
    if r.returncode and re.search('ConnectionError|Max retries|timed out|ServiceError|NameResolution|ProxyError', r.stderr):
        pytest.skip(f'the database of pip-audit cannot be reached: {r.stderr.strip().splitlines()[-1][:200]}')
    assert r.returncode == 0, r.stdout+r.stderr
