"""What editors and type checkers read: `neuronlens/__init__.pyi`, from the list of lazy names in `neuronlens/__init__.py`, and docstrings.

`python tests/stub.py` writes the stub, and by tests/docstrings.py the docstrings of the exported modules (`make prepare` does, after
nbdev_export); tests compare both.
"""
from pathlib import Path

import docstrings

import neuronlens

STUB = Path(neuronlens.__file__).with_name("__init__.pyi")


def stub():
    "One import for every name, under its own name, which makes it public; then the rooms."
    out = ["# Made by tests/stub.py from __init__.py: what loads on first use, for editors and type checkers.", "__version__: str", ""]
    for room, names in neuronlens._NAMES.items(): out += [f"from .{room} import {n} as {n}" for n in sorted(names.split())]
    for floor, rooms in neuronlens._ROOMS.items(): # A name goes before a room that is called like it
        out += [f"from .{floor} import {r} as {r}" for r in sorted(rooms.split()) if r not in neuronlens._HOME]
    out += [f"from . import {floor} as {floor}" for floor in neuronlens._ROOMS]
    return "\n".join(out)+"\n"


if __name__ == "__main__":
    STUB.write_text(stub(), encoding="utf-8")
    docstrings.write(STUB.parent)
