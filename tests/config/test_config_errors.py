"""What is wrong in a config or in a change to it, said in one line that names where."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from ldm.checkpoint import load_model
from ldm.config.reading import load_config, resolved
from ldm.errors import InputError
from ldm.util import instantiate_from_config

LINEAR = {"target": "torch.nn.Linear", "params": {"in_features": 6, "out_features": 4}}
CONFIG = OmegaConf.create({"model": {"a": 1, "b": [1, 2, 4], "c": "${model.a}", "d": {"e": 1}}})

FAULTY = {
    "a cat": "no override",
    "model": "no override",
    "=3": "no override",
    "model..a=3": "no override",
    "model.b[0=3": "no override",
    "modle.a=3": "has no 'modle', only model",
    "model.b[7]=3": r"model.b\[7\]: list index out of range",
    "model.b.x=3": "invalid literal for int",
    "model.b={e: 1}": "model.b: Cannot merge",
    "model.d=[1]": "model.d: Cannot merge",
    "model.a=[1": "while parsing a flow sequence",
    "model.a={e: 1, e: 2}": "duplicate key e",
    "model.a=!!int x": "invalid literal for int",
    "model.a=!!python/object:os.system x": "could not determine a constructor",
    "model.a=\x00": "(control|special) characters",
    "model.a=${": "model.a: no viable alternative",
    "model.a=${nowhere.b}": "model.a: Interpolation key 'nowhere.b' not found",
    "model.a=${oc.env:NO_SUCH_VARIABLE}": "model.a: .*NO_SUCH_VARIABLE",
    "model.a=${model.c}": "Recursive interpolation",
    "model.a=???": "model.c: .*Missing mandatory value: model.a",
}


def write(folder: Path, **files: str) -> Path:
    """Writes the files, each NAME.yaml; returns the first one's path."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(files))}.yaml"


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as refused:
        load_config(path)
    return str(refused.value)


@pytest.mark.parametrize("override", FAULTY)
def test_an_override_that_cannot_be_taken_is_named(override: str, tmp_path: Path) -> None:
    path = write(tmp_path, whole=OmegaConf.to_yaml(CONFIG))
    sound = "model.d.e=2"
    for ask in (
        lambda: load_config(path, [sound, override]),
        lambda: load_model(CONFIG, "nowhere.ckpt", overrides=[sound, override]),
    ):
        with pytest.raises(InputError, match=FAULTY[override]) as refused:
            ask()
        assert override in str(refused.value) or repr(override) in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_config_that_windows_wrote_is_read(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "windows.yaml"
    path.write_bytes("model:\r\n  a: ä\r\n".encode(encoding))
    assert load_config(path) == {"model": {"a": "ä"}}


@given(st.from_regex(r"\A(model(\.[abcd]|\[[0-9]\])*=)?(?s:.)*\Z") | st.text())
@example("[=1")
@example("model.a=${oc.create:{a:1}}")
@example("model.a=" + "[" * 3000)
def test_any_override_is_taken_or_refused(override: str) -> None:
    try:
        assert isinstance(resolved(CONFIG, [override]), DictConfig)
    except InputError as refused:
        assert str(refused)


def test_overrides_reach_into_lists_and_see_each_other() -> None:
    config = resolved(
        CONFIG, ["model.b[1]=9", "model.a=${model.d.e}", "model.d.e=5", "model.d.new={x: 1e-3}"]
    )
    assert config == {"model": {"a": 5, "b": [1, 9, 4], "c": 5, "d": {"e": 5, "new": {"x": 0.001}}}}


def test_overriding_leaves_the_given_config_alone() -> None:
    before = OmegaConf.to_yaml(CONFIG)
    resolved(CONFIG, ["model.b[0]=7", "model.d=null"])
    assert OmegaConf.to_yaml(CONFIG) == before


def test_an_interpolation_in_a_base_sees_what_is_put_over_it(tmp_path: Path) -> None:
    path = write(
        tmp_path, top="base: low.yaml\nmodel: {size: 3}", low="model: {size: 1, width: '${model.size}'}"
    )
    assert load_config(path).model.width == 3
    assert load_config(path, ["model.size=8"]).model.width == 8


def test_a_value_left_open_is_named_when_it_is_needed() -> None:
    config = resolved(OmegaConf.create({"model": LINEAR}), ["model.params.in_features=???"])
    with pytest.raises(InputError, match=r"torch.nn.Linear .*in_features"):
        instantiate_from_config(config.model)


@pytest.mark.parametrize("text", ["- model\n- data", "just words", "", "null", "model:", "3", "yes"])
def test_a_file_without_sections_is_no_config(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, odd=text)
    message = refusal(path)
    assert message.startswith(f"{path} is not a")
    assert "\n" not in message


@pytest.mark.parametrize("ring", ["a a", "a b a", "a b c a", "a b c b"])
def test_a_ring_of_bases_is_shown(ring: str, tmp_path: Path) -> None:
    names = [f"{name}.yaml" for name in ring.split()]
    (tmp_path / "elsewhere").mkdir()
    for name, base in pairwise(names):
        write(tmp_path, **{name.removesuffix(".yaml"): f"base: elsewhere/../{base}\nmodel: {{a: 1}}"})
    message = refusal(tmp_path / "a.yaml")
    assert f"is its own `base:` ({' -> '.join(names)})" in message
    assert "\n" not in message


@pytest.mark.parametrize("base", ["nowhere.yaml", "[1, 2]", "{a: 1}", "'${model.a}'", "???", "3", "x" * 5000])
def test_a_base_that_is_not_there_is_missed_by_the_file_that_names_it(base: str, tmp_path: Path) -> None:
    write(tmp_path, top="base: middle.yaml", middle=f"base: {base}\nmodel: {{a: 1}}")
    message = refusal(tmp_path / "top.yaml")
    assert message.startswith(
        f"{tmp_path / 'middle.yaml'} names a `base:` that is not there. There is no config"
    )


def test_a_config_that_does_not_fit_its_base_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, top="base: low.yaml\nmodel: [1]", low="model: {a: 1}")
    assert refusal(path).startswith(f"{path} does not fit its base {tmp_path / 'low.yaml'}: ")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("model: {a: '${nowhere}'}", "model.a: Interpolation key 'nowhere' not found"),
        ("model: {a: '${.b}', b: '${.a}'}", "model.a: Recursive interpolation"),
        ("model: {a: '${'}", "model.a: no viable alternative"),
        ("model: {a: 1, a: 2}", "found duplicate key a"),
        ("model: {a: !!set {b}}", "model.a: "),
        ("!!float", "string index out of range"),
        ("model: {a: !!timestamp 2001-99-99}", "month must be in 1..12"),
        ("model: 1\n---\nmodel: 2", "expected a single document"),
    ],
)
def test_what_cannot_be_read_or_resolved_is_shown_where_it_stands(
    text: str, place: str, tmp_path: Path
) -> None:
    path = write(tmp_path, odd=text)
    message = refusal(path)
    assert message.startswith(str(path))
    assert place in message
    assert "\n" not in message
