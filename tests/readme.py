"""README.md from nbs/index.ipynb: prose, code and the outputs that are text or HTML tables."""
import json
import re
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]


def output(out):
    "One stored output as Markdown; HTML tables stay HTML, which GitHub shows."
    data = out.get("data", {})
    for kind in ("text/markdown", "text/html"):
        if kind in data:
            return "".join(data[kind])
    text = "".join(data.get("text/plain", out.get("text", "")))
    return f"    {text.rstrip()}".replace("\n", "\n    ") if text else ""


def readme():
    "The text of README.md."
    parts = ["<!-- Made from nbs/index.ipynb by `make prepare`; edit that page. -->"]
    for cell in json.loads((TOP / "nbs/index.ipynb").read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if source.startswith("#| hide"):
            continue
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"\]\((?=images/|tutorials/|howto/|\w+\.ipynb)", "](nbs/", source).replace("](../", "]("))
        else:
            parts.append(f"```python\n{source}\n```")
            parts += filter(None, map(output, cell["outputs"]))
    return "\n\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    (TOP / "README.md").write_text(readme(), encoding="utf-8")
