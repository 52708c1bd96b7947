"""What editors and `help` read beside the modules: `neuronlens/__init__.pyi`, from the list of lazy names in `neuronlens/__init__.py`,
with what the comments of the source say of parameters, and `neuronlens/help.json`, the same of all rooms.

`python tests/stub.py` writes both (`make prepare` does, after nbdev_export); a test compares.
"""
import ast
import json
from pathlib import Path
from textwrap import indent

import docstrings

import neuronlens

STUB = Path(neuronlens.__file__).with_name("__init__.pyi")
HELP = STUB.with_name("help.json")


def helped(): return json.dumps(docstrings.all_said(STUB.parent), indent=0, sort_keys=True, ensure_ascii=False)+"\n"


def needed(node, tree, room):
    "Name to import, of what the annotations of a function need."
    a = node.args
    every = *a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg
    marks = [x.annotation for x in every if x and x.annotation]+[node.returns or ast.Pass()]
    used, out, floor = {n.id for m in marks for n in ast.walk(m) if isinstance(n, ast.Name)}, {}, room.partition(".")[0]
    for n in tree.body:
        if isinstance(n, ast.ClassDef) and n.name in used: out[n.name] = f"from .{room} import {n.name}"
        for x in n.names if isinstance(n, ast.Import | ast.ImportFrom) else []:
            own = x.asname or x.name
            if own not in used: continue
            said = x.name if own == x.name else f"{x.name} as {own}" # Under its own name it would be offered as one of `nl`
            if isinstance(n, ast.Import): out[own] = f"import {said}"
            else: out[own] = f"from {[n.module, f'.{floor}.{n.module}', f'.{n.module}'][n.level]} import {said}"
    return out


def function(room, name, said):
    "A function as a stub has it, with its help, and the imports that it needs; None for what is better read where it is."
    tree = ast.parse((STUB.parent/f"{room.replace('.', '/')}.py").read_text(encoding="utf-8"))
    node = next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name), None)
    if node is None or any("contextmanager" in ast.unparse(d) for d in node.decorator_list):
        return None, {name: f"from .{room} import {name} as {name}"}
    needs, a = needed(node, tree, room), node.args
    a.defaults, a.kw_defaults = [ast.Constant(...) for _ in a.defaults], [d and ast.Constant(...) for d in a.kw_defaults]
    doc = "\n\n".join(filter(None, (ast.get_docstring(node), said.get(name)))).replace("\\", "\\\\").replace('"""', '\\"""')
    node.decorator_list, node.body = [], [ast.Pass()]
    return ast.unparse(node).removesuffix("pass").rstrip()+'\n'+indent(f'"""{doc}\n"""\n', "    "), needs


def same(one, two):
    "Whether two imports bring the same thing."
    first, second = {"__package__": "neuronlens"}, {"__package__": "neuronlens"}
    exec(one, first)
    exec(two, second)
    return [v for k, v in first.items() if k[:2] != "__"] == [v for k, v in second.items() if k[:2] != "__"]


def stub():
    "Every name, under its own name, which makes it public, functions with their help; then the rooms."
    said, functions, imports = docstrings.all_said(STUB.parent), [], {}
    for room, names in neuronlens._NAMES.items():
        for n in sorted(names.split()):
            made, needs = function(room, n, said.get(f"neuronlens.{room}", {}))
            if made: functions.append(made)
            for k, line in needs.items():
                if (known := imports.setdefault(k, line)) != line and not same(known, line): raise ValueError(f"{known}, but {line}")
                if k == n: imports[k] = line # Offered
    out = ["# Made by tests/stub.py from __init__.py: what loads on first use, for editors and type checkers.",
           '# mypy: allow-untyped-defs, allow-incomplete-defs, allow-any-generics, disable-error-code="import-untyped"',
           *sorted(imports.values())]
    for floor, rooms in neuronlens._ROOMS.items(): # A name goes before a room that is called like it
        out += [f"from .{floor} import {r} as {r}" for r in sorted(rooms.split()) if r not in neuronlens._HOME]
    out += [f"from . import {floor} as {floor}" for floor in neuronlens._ROOMS]
    return "\n".join([*out, "", "__version__: str", "", *functions])


if __name__ == "__main__":
    STUB.write_text(stub(), encoding="utf-8")
    HELP.write_text(helped(), encoding="utf-8")
