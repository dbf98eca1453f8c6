"""What a person gets to see of one peer: exit codes, one line on stderr, and the same command going on."""

from __future__ import annotations

import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import trio
from node.nodes import measured, place

from p2pdfl import peer
from p2pdfl.base import task
from p2pdfl.base.task import TaskFile
from p2pdfl.net.host import open_network
from p2pdfl.node.store import Store

Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TaskFile]:
    """Of one member, which is a quorum."""
    directory = tmp_path_factory.mktemp("chain")
    with place(directory, measured(members_min=1, name="alone")) as at:
        yield TaskFile(task=at.task, chain=at.deployment)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TaskFile, Path]]:
    """A task that its only member has been through, and that member's home: not to be written to."""
    directory = tmp_path_factory.mktemp("finished")
    with place(directory, measured(members_min=1, name="alone")) as at:
        file = TaskFile(task=at.task, chain=at.deployment)
        task.save(directory / "task.toml", file)
        home = directory / "home"
        command = ["--task", str(directory / "task.toml"), "--home", str(home), "--linger", "0", "--fund"]
        with redirect_stderr(io.StringIO()) as said:
            assert peer.main(command) == 0
        assert said.getvalue() == ""
        yield file, home


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """The peer in this process; returns its exit code and what it wrote to stderr."""

    def run(file: TaskFile | None, *arguments: str) -> tuple[int, str]:
        if file is not None:
            task.save(tmp_path / "task.toml", file)
        own = ["--task", str(tmp_path / "task.toml"), "--linger", "0"]
        home = [] if "--home" in arguments else ["--home", str(tmp_path / "home")]
        capsys.readouterr()
        try:
            code = peer.main([*own, *home, *arguments])
        except SystemExit as exit:
            code = int(exit.code or 0)
        return code, capsys.readouterr().err

    return run


def assert_one_line(seen: tuple[int, str], code: int, text: str) -> None:
    assert seen[0] == code, seen
    assert text in seen[1]
    assert seen[1].startswith("p2pdfl peer: ")
    assert seen[1].count("\n") == 1


@pytest.mark.parametrize(
    ("flag", "value", "text"),
    [
        ("--linger", "-1", "is no number of seconds"),
        ("--linger", "nan", "is no number of seconds"),
        ("--linger", "inf", "is no number of seconds"),
        ("--linger", "long", "is no number of seconds"),
        ("--followers", "-1", "is no number from 0 to 32"),
        ("--followers", "33", "is no number from 0 to 32"),
        ("--listen", "127.0.0.1:9000", "is not a multiaddr"),
        ("--listen", "/ip4/127.0.0.1", "is not an address with a TCP port"),
        ("--listen", "/ip4/127.0.0.1/udp/9000/quic-v1", "is not an address with a TCP port"),
        ("--listen", "/dns4/localhost/tcp/9000", "names a host"),
        ("--announce", "/ip4/0.0.0.0/tcp/9000", "cannot be dialled"),
        ("--announce", "/ip4/127.0.0.1/tcp/0", "cannot be dialled"),
        ("--bootstrap", "/ip4/127.0.0.1/tcp/9000", "/p2p/"),
        ("--metrics", "here", "is no port or host:port"),
        ("--metrics", "127.0.0.1:70000", "is no port or host:port"),
        ("--metrics", "::1:9100", "is no port or host:port"),
        (
            "--bootstrap",
            "/dnsaddr/bootstrap.example.org/p2p/12D3KooWBWrrD5VD6JxcU4rTxn2jUQQga6MW9G1NBubUtMAjYrxE",
            "not supported",
        ),
        ("--byzantine", "politeness:3", "no behaviour 'politeness'"),
        ("--byzantine", "crash", "names no round"),
    ],
)
def test_a_flag_that_makes_no_sense_is_a_usage_error(run: Run, flag: str, value: str, text: str) -> None:
    code, error = run(None, f"{flag}={value}")
    assert code == 2
    assert text in error.splitlines()[-1]


def test_a_missing_task_file(run: Run) -> None:
    assert_one_line(run(None), 2, "task.toml: no such file")


def test_a_task_that_is_not_published(run: Run, published: TaskFile) -> None:
    assert_one_line(run(TaskFile(task=published.task)), 3, "not published yet")


def test_a_home_that_is_a_file(run: Run, published: TaskFile, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    assert_one_line(run(published), 3, "File exists")


def test_a_key_that_others_can_read(run: Run, published: TaskFile, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "key").write_text("00" * 32)
    (tmp_path / "home" / "key").chmod(0o644)
    assert_one_line(run(published), 2, "chmod 600")


def test_a_home_in_use(run: Run, published: TaskFile, tmp_path: Path) -> None:
    with Store(tmp_path / "home" / "store.sqlite"):
        assert_one_line(run(published), 3, "another process uses this home")


@pytest.mark.parametrize("name", ["store.sqlite", "events.jsonl"])
def test_a_home_with_a_directory_in_the_place_of_a_file(
    run: Run, published: TaskFile, tmp_path: Path, name: str
) -> None:
    (tmp_path / "home" / name).mkdir(parents=True)
    assert_one_line(run(published), 3, name)


def test_a_damaged_store(run: Run, published: TaskFile, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "store.sqlite").write_bytes(b"no database" * 1000)
    assert_one_line(run(published), 3, "not a database")


@pytest.mark.net
@pytest.mark.slow
def test_a_full_disk(run: Run, published: TaskFile, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "events.jsonl").symlink_to("/dev/full")
    assert_one_line(run(published), 3, "No space left on device")


@pytest.mark.net
@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"data_digest": bytes(32)}, 2, "data_digest: the task says"),
        ({"initial_state": bytes(32)}, 2, "initial_state: the task says"),
        ({"reference_replay": bytes(32)}, 2, "reference_replay: the task says"),
        ({"commit_ms": 4001}, 3, "deployed for another task"),
    ],
)
def test_a_task_file_that_was_tampered_with(
    run: Run, published: TaskFile, changes: dict[str, Any], code: int, text: str
) -> None:
    tampered = published.task.model_copy(update=changes)
    assert_one_line(run(TaskFile(task=tampered, chain=published.chain)), code, text)


@pytest.mark.net
@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "text"), [({"contract": bytes(20)}, "no contract at"), ({"chain_id": 7}, "the task is on 7")]
)
def test_a_contract_that_is_not_there(run: Run, published: TaskFile, changes: dict[str, Any], text: str) -> None:
    assert published.chain is not None
    elsewhere = published.chain.model_copy(update=changes)
    assert_one_line(run(TaskFile(task=published.task, chain=elsewhere)), 3, text)


@pytest.mark.net
@pytest.mark.slow
def test_no_money_and_no_one_who_pays(run: Run, published: TaskFile) -> None:
    assert_one_line(run(published), 3, "send it some, or add --fund")


@pytest.mark.net
@pytest.mark.slow
def test_a_port_in_use(run: Run, published: TaskFile) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_one_line(
            run(published, "--listen", f"/ip4/127.0.0.1/tcp/{port}"), 3, f"cannot listen on /ip4/127.0.0.1/tcp/{port}"
        )


@pytest.mark.net
@pytest.mark.slow
def test_a_metrics_port_in_use(run: Run, published: TaskFile) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_one_line(run(published, "--metrics", str(port)), 3, f"cannot serve metrics on 127.0.0.1:{port}: ")


@pytest.mark.net
@pytest.mark.slow
def test_the_same_command_again_comes_to_the_same_end(
    run: Run, tmp_path: Path, finished: tuple[TaskFile, Path]
) -> None:
    file, home = finished
    shutil.copytree(home, tmp_path / "home")
    result = json.loads((home / "result.json").read_text())
    assert result["rounds"] == 5
    (tmp_path / "home" / "result.json").unlink()
    assert run(file) == (0, "")
    again = json.loads((tmp_path / "home" / "result.json").read_text())
    assert (again["heads"], again["state"]) == (result["heads"], result["state"])


@pytest.mark.net
@pytest.mark.slow
def test_a_home_of_another_task(run: Run, tmp_path: Path, finished: tuple[TaskFile, Path]) -> None:
    file, home = finished
    shutil.copytree(home, tmp_path / "home")
    other = measured(members_min=1, name="other")
    assert_one_line(run(TaskFile(task=other, chain=file.chain)), 3, "belongs to another task")


class Peer:
    """A process of its own."""

    def __init__(self, directory: Path, file: TaskFile, *arguments: str) -> None:
        self.home = directory / "home"
        task.save(directory / "task.toml", file)
        command = [
            sys.executable,
            "-m",
            "p2pdfl.peer",
            "--task",
            str(directory / "task.toml"),
            "--home",
            str(self.home),
            "--fund",
            *arguments,
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def until(self, text: str) -> str:
        """Reads what it says up to a line with this text."""
        assert self.process.stdout is not None
        said = ""
        line: str
        for line in self.process.stdout:
            said += line
            if text in line:
                return said
        raise AssertionError(said + self.process.communicate()[1])

    def end(self, signal_number: int) -> tuple[int, float, str]:
        """Exit code, seconds until it ended, and what it wrote to stderr."""
        start_s = time.monotonic()
        self.process.send_signal(signal_number)
        _, error = self.process.communicate(timeout=20)
        return self.process.returncode, time.monotonic() - start_s, error


STOP_S = 3.0
"""Two seconds, and what a busy machine adds."""


def assert_stopped(seen: tuple[int, float, str], code: int) -> None:
    assert (seen[0], seen[2]) == (code, "")
    assert seen[1] < STOP_S


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_a_long_training(tmp_path: Path, published: TaskFile) -> None:
    """torch's thread is left to itself, and must not abort the process on its way out."""
    long = published.task.model_copy(update={"local_steps": 100_000})
    with Peer(tmp_path, TaskFile(task=long, chain=published.chain)) as one:
        one.until("computing")
        time.sleep(1)  # into the training, which takes half a minute
        assert_stopped(one.end(signal.SIGINT), 130)


@pytest.mark.net
@pytest.mark.slow
def test_a_signal_while_the_chain_is_out_of_reach(tmp_path: Path, published: TaskFile) -> None:
    assert published.chain is not None
    nowhere = published.chain.model_copy(update={"rpc": "http://127.0.0.1:1"})
    with Peer(tmp_path, TaskFile(task=published.task, chain=nowhere)) as one:
        one.until("chain: joining: http://127.0.0.1:1: ")
        assert_stopped(one.end(signal.SIGINT), 130)


@pytest.mark.net
@pytest.mark.slow
async def test_nobody_is_given_what_is_stored_before_the_members_are_known(
    tmp_path: Path, finished: tuple[TaskFile, Path]
) -> None:
    """ATTACK: whoever asks may be anybody then, and while the chain is out of reach that takes long."""
    file, home = finished
    assert file.chain is not None
    shutil.copytree(home, tmp_path / "home")
    with Store(tmp_path / "home" / "store.sqlite") as store:
        closed = store.round(0)
        assert closed is not None
        update = closed.contents.updates[0].update
    nowhere = file.chain.model_copy(update={"rpc": "http://127.0.0.1:1"})
    with Peer(tmp_path, TaskFile(task=file.task, chain=nowhere)) as one, trio.fail_after(60):
        await trio.to_thread.run_sync(one.until, "chain: joining: ")
        facts = json.loads((one.home / "address.json").read_text())
        async with open_network(
            key_seed=bytes([1]) * 32,
            listen=["/ip4/127.0.0.1/tcp/0"],
            bootstrap=facts["addresses"],
            topic=f"/p2pdfl/2/{file.task.task_id().hex()}",
        ) as stranger:
            await stranger.wait_connected(1)
            assert await stranger.fetch(update, [facts["peer_id"].encode()], bytes_max=1 << 20) is None


@pytest.mark.net
@pytest.mark.slow
def test_a_signal_while_others_are_awaited(tmp_path: Path) -> None:
    with (
        place(tmp_path, measured(members_min=2)) as at,
        Peer(tmp_path, TaskFile(task=at.task, chain=at.deployment)) as one,
    ):
        one.until("1 of 2 members registered")
        assert_stopped(one.end(signal.SIGTERM), 130)


@pytest.mark.net
@pytest.mark.slow
def test_metrics_are_served_and_a_signal_after_the_last_round_ends_it_well(tmp_path: Path) -> None:
    with (
        place(tmp_path, measured(members_min=1)) as at,
        Peer(tmp_path, TaskFile(task=at.task, chain=at.deployment), "--linger", "60", "--metrics", "0") as one,
    ):
        url = one.until("metrics at ").split("metrics at ")[1].split()[0]
        assert url.startswith("http://127.0.0.1:")
        one.until("finished 5 rounds")
        with urllib.request.urlopen(url, timeout=5) as answer:
            text = answer.read().decode()
        told = {line.split(" ")[0]: line for line in text.splitlines()}
        assert told["p2pdfl_round"] == "p2pdfl_round 4.0"
        assert "p2pdfl_network_bytes_sent_total" in told
        assert 'p2pdfl_seconds_total{activity="train"}' in told
        assert f'task="{at.task.task_id().hex()}"' in text
        assert_stopped(one.end(signal.SIGTERM), 0)
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(url, timeout=5)


@pytest.mark.net
@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_where_it_was(tmp_path: Path) -> None:
    with place(tmp_path, measured(members_min=1, training_rounds=30)) as at:
        file = TaskFile(task=at.task, chain=at.deployment)
        with Peer(tmp_path, file) as one:
            one.until("round 7:")
            one.end(signal.SIGKILL)
        before = rounds_told(one.home)
        with Peer(tmp_path, file, "--linger", "0") as one:
            one.until("finished 33 rounds")
            assert one.process.wait(10) == 0
        result = json.loads((one.home / "result.json").read_text())
        assert len(before) > 7
        assert {round: result["heads"][round] for round in before} == before


def rounds_told(home: Path) -> dict[str, str]:
    """Round -> head, of the lines that were written as a whole."""
    lines = [line for line in (home / "events.jsonl").read_text().splitlines(keepends=True) if line.endswith("}\n")]
    return {str(told["round"]): told["head"] for told in map(json.loads, lines) if told["event"] == "round"}


@pytest.mark.net
@pytest.mark.slow
def test_without_its_store_a_registered_peer_signs_nothing_also_when_started_again(
    tmp_path: Path, finished: tuple[TaskFile, Path]
) -> None:
    file, home = finished
    shutil.copytree(home, tmp_path / "home", ignore=shutil.ignore_patterns("store.sqlite*"))
    for _ in range(2):
        with Peer(tmp_path, file) as one:
            said = one.until("the store was lost")
            assert "registered with" not in said
            assert_stopped(one.end(signal.SIGTERM), 130)
        with Store(one.home / "store.sqlite") as store:
            assert store.envelopes(0) == ()


@pytest.mark.slow
def test_an_interpreter_that_skips_checks_is_refused() -> None:
    done = subprocess.run([sys.executable, "-O", "-m", "p2pdfl.peer"], capture_output=True, text=True, check=False)
    assert_one_line((done.returncode, done.stderr), 3, "does not run under `python -O`")
