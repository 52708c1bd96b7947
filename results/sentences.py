"""Whose sentence says best what a range is for? `python results/sentences.py` (BBC News, which the package brings); a few minutes.

The posterior range of every class, on the neuron of the last block that separates it best. Explained on training texts by a formula, by
n-grams and by SmolLM2-135M, which is shown texts in range and just outside, and asked again while that helps; scored on test texts by
MiniLM (`explain_texts`). "SmolLM2, shuffled" is the same model shown texts that were put into the piles at random. Of each text the first
fifty words, about as much as the classifier reads. Writes results/sentences.csv.
"""
from pathlib import Path

import numpy as np
import pandas as pd

from neuronlens.arrays.ranges import fit_ranges
from neuronlens.arrays.saliency import rank
from neuronlens.edits.explaining import explain_texts, model_explainer, sentence_encoder
from neuronlens.models.model import load_language_model, smollm2
from neuronlens.models.training import example_texts
from neuronlens.records.recording import example_recordings

HERE, SEED = Path(__file__).resolve().parent, 0


def main():
    train, test = example_recordings()
    texts = [[" ".join(x.split()[:50]) for x in t.texts] for t in example_texts()]
    ranges, scores, encoder = fit_ranges(train, "posterior"), rank(train, "dprime").scores, sentence_encoder()
    asked, rows = model_explainer(*load_language_model(smollm2())), []
    for c, concept in enumerate(train.classes):
        j = int(scores[c].argmax())
        acts = [r.acts[:, j] for r in (train, test)]
        shuffled = [np.random.default_rng(SEED).permutation(acts[0]), acts[1]]
        ways = {"formula": ("formula", acts), "ngrams": ("ngrams", acts), "SmolLM2": (asked, acts), "SmolLM2, shuffled": (asked, shuffled)}
        for name, (by, own) in ways.items():
            e = explain_texts(texts, own, ranges.lo[c, j], ranges.hi[c, j], by=by, encoder=encoder, least=20, seed=SEED)
            rows.append(e.to_frame().assign(dataset="bbc", concept=concept, neuron=j, by=name, rounds=len(e.rounds)))
            print(concept, e, flush=True)
    table = pd.concat(rows, ignore_index=True)
    columns = ["dataset", "concept", "neuron", "by", "sentence", "area", "area_low", "area_high", "chance_area", "iou", "chance_iou",
               "rounds"]
    table[columns].round(4).to_csv(HERE/"sentences.csv", index=False)


if __name__ == "__main__": main()
