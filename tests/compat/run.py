"""The clients of others against a running gateway; what came of it goes into docs/compat.md.

Run by `make compat`, which needs Node 20 or newer and a registry for its packages.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from forebay.store import Database, EmbeddedPostgres

from tests.support.databases import run_apart
from tests.support.processes import Engine, Gateway
from tests.support.wait import until

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PAGE = ROOT / "docs" / "compat.md"
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
NODE = 20
TIMEOUT_S = 300


@dataclass(frozen=True)
class Suite:
    """Tests of one client. packages: whose versions are told; files: its tests."""

    client: str
    language: str
    packages: tuple[str, ...]
    file: str


PYTHON = (
    Suite("openai", "Python", ("openai",), "tests/http/test_sdk.py"),
    Suite("openai, more of chats", "Python", ("openai",), "tests/sdk/test_openai.py"),
    Suite("openai, Responses", "Python", ("openai",), "tests/sdk/test_openai_responses.py"),
    Suite("anthropic", "Python", ("anthropic",), "tests/sdk/test_anthropic.py"),
    Suite(
        "langchain-openai",
        "Python",
        ("langchain-openai", "langchain-core", "openai"),
        "tests/sdk/test_langchain.py",
    ),
)
"""Run by `make test` too, with the same versions."""
APART = Suite(
    "llama-index-llms-openai",
    "Python",
    ("llama-index-llms-openai", "llama-index-core", "openai"),
    "tests/compat/python/check_llama_index.py",
)
"""In an environment of its own: it wants another version of openai."""
NODE_SUITES = (
    Suite("openai", "JavaScript", ("openai",), "openai.test.mjs"),
    Suite("@anthropic-ai/sdk", "JavaScript", ("@anthropic-ai/sdk",), "anthropic.test.mjs"),
    Suite(
        "ai",
        "JavaScript",
        ("ai", "@ai-sdk/openai-compatible", "@ai-sdk/openai"),
        "ai.test.mjs",
    ),
)


APART_OPTIONS = ("-c", "/dev/null", "--noconftest", "--import-mode=importlib")
"""Nothing of the gateway's tests can be imported there."""


@dataclass(frozen=True)
class Result:
    """What came of a suite. failed: names of tests."""

    suite: Suite
    versions: str
    passed: int
    failed: tuple[str, ...]


@contextmanager
def gateway(folder: Path) -> Iterator[Gateway]:
    """A gateway, its database and a simulated engine."""
    postgres = EmbeddedPostgres(folder / "pg", durable=False)
    engine = Engine(
        folder / "engine", "--model", "tiny", "--embedding", "tiny-embed", "--decode-rate", "2000"
    )
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    try:
        postgres.start()
        run_apart(lambda: _migrate(postgres.url))
        engine.start()
        config = {
            "upstreams": {"sim": {"kind": "sglang", "url": engine.url}},
            # Some clients know the models of OpenAI alone.
            "models": {
                "tiny": {"targets": [{"upstream": "sim"}], "aliases": ["gpt-4o-mini"]},
                "tiny-embed": {"targets": [{"upstream": "sim"}]},
            },
        }
        process = Gateway(folder / "gateway", config, postgres.url)
        process.start()
        until(lambda: process.health()["checks"]["upstream:sim"] == "ok", "the engine")
        yield process
        assert process.stop() == 0, process.log()
    finally:
        if engine.popen is not None:
            engine.stop()
        postgres.stop()


async def _migrate(url: str) -> None:
    async with await Database.connect(url, max_size=1) as database:
        await database.migrate()


def by_pytest(python: Path, suite: Suite, folder: Path, env: dict[str, str]) -> Result:
    """Run a file of tests by pytest."""
    report = folder / "report.xml"
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", suite.file]
    # The other environment has none of the plugins that the settings of the whole name.
    own = [] if python == Path(sys.executable) else [*APART_OPTIONS, f"--rootdir={ROOT}"]
    subprocess.run([*command, *own, f"--junit-xml={report}"], cwd=ROOT, env=env, timeout=TIMEOUT_S)
    if own:
        code = "import sys, importlib.metadata as m; print(*map(m.version, sys.argv[1:]))"
        ask = [str(python), "-c", code, *suite.packages]
        told = subprocess.check_output(ask, env=env, text=True)
        versions = told.split()
    else:
        versions = [version(name) for name in suite.packages]
    return _result(suite, versions, report)


def by_node(suite: Suite, folder: Path, env: dict[str, str]) -> Result:
    """Run a file of tests by Node."""
    report = folder / "report.xml"
    command = ["node", "--test", "--test-reporter=junit", f"--test-reporter-destination={report}"]
    command += ["--test-reporter=spec", "--test-reporter-destination=stdout", suite.file]
    subprocess.run(command, cwd=HERE, env=env, timeout=TIMEOUT_S)
    versions = [
        json.loads((HERE / "node_modules" / name / "package.json").read_text())["version"]
        for name in suite.packages
    ]
    return _result(suite, versions, report)


def _result(suite: Suite, versions: list[str], report: Path) -> Result:
    passed, failed = 0, []
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(case.get("name", ""))
        elif case.find("skipped") is None:
            passed += 1
    report.unlink()
    told = ", ".join(f"{name} {v}" for name, v in zip(suite.packages, versions, strict=True))
    return Result(suite, told, passed, tuple(failed))


def page(results: list[Result]) -> str:
    """The results as the page has them."""
    node = subprocess.check_output(["node", "--version"], text=True).strip()
    lines = [
        f"Last run: {datetime.now(UTC):%Y-%m-%d}, Python {sys.version.split()[0]}, Node {node}.",
        "",
        "| client | versions | tests | failed |",
        "|---|---|---|---|",
    ]
    for result in results:
        suite = result.suite
        path = suite.file if "/" in suite.file else f"tests/compat/{suite.file}"
        failed = ", ".join(result.failed) or "none"
        count = result.passed + len(result.failed)
        name = f"`{suite.client}` ({suite.language})"
        lines.append(f"| {name} | {result.versions} | {count}, `{path}` | {failed} |")
    return "\n".join(lines)


def main() -> int:
    """Run everything; 1 where something failed."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        print(f"forebay: Node {NODE} or newer with npm is needed for this", file=sys.stderr)
        return 1
    apart = Path(os.environ.get("FOREBAY_COMPAT_PYTHON", ROOT / ".venv-compat" / "bin" / "python"))
    results = []
    with tempfile.TemporaryDirectory(prefix="forebay-compat-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o711)  # as root the database runs as nobody
        for suite in PYTHON:
            results.append(by_pytest(Path(sys.executable), suite, folder, dict(os.environ)))
        with gateway(folder) as running:
            url, key = running.url, running.key().secret
            env = {**os.environ, "FOREBAY_COMPAT_URL": url, "FOREBAY_COMPAT_KEY": key}
            alone = {name: value for name, value in env.items() if name != "PYTHONPATH"}
            results.append(by_pytest(apart, APART, folder, alone))
            results += [by_node(suite, folder, env) for suite in NODE_SUITES]
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{page(results)}\n{END}{after}")
    print(page(results))
    # A suite without a test has not run.
    return int(any(result.failed or not result.passed for result in results))


if __name__ == "__main__":
    sys.exit(main())
