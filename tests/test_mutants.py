"""Every planted bug is noticed by the test that is there to notice it."""

import pytest

from mutants import MUTANTS


@pytest.mark.filterwarnings("ignore:running_:UserWarning")
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.bug)
def test_the_suite_kills(mutant, monkeypatch):
    mutant.killed_by()  # passes without the bug
    mutant.plant(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        mutant.killed_by()
