"""The judge on true renders, none of which it was trained on."""

from collections import defaultdict

from numpy.random import default_rng

from ldm.data.judge import SIDE, load_judge
from ldm.data.render import render
from ldm.data.scenes import HELD_OUT, draw_scene
from ldm.study.alignment import MEASURES, agreement

SEED = 77  # training's are 0 to 4, and the evaluation's begins at SCENES_SEED


def test_the_judge_is_right_98_times_in_100_half_of_them_on_pairs_that_the_generator_never_sees() -> None:
    scenes = [draw_scene(default_rng((SEED, k)), held_out=bool(k % 2)) for k in range(512)]
    pairs = {(thing.shape, thing.colour) for scene in scenes for thing in scene.things}
    assert pairs >= HELD_OUT

    right: dict[str, list[bool]] = defaultdict(list)
    for scene, seen in zip(scenes, load_judge().find([render(it, SIDE) for it in scenes]), strict=True):
        for name, each in agreement(scene, seen).items():
            right[name] += each
    shares = {name: sum(each) / len(each) for name, each in right.items()}
    assert tuple(shares) == MEASURES
    assert min(shares.values()) >= 0.98, shares
