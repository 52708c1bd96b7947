"""Folders of adapters: the base is loaded with them, nothing is fetched, and the answers are PEFT's own."""
import json
import shutil

import numpy as np
import pytest
import torch
from models import LABELLED, TEXTS, tiny, word_tokenizer
from safetensors.torch import load_file, save_file
from tiny import same_answers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import neuronlens as nl
from neuronlens.ground.core import InputError
from neuronlens.ground.rounding import agree
from neuronlens.models.model import load_classifier, load_language_model
from neuronlens.models.weights import weights_hash
from neuronlens.records.recording import record

peft = pytest.importorskip("peft", reason="peft is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")
TARGETS = {"bert": ["query", "value", "output.dense"], "llama": ["q_proj", "v_proj", "down_proj"]}


def made(at, kind, task="SEQ_CLS", head=True, **kw):
    "A base folder, an adapter folder beside it, and PEFT's model."
    auto = AutoModelForSequenceClassification if task == "SEQ_CLS" else AutoModelForCausalLM
    base, tok = tiny(kind, auto), word_tokenizer(brackets=kind == "bert")
    (base if head else base.base_model).save_pretrained(at/"base")
    tok.save_pretrained(at/"base")
    lora = peft.LoraConfig(task_type=task, r=4, target_modules=TARGETS[kind], init_lora_weights=False, **kw)
    model = peft.get_peft_model(base, lora).eval()
    model.base_model.model.config._name_or_path = model.peft_config["default"].base_model_name_or_path = str(at/"base")
    model.save_pretrained(at/"adapter", save_embedding_layers=False)
    return model, tok


def said(model, tok):
    with torch.no_grad(): return torch.stack([model(input_ids=torch.tensor([tok(t).input_ids])).logits[0].softmax(-1) for t in TEXTS])


@pytest.mark.parametrize("kind, head", [("bert", True), ("llama", True), ("llama", False), ("bert", False)])
def test_a_classifier(tmp_path, kind, head):
    "The folder alone answers as PEFT does, at every named stream and inside its adapters; merged it is the same."
    model, tok = made(tmp_path, kind, head=head)
    clf = load_classifier(tmp_path/"adapter", ["a", "b", "c"])
    want = said(model, tok)
    sites = ["residual.1", "mlp.1", "attention.1"]
    sites += [n for n, m in clf.model.named_modules() if n.endswith("lora_A.default") and ".1." in n][:1]
    rec = record(clf, LABELLED, sites, progress=False)
    same_answers(rec.probabilities, want, clf)
    assert rec.acts.shape[1] == 16 and rec.at(sites[-1]).shape[1] == 4
    whole = nl.model.make_classifier(model.merge_and_unload(), tok, ["a", "b", "c"])
    agree(record(whole, LABELLED, "residual.1", progress=False).acts, rec.acts, clf)


def test_the_hash_is_of_both(tmp_path):
    "Base, adapter and what scales it decide the hash."
    made(tmp_path, "llama")
    seen = [weights_hash(tmp_path/"adapter", None), weights_hash(tmp_path/"base", None)]
    about = json.loads((tmp_path/"adapter/adapter_config.json").read_text())
    (tmp_path/"adapter/adapter_config.json").write_text(json.dumps(about | dict(lora_alpha=99)))
    seen.append(weights_hash(tmp_path/"adapter", None))
    for at in ("base/model.safetensors", "adapter/adapter_model.safetensors"):
        own = load_file(tmp_path/at)
        save_file({k: v+1 for k, v in own.items()}, tmp_path/at, metadata=dict(format="pt"))
        seen.append(weights_hash(tmp_path/"adapter", None))
    assert len({*seen}) == 5


def test_a_language_model(tmp_path):
    model, tok = made(tmp_path, "llama", "CAUSAL_LM")
    own, tok2 = load_language_model(tmp_path/"adapter")
    ids = torch.tensor([tok(TEXTS[2]).input_ids])
    assert tok2(TEXTS[2]).input_ids == ids[0].tolist()
    with torch.no_grad(): agree(own(input_ids=ids).logits, model(input_ids=ids).logits, own)
    assert nl.generate(own, tok2, TEXTS[1:3], new_tokens=3) == nl.generate(model, tok, TEXTS[1:3], new_tokens=3)


def test_beside_the_adapter(tmp_path):
    "The base may lie beside the adapter, named from there; the adapter's own tokenizer comes first."
    made(tmp_path, "llama")
    shutil.move(tmp_path/"base", tmp_path/"adapter/of")
    at = tmp_path/"adapter/adapter_config.json"
    at.write_text(json.dumps(json.loads(at.read_text()) | dict(base_model_name_or_path="of")))
    assert len(load_classifier(tmp_path/"adapter", ["a", "b", "c"]).classes) == 3


@pytest.mark.parametrize("fault, why", [("hub", "'some/model', which is no folder here"), ("pickled", "pickled weights are never read"),
                                        ("chain", "is an adapter itself; merge that one first"),
                                        ("missing", "do not fit"), ("more", "do not fit"),
                                        ("headless", "has no classification head"), ("nothing", "does not say which model"),
                                        ("base pickled", "no .safetensors file"), ("rank", "asks for a rank of 1000000000")])
def test_refused(tmp_path, fault, why):
    made(tmp_path, "llama")
    folder, config = tmp_path/"adapter", tmp_path/"adapter/adapter_config.json"
    about, weights = json.loads(config.read_text()), load_file(tmp_path/"adapter/adapter_model.safetensors")
    if fault == "hub": about["base_model_name_or_path"] = "some/model"
    if fault == "rank": about["r"] = 10**9
    if fault == "nothing": about["base_model_name_or_path"] = None
    if fault == "chain": shutil.copy(config, tmp_path/"base/adapter_config.json")
    if fault == "missing": weights.pop(sorted(weights)[0])
    if fault == "more": weights["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 16)
    if fault == "headless":
        tiny("llama", AutoModelForSequenceClassification).base_model.save_pretrained(tmp_path/"base")
        weights = {k: v for k, v in weights.items() if "score" not in k}
    save_file(weights, folder/"adapter_model.safetensors", metadata=dict(format="pt"))
    if fault == "pickled": torch.save(weights, folder/"adapter_model.bin"), (folder/"adapter_model.safetensors").unlink()
    if fault == "base pickled": (tmp_path/"base/model.safetensors").rename(tmp_path/"base/pytorch_model.bin")
    config.write_text(json.dumps(about))
    with pytest.raises(InputError, match=why): load_classifier(folder, ["a", "b", "c"])


def test_fine_tuning_starts_from_a_whole_model(tmp_path):
    made(tmp_path, "bert")
    with pytest.raises(InputError, match="holds an adapter; merge it into its model first"):
        nl.fine_tune(tmp_path/"adapter", nl.make_texts(TEXTS*2, list("abcabc")*2), epochs=1, progress=False)


def test_a_study(tmp_path):
    "A study file may name the folder of an adapter, and a module of it."
    made(tmp_path, "bert")
    at = tmp_path/"adapter"
    clf = load_classifier(at, ["a", "b", "c"])
    texts = [f"{a} {b}" for a in TEXTS for b in TEXTS[:4]]
    (tmp_path/"texts.csv").write_text("text,label\n"+"\n".join(f"{t},{'abc'[i % 3]}" for i, t in enumerate(dict.fromkeys(texts))))
    (tmp_path/"study.toml").write_text(f'[data]\ntrain = "texts.csv"\n[model]\nclassifier = "{at}"\nclasses = ["a", "b", "c"]\n'
                                       '[method]\nsite = "bert.encoder.layer.1.output.LayerNorm"\nlayers = false\n')
    study = nl.run_study(nl.read_study(tmp_path/"study.toml"), tmp_path/"out", progress=False)
    assert study.train.site == "bert.encoder.layer.1.output.LayerNorm" and study.clf.sha256 == clf.sha256
    again = nl.load_study(tmp_path/"out")
    np.testing.assert_array_equal(again.train.acts, study.train.acts)
    assert {*again.effects.to_frame().site} == {study.train.site}
