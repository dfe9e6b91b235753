"""Work done a step ahead: in order, with its errors, and ended with the block."""

import threading

import pytest

from mint.errors import InputError
from mint.training.ahead import computed_ahead


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_the_next_result_is_computed_during_the_current_one():
    started = [threading.Event() for _ in range(4)]
    with computed_ahead(lambda n: started[n].set() or 10 * n, range(4)) as results:
        for n in range(4):
            assert next(results) == 10 * n
            assert n == 3 or started[n + 1].wait(10)
            assert n >= 2 or not started[n + 2].is_set()
        assert next(results, None) is None


def test_an_error_is_raised_in_its_turn():
    def work(n):
        if n == 1:
            raise InputError("the image a.png cannot be read")
        return n

    with computed_ahead(work, range(3)) as results:
        assert next(results) == 0
        with pytest.raises(InputError, match="a.png cannot be read"):
            next(results)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_thread_ends_with_the_block(error):
    done = []
    with pytest.raises(error), computed_ahead(lambda n: done.append(n), range(9)) as results:
        next(results)
        raise error
    assert not threads() and len(done) <= 2
