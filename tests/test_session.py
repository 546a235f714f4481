from __future__ import annotations

import dataclasses
import os
import time

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_package import BATCH, FEATURES, expected, parallel_package, tiny_package

from tvm_mpq import linker
from tvm_mpq.cpu import cpu_features
from tvm_mpq.errors import MpqError
from tvm_mpq.runtime.session import Session
from tvm_mpq.runtime.threads import available_threads


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(tiny_package(), threads=1)


def sample(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(BATCH, FEATURES)).astype(np.float32)


@given(seed=st.integers(0, 1000), named=st.booleans(), strided=st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_run_gives_the_networks_outputs(session, seed, named, strided):
    x = sample(seed)
    given = np.asfortranarray(x) if strided else x
    (y,) = session.run({"x": given} if named else given)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, expected(x), rtol=1e-4)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "the input 'x' is missing; the network has 'x'"),
        ({"x": sample(), "z": sample()}, "the network has no input 'z'; it has 'x'"),
        (sample()[:1], "the input 'x' has shape [1, 12]; the package was compiled for [2, 12]"),
        (sample().astype(np.float64), "the input 'x' is float64; the network takes float32"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(session, inputs, message):
    with pytest.raises(MpqError) as caught:
        session.run(inputs)
    assert str(caught.value) == message
    with pytest.raises(MpqError):
        session.time(inputs)


def test_times_are_of_the_runs_asked_for(session):
    seconds = session.time(sample(), repeat=7, warmup=1)
    assert seconds.shape == (7,)
    assert (seconds > 0).all()
    with pytest.raises(MpqError, match="cannot time 0 runs"):
        session.time(sample(), repeat=0)


def test_more_work_takes_longer():
    slow = Session(tiny_package(0, 60), threads=1)
    quick = Session(tiny_package(0, 1), threads=1)
    assert np.median(slow.time(sample(), 50)) > 2 * np.median(quick.time(sample(), 50))


@pytest.mark.parametrize("threads", [0, -1, available_threads() + 1])
def test_a_number_of_threads_this_machine_does_not_offer_is_refused(threads):
    with pytest.raises(MpqError, match=rf"cannot run with {threads} threads: this machine offers 1 to"):
        Session(tiny_package(), threads=threads)


@pytest.mark.skipif(available_threads() < 2, reason="needs two processors")
def test_threads_are_used_and_the_callers_own_thread_stays_free():
    """Seen by which threads spent processor time, which no neighbour on the machine changes."""
    package = parallel_package()
    x = np.ones(package.metadata.inputs[0].shape, np.float32)
    before = os.sched_getaffinity(0)
    process = psutil.Process()

    def busy(threads: int) -> int:
        session = Session(package, threads)
        time.sleep(0.5)  # TVM's workers spin for a while after their last work
        start = {t.id: t.user_time for t in process.threads()}
        session.time(x, 40)
        return sum(t.user_time - start.get(t.id, 0.0) > 0.05 for t in process.threads())

    assert [busy(1), busy(2), busy(1)] == [1, 2, 1]
    assert os.sched_getaffinity(0) == before


def test_a_package_for_instructions_this_machine_lacks_is_refused():
    package = tiny_package()
    target = dataclasses.replace(
        package.metadata.target, name="future", features=("sse4_2", "avx1024", "warp")
    )
    foreign = dataclasses.replace(package, metadata=dataclasses.replace(package.metadata, target=target))
    with pytest.raises(MpqError) as caught:
        Session(foreign)
    assert str(caught.value) == (
        "the package was compiled for target 'future' and this machine lacks avx1024, warp; "
        "compile it again with --target host"
    )
    assert "sse4_2" in cpu_features()


def test_a_library_that_cannot_be_loaded_is_answered_in_one_line():
    package = dataclasses.replace(tiny_package(), library=b"\x7fELF nothing")
    with pytest.raises(MpqError, match="cannot load the package's library") as caught:
        Session(package)
    assert "\n" not in str(caught.value)


def test_without_a_linker_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(linker.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MpqError, match="apt-get install binutils"):
        linker.find_linker()
