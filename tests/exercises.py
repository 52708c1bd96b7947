"""Exercises of the tutorials: the place of an answer, its check and its folded solution; and the page with the solutions filled in.

An exercise is four cells: a question under `### Exercise n: ...`, a cell that ends in `answer_n = ...` (three dots, to be replaced),
a cell that defines `check_n`, which says in a sentence what is off, and prints what it says of the answer, and a fold whose first
block of code is a solution.
"""
import re
from types import SimpleNamespace

FOLD = r'<details>\n<summary>Solution</summary>\n\n```python\n(.+?)```\n(.*?)</details>'
WRONG = ('nonsense', None, [], -1, {'a': 1}) # Answers to nothing


def source(cell): return cell['source'] if isinstance(cell['source'], str) else ''.join(cell['source'])


def prose(text): return re.sub(r'```.*?```', '', re.sub(r'<details>.*?</details>', '', text, flags=re.S), flags=re.S)


def exercises(cells):
    "The exercises of a page, in order, each with its number, its first cell and its solution; what is not whole is named."
    found = []
    for i,c in enumerate(cells):
        for n in re.findall(r'^### Exercise (\d+): \S', source(c), re.M) if c['cell_type'] == 'markdown' else ():
            place,check,fold = ([*map(source, cells[i+1:i+4]), '', '', ''])[:3]
            assert place.rstrip().endswith(f'answer_{n} = ...'), f'exercise {n}: no place for the answer'
            asked = check.rstrip().endswith(f'print(check_{n}(answer_{n}))')
            assert asked and f'\ndef check_{n}(' in f'\n{check}', f'exercise {n}: no check'
            m = re.match(FOLD, fold, re.S)
            assert m and m[2].strip(), f'exercise {n}: no solution in a fold, or nothing said about it'
            found.append(SimpleNamespace(n=int(n), at=i, solution=m[1], question=source(c)))
    return found


def answered(nb):
    "A copy of a page in which each exercise is also answered: nonsense is told from an answer, the folded solution is right."
    import nbformat
    nb = nbformat.from_dict(nb)
    for e in reversed(exercises(nb.cells)):
        said = f'said = check_{e.n}(answer_{e.n})\nassert said.startswith("Right"), said\nsaid'
        wrong = f'for x in {WRONG!r}:\n    said = check_{e.n}(x)\n    assert said and said[:5] not in ("Right", "Not a"), (x, said)'
        same = f'assert answer_{e.n} is ... and check_{e.n}(answer_{e.n}).startswith("Not answered")'
        nb.cells[e.at+4:e.at+4] = [nbformat.v4.new_code_cell(s) for s in (f'{same}\n{wrong}', e.solution, said)]
    return nb
