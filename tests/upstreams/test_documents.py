"""docs/upstreams.md says of each kind what its file does, and its examples load."""

import re
from pathlib import Path
from typing import get_args

import pytest
from forebay.config import Upstream, load
from forebay.config.kinds import UpstreamKind
from forebay.upstreams import KINDS

from tests.docs.test_docs import blocks, table
from tests.upstreams.examples import SECTIONS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "upstreams.md").read_text()
NAMES = get_args(UpstreamKind)
ROWS = {row[0].strip("`"): row[1:] for row in table(TEXT, "kind")}
HEAD = re.search(r"^\| kind \|(.*)\|$", TEXT, re.MULTILINE)
assert HEAD is not None
FEATURES = [name.strip() for name in HEAD[1].split("|")]


def cell(kind: str, feature: str) -> str:
    return ROWS[kind][FEATURES.index(feature)]


def upstream(kind: str) -> Upstream:
    section = {k: v for k, v in SECTIONS[kind].items() if k != "credentials"}
    return Upstream(kind=kind, **section)  # type: ignore[arg-type]


def test_every_kind_has_its_row_and_every_reason_is_there() -> None:
    assert set(ROWS) == set(NAMES)
    reasons = set(re.findall(r"^(\d+)\. ", TEXT, re.MULTILINE))
    used = {n for row in ROWS.values() for text in row for n in re.findall(r"\((\d+)\)", text)}
    assert used == reasons
    for kind, row in ROWS.items():
        assert len(row) == len(FEATURES)
        for text in row:
            assert text
            assert not text.startswith("no") or re.fullmatch(r"no \(\d+\)", text), (kind, text)


@pytest.mark.parametrize("kind", NAMES)
def test_the_matrix_is_as_the_file_says(kind: str) -> None:
    made, settings = KINDS[kind], upstream(kind)
    assert ("read to its end" in cell(kind, "hang-up")) == made.drains
    assert cell(kind, "cold start").startswith("held") == made.can_be_cold(settings)
    assert ("woken" in cell(kind, "cold start")) == (made.wake_for(settings) is not None)
    assert (cell(kind, "continuation") == "yes") == made.continues
    has_embeddings = made.paths(settings).embeddings is not None
    assert cell(kind, "embeddings").startswith("yes") == has_embeddings
    probe = made.probe_for(settings)
    health = cell(kind, "health")
    if probe is None:
        assert health.startswith("no")
    elif health.startswith("`"):
        assert health.strip("`") == probe.ready.partition("?")[0]
    else:
        assert probe.wakes or kind == "runpod"


BESIDE = {row[0].strip("`"): row[1:] for row in table(TEXT, "at")}
APIS = (
    *("rerank", "score", "moderations", "images", "image_edits", "image_variations"),
    *("speech", "transcriptions", "translations", "files"),
)


@pytest.mark.parametrize("kind", NAMES)
def test_the_matrix_beside_text_is_as_the_file_says(kind: str) -> None:
    paths = KINDS[kind].paths(upstream(kind))
    has = [getattr(paths, api) is not None for api in APIS]
    assert [cell == "yes" for cell in BESIDE[kind]] == has
    assert (paths.files is None) == (paths.batches is None)


@pytest.mark.parametrize("kind", NAMES)
def test_it_has_a_section_with_an_example(kind: str, tmp_path: Path) -> None:
    section = TEXT.partition(f"\n### {kind}\n")[2].partition("\n##")[0]
    (example,) = blocks(section, "yaml")
    file = tmp_path / "forebay.yaml"
    file.write_text(example)
    config = load(file, dict.fromkeys(re.findall(r"\$\{(\w+)\}", example), "placeholder"))
    assert kind in {upstream.kind for upstream in config.upstreams.values()}
