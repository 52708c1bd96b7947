"""Nothing that the rebuilding of the house changed is a number."""
import json

import numpy as np
import pandas as pd
import pytest
from frozen import GOLDEN, canonical, stored, tables

pytestmark = pytest.mark.usefixtures('one_thread', 'own_cache')
NAMES = [f'{kind}-{table}' for kind in ('bert', 'gpt2') for table in ('effects', 'intervals', 'overlap', 'firing')]


@pytest.fixture(scope='module')
def now(tmp_path_factory, one_thread): return tables(tmp_path_factory.mktemp('frozen'))


def read(name): return pd.read_csv(GOLDEN/f'{name}.csv', keep_default_na=False)


def test_every_table_is_frozen(now): assert sorted(now) == sorted(NAMES) == sorted(p.stem for p in GOLDEN.glob('*.csv'))


@pytest.mark.parametrize('name', NAMES)
def test_tables_are_as_they_were(now, name):
    """Settings row by row, and numbers; an answer that changes with the processor would be a share of a text, so shares are exact.
    `resample` draws by the value that it replaces, which makes ten roundings of one; all else is within 1e-6 on any kernel."""
    was, new = read(name), now[name]
    bound = 2e-4 if 'edit' in was else 1e-6
    assert set(was) <= set(new) and len(was) == len(new)
    for c in was:
        if pd.api.types.is_numeric_dtype(was[c]):
            np.testing.assert_allclose(new[c].astype(float), was[c], rtol=0, atol=bound, err_msg=c)
        else: assert new[c].astype(str).tolist() == was[c].astype(str).tolist(), c


def test_a_change_of_settings_or_of_a_number_is_seen():
    "The table of effects tells every intervention from every other, and what is compared above differs where the edit does."
    df = read('bert-effects')
    assert not df.duplicated([*df.columns[:11]]).any() and len(df) == 612
    rows = df[(df.positions == 'all') & (df.condition == 'range') & (df.seed == 3)]
    zero, mean = (rows[rows.edit == e].disturbance for e in ('zero', 'mean'))
    assert np.abs(zero.to_numpy()-mean.to_numpy()).min() > 1e-3


def test_stored_results_are_as_they_were():
    "Whatever their columns are called."
    assert stored() == json.loads((GOLDEN/'results.json').read_text())


def test_one_adapter_for_either_spelling():
    old = pd.DataFrame(dict(concept=['a', 'b'], range=['gaussian+vote(0.5)+tokens', 'full'], tau=[2.5, np.inf], disturbance=[.1, .2]))
    new = pd.DataFrame(dict(concept=['a', 'b'], range=['gaussian(2.5)', 'full'], vote=[.5, 0.], fitted_at=['tokens', 'readout'],
                            disturbance=[.1, .2]))
    pd.testing.assert_frame_equal(canonical(old)[list(new)], new)
