"""The tests tested: does a wrong formula pass? One change at a time, in a copy of the tree.

`python tests/mutants.py --n 60 --seed 0 [--rooms saliency,ranges]` draws so many changes of the functions of the array and
edit rooms (operators, comparisons, constants, max and min, sums and means, axes, signs, `not`), puts each into the module
and into the cell of its page, runs the page and the tests of that room, and lists the changes that nothing noticed. The
list is written to build/mutants.json; the last line says which share was caught.
"""
import argparse
import ast
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import neuronlens

TOP = Path(__file__).resolve().parents[1]
ROOMS = { # Room: its page, and the files of tests that are about it
    'setting': ('06_setting', 'own effects frozen'),
    'statistics': ('15_statistics', 'statistics laws'), 'quantiles': ('16_quantiles', 'statistics'),
    'testing': ('17_testing', 'testing'), 'probing': ('30_probing', 'probing'),
    'sparsity': ('31_sparsity', 'sparsity saliency'), 'separation': ('33_separation', 'separation laws'),
    'density': ('34_density', 'regions ranges'), 'regions': ('35_regions', 'regions ranges'), 'bins': ('35_bins', 'regions ranges'),
    'firing': ('37_firing', 'firing'), 'matching': ('41_matching', 'matching laws'),
    'choice': ('47_choice', 'choice'),
    'saliency': ('32_saliency', 'saliency golden laws'),
    'distributions': ('34_distributions', 'distributions laws'), 'ranges': ('36_ranges', 'ranges golden laws'),
    'overlap': ('38_overlap', 'overlap laws'), 'attribution': ('39_attribution', 'attribution'), 'edit': ('39_edit', 'edits laws'),
    'planning': ('40_planning', 'edits sweeps'), 'ablation': ('40_ablation', 'edits laws'),
    'profile': ('39_profile', 'plots widgets'), 'files': ('01_files', 'files saved'),
    'effects': ('42_effects', 'effects evidence sweeps'), 'evidence': ('43_evidence', 'evidence'), 'sweeps': ('44_sweeps', 'sweeps edits'),
    'erasure': ('45_erasure', 'erasure laws')}
SWAPS = {ast.Add: '-', ast.Sub: '+', ast.Mult: '/', ast.Div: '*', ast.Pow: '*', ast.FloorDiv: '/', ast.Mod: '//', ast.BitAnd: '|',
         ast.BitOr: '&'}
FLIPS = {ast.Lt: ('<=', '>'), ast.LtE: ('<', '>='), ast.Gt: ('>=', '<'), ast.GtE: ('>', '<='), ast.Eq: ('!=',), ast.NotEq: ('==',),
         ast.Is: ('is not',), ast.IsNot: ('is',)}
NAMES = {'max': 'min', 'min': 'max', 'argmax': 'argmin', 'argmin': 'argmax', 'maximum': 'minimum', 'minimum': 'maximum', 'any': 'all',
         'all': 'any', 'sum': 'mean', 'mean': 'sum', 'floor': 'ceil', 'ceil': 'floor', 'std': 'var', 'cumsum': 'cumprod', 'abs': ''}
SHOWN = {'__repr__', '_repr_html_', 'plot', 'estimate', 'say_estimate', '_bar', '_memory', '_seconds', '_few_texts',
         '_share_of_pass'} # They show or guess; no result hangs on them


def place(room):
    "Where the module of a room is, below the top."
    return Path(*neuronlens._AT[room].split('.')).with_suffix('.py')


class Changes(ast.NodeVisitor):
    "(place in the text, what stands there, what shall, function) of every change of a module."
    def __init__(self, text):
        self.text, self.lines, self.found, self.where = text, [0], [], []
        for l in text.encode().splitlines(keepends=True): self.lines.append(self.lines[-1]+len(l))
        self.visit(ast.parse(text))
    def at(self, line, col): return self.lines[line-1]+col
    def span(self, node): return self.at(node.lineno, node.col_offset), self.at(node.end_lineno, node.end_col_offset)
    def add(self, a, b, new):
        if self.where: self.found.append((a, b, new, '.'.join(self.where)))
    def between(self, left, right, old, new):
        "The operator between two operands."
        a, b = self.span(left)[1], self.span(right)[0]
        part = self.text.encode()[a:b]
        for m in re.finditer(re.escape(old.encode()), part):
            if not part[:m.start()].strip(b' \n\\()'): return self.add(a+m.start(), a+m.end(), new)
    def visit_FunctionDef(self, node):
        if node.name in SHOWN: return
        self.where.append(node.name)
        for n in [*node.body, *filter(None, [*node.args.defaults, *node.args.kw_defaults])]: self.visit(n)
        self.where.pop()
    def visit_ClassDef(self, node):
        for n in node.body: self.visit(n)
    def visit_Raise(self, node): pass
    def visit_JoinedStr(self, node): pass
    def visit_AnnAssign(self, node): self.where and node.value and self.visit(node.value)
    def visit_Assign(self, node): self.visit(node.value)
    def visit_BinOp(self, node):
        ops = {ast.Add: '+', ast.Sub: '-', ast.Mult: '*', ast.Div: '/', ast.Pow: '**', ast.FloorDiv: '//', ast.Mod: '%', ast.BitAnd: '&',
               ast.BitOr: '|'}
        if type(node.op) in SWAPS: self.between(node.left, node.right, ops[type(node.op)], SWAPS[type(node.op)])
        self.generic_visit(node)
    def visit_Compare(self, node):
        signs = {ast.Lt: '<', ast.LtE: '<=', ast.Gt: '>', ast.GtE: '>=', ast.Eq: '==', ast.NotEq: '!=', ast.Is: 'is', ast.IsNot: 'is not'}
        for left, op, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            for new in FLIPS.get(type(op), ()): self.between(left, right, signs[type(op)], new)
        self.generic_visit(node)
    def visit_UnaryOp(self, node):
        a, b = self.span(node)[0], self.span(node.operand)[0]
        if not isinstance(node.op, ast.UAdd) and not isinstance(node.operand, ast.Constant): self.add(a, b, '')
        self.generic_visit(node)
    def visit_Constant(self, node):
        v = node.value
        if isinstance(v, bool): self.add(*self.span(node), str(not v))
        elif isinstance(v, int): self.add(*self.span(node), str(v+1) if v else '1')
        elif isinstance(v, float): self.add(*self.span(node), repr(2*v) if v else '1.')
    def visit_Call(self, node):
        f, b = node.func, self.span(node.func)[1]
        if isinstance(f, ast.Name) and f.id in NAMES: self.add(b-len(f.id), b, NAMES[f.id])
        if isinstance(f, ast.Attribute) and NAMES.get(f.attr): self.add(b-len(f.attr), b, NAMES[f.attr])
        self.generic_visit(node)


def changes(room):
    "All changes of a room that still parse, in the order of the text."
    text = (TOP/place(room)).read_text(encoding='utf-8')
    raw, out = text.encode(), []
    for a, b, new, fn in Changes(text).found:
        changed = raw[:a]+new.encode()+raw[b:]
        with suppress(SyntaxError):
            ast.parse(changed)
            out.append(dict(room=room, function=fn, line=raw[:a].count(b'\n')+1, old=raw[a:b].decode(), new=new, at=a, end=b))
    return out


def mutated(m):
    "Module and page of a change: the same lines are changed in both."
    text = (TOP/place(m['room'])).read_bytes()
    page = json.loads((TOP/f"nbs/{ROOMS[m['room']][0]}.ipynb").read_text(encoding='utf-8'))
    new = text[:m['at']]+m['new'].encode()+text[m['end']:]
    before, after = text.decode().split('\n'), new.decode().split('\n')
    start = max(i for i in range(m['line']-1) if before[i].startswith('# %% '))
    cell = next(c for c in page['cells'] if c['id'] == before[start].rpartition('#')[2].strip())
    lines = ''.join(cell['source']).split('\n')
    skip = next(i for i, l in enumerate(lines) if not l.startswith('#|'))
    k = m['line']-1-start-1+skip
    assert lines[k] == before[m['line']-1], (lines[k], before[m['line']-1])
    lines[k:k+1] = after[m['line']-1:m['line']-1+1+len(after)-len(before)]
    cell['source'] = '\n'.join(lines)
    return new, page


def run_page(page, tree):
    "The page as a script: its code cells in their order."
    space = dict(__name__='__main__', get_ipython=None)
    os.chdir(tree/'nbs')
    for c in page['cells']:
        source = ''.join(c['source'])
        if c['cell_type'] == 'code' and not re.search(r'^#\| *eval: *false', source, re.M): exec(compile(source, c['id'], 'exec'), space)


def attempt(m, tree, tests):
    "What notices a change, in a process of its own: 'page', a file of tests, or nothing."
    import pytest
    module, page = mutated(m)
    (tree/place(m['room'])).write_bytes(module)
    sys.path[:0] = [str(tree), str(tree/'tests')]
    try: run_page(page, tree)
    except BaseException as e: return f'page ({type(e).__name__})'
    os.chdir(tree)
    for t in tests:
        if pytest.main(['-q', '-x', '-p', 'no:cacheprovider', '-m', 'not slow', f'tests/test_{t}.py']): return f'test_{t}.py'
    return ''


def in_child(fn, limit, log):
    "The answer of a function in a forked process, or 'time' where it takes too long; what was loaded need not be loaded again."
    r, w = os.pipe()
    if not (pid := os.fork()):
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.setsid()
        for f in (1, 2): os.dup2(out, f)
        try: said = fn()
        except BaseException as e: said = f'broken ({type(e).__name__}: {e})'
        os.write(w, said.encode()[:1000])
        os._exit(0)
    os.close(w)
    end = time.time()+limit
    while time.time() < end and os.waitpid(pid, os.WNOHANG)[0] == 0: time.sleep(.1)
    if time.time() >= end:
        with suppress(ProcessLookupError): os.killpg(pid, signal.SIGKILL)
        with suppress(ChildProcessError): os.waitpid(pid, 0)
        return 'time'
    with os.fdopen(r) as f: return f.read()


def copied(folder):
    "What pages and tests need, apart from the checkout."
    for part in ('neuronlens', 'tests', 'results'): shutil.copytree(TOP/part, folder/part, ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copytree(TOP/'nbs', folder/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    for f in ('pyproject.toml', 'settings.ini', 'README.md'): shutil.copy(TOP/f, folder)
    return folder


def sample(n, seed, rooms):
    "So many changes, drawn from all those of the rooms."
    every = [m for r in rooms for m in changes(r)]
    return sorted(random.Random(seed).sample(every, min(n, len(every))), key=lambda m: (list(ROOMS).index(m['room']), m['at'])), len(every)


def survivors(ms, limit, tell=print):
    "The changes with what noticed them."
    for name in ('hypothesis', 'pandas', 'pytest', 'scipy.stats', 'sklearn.linear_model', 'torch', 'transformers'): import_module(name)
    sys.modules['torch'].set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        tree = copied(Path(work)/'tree')
        def noticed(m):
            said = in_child(lambda: attempt(m, tree, ROOMS[m['room']][1].split()), limit, str(Path(work)/'log'))
            shutil.copy(TOP/place(m['room']), tree/place(m['room']))
            return said
        for room in dict.fromkeys(m['room'] for m in ms): # What fails as it is would notice everything
            if what := noticed(changes(room)[0] | dict(new=changes(room)[0]['old'])):
                raise SystemExit(f"{what} fails for {room} without any change:\n{(Path(work)/'log').read_text()[-2000:]}")
        for i, m in enumerate(ms, 1):
            start = time.time()
            m['caught'] = noticed(m)
            tell(f"{i}/{len(ms)} {said(m)}: {m['caught'] or 'SURVIVED'} ({time.time()-start:.0f} s)", flush=True)
    return ms


def said(m): return f"{place(m['room'])}:{m['line']} {m['function']}: {m['old']!r} -> {m['new']!r}"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--n', type=int, default=60)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--rooms', default=','.join(ROOMS), help='some of '+', '.join(ROOMS))
    p.add_argument('--limit', type=int, default=600, help='seconds for a change')
    p.add_argument('--least', type=float, default=0., help='fail where a smaller share is caught')
    args = p.parse_args()
    ms, of = sample(args.n, args.seed, args.rooms.split(','))
    ms = survivors(ms, args.limit)
    (TOP/'build').mkdir(exist_ok=True)
    (TOP/'build/mutants.json').write_text(json.dumps(ms, indent=1, ensure_ascii=False), encoding='utf-8')
    left = [m for m in ms if not m['caught']]
    for m in left: print('survived:', said(m))
    caught = len(ms)-len(left)
    print(f'{caught} of {len(ms)} changes were caught ({caught/max(1, len(ms)):.0%}; drawn from {of} with seed {args.seed})')
    raise SystemExit(caught < args.least*len(ms))


if __name__ == '__main__': main()
