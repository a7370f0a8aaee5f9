"""Short configs that stand for long ones are read where they are short, and refused where they explode."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.config.expansion import LARGEST, resolve
from ldm.config.reading import load_config, resolved
from ldm.errors import InputError


def levels(bottom: str, level: str) -> str:
    """Forty lines over one at the bottom, each made of a text in which B is the name of the one below."""
    names = ["v", *(f"v{i}" for i in range(40))]
    return bottom + "".join(
        f"{name}: {level.replace('A', name).replace('B', below)}\n" for below, name in pairwise(names)
    )


BOMBS = {
    "aliases in lists": levels("v: &v [1, 1]\n", "&A [*B, *B]"),
    "aliases in mappings": levels("v: &v {x: 1}\n", "&A {x: *B, y: *B}"),
    "merged mappings": levels("v: &v {x: 1}\n", "&A {<<: *B, A: *B}"),
    "a list in itself": "v: &v [1, *v]",
    "references in texts": levels("v: boo\n", "${B}${B}"),
    "references in sections": levels("v: {x: boo}\n", "{x: '${B}', y: '${B}'}"),
    "references in lists": levels("v: [boo]\n", "['${B}', '${B}']"),
    "references through a resolver": levels("v: boo\n", "${oc.select:B}${oc.select:B}"),
    "a long text": "v: " + "a" * LARGEST,
    "a name made of references": "v: {x: y, y: '${v.x}', z: '${v.${v.y}}'}",
    "deep lists": "v: " + "[" * 5000 + "]" * 5000,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_what_explodes_is_refused_before_it_does(bomb: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(BOMBS[bomb])
    with pytest.raises(InputError) as refused:
        load_config(path)
    assert str(refused.value).startswith(str(path)) and len(str(refused.value).splitlines()) == 1


def test_what_explodes_in_an_override_is_refused_before_it_does() -> None:
    lists = ", ".join(["&v0 [1, 1]", *(f"&v{i + 1} [*v{i}, *v{i}]" for i in range(20))])
    with pytest.raises(InputError, match="its aliases stand for more than any config holds"):
        resolved(OmegaConf.create({"a": 1}), [f"a=[{lists}]"])
    assert resolved(OmegaConf.create({"a": 1}), ["a=[&v [1, 2], *v]"]) == {"a": [[1, 2], [1, 2]]}


def test_aliases_and_references_of_a_sane_config_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "sane.yaml"
    path.write_text(
        "model: &m {size: 8, sizes: &s [1, 2], again: *s}\n"
        "other: {<<: *m, size: 9, text: '${model.size}x${.size}', whole: '${model}', third: '${other.text}!'}"
    )
    other = load_config(path).other
    assert other == {
        "size": 9, "sizes": [1, 2], "again": [1, 2], "text": "8x9", "third": "8x9!",
        "whole": {"size": 8, "sizes": [1, 2], "again": [1, 2]},
    }  # fmt: skip


def test_a_reference_through_another_is_refused_in_words_that_help() -> None:
    for content, name in (
        ({"a": "${c}", "c": {"d": 1}, "b": "${a.d}"}, "a"),
        ({"x": {"a": "${c}"}, "c": {"d": 1}, "b": "${x.a.d}"}, "x.a"),
    ):
        with pytest.raises(InputError, match=f"b: its way through {name} depends on another reference"):
            resolve(OmegaConf.create(content))
    with pytest.raises(InputError, match="is not a container"):
        resolve(OmegaConf.create({"a": 5, "b": "${a.d}"}))


NAMES = st.sampled_from("abcd")
REFERENCES = st.one_of(
    NAMES.map(lambda name: f"${{{name}}}"),
    st.tuples(NAMES, NAMES).map(lambda names: f"${{{names[0]}.{names[1]}}}"),
    st.tuples(NAMES, NAMES).map(lambda names: f"<${{.{names[0]}}}-${{{names[1]}}}>"),
    NAMES.map(lambda name: f"${{oc.select:{name},7}}"),
)
VALUES = st.recursive(
    st.integers(0, 9) | st.text("xyz", max_size=3) | REFERENCES,
    lambda inner: st.dictionaries(NAMES, inner, max_size=3) | st.lists(inner, max_size=2),
    max_leaves=6,
)


@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=4))
def test_what_is_resolved_is_what_omegaconf_makes_of_it(content: dict[str, Any]) -> None:
    ours, theirs = OmegaConf.create(content), OmegaConf.create(content)
    try:
        OmegaConf.resolve(theirs)
    except (OmegaConfBaseException, RecursionError):
        with pytest.raises(InputError):
            resolve(ours)
        return
    try:
        resolve(ours)
    except InputError as refused:  # a section that holds a reference to itself is refused, however deep it is
        assert "refers to itself" in str(refused) or "depends on another" in str(refused)
    else:
        assert ours == theirs
