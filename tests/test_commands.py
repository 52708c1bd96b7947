"""The commands around a run: an example that explains itself, what a run would cost, what of a folder is whole, and folders that move."""
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import study_text

import neuronlens as nl
from neuronlens.ground.core import InputError
from neuronlens.ground.files import sha256, write_result
from neuronlens.studies.check import Cost, study_cost
from neuronlens.studies.cli import example_study
from neuronlens.studies.saved import load_study
from neuronlens.studies.spec import _TABLES, demo_study, parse_study, read_study
from neuronlens.studies.verify import _seal, verify

TOP = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.usefixtures('one_thread', 'own_cache', 'no_figures')


def loaded_by(*args, **env):
    "(status, standard output, standard error, modules) of the command in a process of its own."
    code = ("import sys\nfrom neuronlens.studies.cli import main\ntry: main()\nexcept SystemExit as e: status = e.code or 0\n"
            "print('\\x1e', status, *sys.modules)")
    p = subprocess.run([sys.executable, '-c', code, *map(str, args)], capture_output=True, text=True, env=os.environ | env, cwd=TOP)
    out, _, told = p.stdout.rpartition('\x1e')
    status, *modules = told.split()
    return int(status), out, p.stderr, set(modules)


# --- example

def test_the_example_is_the_worked_example():
    assert parse_study(tomllib.loads(example_study())) == demo_study()
    asked = parse_study(tomllib.loads(example_study('causal')))
    assert asked.model == replace(demo_study().model, encoder='', causal='smollm2') and asked.method == demo_study().method
    assert asked.title == 'SmolLM2 on BBC News' and (asked.data, asked.prompt) == (demo_study().data, demo_study().prompt)


@pytest.mark.parametrize('kind', ['encoder', 'causal', 'activations'])
def test_every_setting_is_in_the_example_and_says_what_it_is(kind):
    "With a comment at its line, or before it."
    text = example_study(kind)
    given = tomllib.loads(text)
    own = ['activations', 'method'] if kind == 'activations' else [t for t in _TABLES if t != 'activations']
    assert [*given] == ['title', 'seed', *own]
    for t in own:
        if t in _TABLES: assert list(given[t]) == [f.name for f in fields(_TABLES[t])], t
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if line and line[0] not in '#[': assert ' # ' in line or lines[i-1].startswith('#'), line
    assert max(map(len, lines)) <= 140 and '—' not in text


def test_the_example_names_every_value_there_is():
    "Those that are registered, each with its usual number; whoever adds one adds it there."
    from neuronlens.arrays.ranges import DEFAULTS, RANGES
    from neuronlens.edits.attribution import MODEL_RANKINGS
    from neuronlens.edits.edit import BUILT_IN, NUMBERS
    from neuronlens.edits.presets import PRESETS
    from neuronlens.ground.setting import COVERS, FITTED, POSITIONS, SCOPES
    from neuronlens.models.anatomy import STREAMS
    from neuronlens.models.batches import READOUTS
    text = example_study()
    heads = dict(ranking='# From the class statistics', range='# When', edit='# What then')
    before = {k: text[text.index(head):text.index(f'\n{k} = ')] for k, head in heads.items()}
    def quoted(s): return set(re.findall(r'"([^"]+)"', s))
    assert {*MODEL_RANKINGS} == quoted(before['ranking'])
    known = quoted(before['range'])
    numbers = {k: v for k, v in DEFAULTS.items() if isinstance(v, int | float)}
    assert {f'{r}({numbers[r]:g})' if r in numbers else r for r in RANGES} <= known
    assert {f'{e}({NUMBERS[e]:g})' if e in NUMBERS else e for e in BUILT_IN} <= quoted(before['edit'])
    of = {m[1]: m[2] for m in re.finditer(r'(?m)^(\w+) = .*?# (.*)$', text)}
    for k, values in dict(scope=SCOPES, fitted_at=FITTED, covers=COVERS, readout=READOUTS, site=STREAMS,
                          positions=[p for p in POSITIONS if p != 'generated'],
                          preset=[n for n, p in PRESETS.items() if p.condition == 'range']).items():
        assert {*values} <= quoted(of[k]), k


def test_the_example_is_in_the_packages():
    assert '"example.toml"' in (TOP/'setup.py').read_text() and (TOP/'neuronlens/example.toml').is_file()


# --- what answers at once

@pytest.mark.skipif('activations' not in _TABLES, reason='a study file has no table [activations] yet')
def test_the_example_of_activations_is_a_study():
    spec = parse_study(tomllib.loads(example_study('activations')))
    usual = _TABLES['activations']()
    assert spec.activations == replace(usual, train='train.npz') and spec.method == demo_study().method


def test_one_kind_of_example(cli):
    r = cli('example', '--causal', '--activations')
    assert r.exit_code == 2 and r.stderr.startswith('neuronlens: --causal and --activations are two kinds of study; give one')


@pytest.mark.parametrize('args', ['example', 'example --causal', 'example --activations', 'explain NL012', '--help', 'check --help'])
def test_what_loads_nothing(args):
    status, out, err, modules = loaded_by(*args.split())
    assert (status, err) == (0, '') and out
    assert not {'torch', 'transformers', 'matplotlib', 'scipy', 'sklearn'} & modules


def test_verify_loads_no_model_library(tmp_path):
    (tmp_path/'a.csv').write_text('x\n')
    status, out, err, modules = loaded_by('verify', tmp_path)
    assert status == 1 and 'a.csv: unknown' in out and not {'torch', 'transformers', 'matplotlib', 'scipy', 'sklearn'} & modules


def test_what_is_slow_says_so_before(make_study, tmp_path):
    "Before the libraries are loaded; not where bars are switched off, and not where nothing is loaded for a file that is not there."
    said = 'loading torch and transformers, which takes some seconds\n'
    study = make_study(method=dict(ranking=['best']))
    for how, env, wanted in (([], {}, said), (['-q'], {}, ''), ([], {'NEURONLENS_PROGRESS': '0'}, '')):
        status, out, err, _ = loaded_by('check', study, *how, TQDM_DISABLE='0', **env)
        assert status == 2 and out == '' and err.startswith(wanted+'neuronlens: ') and "ranking 'best' is none of" in err
    assert loaded_by('check', tmp_path/'none.toml', TQDM_DISABLE='0')[2].startswith('neuronlens: ')


WRONG = [('[dta]\n', "nothing is called 'dta'"), ('title = \n', 'not TOML'), ('[data]\ntrian = "a"\n', "no setting is called 'trian'"),
         ('[model]\nencoder = "minilm"\n[data]\ntrain = "bbc_news"\n[method]\nfraction = [2.0]\n', 'fraction 2.0 is outside (0, 1]'),
         ('[model]\nencoder = "minilm"\n[data]\ntrain = "bbc_news"\nnumbers = "model"\n', "numbers 'model' is for a classifier")]


@pytest.mark.parametrize('command', ['check', 'run'])
def test_what_the_file_alone_shows_is_said_at_once(command, tmp_path):
    "A file that cannot be meant is refused before anything that runs models is loaded, and without a word about loading."
    for text, said in WRONG if command == 'check' else WRONG[:1]:
        (tmp_path/'wrong.toml').write_text(text)
        out = ['--out', tmp_path/'out'] if command == 'run' else []
        status, printed, err, modules = loaded_by(command, tmp_path/'wrong.toml', *out, TQDM_DISABLE='0')
        assert (status, printed) == (2, '') and err.startswith('neuronlens: ') and said in err, err
        assert not {'torch', 'transformers', 'matplotlib', 'scipy', 'sklearn'} & modules


def test_progress_is_switched_off_by_the_environment(cli, make_study, tmp_path, monkeypatch):
    monkeypatch.setenv('TQDM_DISABLE', '0')
    for value in ('0', 'off', ' False '):
        monkeypatch.setenv('NEURONLENS_PROGRESS', value)
        r = cli('run', make_study(), '--out', tmp_path/'out')
        assert (r.exit_code, r.stderr) == (0, ''), r.stderr
    monkeypatch.setenv('NEURONLENS_PROGRESS', '1')
    assert 'recording' in cli('run', make_study(), '--out', tmp_path/'out').stderr
    for args in (['--help'], ['run', '--help']): assert 'NEURONLENS_PROGRESS=0' in ' '.join(cli(*args).stdout.split())


# --- check

def kept_files(folder): return {p for p in Path(folder).rglob('*') if p.is_file()} if Path(folder).exists() else set()


def test_check_says_what_a_run_takes(cli, make_study, tmp_path, own_cache):
    "Its counts are those of the run; it makes nothing."
    study = make_study(method=dict(ranking=['dprime', 'probeless'], fraction=[.5, .25], layers=True, fitted_at='tokens'))
    cost = study_cost(read_study(study), tmp_path/'out')
    assert not (tmp_path/'out').exists() and not kept_files(own_cache)
    assert cost.refusals == () and cost.texts == (60, 36) and cost.passes == 96 and not cost.kept
    r = cli('run', study, '--out', tmp_path/'out')
    assert r.exit_code == 0, (r.stderr, r.exception)
    done = load_study(tmp_path/'out')
    assert cost.interventions == (done.effects.frame.condition != 'base').sum() == 3*2*2*3
    assert cost.cut == done.notes['truncated_texts'] and cost.max_length == done.notes['max_length']
    size = sum(p.stat().st_size for p in kept_files(own_cache)-kept_files(own_cache/'used'))
    taken = size+sum(p.stat().st_size for p in kept_files(tmp_path/'out'))
    assert .3*taken < cost.disk < 3*taken+4_000_000
    assert all(cost.seconds[k] > 0 for k in ('recording', 'recording tokens', 'ranking and fitting', 'editing', 'intervals', 'probing'))
    assert cost.seconds['training'] == cost.seconds['calibrating'] == cost.seconds['attributing'] == 0
    again = study_cost(read_study(study), tmp_path/'out')
    assert again.kept and again.passes == 0 and again.seconds['recording'] == 0 and again.refusals == () and again.disk < cost.disk
    said = str(cost)
    for words in ('texts: 60 to fit on, 36 to measure on', 'passes: 96', 'interventions: 36, each on 36 texts', 'disk: ', 'memory: ',
                  'time: about', 'texts that the model read just now', 'refused: nothing'): assert words in said, words


def test_cut_texts_are_counted(make_study, tmp_path, frame, data):
    long = frame.assign(text=[t+' the a is on'*20 if i < 7 else t for i, t in enumerate(frame.text)])
    long.to_csv(tmp_path/'long.csv', index=False)
    cost = study_cost(read_study(make_study(data=dict(train=str(tmp_path/'long.csv'), test=str(data.test)))))
    assert cost.cut == 7 and 'cut: 7 of these, to the 48 tokens' in str(cost)


def test_an_encoder_is_not_trained(make_study, encoder, own_cache, monkeypatch):
    from neuronlens.models import training
    monkeypatch.setattr(training, '_train', lambda *a: 1/0)
    study = make_study(model=dict(encoder=str(encoder), max_length=32), training=dict(epochs=2, batch_size=12))
    cost = study_cost(read_study(study))
    assert cost.seconds['training'] > 0 and cost.passes == 96 and cost.max_length == 32 and not kept_files(own_cache)
    monkeypatch.undo()


def test_one_that_was_trained_is_taken(make_study, encoder, own_cache, monkeypatch, tmp_path):
    monkeypatch.setenv('NEURONLENS_CACHE', str(own_cache))
    spec = read_study(make_study(model=dict(encoder=str(encoder), max_length=32), training=dict(epochs=1, batch_size=12)))
    nl.run_study(spec, progress=False)
    cost = study_cost(spec)
    assert cost.seconds['training'] == 0 and cost.kept and cost.passes == 0


def test_every_refusal_is_told_and_none_stops_the_rest(cli, make_study, tmp_path, bert, data, frame):
    (tmp_path/'file').write_text('')
    study = make_study(method=dict(site='mlp.7', fraction=[.5]))
    r = cli('check', study, '--out', tmp_path/'file')
    assert r.exit_code == 2 and r.stderr == '' and 'Traceback' not in r.stdout
    assert "is a file, not a folder (neuronlens explain NL609)" in r.stdout and 'block 7 is beyond the model' in r.stdout
    study = make_study(data=dict(train=str(tmp_path/'none.csv')), method=dict(site='mlp.7'))
    r = cli('check', study, '--out', tmp_path/'file')
    assert r.stdout.count('\n    - ') == 3 and 'none.csv: no such file' in r.stdout and 'block 7' in r.stdout
    study = make_study(method=dict(fraction=[.001]))
    r = cli('check', study)
    assert r.exit_code == 2 and 'fraction 0.001 of the 32 neurons' in r.stdout and r.stdout.count('\n    - ') == 1
    frame.replace('tool', 'macro').to_csv(tmp_path/'macro.csv', index=False)
    r = cli('check', make_study(data=dict(train=str(tmp_path/'macro.csv'))))
    assert r.exit_code == 2 and "class 'macro' has the name of the average" in r.stdout


def test_check_refuses_what_run_refuses(cli, make_study, tmp_path, data):
    "One by one: the sentence of the run is among those of the check."
    held = tmp_path/'held'
    held.mkdir()
    (held/'effects.csv').write_text('')
    cases = [(dict(method=dict(site='residual.9')), 'out'), (dict(method=dict(fraction=[.001])), 'out'),
             (dict(data=dict(train=str(tmp_path/'none.csv'))), 'out'), (dict(), 'held'),
             (dict(model=dict(classifier=str(tmp_path))), 'out'),
             (dict(data=dict(train=str(data.train), test=str(data.train))), 'out')]
    for tables, out in cases:
        study = make_study(**tables)
        run = cli('run', study, '--out', tmp_path/out)
        said = run.stderr.removeprefix('neuronlens: ').rpartition(' (neuronlens explain')[0]
        assert run.exit_code == 2 and said and said in cli('check', study, '--out', tmp_path/out).stdout, (tables, run.stderr)


def test_a_cost_in_words():
    assert 'refused: nothing' in str(Cost('x')) and 'time' not in str(Cost('x')) and repr(Cost('x')) == str(Cost('x'))
    assert str(Cost('x', ('none.toml: no such study file', 'the moon'))).splitlines()[-2:] == [
        '    - none.toml: no such study file (neuronlens explain NL601)', '    - the moon']


# --- verify

@pytest.fixture(scope='module')
def made(tmp_path_factory, cli, data, bert, one_thread):
    "A study, and the cache that it left: a recording in shards."
    home = tmp_path_factory.mktemp('made')
    (home/'given.toml').write_text(study_text(data=dict(train=str(data.train), test=str(data.test)), model=dict(classifier=str(bert)),
                                              method=dict(layers=True)))
    with pytest.MonkeyPatch.context() as mp:
        mp.setenv('NEURONLENS_CACHE', str(home/'cache'))
        mp.setattr('neuronlens.studies.report.write_figures', lambda *args, **kw: [])
        r = cli('run', home/'given.toml', '--out', home/'out')
        assert r.exit_code == 0, (r.stderr, r.exception)
    return home


def test_a_study_is_whole(made, cli):
    seen = verify(made/'out')
    files = {p.relative_to(made/'out').as_posix() for p in kept_files(made/'out')}
    assert seen.ok and {*seen.named('whole')} == files-{'report.html'} and seen.named('unknown') == ['report.html']
    assert len({n for n, *_ in seen.rows}) == len(seen.rows) == len(files)
    r = cli('verify', made/'out')
    assert (r.exit_code, r.stderr) == (0, '') and r.stdout.startswith(f'{made/"out"}: {len(files)-1} whole, 1 unknown\n')


def test_a_bit_is_found_in_every_file(made, tmp_path, cli):
    "Of the study and of the recordings in the cache: the file is named, and no other."
    rng = np.random.default_rng(0)
    for home in ('out', 'cache/recordings'):
        whole = shutil.copytree(made/home, tmp_path/home)
        for name in [n for n in verify(whole).named('whole')]:
            data = (whole/name).read_bytes()
            for at in rng.integers(len(data), size=6):
                bad = bytearray(data)
                bad[at] ^= 1 << int(rng.integers(8))
                (whole/name).write_bytes(bad)
                seen = verify(whole)
                assert not seen.ok and name in seen.named('damaged'), (name, at, str(seen))
                others = set(seen.named('damaged'))-{name} # What a damaged list lists is not known, no more
                assert not others or name.endswith('.json'), (name, at, others)
            (whole/name).write_bytes(data)
        assert verify(whole).ok


def test_a_file_that_is_gone_or_strange(made, tmp_path, cli):
    out = shutil.copytree(made/'out', tmp_path/'out')
    (out/'effects.csv').unlink()
    (out/'notes.txt').write_text('mine')
    (out/'recording/other.bin').write_text('mine')
    seen = verify(out)
    assert seen.named('missing') == ['effects.csv'] and {'notes.txt', 'recording/other.bin'} <= {*seen.named('unknown')}
    r = cli('verify', out)
    assert r.exit_code == 1 and 'effects.csv: missing' in r.stdout and 'notes.txt: unknown' in r.stdout
    (out/'provenance.json').unlink()
    assert 'provenance.json' in verify(out).named('missing') and not verify(out).ok
    store = next(p.parent for p in (made/'cache').rglob('shard-00000.safetensors'))
    copy = shutil.copytree(store, tmp_path/'store')
    assert verify(copy).ok and {*verify(copy).named('whole')} == {'recording.json', 'shard-00000.safetensors'}
    (copy/'shard-00000.safetensors').rename(copy/'shard-00001.safetensors')
    assert verify(copy).named('missing') == ['shard-00000.safetensors'] and verify(copy).named('unknown') == ['shard-00001.safetensors']


def test_a_shard_of_another_recording(made, tmp_path):
    from neuronlens.ground.files import read_arrays, write_arrays
    store = next(p.parent for p in (made/'cache').rglob('shard-00000.safetensors'))
    copy = shutil.copytree(store, tmp_path/'store')
    arrays, about = read_arrays(copy/'shard-00000.safetensors')
    write_arrays(copy/'shard-00000.safetensors', arrays, about | dict(model_sha256='other'))
    assert [r for r in verify(copy).rows if r[1] == 'damaged'] == [
        ('shard-00000.safetensors', 'damaged', 'it is a shard of another recording')]


def test_single_results_and_folders_of_folders(made, tmp_path, cli):
    "Results that were saved one by one, a whole project, a file, and what is none of ours."
    home = tmp_path/'project'
    shutil.copytree(made/'out', home/'runs/one')
    study = load_study(made/'out')
    study.ranking.save(home/'ranking.safetensors', study.train.provenance)
    study.effects.save(home/'effects.csv')
    nl.records.recording.save_recording(study.train, home/'train.safetensors')
    write_result(home/'edits/a.safetensors', 'Edit', {'x': np.ones(3)}, {})
    seen = verify(home)
    assert seen.ok and {'ranking.safetensors', 'effects.csv', 'effects.json', 'train.safetensors', 'train.json', 'edits/a.safetensors',
                        'runs/one/provenance.json', 'runs/one/recording/test.json'} <= {*seen.named('whole')}
    for name in ('ranking.safetensors', 'train.safetensors'): assert verify(home/name).ok and len(verify(home/name).rows) == 1
    (home/'train.json').unlink()
    assert verify(home/'train.safetensors').named('unknown') and cli('verify', home/'train.safetensors').exit_code == 1
    (home/'notes.md').write_text('mine')
    assert cli('verify', home/'notes.md').exit_code == 1 and verify(home).ok # No hash, no word of it
    r = cli('verify', home/'none')
    assert r.exit_code == 2 and r.stderr.endswith('none: no such file (neuronlens explain NL101)\n')


def test_a_model_that_was_kept(encoder, frame, own_cache):
    texts = nl.data.make_texts(list(frame.text), list(frame.label))
    nl.fine_tune(encoder, texts, epochs=1, max_length=16, progress=False)
    (home,) = (own_cache/'models').iterdir()
    assert verify(home).ok and 'model.safetensors' in verify(home).named('whole')
    (home/'config.json').write_text((home/'config.json').read_text().replace('"hidden_size"', '"hidden_sise"'))
    assert verify(home).named('damaged') == ['config.json']


def test_a_study_without_a_digest_is_not_vouched_for(made, tmp_path):
    out = shutil.copytree(made/'out', tmp_path/'out')
    about = json.loads((out/'provenance.json').read_text())
    about.pop('sha256')
    about['versions']['neuronlens'] = '0.1.0'
    del about['files'], about['decides']
    (out/'provenance.json').write_text(json.dumps(about, indent=1))
    assert ('provenance.json', 'unknown', 'it is of an older version, and no checksum covers it') in verify(out).rows


# --- a folder that moves

@pytest.fixture
def moved(made, tmp_path, bert, data):
    "The folder of a study alone, far from texts and model, of which copies are given; what it names is nowhere."
    for part in (data.train, data.test): shutil.copy(part, tmp_path/f'my_{part.name}')
    shutil.copytree(bert, tmp_path/'my_model')
    out = shutil.copytree(made/'out', tmp_path/'far/away/and/further/out')
    about = json.loads((out/'provenance.json').read_text()) # As it would be from another machine: names that lead nowhere
    text = (out/'study.toml').read_text()
    for name in (data.train, data.test, bert):
        text = re.sub(rf'"[^"]*{Path(name).name}"', f'"/not/here/{Path(name).name}"', text)
    (out/'study.toml').write_text(text)
    for part in ('train', 'test'):
        about[part] |= dict(texts=f'/not/here/{part}.csv', model='/not/here/bert')
    about['files']['study.toml'] = sha256([out/'study.toml'])
    about.pop('sha256')
    (out/'provenance.json').write_text(_seal(about))
    return out


def test_a_folder_of_another_machine_opens(moved, made, tmp_path):
    assert verify(moved).ok
    study = load_study(moved)
    assert study.effects.frame.equals(load_study(made/'out').effects.frame)
    with pytest.raises(InputError, match='/not/here/train.csv: no such file'): study.open(progress=False)
    given = dict(train=str(tmp_path/'my_train.csv'), test=str(tmp_path/'my_test.csv'), model=str(tmp_path/'my_model'))
    back = study.open(progress=False, **given)
    assert back.clf.sha256 == study.train.provenance['model_sha256'] and back.texts[1].source == given['test']
    assert nl.explore(back) is not None
    swapped = given | dict(train=given['test'], test=given['train'])
    with pytest.raises(InputError, match='no longer holds the texts'): study.open(progress=False, **swapped)


def test_a_folder_of_another_machine_is_run_again(moved, made, tmp_path, cli, frame):
    given = ['--train', tmp_path/'my_train.csv', '--test', tmp_path/'my_test.csv', '--model', tmp_path/'my_model']
    r = cli('run', moved/'study.toml', '--out', tmp_path/'again')
    assert r.exit_code == 2 and '/not/here/train.csv: no such file' in r.stderr
    assert cli('check', moved/'study.toml', *given).exit_code == 0
    r = cli('run', moved/'study.toml', '--out', tmp_path/'again', *given)
    assert r.exit_code == 0, r.stderr
    assert (tmp_path/'again/effects.csv').read_bytes() == (made/'out/effects.csv').read_bytes()
    assert asdict(read_study(tmp_path/'again/study.toml').data)['train'] == str(tmp_path/'my_train.csv')
    (tmp_path/'elsewhere').mkdir() # And into the same folder, when the texts lie somewhere else by then
    for p in ('my_train.csv', 'my_test.csv'): (tmp_path/p).rename(tmp_path/'elsewhere'/p)
    moved_on = ['--train', tmp_path/'elsewhere/my_train.csv', '--test', tmp_path/'elsewhere/my_test.csv']
    assert cli('run', tmp_path/'again/study.toml', '--out', tmp_path/'again', *moved_on).exit_code == 0
    assert (tmp_path/'again/effects.csv').read_bytes() == (made/'out/effects.csv').read_bytes()
    frame[3:].to_csv(tmp_path/'elsewhere/fewer.csv', index=False)
    r = cli('run', tmp_path/'again/study.toml', '--out', tmp_path/'again', '--train', tmp_path/'elsewhere/fewer.csv', *moved_on[2:])
    assert r.exit_code == 2 and 'already holds another study' in r.stderr


# --- opening a study of a language model

def test_opening_a_prompted_study_says_what_it_does(tmp_path, frame, test_frame, caplog, monkeypatch):
    "In one line before, which is a bar where somebody watches."
    from test_prompt import byte_tokenizer, language_model

    from neuronlens.ground import progress
    for name, df in (('train', frame), ('test', test_frame)): df.to_csv(tmp_path/f'{name}.csv', index=False)
    language_model('llama').save_pretrained(tmp_path/'tiny-llama')
    byte_tokenizer().save_pretrained(tmp_path/'tiny-llama')
    text = study_text(data=dict(train='train.csv', test='test.csv'), model=dict(causal='tiny-llama'),
                      prompt=dict(shots=3, calibrate=True), method=dict(fraction=[.5]))
    (tmp_path/'s.toml').write_text(text)
    nl.run_study(read_study(tmp_path/'s.toml'), tmp_path/'out', progress=False)
    monkeypatch.setenv('TQDM_DISABLE', '0')
    caplog.set_level('INFO', 'neuronlens')
    monkeypatch.setattr(nl.study, 'study_model', lambda *a, real=nl.study.study_model: (said.extend(caplog.messages), real(*a))[1])
    said = []
    book = nl.explore(load_study(tmp_path/'out'))
    assert book.study.clf is not None and said == ['opening the study: loading tiny-llama, reading 57 texts to calibrate it']
    bars = []
    monkeypatch.setattr(nl.study, 'progress_bar', lambda **kw: bars.append(kw) or progress.progress_bar(show=False))
    load_study(tmp_path/'out').open(progress=False)
    assert [b['show'] for b in bars] == [False]
