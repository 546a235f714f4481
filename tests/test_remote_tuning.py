"""Tuning on devices: real RPC servers at a real tracker, on this machine, which drop out, hang or are all gone."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from frontend_networks import network
from servers import Server, serving, start, tracking, wait_for
from small_networks import kernel, node
from tiny_package import BATCH, FEATURES, tiny_package

from tvm_mpq import cli
from tvm_mpq.cpu import cpu_name
from tvm_mpq.device.address import Address
from tvm_mpq.device.connection import Connection, DeviceLostError, Place
from tvm_mpq.device.tracker import Tracker
from tvm_mpq.errors import MpqError
from tvm_mpq.kernels.convolution import ConvolutionShape, Output
from tvm_mpq.kernels.spec import KernelSpec
from tvm_mpq.kernels.tiles import ConvolutionTile
from tvm_mpq.target import host_target
from tvm_mpq.tuning.log import TuningLog, log_file, log_folder
from tvm_mpq.tuning.remote_runner import RemoteRunner, scaled
from tvm_mpq.tuning.runner import Timing

TRIALS = 16


@contextlib.contextmanager
def devices(count: int) -> Iterator[tuple[Address, list[Server]]]:
    """A tracker with so many devices of the key "board"."""
    with tracking() as tracker:
        offer = ("--tracker", str(tracker), "--key", "board")
        with serving([start("", *offer) for _ in range(count)]) as servers:
            wait_for(lambda: _count(tracker) == count)
            yield tracker, servers


def _count(tracker: Address) -> int:
    try:
        return Tracker(tracker).count("board")
    except MpqError:
        return 0


def _tune(folder: Path, tracker: Address, *options: str) -> int:
    onnx.save(
        network([node("Conv", "x w", "y")], {"x": [1, 64, 28, 28]}, ["y"], {"w": kernel(64, 64, 1, 1, 0)}),
        folder / "one.onnx",
    )
    rpc = ["--rpc-tracker", str(tracker), "--rpc-key", "board", *options]
    command = ["tune", str(folder / "one.onnx"), "--no-baseline", "--tuning-logs", str(folder / "logs"), *rpc]
    return cli.main([*command, "--trials", str(TRIALS)])


def _records(folder: Path) -> TuningLog:
    return TuningLog.read(log_folder(folder / "logs", host_target()))


def _lines(folder: Path) -> int:
    path = log_file(log_folder(folder / "logs", host_target()), cpu_name())
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _when_busy(server: Server, act: Callable[[], object], folder: Path | None = None) -> threading.Thread:
    """Act once ``server`` serves a connection; with ``folder``, after the first record of the run there."""

    def wait() -> None:
        if folder is not None:
            wait_for(lambda: _lines(folder), 60)
        wait_for(server.children, 60, 0.005)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_devices_that_are_killed_or_hang_while_they_measure_lose_no_tile(tmp_path: Path, capfd) -> None:
    with devices(3) as (tracker, servers):
        killed, hanging, _ = servers
        threads = [
            _when_busy(killed, killed.kill, tmp_path),
            _when_busy(hanging, lambda: hanging.children()[0].suspend(), tmp_path),
        ]
        assert _tune(tmp_path, tracker, "--rpc-timeout", "6") == 0
        for thread in threads:
            thread.join()
        assert _count(tracker) == 2
    said = capfd.readouterr().out
    assert said.count("; what it was measuring is measured again") >= 2
    # What is sent to a device gets more time, by its length.
    assert re.search(r"it gave no answer within 6(\.\d+)? s", said)
    records = _records(tmp_path).records
    assert len({record.tile for record in records}) == TRIALS
    assert all(record.seconds for record in records)
    assert {record.cpu for record in records} == {cpu_name()}
    assert len(_records(tmp_path).best(1)) == 1


def test_without_a_device_left_it_ends_and_keeps_what_was_measured(tmp_path: Path, capfd) -> None:
    with devices(1) as (tracker, servers):

        def after_a_batch() -> None:
            wait_for(lambda: _lines(tmp_path) > 10, 60)
            servers[0].kill()

        thread = threading.Thread(target=after_a_batch)
        thread.start()
        assert _tune(tmp_path, tracker) == 2
        thread.join()
        wanted = f"error: the tracker {tracker} has no device with the key 'board': it has none at all\n"
        assert capfd.readouterr().err.endswith(wanted)
        assert len(_records(tmp_path).records) > 10


def test_a_tile_that_fails_is_lost_alone_and_a_batch_is_divided() -> None:
    target = host_target()
    shape = ConvolutionShape(1, 7, 7, 64, 64)
    spec = KernelSpec("conv2d", shape, "float32", Output("float32"), target.instruction)
    default, *others = spec.space()
    assert isinstance(default, ConvolutionTile)
    bad = dataclasses.replace(default, unroll=0)
    with (
        devices(2) as (tracker, servers),
        RemoteRunner(target, 1, Place(tracker, "board"), "any", seconds=60.0) as runner,
    ):
        busy: list[int] = []
        threads = [
            _when_busy(server, functools.partial(busy.append, number))
            for number, server in enumerate(servers)
        ]
        timings = runner.measure([(spec, tile) for tile in (default, others[0], bad, *others[1:3])], 3)
        for thread in threads:
            thread.join()
        assert sorted(busy) == [0, 1]
    assert [bool(timing.median) for timing in timings] == [True, True, False, True, True]
    assert len(timings[0].seconds) == 3
    with pytest.raises(MpqError, match="cannot ask the tracker"):
        runner.measure([(spec, default)], 1)


def test_what_a_slower_device_took_is_scaled_round_by_round() -> None:
    reference, own = Timing((1.0, 2.0, 1.0)), Timing((3.0, 3.0, 5.0))
    assert scaled(Timing((6.0, 3.0)), own, reference).seconds == (2.0, 2.0)
    assert scaled(Timing(error="it failed"), own, reference).error == "it failed"
    assert scaled(Timing((1.0,)), Timing(error="gone"), reference) == Timing(error="gone")


def test_a_device_ends_a_connection_that_lasts_too_long_and_serves_the_next() -> None:
    with serving([start()]) as (server,):
        place = Place(server.address)
        long = Connection(place, 60.0, 3.0)
        handle = long.call("open", long.upload(tiny_package(0).to_bytes(), ".tar"), 1)["handle"]
        long.raw("set_input", handle, "x", long.tensor(np.zeros((BATCH, FEATURES), np.float32)))
        with pytest.raises(DeviceLostError):
            long.call("time", handle, 10**8, 0)
        assert Connection(place, 60.0).call("describe")["cpu"] == cpu_name()
