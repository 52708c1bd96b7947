"""Every architecture against plain transformers: what works, what is refused, and what is wrong.

    python tests/models.py [names] [--out results/models.csv] [--seconds 120]

Each architecture that transformers can build from a tiny random configuration is compared with a fresh copy of the same model: one
text at a time, unpadded, from one token to past every window. Two may be as far apart as rounding makes them; where that does not explain
it, as far as the plain model goes by itself when the last place of its weights changes, but never as far as a mistake would. Exits with
1 if anything is wrong or ends in a traceback.
"""
import argparse
import copy
import csv
import multiprocessing
import os
import sys
import traceback
import warnings
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}

import numpy as np
import torch
from tiny import BEYOND, shaken
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as SPEAKERS
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS
from transformers.utils import logging

from neuronlens.edits.language import generate
from neuronlens.ground.core import InputError
from neuronlens.ground.data import make_texts
from neuronlens.ground.rounding import ROOM, apart, epsilon, rounding, score_size, steps_of
from neuronlens.models.anatomy import Site, anatomy
from neuronlens.models.batches import batches, encode
from neuronlens.models.hooks import before, hooked, logits, run
from neuronlens.models.model import make_classifier
from neuronlens.models.prompt import Prompt
from neuronlens.models.prompted import calibrated, class_probabilities, make_prompted
from neuronlens.models.trials import call_options
from neuronlens.records.recording import record

WORDS = "river stone cloud bread tiger lamp green music window paper salt train".split()
SHAPE = dict(vocab_size=120, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2, intermediate_size=24,
             max_position_embeddings=96, pad_token_id=1, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3, num_labels=3)
WINDOWS = dict(sliding_window=8, attention_chunk_size=8, local_attention=8, window_size=8, local_window_size=8)
EXPERTS = dict(n_routed_experts=4, num_experts=4, num_local_experts=4, moe_num_experts=4, n_group=1, topk_group=1, num_experts_per_tok=2,
               first_k_dense_replace=1, moe_intermediate_size=12, shared_expert_intermediate_size=12, n_shared_experts=1)
STATES = dict(mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=8, n_mamba_heads=2, mamba_head_dim=8,
              linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
              linear_head_dim=8, linear_num_heads=2, ssm_state_size=8, mamba_num_heads=4, chunk_size=8, block_size=8,
              vocab_size_per_layer_input=120, hidden_size_per_layer_input=8)
LATENT = EXPERTS | dict(q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, head_dim=4)
INDEXED = LATENT | dict(index_n_heads=2, index_head_dim=8)
SLIDING = dict(num_attention_heads=2, num_key_value_heads=2, q_lora_rank=8, kv_lora_rank=8, head_dim=8, qk_rope_head_dim=4,
               qk_nope_head_dim=4, v_head_dim=4)
LONG = dict(rope_type="longrope", short_factor=[1.]*4, long_factor=[3.]*4, original_max_position_embeddings=16, rope_theta=1e4)
OWN = {"modernbert": WINDOWS, "modernbert-decoder": WINDOWS, "albert": dict(embedding_size=8), "electra": dict(embedding_size=16),
       "convbert": dict(embedding_size=16, head_ratio=1, conv_kernel_size=3), "longformer": dict(attention_window=[4, 4, 4]),
       "nystromformer": dict(num_landmarks=4, segment_means_seq_len=4), "squeezebert": dict(embedding_size=16),
       "mobilebert": dict(embedding_size=16, true_hidden_size=16, intra_bottleneck_size=16), "funnel": dict(num_hidden_layers=None),
       "canine": dict(local_transformer_stride=8, num_hash_functions=4, num_hash_buckets=64), "gpt2": dict(n_inner=24),
       "opt": dict(word_embed_proj_dim=16, ffn_dim=24), "gpt_neo": dict(attention_types=[[["global", "local", "global"], 1]]) | WINDOWS,
       "xlnet": dict(max_position_embeddings=None, d_head=8, d_inner=24), "phi3": {}, "big_bird": dict(block_size=4, num_random_blocks=1),
       "ctrl": dict(dff=24), "gptj": dict(rotary_dim=4, n_inner=24), "codegen": dict(rotary_dim=4, n_inner=24),
       "distilbert": dict(hidden_dim=24), "rembert": dict(input_embedding_size=16, output_embedding_size=16),
       "gemma": dict(head_dim=8), "gemma2": dict(head_dim=8), "gemma3_text": dict(head_dim=8), "vaultgemma": dict(head_dim=8),
       "hunyuan_v1_dense": dict(head_dim=8), "hunyuan_v1_moe": dict(head_dim=8), "ministral": dict(head_dim=8),
       "deepseek_v2": LATENT, "deepseek_v3": LATENT, "mistral4": LATENT, "minicpm3": LATENT, "youtu": LATENT, "axk1": LATENT,
       "kimi_linear": LATENT, "deepseek_v32": INDEXED, "glm_moe_dsa": INDEXED, "axk2": INDEXED,
       "dots3_note_text": INDEXED | {f"swa_{k}": v for k, v in SLIDING.items()}}
# The same architectures with settings that have gone wrong
VARIANTS = {"bert chunks": dict(chunk_size_feed_forward=1), "bert tuple": dict(return_dict=False),
            "deberta relative": dict(relative_attention=True, pos_att_type=["p2c", "c2p"], max_relative_positions=16),
            "deberta-v2 relative": dict(relative_attention=True, pos_att_type=["p2c", "c2p"], share_att_key=False, position_buckets=8),
            "phi3 longrope": dict(original_max_position_embeddings=16, rope_parameters=LONG),
            "llama dynamic": dict(rope_parameters=dict(rope_type="dynamic", factor=4., rope_theta=1e4), max_position_embeddings=16),
            "llama yarn": dict(rope_parameters=dict(rope_type="yarn", factor=4., rope_theta=1e4, original_max_position_embeddings=16)),
            "big_bird full": dict(attention_type="original_full"),
            "gemma3_text mixed": dict(head_dim=8, layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
            "qwen2 window": dict(use_sliding_window=True, max_window_layers=1), "falcon pad": dict(pad_token_id=110, alibi=False),
            "falcon alibi": dict(alibi=True), "falcon new": dict(new_decoder_architecture=True),
            "gpt_neox serial": dict(use_parallel_residual=False), "llama4_text chunks": dict(attention_chunk_size=8),
            "deepseek_v32 few": INDEXED | dict(index_topk=8), "axk2 few": INDEXED | dict(index_topk=8)}
NAMES = sorted({*CLASSIFIERS, *SPEAKERS, *VARIANTS})
LENGTHS = (1, 2, 9, 20, 47, 8)
SHAKES = (.35, .25, .18, .12)
MOST_WEIGHTS = 60_000_000
PROJECTIONS = ("o_proj", "dense", "c_proj", "out_proj", "out_lin", "Wo", "down_proj", "lin2", "fc2", "w2", "fc_out", "dense_4h_to_h",
               "o", "fc_proj", "proj", "output_linear", "out", "wo", "linear2", "dense_out", "down", "output_dense", "2",
               "linear", "linear_out", "proj_down")


def words(n, seed=0): return " ".join(np.random.default_rng(seed).choice(WORDS, n))


TEXTS = [words(n, i) for i, n in enumerate(LENGTHS)]
LABELLED = make_texts(TEXTS, list("abcabc"))


def word_tokenizer(brackets=False, most=96):
    "Words of white space, [CLS] and [SEP] around them if asked."
    special = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "<eos>"]
    ws = [*special, *WORDS, *(f"w{i}" for i in range(100-len(WORDS)))]
    t = Tokenizer(models.WordLevel({w: i for i, w in enumerate(ws)}, unk_token="[UNK]"))
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    t.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]" if brackets else "$A",
                                                     special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=t, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
                                   eos_token="<eos>", model_max_length=most)


class Unbuilt(Exception): "No tiny model of this kind can be made."


def tiny(name, auto):
    "A shaken tiny model of an architecture; refused if its configuration cannot be made small by the usual names."
    kind, last = name.split()[0], None
    own = {k: v for k, v in (OWN.get(kind, {}) | VARIANTS.get(name, {})).items() if v is not None}
    without = {k for k, v in OWN.get(kind, {}).items() if v is None}
    try: known = CONFIG_MAPPING[kind]() # A window that a model does not know of would only confuse its cache
    except Exception as e: raise Unbuilt(f"no configuration without arguments ({type(e).__name__})") from None
    for more in (WINDOWS | EXPERTS | STATES, WINDOWS | EXPERTS, WINDOWS, {}):
        more = {k: v for k, v in more.items() if hasattr(known, k)}
        try:
            cfg = AutoConfig.for_model(kind, **{k: v for k, v in SHAPE.items() if k not in without} | more | own)
            if auto is AutoModelForCausalLM and hasattr(cfg, "is_decoder"): cfg.is_decoder = True
            with torch.device("meta"): n = sum(p.numel() for p in auto.from_config(cfg).parameters())
            if n < MOST_WEIGHTS: return steady(auto.from_config(cfg))
            last = f"{n:,} weights"
        except Exception as e: last = last or (str(e).strip().splitlines() or [type(e).__name__])[-1].strip()
    raise Unbuilt(last)


def steady(model):
    "Shaken, but not so hard that the last place of its weights changes what it says: then nothing could be compared."
    for scale in SHAKES:
        shaken(model, scale=scale)
        try: said = Plainly(model, lambda m: (z := plain(m, [5+i % 50 for i in range(40)])).reshape(-1, z.shape[-1])[-1])
        except Exception: return shaken(model) # What does not run is told by whoever runs it
        if said.share(model) < 1/ROOM: break
    return model


# --- plain transformers


def plain(model, ids, visit=None, **kw):
    "A fresh copy of the model on one text; `visit` is {module name: function of the copy's input, or of a block's output}."
    m = copy.deepcopy(model, {id(model.config): model.config})
    with ExitStack() as stack, torch.no_grad():
        for name, (into, fn) in (visit or {}).items():
            mod = m.get_submodule(name)

            def ahead(_, args, k, fn=fn):
                if args: return ((fn(args[0]), *args[1:]), k)
                return args, k | {"hidden_states": fn(k["hidden_states"])}

            def after(_, args, out, fn=fn):
                return type(out)((fn(out[0]), *out[1:])) if isinstance(out, tuple | list) else fn(out)
            h = mod.register_forward_pre_hook(ahead, with_kwargs=True) if into else mod.register_forward_hook(after)
            stack.callback(h.remove)
        return m(torch.tensor([ids]), **call_options(m) | kw)[0][0].float()


def jittered(model, seed):
    "A copy whose weights are some of them one last place off."
    m, gen = copy.deepcopy(model, {id(model.config): model.config}), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in m.parameters(): p.mul_(1+epsilon(p.dtype)*torch.randint(-1, 2, p.shape, generator=gen))
    return m


class Plainly:
    "What a plain model says, `fn` of it; and, where asked, how far that goes when the last place of its weights changes."
    def __init__(self, model, fn): self.model, self.fn, self.values = model, fn, torch.as_tensor(fn(model))

    @cached_property
    def moved(self): return max((self.fn(jittered(self.model, s))-self.values).abs().max().item() for s in range(4))

    def share(self, of): return self.moved/rounding(max(1., self.values.abs().max().item()), steps_of(of), self.model.dtype)


def named(model, a, site):
    "(dotted name, whether its input is read) of a site."
    mod = a.blocks[site.block] if site.stream == "residual" else a.inner[site]
    return next(n for n, m in model.named_modules() if m is mod), site.stream != "residual"


def seen_at(model, ids, name, into):
    "What one text has at a module, `[T, D]`, all calls of it end to end."
    seen = []

    def keep(x):
        seen.append(x.detach().reshape(-1, x.shape[-1]))
        return x
    plain(model, ids, {name: (into, keep)})
    return torch.cat(seen)


def halve(h): return torch.where(torch.arange(h.shape[-1]) % 3 == 0, h/2-.3, h)


# --- comparisons


class Report:
    "What was found out about one model in one role; `of` is the model, whose depth and width say how far apart numbers may be."
    def __init__(self): self.works, self.refused, self.wrong, self.of = [], {}, [], None

    @contextmanager
    def trying(self, what):
        "Refusals and tracebacks belong to what was tried."
        try: yield
        except InputError as e:
            self.refused[what] = str(e)
            if "\n" in str(e): self.wrong.append(f"{what}: a refusal of several lines")
        except Exception as e:
            at = traceback.extract_tb(e.__traceback__)[-1]
            self.wrong.append(f"{what}: {type(e).__name__} {str(e)[:120]!r} ({Path(at.filename).name}:{at.lineno})")

    def same(self, what, got, plainly, scores=False, rows=slice(None)):
        "Whether two are the same but for rounding; `scores`: both are probabilities, made of scores as far apart as these say."
        got, want = torch.as_tensor(got), plainly.values[rows]
        if got.shape != want.shape: self.wrong.append(f"{what}: shape {tuple(got.shape)} for {tuple(want.shape)}")
        else:
            size = score_size(want) if scores else max(1., want.abs().max().item())
            off = [apart(g, w, self.of, size=size) for g, w in zip(got, want, strict=True)]
            if max(off) <= 1 or max(off) <= min(BEYOND, ROOM*plainly.moved/rounding(size, steps_of(self.of), self.of.dtype)): return True
            self.wrong.append(f"{what}: {max(off):.3g} times what rounding makes apart ({sum(r > 1 for r in off)} of {len(off)})")
        return False


def lawful(model, names, site):
    "With the site at 0 no position hears of another (attention), or no other matrix of the block counts (both sites of a block at 0)."
    m = copy.deepcopy(model)
    at = {s: m.get_submodule(names[s]) for s in (Site("attention", site.block), Site("mlp", site.block)) if s in names}
    block, calls = m.get_submodule(names[Site("residual", site.block)]), []

    def keep(mod, args, kw): calls.append((args, kw))

    def first(out): return out[0] if isinstance(out, tuple | list) else out
    with torch.no_grad(), ExitStack() as stack:
        h = block.register_forward_pre_hook(keep, with_kwargs=True)
        m(torch.tensor([[5, 6, 7, 8, 9]]), **call_options(m))
        h.remove()
        (args, kw), zeroed = calls[0], [at[site]] if site.stream == "attention" else at.values()
        for x in zeroed:
            stack.callback(x.register_forward_pre_hook(lambda mod, args: (torch.zeros_like(args[0]), *args[1:])).remove)
        if site.stream == "attention":
            x = args[0] if args else kw["hidden_states"]
            moved = x.clone()
            moved[:, 0] += 1
            other = ((moved, *args[1:]), kw) if args else (args, kw | {"hidden_states": moved})
            was = first(block(*args, **kw))
            return apart(first(block(*other[0], **other[1]))[:, 1:], was[:, 1:], steps_of(model, 1)) <= 1
        was = first(block(*args, **kw)).clone()
        for n, p in block.named_parameters():
            if p.ndim > 1 and "norm" not in n.lower(): p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
        return apart(first(block(*args, **kw)), was, steps_of(model, 1)) <= 1


def check_classifier(name, rep):
    "Recording, every site, edits in whole and resumed runs."
    model = rep.of = tiny(name, AutoModelForSequenceClassification)
    fresh = copy.deepcopy(model)
    decoder = name.split()[0] in SPEAKERS and not getattr(model.config, "cls_token", None)
    with rep.trying("load"): clf = make_classifier(model, word_tokenizer(brackets=not decoder), ["a", "b", "c"])
    if rep.refused or rep.wrong: return
    ids = encode_alone(clf)
    want = Plainly(fresh, lambda m: torch.stack([plain(m, x).softmax(-1) for x in ids]))
    for tokens in (None, 70):
        with rep.trying("answers"):
            got = record(clf, LABELLED, progress=False, tokens=tokens).probabilities
            if rep.same("answers", got, want, True): rep.works.append("answers")
    if "answers" in rep.works: check_sites(clf, fresh, ids, rep)


def encode_alone(clf): return [clf.tokenizer(t, truncation=True, max_length=clf.max_length).input_ids for t in TEXTS]


def check_sites(clf, fresh, ids, rep, labelled=LABELLED):
    "Every site is what its module sees of each text alone; edits there do what they do to the plain model."
    with rep.trying("anatomy"): a = anatomy(clf.model)
    if "anatomy" in rep.refused: return
    names = {s: named(clf.model, a, s)[0] for s in [*(Site("residual", b) for b in range(len(a))), *a.inner]}
    for site in [Site(s, b) for s in ("residual", "mlp", "attention") for b in rep.blocks or range(len(a))]:
        with rep.trying(str(site)):
            got = record(clf, labelled, str(site), progress=False, readout="last", tokens=150).acts
            name, into = named(clf.model, a, site)
            seen = Plainly(fresh, lambda m, at=(name, into): torch.stack([seen_at(m, x, *at)[-1] for x in ids]))
            ok = rep.same(str(site), got, seen)
            if into and name.rpartition(".")[2] not in PROJECTIONS: rep.wrong.append(f"{site}: is read at {name}")
            if into and not lawful(fresh, names, site): rep.wrong.append(f"{site}: its neurons at 0 are not all of it ({name})")
            if ok and check_edit(clf, fresh, ids, site, name, into, rep): rep.works.append(str(site))


def check_edit(clf, fresh, ids, site, name, into, rep):
    "An edit in a whole run and in a run resumed below it."
    want, ok = Plainly(fresh, lambda m: torch.stack([plain(m, x, {name: (into, halve)}).softmax(-1) for x in ids])), True
    encoded = encode(clf, TEXTS)
    with torch.inference_mode():
        for batch in batches(encoded, tokens=150, fill=clf.pad_id):
            start = before(site)
            state = run(clf, batch, [start])[start]
            given = {} if start == site else {site: halve}
            for what, kw in (("edited", dict(edits={site: halve})),
                             ("resumed", dict(start=(start, halve(state) if start == site else state), edits=given))):
                got = logits(clf, batch, **kw).softmax(-1)
                ok &= rep.same(f"{site} {what}", got, want, True, batch.rows)
    return ok


def check_prompts(name, rep):
    "Prompts with shots, scores by the first token and by the sum, calibration, edits, and what is written."
    model = rep.of = tiny(name, AutoModelForCausalLM)
    fresh, tok = copy.deepcopy(model), word_tokenizer()
    shots = tuple((words(6, i), i) for i in range(2))
    labelled = make_texts(TEXTS, ["x", "y"]*3)
    for scoring, verbalizers in (("first", (" river", " stone")), ("sum", (" river lamp music", " river cloud"))):
        with rep.trying(scoring):
            p = Prompt("Text: {text}\nTopic:", ("x", "y"), verbalizers, shots=shots)
            clf = make_prompted(copy.deepcopy(fresh), tok, p)
            want = Plainly(fresh, lambda m, clf=clf, p=p: torch.stack([asked(m, clf, tok(p.ask(t)).input_ids) for t in TEXTS]))
            for tokens in (None, 90):
                seen = record(clf, labelled, progress=False, tokens=tokens).probabilities
                if rep.same(f"{scoring} recorded", seen, want, True) & rep.same(
                        f"{scoring} scored", class_probabilities(clf, labelled, tokens=tokens), want, True): rep.works.append(scoring)
            mean = Plainly(fresh, lambda m, want=want: (p := want.fn(m).double().mean(0))/p.sum())
            rep.same(f"{scoring} calibration", calibrated(clf, labelled).calibration, mean, True)
            if scoring == "first":
                check_sites_of(clf, fresh, [tok(p.ask(t)).input_ids for t in TEXTS], labelled, rep)
    with rep.trying("generate"): check_written(copy.deepcopy(fresh), fresh, tok, rep)


def check_sites_of(clf, fresh, ids, labelled, rep):
    "Sites of a prompted model, shots included."
    check_sites(clf.whole(), fresh_scored(fresh, clf), ids, rep, labelled)


def fresh_scored(fresh, clf):
    "The plain model with the scores of the verbalizers as its logits."
    class Scored(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.of, self.config, self.dtype = fresh, fresh.config, fresh.dtype

        def get_submodule(self, name): return self.of.get_submodule(name)

        def named_modules(self, *args, **kw): return self.of.named_modules(*args, **kw)

        def forward(self, ids, **kw):
            return (self.of(ids, **call_options(self.of))[0][:, -1][:, [v[0] for v in clf.answer_ids]],)
    return Scored()


def asked(fresh, clf, ids):
    "Class probabilities of a prompt: a pass with every verbalizer."
    out = []
    for v in map(list, clf.answer_ids):
        if clf.scoring == "first": v = v[:1]
        z = plain(fresh, ids+v).log_softmax(-1)
        out.append(sum(z[len(ids)-1+i, t] for i, t in enumerate(v)))
    return torch.stack(out).softmax(-1)


def written(fresh, ids, n, visit=None):
    "Greedy continuation, the whole text read anew for every token."
    new = []
    for _ in range(n):
        new.append(int(plain(fresh, ids+new, visit)[-1].argmax()))
        if new[-1] == fresh.config.get_text_config().eos_token_id: return new[:-1]
    return new


def check_written(model, fresh, tok, rep):
    "Texts written from prompts of different lengths in a batch, without and with an edit."
    prompts = [words(n, n) for n in (1, 5, 12, 20, 33, 8)]
    ids = [tok(p).input_ids for p in prompts]
    ok = generate(model, tok, prompts, new_tokens=5) == [tok.decode(written(fresh, x, 5), skip_special_tokens=True) for x in ids]
    if not ok: rep.wrong.append("generate: another text")
    a = anatomy(model)
    site = next(s for s in (Site("mlp", 1), Site("residual", 1)) if s.stream == "residual" or s in a.inner)
    name, into = named(model, a, site)
    want = [tok.decode(written(fresh, x, 5, {name: (into, halve)}), skip_special_tokens=True) for x in ids]
    with hooked(model, {site: halve}): got = generate(model, tok, prompts, new_tokens=5)
    if got != want: rep.wrong.append(f"generate: another text with an edit at {site}")
    elif ok: rep.works.append("generate")


# --- one process for every model


ROLES = {"classifier": (check_classifier, CLASSIFIERS), "prompted": (check_prompts, SPEAKERS)}


def examine(name, role, quick=False):
    "(works, refused, wrong) of one architecture in one role; `quick`: at the sites of one block only."
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    rep = Report()
    rep.blocks = [1] if quick else None
    try: ROLES[role][0](name, rep)
    except Unbuilt as e: rep.refused["not built"] = str(e)
    except InputError as e: rep.refused["load"] = str(e)
    except Exception: rep.wrong.append("traceback: "+" | ".join(traceback.format_exc().splitlines()[-3:]))
    return list(dict.fromkeys(rep.works)), rep.refused, list(dict.fromkeys(rep.wrong))


def _child(pipe, name, role): pipe.send(examine(name, role))


def alone(name, role, seconds):
    "The same in a process of its own, which may take so long and no longer."
    here, there = multiprocessing.get_context("fork").Pipe(False)
    p = multiprocessing.get_context("fork").Process(target=_child, args=(there, name, role))
    p.start()
    there.close()
    try: return here.recv() if here.poll(seconds) else ([], {}, [f"took more than {seconds} s"])
    except EOFError: return [], {}, ["the process died"]
    finally:
        p.kill()
        p.join()


def summary(works, refused):
    "What works in a few words, and why the rest does not."
    streams = {}
    for w in works:
        s, _, b = w.partition(".")
        streams.setdefault(s, []).append(b)
    most = max(map(len, streams.values()), default=0)
    said = [s if not all(bs) or len(bs) == most else f"{s} ({', '.join(bs)})" for s, bs in streams.items()]
    return ", ".join(said), "; ".join(dict.fromkeys(r for r in refused.values()))


def main():
    parse = argparse.ArgumentParser()
    parse.add_argument("names", nargs="*")
    parse.add_argument("--out", help="write the table there")
    parse.add_argument("--seconds", type=int, default=120, help="for every model")
    args, rows, bad = parse.parse_args(), [], 0
    for name in args.names or NAMES:
        for role, (_, kinds) in ROLES.items():
            if name.split()[0] not in kinds: continue
            works, refused, wrong = alone(name, role, args.seconds)
            unbuilt = refused.pop("not built", "")
            said, why = summary(works, refused)
            rows.append(dict(architecture=name, role=role, works=said, refused=why, not_built=unbuilt))
            bad += len(wrong)
            line = f"{name} ({role}): {said or '-'}" + f" | refused: {why}"*bool(why) + f" | not built: {unbuilt}"*bool(unbuilt)
            print(line, *(f"  WRONG {w}" for w in wrong), sep="\n", flush=True)
    if args.out:
        with open(args.out, "w", newline="", encoding="utf-8") as f:
            w = csv.DictWriter(f, ["architecture", "role", "works", "refused", "not_built"], lineterminator="\n")
            w.writeheader()
            w.writerows(rows)
    print(f"{sum(bool(r['works']) for r in rows)} of {len(rows)} work in part or whole, {bad} things are wrong")
    return bad > 0


if __name__ == "__main__": sys.exit(main())
