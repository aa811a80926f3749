"""Ownership of a workdir: one run at a time writes to it."""

import contextlib
import errno
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path

from keras_aspp.utils.exceptions import OutputExistsError

OWNER_FILE = ".owner.json"
# The owner touches its file at this interval. Where its process cannot be
# checked, it counts as dead STALE_SECONDS after the last touch.
HEARTBEAT_SECONDS, STALE_SECONDS = 30, 600
# File systems without hard links, such as FAT and mounted buckets.
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


class Owner:
    """Context manager in which this process owns a workdir.

    The workdir gets a file that names the process: host, process id, boot of
    the machine, start of the process, namespace of the process id. A file whose
    process is dead is removed.

    Args:
        workdir: folder of a run; created if it does not exist, and removed at
            the end if it is still empty.

    Raises:
        FileExistsError: a live run owns the workdir.
        OSError: the workdir cannot be written to.
    """

    def __init__(self, workdir):
        self.workdir = Path(workdir)
        self.path = self.workdir / OWNER_FILE
        self.token = secrets.token_hex(8)
        self.text = json.dumps(
            {
                "token": self.token,
                **_process(),
                "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            }
        )
        self._created, self._stop, self._thread = [], threading.Event(), None

    def __enter__(self):
        self._created = [
            path
            for path in (self.workdir, *self.workdir.parents)
            if not path.exists()
        ]
        self.workdir.mkdir(parents=True, exist_ok=True)
        try:
            self._acquire()
        except BaseException:
            self._remove_empty_folders()
            raise
        self._thread = threading.Thread(target=self._touch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        if _read(self.path) == self.text:
            self.path.unlink(missing_ok=True)
        self._remove_empty_folders()

    def check(self):
        """Raises unless this process still owns the workdir.

        Another run may have taken it over while this process was suspended,
        or after the file was removed by hand.

        Raises:
            FileExistsError: another run owns it.
        """
        text = _read(self.path)
        if text != self.text and (text or not self._create(self.path)):
            raise OutputExistsError(
                "Another run has taken over the workdir, so this one ends "
                f"without a further write. Received: workdir={self._shown()}, "
                f"{_who(text)}"
            )

    def _acquire(self):
        while not self._create(self.path):
            text, age = _read(self.path), self._age(self.path)
            if text is None or age is None:
                continue  # just removed
            if not is_dead(text, age):
                raise OutputExistsError(
                    "A run that is still going owns the workdir; wait for it, "
                    f"end it, or choose another workdir.{self._hint(text, age)}"
                    f" Received: workdir={self._shown()}, {_who(text)}"
                )
            if self._take_over(text):
                return

    def _take_over(self, text):
        """Replaces the file of a dead owner; False if another process does.

        One process at a time may replace it, and only if the file still holds
        what was read. Removing it first would let several become the owner.
        """
        right = self.path.with_name(".owner.takeover.tmp")
        if not self._create(right):
            other, age = _read(right), self._age(right)
            if None not in (other, age) and is_dead(other, age):
                right.unlink(missing_ok=True)  # it was killed right here
            time.sleep(0.01)
            return False
        try:
            if _read(self.path) != text:
                return False
            temporary = self._beside()
            temporary.write_text(self.text, encoding="utf-8")
            os.replace(temporary, self.path)
            return True
        finally:
            right.unlink(missing_ok=True)

    def _create(self, path):
        """Creates a file of ours in one step; False if there is one."""
        temporary = self._beside()
        temporary.write_text(self.text, encoding="utf-8")
        try:
            os.link(temporary, path)
        except (FileExistsError, FileNotFoundError):
            # It exists, or its owner has just removed the temporary file.
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            try:
                with open(path, "x", encoding="utf-8") as file:
                    file.write(self.text)
            except FileExistsError:
                return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _beside(self):
        return self.path.with_name(f".owner.{self.token}.tmp")

    def _age(self, path):
        """Returns the age of a file in seconds, by the file system's clock."""
        temporary = self._beside()
        try:
            temporary.touch()
            return temporary.stat().st_mtime - path.stat().st_mtime
        except FileNotFoundError:
            return None
        finally:
            temporary.unlink(missing_ok=True)

    def _touch(self):
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                if _read(self.path) == self.text:
                    os.utime(self.path)

    def _hint(self, text, age):
        if _shares_ids(_parsed(text)):
            return ""
        return (
            f" It was last seen {max(age, 0):.0f} s ago; if it is dead, "
            f"remove {OWNER_FILE} or wait until {STALE_SECONDS} s have passed."
        )

    def _shown(self):
        return repr(str(self.workdir))

    def _remove_empty_folders(self):
        for folder in self._created:
            with contextlib.suppress(OSError):
                folder.rmdir()


def note_of_writer(path):
    """Returns a note for readers of a workdir that a run is writing to.

    Args:
        path: workdir, or anything else.

    Returns:
        str, one line; `None` if no live run owns the folder.
    """
    file = Path(path) / OWNER_FILE
    text = _read(file)
    if not text:
        return None
    try:
        age = time.time() - file.stat().st_mtime
    except OSError:
        return None
    if is_dead(text, age):
        return None
    return (
        f"Note: a run ({_who(text)}) is writing to this workdir; its best "
        "model so far is read."
    )


def is_dead(text, age):
    """Returns True if the process of an owner file no longer runs.

    Args:
        text: str, content of the file.
        age: float, seconds since the file was touched.
    """
    owner, here = _parsed(text), _process()
    pid, started = owner.get("pid"), owner.get("started")
    if type(pid) is int and pid > 0 and owner.get("host") == here["host"]:
        if owner.get("boot_id") != here["boot_id"]:
            return True  # the machine was rebooted
        if not _shares_ids(owner):
            return age > STALE_SECONDS
        if os.name == "posix":  # on Windows, kill ends what it asks about
            try:
                os.kill(pid, 0)
            except (ProcessLookupError, OverflowError):
                return True
            except PermissionError:
                pass  # another user's, which /proc may hide
        now = _started(pid)
        if None not in (started, now):
            # Process ids are reused, with another start.
            return now != started
    return age > STALE_SECONDS


def _shares_ids(owner):
    """Returns True if process ids of an owner mean the same processes here.

    Containers of one machine may have one host name, each with its own ids.
    """
    here = _process()
    namespace = owner.get("pid_namespace")  # absent in earlier files
    return owner.get("host") == here["host"] and namespace in (
        None,
        here["pid_namespace"],
    )


def _process():
    """Describes this process; `None` for values that are unavailable."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot_id = None
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = None
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "boot_id": boot_id,
        "pid_namespace": namespace,
        "started": _started(os.getpid()),
    }


def _started(pid):
    """Returns the start of a process in ticks since boot, -1 if it has ended.

    `None` if the system does not provide it.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name in parentheses may hold spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    # A zombie has ended; its parent has not read its status yet.
    return -1 if fields[0] in "ZX" else int(fields[19])


def _read(path):
    """Returns the text of a file, `None` if there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None


def _parsed(text):
    try:
        owner = json.loads(text or "{}")
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _who(text):
    owner = _parsed(text)
    if "pid" not in owner:
        return f"an unreadable {OWNER_FILE}"
    return (
        f"process {owner['pid']} on {owner.get('host')} since "
        f"{owner.get('since')}"
    )
