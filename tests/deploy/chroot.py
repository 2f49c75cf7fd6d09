"""The image's own steps in a clean Debian, without Docker: `make image-test`, as root.

A chroot stands for each stage of `deploy/Dockerfile`, whose instructions are read and run as they
are there. What is put in the place of registries' images: Debian's minimal system with its Python
for `python:3.11-slim-bookworm`, this machine's toolchain for the Rust image. Then the gateway runs
as the image says: its user, its environment, its command, everything read-only but its volume and
/tmp.
"""

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
from forebay.store import EmbeddedPostgres

from tests.deploy.dockerfile import Instruction, Stage, read, words
from tests.support.databases import create_database, make_template
from tests.support.network import Network
from tests.support.ports import closed_port
from tests.support.processes import Engine
from tests.support.wait import until
from tests.support.wire import CHAT, call, chat, request

ROOT = Path(__file__).parents[2]
PACKAGES = "ca-certificates,python3,python3-venv,python3-pip"
RUST = re.compile(r"rust:\S+")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
HOST = {
    # Debian marks its Python as its own; the image's is nobody's.
    "PIP_BREAK_SYSTEM_PACKAGES": "1",
    "PIP_CERT": CERTIFICATES,
    "SSL_CERT_FILE": CERTIFICATES,
    "DEBIAN_FRONTEND": "noninteractive",
}
"""What a step has besides the stage's own environment."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
QUICK = {
    "CARGO_PROFILE_RELEASE_LTO": "off",
    "CARGO_PROFILE_RELEASE_OPT_LEVEL": "0",
    "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16",
    "CARGO_PROFILE_RELEASE_DEBUG": "0",
}


def run(*command: str, **options: Any) -> str:
    """Run a program; its output. Raises: SystemExit with what it said."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options
    )
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(command)[:300]}\n{done.stdout[-6000:]}")
    return done.stdout


@contextlib.contextmanager
def mounted(*mounts: tuple[str, Path, Sequence[str]]) -> Iterator[None]:
    """What is mounted, on which folder, with which options; the first goes last."""
    with contextlib.ExitStack() as stack:
        for what, where, options in mounts:
            where.mkdir(parents=True, exist_ok=True)
            run("mount", *options, what, str(where))
            stack.callback(run, "umount", "--lazy", str(where))
        yield


class Build:
    """The stages, one folder each. folder: where. environment: of every step, besides its own."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        _, self.stages = read(ROOT / "deploy" / "Dockerfile")
        self.roots: dict[str, Path] = {}
        self.final = Path()

    def base(self) -> Path:
        """Debian's minimal system, made once."""
        base = self.folder / "base"
        if not (base / "usr/bin/python3").exists():
            run(
                "debootstrap",
                "--variant=minbase",
                f"--include={PACKAGES}",
                "bookworm",
                str(base),
            )
        python = base / "usr/local/bin/python"
        if not python.is_symlink():
            python.symlink_to("/usr/bin/python3")
        shutil.copy(CERTIFICATES, base / CERTIFICATES[1:])
        shutil.copy("/etc/resolv.conf", base / "etc/resolv.conf")
        return base

    def run(self) -> dict[str, str]:
        """Run every stage; the last one's environment."""
        names = [stage.image.partition(" AS ") for stage in self.stages]
        self.roots[names[0][0]] = self.base()
        environments: dict[str, dict[str, str]] = {}
        for number, (stage, (image, _, name)) in enumerate(zip(self.stages, names, strict=True)):
            name = name or "final"
            root = self.folder / f"{number}-{name}"
            shutil.rmtree(root, ignore_errors=True)
            run("cp", "-a", "--reflink=auto", str(self.roots[image]), str(root))
            self.roots[name] = self.final = root
            environments[name] = dict(environments.get(image, {}))
            self._stage(stage, root, environments[name])
        return environments[name]

    def _stage(self, stage: Stage, root: Path, environment: dict[str, str]) -> None:
        place = "/"
        for step in stage.instructions:
            print(f"  {step.word} {step.rest[:110]}", flush=True)
            if step.word == "RUN":
                self._run(step, root, place, environment)
            elif step.word == "COPY":
                self._copy(step, root, place)
            elif step.word in ("ENV", "ARG"):
                for pair in shlex.split(step.rest):
                    key, _, value = pair.partition("=")
                    path = environment.get("PATH", PATH)
                    environment[key] = value.replace("$PATH", path)
            elif step.word == "WORKDIR":
                place = step.rest
                (root / place[1:]).mkdir(parents=True, exist_ok=True)

    def _run(self, step: Instruction, root: Path, place: str, environment: dict[str, str]) -> None:
        caches = re.findall(r"--mount=type=cache,target=(\S+)", step.rest)
        command = re.sub(r"--mount=\S+ ", "", step.rest)
        kept = [(str(self._cache(target)), root / target[1:], ("--bind",)) for target in caches]
        told = {"PATH": PATH, **HOST, **self.environment}
        with mounted(
            ("proc", root / "proc", ("-t", "proc")), ("/dev", root / "dev", ("--bind",)), *kept
        ):
            run(
                *("nice", "chroot", str(root), "/bin/sh", "-c", f"cd {place} && {command}"),
                env={**told, **environment},
            )

    def _cache(self, target: str) -> Path:
        cache = self.folder / "cache" / target.strip("/").replace("/", "-")
        cache.mkdir(parents=True, exist_ok=True)
        return cache

    def _copy(self, step: Instruction, root: Path, place: str) -> None:
        *sources, to = [word for word in step.rest.split() if not word.startswith("--")]
        target = root / (to if to.startswith("/") else f"{place}/{to}").lstrip("/")
        found = re.search(r"--from=(\S+)", step.rest)
        if found is not None and RUST.match(found[1]):
            self._rust(target)
        elif found is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            run("cp", "-a", str(self.roots[found[1]]) + sources[0], str(target))
        else:
            for source in sources:
                self._tracked(source, target, into=to.endswith("/"))

    def _rust(self, target: Path) -> None:
        """This machine's toolchain instead of the image's."""
        if target.name == "rustup":
            home = run("rustc", "--print", "sysroot", cwd=ROOT).strip()
            toolchain = target / "toolchains" / "host"
            toolchain.parent.mkdir(parents=True)
            run("cp", "-a", "--reflink=auto", home, str(toolchain))
            shutil.rmtree(toolchain / "share", ignore_errors=True)
            return
        programs = target / "bin"
        programs.mkdir(parents=True)
        for name in ("cargo", "rustc", "rustdoc"):
            (programs / name).symlink_to(f"/usr/local/rustup/toolchains/host/bin/{name}")

    def _tracked(self, source: str, target: Path, *, into: bool) -> None:
        """What the build context has: tracked files only."""
        listed = run("git", "ls-files", "-z", source, cwd=ROOT).split("\0")
        for name in filter(None, listed):
            if not (ROOT / name).is_file() or name.startswith("rust/core/fuzz"):
                continue
            inner = Path(name).relative_to(source) if (ROOT / source).is_dir() else Path()
            place = target / (source if into and (ROOT / source).is_file() else "") / inner
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, place)


def try_out(root: Path, stage: Stage, environment: dict[str, str], folder: Path) -> None:
    """Start the gateway as the image does, and have one chat request answered."""
    uid, _, gid = stage.last("USER").partition(":")
    volume = Path(stage.last("VOLUME"))
    program = [*words(stage.last("ENTRYPOINT")), *words(stage.last("CMD"))]
    health = words(stage.last("HEALTHCHECK").partition(" CMD ")[2])
    engine = Engine(folder / "engine", "--model", "tiny", "--decode-rate", "2000")
    server = EmbeddedPostgres(
        Path("/var/tmp") / f"forebay-image-{os.getpid()}" / "pg", durable=False
    )
    port = closed_port()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, server.data_dir.parent, ignore_errors=True)
        server.data_dir.parent.mkdir(mode=0o711)
        server.start()
        stack.callback(server.stop)
        make_template(server)
        engine.start()
        stack.callback(engine.stop)
        network = stack.enter_context(Network(server))
        database = network.url_of(create_database(server, "image"))
        told = {
            **environment,
            "DATABASE_URL": database,
            "INFERENCE_URL": engine.url,
            "FOREBAY_HTTP": f"127.0.0.1:{port}",
            "FOREBAY_GRPC": f"127.0.0.1:{closed_port()}",
        }
        # The volume's first content is the image's, as Docker has it.
        spool = folder / "volume"
        shutil.rmtree(spool, ignore_errors=True)
        run("cp", "-a", str(root / str(volume)[1:]), str(spool))
        stack.enter_context(
            mounted(
                (str(root), root, ("--bind",)),
                ("proc", root / "proc", ("-t", "proc")),
                ("/dev", root / "dev", ("--bind",)),
                ("tmpfs", root / "tmp", ("-t", "tmpfs", "-o", "mode=1777,nosuid,nodev")),
                (str(spool), root / str(volume)[1:], ("--bind",)),
            )
        )
        run("mount", "-o", "remount,ro,bind", str(root))
        inside = ["chroot", f"--userspec={uid}:{gid}", "--groups=", str(root)]
        place = stage.last("WORKDIR")

        def command(*arguments: str) -> list[str]:
            return [*inside, "/bin/sh", "-c", f"cd {place} && exec {shlex.join(arguments)}"]

        began = time.monotonic()
        log = (folder / "gateway.log").open("wb")
        stack.callback(log.close)
        gateway = subprocess.Popen(command(*program), env=told, stdout=log, stderr=log)
        stack.callback(gateway.kill)

        def is_ready() -> bool:
            assert gateway.poll() is None, (folder / "gateway.log").read_text()
            with contextlib.suppress(OSError):
                return call(port, request("/readyz")).status == 200
            return False

        until(is_ready, "ready", 60)
        ready_s = time.monotonic() - began
        status = Path(f"/proc/{gateway.pid}/status").read_text()
        assert re.search(rf"^Uid:\s+{uid}\s+{uid}\s", status, re.MULTILINE), status
        writes = subprocess.run(command("touch", "/etc/forebay/x", "/opt/x"), env=told, check=False)
        assert writes.returncode != 0, "the root can be written to"
        run(*command(*health), env={**told})
        made = run(*command("forebay", "keys", "create", "--name", "image", "--json"), env=told)
        key = orjson.loads(made[made.index("{") :])["key"]
        until(lambda: call(port, request("/v1/models", key=key)).status == 200, "the key")
        answer = call(port, request(CHAT, chat(), key=key))
        assert answer.status == 200, answer.body
        text = answer.json()["choices"][0]["message"]["content"]
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(60) == 0
        listed = run(*command("forebay", "usage", "--by", "model", "--format", "json"), env=told)
        assert '"requests":1' in re.sub(r"\s", "", listed), listed
        version = run(*command("forebay", "--version"), env=told).strip()
    print(
        f"{version}: ready in {ready_s:.1f} s as uid {uid}, root read-only; answered {text!r}; "
        f"one usage row; ended with 0 on SIGTERM"
    )


def main() -> int:
    """Run it all; 0 where it went well."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp/forebay-image"))
    parser.add_argument("--quick", action="store_true", help="build the core without optimising")
    given = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("image-test makes chroots: run it as root")
    if shutil.which("debootstrap") is None:
        raise SystemExit("image-test needs debootstrap (Debian: apt-get install debootstrap)")
    given.folder.mkdir(parents=True, exist_ok=True)
    build = Build(given.folder, QUICK if given.quick else {})
    began = time.monotonic()
    environment = build.run()
    size = run("du", "-sm", str(build.final)).split()[0]
    print(f"built in {time.monotonic() - began:.0f} s; {size} MB with Debian's system")
    try_out(build.final, build.stages[-1], environment, given.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
