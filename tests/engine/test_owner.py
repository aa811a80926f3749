"""A workdir has one owner: live ones are respected, dead ones are not."""

import contextlib
import errno
import json
import os
import socket
import subprocess
import threading

import pytest
from test_checkpoint import checkpoints_of, names, small_model
from tiny_run import tiny_config

from keras_aspp.cli.main import main
from keras_aspp.engine import owner
from keras_aspp.engine.owner import OWNER_FILE, Owner, note_of_writer
from keras_aspp.engine.run import train

LONG_AGO = 1_700_000_000


def claim(workdir, age=0, **fields):
    """An owner file of this process, but for some fields."""
    workdir.mkdir(exist_ok=True)
    content = {**owner._process(), "since": "then", **fields}
    file = workdir / OWNER_FILE
    file.write_text(json.dumps(content))
    if age:
        now = file.stat().st_mtime
        os.utime(file, (now - age, now - age))
    return file


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_is_refused_and_changes_nothing(
    tmp_path, tiny_folder, resume
):
    message = (
        f"still going.*choose another.*process {os.getpid()} on "
        f"{socket.gethostname()}"
    )
    with Owner(tmp_path / "run"):
        with pytest.raises(FileExistsError, match=message):
            train(tiny_config(tiny_folder), tmp_path / "run", resume)
        assert os.listdir(tmp_path / "run") == [OWNER_FILE]
        assert note_of_writer(tmp_path / "run").startswith("Note: a run (proc")
    assert not (tmp_path / "run").exists()
    assert note_of_writer(tmp_path / "run") is None
    # The other one over, its error is that of the data again.
    with pytest.raises(FileNotFoundError, match="must hold images/"):
        train(tiny_config(tmp_path), tmp_path / "a" / "run", resume)
    assert not (tmp_path / "a").exists()


def test_a_process_that_ended_owns_nothing(tmp_path):
    with subprocess.Popen(["sleep", "60"]) as process:
        started = owner._started(process.pid)
        assert started > owner._started(os.getpid()) > 0
        file = claim(tmp_path, pid=process.pid, started=started)
        with pytest.raises(FileExistsError, match=f"process {process.pid} on"):
            Owner(tmp_path).__enter__()
        process.kill()
        # A zombie, as long as nobody has read its status.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with Owner(tmp_path) as ours:
            assert file.read_text() == ours.text
    claim(tmp_path, pid=process.pid, started=started)
    with Owner(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("age", "fields", "dead"),
    [
        (0, {}, False),
        # However long it slept, this process is alive.
        (10_000, {}, False),
        # Its process id belongs to another process now.
        (0, {"started": 1}, True),
        (0, {"boot_id": "another"}, True),
        (0, {"pid": 2**40}, True),
        # Of a process elsewhere only the file tells.
        (0, {"host": "elsewhere"}, False),
        (590, {"host": "elsewhere", "started": 1}, False),
        (610, {"host": "elsewhere"}, True),
        # Of one in another container, too, whatever has its id here.
        (0, {"pid_namespace": "pid:[1]", "started": 1}, False),
        (590, {"pid_namespace": "pid:[1]", "pid": 2**40}, False),
        (610, {"pid_namespace": "pid:[1]"}, True),
        (0, {"pid_namespace": "pid:[1]", "boot_id": "another"}, True),
        # Earlier files do not name it.
        (10_000, {"pid_namespace": None}, False),
        (0, {"pid_namespace": None, "started": 1}, True),
        (0, {"pid": "x"}, False),
        (610, {"pid": None}, True),
        # A system without /proc.
        (590, {"started": None}, False),
        (610, {"started": None}, True),
    ],
)
def test_who_is_dead(tmp_path, age, fields, dead):
    claim(tmp_path, age, **fields)
    refused = pytest.raises(FileExistsError, match="still going")
    with contextlib.nullcontext() if dead else refused, Owner(tmp_path):
        assert dead
    assert (tmp_path / OWNER_FILE).exists() != dead


def test_of_a_live_owner_elsewhere_the_message_tells_what_to_do(tmp_path):
    advice = f"last seen 9.? s ago; if it is dead, remove {OWNER_FILE}"
    for fields in ({"host": "elsewhere"}, {"pid_namespace": "pid:[1]"}):
        claim(tmp_path, 95, **fields)
        with pytest.raises(FileExistsError, match=advice):
            Owner(tmp_path).__enter__()


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"pid": 3}'])
def test_a_damaged_file_counts_until_it_is_old(tmp_path, content):
    file = tmp_path / OWNER_FILE
    file.write_text(content)
    with pytest.raises(FileExistsError, match=f"remove {OWNER_FILE} or wait"):
        Owner(tmp_path).__enter__()
    os.utime(file, (LONG_AGO, LONG_AGO))
    with Owner(tmp_path):
        pass


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("stale", [True, False])
def test_of_many_at_once_one_becomes_the_owner(
    tmp_path, monkeypatch, links, stale
):
    if not links:

        def refuse(*_):
            raise OSError(errno.EPERM, "no links")

        monkeypatch.setattr(os, "link", refuse)
    if stale:
        claim(tmp_path, started=1)
    barrier, owners, refused = threading.Barrier(8), [], []

    def contend():
        mine = Owner(tmp_path)
        barrier.wait()
        try:
            owners.append(mine.__enter__())
        except FileExistsError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(owners), len(refused)) == (1, 7)
    owners[0].check()
    owners[0].__exit__()
    assert os.listdir(tmp_path) == []


def test_only_the_file_that_was_read_is_replaced(tmp_path):
    with Owner(tmp_path) as live:
        # Another process has replaced it in between.
        assert not Owner(tmp_path)._take_over("of a dead one")
        live.check()
        # A process was killed while it took a workdir over.
        right = tmp_path / ".owner.takeover.tmp"
        right.write_text(live.text)
        assert not Owner(tmp_path)._take_over(live.text)
        assert right.exists()
        claim(tmp_path, started=1).rename(right)
        live.check()
        assert not Owner(tmp_path)._take_over(live.text)
        assert Owner(tmp_path)._take_over(live.text)
        with pytest.raises(FileExistsError, match="taken over"):
            live.check()


def test_a_run_whose_workdir_was_taken_over_writes_nothing_more(tmp_path):
    with Owner(tmp_path) as mine:
        checkpoints = checkpoints_of(tmp_path, small_model())
        checkpoints.owner = mine
        checkpoints.on_epoch_end(0, {"val_mean_iou": 0.5})
        # Removed by hand: it is still ours, and is written again.
        mine.path.unlink()
        checkpoints.on_epoch_end(1, {"val_mean_iou": 0.6})
        best = (tmp_path / "model.keras").read_bytes()
        other = claim(tmp_path, pid=4321, host="elsewhere").read_text()
        with pytest.raises(FileExistsError, match="taken over.*process 4321"):
            checkpoints.on_epoch_end(2, {"val_mean_iou": 0.7})
        assert names(checkpoints.store) == ["epoch_00001", "epoch_00002"]
        assert (tmp_path / "model.keras").read_bytes() == best
    assert (tmp_path / OWNER_FILE).read_text() == other


def test_the_owner_keeps_touching_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(owner, "HEARTBEAT_SECONDS", 0.01)
    with Owner(tmp_path) as mine:
        os.utime(mine.path, (LONG_AGO, LONG_AGO))
        mine._stop.wait(0.01)
        for _ in range(500):
            if mine.path.stat().st_mtime > LONG_AGO:
                break
            mine._stop.wait(0.01)
        assert mine.path.stat().st_mtime > LONG_AGO


def test_readers_say_that_a_run_is_writing(tmp_path, capsys):
    with Owner(tmp_path):
        for words in (["evaluate"], ["export", "--output", "x"]):
            (tmp_path / "config.yaml").write_text("{")
            assert main([*words, "--model", str(tmp_path)]) == 1
            out = capsys.readouterr().out
            assert out.startswith("Note: a run (process ")
            assert out.endswith("its best model so far is read.\n")
    (tmp_path / "config.yaml").unlink()
