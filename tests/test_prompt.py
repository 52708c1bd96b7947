"""Prompted language models against plain passes of the stock model, one text at a time."""
import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import BEYOND, OWN, WIDTHS, answers_apart, by_hand, intervention, same_answers, shaken, tiny_model, touched
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Metaspace
from transformers import AutoConfig, AutoModelForCausalLM

from neuronlens import ablation
from neuronlens.edits.ablation import ablate
from neuronlens.edits.edit import linear_edit
from neuronlens.edits.language import editing
from neuronlens.ground.core import InputError
from neuronlens.ground.data import Texts
from neuronlens.ground.rounding import agree, apart, score_size
from neuronlens.models.anatomy import Site, anatomy, parse_site
from neuronlens.models.batches import batches, encode, pad, readout_weights
from neuronlens.models.hooks import answer, hooked, logits, run
from neuronlens.models.prompt import Prompt, make_prompt
from neuronlens.models.prompted import Prompted, calibrated, class_probabilities, make_prompted, one_by_one
from neuronlens.models.verbalizers import make_tree
from neuronlens.models.writing import generated_answers
from neuronlens.records.recording import correct_only, record, vocabulary_confidence
from neuronlens.records.summary import merge_summaries, summarise

KINDS = ("llama", "gpt2", "qwen3", "gpt_neox", "opt", "gemma3_text")
CORPUS = ["the cat sat on the mat", "Text: a red apple is food", "Topic: animal", "Topic: tool", "old machine and new machine"]*3
TEXTS = ["the cat sat on the mat", "red apple", "(an odd one) is 17 old", "drill", "the old and new machine is on the mat with a cat"]
SHOTS = [("the dog", 0), ("red rice", 1), ("a saw", 2)]


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread): "Tiny models are quicker on one thread."


def byte_tokenizer(lead=False):
    "A byte-level tokenizer of 320 tokens, with or without a token before every text."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tok.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=320, special_tokens=["<unk>", "<pad>", "<s>", "</s>"],
                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    if lead: tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tok, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=200)


def language_model(kind, seed=0, **kw):
    "A random language model with weights large enough that every mistake moves its answer."
    config = AutoConfig.for_model(kind, **WIDTHS | OWN.get(kind, {}) | dict(vocab_size=320, max_position_embeddings=256) | kw)
    if kind == "opt": config.word_embed_proj_dim, config.ffn_dim = 16, 24
    return shaken(AutoModelForCausalLM.from_config(config), seed)


def prompted(kind="llama", verbalizers=(), lead=False, shots=SHOTS, template="Text: {text}\nTopic:", **kw):
    prompt = Prompt(template, ("animal", "food", "tool"), verbalizers, shots)
    return make_prompted(language_model(kind), byte_tokenizer(lead), prompt, **kw)


def stock(clf, text):
    "Log-probabilities of the classes by the stock model and tokenizer alone; None where the two tokenizations differ."
    ids, out = clf.tokenizer(clf.prompt.ask(text)).input_ids, []
    for v in clf.prompt.verbalizers:
        both = clf.tokenizer(clf.prompt.ask(text)+v).input_ids
        assert both[:len(ids)] == ids
        lp = clf.model(torch.tensor([both])).logits[0].log_softmax(-1)
        steps = range(len(ids), len(both) if clf.scoring == "sum" else len(ids)+1)
        out.append(sum(lp[i-1, both[i]] for i in steps))
    return torch.stack(out)


def firing(clf, site, **kw):
    "An intervention that fires: its ranges hold half of the site's values at all tokens of the prompts."
    b = next(batches(encode(clf.whole(), TEXTS), tokens=1000))
    seen = run(clf.whole(), b, [parse_site(site)])[parse_site(site)]
    return intervention(seen[b.mask[:, :seen.shape[1]] == 1].detach(), site, **kw)


SUM = (" the old cat", " the new", " machine")


@pytest.mark.parametrize("verbalizers", [(), SUM], ids=["first", "sum"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_answers_are_the_stock_models(kind, verbalizers):
    "Cached shots or shots in the batch, either padding side: what the stock model says of every prompt alone."
    clf = prompted(kind, verbalizers)
    assert clf.scoring == ("sum" if verbalizers else "first")
    assert clf.past > 20
    want = torch.stack([stock(clf, t) for t in TEXTS])
    assert answers_apart(want, want[0].expand_as(want), clf) > BEYOND
    for c in (clf, clf.whole()):
        e = encode(c, TEXTS)
        for side in ("left", "right"):
            for tokens in (1, 60, 1000):
                for b in batches(e, tokens=tokens, side=side, fill=c.pad_id):
                    got = logits(c, b)
                    agree(got.log_softmax(-1), want[b.rows].log_softmax(-1), clf, size=score_size(want))
        last = Site("residual", len(anatomy(c.model))-1)
        b = next(batches(e, tokens=1000, fill=c.pad_id))
        full = answer(c, run(c, b, [last])[last], b.mask, narrow=False)
        same_answers(full, want[b.rows], clf)
    same_answers(one_by_one(clf, TEXTS), want, clf)
    assert not touched(clf.model)


@torch.no_grad()
def test_first_token_counts_if_first_is_asked_for():
    "Verbalizers of several tokens, scored by the first alone."
    clf = prompted(verbalizers=(" cat", " old machine", " the mat"), scoring="first")
    want = torch.stack([stock(clf, t) for t in TEXTS])
    assert max(map(len, clf.answer_ids)) > 1
    same_answers(class_probabilities(clf, texts()), want.softmax(-1), clf, size=score_size(want))


def texts(labels=("animal", "food", "tool", "animal", "food"), words=TEXTS):
    return Texts(list(words), np.array([("animal", "food", "tool").index(l) for l in labels]), ("animal", "food", "tool"))


@pytest.mark.parametrize("lead", [False, True])
def test_tokens_are_those_of_the_whole_prompt(lead):
    "Shared tokens and own tokens together are what the tokenizer makes of the whole prompt."
    clf = prompted(lead=lead)
    for t, own in zip(TEXTS, encode(clf, TEXTS).ids, strict=True):
        assert [*clf.shared, *own] == clf.tokenizer(clf.prompt.ask(t)).input_ids
    for own, both, special in zip(encode(clf, TEXTS).ids, encode(clf.whole(), TEXTS).ids, encode(clf.whole(), TEXTS).special, strict=True):
        assert list(both) == [*clf.shared, *own] and list(special) == [1]*len(clf.shared)+[0]*len(own)


GLUED = [("{text} ->", ""), ("No 1{text} of", ""), ("No 1{text} of", "\n"), ("the{text}:\n", "\n\n"),
         ("\n{text}\n\n:", "\n"), ("({text}) is", " ")]


def sentence_tokenizer():
    "Pieces of words that begin with their space, as of SentencePiece."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    tok = Tokenizer(models.BPE(unk_token="<unk>"))
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.Metaspace(prepend_scheme="first"), decoders.Metaspace(prepend_scheme="first")
    odd = ["No 10 films", "theft of an animal", "toolbox", "foods", "(an", "is animals", "a: -> x \n y"]*30
    tok.train_from_iterator(CORPUS+odd, trainers.BpeTrainer(vocab_size=320, special_tokens=["<unk>", "<pad>"], show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tok, pad_token="<pad>", unk_token="<unk>", model_max_length=200)


@pytest.mark.parametrize("make", [byte_tokenizer, sentence_tokenizer])
@pytest.mark.parametrize(("template", "separator"), GLUED)
@torch.no_grad()
def test_a_text_glued_to_what_stands_before_it(make, template, separator):
    "Tokens are those of the whole prompt, and answers those of the stock model, whatever a text begins with."
    clf = make_prompted(language_model("llama"), make(), Prompt(template, ("animal", "food", "tool"), (), SHOTS, separator), scoring="sum")
    glued = ["0 films", "ft of a cat", "s", "box", " the cat", "\nred", "-", "\" an", "(an odd", "x"]
    for c in (clf, clf.whole()):
        for t, own in zip(glued, c.tokens(glued)[0], strict=True):
            assert [*clf.shared[:c.past], *own] == clf.tokenizer(clf.prompt.ask(t)).input_ids, t
    assert clf.past
    agree(one_by_one(clf, glued), torch.stack([stock(clf, t) for t in glued]), clf, size=30)


def test_a_text_that_changes_the_shots():
    "Refused by its name where the shots are computed ahead; read as the tokenizer has it where they are not."
    clf = prompted(template="Text:{text}\nTopic:")
    odd = replace(clf, shared=(*clf.shared, *clf.tokenizer(" the").input_ids))
    with pytest.raises(InputError, match="text ' theft of the cat' changes the tokens of the shots"): odd.tokens([" theft of the cat"])
    assert odd.whole().tokens(["x cat"])[0][0] == clf.tokenizer(clf.prompt.ask("x cat")).input_ids


def test_long_texts_are_cut_and_counted():
    "The end of the text goes; shots and question stay, on either side of the limit."
    clf = prompted(max_length=len(prompted().shared)+25)
    long = "the cat sat on the mat and "*9
    e = encode(clf, ["cat", long, "mat"])
    assert e.cut == 1
    said = clf.tokenizer.decode(e.ids[1])
    assert said.endswith("\nTopic:") and (" "+long).startswith(said.removesuffix("\nTopic:"))
    assert len(clf.shared)+20 <= len(clf.shared)+len(e.ids[1]) <= clf.max_length
    whole = encode(clf.whole(), [long])
    assert list(whole.ids[0]) == [*clf.shared, *e.ids[1]] and whole.cut == 1
    rec = record(clf, texts(words=[*TEXTS[:4], long]), progress=False)
    assert rec.provenance["truncated"] == 1


def test_bad_prompts_are_refused():
    "Every refusal names what is wrong."
    with pytest.raises(InputError, match="share their first token ' the'.*by their sum"): prompted(verbalizers=SUM, scoring="first")
    with pytest.raises(InputError, match="' the new' begins with ' the', which would always be likelier"):
        prompted(verbalizers=(" the", " the new", " cat"))
    with pytest.raises(InputError, match="leaves 0 of 40 for one"): prompted(max_length=40)
    with pytest.raises(InputError, match="max_length 4000 is beyond the model's 200"): prompted(max_length=4000)
    with pytest.raises(InputError, match="scoring 'mean' is none of"): prompted(scoring="mean")
    with pytest.raises(InputError, match="melts into the end of the template"):
        prompted(verbalizers=("al", "food", "x"), template="{text} anim")
    with pytest.raises(InputError, match="is no causal language model"):
        make_prompted(AutoModelForCausalLM.from_config(AutoConfig.for_model("bert", **WIDTHS)), byte_tokenizer(), prompted().prompt)
    with pytest.raises(InputError, match="texts, row 2: the tokenizer makes no token"): encode(prompted(), ["cat", " \n"])


def test_verbalizers_glued_to_the_text():
    "With nothing between them a space is needed, and the tokens must be the same behind every text."
    with pytest.raises(InputError, match="verbalizer 'food' is glued to the text"):
        prompted(template="Text: {text}", verbalizers=(" animal", "food", " tool"))
    clf = prompted(template="Text: {text}")
    for word, ids in zip(clf.prompt.verbalizers, clf.answer_ids, strict=True):
        for t in (*TEXTS, "in 7", "so.", '"No"'):
            assert clf.tokenizer(clf.prompt.ask(t)+word).input_ids == [*clf.tokenizer(clf.prompt.ask(t)).input_ids, *ids]
    merged = byte_tokenizer()
    merged.backend_tokenizer.pre_tokenizer = Metaspace(replacement="Ġ", split=False)
    merged._tokenizer.model = BPE({**{c: i for i, c in enumerate("<?Ġtexchamoin7so.No()")}, ".Ġ": 40}, [(".", "Ġ")], unk_token="?")
    with pytest.raises(InputError, match="verbalizer ' x' melts into the end of the template 'te{text}'"):
        make_prompted(language_model("llama"), merged, Prompt("te{text}", ("a", "b"), (" x", " o")))


LONE = "half a character, '.ud800', at place 3"


@pytest.mark.parametrize(("call", "said"), [
    (lambda c: generated_answers(c, texts(), stop=""), "stop='' ends no answer"),
    (lambda c: generated_answers(c, texts(), stop=5), "stop=5 ends no answer"),
    (lambda c: generated_answers(c, texts(), new_tokens=0), "new_tokens=0 are none"),
    (lambda c: generated_answers(c, texts(), new_tokens=2.5), "new_tokens=2.5 must be a whole number"),
    (lambda c: generated_answers(c, texts(), new_tokens=180), r"new_tokens=180 leave no room for a text: the prompt takes \d+ tokens"),
    (lambda c: generated_answers(c, TEXTS), "generated_answers takes `Texts`"),
    (lambda c: class_probabilities(c, TEXTS), "class_probabilities takes `Texts`"),
    (lambda c: calibrated(c, np.array([["a", "b", "c"]])), "calibration needs `Texts`, or rows of numbers"),
    (lambda c: calibrated(c, [[.1, .9], [1.]]), "calibration needs `Texts`, or rows of numbers"),
    (lambda c: replace(c.prompt, template="ab\ud800{text}"), f"the template of a prompt has {LONE}"),
    (lambda c: replace(c.prompt, instruction="ab\ud800"), f"the instruction of a prompt has {LONE}"),
    (lambda c: replace(c.prompt, verbalizers=("x", "y", "ab\ud800")), f"a verbalizer has {LONE}"),
    (lambda c: replace(c.prompt, shots=[("ab\ud800", 0)]), f"the text of shot 1 has {LONE}"),
    (lambda c: make_prompt(texts(), shots=1.5), "shots=1.5 must be a whole number"),
    (lambda c: make_prompt(texts(), seed=-1), "seed -1 must be a whole number"),
    (lambda c: make_prompted(tiny_model("llama", vocab_size=320), c.tokenizer, c.prompt), "has no language-modelling head"),
])
def test_wrong_arguments(call, said):
    "In one sentence, by the name of the argument."
    with pytest.raises(InputError, match=said): call(prompted())


def test_nothing_left_of_a_text_is_refused_by_its_row():
    "A text of which only white space would be left."
    clf = prompted()
    tight = replace(clf, max_length=len(clf.shared)+len(encode(clf, ["x"]).ids[0]))
    assert encode(tight, ["x", "xyz"]).cut == 1
    with pytest.raises(InputError, match="texts, row 2: the tokenizer makes no token"): encode(tight, ["x", "  yz"])


@pytest.mark.parametrize("verbalizers", [(), SUM], ids=["first", "sum"])
def test_recording_is_what_a_plain_pass_reads(verbalizers):
    "Activations at the end of the prompt at every site, and probabilities; batches change nothing."
    clf = prompted("qwen3", verbalizers)
    sites = ["residual.-1", "residual.0", "mlp.1", "attention.2"]
    rec, small = (record(clf, texts(), sites, tokens=t, progress=False) for t in (None, 1))
    assert rec.readout == "last"
    for i, t in enumerate(TEXTS):
        out = clf.model(torch.tensor([clf.tokenizer(clf.prompt.ask(t)).input_ids]), output_hidden_states=True)
        agree(rec.at("residual.0")[i], out.hidden_states[1][0, -1], clf)
        same_answers(rec.probabilities[i], (z := stock(clf, t).detach()).softmax(-1), clf, size=score_size(z))
    for s in rec.sites: agree(rec.at(s), small.at(s), clf, what=s)
    same_answers(rec.probabilities, small.probabilities, clf)
    s = summarise(clf, texts(), progress=False)
    agree(s.statistics[s.site].mean[1], rec.acts[[1, 4]].mean(0), clf)


@pytest.mark.parametrize("positions", ["all", "readout"])
@pytest.mark.parametrize("site", ["residual.2", "residual.1", "mlp.1"])
@torch.no_grad()
def test_ablation_is_a_hooked_plain_run(site, positions):
    "An intervention is what hooks on the stock model make of every prompt alone, the shots in the batch or computed before."
    clf = prompted().whole()
    iv = firing(clf, site, positions=positions)
    out = ablate(clf, texts(), [iv], progress=False)
    a = anatomy(clf.model)
    assert answers_apart(out.after[0], out.before, clf) > (BEYOND if site == "residual.2" or positions == "all" else 0)
    for i, t in enumerate(TEXTS):
        ids = clf.tokenizer(clf.prompt.ask(t)).input_ids
        places = [len(ids)-1] if positions == "readout" else range(len(ids))
        if site.startswith("residual"):
            h = a.blocks[iv.site.block].register_forward_hook(
                lambda m, x, o, places=places: by_hand(iv, o[0], places)[0][None])
        else: h = a.inner[iv.site].register_forward_pre_hook(lambda m, x, at=places: (by_hand(iv, x[0][0], at)[0][None],))
        edited = stock(clf, t)
        h.remove()
        for got, z in ((out.after[0, i], edited), (out.before[i], stock(clf, t))): same_answers(got, z.softmax(-1), clf, size=score_size(z))
    cached = prompted()
    for r in (None, record(cached, texts(), progress=False)):
        same_answers(ablate(cached, texts(), [iv], recording=r, progress=False).after, out.after, clf)


@pytest.mark.parametrize(("kind", "verbalizers"), [("llama", ()), ("llama", SUM), ("gpt2", ()), ("opt", SUM), ("gemma3_text", ())])
@torch.no_grad()
def test_edited_shots_are_read_once_a_batch(kind, verbalizers, monkeypatch):
    "Many interventions at many sites: shots edited ahead of all texts answer as shots edited in every text, in any batches."
    clf, read = prompted(kind, verbalizers), []
    inner = [s for s in ("attention.0", "mlp.0", "mlp.1") if parse_site(s) in anatomy(clf.model).inner]
    sites, places = ["residual.0", "residual.1", "residual.2", *inner], ("all", "readout", "prompt", "generated")
    ivs = [firing(clf, s, positions=p, vote=v, near=60, least=-1) for p, v in zip(places, (0., 0., .4, 0.), strict=True) for s in sites]
    ivs += [linear_edit("0", "turn", "residual.0", torch.eye(16)*.5, torch.linspace(-1, 1, 16))]
    want = ablate(clf.whole(), texts(), ivs, progress=False)
    again = ablation.shots_again
    monkeypatch.setattr(ablation, "shots_again", lambda c, n, **kw: read.append(n) or again(c, n, **kw))
    for tokens in (None, 1):
        read.clear()
        got = ablate(clf, texts(), ivs, tokens=tokens, progress=False)
        same_answers(got.before, want.before, clf)
        same_answers(got.after, want.after, clf)
        agree(got.fires, want.fires, 4)
        below = [iv for iv in ivs if iv.site != Site("residual", 2)]
        reach = sum(iv.positions in ("all", "prompt") for iv in below) # Others may stand in one stack with these
        assert reach <= sum(read)/(1 if tokens is None else len(TEXTS)) <= len(below)
    n = len(sites)
    for i in (0, 1): assert answers_apart(want.after[i], want.after[n+i], clf) > BEYOND # What happens in the shots shows in the answer
    assert not touched(clf.model)


@torch.no_grad()
def test_summed_scores_under_an_edit():
    "An edit of all positions reaches the verbalizers' tokens, too, as it does in a plain pass."
    clf = prompted(verbalizers=SUM).whole()
    iv = firing(clf, "residual.1")
    out = ablate(clf, texts(), [iv], progress=False)
    assert answers_apart(out.after[0], out.before, clf) > BEYOND
    h = anatomy(clf.model).blocks[1].register_forward_hook(lambda m, x, o: by_hand(iv, o[0], range(o.shape[1]))[0][None])
    want = torch.stack([stock(clf, t) for t in TEXTS])
    h.remove()
    same_answers(out.after[0], want.log_softmax(-1), clf, size=score_size(want))


@pytest.mark.skipif("head_reads" not in vars(ablation), reason="room ablation asks the model's anatomy, not the model under study")
@torch.no_grad()
def test_summed_scores_under_an_edit_of_the_last_block():
    "The head reads several positions, so a recording of one does not do; recorded or not, the answer is the plain one."
    clf = prompted(verbalizers=SUM)
    iv = firing(clf, "residual.2")
    h = anatomy(clf.model).blocks[2].register_forward_hook(lambda m, x, o: by_hand(iv, o[0], range(o.shape[1]))[0][None])
    want = torch.stack([stock(clf, t) for t in TEXTS])
    h.remove()
    for rec in (None, record(clf, texts(), progress=False)):
        out = ablate(clf, texts(), [iv], recording=rec, progress=False)
        same_answers(out.after[0], want.log_softmax(-1), clf, size=score_size(want))
        assert answers_apart(out.after[0], out.before, clf) > BEYOND


@torch.no_grad()
def test_summed_scores_refuse_one_position():
    "The state at the end of the prompt is not enough for a verbalizer of several tokens."
    clf = prompted(verbalizers=SUM)
    with pytest.raises(InputError, match="reads more than one position"): answer(clf, torch.zeros(2, 16))


def test_calibration():
    "Class probabilities divided by their mean and renormalised; a recording's own will do."
    clf = prompted()
    plain = class_probabilities(clf, texts())
    got = class_probabilities(calibrated(clf, texts()), texts())
    want = plain/plain.mean(0)
    same_answers(got, want/want.sum(1, keepdims=True), clf)
    again = calibrated(calibrated(clf, texts()), record(clf, texts(), progress=False).probabilities)
    same_answers(again.calibration, calibrated(clf, texts()).calibration, clf)
    with pytest.raises(InputError, match="probabilities of 3 classes"): calibrated(clf, plain[:, :2])
    with pytest.raises(InputError, match="class 'food' has no probability"): calibrated(clf, plain*np.array([1, 0, 1]))


def test_another_prompt_is_another_model():
    "Hash and provenance hold prompt, scoring and calibration."
    a = prompted(sha256="w")
    hashes = {a.sha256, a.whole().sha256}
    assert len(hashes) == 1
    for b in (prompted(sha256="w", shots=SHOTS[:2]), prompted(sha256="w", template="Text: {text}\nTopic is"),
              prompted(sha256="w", scoring="sum"), calibrated(a, texts())):
        assert b.sha256 not in hashes
        hashes.add(b.sha256)
    about = record(a, texts(), progress=False).provenance["prompt"]
    assert about["template"] == "Text: {text}\nTopic:" and about["shots"][0] == ["the dog", 0] and about["scoring"] == "first"


def test_recordings_of_another_prompt_are_not_reused(own_cache):
    "Nor those of a model without a hash."
    a, b = prompted(sha256="w"), prompted(sha256="w", shots=SHOTS[:2])
    x, y = record(a, texts(), progress=False, cache=True), record(b, texts(), progress=False, cache=True)
    assert apart(x.acts, y.acts, a) > BEYOND
    assert np.array_equal(record(a, texts(), progress=False, cache=True).acts, x.acts)
    folder = own_cache/"kept"
    record(prompted(), texts(), folder=folder, progress=False)
    with pytest.raises(InputError): record(prompted(shots=SHOTS[:2]), texts(), folder=folder, progress=False)


DECODERS = {"llama": {}, "gpt2": {}, "gpt_neox": {}, "mistral": dict(sliding_window=8), "mamba": {}, "falcon_mamba": dict(state_size=4),
            "rwkv": dict(attention_hidden_size=16), "openai-gpt": {}, "lfm2": dict(layer_types=["conv", "full_attention", "conv"]),
            "roberta": dict(is_decoder=True), "data2vec-text": dict(is_decoder=True), "recurrent_gemma": dict(attention_window_size=8)}


def written_by_hand(clf, text, n=5):
    "Greedy tokens up to a special one, the stock model reading the whole text anew for each."
    ids = clf.tokenizer(clf.prompt.ask(text)).input_ids
    for _ in range(n): ids = [*ids, int(copy.deepcopy(clf.model)(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())]
    new = ids[-n:]
    return clf.tokenizer.decode(new[:next((i for i, t in enumerate(new) if t in clf.tokenizer.all_special_ids), n)]).strip()


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_generated_answers_are_written_by_hand(kind):
    "Greedy tokens, text before the stop, exact match, whether the model goes on from its cache or not."
    prompt = Prompt("Text: {text}\nTopic:", ("animal", "food", "tool"), (), SHOTS)
    clf = make_prompted(language_model(kind, **DECODERS[kind]), byte_tokenizer(), prompt)
    want = [written_by_hand(clf, t) for t in TEXTS]
    assert len(set(want)) > 1
    for c, tokens, stop in ((clf, None, "never"), (clf, 1, want[0][-1]), (clf.whole(), None, "never")):
        got = generated_answers(replace(c, prompt=_speaking(clf.prompt, want)), texts(), stop=stop, tokens=tokens)
        assert [want[i].split(stop)[0].strip() for i in got] == [w.split(stop)[0].strip() for w in want] and (got >= 0).all()


def test_a_trial_of_one_length_says_nothing_of_others():
    "Texts of one length first: what is padded afterwards is tried all the same."
    clf = make_prompted(language_model("roberta", is_decoder=True), byte_tokenizer(), Prompt("{text}\nTopic:", ("animal", "food")))
    for some in ([TEXTS[-1]], TEXTS[::-1]):
        want = [written_by_hand(clf, t) for t in some]
        said = _speaking(clf.prompt, want)
        assert [want[i] for i in generated_answers(replace(clf, prompt=said), texts(["food"]*len(some), some), stop="never")] == want


@torch.no_grad()
def test_generated_answers_under_edits():
    "Edits that know what is generated act on it; where the trial cannot tell them from a fault, it is said."
    clf = prompted().whole()
    double = linear_edit("0", "double", "residual.2", -torch.eye(16), torch.zeros(16), positions="generated")
    plain = generated_answers(clf, texts(), new_tokens=1)
    want = []
    for t in TEXTS:
        ids, n = clf.tokenizer(clf.prompt.ask(t)).input_ids, None
        for _ in range(3):
            n = n or len(ids)
            with hooked(clf.model, {Site("residual", 2): lambda h, n=n: torch.cat([h[:, :n], -h[:, n:]], 1)}):
                ids = [*ids, int(clf.model(torch.tensor([ids])).logits[0, -1].argmax())]
        want.append(clf.tokenizer.decode(ids[n:]).strip())
    spoken = replace(clf, prompt=_speaking(clf.prompt, want))
    fresh = prompted().whole()
    with editing(fresh.model, [double]), pytest.raises(InputError, match="under edits"): generated_answers(fresh, texts(), new_tokens=3)
    generated_answers(spoken, texts(), new_tokens=3)
    with editing(clf.model, [double]): assert [want[i] for i in generated_answers(spoken, texts(), new_tokens=3)] == want
    assert generated_answers(clf, texts(), new_tokens=1).tolist() == plain.tolist()


def _speaking(prompt, said):
    "The prompt with other verbalizers for its answers, and the shots left as they were."
    other = replace(prompt)
    object.__setattr__(other, "head", prompt.head)
    object.__setattr__(other, "verbalizers", tuple(said))
    return other


def test_tree_shares_beginnings():
    "Every token is read once, and sees its own beginning alone."
    tree = make_tree(((1, 2, 3), (1, 2, 4), (1, 5, 6), (7,)))
    assert tree.ids == (1, 2, 5) and tree.depth == (0, 1, 1)
    assert tree.sees.int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    assert make_tree(((1,), (2,))).ids == ()


def test_mean_readout_leaves_the_shots_out():
    "The mean over a text's own tokens is the same with cached shots and with shots in the batch."
    clf = prompted()
    a, b = (record(c, texts(), ["residual.1"], readout="mean", progress=False).acts for c in (clf, clf.whole()))
    agree(a, b, clf)


def test_a_prompted_model_is_a_classifier():
    "Every room that takes a classifier takes it, and batches have room for the verbalizers."
    clf = prompted(verbalizers=SUM)
    assert isinstance(clf, Prompted) and clf.tail == 3 and prompted().tail == 0
    b = next(batches(encode(clf, TEXTS), tokens=1000))
    assert b.mask[:, -3:].sum() == 0 and readout_weights(b, "last")[:, -3:].sum() == 0
    assert pad([[1]], [[0]], [0], tail=2).ids.shape == (1, 3)


@torch.no_grad()
def test_vocabulary_confidence():
    "The stock model's probability of the right first token among all tokens, before and after an edit of the last block."
    clf = prompted(verbalizers=SUM[:1]+(" machine", " apple"), scoring="first")
    cal = calibrated(clf, texts())
    rec = record(cal, texts(), progress=False)
    iv = firing(clf, "residual.2")
    want = torch.stack([stock(clf, t)[l] for t, l in zip(TEXTS, rec.labels, strict=True)])
    edited = torch.stack([by_hand(iv, x[None], [0])[0][0] for x in torch.as_tensor(rec.acts)])
    h = anatomy(clf.model).blocks[2].register_forward_hook(lambda m, x, o: by_hand(iv, o[0], range(o.shape[1]))[0][None])
    after = torch.stack([stock(clf, t)[l] for t, l in zip(TEXTS, rec.labels, strict=True)])
    h.remove()
    got = vocabulary_confidence(cal, np.stack([rec.acts, edited]), rec.labels)
    same_answers(got, torch.stack([want, after]).exp(), clf)
    assert answers_apart(want, after, clf) > BEYOND


def test_summaries_of_different_prompts_do_not_merge():
    "What was asked is part of what must agree."
    a, b = (summarise(prompted(shots=s), texts(), progress=False) for s in (SHOTS, SHOTS[:2]))
    with pytest.raises(InputError, match="differ in .*prompt"): merge_summaries([a, b])


def test_correct_only():
    "Rows answered right, and a class without any refused by name."
    rec = record(prompted(), texts(), progress=False)
    gold = replace(rec, labels=rec.predicted.copy())
    gold.labels[0] = (gold.labels[0]+1) % 3
    if (gold.labels[1:] == gold.labels[0]).any():
        got = correct_only(gold)
        assert np.array_equal(got.acts, rec.acts[1:]) and np.array_equal(got.labels, rec.predicted[1:])
    else:
        with pytest.raises(InputError, match=f"class {rec.classes[gold.labels[0]]!r} is never answered right"): correct_only(gold)


def test_verbalizers_by_name():
    "A dict is read by class name, whatever its order; a missing class and a single text are refused."
    classes = ("animal", "food", "tool")
    prompt = Prompt("{text} is", classes, dict(tool=" t", animal=" a", food=" f"))
    assert prompt.verbalizers == (" a", " f", " t")
    with pytest.raises(InputError, match="'food' is not both a class and a key"):
        Prompt("{text} is", classes, dict(tool=" t", animal=" a"))
    with pytest.raises(InputError, match="one text 'abc'"):
        Prompt("{text} is", classes, "abc")


def test_a_prompted_model_in_training_mode():
    "Dropout is off in every pass, and the model is in training mode again afterwards."
    clf = prompted("gpt2")
    calm, rec = class_probabilities(clf, texts()), record(clf, texts(), progress=False)
    clf.model.train()
    for m in clf.model.modules():
        if isinstance(m, torch.nn.Dropout): m.p = .5
    assert np.array_equal(class_probabilities(clf, texts()), calm)
    assert np.array_equal(record(clf, texts(), progress=False).probabilities, rec.probabilities)
    assert clf.model.training


def test_weights_changed_in_memory_are_noted():
    "A prompted model of files knows that its weights are no longer those of its hash, also after `replace`."
    clf = prompted(sha256="of the files")
    assert clf.state and clf.changed == {} and clf.whole().changed == {}
    with torch.no_grad(): next(clf.model.parameters())[0, 0] += 1
    assert list(clf.changed) == list(clf.whole().changed) == ["changed"]
    assert record(clf, texts(), progress=False).provenance["changed"] == clf.changed["changed"]


@pytest.mark.parametrize("verbalizers", [(), SUM], ids=["first", "sum"])
@pytest.mark.parametrize("site", ["residual.1", "residual.2"])
@torch.no_grad()
def test_a_prompt_is_asked_once(site, verbalizers):
    "`scope` 'text': the gate at the end of the prompt holds for shots and scored tokens, too; cached shots cannot wait for it."
    clf = prompted(verbalizers=verbalizers)
    iv = replace(firing(clf, site), scope="text")
    def edit(h, end):
        inside = [j for j in iv.neurons.tolist() if any(a <= h[end, j] <= b for a, b in zip(iv.lo[j], iv.hi[j], strict=True))]
        out = h.clone()
        out[:, inside] = iv.state.rest_mean[inside]
        return out, len(inside)/len(iv.neurons)
    want, fires = [], []
    for t in TEXTS:
        end = len(clf.tokenizer(clf.prompt.ask(t)).input_ids)-1
        def hook(m, x, o, end=end):
            out, share = edit(o[0], end)
            fires.append(share)
            return out[None]
        h = anatomy(clf.model).blocks[iv.site.block].register_forward_hook(hook)
        want.append(stock(clf, t))
        h.remove()
    want, fires = torch.stack(want), fires[::len(clf.prompt.verbalizers)]
    got = [clf.whole()] if site == "residual.1" else [clf.whole(), clf] # The last block edits no shots that anything reads
    for c in got:
        out = ablate(c, texts(), [iv], progress=False)
        same_answers(out.after[0], want.softmax(-1), clf, size=score_size(want))
        agree(out.fires[0], fires, 4)
    assert answers_apart(out.after[0], out.before, clf) > BEYOND
    if site == "residual.1":
        with pytest.raises(InputError, match="shots are read before the text that scope 'text' asks"): ablate(clf, texts(), [iv])
