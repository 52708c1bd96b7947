"""Modes of a range: planted ones are found, nulls are one. Sentences about a range: scored on texts that nobody looked at."""
import numpy as np
import pytest
import torch
from conftest import FILLER as SMALL
from conftest import WORDS, make_tokenizer
from sklearn.cluster import KMeans
from tiny import BEYOND

from neuronlens.arrays.formulas import Formula
from neuronlens.arrays.groups import dealt, groups_of, kmeans_of, silhouettes
from neuronlens.arrays.modes import contexts_of, find_modes, search_ngrams
from neuronlens.arrays.predicates import text_predicates
from neuronlens.edits.explaining import explain_texts, model_explainer, piles, range_distance
from neuronlens.ground.core import InputError
from neuronlens.ground.data import bbc_news, make_texts
from neuronlens.ground.rounding import agree, apart
from neuronlens.models.prompt import Prompt
from neuronlens.models.prompted import make_prompted
from neuronlens.records.recording import record
from neuronlens.records.untrained import random_copy, untrained_recording

SEA, SKY, FILLER = ["ship", "wave", "port", "sail"], ["cloud", "wing", "star", "rain"], [f"w{i}" for i in range(12)]


def said(rng, words, n, each=8): return [" ".join(rng.choice(words, each)) for _ in range(n)]


def test_groups_of_rows():
    "k-means comes as low as scikit-learn's; rows that are one, or two, are not parted further."
    rng = np.random.default_rng(0)
    for k in (2, 3, 5):
        x = rng.normal(size=(60, 4))
        x[:, 0] += 6*np.r_[np.arange(k), rng.integers(0, k, 60-k)]
        centres = kmeans_of(x, k, rng)
        cost = (np.linalg.norm(x[:, None]-centres, axis=2).min(1)**2).sum()
        assert cost <= KMeans(k, n_init=4, random_state=0).fit(x).inertia_*1.02
    assert silhouettes(np.ones((9, 2)), 6, 0)[0].tolist() == [-1]*5 # One different row: nothing to part
    assert silhouettes(np.repeat(np.eye(2), 4, 0), 4, 0)[0].tolist() == [1, -1, -1]


@pytest.mark.slow
def test_articles_of_words_dealt_at_random_are_one_kind():
    "Seldom otherwise: of 24 collections of news one was split; by a chance of one in 20 each, five or more would be seen in 6 of 1,000."
    texts, split = [" ".join(t.split()[:50]) for t in bbc_news().texts], 0
    for seed in range(24):
        rng = np.random.default_rng(100+seed)
        own = [t for t, fires in zip(dealt(texts, rng), rng.random(len(texts)) < .1, strict=True) if fires]
        split += len(groups_of(own, None, 6, 5, 9, seed)[0]) > 1
    assert split <= 4


def planted(seed, n=60):
    rng = np.random.default_rng(seed)
    def some(n): return said(rng, 2*SEA+FILLER, n)+said(rng, 2*SKY+FILLER, n)+said(rng, FILLER, 2*n)
    return (some(n), some(n)), (np.arange(4*n) < 2*n,)*2


def test_planted_modes_are_found():
    "Two kinds in one range are two modes, each with its own words; a range for each kind has one; the order of texts changes nothing."
    texts, fires = planted(1)
    modes = find_modes(texts, fires, deals=5, draws=50)
    words = [{name.strip("'") for _, name in f.steps} for f in modes.ngrams.formulas]
    assert "\\toprule" in modes.to_latex()
    assert len(modes) == 2 and sorted(({*SEA} >= w, {*SKY} >= w) for w in words) == [(False, True), (True, False)]
    assert modes.trained.tolist() == [60, 60] or abs(modes.trained-60).max() < 8
    assert (modes.formulas.value[:, 0] > modes.formulas.chance[:, 0]+.2).all()
    sea = {*SEA} >= words[0]
    assert all(bool({*t.split()} & {*SEA}) == sea or bool({*t.split()} & {*SKY}) != sea for t in modes.typical[0])
    for a, b in ((0, 60), (60, 120)):
        one = (np.arange(240) >= a) & (np.arange(240) < b)
        assert len(find_modes(texts, (one, one), deals=5, draws=50)) == 1
    at = [np.random.default_rng(s).permutation(240) for s in (2, 3)]
    turned = [tuple(np.array(x)[o].tolist() for x, o in zip(both, at, strict=True)) for both in (texts, fires)]
    other = find_modes(*turned, deals=5, draws=50)
    kinds = [{name.strip("'") for _, name in f.steps} <= {*SEA} for f in other.ngrams.formulas]
    assert len(other) == 2 and sorted(kinds) == [False, True] and abs(np.sort(other.trained)-np.sort(modes.trained)).max() <= 2


def test_a_null_is_one_mode():
    "Words at random are one mode, but for a few by chance; dealing the words keeps them and the lengths."
    found = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        found.append(len(groups_of(said(rng, FILLER+2*SEA, 60), None, 4, 5, 6, seed)[0]))
    assert np.mean(np.array(found) == 1) >= .75
    texts = ["a b c", "d", "e f"]
    new = dealt(texts, np.random.default_rng(0))
    assert [len(t.split()) for t in new] == [3, 1, 2] and sorted(" ".join(new)) == sorted(" ".join(texts))


def test_any_function_of_texts_may_place_them():
    "An encoder of one's own decides the groups; what it may not return is refused."
    texts, fires = planted(4, 40)
    def length_of_words(some): return np.array([[t.count("w"), 9.] for t in some])
    def kind(some): return np.array([[bool({*t.split()} & {*SEA}), bool({*t.split()} & {*SKY}), .5] for t in some], float)
    assert len(find_modes(texts, fires, embed=kind, deals=4, draws=50, most=3)) >= 1
    for wrong, what in ((lambda t: np.zeros(3), "one row of numbers"), (lambda t: np.full((len(t), 2), np.nan), "nan")):
        with pytest.raises(InputError, match=what): find_modes(texts, fires, embed=wrong, deals=2)
    modes = find_modes(texts, fires, embed=length_of_words, deals=4, draws=50, most=2)
    assert modes.centres.shape[1] == 2


def test_windows_are_the_tokens_around():
    "All tokens in range and some others, as they are read; tokens of a text are drawn together."
    tokens = [["A", "Ġcup", "board", "Ġis"], ["Ġthe", "Ġend"]]
    c = contexts_of(tokens, [False, True, False, False, False, True], 1, 0)
    assert c.texts == ["A cup", "A cupboard", "cupboard is", "board is", "the end", "the end"]
    assert c.groups.tolist() == [0, 0, 0, 0, 1, 1] and c.inside.sum() == 2
    assert contexts_of(tokens, np.zeros(6), 0, 0).texts == ["A", "cup", "board", "is", "the", "end"]
    with pytest.raises(InputError, match="masks must be"): contexts_of(tokens, [True], 1, 0)


def test_ngrams_are_the_furthest_more_common():
    "By hand: what all texts of the mask have, and no other, comes first; chance is beside."
    texts = ["sun and sea", "sun and sand", "the rain", "the rain and wind", "a rain", "sun and snow"]
    p = text_predicates(texts, least=1)
    mask = np.array(["sun" in t for t in texts])
    found = search_ngrams(p, mask, most=2)
    assert found.formulas[0] == Formula((("", "'sun and'"), ("OR", "'sun'"))) and found.iou[0] == 1 and found.chance_iou.shape == (1, 1)


def counts(texts):
    "Of every word of the tests, how often a text says it: an encoder by hand."
    known = [*SEA, *SKY, *FILLER]
    return np.array([[t.count(w) for w in known] for t in texts])+1e-6


def of_the_sea(seed, n=80):
    "Texts and activations of a neuron that is above 3 on texts of the sea."
    rng = np.random.default_rng(seed)
    return said(rng, 2*SEA+FILLER, n)+said(rng, 2*SKY+FILLER, n), np.r_[4+rng.random(n), rng.random(n)]


def test_piles_by_distance():
    "Nearest first, whatever the number of intervals; an explainer sees no text twice, and training texts alone."
    assert range_distance([0, 2, 3.5, 7], [1, 3, np.inf], [2, 4, -np.inf]).tolist() == [1, 0, 0, 3]
    texts, far = [f"t{i}" for i in range(30)], np.r_[np.zeros(10), np.arange(1, 21)]
    p = piles(texts, far, 4, np.random.default_rng(0), ([3], [29]))
    assert p.inside[0] == "t3" and p.just_outside == ["t29", "t10", "t11", "t12"] and p.far_outside == ["t28", "t27", "t26", "t25"]
    (a, x), (b, y), seen = of_the_sea(0), of_the_sea(1), []
    def spy(*shown):
        seen.append(shown)
        return "ship"
    explain_texts((a, b), (x, y), 3, np.inf, by=spy, encoder=counts, draws=50)
    assert len(seen) == 2 and all({*sum(s, [])} <= {*a} for s in seen)


def test_explanations_are_worth_what_they_are():
    "The right word tells the range from others; a wrong one is worth less than chance, and a range at random has nothing to tell."
    (a, x), (b, y) = of_the_sea(2), of_the_sea(3)
    def by(word): return explain_texts((a, b), (x, y), 3, np.inf, by=lambda *shown: word, encoder=counts, draws=100)
    right, wrong = by("ship wave port sail"), by("cloud wing")
    assert "ship wave port sail" in right.to_latex()
    assert right.area > .95 and right.low > right.chance > .5 and wrong.area < .2
    for how in ("formula", "ngrams"):
        e = explain_texts((a, b), (x, y), 3, np.inf, by=how, encoder=counts, draws=100)
        assert e.formula.value[0, 0] > e.formula.chance[0, 0]+.2 and e.area > e.chance and "chance" in repr(e) and "IoU" in e._repr_html_()
    coins = [np.random.default_rng(s).random(160) for s in (0, 1)]
    null = explain_texts((a, b), coins, .6, 1, encoder=counts, draws=100)
    assert null.low < null.chance and abs(null.formula.value[0, 0]-null.formula.chance[0, 0]) < .2


def test_refinement_goes_on_while_it_helps():
    "The next sentence is asked for only if the last was better than the one before; the best is kept."
    (a, x), (b, y) = of_the_sea(4), of_the_sea(5)
    for words, asked, best in ((["w1", "ship", "ship wave port sail", "cloud"], 4, 2), (["ship", "cloud", "ship wave"], 2, 0)):
        told = iter(words)
        e = explain_texts((a, b), (x, y), 3, np.inf, by=lambda *shown, told=told: next(told), rounds=6, encoder=counts, draws=50)
        assert len(e.rounds) == asked and e.sentence == words[best]


def test_a_language_model_explains():
    "A tiny random model: its sentence is what `generate` writes after the prompt, and is worth what chance is."
    from test_language import tiny_lm

    from neuronlens.edits.language import generate
    tok = make_tokenizer(False)
    model = tiny_lm("gpt2", vocab_size=len(tok), n_positions=512, max_position_embeddings=512)
    tok.model_max_length = 512
    ask = model_explainer(model, tok, prompt="the {inside} and {far_outside} is", words=3, new_tokens=4)
    said_by_it = ask(["cat dog cow bird", "fish"], ["bread"], ["saw drill"])
    assert said_by_it == (generate(model, tok, ["the - cat dog cow\n- fish and - saw drill is"], new_tokens=4)[0].strip() or "(nothing)")
    rng = np.random.default_rng(6)
    texts = [[" ".join(rng.choice(WORDS["animal"]+SMALL, 5)) for _ in range(60)] for _ in range(2)]
    def count(some): return np.array([[t.count(c) for c in "abcdefghijklmnop"] for t in some])+1e-6
    e = explain_texts(texts, [rng.random(60), rng.random(60)], .6, 1, by=ask, encoder=count, rounds=1, draws=50, most=3)
    assert e.by == "model_says" and e.low < e.chance and len(e.rounds) == 1


def test_an_untrained_copy_reads_its_own_shots():
    "Of a prompted model whose shots were computed before, too; nothing is drawn from the numbers of others."
    from test_prompt import byte_tokenizer, language_model

    prompt = Prompt("{text}\n", ("a", "b", "c"), ("cat", "rice", "nail"), (("a dog", 0), ("bread", 1)))
    how = dict(scoring="first", source="tiny")
    clf = make_prompted(language_model("llama"), byte_tokenizer(), prompt, sha256="w", **how)
    texts, state = make_texts(["a cat", "some soup", "red nail", "b", "c", "d"], [*"abcabc"]), torch.random.get_rng_state()
    copy = random_copy(clf, 1)
    assert clf.past and (torch.random.get_rng_state() == state).all() and (copy.sha256, copy.weights, copy.state) == ("", "", "")
    got, want = (record(c, texts, "residual.1", answers=False, progress=False)
                 for c in (copy, make_prompted(copy.model, byte_tokenizer(), prompt, **how)))
    agree(got.acts, want.acts, copy.model)
    assert apart(got.acts, record(clf, texts, "residual.1", answers=False, progress=False).acts, copy.model) > BEYOND
    learned = record(clf, texts, "residual.1", progress=False)
    null = untrained_recording(clf, texts, learned, seed=1, progress=False)
    assert (np.sort(null.acts, 0) == np.sort(learned.acts, 0)).all() and (np.argsort(null.acts, 0) == np.argsort(got.acts, 0)).all()
    with pytest.raises(InputError, match="only a model has an untrained copy, got Recording"): untrained_recording(learned, texts, learned)
