"""Presets in the study file, and everything else that a study may ask for: ranges, edits, votes, tokens, rankings by the model."""
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import CLASSES
from tiny import same_answers

from neuronlens.ground.rounding import agree, score_size, steps_of

pytestmark = pytest.mark.usefixtures('one_thread', 'own_cache')


def spec_of(data, bert, **method):
    from neuronlens.studies.spec import DataSpec, MethodSpec, ModelSpec, StudySpec
    usual = dict(fraction=[.5], layers=False) | ({} if 'preset' in method else dict(ranking=['dprime']))
    return StudySpec(data=DataSpec(str(data.train), str(data.test)), model=ModelSpec(str(bert)), method=MethodSpec(**usual | method))


@pytest.fixture
def run(data, bert):
    from neuronlens.studies.study import run_study
    return lambda out=None, **method: run_study(spec_of(data, bert, **method), out, progress=False)


@pytest.fixture(scope='module')
def clf(bert):
    "The classifier of the studies, whose depth and width say how much rounding makes."
    from neuronlens.models.model import load_classifier
    return load_classifier(bert)


def measured(study):
    from neuronlens.edits.effects import MEASURES
    return study.effects.frame[list(MEASURES)].to_numpy()


def test_a_preset_is_the_study_that_spells_it_out(run):
    spelled = dict(paper=dict(ranking=['max_activation'], range='gaussian', tau=2.5, edit='zero'),
                   gaussian=dict(range='gaussian(2.5)', edit='mean'),
                   recommended=dict(range='posterior', edit='mean', vote=.5))
    seen = []
    for name, method in spelled.items():
        a, b = run(preset=name), run(**method)
        assert set(a.effects.only(condition='range').frame.preset) == {name} and set(b.effects.frame.preset) == {''}
        pd.testing.assert_frame_equal(*(s.effects.frame.drop(columns='preset') for s in (a, b)))
        seen.append(a.headline().only(condition='range').frame.disturbance.tolist())
    assert seen[0] != seen[1] != seen[2]


def test_erase_puts_another_text_in_the_place_of_all_neurons(run):
    "The preset is the study that spells it out, and what its grid plans; its reports claim no random control."
    from neuronlens.edits.presets import preset_grid
    from neuronlens.studies.findings import next_steps
    a = run(preset='erase', fraction=[1.])
    b = run(range='bins(8)', edit='exchange', vote='weighted(0.5)', covers='salient', fraction=[1.])
    pd.testing.assert_frame_equal(*(s.effects.frame.drop(columns='preset') for s in (a, b)))
    assert {(iv.edit, iv.covers, iv.vote, iv.fraction, iv.range) for iv in preset_grid(a.train, 'erase')} == {
        ('exchange', 'salient', 'weighted(0.5)', 1., 'bins(8)')}
    assert 'There is no random control' in next_steps(a)[1]


def test_presets_of_a_study_are_those_of_the_grid(run):
    "Two ways to the same interventions: the study's own plan, and the grid of the preset over the recording."
    from neuronlens.edits.ablation import ablate
    from neuronlens.edits.effects import measure_effects
    from neuronlens.edits.presets import preset_grid
    from neuronlens.ground.data import read_texts
    from neuronlens.models.model import load_classifier
    study = run(preset='recommended')
    clf, texts = load_classifier(study.spec.model.classifier), read_texts(study.spec.data.test)
    for name, condition in (('recommended', 'range'), ('random', 'random')):
        every = preset_grid(study.train, name, fraction=.5)
        assert {iv.condition for iv in every} == {condition} and {iv.vote for iv in every} == {.4, .5, .6} and len(every) == 9
        ivs = [iv for iv in every if iv.vote == .5] # A study takes the first of what a preset leaves open
        mine = measure_effects(ablate(clf, texts, ivs, recording=study.test, progress=False)).only(condition=condition)
        pd.testing.assert_frame_equal(*(e.frame.drop(columns='preset') for e in (mine, study.effects.only(condition=condition))))


def test_a_preset_survives_being_written(tmp_path, data, bert):
    from neuronlens.studies.spec import check_study, read_study, write_study
    for method in (dict(preset='paper'), dict(preset='recommended', vote=.5), dict(range='gaussian(3)'), dict(range='quantile(0.8)'),
                   dict(preset='erase', fraction=[1.])):
        spec = check_study(spec_of(data, bert, **method))
        assert check_study(spec) == spec == read_study(write_study(spec, tmp_path/'s.toml'))
    assert check_study(spec_of(data, bert, range='gaussian(3)')).method.tau == 3
    assert check_study(spec_of(data, bert, range='quantile(0.8)')).method.kind == 'quantile(0.8)'


def test_contradictions_in_python_are_refused_too(data, bert):
    from neuronlens.ground.core import InputError
    from neuronlens.studies.spec import check_study
    for method, said in ((dict(preset='paper', vote=.5), 'vote'), (dict(preset='gaussian', tau=2.), 'tau'),
                         (dict(preset='gaussian', range='posterior'), 'posterior'), (dict(range='gaussian(3)', tau=2.), 'tau'),
                         (dict(preset='erase', fraction=[.5]), r"fraction \[0.5\] contradicts preset 'erase', which has \[1.0\]"),
                         (dict(preset='erase', fraction=[1.], edit='zero'), 'edit'),
                         (dict(preset='paper', positions='readout'), 'positions')):
        with pytest.raises(InputError, match=said): check_study(spec_of(data, bert, **method))


@pytest.mark.parametrize('kind', ['posterior', 'posterior(0.6)', 'posterior_histogram', 'kmeans(4)', 'density', 'tolerance(0.2)', 'full'])
def test_every_kind_of_range_runs_and_loads(kind, run, tmp_path):
    from neuronlens.studies.saved import load_study
    study = run(tmp_path/'out', range=kind)
    back = load_study(tmp_path/'out')
    np.testing.assert_array_equal(back.ranges.lo, study.ranges.lo)
    assert study.ranges.name.startswith(kind)
    assert set(study.effects.only(condition='range').frame.range) == {study.ranges.name}


def test_every_edit_runs(run):
    seen = {e: measured(run(edit=e)) for e in ('zero', 'mean', 'scale(0.5)', 'shift', 'transport', 'resample', 'dampen', 'adaptive(2)')}
    for a in seen: assert all(a == b or not np.array_equal(seen[a], seen[b]) for b in seen), a
    np.testing.assert_array_equal(seen['zero'], measured(run(edit='scale(0)')))


def test_a_vote_closes_the_gate(run):
    fires = [run(range='gaussian(1)', vote=v).headline().macro().set_index('condition').fires_on_auxiliary['range']
             for v in (0., .7, 1.)]
    assert fires[0] > fires[1] > fires[2]


def test_positions_of_a_study(run, clf):
    "At the last block of this classifier only the first token is read; behind it nothing is generated."
    from neuronlens.ground.core import InputError
    every, first, prompt = (measured(run(positions=p)) for p in ('all', 'readout', 'prompt'))
    for other in (first, prompt): agree(other, every, clf, size=1)
    assert (every[:, 4] > 0).any()
    with pytest.raises(InputError, match="positions 'generated' edit nothing"): run(positions='generated')


@pytest.mark.parametrize('fitted_at', ['readout', 'tokens'])
def test_a_study_that_asks_a_text_once(run, tmp_path, fitted_at):
    "`scope` and `covers` of a study are in its table, its file and the study that is opened, and do something."
    from neuronlens.studies.saved import load_study
    how = dict(site='residual.0', vote=.4, fitted_at=fitted_at)
    plain, study = run(**how), run(tmp_path/'out', scope='text', covers='salient', **how)
    rows = study.effects.frame.set_index('condition')
    for c in ('range', 'random'): assert set(zip(rows.scope[c], rows.covers[c], strict=True)) == {('text', 'salient')}
    for c in ('base', 'full'): assert set(zip(rows.scope[c], rows.covers[c], strict=True)) == {('position', 'range')}
    assert set(rows.fires_on_auxiliary['range']) != set(plain.effects.only(condition='range').frame.fires_on_auxiliary)
    back = load_study(tmp_path/'out')
    pd.testing.assert_frame_equal(back.effects.frame, study.effects.frame)
    assert (back.spec.method.scope, back.spec.method.covers) == ('text', 'salient')
    assert '# When' in (tmp_path/'out/study.toml').read_text()


def test_ranges_of_tokens(run, tmp_path):
    from neuronlens.arrays.ranges import fit_ranges
    from neuronlens.studies.saved import load_study
    study = run(tmp_path/'out', fitted_at='tokens', site='residual.0')
    assert len(study.tokens) > len(study.train) and study.tokens.readout == 'tokens'
    np.testing.assert_array_equal(study.ranges.lo, fit_ranges(study.tokens.acts, study.tokens.labels, study.spec.method.kind).lo)
    assert set(study.effects.only(condition=['full', 'range', 'random']).frame.fitted_at) == {'tokens'}
    back = load_study(tmp_path/'out')
    np.testing.assert_array_equal(back.ranges.lo, study.ranges.lo)
    np.testing.assert_array_equal(back.statistics.mean, study.statistics.mean) # Of the readout, as ever


def test_rankings_that_ask_the_model(run, tmp_path, data, clf):
    from neuronlens.edits.attribution import attribute
    from neuronlens.ground.data import read_texts
    from neuronlens.studies.saved import load_study
    study = run(tmp_path/'out', ranking=['gradient_x_activation', 'dprime'])
    want = attribute(clf, read_texts(data.train), method='gradient_x_activation', progress=False)
    agree(study.ranking.scores, want.scores, 3**.5*steps_of(clf)) # The way back has twice the operations of a pass
    assert set(study.effects.frame.ranking) == {'gradient_x_activation', 'dprime'}
    np.testing.assert_array_equal(load_study(tmp_path/'out').salient, study.salient)


def test_correct_only_fits_on_what_the_model_knows(run, tmp_path):
    from neuronlens.arrays.statistics import class_statistics
    from neuronlens.studies.saved import load_study
    study, plain = run(tmp_path/'out', correct_only=True), run()
    right = study.train.predicted == study.train.labels
    assert 0 < right.sum() < len(right) == len(plain.train) and study.notes['wrong_training_texts'] == (~right).sum()
    np.testing.assert_array_equal(study.statistics.mean, class_statistics(study.train.acts[right], study.train.labels[right]).mean)
    assert not np.array_equal(study.ranges.lo, plain.ranges.lo)
    np.testing.assert_array_equal(load_study(tmp_path/'out').ranges.lo, study.ranges.lo)


def test_a_class_that_is_never_right_is_refused(run):
    from neuronlens.ground.core import InputError
    from neuronlens.studies.saved import right_ones
    train = run().train
    wrong = np.where(train.labels[:, None] == 1, np.eye(3, dtype=np.float32)[0], train.probabilities)
    with pytest.raises(InputError, match="0 training texts of class 'food' correctly"): right_ones(replace(train, probabilities=wrong))


# --- intervals and the control

def test_intervals_are_of_the_effects(run, tmp_path):
    from neuronlens.studies.saved import load_study
    study = run(tmp_path/'out', ranking=['dprime', 'max_activation'])
    df, e = study.intervals.frame, study.effects.frame
    assert set(df.concept) == {*CLASSES, 'macro'} and len(df) == 8*(len(e)+len(study.effects.macro()))
    keys = ['concept', 'condition', 'ranking', 'fraction']
    for m in ('target_accuracy', 'disturbance', 'fires_on_auxiliary'):
        both = e.merge(df[df.measure == m], on=keys)
        assert len(both) == len(e)
        agree(both[m], both.value, len(study.test)**.5, size=1) # Means of the same numbers
        assert (both.low <= both.value+1e-9).all() and (both.value <= both.high+1e-9).all()
    pd.testing.assert_frame_equal(load_study(tmp_path/'out').intervals.frame, df, check_dtype=False)
    assert pd.read_csv(tmp_path/'out/intervals.csv').columns.tolist()[-5:] == ['measure', 'value', 'low', 'high', 'n']


def test_a_study_without_intervals_has_a_report(run):
    from neuronlens.studies.report import report_html
    study = replace(run(), intervals=None)
    assert 'bootstrap' not in report_html(study, [])


def test_report_says_whether_the_range_beats_its_control(run):
    from neuronlens.studies.findings import next_steps
    from neuronlens.studies.report import report_html
    every = run(fraction=[1.]) # All neurons, so the control is the thing itself
    assert every.notes['control']['target_accuracy']['difference'] == 0
    same = 'here is no random control: all neurons are edited, and as many drawn at random are the same ones'
    assert same in next_steps(every)[1] and same in report_html(every, []) and 'does not beat' not in report_html(every, [])
    some = run()
    good = dict(difference=-.4, low=-.5, high=-.3, p=.01)
    bad, none = good | dict(low=.1, high=.5, difference=.3), good | dict(low=-.1, high=.1, difference=0.)
    for t, d, words in ((good, bad, 'beats its random control, it suppresses more'),
                        (none, good, 'beats its random control, it disturbs less'),
                        (bad, good, 'does not beat'), (none, none, 'does not beat')):
        study = replace(some, notes=some.notes | dict(control=dict(target_accuracy=t, disturbance=d)))
        assert words in next_steps(study)[1], (t, d)


def test_report_shows_intervals_and_settings(run):
    from neuronlens.studies.report import report_html
    study = run(preset='recommended')
    said = report_html(study, [])
    row = study.intervals.only(concept='food', condition='range', measure='target_confidence').frame.iloc[0]
    assert f'{row.value:.3f}\n<small>[{row.low:.3f}, {row.high:.3f}]</small>' in said
    assert 'where 50% of the salient neurons or more' in said and 'preset recommended' in said


def test_the_terminal_names_the_settings(cli, make_study, tmp_path, no_figures):
    r = cli('run', make_study(method=dict(preset='recommended', ranking=['dprime'], fitted_at='tokens')), '--out', tmp_path/'out')
    assert r.exit_code == 0, r.stderr
    head = ' '.join(r.stdout.split('\n')[:3])
    for words in ('preset recommended', 'vote 0.5', 'fitted_at tokens'): assert words in head
    assert 'random control' in r.stdout
    assert set(json.loads((tmp_path/'out/provenance.json').read_text())['notes']['control']) == {'target_accuracy', 'disturbance'}


# --- a causal model

@pytest.fixture(scope='module')
def speaker(tmp_path_factory):
    "Folder of a tiny causal language model with a tokenizer of bytes."
    from test_prompt import byte_tokenizer, language_model
    folder = tmp_path_factory.mktemp('speaker')
    language_model('llama').save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def plain_answers(folder, prompt, texts):
    "The model, and class probabilities by plain transformers: the first token of every verbalizer behind the whole prompt."
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model, tok = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    out = []
    for t in texts:
        ids = tok(prompt.ask(t)).input_ids
        first = [tok(prompt.ask(t)+v).input_ids[len(ids)] for v in prompt.verbalizers]
        with torch.no_grad(): out.append(model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[first].exp().numpy())
    p = np.stack(out)
    return model, p/p.sum(1, keepdims=True)


def test_a_prompted_model_from_the_study_file(speaker, cli, make_study, tmp_path, no_figures, data, test_frame):
    from neuronlens.ground.data import read_texts
    from neuronlens.models.prompt import make_prompt
    from neuronlens.studies.saved import load_study
    asked = dict(template='Text: {text}\nTopic:', shots=1, calibrate=True, scoring='first')
    study = make_study(model=dict(causal=str(speaker)), prompt=asked, method=dict(preset='recommended', ranking=['dprime']))
    r = cli('run', study, '--out', tmp_path/'out')
    assert r.exit_code == 0, (r.stderr, r.exception)
    prompt, rest = make_prompt(read_texts(data.train), asked['template'], shots=1)
    back = load_study(tmp_path/'out')
    assert len(back.train) == len(rest) == 59 and back.train.readout == 'last' # One text is the shot
    model, known = plain_answers(speaker, prompt, rest.texts)
    want = plain_answers(speaker, prompt, test_frame.text)[1]/known.mean(0)
    want /= want.sum(1, keepdims=True)
    same_answers(back.test.probabilities, want, model, size=score_size(known))
    base = back.effects.only(condition='base').frame.set_index('concept')
    for c, name in enumerate(CLASSES):
        agree(base.target_confidence[name], want[back.test.labels == c, c].mean(), model, size=score_size(known))
    said = json.loads((tmp_path/'out/recording/test.json').read_text())
    assert said['prompt']['template'] == asked['template'] and said['prompt']['scoring'] == 'first'
    assert (back.effects.only(condition='full').frame.disturbance > 0).all()


def test_prompts_that_do_not_fit_are_refused(speaker, cli, make_study, tmp_path):
    for prompt, said in ((dict(shots=60), 'too few'), (dict(verbalizers=[' a', ' b']), '2 verbalizers for 3 classes'),
                         (dict(shots=1, verbalizers=[' old cat', ' old rice', ' new'], scoring='first'), 'score them by their sum'),
                         (dict(shots=12), 'tokens without a text')):
        r = cli('run', make_study(model=dict(causal=str(speaker)), prompt=prompt), '--out', tmp_path/'out')
        assert (r.exit_code, r.stderr.count('\n')) == (2, 1) and said in r.stderr, (r.stderr, r.exception)
