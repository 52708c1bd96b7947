"""Regions of several intervals against independent implementations, and their laws."""
import tracemalloc

import numpy as np
import pytest
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.cluster import KMeans
from sklearn.naive_bayes import GaussianNB
from test_laws import given, labelled_acts
from test_ranges import held

from neuronlens import regions
from neuronlens.arrays.bins import clusters
from neuronlens.arrays.density import _touching, density, runs
from neuronlens.arrays.ranges import fit_ranges
from neuronlens.arrays.regions import class_posterior
from neuronlens.arrays.statistics import ClassStatistics


def by_gauss(mean, sd, n=None):
    "`ClassStatistics` of classes with these means and standard deviations, both `[C, D]`."
    mean, sd = np.float64(mean), np.float64(sd)
    n = np.full(len(mean), 10) if n is None else np.asarray(n)
    zero, m2 = np.zeros_like(mean), n[:, None]*sd**2
    return ClassStatistics(n, mean, m2, zero, 3*m2**2/n[:, None], abs(mean), *np.float32([mean-sd, mean+sd]),
                           tuple(map(str, range(len(n)))))


@pytest.mark.parametrize(('C', 'spread'), [(2, .1), (2, 1.), (3, 1.), (5, .5), (8, 1.5)])
def test_posterior_agrees_with_naive_bayes(C, spread):
    rng = np.random.default_rng(C)
    D, n = 40, np.arange(10, 10+C)
    s = by_gauss(rng.normal(size=(C, D)), np.exp(rng.normal(-.7, spread, (C, D))), n)
    wide = rng.uniform(-6, 6, (D, 400))
    near = (s.mean.T[..., None]+s.sd.T[..., None]*rng.normal(0, 3, (D, C, 100))).reshape(D, -1)
    asked = np.float32(np.concatenate([wide, near, [[-1e4, 1e4]]*D], axis=1))
    for kind, prior in (('posterior', np.full(C, 1/C)), ('posterior_prior', n/n.sum())):
        nb = GaussianNB(priors=prior, var_smoothing=0)
        for theta in (.03, 1/C, .5, .95):
            r = fit_ranges(None, None, f'{kind}({theta!r})', statistics=s)
            inside = held(r, asked.T)
            for j in range(D):
                nb.classes_, nb.class_prior_ = np.arange(C), prior
                nb.theta_, nb.var_ = s.mean[:, [j]], s.sd[:, [j]]**2
                p = nb.predict_proba(asked[j, :, None].astype(float)).T
                assert (inside[..., j] == (p >= theta))[abs(p-theta) > 1e-6].all()


def test_class_posterior_by_scipy():
    rng = np.random.default_rng(0)
    mean, sd, prior, x = rng.normal(size=(3, 4)), rng.uniform(.5, 2, (3, 4)), np.array([.5, .3, .2]), rng.normal(size=(4, 9))
    f = prior[:, None, None]*norm.pdf(x, mean[..., None], sd[..., None])
    np.testing.assert_allclose(class_posterior(x, mean, sd, prior), f/f.sum(0), rtol=1e-12)


def test_posterior_of_identical_classes():
    s = by_gauss([[1.], [1.], [1.]], [[2.], [2.], [2.]])
    assert not fit_ranges(None, None, 'posterior', statistics=s).empty().any()
    r = fit_ranges(None, None, 'posterior(0.34)', statistics=s)
    assert r.empty().all() and repr(r).endswith("1 interval, 3 empty)")
    for n in ([3, 3, 4], [3, 3, 9], [3, 4, 5], [3, 4, 6]): # p is the prior everywhere, up to rounding
        twins = by_gauss([[1.]]*3, [[2.]]*3, n)
        for c in range(3):
            r = fit_ranges(None, None, f'posterior_prior({n[c]/sum(n)!r})', statistics=twins)
            assert (r.lo[c, 0, 0], r.hi[c, 0, 0]) == (-np.inf, np.inf)
    two = by_gauss([[0.], [0.], [8.]], [[1.], [1.], [1.]]) # p of a twin is 1/(2+e)
    edge = 4-np.log(2)/8 # 1/(2+e) = .4, so the third is half as likely as a twin
    hi = fit_ranges(None, None, 'posterior(0.4)', statistics=two).hi[:2, 0, 0]
    np.testing.assert_allclose(hi, edge, rtol=1e-5)


def test_posterior_with_classes_on_a_point():
    s = by_gauss([[0.], [0.], [1.], [5.]], [[1.], [0.], [0.], [0.]])
    r = fit_ranges(None, None, 'posterior', statistics=s)
    x = np.float32([-1e30, -1, -1e-30, 0, 1e-30, .5, 1, 2, 5, 1e30])[:, None]
    own = held(r, x)[..., 0]
    for c, at in ((1, 0), (2, 1), (3, 5)): np.testing.assert_array_equal(own[c], x[:, 0] == at)
    np.testing.assert_array_equal(own[0], ~own[1:].any(0))
    shared = by_gauss([[3.], [3.], [9.]], [[0.], [0.], [0.]], [10, 30, 60])
    assert [fit_ranges(None, None, f'posterior({t})', statistics=shared).empty()[:, 0].tolist() for t in (.5, .51)] == \
        [[False]*3, [True, True, False]]
    assert fit_ranges(None, None, 'posterior_prior(0.6)', statistics=shared).empty()[:, 0].tolist() == [True, False, False]


def test_theta_1_is_almost_nothing():
    r = fit_ranges(None, None, 'posterior(1)', statistics=by_gauss([[0.], [1.]], [[1.], [1.]]))
    assert r.hi[0, 0, 0] < -20 and r.lo[1, 0, 0] > 20


def test_posterior_prior_favours_the_frequent():
    r = fit_ranges(None, None, 'posterior_prior(0.5)', statistics=by_gauss([[0.], [1.]], [[1.], [1.]], [90, 10]))
    np.testing.assert_allclose([r.hi[0, 0, 0], r.lo[1, 0, 0]], .5+np.log(9), rtol=1e-6)


def test_histogram_finds_two_camps_that_no_normal_density_shows():
    "Class a at -2 and 2, class b at 0 with the same mean and standard deviation."
    rng = np.random.default_rng(0)
    a, b = rng.choice([-2, 2], 4000)+rng.normal(0, .3, 4000), rng.normal(0, (4.09)**.5, 4000)
    acts, labels = np.r_[a, b][:, None].astype(np.float32), np.repeat([0, 1], 4000)
    r = fit_ranges(acts, labels, 'posterior_histogram')
    np.testing.assert_array_equal(r.contains([[-2], [0], [2], [5]], 0)[:, 0], [True, False, True, False])
    p = norm.pdf(acts[:, 0], [[-2], [2]], .3).mean(0)
    right = p/(p+norm.pdf(acts[:, 0], 0, 4.09**.5)) >= .5
    assert (r.contains(acts, 0)[:, 0] == right).mean() > .93


def test_histogram_finds_nothing_in_noise():
    rng = np.random.default_rng(1)
    acts, labels = rng.normal(size=(4000, 30)), np.arange(4000) % 2
    assert fit_ranges(acts, labels, 'posterior_histogram(0.7)').empty().mean() > .95


def former_crossings(mean, sd, prior, theta):
    "`[D, P]`: roots of the quadratics in which each class meets each other alone; the class mean where there are none."
    C,D = mean.shape
    s,ratio = np.where(sd > 0, sd, 1.),(prior/prior[:, None])[..., None]
    pair = (sd[:, None] > 0) & (sd > 0) & ~np.eye(C, dtype=bool)[..., None]
    r,d = s[:, None]/s,(mean-mean[:, None])/s[:, None]
    odds = (1-theta)/theta - (pair*ratio*((r == 1) & (d == 0))).sum(1)[:, None] # What is left for classes that differ
    with np.errstate(all='ignore'):
        level = np.log(np.stack([odds, odds/max(C-1, 1), np.ones_like(odds)]))
        a,b = (1-r*r)/2,d*r*r
        c = np.log(r*ratio)-b*d/2-level
        half = -(b+np.copysign(np.sqrt(b*b-4*a*c), b))/2
        u = np.stack([half/a, c/half])
        x = np.where(pair & np.isfinite(u), mean[:, None]+u*s[:, None], mean[:, None])
    return np.moveaxis(x, -1, 0).reshape(D, -1)


def former_places(mean, sd, prior, theta):
    "`[D, P]` ascending: where to look at the posterior, from beyond the first possible crossing to beyond the last."
    near = mean.T[..., None]+sd.T[..., None]*np.linspace(-6, 6, 49)
    x = np.sort(np.concatenate([former_crossings(mean, sd, prior, theta), near.reshape(len(near), -1)], axis=1), axis=1)
    pad,end = (x[:, -1:]-x[:, :1])/8+sd.max(0)[:, None],np.finfo(np.float32).max
    return np.clip(np.concatenate([x[:, :1]-pad, x, x[:, -1:]+pad], axis=1), -end, end)


def former_turns(p, held, theta):
    "Indices of `p [C, D, P]` that may miss an extreme on the other side of `theta`."
    mid,side,sign = p[..., 1:-1],np.stack([p[..., :-2], p[..., 2:]])-p[..., 1:-1],np.where(held[..., 1:-1], 1, -1)
    alike = (held[..., :-2] == held[..., 1:-1]) & (held[..., 2:] == held[..., 1:-1])
    found = alike & ((side*sign).min(0) >= 0) & (abs(side).max(0) >= abs(mid-theta))
    c,j,i = np.nonzero(found)
    return c,j,i+1


def former_extreme(f, x, best):
    "Where `f` is largest between `x[0]` and `x[2]`, starting from `x[1]` with `f = best`; the place and the value."
    l,m,r = x
    for _ in range(16):
        a,b = (l+m)/2,(m+r)/2
        fa,fb = f(a),f(b)
        left,right = (fa > best) & (fa >= fb),(fb > best) & (fb > fa)
        l,m,r = (np.select([left, right], v, other) for v,other in (((l, m), a), ((a, b), m), ((m, r), b)))
        best = np.maximum(best, np.maximum(fa, fb))
    return m,best


def former_solve(mean, sd, prior, theta):
    "lo, hi `[C, D, K]` float64 of where the posterior is at least `theta`, classes without spread left out."
    x = former_places(mean, sd, prior, theta)
    p = class_posterior(x, mean, sd, prior)
    held,xs = p >= theta,np.broadcast_to(x, p.shape).copy()
    def at(x, c, j): return class_posterior(x[:, None], mean[:, j], sd[:, j], prior)[c, np.arange(len(c)), 0]
    c,j,i = former_turns(p, held, theta)
    sign = np.where(held[c, j, i], -1, 1)
    top,best = former_extreme(lambda x: sign*at(x, c, j), (x[j, i-1], x[j, i], x[j, i+1]), sign*p[c, j, i])
    other = (sign*best >= theta) != held[c, j, i]
    place = c[other],j[other],i[other]
    xs[place],held[place] = top[other],~held[place]
    c,j,i = np.nonzero(held[..., 1:] != held[..., :-1])
    a,b,up = xs[c, j, i],xs[c, j, i+1],held[c, j, i+1]
    for _ in range(44):
        mid = (a+b)/2
        right = (at(mid, c, j) >= theta) == up
        a,b = np.where(right, a, mid),np.where(right, mid, b)
    low,high,flat = np.full(p.shape, -np.inf),np.full(p.shape, np.inf),(p.shape[0]*p.shape[1], -1)
    low[c, j, i+1] = high[c, j, i] = (a+b)/2
    return tuple(e.reshape(*mean.shape, -1) for e in _touching(*runs(*(y.reshape(flat) for y in (held, low, high)))))


def by_both(s, kind):
    "Ranges as they are now, and by the former algorithm."
    with pytest.MonkeyPatch.context() as m:
        now = fit_ranges(None, None, kind, statistics=s)
        m.setattr(regions, '_solve', former_solve)
        return now, fit_ranges(None, None, kind, statistics=s)


@pytest.mark.parametrize('C', [2, 3, 6, 12])
@pytest.mark.parametrize('spread', [.1, 1., 3.]) # At 3 some classes are a thousand times as narrow as others
def test_posterior_as_before(C, spread):
    rng = np.random.default_rng(C)
    mean, sd = rng.normal(size=(C, 60)), np.exp(rng.normal(-.7, spread, (C, 60)))
    sd[rng.random(sd.shape) < .05] = 0
    mean[1, ::7], sd[1, ::7] = mean[0, ::7], sd[0, ::7] # Twins
    n = rng.integers(5, 50, C)
    n[1] = n[0]
    s = by_gauss(mean, sd, n)
    for kind in ('posterior', 'posterior(0.45)', 'posterior_prior', 'posterior_prior(0.1)', 'posterior(0.95)'):
        now, before = by_both(s, kind)
        n, m = ((r.lo <= r.hi).sum(-1) for r in (now, before))
        assert (n != m).mean() < .005 # A maximum that just reaches theta is found by the one or the other
        for new, old in ((now.lo, before.lo), (now.hi, before.hi)):
            K = min(new.shape[2], old.shape[2])
            new, old = new[n == m][:, :K], old[n == m][:, :K]
            np.testing.assert_allclose(new, old, rtol=1e-6, atol=1e-7)


def test_posterior_of_narrow_classes_between_the_places_of_wide_ones():
    s = by_gauss([[0.], [.123456], [-3.7], [1e-3]], [[1.], [1e-6], [1e-5], [1e-4]])
    for kind in ('posterior', 'posterior(0.9)'):
        now, before = by_both(s, kind)
        assert not now.empty().any() and (now.lo[0, 0] <= now.hi[0, 0]).sum() == 4
        np.testing.assert_allclose(now.lo, before.lo, rtol=1e-6)
        np.testing.assert_allclose(now.hi, before.hi, rtol=1e-6)


def test_far_away_a_third_class_takes_over_between_two():
    "As far as thousands of standard deviations from all of them, by nothing but the difference of these."
    rng = np.random.default_rng(1)
    s = by_gauss(100*rng.normal(size=(20, 40)), np.exp(rng.normal(-.7, .01, (20, 40))))
    now, before = by_both(s, 'posterior(0.5)')
    np.testing.assert_allclose(now.lo, before.lo, rtol=1e-6)
    np.testing.assert_allclose(now.hi, before.hi, rtol=1e-6)
    assert (np.isfinite(now.hi) & (now.hi > 1000)).sum() > 20


def test_the_work_of_posterior_grows_with_the_places_and_the_ends(monkeypatch):
    rng, cells, real = np.random.default_rng(0), {}, regions._log_posterior
    for C in (16, 128):
        def counted(x, mean, *rest, C=C):
            cells[C] = cells.get(C, 0)+x.size
            return real(x, mean, *rest)
        monkeypatch.setattr(regions, '_log_posterior', counted)
        s = by_gauss(rng.normal(size=(C, 8)), np.exp(rng.normal(-.3, .2, (C, 8))))
        tracemalloc.start()
        r = fit_ranges(None, None, 'posterior', statistics=s)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        ends = np.isfinite(r.lo).sum()+np.isfinite(r.hi).sum()
        cells[C] -= 2*ends # One look at all classes for most ends, two for some
        assert peak < 40e6 # Of 49 places a class and all classes at each: 50 MB a neuron for 128
    assert cells[128] < 2*cells[16] # Places of a neuron: not with the classes


def test_density_keeps_the_gap_of_two_camps_and_no_more_than_eight_intervals():
    rng = np.random.default_rng(0)
    two = np.r_[rng.normal(0, 1, (500, 5)), rng.normal(12, .1, (500, 5)), rng.normal(size=(2, 5))]
    lo, hi = density(two, [0]*1000+[1]*2, .9)
    assert ((lo[0] <= hi[0]).sum(-1) == 2).all() and (hi[0, :, 0] < 4).all() and (lo[0, :, 1] > 10).all()
    comb = np.repeat(np.arange(30.), 40)[:, None]+rng.normal(0, .001, (1200, 3))
    lo, hi = density(np.r_[comb, comb], np.repeat([0, 1], 1200), .9)
    assert lo.shape[2] <= 8


def test_density_breaks_where_nothing_is_dense_although_all_activations_are_held():
    x = np.r_[np.linspace(0, 1, 200), np.linspace(10, 11, 200)][:, None]
    lo, hi = density(np.r_[x, x], np.repeat([0, 1], 400), 1)
    np.testing.assert_allclose(lo[0, 0], [0, 10])
    np.testing.assert_allclose(hi[0, 0], [1, 11])


def test_an_outlier_does_not_spoil_density():
    x = np.random.default_rng(0).normal(size=(1000, 1))
    x[0] = 1e7
    lo, hi = density(np.r_[x, [[0], [1]]], [0]*1000+[1]*2, .9)
    assert hi[0, 0].max() < 3 and lo[0, 0, 0] > -3 and hi[0, 0, 0]-lo[0, 0, 0] < 3.6
    lo, hi = density(np.r_[x, [[0], [1]]], [0]*1000+[1]*2, 1)
    assert hi[0, 0].max() == 1e7


@pytest.mark.parametrize('k', [2, 4, 7])
def test_clusters_are_as_tight_as_those_of_scikit_learn(k):
    rng = np.random.default_rng(k)
    acts = np.c_[rng.normal(size=700), rng.gamma(1, size=700), rng.standard_t(2, size=700), rng.normal(rng.choice(5, 700)*3., 1)]
    for x, c in zip(acts.astype(np.float32).astype(float).T, clusters(acts, k), strict=True):
        other = KMeans(k, n_init=10, random_state=0).fit(x[:, None])
        far = abs(x[:, None]-c)
        assert (far.min(1)**2).sum() <= other.inertia_*1.005
        np.testing.assert_allclose(c, [x[far.argmin(1) == m].mean() for m in range(k)], rtol=1e-9) # Lloyd has come to rest


def test_an_activation_half_way_between_two_clusters_is_in_one_of_them():
    r = fit_ranges([[0.], [0.], [2.], [2.]], [0, 0, 1, 1], 'kmeans(2)')
    assert r.contains([[1.]], 0).tolist() == [[False]] and r.contains([[1.]], 1).tolist() == [[True]]


@given(labelled_acts())
def test_kmeans_holds_what_is_over_represented(data):
    acts, labels = data
    r, centres = fit_ranges(acts, labels, 'kmeans(3)'), clusters(acts, 3)
    cuts = (centres[:, :-1]+np.diff(centres, axis=1)/2).astype(np.float32)
    of = (acts[..., None] >= cuts).sum(-1) # Cluster of each activation, by the definition
    share = np.stack([[(of[labels == c] == m).mean(0) for m in range(3)] for c in range(3)]) # [C, cluster, D]
    over = share > share.mean(0)*(1+1e-9)
    for c in range(3):
        np.testing.assert_array_equal(r.contains(acts, c), np.take_along_axis(over[c], of, 0))


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4))
def test_runs_by_a_loop(rows):
    mask, place = np.array(rows), np.tile(np.arange(6.), (len(rows), 1))
    lo, hi = runs(mask, place, place)
    for row, a, b in zip(rows, lo, hi, strict=True):
        wanted = ''.join('x' if r else ' ' for r in row)
        assert [wanted[int(i):int(j)+1] for i, j in zip(a, b, strict=True) if i <= j] == wanted.split()
