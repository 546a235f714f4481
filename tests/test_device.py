"""Packages on other machines: real RPC servers, on this one, that are slow, drop out or are something else."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading

import numpy as np
import onnx
import pytest
from servers import Server, serving, start, tracking, wait_for
from small_networks import branches
from tiny_package import BATCH, FEATURES, tiny_package

from tvm_mpq import cli
from tvm_mpq.device.address import Address, parse_address
from tvm_mpq.device.connection import Connection, DeviceLostError, Place
from tvm_mpq.device.machine import DeviceMachine
from tvm_mpq.errors import MpqError
from tvm_mpq.runtime.session import Session


@pytest.fixture(scope="module")
def server():
    with serving([start()]) as servers:
        yield servers[0]


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).normal(size=(BATCH, FEATURES)).astype(np.float32)}


@pytest.fixture
def says(capfd):
    """The one line that a failing command says."""

    def call(*arguments: str) -> str:
        capfd.readouterr()
        assert cli.main(arguments) == 2
        err = capfd.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err.removeprefix("error: ").strip()

    return call


def _machine(server: Server, seconds: float = 60.0) -> DeviceMachine:
    return DeviceMachine(Place(server.address), seconds)


def test_a_device_gives_what_this_machine_gives(server, inputs):
    package = tiny_package(0)
    machine = _machine(server)
    session = machine.session(package, 1)
    here = Session(package, 1)
    for factor in (1, 3):
        scaled = {"x": inputs["x"] * np.float32(factor)}
        for ours, theirs in zip(session.run(scaled), here.run(scaled), strict=True):
            np.testing.assert_array_equal(ours, theirs, strict=True)
    assert session.time(inputs, 4).shape == (4,)
    assert machine.resident(package, 1) > 0
    with pytest.raises(MpqError, match="has no input 'y'"):
        session.run({"y": inputs["x"]})
    with pytest.raises(MpqError, match="cannot run with 999 threads: the device"):
        machine.threads(999)
    machine.close()


def test_the_commands_run_on_it(server, inputs, tmp_path, capsys):
    tiny_package(0).save(tmp_path / "m.tar")
    np.savez(tmp_path / "in.npz", **inputs)
    command = ["run", str(tmp_path / "m.tar"), "--inputs", str(tmp_path / "in.npz"), "--threads", "1"]
    assert cli.main([*command, "--outputs", str(tmp_path / "here.npz")]) == 0
    there = ["--outputs", str(tmp_path / "there.npz"), "--print-time", "--rpc", str(server.address)]
    assert cli.main([*command, *there]) == 0
    assert "latency of 20 runs" in capsys.readouterr().out
    assert (tmp_path / "here.npz").read_bytes() == (tmp_path / "there.npz").read_bytes()
    labels = np.zeros(BATCH, np.int64)
    np.savez(tmp_path / "data.npz", **inputs, labels=labels)
    rpc = ["--repeat", "3", "--rpc", str(server.address)]
    assert cli.main(["benchmark", str(tmp_path / "m.tar"), "--data", str(tmp_path / "data.npz"), *rpc]) == 0
    assert "latency median" in capsys.readouterr().out


def test_a_package_for_other_instructions_is_refused_before_it_runs(server):
    package = tiny_package(0)
    machine = _machine(server)
    with pytest.raises(MpqError, match=r"this device lacks warp_drive: the device .* 'made-up'"):
        machine.session(_needing(package, "warp_drive"), 1)
    machine.close()


def _needing(package, feature):
    import dataclasses

    target = dataclasses.replace(package.metadata.target, name="made-up", features=(feature,))
    return dataclasses.replace(package, metadata=dataclasses.replace(package.metadata, target=target))


def test_a_device_that_hangs_is_given_up(inputs):
    with serving([start()]) as (server,):
        session = _machine(server, 1.5).session(tiny_package(0), 1)
        session.run(inputs)
        (serving_process,) = server.children()
        serving_process.suspend()
        with pytest.raises(DeviceLostError, match=r"was lost: it gave no answer within 1\.5 s"):
            session.run(inputs)


def test_a_connection_whose_process_dies_leaves_a_server_for_the_next(inputs):
    with serving([start()]) as (server,):
        machine = _machine(server)
        session = machine.session(tiny_package(0), 1)
        before = session.run(inputs)
        os.kill(server.children()[0].pid, signal.SIGILL)
        with pytest.raises(DeviceLostError, match="was lost: it closed the connection"):
            session.run(inputs)
        np.testing.assert_array_equal(session.run(inputs)[0], before[0])


def test_another_device_of_the_key_takes_over_from_one_that_is_lost(inputs, says):
    with tracking() as tracker:
        offer = ("--tracker", str(tracker), "--key", "board")
        with serving([start("", *offer), start("", *offer)]) as servers:
            machine = DeviceMachine(Place(tracker, "board"), 30.0)
            wait_for(lambda: _has(tracker, "board"))
            session = machine.session(tiny_package(0), 1)
            before = session.run(inputs)
            busy = next(server for server in servers if server.children())
            threading.Timer(0.2, busy.kill).start()
            for _ in range(100):
                np.testing.assert_array_equal(session.run(inputs)[0], before[0])
            busy.process.wait(10)
            np.testing.assert_array_equal(session.run(inputs)[0], before[0])
            with pytest.raises(MpqError, match=r"has no device with the key 'bord': it has board"):
                DeviceMachine(Place(tracker, "bord")).session(tiny_package(0), 1)


def _has(tracker: Address, key: str) -> bool:
    from tvm import rpc

    return key in rpc.connect_tracker(*tracker).text_summary()


def test_costs_are_measured_on_a_device(server, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(branches(), "net.onnx")
    command = ["costs", "net.onnx", "--output", "costs.json", "--checks", "1", "--cache", "cache"]
    assert cli.main([*command, "--rpc", str(server.address)]) == 0
    assert "w8a8" in capsys.readouterr().out
    table = json.loads((tmp_path / "costs.json").read_text())
    assert table["kind"] == "measured"
    assert cli.main([*command, "--modelled", "--rpc", str(server.address)]) == 2


def test_what_cannot_be_reached_is_named(says, tmp_path, inputs):
    tiny_package(0).save(tmp_path / "m.tar")
    np.savez(tmp_path / "in.npz", **inputs)
    run = ("run", str(tmp_path / "m.tar"), "--inputs", str(tmp_path / "in.npz"))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{unused.getsockname()[1]}"
        assert says(*run, "--rpc", nobody) == f"cannot reach the device {nobody}: Connection refused"
        assert says(*run, "--rpc-tracker", nobody, "--rpc-key", "a").startswith("cannot ask the tracker")
    assert says(*run, "--rpc", "9090") == "--rpc needs HOST:PORT, not '9090'"
    assert says(*run, "--rpc-key", "a") == "--rpc-tracker and --rpc-key belong together"
    assert says(*run, "--rpc", "a:1", "--rpc-key", "b").startswith("give --rpc, or --rpc-tracker")
    assert says(*run, "--rpc-timeout", "0").startswith("--rpc-timeout needs seconds above 0")
    assert says("rpc-server", "--key", "a").startswith("--tracker and --key belong together")


def test_a_server_of_another_kind_is_told_apart():
    from tvm import rpc

    plain = rpc.Server("127.0.0.1", 9690, 9790, silent=True)
    try:
        with pytest.raises(MpqError, match="runs a server that is no 'tvm-mpq rpc-server'"):
            Connection(Place(Address("127.0.0.1", plain.port)), 20.0)
    finally:
        plain.terminate()


def test_an_upload_that_arrives_damaged_is_noticed(server, monkeypatch):
    connection = Connection(Place(server.address), 20.0)
    remote = connection._remote

    class Damaging:
        def __getattr__(self, name):
            return getattr(remote, name)

        def upload(self, content, name):
            content[0] ^= 1
            remote.upload(content, name)

    connection._remote = Damaging()
    with pytest.raises(DeviceLostError, match="did not store what was sent to it"):
        connection.upload(b"some bytes", ".tar")
    connection.close()


def test_addresses():
    assert parse_address("--rpc", "[::1]:80") == Address("::1", 80)
    assert str(Address("::1", 80)) == "[::1]:80"
    assert Address("127.0.0.2", 1).is_loopback()
    assert not Address("10.0.0.1", 1).is_loopback()
    for wrong in ("a:0", "a:70000", ":1", "a:b"):
        with pytest.raises(MpqError, match="needs HOST:PORT"):
            parse_address("--rpc", wrong)
