"""Every planted bug is noticed by the test that is there to notice it."""

import pytest

import mutants
import mutants_cpu

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")


@pytest.mark.filterwarnings("ignore:running_:UserWarning")
@pytest.mark.parametrize(
    "mutant", mutants.MUTANTS + mutants_cpu.MUTANTS, ids=lambda mutant: mutant.bug
)
def test_the_suite_kills(mutant, monkeypatch):
    mutant.killed_by()  # passes without the bug
    mutant.plant(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        mutant.killed_by()
