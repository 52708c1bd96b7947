"""Stored pages keep pictures, not live widgets: the widget's random id goes wherever an HTML picture stands beside it."""
import json
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
LIVE = "application/vnd.jupyter.widget-view+json"


def nothing(out):
    "Whether an output is the live half of a view, whose picture stands in the next one."
    return LIVE in out.get("data", {}) and "nl-nothing" in "".join(out["data"].get("text/html", ""))


def still(nb):
    "A notebook without live widgets that have a picture, and without widget state; True if there was any."
    found = nb["metadata"].pop("widgets", None) is not None
    for cell in nb["cells"]:
        if kept := [o for o in cell.get("outputs", []) if not nothing(o)]:
            found, cell["outputs"] = found or len(kept) < len(cell["outputs"]), kept
        for out in cell.get("outputs", []):
            if "text/html" in out.get("data", {}) and out["data"].pop(LIVE, None) is not None:
                out.get("metadata", {}).pop(LIVE, None)
                found = True
    return found


def stills(folder=TOP / "nbs"):
    "Still every notebook in a folder; which were changed."
    changed = []
    for p in sorted(p for p in Path(folder).rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts):
        nb = json.loads(p.read_text(encoding="utf-8"))
        if still(nb):
            p.write_text(json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
            changed.append(p)
    return changed


if __name__ == "__main__":
    stills()
