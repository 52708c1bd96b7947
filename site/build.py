"""Renders the documentation: `_quarto.yml` and the notebooks it lists become a folder of pages that asks for nothing outside it.

nbdev does its half (`proc_nbs`: hidden cells go, documentation of every exported name comes). Then Quarto renders where it is
installed; otherwise pandoc does, page by page, into the same names, order and navigation.
"""
import argparse
import ast
import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tokenize
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from dataclasses import dataclass, field
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from string import Template
from urllib.parse import unquote, urlsplit

import yaml
from filelock import FileLock

HERE = Path(__file__).resolve().parent
ASSETS = ('style.css', 'site.js')
READER = 'markdown-implicit_figures-citations+lists_without_preceding_blankline'


class SiteError(Exception):
    "What is wrong with the pages, one line for each fault."


# ---------------------------------------------------------------- what there is to render

@dataclass(eq=False)
class Page:
    "One notebook on its way to becoming a page."
    source:str # Its path below nbs/, as `_quarto.yml` lists it
    section:str = '' # Heading in the navigation, '' for home
    title:str = '' # Title cell, or the file's name
    about:str = '' # The promise below the title, Markdown
    out:str = '' # Path of the page, such as 'ranges.html'
    lead:str = '' # HTML of the promise
    body:str = '' # HTML of the content
    toc:list = field(default_factory=list) # (level, id, HTML text)
    entries:list = field(default_factory=list) # What the search finds: dicts
    classes:dict = field(default_factory=dict) # Where each class of the package is described


@dataclass(eq=False)
class Names:
    "Where names lead."
    host:str # Address under which nbdev links to documentation, '' for none
    names:dict # Notebook, or its name with .html, to page
    documented:dict # Page to the set of names that it describes


def listed(config):
    "Pages of a Quarto configuration, in the order of its sidebar: a list of `Page`."
    pages = []
    def walk(items, section):
        for item in items:
            if isinstance(item, str): pages.append(Page(item, section))
            elif 'contents' in item: walk(item['contents'], item.get('section', section))
            else: raise SiteError(f"_quarto.yml: the sidebar lists {item}, neither a notebook nor a section with contents")
    walk(config['website']['sidebar']['contents'], '')
    twice = {p.source for p in pages if [q.source for q in pages].count(p.source) > 1}
    if twice: raise SiteError(f"_quarto.yml lists {', '.join(sorted(twice))} twice")
    return pages


def without(items, missing):
    "The contents of a sidebar without the pages `missing`."
    kept = [dict(i, contents=without(i['contents'], missing)) if isinstance(i, dict) and 'contents' in i else i for i in items]
    return [i for i in kept if i not in missing and not (isinstance(i, dict) and i.get('contents') == [])]


def stage(top, say=print):
    "nbs/_quarto.yml, where nbdev wants it, and the pages it lists; pages that are not written yet are left out, and named."
    text = (top/'_quarto.yml').read_text(encoding='utf-8')
    config = yaml.safe_load(text)
    pages = listed(config)
    missing = [p.source for p in pages if not (top/'nbs'/p.source).is_file()]
    for name in missing: say(f"skipped: _quarto.yml lists {name}, and there is no nbs/{name}")
    if missing:
        config['website']['sidebar']['contents'] = without(config['website']['sidebar']['contents'], missing)
        text = yaml.safe_dump(config, sort_keys=False)
    (top/'nbs/_quarto.yml').write_text(text, encoding='utf-8')
    return config, [p for p in pages if p.source not in missing]


def process(top):
    "nbdev's half: `_proc` with one processed notebook for every notebook, made afresh."
    shutil.rmtree(top/'_proc', ignore_errors=True)
    path = os.pathsep.join(filter(None, [str(top), os.environ.get('PYTHONPATH')]))
    subprocess.run([sys.executable, '-c', "from nbdev.serve import proc_nbs\nif __name__ == '__main__': proc_nbs(force=True)"],
                   cwd=top, check=True, env=os.environ | {'PYTHONPATH': path, 'TQDM_DISABLE': '1'})
    return top/'_proc'


# ---------------------------------------------------------------- between nbdev and the renderer

def joined(text):
    "Sources and outputs are strings or lists of lines."
    return text if isinstance(text, str) else ''.join(text)


def opening(path):
    "Title, whole promise and what follows in the title cell (`# title`, `> promise`, text), of which nbdev keeps two lines."
    for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
        text = joined(cell['source']).strip()
        if cell['cell_type'] != 'markdown' or not text.startswith('# '): continue
        title,_,rest = text.partition('\n')
        about,_,after = rest.strip().partition('\n\n') if rest.strip().startswith('>') else ('', '', rest)
        return title[2:].strip(), ' '.join(s.strip().lstrip('>').strip() for s in about.split('\n')).strip(), after.strip()
    return '', '', ''


def target(page, nb):
    "Where a page goes: what nbdev's front matter says, beside its folder."
    head = joined(nb['cells'][0]['source']) if nb['cells'] and nb['cells'][0]['cell_type'] == 'raw' else ''
    said = re.search(r'^output-file:\s*(\S+)$', head, flags=re.M)
    name = said[1] if said else re.sub(r'^\d+[a-z]?_', '', Path(page.source).stem)+'.html'
    return (Path(page.source).parent/name).as_posix()


def relative(link, here):
    "A path of the site as seen from the page `here`."
    return os.path.relpath(link, Path(here).parent.as_posix() or '.').replace(os.sep, '/')


def local(text, url, page, site):
    "A Markdown link as the page needs it: nbdev's links to the hosted site, and names of notebooks, become links to pages."
    path,mark,anchor = url.partition('#')
    if site.host and path.startswith(site.host):
        goal,name = path[len(site.host):],text.strip('`')
        known = site.documented.get(goal, ())
        if name not in known: name = name.rpartition('.')[0] # A method is described with its class
        if mark and name not in known: return text # A private name has no description
        return f'[{text}]({relative(goal, page.out)}{mark}{name if mark else ""})'
    if not path or ':' in path: return f'[{text}]({url})'
    goal = os.path.normpath(Path(page.source).parent/unquote(path)).replace(os.sep, '/')
    return f'[{text}]({relative(site.names[goal], page.out)}{mark}{anchor})' if goal in site.names else f'[{text}]({url})'


def is_doc(cell):
    "Whether a cell is the documentation of a name, and of which."
    found = re.search(r'^show_doc\(\s*([\w.]+)', joined(cell['source']), flags=re.M) if cell['cell_type'] == 'code' else None
    return found and found[1]


def doc_text(cell):
    "Markdown that nbdev made for a name; links inside its code are taken out, where they would show as brackets."
    text = ''.join(joined(o.get('data', {}).get('text/markdown', '')) for o in cell.get('outputs', []))
    plain = lambda m: re.sub(r'\[(`[^`\]]+`)\]\([^)\s]+\)', r'\1', m[0]) # noqa: E731
    return re.sub(r'^```python\n.*?^```$', plain, text, flags=re.S | re.M)


def named(text, name):
    "The heading of a documented name gets that name as its anchor, so that `Sweep` and `sweep` are two."
    return re.sub(r'^(#+ .*?)\s*$', lambda m: f'{m[1]} {{#{name}}}', text, count=1, flags=re.M)


def in_order(cells):
    "nbdev documents the names of one cell last to first; here they come as they are defined, and shown source after them."
    done,run = [],[]
    def line(cell):
        found = re.search(r'\.py#L(\d+)\)', doc_text(cell))
        return int(found[1]) if found else 0
    def shown(cell): return cell['cell_type'] == 'code' and '#| code-fold: show' in joined(cell['source'])
    def settle():
        groups,docs = [],[c for c in run if is_doc(c)]
        for source in filter(shown, run):
            names = re.findall(r'^(?:def|class) (\w+)', joined(source['source']), flags=re.M)
            own = sorted((c for c in docs if is_doc(c).partition('.')[0] in names), key=line)
            docs = [c for c in docs if c not in own]
            groups.append([*own, source])
        groups += [[c] for c in docs]
        return [c for g in sorted(groups, key=lambda g: line(g[0]) if is_doc(g[0]) else 0) for c in g]
    for cell in cells:
        if is_doc(cell) or shown(cell): run.append(cell)
        else:
            done += [*settle(), cell]
            run.clear()
    return done+settle()


def classes(path):
    "Classes that a notebook exports: name to (field to comment, rows of (method, what it does))."
    found = {}
    for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
        code = joined(cell['source'])
        if cell['cell_type'] != 'code' or not re.search(r'^class ', code, flags=re.M) or not code.startswith('#| export'): continue
        said = comments(code)
        for c in [n for n in ast.parse(code).body if isinstance(n, ast.ClassDef)]:
            fields = {ast.unparse(n.target): said.get(n.end_lineno, '') for n in c.body if isinstance(n, ast.AnnAssign)}
            public = [n for n in c.body if isinstance(n, ast.FunctionDef) and not n.name.startswith('_') and ast.get_docstring(n)]
            found[c.name] = fields, [(called(n), ' '.join(ast.get_docstring(n).split())) for n in public]
    return found


def called(f):
    "A method as one reads it: a property by its name, others with what they take."
    marks = [ast.unparse(d) for d in f.decorator_list]
    if any('property' in m for m in marks): return f.name
    bare = ast.parse(f'def f({ast.unparse(f.args)}): pass').body[0].args
    for a in [*bare.posonlyargs, *bare.args, *bare.kwonlyargs, *filter(None, [bare.vararg, bare.kwarg])]: a.annotation = None
    return f"{f.name}({re.sub(r'^(self|cls)(, )?', '', ast.unparse(bare))})"


def with_fields(text, name, found):
    "Documentation of a class: comments of its fields, which nbdev does not pass on, and its methods."
    fields,methods = found
    code = re.search(r'^```python\n(.*?)^```$', text, flags=re.S | re.M)
    if code and any(fields.values()):
        try: _,params,_ = signature(code[1])
        except (SyntaxError, TypeError): params = []
        rows = [f"    {n}{':'+t if t else ''}{'='+d if d else ''}, # {m or fields.get(n, '')}".rstrip(' #') for n,t,d,m in params]
        if rows: text = '\n'.join([text[:code.start()]+'```python', f'def {name}(', *rows, '):', '```'])+text[code.end():]
    rows = [f'| {code_cell(n)} | {cell_text(about)} |' for n,about in methods]
    return '\n'.join([text.rstrip(), '\n| method | what it gives |', '|---|---|', *rows, '']) if rows else text


def finish(top, proc, pages):
    "What nbdev leaves open, in place: whole promises, documentation in order, links that stay on the site. Gives the pages names."
    ini = ConfigParser()
    ini.read(top/'settings.ini', encoding='utf-8')
    host = (ini.get('DEFAULT', 'doc_host', fallback='')+ini.get('DEFAULT', 'doc_baseurl', fallback='')).rstrip('/')
    host = host and host+'/'
    nbs = {p.source: json.loads((proc/p.source).read_text(encoding='utf-8')) for p in pages}
    for p in pages:
        p.out = target(p, nbs[p.source])
        p.title,p.about,rest = opening(top/'nbs'/p.source)
        p.title = p.title or Path(p.source).stem
        if rest: nbs[p.source]['cells'].insert(1, dict(cell_type='markdown', id='opening', metadata={}, source=rest))
    names = {str(Path(p.source).with_suffix('.html').as_posix()): p.out for p in pages} | {p.source: p.out for p in pages}
    site = Names(host, names, {p.out: {n for c in nbs[p.source]['cells'] if (n := is_doc(c))} for p in pages})
    described = {n: f'{out}#{n}' for out,names in site.documented.items() for n in sorted(names) if n[:1].isupper()}
    for p in pages:
        nb,p.classes = nbs[p.source],described
        def moved(text, p=p):
            text = re.sub(r'\[(\[`[^`\]]+`\]\([^()\s]+\))\]\([^()\s]+\)', r'\1', text) # nbdev links a name inside a link: one is enough
            return re.sub(r'(?<!!)\[([^\[\]]*)\]\(([^()\s]+)\)', lambda m: local(m[1], m[2], p, site), text)
        p.about = moved(p.about)
        nb['cells'],known = in_order(nb['cells']),classes(top/'nbs'/p.source)
        for cell in nb['cells']:
            if cell['cell_type'] == 'markdown': cell['source'] = moved(joined(cell['source']))
            elif (name := is_doc(cell)) and cell['outputs']:
                cell['outputs'] = cell['outputs'][:1]
                text = with_fields(doc_text(cell), name, known[name]) if name in known else doc_text(cell)
                cell['outputs'][0]['data']['text/markdown'] = moved(named(text, name))
        if nb['cells'] and nb['cells'][0]['cell_type'] == 'raw' and p.about:
            head = yaml.safe_load(joined(nb['cells'][0]['source']).strip().strip('-')) or {}
            nb['cells'][0]['source'] = f"---\n{yaml.safe_dump(head | {'description': p.about}, width=1000)}---\n"
        (proc/p.source).write_text(json.dumps(nb, ensure_ascii=False, indent=1), encoding='utf-8')
    return nbs


# ---------------------------------------------------------------- one page: notebook to Markdown

def comments(code):
    "Comment at the end of each line: dict of line number to text."
    found = {}
    for t in tokenize.generate_tokens(io.StringIO(code).readline):
        if t.type == tokenize.COMMENT: found[t.start[0]] = t.string.lstrip('#').strip()
    return found


def signature(code):
    "A signature taken apart: name, parameters [(name, type, default, meaning)] and (type, meaning) of what comes back."
    code = re.sub(r'^class (\w+)\(', r'def \1(', code.strip())
    said = comments(code+'\n pass\n')
    f = ast.parse(re.sub(r':(\s*#.*)?\s*\Z', r':\1', code)+'\n pass\n').body[0]
    a,text = f.args,lambda node: '' if node is None else ast.unparse(node)
    plain = [*a.posonlyargs, *a.args]
    defaults = [None]*(len(plain)-len(a.defaults))+list(a.defaults)
    rows = [(p.arg, p, d) for p,d in zip(plain, defaults, strict=True)]
    if a.vararg: rows.append(('*'+a.vararg.arg, a.vararg, None))
    rows += [(p.arg, p, d) for p,d in zip(a.kwonlyargs, a.kw_defaults, strict=True)]
    if a.kwarg: rows.append(('**'+a.kwarg.arg, a.kwarg, None))
    last = max((d or p).end_lineno for _,p,d in rows) if rows else f.lineno
    end = f.returns.end_lineno if f.returns else max(code.count('\n')+1, last)
    ends = [(d or p).end_lineno for _,p,d in rows]
    def meaning(i):
        upto = ends[i+1]-1 if i+1 < len(ends) else end-1
        return ' '.join(said[n] for n in range(ends[i], max(ends[i], upto)+1) if n in said)
    params = [(n, text(p.annotation).replace('NoneType', ''), text(d), meaning(i)) for i,(n,p,d) in enumerate(rows)]
    back = ' '.join(said[n] for n in sorted(said) if n >= end and n > last)
    return f.name, params, (text(f.returns), back)


def cell_text(text):
    "Prose inside a table: no raw HTML, and a bar is a character."
    parts = re.split(r'(`[^`]*`)', prose(text))
    return ''.join(code_cell(s[1:-1]) if s[:1] == '`' and '|' in s else s.replace('|', r'\|') for s in parts)


def code_cell(text):
    "Code inside a table, bars and all."
    return '`<code>'+escape(text).replace('|', '&#124;').replace('`', '&#96;')+'</code>`{=html}' if text else ''


def prose(text):
    "Markdown in which `<` outside code is a character, never a tag."
    return ''.join(s if s.startswith('`') else s.replace('<', r'\<') for s in re.split(r'(`+[^`]*`+)', text))


def code_span(text):
    "Any text as a Markdown code span."
    if not text: return ''
    ticks = '`'*(1+max((len(m) for m in re.findall('`+', text)), default=0))
    pad = ' ' if text[0] == '`' or text[-1] == '`' else ''
    return f'{ticks}{pad}{text}{pad}{ticks}'


def fenced(code, kind='python'):
    "Code in a fence longer than any inside it."
    ticks = '`'*max(3, 1+max((len(m) for m in re.findall('`+', code)), default=0))
    return f'{ticks} {{.{kind}}}\n{code}\n{ticks}'


def raw(html):
    "HTML that the Markdown reader hands on."
    return f'```{{=html}}\n{html}\n```'


def short_signature(name, params, back):
    "The call at a glance: names and defaults, on one line if it fits."
    parts = []
    for n,_,d,_ in params: parts.append(f'{n}={d}' if d else n)
    arrow = f' -> {back[0]}' if back[0] and back[0] != 'None' else ''
    line = f"{name}({', '.join(parts)}){arrow}"
    if len(line) <= 92: return line
    lines,now = [],'   '
    for part in parts:
        if len(now)+len(part) > 88: lines,now = [*lines, now],'   '
        now += f' {part},'
    return '\n'.join([f'{name}(', *lines, now.rstrip(','), f'){arrow}'])


def api(text, name, page):
    "Documentation of one name: heading, call, promise, table of parameters."
    anchor = name
    link = re.search(r'\[source\]\(([^)]+)\)', text)
    code = re.search(r'^```python\n(.*?)^```$', text, flags=re.S | re.M)
    after = text[code.end():].strip() if code else ''
    said = re.match(r'\*(?!\*)(.+?)\*(?:\n\n|\Z)(.*)', after, flags=re.S)
    after = prose(f'{said[1]}\n\n{said[2]}' if said else after).strip()
    kind = 'class' if name.split('.')[-1][:1].isupper() else 'function'
    source = f'[source]({link[1]}){{.source-link}}' if link else ''
    parts = [raw(f'<section class="api" aria-labelledby="{anchor}">'), f'### {code_span(name)} {{#{anchor} .symbol}}',
             f'[{kind}]{{.kind}} {source}']
    try: _,params,back = signature(code[1])
    except (SyntaxError, TypeError, tokenize.TokenError): params = None
    if params is None: parts.append(fenced(code[1].rstrip()) if code else '')
    else: parts.append(fenced(short_signature(name, params, back)))
    after,mark,methods = after.partition('| method |')
    parts.append(after)
    if params or (params is not None and back[1]): parts.append(table(params, back, page))
    if mark: parts.append(f'::: {{.methods}}\n\n{mark}{methods}\n\n:::')
    page.entries.append(dict(title=name, kind='symbol', about=plain(said[1] if said else ''), link=f'{page.out}#{anchor}'))
    return '\n\n'.join([*filter(None, parts), raw('</section>')])


def linked(text, page):
    "Names of classes in a comment lead to their description."
    def one(m): return f'[{m[0]}]({relative(page.classes[m[1]], page.out)})' if m[1] in page.classes else m[0]
    return re.sub(r'(?<![\[`])`([A-Z]\w*)`', one, text)


def table(params, back, page):
    "Parameters and what comes back, as a Markdown table."
    rows = [[code_cell(n), code_cell(t), code_cell(d), linked(cell_text(m), page)] for n,t,d,m in params]
    if any(back) and back[0] != 'None': rows.append(['*returns*', code_cell(back[0]), '', linked(cell_text(back[1]), page)])
    heads = ['parameter', 'type', 'default', 'meaning']
    keep = [i for i in range(4) if i == 0 or any(r[i] for r in rows)]
    line = lambda cells: '| '+' | '.join(cells[i].replace('\n', ' ') for i in keep)+' |' # noqa: E731
    return '\n'.join(['::: {.params}\n', line(heads), '|'+'---|'*len(keep), *map(line, rows), '\n:::'])


def plain(text):
    "Markdown without its marks, for search and titles."
    return re.sub(r'\s+', ' ', re.sub(r'[`*]|\[([^\]]*)\]\([^)]*\)', lambda m: m[1] or '', text)).strip()


def directives(source):
    "Quarto's `#| key: value` lines and the code below them."
    found = {}
    lines = source.split('\n')
    while lines and (m := re.match(r'#\|\s*([\w-]+):?\s*(.*)$', lines[0])):
        found[m[1]] = m[2].strip().strip('"')
        lines.pop(0)
    return found, '\n'.join(lines).strip('\n')


class Outputs:
    "Stored outputs of one page as HTML. They never pass through the Markdown reader: marks hold their places."
    def __init__(self, page, out):
        self.page,self.out,self.kept,self.figures = page,out,[],0

    def keep(self, html):
        "A mark for the Markdown, which `fill` replaces by `html`."
        self.kept.append(html)
        return raw(f'<!--output {len(self.kept)}-->')

    def fill(self, html):
        "The marks of `html` replaced."
        return re.sub(r'<!--output (\d+)-->', lambda m: self.kept[int(m[1])-1], html)

    def image(self, data, kind, options, code):
        "A figure beside the page, with its size and a text that says what it is."
        self.figures += 1
        name = f"{Path(self.page.out).stem}_files/figure-{self.figures}.{kind}"
        path = self.out/Path(self.page.out).parent/name
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = joined(data).encode() if kind == 'svg' else base64.b64decode(joined(data))
        path.write_bytes(raw)
        size = f' width="{int.from_bytes(raw[16:20])}" height="{int.from_bytes(raw[20:24])}"' if kind == 'png' else ''
        call = next((s.strip() for s in reversed(code.split('\n')) if s.strip()), '').rstrip(';')
        alt = options.get('fig-alt') or options.get('fig-cap') or f'Figure that the code above draws: {call[:160]}'
        caption = f"<figcaption>{escape(options['fig-cap'])}</figcaption>" if 'fig-cap' in options else ''
        ident = f' id="{escape(options["label"])}"' if 'label' in options else ''
        return f'<figure class="out"{ident}><img src="{name}" alt="{escape(alt)}"{size} loading="lazy">{caption}</figure>'

    def html(self, text):
        "Stored HTML as it is; its styles are confined to it, and light ones get light paper in the dark theme."
        n = f'out-{len(self.kept)+1}'
        coloured = re.search(r'style\s*=\s*"[^"]*(color|background)|<style(?! scoped)|<svg', text)
        paper = coloured and not re.search(r'light-dark|prefers-color-scheme', text)
        text = re.sub(r'<style scoped>.*?</style>', '', text, flags=re.S)
        text = re.sub(r'<style[^>]*>(.*?)</style>', lambda m: f'<style>#{n} {{{m[1]}}}</style>', text, flags=re.S)
        box = f'<div class="out html{" paper" if paper else ""}" id="{n}" tabindex="0" role="group" aria-label="output">'
        return f'{box}<div class="output_html">{text}</div></div>'

    def one(self, o, options, code):
        "One output as Markdown, richest form first."
        if o['output_type'] == 'stream': return self.text(joined(o['text']))
        if o['output_type'] == 'error': return self.text(f"{o['ename']}: {o['evalue']}")
        data = o.get('data', {})
        if 'text/html' in data: return self.keep(self.html(joined(data['text/html'])))
        for mime,kind in (('image/svg+xml', 'svg'), ('image/png', 'png'), ('image/jpeg', 'jpg')):
            if mime in data: return self.keep(self.image(data[mime], kind, options, code))
        if 'text/markdown' in data: return '::: {.out .markdown}\n\n'+prose(joined(data['text/markdown']))+'\n\n:::'
        return self.text(joined(data.get('text/plain', '')))

    def text(self, text):
        "Text stays text, whatever it looks like."
        if not text.strip(): return ''
        return self.keep(f'<pre class="out text" tabindex="0" aria-label="output">{escape(text.rstrip())}</pre>')


def markdown(nb, page, outputs):
    "A processed notebook as one Markdown text; Quarto's cell directives are honoured."
    parts = []
    for cell in nb['cells']:
        source = joined(cell['source']).strip('\n')
        if cell['cell_type'] == 'markdown':
            if not re.match(r'<!-- WARNING: THIS FILE WAS AUTOGENERATED', source) and not re.match(r'#\s', source): parts.append(source)
        elif cell['cell_type'] == 'code':
            options,code = directives(source)
            if options.get('include') == 'false': continue
            if name := is_doc(cell):
                if text := doc_text(cell): parts.append(api(text, name, page))
                continue
            if code and options.get('echo') != 'false':
                block = fenced(code)
                if (fold := options.get('code-fold')) and fold != 'false':
                    title = escape(options.get('code-summary', 'Code'))
                    way = ' open' if fold == 'show' else ''
                    block = '\n\n'.join([raw(f'<details class="fold"{way}><summary>{title}</summary>'), block, raw('</details>')])
                parts.append(f':::: {{.code}}\n\n{block}\n\n::::')
            if options.get('output') != 'false':
                parts += [outputs.one(o, options, code) for o in cell.get('outputs', []) if o.get('name') != 'stderr']
    return '\n\n'.join(filter(None, parts))+'\n'


def pandoc(text):
    "Markdown to HTML: mathematics as MathML, code in classes, nothing from elsewhere."
    import pypandoc
    call = [pypandoc.get_pandoc_path(), '--from', READER, '--to', 'html5', '--mathml', '--wrap', 'none', '--columns', '100000',
            '--lua-filter', str(HERE/'filter.lua')]
    done = subprocess.run(call, input=text, capture_output=True, text=True, encoding='utf-8')
    if done.returncode: raise SiteError(f'pandoc: {done.stderr.strip()}')
    return done.stdout


HEADING = re.compile(r'<h([2-4])((?:\s[^>]*)?)\sid="([^"]*)"([^>]*)>(.*?)</h\1>', flags=re.S)


def headings(html, page):
    "Headings get a link to themselves and go into contents and search. Where a section is called like a symbol, the symbol has the anchor."
    symbols = {m[3] for m in HEADING.finditer(html) if 'symbol' in m[2]+m[4]}
    def one(m):
        level,before,ident,after,text = m[1],m[2],m[3],m[4],m[5]
        symbol = 'symbol' in before+after
        if not symbol and ident in symbols: ident += '-section'
        if level in '23': page.toc.append((int(level), ident, text))
        words = unescape(re.sub(r'<[^>]+>', '', text)).strip()
        if not symbol: page.entries.append(dict(title=words, kind='section', about='', link=f'{page.out}#{ident}'))
        mark = f'<a class="anchor" href="#{ident}" aria-label="Link to {escape(words)}">#</a>'
        return f'<h{level}{before} id="{ident}"{after}>{text}{mark}</h{level}>'
    return HEADING.sub(one, html)


def content(nb, page, out):
    "Fills `page` with what its notebook says."
    page.entries.append(dict(title=page.title, kind='page', about=plain(page.about), link=page.out))
    outputs = Outputs(page, out)
    lead = f'::: {{.lead}}\n\n{page.about}\n\n:::\n\n' if page.about else ''
    page.lead,_,page.body = headings(pandoc(lead+raw('<!--lead-->')+'\n\n'+markdown(nb, page, outputs)), page).partition('<!--lead-->')
    page.body = outputs.fill(page.body)
    if faults := scripts(page.lead+page.body): raise SiteError('\n'.join(f'nbs/{page.source}: {f}' for f in faults))
    return page


# ---------------------------------------------------------------- the folder of pages

def navigation(pages, here):
    "The list of all pages as seen from one of them."
    parts,section = [],None
    for p in pages:
        if p.section != section:
            if section is not None: parts.append('</ul>')
            if p.section: parts.append(f'<h2>{escape(p.section)}</h2>')
            parts.append('<ul>')
            section = p.section
        mark = ' aria-current="page"' if p is here else ''
        parts.append(f'<li><a href="{relative(p.out, here.out)}"{mark}>{escape("home" if p.out == "index.html" else p.title)}</a></li>')
    return '\n'.join([*parts, '</ul>'])


def contents(page):
    "Table of contents of one page."
    if not page.toc: return ''
    items = [f'<li class="level-{level}"><a href="#{ident}">{text}</a></li>' for level,ident,text in page.toc]
    return '<details class="toc" open><summary>On this page</summary>\n<ol>\n'+'\n'.join(items)+'\n</ol></details>'


def steps(pages, i):
    "Links to the page before and the page after."
    def link(j, way, word):
        if not 0 <= j < len(pages): return ''
        p = pages[j]
        return (f'<a class="{way}" rel="{way}" href="{relative(p.out, pages[i].out)}"><span>{word}</span> '
                f'{escape("home" if p.out == "index.html" else p.title)}</a>')
    return link(i-1, 'prev', 'Previous')+link(i+1, 'next', 'Next')


def write(pages, config, out):
    "Pages, assets and the index of the search."
    form = Template((HERE/'page.html').read_text(encoding='utf-8'))
    site = config['website']
    for i,p in enumerate(pages):
        root = '' if '/' not in p.out else '../'*p.out.count('/')
        home = p.out == 'index.html'
        title = site['title'] if home else f"{p.title} · {site['title']}"
        text = form.substitute(title=escape(title), about=escape(plain(p.about) or site.get('description', '')), root=root,
            name=escape(site['title']), heading=escape(p.title), kind='home' if home else 'page', nav=navigation(pages, p),
            section=escape(p.section), toc=contents(p), lead=p.lead, body=p.body, steps=steps(pages, i))
        (out/p.out).parent.mkdir(parents=True, exist_ok=True)
        (out/p.out).write_text(text, encoding='utf-8')
    for name in ASSETS: shutil.copyfile(HERE/name, out/name)
    found = [[e['title'], e['kind'], p.title, e['about'][:160], e['link']] for p in pages for e in p.entries]
    (out/'search-index.js').write_text('window.SEARCH_INDEX = '+json.dumps(found, ensure_ascii=True, indent=0).replace('</', '<\\/')+';\n',
                                       encoding='utf-8')


def images(pages, nbs, out):
    "Pictures that the pages show from beside their notebooks, copied to the same place."
    for p in pages:
        for src in re.findall(r'<img\b[^>]*?\ssrc="([^"]+)"', p.body):
            if ':' in src or (out/Path(p.out).parent/src).exists(): continue
            path = os.path.normpath(Path(p.source).parent/unquote(src))
            if path.startswith('..') or not (nbs/path).is_file(): continue
            (out/path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(nbs/path, out/path)


# ---------------------------------------------------------------- what must hold

class Reading(HTMLParser):
    "Identifiers, links, and whatever a browser would ask for or run."
    ASKS = {'img': ('src', 'srcset'), 'script': ('src',), 'link': ('href',), 'iframe': ('src',), 'source': ('src', 'srcset'),
            'video': ('src', 'poster'), 'audio': ('src',), 'embed': ('src',), 'object': ('data',), 'input': ('src',), 'track': ('src',)}
    def __init__(self):
        super().__init__()
        self.ids,self.links,self.asks,self.runs,self.style = [],[],[],[],''
        self.inside = ''

    def handle_starttag(self, tag, attrs):
        "One element."
        for k,v in attrs:
            v = v or ''
            if k == 'id': self.ids.append(v)
            if tag in ('a', 'area') and k == 'href': self.links.append(v)
            if k in self.ASKS.get(tag, ()): self.asks.append(v)
            if k == 'style': self.style += v
            if k.startswith('on') or v.strip().lower().startswith('javascript:'): self.runs.append(f'<{tag} {k}=...>')
        if tag == 'script': self.runs.append('<script>')
        self.inside = tag

    def handle_endtag(self, tag): self.inside = ''

    def handle_data(self, data):
        "Style sheets on the page."
        if self.inside == 'style': self.style += data


def read(html):
    "A `Reading` of one text."
    r = Reading()
    r.feed(html)
    r.close()
    return r


def scripts(html):
    "Whatever a stored output would run: nothing may."
    return [f'a stored output would run code: {r}' for r in dict.fromkeys(read(html).runs)]


def outside(url): return bool(urlsplit(url).scheme or urlsplit(url).netloc) and not url.startswith('data:')


def styles_ask(css):
    "Addresses elsewhere that a style sheet would load."
    return [u for u in re.findall(r'(?:url\(|@import)\s*["\']?([^"\')\s;]+)', css) if outside(u)]


def check(out, sources=None):
    "Reads a whole folder of pages: (faults, links that lead elsewhere). A fault names page and link."
    paths = sorted(p for p in out.rglob('*.html'))
    pages = {p.relative_to(out).as_posix(): read(p.read_text(encoding='utf-8')) for p in paths}
    faults,elsewhere = [],set()
    for name,r in pages.items():
        who = (sources or {}).get(name, name)
        twice = sorted({i for i in r.ids if r.ids.count(i) > 1}) if len(set(r.ids)) < len(r.ids) else []
        faults += [f'{who}: two elements are called {i}' for i in twice]
        faults += [f'{who}: opening it would ask {u}' for u in [*filter(outside, r.asks), *styles_ask(r.style)]]
        for url in [*r.links, *r.asks]:
            if outside(url): elsewhere.add(url)
            elif not url.startswith('data:'):
                path,_,anchor = url.partition('#')
                goal = os.path.normpath(Path(name).parent/unquote(path.partition('?')[0])).replace(os.sep, '/') if path else name
                if goal.startswith('..') or not (out/goal).is_file(): faults.append(f'{who}: broken link {url}')
                elif anchor and goal in pages and unquote(anchor) not in pages[goal].ids:
                    faults.append(f'{who}: broken link {url} (no such anchor)')
    for p in sorted(out.rglob('*.css')):
        faults += [f'{p.relative_to(out)}: it would ask {u}' for u in styles_ask(p.read_text(encoding='utf-8', errors='replace'))]
    return list(dict.fromkeys(faults)), sorted(elsewhere)


# ---------------------------------------------------------------- the two ways

def with_quarto(quarto, proc, out):
    "Quarto renders the processed notebooks as they are; it runs nothing."
    shutil.copyfile(HERE/'offline.scss', proc/'offline.scss')
    subprocess.run([quarto, 'render', '--no-execute', '--output-dir', os.path.relpath(out, proc)], cwd=proc, check=True)


def with_pandoc(top, nbs, pages, config, out):
    "The preview: the same pages through pandoc, written whole or not at all."
    new = out.with_name(out.name+'.new')
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool: list(pool.map(lambda p: content(nbs[p.source], p, new), pages))
    images(pages, top/'nbs', new)
    write(pages, config, new)
    faults,elsewhere = check(new, {p.out: f'nbs/{p.source}' for p in pages})
    if faults: raise SiteError('\n'.join(faults))
    (new/'external-links.txt').write_text('\n'.join(elsewhere)+'\n', encoding='utf-8')
    shutil.rmtree(out, ignore_errors=True)
    new.rename(out)
    return elsewhere


def build(top, out, say=print, quarto=None):
    "The site of the checkout `top` into the folder `out`, by the Quarto at `quarto` if there is one; `SiteError` says what is wrong."
    top,out = Path(top).resolve(),Path(out).resolve()
    (top/'build').mkdir(exist_ok=True)
    with FileLock(top/'build'/'site.lock'): return build_alone(top, out, say, quarto) # `_proc` is one for the whole checkout


def build_alone(top, out, say, quarto):
    "The same, while no other process builds the site of this checkout."
    config,pages = stage(top, say)
    proc = process(top)
    nbs = finish(top, proc, pages)
    if quarto:
        say(f'Quarto renders {len(pages)} pages')
        with_quarto(quarto, proc, out)
        faults,elsewhere = check(out)
        for f in faults: say(f'look at this: {f}')
    else:
        say(f'pandoc renders {len(pages)} pages; where Quarto is installed, it does')
        elsewhere = with_pandoc(top, nbs, pages, config, out)
    say(f'{len(elsewhere)} addresses lead elsewhere; nothing is asked of them until someone clicks')
    say(f'{out/"index.html"}')
    return pages


def main():
    "Command line."
    parser = argparse.ArgumentParser(description='Render the documentation')
    parser.add_argument('--out', default='_docs', help='folder to write')
    parser.add_argument('--top', default=HERE.parent, type=Path, help='checkout to render')
    parser.add_argument('--preview', action='store_true', help='render with pandoc also where Quarto is installed')
    args = parser.parse_args()
    try: build(args.top, args.top/args.out, quarto=None if args.preview else shutil.which('quarto'))
    except SiteError as e: sys.exit(f'The site is not built.\n{e}')


if __name__ == '__main__': main()
