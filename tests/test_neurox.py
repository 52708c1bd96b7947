"""Live oracle: our probeless ranking beside the one of NeuroX 1.0.9 (`pip install --no-deps neurox==1.0.9`)."""
from itertools import combinations

import numpy as np
import pytest

from neuronlens.arrays.saliency import rank

neurox = pytest.importorskip('neurox.interpretation.probeless', exc_type=ImportError,
    reason="NeuroX is not installed; `pip install --no-deps neurox==1.0.9` brings the live oracle")


def made_up(seed, D=12, C=4):
    rng = np.random.default_rng(seed)
    labels = np.r_[np.repeat(range(C), 2), rng.integers(0, C, 60)]
    means = rng.normal(size=(C, D))
    return rng.normal(means[labels]).astype(np.float32), labels


def same_order(ours, theirs, scores):
    "Equal order where scores differ; NeuroX lists equal scores in reverse index order."
    np.testing.assert_allclose(scores[ours], scores[theirs], rtol=1e-5)


@pytest.mark.parametrize('seed', range(5))
def test_scores_of_each_class(seed):
    acts, labels = made_up(seed)
    ranking = rank(acts, labels, 'probeless')
    means = neurox._get_mean_vectors(acts.astype(np.float64), labels)[1]
    for c in range(4):
        scores, order = neurox._get_tag_wise_ranking(means, c)
        np.testing.assert_allclose(ranking.scores[c], scores, rtol=1e-9)
        same_order(ranking.order[c], np.array(order), ranking.scores[c])


@pytest.mark.parametrize('seed', range(5))
def test_public_order_of_one_class_and_of_all(seed):
    acts, labels = made_up(seed)
    ranking = rank(acts, labels, 'probeless')
    wide = acts.astype(np.float64)
    for c in range(4):
        theirs = neurox.get_neuron_ordering_for_tag(wide, labels, {'the class': c}, 'the class')
        same_order(ranking.order[c], np.array(theirs), ranking.scores[c])
    overall = ranking.scores.sum(0)
    same_order(np.argsort(-overall, kind='stable'), np.array(neurox.get_neuron_ordering(wide, labels)), overall)


def test_ties_differ_only_in_the_order_of_equal_scores():
    acts, labels = made_up(0)
    acts[:, 5] = acts[:, 2]
    ranking = rank(acts, labels, 'probeless')
    for c in range(4):
        ours = ranking.order[c].tolist()
        theirs = neurox.get_neuron_ordering_for_tag(acts.astype(np.float64), labels, {c: c}, c)
        assert [j for j in ours if j not in (2, 5)] == [j for j in theirs if j not in (2, 5)]
        assert ours.index(2)+1 == ours.index(5)
        assert abs(theirs.index(2)-theirs.index(5)) == 1


def test_overall_is_half_the_sum_over_classes():
    acts, labels = made_up(1)
    means = neurox._get_mean_vectors(acts.astype(np.float64), labels)[0]
    pairs = sum(abs(a-b) for a, b in combinations(means, 2))
    np.testing.assert_allclose(rank(acts, labels, 'probeless').scores.sum(0)/2, pairs, rtol=1e-9)
