"""What a pickle claims of its tensors is held against the bytes that are there."""

from pathlib import Path

import pytest
import torch

from ldm.errors import InputError
from ldm.weights.reading import read_tensors
from tests.hostile.files import NUMBERS, a_global, archive, call, literal, state_dict, storage, tensor

REBUILT = a_global("torch._tensor", "_rebuild_from_type_v2")
LIES = {
    "negative shape": tensor(shape=(-3, 4)),
    "two negatives": tensor(shape=(-3, -4)),
    "huge shape": tensor(shape=(2**40, 2**40)),
    "shape past 64 bits": tensor(shape=(2**70, 1)),
    "shape of millions of digits": tensor(shape=(2**1_000_000, 1)),
    "huge shape without stride": tensor(shape=(2**40, 2**20), stride=(0, 0)),
    "shape larger than its storage without stride": tensor(shape=(13,), stride=(0,)),
    "huge and empty": tensor(shape=(0, 2**40, 2**40), stride=(1, 1, 1)),
    "one more than there is": tensor(shape=(13,), stride=(1,)),
    "negative offset": tensor(offset=-1),
    "offset past the end": tensor(offset=1),
    "huge offset": tensor(offset=2**62),
    "negative stride": tensor(stride=(-4, 1)),
    "stride past the end": tensor(stride=(5, 1)),
    "stride that wraps": tensor(stride=(2**62, 2**62)),
    "strides missing": tensor(stride=(1,)),
    "a thousand dimensions": tensor(shape=(1,) * 1000, stride=(1,) * 1000),
    "wider type": tensor(kind="DoubleStorage"),
    "unknown type": tensor(kind="StringStorage"),
    "text for a shape": tensor(shape="ab", stride="ab"),  # type: ignore[arg-type]
    "text in a shape": tensor(shape=("3", 4)),
    "truth in a shape": tensor(shape=(True, 4)),
    "float offset": tensor(offset=0.0),
    "no such storage": tensor(key="1"),
    "storage outside": tensor(key="../../../etc/passwd"),
    "number for a key": tensor(key=0),
    "too few arguments": call(a_global("torch._utils", "_rebuild_tensor_v2"), literal(1)),
    "nothing of a type": call(REBUILT, tensor(), a_global("torch", "Tensor"), literal(()), literal(None)),
    "one type of another": call(REBUILT, REBUILT, a_global("torch", "Tensor"), literal((1,)), literal(None)),
    "no arguments": a_global("torch._utils", "_rebuild_parameter") + b")R",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_claim_that_the_storage_does_not_bear_out_is_refused(lie: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.ckpt", state_dict(w=LIES[lie]))
    with pytest.raises(InputError) as refused:
        read_tensors(path)
    assert len(str(refused.value).splitlines()) == 1
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "said"), [("float8_e8m0fnu", "float8_e8m0fnu"), ("bits3", "a type unknown here")]
)
def test_numbers_of_a_type_that_is_not_read_are_not_taken_for_bytes(
    kind: str, said: str, tmp_path: Path
) -> None:
    typed = call(
        a_global("torch._utils", "_rebuild_tensor_v3"),
        storage("UntypedStorage"), literal(0), literal((3, 4)), literal((4, 1)), literal(False),
        call(a_global("collections", "OrderedDict")), a_global("torch", kind),
    )  # fmt: skip
    path = archive(tmp_path / "a.ckpt", state_dict(w=typed))
    with pytest.raises(InputError) as refused:
        read_tensors(path)
    assert str(refused.value) == (
        f"{path} has the tensor 'w' in {said}, which is not read: convert the file to float16 or float32"
    )


def test_views_that_overlap_inside_their_storage_are_read(tmp_path: Path) -> None:
    views = {
        "all": tensor(),
        "shifted": tensor(shape=(2, 5), stride=(5, 1), offset=2),
        "crossed": tensor(shape=(4, 3), stride=(1, 4)),
        "sliding": tensor(shape=(3, 4), stride=(1, 1)),
        "last": tensor(shape=(), stride=(), offset=11),
        "none": tensor(shape=(0, 7), stride=(7, 1)),
    }
    tensors = read_tensors(archive(tmp_path / "a.ckpt", state_dict(**views)))
    assert torch.equal(tensors["all"], NUMBERS.view(3, 4))
    assert torch.equal(tensors["shifted"], NUMBERS[2:].view(2, 5))
    assert torch.equal(tensors["crossed"], NUMBERS.view(3, 4).T)
    assert torch.equal(tensors["sliding"], NUMBERS[:6].unfold(0, 4, 1))
    assert torch.equal(tensors["last"], NUMBERS[11])
    assert tensors["none"].shape == (0, 7)
