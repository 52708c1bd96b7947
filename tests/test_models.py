"""Every architecture against plain transformers (`tests/models.py`): a few here, some among the long tests, all with `make test-deep`;
and cases that went wrong."""
import copy
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers
from models import NAMES, ROLES, Plainly, Report, examine, plain, seen_at, word_tokenizer, words
from tiny import BEYOND, shaken
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from neuronlens.edits.ablation import ablate
from neuronlens.edits.edit import Intervention, Neurons
from neuronlens.edits.language import generate
from neuronlens.ground.core import InputError
from neuronlens.ground.data import make_texts
from neuronlens.ground.rounding import agree, rounding, score_size, steps_of
from neuronlens.ground.setting import Setting
from neuronlens.models.anatomy import Site, anatomy
from neuronlens.models.batches import encode
from neuronlens.models.hooks import hooked
from neuronlens.models.model import load_classifier, make_classifier
from neuronlens.models.prompt import Prompt
from neuronlens.models.prompted import make_prompted
from neuronlens.models.trials import weights_state, without_wrapper
from neuronlens.records.recording import record

pytestmark = pytest.mark.usefixtures("one_thread")
FEW = {"deberta relative": "classifier", "phi3 longrope": "classifier", "bert chunks": "classifier", "falcon pad": "classifier",
       "bert tuple": "classifier", "deepseek_v3": "classifier", "mistral": "prompted", "gemma3_text mixed": "prompted", "opt": "prompted",
       "modernbert": "classifier", "gpt_neo": "prompted"}
ALL = [(n, r) for n in NAMES for r, (_, kinds) in ROLES.items() if n.split()[0] in kinds]


def check(name, role, quick=False):
    works, refused, wrong = examine(name, role, quick)
    assert not wrong
    assert works or refused
    return works


@pytest.mark.parametrize("name", FEW)
def test_few(name): assert check(name, FEW[name], quick=True)


OTHERS = [x for x in ALL if x not in FEW.items()]
EIGHTH = [pytest.param(*x, marks=pytest.mark.deep if i % 8 else pytest.mark.slow) for i, x in enumerate(OTHERS)]


@pytest.mark.parametrize("name, role", EIGHTH)
def test_all(name, role): check(name, role)


@pytest.mark.parametrize("scale", [.1, 3.])
def test_what_the_comparison_lets_pass(scale):
    "What rounding makes, and what the last place of the weights makes, on a calm model and on a chaotic one; a mistake on neither."
    rep, model = Report(), shaken(made("llama"), scale=scale)
    rep.of = model
    said = Plainly(model, lambda m: plain(m, [5, 6, 7, 8, 9, 10]))
    bound = rounding(max(1., said.values.abs().max().item()), steps_of(model))
    for times, right in ((.9, True), (min(BEYOND, 4*said.moved/bound)*.9, True), (1.1*BEYOND, False)):
        assert rep.same("moved", said.values+times*bound, said) is right
    assert len(rep.wrong) == 1


# --- cases

SHAPE = dict(vocab_size=120, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2, intermediate_size=24,
             max_position_embeddings=64, pad_token_id=1, bos_token_id=2, eos_token_id=3, num_labels=3)
TEXTS = [words(n, n) for n in (5, 9, 12, 20, 8, 1)]
LABELLED = make_texts(TEXTS, list("abcabc"))


def made(kind, auto=AutoModelForSequenceClassification, **kw): return shaken(auto.from_config(AutoConfig.for_model(kind, **SHAPE | kw)))


def zeroed_output(model, site, module):
    "The largest number that comes out of a module when all neurons of a site are 0."
    seen = []
    h = module.register_forward_hook(lambda m, a, out: seen.append((out[0] if isinstance(out, tuple) else out).abs().max().item()))
    with torch.no_grad(), hooked(model, {site: torch.zeros_like}): model(torch.tensor([[5, 6, 7]]))
    h.remove()
    return seen[0]


class Adapted(torch.nn.Module):
    "What adapter libraries put in the place of a projection."
    def __init__(self, base, r=4):
        super().__init__()
        self.base_layer = base
        self.lora_A, self.lora_B = torch.nn.Linear(base.in_features, r, bias=False), torch.nn.Linear(r, base.out_features, bias=False)

    def forward(self, x): return self.base_layer(x)+self.lora_B(self.lora_A(x))


class Unmarked(Adapted):
    "The same by an unknown library."
    def __init__(self, base):
        super().__init__(base)
        self.within = self._modules.pop("base_layer")

    def forward(self, x): return self.within(x)+self.lora_B(self.lora_A(x))


def adapted(of, ends):
    model = made("llama")
    for n, x in list(model.named_modules()):
        if n.endswith(ends): setattr(model.get_submodule(n.rpartition(".")[0]), n.rpartition(".")[2], of(x))
    return shaken(model)


@pytest.mark.parametrize("ends", [("q_proj", "v_proj"), ("_proj",)])
def test_unmerged_adapters(ends):
    "The site is the layer's own projection, adapter included."
    model = adapted(Adapted, ends)
    fresh = copy.deepcopy(model)
    clf = make_classifier(model, word_tokenizer(), ["a", "b", "c"])
    for stream, module in (("attention", "self_attn.o_proj"), ("mlp", "mlp.down_proj")):
        rec = record(clf, LABELLED, f"{stream}.1", progress=False)
        want = [seen_at(fresh, clf.tokenizer(t).input_ids, f"model.layers.1.{module}", True)[-1] for t in TEXTS]
        agree(rec.acts, torch.stack(want), clf)
        assert zeroed_output(model, Site(stream, 1), model.get_submodule(f"model.layers.1.{module.split('.')[0]}")) == 0


def test_adapters_of_an_unknown_kind():
    "What nobody marks as an adapter is refused where its parts are not the whole."
    clf = make_classifier(adapted(Unmarked, ("o_proj", "down_proj")), word_tokenizer(), ["a", "b", "c"])
    with pytest.raises(InputError, match="adapters"): record(clf, LABELLED, "attention.1", progress=False)


@pytest.mark.slow
def test_peft():
    "A model wrapped by PEFT is the model inside, and answers as PEFT's does."
    peft = pytest.importorskip("peft", reason="peft is not installed")
    kw = dict(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    model = peft.get_peft_model(made("llama"), peft.LoraConfig(**kw)).eval()
    clf = make_classifier(model, word_tokenizer(), ["a", "b", "c"])
    assert clf.model is without_wrapper(model) is not model
    with torch.no_grad(): want = [model(torch.tensor([clf.tokenizer(t).input_ids])).logits[0].softmax(-1) for t in TEXTS]
    rec = record(clf, LABELLED, ["mlp.1", "attention.1"], progress=False)
    agree(rec.probabilities, torch.stack(want), clf, size=score_size(torch.stack(want)))
    assert zeroed_output(clf.model, Site("mlp", 1), clf.model.model.layers[1].mlp) == 0
    learned = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    with pytest.raises(InputError, match="learned tokens"):
        make_classifier(peft.get_peft_model(made("llama"), learned), word_tokenizer(), ["a", "b", "c"])


def test_blocks_of_different_widths():
    "Every block has its own width."
    model = made("llama")
    mlp = model.model.layers[2].mlp
    mlp.gate_proj, mlp.up_proj, mlp.down_proj = (torch.nn.Linear(a, b, bias=False) for a, b in ((16, 20), (16, 20), (20, 16)))
    clf = make_classifier(shaken(model), word_tokenizer(), ["a", "b", "c"])
    rec = record(clf, LABELLED, ["mlp.0", "mlp.2"], progress=False)
    assert [rec.at(s).shape[1] for s in ("mlp.0", "mlp.2")] == [24, 20]
    assert (anatomy(clf.model).width(Site("mlp", 2)), anatomy(clf.model).widths["mlp"]) == (20, 24)


def test_experts_are_refused_where_they_are():
    "Every expert has the same width as the dense block; still no expert and no shared one is taken for the layer."
    kw = dict(n_routed_experts=4, n_group=1, topk_group=1, num_experts_per_tok=2, first_k_dense_replace=1, moe_intermediate_size=24,
              q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, head_dim=4, n_shared_experts=1)
    model = made("deepseek_v3", **kw)
    clf = make_classifier(model, word_tokenizer(), ["a", "b", "c"])
    assert record(clf, LABELLED, ["mlp.0", "attention.1"], progress=False).acts.shape == (6, 24)
    with pytest.raises(InputError, match="site 'mlp.1' cannot be studied: .*experts"): record(clf, LABELLED, "mlp.1", progress=False)


def test_a_trial_leaves_the_model_as_it_was():
    "BigBird gives up its sparse attention for good after a short text: undone, and long texts are refused, short ones are not."
    model = made("big_bird", block_size=4, num_random_blocks=1)
    parts = {n: type(m) for n, m in model.named_modules()}
    state = torch.random.get_rng_state()
    clf = make_classifier(model, word_tokenizer(True, 64), ["a", "b", "c"])
    assert model.bert.attention_type == "block_sparse" and {n: type(m) for n, m in model.named_modules()} == parts
    assert record(clf, LABELLED, "mlp.1", progress=False).acts.shape == (6, 24)
    assert model.bert.attention_type == "block_sparse" and torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(InputError, match="differently after another one: a pass changes bert.attention_type"):
        encode(clf, [words(50), words(9)])


def test_positions_that_turn_by_what_was_read_before():
    "Dynamic rotary positions remember the longest text: fine up to the limit, refused beyond."
    model = made("llama", rope_parameters=dict(rope_type="dynamic", factor=4., rope_theta=1e4), max_position_embeddings=16)
    clf, fresh = make_classifier(model, word_tokenizer(most=64), ["a", "b", "c"]), copy.deepcopy(model)
    want = torch.stack([plain(fresh, clf.tokenizer(t).input_ids[:16]).softmax(-1) for t in TEXTS])
    agree(record(clf, LABELLED, progress=False).probabilities, want, clf, size=score_size(want))
    with pytest.raises(InputError, match="differently after another one"): encode(replace(clf, max_length=64), TEXTS)


def test_numbers_of_classes(tmp_path):
    "Names in the order of their numbers, wherever those begin; numbers with holes are refused."
    model = made("bert")
    model.config.id2label, model.config.label2id = {2: "neu", 1: "neg", 3: "pos"}, {"neg": 1, "neu": 2, "pos": 3}
    model.save_pretrained(tmp_path)
    word_tokenizer(True, 64).save_pretrained(tmp_path)
    assert load_classifier(tmp_path).classes == ("neg", "neu", "pos")
    model.config.id2label = {0: "a", 2: "b", 5: "c"}
    with pytest.raises(InputError, match="id2label has the numbers 0, 2, 5.*classes="): make_classifier(model, word_tokenizer(True))
    assert make_classifier(model, word_tokenizer(True), ["a", "b", "c"]).classes == ("a", "b", "c")


def test_most_tokens():
    "A pad token beyond the positions takes nothing away where positions do not count from it; where they do, it does."
    falcon = made("falcon", vocab_size=200, ffn_hidden_size=24, alibi=False, pad_token_id=150)
    assert make_classifier(falcon, word_tokenizer(), ["a", "b", "c"]).max_length == 64
    for kind, most in (("roberta", 62), ("bert", 64), ("opt", 64)):
        model = made(kind, **(dict(word_embed_proj_dim=16, ffn_dim=24) if kind == "opt" else {}))
        clf = make_classifier(model, word_tokenizer(kind != "opt"), ["a", "b", "c"])
        assert clf.max_length == most
        ids = torch.arange(most)[None] % 90+5
        with torch.no_grad(): assert model(ids).logits.shape == (1, 3)


def test_one_bos():
    "A prompt that brings its own BOS gets no second one; one that does not gets the tokenizer's."
    tok = word_tokenizer()
    tok.backend_tokenizer.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 4)])
    tok.bos_token = "<eos>"
    model = made("llama", AutoModelForCausalLM)
    for template, n in (("<eos> Text: {text}\nTopic:", 1), ("Text: {text}\nTopic:", 1)):
        clf = make_prompted(model, tok, Prompt(template, ("x", "y"), (" river", " stone")))
        assert clf.whole().tokens([TEXTS[0]])[0][0].count(4) == n
    with_own, without = (generate(model, tok, [p+words(5, 5)], new_tokens=4) for p in ("<eos> ", ""))
    assert with_own == without



def test_readme_says_what_was_found():
    "Its numbers are those of results/models.csv: everywhere, in part and refused, as classifiers and prompted."
    top = Path(__file__).resolve().parents[1]
    found = pd.read_csv(top/"results/models.csv", keep_default_na=False)
    assert set(found.architecture) >= set(NAMES) # What another release of transformers brings has to be looked at
    said, sites = [], "residual, mlp, attention"
    for role, whole in (("classifier", f"answers, {sites}"), ("prompted", f"first, {sites}, sum, generate")):
        works = found.works[(found.role == role) & (found.not_built == "")]
        said += [len(works), (works == whole).sum(), ((works != whole) & (works != "")).sum(), (works == "").sum()]
    readme = re.search(r"Every architecture of transformers.*?\n\n", (top/"README.md").read_text(encoding="utf-8"), re.S)[0]
    assert [int(n) for n in re.findall(r"\d+", readme)] == said


# --- models that change, and what is none

ABC = ["a", "b", "c"]


def classified(model, tok=None): return make_classifier(model, tok or word_tokenizer(), ABC)


@torch.no_grad()
def answers(model, tok=None):
    "Plain transformers, one text at a time."
    tok = tok or word_tokenizer()
    return torch.stack([model(**tok(t, return_tensors="pt")).logits[0].float().softmax(-1) for t in TEXTS])


def right(got, want, clf): agree(got, want, clf, size=score_size(want))


def six_at_zero(site, width=16):
    inf = torch.full((width, 1), torch.inf)
    said = Setting("0", "full", str(site), "none", 1., "full", edit="zero")
    return Intervention(said, torch.arange(6), -inf, inf, Neurons(*torch.zeros(4, width)))


def zeroed(mod, args, out=None):
    x = (args[0] if out is None else out).clone()
    x[..., :6] = 0
    return (x, *args[1:]) if out is None else x


def edited_by_hand(model, module, inner):
    h = module.register_forward_pre_hook(zeroed) if inner else module.register_forward_hook(zeroed)
    try: return answers(model)
    finally: h.remove()


def test_a_compiled_model_has_the_sites_of_the_model():
    model = made("llama")
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        for t in TEXTS: compiled(**word_tokenizer()(t, return_tensors="pt"), use_cache=False)
    names = {m: n for n, m in model.named_modules()}
    found = {str(s): names[m] for s, m in anatomy(classified(compiled).model).inner.items()}
    assert (found["attention.1"], found["mlp.1"]) == ("model.layers.1.self_attn.o_proj", "model.layers.1.mlp.down_proj")


@pytest.mark.parametrize("block", [1, 3, 5])
@pytest.mark.parametrize("late", [False, True])
def test_a_hook_of_someone_else_acts_once(block, late):
    "Steering is a part of the model, whether it hangs there from the beginning or not; also where a pass resumes above it."
    model, v = made("llama", num_hidden_layers=6), torch.randn(16, generator=torch.Generator().manual_seed(5))
    clf = classified(model)
    if late: record(clf, LABELLED, progress=False)
    model.model.layers[block].register_forward_hook(lambda mod, args, out: out+v)
    right(record(clf, LABELLED, progress=False).probabilities, answers(model), clf)
    got = ablate(clf, LABELLED, [six_at_zero(Site("residual", 3))], progress=False)
    right(got.after[0], edited_by_hand(model, model.model.layers[3], False), clf)


def test_parts_that_were_exchanged_are_looked_at_again():
    model = made("llama")
    clf = classified(model)
    record(clf, LABELLED, "mlp.1", progress=False)
    model.model.layers[1] = shaken(copy.deepcopy(model.model.layers[1]), seed=3)
    for site, module in ((Site("residual", 1), model.model.layers[1]), (Site("attention", 1), model.model.layers[1].self_attn.o_proj)):
        got = ablate(clf, LABELLED, [six_at_zero(site)], progress=False).after[0]
        right(got, edited_by_hand(model, module, site.stream == "attention"), clf)

    class OfAll(torch.nn.Module):
        def forward(self, h): return h.mean(1, keepdim=True).expand(-1, h.shape[1], -1)[..., :3]
    model.score = OfAll()
    with pytest.raises(InputError, match="its answer to a text is another one beside a longer text"): record(clf, LABELLED, progress=False)


def switched(model, how):
    layer = model.model.layers[1]
    if how == "hook": layer.register_forward_hook(lambda mod, args, out: out*1.5)
    if how == "activation": layer.mlp.act_fn = torch.nn.ReLU()
    if how == "epsilon": layer.input_layernorm.variance_epsilon = 5.
    if how == "buffer": model.model.rotary_emb.inv_freq.mul_(3)
    with torch.no_grad():
        if how == "signs": layer.mlp.down_proj.weight.neg_()
        if how == "double": layer.mlp.down_proj.weight.mul_(2)
        if how == "one head": layer.self_attn.v_proj.weight[:8].neg_()


@pytest.mark.parametrize("how", ["hook", "activation", "epsilon", "buffer", "signs", "double", "one head"])
def test_what_changes_a_pass_changes_the_state(how):
    "No recording of the model before is taken for one of the model after."
    model = made("llama")
    clf = make_classifier(model, word_tokenizer(), ABC, sha256="of files")
    before = record(clf, LABELLED, progress=False)
    assert clf.changed == {}
    switched(model, how)
    assert clf.changed and abs(record(clf, LABELLED, progress=False).probabilities-before.probabilities).max() > 1e-3
    with pytest.raises(InputError, match="of the model with other weights"):
        ablate(clf, LABELLED, [six_at_zero(Site("residual", 1))], recording=before, progress=False)


def test_a_state_counts_every_bit_by_its_place():
    m = torch.nn.Linear(1024, 1024)
    seen = {weights_state(m)}
    with torch.no_grad():
        for change in (m.weight.neg_, lambda: m.weight.mul_(2), lambda: m.weight.copy_(m.weight.flip(0)), lambda: m.weight[0].neg_(),
                       lambda: m.bias[3].neg_(), m.half, lambda: m.weight.mul_(.5), lambda: m.weight.neg_()):
            change()
            seen.add(weights_state(m))
    assert len(seen) == 9


class Pooled(transformers.BertForSequenceClassification):
    "A head that takes the mean of all positions, padding included."
    def forward(self, input_ids=None, attention_mask=None, **kw):
        h = self.bert(input_ids, attention_mask=attention_mask)[0]
        return SequenceClassifierOutput(logits=self.classifier(h.mean(1)))


def test_heads_that_read_padding_are_refused():
    clf = classified(shaken(Pooled(AutoConfig.for_model("bert", **SHAPE))), word_tokenizer(True))
    with pytest.raises(InputError, match="its answer to a text is another one beside a longer text"): record(clf, LABELLED, progress=False)


def test_heads_of_other_sizes_are_refused():
    one, four = made("llama"), made("llama")
    one.score, four.score = torch.nn.Linear(16, 1), torch.nn.Linear(16, 4)
    for model in (one, four, made("llama", AutoModelForCausalLM), made("bert", transformers.AutoModelForTokenClassification)):
        with pytest.raises(InputError, match="is no classifier of texts into 3 classes: it gives a text scores of"): classified(model)
    for model, tok in (("bert", word_tokenizer()), (made("bert"), None), (torch.nn.DataParallel(made("bert")), word_tokenizer())):
        with pytest.raises(InputError, match="is needed, got"): make_classifier(model, tok, ABC)


def test_tokens_of_other_types_and_beyond_the_embedding_are_refused():
    tok = word_tokenizer(True)
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tok.backend_tokenizer.post_processor = TemplateProcessing(single="[CLS]:0 $A:1 [SEP]:1", special_tokens=ends)
    tok.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    with pytest.raises(InputError, match="types other than 0"): classified(made("bert"), tok)
    tok = word_tokenizer()
    tok.add_special_tokens({"additional_special_tokens": [f"<x{i}>" for i in range(40)]})
    texts = make_texts(["river", "stone cloud lamp", "salt <x39>", "lamp salt", "salt", "train"], list("abcabc"))
    clf = classified(made("llama"), tok)
    with pytest.raises(InputError, match="row 3: token 144 is none of the 120"): record(clf, texts, progress=False)


@pytest.mark.parametrize("said, why", [(-1, "model_max_length is -1"), (0, "model_max_length is 0"), (None, "")])
def test_what_the_tokenizer_says_of_lengths(said, why):
    tok = word_tokenizer()
    tok.model_max_length = said
    if not why: assert classified(made("llama"), tok).max_length == 64
    else:
        with pytest.raises(InputError, match=why): classified(made("llama"), tok)


@pytest.mark.slow
def test_adapters_that_are_switched_or_follow_the_text():
    "Which adapter is on counts for a recording; trainable tokens work; those that look at the text are refused."
    peft = pytest.importorskip("peft", reason="peft is not installed")

    def lora(**kw): return peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **kw)
    model = peft.get_peft_model(made("llama"), lora()).eval()
    clf = make_classifier(model, word_tokenizer(), ABC, sha256="of files")
    rec = record(clf, LABELLED, progress=False)
    model.base_model.disable_adapter_layers()
    assert clf.changed
    right(record(clf, LABELLED, progress=False).probabilities, answers(model), clf)
    with pytest.raises(InputError, match="of the model with other weights"):
        ablate(clf, LABELLED, [six_at_zero(Site("residual", 2))], recording=rec, progress=False)
    few = peft.get_peft_model(made("llama"), lora(trainable_token_indices=[5, 6])).eval()
    right(record(classified(few), LABELLED, progress=False).probabilities, answers(few), classified(few))
    merged = peft.get_peft_model(made("llama"), lora()).eval()
    record(classified(merged), LABELLED, "mlp.1", progress=False)
    whole = merged.merge_and_unload()
    right(record(classified(whole), LABELLED, "mlp.1", progress=False).probabilities, answers(whole), classified(whole))
    invoked = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], alora_invocation_tokens=[5])
    model = peft.get_peft_model(made("llama", AutoModelForCausalLM), invoked)
    with pytest.raises(InputError, match="changes its adapters while it reads a text"): without_wrapper(model)
