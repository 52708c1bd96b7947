"""What `help`, `?` and editors say below the first line of a docstring, as numpydoc has it, from comments at parameters and fields.

nbdev keeps what a parameter is in a comment beside it, which none of them shows. The modules stay as nbdev exports them: what the
comments say stands in `neuronlens/help.json`, by room and name, and the package adds it to the docstrings when a room is loaded.
`tests/stub.py` writes the file, and for the names of `nl` the same into the stub (`make prepare` does).
"""
import ast
import importlib.util
import re
from functools import cache
from pathlib import Path
from textwrap import wrap

from refusals import Speech, shortened

TOP = Path(__file__).resolve().parents[1]
ROOM = TOP/'neuronlens'
WIDTH = 132


@cache
def site():
    "`site/build.py`, which reads the same comments for the tables of the documentation; `site` itself is a module of Python."
    spec = importlib.util.spec_from_file_location('build', TOP/'site/build.py')
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


def _section(name, rows):
    "One section: a head for each row, and what it means below it."
    if not rows: return ''
    entries = [head+''.join('\n'+line for line in wrap(meaning, WIDTH, initial_indent='    ', subsequent_indent='    '))
               for head, meaning in rows]
    return '\n'.join([name, '-'*len(name), *entries])


def _row(name, kind, default, meaning):
    "A parameter; where it may be left out, with what it has then."
    made = re.fullmatch(r'field\(default_factory=(?:lambda: )?(.*)\)', default)
    if made: default = dict(list='[]', dict='{}').get(made[1], made[1])
    of = ', '.join(filter(None, (kind, f'default {default}' if default else '')))
    return (f'{name} : {of}' if of else name), meaning


def _raises(node, speech):
    "The sentences with which a definition itself refuses, values as dots."
    found = []
    for n in ast.walk(node):
        if not isinstance(n, ast.Raise) or not isinstance(n.exc, ast.Call) or not isinstance(n.exc.func, ast.Name): continue
        if n.exc.func.id not in ('InputError', 'Damaged', 'DiskFull') or not n.exc.args: continue
        for s in speech.said(n.exc.args[0], [*ast.walk(node)]) or []:
            found.append(shortened(s).replace('*', '...'))
    return [('InputError', '; '.join(f'"{s}"' for s in dict.fromkeys(found) if s != '...'))] if any(s != '...' for s in found) else []


def _inherited(node, path):
    "Fields of the classes of the package that a class is made of, those of the first ancestor first."
    tree, rows = ast.parse(path.read_text(encoding='utf-8')), []
    for name in [b.id for b in node.bases if isinstance(b, ast.Name)]:
        here = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)
        there = next((n for n in tree.body if isinstance(n, ast.ImportFrom) and any(a.name == name for a in n.names)), None)
        at = path
        if here is None and there is not None and (there.level or (there.module or '').startswith('neuronlens.')):
            at = (path.parents[there.level-1] if there.level else path.parents[1])/f"{there.module.rpartition('.')[2]}.py"
            if '.' in there.module: at = path.parents[1]/Path(*there.module.split('.')[-2:]).with_suffix('.py')
            here = next((n for n in ast.parse(at.read_text(encoding='utf-8')).body if getattr(n, 'name', '') == name), None)
        if isinstance(here, ast.ClassDef) and _is_dataclass(here):
            rows += _inherited(here, at)+site().fields_of(here, at.read_text(encoding='utf-8').split('\n'))
    return rows


def sections(node, lines, speech, path):
    "What the comments of a definition say, as the text that follows the first line of its docstring."
    if isinstance(node, ast.ClassDef):
        init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == '__init__'), None)
        rows = site().signature(init, lines)[0][1:] if init else site().fields_of(node, lines)
        if init is None and _is_dataclass(node): rows = [*{r[0]: r for r in [*_inherited(node, path), *rows]}.values()]
        rows = [r for r in rows if not r[0].startswith('_')]
        return _section('Parameters' if init or _is_dataclass(node) else 'Attributes', [_row(*r) for r in rows])
    params, (kind, meaning) = site().signature(node, lines)
    params = [p for p in params if p[0] not in ('self', 'cls')]
    back = [] if kind in ('', 'None') and not meaning or meaning == 'Nothing' else [(kind or meaning, meaning if kind else '')]
    parts = _section('Parameters', [_row(*p) for p in params]), _section('Returns', back), _section('Raises', _raises(node, speech))
    return '\n\n'.join(filter(None, parts))


def _is_dataclass(node):
    "Whether the fields of a class are what it is made of."
    return any('dataclass' in ast.unparse(d) for d in node.decorator_list) or any('NamedTuple' in ast.unparse(b) for b in node.bases)


def _said(node, lines):
    "Whether a method says more than its names: a comment at a parameter or at what comes back."
    params, back = site().signature(node, lines)
    return any(m for *_, m in params) or bool(back[1])


def documented_nodes(tree, lines):
    "(name, node) of the public definitions of a module, and of the methods of public classes that have comments."
    public = [ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == '__all__'][0]
    for n in tree.body:
        if not isinstance(n, ast.FunctionDef | ast.ClassDef) or n.name not in public: continue
        yield n.name, n
        for m in n.body if isinstance(n, ast.ClassDef) else []:
            if isinstance(m, ast.FunctionDef) and not m.name.startswith('_') and _said(m, lines): yield f'{n.name}.{m.name}', m


def said(path):
    "Name of a definition to what is added to its docstring."
    text = path.read_text(encoding='utf-8')
    lines, speech, out = text.split('\n'), Speech(path), {}
    for name, node in documented_nodes(ast.parse(text), lines):
        if more := sections(node, lines, speech, path): out[name] = more
    return out


def modules(folder=ROOM): return sorted(p for p in Path(folder).rglob('*.py') if p.name not in ('_modidx.py', '__init__.py'))


def all_said(folder=ROOM):
    "Module, as Python calls it, to what `said` finds there."
    return {f"neuronlens.{p.parent.name}.{p.stem}": found for p in modules(folder) if (found := said(p))}
