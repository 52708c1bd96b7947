"""What more is said of a range, by name: in study files, their folders, the report and the tab Meaning, the same as the functions give."""
from dataclasses import replace
from html import unescape
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from models import WORDS, word_tokenizer
from test_meaning_view import given
from tiny import OWN, WIDTHS, shaken
from transformers import AutoConfig, AutoModelForCausalLM

import neuronlens as nl
from neuronlens.arrays.corners import range_independence
from neuronlens.arrays.modes import find_modes
from neuronlens.arrays.scale import monosemantic_scale
from neuronlens.arrays.scrambling import scrambled, scrambled_firing
from neuronlens.edits.explaining import explain_texts
from neuronlens.edits.further import FURTHER, Asked, FurtherSearch, Remembered, further
from neuronlens.edits.lens import vocabulary_lens
from neuronlens.edits.meant import strongest
from neuronlens.ground.core import InputError
from neuronlens.ground.data import make_texts
from neuronlens.models.model import load_classifier
from neuronlens.models.prompt import make_prompt
from neuronlens.models.prompted import make_prompted
from neuronlens.studies.fields import MeaningSpec, StudySpec
from neuronlens.studies.findings import meanings
from neuronlens.studies.report import report_html
from neuronlens.studies.saved import load_study, save_study
from neuronlens.studies.spec import parse_study, read_study
from neuronlens.studies.verify import FURTHER as TABLES
from neuronlens.views.meaning_view import UNTOLD, MeaningView

pytestmark = pytest.mark.usefixtures('one_thread', 'own_cache', 'no_figures')
ALSO = ['modes', 'order', 'scale', 'independence']


@pytest.fixture(scope='module')
def folder(tmp_path_factory, data, bert, cli, one_thread):
    "A study of the tiny BERT that asks more, run from its file."
    import tomli_w
    out = tmp_path_factory.mktemp('further')
    told = dict(data=dict(train=str(data.train), test=str(data.test)), model=dict(classifier=str(bert)), meaning=dict(also=ALSO, neurons=2),
                method=dict(ranking=['dprime'], fraction=[.5], layers=False))
    (out/'study.toml').write_text(tomli_w.dumps(told), encoding='utf-8')
    done = cli('run', out/'study.toml', '--out', out/'made')
    assert done.exit_code == 0, done.stderr
    return out/'made'


@pytest.fixture(scope='module')
def study(folder): return load_study(folder).open(progress=False)


def test_names_are_those_of_the_folder():
    "The names that study files take, tables in folders and the meanings of the list are the same."
    from neuronlens.views.widgets import MEANINGS
    assert (*FURTHER,) == TABLES and [*MEANINGS['also']] == [*FURTHER]


def test_tables_are_what_the_functions_give(folder, study):
    "Every table of the folder, against the function called by hand on the study's own ranges."
    s, who = study, strongest(study)
    assert len(who) == 2*len(s.classes) and [*s.further] == ALSO
    texts, acts = [t.texts for t in s.texts], [s.train.acts, s.test.acts]
    scale = monosemantic_scale(s.test.acts, s.test.labels, s.classes)
    clf = load_classifier(s.spec.model.classifier)
    copies = nl.record(clf, scrambled(s.texts[1], seed=0), [s.train.site], progress=False).acts
    order = scrambled_firing(s.test.acts, copies, s.ranges).to_frame().set_index(['concept', 'neuron'])
    for i, (c, j) in enumerate(who):
        name = s.classes[c]
        row = s.further['scale'].iloc[i]
        assert (row.concept, row.neuron) == (name, j)
        assert np.allclose(row[['kurtosis', 'phi', 'far']].astype(float), [scale.kurtosis[j], scale.by_concept[c, j], scale.far[j]])
        got, want = s.further['order'].iloc[i], order.loc[name, j]
        assert (got.concept, got.neuron) == (name, j) and np.allclose([got.real, got.scrambled, got.p], [want.real, want.scrambled, want.p])
        own = s.further['modes'].query('concept == @name and neuron == @j')
        try: made = find_modes(texts, [s.ranges.contains(a, c, [j])[:, 0] for a in acts], draws=200).to_frame()
        except InputError: assert own.empty; continue
        assert own.formula.tolist() == made.formula.tolist() and np.allclose(own.formula_iou, made.formula_iou, equal_nan=True)
    both = s.further['independence']
    assert {*zip(both.concept, both.other, strict=True)} <= {(a, b) for a in s.classes for b in s.classes if a != b}
    r = both.iloc[-1]
    want = range_independence(s.test.acts[:, r.neuron], s.test.acts[:, r.other_neuron])
    assert np.allclose([r.occupied, r.p], [want.occupied, want.p])
    pairs = [frozenset([(a, n), (b, m)]) for a, n, b, m in both[['concept', 'neuron', 'other', 'other_neuron']].itertuples(index=False)]
    assert len({*pairs}) == len(pairs)


def test_tables_are_kept_as_they_were(folder, study, tmp_path):
    "Text that looks like a formula, a quote or a number, and numbers that are missing, come back; a changed file is refused."
    odd = study.further['modes'].copy()
    odd['typical'] = ['=1+1', '', '1984', 'NA', '"a, b"'][:len(odd)]+['x']*(len(odd)-5)
    odd['formula_iou'] = [np.nan]+[.25]*(len(odd)-1)
    save_study(replace(study, further=study.further | dict(modes=odd)), tmp_path/'out')
    back = load_study(tmp_path/'out').further
    pd.testing.assert_frame_equal(back['modes'], odd, check_dtype=False)
    for name in ALSO[1:]: pd.testing.assert_frame_equal(back[name], study.further[name], check_dtype=False)
    path = tmp_path/'out'/'order.csv'
    path.write_text(path.read_text().replace('0.', '1.', 1))
    with pytest.raises(InputError, match='order.csv is not the file that this study wrote'): load_study(tmp_path/'out')


def test_the_report_shows_them(folder, study):
    "Each with what it is; texts from data are escaped; without texts, too, as it was found."
    bad = study.further['modes'].assign(typical='<img src=x onerror=alert(1)>')
    for s in (study, replace(study, texts=None), replace(study, further=study.further | dict(modes=bad))):
        part = report_html(s, []).split('<h2 id="meaning">')[1].split('<h2')[0]
        for name in ALSO: assert FURTHER[name].says in unescape(part)
        assert '<img src=x' not in part
    bare = replace(study, meaning=None, texts=None)
    assert meanings(bare)['told'] and not meanings(replace(bare, further={}))['told']


def test_the_tab_asks(study):
    "What more is asked is asked by the button, once, and is what the study file gives; the list has what this study can answer."
    v = MeaningView(study)
    asked = [o[1] for o in v.controls['also'].options]
    assert asked == ['', 'modes', 'sentence', 'order', 'scale', 'independence']
    v.set(also='scale')
    assert 'Not searched yet' in v.picture.value
    v.search()
    kurtosis = study.further['scale']['kurtosis'][0]
    assert FURTHER['scale'].says.split(':')[0] in unescape(v.picture.value) and f'{kurtosis:.3f}' in v.picture.value
    v.set(also='order')
    assert UNTOLD in v.picture.value
    assert UNTOLD not in v.search().picture.value
    found = {**v.told.found}
    v.search()
    assert all(v.told.found[k] is t for k, t in found.items())
    with pytest.raises(InputError): v.set(also='lens')


def test_a_sentence_by_name(study):
    "The explainer of the file; vectors are made once for all ranges."
    who = strongest(study)[:2]
    calls = []
    def encoder(texts):
        calls.extend(texts)
        return np.array([[t.count('goal')+.1, t.count('vote')+.1, len(t)/100] for t in texts])
    for by in ('formula', 'ngrams'):
        own = replace(study, spec=replace(study.spec, meaning=replace(study.spec.meaning, explainer=by)))
        asked = Asked(own, str(study.train.site), who, 2000, memory=dict(encoder=Remembered(encoder)))
        got = FURTHER['sentence'].tell(asked)
        for row, (c, j) in zip(got.itertuples(), who, strict=True):
            ends = study.ranges.lo[c, j], study.ranges.hi[c, j]
            acts = [r.acts[:, j] for r in (study.train, study.test)]
            want = explain_texts([t.texts for t in study.texts], acts, *ends, by=by, encoder=encoder)
            assert (row.sentence, row.by) == (want.sentence, by) and np.isclose(row.area, want.area)


def test_a_lens_by_name():
    "Of a language model, beside the concept; a classifier has none."
    tok = word_tokenizer()
    model = shaken(AutoModelForCausalLM.from_config(AutoConfig.for_model('llama', **WIDTHS | OWN['llama'] | dict(vocab_size=len(tok)))))
    some = WORDS[:4]
    texts = make_texts([' '.join(np.roll(some, k)) for k in range(4)]*6, ['x', 'y']*12)
    prompt, left = make_prompt(texts, '{text} lamp', shots=0, verbalizers=tuple(f' {w}' for w in some[:2]))
    clf = make_prompted(model, tok, prompt)
    rec = nl.record(clf, left, ['mlp.0'], progress=False)
    asked = MeaningSpec(also=['lens'])
    s = SimpleNamespace(train=rec, test=rec, texts=(left, left), classes=rec.classes, clf=clf, tokens=None,
                        salient=np.array([[3, 1], [0, 2]]),
                        spec=SimpleNamespace(seed=0, method=SimpleNamespace(correct_only=False, kind='posterior'), meaning=asked))
    got = further(s)['lens']
    want = vocabulary_lens(model, tok, 'mlp.0', [0, 3], seed=0).to_frame()
    assert got.concept.tolist() == ['x', 'y'] and got.neuron.tolist() == [3, 0]
    assert got.promoted.tolist() == want.promoted[::-1].tolist() and np.allclose(got.promotes, want.promotes[::-1])


WRONG = [(dict(also=['mode']), "also 'mode' is none of modes"), (dict(also=['scale', 'scale']), 'also names one twice'),
         (dict(also=['lens']), "also 'lens' is asked of a language model"),
         (dict(explainer='gpt'), "explainer 'gpt' is none of formula, ngrams, model"),
         (dict(explainer='model'), "explainer 'model' is a language model that is prompted"),
         (dict(also=['scale'], concepts=0), 'also asks about the ranges of no concepts'), (dict(also='scale'), 'also must be a list')]


@pytest.mark.parametrize('meaning,says', WRONG)
def test_refused_at_the_door(make_study, meaning, says):
    "One sentence that names the setting, before a model is loaded."
    with pytest.raises(InputError, match=says): read_study(make_study(meaning=meaning))


def test_activations_alone():
    "What needs a model is refused at the door, what needs texts before anything is fitted; the rest is said."
    with pytest.raises(InputError, match="also 'order' needs a model"):
        parse_study(dict(activations=dict(train='a.npz'), meaning=dict(also=['order'])))
    s, bare = given(), given(texts=False)
    def run(r, *also):
        asked = StudySpec(meaning=MeaningSpec(also=list(also), neurons=2))
        return nl.run_study(asked, recordings=(r.train, r.test), progress=False)
    with pytest.raises(InputError, match="also 'modes' needs texts, and these activations have none"): run(bare, 'modes')
    assert [*run(bare, 'scale', 'independence').further] == ['scale', 'independence']
    assert [*run(s, 'modes', 'scale').further][-1] == 'scale'
    assert FurtherSearch(bare, 100).names() == ['scale', 'independence']


def test_what_has_no_answer_costs_nothing(caplog):
    "A neuron that never changes: the study stands, and the log says why the table is not there."
    import logging
    s = given()
    train, test = (replace(r, activations={r.site: np.ones_like(r.acts)}) for r in (s.train, s.test))
    few = replace(s, train=train, test=test, spec=replace(s.spec, meaning=MeaningSpec(also=['independence', 'scale'])))
    with caplog.at_level(logging.INFO, 'neuronlens'): told = further(few)
    assert [*told] == ['scale'] and 'no other neuron that changes' in caplog.text
