"""Texts that do not fit into memory at once, memory that runs out, and machines that are not all ours."""
import gc
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
import weakref
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CLASSES, WORDS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import neuronlens.ground.machine as machine_room
import neuronlens.models.batches as batches_room
import neuronlens.models.weights as weights_room
from neuronlens.ground.core import InputError
from neuronlens.ground.data import make_texts, read_chunks, read_texts
from neuronlens.ground.files import atomic
from neuronlens.ground.machine import usable_cpus
from neuronlens.ground.rounding import agree
from neuronlens.models.anatomy import Site
from neuronlens.models.batches import batches, each_batch, encode, out_of_memory, pad, token_budget
from neuronlens.models.hooks import logits, run
from neuronlens.models.model import align, load_classifier, load_model

pytestmark = pytest.mark.usefixtures('one_thread')
FORMATS = ('csv', 'tsv', 'jsonl', 'parquet')


# --- files a chunk at a time

def write(df, path):
    match path.suffix:
        case '.csv': df.to_csv(path, index=False)
        case '.tsv': df.to_csv(path, index=False, sep='\t')
        case '.jsonl': df.to_json(path, orient='records', lines=True)
        case '.parquet': df.to_parquet(path, row_group_size=7)
    return path


def joined(parts):
    "What chunks hold together: texts, class names, rows, rows skipped."
    parts = list(parts)
    return ([t for p in parts for t in p.texts], [p.classes[i] for p in parts for i in p.labels],
            [int(r) for p in parts for r in p.rows], sum(p.skipped for p in parts))


@pytest.mark.parametrize('size', [1, 4, 7, 60, 1000])
@pytest.mark.parametrize('ending', FORMATS)
def test_chunks_are_the_file(ending, size, tmp_path, frame):
    path = write(frame, tmp_path/f't.{ending}')
    whole, parts = read_texts(path), list(read_chunks(path, size=size))
    assert joined(parts) == joined([whole])
    assert whole.texts == frame.text.tolist() and whole.rows.tolist() == list(range(1, 61))
    assert all(0 < len(p) <= size and p.source == str(path) for p in parts)
    assert all(p.classes == tuple(sorted(set(p.to_frame().label))) for p in parts)


@pytest.mark.parametrize('size', [1, 2, 3, 100])
@pytest.mark.parametrize('ending', FORMATS)
def test_skipped_rows_are_counted_once_wherever_they_are(ending, size, tmp_path):
    texts, labels = ['', 'a', '', '', '', 'b', 'c', 'd', '', ''], list('xxyxyyxyxy')
    path = write(pd.DataFrame({'text': texts, 'label': labels}), tmp_path/f't.{ending}')
    got = joined(read_chunks(path, size=size, skip_empty=True))
    assert got == joined([read_texts(path, skip_empty=True)]) == (list('abcd'), list('xyxy'), [2, 6, 7, 8], 6)
    with pytest.raises(InputError, match='t.*row 1 empty' if size == 1 else 'rows? .*1.* empty'): list(read_chunks(path, size=size))


def test_nothing_but_empty_rows(tmp_path):
    path = write(pd.DataFrame({'text': ['']*5, 'label': list('xyxyx')}), tmp_path/'t.csv')
    with pytest.raises(InputError, match='no row has a text'): list(read_chunks(path, size=2, skip_empty=True))
    (tmp_path/'h.csv').write_text('text,label\n')
    with pytest.raises(InputError, match='no rows'): list(read_chunks(tmp_path/'h.csv'))


@pytest.mark.parametrize('ending', FORMATS)
def test_numbers_for_classes_sort_as_numbers(ending, tmp_path):
    path = write(pd.DataFrame({'text': list('abcdefgh'), 'label': [10, 9, -1, 2]*2}), tmp_path/f't.{ending}')
    assert [p.classes for p in read_chunks(path, size=4)] == [('-1', '2', '9', '10')]*2


@pytest.mark.parametrize('ending', FORMATS)
def test_complaints_name_the_row_of_a_late_chunk(ending, tmp_path, frame):
    df = frame.astype(object)
    df.loc[41, 'text'] = ''
    df.loc[52, 'label'] = '' if ending in ('csv', 'tsv') else None
    chunks = read_chunks(write(df, tmp_path/f't.{ending}'), size=10)
    for _ in range(3): next(chunks)
    with pytest.raises(InputError, match=rf't\.{ending}: row 42 empty'): list(chunks)
    with pytest.raises(InputError, match=rf't\.{ending}: row 53 without a label'):
        list(read_chunks(tmp_path/f't.{ending}', size=10, skip_empty=True))


def test_a_folder_or_a_list_of_files(tmp_path, frame):
    for i, ending in enumerate(FORMATS): write(frame[15*i:15*i+15], tmp_path/f'{i}.{ending}')
    (tmp_path/'README.md').write_text('Four quarters.')
    (tmp_path/'_part.csv').write_text('half a fi')
    folder = list(read_chunks(tmp_path, size=10))
    assert joined(folder)[:3] == (frame.text.tolist(), frame.label.tolist(), [*range(1, 16)]*4)
    assert [p.source for p in folder[::2]] == [str(tmp_path/f'{i}.{e}') for i, e in enumerate(FORMATS)]
    back = joined(read_chunks([tmp_path/'3.parquet', str(tmp_path/'0.csv')]))
    assert back[0] == frame.text.tolist()[45:]+frame.text.tolist()[:15]


def test_what_cannot_be_read_is_refused_before_anything_is_read(tmp_path, frame):
    good = write(frame, tmp_path/'t.csv')
    (tmp_path/'e.csv').write_text('')
    (tmp_path/'x.xlsx').write_text('x')
    (tmp_path/'none').mkdir()
    for bad, says in (('gone.csv', 'no such file'), ('e.csv', 'is empty'), ('x.xlsx', 'cannot read .xlsx'), ('none', 'folder holds no')):
        with pytest.raises(InputError, match=says): read_chunks([good, tmp_path/bad])
    with pytest.raises(InputError, match='size=0 must be'): read_chunks(good, size=0)
    for path in (good, write(frame, tmp_path/'t.jsonl'), write(frame, tmp_path/'t.parquet')):
        with pytest.raises(InputError, match="no column 'body'; it has 'text', 'label'"): next(read_chunks(path, text='body'))


CELL = st.text(st.characters(exclude_categories=['Cs'], exclude_characters='\0\ue000'), max_size=8)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=12), st.integers(1, 5), st.sampled_from([',', '\t']),
       st.sampled_from(['\n', '\r\n']))
def test_csv_cells_are_those_pandas_reads(tmp_path, cells, size, sep, end):
    "Quotes, separators, line ends and odd characters: another reader agrees on what pandas wrote."
    path = tmp_path/('t.csv' if sep == ',' else 't.tsv')
    df, every = pd.DataFrame([(a+'.', b+'.') for a, b in cells], columns=['text', 'label']), size % 2
    if not every: df = df.map(lambda x: x.replace('\r', '')) # Which pandas writes without quotes, though it ends a line
    df.to_csv(path, index=False, sep=sep, lineterminator=end, quoting=every)
    known = pd.read_csv(path, sep=sep, dtype=str, na_filter=False)
    texts, labels, rows, _ = joined(read_chunks(path, size=size))
    assert texts == known.text.tolist()
    assert labels == [re.sub(r'\s*\r\s*', ' ', c.strip()) for c in known.label] # A class name in one line
    assert rows == list(range(1, len(cells)+1))


def test_blank_lines_count_as_rows(tmp_path):
    (tmp_path/'t.csv').write_text('\n\ntext,label\n\na,x\n  \n"b\n\n,b",y\n\n\nc,x\nd,y\n\n')
    (tmp_path/'t.jsonl').write_text('\n{"text":"a","label":"x"}\n \n{"text":"b","label":"y"}\r\n\n\n'
                                    '{"text":"c","label":"x"}\n{"text":"d","label":"y"}')
    for ending, first in (('csv', 2), ('jsonl', 2)):
        whole = read_texts(tmp_path/f't.{ending}')
        assert whole.rows.tolist() == [first, 4, 7, 8] and whole.texts[0::2] == ['a', 'c']
        assert joined(read_chunks(tmp_path/f't.{ending}', size=2)) == joined([whole])
    (tmp_path/'u.csv').write_text('text,label\na,x\n\n\n,y\n')
    with pytest.raises(InputError, match='row 4 empty'): read_texts(tmp_path/'u.csv')
    (tmp_path/'u.csv').write_text('text,label\na,x\n\n\nb,\n')
    with pytest.raises(InputError, match='row 4 without a label'): read_texts(tmp_path/'u.csv')


def test_what_is_wrong_with_a_csv_is_named_by_its_line(tmp_path):
    path = tmp_path/'t.csv'
    path.write_text('text,label\n"a\na",x\n\nb,y,z\n')
    with pytest.raises(InputError, match='line 5 has 3 cells and the header 2'): read_texts(path)
    path.write_text('text,label\na,x\n\n"b,y\nc,x\nd,y\n')
    with pytest.raises(InputError, match='the quotation in line 4 never ends'): read_texts(path)
    path.write_text('text,label\na,x\nb\n')
    with pytest.raises(InputError, match='row 2 without a label'): read_texts(path)
    path.write_bytes(b'text,label\n'+b'a,x\n'*9000+b'caf\xe9,x\n')
    with pytest.raises(InputError, match=r'not UTF-8 text \(line 9002\)'): read_texts(path)
    path.with_suffix('.jsonl').write_bytes(b'{"text":"a","label":"x"}\n'*9+b'{"text":"\xe9","label":"x"}\n')
    with pytest.raises(InputError, match=r'not UTF-8 text \(line 10\)'): list(read_chunks(path.with_suffix('.jsonl'), size=3))


def test_a_very_long_text(tmp_path):
    path = write(pd.DataFrame({'text': ['word '*100_000, 'b', 'c', 'd'], 'label': list('xyxy')}), tmp_path/'t.csv')
    assert len(read_texts(path).texts[0]) == 500_000


@pytest.mark.parametrize('ending', FORMATS)
def test_memory_does_not_grow_with_the_file(ending, tmp_path):
    import pyarrow
    rng, path = np.random.default_rng(0), tmp_path/f't.{ending}'
    df = pd.DataFrame({'text': [' '.join(map(str, rng.integers(0, 1<<30, 50))) for _ in range(20_000)], 'label': list('xy')*10_000})
    df.to_parquet(path) if ending == 'parquet' else write(df, path)
    assert path.stat().st_size > 5_000_000
    del df
    pool, n = pyarrow.default_memory_pool(), 0
    before, most = pool.bytes_allocated(), 0
    tracemalloc.start()
    try:
        for part in read_chunks(path, size=500):
            n += len(part)
            most = max(most, pool.bytes_allocated()-before)
        assert n == 20_000
        assert tracemalloc.get_traced_memory()[1] < 3_500_000 # Two chunks and the one that is being read: about 0.6 MB each
        assert most < 8_000_000
    finally: tracemalloc.stop()


# --- files whole or not at all

@pytest.mark.parametrize('failing', [1, 2])
def test_a_folder_that_cannot_be_replaced_is_still_there(failing, tmp_path, monkeypatch):
    with atomic(tmp_path/'a', folder=True) as part: (part/'old').write_text('old')
    calls, real = [], os.replace
    def replace(*args):
        calls.append(args)
        if len(calls) == failing: raise OSError(5, 'no')
        real(*args)
    monkeypatch.setattr(os, 'replace', replace)
    with pytest.raises(OSError), atomic(tmp_path/'a', folder=True) as part: (part/'new').write_text('new')
    assert (tmp_path/'a/old').read_text() == 'old' and [p.name for p in tmp_path.iterdir()] == ['a']
    monkeypatch.undo()
    with atomic(tmp_path/'a', folder=True) as part: (part/'new').write_text('new')
    assert [p.name for p in tmp_path.rglob('*')] == ['a', 'new']


def test_the_old_folder_is_whole_until_the_new_one_is(tmp_path, monkeypatch):
    "Nothing is deleted before the new folder stands under its name."
    with atomic(tmp_path/'a', folder=True) as part: (part/'old').write_text('old')
    seen, real = [], shutil.rmtree
    monkeypatch.setattr(shutil, 'rmtree', lambda p, **kw: (seen.append(sorted(f.name for f in (tmp_path/'a').iterdir())), real(p, **kw)))
    with atomic(tmp_path/'a', folder=True) as part: (part/'new').write_text('new')
    assert seen == [['new']]


# --- batches

@pytest.fixture(scope='module')
def clf(bert): return load_classifier(bert)


@pytest.fixture(scope='module')
def encoded(clf):
    "200 texts of 3 to 40 tokens."
    rng, words = np.random.default_rng(0), [w for c in CLASSES for w in WORDS[c]]
    return encode(clf, [' '.join(rng.choice(words, rng.integers(1, 39))) for _ in range(200)])


def by_hand(encoded, tokens, fill, side):
    "Batches as they were first written: plain lists, cut off one after the other."
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded.ids[i]))
    while order:
        n = max(1, tokens//len(encoded.ids[order[0]]))
        rows, order = order[:n], order[n:]
        T = max(len(encoded.ids[i]) for i in rows)
        def fit(xs, v, T=T): return [list(x)+[v]*(T-len(x)) if side == 'right' else [v]*(T-len(x))+list(x) for x in xs]
        yield fit([encoded.ids[i] for i in rows], fill), fit([encoded.special[i] for i in rows], 1), \
            fit([[1]*len(encoded.ids[i]) for i in rows], 0), rows


@pytest.mark.parametrize('side', ['right', 'left'])
@pytest.mark.parametrize('tokens', [1, 40, 333, 1<<20])
def test_batches_are_as_by_hand(encoded, tokens, side):
    made, known = list(batches(encoded, tokens=tokens, fill=7, side=side)), list(by_hand(encoded, tokens, 7, side))
    assert len(made) == len(known)
    for b, (ids, special, mask, rows) in zip(made, known, strict=True):
        assert b.ids.dtype == b.mask.dtype == torch.int64 and b.special.dtype == torch.bool
        assert (b.ids.tolist(), b.special.int().tolist(), b.mask.tolist(), b.rows.tolist()) == (ids, special, mask, rows)
    assert pad([[1, 2], [3]], [[1, 0], [0]], [0, 1], length=3).ids.tolist() == [[1, 2, 0], [3, 0, 0]]


def test_tokens_are_kept_small_and_named_beyond_the_first_thousand(clf):
    texts = ['cat dog horse cow bird fish bread soup '*5]*2500
    encoded = encode(clf, texts)
    one = clf.tokenizer(texts[0], return_special_tokens_mask=True)
    pairs = list(zip(encoded.ids, encoded.special, strict=True))
    assert all(list(i) == one['input_ids'] and list(s) == one['special_tokens_mask'] for i, s in pairs)
    assert sum(sys.getsizeof(i)+sys.getsizeof(s) for i, s in pairs)/2500 < 200+6*len(one['input_ids'])
    texts[2100] += texts[0]
    assert encode(clf, texts).cut == 1 and len(encode(clf, texts).ids[2100]) == clf.max_length
    named = make_texts([*['a b']*2, *texts], list('xy')*1251, source='here', rows=range(11, 2513))
    assert encode(clf, named.texts, named).row(2102) == 2113
    assert encode(clf, texts).row(2100) == 2101


# --- long texts

def trained(kind):
    "A small tokenizer of a kind: cut at white space or at nothing, with pieces of several characters."
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast
    corpus = ['the cat and the dog sat', 'a horse, a cow\nand  a bird', '早上好今天天气很好', 'sunshine'*3]*9
    special = dict(special_tokens=['[UNK]', '[CLS]', '[SEP]', '[PAD]'], show_progress=False)
    if kind == 'wordpiece':
        t, how = Tokenizer(models.WordPiece(unk_token='[UNK]')), trainers.WordPieceTrainer(vocab_size=120, **special)
        t.normalizer, t.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    elif kind == 'bytes':
        t, how = Tokenizer(models.BPE()), trainers.BpeTrainer(vocab_size=400, **special)
        t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    elif kind == 'pairs without words':
        t, how = Tokenizer(models.BPE(unk_token='[UNK]')), trainers.BpeTrainer(vocab_size=120, **special)
        t.normalizer = normalizers.Replace(' ', '▁')
    else:
        t, how = Tokenizer(models.Unigram()), trainers.UnigramTrainer(vocab_size=90, unk_token='[UNK]', **special)
        t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(' ', '▁')])
    t.train_from_iterator(corpus, how)
    ends = [(x, t.token_to_id(x)) for x in ('[CLS]', '[SEP]')]
    t.post_processor = processors.TemplateProcessing(single='[CLS] $A [SEP]', special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=t, pad_token='[PAD]', unk_token='[UNK]', cls_token='[CLS]', sep_token='[SEP]')


class Reader(SimpleNamespace):
    "What of a classifier `encode` asks for."
    tail = 0
    def tokens(self, texts): return batches_room._tokens(self, texts)


@pytest.fixture
def unproven(monkeypatch):
    "There is no model behind these tokenizers to be proven."
    monkeypatch.setattr(batches_room, 'proven', lambda clf, encoded, side='right': encoded)


KINDS_OF_TOKENIZER = ['wordpiece', 'bytes', 'pairs without words', 'unigram']


@pytest.mark.parametrize('kind', KINDS_OF_TOKENIZER)
@pytest.mark.parametrize('n', [5, 48])
def test_tokens_of_long_texts_are_those_of_the_whole(kind, n, unproven):
    tok, rng = trained(kind), np.random.default_rng(0)
    pieces = ['cat', 'dog', ' ', '\n', '\t', '  ', '早上好', '天', ',', 'x'*99, 'x'*101, 'é', 'e\u0301', 'sunshine', '\u00a0', '']
    texts = [''.join(rng.choice(pieces, k)) for k in (3, 40, 400, 4000) for _ in range(12)]
    texts += ['x'*900, 'x'*5000, 'x'*1020+' cat'*50, ' '*9000+'cat', 'cat'+' '*9000, 'sunshin'*900, '好'*3000, 'cat\n'*3000, 'cat dog '*2]
    texts += [('x'*101+',')*9+','*12+'catdog'*100+',cat'*999] # A word of 600 letters, 94 of them among the first 1,024 characters
    made = encode(Reader(tokenizer=tok, max_length=n), texts)
    whole = [tok(t, return_special_tokens_mask=True) for t in texts]
    cut = [tok(t, truncation=True, max_length=n, return_special_tokens_mask=True) for t in texts]
    assert [list(i) for i in made.ids] == [c['input_ids'] for c in cut]
    assert [list(i) for i in made.special] == [c['special_tokens_mask'] for c in cut]
    assert made.cut == sum(len(w['input_ids']) > n for w in whole)


@pytest.mark.parametrize('kind', KINDS_OF_TOKENIZER)
def test_no_more_is_tokenized_than_is_kept(kind, monkeypatch, unproven):
    "Of texts of 200,000 characters a few thousand, whatever stands between the words."
    given, real = [], batches_room._tokenize
    monkeypatch.setattr(batches_room, '_tokenize', lambda clf, texts: (given.extend(map(len, texts)), real(clf, texts))[1])
    texts = [('cat'+c+'dog'+c)[:8]*25_000 for c in (' ', '\n', '\t', '好')]
    made = encode(Reader(tokenizer=trained(kind), max_length=48), texts)
    assert made.cut == 4 and sum(given) <= 4*(1024+4*1024)
    made = encode(Reader(tokenizer=trained(kind), max_length=48), ['cat '*20]*9) # A short one is tokenized once
    assert made.cut in (0, 9) and len(given) <= 4*2+9


def test_texts_cut_on_the_left_are_tokenized_whole(unproven):
    tok = trained('wordpiece')
    tok.truncation_side = 'left'
    made = encode(Reader(tokenizer=tok, max_length=8), ['cat '*2000+'dog'])
    assert list(made.ids[0]) == tok('cat '*2000+'dog', truncation=True, max_length=8)['input_ids'] and made.cut == 1


def refusing(most, error=torch.OutOfMemoryError, log=None):
    "Work that sums the ids of every text, and refuses more than so many tokens."
    def work(batch):
        if log is not None: log.append((batch.ids.numel(), len(batch)))
        if batch.ids.numel() > most: raise error('DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.')
        return (batch.ids*batch.mask).sum(1).numpy()
    return work


def gathered(clf, encoded, work, **kw):
    "What every text gave, and how often it was done."
    out, times = np.zeros(len(encoded), int), np.zeros(len(encoded), int)
    for b, res in each_batch(clf, encoded, work, **kw):
        out[b.rows] += res
        times[b.rows] += 1
    return out, times


@pytest.mark.parametrize('error', [torch.OutOfMemoryError, RuntimeError, MemoryError])
@pytest.mark.parametrize('most', [40, 41, 100, 999, 1<<20])
def test_where_memory_runs_out_every_text_is_still_done_once(clf, encoded, most, error, quick_gc):
    log, known = [], [sum(x) for x in encoded.ids]
    out, times = gathered(clf, encoded, refusing(most, error, log), tokens=5000)
    assert out.tolist() == known and (times == 1).all()
    assert (max(n for n, _ in log) > most) == (most < 5000)
    for i, (n, _) in enumerate(log): # Whatever comes after a refusal has at most half the tokens, or is one text
        if n > most: assert all(m <= n/2 or k == 1 for m, k in log[i+1:])


def test_the_bar_moves_by_what_is_finished(clf, encoded):
    class Bar:
        at = 0
        def update(self, n): self.at += n
    bar, seen = Bar(), 0
    for b, _ in each_batch(clf, encoded, refusing(100), tokens=1000, bar=bar):
        seen += len(b)
        assert bar.at == seen
    assert bar.at == len(encoded)


def test_one_text_that_does_not_fit_is_named(clf):
    texts = make_texts(['a b', 'cat '*30, 'c', 'd'], list('xyxy'), source='my.csv', rows=[3, 50, 51, 52])
    with pytest.raises(InputError, match=r'^my.csv, row 50: memory runs out on this text alone \(32 tokens\); lower max_length(?m:$)'):
        gathered(clf, encode(clf, texts.texts, texts), refusing(20))
    with pytest.raises(InputError, match=r'^texts, row 2: '): gathered(clf, encode(clf, texts.texts), refusing(20))


def test_other_errors_pass(clf, encoded):
    for error in (RuntimeError('shapes do not match'), KeyError('out of memory'), InputError('not finite'), KeyboardInterrupt()):
        def work(batch, error=error): raise error
        with pytest.raises(type(error)) as e: list(each_batch(clf, encoded, work))
        assert e.value is error


def test_what_allocators_say():
    for call in (lambda: torch.empty(1<<50), lambda: np.empty(1<<50)):
        with pytest.raises((RuntimeError, MemoryError)) as e: call()
        assert out_of_memory(e.value)
    for said in ('CUDA out of memory. Tried to allocate 2 GiB', 'MPS backend out of memory (used 9 GB)',
                 'CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`',
                 "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"):
        assert out_of_memory(RuntimeError(said)) and not out_of_memory(ValueError(said))


def test_a_failed_batch_is_let_go_before_the_next_try(clf, encoded):
    "What the frames of the failed try held is free when half of it is tried."
    class Big: pass
    alive = weakref.WeakSet()
    def work(batch):
        assert not alive
        alive.add(held := Big())
        held.itself = held # Even where it is part of a cycle
        if len(batch) > 2: raise torch.OutOfMemoryError('no')
        del held.itself
        return 0
    assert gathered(clf, encoded, work, tokens=500)[1].tolist() == [1]*200


@pytest.fixture
def quick_gc(monkeypatch):
    "With torch loaded a full collection takes a third of a second."
    monkeypatch.setattr(gc, 'collect', lambda: 0)


def test_a_budget_for_a_gpu(monkeypatch):
    assert token_budget('cpu') == token_budget(torch.device('cpu')) == 2048
    free = {}
    for name, key in (('mem_get_info', 'free'), ('memory_reserved', 'reserved'), ('memory_allocated', 'allocated')):
        monkeypatch.setattr(torch.cuda, name, lambda d, key=key: (free[key], 80<<30) if key == 'free' else free[key])
    def budget(gib, reserved=0, allocated=0):
        free.update(free=int(gib*2**30), reserved=reserved<<30, allocated=allocated<<30)
        return token_budget('cuda')
    assert [budget(g) for g in (.1, 4, 15, 16, 79, 1000)] == [1024, 2048, 4096, 8192, 32768, 65536]
    assert budget(1, reserved=10, allocated=3) == budget(8) # What torch has put by is free for torch


def test_a_budget_is_used_where_none_is_given(clf, encoded, monkeypatch):
    monkeypatch.setattr(batches_room, 'token_budget', lambda device: 77)
    assert max(b.ids.numel() for b, _ in each_batch(clf, encoded, len)) <= 77
    assert max(b.ids.numel() for b, _ in each_batch(clf, encoded, len, tokens=1000)) > 900
    assert list(each_batch(clf, encode(clf, []), len)) == []


def test_chunks_align_by_name(clf, tmp_path, frame):
    path = write(frame.sort_values('label'), tmp_path/'t.csv') # Every chunk but few holds one class alone
    parts = list(read_chunks(path, size=10))
    assert {len(p.classes) for p in parts} == {1}
    with pytest.raises(InputError, match="no text of the model's class"): align(parts[0], clf)
    together = np.concatenate([align(p, clf, every=False).labels for p in parts])
    assert together.tolist() == [CLASSES.index(c) for c in sorted(frame.label)]
    with pytest.raises(InputError, match="class 'plant' is none"):
        align(make_texts(list('abcd'), ['plant', 'food']*2), clf, every=False)


# --- loading

def test_device_map_without_accelerate_is_one_sentence(bert, monkeypatch):
    monkeypatch.setattr(weights_room, 'find_spec', lambda name: None)
    with pytest.raises(InputError, match=r"^device_map 'auto' needs the package 'accelerate'; `pip install accelerate` brings it(?m:$)"):
        load_classifier(bert, device_map='auto')
    with pytest.raises(InputError, match='exclude each other'): load_classifier(bert, device='cpu', device_map='auto')


@pytest.mark.skipif(find_spec('accelerate') is None, reason='accelerate is not installed')
@pytest.mark.parametrize('kind', ['bert', 'gpt2'])
@pytest.mark.parametrize('how', ['auto', 'cpu', 'disk'])
def test_device_map_with_accelerate(kind, how, request, frame, tmp_path):
    "The same answers, the same activations; also where accelerate brings a block in from the disk when it runs."
    folder = request.getfixturevalue(kind)
    plain = load_classifier(folder)
    if how == 'disk':
        from accelerate import disk_offload
        spread = load_classifier(folder)
        disk_offload(spread.model, tmp_path/'off', execution_device='cpu')
        assert {p.device.type for p in spread.model.parameters()} == {'meta'}
    else: spread = load_classifier(folder, device_map='auto' if how == 'auto' else {'': 'cpu'})
    assert spread.device.type == 'cpu'
    some = encode(plain, frame.text[:6].tolist())
    sites = [Site('residual', 0), Site('mlp', 1), Site('attention', 1)]
    with torch.inference_mode():
        for b in batches(some):
            agree(logits(spread, b), logits(plain, b), plain)
            one, two = run(spread, b, sites), run(plain, b, sites)
            for s in sites: agree(one[s], two[s], plain, what=s)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('kind', ['bert', 'gpt2'])
def test_half_precision_on_the_cpu(kind, dtype, request, frame):
    folder = request.getfixturevalue(kind)
    half, plain = load_classifier(folder, dtype=dtype), load_classifier(folder)
    assert str(half.model.dtype) == f'torch.{dtype}' and half.readout == plain.readout and half.takes_positions == plain.takes_positions
    some, sites = encode(half, frame.text.tolist()), [Site(s, 1) for s in ('residual', 'mlp', 'attention')]
    with torch.inference_mode():
        for b in batches(some, tokens=200):
            seen = run(half, b, sites)
            assert all(h.dtype == half.model.dtype and h.isfinite().all() for h in seen.values())
            a, z = logits(half, b), logits(plain, b)
            assert a.dtype == torch.float32
            agree(a, z, half)


def test_dtype_auto(bert, monkeypatch):
    assert load_model(bert, dtype='auto', device='cpu')[0].dtype == torch.float32
    gpu = torch.device('cuda')
    for bf16, kind in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation=True, bf16=bf16: bf16)
        assert weights_room.half_precision(gpu) == kind
    with pytest.raises(InputError, match="dtype 'half_of_it' is none of auto, float32"): load_model(bert, dtype='half_of_it')


# --- what a trained classifier is made of

def test_another_tokenizer_or_configuration_trains_again(own_cache, encoder, frame, tmp_path, monkeypatch):
    from neuronlens import training
    trained, real = [], training._train
    monkeypatch.setattr(training, '_train', lambda *args: (trained.append(1), real(*args))[1])
    texts = make_texts(frame.text.tolist(), frame.label.tolist())
    def tune(folder): return training.fine_tune(folder, texts, epochs=1, batch_size=32, max_length=16, progress=False)
    other = tmp_path/'other'
    shutil.copytree(encoder, other)
    tune(encoder)
    tune(encoder)
    tune(other)
    assert len(trained) == 1 # The same files elsewhere are the same encoder
    said = json.loads((other/'tokenizer.json').read_text())
    vocab = said['model']['vocab']
    vocab['cat'], vocab['dog'] = vocab['dog'], vocab['cat']
    (other/'tokenizer.json').write_text(json.dumps(said))
    tune(other)
    assert len(trained) == 2
    said = json.loads((other/'config.json').read_text())
    (other/'config.json').write_text(json.dumps(said | {'hidden_dropout_prob': .3}))
    tune(other)
    tune(other)
    assert len(trained) == 3


# --- processors

V1 = {'sys/fs/cgroup/{0}/cpu.cfs_quota_us': '150000\n', 'sys/fs/cgroup/{0}/cpu.cfs_period_us': '50000\n'}
GROUPS = { # What the machine says, and how many of 64 processors that makes
    'version 2': ({'proc/self/cgroup': '0::/a/b\n', 'sys/fs/cgroup/a/b/cpu.max': '300000 100000\n'}, 3),
    'version 2, in a container': ({'proc/self/cgroup': '0::/\n', 'sys/fs/cgroup/cpu.max': '200000 100000\n'}, 2),
    'version 2, path of the host': ({'proc/self/cgroup': '0::/docker/x\n', 'sys/fs/cgroup/cpu.max': '200000 100000\n'}, 2),
    'a quota above it': ({'proc/self/cgroup': '0::/a/b\n', 'sys/fs/cgroup/a/b/cpu.max': '800000 100000\n',
                          'sys/fs/cgroup/a/cpu.max': '400000 100000\n'}, 4),
    'a part of one': ({'proc/self/cgroup': '0::/a\n', 'sys/fs/cgroup/a/cpu.max': '20000 100000\n'}, 1),
    'one and a half': ({'proc/self/cgroup': '0::/a\n', 'sys/fs/cgroup/a/cpu.max': '150000 100000\n'}, 2),
    'no quota': ({'proc/self/cgroup': '0::/a\n', 'sys/fs/cgroup/a/cpu.max': 'max 100000\n'}, 64),
    'more than there are': ({'proc/self/cgroup': '0::/a\n', 'sys/fs/cgroup/a/cpu.max': '9900000 100000\n'}, 64),
    'version 1': ({'proc/self/cgroup': '9:memory:/a\n4:cpu,cpuacct:/a\n0::/a\n'}
                  | {k.format('cpu,cpuacct/a'): v for k, v in V1.items()}, 3),
    'version 1, in a container': ({'proc/self/cgroup': '4:cpu:/docker/x\n'} | {k.format('cpu'): v for k, v in V1.items()}, 3),
    'version 1, no quota': ({'proc/self/cgroup': '4:cpu:/\n', 'sys/fs/cgroup/cpu/cpu.cfs_quota_us': '-1\n',
                             'sys/fs/cgroup/cpu/cpu.cfs_period_us': '100000\n'}, 64),
    "another group's": ({'proc/self/cgroup': '0::/a\n', 'sys/fs/cgroup/b/cpu.max': '100000 100000\n'}, 64),
    'nothing': ({}, 64),
    'nonsense': ({'proc/self/cgroup': '0::/a\n', 'sys/fs/cgroup/a/cpu.max': 'a lot\n'}, 64),
}


@pytest.mark.parametrize('case', GROUPS)
def test_usable_cpus(case, tmp_path, monkeypatch):
    files, n = GROUPS[case]
    for name, said in files.items():
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).write_text(said)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(64)), raising=False)
    assert usable_cpus(tmp_path) == n
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {5}, raising=False)
    assert usable_cpus(tmp_path) == 1
    monkeypatch.delattr(os, 'sched_getaffinity')
    monkeypatch.setattr(os, 'cpu_count', lambda: 64)
    assert usable_cpus(tmp_path) == n


@pytest.mark.parametrize('given', [None, '2'])
def test_the_command_line_sets_threads_before_torch_loads(given):
    code = """
import os, sys
import neuronlens.ground.machine
neuronlens.ground.machine.usable_cpus = lambda: 1
from neuronlens.studies.cli import _plain_errors
with _plain_errors():
    assert 'torch' not in sys.modules
    import torch
    print(torch.get_num_threads(), os.environ['OMP_WAIT_POLICY'])
"""
    env = {k: v for k, v in os.environ.items() if not k.startswith('OMP_')} | ({'OMP_NUM_THREADS': given} if given else {})
    p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env, check=True)
    assert p.stdout.split() == [given or '1', 'PASSIVE']
    assert 1 <= machine_room.usable_cpus() <= os.cpu_count()


def test_many_batches_are_not_slow():
    "Four times the texts in batches take about four times as long, not sixteen: no list is copied again and again."
    import time
    from array import array

    from neuronlens.models.batches import Encoded
    rng = np.random.default_rng(0)
    ids = [array('i', range(n)) for n in rng.integers(3, 30, 100_000)]
    def took(some):
        start = time.process_time()
        assert sum(len(b) for b in batches(Encoded(some, [array('b', bytes(len(i))) for i in some], 0), tokens=64)) == len(some)
        return time.process_time()-start
    assert took(ids) < 10*min(took(ids[:25_000]) for _ in range(2))
