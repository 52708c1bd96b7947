"""What the source can say when it refuses: the skeleton of every sentence, its values written as `*`, and where it stands."""
import ast
import re
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
KINDS = {"InputError", "Damaged", "DiskFull"} # What is made of a sentence, whether it is raised there or handed on
OTHERS = {"TypeError", "AttributeError", "AssertionError", "ValueError", "KeyError", "RuntimeError"} # Where raised with a sentence
MAKERS = { # Functions that make a sentence, or what is wrong in one, for another place to raise
    "asks.wrong_votes", "data._bad_line", "data._bad_quoting", "edit._wrong", "language._not_finite", "partners.misfit",
    "prompted._sharing", "widgets._refusal"}
PARTS = {"anatomy._find_sites": "why more", "cluster._begin": "where", "store._clear_way": "said"} # Names that hold one
GIVEN = {"store._other": 1, "cli._end": 1} # Functions that raise what they are given, and at which place


def functions(tree):
    "(name, nodes in it but not in a function of its own) of a module, the module itself first."
    def own(node):
        for n in ast.iter_child_nodes(node):
            if not isinstance(n, ast.FunctionDef): yield from (n, *own(n))
    yield "", [*own(tree)]
    for f in ast.walk(tree):
        if isinstance(f, ast.FunctionDef): yield f.name, [*own(f)]


class Speech:
    "The sentences of one module."
    def __init__(self, path):
        self.room, self.tree = path.stem, ast.parse(path.read_text(encoding="utf-8"))
        self.functions = {}
        for name, nodes in functions(self.tree): self.functions.setdefault(name, []).extend(nodes) # Methods may share a name
        assigned = [n for n in self.tree.body if isinstance(n, ast.Assign) and isinstance(n.value, ast.Constant)]
        self.constants = {n.targets[0].id: n.value.value for n in assigned if isinstance(n.value.value, str)}

    def formatted(self, node, here):
        "The texts of a function that its `name.format(..)` may fill, or None where this is no such call."
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format"): return None
        texts = [node.func.value] if isinstance(node.func.value, ast.Constant) else here
        return [re.sub(r"{[^}]*}", "*", n.value) for n in texts if isinstance(n, ast.Constant) and "{" in str(n.value)]

    def said(self, node, here):
        "Skeletons of an expression inside the nodes of a function; None for what only the run knows."
        if isinstance(node, ast.Constant): return [str(node.value)]
        if isinstance(node, ast.Name) and node.id in self.constants: return [self.constants[node.id]]
        if isinstance(node, ast.FormattedValue):
            if isinstance(node.value, ast.Name) and node.value.id in self.constants: return [self.constants[node.value.id]]
            return self.formatted(node.value, here) or ["*"]
        if isinstance(node, ast.JoinedStr): return self.joined(node.values, here)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add): return self.joined([node.left, node.right], here)
        if isinstance(node, ast.IfExp): return [s for n in (node.body, node.orelse) for s in self.said(n, here) or []] or None
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice): return self.said(node.value, here)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and f"{self.room}.{node.func.id}" in MAKERS:
            return self.returned(node.func.id)
        return self.formatted(node, here)

    def joined(self, parts, here):
        "Every way to put parts together."
        out = [""]
        for p in parts: out = [a+b for a in out for b in self.said(p, here) or ["*"]]
        return out

    def returned(self, name):
        "What a function that makes sentences returns."
        nodes = self.functions[name]
        return [s for n in nodes if isinstance(n, ast.Return) and n.value is not None for s in self.said(n.value, nodes) or [] if s]

    def sites(self):
        "(place, skeletons or None) of every sentence of the module."
        for name, nodes in self.functions.items():
            place, seen = f"{self.room}.{name}", set()
            if place in MAKERS: yield place, self.returned(name)
            for n in nodes if place in PARTS else ():
                if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") in PARTS[place].split():
                    yield place, self.said(n.value, nodes)
            for n in nodes:
                exc = n.exc if isinstance(n, ast.Raise) else None
                for call, kinds in ((n, KINDS), (exc, OTHERS)):
                    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and id(call) not in seen:
                        at = 0 if call.func.id in kinds else GIVEN.get(f"{self.room}.{call.func.id}") if kinds is KINDS else None
                        if at is not None:
                            seen.add(id(call))
                            yield place, self.said(call.args[at], nodes)


def shortened(skeleton): return re.sub(r"\*+", "*", skeleton)


def sentences():
    "{skeleton: places} of the whole package, and the places where only the run knows what is said."
    found, unknown = {}, set()
    for path in sorted((TOP/"neuronlens").rglob("*.py")):
        for place, skeletons in Speech(path).sites():
            if skeletons is None: unknown.add(place)
            for s in skeletons or []: found.setdefault(shortened(s), set()).add(place)
    return found, unknown


if __name__ == "__main__":
    found, unknown = sentences()
    for s, places in sorted(found.items(), key=lambda x: (min(x[1]), x[0])): print(f"{', '.join(sorted(places))}\t{s}")
    print("unknown:", *sorted(unknown))
