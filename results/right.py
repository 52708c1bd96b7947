"""What it matters to learn from texts that the model answers right: `NEURONLENS_DATA=folder python results/right.py imdb`, two minutes.

The preset `erase` and its partner, learned from all training texts of a part of `paper.py` and from those that are answered right, on
validation texts at the last block: target accuracy, disturbance, broken, the area under the curve of four fresh readers, and the R2 that
is kept. Printed alone. Numbers, such as `right.py sst2 5 20`: along how many directions partners are matched, instead of the usual.
"""
import sys

import numpy as np
from erasure import BINNED, HELD, HOW, READERS, applied, by_edit, through
from paper import PARTS, Part

from neuronlens.edits import partners
from neuronlens.edits.erasure import remains
from neuronlens.edits.sweeps import grid
from neuronlens.records.given import correct_only


def fared(p, learned_from):
    "A line for each edit."
    seen = p.rec["validation"]
    ivs = grid(learned_from, edit=list(HELD), fraction=1., site=p.site, **HOW | BINNED)
    for edit, own in by_edit([iv for iv in ivs if iv.condition == "range"]).items():
        fs = applied(own)
        cost = [through(p.clf, seen.acts, seen.labels, c, f) for c, f in enumerate(fs)]
        left = remains({edit: fs}, seen.acts, seen.labels, classes=seen.classes, floors=False).per_class()
        line = dict(edit=edit, texts=len(learned_from), directions=partners.DIRECTIONS)
        line |= {k: round(float(np.mean([r[k] for r in cost])), 4) for k in cost[0]}
        yield line | {k: round(float(left[k].mean()), 3) for k in (*(f"auc_{r}" for r in READERS), "kept_r2")}


def main(asked):
    along = [int(a) for a in asked if a.isdigit()] or [partners.DIRECTIONS]
    for name in [a for a in asked if not a.isdigit()] or PARTS:
        p = Part(name, sites=False)
        for which, rec in (("all", p.rec["train"]), ("answered right", correct_only(p.rec["train"]))):
            for partners.DIRECTIONS in along:
                for line in fared(p, rec): print(name, which, line, flush=True)


if __name__ == "__main__": main(sys.argv[1:])
