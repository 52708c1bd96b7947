"""Bits of a cache are flipped at random, one at a time: nothing that is damaged is used, and nothing is made again in silence.

`python tests/flips_cache.py 500 7` flips five hundred with the seed 7.
"""
import os
import sys
import tempfile
import warnings
from pathlib import Path
from unittest.mock import patch

import numpy as np
from conftest import make_folder, make_frame


def texts(seed):
    from neuronlens.ground.data import make_texts
    df = make_frame(6, seed)
    return make_texts(df.text.tolist(), df.label.tolist(), source=f'words{seed}.csv')


def numbers(clf):
    "All that a classifier is."
    from neuronlens.records.provenance import tokenizer_hash
    return {k: v.numpy() for k, v in clf.model.state_dict().items()} | dict(
        about=[clf.classes, clf.max_length, clf.readout, clf.sha256, tokenizer_hash(clf.tokenizer)])


def held(rec):
    "All that a recording is."
    return rec.activations | dict(labels=rec.labels, answers=rec.probabilities, about=rec.provenance)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) if isinstance(a[k], np.ndarray) else a[k] == b[k] for k in a)


def flips(n, seed, home, encoder):
    "Flip `n` bits in a cache in `home`, one at a time, and ask for what it holds; what was wrong about it, by file and bit."
    from neuronlens.ground.cache import cache_folder
    from neuronlens.models.training import fine_tune
    from neuronlens.records import recording, shards
    rng, wrong = np.random.default_rng(seed), []
    def tuned(): return fine_tune(encoder, texts(1), epochs=1, max_length=16, device='cpu', progress=False)
    with patch.dict(os.environ, NEURONLENS_CACHE=str(home)), patch.object(shards, 'SHARD_TEXTS', 8):
        clf = tuned()
        def seen(i): return held(recording.record(clf, texts(i), ['residual.1', 'mlp.0'], progress=False, cache=True))
        asks = {'models': [lambda: numbers(tuned())], 'recordings': [lambda: seen(1), lambda: seen(2)]}
        known = {kind: [ask() for ask in some] for kind, some in asks.items()}
        files = {p: p.read_bytes() for kind in asks for p in sorted(cache_folder(kind).rglob('*')) if p.is_file()}
        for _ in range(n):
            path = [*files][rng.integers(len(files))]
            data, bit = bytearray(files[path]), int(rng.integers(8*len(files[path])))
            data[bit//8] ^= 1 << bit % 8
            path.write_bytes(data)
            kind = path.relative_to(home).parts[0]
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter('always')
                try: now = [ask() for ask in asks[kind]]
                except Exception as e: now, said = [], [e]
            what, told = f'{path.relative_to(home)}, bit {bit}', [str(w.message) for w in said] if now else []
            if len(now) != len(known[kind]): wrong.append(f'{what}: {said[0]!r}')
            elif not all(map(same, now, known[kind])): wrong.append(f'{what}: other numbers')
            elif not any(str(path.parent) in t and 'made again' in t for t in told): wrong.append(f'{what}: in silence')
            elif path.read_bytes() != files[path]: wrong.append(f'{what}: not as it was')
            for p, whole in files.items():
                if not p.is_file() or p.read_bytes() != whole: p.write_bytes(whole)
    return wrong


def main():
    import torch
    from transformers import AutoModel, AutoTokenizer

    from neuronlens.models.trials import quiet
    n, seed = (int(a) for a in [*sys.argv[1:], *('500', '0')[len(sys.argv)-1:]])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bert, encoder = Path(folder, 'bert'), Path(folder, 'encoder')
        make_folder(bert, 'bert', make_frame(20, 1))
        with quiet(): AutoModel.from_pretrained(bert).save_pretrained(encoder)
        AutoTokenizer.from_pretrained(bert).save_pretrained(encoder)
        wrong = flips(n, seed, Path(folder, 'cache'), encoder)
    print(*wrong, f'{n} bits flipped, {len(wrong)} went wrong', sep='\n')
    return min(len(wrong), 1)


if __name__ == '__main__': sys.exit(main())
