"""Pages of what is refused: a list of all codes and a page a code, made from `neuronlens/refusals.toml` of a checkout."""
import re
import tomllib

PLACE = '<!-- every code -->' # Where the page `errors` has the list
THEMES = re.compile(r"(\d): '([^']+)'") # As the room has them


def read(top):
    "Codes and their entries, and the themes by their digit; nothing where a checkout has no table."
    table,room = top/'neuronlens/refusals.toml',top/'neuronlens/ground/refusals.py'
    if not (table.is_file() and room.is_file()): return {},{}
    text = room.read_text(encoding='utf-8')
    return tomllib.loads(table.read_text(encoding='utf-8')),dict(THEMES.findall(text[text.index('THEMES = '):].partition('}')[0]))


def plain(text): return re.sub(r'([\\`*_\[\]{}<>#|~$])', r'\\\1', text) # Markdown that is read as it stands


def sentences(entry): return [s.replace('*', '…') for s in entry['says']] # As a reader sees them


def everything(top):
    "The list of all codes by theme, with the sentences, as Markdown."
    table,themes = read(top)
    parts = []
    for k,theme in themes.items():
        parts.append(f'## {theme}')
        for code,e in table.items():
            said = [f'  - `` {s} ``' for s in sentences(e)]
            if code[2] == k: parts.append('\n'.join([f"- [{code}](errors/{code}.md) **{plain(e['title'])}**", *said]))
    return '\n\n'.join(parts)


def filled(nb, top):
    "A notebook, with the list of all codes where it has the place for it."
    def source(c): return ''.join(c['source'])
    if not any(PLACE in source(c) for c in nb['cells']): return nb
    return nb | dict(cells=[c | dict(source=source(c).replace(PLACE, everything(top))) for c in nb['cells']])


def page(code, entry, before, after):
    "One code as Markdown: what it says, why, what to do, and where its neighbours are."
    near = [f'[{c}]({c}.md)' for c in (before, after) if c]
    said = '\n'.join(f'- `` {s} ``' for s in sentences(entry))
    parts = [f"# {code}: {plain(entry['title'])}", f'> One of the [errors](../errors.ipynb). In a terminal: `neuronlens explain {code}`',
             '## Why', entry['cause'], '## What to do', entry['remedy'], '## What it says', said,
             f"Nearby: {', '.join(near)}. [All errors](../errors.ipynb)"]
    return '---\norphan: true\n---\n\n'+'\n\n'.join(parts)+'\n'


def write(top, folder):
    "A page a code below `errors` in a folder of pages."
    table,_ = read(top)
    if table: (folder/'errors').mkdir()
    codes = [None, *table, None]
    for before,code,after in zip(codes, codes[1:], codes[2:], strict=False):
        (folder/'errors'/f'{code}.md').write_text(page(code, table[code], before, after), encoding='utf-8')
