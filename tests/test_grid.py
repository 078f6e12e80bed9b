"""Sharing does not change answers: every point of a grid gives the answer of its recipe alone."""

from dataclasses import replace

import pytest

from fastmem import FastMem, Recipe
from fastmem.errors import InputError
from fastmem.lab.search.grid import Grid, Space
from lab_runs import questions

RECIPE = Recipe(placement="assistant")


@pytest.fixture
def llm(llama, tokenizer):
    return FastMem(llama, tokenizer)


@pytest.mark.parametrize(("placement", "relative_top"), [("assistant", None), ("prompt", 0.9)])
def test_every_point_answers_as_its_recipe_does_alone(llm, tmp_path, placement, relative_top):
    recipe = replace(RECIPE, placement=placement)
    space = Space(recipe, (1e-2, 1e-1), (1, 3), (0.1, 1.0), ((-1,), (-2, -1)), (0.0, 0.7), relative_top)
    assert len(space.points) == 32
    example = questions(tmp_path).examples[0]
    texts = Grid(llm, space, 5).texts(example)
    assert len(set(texts)) > 2  # the recipes differ enough to be told apart
    for point, text in zip(space.points, texts, strict=True):
        alone = llm.answer(
            example.question,
            example.context,
            "fastmem+cd" if point.alpha else "fastmem",
            point.recipe,
            alpha=point.alpha or 0.5,
            relative_top=relative_top,
            max_new_tokens=5,
        )
        assert text == alone.text, point


def test_the_papers_grid_is_sixty_points():
    assert len(Space(RECIPE).points) == 60


def test_spaces_that_make_no_sense():
    with pytest.raises(InputError, match=r"the space's rates are \[\]: give each value once, and at least one"):
        Space(RECIPE, rates=())
    with pytest.raises(InputError, match=r"the space's steps are \[3, 3\]"):
        Space(RECIPE, steps=(3, 3))
    with pytest.raises(InputError, match=r"alpha is -1.0: give a number, 0 to 1000"):
        Space(RECIPE, alphas=(-1.0,))
    with pytest.raises(InputError, match=r"relative_top is 2.0: give a number, 0 to 1"):
        Space(RECIPE, relative_top=2.0)
    with pytest.raises(InputError, match=r"recipe learning_rate"):
        Space(RECIPE, rates=(-1e-3,))
