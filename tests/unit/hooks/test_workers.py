"""Threads of one implementation."""

import threading

from llmhost.hooks.workers import LIMIT, Workers


def test_a_function_runs_in_a_thread_and_its_error_comes_back():
    workers = Workers("w")

    assert workers.submit(pow, (2, 3)).result() == 8
    assert isinstance(workers.submit(int, ("x",)).exception(), ValueError)
    workers.close()


def test_calls_beyond_the_limit_wait_and_a_cancelled_one_never_runs():
    workers, release, ran = Workers("w"), threading.Event(), []
    running = [workers.submit(release.wait, ()) for _ in range(LIMIT)]

    waiting = workers.submit(ran.append, ("waited",))
    given_up = workers.submit(ran.append, ("given up",))
    assert given_up.cancel()
    release.set()

    assert waiting.result() is None
    assert all(future.result() for future in running)
    assert workers.submit(len, (ran,)).result() == 1
    assert ran == ["waited"]
    workers.close()


def test_threads_are_used_again():
    workers = Workers("w")
    threads = set()
    for _ in range(5 * LIMIT):
        done = workers.submit(threading.get_ident, ())
        threads.add(done.result())

    assert len(threads) <= LIMIT
    workers.close()
