"""Docstrings in the exported modules, as numpydoc has them, made from the comments of parameters and fields.

nbdev keeps what a parameter is in a comment beside it, which neither `help` nor `?` nor an editor shows. So after `nbdev_export` every
public definition gets its comments as sections of its docstring; code and comments stay as they are, and notebooks know nothing of it.
`python tests/docstrings.py` writes them (`make prepare` does, by tests/stub.py); with `--plain` it takes them out again, to the last byte.
"""
import ast
import importlib.util
import re
import sys
from functools import cache
from pathlib import Path
from textwrap import indent, wrap

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
    "The public definitions of a module, and the methods of public classes that have comments."
    public = [ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == '__all__'][0]
    for n in tree.body:
        if not isinstance(n, ast.FunctionDef | ast.ClassDef) or n.name not in public: continue
        yield n
        for m in n.body if isinstance(n, ast.ClassDef) else []:
            if isinstance(m, ast.FunctionDef) and not m.name.startswith('_') and _said(m, lines): yield m


def _docstring(node):
    "The node of the docstring, if there is one."
    said = node.body[0].value if isinstance(node.body[0], ast.Expr) else None
    return said if isinstance(said, ast.Constant) and isinstance(said.value, str) else None


def documented(text, speech, path):
    "The text of a module with its comments in its docstrings."
    lines = text.split('\n')
    changes = []
    for node in documented_nodes(ast.parse(text), lines):
        doc = _docstring(node)
        if doc is None or not (more := sections(node, lines, speech, path)): continue
        at, end = doc.lineno-1, doc.end_lineno-1
        before, inside = lines[at][:doc.col_offset], lines[at][doc.col_offset:]
        if at != end or len(before.encode()) != doc.col_offset or (quote := inside[0]) not in '\'"' or inside.startswith(quote*3):
            raise ValueError(f'{node.name}: its docstring is to be one line in plain quotes')
        size = len(lines[at].encode()[doc.col_offset:doc.end_col_offset].decode())
        if inside[size:].strip(): raise ValueError(f'{node.name}: nothing may stand behind its docstring')
        more = more.replace('\\', '\\\\').replace(quote*3, f'\\{quote}'*3)
        space = re.match(' *', before)[0] if not before.strip() else ' '*(node.col_offset+4)
        body = indent(more, space).rstrip()
        changes.append((at, f'{before}{quote*3}{inside[1:size-1]}\n\n{body}\n{space}{quote*3}{inside[size:]}'))
    for at, new in changes: lines[at] = new
    return '\n'.join(lines)


def plain(text):
    "The inverse: the module as it was exported."
    sections = r'\n\n *(?:Parameters|Attributes|Returns|Raises)\n *-{6,}\n'
    return re.sub(rf"""(?m)^( *)(?P<q>'''|\"\"\")((?:(?!(?P=q)).)*){sections}(?:(?!(?P=q))(?:.|\n))*\n *(?P=q)""",
                  lambda m: f'{m[1]}{m[2][0]}{m[3]}{m[2][0]}', text)


def modules(folder=ROOM): return sorted(p for p in Path(folder).rglob('*.py') if p.name not in ('_modidx.py', '__init__.py'))


def write(folder=ROOM, back=False):
    "Write docstrings into all modules of a folder, or take them out again; what is as it should be stays untouched."
    for p in modules(folder):
        text = p.read_text(encoding='utf-8')
        new = plain(text)
        if not back:
            was, new = new, documented(new, Speech(p), p)
            if plain(new) != was: raise ValueError(f'{p}: the docstrings cannot be taken out again')
        if new != text: p.write_text(new, encoding='utf-8')


if __name__ == '__main__': write(back='--plain' in sys.argv)
