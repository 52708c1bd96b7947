"""Tasks that users tried, in the lines they would expect, from `nl` alone, on a tiny classifier and a few texts.

Tasks in a browser or a notebook (views that survive, Voila, search) stand in `test_lab.py`, `test_where.py` and `test_site.py`.
"""
import copy

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import neuronlens as nl

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def study(bert, data):
    "(classifier, training and test texts, their recordings)"
    clf = nl.load_classifier(bert, device="cpu")
    texts = [nl.read_texts(f) for f in (data.train, data.test)]
    return clf, *texts, *(nl.record(clf, t, progress=False) for t in texts)


@pytest.fixture(scope="module")
def swept(study):
    clf, _, test, rec, _ = study
    ivs = nl.grid(rec, ranking=["dprime", "probeless"], range=["gaussian(2)", "quantile(0.1)"], fraction=[.25, .5, 1])
    return nl.ablate(clf, test, ivs, progress=False)


@pytest.fixture(scope="module")
def edit(study):
    clf, _, _, rec, _ = study
    return nl.make_edit(clf, [iv for iv in nl.grid(rec, concept=["food"], edit="zero") if iv.condition == "range"])


def test_two_rankings_and_two_ranges_at_matched_erasure(swept):
    sure = nl.intervals(swept, progress=False)
    table = nl.choice.matched_table(nl.choose(nl.measure_effects(swept), at=.5, bounds=sure), swept, dataset="three words")
    assert {"dprime", "probeless"} & {*table.to_frame().ranking} and table.to_latex(caption="At half").count("\\\\") > 2


def test_the_same_from_the_folder_asks_the_model_nothing(study, bert, data, tmp_path, monkeypatch):
    spec = nl.spec.parse_study(dict(data=dict(train=str(data.train), test=str(data.test)), model=dict(classifier=str(bert))))
    nl.run_study(spec, tmp_path/"out", progress=False)
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *a, **k: pytest.fail("the model was asked"))
    opened = nl.load_study(tmp_path/"out")
    assert len(nl.compare(opened, dict(condition="range"), dict(condition="random")).frame)


def test_a_table_for_a_paper(swept):
    said = nl.measure_effects(swept).only(condition="range", concept="food").to_latex(caption="Effects & more")
    assert said.startswith("\\begin{table}") and "\\toprule" in said and "Effects \\& more" in said


@pytest.mark.usefixtures("forgotten")
def test_own_ranking_range_and_edit_by_name(study):
    clf, _, test, rec, _ = study
    @nl.register_ranking
    def leftmost(statistics): return np.tile(-np.arange(statistics.mean.shape[1]), (len(statistics.mean), 1))
    @nl.register_range
    def upper(statistics): return statistics.mean, np.full_like(statistics.mean, np.inf)
    @nl.register_edit
    def halved(x, about): return x/2
    ivs = nl.grid(rec, ranking="leftmost", range="upper", edit="halved", fraction=.25)
    assert ivs[0].neurons.sort().values.tolist() == [*range(8)]
    assert {*nl.measure_effects(nl.ablate(clf, test, ivs, progress=False)).frame.edit} >= {"halved"}


def test_any_module_is_a_site(study):
    clf, train, _, _, _ = study
    rec = nl.record(clf, train, "bert.encoder.layer.0.attention.output.LayerNorm", progress=False)
    with torch.no_grad():
        seen = []
        with clf.model.bert.encoder.layer[0].attention.output.LayerNorm.register_forward_hook(lambda m, i, o: seen.append(o)):
            clf.model(**clf.tokenizer(train.texts[0], return_tensors="pt", return_token_type_ids=False))
    np.testing.assert_allclose(rec.acts[0], seen[0][0, 0], atol=1e-5)


def test_arrays_without_a_model(study, tmp_path):
    _, _, _, train, test = study
    for name, rec in dict(train=train, test=test).items(): np.save(tmp_path/f"{name}.npy", rec.acts)
    a, b = (nl.recording(tmp_path/f"{n}.npy", r.labels, classes=r.classes) for n, r in dict(train=train, test=test).items())
    found = nl.run_study(recordings=(a, b), progress=False)
    np.testing.assert_array_equal(found.salient, nl.rank(train).salient(found.fraction))
    assert nl.write_report(found, tmp_path, progress=False).is_file() and nl.explore(found) is not None


def test_an_edit_saved_loaded_and_put_on_a_pipeline(study, edit, bert, tmp_path):
    clf, _, test, _, _ = study
    edit.save(tmp_path/"edit.safetensors")
    model, tok = AutoModelForSequenceClassification.from_pretrained(bert), AutoTokenizer.from_pretrained(bert)
    pipe = pipeline("text-classification", model, tokenizer=tok, top_k=None, device="cpu")
    with nl.load_edit(tmp_path/"edit.safetensors").on(pipe): edited = pipe(test.texts[:6])
    want = nl.ablate(clf, test[:6], edit.interventions, progress=False).after[0]
    got = [[next(x["score"] for x in said if x["label"] == c) for c in clf.classes] for said in edited]
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert abs(np.array(got)-nl.ablate(clf, test[:6], edit.interventions, progress=False).before).max() > .01


def test_the_edit_in_half_precision_and_beside_an_adapter(study, edit):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    clf, _, test, _, _ = study
    half, out = copy.deepcopy(clf.model).bfloat16(), nl.ablate(clf, test, edit.interventions, progress=False)
    most = abs(out.after[0]-out.before).sum(1).argmax() # The text that the edit moves furthest
    asked = clf.tokenizer(test.texts[most], return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad(), edit.on(half): got = half(**asked).logits.float().softmax(-1)[0].numpy()
    assert 4*abs(got-out.after[0][most]).sum() < abs(out.after[0][most]-out.before[most]).sum()
    about = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    lora = nl.model.make_classifier(peft.get_peft_model(copy.deepcopy(clf.model), about).eval(), clf.tokenizer, clf.classes)
    np.testing.assert_allclose(nl.record(lora, test, progress=False).acts, nl.record(clf, test, progress=False).acts, atol=1e-5)


def test_one_label_of_several(study, frame):
    clf, train, _, _, _ = study
    model = copy.deepcopy(clf.model)
    model.config.problem_type = "multi_label_classification"
    texts = nl.model.one_label(train.texts, [[c] for c in frame.label], "food")
    one = nl.model.make_classifier(model, clf.tokenizer, clf.classes, label="food")
    assert nl.record(one, texts, progress=False).classes == ("not food", "food")
