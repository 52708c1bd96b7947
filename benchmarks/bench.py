"""Speed and memory of neuronlens beside what a user would do otherwise, in one process, as ratios.

    python benchmarks/bench.py [part ...]      parts: sweep rerun shots erase record farm gpu arrays meaning growth start serve; all without

Writes `results.csv` (name, ours, other, ratio, target, met), `growth.csv` and `machine.json` beside this file. Every figure is
the median of at least five measurements that take turns with those of the other side; `ratio` is ours over other, and `met` says
whether it is at most `target`.
"""
import csv
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["TQDM_DISABLE"] = "1"
HERE = Path(__file__).resolve().parent
COLUMNS = ("name", "ours", "other", "ratio", "target", "met")
ROUNDS = 5


def seconds(call):
    "How long one call takes."
    start = time.perf_counter()
    call()
    return time.perf_counter()-start


def race(*calls, rounds=ROUNDS):
    "Median seconds of each call; they take turns, after one round that does not count."
    for call in calls: call()
    times = [[seconds(c) for c in calls] for _ in range(rounds)]
    return [statistics.median(t) for t in zip(*times, strict=True)]


def row(name, ours, other, target):
    "One line of the table."
    ratio = ours/other
    print(f"{name:95s} {ours:10.4f} {other:10.4f} {ratio:8.4f}  at most {target:g}", flush=True)
    return dict(name=name, ours=f"{ours:.6g}", other=f"{other:.6g}", ratio=f"{ratio:.6g}", target=f"{target:g}",
                met=str(ratio <= target).lower())


def example():
    "The example model, its recordings of BBC News, and the test texts."
    from neuronlens.models.training import example_classifier, example_texts
    from neuronlens.records.recording import example_recordings
    return example_classifier(False), *example_recordings(False), example_texts()[1]


# --- a: interventions

SIXTY = dict(ranking=["dprime", "max_activation", "probeless", "random"], fraction=[.05, .1, .2, .3, .4, .5, .6, .7, .8, .9],
             range=["gaussian(1)", "gaussian(2)", "gaussian(2.5)", "gaussian(3)", "quantile(0.8)", "quantile(0.9)"],
             edit=["zero", "mean"])


def bare(clf, batches):
    "The stock model on given batches, nothing else."
    import torch
    with torch.inference_mode():
        for b in batches: clf.model(**clf.inputs(b)).logits


def hooked(clf, batches, interventions):
    "What one would do otherwise: the whole model again for every intervention, with a hook at its site."
    import torch
    with torch.inference_mode():
        for iv in interventions:
            handle = clf.model.base_model.encoder.layer[iv.site.block].register_forward_hook(
                lambda m, args, out, iv=iv: (iv(out[0])[0], *out[1:]) if isinstance(out, tuple) else iv(out)[0])
            for b in batches: clf.model(**clf.inputs(b)).logits.softmax(-1)
            handle.remove()


def bench_sweep():
    "a: a sweep against the model run again for every intervention."
    import numpy as np

    from neuronlens.edits.sweeps import effects_on, grid
    from neuronlens.ground.data import take
    from neuronlens.models.batches import batches, encode
    clf, train, test, texts = example()
    last, many = f"residual.{len(clf.model.base_model.encoder.layer)-1}", list(batches(encode(clf, texts.texts)))
    ivs = grid(train, site=last, **SIXTY)[:5000]
    some = ivs[::50]
    ours, other = race(lambda: effects_on(clf, texts, some, recording=test, progress=False), lambda: bare(clf, many))
    yield row(f"last block: an intervention against a full pass, {len(texts)} texts (s)", ours/len(some), other, 1e-3)
    ours = statistics.median(seconds(lambda: effects_on(clf, texts, ivs, recording=test, progress=False)) for _ in range(ROUNDS))
    yield row(f"last block: {len(ivs)} interventions on {len(texts)} texts, against 20 s (s)", ours, 20., 1.)
    few = take(texts, np.arange(0, len(texts), 14))
    part, L = list(batches(encode(clf, few.texts))), len(clf.model.base_model.encoder.layer)
    for block in range(L-1):
        ivs = grid(train, site=f"residual.{block}", fraction=[.3, .6], edit="mean")[:11]
        one, all_, full = race(lambda i=ivs: effects_on(clf, few, i[:1], progress=False),
                               lambda i=ivs: effects_on(clf, few, i, progress=False), lambda: bare(clf, part))
        share = (L-1-block)/L
        yield row(f"block {block} of {L}: one more intervention against a full pass, {len(few)} texts (s)",
                  (all_-one)/(len(ivs)-1), full, 1.25*share)


def bench_rerun(n=10):
    "a: the same sweep with a plain hook, the whole model again for every intervention."
    import numpy as np

    from neuronlens.edits.sweeps import effects_on, grid
    from neuronlens.ground.data import take
    from neuronlens.models.batches import batches, encode, token_budget
    clf, train, _, texts = example()
    few, L = take(texts, np.arange(0, len(texts), 14)), len(clf.model.base_model.encoder.layer)
    part = list(batches(encode(clf, few.texts), tokens=token_budget("cpu")))
    for block in (0, L//2, L-1):
        ivs = grid(train, site=f"residual.{block}", fraction=[.3, .6], edit="mean")[:n]
        ours, other = race(lambda i=ivs: effects_on(clf, few, i, progress=False), lambda i=ivs: hooked(clf, part, i), rounds=7)
        yield row(f"block {block} of {L}: a sweep of {n} against hook and rerun, {len(few)} texts (s)", ours, other, 1.)


def bench_shots(n=4):
    "a: edits at all positions of a prompted model against the shots in every text."
    from neuronlens.edits.sweeps import effects_on, grid
    from neuronlens.models.prompt import smollm2_texts
    from neuronlens.models.prompted import smollm2_prompted
    from neuronlens.records.recording import record
    prompt, train, test = smollm2_texts(test=3)
    clf = smollm2_prompted(prompt)
    whole, sites = clf.whole(), ["residual.9", "residual.19"]
    rec = record(clf, train, sites, progress=False)
    for site in sites:
        ivs = grid(rec, site=site, fraction=.5, edit="mean")[:n]
        ours, other = race(lambda i=ivs: effects_on(clf, test, i, progress=False), lambda i=ivs: effects_on(whole, test, i, progress=False))
        name = f"{site} of SmolLM2: {n} interventions, {len(clf.shared)} tokens of shots once against in every text, {len(test)} texts (s)"
        yield row(name, ours, other, .5)


def bench_erase():
    "a: edits that look up another text, and AURA, against the mean under the same gate: recorded readouts, and tokens of a middle block."
    import numpy as np

    from neuronlens.edits.sweeps import effects_on, grid
    from neuronlens.ground.data import take
    from neuronlens.models.training import example_texts
    from neuronlens.records.recording import record
    from neuronlens.records.tokens import record_tokens
    clf, train, test, texts = example()
    last, edits = len(clf.model.base_model.encoder.layer)-1, ("mean", "exchange", "partner", "aura")
    middle, few = f"residual.{last//2+1}", take(texts, np.arange(0, len(texts), 14))
    rec = record(clf, example_texts()[0], middle, progress=False)
    tokens = record_tokens(clf, example_texts()[0], middle, progress=False)

    def under(rec, **kw):
        how = dict(edit=list(edits), range="posterior(0.2)", vote=.5, covers="salient", fraction=1., site=rec.site) | kw
        return {e: [iv for iv in grid(rec, **how) if (iv.condition, iv.edit) == ("range", e)] for e in edits}

    near, far = under(train), under(rec, fitted_at="tokens", tokens=tokens, concept=rec.classes[:1])
    for name, ivs, of, kw in ((f"last block, {len(texts)} recorded texts", near, texts, dict(recording=test)),
                              (f"tokens of block {last//2+1}, {len(few)} texts", far, few, {})):
        mean, *others = race(*(lambda i=ivs[e], of=of, kw=kw: effects_on(clf, of, i, progress=False, **kw) for e in edits), rounds=9)
        for e, ours in zip(edits[1:], others, strict=True): yield row(f"{name}: {e} against the mean of the same gate (s)", ours, mean, 1.2)


# --- b: recording


def in_file_order(clf, texts, size=32):
    "What one would do otherwise: batches in the order of the file, padded to the longest text in each."
    import torch
    with torch.inference_mode():
        for i in range(0, len(texts), size):
            kw = clf.tokenizer(texts.texts[i:i+size], padding=True, truncation=True, max_length=clf.max_length, return_tensors="pt")
            clf.model(**kw, output_hidden_states=True).hidden_states[-1][:, 0]


def by_nnsight(clf, batches, block):
    "The same site recorded by nnsight."
    from nnsight import NNsight
    wrapped = NNsight(clf.model)

    def go():
        for b in batches:
            with wrapped.trace(**clf.inputs(b)):
                wrapped.bert.encoder.layer[block].output[0].save()
    return go


def mixed(texts, n=256):
    "Texts of very different lengths, in shuffled order: the first 3 to 60 words of real articles."
    import numpy as np

    from neuronlens.ground.data import make_texts
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(texts))[:n]
    return make_texts([" ".join(texts.texts[i].split()[:rng.integers(3, 61)]) for i in rows],
                      [texts.classes[texts.labels[i]] for i in rows])


def bench_record():
    "b: recording against a bare forward, file order, and nnsight."
    from neuronlens.models.batches import batches, encode
    from neuronlens.records.recording import record
    clf, _, _, texts = example()
    L = len(clf.model.base_model.encoder.layer)
    some = mixed(texts)
    part = list(batches(encode(clf, some.texts), fill=clf.pad_id))

    def ours(site, **kw): return lambda: record(clf, some, site, progress=False, **kw)
    r, b = race(ours(f"residual.{L-1}"), lambda: bare(clf, part), rounds=9)
    yield row(f"record the last block against the bare forward of the same batches, {len(some)} texts (s)", r, b, 1.05)
    r, b = race(ours(f"residual.{L//2}", answers=False), lambda: bare(clf, part), rounds=9)
    yield row(f"record block {L//2} of {L} without answers against the bare forward, {len(some)} texts (s)", r, b, 1.)
    r, b = race(ours(f"residual.{L-1}"), lambda: in_file_order(clf, some))
    yield row(f"record the last block against padded batches in file order, {len(some)} texts (s)", r, b, 1.)
    if not find_spec("nnsight"): print("nnsight is not installed: its rows are left out", flush=True)
    else:
        for block in (L//2, L-1):
            kw = dict(answers=False) if block < L-1 else {}
            r, b = race(ours(f"residual.{block}", **kw), by_nnsight(clf, part, block))
            yield row(f"record block {block} of {L} against nnsight on the same batches, {len(some)} texts (s)", r, b, 1.)


# --- f: many machines, and a graphics processor


def bench_farm():
    "f: the same interventions in shards, as workers make them, against one go."
    import numpy as np

    from neuronlens.edits.farm import tally_arrays
    from neuronlens.edits.sweeps import effects_on, grid
    from neuronlens.ground.data import take
    from neuronlens.records.shards import make_reading, shards
    clf, train, _, texts = example()
    some, ivs = take(texts, np.arange(0, len(texts), 4)), grid(train, site="residual.5", fraction=[.1, .3, .5], vote=[0, .5])
    ask = make_reading(clf)

    def cut(): return [tally_arrays(ask, t, interventions=ivs) for t in shards(some, clf, 64)]
    ours, other = race(cut, lambda: effects_on(clf, some, ivs, progress=False))
    yield row(f"{len(ivs)} interventions on {len(some)} texts in shards of 64 against one go (s)", ours, other, 1.1)


def bench_gpu():
    "f: a graphics processor against its own bare forward, float32, and the processor; nothing where there is none."
    import copy
    from dataclasses import replace

    import torch
    if not torch.cuda.is_available(): return print("no graphics processor that torch can use here: its rows are left out", flush=True)
    from neuronlens.edits.edit import linear_edit
    from neuronlens.edits.language import generate
    from neuronlens.edits.sweeps import effects_on, grid
    from neuronlens.models.batches import batches, encode, token_budget
    from neuronlens.models.model import load_language_model, smollm2
    from neuronlens.records.recording import record
    clf, train, _, texts = example()
    here, L = replace(clf, model=copy.deepcopy(clf.model).to("cuda")), len(clf.model.base_model.encoder.layer)
    half = replace(clf, model=copy.deepcopy(here.model).to(torch.bfloat16))
    part = list(batches(encode(here, texts.texts), tokens=token_budget("cuda"), fill=here.pad_id))

    def waited():
        bare(here, part)
        torch.cuda.synchronize()

    def read(c): return lambda: record(c, texts, progress=False)
    r, b = race(read(here), waited)
    yield row(f"record the last block against the bare forward of the same batches, {len(texts)} texts (s)", r, b, 1.5)
    r, b = race(read(half), read(here))
    yield row(f"record in bfloat16 against float32, {len(texts)} texts (s)", r, b, 1.05)
    r, b = race(read(here), read(clf), rounds=3)
    yield row(f"record against the processor, {len(texts)} texts (s)", r, b, .2)
    for block in (L//2, L-1):
        ivs = grid(train, site=f"residual.{block}", fraction=[.3, .6], edit="mean")[:20]
        r, b = race(*(lambda i=ivs, c=c: effects_on(c, texts, i, progress=False) for c in (here, clf)), rounds=3)
        yield row(f"block {block} of {L}: {len(ivs)} interventions against the processor, {len(texts)} texts (s)", r, b, .2)
    model, tok = load_language_model(smollm2(), device="cuda")
    words = [" ".join(t.split()[:20]) for t in texts.texts[:16]]
    D = model.config.hidden_size
    ivs = [linear_edit("1", "map", "residual.15", torch.eye(D), torch.zeros(D))]
    r, b = race(lambda: generate(model, tok, words, ivs, new_tokens=20), lambda: generate(model, tok, words, new_tokens=20), rounds=3)
    yield row("generate under an edit of a whole block against none, SmolLM2, 16 prompts, 20 tokens (s)", r, b, 1.3)


# --- c: arrays


def plain_numpy(acts, labels, C):
    "Mean, spread, skew, kurtosis and extremes of every class, d-prime and Gaussian ranges, as one writes them down."
    import numpy as np
    a = acts.astype(np.float64)
    out = []
    for c in range(C):
        x, rest = a[labels == c], a[labels != c]
        mu, sd = x.mean(0), x.std(0)
        out.append((mu, sd, ((x-mu)**3).mean(0)/sd**3, ((x-mu)**4).mean(0)/sd**4, x.min(0), x.max(0), abs(x).mean(0),
                    abs(mu-rest.mean(0))/np.sqrt((sd**2+rest.std(0)**2)/2+1e-8), mu-2.5*sd, mu+2.5*sd))
    return out


def bench_arrays():
    "c: rankings and fits against NeuroX and plain numpy; merging."
    import numpy as np

    from neuronlens.arrays.ranges import fit_ranges
    from neuronlens.arrays.saliency import rank
    from neuronlens.arrays.statistics import class_statistics, merge_statistics
    _, train, _, _ = example()
    acts, labels, C = train.acts, train.labels, len(train.classes)

    def ours():
        s = class_statistics(acts, labels, train.classes)
        rank(acts, labels, "dprime", statistics=s)
        fit_ranges(acts, labels, "gaussian(2.5)", statistics=s)
    r, b = race(ours, lambda: plain_numpy(acts, labels, C), rounds=15)
    yield row(f"statistics, d-prime and Gaussian ranges against plain numpy, {acts.shape[0]} x {acts.shape[1]} (s)", r, b, 1.)
    if not find_spec("neurox"): print("neurox is not installed: its row is left out", flush=True)
    else:
        from neurox.interpretation import probeless
        ids = {c: i for i, c in enumerate(train.classes)}

        def theirs():
            for c in train.classes: probeless.get_neuron_ordering_for_tag(acts, labels, ids, c)
        r, b = race(lambda: rank(acts, labels, "probeless"), theirs, rounds=15)
        yield row(f"probeless ranking of every class against NeuroX, {acts.shape[0]} x {acts.shape[1]} (s)", r, b, 1.)
    rng = np.random.default_rng(0)
    D, C = 4096, 14
    parts = [class_statistics(rng.normal(size=(56, D)).astype(np.float32), np.arange(56) % C) for _ in range(40)]
    r = statistics.median(seconds(lambda: merge_statistics(parts[i % 40] for i in range(1000))) for _ in range(ROUNDS))
    yield row(f"merge the statistics of 1,000 parts, {D} neurons and {C} classes, against 1 s (s)", r, 1., 1.)


# --- m: meaning


def like_words(N, P, share):
    "P predicates of N rows, as common as words are: a few of many rows, most of a few; `share` of all cells hold."
    import numpy as np
    from scipy.sparse import csr_array

    from neuronlens.arrays.predicates import Predicates
    rng, often = np.random.default_rng(0), 1/np.arange(1, P+1)**.9
    n = rng.binomial(N, np.clip(often*share*P/often.sum(), 5/N, .6)).clip(5)
    rows = np.concatenate([rng.choice(N, k, replace=False) for k in n])
    held = csr_array((np.ones(len(rows), bool), (rows, np.repeat(np.arange(P), n))), shape=(N, P))
    return Predicates(tuple(f"p{j:04}" for j in range(P)), held, (("word", ""),)*P)


def plain_search(columns, y, length, beam):
    "The published procedure in plain numpy: every formula of the beam with every predicate by every operator, one IoU after the other."
    import numpy as np
    join = (np.logical_or, np.logical_and, lambda a, b: a & ~b)
    kept = {(j,): f for j, f in enumerate(columns)}
    score = {k: (f & y).sum()/(f | y).sum() for k, f in kept.items()}
    for _ in range(length-1):
        top = sorted(score, key=score.get, reverse=True)[:beam]
        kept, score = {k: kept[k] for k in top}, {k: score[k] for k in top}
        for k in top:
            for j, p in enumerate(columns):
                for op, way in enumerate(join):
                    f = way(kept[k], p)
                    kept[(*k, op, j)], score[(*k, op, j)] = f, (f & y).sum()/(f | y).sum()
    return max(score.values())


def bench_meaning():
    "m: formulas for the class ranges of the last block and for one range of tokens, and against the published procedure."
    import numpy as np

    from neuronlens.arrays.formulas import search_formulas
    from neuronlens.arrays.predicates import text_predicates
    from neuronlens.arrays.ranges import fit_ranges
    from neuronlens.models.training import example_texts
    _, train, _, _ = example()
    ranges, p = fit_ranges(train, "posterior"), text_predicates(example_texts()[0], least=40)
    inside = np.concatenate([ranges.contains(train.acts, c) for c in train.classes], 1)
    inside = inside[:, inside.any(0) & ~inside.all(0)]
    def search(p, y, length): return search_formulas(p, y, length=length, shuffles=0, progress=False)
    r = seconds(lambda: search(p, inside, 3))
    size = f"{inside.shape[1]:,} class ranges, {len(p):,} texts, {len(p.names):,} predicates"
    yield row(f"formulas of length 3 for {size}, against 120 s (s)", r, 120, 1.)
    one, columns = inside[:, :1], np.ascontiguousarray(p.columns.toarray().T)
    r = statistics.median(seconds(lambda: search(p, one, 3)) for _ in range(ROUNDS))
    b = seconds(lambda: plain_search(columns, one[:, 0], 3, 10))
    yield row("formula of one of these ranges, predicates packed anew, against plain numpy (s)", r, b, .1)
    p = like_words(100_000, 5000, .01)
    y = p.column("p0010") & ~p.column("p0003") | p.column("p0100") | (np.random.default_rng(1).random(100_000) < .01)
    r = statistics.median(seconds(lambda: search(p, y, 5)) for _ in range(ROUNDS))
    yield row("formula of one range of 100,000 tokens over 5,000 predicates, length 5, against 10 s (s)", r, 10, 1.)


# --- d: growth


def growth(counts):
    "In a process of its own: statistics of more and more short texts; one line of JSON per count."
    import numpy as np

    from neuronlens.ground.data import make_texts
    from neuronlens.models.training import example_classifier, example_texts
    from neuronlens.records.summary import summarise
    clf = example_classifier(False)
    texts = example_texts()[0]
    words = [t.split() for t in texts.texts]

    def chunks(n, size=2048):
        "Six words from somewhere in an article, n times."
        rng = np.random.default_rng(n)
        for start in range(0, n, size):
            some = rng.integers(0, len(words), min(size, n-start))
            at = [rng.integers(0, max(1, len(words[i])-6)) for i in some]
            yield make_texts([" ".join(words[i][a:a+6]) for i, a in zip(some, at, strict=True)],
                             [texts.classes[texts.labels[i]] for i in some])
    def peak(): # Of this process alone; what `getrusage` says counts from its parent
        return next(int(x.split()[1])/1024 for x in open("/proc/self/status") if x.startswith("VmHWM"))
    loaded = peak()
    for n in counts:
        took = seconds(lambda n=n: summarise(clf, chunks(n), "residual.-1", progress=False))
        print(json.dumps(dict(texts=n, seconds=took, loaded=loaded, peak=peak())), flush=True)


def bench_growth(counts=(*4*[1000], *3*[10_000], 100_000, *3*[1000])):
    "d: time per text and memory from 1,000 to 100,000 texts."
    lines = []
    call = [sys.executable, str(HERE/"bench.py"), "--growth", *map(str, counts)]
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as p:
        for line in p.stdout:
            if line.startswith("{"): lines.append(json.loads(line))
    if p.returncode: raise SystemExit("the growth run failed")
    lines = lines[1:] # The first is for warming up
    with open(HERE/"growth.csv", "w", newline="") as f:
        out = csv.DictWriter(f, ["texts", "ms_per_text", "mb_over_model"], lineterminator="\n")
        out.writeheader()
        for x in lines: out.writerow(dict(texts=x["texts"], ms_per_text=f"{1000*x['seconds']/x['texts']:.4g}",
                                          mb_over_model=f"{x['peak']-x['loaded']:.1f}"))
    each = lambda n: statistics.median(x["seconds"]/x["texts"]*1000 for x in lines if x["texts"] == n)
    first = next(i for i, x in enumerate(lines) if x["texts"] == max(counts)) # What a peak after it says is its own
    most = lambda n: max(x["peak"]-x["loaded"] for x in lines[:first+1] if x["texts"] <= n)
    yield row("time per text at 100,000 texts against 1,000 (ms)", each(100_000), each(1000), 1.1)
    yield row("memory over the model at 100,000 texts against 10,000 (MB)", most(100_000), most(10_000), 1.1)
    yield row("memory over the model at 100,000 texts against 300 MB (MB)", most(100_000), 300., 1.)


# --- e: start


def bench_start():
    "e: importing, --help, and a later run of the demo."
    run = lambda *a: subprocess.run(a, check=True, capture_output=True)
    py = sys.executable
    r, b = race(lambda: run(py, "-c", "import neuronlens"), lambda: run(py, "-c", "import torch"))
    yield row("import neuronlens against import torch (s)", r, b, .25)
    tool = str(Path(py).with_name("neuronlens"))
    r = race(lambda: run(tool, "--help"))[0]
    yield row("neuronlens --help against 0.5 s (s)", r, .5, 1.)
    with tempfile.TemporaryDirectory() as d:
        demo = lambda *a: run(tool, "demo", "--out", f"{d}/demo", "--no-progress", *a)
        anew, same = race(lambda: demo("--again"), demo)
    yield row("a later run of the demo that makes all anew, start to end, against 20 s (s)", anew, 20., 1.)
    yield row("a later run of the demo into its folder, start to end, against 10 s (s)", same, 10., 1.)


# --- f: a served model

SERVER = """
import sys
import neuronlens as nl
kind, folder, edit, port = sys.argv[1:]
model = nl.load_classifier(folder, device='cpu') if kind == 'classify' else nl.model.load_language_model(folder, device='cpu')
nl.serve.listen(nl.serve.app(model, nl.load_edit(edit)), int(port))
"""


@contextmanager
def served(*args):
    "A client of a server in a process of its own."
    import httpx
    with socket.create_server(("127.0.0.1", 0)) as s: port = s.getsockname()[1]
    with subprocess.Popen([sys.executable, "-c", SERVER, *map(str, args), str(port)]) as p:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
                while True:
                    try: client.get("/health")
                    except httpx.TransportError:
                        if p.poll() is not None: raise SystemExit("the server did not start")
                        time.sleep(.2)
                    else: break
                yield client
        finally: p.terminate()


def requests_beside(client, path, texts, n, **more):
    "Median seconds of one request with the edit and of one without; they take turns, text by text."
    def one(text, edit): return seconds(lambda: client.post(path, json=dict(texts=[text], edit=edit, **more)).raise_for_status())
    for edit in (True, False): one(texts[0], edit)
    times = {True: [], False: []}
    for i in range(n):
        for edit in (True, False) if i % 2 else (False, True): times[edit].append(one(texts[i % len(texts)], edit))
    return [statistics.median(t) for t in times.values()]


def bench_serve():
    "f: a request with an edit against the same request without it."
    from neuronlens import grid, make_edit, preset_grid
    from neuronlens.ground.data import balance, bbc_news
    from neuronlens.models.model import Classifier, load_language_model, smollm2
    from neuronlens.models.training import save_classifier
    from neuronlens.records.recording import record
    clf, train, _, texts = example()
    with tempfile.TemporaryDirectory() as d:
        make_edit(clf, preset_grid(train, "recommended", concept="politics", fraction=.6)[:1]).save(f"{d}/edit.safetensors")
        save_classifier(clf, f"{d}/model")
        with served("classify", f"{d}/model", f"{d}/edit.safetensors") as client:
            ours, other = requests_beside(client, "/classify", texts.texts[:50], 200)
        yield row("a request that classifies an article with an edit against without, on loopback (s)", ours, other, 1.05)
        news, (model, tok) = balance(bbc_news(), 12), load_language_model(smollm2(), device="cpu")
        reader = Classifier(model, tok, news.classes, "last", 48)
        rec = record(reader, news, "residual.-1", answers=False, progress=False)
        make_edit(reader, [grid(rec, concept="politics", fraction=.3)[1]]).save(f"{d}/lm.safetensors")
        starts = [" ".join(t.split()[:40]) for t in news.texts[:10]]
        del model, reader
        with served("generate", smollm2(), f"{d}/lm.safetensors") as client:
            ours, other = requests_beside(client, "/generate", starts, 20, tokens=16)
        yield row("a request that SmolLM2 goes on from by 16 tokens with an edit against without, on loopback (s)", ours, other, 1.05)


PARTS = dict(sweep=bench_sweep, rerun=bench_rerun, shots=bench_shots, erase=bench_erase, record=bench_record, farm=bench_farm,
             gpu=bench_gpu, arrays=bench_arrays, meaning=bench_meaning, growth=bench_growth, start=bench_start, serve=bench_serve)


def machine():
    "What this ran on."
    from importlib.metadata import version
    name = platform.processor() or platform.machine()
    try: name = next(x.split(":")[1].strip() for x in open("/proc/cpuinfo") if x.startswith("model name"))
    except (OSError, StopIteration): pass
    memory = os.sysconf("SC_PAGE_SIZE")*os.sysconf("SC_PHYS_PAGES")/2**30
    return dict(processor=name, cores=len(os.sched_getaffinity(0)), memory_gib=round(memory), system=platform.system(),
                python=platform.python_version(), **{p: version(p) for p in ("torch", "transformers", "numpy")},
                date=time.strftime("%Y-%m-%d"))


def main(parts):
    if parts[:1] == ["--growth"]: return growth(list(map(int, parts[1:])))
    if strange := set(parts)-set(PARTS): raise SystemExit(f"no part is called {sorted(strange)[0]!r}; there are {', '.join(PARTS)}")
    kept = {part: [] for part in PARTS}
    if parts and (HERE/"results.csv").exists():
        with open(HERE/"results.csv") as f:
            for r in csv.DictReader(f): kept[r["name"].partition(":")[0]].append(r)
    for part in parts or PARTS: kept[part] = [r | dict(name=f"{part}: {r['name']}") for r in PARTS[part]()]
    rows = [r for part in PARTS for r in kept[part]]
    with open(HERE/"results.csv", "w", newline="") as f:
        out = csv.DictWriter(f, COLUMNS, lineterminator="\n")
        out.writeheader()
        out.writerows(rows)
    (HERE/"machine.json").write_text(json.dumps(machine(), indent=1)+"\n")
    met = sum(r["met"] == "true" for r in rows)
    print(f"{met} of {len(rows)} targets met; written to benchmarks/results.csv")


if __name__ == "__main__": main(sys.argv[1:])
