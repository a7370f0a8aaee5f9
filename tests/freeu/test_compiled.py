"""FreeU under torch.compile: one graph on one device, as a CUDA graph has to be, with the plain numbers."""

import warnings

import pytest
import torch
from torch import Tensor

from ldm.freeu import free_u
from ldm.freeu.diffusers import enable
from ldm.modules.diffusionmodules.openaimodel import Free_UNetModel
from tests.conftest import fill_by_name, golden_parameters, relative_error, rnd
from tests.freeu.unets import conditional, inputs, run

FACTORS = {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}
TIMES = torch.tensor([981, 41])

each_kind = pytest.mark.parametrize(
    "kind", [{}, {"version": 2}, {"threshold": 3}, {"weight": torch.tensor([0.3, 1.0])}]
)


@pytest.fixture(autouse=True)
def _nothing_is_left():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Graphs(list[torch.fx.GraphModule]):
    """A backend of torch.compile that runs graphs as they are, and keeps them."""

    def __call__(self, graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        self.append(graph)
        return graph

    def devices(self) -> list[set[str]]:
        """For each graph those of all the values that it meets."""
        met = [[node.meta.get("example_value") for node in graph.graph.nodes] for graph in self]
        return [{value.device.type for value in values if isinstance(value, Tensor)} for values in met]


@each_kind
def test_free_u_is_one_graph_on_its_maps_own_device_and_warns_of_nothing(kind):
    kind = {name: value.to("meta") if isinstance(value, Tensor) else value for name, value in kind.items()}
    compiled = torch.compile(free_u, fullgraph=True, backend=(graphs := Graphs()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled(torch.empty(2, 24, 6, 9, device="meta"), 8, 1.2, 0.5, **kind)
    assert graphs.devices() == [{"meta"}]


@each_kind
def test_compiled_the_numbers_are_the_plain_ones(kind):
    compiled = torch.compile(free_u, fullgraph=True, backend="aot_eager")
    fused = rnd(1, 2, 24, 6, 9)
    expected = free_u(fused.clone(), 8, 1.2, 0.5, **kind)
    assert relative_error(compiled(fused, 8, 1.2, 0.5, **kind), expected) < 1e-6


def test_few_graphs_serve_maps_of_any_size():
    compiled = torch.compile(free_u, fullgraph=True, dynamic=True, backend=(graphs := Graphs()))
    for height, width in ((6, 9), (8, 5), (7, 4), (5, 6)):
        fused = rnd(1, 2, 24, height, width)
        expected = free_u(fused.clone(), 8, 1.2, 0.5)
        assert relative_error(compiled(fused, 8, 1.2, 0.5), expected) < 1e-6
    assert len(graphs) <= 2  # torch 2.6 makes one more


@pytest.mark.slow
def test_our_unet_is_one_graph_on_its_own_device():
    shape = golden_parameters("unet_tiny") | {"num_res_blocks": 1, "attention_resolutions": [4]}
    unet = Free_UNetModel(**FACTORS, **shape).eval().to("meta")
    compiled = torch.compile(unet, fullgraph=True, backend=(graphs := Graphs()))
    x, context = rnd(1, 2, 4, 16, 24).to("meta"), rnd(2, 2, 11, 48).to("meta")
    assert compiled(x, TIMES.to("meta"), context).shape == x.shape
    assert graphs.devices() == [{"meta"}]


@pytest.mark.slow
def test_our_unet_is_exported_once_for_any_number_of_samples():
    shape = {"num_res_blocks": 1, "channel_mult": [1, 2], "attention_resolutions": [2]}
    unet = fill_by_name(Free_UNetModel(**FACTORS, **golden_parameters("unet_tiny") | shape, stop=0.5))
    x, times, context = rnd(1, 3, 4, 16, 24), torch.tensor([981, 601, 41]), rnd(2, 3, 11, 48)
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    how = {"dynamic_shapes": (batch, batch, batch), "strict": False}
    exported = torch.export.export(unet, (x[:2], times[:2], context[:2]), **how).module()
    for samples in (1, 3):
        given = x[:samples], times[:samples], context[:samples]
        assert relative_error(exported(*given), unet(*given)) < 1e-5


@pytest.mark.slow
def test_free_u_brings_no_other_device_into_the_graph_of_a_pipelines_unet():
    unet = conditional().to("meta")
    given = {name: value.to("meta") for name, value in inputs(unet).items()}
    compiled = torch.compile(unet, fullgraph=True, backend=(graphs := Graphs()))
    with enable(unet, **FACTORS):
        run(compiled, given, TIMES.to("meta"))
    assert graphs.devices() == [{"meta"}]
