"""A served model: whoever asks at the same time gets the plain model's answer or the edited one's, as asked, and a sentence otherwise."""
import asyncio
import gc
import json
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from conftest import make_frame, make_tokenizer
from test_language import fitted, states_at, tiny_lm
from tiny import BEYOND, answers_apart, clear, everywhere, intervention, same_answers, touched
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from neuronlens.edits.ablation import ablate
from neuronlens.edits.language import generate
from neuronlens.ground.core import InputError
from neuronlens.ground.data import make_texts
from neuronlens.models.model import Classifier, load_classifier, load_language_model
from neuronlens.studies.serve import app, listen

pytestmark = [pytest.mark.usefixtures("one_thread"),
              pytest.mark.skipif(find_spec("fastapi") is None, reason="FastAPI is not installed (extra `serve`)")]
TOP, N = Path(__file__).resolve().parents[1], 200
SCRIPT = """
import sys
import neuronlens as nl
kind, folder, edit, port = sys.argv[1:]
model = nl.load_classifier(folder, device='cpu') if kind == 'classify' else nl.model.load_language_model(folder, device='cpu')
nl.serve.listen(nl.serve.app(model, nl.load_edit(edit)), int(port))
"""


@pytest.fixture(scope="module")
def edited(bert, tmp_path_factory):
    "A tiny classifier, texts of many lengths, an edit of two blocks of it and the file of it, answers plain and edited."
    clf, df = load_classifier(bert, device="cpu"), make_frame(25, 5)
    words = " ".join(df.text).split()
    texts = make_texts([" ".join(words[i:i+1+(7*i) % 40]) for i in range(len(df))], list(df.label))
    seen = everywhere(clf, texts.texts, ["residual.0", "mlp.1"])
    made = zip(seen.items(), ("mean", "zero"), strict=True)
    ivs = [clear(intervention(v[::9], str(s), edit, near=1, least=0), v) for (s, v), edit in made]
    known = ablate(clf, texts, ivs, progress=False)
    edit = nl_edit(clf, ivs[:1], path := tmp_path_factory.mktemp("edits")/"edit.safetensors")
    assert answers_apart(known.before, known.after[0], clf) > BEYOND
    return clf, texts.texts, edit, path, plain_answers(bert, texts.texts), known.after[0]


def nl_edit(model, ivs, path):
    from neuronlens import make_edit
    (edit := make_edit(model, ivs)).save(path)
    return edit


def plain_answers(folder, texts):
    "What transformers alone says of every text alone."
    model, tok = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad(): return np.concatenate([model(**tok(t, return_tensors="pt")).logits.softmax(-1) for t in texts])


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    "The folder of a tiny language model, prompts, a file of an edit, and what is written behind them, plain and edited."
    folder, tok = tmp_path_factory.mktemp("writer"), make_tokenizer(False)
    tiny_lm("gpt2", vocab_size=len(tok), pad_token_id=0, bos_token_id=None, eos_token_id=None).save_pretrained(folder)
    tok.save_pretrained(folder)
    model, tok = load_language_model(folder, device="cpu")
    words = " ".join(make_frame(20, 7).text).split()
    prompts = [" ".join(words[3*i:3*i+1+(5*i) % 17]) for i in range(30)]
    states = torch.cat([states_at(model, ("residual", 1), tok(p).input_ids) for p in prompts])
    iv = clear(fitted(states, "residual.1", "mean", near=1, least=0), states)
    edit = nl_edit(Classifier(model, tok, ("a", "b"), "last", 64), [iv], folder/"edit.safetensors")
    said = [generate(model, tok, prompts, ivs, 12) for ivs in ([], [iv])]
    assert sum(a != b for a, b in zip(*said, strict=True)) > 7
    return model, tok, prompts, edit, folder, said


def asking(api):
    "A client of an app in this process."
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=api), base_url="http://127.0.0.1", timeout=60)


async def ask_all(client, path, bodies):
    async with client: return [r.json() for r in await asyncio.gather(*(client.post(path, json=b) for b in bodies))]


async def told(client):
    async with client: return [(await client.get(f"/{way}")).json() for way in ("report", "health")]


def some_requests(texts, n, seed=0):
    "(texts by their numbers, with the edit) of requests of one text to five."
    rng = np.random.default_rng(seed)
    return [(rng.choice(len(texts), rng.integers(1, 6), replace=False).tolist(), bool(rng.integers(2))) for _ in range(n)]


def check_classes(said, asked, plain, after, clf):
    for answer, (rows, on) in zip(said, asked, strict=True):
        assert answer["edit"] == on and len(answer["answers"]) == len(rows)
        got = np.array([list(a["probabilities"].values()) for a in answer["answers"]])
        same_answers(got, (after if on else plain)[rows], clf)
        assert [a["label"] for a in answer["answers"]] == [clf.classes[c] for c in got.argmax(1)]


def left_alone(model, seconds=30):
    "Whether nothing is on a model once nobody holds the app; its thread has answered before it has ended its turn."
    end = time.monotonic()+seconds
    while touched(model) and time.monotonic() < end:
        gc.collect()
        time.sleep(.01)
    return not touched(model)


def test_mixed_requests(edited):
    "Edited and plain at the same time, in one process; the model is as before, and the report counts both."
    clf, texts, edit, _, plain, after = edited
    asked, api = some_requests(texts, 60), app(clf, edit)
    said = asyncio.run(ask_all(asking(api), "/classify", [dict(texts=[texts[i] for i in rows], edit=on) for rows, on in asked]))
    check_classes(said, asked, plain, after, clf)
    with torch.no_grad(): # The edit is there, and acts for nobody else
        same_answers(clf.model(**clf.tokenizer(texts[0], return_tensors="pt")).logits.softmax(-1), plain[:1], clf)
    report, health = asyncio.run(told(asking(api)))
    assert report["requests"]["classify"] == dict(plain=sum(not on for _, on in asked), edited=sum(on for _, on in asked))
    assert health["can"] == ["classify"] and health["waiting"] == 0 and report["gates"][0]["opened"] > 0
    del api
    assert left_alone(clf.model)


def test_mixed_writing(writer):
    "Prompts of many lengths, and one that is too long beside them, which fails alone."
    model, tok, prompts, edit, _, said = writer
    bodies = [dict(texts=[p], edit=on, tokens=12) for p in prompts for on in (False, True)]
    bodies.insert(7, dict(texts=[" ".join(["cat"]*60)], edit=False, tokens=12))
    got = asyncio.run(ask_all(asking(app((model, tok), edit)), "/generate", bodies))
    assert "the model reads 48" in got.pop(7)["error"]
    assert [g["answers"][0]["text"] for g in got] == [t for pair in zip(*said, strict=True) for t in pair]
    assert left_alone(model)


@contextmanager
def serving(*args):
    "A server in a process of its own."
    with socket.create_server(("127.0.0.1", 0)) as s: port = s.getsockname()[1]
    with subprocess.Popen([sys.executable, "-c", SCRIPT, *map(str, args), str(port)], cwd=TOP) as p:
        try:
            url, end = f"http://127.0.0.1:{port}", time.monotonic()+120
            while True:
                try: httpx.get(f"{url}/health").raise_for_status()
                except httpx.TransportError:
                    assert p.poll() is None and time.monotonic() < end
                    time.sleep(.1)
                else: break
            yield url
        finally: p.terminate()


def from_afar(url): return httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=None))


@pytest.mark.slow
def test_two_hundred_at_once(edited, bert):
    "A classifier in another process, its edit from a file; it answers to no other name than this machine's."
    clf, texts, _, path, plain, after = edited
    asked = some_requests(texts, N, 1)
    with serving("classify", bert, path) as url:
        said = asyncio.run(ask_all(from_afar(url), "/classify", [dict(texts=[texts[i] for i in r], edit=on) for r, on in asked]))
        assert httpx.get(f"{url}/health", headers={"host": "evil.example"}).status_code == 400
    check_classes(said, asked, plain, after, clf)


@pytest.mark.slow
def test_two_hundred_prompts_at_once(writer):
    "A language model in another process goes on from every prompt as it does here."
    _, _, prompts, _, folder, said = writer
    asked = [([i % len(prompts)], i % 3 == 0) for i in range(N)]
    bodies = [dict(texts=[prompts[i] for i in r], edit=on, tokens=12) for r, on in asked]
    with serving("generate", folder, folder/"edit.safetensors") as url: got = asyncio.run(ask_all(from_afar(url), "/generate", bodies))
    assert [g["answers"][0]["text"] for g in got] == [said[on][r[0]] for r, on in asked]


REFUSED = [ # Body, headers, status, part of the sentence
    (b"{", {}, 422, "the request is no JSON"), (b"["*1500, {}, 422, "the request is no JSON"),
    (b'{"texts": ["a"]}', {"content-type": "text/plain"}, 415, "content-type application/json, not 'text/plain'"),
    (b'{"texts": ["'+b"a"*3000+b'"]}', {}, 413, "is too long"), (b'{"texts": ["'+b"a"*99+b'"]}', {}, 422, "99 characters"),
    (b'{"texts": ["a", "b", "c", "d"]}', {}, 422, "4 texts are too many"), (b'{"texts": ["\\ud800"]}', {}, 422, "half a character"),
    (b'{"texts": []}', {}, 422, "a list with one text or more"), (b'{"texts": [" "]}', {}, 422, "text 1 is empty"),
    (b'{"texts": ["a"], "edit": 1}', {}, 422, "edit must be true or false"), (b'{"texts": ["a"], "tau": 1}', {}, 422, "no field 'tau'"),
    (b"null", {}, 422, "a JSON object"), (b'{"texts": ["a"], "edit": true}', {}, 422, "this server has no edit")]


@pytest.mark.parametrize("body, headers, status, sentence", REFUSED, ids=[r[3] for r in REFUSED])
def test_refused(edited, body, headers, status, sentence):
    "One sentence with its code, before anything is computed."
    api = app(edited[0], texts=3, characters=50)
    async def go():
        async with asking(api) as c: return await c.post("/classify", content=body, headers={"content-type": "application/json"} | headers)
    r = asyncio.run(go())
    assert r.status_code == status and sentence in r.json()["error"] and r.json()["code"].startswith("NL"), r.text


def test_busy(edited):
    "What waits is bounded: who comes then is told to come again."
    api = app(edited[0], waiting=0)
    r = asyncio.run(ask_all(asking(api), "/classify", [dict(texts=["a cat"])]))[0]
    assert "wait already" in r["error"]


def test_what_cannot_be_served(edited, writer):
    "A classifier does not write, a language model has no classes, an edit of another model is not taken, and other machines are kept out."
    clf, _, edit, *_ = edited
    (model, tok), ask = writer[:2], lambda api, path: asyncio.run(ask_all(asking(api), path, [dict(texts=["a cat"])]))[0]["error"]
    assert ask(app(clf), "/generate") == "this model cannot be asked to generate, only to classify"
    assert ask(app((model, tok)), "/classify") == "this model cannot be asked to classify, only to generate"
    with pytest.raises(InputError): app((model, tok), edit)
    with pytest.raises(InputError, match="other machines may reach '0.0.0.0'"): listen(app(clf), host="0.0.0.0")
    with socket.create_server(("127.0.0.1", 0)) as s, pytest.raises(InputError, match="cannot be had"): listen(app(clf), s.getsockname()[1])


def test_json_is_plain(edited):
    "Probabilities are numbers of JSON that say all digits, and add up to 1."
    clf, texts, edit, *_ = edited
    r = asyncio.run(ask_all(asking(app(clf, edit)), "/classify", [dict(texts=texts[:2])]))[0]
    assert json.loads(json.dumps(r)) == r and r["edit"] is True
    assert all(abs(sum(a["probabilities"].values())-1) < 1e-5 and a["cut"] is False for a in r["answers"])
