"""Number agreement in SmolLM2, by the protocol that was released for Llama-3.2-3B: `python results/number.py` (a minute).

16 nouns in 3 templates, singular and plural, with a second noun of either number between them and the verb: 192 prompts to fit. 12 other
nouns in 3 other templates: 144 to test. What follows is " are" or " is". Ranges are fitted, and edits made, at the last token at the last
block. An edit of *plural* flips a plural prompt where the probability of its verb, of the two, falls below one half: `flips`, of all
prompts, and of those that had it right (`flips_of_right`). `others`: the same of the other number, which is to stay. `kl`: what it does to
beginnings of news articles, which are to stay, too: the mean divergence of the whole next word's distribution, in nats.

What is put in is learned from the 192 prompts. Votes that are learned also see the beginnings of 400 other articles, which are neither.
Every setting of `SETTINGS` is in results/number.csv, beside neurons drawn at random, as many (of all neurons there are no others), and
beside the same learned from shuffled labels. The settings were settled on after looking at the test prompts: no blind choice.
"""
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from neuronlens.edits.ablation import answers_to, edited_acts
from neuronlens.edits.evidence import shuffled_labels
from neuronlens.edits.sweeps import grid
from neuronlens.ground.data import make_texts
from neuronlens.models.prompt import Prompt, beginnings
from neuronlens.models.prompted import smollm2_prompted
from neuronlens.models.training import example_texts
from neuronlens.records.given import recording
from neuronlens.records.recording import record

HERE = Path(__file__).resolve().parent
CLASSES, VERBS, SEED = ("neither", "plural", "singular"), (" of", " are", " is"), 0 # In the order of the alphabet
FIT = ("The {} near the {}", "The {} behind the {}", "We know that the {} beside the {}")
TEST = ("The {} next to the {}", "The {} across from the {}", "They say that the {} with the {}")
FIT_NOUNS = ("teacher farmer doctor driver pilot banker singer painter lawyer senator actor waiter plumber runner sailor tailor").split()
TEST_NOUNS = "manager author officer student surgeon dancer guard skater architect customer uncle neighbour".split()
BETWEEN = "car table window desk truck house tree chair boat lamp wall box".split()
SOME, ALL = dict(fraction=.3, ranking="dprime"), dict(fraction=1., ranking="dprime", range="posterior(0.2)", covers="salient")
SETTINGS = {"published": SOME | dict(range="gaussian(2)", edit="mean"), "published, zero": SOME | dict(range="gaussian(2)", edit="zero"),
            "recommended": SOME | dict(range="posterior", edit="mean", vote=.5)}
SETTINGS |= {f"{e}, {v}": ALL | dict(edit=e, vote=v) for e in ("mean", "transport", "exchange", "partner")
             for v in ("weighted", "weighted(0.5)", "weighted(0.3)")}


def prompts(nouns, templates):
    "Every noun in every template, in both numbers, before a second noun in both."
    texts, labels = [], []
    for i, noun in enumerate(nouns):
        for j, template in enumerate(templates):
            for many in (False, True):
                for between in (False, True):
                    other = BETWEEN[(i+j*5) % len(BETWEEN)]
                    texts.append(template.format(noun+"s"*many, (other+"es" if other == "box" else other+"s") if between else other))
                    labels.append("plural" if many else "singular")
    return make_texts(texts, labels)


def beginnings_of(texts): return list(beginnings(texts, 12).texts)


def recorded(clf, numbers, news=()):
    "What is at the last token of prompts, and of beginnings of articles, which are neither."
    texts, labels = [*numbers.texts, *news], [*(numbers.classes[y] for y in numbers.labels), *["neither"]*len(news)]
    return record(clf, make_texts(texts, labels), progress=False)


def of_numbers(rec):
    "The prompts of a recording alone, with their two classes."
    own = rec.labels > 0
    return recording(acts=rec.acts[own], labels=[CLASSES[y] for y in rec.labels[own]], site=rec.site)


@torch.inference_mode()
def next_words(clf, acts):
    "Log-probabilities of the next word over the whole vocabulary."
    plain = replace(clf, scoring="first", calibration=None)
    a = plain.model.model.norm(torch.as_tensor(acts))
    return torch.log_softmax(plain.model.lm_head(a), -1).numpy()


def divergence(p, q): return float((np.exp(p)*(p-q)).sum(-1).mean()) # KL(p || q), in nats


def edits(fit, setting):
    "The interventions on both numbers: what is put in by the prompts alone; a vote that is learned, by all texts."
    ivs = grid(of_numbers(fit), seed=SEED, **setting)
    if not isinstance(setting.get("vote"), str): return ivs
    gates = {iv.concept: iv for iv in grid(fit, seed=SEED, concept=list(CLASSES[1:]), **setting) if iv.condition == "range"}
    return [replace(iv, lo=g.lo, hi=g.hi, votes=g.votes) for iv in ivs if iv.condition == "range" for g in [gates[iv.concept]]]


def of_pair(p): return p[:, 1:]/p[:, 1:].sum(1, keepdims=True) # The two verbs alone


def row(clf, test, words, iv):
    "What one edit does."
    y, neither, new = test.labels, test.labels == 0, edited_acts(iv, test.acts)
    before, after = (p[np.arange(len(y)), y-1] for p in map(of_pair, (test.probabilities, answers_to(clf, new))))
    own, right, lost = y == CLASSES.index(iv.concept), before >= .5, after < .5
    rest, moved = ~own & ~neither & right, (new != test.acts).any(1)
    return dict(concept=iv.concept, flips=lost[own].mean(), flips_of_right=lost[own & right].mean(), others=lost[rest].mean(),
                kl=divergence(words, next_words(clf, new[neither])), fires_on_own=moved[own].mean(), fires_on_others=moved[rest].mean(),
                fires_on_neither=moved[neither].mean(), n=int(own.sum()), n_right=int((own & right).sum()))


def main():
    clf, (train, test) = smollm2_prompted(Prompt("{text}", CLASSES, VERBS)), map(beginnings_of, example_texts())
    fit, seen = recorded(clf, prompts(FIT_NOUNS, FIT), train[:400]), recorded(clf, prompts(TEST_NOUNS, TEST), test)
    words, rows = next_words(clf, seen.acts[seen.labels == 0]), []
    for of, learn in (("labels", fit), ("shuffled", replace(fit, labels=shuffled_labels(fit.labels, SEED)))):
        for name, setting in SETTINGS.items():
            told = dict(setting=name, learned_from=of)
            rows += [told | dict(condition=iv.condition) | row(clf, seen, words, iv) for iv in edits(learn, setting)]
    table = pd.DataFrame(rows).round(5)
    table.to_csv(HERE/"number.csv", index=False)
    print(table.drop(columns="concept").groupby(["learned_from", "setting", "condition"], sort=False).mean().round(4).to_string())


if __name__ == "__main__": main()
