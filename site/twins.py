"""Twins of the tutorials, to try again without help: headings, code without outputs, exercises with their question and no solution.

`python site/twins.py folder [tutorials]` writes them; `make lab` does, into `build/again`, and the site offers them for download. They
are made of the pages whenever somebody wants them: none is stored, so none is out of date. A twin in which someone has worked stays.
"""
import hashlib
import json
import re
import sys
from pathlib import Path

PAGES = Path(__file__).resolve().parents[1]/'nbs/tutorials'


def bare(text):
    "The headings of a cell of prose; below that of an exercise also its question, without links to pages that are not there."
    kept,asked = [],False
    for line in re.sub(r'<details>.*?</details>', '', text, flags=re.S).split('\n'):
        if line.startswith('#'): asked = line.startswith('### Exercise')
        if asked or line.startswith('#'): kept.append(re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', line))
    return '\n'.join(kept).strip()


def mark(cells): return hashlib.sha256(json.dumps([[c['id'], ''.join(c['source'])] for c in cells]).encode()).hexdigest()[:16]


def twin(nb):
    "A notebook without prose, outputs and solutions; its metadata tells whether someone has worked in it."
    cells = []
    for c in nb['cells']:
        text = ''.join(c['source'])
        if c['cell_type'] == 'code': cells.append(c | dict(outputs=[], execution_count=None))
        elif text := bare(text): cells.append(c | dict(source=text.splitlines(keepends=True)))
    return nb | dict(cells=cells, metadata=nb['metadata'] | dict(twin=mark(cells)))


def worked_in(path):
    "Whether a twin is no longer what was written."
    nb = json.loads(path.read_text(encoding='utf-8'))
    return nb['metadata'].get('twin') != mark(nb['cells'])


def write_twins(folder, pages=PAGES):
    "The twin of every tutorial, under its name in `folder`."
    (folder := Path(folder)).mkdir(parents=True, exist_ok=True)
    for p in sorted(Path(pages).glob('*.ipynb')):
        if (to := folder/p.name).exists() and worked_in(to): continue
        made = twin(json.loads(p.read_text(encoding='utf-8')))
        to.write_text(json.dumps(made, indent=1, ensure_ascii=False, sort_keys=True)+'\n', encoding='utf-8')


if __name__ == '__main__': write_twins(*sys.argv[1:3] or ['build/again'])
