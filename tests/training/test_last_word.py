"""A failed run ends with the user's error, whatever MONAI wraps it in."""

import pytest

from monai_mil.errors import BagError
from monai_mil.training import users_error
from tests.processes import run


def test_the_user_s_error_is_found_in_what_was_raised_from_it():
    own = BagError("bag 'a.h5': empty")
    wrapped, other = RuntimeError("Failed to evaluate"), ValueError("no")
    wrapped.__cause__, other.__context__ = other, own
    assert users_error(wrapped) is own
    assert users_error(ValueError("no")) is None
    assert users_error(None) is None


@pytest.mark.usefixtures("fork_server")
def test_it_is_the_last_thing_that_is_printed_and_other_errors_keep_their_traceback():
    code = (
        "from monai_mil.errors import BagError\nfrom monai_mil.training import tell_errors_last\ntell_errors_last()\n"
        "try:\n    raise {}\nexcept Exception as error:\n    raise RuntimeError('Failed to evaluate') from error"
    )
    done = run("-c", code.format("BagError('bag 1: empty; embed it again')"))
    assert done.returncode == 1
    assert done.stderr.strip() == "error: bag 1: empty; embed it again"
    done = run("-c", code.format("KeyError('x')"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "RuntimeError: Failed to evaluate"


def test_an_error_that_was_raised_again_alone_is_its_own_cause_too():
    own = BagError("bag 'a.h5': empty")
    wrapped = RuntimeError("Failed to evaluate")
    wrapped.__cause__, own.__context__ = own, wrapped  # what `raise own from None` leaves behind
    assert users_error(own) is own
    assert users_error(wrapped) is own
