"""A language model as lm-eval asks it: as its own model of Hugging Face does without an edit, and as our own measures do with one."""
import json
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_frame, make_tokenizer
from test_language import fitted, states_at, tiny_lm, two_edits
from tiny import BEYOND, clear, touched

from neuronlens.edits.asks import Ask
from neuronlens.edits.language import editing, generate
from neuronlens.edits.portable import load_edit
from neuronlens.edits.questions import Question, question_prompt
from neuronlens.edits.reading import multiple_choice, perplexity
from neuronlens.ground.core import InputError
from neuronlens.ground.rounding import agree, apart, score_size
from neuronlens.ground.setting import POSITIONS
from neuronlens.models.model import Classifier
from neuronlens.studies.evals import lm_eval_model

pytestmark = [pytest.mark.usefixtures("one_thread"),
              pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed (extra `evals`)")]
WORDS = " ".join(make_frame(20, 3).text).split()
PAIRS = [(" ".join(WORDS[7*i:7*i+2+i % 9]), " "+" ".join(WORDS[7*i+2+i % 9:7*i+3+i % 9+i % 4])) for i in range(30)]
PAIRS += [(PAIRS[0][0], " cat"), (PAIRS[0][0], " dog"), ("", "cat horse")] # Choices that share a pass; a context of nothing


def asked(*args): return SimpleNamespace(args=args)


@pytest.fixture(scope="module")
def spoken():
    "A tiny model and a tokenizer of words."
    tok = make_tokenizer(False)
    tok.eos_token = "[SEP]"
    return tiny_lm("llama", vocab_size=len(tok), pad_token_id=0, bos_token_id=None, eos_token_id=None), tok


def likelihoods(lm, pairs=PAIRS):
    got = lm.loglikelihood([asked(*p) for p in pairs], disable_tqdm=True)
    return np.array([s for s, _ in got]), [g for _, g in got]


def same_sums(got, want, model): agree(got, want, model, size=4*score_size(want))


def test_as_their_own_model(spoken):
    "Without an edit: likelihoods of continuations and of whole texts longer than the model reads, and what is written."
    hf = pytest.importorskip("lm_eval.models.huggingface")
    model, tok = spoken
    theirs, ours = hf.HFLM(pretrained=model, tokenizer=tok, batch_size=4, max_length=48), lm_eval_model(model, tok, tokens=100)
    for a, b in zip(likelihoods(ours), likelihoods(theirs), strict=True): (same_sums(a, b, model) if len({*a}) > 2 else None)
    assert likelihoods(ours)[1] == likelihoods(theirs)[1]
    texts = [asked(" ".join(WORDS[:n])) for n in (1, 20, 150)]
    same_sums(ours.loglikelihood_rolling(texts), theirs.loglikelihood_rolling(texts, disable_tqdm=True), model)
    how = dict(until=[" soup", "hammer"], max_gen_toks=20, do_sample=False)
    prompts = [asked(a, how) for a, _ in PAIRS[:6]]
    assert ours.generate_until(prompts) == theirs.generate_until(prompts, disable_tqdm=True)
    assert not touched(model)


def gated_below(model):
    "The second of the edits for as long as half of the neurons of the first are in range: its gate is read two sites below."
    low, high = two_edits(model, "all")
    how = dict(scope=f"position at {low.setting.site}", vote=.5, covers="salient")
    return [replace(high, asks=[Ask(low.neurons, low.lo, low.hi)], **how)]


@pytest.mark.parametrize("edits", [*POSITIONS, "gated below"])
def test_edited(spoken, edits):
    "The context is the prompt: by whole passes over one text at a time, edited at the positions meant."
    model, tok = spoken
    ivs = two_edits(model, edits) if edits in POSITIONS else gated_below(model)
    ours, plain = likelihoods(lm_eval_model(model, tok, ivs, tokens=60), PAIRS[:32]), likelihoods(lm_eval_model(model, tok), PAIRS[:32])
    want, greedy = [], []
    for a, b in PAIRS[:32]:
        a, b = tok(a).input_ids, tok(b).input_ids
        with torch.no_grad(), editing(model, ivs, prompt_length=len(a)): z = model(torch.tensor([[*a, *b]])).logits[0].log_softmax(-1)
        at = z[len(a)-1:-1]
        want.append(float(at[range(len(b)), b].sum()))
        greedy.append(at.argmax(-1).tolist() == b)
    same_sums(ours[0], want, model)
    assert ours[1] == greedy and apart(ours[0], plain[0], model, size=4*score_size(want)) > BEYOND


def test_whole_texts_are_prompts(spoken):
    "The likelihood of a text, but for its first token, is that of `perplexity`, edited too; and what is written is that of `generate`."
    model, tok = spoken
    ivs = two_edits(model, "all")
    text = " ".join(WORDS[:40])
    one, first = ([asked(t)] for t in (text, WORDS[0]))
    for edit in ([], ivs):
        lm = lm_eval_model(model, tok, edit)
        with_end = [tok.eos_token_id, *tok(text).input_ids]
        with torch.no_grad(), editing(model, edit): z = model(torch.tensor([with_end])).logits[0].log_softmax(-1)
        same_sums(lm.loglikelihood_rolling(one), [float(z[range(len(with_end)-1), with_end[1:]].sum())], model)
        assert lm.loglikelihood_rolling(first) and perplexity(model, tok, text, edit).tokens == 39
        got = lm.generate_until([asked(p, dict(until=["soup"], max_gen_toks=9)) for p, _ in PAIRS[:5]])
        assert got == [t.partition("soup")[0] for t in generate(model, tok, [p for p, _ in PAIRS[:5]], edit, 9)]


def test_refused(spoken):
    model, tok = spoken
    lm = lm_eval_model(model, tok)
    with pytest.raises(InputError, match="request 2 has 90 tokens, the model reads"):
        likelihoods(lm, [("a", " cat"), (" ".join(["cat"]*90), " dog")])
    with pytest.raises(InputError, match="always the likeliest token"):
        lm.generate_until([asked("a cat", dict(do_sample=True, temperature=1.))])


CHOICES = "cat", "soup", "saw", "old"
QUESTIONS = [Question(f"Which is a {kind} number {i}?", CHOICES[:4-i % 2], i % 3) for i, kind in enumerate("abcdefgh")]


def test_a_task_of_local_files(tmp_path):
    "A task in YAML on a local JSON: the numbers are those of our own multiple choice, plain, edited, and by an edit from a file."
    import lm_eval
    from lm_eval.tasks import TaskManager
    from test_serve import nl_edit
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    words = sorted({w for q in QUESTIONS for w in question_prompt(q).split()} | {*"ABCD", "[UNK]", "[PAD]", "[SEP]"})
    t = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tok = PreTrainedTokenizerFast(tokenizer_object=t, unk_token="[UNK]", pad_token="[PAD]", eos_token="[SEP]", model_max_length=64)
    model = tiny_lm("gpt2", vocab_size=len(tok), pad_token_id=tok.pad_token_id, bos_token_id=None, eos_token_id=None)
    states = torch.cat([states_at(model, ("residual", 1), tok(question_prompt(q)).input_ids) for q in QUESTIONS]).unique(dim=0)
    iv = clear(fitted(states, "residual.1", "mean", near=1, least=0), states)
    rows = [dict(prompt=question_prompt(q), choices=[*"ABCD"][:len(q.choices)], answer=q.answer) for q in QUESTIONS]
    (tmp_path/"q.json").write_text(json.dumps(rows))
    (tmp_path/"ours.yaml").write_text("task: ours\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/q.json}}, cache_dir: {tmp_path}/cache}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: prompt\ndoc_to_choice: choices\ndoc_to_target: answer\nmetric_list: [{metric: acc}]\n")
    tasks, shown = TaskManager(include_path=str(tmp_path), include_defaults=False), {}
    nl_edit(Classifier(model, tok, ("a", "b"), "last", 64), [iv], path := tmp_path/"edit.safetensors")
    for name, given, ivs in (("plain", [], []), ("edited", [iv], [iv]), ("file", load_edit(path), [iv])):
        own = multiple_choice(model, tok, QUESTIONS, ivs)
        r = lm_eval.simple_evaluate(model=lm_eval_model(model, tok, given), tasks=["ours"], task_manager=tasks, bootstrap_iters=0)
        assert r["results"]["ours"]["acc,none"] == own.accuracy
        said = [[x[0][0] for x in s["resps"]] for s in r["samples"]["ours"]]
        agree(np.concatenate(said), own.logprobs[np.isfinite(own.logprobs)], model, size=score_size(own.logprobs))
        shown[name] = np.concatenate(said)
    assert apart(shown["edited"], shown["plain"], model) > BEYOND and (shown["edited"] == shown["file"]).all()
    assert not touched(model)
