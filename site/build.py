"""Renders the documentation: `_quarto.yml` and the notebooks it lists become a folder of pages that asks for nothing outside it.

The notebooks get the documentation of every exported name in place of its source; then Quarto renders them where it is installed,
otherwise Sphinx does (myst-nb), into the same names, order and navigation. Nothing is run.
"""
import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from filelock import FileLock

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE)) # Also where this file is read by its path
import error_pages  # noqa: E402

FOLD = '\n\n<details open><summary>Source</summary>\n\n````python\n{}\n````\n\n</details>'
AGAIN = '<a href="../again/{}" download>This page to try again: headings, code, exercises</a>'


class SiteError(Exception):
    "What is wrong with the pages, one line for each fault."


# ---------------------------------------------------------------- what there is to render

def listed(contents, section=''):
    "The sidebar of `_quarto.yml` as (section, notebook), in order."
    found = []
    for item in contents:
        if isinstance(item, str): found.append((section, item))
        elif isinstance(item, dict) and 'contents' in item: found += listed(item['contents'], item.get('section', section))
        else: raise SiteError(f'_quarto.yml: the sidebar lists {item}, neither a notebook nor a section with contents')
    names = [n for _,n in found]
    if twice := sorted({n for n in names if names.count(n) > 1}): raise SiteError(f"_quarto.yml lists {', '.join(twice)} twice")
    return found


def page_name(path):
    "The name of a page: its notebook's without the number."
    return re.sub(r'(^|/)\d+[a-z]?_(?=[^/]+$)', r'\1', path)


def joined(text): return text if isinstance(text, str) else ''.join(text) # Sources and outputs are strings or lists of lines


# ---------------------------------------------------------------- a definition becomes its documentation

def comment(line):
    "What is said at the end of a line of code; a mark inside quotes says nothing."
    return m[1].strip() if (m := re.match(r"""(?:[^'"#]|'[^']*'|"[^"]*")*#(.*)""", line)) else ''


def signature(node, lines):
    "Parameters [(name, type, default, meaning)] and (type, meaning) of what comes back, of one `def` in its `lines`."
    a,text = node.args,lambda x: '' if x is None else ast.unparse(x)
    plain = [*a.posonlyargs, *a.args]
    rows = [(p.arg, p, d) for p,d in zip(plain, [None]*(len(plain)-len(a.defaults))+a.defaults, strict=True)]
    if a.vararg: rows.append(('*'+a.vararg.arg, a.vararg, None))
    rows += [(p.arg, p, d) for p,d in zip(a.kwonlyargs, a.kw_defaults, strict=True)]
    if a.kwarg: rows.append(('**'+a.kwarg.arg, a.kwarg, None))
    ends = [(d or p).end_lineno for _,p,d in rows]
    body = node.body[0].lineno
    close = next((n for n in range(max([node.lineno, *ends]), body) if lines[n-1].lstrip().startswith(')')), max([node.lineno, *ends]))
    stops = [max(e, n-1) for e,n in zip(ends, [*ends[1:], close], strict=False)]
    def meaning(lo, hi): return ' '.join(comment(s) for s in lines[lo-1:hi] if comment(s))
    params = [(n, text(p.annotation), text(d), meaning(e, min(s, close-1))) for (n,p,d),e,s in zip(rows, ends, stops, strict=True)]
    return params, (text(node.returns), meaning(close, max(close, body-1)))


def prose(text):
    "Markdown in which `<` outside code is a character, never a tag."
    return ''.join(s if s.startswith('`') else s.replace('<', r'\<') for s in re.split(r'(`+[^`]*`+)', text))


def table(heads, rows):
    "A Markdown table without its empty columns; first cells and what is in code come as code."
    keep = [i for i in range(len(heads)) if i == 0 or any(r[i] for r in rows)]
    line = lambda cells: '| '+' | '.join(cells[i].replace('|', r'\|') for i in keep)+' |' # noqa: E731
    return '\n'.join([line(heads), '|'+'---|'*len(keep), *map(line, rows)])


def ticks(text): return f'`{text}`' if text else ''


def parameters(params, back=('', '')):
    "Parameters and what comes back, as a Markdown table; '' where names are all there is to say."
    rows = [[ticks(n), ticks(t), ticks(d), prose(m)] for n,t,d,m in params]
    if any(back) and back[0] != 'None': rows.append(['*returns*', ticks(back[0]), '', prose(back[1])])
    return table(['parameter', 'type', 'default', 'meaning'], rows) if any(r[1] or r[3] for r in rows) else ''


def call(name, params, back=''):
    "The call at a glance: names and defaults."
    given = [n+(d and f"={'...' if ' for ' in d else d}") for n,_,d,_ in params] # Sphinx reads no comprehension
    return f"{name}({', '.join(given)})"+(f' -> {back}' if back not in ('', 'None') else '')


def fields_of(node, lines):
    "Fields of a class as parameters, with their comments."
    return [(ast.unparse(n.target), ast.unparse(n.annotation), ast.unparse(n.value) if n.value else '', comment(lines[n.end_lineno-1]))
            for n in node.body if isinstance(n, ast.AnnAssign)]


def described(node, lines, inside=False):
    "One definition as (kind, call, its line, table, methods)."
    about = ' '.join((ast.get_docstring(node) or '').split())
    if isinstance(node, ast.ClassDef):
        own = [n for n in node.body if isinstance(n, ast.FunctionDef)]
        params = next((signature(n, lines)[0][1:] for n in own if n.name == '__init__'), fields_of(node, lines))
        methods = [described(n, lines, True) for n in own if not n.name.startswith('_') and ast.get_docstring(n)]
        return 'class', call(node.name, params), about, parameters(params), methods
    params,back = signature(node, lines)
    marks = [ast.unparse(d) for d in node.decorator_list]
    if any('property' in m for m in marks): return 'property', node.name, about, parameters([], back), []
    kind = next((m for m in marks if m in ('staticmethod', 'classmethod')), 'method') if inside else 'function'
    params = params[kind in ('classmethod', 'method'):]
    return kind, call(node.name, params, back[0]), about, parameters(params, back), []


def api(code, module, quarto=False):
    "Documentation of the public definitions of a cell, as Markdown: for Sphinx in its own directives, for Quarto under a heading."
    parts,lines = [],code.split('\n')
    for node in ast.parse(code).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith('_'): continue
        kind,head,about,rows,methods = described(node, lines)
        if quarto:
            inner = [[ticks(h), prose(a)] for _,h,a,*_ in methods]
            parts += [f'### `{node.name}` {{#{node.name}}}', f'```python\n{head}\n```', prose(about), rows,
                      table(['method', 'what it gives'], inner) if inner else '']
        else:
            inner = [f'~~~{{py:{k}}} {h}\n:no-contents-entry:\n\n{prose(a)}\n\n{r}\n~~~' for k,h,a,r,_ in methods]
            parts.append('\n\n'.join([f'~~~~{{py:{kind}}} {head}\n:module: {module}', prose(about), rows, *inner])+'\n~~~~')
    return '\n\n'.join(filter(None, parts))


# ---------------------------------------------------------------- a notebook becomes a page

def cell(source, name): return dict(cell_type='markdown', id=name, metadata={}, source=source)


def shown(o):
    "A stored output whose styles keep to itself; one that is coloured for white says so."
    if not (html := joined(o.get('data', {}).get('text/html', ''))): return o
    html = re.sub(r'<style scoped>.*?</style>', '', html, flags=re.S)
    paper = re.search(r'style\s*=\s*"[^"]*(color|background)|<style|<svg', html) and not re.search('light-dark|prefers-color', html)
    html = re.sub(r'<style[^>]*>(.*?)</style>', r'<style>@scope {\1}</style>', html, flags=re.S)
    return o | dict(data=o['data'] | {'text/html': f'<div class="output_html{" paper"*bool(paper)}">{html}</div>'})


def prepared(nb, lib, quarto=False):
    "The notebook as a reader needs it: definitions documented, helpers gone, cell options honoured, links to other pages."
    cells,module = [],lib
    for c in nb['cells']:
        options,source = {},joined(c['source'])
        if c['cell_type'] == 'markdown':
            source = re.sub(r'\[([^\]]*)\]\((?:\.\./)+[\w.]+\.(?:md|cff)\)', r'\1', source) # What is no page is named, not linked
            cells.append(c | dict(source=re.sub(r'(?<=\]\()[^():\s#]+\.ipynb', lambda m: page_name(m[0]), source)))
            continue
        if c['cell_type'] != 'code': continue
        while m := re.match(r'#\|\s*([\w-]+):?[ \t]*(.*)(?:\n|\Z)', source): options[m[1]],source = m[2].strip(),source[m.end():]
        module = f"{lib}.{options['default_exp']}" if 'default_exp' in options else module
        if {'hide', 'exporti', 'default_exp'} & options.keys() or options.get('include') == 'false': continue
        if {'export', 'exports'} & options.keys():
            text = api(source, module, quarto)
            if 'exports' in options: text += FOLD.format(source.strip())
            if text: cells.append(cell(text, f'api-{len(cells)}'))
            continue
        last = next((s.strip() for s in reversed(source.split('\n')) if s.strip()), '').rstrip(';')
        tags = [f'remove-{w}' for w,o in (('input', 'echo'), ('output', 'output')) if options.get(o) == 'false']
        keep = [shown(o) for o in c.get('outputs', []) if o.get('name') != 'stderr']
        cells.append(c | dict(outputs=keep) if quarto else c | dict(source=source, outputs=keep, metadata=dict(
            tags=tags, mystnb=dict(image=dict(alt=options.get('fig-alt', f'Figure that the code above draws: {last[:160]}'))))))
    return nb | dict(cells=cells)


def page_library(top):
    "The package that the notebooks make."
    ini = ConfigParser()
    ini.read(top/'settings.ini', encoding='utf-8')
    return ini['DEFAULT']['lib_path']


def kept(items, there):
    "The contents of a sidebar without the pages that are not `there`, under the names of the pages."
    items = [i | dict(contents=kept(i['contents'], there)) if isinstance(i, dict) else i for i in items]
    return [page_name(i) if isinstance(i, str) else i for i in items if (i in there if isinstance(i, str) else i['contents'])]


def stage(top, quarto=False, say=print):
    "`_proc`: pictures, prepared notebooks and `_quarto.yml`, under the names of the pages. What is not written is named."
    config,proc,faults = yaml.safe_load((top/'_quarto.yml').read_text(encoding='utf-8')),top/'_proc',[]
    lib,sidebar = page_library(top),config['website']['sidebar']
    names = [n for _,n in listed(sidebar['contents'])]
    there = [n for n in names if (top/'nbs'/n).is_file()]
    for n in names:
        if n not in there: say(f'skipped: _quarto.yml lists {n}, and there is no nbs/{n}')
    shutil.rmtree(proc, ignore_errors=True)
    shutil.copytree(top/'nbs', proc, ignore=lambda at, names: [n for n in names if n.endswith(('.ipynb', '.ipynb_checkpoints', '.yml'))])
    for n in there:
        nb = error_pages.filled(json.loads((top/'nbs'/n).read_text(encoding='utf-8')), top)
        faults += [f'nbs/{n}: a stored output would run code: {r}' for r in dict.fromkeys(running(nb))]
        if n.startswith('tutorials/'): nb['cells'].insert(1, cell(AGAIN.format(Path(n).name), 'again'))
        (proc/page_name(n)).write_text(json.dumps(prepared(nb, lib, quarto), ensure_ascii=False), encoding='utf-8')
    if 'errors.ipynb' in there: error_pages.write(top, proc)
    if faults: raise SiteError('\n'.join(faults))
    sidebar['contents'] = kept(sidebar['contents'], there)
    (proc/'_quarto.yml').write_text(yaml.safe_dump(config, sort_keys=False), encoding='utf-8')
    return config


# ---------------------------------------------------------------- for readers that are programs

def plainly(nb):
    "A prepared notebook as Markdown: prose, definitions, code, and what it printed."
    parts = []
    for c in nb['cells']:
        source = joined(c['source']).strip()
        if c['cell_type'] == 'markdown': parts.append(re.sub(r'(?<=\]\()([^():\s#]+)\.(?:ipynb|md)', r'\1.html', source))
        elif source and 'echo: false' not in source: parts.append(f'```python\n{source}\n```')
        for o in c.get('outputs', []):
            said = joined(o.get('text') or o.get('data', {}).get('text/plain', '')).strip()
            if said and not said.startswith(('<Figure', '<IPython')): parts.append(f'```\n{said}\n```')
    return '\n\n'.join(filter(None, parts))


def for_programs(top, out):
    "`llms.txt`, every page with its promise, and `llms-full.txt`, the text of all pages, in the order of the sidebar."
    lib,now,site = page_library(top),'',yaml.safe_load((top/'_quarto.yml').read_text(encoding='utf-8'))['website']
    lines,whole = [f"# {site['title']}", f"\n> {site.get('description', '')}", '\nAll pages in one file: [llms-full.txt](llms-full.txt)'],[]
    for section,n in listed(site['sidebar']['contents']):
        if not (top/'nbs'/n).is_file(): continue
        nb = error_pages.filled(json.loads((top/'nbs'/n).read_text(encoding='utf-8')), top)
        text = plainly(prepared(nb, lib, quarto=True))
        title,promise = (re.search(p, text, re.M) for p in (r'^# (.+)', r'^> (.+)'))
        if section != now: lines,now = [*lines, f'\n## {section}\n'],section
        url = page_name(n).replace('.ipynb', '.html')
        lines.append(f"- [{title[1] if title else url}]({url})"+(f': {promise[1]}' if promise else ''))
        whole.append(f'<!-- {url} -->\n\n{text}')
    (out/'llms.txt').write_text('\n'.join(lines)+'\n', encoding='utf-8')
    (out/'llms-full.txt').write_text('\n\n'.join(whole)+'\n', encoding='utf-8')


# ---------------------------------------------------------------- what the search reads

WEIGHTS = {'How to': 2., 'Tutorials': 1.5, 'Words, measures, promises': 1.2} # Sections that answer before others
EVERYDAY = ( # Words that stand for each other beside those of the glossary
    'erase|remove|delete|forget|unlearn|suppress|ablate', 'generate|write|decode|sample', 'custom|own|register',
    'latex|tex|booktabs|paper', 'npy|npz|numpy', 'csv|tsv|jsonl|parquet|data file', 'fast|slow|speed|seconds',
    'cluster|ray|distributed|many texts|several machines', 'gpu|cuda|device', 'install|pip|wheel|colab', 'save|store|export|keep',
    'open|load', 'shared|common|overlap', 'compare|versus|difference',
    'plot|figure|picture|chart', 'classifier|sequence classification', 'language model|llm|causal', 'command line|cli|terminal',
    'significant|interval|confidence|p value', 'refused|error message')


class Places(HTMLParser):
    "The text of a page by place: a heading or a definition, its anchor, prose and code below it; sources that are folded stay out."
    BLOCKS = set('p li td th tr div pre dt dd br h1 h2 h3 h4 summary blockquote img section'.split())
    QUIET = set('script style svg math template'.split())
    VOID = set('area base br col embed hr img input link meta source track wbr'.split())

    def __init__(self, html):
        super().__init__()
        self.places,self.open,self.anchors,self.title = [],[],[],False
        start = html.find('<article')
        self.feed(html[start:html.find('</article>', start)])
        self.close()

    def _at(self, anchor, name=''): self.places.append(dict(anchor=anchor, head=name.rpartition('.')[2], name=name, text='', code=''))

    def handle_starttag(self, tag, attrs):
        "An element: whether it is quiet, and what place begins with it."
        a = dict(attrs)
        if tag in self.BLOCKS: self.handle_data(' ')
        quiet = tag in self.QUIET or bool({'headerlink', 'viewcode-link'} & set((a.get('class') or '').split()))
        if tag not in self.VOID: self.open.append([tag, quiet, None])
        if tag == 'section': self.anchors.append(a.get('id', ''))
        if tag in ('h1', 'h2', 'h3', 'h4'):
            self._at('' if tag == 'h1' or not self.anchors else self.anchors[-1])
            self.title = True
        if tag == 'dt' and '.' in (a.get('id') or ''):
            if not self.open[-2][2]: self.open[-2][2] = self.places[-1] if self.places else None # What follows the list belongs there again
            self._at(a['id'], a['id'])

    def handle_endtag(self, tag):
        "The end of an element, and of those left open in it."
        if tag in self.BLOCKS: self.handle_data(' ')
        if tag in ('h1', 'h2', 'h3', 'h4'): self.title = False
        if tag == 'section' and self.anchors: self.anchors.pop()
        if tag not in [t for t,*_ in self.open]: return
        while True:
            t,_,back = self.open.pop()
            if back and not back['name']: self._at(back['anchor']); self.places[-1]['head'] = back['head']
            if t == tag: break

    def handle_data(self, text):
        "Text where something is said."
        if [t for t,*_ in self.open[-1:]] == ['summary'] and text.strip() == 'Source':
            for e in self.open: e[1] |= e[0] == 'details'
        if not self.places or any(q for _,q,_ in self.open): return
        self.places[-1]['head' if self.title else 'code' if 'pre' in [t for t,*_ in self.open] else 'text'] += text

    def said(self):
        "The places that say something, blanks in one."
        said = [{k:' '.join(v.split()) for k,v in p.items()} for p in self.places]
        return [p for p in said if p['head'] or p['text'] or p['code']]


def synonyms(top):
    "Groups of words for one thing: the glossary's rows, ours beside the field's and the paper's, and a few from everyday."
    groups,path = [s.split('|') for s in EVERYDAY],top/'nbs/glossary.ipynb'
    cells = json.loads(path.read_text(encoding='utf-8'))['cells'] if path.is_file() else []
    rows = [r for c in cells for r in joined(c['source']).split('\n')]
    def words(said):
        found = [re.sub(r'[`*]|^(the|a) ', '', w.strip()).lower() for w in re.split('[,;]', re.sub(r'\([^)]*\)', '', said))]
        return [w for w in dict.fromkeys(found) if len(w) > 2 and len(w.split()) < 4 and not re.search(r"paper|---|^word$", w)]
    for m in filter(None, (re.match(r'\|([^|]+)\|[^|]+\|([^|]*)\|\s*$', r) for r in rows)):
        ours,others = words(m[1]),words(m[2])
        pairs = zip(ours, ([o] for o in others), strict=True) if len(ours) == len(others) else ((w, others) for w in ours)
        groups += [both for w,o in pairs if len(both := list(dict.fromkeys([w, *o]))) > 1]
    return groups


def for_the_search(top, config, out):
    "`search-index.js`, a script because a page that was opened as a file may read no other: all text by page and place, and synonyms."
    pages,shown = [],[(s, page_name(n).replace('.ipynb', '.html')) for s,n in listed(config['website']['sidebar']['contents'])]
    shown += [('Errors', p.relative_to(out).as_posix()) for p in sorted(out.glob('errors/*.html'))]
    for section,url in shown:
        if not (out/url).is_file(): continue
        places = Places((out/url).read_text(encoding='utf-8')).said()
        title,weight = places[0]['head'] if places else url,WEIGHTS.get(section, 1.)
        pages.append(dict(url=url, title=title, section=section, weight=weight, places=places))
    text = json.dumps(dict(pages=pages, synonyms=synonyms(top)), ensure_ascii=False).replace('</', '<\\/')
    (out/'_static/search-index.js').write_text(f'window.SITE_TEXT = {text}\n', encoding='utf-8')
    for name in ('searchindex.js', '_static/searchtools.js', '_static/language_data.js'): (out/name).unlink(missing_ok=True) # Sphinx's own


# ---------------------------------------------------------------- what must hold

class Reading(HTMLParser):
    "Identifiers, links, whatever a browser would ask for, and what would run."
    def __init__(self, html):
        super().__init__()
        self.ids,self.links,self.asks,self.runs = set(),[],[],[]
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        "One element."
        if tag == 'script': self.runs.append('<script>')
        for k,v in [(k, v or '') for k,v in attrs]:
            if k == 'id': self.ids.add(v)
            elif k == 'href': (self.asks if tag == 'link' else self.links).append(v)
            elif k in ('src', 'srcset', 'poster', 'data'): self.asks.append(v)
            if k.startswith('on') or v.strip().lower().startswith('javascript:'): self.runs.append(f'<{tag} {k}=...>')


def but_explorers(html):
    "Stored HTML without the one script that a page may have, the explorer's, word for word as the package has it, and its data."
    own = (HERE.parent/'neuronlens/views/explorer.js').read_text(encoding='utf-8')
    return re.sub(r'<script type="application/json">[^<]*</script>', '', html.replace(f'<script>{own}</script>', ''))


def running(nb):
    "What the stored outputs of a notebook would run: nothing may."
    for data in [o.get('data', {}) for c in nb['cells'] for o in c.get('outputs', [])]:
        for mime in ('text/html', 'image/svg+xml', 'text/markdown'): yield from Reading(but_explorers(joined(data.get(mime, '')))).runs
        yield from data.keys() & {'application/javascript', 'application/vnd.jupyter.widget-view+json'}


def outside(url): return bool(urlsplit(url).scheme or urlsplit(url).netloc) and not url.startswith('data:')


def check(out):
    "Reads a whole folder of pages: (faults, links that lead elsewhere). A fault names page and link."
    pages = {p.relative_to(out).as_posix(): Reading(p.read_text(encoding='utf-8')) for p in sorted(out.rglob('*.html'))}
    faults,elsewhere = {},set() # A dict, to name each once and in order
    for name,r in pages.items():
        faults |= {f'{name}: opening it would ask {u}': 0 for u in filter(outside, r.asks)}
        elsewhere |= {u for u in r.links if outside(u)}
        for url in [u for u in r.links+r.asks if not outside(u) and not u.startswith('data:')]:
            path,_,anchor = url.partition('#')
            goal = os.path.normpath(Path(name).parent/unquote(path.partition('?')[0])).replace(os.sep, '/') if path else name
            if not (out/goal).is_file(): faults[f'{name}: broken link {url}'] = 0
            elif anchor and goal in pages and unquote(anchor) not in pages[goal].ids: faults[f'{name}: broken link {url} (no anchor)'] = 0
    for p in sorted(out.rglob('*.css')):
        asked = re.findall(r'(?:url\(|@import)\s*["\']?([^"\')\s;]+)', p.read_text(encoding='utf-8', errors='replace'))
        faults |= {f'{p.relative_to(out)}: it would ask {u}': 0 for u in filter(outside, asked)}
    return list(faults), sorted(elsewhere)


# ---------------------------------------------------------------- the two ways

def toctrees(config):
    "The sidebar of `_quarto.yml`, below the home page, and the index of names."
    pages = [(s, n.removesuffix('.ipynb')) for s,n in listed(config['website']['sidebar']['contents']) if n != 'index.ipynb']
    pages.append((pages[-1][0] if pages else '', 'genindex'))
    trees = [['```{toctree}', ':hidden:', *[f':caption: {now}']*bool(now), '', *[n for s,n in pages if s == now], '```']
             for now in dict.fromkeys(s for s,_ in pages)]
    return '\n\n'.join(map('\n'.join, trees))


def with_sphinx(top, config, out):
    "Sphinx renders the prepared notebooks: its complaints, such as a link that leads nowhere, are faults."
    proc,title = top/'_proc',config['website']['title']
    home = json.loads((proc/'index.ipynb').read_text(encoding='utf-8'))
    home['cells'].append(cell(toctrees(config), 'pages'))
    (proc/'index.ipynb').write_text(json.dumps(home), encoding='utf-8')
    said = out.with_name('warnings.txt') # What the imported modules log is none of them
    call = [sys.executable, '-m', 'sphinx', '-b', 'html', '-c', HERE, '-d', out.with_name('doctrees'), '-w', said, '-D', f'project={title}',
            '-D', f'html_title={title}', '-j', 'auto', '-q', '--no-color', proc, out]
    done = subprocess.run(call, cwd=top, capture_output=True, text=True, encoding='utf-8')
    if done.returncode: raise SiteError(done.stderr)
    return [s.replace(f'{proc}{os.sep}', '') for s in said.read_text(encoding='utf-8').splitlines() if s.strip()]


def build(top, out, say=print, quarto=None):
    "The site of the checkout `top` into the folder `out`, by the Quarto at `quarto` if there is one; `SiteError` says what is wrong."
    top,out = Path(top).resolve(),Path(out).resolve()
    (top/'build').mkdir(exist_ok=True)
    with FileLock(top/'build/site.lock'): # `_proc` is one for the whole checkout
        config,proc,room,faults = stage(top, bool(quarto), say),top/'_proc',out.with_name(out.name+'.new'),[]
        shutil.rmtree(room, ignore_errors=True)
        room.mkdir(parents=True)
        new = room/'html'
        say(f"{'Quarto' if quarto else 'Sphinx'} renders the pages")
        if quarto:
            shutil.copyfile(HERE/'offline.scss', proc/'offline.scss')
            subprocess.run([quarto, 'render', '--no-execute', '--output-dir', os.path.relpath(new, proc)], cwd=proc, check=True)
        else:
            faults = with_sphinx(top, config, new)
            for_the_search(top, config, new)
        subprocess.run([sys.executable, HERE/'twins.py', new/'again', top/'nbs/tutorials'], check=True)
        for_programs(top, new)
        wrong,elsewhere = check(new)
        if quarto: say('\n'.join(f'look at this: {f}' for f in wrong))
        elif faults+wrong: raise SiteError('\n'.join(faults+wrong))
        shutil.rmtree(out, ignore_errors=True)
        new.rename(out)
        shutil.rmtree(room)
    say(f'{len(elsewhere)} addresses lead elsewhere; nothing is asked of them until someone clicks\n{out/"index.html"}')


def main():
    "Command line."
    parser = argparse.ArgumentParser(description='Render the documentation')
    parser.add_argument('--out', default='_docs', help='folder to write')
    parser.add_argument('--top', default=HERE.parent, type=Path, help='checkout to render')
    parser.add_argument('--preview', action='store_true', help='render with Sphinx also where Quarto is installed')
    args = parser.parse_args()
    try: build(args.top, args.top/args.out, quarto=None if args.preview else shutil.which('quarto'))
    except SiteError as e: sys.exit(f'The site is not built.\n{e}')


if __name__ == '__main__': main()
