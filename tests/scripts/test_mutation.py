"""The changes that `python -m tests.mutation` makes still fit the code."""

import ast

import pytest

from tests import mutation


def test_those_made_by_hand_stand_where_the_table_says_and_their_tests_are_there():
    changes = list(mutation.read_by_hand())
    assert len(changes) >= 30
    for change in changes:
        assert all((mutation.ROOT / test.partition("::")[0]).is_file() for test in change.tests), change
        if change.path.endswith(".py"):
            ast.parse(changed(change))


@pytest.mark.parametrize("room", mutation.ROOMS)
def test_those_that_are_drawn_are_python_of_another_meaning(room):
    assert all((mutation.ROOT / test).exists() for test in mutation.ROOMS[room])
    changes = mutation.draw([room], 20, seed=3)
    assert len(changes) == 20
    for change in changes:
        before = (mutation.ROOT / change.path).read_text()
        assert ast.dump(ast.parse(changed(change))) != ast.dump(ast.parse(before)), change.describe(before)


def changed(change):
    text = (mutation.ROOT / change.path).read_text()
    return text[: change.start] + change.new + text[change.end :]
