"""Data files: read right or refused by file, line and column; at once and in chunks alike."""
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neuronlens.ground.core import InputError
from neuronlens.ground.data import make_texts, read_chunks, read_texts
from neuronlens.models.model import align, load_classifier
from neuronlens.records.summary import summarise
from neuronlens.studies.spec import read_study

ROWS = [('a', 'x'), ('b', 'y'), ('c', 'x'), ('d', 'y')]


def both_ways(path, **kw):
    "Texts with their class names, at once and two rows at a time; a complaint is the same either way."
    def whole(): return [read_texts(path, **kw)]
    said, read = [], []
    for way in (whole, lambda: list(read_chunks(path, size=2, **kw)), lambda: list(read_chunks(path, size=100, **kw))):
        try: read.append([(t, p.classes[i], r) for p in way() for t, i, r in zip(p.texts, p.labels, p.rows.tolist(), strict=True)])
        except InputError as e: said.append(str(e))
    assert (len(read), len(said)) in ((3, 0), (0, 3)), (read, said)
    assert len(set(map(str, read)) | set(said)) == 1
    if said: raise InputError(said[0])
    return [r[:2] for r in read[0]]


def jsonl(path, *rows):
    path.write_text(''.join(r if isinstance(r, str) else json.dumps(r)+'\n' for r in rows), encoding='utf-8')
    return path


def labelled(labels): return [f'{{"text": "t{i}", "label": {l}}}\n' for i, l in enumerate(labels)]


def parquet(path, columns, names):
    pq.write_table(pa.Table.from_arrays([c if isinstance(c, pa.Array) else pa.array(c) for c in columns], names), path)
    return path


TEXTS, LABELS = (list(c) for c in zip(*ROWS, strict=True))


@pytest.mark.parametrize('ending,sep', [('csv', ','), ('tsv', '\t')])
def test_quotes_inside_a_cell(tmp_path, ending, sep):
    "After a closing quotation mark only a separator may follow: the row is named, nothing is swallowed."
    rows = [('"He left early', 'pos'), ('fine film', 'neg'), ('"what a film" she said', 'pos'), ('very dull', 'neg')]
    (f := tmp_path/f'q.{ending}').write_text(f'text{sep}label\n'+''.join(f'{t}{sep}{l}\n' for t, l in rows))
    with pytest.raises(InputError, match=rf'q.{ending}: cannot be read \(line 2: after a closing quotation mark'): both_ways(f)
    f.write_text(f'text{sep}label\nfine{sep}x\n\n"a "b" c"{sep}x\nd{sep}y\n')
    with pytest.raises(InputError, match='line 4: after a closing'): both_ways(f)
    f.write_text(f'text{sep}label\na "b" c{sep}x\n"a ""b"" c"{sep}y\n"a\n{sep}b"{sep}x\nd{sep}y\n')
    assert both_ways(f) == [('a "b" c', 'x'), ('a "b" c', 'y'), (f'a\n{sep}b', 'x'), ('d', 'y')]
    f.write_text(f'text{sep}label\na{sep}x\n"b{sep}x\nd{sep}y\n')
    with pytest.raises(InputError, match='the quotation in line 3 never ends'): both_ways(f)


MIXED = [(['1', '1.0', '"1"', '0', '"0"', '0'], "'1' .row 1. and '1.0' .row 2."),
         (['1', '0', 'true', 'false'], "'1' .row 1. and 'True' .row 3."),
         (['true', 'false', '"1"', '"0"'], "'True' .row 1. and '1' .row 3."), (['"1."', '"0"', '1', '0'], "'1.' .row 1. and '1' .row 3."),
         (['1', '0', '2', '2', '0', '1', '1.0', '0'], "'1' .row 1. and '1.0' .row 7."),
         (['true', 'false', '"true"', 'false'], "'True' .row 1. and 'true' .row 3."),
         (['"FALSE"', 'true', 'false'], "'FALSE' .row 1. and 'False' .row 3."),
         (['1e16', '10000000000000000', '0', '0'], r"'1e\+16' .row 1. and '10000000000000000' .row 2."),
         (['"10000000000000000"', '0', '0', '1e16'], r"'10000000000000000' .row 1. and '1e\+16' .row 4.")]


@pytest.mark.parametrize('labels,said', MIXED)
def test_labels_written_in_two_ways(tmp_path, labels, said):
    "One class or two? Also where the two ways are in different chunks."
    f = jsonl(tmp_path/'m.jsonl', *labelled(labels))
    with pytest.raises(InputError, match=f'm.jsonl: labels {said} both occur'): both_ways(f)


def test_numbers_and_their_names_are_one_class(tmp_path):
    labels = ['1', '"1"', '0', '"0"', '"01"', '"01"']
    f = jsonl(tmp_path/'m.jsonl', *labelled(labels))
    assert [l for _, l in both_ways(f)] == ['1', '1', '0', '0', '01', '01'] # A leading 0 is no number written in another way
    f = jsonl(tmp_path/'t.jsonl', *labelled(['true', 'false', '"True"', 'false']))
    assert [l for _, l in both_ways(f)] == ['True', 'False', 'True', 'False']
    assert make_texts(list('abcd'), np.array([1., 0., 1., 0.])).classes == ('0.0', '1.0')
    assert make_texts(list('abcd'), pd.Series([1, 0, 1, 0], dtype='Int64')).classes == ('0', '1')


def test_names_that_differ_by_case_stay_apart(tmp_path):
    "They are two classes, as are true and TRUE where all labels are text."
    for names in (['Animal', 'ANIMAL'], ['true', 'TRUE'], ['1e5', '1E5']):
        f = jsonl(tmp_path/'c.jsonl', *labelled(json.dumps(n) for n in names*2))
        assert [l for _, l in both_ways(f)] == names*2


@pytest.mark.parametrize('first', ['{"text": ""}\n', '{"label": "a"}\n', '{"other": 1}\n'])
def test_a_key_that_comes_late(tmp_path, first):
    "Both readers look for it in the whole file, and miss it in the same words."
    f = jsonl(tmp_path/'late.jsonl', *[first]*3, *labelled(['"x"', '"y"']*2))
    assert [l for _, l in both_ways(f, skip_empty=True)] == ['x', 'y']*2
    with pytest.raises(InputError, match='late.jsonl: 3 rows .1, 2, 3. empty'): read_texts(f)
    f = jsonl(tmp_path/'never.jsonl', *['{"text": "a", "other": 1}\n']*4, '{"text": "b", "last": 2}\n')
    with pytest.raises(InputError, match="no column 'label'; it has 'text', 'other', 'last'"): both_ways(f, skip_empty=True)


def test_labels_of_another_file(tmp_path):
    "Two files of one folder are one reading."
    jsonl(tmp_path/'a.jsonl', dict(text='a', label=1), dict(text='b', label=0))
    jsonl(tmp_path/'b.jsonl', dict(text='a', label=1.), dict(text='b', label=0))
    with pytest.raises(InputError, match="b.jsonl: labels '1' .row 1. and '1.0' .row 1. both occur"): list(read_chunks(tmp_path))


def test_columns_and_keys_that_are_there_twice(tmp_path):
    (f := tmp_path/'d.csv').write_text('text,label,text\n'+''.join(f'{t},{l},z\n' for t, l in ROWS))
    with pytest.raises(InputError, match="d.csv: column 'text' is there 2 times"): both_ways(f)
    f.write_text('text,label,other,other\n'+''.join(f'{t},{l},1,2\n' for t, l in ROWS))
    assert both_ways(f) == ROWS
    f = jsonl(tmp_path/'d.jsonl', dict(text='a', label='x'), '{"text": "b", "label": "x", "text": "c"}\n')
    with pytest.raises(InputError, match="line 2 is not JSON .key 'text' is there twice"): both_ways(f)
    f = parquet(tmp_path/'d.parquet', [TEXTS, LABELS, ['z']*4], ['text', 'label', 'text'])
    with pytest.raises(InputError, match="d.parquet: column 'text' is there 2 times"): both_ways(f)
    assert both_ways(parquet(tmp_path/'e.parquet', [TEXTS, LABELS, [1]*4, [2]*4], ['text', 'label', 'n', 'n'])) == ROWS


def test_columns_of_bytes(tmp_path):
    "As other tools write text: read as UTF-8, or the row is named."
    binary = [pa.array([t.encode() for t in ('a', 'é', 'c', 'd')]), pa.array([l.encode() for l in LABELS], pa.large_binary())]
    assert both_ways(parquet(tmp_path/'b.parquet', binary, ['text', 'label'])) == [('a', 'x'), ('é', 'y'), ('c', 'x'), ('d', 'y')]
    f = parquet(tmp_path/'c.parquet', [pa.array([b'a', b'b', b'\xff', b'd']), LABELS], ['text', 'label'])
    with pytest.raises(InputError, match=r"c.parquet: column 'text' holds bytes that are not UTF-8 \(row 3\)"): both_ways(f)
    with pytest.raises(InputError, match="given: the label in row 2 is bytes, b'y'"): make_texts(list('abcd'), ['x', b'y', 'x', 'y'])


@pytest.mark.parametrize('code', ['utf-8-sig', 'utf-16', 'utf-32'])
def test_byte_order_marks(tmp_path, code):
    "As Windows tools write them."
    (f := tmp_path/'m.csv').write_text('text,label\nä ö,x\nb,y\n"c\n",x\nd,y\n', encoding=code)
    assert both_ways(f) == [('ä ö', 'x'), ('b', 'y'), ('c\n', 'x'), ('d', 'y')]
    lines = [json.dumps(dict(text=t, label=l), ensure_ascii=False) for t, l in ROWS]
    (f := tmp_path/'m.jsonl').write_text('\n'.join(lines), encoding=code)
    assert both_ways(f) == ROWS


def test_a_mark_that_does_not_hold(tmp_path):
    (f := tmp_path/'m.csv').write_bytes(b'\xff\xfe'+'text,label\n'.encode('utf-16-le')+b'\x00\xd8\x00\x00')
    with pytest.raises(InputError, match='m.csv: not UTF-16 text, as its byte-order mark says'): both_ways(f)
    (f := tmp_path/'l.csv').write_bytes(b'text,label\na,x\ncaf\xe9,y\n')
    with pytest.raises(InputError, match=r'l.csv: not UTF-8 text \(line 3\)'): both_ways(f)
    (f := tmp_path/'n.csv').write_text('text,label\na,x\nb,y\n', encoding='utf-16-le') # No mark
    with pytest.raises(InputError, match="n.csv: no column 'text'"): both_ways(f)


@pytest.mark.parametrize('row', ['['*100000, '{"a": '+'9'*5000+'}', '{"text": "a", "label": }', 'null', '[1]',
                                 '{"text": "\\ud800", "label": "x"}'])
def test_lines_that_are_no_objects(tmp_path, row):
    f = jsonl(tmp_path/'j.jsonl', *(dict(text=t, label=l) for t, l in ROWS[:2]), row+'\n')
    with pytest.raises(InputError, match=r'j.jsonl: (line|row) 3 (is not|empty or not)'): both_ways(f)


def test_a_flipped_byte_in_parquet(tmp_path):
    "Read as it was, or one sentence that does not speak of lines."
    good = parquet(tmp_path/'g.parquet', [[f'text {i} of many é' for i in range(40)], ['x', 'y']*20], ['text', 'label']).read_bytes()
    rng, seen = np.random.default_rng(0), set()
    for i in range(150):
        b = bytearray(good)
        b[at := int(rng.integers(len(b)))] ^= 1 << int(rng.integers(8))
        (f := tmp_path/'f.parquet').write_bytes(b)
        try: seen.add(len(read_texts(f)))
        except InputError as e:
            assert 'line 1' not in str(e) and str(e).startswith(f'{f}: ') and '\n' not in str(e), (i, at)
            seen.add('refused')
    assert {40, 'refused'} <= seen


def test_a_nul_in_a_path(tmp_path):
    for fn in (read_texts, lambda p: list(read_chunks(p))):
        with pytest.raises(InputError, match=r"'a\\x00b.csv': no such file"): fn('a\0b.csv')
    (f := tmp_path/'s.toml').write_text('[data]\ntrain = "a\\u0000b.csv"\ntest = "t.csv"\n[model]\nclassifier = "m"\n')
    with pytest.raises(InputError, match=r"'a\\x00b.csv' is no path"): read_study(f)


def test_a_study_file_with_a_mark(tmp_path):
    (f := tmp_path/'s.toml').write_text('[data]\ntrain = "bbc_news"\n[model]\nencoder = "minilm"\n', encoding='utf-8-sig')
    assert read_study(f).data.train == 'bbc_news'


def test_random_tables_survive_every_format(tmp_path):
    "What csv, json and pyarrow write of awkward texts comes back, row by row, from every format."
    rng = np.random.default_rng(0)
    parts = ['"', "'", ',', '\t', '\n', 'a', 'é', ' ', '""', 'NA', '\u2028', '冬', '#', '\\', '=', 'null', ';', '\x0b']
    for i in range(15):
        texts = ['t'+''.join(rng.choice(parts, rng.integers(1, 8))) for _ in range(20)]
        df = pd.DataFrame({'text': texts, 'label': rng.permutation(['x', 'y "z"', '冬', '1']*5)})
        for ending, write in {'csv': partial(df.to_csv, index=False), 'tsv': partial(df.to_csv, index=False, sep='\t'),
                              'parquet': df.to_parquet, 'jsonl': partial(df.to_json, orient='records', lines=True)}.items():
            write(f := tmp_path/f'{i}.{ending}')
            assert both_ways(f) == list(df.itertuples(index=False, name=None)), (i, ending)


@pytest.mark.parametrize('labels, wanted', [((1, 2, 3, 3, 2, 1), [0, 1, 2, 2, 1, 0]), ((1, 2, 1, 2), [0, 1, 0, 1]),
                                            ((1, 2, 1, 2, 0, 0), None)])
def test_names_that_are_numbers(bert, tmp_path, labels, wanted):
    "A model's outputs called 1 to 3: a label is a name, in a whole file and in a part of it, and one that is none is refused."
    clf = load_classifier(bert, classes=['1', '2', '3'], device='cpu')
    (tmp_path/'t.csv').write_text('text,label\n'+''.join(f'cat {i} dog,{c}\n' for i, c in enumerate(labels)))
    whole, parts = read_texts(tmp_path/'t.csv'), list(read_chunks(tmp_path/'t.csv', size=2))
    if wanted is None:
        why = "label '0' may be a place among the model's classes"
        for t in (whole, parts[-1]):
            with pytest.raises(InputError, match=why): align(t, clf, every=False)
        with pytest.raises(InputError, match=why): summarise(clf, read_chunks(tmp_path/'t.csv', size=6), progress=False)
    else:
        assert align(whole, clf, every=False).labels.tolist() == wanted
        assert [n for t in parts for n in align(t, clf, every=False).labels.tolist()] == wanted
    numbered = replace(clf, classes=('0', '1', '2')) # Names and places agree
    if 3 not in labels: assert align(whole, numbered, every=False).labels.tolist() == list(labels)


@pytest.mark.parametrize('chunked', [False, True])
def test_names_that_differ_by_case_alone(bert, tmp_path, chunked):
    "Two names of texts are never one class; a name in another case is the model's only where that is one."
    def read(classes, labels):
        (tmp_path/'t.csv').write_text('text,label\n'+''.join(f'cat {i} dog,{c}\n' for i, c in enumerate(labels)))
        clf = load_classifier(bert, classes=classes, device='cpu')
        if chunked: return summarise(clf, read_chunks(tmp_path/'t.csv', size=2), progress=False).n.tolist()
        return np.bincount(align(read_texts(tmp_path/'t.csv'), clf).labels).tolist()
    assert read(['Pos', 'pos', 'neg'], ['Pos', 'pos', 'neg']*2) == read(['x', 'y', 'z'], ['X', 'y', 'Z']*2) == [2, 2, 2]
    with pytest.raises(InputError, match="'POS' is none of the model's"): read(['Pos', 'pos', 'neg'], ['POS', 'pos', 'neg']*2)
    with pytest.raises(InputError, match="'ANIMAL' and 'Animal' are both the model's 'animal'"):
        read(['animal', 'food', 'tool'], ['Animal', 'ANIMAL', 'food', 'tool']*2)
