"""What the documents say is so: commands run, links lead somewhere, tables agree with the code."""

import base64
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from forebay._core import Core
from forebay_engine.autoscale import config as autoscale
from forebay_engine.serve import profile

from tests.support.processes import Process

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("engine/README.md", "benches/load/README.md")),
    ROOT / "benches" / "micro" / "README.md",
]
ADDRESS = "http://127.0.0.1:8080"
GRPC = "127.0.0.1:50051"
FOREBAY = [sys.executable, "-m", "forebay.cli"]


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced blocks in these languages."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [body for language, body in found if language in languages]


def commands() -> list[str]:
    """The README's commands in order, continued lines joined, comments taken off."""
    text = "\n".join(blocks(README, "sh", "console")).replace("\\\n", " ")
    lines = (line.removeprefix("$ ").strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


class Dev:
    """A running `forebay dev`, and a place where the README's commands run."""

    def __init__(self, folder: Path) -> None:
        command = [*FOREBAY, "dev", "--http", "127.0.0.1:0"]
        self.process = Process(command, folder, {})
        self.folder = folder

    @property
    def facts(self) -> dict[str, Any]:
        return self.process.facts

    def fill(self, text: str) -> str:
        """Put the running gateway's address and key where the README has its own."""
        text = text.replace(ADDRESS, self.facts["http"]).replace(GRPC, self.facts["grpc"])
        return text.replace("$KEY", self.facts["key"])

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("FOREBAY_", "INFERENCE_"))}
        state = json.loads((self.folder / ".forebay" / "dev.json").read_text())
        return {
            **kept,
            "DATABASE_URL": state["database_url"],
            "INFERENCE_URL": self.facts["engine"],
            "COLUMNS": "200",
            "PROMPT_LOG_KEY_2026": base64.b64encode(bytes(32)).decode(),
        }

    def check(self, file: Path) -> str:
        """Check a configuration; what it takes from the environment is there."""
        named = dict.fromkeys(re.findall(r"\$\{(\w+)\}", file.read_text()), "placeholder")
        return self.run([*FOREBAY, "config", "check", str(file)], named)

    def run(self, arguments: list[str], variables: Mapping[str, str] = {}) -> str:
        done = subprocess.run(
            arguments,
            cwd=self.folder,
            env={**variables, **self.environment()},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def dev(scratch: Path) -> Iterator[Dev]:
    running = Dev(scratch / "docs")
    running.process.start()
    yield running
    assert running.process.stop() == 0, running.process.log()


def test_the_make_targets_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    mentioned = {line.split()[1] for line in commands() if line.startswith("make ")}
    mentioned |= set(re.findall(r"`make ([a-z-]+)`", "".join(d.read_text() for d in DOCUMENTS)))
    assert {"run", "test", "lint", "bench", "load"} <= mentioned
    assert mentioned <= targets


def test_every_command_of_the_readme_is_of_a_kind_that_is_tested() -> None:
    for line in commands():
        assert re.match(r"make |curl |export |\.venv/bin/forebay ", line), line


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("curl ")])
def test_curl_streams(dev: Dev, line: str) -> None:
    answer = dev.run(["bash", "-c", dev.fill(line) + " -sS --fail-with-body"])
    assert answer.count("data: ") > 3
    assert answer.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("snippet", blocks(README, "python"))
def test_the_sdk_snippet_prints_an_answer(dev: Dev, snippet: str) -> None:
    assert "Hello" in dev.run([sys.executable, "-c", dev.fill(snippet)])


def forebay_commands() -> list[list[str]]:
    lines = (line for line in commands() if line.startswith(".venv/bin/forebay "))
    return [shlex.split(line)[1:] for line in lines]


@pytest.mark.parametrize("arguments", forebay_commands(), ids=" ".join)
def test_forebay_commands_run(dev: Dev, arguments: list[str]) -> None:
    if arguments[0] != "serve":
        dev.run([*FOREBAY, *arguments])
        return
    environment = dev.environment()
    chosen = {name: environment[name] for name in ("DATABASE_URL", "INFERENCE_URL")}
    command = [*FOREBAY, *arguments, "--http", "127.0.0.1:0"]
    gateway = Process(command, dev.folder / "serve", chosen)
    gateway.start()
    assert gateway.stop() == 0, gateway.log()


def test_exported_variables_are_read() -> None:
    names = {line.split()[1].split("=")[0] for line in commands() if line.startswith("export ")}
    assert names == {"DATABASE_URL", "INFERENCE_URL"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_configurations_are_good(dev: Dev, document: Path, tmp_path: Path) -> None:
    for text in blocks(document.read_text(), "yaml"):
        path = tmp_path / "forebay.yaml"
        path.write_text(text)
        keys = yaml.safe_load(text).keys()
        # An engine's profile, what an autoscaler is told, or what the gateway is told.
        if {"kind", "model"} <= keys:
            profile.parse(re.sub(r"\$\{\w+\}", "x", text))
        elif "gateways" in keys:
            autoscale.load(path)
        else:
            dev.check(path)


def anchors(text: str) -> set[str]:
    """GitHub's anchors of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), target
        assert path.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(path.read_text()), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_named_are_there(document: Path) -> None:
    for name in re.findall(
        r"`((?:rust|python|tests|benches|docs|engine)/[\w./-]+)`", document.read_text()
    ):
        assert (ROOT / name).exists(), name


def table(text: str, first: str) -> list[list[str]]:
    """The rows of the table whose header begins with `first`; code marks are kept."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def schema_fields() -> dict[str, dict[str, Any]]:
    """Every field of the configuration by its dotted name, as `forebay config schema` has it."""
    printed = subprocess.run(
        [*FOREBAY, "config", "schema"], capture_output=True, text=True, check=True, timeout=30
    )
    schema = json.loads(printed.stdout)
    found: dict[str, dict[str, Any]] = {}

    def section(node: dict[str, Any]) -> dict[str, Any] | None:
        for variant in node.get("anyOf", []):
            if "$ref" in variant:
                return section(variant)
        if "$ref" in node:
            return dict(schema["$defs"][node["$ref"].rpartition("/")[2]])
        return node if node.get("type") == "object" and "properties" in node else None

    def walk(node: dict[str, Any], prefix: str) -> None:
        for name, field in node["properties"].items():
            path = f"{prefix}{name}"
            inner = section(field)
            if inner is not None:
                walk(inner, f"{path}.")
                if "anyOf" not in field:
                    continue
            found[path] = {**field, "required": name in node.get("required", [])}
            for step, key in ((".*", "additionalProperties"), ("[]", "items")):
                below = field.get(key)
                inner = section(below) if isinstance(below, dict) else None
                if inner is not None:
                    walk(inner, f"{path}{step}.")

    root = section(schema)
    assert root is not None
    walk(root, "")
    return found


def test_every_configuration_field_is_documented_as_it_is() -> None:
    rows = table((ROOT / "docs" / "configuration.md").read_text(), "field")
    documented = {row[0].strip("`"): row[1:] for row in rows}
    fields = schema_fields()
    assert set(documented) == set(fields)
    for name, field in fields.items():
        kind, default, meaning = documented[name]
        assert meaning, name
        if field["required"]:
            assert default == "required", name
        else:
            value = field["default"]
            shown = value if isinstance(value, str) else json.dumps(value)
            assert default == f"`{shown}`", name
        variants = field.get("anyOf", [field])
        for variant in variants:
            for choice in variant.get("enum", []):
                assert f"`{choice}`" in kind, f"{name}: {choice}"
            if "maximum" in variant:
                assert f"{variant['maximum']:.0f}" in kind, f"{name}: {variant['maximum']}"
            if "minimum" in variant:
                assert f"{variant['minimum']:.0f} to" in kind, f"{name}: {variant['minimum']}"


def test_every_environment_variable_is_documented() -> None:
    source = (ROOT / "python" / "forebay" / "config" / "loader.py").read_text()
    read = set(re.findall(r'"((?:FOREBAY|INFERENCE)_[A-Z_]+|DATABASE_URL|REDIS_URL)"', source))
    text = (ROOT / "docs" / "configuration.md").read_text()
    assert len(read) >= 8
    assert {name for name in read if f"`{name}`" not in text} == set()


def test_every_error_is_documented_as_it_is() -> None:
    source = (ROOT / "rust" / "core" / "src" / "error.rs").read_text()
    body = source.partition("pub const fn name(")[2].partition("pub fn from_name")[0]
    kinds = re.findall(r'Self::\w+ => "(\w+)"', body)
    rows = table((ROOT / "docs" / "http.md").read_text(), "kind")
    documented = {row[0].strip("`"): row[1:] for row in rows}
    assert len(kinds) >= 14
    assert set(documented) == set(kinds)
    core = Core()
    try:
        for kind, (status, type_, code) in documented.items():
            answered, _, content, _ = core.error(kind, "x")
            error = json.loads(content)["error"]
            assert (str(answered), f"`{error['type']}`") == (status, type_), kind
            if error["code"] is not None:
                assert code == f"`{error['code']}`", kind
    finally:
        core.close()


def test_every_error_code_is_documented() -> None:
    text = (ROOT / "docs" / "http.md").read_text()
    sources = [*(ROOT / "rust" / "core" / "src").rglob("*.rs")]
    sources += (ROOT / "python" / "forebay" / "http").rglob("*.py")
    pattern = re.compile(r'(?:\.code\(|code=)"(\w+)"')
    codes = {code for path in sources for code in pattern.findall(path.read_text())}
    assert "invalid_json" in codes
    assert {code for code in codes if f"`{code}`" not in text} == set()


def test_dropped_headers_are_listed() -> None:
    source = (ROOT / "rust" / "core" / "src" / "upstream" / "forward.rs").read_text()
    pattern = r"const (?:HOP_BY_HOP|OWN|OWN_PREFIXES): \[&str; \d+\] = \[(.*?)\];"
    names = re.findall(r'"([\w-]+)"', "".join(re.findall(pattern, source, re.DOTALL)))
    text = (ROOT / "docs" / "http.md").read_text()
    assert len(names) >= 40
    assert {name for name in names if f"`{name}`" not in text} == set()


def test_the_performance_section_has_its_marks() -> None:
    begin, end = "<!-- performance:begin -->", "<!-- performance:end -->"
    assert README.count(begin) == README.count(end) == 1
    assert README.index(begin) < README.index(end)


def test_nothing_names_a_place_of_one_machine() -> None:
    places = re.compile("/" + "work/|/" + "root/|/" + "home/[a-z]")
    kinds = {".md", ".py", ".pyi", ".rs", ".toml", ".yaml", ".sql", ".txt"}
    folders = ("python", "rust", "engine", "benches", "docs", "tests")
    files = [path for name in folders for path in (ROOT / name).rglob("*") if path.suffix in kinds]
    files += [path for path in ROOT.iterdir() if path.is_file() and path.suffix in kinds]
    files.append(ROOT / "Makefile")
    built = {"target", "results", "data", "__pycache__"}
    for path in files:
        if not built & set(path.relative_to(ROOT).parts):
            found = places.search(path.read_text())
            assert found is None, f"{path}: {found}"
