import pytest

from mac_core.evaluation.parts import parts_of


@pytest.mark.parametrize(
    ("count", "parts"),
    [(0, []), (2, [[0, 1]]), (3, [[0, 1, 2]]), (7, [[0, 1, 2], [3, 4, 5], [6]])],
)
def test_parts_hold_everything_once_and_in_order(count: int, parts: list[list[int]]) -> None:
    assert [list(part) for part in parts_of(range(count), 3)] == parts
