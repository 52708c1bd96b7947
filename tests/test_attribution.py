"""Attributions beside captum, on tiny BERT and GPT-2 classifiers, and what must not change them."""
import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import BEYOND, same_answers

from neuronlens.edits.attribution import ATTRIBUTIONS, MODEL_RANKINGS, Attributions, attribute, attributions, rank_model
from neuronlens.ground.core import InputError
from neuronlens.ground.data import make_texts
from neuronlens.ground.rounding import agree, apart, steps_of
from neuronlens.models.anatomy import Site, anatomy, parse_site
from neuronlens.models.batches import encode, pad, read, readout_weights
from neuronlens.models.model import load_classifier
from neuronlens.records.recording import record

pytestmark = pytest.mark.usefixtures('one_thread')
captum = pytest.importorskip('captum.attr', reason="captum is not installed; `pip install captum==0.9` brings the oracle")
SITES = ('residual.0', 'residual.1', 'mlp.0', 'mlp.1', 'attention.0', 'attention.1')


@pytest.fixture(scope='module', params=('bert', 'gpt2'))
def clf(request):
    return load_classifier(request.getfixturevalue(request.param))


@pytest.fixture(scope='module')
def texts(test_frame):
    return make_texts(test_frame.text.tolist()[:18], test_frame.label.tolist()[:18])


@pytest.fixture(scope='module')
def setting(clf, texts):
    "All texts in one padded batch, their labels as the model's, and log-probabilities without any of our hooks."
    e = encode(clf, texts.texts)
    batch = pad(e.ids, e.special, np.arange(len(e)), fill=clf.pad_id)
    def log_p(ids, mask): return clf.model(**(clf.inputs(batch) | dict(input_ids=ids, attention_mask=mask))).logits.log_softmax(-1)
    return batch, torch.tensor([clf.classes.index(texts.classes[i]) for i in texts.labels]), log_p


def there_and_back(clf):
    "Roundings behind a slope: those of a pass, and of the way back, which has twice as many operations."
    return 3**.5*steps_of(clf)


def layer(clf, site):
    "The module of a site, and whether its neurons are what goes in."
    a, s = anatomy(clf.model), parse_site(site)
    return (a.blocks[s.block], False) if s.stream == 'residual' else (a.inner[s], True)


def readout(clf, batch, acts):
    acts = acts[0] if isinstance(acts, tuple) else acts
    return read(acts.detach(), readout_weights(batch, clf.readout)).numpy()


def from_activation(clf, batch, log_p, site):
    "Log-probabilities as a function of the readout's activation at a site, by a hook of the test's own."
    module, inputs = layer(clf, site)
    at = readout_weights(batch, clf.readout).argmax(1)
    def forward(acts):
        S = len(acts)//len(batch)
        def put(x):
            x = x.clone()
            x[torch.arange(len(x)), at.repeat(S)] = acts
            return x
        def ahead(m, args): return (put(args[0]), *args[1:])
        def after(m, args, out): return (put(out[0]), *out[1:]) if isinstance(out, tuple) else put(out)
        handle = module.register_forward_pre_hook(ahead) if inputs else module.register_forward_hook(after)
        kw = clf.inputs(batch)
        kw = {k: v.repeat(S, 1) if isinstance(v, torch.Tensor) else v for k, v in kw.items()}
        try: return clf.model(**kw).logits.log_softmax(-1)
        finally: handle.remove()
    return forward


class FromActivation(torch.nn.Module):
    "A model that starts at the site, so that captum's walk there is ours."
    def __init__(self, forward):
        super().__init__()
        self.layer, self.above = torch.nn.Identity(), forward
    def forward(self, acts): return self.above(self.layer(acts))


@pytest.mark.parametrize('site', SITES)
def test_gradient_x_activation_is_captums(clf, texts, setting, site):
    batch, labels, log_p = setting
    module, inputs = layer(clf, site)
    theirs = captum.LayerGradientXActivation(log_p, module).attribute(
        batch.ids, labels, additional_forward_args=(batch.mask,), attribute_to_layer_input=inputs)
    ours = attributions(clf, texts, site, progress=False).values
    agree(ours, readout(clf, batch, theirs), there_and_back(clf))
    assert apart(ours, 0*ours, there_and_back(clf), size=1) > BEYOND


@pytest.mark.parametrize('site', SITES)
def test_integrated_gradients_are_captums(clf, texts, setting, site):
    batch, labels, log_p = setting
    acts = torch.tensor(record(clf, texts, site, progress=False).acts)
    model = FromActivation(from_activation(clf, batch, log_p, site))
    kw = dict(target=labels, n_steps=32, method='gausslegendre', internal_batch_size=None)
    base = acts.mean(0, keepdim=True)
    ours = attributions(clf, texts, site, 'integrated_gradients', progress=False).values
    assert apart(ours, 0*ours, there_and_back(clf), size=1) > BEYOND
    for theirs in (captum.IntegratedGradients(model).attribute(acts, base, **kw),
                   captum.LayerIntegratedGradients(model, model.layer).attribute(acts, base, **kw)):
        agree(ours, theirs, there_and_back(clf))


def test_integrated_gradients_are_captums_conductance(clf, texts, setting):
    batch, labels, log_p = setting
    acts = torch.tensor(record(clf, texts, 'residual.0', progress=False).acts)
    model = FromActivation(from_activation(clf, batch, log_p, 'residual.0'))
    theirs = captum.LayerConductance(model, model.layer).attribute(acts, acts.mean(0, keepdim=True), labels, n_steps=256)
    ours = attributions(clf, texts, 'residual.0', 'integrated_gradients', progress=False).values
    np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=.02*np.abs(ours).max())


@pytest.mark.parametrize('readout', ('first', 'last', 'mean'))
@pytest.mark.parametrize('site', ('residual.0', 'residual.1', 'mlp.1'))
def test_neurons_add_up_whatever_the_readout(clf, texts, site, readout):
    other = replace(clf, readout=readout)
    a = attributions(other, texts, site, 'integrated_gradients', progress=False)
    rec = record(clf, texts, progress=False)
    same_answers(a.log_p, np.log(rec.confidence), clf)
    assert np.abs(a.gap).max() < 2e-3*max(1, np.abs(a.log_p-a.log_p_base).max())
    reads = {'first'} if clf.readout == 'first' else {'last', 'mean'} # A mean leaves [CLS] out, and holds the last word
    assert (np.abs(a.values).max() > 0) == (site == 'residual.0' or readout in reads) # In the last block only the head's own
    b = attributions(other, texts, site, progress=False)
    same_answers(b.log_p, a.log_p, clf)


def test_slope_of_a_mean_readout_is_that_of_moving_all_its_positions(clf, texts):
    other, e = replace(clf, readout='mean'), encode(clf, texts.texts[:3])
    batch = pad(e.ids, e.special, np.arange(3), fill=clf.pad_id)
    on = ((batch.mask == 1) & ~batch.special)[..., None]
    labels = [clf.classes.index(texts.classes[i]) for i in texts.labels[:3]]
    exact = copy.deepcopy(clf.model).double() # A difference of two scores that are close is all rounding in float32
    def score(by):
        def after(m, args, out): return (out[0]+on*by, *out[1:]) if isinstance(out, tuple) else out+on*by
        handle = anatomy(exact).blocks[0].register_forward_hook(after)
        try: return exact(**clf.inputs(batch)).logits.log_softmax(-1)[range(3), labels].detach().numpy()
        finally: handle.remove()
    acts = record(other, texts, 'residual.0', progress=False).acts
    ours = attributions(other, texts, 'residual.0', progress=False).values[:3]
    for j in (0, 7, 31):
        by = torch.zeros(32, dtype=torch.float64)
        by[j] = 1e-4
        agree(ours[:, j], acts[:3, j]*(score(by)-score(-by))/2e-4, there_and_back(clf), size=np.abs(ours).max())


@pytest.mark.parametrize('method', ATTRIBUTIONS)
@pytest.mark.parametrize('site', ('residual.0', 'mlp.1', 'residual.1'))
def test_batches_order_and_recording_change_nothing(clf, texts, site, method):
    a = attributions(clf, texts, site, method, progress=False)
    b = attributions(clf, texts, site, method, tokens=20, progress=False)
    c = attributions(clf, texts, site, method, recording=record(clf, texts, ['residual.1', site], progress=False), progress=False)
    back = make_texts(texts.texts[::-1], [texts.classes[i] for i in texts.labels[::-1]])
    d = attributions(clf, back, site, method, progress=False)
    for other in (b.values, c.values, d.values[::-1]): agree(other, a.values, there_and_back(clf))
    agree(d.ranking().scores, a.ranking().scores, there_and_back(clf), size=np.abs(a.values).max())


@pytest.mark.parametrize('site', ('residual.0', 'mlp.1'))
def test_padding_on_the_other_side_changes_nothing(clf, texts, site, monkeypatch):
    from neuronlens import batches
    right = attributions(clf, texts, site, 'integrated_gradients', progress=False).values
    own, sides = batches.pad, []
    def left(*args, **kw):
        sides.append('left')
        return own(*args, **(kw | dict(side='left', length=40)))
    monkeypatch.setattr(batches, 'pad', left)
    if not clf.takes_positions: pytest.skip("counts positions from the left edge")
    agree(attributions(clf, texts, site, 'integrated_gradients', progress=False).values, right, there_and_back(clf))
    assert sides


def test_the_last_block_runs_no_text(clf, texts, monkeypatch):
    rec = record(clf, texts, progress=False)
    wanted = attribute(clf, texts, recording=rec, progress=False).scores
    monkeypatch.setattr('neuronlens.edits.attribution.run', None)
    monkeypatch.setattr('neuronlens.edits.attribution.encode', None)
    np.testing.assert_array_equal(attribute(clf, texts, recording=rec, progress=False).scores, wanted)


def test_the_model_is_left_as_it_was(clf, texts):
    before = {n: (p.requires_grad, p.grad) for n, p in clf.model.named_parameters()}
    attribute(clf, texts, 'mlp.0', 'integrated_gradients', steps=2, progress=False)
    assert before == {n: (p.requires_grad, p.grad) for n, p in clf.model.named_parameters()}
    assert not any(m._forward_hooks or m._forward_pre_hooks or 'forward' in m.__dict__ for m in clf.model.modules())


def test_works_where_gradients_are_off(clf, texts):
    wanted = attribute(clf, texts, 'mlp.0', progress=False).scores
    with torch.no_grad(): np.testing.assert_array_equal(attribute(clf, texts, 'mlp.0', progress=False).scores, wanted)


def test_a_planted_neuron_is_found_and_an_unused_one_gets_nothing(bert, texts):
    clf = load_classifier(bert)
    last = clf.model.bert.pooler.dense.weight
    with torch.no_grad():
        last[:, 3] = 0 # The head does not see neuron 3
        last[:, 9] *= 5
    for method in ATTRIBUTIONS:
        scores = attribute(clf, texts, method=method, progress=False).scores
        assert (scores[:, 3] == 0).all()
        assert (np.argsort(-np.abs(scores).sum(0))[:3] == 9).any()


def test_scores_are_class_means_with_their_sign(clf, texts):
    a = attributions(clf, texts, 'residual.0', progress=False)
    r = a.ranking()
    for c in range(3): agree(r.scores[c], a.values[a.labels == c].mean(0), len(texts)**.5, size=np.abs(a.values).max())
    assert r.scores.min() < 0 < r.scores.max() and r.name == a.method and r.classes == clf.classes
    risky = replace(a, site='<b>')
    assert '<b>' not in risky._repr_html_() and isinstance(risky, Attributions)


def test_any_ranking_by_name(clf, texts):
    rec = record(clf, texts, ['residual.1', 'mlp.0'], progress=False)
    for name in MODEL_RANKINGS:
        r = rank_model(clf, texts, rec, name, site='mlp.0', progress=False)
        assert r.name == name and r.scores.shape == (3, 48)
    with pytest.raises(InputError, match="no ranking is called 'cosine'.*gradient_x_activation"):
        rank_model(clf, texts, rec, 'cosine')


def test_bad_input_is_refused_before_anything_runs(clf, texts, monkeypatch):
    rec, other = record(clf, texts, progress=False), record(replace(clf, readout='mean'), texts, progress=False)
    monkeypatch.setattr('neuronlens.edits.attribution.record', None)
    monkeypatch.setattr('neuronlens.edits.attribution.encode', None)
    for said, kw in (("no attribution is called 'x'", dict(method='x')), ("steps=0", dict(method=ATTRIBUTIONS[1], steps=0)),
                     ("block 7 is beyond", dict(site='mlp.7')), ("'mlp.0' was not recorded", dict(site='mlp.0', recording=rec)),
                     ("readout 'mean'", dict(recording=other))):
        with pytest.raises(InputError, match=said): attribute(clf, texts, progress=False, **kw)


def test_a_slope_that_is_no_number_is_refused(bert, texts):
    clf = load_classifier(bert)
    before = record(clf, texts, progress=False)
    with torch.no_grad(): clf.model.bert.pooler.dense.weight[:, 4] = np.nan
    rec = record(clf, texts, answers=False, progress=False)
    with pytest.raises(InputError, match="of the model with other weights"): attribute(clf, texts, recording=before, progress=False)
    with pytest.raises(InputError, match="slope of neuron .* is not finite"): attribute(clf, texts, recording=rec, progress=False)
    assert Site('residual', 1) == parse_site(rec.site)
