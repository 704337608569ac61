"""The manifest's limits and semantic versions."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import manifest
from edgekit.errors import ManifestError
from edgekit.manifest import Artifact, Golden, Version
from edgekit.profile import Placement
from tests.contract import samples
from tests.strategies import entry_names, finite, hex64, placements, texts, versions

trees = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(
    entries=st.dictionaries(
        entry_names,
        st.builds(Artifact, sha256=hex64, size_bytes=st.integers(0, 4 << 30)),
        max_size=3,
    ),
    version=versions(),
    placement=placements,
    options=st.dictionaries(texts, trees, max_size=3),
    tools=st.dictionaries(texts, texts, max_size=3),
)
def test_a_manifest_is_read_back_as_it_was_written(
    entries: dict[str, Artifact],
    version: str,
    placement: Placement,
    options: dict[str, object],
    tools: dict[str, str],
) -> None:
    artifact = Artifact(sha256="ab" * 32, size_bytes=1)
    variant = msgspec.structs.replace(samples.VARIANT, placement=placement, options=options)
    content = msgspec.structs.replace(
        samples.MANIFEST, version=version, variants=(variant,), tools=tools
    )
    whole = manifest.complete(content, {**entries, samples.ARTIFACT: artifact})

    raw = manifest.encode(whole)

    assert manifest.decode(raw) == whole
    assert manifest.encode(manifest.decode(raw)) == raw


@given(trees)
def test_canonical_json_is_what_python_writes_but_for_numbers(tree: object) -> None:
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    assert json.loads(manifest.canonical(tree)) == tree
    if not any(mark in text for mark in ("e+", "e-")):
        assert manifest.canonical(tree) == text.encode()


def test_integer_keys_are_written_as_their_text_in_its_order() -> None:
    assert manifest.canonical({10: 1, 9: {2: 0}}) == b'{"10":1,"9":{"2":0}}'


def test_two_variants_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two variants have one name: float, float"):
        msgspec.structs.replace(
            samples.MANIFEST, variants=(samples.VARIANT, samples.VARIANT)
        ).__post_init__()


def test_golden_outputs_come_with_tolerances() -> None:
    with pytest.raises(ValueError, match="come together"):
        Golden(outputs="golden/float.safetensors", reference_atol=0.1)
    Golden(outputs="golden/float.safetensors", atol=0.1, rtol=0.0, reference_atol=0.1)


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b"[" * 65 + b"]" * 65, "nested deeper than 64"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "nested deeper than 64"),
        (b'"' + b'\\"' * 2_000_000, "not JSON"),
        (b'{"a":1,"a":1}', "key comes twice: a"),
        (b'{"a":{"b":1,"b":2}}', "key comes twice: b"),
        (b"[NaN]", "NaN is not JSON"),
        (b"[-Infinity]", "-Infinity is not JSON"),
        (b"[1e999]", "out of range"),
        (b"[" + b"1" * 5000 + b"]", "not JSON"),
        (b'"\xff"', "not JSON"),
        (b"", "not JSON"),
        (b"\0", "not JSON"),
        (b" " * ((16 << 20) + 1), "at most 16777216"),
    ],
)
def test_json_beyond_the_limits_is_refused(raw: bytes, match: str) -> None:
    with pytest.raises(ManifestError, match=match):
        manifest.decode_json(raw, "it")


def test_a_manifest_above_4_mib_is_refused() -> None:
    with pytest.raises(ManifestError, match="at most 4194304"):
        manifest.decode(b" " * ((4 << 20) + 1))


def test_brackets_within_strings_do_not_nest() -> None:
    text = "[" * 100 + '"' + "\\"
    deep: object = text
    for _ in range(64):
        deep = [deep]

    assert manifest.decode_json(json.dumps([text, {text: text}]).encode(), "it")
    assert manifest.decode_json(json.dumps(deep).encode(), "it") == deep


@given(st.binary(max_size=60))
def test_garbage_is_a_manifest_error(raw: bytes) -> None:
    with pytest.raises(ManifestError):
        manifest.decode(raw)


# The order that semver.org 2.0.0 gives in its section 11, and more of the same.
LADDER = [
    "0.0.0-0", "0.0.0", "0.9.10", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta",
    "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "1.0.10", "1.2.0", "2.0.0", "10.0.0",
]  # fmt: skip


@given(st.integers(0, len(LADDER) - 1), st.integers(0, len(LADDER) - 1))
def test_versions_order_as_semver_says(one: int, two: int) -> None:
    assert (Version(LADDER[one]) < Version(LADDER[two])) == (one < two)
    assert (Version(LADDER[one]) >= Version(LADDER[two])) == (one >= two)
    assert (Version(LADDER[one]) == Version(LADDER[two])) == (one == two)


@given(versions(), versions(), versions())
def test_the_order_of_versions_is_total(one: str, two: str, three: str) -> None:
    a, b, c = Version(one), Version(two), Version(three)
    assert (a < b) + (a == b) + (a > b) == 1
    if a <= b <= c:
        assert a <= c
    assert (a == b) <= (hash(a) == hash(b))


@given(versions())
def test_build_metadata_does_not_order(text: str) -> None:
    bare = text.partition("+")[0]
    assert Version(f"{bare}+1") == Version(f"{bare}+2.a")
    assert repr(Version(text)) == f"Version({text!r})"


@given(versions())
def test_a_release_comes_after_its_pre_releases(text: str) -> None:
    numbers = text.partition("+")[0].partition("-")[0]
    assert Version(f"{numbers}-{'z' * 9}") < Version(numbers)


@pytest.mark.parametrize(
    "text",
    ["", "1", "1.2", "1.2.3.4", "v1.2.3", "01.2.3", "1.2.3-", "1.2.3-01", "1.2.3-a..b", "1.2.3+",
     "1.2.3+a..b", "1.2.3 ", "1.2.3\n", "-1.2.3", "1.2.3-ä", "9" * 5000 + ".0.0"],
)  # fmt: skip
def test_what_is_no_semantic_version_is_refused(text: str) -> None:
    with pytest.raises(ManifestError, match="not a semantic version") as caught:
        Version(text)
    assert len(str(caught.value)) < 300
